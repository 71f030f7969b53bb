// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space as hardware has it: what writes do, register by
//! register, and what no write can do.

use pci::{BarKind, Effect, Function, FunctionSpec, Msix, PortType, SpecError, cap};
use proptest::prelude::*;

use crate::common::{bar, nvme, rich};

/// One function of each kind.
fn kinds() -> Vec<FunctionSpec> {
    use PortType::*;
    let ports = [RootPort, UpstreamPort, DownstreamPort, PcieToPciBridge, PciToPcieBridge, ConventionalBridge];
    let mut kinds: Vec<FunctionSpec> = ports.map(FunctionSpec::port).to_vec();
    kinds.push(FunctionSpec { slot: Some(pci::Slot { number: 5, power: 75, hotplug: true }), ..kinds[0].clone() });
    kinds.push(FunctionSpec { subsystem_vendor: 1, subsystem_device: 2, ..kinds[1].clone() });
    kinds.push(nvme());
    kinds.push(rich());
    kinds.push(rich().virtual_function());
    kinds.extend(
        [LegacyEndpoint, IntegratedEndpoint, EventCollector].map(|port_type| FunctionSpec { port_type, ..rich() }),
    );
    kinds.push(FunctionSpec { port_type: Conventional, af_flr: true, ..rich() });
    kinds.push(FunctionSpec { no_intx_disable: true, no_power_management: true, ..nvme() });
    kinds.push(FunctionSpec::host_bridge());
    kinds
}

#[test]
fn bars_size_as_drivers_size_them() {
    let mut f = Function::new(rich());
    let size = |f: &mut Function, offset: u16| {
        let before = f.read(offset, 4);
        f.write(offset, 4, !0);
        let mask = f.read(offset, 4);
        f.write(offset, 4, before);
        mask
    };
    let sizes: Vec<u32> = (0..6).map(|i| size(&mut f, cap::BAR0 + 4 * i)).collect();
    assert_eq!(sizes, [0xfffe_000c, 0xffff_ffff, 0xffff_ffe1, 0xffff_c000, 0xffff_f004, 0xffff_ffff]);
    assert_eq!(size(&mut f, cap::ROM), 0xffff_e001);
    assert_eq!(f.read(cap::BAR0, 4), 0xc);
    // A BAR larger than 4 GiB has its mask in the upper half.
    let large = bar(1 << 38, BarKind::Memory64 { prefetchable: true });
    let mut f = Function::new(FunctionSpec { bars: [large, None, None, None, None, None], ..rich() });
    assert_eq!((size(&mut f, 0x10), size(&mut f, 0x14)), (0xc, 0xffff_ffc0));
    let mut none = Function::new(FunctionSpec { port_type: PortType::Conventional, ..FunctionSpec::default() });
    assert!((0..6).all(|i| size(&mut none, cap::BAR0 + 4 * i) == 0));
    assert_eq!(size(&mut none, cap::ROM), 0);
}

#[test]
fn capabilities_stand_where_devices_have_them() {
    let f = Function::new(rich());
    let standard: Vec<_> = f.capabilities().map(|(id, at, _)| (id, at)).collect();
    assert_eq!(standard, [(1, 0x40), (5, 0x50), (0x10, 0x70), (0x11, 0xb0), (3, 0xc0), (9, 0xd0)]);
    let extended: Vec<_> = f.extended_capabilities().map(|(id, at, _)| (id, at)).collect();
    let expected =
        [(1, 0x100), (3, 0x148), (0xe, 0x158), (0xd, 0x160), (0x10, 0x170), (0xf, 0x1b0), (0x13, 0x1b8), (0x1b, 0x1c8)];
    assert_eq!(extended, expected);
    assert_eq!(f.capability(cap::MSIX), Some(0xb0));
    assert_eq!(f.capability(cap::AF), None);
    assert_eq!(f.extended_capability(cap::EXT_PASID), Some(0x1c8));
    assert_eq!((f.read(0xb0, 4), f.read(0xb4, 4), f.read(0xb8, 4)), (0x000f_c011, 3, 0x2003));
    // The first extended capability is at 100, whichever it is.
    let f = Function::new(FunctionSpec { aer: false, serial: Some(1), ..nvme() });
    assert_eq!(f.extended_capability(cap::EXT_DSN), Some(0x100));
}

