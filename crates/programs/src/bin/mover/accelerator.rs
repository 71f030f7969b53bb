// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A data streaming accelerator with a fault queue, by plain system calls, with
//! the numbers of its specification and of Linux's headers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::raw::{self, Device, ioctl};

const GET_REGION_INFO: u64 = 0x3b6c;
const ATTACH_IOMMUFD_PT: u64 = 0x3b77;
const IOAS_ALLOC: u64 = 0x3b81;
const IOAS_MAP: u64 = 0x3b85;
const HWPT_ALLOC: u64 = 0x3b89;
const FAULT_QUEUE_ALLOC: u64 = 0x3b8e;

/// Bytes of a descriptor, and of a completion record.
const DESCRIPTOR: usize = 64;
pub(crate) const RECORD: u64 = 32;
const PAGE: u64 = 4096;
/// Entries of the work queue.
const ENTRIES: u32 = 64;

/// Registers: command and its status, group and queue configuration.
const CMD: u64 = 0xa0;
const CMDSTS: u64 = 0xa8;
const GRPCFG: u64 = 0x400;
const WQCFG: u64 = 0x800;

/// Shared memory, of the program's own or a file's.
pub(crate) struct Memory {
    at: *mut u8,
    len: u64,
}

impl Memory {
    /// Memory like a guest's.
    pub(crate) fn anonymous(len: u64) -> Memory {
        // SAFETY: the name is a string with its NUL.
        let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd: {}", io::Error::last_os_error());
        // SAFETY: the call has just made it for us alone.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap_or_else(|e| panic!("memfd: {e}"));
        Memory::new(fd, 0, len)
    }

    pub(crate) fn new(file: RawFd, offset: u64, len: u64) -> Memory {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever there is room.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, prot, libc::MAP_SHARED, file, offset as i64) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Memory { at: at.cast(), len }
    }

    pub(crate) fn byte(&self, at: u64) -> &AtomicU8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping, which is never unmapped.
        unsafe { AtomicU8::from_ptr(self.at.add(at as usize)) }
    }

    fn long(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: inside the mapping, which is never unmapped, and aligned.
        unsafe { AtomicU64::from_ptr(self.at.add(at as usize).cast()) }
    }

    pub(crate) fn fill(&self, at: u64, len: u64, value: u8) {
        (at..at + len).for_each(|at| self.byte(at).store(value, Ordering::Relaxed));
    }

    pub(crate) fn holds(&self, at: u64, len: u64, value: u8) -> bool {
        (at..at + len).all(|at| self.byte(at).load(Ordering::Relaxed) == value)
    }
}

/// An open accelerator, its table of addresses and its fault queue.
pub(crate) struct Accelerator {
    pub(crate) device: Device,
    file: File,
    ioas: u32,
    faults: File,
    registers: u64,
    pub(crate) portals: u64,
    mapped: Memory,
    /// Descriptors submitted through the mapping.
    place: u64,
    /// Requests that were answered.
    pub(crate) answered: u64,
}

