// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open device files: what a program does with a device once it has its
//! descriptor.
//!
//! [`Devices`] keeps the state of each open [`Device`](state::Device), which
//! all its files share (API-053), and sends each call to the topic that owns
//! the rule: `info`, `irqs`, `config`, `rw`, `reset`, `power`, `feature`,
//! `migration`, `ioeventfd`, `token`.

mod config;
mod feature;
mod gate;
mod hot_reset;
mod info;
mod ioeventfd;
mod irqs;
mod migration;
mod power;
mod recovery;
mod reset;
mod rw;
mod slow_reset;
mod state;
mod token;
mod watches;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::device::{Board, DeviceFile, Driver, Nanos, ResetKind};
use caller::{FileId, Parking, Platform, Reply, Ticket, WatchId};
use pci::Address;
use pci::recovery::Channel;
use uapi::Errno;
use uapi::vfio::device as request;

use crate::{Context, Options};
use feature::Parsed;
pub(crate) use feature::Request;
use gate::Gate;
pub(crate) use hot_reset::GroupFacts;
use irqs::Tools;
pub use migration::MigrationReport;
use migration::StreamFile;
use recovery::Access;
use slow_reset::SlowResets;
use state::Device;
use token::Tokens;
use watches::{Action, Watches};

/// Every device that a program has open.
#[derive(Debug)]
pub(crate) struct Devices {
    platform: Arc<dyn Platform>,
    options: Options,
    /// Device numbers, kept from the first open on: programs may remember
    /// file offsets.
    numbers: BTreeMap<Address, u32>,
    open: BTreeMap<Address, Device>,
    files: BTreeMap<FileId, Address>,
    /// Files of migration streams.
    streams: BTreeMap<FileId, StreamFile>,
    /// Transfers of slow streams that wait, and until when.
    slow: Vec<(Nanos, Ticket)>,
    watches: Watches,
    tokens: Tokens,
    /// Devices that were not reset since a program used them (HOT-043).
    needs_reset: BTreeSet<Address>,
    gate: Gate,
    slow_resets: SlowResets,
    /// The device that could not be opened just now because of a reset.
    busy: Option<Address>,
}

impl Devices {
    /// No device is open.
    pub(crate) fn new(platform: Arc<dyn Platform>, options: &Options) -> Devices {
        Devices {
            options: options.clone(),
            numbers: BTreeMap::new(),
            open: BTreeMap::new(),
            files: BTreeMap::new(),
            streams: BTreeMap::new(),
            slow: Vec::new(),
            watches: Watches::new(Arc::clone(&platform)),
            tokens: Tokens::new(Arc::clone(&platform)),
            needs_reset: BTreeSet::new(),
            gate: Gate::default(),
            slow_resets: SlowResets::default(),
            busy: None,
            platform,
        }
    }

    /// Whether what a program passed to GET_DEVICE_FD names this device: the
    /// address, alone or followed by a space and options (API-049).
    pub(crate) fn matches(&self, address: Address, name: &str, board: &Board) -> bool {
        // A mediated device's driver knows no options.
        board.mediated(address).map_or_else(|| token::options_of(address, name).is_some(), |part| part.uuid == name)
    }

    /// Checks the options of a name that matches: `EINVAL`, `EACCES` (API-050,
    /// API-057 to API-060). Linux does it with the match, before it looks at
    /// the container.
    pub(crate) fn check_options(&mut self, address: Address, name: &str, board: &Board) -> Result<(), Errno> {
        if board.mediated(address).is_some() {
            return Ok(());
        }
        let options = token::options_of(address, name).ok_or(Errno::ENODEV)?;
        let token = token::parse(options)?;
        self.tokens.check(address, token, board)
    }

    /// Opens a device whose container checks have passed, as `file`. `name` is
    /// what the program passed to GET_DEVICE_FD. `ENODEV` if it is no longer
    /// bound (API-273), `ENOMEM` if no file can be made for it.
    pub(crate) fn open(
        &mut self,
        file: FileId,
        address: Address,
        name: &str,
        cx: &mut Context<'_>,
    ) -> Result<(), Errno> {
        self.check_options(address, name, cx.board)?;
        if cx.board.is_leaving(address) {
            return Err(Errno::ENODEV);
        }
        self.open_device(file, address, None, cx.board)
    }

