// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GET_INFO, GET_REGION_INFO, GET_IRQ_INFO: API-125 to API-146.

use uapi::Errno;
use uapi::vfio::InfoCapHeader;
use uapi::vfio::device::{GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, Info, IrqInfo, RegionInfo, irq_index, region_index};

use super::{Rig, VECTORS, spec};
use crate::Options;

/// API-125, API-126
#[test]
fn info_counts_regions_and_irqs() {
    let mut rig = Rig::new();
    let info = rig.call(GET_INFO, &Info { argsz: 24, cap_offset: 7, ..Info::default() }).unwrap();
    assert_eq!(info, Info { argsz: 24, flags: 3, num_regions: 9, num_irqs: 5, cap_offset: 0, pad: 0 });
    assert_eq!(rig.call(GET_INFO, &Info { argsz: 15, ..Info::default() }), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(GET_INFO, 8), Err(Errno::EFAULT));

    let spec = pci::FunctionSpec { flr: false, no_soft_reset: true, ..spec() };
    let mut lab = crate::testing::Lab::new(Options::default());
    super::plug(&mut lab, super::ADDRESS, spec.clone());
    // A second function on the bus: now nothing resets the first alone.
    super::plug(&mut lab, pci::Address::new(0, 1, 0, 1), spec);
    let number = lab.board.fabric.group(super::ADDRESS).unwrap();
    let (_, group) = lab.container_with(number, 3);
    let file = lab.get_device_fd(group, "0000:01:00.0").unwrap();
    let arg = lab.client.put(&Info { argsz: 16, ..Info::default() });
    assert_eq!(lab.ioctl(file, GET_INFO, arg), Ok(0));
    assert_eq!(lab.client.get::<Info>(arg).flags, 2, "no reset method was proven");
}

/// API-128
#[test]
fn info_writes_what_was_provided() {
    let mut rig = Rig::new();
    for argsz in 16..28_u32 {
        let arg =
            rig.lab.client.put(&[argsz, 0x7777_7777, 0x7777_7777, 0x7777_7777, 0x7777_7777, 0x7777_7777, 0x7777_7777]);
        assert_eq!(rig.ioctl(GET_INFO, arg), Ok(0));
        let bytes = rig.lab.client.get_bytes(arg, 28);
        let untouched = bytes.iter().rev().take_while(|b| **b == 0x77).count();
        assert_eq!(untouched, 28 - argsz.min(24) as usize, "argsz {argsz}");
    }
}

