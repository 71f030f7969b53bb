// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program on libblkio.
//!
//! `blkio_client DRIVER PATH verify` writes all of the disk, 32 requests at a
//! time, reads it back and compares; it also flushes, zeroes and discards.
//! `blkio_client DRIVER PATH read COUNT` reads so many blocks of 4 KiB, 32 at a
//! time, and says how many it did in a second; `cached-read` lets `io_uring`
//! use the page cache.

use std::env;
use std::mem::MaybeUninit;
use std::time::Instant;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

const DEPTH: usize = 32;
const BLOCK: usize = 4096;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (driver, path) = match arguments[..] {
        [_, driver, path, ..] => (driver, path),
        _ => panic!("usage: blkio_client DRIVER PATH verify|read COUNT"),
    };
    let direct = driver == "io_uring" && arguments.get(3) != Some(&"cached-read");
    let mut disk = Disk::open(driver, path, direct);
    match arguments[3..] {
        ["verify"] => disk.verify(),
        ["read" | "cached-read", count] => disk.read(count.parse().expect("a count")),
        _ => panic!("verify, read COUNT or cached-read COUNT"),
    }
}

struct Disk {
    // Dropped first.
    queue: Blkioq,
    region: MemoryRegion,
    capacity: u64,
    _blkio: Blkio,
}

/// Bytes of block `number`, none like another's.
fn pattern(number: u64) -> impl Iterator<Item = u8> {
    (0..BLOCK as u64 / 8).flat_map(move |i| (number * 512 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
}

impl Disk {
    fn open(driver: &str, path: &str, direct: bool) -> Disk {
        let mut blkio = Blkio::new(driver).expect("a driver");
        blkio.set_str("path", path).expect("path");
        if direct {
            blkio.set_bool("direct", true).expect("direct");
        }
        blkio.connect().expect("connected");
        blkio.set_i32("num-queues", 1).expect("a queue");
        let outcome = blkio.start().expect("started");
        let queue = outcome.queues.into_iter().next().expect("a queue");
        let region = blkio.alloc_mem_region(DEPTH * BLOCK).expect("memory");
        blkio.map_mem_region(&region).expect("mapped");
        let capacity = blkio.get_u64("capacity").expect("capacity");
        Disk { queue, region, capacity, _blkio: blkio }
    }

    fn place(&self, slot: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + slot * BLOCK)
    }

    /// Waits for at least `least` requests; their numbers.
    fn wait(&mut self, least: usize) -> Vec<usize> {
        let mut done = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
        let count = self.queue.do_io(&mut done, least, None, None).expect("I/O");
        let finished = done.iter().take(count).map(|one| {
            // SAFETY: the first `count` were written.
            let one = unsafe { one.assume_init_ref() };
            assert_eq!(one.ret, 0, "request {}", one.user_data);
            one.user_data
        });
        finished.collect()
    }

    fn verify(&mut self) {
        let blocks = self.capacity / BLOCK as u64;
        let all: Vec<u64> = (0..blocks).collect();
        for group in all.chunks(DEPTH) {
            for (slot, number) in group.iter().enumerate() {
                let bytes: Vec<u8> = pattern(*number).collect();
                // SAFETY: the slot is inside the region, and no request uses it.
                unsafe { self.place(slot).copy_from_nonoverlapping(bytes.as_ptr(), BLOCK) };
                self.queue.write(number * BLOCK as u64, self.place(slot), BLOCK, slot, ReqFlags::empty());
            }
            self.wait(group.len());
        }
        self.queue.flush(0, ReqFlags::empty());
        self.wait(1);
        let gone = [1, 3, blocks - 1];
        for (i, number) in gone.iter().enumerate() {
            let at = number * BLOCK as u64;
            match i {
                0 => self.queue.discard(at, BLOCK as u64, 0, ReqFlags::empty()),
                _ => self.queue.write_zeroes(at, BLOCK as u64, 0, ReqFlags::empty()),
            }
            self.wait(1);
        }
        for group in all.chunks(DEPTH) {
            for (slot, number) in group.iter().enumerate() {
                self.queue.read(number * BLOCK as u64, self.place(slot), BLOCK, slot, ReqFlags::empty());
            }
            self.wait(group.len());
            for (slot, number) in group.iter().enumerate() {
                let mut bytes = vec![0; BLOCK];
                // SAFETY: as above.
                unsafe { self.place(slot).copy_to_nonoverlapping(bytes.as_mut_ptr(), BLOCK) };
                let expected = if gone.contains(number) { vec![0; BLOCK] } else { pattern(*number).collect() };
                assert!(bytes == expected, "block {number}");
            }
        }
        println!("verified {} bytes", blocks * BLOCK as u64);
    }

    fn read(&mut self, count: u64) {
        let blocks = self.capacity / BLOCK as u64;
        let block = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks * BLOCK as u64;
        let start = Instant::now();
        let (mut asked, mut done) = (0, 0);
        for slot in 0..DEPTH {
            self.queue.read(block(asked), self.place(slot), BLOCK, slot, ReqFlags::empty());
            asked += 1;
        }
        while done < count {
            for slot in self.wait(1) {
                done += 1;
                if asked < count {
                    self.queue.read(block(asked), self.place(slot), BLOCK, slot, ReqFlags::empty());
                    asked += 1;
                }
            }
        }
        println!("reads a second {:.0}", done as f64 / start.elapsed().as_secs_f64());
    }
}