    /// Opens a device as `file`; the first time as what `shown` is, if that is
    /// made already. As [`open`](Self::open).
    pub(crate) fn open_device(
        &mut self,
        file: FileId,
        address: Address,
        shown: Option<Arc<dyn DeviceFile>>,
        board: &mut Board,
    ) -> Result<(), Errno> {
        if board.driver(address) != Some(&Driver::VfioPci) {
            return Err(Errno::ENODEV);
        }
        if !self.open.contains_key(&address) {
            if self.is_resetting(address) {
                self.busy = Some(address);
                return Err(Errno::EAGAIN);
            }
            self.ensure_known(address, board)?;
            let reset = self.take_opened(address);
            if self.is_resetting(address) || reset.is_none() && self.start_open(address, board) {
                self.busy = Some(address);
                return Err(Errno::EAGAIN);
            }
            let shown = match shown {
                Some(shown) => shown,
                None => self.make_file(address, board)?,
            };
            let number = self.number(address)?;
            let device = Device::open(address, number, shown, board, &*self.platform, &self.options, reset)?;
            if device.is_virtual() {
                self.tokens.add_user(address, board);
            }
            self.open.insert(address, device);
        }
        if let Some(device) = self.open.get_mut(&address) {
            device.files += 1;
            self.files.insert(file, address);
        }
        Ok(())
    }

    /// A call has failed. If it was to open a device that is being reset, it
    /// waits for the end of that (HOT-036), and is made again.
    pub(crate) fn wait_if_busy(&mut self, parking: &mut Parking) -> Option<Ticket> {
        let address = self.busy.take()?;
        Some(self.gate.park(address, parking))
    }

    /// A file in which the regions of a device lie where they do in all of its
    /// files: `ENODEV`, `ENFILE`, `ENOMEM`.
    pub(crate) fn make_file(&mut self, address: Address, board: &Board) -> Result<Arc<dyn DeviceFile>, Errno> {
        board.endpoint(address).ok_or(Errno::ENODEV)?;
        let layout = state::layout(self.number(address)?, board, address);
        self.platform.device_files().create(&layout).map_err(|_| Errno::ENOMEM)
    }

    /// Checks a VF token that was given by itself: `EINVAL`, `EACCES`.
    pub(crate) fn check_token(
        &mut self,
        address: Address,
        token: Option<[u8; 16]>,
        board: &Board,
    ) -> Result<(), Errno> {
        self.tokens.check(address, token, board)
    }

    /// Before a request that is none of the device's own.
    pub(crate) fn wake(&mut self, address: Address, board: &mut Board) {
        let now = self.now();
        if let Some(device) = self.open.get_mut(&address) {
            device.wake(board, now);
        }
    }

    /// After it.
    pub(crate) fn idle(&mut self, address: Address, board: &mut Board) {
        let now = self.now();
        if let Some(device) = self.open.get_mut(&address) {
            device.idle(board, now);
        }
    }

    /// `ENFILE` if there are no offsets left for one more device.
    fn number(&mut self, address: Address) -> Result<u32, Errno> {
        let next = self.numbers.len() as u32;
        if let Some(number) = self.numbers.get(&address) {
            return Ok(*number);
        }
        if next >= uapi::region::MAX_DEVICES {
            return Err(Errno::ENFILE);
        }
        self.numbers.insert(address, next);
        Ok(next)
    }

