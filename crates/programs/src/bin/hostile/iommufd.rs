// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/iommu` and a cdev under attack: each call with each length, ids of
//! any kind, ranges that overflow, pointers that lead nowhere, while a
//! controller does DMA through what is being mapped and unmapped.

use std::fs;

use crate::common::{Attack, Shared};
use crate::memory::{ARENA, PAGE, Rng, call, copy, open};

/// What a field of a structure holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// Few bits, an operation, an option, an index.
    Small,
    /// Reserved, or written by the call.
    Zero,
    /// An object.
    Id,
    /// A descriptor.
    Fd,
    /// One of the types that the mock IOMMU knows, and others.
    Type,
    /// How many of what a pointer leads to, 32 bits.
    Count,
    /// 64 bits of an address in the program.
    Pointer,
    /// 64 bits of an I/O virtual address.
    Iova,
    /// 64 bits of a length.
    Length,
}
use Field::{Count, Fd, Id, Iova, Length, Pointer, Small, Type, Zero};

impl Field {
    fn words(self) -> usize {
        if matches!(self, Pointer | Iova | Length) { 2 } else { 1 }
    }
}

/// Requests, and the fields of their structures behind the size.
const REQUESTS: [(u64, &[Field]); 30] = [
    (0x3b80, &[Id]),
    (0x3b81, &[Small, Zero]),
    (0x3b82, &[Id, Count, Zero, Pointer]),
    (0x3b83, &[Small, Id, Id, Length, Iova, Iova]),
    (0x3b84, &[Id, Count, Zero, Pointer, Length]),
    (0x3b85, &[Small, Id, Zero, Pointer, Length, Iova]),
    (0x3b86, &[Id, Iova, Length]),
    (0x3b87, &[Small, Small, Id, Length]),
    (0x3b88, &[Id, Small]),
    (0x3b89, &[Small, Id, Id, Zero, Zero, Type, Count, Pointer, Id, Zero]),
    (0x3b8a, &[Small, Id, Count, Pointer, Type, Zero, Zero, Zero]),
    (0x3b8b, &[Small, Id, Zero]),
    (0x3b8c, &[Id, Small, Zero, Iova, Length, Length, Pointer]),
    (0x3b8d, &[Id, Pointer, Type, Count, Count, Zero]),
    (0x3b8e, &[Small, Zero, Zero]),
    (0x3b8f, &[Small, Id, Fd, Iova, Length, Iova]),
    (0x3b90, &[Small, Type, Id, Id, Zero, Count, Zero, Pointer]),
    (0x3b91, &[Id, Id, Zero, Length]),
    (0x3b92, &[Zero]),
    (0x3b93, &[Small, Id, Type, Count, Zero, Zero, Zero]),
    (0x3b94, &[Small, Id, Type, Small, Zero, Iova, Length]),
    // IOMMU_TEST_CMD: operation, object, and what most operations have.
    (0x3ba0, &[Count, Id, Zero, Iova, Length, Pointer, Small, Small, Length, Pointer, Zero]),
    (0x3ba0, &[Count, Fd, Zero, Small, Small, Iova, Length, Pointer, Small, Small, Zero]),
    // The container's on this node.
    (0x3b71, &[Small, Pointer, Iova, Length]),
    (0x3b72, &[Small, Iova, Length]),
    (0x3b70, &[Small, Length]),
    (0x3b66, &[Small]),
    // The cdev's.
    (0x3b76, &[Small, Fd, Zero, Pointer]),
    (0x3b77, &[Small, Id, Small]),
    (0x3b78, &[Small, Small]),
];

/// The longest structure, with room behind it.
const WORDS: usize = 24;

/// A context, another one, and a device that is bound to the first.
pub(crate) struct Iommufd {
    shared: Shared,
    cdev: String,
}

impl Iommufd {
    pub(crate) fn new() -> Iommufd {
        Iommufd { shared: Shared::new(3), cdev: format!("/dev/vfio/devices/{}", cdev()) }
    }

