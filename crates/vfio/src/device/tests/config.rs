// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space: API-225, API-226, API-234 to API-268.

use caller::Reply;
use pci::{FunctionSpec, cap};
use uapi::Errno;
use uapi::vfio::device::region_index::CONFIG;

use super::{INTX_DISABLE, MASTER, MEMORY, Rig, spec};
use crate::Options;
use crate::testing::Asked;

/// The ids of a chain as the program walks it.
fn chain(rig: &mut Rig) -> Vec<u8> {
    let mut ids = Vec::new();
    let mut at = rig.cfg(0x34, 1) as u16;
    while at != 0 {
        ids.push(rig.cfg(at, 1) as u8);
        at = rig.cfg(at + 1, 1) as u16;
    }
    ids
}

fn extended_chain(rig: &mut Rig) -> Vec<u16> {
    let mut ids = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        let header = rig.cfg(at, 4);
        ids.push(header as u16);
        at = (header >> 20) as u16;
    }
    ids
}

/// API-234, API-240, API-244
#[test]
fn header() {
    let mut rig = Rig::new();
    assert_eq!(rig.cfg(0, 4), 0x0010_1b36);
    assert_eq!(rig.cfg(8, 4), 0x0108_0202);
    assert_eq!(rig.cfg(0x2c, 4), 0x1100_1af4);
    for pos in [0, 2, 8, 0x0e, 0x2c, 0x34, 0x3d, 0x3e] {
        let before = rig.cfg(pos, 1);
        rig.cfg_write(pos, 1, !before);
        assert_eq!(rig.cfg(pos, 1), before, "{pos:#x} is read only");
    }
    rig.cfg_write(0x0c, 1, 0x10);
    assert_eq!((rig.cfg(0x0c, 1), rig.hw(0x0c, 1)), (0x10, 0x10), "cache line size is the hardware's");
    let line = rig.hw(0x3c, 1);
    rig.cfg_write(0x3c, 1, 0x5a);
    assert_eq!((rig.cfg(0x3c, 1), rig.hw(0x3c, 1)), (0x5a, line), "interrupt line is the shadow's");
}

/// API-235, API-190
#[test]
fn command() {
    let mut rig = Rig::new();
    assert_eq!(rig.cfg(4, 2) & (MEMORY | MASTER), MEMORY, "enabled at open, but bus mastering");
    rig.set_command(MEMORY | MASTER | INTX_DISABLE);
    assert_eq!(rig.cfg(4, 2), MEMORY | MASTER | INTX_DISABLE);
    assert_eq!(rig.hw(4, 2) & (MEMORY | MASTER), MEMORY | MASTER);
    rig.set_command(MEMORY);
    assert_eq!(rig.hw(4, 2) & MASTER, 0);
}

/// API-236, API-231
#[test]
fn clearing_memory_zaps() {
    let mut rig = Rig::new();
    assert!(rig.mapped());
    rig.set_command(MASTER);
    assert!(!rig.mapped());
    rig.set_command(MASTER | MEMORY);
    assert!(rig.mapped());
    rig.asked();
    rig.set_command(MASTER | MEMORY);
    assert_eq!(rig.asked(), [], "no change, no zap");
}

/// API-238
#[test]
fn reset_behind_the_back_is_noticed() {
    let mut rig = Rig::new();
    let bars: Vec<u32> = (0..6).map(|i| rig.hw(0x10 + 4 * i, 4)).collect();
    rig.function().reset();
    assert_eq!(rig.hw(0x10, 4) & !0xf, 0);
    rig.set_command(MEMORY);
    let now: Vec<u32> = (0..6).map(|i| rig.hw(0x10 + 4 * i, 4)).collect();
    assert_eq!(now, bars);
}

