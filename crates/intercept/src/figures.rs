// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/proc/PID/status` with the lab's figures: `VmLck` and `VmPin` of a real
//! kernel count what is locked and pinned for devices, so here the pretend
//! kernel's counts are added to the machine's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use uapi::Errno;

use crate::calls::Outcome;
use crate::listener::to_core;
use crate::state::State;

/// Memory of a process that the pretend kernel counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// `VmLck` in KiB: locked for DMA.
    pub locked: u64,
    /// `VmPin` in KiB: pinned for DMA.
    pub pinned: u64,
}

/// Longest status that is looked at; Linux's have some 1500 bytes.
const MAX: u64 = 64 << 10;

/// Whether a path names the status of a process: the part between `/proc/` and
/// the file.
pub(crate) fn process_named(path: &str) -> Option<&str> {
    let mut parts = path.strip_prefix("/proc/")?.split('/').filter(|part| !part.is_empty());
    let process = parts.next()?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !number(process) && process != "self" && process != "thread-self" {
        return None;
    }
    match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("status", None, ..) => Some(process),
        ("task", Some(thread), Some("status"), None) if number(thread) => Some(process),
        _ => None,
    }
}

impl State {
    /// Answers an open for reading of a status.
    pub(crate) fn open_status(&mut self, tid: i32, pid: i32, path: &str, flags: i32) -> Result<Outcome, Errno> {
        let Some(named) = process_named(path) else { return Ok(Outcome::GoOn) };
        let pid = named.parse().unwrap_or(pid);
        // Its own pid namespace: numbers are others there.
        if !same_numbers(tid) {
            return Ok(Outcome::GoOn);
        }
        let path = path.replace("/self/", &format!("/{pid}/")).replace("/thread-self/", &format!("/{pid}/task/{tid}/"));
        let mut text = String::new();
        // Who has gone, or may not be seen, is the machine's to tell.
        if File::open(path).and_then(|file| file.take(MAX).read_to_string(&mut text)).is_err() {
            return Ok(Outcome::GoOn);
        }
        let figures = self.processes.id_of(pid).map(|id| self.kernel.figures(id)).unwrap_or_default();
        let fd = file_of(&with_figures(&text, figures)).map_err(to_core)?;
        Ok(Outcome::NewFd { fd, cloexec: flags & libc::O_CLOEXEC != 0, known: None })
    }
}

fn same_numbers(tid: i32) -> bool {
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    namespace("self").is_some_and(|own| namespace(&tid.to_string()) == Some(own))
}

/// The text with the figures added to the lines that have them.
pub(crate) fn with_figures(text: &str, figures: Figures) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.split_inclusive('\n') {
        let more = match line.split(':').next() {
            Some("VmLck") => figures.locked,
            Some("VmPin") => figures.pinned,
            _ => 0,
        };
        match count(line) {
            Some((name, kib)) if more > 0 => {
                out.push_str(&format!("{name}:\t{:8} kB\n", kib.saturating_add(more)));
            }
            _ => out.push_str(line),
        }
    }
    out
}

/// Name and number of a line `Name:  number kB`.
fn count(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.trim_end().split_once(':')?;
    Some((name, value.trim().strip_suffix(" kB")?.parse().ok()?))
}

/// A file that can only be read.
fn file_of(text: &str) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(c"status", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes()).map_err(|_| rustix::io::Errno::NOMEM)?;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_statuses() {
        for (path, process) in [
            ("/proc/1/status", Some("1")),
            ("/proc/self/status", Some("self")),
            ("/proc//thread-self/status", Some("thread-self")),
            ("/proc/12/task/13/status", Some("12")),
            ("/proc/12/task/status", None),
            ("/proc/12/stat", None),
            ("/proc/sys/status", None),
            ("/proc/status", None),
            ("/sys/1/status", None),
        ] {
            assert_eq!(process_named(path), process, "{path}");
        }
    }

    // IOMMUFD-7.2
    #[test]
    fn figures_are_added() {
        let text = "Name:\tx\nVmLck:\t       4 kB\nVmPin:\t       0 kB\nThreads:\t1\n";
        let more = |locked, pinned| with_figures(text, Figures { locked, pinned });
        assert_eq!(more(0, 0), text);
        assert_eq!(more(8, 12), "Name:\tx\nVmLck:\t      12 kB\nVmPin:\t      12 kB\nThreads:\t1\n");
        assert_eq!(with_figures("Name:\tkthread\n", Figures { locked: 1, pinned: 1 }), "Name:\tkthread\n");
    }

    #[test]
    fn the_file_is_read_only() {
        let mut file = File::from(file_of("VmPin:\n").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "VmPin:\n");
        assert!(file.write_all(b"x").is_err());
    }
}
