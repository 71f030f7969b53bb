// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a program has pages of a file of ours mapped.
//!
//! Asked when an object that owns such pages is destroyed, which is rare; so
//! all processes are looked at then, and nothing is kept of mappings.

use std::io::Read;

use crate::files::InodeId;

/// Whether a process other than this one maps a page of the range of a file.
/// One that may not be looked into counts as having none.
pub(crate) fn anywhere(inode: InodeId, offset: u64, len: u64) -> bool {
    let me = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != me)
        .any(|pid| maps(pid).is_some_and(|text| text.lines().any(|line| touches(line, inode, offset, len))))
}

pub(crate) fn maps(pid: u32) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/maps")).ok()?.take(64 << 20).read_to_end(&mut text).ok()?;
    // Names of files may be anything.
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Whether a line of `maps` is about the range: `start-end perms offset
/// major:minor inode path`.
pub(crate) fn touches(line: &str, (dev, inode): InodeId, offset: u64, len: u64) -> bool {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut words = line.split_ascii_whitespace();
    let parsed = (|| {
        let (start, end) = words.next()?.split_once('-')?;
        let first = hex(words.nth(1)?)?;
        let (major, minor) = words.next()?.split_once(':')?;
        let of = (hex(major)?, hex(minor)?, words.next()?.parse::<u64>().ok()?);
        Some((first, first.checked_add(hex(end)?.checked_sub(hex(start)?)?)?, of))
    })();
    let here = (u64::from(rustix::fs::major(dev)), u64::from(rustix::fs::minor(dev)), inode);
    parsed.is_some_and(|(first, end, of)| of == here && first < offset.saturating_add(len) && offset < end)
}

/// The file that a line of `maps` has at an address.
pub(crate) fn file_at(line: &str, address: u64) -> Option<InodeId> {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !(hex(start)?..hex(end)?).contains(&address) {
        return None;
    }
    let (major, minor) = words.nth(2)?.split_once(':')?;
    let dev = rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some((dev, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_a_range_of_a_file() {
        let line = "7f00-3f00 r--s 00001000 00:00 0";
        assert!(!touches(line, (0, 0), 0, 1));
        let line = "1000-4000 rw-s 00002000 00:01 42    /memfd:vfuse (deleted)";
        let inode = (rustix::fs::makedev(0, 1), 42);
        assert!(touches(line, inode, 0x2000, 1) && touches(line, inode, 0x4fff, 1) && touches(line, inode, 0, 0x2001));
        assert!(!touches(line, inode, 0x5000, 0x1000) && !touches(line, inode, 0, 0x2000));
        assert!(!touches(line, (inode.0, 43), 0x2000, 1));
        assert!(!touches("", inode, 0, u64::MAX));
        assert_eq!((file_at(line, 0x1000), file_at(line, 0x3fff)), (Some(inode), Some(inode)));
        assert_eq!((file_at(line, 0xfff), file_at(line, 0x4000), file_at("", 0)), (None, None, None));
    }
}