    /// Whether the file is an open device.
    pub(crate) fn is_device(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// `ioctl` on a device file, in the order of API-122; of `FEATURE` what
    /// [`Request::parse`] says.
    pub(crate) fn ioctl(
        &mut self,
        file: FileId,
        (request, feature): (u32, Option<Parsed>),
        arg: u64,
        cx: &mut Context<'_>,
        groups: &dyn GroupFacts,
    ) -> Result<Reply, Errno> {
        let now = self.platform.now();
        let address = *self.files.get(&file).ok_or(Errno::EINVAL)?;
        if request == request::BIND_IOMMUFD {
            return bind_from_group(arg, cx);
        }
        let device = self.open.get_mut(&address).ok_or(Errno::EINVAL)?;
        if !device.recovery.is_open() && gate::touches(request, arg, cx.caller) {
            match device.recovery.access {
                // A hot reset only tries for the lock (HOT-026).
                Access::Resetting if request == request::PCI_HOT_RESET => {}
                Access::Blocked { .. } | Access::Resetting => {
                    return Ok(Reply::Parked(self.gate.park(address, cx.parking)));
                }
                // Only resets may help.
                Access::Failed if request == request::SET_IRQS => return Err(Errno::EIO),
                _ => {}
            }
        }
        device.wake(cx.board, now);
        let result = match request {
            // These are about more than one device.
            request::GET_PCI_HOT_RESET_INFO => self.hot_reset_info(file, arg, cx, groups).map(|()| 0),
            request::PCI_HOT_RESET => match self.hot_reset(file, arg, cx, groups) {
                Ok(Some(ticket)) => return Ok(Reply::Parked(ticket)),
                other => other.map(|_| 0),
            },
            // Files from a group have no iommufd (API-120).
            request::ATTACH_IOMMUFD_PT | request::DETACH_IOMMUFD_PT => Err(Errno::ENOTTY),
            request::FEATURE => {
                let mut stream = None;
                let opens = (&mut *cx.files, &mut stream, &mut *cx.iommufd);
                let parsed = feature.unwrap_or_else(|| Request::parse(arg, cx.caller));
                let result = parsed
                    .and_then(|feature| device.feature(feature, cx.caller, cx.board, &mut self.tokens, opens, now));
                if let Some(file) = stream {
                    let resuming = device.migration_state() == Some(migration::State::Resuming);
                    self.streams.insert(file, StreamFile { address, resuming });
                }
                result
            }
            request::GET_REGION_INFO => device.get_region_info(cx.caller, arg).map(|()| 0),
            request::GET_INFO => device.get_info(cx.board, cx.caller, arg).map(|()| 0),
            request::GET_IRQ_INFO => device.get_irq_info(cx.board, cx.caller, arg).map(|()| 0),
            request::SET_IRQS => {
                let watches = &mut self.watches;
                device.set_irqs(arg, &mut Tools { caller: cx.caller, board: cx.board, watches, now })
            }
            request::RESET => device.reset(cx.board, now).map(|()| 0),
            request::IOEVENTFD => device.ioeventfd(arg, cx.caller, &mut self.watches).map(|()| 0),
            _ => Err(Errno::ENOTTY),
        };
        if let Some(device) = self.open.get_mut(&address) {
            device.idle(cx.board, now);
        }
        self.wait_if_started(address, (0, true), cx)
            .map_or(result.map(Reply::Value), |ticket| Ok(Reply::Parked(ticket)))
    }

    /// The call waits if it has begun a reset that takes time.
    fn wait_if_started(
        &mut self,
        address: Address,
        (value, tells): (u64, bool),
        cx: &mut Context<'_>,
    ) -> Option<Ticket> {
        let started = self.open.get_mut(&address)?.started.take()?;
        Some(self.wait_for_reset(address, started, (value, tells, slow_reset::Holds::Memory), cx.board, cx.parking))
    }

    /// `pread`: the bytes done. Waits while the device is blocked.
    pub(crate) fn read(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let device = self.files.get(&file).and_then(|a| self.open.get_mut(a)).ok_or(Errno::EINVAL)?;
        if len == 0 {
            return Ok(Reply::Value(0));
        }
        if device.recovery.is_blocked() {
            return Ok(Reply::Parked(self.gate.park(device.address, cx.parking)));
        }
        let clock = &*self.platform;
        if !device.low_power.engaged() {
            return device.read(offset, buf, len, cx.caller, cx.board, clock).map(Reply::Value);
        }
        device.wake(cx.board, clock.now());
        let result = device.read(offset, buf, len, cx.caller, cx.board, clock);
        device.idle(cx.board, clock.now());
        result.map(Reply::Value)
    }

    /// `pwrite`: the bytes done. Waits while the device is blocked.
    pub(crate) fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: u64,
        len: u64,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Errno> {
        let device = self.files.get(&file).and_then(|a| self.open.get_mut(a)).ok_or(Errno::EINVAL)?;
        if len == 0 {
            return Ok(Reply::Value(0));
        }
        if device.recovery.is_blocked() {
            return Ok(Reply::Parked(self.gate.park(device.address, cx.parking)));
        }
        let now = self.platform.now();
        device.wake(cx.board, now);
        let result = device.write(offset, buf, len, cx.caller, cx.board, now);
        device.idle(cx.board, now);
        if device.started.is_some() {
            let (address, done) = (device.address, *result.as_ref().unwrap_or(&len));
            // Whether such a reset has worked is not told (ERR-082).
            return Ok(self.wait_if_started(address, (done, false), cx).map_or(Reply::Value(done), Reply::Parked));
        }
        result.map(Reply::Value)
    }

    /// Whether the range of a device file may be mapped.
    pub(crate) fn mmap(&self, file: FileId, offset: u64, len: u64, shared: bool, board: &Board) -> Result<(), Errno> {
        let _ = board;
        self.device(file).ok_or(Errno::EINVAL)?.mmap(offset, len, shared)
    }

    /// A file's last descriptor and mapping are gone. The device's address if
    /// it was the last file of it, and the close work is done.
    pub(crate) fn release(&mut self, file: FileId, board: &mut Board) -> Option<Address> {
        let address = self.files.remove(&file)?;
        let device = self.open.get_mut(&address)?;
        device.files -= 1;
        if device.files > 0 {
            return None;
        }
        let mut device = self.open.remove(&address)?;
        if device.is_virtual() {
            self.tokens.remove_user(address, board);
        }
        let (resetting, affected) = (device.recovery.is_resetting(), device.recovery.is_affected());
        let (was_reset, started) = device.close(board, &mut self.watches, self.platform.now());
        if affected {
            self.gate.keep(address, device.saved_at_open().clone());
        }
        if resetting {
            self.adopt_reset(address, device.saved_at_open());
            return Some(address);
        }
        self.let_waiters_go(address);
        match started {
            Some(started) => self.finish_close(address, started, board),
            None => self.reset_after_close(address, was_reset, board),
        }
        Some(address)
    }

    /// A watched event was signalled.
    pub(crate) fn event_fired(&mut self, watch: WatchId, board: &mut Board) {
        let _ = board;
        let Some((address, action)) = self.watches.get(watch) else { return };
        let Some(device) = self.open.get_mut(&address) else { return };
        match action {
            Action::Unmask => device.endpoint.interrupts.unmask_intx(),
            Action::Store => device.ioeventfd_fired(watch, self.platform.now()),
        }
    }

    /// The shared pages of an open device.
    pub(crate) fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        self.device(file).map(|device| Arc::clone(&device.file))
    }

