// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What comes back after a reset, and what does not.

use pci::{Effect, Function, FunctionSpec, PortType, cap};
use proptest::prelude::*;

use crate::common::{at, mixed, rich};

/// ERR-077: command, BARs, interrupts, PCI Express controls, error masks and
/// severities come back as they were.
#[test]
fn configuration_comes_back() {
    let mut f = Function::new(rich());
    let (msi, msix) = (f.capability(cap::MSI).unwrap(), f.capability(cap::MSIX).unwrap());
    let express = f.capability(cap::EXPRESS).unwrap();
    let aer = f.extended_capability(cap::EXT_AER).unwrap();
    let registers = [
        (cap::COMMAND, 2, 0x0406),
        (cap::BAR0, 4, 0x1000_000c),
        (cap::BAR0 + 4, 4, 0x38),
        (cap::BAR0 + 12, 4, 0xc000_0000),
        (cap::ROM, 4, 0xc010_0000),
        (0x0c, 1, 0x10),
        (0x3c, 1, 11),
        (msi + 4, 4, 0xfee0_0000),
        (msi + 12, 2, 0x4021),
        (msi + 16, 4, 0x0f),
        (msi + 2, 2, 0x01a7),
        (msix + 2, 2, 0xc00f),
        (express + 0x08, 2, 0x50ff),
        (express + 0x10, 2, 0x0043),
        (express + 0x28, 2, 0x0006),
        (aer + 0x08, 4, 0x0010_0000),
        (aer + 0x0c, 4, 0x0040_0010),
        (aer + 0x14, 4, 0x2001),
        (f.extended_capability(cap::EXT_ACS).unwrap() + 6, 2, 0x1d),
        (f.extended_capability(cap::EXT_PASID).unwrap() + 6, 2, 1),
        (f.extended_capability(cap::EXT_PRI).unwrap() + 12, 4, 64),
        (f.extended_capability(cap::EXT_PRI).unwrap() + 4, 2, 1),
        (f.extended_capability(cap::EXT_ATS).unwrap() + 6, 2, 0x8000),
    ];
    for (offset, len, value) in registers {
        f.write(offset, len, value);
        assert_eq!(f.read(offset, len), value, "{offset:#x}");
    }
    let saved = f.save();
    f.reset();
    assert_eq!((f.command(), f.read(msix + 2, 2), f.read(cap::BAR0, 4)), (0, 0x000f, 0xc));
    let effects = f.restore(&saved);
    for (offset, len, value) in registers {
        assert_eq!(f.read(offset, len), value, "{offset:#x}");
    }
    let expected = [
        Effect::Pasid(true),
        Effect::PageRequests(true),
        Effect::Ats(true),
        Effect::Memory(true),
        Effect::BusMaster(true),
        Effect::IntxDisable(true),
        Effect::Msi(true),
        Effect::Msix { enable: true, mask: true },
    ];
    assert_eq!(effects, expected);
}

/// ERR-058: error status does not come back; it is cleared.
#[test]
fn error_status_is_cleared() {
    let mut f = Function::new(rich());
    let aer = f.extended_capability(cap::EXT_AER).unwrap();
    f.set(aer + 0x04, 4, 0x4000);
    f.set(aer + 0x10, 4, 0x2000);
    let saved = f.save();
    f.reset();
    assert_eq!(f.read(aer + 0x04, 4), 0x4000, "sticky");
    f.restore(&saved);
    assert_eq!((f.read(aer + 0x04, 4), f.read(aer + 0x10, 4)), (0, 0));
    let root = Function::new(FunctionSpec::port(PortType::RootPort));
    let at = root.extended_capability(cap::EXT_AER).unwrap() + 0x2c;
    assert!(root.save().get(at).is_some(), "root command");
}

#[test]
fn the_command_can_be_told_to_come_back_otherwise() {
    let mut f = Function::new(rich());
    f.write(cap::COMMAND, 2, 0x0407);
    let mut saved = f.save();
    saved.set_command(0x0002);
    f.reset();
    f.restore(&saved);
    assert_eq!(f.command(), 0x0002);
    assert_eq!(saved.get(cap::COMMAND).map(|c| c & 0xffff), Some(2));
    assert_eq!(saved.get(0xff0), None);
}

#[test]
fn virtual_functions_stay_enabled_over_a_reset() {
    let mut fabric = mixed();
    fabric.enable_vfs(at("05:00.0"), 3).unwrap();
    let pf = fabric.function_mut(at("05:00.0")).unwrap();
    let before = pf.bytes().to_vec();
    let saved = pf.save();
    pf.reset();
    let sriov = pf.extended_capability(cap::EXT_SRIOV).unwrap();
    assert_eq!(pf.read(sriov + 8, 2) & 1, 0);
    let effects = pf.restore(&saved);
    assert!(effects.contains(&Effect::VfEnable(true)));
    assert_eq!(pf.bytes(), before);
}

/// What the fabric set (bus numbers, windows, multifunction bit, link) is as
/// before after a reset that saves and restores.
#[test]
fn every_function_of_a_fabric_comes_back_whole() {
    let mut fabric = mixed();
    let addresses: Vec<_> = fabric.functions().map(|(address, _)| address).collect();
    for address in addresses {
        let f = fabric.function_mut(address).unwrap();
        let before = f.bytes().to_vec();
        let saved = f.save();
        f.reset();
        f.restore(&saved);
        assert_eq!(f.bytes(), before, "{address}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn restoring_twice_is_restoring_once(writes in prop::collection::vec((0u16..0x200, any::<u32>()), 0..60)) {
        let mut f = Function::new(rich());
        for (offset, value) in writes {
            f.write(offset & !3, 4, value);
        }
        let saved = f.save();
        f.reset();
        f.restore(&saved);
        let once = f.bytes().to_vec();
        prop_assert_eq!(f.restore(&saved), []);
        prop_assert_eq!(f.bytes(), once);
        prop_assert_eq!(f.save(), saved);
    }
}