/// API-127
#[test]
fn atomics_need_the_device_and_the_root_port() {
    let mut rig = Rig::new();
    let port = rig.lab.board.fabric.parent(super::ADDRESS).unwrap();
    let at = rig.cap(0x10) + 0x24;
    let old = rig.hw(at, 4);
    rig.function().set(at, 4, old | 0x180);
    let get = |rig: &mut Rig, argsz| {
        let arg = rig.lab.client.put(&Info { argsz, ..Info::default() });
        assert_eq!(rig.ioctl(GET_INFO, arg), Ok(0));
        (rig.lab.client.get::<Info>(arg), rig.lab.client.get_bytes(arg + 24, 16))
    };
    assert_eq!(get(&mut rig, 64).0.flags, 3, "the port completes none");
    let function = rig.lab.board.fabric.function_mut(port).unwrap();
    let at = function.capability(0x10).unwrap() + 0x24;
    let old = function.read(at, 4);
    function.set(at, 4, old | 0x300);
    let (info, capability) = get(&mut rig, 40);
    assert_eq!((info.flags, info.cap_offset, info.argsz), (0x83, 24, 40));
    assert_eq!(capability, [5, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    // API-005
    let (info, _) = get(&mut rig, 39);
    assert_eq!((info.flags, info.cap_offset, info.argsz), (0x83, 0, 40));
}

/// API-129, API-134, API-135, API-136, API-139
#[test]
fn regions_are_what_the_function_has() {
    let mut rig = Rig::new();
    let expected = [
        (0, 0x4000, 0xf),
        (1, 0, 0),
        (2, 32, 3),
        (3, 256, 3),
        (4, 0x10_0000, 7),
        (5, 0, 0),
        (6, 2048, 1),
        (7, 4096, 3),
    ];
    for (index, size, flags) in expected {
        let info = rig.region(index).unwrap();
        assert_eq!((info.index, info.size, info.flags), (index, size, flags), "region {index}");
        assert_eq!(info.offset, uapi::region::offset(0, index));
    }
    assert_eq!(rig.device_file().layout.mmap, [0x4000, 0, 0, 0, 0x10_0000, 0]);
    assert_eq!(rig.device_file().layout.base, rig.region(0).unwrap().offset);
}

/// API-136: only one that starts a page and has it for itself.
#[test]
fn small_bars_are_mapped_alone() {
    let memory = |size| Some(pci::Bar { size, kind: pci::BarKind::Memory32 { prefetchable: false }, mmap: true });
    let flags = |bars| {
        let spec = pci::FunctionSpec { bars, rom: vec![], msix: None, ..spec() };
        let mut rig = Rig::with(spec, Options::default());
        (0..3).map(|index| rig.region(index).unwrap().flags).collect::<Vec<u32>>()
    };
    assert_eq!(flags([memory(256), None, None, None, None, None]), [7, 0, 0]);
    assert_eq!(flags([memory(4096), memory(256), None, None, None, None]), [7, 7, 0]);
    assert_eq!(flags([memory(2048), memory(256), None, None, None, None]), [3, 3, 0]);
}

/// API-134
#[test]
fn conventional_function_has_256_bytes() {
    let port_type = pci::PortType::Conventional;
    let mut lab = crate::testing::Lab::new(Options::default());
    let spec = pci::FunctionSpec { port_type, flr: false, aer: false, acs: None, pasid: None, serial: None, ..spec() };
    let address = pci::Address::new(0, 0, 9, 0);
    super::plug(&mut lab, address, spec);
    let number = lab.board.fabric.group(address).unwrap();
    let (_, group) = lab.container_with(number, 3);
    let file = lab.get_device_fd(group, &address.to_string()).unwrap();
    let arg = lab.client.put(&RegionInfo { argsz: 32, index: 7, ..RegionInfo::default() });
    assert_eq!(lab.ioctl(file, GET_REGION_INFO, arg), Ok(0));
    assert_eq!(lab.client.get::<RegionInfo>(arg).size, 256);
    // API-143, API-146: there is no ERR interrupt.
    let arg = lab.client.put(&IrqInfo { argsz: 16, index: 3, ..IrqInfo::default() });
    assert_eq!(lab.ioctl(file, GET_IRQ_INFO, arg), Err(Errno::EINVAL));
}

/// API-131, API-133, API-140, API-142
#[test]
fn region_errors_write_nothing() {
    let mut rig = Rig::new();
    for (argsz, index) in [(31, 0), (32, 8), (32, 9), (32, u32::MAX)] {
        let info = RegionInfo { argsz, index, flags: 0x55, size: 0x55, offset: 0x55, cap_offset: 0x55 };
        let arg = rig.lab.client.put(&info);
        assert_eq!(rig.ioctl(GET_REGION_INFO, arg), Err(Errno::EINVAL), "{index}");
        assert_eq!(rig.lab.client.get::<RegionInfo>(arg), info);
    }
    assert_eq!(rig.ioctl(GET_REGION_INFO, 0), Err(Errno::EFAULT));
}

/// API-132, API-137, API-005
#[test]
fn bar_of_the_table_is_mappable_and_says_so() {
    let mut rig = Rig::new();
    let ask = |rig: &mut Rig, argsz, index| {
        let arg = rig.lab.client.put(&RegionInfo { argsz, index, cap_offset: 0x77, ..RegionInfo::default() });
        assert_eq!(rig.ioctl(GET_REGION_INFO, arg), Ok(0));
        (rig.lab.client.get::<RegionInfo>(arg), rig.lab.client.get::<InfoCapHeader>(arg + 32))
    };
    let (info, header) = ask(&mut rig, 32, 0);
    assert_eq!((info.argsz, info.cap_offset, info.flags), (40, 0, 0xf));
    assert_eq!(header, InfoCapHeader::default());
    let (info, header) = ask(&mut rig, 40, 0);
    assert_eq!((info.argsz, info.cap_offset), (40, 32));
    assert_eq!(header, InfoCapHeader { id: 3, version: 1, next: 0 });
    let (info, _) = ask(&mut rig, 40, region_index::CONFIG);
    assert_eq!((info.argsz, info.cap_offset), (40, 0x77), "echoed");
}

/// API-139
#[test]
fn rom_without_signature_is_not_there() {
    for rom in [vec![], vec![0; 4096], super::rom()[..0x50].to_vec()] {
        let mut rig = Rig::with(pci::FunctionSpec { rom: rom.clone(), ..spec() }, Options::default());
        let info = rig.region(6).unwrap();
        assert_eq!((info.size, info.flags), (0, 0), "{} bytes", rom.len());
    }
    // Memory is enabled for the look.
    let mut rig = Rig::new();
    rig.set_command(0);
    assert_eq!(rig.region(6).unwrap().size, 2048);
}

/// API-143, API-144, API-145, API-146
#[test]
fn irq_info() {
    let mut rig = Rig::new();
    for (index, flags, count) in [
        (irq_index::INTX, 7, 1),
        (irq_index::MSI, 9, 8),
        (irq_index::MSIX, 1, VECTORS),
        (irq_index::ERR, 9, 1),
        (irq_index::REQ, 9, 1),
    ] {
        let info = rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 16, index, ..IrqInfo::default() }).unwrap();
        assert_eq!(info, IrqInfo { argsz: 16, flags, index, count });
    }
    assert_eq!(rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 15, ..IrqInfo::default() }), Err(Errno::EINVAL));
    assert_eq!(rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 16, index: 5, ..IrqInfo::default() }), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(GET_IRQ_INFO, 0), Err(Errno::EFAULT));
}

