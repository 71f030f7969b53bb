// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's IOMMU, as VT-d shows itself.

use std::sync::Arc;

use iommu::{DmaFault, Requester};
use iommufd::{DeviceProperties, LabIommu, ObjectId};
use uapi::Errno;
use uapi::iommufd::{GetHwInfo, HwptAlloc, HwptGetDirtyBitmap, HwptInvalidate, HwptSetDirtyTracking, IoasMap};
use uapi::iommufd_hw::{HW_INFO_VTD, HWPT_VTD_S1, HwInfoVtd, HwptVtdS1, INVALIDATE_VTD_S1, InvalidateVtdS1};

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
    let lesser = LabIommu { address_width: 57, dirty_tracking: false, pasid_bits: 0 }.registers();
    assert_eq!((lesser.0 >> 16 & 0x3f) + 1, 57);
    assert_eq!([45, 40].map(|bit| lesser.1 >> bit & 1), [0, 0], "what the lab does not have");
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

/// A device in front of a nesting parent, whose first pages hold a table.
struct Stage1 {
    lab: Lab,
    device: ObjectId,
    requester: Arc<Requester>,
    parent: u32,
}

/// Where the levels of the table lie in the parent, and so in memory.
const LEVELS: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;

impl Stage1 {
    fn new() -> Stage1 {
        let mut lab = Lab::new();
        let ioas = lab.ioas();
        let able = DeviceProperties { max_pasids: 16, dirty_tracking: true, ..DeviceProperties::default() };
        let (device, requester) = lab.bind(1, able);
        requester.set_bus_master(true);
        lab.map(ioas, MEMORY, 16 * PAGE, 0).unwrap();
        let parent = lab.hwpt(device.0, ioas, NEST_PARENT | DIRTY_TRACKING).unwrap();
        let stage1 = Stage1 { lab, device, requester, parent };
        for pair in LEVELS.windows(2) {
            stage1.store(pair[0], pair[1] | PRESENT | WRITE | USER);
        }
        (0..16).for_each(|page| stage1.lab.client.memory.store(MEMORY + page * PAGE + 8, &[page as u8]));
        stage1
    }

    fn store(&self, at: u64, entry: u64) {
        self.lab.client.memory.store(MEMORY + at, &entry.to_ne_bytes());
    }

    /// Page `page` of the device's addresses leads to a page of the parent.
    fn set(&self, page: u64, entry: u64) {
        self.store(LEVELS[3] + 8 * page, entry);
    }

    fn alloc(&mut self, config: HwptVtdS1) -> u32 {
        let data_uptr = self.lab.client.put(&config);
        let base = HwptAlloc { dev_id: self.device.0, pt_id: self.parent, flags: PASID, ..HwptAlloc::default() };
        let cmd = HwptAlloc { data_type: HWPT_VTD_S1, data_len: 24, data_uptr, ..base };
        self.lab.call(cmd).unwrap().out_hwpt_id
    }

    fn read(&self, pasid: u32, page: u64) -> Result<u8, DmaFault> {
        let mut byte = [0];
        let at = page * PAGE + 8;
        let session = || if pasid == 0 { self.requester.session() } else { self.requester.session_pasid(pasid) };
        session().read(at, &mut byte).map(|()| byte[0])
    }

    /// Entries handled, and the result.
    fn invalidate(
        &mut self,
        hwpt_id: u32,
        data_type: u32,
        entry_len: u32,
        entries: &[InvalidateVtdS1],
    ) -> (u32, Result<(), Errno>) {
        let data_uptr = self.lab.client.put(entries);
        let entry_num = entries.len() as u32;
        let cmd = HwptInvalidate { size: 0, hwpt_id, data_uptr, data_type, entry_len, entry_num, reserved: 0 };
        let (cmd, result) = self.lab.raw(cmd);
        (cmd.entry_num, result.map(|_| ()))
    }
}

const TABLE: HwptVtdS1 = HwptVtdS1 { flags: 0, pgtbl_addr: LEVELS[0], addr_width: 48, reserved: 0 };

/// IOMMUFD-8.3, IOMMUFD-8.6
#[test]
fn nested_hwpts() {
    let mut on = Stage1::new();
    let data_uptr = on.lab.client.put(&[TABLE, TABLE]);
    let base = HwptAlloc { dev_id: on.device.0, pt_id: on.parent, data_uptr, ..HwptAlloc::default() };
    for (data_type, data_len, errno) in
        [(2, 24, Errno::EOPNOTSUPP), (HWPT_VTD_S1, 20, Errno::EINVAL), (HWPT_VTD_S1, 32, Errno::EINVAL)]
    {
        assert_eq!(on.lab.call(HwptAlloc { data_type, data_len, ..base }).unwrap_err(), errno);
    }
    // What the registers do not offer is refused when it is attached.
    for config in
        [HwptVtdS1 { addr_width: 57, ..TABLE }, HwptVtdS1 { flags: 1, ..TABLE }, HwptVtdS1 { flags: 2, ..TABLE }]
    {
        let hwpt = on.alloc(config);
        for pasid in [0, 3] {
            assert_eq!(on.lab.attach(on.device, pasid, hwpt), Err(Errno::EINVAL));
        }
    }
    let hwpt = on.alloc(HwptVtdS1 { flags: 4, ..TABLE });
    assert_eq!(on.lab.attach(on.device, 0, hwpt), Ok(hwpt));
}