    /// Fills a structure so that it may well be accepted, and has it spoiled
    /// now and then. Its length in bytes comes first.
    fn structure(&self, rng: &mut Rng, fields: &[Field]) -> ([u32; WORDS], u64) {
        let arena = self.shared.arena;
        let mut words = [0_u32; WORDS];
        let mut at = 1;
        for field in fields {
            let value = match field {
                Small => rng.of(&[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1 << 16, 1 << 31, 0xffff_ffff]),
                Zero => rng.of(&[0, 0, 0, 0, 0, 0, 0, 1]),
                Id => 1 + rng.below(24) + rng.of(&[0, 0, 0, 0, 0, 0, 0, 0x7fff_fff0, 0xffff_fff0]),
                Fd => self.shared.fd(rng),
                Type => rng.of(&[0, 1, 2, 3, 0xdead, 0xdead_beef, 0xfeed_beef, 0xbeef_beef, 0xffff_ffff]),
                Count => rng.of(&[0, 1, 2, 8, 12, 16]) + rng.below(24) + rng.of(&[0, 0, 0, 0, 1 << 19, 0xffff_ff00]),
                Pointer if rng.below(3) == 0 => arena.pointer(rng),
                Pointer => arena.0 + rng.below((ARENA / PAGE) as u64) * PAGE as u64,
                Iova => iova(rng),
                Length => rng.of(&[0, 1, 2048, 4096, 4096, 8192, 65536, 1 << 20, 1 << 63, u64::MAX - 4095, u64::MAX]),
            };
            // A 64-bit field stands at a multiple of 8.
            at += if field.words() == 2 { at % 2 } else { 0 };
            words[at] = value as u32;
            if field.words() == 2 {
                words[at + 1] = (value >> 32) as u32;
            }
            at += field.words();
        }
        let len = 4 * at as u64;
        let size = match rng.below(10) {
            0 => rng.of(&[0, 1, 3, 4, len - 1, len - 4, len + 1, len + 8, PAGE as u64, 1 << 20, 0xffff_ffff]),
            _ => len,
        };
        words[0] = size as u32;
        if rng.below(8) == 0 {
            words[1 + rng.below(WORDS as u64 - 1) as usize] = rng.next() as u32;
        }
        (words, len)
    }

    /// Switches the controller on, with queues in the arena: its commands are
    /// whatever lies there. Then rings.
    fn drive(&self, rng: &mut Rng) {
        const REGISTERS: [(u64, u32); 6] =
            [(0x14, 0), (0x24, 0x3f_003f), (0x28, 0x1000), (0x2c, 0), (0x30, 0x2000), (0x14, 0x46_0001)];
        let at = call(libc::SYS_mmap, [0, 8192, 3, libc::MAP_SHARED as u64, self.shared.role(2), 32 << 40]);
        if at <= 0 {
            return;
        }
        let store = |place: u64, value: u32| {
            copy(libc::SYS_process_vm_writev, (&raw const value) as u64, at as u64 + place, 4);
        };
        if rng.below(4) == 0 {
            for (place, value) in REGISTERS {
                store(place, value);
            }
        }
        for _ in 0..8 {
            store(0x1000 + 4 * rng.below(4), rng.below(64) as u32);
        }
        call(libc::SYS_munmap, [at as u64, 8192, 0, 0, 0, 0]);
    }
}

impl Attack for Iommufd {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn ioctl(&self, rng: &mut Rng) {
        let (request, fields) = rng.of(&REQUESTS);
        let request = match rng.below(24) {
            0 => 0x3b00 | rng.below(256),
            1 => request | rng.next() << 16,
            _ => request,
        };
        let (words, len) = self.structure(rng, fields);
        let arg = match rng.below(12) {
            0 => self.shared.arena.pointer(rng),
            // Runs out of the arena in its middle.
            1 => self.shared.arena.0 + ARENA as u64 - rng.below(len / 4) * 4,
            _ => self.shared.arena.0 + rng.below((ARENA / PAGE) as u64) * PAGE as u64,
        };
        self.shared.arena.store(arg, &words);
        let fd = if request & 0xffff == 0x3b76 { self.shared.role(2) } else { self.shared.fd(rng) };
        let new = call(libc::SYS_ioctl, [fd, request, arg, 0, 0, 0]);
        if new > 2 {
            self.shared.put(rng, new as i32); // a DMA buffer's
        }
        // Descriptors that came back in the structure.
        let at = match request {
            0x3b8e => 12,
            0x3b93 => 24,
            0x3ba0 if words[1] == 5 => 16,
            _ => return,
        };
        if new == 0 {
            self.shared.put(rng, self.shared.arena.word(arg + at) as i32);
        }
    }