/// API-239, API-256
#[test]
fn status_is_cleared_only_by_a_wide_write() {
    let mut rig = Rig::new();
    let old = rig.hw(6, 2);
    rig.function().set(6, 2, old | 0x8000);
    rig.cfg_write(6, 2, 0x8000);
    assert_eq!(rig.cfg(6, 2) & 0x8010, 0x8010);
    let command = rig.cfg(4, 2);
    rig.cfg_write(4, 4, command);
    assert_eq!(rig.cfg(6, 2) & 0x8000, 0, "written back as read");
    let at = rig.cap(0x10);
    rig.function().set(at + 0x0a, 2, 5);
    rig.cfg_write(at + 0x0a, 2, 5);
    assert_eq!(rig.cfg(at + 0x0a, 2), 5);
    let control = rig.cfg(at + 8, 2);
    rig.cfg_write(at + 8, 4, control);
    assert_eq!(rig.cfg(at + 0x0a, 2), 0);
}

/// API-241, API-242, API-243
#[test]
fn bars_are_sized_without_the_hardware() {
    let mut rig = Rig::new();
    let before: Vec<u32> = (0..6).map(|i| rig.hw(0x10 + 4 * i, 4)).collect();
    let shown: Vec<u32> = (0..6).map(|i| rig.cfg(0x10 + 4 * i, 4)).collect();
    assert_eq!(shown, before, "the addresses that the host gave");
    for at in (0x10..0x28).step_by(4).chain([0x30]) {
        rig.cfg_write(at, 4, u32::MAX);
    }
    let masks: Vec<u32> = (0..6).map(|i| rig.cfg(0x10 + 4 * i, 4)).collect();
    assert_eq!(masks, [0xffff_c004, u32::MAX, 0xffff_ffe1, 0xffff_ff00, 0xfff0_0008, 0]);
    assert_eq!(rig.cfg(0x30, 4), 0xffff_f801);
    rig.cfg_write(0x14, 4, 0x12);
    rig.cfg_write(0x11, 1, 0x7f);
    assert_eq!((rig.cfg(0x14, 4), rig.cfg(0x10, 4)), (0x12, 0xffff_4004));
    let after: Vec<u32> = (0..6).map(|i| rig.hw(0x10 + 4 * i, 4)).collect();
    assert_eq!(after, before);
    let mut rig = Rig::with(FunctionSpec { rom: vec![], ..spec() }, Options::default());
    rig.cfg_write(0x30, 4, u32::MAX);
    assert_eq!(rig.cfg(0x30, 4), 0);
}

/// API-246: subsystem ids of a bridge and what is unknown are skipped.
#[test]
fn hidden_capabilities_are_skipped() {
    let mut rig = Rig::new();
    let hardware: Vec<u8> = rig.function().capabilities().map(|c| c.0).collect();
    assert_eq!(chain(&mut rig), hardware, "nothing to hide");
    let (msi, express) = (rig.cap(5), rig.cap(0x10));
    for hidden in [0, 4, 6, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x14, 0x15, 0xff] {
        let mut rig = Rig::new();
        rig.lab.release(rig.file);
        rig.function().set(msi, 1, hidden);
        rig.file = rig.reopen();
        let shown: Vec<u8> = hardware.iter().copied().filter(|id| *id != 5).collect();
        assert_eq!(chain(&mut rig), shown, "{hidden:#x}");
        // API-247: its bytes are a gap.
        rig.cfg_write(msi + 4, 4, 0x1234_5678);
        assert_eq!(rig.hw(msi + 4, 4), 0x1234_5678);
        let pm = rig.cap(1);
        assert_eq!(rig.cfg(pm + 1, 1), u32::from(express));
    }
}

