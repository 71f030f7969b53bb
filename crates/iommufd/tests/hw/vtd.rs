// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's IOMMU, as VT-d shows itself.

use iommufd::{DeviceProperties, vtd_registers};
use uapi::Errno;
use uapi::iommufd::{GetHwInfo, HwptAlloc, IoasMap};
use uapi::iommufd_hw::{HW_INFO_VTD, HwInfoVtd};

use crate::lab::{DIRTY_TRACKING, Lab, MEMORY, NEST_PARENT, PAGE, PASID};

/// IOMMUFD-10.5, IOMMUFD-10.4: registers that say what the lab offers.
#[test]
fn its_information() {
    let mut lab = Lab::new();
    let able = DeviceProperties {
        dirty_tracking: true,
        max_pasids: 1 << 20,
        pasid_exec: true,
        pasid_priv: true,
        ats: true,
        ..DeviceProperties::default()
    };
    let (device, _) = lab.bind(1, able);
    let data_uptr = lab.client.room(24);
    let cmd = GetHwInfo { dev_id: device.0, data_len: 24, data_uptr, ..GetHwInfo::default() };
    let info = lab.call(cmd).unwrap();
    assert_eq!((info.data_type, info.data_len, info.out_max_pasid_log2), (HW_INFO_VTD, 24, 20));
    assert_eq!(info.out_capabilities, 1 | 2 | 4);
    let registers: HwInfoVtd = lab.client.get(data_uptr);
    assert_eq!((registers.cap_reg, registers.ecap_reg), vtd_registers(48));
    let (cap, ecap) = (registers.cap_reg, registers.ecap_reg);
    assert_eq!((cap >> 16 & 0x3f) + 1, 48, "bits of an address");
    assert_eq!(cap >> 34 & 0xf, 3, "pages of 2 MiB and 1 GiB");
    for bit in [26, 29, 40, 43, 45, 46, 48] {
        assert_eq!(ecap >> bit & 1, 1, "nesting, page requests, PASIDs, scalable mode with dirty bits: {bit}");
    }
    assert_eq!(ecap >> 35 & 0x1f, 19, "PASIDs of 20 bits");
    for bit in [31, 34] {
        assert_eq!(ecap >> bit & 1, 0, "no supervisor requests, no extended access bits: {bit}");
    }
    let other = GetHwInfo { flags: 1, data_type: 2, dev_id: device.0, ..GetHwInfo::default() };
    assert_eq!(lab.call(other).unwrap_err(), Errno::EOPNOTSUPP);
}

/// IOMMUFD-8.2, IOMMUFD-8.6: paging HWPTs take no data.
#[test]
fn paging_hwpts() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let (plain, _) = lab.bind(1, DeviceProperties::default());
    let data_uptr = lab.client.room(24);
    let cmd = HwptAlloc { dev_id: plain.0, pt_id: ioas, data_type: 1, data_len: 24, data_uptr, ..HwptAlloc::default() };
    assert_eq!(lab.call(cmd).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(lab.hwpt(plain.0, ioas, DIRTY_TRACKING), Err(Errno::EOPNOTSUPP));
    for flags in [0, PASID, NEST_PARENT | PASID] {
        assert!(lab.hwpt(plain.0, ioas, flags).is_ok());
    }
}

/// IOMMUFD-12.4: no mapping without rights; and none for reading only in a
/// nesting parent, which an erratum forbids (GET_HW_INFO says so).
#[test]
fn rights_of_mappings() {
    let mut lab = Lab::new();
    let (ioas, other) = (lab.ioas(), lab.ioas());
    let (device, _) = lab.bind(1, DeviceProperties::default());
    let read_only = |lab: &mut Lab, ioas_id, iova| {
        let cmd = IoasMap { flags: 1 | 4, ioas_id, user_va: MEMORY, length: PAGE, iova, ..IoasMap::default() };
        lab.call(cmd).map(|_| ())
    };
    let plain = lab.hwpt(device.0, ioas, 0).unwrap();
    assert_eq!(read_only(&mut lab, ioas, 0), Ok(()));
    assert_eq!(lab.hwpt(device.0, ioas, NEST_PARENT), Err(Errno::EINVAL));
    assert!(lab.hwpt(device.0, other, NEST_PARENT).is_ok());
    assert_eq!(read_only(&mut lab, other, 0), Err(Errno::EINVAL));
    assert_eq!(lab.map(other, MEMORY, PAGE, 0), Ok(()));
    assert_eq!(lab.destroy(plain), Ok(()));
}
