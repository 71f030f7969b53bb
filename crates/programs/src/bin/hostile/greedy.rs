// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wants more than there is: objects, mappings, queues, descriptors, each until
//! it is refused or as many are there as were asked for. A refusal is the
//! answer; who must not suffer is the supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::parent_id;

use crate::memory::{ARENA, Arena, PAGE, call, open};

/// Words of a structure and its request.
fn ioctl(fd: i32, request: u64, words: &mut [u32]) -> Result<i64, i32> {
    let result = call(libc::SYS_ioctl, [fd as u64, request, words.as_mut_ptr() as u64, 0, 0, 0]);
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Repeats until it is refused; says how often it went well.
fn until_refused(count: u64, what: &str, mut again: impl FnMut(u64) -> Result<i64, i32>) -> u64 {
    let mut refused = "never";
    let mut done = 0;
    while done < count {
        match again(done) {
            Ok(_) => done += 1,
            Err(libc::ENOMEM) => refused = "ENOMEM",
            Err(libc::EDQUOT) => refused = "EDQUOT",
            Err(libc::ENOSPC) => refused = "ENOSPC",
            Err(libc::EMFILE) => refused = "EMFILE",
            Err(other) => panic!("{what}: errno {other} after {done}"),
        }
        if refused != "never" {
            break;
        }
    }
    println!("{what}: {done}, refused: {refused}");
    done
}

/// `count` of everything.
pub(crate) fn run(count: u64) {
    let arena = Arena::new();
    let fd = open("/dev/iommu");
    assert!(fd >= 0, "no /dev/iommu");
    let mut ioas = [12, 0, 0];
    until_refused(count, "address spaces", |_| ioctl(fd, 0x3b81, &mut ioas));
    let mut first = [12, 0, 0];
    let fd = open("/dev/iommu");
    let _ = ioctl(fd, 0x3b81, &mut first);
    let ioas = first[2];

    // Not pinned by anybody: mappings of one page at addresses that differ.
    let map = |fd: i32, ioas: u32, n: u64, len: u64| {
        let mut words = [40, 7, ioas, 0, 0, 0, 0, 0, 0, 0];
        words[4..6].copy_from_slice(&halves(arena.0 + n * PAGE as u64 % ARENA as u64));
        words[6..8].copy_from_slice(&halves(len));
        // A page between two, so that nothing can be joined.
        words[8..10].copy_from_slice(&halves(n * 2 * len));
        ioctl(fd, 0x3b85, &mut words)
    };
    until_refused(count, "mappings", |n| map(fd, ioas, n, PAGE as u64));

    let mut queues = BTreeMap::new();
    until_refused(count, "fault queues", |n| {
        let mut words = [16, 0, 0, 0];
        let result = ioctl(fd, 0x3b8e, &mut words)?;
        queues.insert(n, words[3]);
        Ok(result)
    });
    for queue in queues.into_values() {
        crate::memory::close(queue as i32);
    }

    // Lists that are longer than memory.
    for number in [1 << 20, u32::MAX] {
        let mut words = [24, ioas, number, 0, 0, 0];
        words[4..6].copy_from_slice(&halves(arena.0));
        println!("allowed ranges: {number}, {:?}", ioctl(fd, 0x3b82, &mut words));
    }

    // Pinned for a device: each mapping is held against what a user may lock.
    let mut second = [12, 0, 0];
    let fd = open("/dev/iommu");
    let _ = ioctl(fd, 0x3b81, &mut second);
    let mut mock = [0_u32; 18];
    (mock[0], mock[1], mock[2]) = (72, 2, second[2]);
    println!("mock device: {:?}", ioctl(fd, 0x3ba0, &mut mock));
    let base = 0x0100_0000 / (2 * ARENA as u64) + 1;
    until_refused(count.min(500), "pinned mappings of 1 MiB", |n| {
        let mut words = [40, 7, second[2], 0, 0, 0, 0, 0, 0, 0];
        words[4..6].copy_from_slice(&halves(arena.0));
        words[6..8].copy_from_slice(&halves(ARENA as u64));
        words[8..10].copy_from_slice(&halves((base + n) * 2 * ARENA as u64));
        ioctl(fd, 0x3b85, &mut words)
    });
    until_refused(count, "page tables", |_| {
        ioctl(fd, 0x3b89, &mut [48, 0, mock[6], second[2], 0, 0, 0, 0, 0, 0, 0, 0])
    });

    // Descriptors, up to the program's own limit.
    until_refused(count, "contexts", |_| {
        let fd = open("/dev/iommu");
        let refused = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if fd < 0 { Err(refused) } else { Ok(0) }
    });
    println!("supervisor: {} KiB at most", high_water(parent_id()));
}

/// The most memory that a process has had, in KiB.
fn high_water(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