/// API-246
#[test]
fn nothing_left_clears_the_list_bit() {
    let mut rig = Rig::new();
    rig.lab.release(rig.file);
    let all: Vec<u16> = rig.function().capabilities().map(|c| c.1).collect();
    for at in all {
        rig.function().set(at, 1, 0x0d);
    }
    rig.file = rig.reopen();
    assert_eq!((rig.cfg(6, 2) & 0x10, rig.cfg(0x34, 1)), (0, 0));
    // API-259: without PCI Express there is no extended space.
    assert_eq!(rig.cfg(0x100, 4), rig.hw(0x100, 4));
    rig.cfg_write(0x108, 4, 0x10);
    assert_eq!(rig.hw(0x108, 4), 0x10, "raw");
}

/// API-245
#[test]
fn gaps_are_raw() {
    let mut rig = Rig::new();
    let gap = (0x40..0x100).find(|at| rig.function().capabilities().all(|(_, c, len)| !(c..c + len).contains(at)));
    let gap = gap.unwrap();
    rig.function().set(gap, 1, 0xa5);
    assert_eq!(rig.cfg(gap, 1), 0xa5);
}

/// API-248
#[test]
fn power_management() {
    let mut rig = Rig::with(FunctionSpec { no_soft_reset: true, ..spec() }, Options::default());
    let at = rig.cap(1);
    rig.function().set(at + 3, 1, 0xf8);
    assert_eq!(rig.cfg(at + 2, 2) & 0xf800, 0, "PME is not shown");
    rig.asked();
    rig.cfg_write(at + 4, 2, 0x8103);
    assert_eq!((rig.cfg(at + 4, 2) & 0x8103, rig.hw(at + 4, 2) & 0x103), (3, 3));
    assert!(!rig.mapped());
    assert_eq!(rig.pread(0, 0, 4), Err(Errno::EIO));
    // Only a write that starts at the register acts.
    rig.cfg_write(at + 5, 1, 0);
    assert_eq!(rig.hw(at + 4, 2) & 3, 3);
    // D1 is not there.
    rig.cfg_write(at + 4, 2, 1);
    assert_eq!(rig.hw(at + 4, 2) & 3, 3);
    rig.cfg_write(at + 4, 1, 0);
    assert_eq!(rig.hw(at + 4, 2) & 3, 0);
    assert!(rig.mapped());
    assert!(!rig.asked().iter().any(|a| matches!(a, Asked::Reset(_))), "No_Soft_Reset");
}

/// API-248
#[test]
fn state_lost_in_d3_is_restored() {
    let mut rig = Rig::new();
    rig.set_command(MEMORY | MASTER);
    let at = rig.cap(1);
    let bar = rig.hw(0x10, 4);
    rig.asked();
    rig.cfg_write(at + 4, 2, 3);
    rig.cfg_write(at + 4, 2, 0);
    assert!(rig.asked().contains(&Asked::Reset(::device::ResetKind::PowerManagement)));
    assert_eq!((rig.hw(4, 2) & (MEMORY | MASTER), rig.hw(0x10, 4)), (MEMORY | MASTER, bar));
    assert!(rig.mapped());
}

/// API-249
#[test]
fn physical_function_stays_awake() {
    let mut rig = Rig::with(FunctionSpec { total_vfs: 4, ..spec() }, Options::default());
    rig.lab.board.fabric.enable_vfs(super::ADDRESS, 2).unwrap();
    let at = rig.cap(1);
    rig.cfg_write(at + 4, 2, 3);
    assert_eq!(rig.cfg(at + 4, 2) & 3, 0);
}

/// API-251
#[test]
fn vital_product_data() {
    let mut rig = Rig::new();
    let at = rig.cap(3);
    let image = rig.function().spec().vpd.clone();
    rig.cfg_write(at + 2, 2, 4);
    assert_eq!(rig.cfg(at + 2, 2), 0x8004);
    assert_eq!(rig.cfg(at + 4, 4).to_le_bytes(), image[4..8]);
    // The low byte alone starts nothing.
    rig.cfg_write(at + 2, 1, 8);
    assert_eq!(rig.cfg(at + 2, 2), 0x8008);
    // Writes are taken, though nothing is stored here.
    rig.cfg_write(at + 4, 4, 0x1111_1111);
    rig.cfg_write(at + 2, 2, 0x8004);
    assert_eq!(rig.cfg(at + 2, 2), 4);
    // Beyond the end nothing answers: the flag does not flip.
    rig.cfg_write(at + 2, 2, 0x4000);
    assert_eq!(rig.cfg(at + 2, 2), 0x4000);
}

