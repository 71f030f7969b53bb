// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! read, write and mmap of regions: API-213 to API-231.

use caller::Reply;
use uapi::Errno;
use uapi::vfio::device::region_index::{CONFIG, ROM};

use super::{MEMORY, Rig, TABLE, VECTORS};
use crate::testing::Asked;

/// API-213
#[test]
fn nothing_to_do_is_done() {
    let mut rig = Rig::new();
    let file = rig.file;
    let (vfio, mut cx) = rig.lab.parts();
    assert_eq!(vfio.read(file, u64::MAX, 0, 0, &mut cx), Ok(Reply::Value(0)));
    assert_eq!(vfio.write(file, 0, 0, 0, &mut cx), Ok(Reply::Value(0)));
}

/// API-213
#[test]
fn bad_places() {
    let mut rig = Rig::new();
    let end = uapi::region::offset(0, 9);
    let vga = uapi::region::offset(0, 8);
    let other_device = uapi::region::offset(1, 0);
    let buf = rig.lab.client.room(64);
    let file = rig.file;
    let (vfio, mut cx) = rig.lab.parts();
    // API-224: VGA is not built in.
    for offset in [0, 4096, end, vga + 0xa_0000, other_device, u64::MAX] {
        assert_eq!(vfio.read(file, offset, buf, 4, &mut cx), Err(Errno::EINVAL), "{offset:#x}");
        assert_eq!(vfio.write(file, offset, buf, 4, &mut cx), Err(Errno::EINVAL), "{offset:#x}");
    }
    assert_eq!(rig.pwrite(ROM, 0, &[0; 4]), Err(Errno::EINVAL));
}

/// API-215
#[test]
fn bars_clip() {
    let mut rig = Rig::new();
    assert_eq!(rig.pread(3, 250, 16).map(|b| b.len()), Ok(6));
    assert_eq!(rig.pwrite(3, 250, &[1; 16]), Ok(6));
    assert_eq!(rig.pread(3, 256, 1), Err(Errno::EINVAL));
    assert_eq!(rig.pwrite(3, 256, &[1]), Err(Errno::EINVAL));
    for index in [1, 5] {
        assert_eq!(rig.pread(index, 0, 1), Err(Errno::EINVAL), "no such BAR");
    }
}

