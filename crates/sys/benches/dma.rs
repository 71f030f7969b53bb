// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What reaching a program's memory costs, next to the bare system call or
//! copy in the same run. Rows: `name,ours_ns,floor_ns`; medians of rounds that
//! take turns, so that both see the same machine.
#![allow(clippy::unwrap_used)] // a bench that cannot go on has failed

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use common::{Child, PRIVATE, RW, fill, map, memfd};
use device::{Disk, Event};
use iommu::Segment;
use sys::{EventFd, FileDisk, Pinner, RamDisk};
use vm_memory::VolatileSlice;

const LEN: usize = 64 << 20;
const ROUNDS: usize = 31;

/// Time that this thread has run, in ns: others of the machine do not count.
fn used() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Median time of one call of each, in ns.
fn compare(name: &str, calls: u64, mut ours: impl FnMut(u64), mut floor: impl FnMut(u64)) {
    let round = |call: &mut dyn FnMut(u64)| {
        let start = used();
        (0..calls).for_each(call);
        (used() - start) / calls as f64
    };
    round(&mut ours);
    round(&mut floor);
    let mut times: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (round(&mut ours), round(&mut floor))).collect();
    let mut median = |by: fn(&(f64, f64)) -> f64| {
        times.sort_by(|a, b| by(a).total_cmp(&by(b)));
        by(&times[ROUNDS / 2])
    };
    println!("{name},{:.1},{:.1}", median(|t| t.0), median(|t| t.1));
}

fn main() {
    let mut child = Child::start(|turns| {
        let private = map(0, LEN, RW, PRIVATE, -1, 0);
        let shared = map(0, LEN, RW, libc::MAP_SHARED, memfd(LEN as i64), 0);
        fill(private, 1, LEN);
        fill(shared, 2, LEN);
        turns.tell(private);
        turns.give(shared);
    });
    let (private, shared) = (child.take(), child.take());
    let (pinner, process) = (Pinner::new(), child.process());
    let (mut own, mut other) = (vec![1u8; LEN + 4096], vec![2u8; LEN + 4096]);
    let (own, other) = (aligned(&mut own), aligned(&mut other));
    println!("name,ours_ns,floor_ns");
    copies(&pinner, &process, child.pid, (private, shared), own, other);
    pins(&pinner, &process, (private, shared));
    events();
    disks(own, other);
}

/// Buffers of programs begin with a page; copies to odd addresses are slower.
fn aligned(bytes: &mut [u8]) -> &mut [u8] {
    let skip = bytes.as_ptr().align_offset(4096);
    &mut bytes[skip..][..LEN]
}

/// Moves through 4 MiB, which both sides find in the same cache.
fn place(call: u64, len: usize) -> usize {
    (call as usize * len) % (4 << 20)
}

fn copies(pinner: &Pinner, process: &Arc<sys::Process>, pid: i32, at: (u64, u64), own: &mut [u8], other: &[u8]) {
    let pinned = pinner.pin(process, at.1, LEN as u64, true).unwrap();
    let all = pinned.memory.slice(pinned.offset, LEN).unwrap();
    for at in (0..LEN).step_by(4096) {
        // Map the pages here, as a device does at its first access.
        black_box(all.subslice(at, 1).unwrap().copy_to(&mut [0u8; 1]));
    }
    let private = pinner.pin(process, at.0, LEN as u64, true).unwrap();
    for (name, len, calls) in [("4k", 4096, 1000), ("64k", 65536, 200), ("1m", 1 << 20, 30)] {
        let to = VolatileSlice::from(&mut own[..len]);
        compare(
            &format!("dma_{name}_shared/memcpy"),
            calls,
            |i| {
                let slice = pinned.memory.slice(pinned.offset + place(i, len) as u64, len).unwrap();
                slice.copy_to_volatile_slice(to);
            },
            |i| {
                let from = &other[place(i, len)..][..len];
                // SAFETY: both are `len` bytes of different vectors.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.ptr_guard_mut().as_ptr(), len) };
            },
        );
        let bare = |i, write| {
            let local = libc::iovec { iov_base: to.ptr_guard_mut().as_ptr().cast(), iov_len: len };
            let start = (at.0 as usize + place(i, len)) as *mut libc::c_void;
            let remote = libc::iovec { iov_base: start, iov_len: len };
            // SAFETY: `to` is valid for `len` bytes both ways.
            let moved = unsafe {
                if write {
                    libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)
                } else {
                    libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)
                }
            };
            assert_eq!(moved, len as isize);
        };
        compare(
            &format!("dma_{name}_private_read/process_vm_readv"),
            calls,
            |i| private.memory.read(private.offset + place(i, len) as u64, &to).unwrap(),
            |i| bare(i, false),
        );
        compare(
            &format!("dma_{name}_private_write/process_vm_writev"),
            calls,
            |i| private.memory.write(private.offset + place(i, len) as u64, &to).unwrap(),
            |i| bare(i, true),
        );
    }
}

fn pins(pinner: &Pinner, process: &Arc<sys::Process>, at: (u64, u64)) {
    let maps = std::fs::File::open(format!("/proc/{}/maps", process.pid())).unwrap();
    let query = |addr: u64| {
        let mut words = [0u64; 13];
        words[0] = 104;
        words[2] = addr;
        // SAFETY: PROCMAP_QUERY works on a struct of 104 bytes.
        unsafe { libc::ioctl(maps.as_raw_fd(), 0xc068_6611, words.as_mut_ptr()) };
        black_box(words);
    };
    for (name, base) in [("private", at.0), ("shared", at.1)] {
        compare(
            &format!("pin_page_{name}/procmap_query"),
            2000,
            |i| drop(black_box(pinner.pin(process, base + i * 4096, 4096, true).unwrap())),
            |i| query(base + i * 4096),
        );
    }
}

fn events() {
    let event = EventFd::create(0, false, false).unwrap();
    let fd = event.as_fd();
    compare("event_signal/write", 2000, |_| event.signal(), |_| _ = rustix::io::write(fd, &1u64.to_ne_bytes()));
}

fn disks(own: &mut [u8], other: &mut [u8]) {
    let path = std::env::temp_dir().join(format!("vfuse-sys-bench-{}", std::process::id()));
    let ram = RamDisk::new(LEN as u64).unwrap();
    let file = FileDisk::open(&path, sys::DiskOptions { size: Some(LEN as u64), ..Default::default() }).unwrap();
    let bare = std::fs::File::open(&path).unwrap();
    let whole = Segment::Direct(VolatileSlice::from(&mut *own));
    ram.write(0, &whole).unwrap();
    file.write(0, &whole).unwrap();
    let (spare, copy) = other.split_at_mut(1 << 20);
    for (name, len, calls) in [("4k", 4096, 1000), ("128k", 131_072, 100)] {
        let to = VolatileSlice::from(&mut own[..len]);
        let spare = &mut spare[..len];
        compare(
            &format!("ram_disk_read_{name}/memcpy"),
            calls,
            |i| ram.read(place(i, len) as u64, &Segment::Direct(to)).unwrap(),
            |i| black_box(&mut *spare).copy_from_slice(&copy[place(i, len)..][..len]),
        );
        let buffer = &mut *spare;
        compare(
            &format!("file_disk_read_{name}/pread"),
            calls,
            |i| file.read(place(i, len) as u64, &Segment::Direct(to)).unwrap(),
            |i| {
                std::os::unix::fs::FileExt::read_exact_at(&bare, buffer, place(i, len) as u64).unwrap();
            },
        );
    }
    let _ = std::fs::remove_file(&path);
}