    /// The device that a file is of.
    pub(crate) fn address(&self, file: FileId) -> Option<Address> {
        self.files.get(&file).copied()
    }

    /// What an open device's migration is doing.
    pub(crate) fn migration(&self, address: Address) -> Option<MigrationReport> {
        self.open.get(&address)?.migration_report()
    }

    /// Whether a program has the device open.
    pub(crate) fn is_open(&self, address: Address) -> bool {
        self.open.contains_key(&address)
    }

    /// Tells the device's user of an error, and the index by which.
    pub(crate) fn tell_error(&self, address: Address, channel: Channel) -> Option<u32> {
        self.open.get(&address)?.tell_error(channel)
    }

    /// Tells the device's user of an uncorrectable error; whether it asked to
    /// be told.
    pub(crate) fn signal_error(&self, address: Address) -> bool {
        self.open.get(&address).is_some_and(Device::signal_error)
    }

    /// The hardware has reset an open device: what its registers allowed is
    /// shut, its model starts anew, the shadow stays (ERR-038, ERR-039).
    /// Whether it is open.
    pub(crate) fn was_reset(&mut self, address: Address, kind: ResetKind, board: &Board) -> bool {
        let now = self.platform.now();
        let Some(device) = self.open.get_mut(&address) else { return false };
        device.reset_behind_its_back();
        device.after_reset(board, kind, now);
        tracing::info!(name: "vfio.reset_from_outside", device = %address);
        true
    }

    /// What an open device answers, or whether it does, has changed.
    pub(crate) fn reach_changed(&mut self, address: Address, board: &mut Board) {
        let now = self.platform.now();
        if let Some(device) = self.open.get_mut(&address) {
            device.sync(board, now);
            device.try_release(board, now);
            self.let_waiters_go(address);
        }
    }

    /// An open device is kept awake, or no longer (ERR-017).
    pub(crate) fn hold(&mut self, address: Address, on: bool, board: &mut Board) {
        let now = self.platform.now();
        match self.open.get_mut(&address) {
            Some(device) if on => device.wake(board, now),
            Some(device) => device.idle(board, now),
            None => {}
        }
    }

    /// Asks the device's user to give it back; whether it can be asked
    /// (API-272).
    pub(crate) fn signal_request(&self, address: Address) -> bool {
        self.open.get(&address).is_some_and(Device::signal_request)
    }

    /// A device has lost its driver.
    pub(crate) fn unbound(&mut self, address: Address) {
        self.tokens.forget(address);
        self.needs_reset.remove(&address);
    }

    fn now(&self) -> u64 {
        self.platform.now()
    }

    fn device(&self, file: FileId) -> Option<&Device> {
        self.open.get(self.files.get(&file)?)
    }
}

/// BIND_IOMMUFD on a file from a group: refused once its argument can be read
/// (API-105).
fn bind_from_group(arg: u64, cx: &Context<'_>) -> Result<Reply, Errno> {
    crate::cdev::read_bind(cx.caller, arg)?;
    Err(Errno::EINVAL)
}
