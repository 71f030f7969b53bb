// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty bitmaps: API-080, API-083, API-091 to API-099.

use uapi::Errno;
use uapi::vfio::type1::{Bitmap, DIRTY_PAGES, DirtyBitmap, DirtyFlags};

use super::{PAGE, RAM, RW, Type1Lab};

/// A lab with tracking on and room for bitmaps of `words` words.
fn lab(words: u64) -> (Type1Lab, Bitmap) {
    let mut t = Type1Lab::new(3);
    t.dirty(DirtyFlags::START).unwrap();
    let data = t.lab.client.room(words * 8);
    (t, Bitmap { pgsize: PAGE, size: words * 8, data })
}

fn words(t: &Type1Lab, bitmap: &Bitmap) -> Vec<u64> {
    let bytes = t.lab.client.get_bytes(bitmap.data, bitmap.size as usize);
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

fn fill(t: &Type1Lab, bitmap: &Bitmap, word: u64) {
    let bytes = word.to_le_bytes().repeat(bitmap.size as usize / 8);
    caller::Caller::write(&t.lab.client, bitmap.data, &bytes).unwrap();
}

/// API-092
#[test]
fn arguments() {
    let mut v1 = Type1Lab::new(1);
    assert_eq!(v1.ioctl(DIRTY_PAGES, 8), Err(Errno::EACCES), "before the fault");
    for flags in [DirtyFlags::START, DirtyFlags::STOP, DirtyFlags::GET_BITMAP] {
        assert_eq!(v1.dirty(flags), Err(Errno::EACCES));
    }
    let mut t = Type1Lab::new(3);
    assert_eq!(t.ioctl(DIRTY_PAGES, 8), Err(Errno::EFAULT));
    for (argsz, flags) in [(7, 1), (8, 0), (8, 3), (8, 6), (8, 8), (8, 9), (8, 1 << 31)] {
        let arg = t.lab.client.put(&DirtyBitmap { argsz, flags });
        assert_eq!(t.ioctl(DIRTY_PAGES, arg), Err(Errno::EINVAL), "{argsz} {flags}");
    }
}

/// API-093
#[test]
fn start_and_stop() {
    let mut t = Type1Lab::new(3);
    for flags in [DirtyFlags::STOP, DirtyFlags::START, DirtyFlags::START, DirtyFlags::STOP, DirtyFlags::STOP] {
        assert_eq!(t.dirty(flags), Ok(0));
    }
    let bitmap = Bitmap { pgsize: PAGE, size: 8, data: t.lab.client.room(8) };
    assert_eq!(t.report(0, PAGE, bitmap), Err(Errno::EINVAL), "off");
    t.dirty(DirtyFlags::START).unwrap();
    assert_eq!(t.report(0, PAGE, bitmap), Ok(0));
}

/// API-093: a mapping of more than 2^31-1 pages has no bitmap.
#[test]
fn too_many_pages() {
    let mut t = Type1Lab::new(3);
    let limit = (1 << 31) - 1;
    let huge = (limit + 1) * PAGE;
    assert!(huge <= super::RAM_LEN);
    t.map(RW, RAM, 1 << 44, huge).unwrap();
    assert_eq!(t.dirty(DirtyFlags::START), Err(Errno::EINVAL));
    t.unmap(0, 1 << 44, huge).unwrap();
    t.map(RW, RAM, 1 << 44, limit * PAGE).unwrap();
    assert_eq!(t.dirty(DirtyFlags::START), Ok(0));
    // The same when the mapping comes later; nothing is left of it.
    assert_eq!(t.map(RW, RAM, 1 << 45, huge), Err(Errno::EINVAL));
    assert_eq!(t.unmap(0, 1 << 45, huge), Ok(0));
    assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), limit);
}

