// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that are moved: any state is set at any time, and a device's state
//! goes through its stream and back while commands are under way.
//!
//! Laws: GET reports the state that was set, or after a refusal the one
//! before; a stopped device touches nothing; what was submitted before a move
//! completes once behind it.

use caller::{FileId, Reply};
use host::FileKind;
use pci::Address;
use uapi::Errno;
use uapi::vfio::device as dev;
use uapi::vfio::migration::MigState;
use zerocopy::{FromBytes, IntoBytes};

use crate::client::BASE;
use crate::world::{Broken, Step, World};

const SET: u32 = 1 << 17;
const GET: u32 = 1 << 16;
/// Feature `MIG_DEVICE_STATE`.
const STATE: u32 = 2;

const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;

/// Where pieces of a stream lie in a program's memory, and how long they are.
const PIECES: u64 = BASE + 0x1000;
const PIECE: u64 = 0x5001;

impl World {
    /// Sets a state.
    pub(crate) fn migrate(&mut self, client: u8, fd: u8, target: u8) -> Step<Option<Address>> {
        let Some((fd, file)) = self.pick(client, fd, FileKind::VfioDevice) else { return Ok(None) };
        let before = self.migration_state(client, fd);
        let Ok(before) = before else { return Ok(None) };
        let target = u32::from(target);
        let result = self.set_state(client, fd, target);
        let after = self.migration_state(client, fd);
        let lawful = match (&result, after) {
            (Ok(_), Ok(after)) => after == target,
            (Err(errno), Ok(after)) => *errno == Errno::EINVAL && after == before,
            _ => false,
        };
        if lawful {
            return Ok(self.address(file));
        }
        Err(Broken(format!("SET from {before} to {target} gave {result:?}, GET gives {after:?}")))
    }

    /// A device that runs is stopped; its state is read, written back, and it
    /// runs again.
    pub(crate) fn relocate(&mut self, client: u8, fd: u8) -> Step<Option<Address>> {
        let Some((fd, file)) = self.pick(client, fd, FileKind::VfioDevice) else { return Ok(None) };
        if self.migration_state(client, fd) != Ok(RUNNING) {
            return Ok(None);
        }
        let moved = self.go_through_the_stream(client, fd);
        moved.map_err(|(what, errno)| Broken(format!("a device that runs cannot be moved: {what}: {errno:?}")))?;
        self.tally.moves += 1;
        self.moved(file);
        Ok(self.address(file))
    }

    fn go_through_the_stream(&mut self, client: u8, fd: i32) -> Result<(), (&'static str, Errno)> {
        let at = |what: &'static str| move |errno| (what, errno);
        let caller = self.client(client.into());
        let saving = self.set_state(client, fd, STOP_COPY).map_err(at("STOP_COPY"))?;
        let from = caller.file_id(saving).ok_or(("no stream", Errno::EBADF))?;
        let mut state = Vec::new();
        loop {
            let reply = self.host.borrow_mut().read(from, 0, PIECES, PIECE, &*caller).map_err(at("read"))?;
            let Reply::Value(len @ 1..) = reply else { break };
            let mut piece = vec![0; len as usize];
            caller.get(PIECES, &mut piece);
            state.extend(piece);
        }
        self.set_state(client, fd, STOP).map_err(at("STOP"))?;
        let resuming = self.set_state(client, fd, RESUMING).map_err(at("RESUMING"))?;
        let to = caller.file_id(resuming).ok_or(("no stream", Errno::EBADF))?;
        for piece in state.chunks(PIECE as usize) {
            caller.set(PIECES, piece);
            let done = self.host.borrow_mut().write(to, 0, PIECES, piece.len() as u64, &*caller);
            if done.map_err(at("write"))? != Reply::Value(piece.len() as u64) {
                return Err(("a short write", Errno::EIO));
            }
        }
        self.set_state(client, fd, RUNNING).map_err(at("RUNNING"))?;
        for number in [saving, resuming] {
            self.close(client.into(), number);
        }
        Ok(())
    }

    /// Brings every open device back to RUNNING, so that what it has can be
    /// completed: by a reset, if it has begun to take a state.
    pub(crate) fn resume_all(&mut self) {
        for client in 0..2 {
            for fd in self.client(client.into()).open() {
                let Some(file) = self.client(client.into()).file_id(fd) else { continue };
                let running = match self.migration_state(client, fd) {
                    Ok(RUNNING) | Err(_) => true,
                    Ok(_) => self.set_state(client, fd, RUNNING).is_ok(),
                };
                if !running {
                    let _ = self.ioctl(client.into(), fd, dev::RESET, &[]);
                    self.forget_driver(file);
                }
            }
        }
    }

    /// Whether a device is stopped, by what the lab says.
    pub(crate) fn is_stopped(&self, device: Address) -> bool {
        let device = device.to_string();
        let migrations = self.host.borrow().migrations();
        let state = migrations.into_iter().find(|info| info.address == device).and_then(|info| info.state);
        state.is_some_and(|state| matches!(&*state, "ERROR" | "STOP" | "STOP_COPY" | "RESUMING"))
    }

    /// The same of an open device's file.
    pub(crate) fn is_file_stopped(&self, file: FileId) -> bool {
        self.address(file).is_some_and(|device| self.is_stopped(device))
    }

    fn migration_state(&mut self, client: u8, fd: i32) -> Result<u32, Errno> {
        self.state_call(client, fd, GET, 0).map(|mig| mig.device_state)
    }

    /// The stream's descriptor, or -1.
    fn set_state(&mut self, client: u8, fd: i32, state: u32) -> Result<i32, Errno> {
        self.state_call(client, fd, SET, state).map(|mig| mig.data_fd)
    }

    fn state_call(&mut self, client: u8, fd: i32, flags: u32, device_state: u32) -> Result<MigState, Errno> {
        let mig = MigState { device_state, data_fd: -1 };
        let bytes = [[16, flags | STATE].as_bytes(), mig.as_bytes()].concat();
        self.ioctl(client.into(), fd, dev::FEATURE, &bytes)?;
        let mut after = [0; 8];
        self.client(client.into()).get(BASE + 8, &mut after);
        MigState::read_from_bytes(&after).map_err(|_| Errno::EFAULT)
    }
}