/// API-146
#[test]
fn missing_interrupts_count_0() {
    let spec = pci::FunctionSpec { interrupt_pin: 0, msi: None, msix: None, ..spec() };
    let mut rig = Rig::with(spec, Options::default());
    for index in 0..3 {
        let info = rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 16, index, ..IrqInfo::default() }).unwrap();
        assert_eq!(info.count, 0);
    }
    assert_eq!(rig.region(0).unwrap().flags, 7, "no table, no capability");
}

/// API-178
#[test]
fn broken_pin_is_hidden() {
    let mut rig = Rig::with(pci::FunctionSpec { vendor: 0x8086, device: 0x1572, ..spec() }, Options::default());
    let info = rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 16, ..IrqInfo::default() }).unwrap();
    assert_eq!((info.count, rig.cfg(0x3d, 1)), (0, 0));
    assert_eq!(rig.hw(4, 2) & super::INTX_DISABLE, super::INTX_DISABLE, "masked for good");
}

/// API-122, API-120, API-105
#[test]
fn requests_for_other_files() {
    let mut rig = Rig::new();
    let zero = rig.lab.client.put(&[0_u32; 16]);
    for request in [0x3b72, 0x3b73, 0x3b77, 0x3b78, 0x3b79, 0x3b64, 0] {
        assert_eq!(rig.ioctl(request, zero), Err(Errno::ENOTTY), "{request:x}");
    }
    assert_eq!(rig.ioctl(0x3b76, zero), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(0x3b76, 0), Err(Errno::EFAULT));
}