/// API-252
#[test]
fn msi() {
    let mut rig = Rig::new();
    let at = rig.cap(5);
    let (fd, _) = rig.event();
    rig.cfg_write(at + 4, 4, 0xffff_ffff);
    rig.cfg_write(at + 12, 2, 0x4321);
    assert_eq!((rig.cfg(at + 4, 4), rig.cfg(at + 12, 2)), (u32::MAX, 0x4321));
    assert_eq!(rig.hw(at + 4, 4), 0, "the program's address goes nowhere");
    // Off: neither enable nor a number of messages.
    rig.cfg_write(at + 2, 2, 0x31);
    assert_eq!(rig.cfg(at + 2, 1), 0);
    assert_eq!(rig.hw(at + 2, 2) & 0x71, 0);
    // SET_IRQS does not show in the shadow; then it sticks.
    rig.bind_fds(1, 0, &[fd, fd, fd]).unwrap();
    assert_eq!((rig.cfg(at + 2, 2) & 1, rig.hw(at + 2, 2) & 0x71), (0, 0x21));
    rig.cfg_write(at + 2, 2, 0x51);
    assert_eq!((rig.cfg(at + 2, 1), rig.hw(at + 2, 2) & 0x71), (0x21, 0x21), "clamped to 4 messages");
    rig.cfg_write(at + 2, 2, 0x20);
    let irq = rig.endpoint();
    irq.interrupts.message(0);
    rig.cfg_write(at + 2, 2, 0x21);
    rig.irqs(1, 0x21, 0, 0, &[]).unwrap();
    assert_eq!((rig.cfg(at + 2, 1) & 1, rig.hw(at + 2, 2) & 1), (1, 0), "still shown");
    rig.cfg_write(at + 2, 1, 1);
    assert_eq!(rig.cfg(at + 2, 1) & 1, 0);
    // Mask bits are the hardware's.
    rig.cfg_write(at + 16, 4, 5);
    assert_eq!(rig.hw(at + 16, 4), 5);
}

/// API-252: mask and pending bits.
#[test]
fn msi_mask_bits() {
    let mut rig = Rig::new();
    let at = rig.cap(5);
    let (fd, event) = rig.event();
    rig.bind_fds(1, 0, &[fd, -1]).unwrap();
    assert_eq!(rig.cfg(at + 16, 4), 0xfe, "the host masks what is not bound");
    rig.endpoint().interrupts.message(1);
    assert_eq!(rig.cfg(at + 20, 4), 2);
    rig.bind_fds(1, 1, &[fd]).unwrap();
    assert_eq!((event.take(), rig.cfg(at + 20, 4), rig.cfg(at + 16, 4)), (1, 0, 0xfc));
    rig.cfg_write(at + 16, 1, 0xfd);
    rig.endpoint().interrupts.message(0);
    assert_eq!((event.take(), rig.cfg(at + 20, 4)), (0, 1));
    rig.cfg_write(at + 16, 1, 0xfc);
    assert_eq!((event.take(), rig.cfg(at + 20, 4)), (1, 0));
    rig.irqs(1, 0x21, 0, 0, &[]).unwrap();
    assert_eq!(rig.cfg(at + 16, 4), 0);
}

/// Makes another capability of the MSI one, whose bits all can be written.
fn with_capability(id: u32) -> (Rig, u16) {
    let mut rig = Rig::new();
    let at = rig.cap(5);
    rig.lab.release(rig.file);
    rig.function().set(at, 1, id);
    rig.file = rig.reopen();
    (rig, at)
}

