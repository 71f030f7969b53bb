// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients that move a device's state, or as many bytes without a device.
//!
//! Both sides copy between memory of a GiB, which no cache holds, and a piece
//! of a MiB that is used again and again.
#![allow(unsafe_code)] // pieces of memory that is mapped for good

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use uapi::vfio::cdev::BindIommufd;
use uapi::vfio::device::{self, FeatureFlags, feature};
use uapi::vfio::migration::MigState;

use crate::client::{Orders, ioctl, node, private};

/// A client with a device.
pub(crate) const STREAMS: &str = "streams";
/// A client with pipes.
pub(crate) const PIPES: &str = "pipes";
/// A client of states for the bare supervisor.
pub(crate) const FLOOR: &str = "states-floor";

/// Reads the device's state.
pub(super) const SAVE: &str = "save";
/// Writes it back.
pub(super) const LOAD: &str = "load";
/// RUNNING to RUNNING_P2P and back, each counted.
pub(super) const ARC: &str = "arc";
/// RUNNING_P2P to STOP and back, each counted.
pub(super) const STOP: &str = "stop";
/// Takes as many bytes out of a pipe.
pub(super) const TAKE: &str = "take";
/// Puts them in.
pub(super) const GIVE: &str = "give";
/// Copies them.
pub(super) const COPY: &str = "copy";
/// `DMA_LOGGING_REPORT` of 16 GiB: nothing is dirty, 1% is, everything is.
pub(crate) const LOGGED: [&str; 3] = ["report-none", "report-some", "report-all"];

/// Bytes of state.
pub(super) const STATE: usize = 1 << 30;
/// Bytes a call.
const PIECE: usize = 1 << 20;

const STOPPED: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;
const RUNNING_P2P: u32 = 5;

/// `struct vfio_device_feature` with the state behind it.
#[repr(C)]
struct StateArg {
    argsz: u32,
    flags: u32,
    state: MigState,
}

/// A device that is moved.
pub(crate) struct Streams {
    _iommu: Option<OwnedFd>,
    device: OwnedFd,
    /// The whole stream, as it was read last, and its length.
    memory: &'static mut [u8],
    length: usize,
}

impl Streams {
    pub(crate) fn open() -> Result<Streams> {
        let (iommu, device) = (node("/dev/iommu")?, node("/dev/vfio/devices/vfio0")?);
        let mut bind = BindIommufd { argsz: 24, iommufd: iommu.as_raw_fd(), ..BindIommufd::default() };
        ioctl(&device, device::BIND_IOMMUFD, (&raw mut bind) as u64).context("BIND_IOMMUFD")?;
        Ok(Streams { _iommu: Some(iommu), device, memory: memory(STATE + 64 * PIECE)?, length: 0 })
    }

    /// For the bare supervisor.
    pub(crate) fn pretend() -> Result<Streams> {
        Ok(Streams { _iommu: None, device: node("/dev/null")?, memory: memory(PIECE)?, length: 0 })
    }

    fn set(&self, state: u32) -> Result<i32> {
        let flags = FeatureFlags::SET.bits() | feature::MIG_DEVICE_STATE;
        let state = MigState { device_state: state, data_fd: -1 };
        let mut arg = StateArg { argsz: size_of::<StateArg>() as u32, flags, state };
        ioctl(&self.device, device::FEATURE, (&raw mut arg) as u64).context("MIG_DEVICE_STATE")?;
        Ok(arg.state.data_fd)
    }

    fn stream(&self, state: u32) -> Result<File> {
        let fd = self.set(state)?;
        ensure!(fd >= 0, "no stream");
        // SAFETY: the call has just made the descriptor for us alone.
        Ok(unsafe { File::from_raw_fd(fd) })
    }