/// API-220
#[test]
fn accesses_are_natural() {
    let mut rig = Rig::new();
    rig.asked();
    rig.pwrite(3, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]).unwrap();
    let written: Vec<(u64, usize)> = rig
        .asked()
        .into_iter()
        .map(|asked| match asked {
            Asked::Write(3, at, data) => (at, data.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(written, [(1, 1), (2, 2), (4, 4), (8, 8), (16, 2)]);
    assert_eq!(rig.pread(3, 0, 20).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 0, 0]);
    let read: Vec<Asked> = rig.asked();
    assert_eq!(read, [Asked::Read(3, 0, 8), Asked::Read(3, 8, 8), Asked::Read(3, 16, 4)]);
}

/// API-221
#[test]
fn table_reads_ones_and_drops_writes() {
    let mut rig = Rig::new();
    let len = u64::from(VECTORS) * 16;
    rig.asked();
    rig.pwrite(0, TABLE - 6, &vec![0x11; len as usize + 12]).unwrap();
    let stores: Vec<u64> =
        rig.asked().iter().map(|a| if let Asked::Write(0, at, _) = a { *at } else { panic!("{a:?}") }).collect();
    assert!(stores.iter().all(|at| *at < TABLE || *at >= TABLE + len), "{stores:x?}");
    let bytes = rig.pread(0, TABLE - 6, len + 12).unwrap();
    assert_eq!(bytes[..6], [0x11; 6]);
    assert!(bytes[6..6 + len as usize].iter().all(|b| *b == 0xff));
    assert_eq!(bytes[6 + len as usize..], [0x11; 6]);
    rig.set_command(0);
    assert_eq!(rig.pread(0, TABLE, 8).map(|b| b[0]), Ok(0xff), "no access, no gate");
}

/// API-216, API-218, API-227
#[test]
fn memory_disabled() {
    let mut rig = Rig::new();
    rig.set_command(0);
    assert!(!rig.mapped());
    assert_eq!(rig.pread(0, 0, 4), Err(Errno::EIO));
    assert_eq!(rig.pwrite(0, 0, &[0; 4]), Err(Errno::EIO));
    assert_eq!(rig.pwrite(0, TABLE + 8, &vec![0; VECTORS as usize * 16]), Err(Errno::EIO), "not a short count");
    assert_eq!(rig.pread(2, 0, 4).map(|b| b.len()), Ok(4), "I/O is not gated");
    // API-230
    assert_eq!(rig.mmap(0, 0, 4096, true), Ok(()));
    rig.set_command(MEMORY);
    assert_eq!(rig.pread(0, 0, 4).map(|b| b.len()), Ok(4));
    let at = rig.cap(1) + 4;
    rig.cfg_write(at, 2, 3);
    assert_eq!(rig.pread(0, 0, 4), Err(Errno::EIO), "D3hot");
}

/// API-222, API-218
#[test]
fn buffer_faults() {
    let mut rig = Rig::new();
    let offset = rig.at(0, 0);
    let hole = 0x5000_0000;
    rig.lab.client.memory.map(hole - 4096, 4096, true);
    let file = rig.file;
    let (vfio, mut cx) = rig.lab.parts();
    assert_eq!(vfio.read(file, offset, hole - 8, 16, &mut cx), Err(Errno::EFAULT));
    assert_eq!(vfio.write(file, offset, hole - 8, 16, &mut cx), Err(Errno::EFAULT));
    assert_eq!(vfio.write(file, offset, u64::MAX - 3, 16, &mut cx), Err(Errno::EFAULT));
    assert!(rig.asked().contains(&Asked::Write(0, 0, vec![0; 8])), "what came before was done");
}

/// API-223
#[test]
fn rom_reads_ones_behind_the_image() {
    let mut rig = Rig::new();
    let bytes = rig.pread(ROM, 510, 4).unwrap();
    assert_eq!(bytes, [super::rom()[510], super::rom()[511], 0xff, 0xff]);
    assert_eq!(rig.pread(ROM, 2040, 64).map(|b| b.len()), Ok(8));
    assert_eq!(rig.pread(ROM, 2048, 1), Err(Errno::EINVAL));
    rig.set_command(0);
    assert_eq!(rig.pread(ROM, 0, 4), Err(Errno::ENOMEM));
}

/// A call does not go on for ever.
#[test]
fn long_calls_are_short() {
    let memory = pci::BarKind::Memory64 { prefetchable: true };
    let bars = [Some(pci::Bar { size: 1 << 30, kind: memory, mmap: false }), None, None, None, None, None];
    let spec = pci::FunctionSpec { bars, msix: None, ..super::spec() };
    let mut rig = Rig::with(spec, crate::Options::default());
    let offset = rig.at(0, 0);
    rig.lab.client.memory.map(0x1_0000_0000, 1 << 32, true);
    let file = rig.file;
    let (vfio, mut cx) = rig.lab.parts();
    assert_eq!(vfio.read(file, offset, 0x1_0000_0000, 1 << 29, &mut cx), Ok(Reply::Value(4 << 20)));
}

/// API-228, API-136
#[test]
fn mmap_rules() {
    let mut rig = Rig::new();
    assert_eq!(rig.mmap(0, 0, 0x4000, true), Ok(()));
    // API-233: the table may be mapped as well.
    assert_eq!(rig.mmap(0, TABLE, 4096, true), Ok(()));
    assert_eq!(rig.mmap(0, 0, 0x4000, false), Err(Errno::EINVAL));
    for (index, pos, len) in
        [(0, 0, 0x4001), (0, 0x4000, 1), (0, 0x1000, 0x4000), (0, 0, u64::MAX), (0, 8, 8), (0, 0, 0)]
    {
        assert_eq!(rig.mmap(index, pos, len, true), Err(Errno::EINVAL), "{index} {pos:#x} {len:#x}");
    }
    for index in [1, 2, 3, ROM, CONFIG] {
        assert_eq!(rig.mmap(index, 0, 4096, true), Err(Errno::EINVAL), "{index}");
    }
    let beyond = uapi::region::offset(0, 9);
    assert_eq!(rig.lab.vfio.mmap(rig.file, beyond, 4096, true, &rig.lab.board), Err(Errno::EINVAL));
    assert_eq!(rig.lab.vfio.mmap(rig.file, 0, 4096, true, &rig.lab.board), Err(Errno::EINVAL));
}

/// API-228: up to the end of the page that a small BAR has for itself.
#[test]
fn mmap_of_a_small_bar() {
    let mut rig = Rig::with(pci::FunctionSpec { rom: vec![], ..super::spec() }, crate::Options::default());
    assert_eq!(rig.device_file().layout.mmap[3], 4096);
    assert_eq!(rig.mmap(3, 0, 256, true), Ok(()));
    assert_eq!(rig.mmap(3, 0, 4096, true), Ok(()));
    assert_eq!(rig.mmap(3, 0, 4097, true), Err(Errno::EINVAL));
}

/// API-217, API-237
#[test]
fn virtual_function_memory_is_always_enabled() {
    let mut rig = super::token::vf_rig();
    assert_eq!(rig.vf_cfg(4, 2) & MEMORY, MEMORY);
    rig.vf_cfg_write(4, 2, 0);
    assert_eq!(rig.vf_cfg(4, 2) & MEMORY, 0);
    assert_eq!(rig.vf_read(0, 0, 4), Ok(4));
    assert!(rig.rig.mapped());
}