/// API-250: AGP, HyperTransport, SATA.
#[test]
fn capabilities_without_a_rule_are_read_only() {
    for id in [0x02, 0x08, 0x12] {
        let (mut rig, at) = with_capability(id);
        assert!(chain(&mut rig).contains(&(id as u8)));
        let before = rig.hw(at + 4, 4);
        rig.cfg_write(at + 4, 4, !before);
        assert_eq!((rig.hw(at + 4, 4), rig.cfg(at + 4, 4)), (before, before), "{id:#x}");
    }
}

/// API-253
#[test]
fn pci_x() {
    let (mut rig, at) = with_capability(0x07);
    rig.function().set(at + 2, 2, 0x1000);
    rig.lab.release(rig.file);
    rig.file = rig.reopen();
    rig.cfg_write(at + 2, 2, 0x0070);
    assert_eq!(rig.hw(at + 2, 2) & 0x70, 0x70, "command");
    rig.cfg_write(at + 8, 4, 0x1234_5678);
    assert_eq!(rig.hw(at + 8, 4), 0x1234_5678, "error correction");
    rig.cfg_write(at + 4, 4, 0x1234_5678);
    assert_eq!(rig.hw(at + 4, 4), 0, "status");
}

/// API-254
#[test]
fn vendor_specific() {
    let mut rig = Rig::new();
    let at = rig.cap(9);
    assert_eq!(rig.cfg(at + 3, 4), 0x0403_0201);
    let next = rig.cfg(at + 1, 1);
    rig.cfg_write(at, 4, 0);
    assert_eq!((rig.cfg(at, 1), rig.cfg(at + 1, 1)), (9, next));
}

/// API-255
#[test]
fn express_control() {
    let mut rig = Rig::new();
    let at = rig.cap(0x10);
    // Payload size is the shadow's only, a request size the hardware's as well,
    // but not below the hardware's payload size.
    let payload = rig.hw(at + 8, 2) & 0xe0;
    rig.cfg_write(at + 8, 2, 0x2a1f);
    assert_eq!(rig.cfg(at + 8, 2), 0x281f, "no phantom functions");
    assert_eq!(rig.hw(at + 8, 2) & 0x70e0, 0x2000 | payload);
    rig.cfg_write(at + 8, 2, 0x50e0);
    assert_eq!((rig.cfg(at + 8, 2) & 0x70e0, rig.hw(at + 8, 2) & 0x70e0), (0x50e0, 0x5000 | payload));
    rig.cfg_write(at + 8, 2, 0x7000);
    assert_eq!(rig.hw(at + 8, 2) & 0x7000, 0x5000, "a reserved size goes nowhere");
    let old = rig.hw(at + 8, 2) & !0xe0;
    rig.function().set(at + 8, 2, old | 0x20);
    rig.cfg_write(at + 8, 2, 0x0000);
    assert_eq!((rig.cfg(at + 8, 2) & 0x7000, rig.hw(at + 8, 2) & 0x7000), (0, 0x1000), "raised to 256 bytes");
    rig.cfg_write(at + 0x28, 2, 0xffff);
    assert_eq!(rig.cfg(at + 0x28, 2) & 0x20, 0, "no ARI forwarding");
    for read_only in [0x00, 0x04, 0x0c, 0x10, 0x12, 0x24, 0x2c, 0x30] {
        let before = rig.hw(at + read_only, 2);
        rig.cfg_write(at + read_only, 2, !before);
        assert_eq!(rig.hw(at + read_only, 2), before, "{read_only:#x}");
    }
}