    /// Reads the stream, each piece to the same place, or all of it to keep.
    fn save(&mut self, keep: bool) -> Result<f64> {
        let mut stream = self.stream(STOP_COPY)?;
        let (mut at, mut total) = (0, 0);
        let start = Instant::now();
        loop {
            let to = self.memory.get_mut(at..at + PIECE).context("the stream is too long")?;
            let got = stream.read(to).context("read")?;
            if got == 0 {
                break;
            }
            total += got;
            at += if keep { got } else { 0 };
        }
        let took = start.elapsed().as_nanos() as f64;
        ensure!(total > STATE, "{total} bytes of state");
        self.set(RUNNING)?;
        self.length = if keep { total } else { 0 };
        Ok(took)
    }

    fn load(&mut self) -> Result<f64> {
        if self.length == 0 {
            self.save(true)?;
        }
        let mut stream = self.stream(RESUMING)?;
        let start = Instant::now();
        let mut rest = self.memory.get(..self.length).unwrap_or_default();
        while !rest.is_empty() {
            let done = stream.write(rest.get(..PIECE.min(rest.len())).unwrap_or_default()).context("write")?;
            rest = rest.get(done..).unwrap_or_default();
        }
        let took = start.elapsed().as_nanos() as f64;
        self.set(RUNNING)?;
        Ok(took)
    }

    /// Goes there and back so many times; ns a change.
    fn change(&self, between: (u32, u32), count: u64) -> Result<f64> {
        let mut once = |_| self.set(between.1).and_then(|_| self.set(between.0)).map(drop);
        // The other side has slept, and on another core.
        crate::timing::each(count / 10, &mut once)?;
        Ok(crate::timing::each(count / 2, &mut once)? / 2.0)
    }
}

impl Orders for Streams {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        match verb {
            SAVE => self.save(false),
            LOAD => self.load(),
            ARC => self.change((RUNNING, RUNNING_P2P), count),
            STOP => {
                self.set(RUNNING_P2P)?;
                let took = self.change((RUNNING_P2P, STOPPED), count);
                self.set(RUNNING)?;
                took
            }
            _ => bail!("no order is called {verb}"),
        }
    }
}

/// The same bytes through a pipe, whose other end is another thread's.
pub(crate) struct Pipes {
    large: &'static mut [u8],
    piece: &'static mut [u8],
}

impl Pipes {
    pub(crate) fn new() -> Result<Pipes> {
        Ok(Pipes { large: memory(STATE)?, piece: memory(PIECE)? })
    }

    /// Has all of `large` go through a pipe, in or out.
    fn pass(&mut self, out: bool) -> Result<f64> {
        let (from, to) = rustix::pipe::pipe()?;
        rustix::pipe::fcntl_setpipe_size(&to, PIECE)?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        let Pipes { large, piece } = self;
        std::thread::scope(|scope| {
            let start = Instant::now();
            if out {
                // What is taken here another thread has put in.
                let other = scope.spawn(move || large.chunks(PIECE).try_for_each(|part| to.write_all(part)));
                while from.read(piece)? > 0 {}
                other.join().ok().context("the other end")??;
            } else {
                let other = scope.spawn(move || large.chunks_mut(PIECE).try_for_each(|part| from.read_exact(part)));
                (0..STATE / PIECE).try_for_each(|_| to.write_all(piece))?;
                other.join().ok().context("the other end")??;
            }
            Ok(start.elapsed().as_nanos() as f64)
        })
    }

    fn copy(&mut self) -> f64 {
        let start = Instant::now();
        for part in self.large.chunks(PIECE) {
            std::hint::black_box(&mut *self.piece).copy_from_slice(part);
        }
        start.elapsed().as_nanos() as f64
    }
}

impl Orders for Pipes {
    fn obey(&mut self, verb: &str, _: u64) -> Result<f64> {
        match verb {
            TAKE => self.pass(true),
            GIVE => self.pass(false),
            COPY => Ok(self.copy()),
            _ => bail!("no order is called {verb}"),
        }
    }
}

/// Memory whose pages are there, for good.
fn memory(len: usize) -> Result<&'static mut [u8]> {
    let at = private(len)?;
    // SAFETY: mapped above, so long, for good, and used by nobody else.
    let memory = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, len) };
    memory.fill(1);
    Ok(memory)
}