impl Accelerator {
    /// Opens it and attaches it; memory and bus mastering are on.
    pub(crate) fn open(address: &str) -> Accelerator {
        let device = Device::open(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let file = File::from(device.device.try_clone().unwrap_or_else(|e| panic!("dup: {e}")));
        let iommu = device.iommu.as_raw_fd();
        let [_, _, ioas] = call(iommu, IOAS_ALLOC, [12, 0, 0]);
        let [_, _, queue, fault] = call(iommu, FAULT_QUEUE_ALLOC, [16, 0, 0, 0]);
        // SAFETY: the call has just made the descriptor for us alone.
        let faults = unsafe { File::from_raw_fd(fault.cast_signed()) };
        // size, FAULT_ID_VALID, dev_id, pt_id, out, …, fault_id
        let hwpt = call(iommu, HWPT_ALLOC, [48, 4, device.id, ioas, 0, 0, 0, 0, 0, 0, queue, 0])[4];
        call(file.as_raw_fd(), ATTACH_IOMMUFD_PT, [12, 0, hwpt]);
        let region = |index: u32| {
            let info = call(file.as_raw_fd(), GET_REGION_INFO, [32, 0, index, 0, 0, 0, 0, 0]);
            u64::from(info[6]) | u64::from(info[7]) << 32
        };
        let (registers, portals, config) = (region(0), region(2), region(7));
        file.write_all_at(&6_u16.to_le_bytes(), config + 4).unwrap_or_else(|e| panic!("command register: {e}"));
        let mapped = Memory::new(file.as_raw_fd(), portals, PAGE);
        Accelerator { device, file, ioas, faults, registers, portals, mapped, place: 0, answered: 0 }
    }

    /// Has the device reach this memory at this address.
    pub(crate) fn map(&self, memory: &Memory, at: u64, length: u64) {
        // size, FIXED_IOVA | WRITEABLE | READABLE, ioas, 0, user_va, length, iova
        let user = memory.at as u64 + at;
        let words = [40, 7, self.ioas, 0, user as u32, (user >> 32) as u32];
        let words = words.into_iter().chain([length as u32, (length >> 32) as u32, at as u32, (at >> 32) as u32]);
        let mut words: Vec<u32> = words.collect();
        let mapped = ioctl(self.device.iommu.as_raw_fd(), IOAS_MAP, words.as_mut_ptr().cast());
        // Another request has asked for the same page.
        assert!(matches!(mapped, Ok(_) | Err(libc::EEXIST)), "IOAS_MAP at {at:#x}: {mapped:?}");
    }

    /// A queue of its own whose descriptors may wait for pages.
    pub(crate) fn enable(&self) {
        let word = |at: u64, value: u32| {
            self.file
                .write_all_at(&value.to_le_bytes(), self.registers + at)
                .unwrap_or_else(|e| panic!("{at:#x}: {e}"));
        };
        word(WQCFG, ENTRIES);
        // Dedicated, block on fault, priority 1.
        word(WQCFG + 8, 1 | 2 | 1 << 4);
        word(WQCFG + 12, 31 | 10 << 5);
        word(GRPCFG, 1);
        word(GRPCFG + 32, 1);
        // Enable the device, enable queue 0.
        for command in [1, 6] {
            word(CMD, command << 20);
            assert_eq!(self.load(CMDSTS), 0, "command {command}");
        }
    }

    /// A register.
    pub(crate) fn load(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.file.read_exact_at(&mut word, self.registers + at).unwrap_or_else(|e| panic!("{at:#x}: {e}"));
        u32::from_le_bytes(word)
    }

    /// Submits a move of bytes with a record, through the mapping or, `written`,
    /// by `write`.
    pub(crate) fn submit(&mut self, (source, destination): (u64, u64), len: u32, record: u64, written: bool) {
        let mut bytes = [0; DESCRIPTOR];
        // Memory move; block on fault, record, record asked for.
        let operation = 3_u32 << 24 | 2 | 4 | 8;
        bytes[4..8].copy_from_slice(&operation.to_le_bytes());
        for (at, value) in [(8, record), (16, source), (24, destination), (32, len.into())] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if written {
            for (at, part) in (self.portals..).step_by(8).zip(bytes.chunks(8)) {
                self.file.write_all_at(part, at).unwrap_or_else(|e| panic!("portal: {e}"));
            }
            return;
        }
        // A place is free when its first eight bytes are zero; they are stored last.
        let at = self.place % (PAGE / DESCRIPTOR as u64) * DESCRIPTOR as u64;
        self.place += 1;
        while self.mapped.long(at).load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        for (n, part) in (0_u64..).zip(bytes.chunks(8)).collect::<Vec<_>>().into_iter().rev() {
            let value = part.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            self.mapped.long(at + 8 * n).store(value, Ordering::Release);
        }
    }

    /// The requests that are there: cookies and addresses.
    pub(crate) fn requests(&mut self) -> Vec<(u32, u64)> {
        if !readable(&self.faults, 1) {
            return Vec::new();
        }
        let mut records = [0; 40 * 64];
        let len = (&self.faults).read(&mut records).unwrap_or_else(|e| panic!("faults: {e}"));
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        records[..len].chunks(40).map(|record| (number(&record[36..40]) as u32, number(&record[24..32]))).collect()
    }

    /// Maps what was asked for, and says so.
    pub(crate) fn answer(&mut self, memory: &Memory, (cookie, at): (u32, u64)) {
        self.map(memory, at & !(PAGE - 1), PAGE);
        let words = [cookie, 0].map(u32::to_le_bytes);
        (&self.faults).write_all(words.as_flattened()).unwrap_or_else(|e| panic!("an answer: {e}"));
        self.answered += 1;
    }

    /// Serves whatever comes until something is so.
    pub(crate) fn serve(&mut self, memory: &Memory, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if done() {
                return;
            }
            for request in self.requests() {
                self.answer(memory, request);
            }
        }
        panic!("{what} does not come");
    }
}

/// A call with a structure of words; the words as they are then.
fn call<const N: usize>(fd: RawFd, request: u64, mut words: [u32; N]) -> [u32; N] {
    ioctl(fd, request, words.as_mut_ptr().cast()).unwrap_or_else(|errno| panic!("{request:#x}: errno {errno}"));
    words
}

/// Whether there is something to read within so many milliseconds.
pub(crate) fn readable(file: &impl std::os::fd::AsRawFd, wait: i32) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, for the time of the call.
    unsafe { libc::poll(&raw mut poll, 1, wait) };
    poll.revents & libc::POLLIN != 0
}

/// Reads a stream to its end, which in PRE_COPY is an errno.
pub(crate) fn read_to_end(fd: RawFd, all: &mut Vec<u8>) {
    let mut piece = vec![0; 10_000];
    loop {
        match raw::read(fd, &mut piece) {
            Ok(0) | Err(libc::ENOMSG) => return,
            Ok(got) => all.extend_from_slice(&piece[..got]),
            Err(errno) => panic!("read of a stream: errno {errno}"),
        }
    }
}