/// API-255, API-257, API-182
#[test]
fn function_reset_by_config_write() {
    let flr = |rig: &mut Rig| {
        let at = rig.cap(0x10);
        let control = rig.cfg(at + 8, 2);
        rig.cfg_write(at + 8, 2, control | 0x8000);
        rig.cfg(at + 9, 1) & 0x80
    };
    let af = |rig: &mut Rig| {
        let at = rig.cap(0x13);
        rig.cfg_write(at + 4, 1, 1);
        rig.cfg(at + 4, 1) & 1
    };
    for with_af in [false, true] {
        let mut rig = Rig::with(FunctionSpec { af_flr: true, ..spec() }, Options::default());
        rig.cfg_write(0x3c, 1, 0x42);
        rig.asked();
        let bit = if with_af { af(&mut rig) } else { flr(&mut rig) };
        assert_eq!(bit, 0, "reads 0");
        assert!(rig.asked().contains(&Asked::Reset(::device::ResetKind::FunctionLevel)));
        assert_eq!((rig.cfg(0x3c, 1), rig.hw(4, 2) & MEMORY), (0x42, MEMORY));
        assert!(rig.mapped());
    }
    let mut rig = Rig::with(FunctionSpec { flr: false, ..spec() }, Options::default());
    rig.asked();
    assert_eq!(flr(&mut rig), 0);
    assert!(!rig.asked().iter().any(|a| matches!(a, Asked::Reset(_))), "not offered, not done");
}

/// API-258
#[test]
fn msix_is_read_only() {
    let mut rig = Rig::new();
    let at = rig.cap(0x11);
    for (pos, len) in [(2, 2), (4, 4), (8, 4)] {
        let before = rig.hw(at + pos, len);
        rig.cfg_write(at + pos, usize::from(len), u32::MAX);
        assert_eq!((rig.hw(at + pos, len), rig.cfg(at + pos, usize::from(len))), (before, before));
    }
}

/// API-259, API-260, API-261, API-263, API-264
#[test]
fn extended_capabilities() {
    let mut rig = Rig::new();
    let hardware: Vec<u16> = rig.function().extended_capabilities().map(|c| c.0).collect();
    assert!(hardware.contains(&0x1b));
    let shown: Vec<u16> = hardware.into_iter().filter(|id| *id != 0x1b).collect();
    assert_eq!(extended_chain(&mut rig), shown, "PASID is hidden");
    let before = rig.cfg(0x100, 4);
    rig.cfg_write(0x100, 4, 0);
    assert_eq!(rig.cfg(0x100, 4), before);
    // Every id in the first place but one, and in the second.
    let second = (before >> 20) as u16;
    for id in 0..0x40 {
        let mut rig = Rig::new();
        rig.lab.release(rig.file);
        let old = rig.hw(second, 4) & 0xffff_0000;
        rig.function().set(second, 4, old | u32::from(id));
        // A length for those that carry one.
        rig.function().set(second + 4, 4, 0x00c0_0000);
        rig.file = rig.reopen();
        let listed =
            [1, 2, 3, 4, 8, 9, 0xb, 0xd, 0xe, 0xf, 0x10, 0x12, 0x13, 0x15, 0x16, 0x17, 0x18, 0x23].contains(&id);
        assert_eq!(extended_chain(&mut rig).contains(&id) || id == 1, listed, "{id:#x}");
    }
}

/// API-262
#[test]
fn hidden_first_one_anchors_the_chain() {
    let mut rig = Rig::new();
    rig.lab.release(rig.file);
    let header = rig.hw(0x100, 4);
    rig.function().set(0x100, 4, header & 0xffff_0000 | 0x0a);
    rig.file = rig.reopen();
    assert_eq!(rig.cfg(0x100, 4), header & 0xfff0_0000);
    assert_eq!(rig.cfg((header >> 20) as u16, 2), 3, "the serial number follows");
    // Behind the header it is a gap.
    rig.cfg_write(0x108, 4, 0);
    assert_eq!(rig.hw(0x108, 4), 0);
}