#[test]
fn chains_are_well_formed() {
    for spec in kinds() {
        let kind = spec.port_type;
        let f = Function::checked(spec).unwrap();
        let mut chain = Vec::new();
        let mut at = f.read(0x34, 1) as u16;
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4) && chain.len() < 48, "{kind:?}: {at:#x}");
            chain.push((f.read(at, 1) as u8, at));
            at = f.read(at + 1, 1) as u16;
        }
        assert_eq!(f.read(cap::STATUS, 2) & 0x10 != 0, !chain.is_empty(), "{kind:?}");
        assert_eq!(chain, f.capabilities().map(|(id, at, _)| (id, at)).collect::<Vec<_>>(), "{kind:?}");
        let mut extended = Vec::new();
        let mut at = 0x100;
        while f.size() == 4096 && at != 0 && f.read(at, 4) != 0 {
            assert!(at >= 0x100 && at.is_multiple_of(4) && extended.len() < 64, "{kind:?}: {at:#x}");
            extended.push((f.read(at, 2) as u16, at));
            at = (f.read(at, 4) >> 20) as u16;
        }
        assert_eq!(extended, f.extended_capabilities().map(|(id, at, _)| (id, at)).collect::<Vec<_>>(), "{kind:?}");
        // No two overlap.
        let mut spans: Vec<(u16, u16)> = f.capabilities().map(|(_, at, len)| (at, at + len)).collect();
        spans.extend(f.extended_capabilities().map(|(_, at, len)| (at, at + len)));
        spans.sort_unstable();
        assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0), "{kind:?}");
    }
}

#[test]
fn command_bits_have_effects() {
    let mut f = Function::new(rich());
    assert_eq!(f.write(cap::COMMAND, 2, 6), [Effect::Memory(true), Effect::BusMaster(true)]);
    assert_eq!(f.write(cap::COMMAND, 2, 6), []);
    assert_eq!(
        f.write(cap::COMMAND, 2, 0x403),
        [Effect::Io(true), Effect::BusMaster(false), Effect::IntxDisable(true)],
    );
    assert_eq!(f.write(cap::COMMAND, 1, 0), [Effect::Io(false), Effect::Memory(false)]);
    assert_eq!(f.command(), 0x400);
    // Only what is there: no I/O BAR, no Interrupt Disable.
    let mut f = Function::new(FunctionSpec { no_intx_disable: true, ..nvme() });
    f.write(cap::COMMAND, 2, 0xffff);
    assert_eq!(f.command(), 0x0146);
}

#[test]
fn status_is_cleared_by_ones() {
    let mut f = Function::new(nvme());
    f.set(cap::STATUS, 2, 0xf910);
    f.write(cap::STATUS, 2, 0x3000);
    assert_eq!(f.read(cap::STATUS, 2), 0xc910);
    f.write(cap::COMMAND, 4, 0xffff_0000);
    assert_eq!(f.read(cap::STATUS, 2), 0x0010);
    f.set_interrupt_status(true);
    assert_eq!(f.read(cap::STATUS, 2), 0x0018);
    f.write(cap::STATUS, 2, 0xffff);
    assert_eq!(f.read(cap::STATUS, 2), 0x0018);
    f.set_interrupt_status(false);
    assert_eq!(f.read(cap::STATUS, 2), 0x0010);
}

#[test]
fn power_states() {
    let mut f = Function::new(FunctionSpec { no_soft_reset: false, ..nvme() });
    let pmcsr = f.capability(cap::PM).unwrap() + 4;
    f.write(cap::COMMAND, 2, 6);
    assert_eq!(f.write(pmcsr, 2, 3), [Effect::Power { from: 0, to: 3 }]);
    assert_eq!(f.write(pmcsr, 2, 1), [], "D1 is not there");
    assert_eq!(f.power_state(), 3);
    // Back without No_Soft_Reset the registers are lost.
    let effects = f.write(pmcsr, 2, 0);
    assert_eq!(effects, [Effect::Power { from: 3, to: 0 }, Effect::Memory(false), Effect::BusMaster(false)]);
    let mut kept = Function::new(nvme());
    kept.write(cap::COMMAND, 2, 6);
    kept.write(pmcsr, 2, 3);
    assert_eq!(kept.write(pmcsr, 2, 0), [Effect::Power { from: 3, to: 0 }]);
    assert_eq!(kept.command(), 6);
    assert_eq!(kept.read(pmcsr, 2), 8);
}

