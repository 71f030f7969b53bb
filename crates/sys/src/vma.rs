// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program has mapped at an address.
//!
//! Linux 6.11 and later answer for one address with the `PROCMAP_QUERY` ioctl
//! on `/proc/PID/maps`; before that the text of the file is read. The open
//! file is bound to the address space that the program had when it was opened.
#![allow(unsafe_code)] // the PROCMAP_QUERY ioctl

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use uapi::Errno;

use crate::last_errno;

/// One mapping of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vma {
    /// First address.
    pub(crate) start: u64,
    /// First address behind it.
    pub(crate) end: u64,
    /// Rights of the program.
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// `MAP_SHARED`.
    pub(crate) shared: bool,
    /// File offset of `start`.
    pub(crate) offset: u64,
    /// The file's device number as the kernel has it: not always `st_dev`.
    pub(crate) dev: (u32, u32),
    /// The file's inode number; 0 if there is no file.
    pub(crate) inode: u64,
    /// Size of its pages; of huge ones for hugetlbfs, else the machine's.
    pub(crate) page_size: u64,
}

impl Vma {
    /// The mapping as others know it.
    pub(crate) fn area(&self) -> caller::Area {
        let shared_file = self.shared && self.inode != 0 && !crate::file::is_device(self);
        caller::Area { start: self.start, end: self.end, shared_file }
    }
}

/// `struct procmap_query` of `linux/fs.h`.
#[derive(Default)]
#[repr(C)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: libc::Ioctl = libc::_IOWR::<Query>('f' as u32, 17);
/// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`
const COVERING_OR_NEXT: u64 = 0x10;
const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 2;
const VMA_SHARED: u64 = 8;

/// Set once the kernel has said that it does not know the ioctl.
static NO_QUERY: AtomicBool = AtomicBool::new(false);

/// The mapping that `addr` lies in, by an open `/proc/PID/maps`. `ESRCH`: the
/// address space is gone.
pub(crate) fn at(maps: &File, addr: u64) -> Result<Option<Vma>, Errno> {
    find(maps, addr, false)
}

/// The mapping that `addr` lies in or, failing that, the next one above it.
pub(crate) fn from(maps: &File, addr: u64) -> Result<Option<Vma>, Errno> {
    find(maps, addr, true)
}

fn find(maps: &File, addr: u64, or_next: bool) -> Result<Option<Vma>, Errno> {
    if !NO_QUERY.load(Ordering::Relaxed) {
        match query(maps, addr, or_next) {
            Err(Errno::ENOTTY) => NO_QUERY.store(true, Ordering::Relaxed),
            answer => return answer,
        }
    }
    search(maps, addr, or_next)
}

fn query(maps: &File, addr: u64, or_next: bool) -> Result<Option<Vma>, Errno> {
    let query_flags = if or_next { COVERING_OR_NEXT } else { 0 };
    let mut q = Query { size: size_of::<Query>() as u64, query_flags, query_addr: addr, ..Query::default() };
    // SAFETY: PROCMAP_QUERY reads and writes one struct of the size given in
    // it; name and build id are not asked for, so it writes nowhere else.
    let answer = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut q) };
    if answer != 0 {
        return match last_errno() {
            Errno::ENOENT => Ok(None),
            e => Err(e),
        };
    }
    Ok(Some(Vma {
        start: q.vma_start,
        end: q.vma_end,
        read: q.vma_flags & VMA_READABLE != 0,
        write: q.vma_flags & VMA_WRITABLE != 0,
        shared: q.vma_flags & VMA_SHARED != 0,
        offset: q.vma_offset,
        dev: (q.dev_major, q.dev_minor),
        inode: q.inode,
        page_size: q.vma_page_size,
    }))
}

/// Reads the text until the line that covers `addr`, or comes after it.
fn search(maps: &File, addr: u64, or_next: bool) -> Result<Option<Vma>, Errno> {
    let mut text = Vec::with_capacity(8192);
    let mut offset = 0;
    let mut first = true;
    loop {
        let kept = text.len();
        text.resize(kept + 4096, 0);
        let got =
            maps.read_at(&mut text[kept..], offset).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
        text.truncate(kept + got);
        if got == 0 {
            // A program always has mappings; no text at all: it is gone.
            return if first { Err(Errno::from_raw(libc::ESRCH)) } else { Ok(None) };
        }
        (first, offset) = (false, offset + got as u64);
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        for line in text[..whole].split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let vma = std::str::from_utf8(&line[..line.len().min(128)]).ok().and_then(parse);
            // A path may hold bytes that are no UTF-8; it starts behind the fields.
            let vma = vma.or_else(|| parse(&String::from_utf8_lossy(line)));
            match vma {
                Some(vma) if vma.start > addr => return Ok(or_next.then_some(vma)),
                Some(vma) if vma.end > addr => return Ok(Some(vma)),
                _ => {}
            }
        }
        text.drain(..whole);
    }
}

/// One line: `start-end perms offset major:minor inode path`.
fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let hex32 = |word: &str| u32::from_str_radix(word, 16).ok();
    let (start, end) = words.next()?.split_once('-')?;
    let perms = words.next()?.as_bytes();
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        read: perms.first() == Some(&b'r'),
        write: perms.get(1) == Some(&b'w'),
        shared: perms.get(3) == Some(&b's'),
        offset,
        dev: (hex32(major)?, hex32(minor)?),
        inode,
        // The text does not say; whoever maps the file asks the file system.
        page_size: crate::page_size(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_understood() {
        let vma = parse("7f00-7f08 rw-s 00001000 00:01 42      /memfd:a b (deleted)").unwrap();
        let want = Vma {
            start: 0x7f00,
            end: 0x7f08,
            read: true,
            write: true,
            shared: true,
            offset: 0x1000,
            dev: (0, 1),
            inode: 42,
            page_size: crate::page_size(),
        };
        assert_eq!(vma, want);
        assert_eq!(parse("garbage"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn both_ways_agree() {
        let maps = File::open("/proc/self/maps").unwrap();
        let here = [0u8; 64];
        static THERE: AtomicBool = AtomicBool::new(false);
        for addr in [here.as_ptr() as u64, (&raw const THERE) as u64, both_ways_agree as *const () as u64] {
            let found = search(&maps, addr, false).unwrap().unwrap();
            assert!(found.start <= addr && addr < found.end);
            if let Ok(queried) = query(&maps, addr, false) {
                assert_eq!(queried, Some(found));
            }
            assert_eq!(from(&maps, addr).unwrap(), Some(found));
        }
        assert_eq!(at(&maps, 0).unwrap(), None);
        assert_eq!(search(&maps, 0, false).unwrap(), None);
        let first = search(&maps, 0, true).unwrap();
        assert!(first.is_some_and(|vma| vma.start > 0));
        assert_eq!(from(&maps, 0).unwrap(), first);
        assert_eq!(from(&maps, u64::MAX - 1).unwrap().map(|vma| vma.start), None);
    }
}