/// API-265, API-266
#[test]
fn error_reporting() {
    let mut rig = Rig::new();
    let at = rig.ext(1);
    let writes = [(0x08, 0x03ff_f031_u32), (0x0c, 0x03ff_f031), (0x14, 0x0000_f1c1), (0x18, 0x0140)];
    for (register, mask) in writes {
        rig.cfg_write(at + register, 4, 0);
        let zero = rig.hw(at + register, 4);
        rig.cfg_write(at + register, 4, u32::MAX);
        let ones = rig.hw(at + register, 4);
        let hardware = {
            let f = rig.function();
            (0..4).fold(0, |m, i| m | u32::from(f.write_masks(at + register + i).0) << (8 * i))
        };
        assert_eq!(zero ^ ones, mask & hardware, "{register:#x}");
    }
    // Bit 26 is not the program's to clear, but a write clears it all the same.
    rig.function().set(at + 4, 4, 0x0400_4000);
    rig.cfg_write(at + 4, 4, 0x4000);
    assert_eq!(rig.hw(at + 4, 4), 0);
    rig.function().set(at + 0x1c, 4, 0x1234_5678);
    rig.cfg_write(at + 0x1c, 4, 0);
    assert_eq!(rig.cfg(at + 0x1c, 4), 0x1234_5678, "header log");
}

/// API-267
#[test]
fn other_extended_registers_are_read_only() {
    let spec = FunctionSpec { total_vfs: 4, ats: true, pri: Some(32), ..spec() };
    let mut rig = Rig::with(spec, Options::default());
    for id in [0x0d, 0x0f, 0x10, 0x13] {
        let at = rig.ext(id);
        for pos in [4, 8, 12] {
            let before = rig.hw(at + pos, 4);
            rig.cfg_write(at + pos, 4, !before);
            assert_eq!(rig.hw(at + pos, 4), before, "{id:#x}+{pos}");
        }
    }
}

/// API-225
#[test]
fn no_access_beyond_the_end() {
    let mut rig = Rig::new();
    assert_eq!(rig.pread(CONFIG, 4092, 4).map(|b| b.len()), Ok(4));
    for (pos, len) in [(4096, 1), (4092, 5), (0, 4097), (0xff_ffff_ffff, 1)] {
        assert_eq!(rig.pread(CONFIG, pos, len), Err(Errno::EFAULT), "{pos:#x}+{len}");
        assert_eq!(rig.pwrite(CONFIG, pos, &vec![0; len as usize]), Err(Errno::EFAULT));
    }
}

/// API-226
#[test]
fn any_cut_reads_the_same() {
    let mut rig = Rig::new();
    let whole = rig.pread(CONFIG, 0, 4096).unwrap();
    for len in [1, 2, 3, 4, 5, 7, 64] {
        for pos in (0..4096 - len).step_by(3) {
            assert_eq!(rig.pread(CONFIG, pos as u64, len as u64).unwrap(), whole[pos..pos + len], "{pos:#x}+{len}");
        }
    }
    // A write over several registers is one write each.
    let mut data = whole[0x04..0x14].to_vec();
    data[0] |= 4;
    data[8] = 0x40;
    assert_eq!(rig.pwrite(CONFIG, 4, &data), Ok(16));
    assert_eq!((rig.hw(4, 2) & MASTER, rig.hw(0x0c, 1)), (MASTER, 0x40));
}

/// API-222: what has no use for the data does not read it.
#[test]
fn faults() {
    let mut rig = Rig::new();
    let offset = rig.at(CONFIG, 4);
    let header = rig.at(CONFIG, u64::from(cap::COMMAND));
    let file = rig.file;
    let msix = u64::from(rig.cap(0x11));
    let (vfio, mut cx) = rig.lab.parts();
    assert_eq!(vfio.read(file, offset, 16, 4, &mut cx), Err(Errno::EFAULT));
    assert_eq!(vfio.write(file, header, 16, 2, &mut cx), Err(Errno::EFAULT));
    assert_eq!(vfio.write(file, offset - 4 + msix, 16, 4, &mut cx), Ok(Reply::Value(4)));
}
