// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers, groups and devices under attack: any request and any pointer,
//! while descriptors are duplicated, passed, closed, memory that devices may
//! use is unmapped, and children come and go.

use std::fs;

use crate::common::{Attack, Shared};
use crate::memory::{ARENA, Rng, call, copy, open};

/// Containers, groups and devices.
pub(crate) struct Vfio {
    shared: Shared,
    group: u32,
}

impl Vfio {
    pub(crate) fn new() -> Vfio {
        // Container, group and device.
        Vfio { shared: Shared::new(3), group: group() }
    }

    /// Words in the arena that look like a structure.
    fn structure(&self, rng: &mut Rng) -> u64 {
        let at = self.shared.arena.pointer(rng);
        let inside = self.shared.arena.0..self.shared.arena.0 + ARENA as u64 - 256;
        if inside.contains(&at) {
            let page = rng.below(256) << 12;
            let fd = self.shared.fd(rng) as u32;
            let mut words = [0_u32; 16];
            for word in &mut words {
                *word = rng.of(&[0, 0, 1, 2, 3, 4, 5, 6, 8, 32, 36, 48, 4096, page as u32, fd, u32::MAX]);
            }
            words[0] = rng.of(&[8, 16, 20, 24, 32, 40, 48, 64, 96, u32::MAX]);
            if rng.below(3) == 0 {
                // A DMA mapping that may well be accepted.
                let vaddr = self.shared.arena.0 + page;
                (words[0], words[1]) = (32, rng.of(&[1, 2, 3]));
                (words[2], words[3]) = (vaddr as u32, (vaddr >> 32) as u32);
                (words[4], words[5], words[6], words[7]) = (page as u32, 0, rng.of(&[4096, 8192, 65536]), 0);
            }
            self.shared.arena.store(at, &words);
        }
        at
    }

    /// Stores to a mapped BAR, by the kernel's hand: no signal where it is off.
    fn bar(&self, rng: &mut Rng) {
        let at = call(libc::SYS_mmap, [0, 8192, 3, libc::MAP_SHARED as u64, self.shared.fd(rng), 32 << 40]);
        if at <= 0 {
            return;
        }
        let mut value = rng.of(&[0_u32, 1, 0x46_0001, 0x1f_001f, u32::MAX]);
        let place = rng.of(&[0x14, 0x24, 0x28, 0x30, 0x84, 0x86, 0x90, 0x1000, 0x1004, 0x1008]);
        copy(libc::SYS_process_vm_writev, (&raw mut value) as u64, at as u64 + place, 4);
        call(libc::SYS_munmap, [at as u64, 8192, 0, 0, 0, 0]);
    }
}

impl Attack for Vfio {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn ioctl(&self, rng: &mut Rng) {
        let fd = self.shared.fd(rng);
        let request = match rng.below(16) {
            0 => 0x3b00 | rng.below(256),
            1 => 0x3b00 | rng.below(256) | rng.below(1 << 16) << 16,
            2 => 0x3b71 | rng.next() << 32,
            _ => 0x3b64 + rng.below(22),
        };
        let arg = if rng.below(8) == 0 { rng.below(16) } else { self.structure(rng) };
        let new = call(libc::SYS_ioctl, [fd, request, arg, 0, 0, 0]);
        // A device's descriptor.
        if request & 0xffff_ffff == 0x3b6a && new > 2 {
            self.shared.put(rng, new as i32);
        }
    }

    /// Reads and writes of regions, in any length, at any place.
    fn access(&self, rng: &mut Rng) {
        let region = 32 + rng.below(12);
        let position = rng.of(&[0, 4, 0x10, 0x14, 0x1c, 0x44, 0x1000, 0x2000, 0x3ff8, 0x3fff]) + rng.below(8);
        let offset = match rng.below(10) {
            0 => rng.of(&[0, i64::MAX as u64, u64::MAX, 1 << 63, 1 << 45, 7 << 40, u64::MAX >> 1]),
            _ => region << 40 | position,
        };
        let len = rng.of(&[0, 1, 2, 4, 4, 8, 64, 256, 4096, 1 << 31, u64::MAX, u64::MAX >> 1]);
        let buffer = self.shared.arena.pointer(rng);
        let number = match (self.shared.arena.holds(buffer), rng.below(4)) {
            // What lies in the arena could be taken for vectors that lead to the
            // program's own memory.
            (false, 0) => libc::SYS_preadv,
            (false, 1) => libc::SYS_pwritev,
            (_, 2) => libc::SYS_pread64,
            _ => libc::SYS_pwrite64,
        };
        // What is longer could run out of the arena into something else.
        call(number, [self.shared.fd(rng), buffer, len.min(4096), offset, 0, 0]);
    }

    /// Maps a BAR.
    fn map(&self, rng: &mut Rng) {
        if rng.below(2) == 0 {
            return self.bar(rng);
        }
        let offset = (32 + rng.below(3)) << 40 | rng.below(5) << 12;
        let shared = rng.of(&[libc::MAP_SHARED, libc::MAP_PRIVATE]) as u64;
        let len = rng.of(&[4096_u64, 8192, 16384, 1 << 40]);
        let at = call(libc::SYS_mmap, [0, len, 3, shared, self.shared.fd(rng), offset]);
        if at > 0 {
            call(libc::SYS_munmap, [at as u64, len, 0, 0, 0, 0]);
        }
    }

    fn path(&self, rng: &mut Rng) -> String {
        if rng.below(16) == 0 { format!("/dev/vfio/{}", self.group) } else { "/dev/vfio/vfio".to_owned() }
    }

    fn handshake(&self, rng: &mut Rng) {
        self.shared.forget();
        let container = open("/dev/vfio/vfio");
        // Children have it for a while.
        let again = || open(&format!("/dev/vfio/{}", self.group));
        let group = (0..40).map(|_| again()).find(|fd| *fd >= 0).unwrap_or(-1);
        let number = container;
        call(libc::SYS_ioctl, [group as u64, 0x3b68, (&raw const number) as u64, 0, 0, 0]);
        call(libc::SYS_ioctl, [container as u64, 0x3b66, rng.of(&[1, 3]), 0, 0, 0]);
        let name = c"0000:01:00.0".as_ptr() as u64;
        let device = call(libc::SYS_ioctl, [group as u64, 0x3b6a, name, 0, 0, 0]);
        let on = 6_u16;
        call(libc::SYS_pwrite64, [device as u64, (&raw const on) as u64, 2, 39 << 40 | 4, 0, 0]);
        let map = [32 | 3 << 32, self.shared.arena.0, 0, ARENA as u64];
        call(libc::SYS_ioctl, [container as u64, 0x3b71, map.as_ptr() as u64, 0, 0, 0]);
        self.shared.play(&[container, group, device as i32]);
    }
}

/// The lab's group: the number in `/dev/vfio`.
fn group() -> u32 {
    let names = fs::read_dir("/dev/vfio").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).min().unwrap_or(0)
}
