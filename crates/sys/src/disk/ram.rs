// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in memory, gone with the lab.
//!
//! Private anonymous memory without reservation: what was never written takes
//! no page. Each transfer is one copy, between the disk and the memory of the
//! program: `memcpy`, or one system call for all that come together.
#![allow(unsafe_code)] // mmap and madvise

use std::io;
use std::ptr::NonNull;

use device::{Disk, DiskError, DiskPart};
use iommu::{Memory, MemoryFault, Segment};
use vm_memory::VolatileSlice;

use super::check;
use crate::{last_errno, page_size};

/// Up to this share of the machine's memory a disk asks for huge pages: a
/// first write then takes 2 MiB.
const HUGE_SHARE: u64 = 8;

/// Copies one part.
type One = fn(&RamDisk, u64, &Segment<'_>) -> Result<(), DiskError>;
/// Copies pieces from or to a memory.
type Many = fn(&dyn Memory, &[(u64, VolatileSlice<'_>)]) -> Result<(), MemoryFault>;

/// A disk in memory.
#[derive(Debug)]
pub struct RamDisk {
    addr: NonNull<u8>,
    size: usize,
}

// SAFETY: plain memory, given out only as VolatileSlice, which expects
// concurrent change; unmapped by Drop, when nobody borrows the disk.
unsafe impl Send for RamDisk {}
// SAFETY: as above.
unsafe impl Sync for RamDisk {}

impl RamDisk {
    /// A disk of `size` bytes, all zeros. Fails with `ENOMEM` if there is no
    /// address space for it, `EINVAL` for size 0.
    pub fn new(size: u64) -> io::Result<RamDisk> {
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing existing is replaced.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let addr = NonNull::new(addr.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let disk = RamDisk { addr, size };
        if (size as u64) <= machine_memory() / HUGE_SHARE {
            disk.advise(0, size, libc::MADV_HUGEPAGE);
        }
        // A core dump of the supervisor needs no disks.
        disk.advise(0, size, libc::MADV_DONTDUMP);
        Ok(disk)
    }

    fn slice(&self, offset: u64, len: usize) -> Result<VolatileSlice<'_>, DiskError> {
        check(self.len(), offset, len as u64)?;
        // SAFETY: inside the mapping (checked), which lives as long as `self`.
        Ok(unsafe { VolatileSlice::new(self.addr.as_ptr().add(offset as usize), len) })
    }

    /// Copies parts, those in one memory with one call of `many`; `one` copies
    /// a single part.
    fn each(&self, parts: &mut [DiskPart<'_>], one: One, many: Many) {
        let mut rest = parts;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            pieces.clear();
            let memory = self.together(rest, &mut pieces);
            let (now, later) = rest.split_at_mut(pieces.len().max(1));
            // Which piece has failed is found out by copying each again.
            if pieces.len() < 2 || memory.is_none_or(|memory| many(memory, &pieces).is_err()) {
                for part in now {
                    part.result = one(self, part.offset, &part.segment);
                }
            }
            rest = later;
        }
    }

    /// Those of the first parts that lie in one memory, which is reached by
    /// copying, and inside the disk.
    fn together<'a, 'b>(
        &'a self,
        parts: &[DiskPart<'b>],
        pieces: &mut Vec<(u64, VolatileSlice<'a>)>,
    ) -> Option<&'b dyn Memory> {
        let Segment::Remote { memory, .. } = parts.first()?.segment else { return None };
        pieces.reserve(parts.len());
        for DiskPart { offset: at, segment, .. } in parts {
            match (segment, self.slice(*at, segment.len())) {
                (Segment::Remote { memory: other, offset, .. }, Ok(own)) if std::ptr::addr_eq(memory, *other) => {
                    pieces.push((*offset, own));
                }
                _ => break,
            }
        }
        Some(memory)
    }

    /// The range must be inside the disk.
    fn advise(&self, offset: usize, len: usize, advice: i32) -> bool {
        // SAFETY: inside the mapping. MADV_DONTNEED makes pages zeros, which
        // is what a concurrent reader of the disk may see anyway.
        unsafe { libc::madvise(self.addr.as_ptr().add(offset).cast(), len, advice) == 0 }
    }

    /// Zeros in `offset..offset + len`; whole pages are given back.
    fn clear(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        check(self.len(), offset, len)?;
        let page = page_size();
        let (end, first) = (offset + len, offset.next_multiple_of(page));
        let last = end / page * page;
        if first >= last {
            return self.zero(offset, end);
        }
        self.zero(offset, first)?;
        self.zero(last, end)?;
        if !self.advise(first as usize, (last - first) as usize, libc::MADV_DONTNEED) {
            tracing::debug!(error = %last_errno(), "pages of a disk are not given back");
            return self.zero(first, last);
        }
        Ok(())
    }

    fn zero(&self, start: u64, end: u64) -> Result<(), DiskError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut at = start;
        while at < end {
            let run = (end - at).min(ZEROS.len() as u64);
            self.slice(at, run as usize)?.copy_from(&ZEROS[..run as usize]);
            at += run;
        }
        Ok(())
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing borrows it any more.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.size) };
    }
}

impl Disk for RamDisk {
    fn len(&self) -> u64 {
        self.size as u64
    }

    fn read(&self, offset: u64, to: &Segment<'_>) -> Result<(), DiskError> {
        Ok(to.copy_from(&self.slice(offset, to.len())?)?)
    }

    fn write(&self, offset: u64, from: &Segment<'_>) -> Result<(), DiskError> {
        Ok(from.copy_to(&self.slice(offset, from.len())?)?)
    }

    fn read_many(&self, parts: &mut [DiskPart<'_>]) {
        self.each(parts, RamDisk::read, |memory, pieces| memory.write_many(pieces));
    }

    fn write_many(&self, parts: &mut [DiskPart<'_>]) {
        self.each(parts, RamDisk::write, |memory, pieces| memory.read_many(pieces));
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.clear(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.clear(offset, len)
    }
}

fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}
