// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of vhost-vdpa with 64 GiB of memory that nobody touches.
#![allow(unsafe_code)] // write and eventfd of a client

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use uapi::vhost::{IotlbMsg, MSG_V2, VringAddr, VringFile, VringState, iotlb, request};
use zerocopy::IntoBytes;

use crate::client::{Orders, ioctl, map, node};
use crate::timing::each;

/// UPDATE and INVALIDATE of a page.
pub(crate) const PAIR: &str = "pair";
/// A batch of so many messages, UPDATEs and INVALIDATEs in turn; ns a message.
pub(crate) const BATCH: &str = "batch";
/// Maps all memory in so many pieces, and starts the device.
pub(crate) const FILL: &str = "fill";
/// Resets the device and starts it again.
pub(crate) const RESTART: &str = "restart";
/// The same, with everything unmapped and mapped again.
pub(crate) const RESTART_ANEW: &str = "restart-anew";

const PAGE: u64 = 4096;
const MEMORY: u64 = 64 << 30;
/// IOVA of pairs, behind the memory.
const FREE: u64 = 1 << 40;
const MESSAGE: usize = 72;

pub(crate) struct Vdpa {
    node: OwnedFd,
    memory: u64,
    kick: OwnedFd,
    call: OwnedFd,
    pieces: u64,
}

impl Vdpa {
    /// Opens the node; `real` unless it is the bare supervisor's, which looks
    /// at the length of a message only.
    pub(crate) fn open(real: bool) -> Result<Vdpa> {
        let memory = rustix::fs::memfd_create(c"bench", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, MEMORY)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let memory = map(MEMORY as usize, flags, memory.as_raw_fd(), 0)?;
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let (kick, call) = (event()?, event()?);
        let node = node(if real { "/dev/vhost-vdpa-0" } else { "/dev/null" })?;
        let vdpa = Vdpa { node, memory, kick, call, pieces: 0 };
        if real {
            let mut features = 0u64;
            ioctl(&vdpa.node, request::GET_BACKEND_FEATURES, (&raw mut features) as u64)?;
            ensure!(features & uapi::vhost::backend::IOTLB_PERSIST != 0, "no IOTLB_PERSIST");
            ioctl(&vdpa.node, request::SET_BACKEND_FEATURES, (&raw mut features) as u64)?;
            ioctl(&vdpa.node, request::SET_OWNER, 0)?;
        }
        Ok(vdpa)
    }

    fn message(&self, kind: u8, iova: u64, size: u64, uaddr: u64) -> Result<()> {
        let body = IotlbMsg { iova, size, uaddr, perm: iotlb::RW, kind, pad: [0; 6] };
        let mut bytes = [0u8; MESSAGE];
        bytes[..4].copy_from_slice(&MSG_V2.to_le_bytes());
        bytes[8..8 + size_of::<IotlbMsg>()].copy_from_slice(body.as_bytes());
        // SAFETY: `bytes` has as many bytes.
        let done = unsafe { libc::write(self.node.as_raw_fd(), bytes.as_ptr().cast(), MESSAGE) };
        ensure!(done == MESSAGE as isize, "message {kind}: {}", std::io::Error::last_os_error());
        Ok(())
    }

    fn pair(&self) -> Result<()> {
        self.message(iotlb::UPDATE, FREE, PAGE, self.memory)?;
        self.message(iotlb::INVALIDATE, FREE, PAGE, 0)
    }

    fn batch(&self, messages: u64) -> Result<f64> {
        let start = Instant::now();
        self.message(iotlb::BATCH_BEGIN, 0, 0, 0)?;
        for number in 0..messages / 2 {
            // Each leaves a map behind and takes one away.
            let (new, old) = (FREE + (number % 500) * 2 * PAGE, FREE + (number + 250) % 500 * 2 * PAGE);
            self.message(iotlb::UPDATE, new, PAGE, self.memory + (number % 500) * PAGE)?;
            self.message(iotlb::INVALIDATE, old, PAGE, 0)?;
        }
        self.message(iotlb::BATCH_END, 0, 0, 0)?;
        let took = start.elapsed();
        self.message(iotlb::INVALIDATE, FREE, 1000 * PAGE, 0)?;
        Ok(took.as_nanos() as f64 / messages as f64)
    }

    /// Maps all memory.
    fn map_all(&self) -> Result<()> {
        self.message(iotlb::BATCH_BEGIN, 0, 0, 0)?;
        // A million pieces are of 16 pages at most, and a hole of none.
        let size = MEMORY / self.pieces / PAGE * PAGE;
        for piece in 0..self.pieces {
            let at = piece * size;
            let size = if piece + 1 == self.pieces { MEMORY - at } else { size };
            self.message(iotlb::UPDATE, at, size, self.memory + at).with_context(|| format!("piece {piece}"))?;
        }
        self.message(iotlb::BATCH_END, 0, 0, 0)
    }

    fn set<T>(&self, number: u32, mut value: T) -> Result<()> {
        ioctl(&self.node, number, (&raw mut value) as u64).with_context(|| format!("request {number:#x}"))?;
        Ok(())
    }

    /// From a device after reset to one that runs.
    fn run(&self) -> Result<()> {
        self.set(request::VDPA_SET_STATUS, 3u8)?;
        let mut features = 0u64;
        ioctl(&self.node, request::GET_FEATURES, (&raw mut features) as u64)?;
        self.set(request::SET_FEATURES, features & !(1 << 34))?;
        self.set(request::VDPA_SET_STATUS, 0xbu8)?;
        self.set(request::SET_VRING_NUM, VringState { index: 0, num: 256 })?;
        self.set(request::SET_VRING_BASE, VringState { index: 0, num: 0 })?;
        let (desc, avail, used) = (0, 0x1000, 0x2000);
        self.set(request::SET_VRING_ADDR, VringAddr { desc, avail, used, ..VringAddr::default() })?;
        self.set(request::SET_VRING_KICK, VringFile { index: 0, fd: self.kick.as_raw_fd() })?;
        self.set(request::SET_VRING_CALL, VringFile { index: 0, fd: self.call.as_raw_fd() })?;
        self.set(request::VDPA_SET_VRING_ENABLE, VringState { index: 0, num: 1 })?;
        self.set(request::VDPA_SET_STATUS, 0xfu8)
    }

    fn restart(&self) -> Result<()> {
        self.set(request::VDPA_SET_STATUS, 0u8)?;
        self.run()
    }
}

impl Orders for Vdpa {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        match verb {
            PAIR => {
                for _ in 0..count / 10 {
                    self.pair()?;
                }
                each(count, |_| self.pair())
            }
            BATCH => self.batch(count),
            FILL => {
                self.pieces = count;
                self.map_all()?;
                self.run()?;
                Ok(0.0)
            }
            RESTART => each(count, |_| self.restart()),
            RESTART_ANEW => each(count, |_| {
                self.set(request::VDPA_SET_STATUS, 0u8)?;
                self.message(iotlb::INVALIDATE, 0, u64::MAX, 0)?;
                self.map_all()?;
                self.run()
            }),
            _ => bail!("no order is called {verb}"),
        }
    }
}
