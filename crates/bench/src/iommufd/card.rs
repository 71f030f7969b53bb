// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Data Streaming Accelerator that a client drives through its mapped
//! registers: it writes to memory as it is told.
#![allow(unsafe_code)] // loads and stores of mapped registers and of memory that a device writes

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use uapi::vfio::device;
use zerocopy::IntoBytes;

use crate::client::{ioctl, map};

const PAGE: u64 = 4096;
/// Descriptors of a batch.
const BATCH: usize = 1024;
/// Bytes of memory that a card needs: a record's page, then a batch.
pub(super) const MEMORY: u64 = PAGE + (BATCH * spec::DESCRIPTOR_BYTES) as u64;
/// Most bytes of one fill.
const LONGEST: u64 = 1 << 31;

/// An accelerator with an enabled queue.
#[derive(Debug)]
pub(super) struct Card {
    registers: u64,
    portal: u64,
    /// Address and IOVA of its memory.
    memory: (u64, u64),
    place: u64,
}

impl Card {
    /// Of an open device that may reach `memory`: an address and its IOVA.
    pub(super) fn new(fd: &OwnedFd, memory: (u64, u64)) -> Result<Card> {
        let region = |index| -> Result<device::RegionInfo> {
            let argsz = size_of::<device::RegionInfo>() as u32;
            let mut info = device::RegionInfo { argsz, index, ..Default::default() };
            ioctl(fd, device::GET_REGION_INFO, (&raw mut info) as u64).context("GET_REGION_INFO")?;
            Ok(info)
        };
        let bar = |index: usize| -> Result<u64> {
            let info = region(index as u32)?;
            map(info.size as usize, libc::MAP_SHARED, fd.as_raw_fd(), info.offset as i64)
        };
        let command_register = region(device::region_index::CONFIG)?.offset as i64 + 4;
        let on = 6u16; // memory, bus master
        // SAFETY: two bytes, which are valid.
        let done = unsafe { libc::pwrite64(fd.as_raw_fd(), (&raw const on).cast(), 2, command_register) };
        ensure!(done == 2, "the device cannot be made master of the bus");
        let card = Card { registers: bar(spec::REGISTER_BAR)?, portal: bar(spec::PORTAL_BAR)?, memory, place: 0 };
        for (word, value) in
            [(wqcfg::SIZE, 16), (wqcfg::MODE, wqcfg::DEDICATED | 1 << 4), (wqcfg::LIMITS, 31 | 10 << 5)]
        {
            card.register(spec::WQCFG + 4 * word as u64).store(value, Ordering::SeqCst);
        }
        card.register(spec::GRPCFG).store(1, Ordering::SeqCst);
        card.register(spec::GRPCFG + spec::GROUP_ENGINES).store(1, Ordering::SeqCst);
        for number in [command::ENABLE_DEVICE, command::ENABLE_QUEUE] {
            let status = card.register(spec::CMDSTS);
            status.store(command::ACTIVE, Ordering::SeqCst);
            card.register(spec::CMD).store(number << 20, Ordering::SeqCst);
            let start = Instant::now();
            while status.load(Ordering::SeqCst) & command::ACTIVE != 0 {
                ensure!(start.elapsed() < Duration::from_secs(10), "command {number} does not end");
                std::thread::yield_now();
            }
            ensure!(status.load(Ordering::SeqCst) == 0, "command {number} failed");
        }
        Ok(card)
    }

    fn register(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: within the BAR, which is mapped for good, and aligned.
        unsafe { &*((self.registers + offset) as *const AtomicU32) }
    }

    /// Writes to all pages of a range of IOVAs, in order.
    pub(super) fn fill(&mut self, iova: u64, length: u64) -> Result<()> {
        let (mut at, end) = (iova, iova + length);
        while at < end {
            let size = LONGEST.min(end - at);
            self.execute(Descriptor { destination: at, size: size as u32, ..self.requested(opcode::FILL) })?;
            at += size;
        }
        Ok(())
    }

    /// Writes eight bytes at each of these IOVAs.
    pub(super) fn touch(&mut self, iovas: &[u64]) -> Result<()> {
        let list = PAGE;
        for part in iovas.chunks(BATCH) {
            for (n, iova) in part.iter().enumerate() {
                let fill = Descriptor { destination: *iova, size: 8, ..Descriptor::new(opcode::FILL, 0) };
                let to = (self.memory.0 + list) as usize + n * spec::DESCRIPTOR_BYTES;
                let bytes = fill.as_bytes();
                // SAFETY: within the card's memory; the device reads it later.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            }
            let (source, size) = (self.memory.1 + list, part.len() as u32);
            self.execute(Descriptor { source, size, ..self.requested(opcode::BATCH) })?;
        }
        Ok(())
    }

    fn requested(&self, operation: u8) -> Descriptor {
        let flags = flag::RECORD | flag::REQUEST_RECORD;
        Descriptor { completion: self.memory.1, ..Descriptor::new(operation, flags) }
    }

    /// Submits a descriptor and waits for its record.
    fn execute(&mut self, descriptor: Descriptor) -> Result<()> {
        // SAFETY: the card's memory, aligned, valid for good.
        let record = unsafe { &*(self.memory.0 as *const AtomicU64) };
        record.store(0, Ordering::SeqCst);
        let at = (self.portal + self.place % 64 * spec::DESCRIPTOR_BYTES as u64) as *mut u64;
        self.place += 1;
        let words: Vec<u64> = descriptor.as_bytes().chunks(8).map(word).collect();
        for (n, word) in words.iter().enumerate().skip(1).chain(words.iter().enumerate().take(1)) {
            // SAFETY: within the portal, which is mapped for good, and aligned.
            unsafe { (*at.add(n).cast::<AtomicU64>()).store(*word, Ordering::SeqCst) };
        }
        let start = Instant::now();
        while record.load(Ordering::SeqCst) & 0xff == 0 {
            ensure!(start.elapsed() < Duration::from_secs(60), "a descriptor does not complete");
            std::thread::yield_now();
        }
        let status = record.load(Ordering::SeqCst) & 0xff;
        ensure!(status == 1, "status {status:#x}");
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