    /// Reads and writes of queues, and of the device's regions.
    fn access(&self, rng: &mut Rng) {
        let buffer = self.shared.arena.pointer(rng);
        let len = rng.of(&[0, 1, 7, 8, 12, 16, 40, 64, 512, 4096]);
        let fd = self.shared.fd(rng);
        match rng.below(4) {
            0 => call(libc::SYS_read, [fd, buffer, len, 0, 0, 0]),
            1 => call(libc::SYS_write, [fd, buffer, len, 0, 0, 0]),
            2 => call(libc::SYS_pread64, [fd, buffer, len, (32 + rng.below(9)) << 40 | rng.below(4096), 0, 0]),
            _ => call(libc::SYS_pwrite64, [fd, buffer, len, (32 + rng.below(9)) << 40 | rng.below(4096), 0, 0]),
        };
    }

    fn map(&self, rng: &mut Rng) {
        if rng.below(4) != 0 {
            return self.drive(rng);
        }
        let shared = rng.of(&[libc::MAP_SHARED, libc::MAP_SHARED, libc::MAP_PRIVATE]) as u64;
        let (len, offset) = (rng.of(&[0, 4096, 8192, 8193, 1 << 40]), rng.of(&[0, 4096, 8192, 12288, 1 << 62]));
        let at = call(libc::SYS_mmap, [0, len, rng.of(&[1, 3, 7]), shared, self.shared.fd(rng), offset]);
        if at > 0 {
            call(libc::SYS_munmap, [at as u64, len, 0, 0, 0, 0]);
        }
    }

    fn path(&self, rng: &mut Rng) -> String {
        match rng.below(6) {
            0 => self.cdev.clone(),
            1 => "/dev/vfio/vfio".to_owned(),
            _ => "/dev/iommu".to_owned(),
        }
    }

    fn handshake(&self, rng: &mut Rng) {
        self.shared.forget();
        let (one, other, device) = (open("/dev/iommu"), open("/dev/iommu"), open(&self.cdev));
        let ioctl = |fd: i32, request: u64, words: &mut [u32]| {
            call(libc::SYS_ioctl, [fd as u64, request, words.as_mut_ptr() as u64, 0, 0, 0])
        };
        let start = self.shared.arena.0;
        for context in [one, other] {
            let mut ioas = [12, 0, 0];
            ioctl(context, 0x3b81, &mut ioas);
            let (low, high) = (start as u32, (start >> 32) as u32);
            ioctl(context, 0x3b85, &mut [40, 7, ioas[2], 0, low, high, ARENA as u32, 0, 0, 0]);
            // A mock device, where the lab has them; with a table that tells
            // what is dirty.
            let mut mock = [0_u32; 18];
            (mock[0], mock[1], mock[2]) = (72, 2, ioas[2]);
            ioctl(context, 0x3ba0, &mut mock);
            ioctl(context, 0x3b89, &mut [48, rng.of(&[0, 1, 2]), mock[6], ioas[2], 0, 0, 0, 0, 0, 0, 0, 0]);
            if context == one {
                ioctl(device, 0x3b76, &mut [24, 0, context as u32, 0, 0, 0]);
                ioctl(device, 0x3b77, &mut [12, 0, ioas[2]]);
            }
        }
        let on = 6_u16;
        call(libc::SYS_pwrite64, [device as u64, (&raw const on) as u64, 2, 39 << 40 | 4, 0, 0]);
        self.shared.play(&[one, other, device]);
    }
}

fn iova(rng: &mut Rng) -> u64 {
    match rng.below(16) {
        0 => rng.of(&[0x0100_0000, 0x7fff_f000, 0xfee0_0000, 1 << 32, u64::MAX, u64::MAX - 4095, 1 << 63, 1]),
        _ => rng.below((ARENA / PAGE) as u64) * PAGE as u64,
    }
}

/// The lab's first device: a name in `/dev/vfio/devices`.
fn cdev() -> String {
    let names = fs::read_dir("/dev/vfio/devices").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.min().unwrap_or_else(|| "vfio0".to_owned())
}