/// API-094
#[test]
fn report_checks() {
    let (mut t, bitmap) = lab(1);
    let arg = t.lab.client.put(&DirtyBitmap { argsz: 47, flags: 4 });
    assert_eq!(t.ioctl(DIRTY_PAGES, arg), Err(Errno::EINVAL));
    t.lab.client.memory.map(0x5000_0000_0000, PAGE, true);
    let edge = 0x5000_0000_1000 - 8;
    caller::Caller::write(&t.lab.client, edge, &[48, 0, 0, 0, 4, 0, 0, 0]).unwrap();
    assert_eq!(t.ioctl(DIRTY_PAGES, edge), Err(Errno::EFAULT));

    let wrap = u64::MAX - 4095;
    assert_eq!(t.report(0, 0, bitmap), Err(Errno::EINVAL));
    assert_eq!(t.report(2 * PAGE, wrap, Bitmap { size: 0, ..bitmap }), Err(Errno::EOVERFLOW), "before the bitmap");
    assert_eq!(t.report(0, PAGE, Bitmap { data: 1 << 63, ..bitmap }), Err(Errno::EINVAL), "kernel half");
    for data in [0, 0x1234_5000] {
        assert_eq!(t.report(0, PAGE, Bitmap { data, ..bitmap }), Ok(0), "not looked at while nothing is mapped");
        t.map(RW, RAM, 0, PAGE).unwrap();
        assert_eq!(t.report(0, PAGE, Bitmap { data, ..bitmap }), Err(Errno::EFAULT));
        t.unmap(0, 0, PAGE).unwrap();
    }
    assert_eq!(t.report(0, 2 * PAGE, Bitmap { pgsize: 2 * PAGE, ..bitmap }), Err(Errno::EINVAL));
    assert_eq!(t.report(0, PAGE, Bitmap { pgsize: 0, ..bitmap }), Err(Errno::EINVAL));
    assert_eq!(t.report(2048, PAGE, bitmap), Err(Errno::EINVAL));
    assert_eq!(t.report(0, PAGE + 1, bitmap), Err(Errno::EINVAL));
    t.map(RW, RAM, 4 * PAGE, 4 * PAGE).unwrap();
    for (page, pages) in [(4, 2), (5, 3), (0, 5), (6, 8)] {
        assert_eq!(t.report(page * PAGE, pages * PAGE, bitmap), Err(Errno::EINVAL), "bisects");
    }
    assert_eq!(t.report(4 * PAGE, 4 * PAGE, bitmap), Ok(0));
}

/// API-099
#[test]
fn bitmap_size_rule() {
    let (mut t, bitmap) = lab(2);
    for (pages, size, expected) in [
        (64, 8, Ok(0)),
        (65, 8, Err(Errno::EINVAL)),
        (65, 16, Ok(0)),
        (1, 0, Err(Errno::EINVAL)),
        (1, 7, Err(Errno::EINVAL)),
        (1, 1 << 28, Ok(0)),
        (1, (1 << 28) + 1, Err(Errno::EINVAL)),
    ] {
        assert_eq!(t.report(0, pages * PAGE, Bitmap { size, ..bitmap }), expected, "{pages} {size}");
        assert_eq!(t.unmap_report(0, pages * PAGE, Bitmap { size, ..bitmap }), expected, "{pages} {size}");
    }
    assert_eq!(t.report(0, 1024, bitmap), Err(Errno::EINVAL), "less than a page");
}

/// API-095, API-096: all that is mapped, every time; other words stay.
#[test]
fn mapped_pages_are_dirty_each_time() {
    let (mut t, bitmap) = lab(4);
    let base = 0x100 * PAGE;
    t.map(RW, RAM, base, PAGE).unwrap();
    t.map(RW, RAM, base + 66 * PAGE, 3 * PAGE).unwrap();
    t.map(RW, RAM, base + 192 * PAGE, 64 * PAGE).unwrap();
    for _ in 0..2 {
        assert_eq!(t.report(base, 256 * PAGE, bitmap), Ok(0));
        assert_eq!(words(&t, &bitmap), [1, 0b11100, 0, u64::MAX]);
    }
    fill(&t, &bitmap, 0x8000_0000_0000_0001);
    t.report(base, 256 * PAGE, bitmap).unwrap();
    // API-097: OR where a mapping begins inside a word; the third word, which
    // is all hole, is not touched.
    assert_eq!(words(&t, &bitmap), [1, 0x8000_0000_0000_001d, 0x8000_0000_0000_0001, u64::MAX]);
    // The range's first page is bit 0.
    fill(&t, &bitmap, 0);
    t.report(base + 64 * PAGE, 64 * PAGE, Bitmap { size: 8, ..bitmap }).unwrap();
    assert_eq!(words(&t, &bitmap), [0b11100, 0, 0, 0]);
}

/// API-098: a report is dirty again in the next one, and bits that were
/// shifted for one report do not come out behind the mapping in another.
#[test]
fn reports_do_not_leave_bits_behind() {
    let (mut t, bitmap) = lab(1);
    t.map(RW, RAM, 6 * PAGE, 3 * PAGE).unwrap();
    for (first, expected) in [(0, 0b1_1100_0000), (6, 0b111), (3, 0b11_1000), (6, 0b111)] {
        fill(&t, &bitmap, 0);
        t.report(first * PAGE, 64 * PAGE, bitmap).unwrap();
        assert_eq!(words(&t, &bitmap), [expected]);
    }
}