#[test]
fn function_level_resets() {
    let mut f = Function::new(rich());
    let control = f.capability(cap::EXPRESS).unwrap() + 8;
    f.write(cap::COMMAND, 2, 4);
    f.write(cap::BAR0, 4, 0xfff0_0000);
    let aer = f.extended_capability(cap::EXT_AER).unwrap();
    f.set(aer + 4, 4, 0x1000);
    f.write(aer + 0xc, 4, 0);
    let effects = f.write(control, 2, 0x8000);
    assert_eq!(effects, [Effect::FunctionLevelReset, Effect::BusMaster(false)]);
    assert_eq!((f.command(), f.read(cap::BAR0, 4)), (0, 0xc));
    assert_eq!(f.read(control, 2), 0x2910, "the bit reads 0");
    // Error registers are sticky.
    assert_eq!((f.read(aer + 4, 4), f.read(aer + 0xc, 4)), (0x1000, 0));
    let mut none = Function::new(FunctionSpec { flr: false, ..rich() });
    assert_eq!(none.write(control, 2, 0x8000), []);
    let conventional = FunctionSpec { port_type: PortType::Conventional, af_flr: true, ..nvme() };
    let mut f = Function::new(conventional);
    let af = f.capability(cap::AF).unwrap();
    assert_eq!(f.write(af + 4, 1, 1), [Effect::FunctionLevelReset]);
    assert_eq!(f.read(af + 4, 1), 0);
    assert_eq!(f.write(af + 4, 1, 0), []);
}

#[test]
fn interrupt_enables() {
    let mut f = Function::new(rich());
    let (msi, msix) = (f.capability(cap::MSI).unwrap(), f.capability(cap::MSIX).unwrap());
    assert_eq!(f.write(msi + 2, 2, 0xffff), [Effect::Msi(true)]);
    assert_eq!(f.read(msi + 2, 2), 0x01f7);
    f.write(msi + 16, 4, !0);
    assert_eq!(f.read(msi + 16, 4), 0xff, "eight messages");
    f.write(msi + 4, 4, !0);
    assert_eq!(f.read(msi + 4, 4), 0xffff_fffc);
    assert_eq!(f.write(msix + 2, 2, 0xc000), [Effect::Msix { enable: true, mask: true }]);
    assert_eq!(f.write(msix + 3, 1, 0x80), [Effect::Msix { enable: true, mask: false }]);
    assert_eq!(f.read(msix + 2, 2), 0x800f);
}

#[test]
fn address_services() {
    let mut f = Function::new(rich());
    let at = |f: &Function, id| f.extended_capability(id).unwrap();
    let (ats, pri, pasid) = (at(&f, cap::EXT_ATS), at(&f, cap::EXT_PRI), at(&f, cap::EXT_PASID));
    assert_eq!(f.write(ats + 6, 2, 0x8003), [Effect::Ats(true)]);
    assert_eq!(f.write(pasid + 6, 2, 1), [Effect::Pasid(true)]);
    assert_eq!(f.read(pasid + 4, 2), 0x1406);
    f.write(pri + 12, 4, 32);
    assert_eq!(f.write(pri + 4, 2, 2), [Effect::PageRequestReset]);
    assert_eq!(f.write(pri + 4, 2, 1), [Effect::PageRequests(true)]);
    assert_eq!(f.write(pri + 4, 2, 3), [], "no reset while it is on");
    assert_eq!((f.read(pri + 4, 2), f.read(pri + 6, 2), f.read(pri + 8, 4)), (1, 0x8100, 512));
    f.set(pri + 6, 2, 0x8103);
    f.write(pri + 6, 2, 1);
    assert_eq!(f.read(pri + 6, 2), 0x8102);
    f.reset();
    assert_eq!((f.read(pri + 4, 2), f.read(pri + 6, 2)), (0, 0x8100));
}

/// ERR-051, ERR-052, ERR-058: which errors a function has, and their severity.
#[test]
fn error_registers() {
    let mut f = Function::new(FunctionSpec::port(PortType::RootPort));
    let aer = f.extended_capability(cap::EXT_AER).unwrap();
    assert_eq!(f.read(aer + 0xc, 4), 0x0046_2030);
    f.set(aer + 4, 4, !0);
    f.write(aer + 4, 4, 0x0000_4000);
    assert_eq!(f.read(aer + 4, 4), 0xffff_bfff);
    for (register, bits) in [(0x08, 0x07ff_f030), (0x0c, 0x07ff_f030), (0x14, 0xf1c1), (0x18, 0x01e0), (0x2c, 7)] {
        f.write(aer + register, 4, !0);
        assert_eq!(f.read(aer + register, 4), bits, "{register:#x}");
    }
    assert_eq!(f.write(cap::BRIDGE_CONTROL, 2, 0x40), [Effect::SecondaryBusReset(true)]);
    assert_eq!(f.write(cap::BRIDGE_CONTROL, 2, 0), [Effect::SecondaryBusReset(false)]);
}

