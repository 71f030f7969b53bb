// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtual functions: where they appear and what they are.

use pci::{Effect, Fabric, FabricBuilder, Function, FunctionSpec, PortType, VfError, cap};

use crate::common::{all, at, nvme, rich};

fn fabric(spec: FunctionSpec) -> Fabric {
    let mut fabric = Fabric::default();
    fabric.plug_auto(at("01:00.0"), spec).unwrap();
    fabric
}

fn addresses(fabric: &mut Fabric, count: u16) -> Vec<pci::Address> {
    fabric.enable_vfs(at("01:00.0"), count).unwrap().into_iter().map(|(address, _)| address).collect()
}

#[test]
fn offset_and_stride_place_them() {
    let mut usual = fabric(rich());
    assert_eq!(addresses(&mut usual, 3), all(&["01:01.0", "01:01.1", "01:01.2"]));
    let sparse = FunctionSpec { vf_offset: 0x80, vf_stride: 2, ..rich() };
    assert_eq!(addresses(&mut fabric(sparse), 3), all(&["01:10.0", "01:10.2", "01:10.4"]));
    assert_eq!(usual.virtual_functions(at("01:00.0")).len(), 3);
    assert_eq!(usual.physical_function(at("01:01.1")), Some(at("01:00.0")));
    assert_eq!(usual.port_type(at("01:01.1")), Some(PortType::VirtualFunction));
    assert_eq!(usual.parent(at("01:01.1")), usual.parent(at("01:00.0")));
    assert_eq!(usual.enumeration().last(), Some(&at("01:01.2")));
}

#[test]
fn two_physical_functions_of_a_device_keep_apart() {
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("01:00.0"), rich()).plug_auto(at("01:00.1"), rich());
    let mut fabric = builder.build().unwrap();
    fabric.enable_vfs(at("01:00.0"), 7).unwrap();
    fabric.enable_vfs(at("01:00.1"), 7).unwrap();
    assert_eq!(fabric.functions().filter(|(_, f)| f.spec().port_type == PortType::VirtualFunction).count(), 14);
}

#[test]
fn they_go_on_to_the_next_bus() {
    let mut fabric = fabric(FunctionSpec { total_vfs: 300, ..rich() });
    let port = fabric.parent(at("01:00.0")).unwrap();
    assert_eq!(fabric.bus(0, 1).unwrap().subordinate, 2);
    assert_eq!(fabric.function(port).unwrap().read(0x1a, 1), 2);
    let vfs = addresses(&mut fabric, 300);
    assert_eq!(vfs[247..249], all(&["01:1f.7", "02:00.0"]));
    assert_eq!(fabric.bus(0, 2).unwrap().bridge, None);
    assert_eq!(fabric.parent(at("02:00.0")), Some(port));
    assert_eq!(fabric.path(at("02:00.0")), [port, at("02:00.0")]);
    fabric.disable_vfs(at("01:00.0"));
    assert_eq!((fabric.bus(0, 2), fabric.functions().count()), (None, 2));
}

#[test]
fn their_registers_are_hardware_and_their_ids_sysfs() {
    let mut fabric = fabric(rich());
    let (vf, spec) = fabric.enable_vfs(at("01:00.0"), 1).unwrap().remove(0);
    let function = fabric.function_mut(vf).unwrap();
    assert_eq!(function.read(0, 4), 0xffff_ffff);
    assert_eq!((spec.vendor, spec.device), (0x8086, 0x0b25));
    assert_eq!(function.spec(), &spec);
    assert_eq!(function.write(cap::COMMAND, 2, 0xffff), [Effect::BusMaster(true)]);
    for bar in 0..6 {
        function.write(cap::BAR0 + 4 * bar, 4, !0);
        assert_eq!(function.read(cap::BAR0 + 4 * bar, 4), 0);
    }
    assert_eq!(function.read(0x3d, 1), 0);
    assert!(function.capability(cap::MSIX).is_some());
    assert_eq!(function.extended_capability(cap::EXT_SRIOV), None);
    assert_eq!(function.extended_capability(cap::EXT_PRI), None);
    // A template of the model's own.
    let vf = FunctionSpec { device: 0x9999, class: 0x02_00_00, ..nvme() };
    let own = FunctionSpec { vf: Some(Box::new(vf)), ..rich() };
    let pf = Function::new(own.clone());
    assert_eq!(pf.read(pf.extended_capability(cap::EXT_SRIOV).unwrap() + 0x1a, 2), 0x9999);
    assert_eq!((own.virtual_function().vendor, own.virtual_function().device), (0x8086, 0x9999));
}

#[test]
fn the_capability_tells_and_holds() {
    let mut fabric = fabric(rich());
    let pf = at("01:00.0");
    let sriov = fabric.function(pf).unwrap().extended_capability(cap::EXT_SRIOV).unwrap();
    let read = |fabric: &Fabric, offset| fabric.function(pf).unwrap().read(sriov + offset, 2);
    assert_eq!([0x0c, 0x0e, 0x10, 0x14, 0x16].map(|o| read(&fabric, o)), [7, 7, 0, 8, 1]);
    fabric.enable_vfs(pf, 5).unwrap();
    assert_eq!((read(&fabric, 0x10), read(&fabric, 8) & 9), (5, 9));
    // Number and page size stand while VFs are enabled.
    let function = fabric.function_mut(pf).unwrap();
    function.write(sriov + 0x10, 2, 3);
    function.write(sriov + 0x20, 4, 2);
    assert_eq!((function.read(sriov + 0x10, 2), function.read(sriov + 0x20, 4)), (5, 1));
    assert_eq!(function.write(sriov + 8, 2, 0), [Effect::VfEnable(false), Effect::VfMemory(false)]);
    fabric.disable_vfs(pf);
    assert_eq!((read(&fabric, 0x10), read(&fabric, 8) & 9), (0, 0));
}

/// GRP-050: the errors behind those of `sriov_numvfs`.
#[test]
fn refusals() {
    let mut fabric = fabric(rich());
    let pf = at("01:00.0");
    assert_eq!(fabric.enable_vfs(pf, 8), Err(VfError::TooMany { wanted: 8, total: 7 }));
    assert_eq!(fabric.enable_vfs(pf, 0), Ok(Vec::new()));
    fabric.enable_vfs(pf, 1).unwrap();
    assert_eq!(fabric.enable_vfs(pf, 2), Err(VfError::Enabled(1)));
    assert_eq!(fabric.enable_vfs(at("00:01.0"), 1), Err(VfError::NotPhysical(at("00:01.0"))));
    assert_eq!(fabric.enable_vfs(at("77:01.0"), 1), Err(VfError::NotPhysical(at("77:01.0"))));
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("00:05.0"), rich()).plug_auto(at("00:06.0"), nvme());
    let mut crowded = builder.build().unwrap();
    assert_eq!(crowded.enable_vfs(at("00:05.0"), 1), Err(VfError::Place(at("00:06.0"))));
    assert_eq!(crowded.virtual_functions(at("00:05.0")), []);
}