/// API-078: what is mapped while tracking is on is dirty.
#[test]
fn new_mappings_are_dirty() {
    let (mut t, bitmap) = lab(1);
    t.map(RW, RAM, 0, 2 * PAGE).unwrap();
    t.report(0, 2 * PAGE, bitmap).unwrap();
    assert_eq!(words(&t, &bitmap), [3]);
}

/// API-080, API-083
#[test]
fn unmap_report_checks() {
    let (mut t, bitmap) = lab(1);
    t.map(RW, RAM, 0, PAGE).unwrap();
    assert_eq!(t.unmap(super::BITMAP, 0, PAGE), Err(Errno::EINVAL), "argsz without the bitmap");
    assert_eq!(t.unmap_report(0, PAGE, Bitmap { data: 1 << 63, ..bitmap }), Err(Errno::EINVAL));
    assert_eq!(t.unmap_report(0, PAGE, Bitmap { size: 0, ..bitmap }), Err(Errno::EINVAL));
    assert_eq!(t.unmap_report(0, PAGE, Bitmap { pgsize: 2048, ..bitmap }), Err(Errno::EINVAL));
    assert_eq!(t.unmap_report(1, PAGE, bitmap), Err(Errno::EINVAL));
    // NULL and unmapped addresses fault at the copy, and nothing is unmapped.
    for data in [0, 0x1234_5000] {
        assert_eq!(t.unmap_report(0, PAGE, Bitmap { data, ..bitmap }), Err(Errno::EFAULT));
    }
    t.dirty(DirtyFlags::STOP).unwrap();
    assert_eq!(t.unmap_report(0, PAGE, bitmap), Err(Errno::EINVAL), "tracking is off");
    t.dirty(DirtyFlags::START).unwrap();
    assert_eq!(t.unmap_report(0, PAGE, bitmap), Ok(PAGE));
    assert_eq!(words(&t, &bitmap), [1]);
}

/// API-091: bit 0 is the range's first page.
#[test]
fn unmap_reports_what_it_removes() {
    let (mut t, bitmap) = lab(2);
    t.map(RW, RAM, 4 * PAGE, 2 * PAGE).unwrap();
    t.map(RW, RAM, 70 * PAGE, PAGE).unwrap();
    assert_eq!(t.unmap_report(2 * PAGE, 100 * PAGE, bitmap), Ok(3 * PAGE));
    assert_eq!(words(&t, &bitmap), [0b1100, 1 << 4]);
    assert_eq!(t.unmap_report(2 * PAGE, 100 * PAGE, bitmap), Ok(0));
}

/// A bitmap that ends in a hole of the program's memory: mappings whose bits
/// were out are gone, the others stay.
#[test]
fn unmap_report_that_faults_half_way() {
    let mut t = Type1Lab::new(3);
    t.dirty(DirtyFlags::START).unwrap();
    let end = 0x5000_0000_1000;
    t.lab.client.memory.map(end - PAGE, PAGE, true);
    // One mapping a word; two words are writable.
    for n in 0..4 {
        t.map(RW, RAM, n * 64 * PAGE, 64 * PAGE).unwrap();
    }
    let bitmap = Bitmap { pgsize: PAGE, size: 32, data: end - 16 };
    assert_eq!(t.unmap_report(0, 256 * PAGE, bitmap), Err(Errno::EFAULT));
    assert_eq!(t.lab.client.get_bytes(end - 16, 16), [0xff; 16]);
    for n in 0..4 {
        assert_eq!(t.dma_read(n * 64 * PAGE).is_some(), n >= 2, "{n}");
    }
}

/// Reports longer than what is written at once.
#[test]
fn long_reports() {
    let data = 0x5000_0000_0000;
    let pages = 3 * 8192 * 64 + 7;
    let base = 1 << 40;
    let mut t = Type1Lab::new(3);
    t.lab.client.memory.map(data, 64 * PAGE, true);
    t.dirty(DirtyFlags::START).unwrap();
    t.map(RW, RAM, base, pages * PAGE).unwrap();
    t.map(RW, RAM, base + pages * PAGE, PAGE).unwrap();
    let bitmap = Bitmap { pgsize: PAGE, size: 64 * PAGE, data };
    t.report(base - 60 * PAGE, (pages + 200) * PAGE, bitmap).unwrap();
    let words = words(&t, &bitmap);
    let ones: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
    assert_eq!(ones, pages + 1);
    assert_eq!(words[0], 0xf << 60);
    assert!(words[1..3 * 8192].iter().all(|word| *word == u64::MAX));
}