#[test]
fn vital_product_data() {
    let spec = rich();
    let mut f = Function::new(spec.clone());
    let vpd = f.capability(cap::VPD).unwrap();
    let mut image = Vec::new();
    for address in (0..spec.vpd.len() as u32).step_by(4) {
        f.write(vpd + 2, 2, address);
        assert_eq!(f.read(vpd + 2, 2), address | 0x8000);
        image.extend(f.read(vpd + 4, 4).to_le_bytes());
    }
    assert_eq!(image[..spec.vpd.len()], spec.vpd);
    assert_eq!((image[0], &image[3..15]), (0x82, &b"Test adapter"[..]));
    let sum = image[..spec.vpd.len() - 1].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum, 0);
    f.write(vpd + 2, 2, 0x8004);
    assert_eq!(f.read(vpd + 2, 2), 0x0004, "a write is done at once");
}

#[test]
fn descriptions_that_cannot_be() {
    let check = |change: fn(&mut FunctionSpec)| {
        let mut spec = nvme();
        change(&mut spec);
        // Building it anyway does not panic.
        let mut f = Function::new(spec.clone());
        for offset in (0..4096).step_by(4) {
            f.write(offset, 4, !0);
        }
        Function::checked(spec).unwrap_err()
    };
    assert_eq!(check(|s| s.bars[0].as_mut().unwrap().size = 0), SpecError::BarSize(0, 0));
    assert_eq!(check(|s| s.bars[1] = s.bars[0].clone()), SpecError::BarUpperHalf(0));
    assert_eq!(check(|s| s.bars[5] = s.bars[0].clone()), SpecError::BarUpperHalf(5));
    assert_eq!(
        check(|s| s.bars[2] = bar(1 << 32, BarKind::Memory32 { prefetchable: false })),
        SpecError::BarSize(2, 1 << 32)
    );
    assert_eq!(check(|s| s.msi = Some(200)), SpecError::MsiMessages(200));
    assert_eq!(check(|s| s.msix.as_mut().unwrap().vectors = 0), SpecError::MsixVectors(0));
    assert!(matches!(
        check(|s| s.msix = Some(Msix { vectors: 2048, table: (0, 0), pba: (0, 0) })),
        SpecError::MsixPlace { .. }
    ));
    assert!(matches!(
        check(|s| s.msix = Some(Msix { vectors: 1, table: (9, 0), pba: (0, 0) })),
        SpecError::MsixPlace { .. }
    ));
    assert_eq!(check(|s| s.interrupt_pin = 5), SpecError::Pin(5));
    assert_eq!(check(|s| s.pasid = Some(21)), SpecError::PasidWidth(21));
    assert_eq!(check(|s| s.link.speed = 9), SpecError::Link(9, 4));
    assert_eq!(check(|s| s.vpd = vec![0; 0x8001]), SpecError::Vpd(0x8001));
    assert_eq!(check(|s| s.vendor_specific = vec![vec![0; 300]]), SpecError::NoRoom);
    assert_eq!(check(|s| s.vendor_specific = vec![vec![0; 40]; 4]), SpecError::NoRoom);
}

fn accesses() -> impl Strategy<Value = Vec<(u16, u8, u32)>> {
    let access = (0u16..=u16::MAX, prop::sample::select(vec![1u8, 2, 4]), any::<u32>());
    let near = (0u16..0x200, prop::sample::select(vec![1u8, 2, 4]), any::<u32>());
    prop::collection::vec(prop_oneof![1 => access, 8 => near], 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn writes_change_only_what_they_may(which in 0..kinds().len(), writes in accesses()) {
        let mut f = Function::checked(kinds()[which].clone()).unwrap();
        let power_on = f.bytes().to_vec();
        for (offset, len, value) in writes {
            let offset = offset & !(u16::from(len) - 1);
            let before = f.read(offset, 4);
            f.write(offset, len, value);
            let new = f.read(offset, 4);
            let w1c = (0..4).rev().fold(0, |all, i| all << 8 | u32::from(f.write_masks(offset.saturating_add(i)).1));
            prop_assert_eq!(new & !before & w1c, 0, "w1c bits at {:#x} set by a write", offset);
        }
        for (at, (new, first)) in f.bytes().iter().zip(&power_on).enumerate() {
            let (rw, w1c) = f.write_masks(at as u16);
            prop_assert_eq!((new ^ first) & !(rw | w1c), 0, "read-only bits at {:#x}", at);
        }
        f.reset();
        for (at, (new, first)) in f.bytes().iter().zip(&power_on).enumerate() {
            let (rw, w1c) = f.write_masks(at as u16);
            prop_assert!((new ^ first) & !(rw | w1c) == 0, "after reset at {:#x}", at);
        }
        prop_assert_eq!(f.command(), 0);
    }
}