/// IOMMUFD-11.5: DMA goes through the program's table; what it has changed holds
/// when its invalidation returns.
#[test]
fn translation_in_two_stages() {
    let mut on = Stage1::new();
    on.set(0x100, 0x5000 | PRESENT | USER);
    on.set(0x101, 0x6000 | PRESENT | WRITE | USER);
    let hwpt = on.alloc(TABLE);
    on.lab.attach(on.device, 0, hwpt).unwrap();
    on.lab.attach(on.device, 3, hwpt).unwrap();
    for pasid in [0, 3] {
        assert_eq!((on.read(pasid, 0x100), on.read(pasid, 0x101)), (Ok(5), Ok(6)));
        assert!(on.read(pasid, 0x102).is_err(), "no entry");
        assert!(on.read(pasid, 5).is_err(), "an address of the parent's is none of the device's");
    }
    assert!(on.requester.session().write(0x100 * PAGE, &[1]).is_err(), "not for writing");
    assert!(on.requester.session().write(0x101 * PAGE, &[1]).is_ok());
    on.set(0x100, 0x7000 | PRESENT | USER);
    on.set(0x101, 0);
    let one = InvalidateVtdS1 { addr: 0x100 * PAGE, npages: 2, ..InvalidateVtdS1::default() };
    assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, 24, &[one]), (1, Ok(())));
    for pasid in [0, 3] {
        assert_eq!(on.read(pasid, 0x100), Ok(7));
        assert!(on.read(pasid, 0x101).is_err());
    }
    on.store(LEVELS[2], 0);
    let all = InvalidateVtdS1 { npages: u64::MAX, flags: 1, ..InvalidateVtdS1::default() };
    assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, 24, &[all]), (1, Ok(())));
    assert!(on.read(0, 0x100).is_err());
}

/// IOMMUFD-11.3, IOMMUFD-11.4, IOMMUFD-11.5
#[test]
fn entries_of_invalidations() {
    let mut on = Stage1::new();
    let hwpt = on.alloc(TABLE);
    let good = InvalidateVtdS1 { npages: 1, ..InvalidateVtdS1::default() };
    assert_eq!(on.invalidate(hwpt, 1, 24, &[]), (0, Err(Errno::EINVAL)));
    assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, 24, &[]), (0, Ok(())));
    for len in [20, 25] {
        assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, len, &[good]), (0, Err(Errno::EINVAL)));
    }
    for (bad, errno) in [
        (InvalidateVtdS1 { flags: 2, addr: 1, ..good }, Errno::EOPNOTSUPP),
        (InvalidateVtdS1 { reserved: 1, ..good }, Errno::EOPNOTSUPP),
        (InvalidateVtdS1 { addr: 1, ..good }, Errno::EINVAL),
        (InvalidateVtdS1 { addr: PAGE, npages: u64::MAX, ..good }, Errno::EINVAL),
    ] {
        assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, 24, &[good, bad, good]), (1, Err(errno)));
    }
    let odd = [InvalidateVtdS1 { npages: 0, ..good }, InvalidateVtdS1 { addr: 1 << 63, npages: 1 << 62, ..good }];
    assert_eq!(on.invalidate(hwpt, INVALIDATE_VTD_S1, 24, &odd), (2, Ok(())));
}

/// IOMMUFD-9.1: tracking of a nesting parent counts what goes through nested
/// domains, too, by the parent's addresses.
#[test]
fn tracking_behind_a_nested_domain() {
    let mut on = Stage1::new();
    on.set(0x101, 0x6000 | PRESENT | WRITE | USER);
    let hwpt = on.alloc(TABLE);
    on.lab.attach(on.device, 0, hwpt).unwrap();
    let set = HwptSetDirtyTracking { flags: 1, hwpt_id: on.parent, ..HwptSetDirtyTracking::default() };
    on.lab.call(set).unwrap();
    on.requester.session().write(0x101 * PAGE, &[1]).unwrap();
    let data = on.lab.client.room(64);
    let base = HwptGetDirtyBitmap { hwpt_id: on.parent, length: 16 * PAGE, page_size: PAGE, ..Default::default() };
    on.lab.call(HwptGetDirtyBitmap { data, ..base }).unwrap();
    assert_eq!(on.lab.client.get::<u16>(data) & 1 << 6, 1 << 6);
}
