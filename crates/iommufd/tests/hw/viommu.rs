// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vIOMMUs, vDEVICEs, event queues and hardware queues.

use caller::FileId;
use iommufd::{DeviceProperties, ObjectId};
use uapi::Errno;
use uapi::iommufd::{HwQueueAlloc, HwptInvalidate, IoasUnmap, VdeviceAlloc, VeventqAlloc, ViommuAlloc};
use uapi::iommufd_test::{self as test, op};
use zerocopy::IntoBytes;

use crate::lab::{Lab, MEMORY, Mock, NEST_PARENT, PAGE};

/// A mock device with a vIOMMU.
struct Guest {
    lab: Lab,
    ioas: u32,
    mock: Mock,
    parent: u32,
    viommu: u32,
}

impl Guest {
    fn new() -> Guest {
        let mut lab = Lab::new();
        let ioas = lab.ioas();
        let mock = lab.mock(ioas).unwrap();
        let parent = lab.hwpt(mock.device, ioas, NEST_PARENT).unwrap();
        let viommu = viommu(&mut lab, (test::TYPE, mock.device, parent), (0, 0)).unwrap();
        Guest { lab, ioas, mock, parent, viommu }
    }

    fn vdevice(&mut self, dev_id: u32, virt_id: u64) -> Result<u32, Errno> {
        let cmd = VdeviceAlloc { viommu_id: self.viommu, dev_id, virt_id, ..VdeviceAlloc::default() };
        Ok(self.lab.call(cmd)?.out_vdevice_id)
    }

    fn nested(&mut self) -> u32 {
        self.lab.mock_hwpt(self.mock.device, self.viommu, 0, 0, &test::HwptData::default()).unwrap()
    }

    fn attach(&mut self, pt: u32) -> Result<(), Errno> {
        self.lab.test(op::MOCK_DOMAIN_REPLACE, self.mock.object, &[pt]).map(|_| ())
    }
}

fn viommu(lab: &mut Lab, what: (u32, u32, u32), data: (u32, u64)) -> Result<u32, Errno> {
    let (kind, dev_id, hwpt_id) = what;
    let (data_len, data_uptr) = data;
    let cmd = ViommuAlloc { kind, dev_id, hwpt_id, data_len, data_uptr, ..ViommuAlloc::default() };
    Ok(lab.call(cmd)?.out_viommu_id)
}

/// IOMMUFD-11.6, IOMMUFD-2.5, SELF-4.5
#[test]
fn making_a_viommu() {
    let mut guest = Guest::new();
    let Guest { ref mut lab, mock, parent, .. } = guest;
    let flags = ViommuAlloc { flags: 1, kind: test::TYPE, ..ViommuAlloc::default() };
    assert_eq!(lab.call(flags).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(viommu(lab, (0, 99, 99), (0, 0)), Err(Errno::EOPNOTSUPP));
    assert_eq!(viommu(lab, (1, 99, 99), (0, 0)), Err(Errno::ENOENT));
    assert_eq!(viommu(lab, (1, mock.device, 99), (0, 0)), Err(Errno::EOPNOTSUPP));
    assert_eq!(viommu(lab, (test::TYPE, mock.device, 99), (0, 0)), Err(Errno::ENOENT));
    assert_eq!(viommu(lab, (test::TYPE, mock.device, mock.hwpt), (0, 0)), Err(Errno::EINVAL), "no nesting parent");
    let reserved =
        ViommuAlloc { kind: test::TYPE, dev_id: mock.device, hwpt_id: parent, reserved: 1, ..Default::default() };
    let second = lab.call(reserved).unwrap().out_viommu_id;
    let (real, _) = lab.bind(1, DeviceProperties::default());
    assert_eq!(viommu(lab, (test::TYPE, real.0, parent), (0, 0)), Err(Errno::EOPNOTSUPP), "VT-d has none");
    assert_eq!(lab.destroy(parent), Err(Errno::EBUSY));
    assert_eq!((lab.destroy(second), lab.destroy(guest.viommu)), (Ok(()), Ok(())));
    assert_eq!(lab.destroy(parent), Ok(()));
}

/// IOMMUFD-2.12, IOMMUFD-11.6, SELF-4.5: pages that the program maps.
#[test]
fn pages_to_map() {
    let mut guest = Guest::new();
    let Guest { ref mut lab, mock, parent, .. } = guest;
    let what = (test::TYPE, mock.device, parent);
    let data = test::ViommuData { in_data: 0xbeef, ..test::ViommuData::default() };
    let at = lab.client.put(&data);
    for len in [7, 25] {
        assert_eq!(viommu(lab, what, (len, at)), Err(Errno::EINVAL));
    }
    let new = viommu(lab, what, (24, at)).unwrap();
    let data: test::ViommuData = lab.client.get(at);
    assert_eq!((data.out_data, data.out_mmap_length), (0xbeef, 2 * PAGE));
    let (offset, len) = (data.out_mmap_offset, 2 * PAGE);
    let map = |lab: &Lab, offset, len, shared, exec| lab.iommufd.mmap(lab.file, offset, len, shared, exec);
    for (offset, len) in [(0, len), (offset + PAGE, len), (offset, PAGE), (offset, 2 * len)] {
        assert_eq!(map(lab, offset, len, true, false), Err(Errno::ENXIO));
    }
    assert_eq!(map(lab, offset, len + 1, true, false), Err(Errno::EINVAL));
    assert_eq!(map(lab, offset, len, false, true), Err(Errno::EINVAL));
    assert_eq!(map(lab, offset, len, true, true), Err(Errno::EPERM));
    assert_eq!(map(lab, offset, len, true, false), Ok(()));
    let window = lab.iommufd.device_file(lab.file).unwrap().window(((offset >> 40) - 1) as usize).unwrap();
    let mut first = [0; 4];
    vm_memory::Bytes::read_slice(&window.slice(), &mut first, 0).unwrap();
    assert_eq!(first, 0xbeefu32.to_ne_bytes());

    let another = lab.client.put(&test::ViommuData::default());
    viommu(lab, what, (24, another)).unwrap();
    assert_ne!(lab.client.get::<test::ViommuData>(another).out_mmap_offset, offset);
    lab.client.mapped.borrow_mut().insert(lab.file);
    assert_eq!(lab.destroy(new), Err(Errno::EBUSY), "while it is mapped");
    lab.client.mapped.borrow_mut().clear();
    assert_eq!(lab.destroy(new), Ok(()));
    assert_eq!(map(lab, offset, len, true, false), Err(Errno::ENXIO));
}

/// IOMMUFD-11.7
#[test]
fn making_a_vdevice() {
    let mut guest = Guest::new();
    let mock = guest.mock;
    let second = guest.lab.mock(guest.ioas).unwrap();
    let (real, _) = guest.lab.bind(1, DeviceProperties::default());
    let bad = VdeviceAlloc { viommu_id: guest.parent, dev_id: 99, ..VdeviceAlloc::default() };
    assert_eq!(guest.lab.call(bad).unwrap_err(), Errno::ENOENT);
    assert_eq!(guest.vdevice(99, 0x99), Err(Errno::ENOENT));
    assert_eq!(guest.vdevice(real.0, 0x99), Err(Errno::EINVAL), "behind another IOMMU");
    let vdevice = guest.vdevice(mock.device, 0x99).unwrap();
    assert_eq!(guest.vdevice(mock.device, 0x88), Err(Errno::EEXIST), "one a device");
    assert_eq!(guest.vdevice(second.device, 0x99), Err(Errno::EEXIST), "the number is taken");
    assert_eq!(guest.lab.destroy(guest.viommu), Err(Errno::EBUSY), "2.5");
    assert_eq!(guest.lab.destroy(vdevice), Ok(()));
    assert!(guest.vdevice(second.device, 0x99).is_ok());
}

/// IOMMUFD-2.8, SELF-6.14: a vDEVICE goes with its device, its id stays taken.
#[test]
fn a_tombstone() {
    let mut guest = Guest::new();
    let vdevice = guest.vdevice(guest.mock.device, 0x99).unwrap();
    guest.lab.destroy(guest.mock.object).unwrap();
    assert_eq!(guest.lab.destroy(vdevice), Err(Errno::ENOENT));
    assert_eq!(guest.lab.destroy(guest.viommu), Ok(()), "nothing holds it");
    let ids: Vec<u32> = (0..8).map(|_| guest.lab.ioas()).collect();
    assert!(!ids.contains(&vdevice), "{ids:?}");
}

/// IOMMUFD-11.8, IOMMUFD-8.4, SELF-4.5
#[test]
fn nested_hwpts_of_a_viommu() {
    let mut guest = Guest::new();
    let (real, _) = guest.lab.bind(1, DeviceProperties::default());
    let data = test::HwptData::default();
    assert_eq!(guest.lab.mock_hwpt(real.0, guest.viommu, 0, 0, &data), Err(Errno::EINVAL), "another IOMMU");
    assert_eq!(guest.lab.mock_hwpt(guest.mock.device, guest.viommu, 2, 0, &data), Err(Errno::EOPNOTSUPP));
    assert_eq!(guest.lab.hwpt(guest.mock.device, guest.viommu, 0), Err(Errno::EOPNOTSUPP), "no data");
    let nested = guest.nested();
    assert_eq!(guest.lab.destroy(guest.viommu), Err(Errno::EBUSY), "2.5");
    assert_eq!(guest.attach(nested), Err(Errno::ENOENT), "no vDEVICE");
    guest.vdevice(guest.mock.device, 0x99).unwrap();
    assert_eq!(guest.attach(nested), Ok(()));
    assert_eq!(guest.attach(guest.ioas), Ok(()));
    assert_eq!(guest.lab.destroy(nested), Ok(()));
}

/// IOMMUFD-11.2, IOMMUFD-11.4, SELF-4.6, SELF-3.16
#[test]
fn a_viommu_s_invalidations() {
    let mut guest = Guest::new();
    let device = guest.mock.device;
    let invalidate = |guest: &mut Guest, data_type, entries: &[[u32; 3]], entry_len| {
        let data_uptr = guest.lab.client.put(entries);
        let (hwpt_id, entry_num) = (guest.viommu, entries.len() as u32);
        let cmd = HwptInvalidate { size: 0, hwpt_id, data_uptr, data_type, entry_len, entry_num, reserved: 0 };
        let (cmd, result) = guest.lab.raw(cmd);
        (cmd.entry_num, result.map(|_| ()))
    };
    let cache = |guest: &mut Guest| {
        let default = test::DEVICE_CACHE_DEFAULT;
        [0, 1, 2, 3]
            .map(|n| [0, default].into_iter().find(|v| guest.lab.test(op::DEV_CHECK_CACHE, device, &[n, *v]).is_ok()))
    };
    let old = Some(test::DEVICE_CACHE_DEFAULT);
    assert_eq!(cache(&mut guest), [old; 4]);
    assert_eq!(guest.lab.test(op::DEV_CHECK_CACHE, device, &[4, 0]).unwrap_err(), Errno::EINVAL);
    assert_eq!(invalidate(&mut guest, test::TYPE, &[[0, 0x99, 0]], 12), (0, Err(Errno::EINVAL)), "no such device");
    guest.vdevice(device, 0x99).unwrap();
    assert_eq!(invalidate(&mut guest, test::TYPE, &[], 12), (0, Ok(())));
    assert_eq!(invalidate(&mut guest, 1, &[], 12), (0, Err(Errno::EINVAL)), "a wrong type, even of none");
    assert_eq!(invalidate(&mut guest, test::TYPE, &[[2, 9, 9]], 12), (0, Err(Errno::EOPNOTSUPP)));
    assert_eq!(invalidate(&mut guest, test::TYPE, &[[0, 0x99, 4]], 12), (0, Err(Errno::EINVAL)));
    let stops = invalidate(&mut guest, test::TYPE, &[[0, 0x99, 1], [0, 0x98, 2]], 12);
    assert_eq!(stops, (1, Err(Errno::EINVAL)));
    assert_eq!(cache(&mut guest), [old, Some(0), old, old]);
    assert_eq!(invalidate(&mut guest, test::TYPE, &[[1, 0x99, 0]], 12), (1, Ok(())));
    assert_eq!(cache(&mut guest), [Some(0); 4]);
}

fn veventq(guest: &mut Guest, kind: u32, veventq_depth: u32) -> Result<(u32, FileId), Errno> {
    let base = VeventqAlloc { viommu_id: guest.viommu, ..VeventqAlloc::default() };
    let cmd = guest.lab.call(VeventqAlloc { kind, veventq_depth, ..base })?;
    Ok((cmd.out_veventq_id, guest.lab.file_of(cmd.out_veventq_fd)))
}

/// IOMMUFD-11.9, SELF-4.7
#[test]
fn making_an_event_queue() {
    let mut guest = Guest::new();
    let bad = VeventqAlloc { flags: 1, kind: test::VEVENTQ, ..VeventqAlloc::default() };
    assert_eq!(guest.lab.call(bad).unwrap_err(), Errno::EOPNOTSUPP);
    let bad = VeventqAlloc { reserved: 1, kind: test::VEVENTQ, ..VeventqAlloc::default() };
    assert_eq!(guest.lab.call(bad).unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(veventq(&mut guest, 0, 0), Err(Errno::EOPNOTSUPP));
    for depth in [0, (1 << 19) + 1] {
        assert_eq!(veventq(&mut guest, test::VEVENTQ, depth), Err(Errno::EINVAL));
    }
    let other = VeventqAlloc { viommu_id: 99, kind: test::VEVENTQ, veventq_depth: 1, ..VeventqAlloc::default() };
    assert_eq!(guest.lab.call(other).unwrap_err(), Errno::ENOENT);
    let (queue, file) = veventq(&mut guest, test::VEVENTQ, 1 << 19).unwrap();
    assert_eq!(veventq(&mut guest, test::VEVENTQ, 1), Err(Errno::EEXIST));
    assert_eq!((guest.lab.destroy(queue), guest.lab.destroy(guest.viommu)), (Err(Errno::EBUSY), Err(Errno::EBUSY)));
    guest.lab.iommufd.release(file);
    assert_eq!(guest.lab.destroy(queue), Ok(()));
    assert!(veventq(&mut guest, test::VEVENTQ, 1).is_ok());
}

/// IOMMUFD-11.10, IOMMUFD-11.11, SELF-6.13, SELF-3.17
#[test]
fn reading_events() {
    let mut guest = Guest::new();
    let device = guest.mock.device;
    let trigger = |guest: &mut Guest| guest.lab.test(op::TRIGGER_VEVENT, 0, &[device]).map(|_| ());
    assert_eq!(trigger(&mut guest), Err(Errno::ENOENT), "no nested HWPT of a vIOMMU");
    guest.vdevice(device, 0x99).unwrap();
    let nested = guest.nested();
    guest.attach(nested).unwrap();
    assert_eq!(trigger(&mut guest), Err(Errno::EOPNOTSUPP), "no queue");
    let (_, file) = veventq(&mut guest, test::VEVENTQ, 2).unwrap();
    for len in [0, 7] {
        assert_eq!(guest.lab.read(file, len), Err(Errno::EINVAL), "even when it is empty");
    }
    assert_eq!(guest.lab.read(file, 64), Ok(vec![]));
    assert!(!guest.lab.is_readable(file));
    assert_eq!(guest.lab.write(file, &[0; 8]), Err(Errno::EINVAL));
    trigger(&mut guest).unwrap();
    assert!(guest.lab.is_readable(file));
    assert_eq!(guest.lab.read(file, 8), Err(Errno::EINVAL), "the first does not fit");
    let offset = guest.lab.iommufd.read(file, 8, 0, 64, &guest.lab.client);
    assert_eq!(offset, Err(Errno::ESPIPE));
    trigger(&mut guest).unwrap();
    assert_eq!(guest.lab.read(file, 20), Ok([0u32, 0, 0x99].as_bytes().to_vec()), "a short count");
    trigger(&mut guest).unwrap();
    trigger(&mut guest).unwrap();
    let lost = [0u32, 1, 0x99, 0, 2, 0x99, 1, 3];
    assert_eq!(guest.lab.read(file, 64), Ok(lost.as_bytes().to_vec()), "two events, and that one was lost");
    assert!(!guest.lab.is_readable(file));
    for _ in 0..3 {
        trigger(&mut guest).unwrap();
    }
    guest.lab.read(file, 12).unwrap();
    trigger(&mut guest).unwrap();
    let gap = [0u32, 5, 0x99, 0, 7, 0x99];
    assert_eq!(guest.lab.read(file, 64), Ok(gap.as_bytes().to_vec()), "then a gap tells");
}

fn hw_queue(guest: &mut Guest, kind: u32, index: u32, iova: u64, length: u64) -> Result<u32, Errno> {
    let base = HwQueueAlloc { viommu_id: guest.viommu, ..HwQueueAlloc::default() };
    let cmd = HwQueueAlloc { kind, index, nesting_parent_iova: iova, length, ..base };
    Ok(guest.lab.call(cmd)?.out_hw_queue_id)
}

/// IOMMUFD-11.12, IOMMUFD-2.5, IOMMUFD-5.21, SELF-4.7
#[test]
fn hardware_queues() {
    let mut guest = Guest::new();
    let (ioas, iova) = (guest.ioas, test::APERTURE_START);
    let flags = HwQueueAlloc { flags: 1, kind: test::TYPE, ..HwQueueAlloc::default() };
    assert_eq!(guest.lab.call(flags).unwrap_err(), Errno::EOPNOTSUPP);
    for (kind, index, iova, length, errno) in [
        (0, 0, 0, 0, Errno::EOPNOTSUPP),
        (1, 0, 0, 0, Errno::EINVAL),
        (1, 0, u64::MAX, 2, Errno::EOVERFLOW),
        (1, 0, 0, 1, Errno::EOPNOTSUPP),
        (test::TYPE, 0, iova, PAGE, Errno::ENOENT),
    ] {
        assert_eq!(hw_queue(&mut guest, kind, index, iova, length), Err(errno));
    }
    guest.lab.map(ioas, MEMORY, 2 * PAGE, iova).unwrap();
    guest.lab.map(ioas, MEMORY, PAGE, iova + 2 * PAGE).unwrap();
    let alloc = |guest: &mut Guest, index, at, length| hw_queue(guest, test::TYPE, index, iova + at, length);
    assert_eq!(alloc(&mut guest, 2, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(alloc(&mut guest, 1, 0, PAGE), Err(Errno::EIO), "the one before is missing");
    assert_eq!(alloc(&mut guest, 0, PAGE, PAGE + 1), Err(Errno::EFAULT), "not in one piece");
    assert_eq!(alloc(&mut guest, 0, 2 * PAGE, PAGE + 1), Err(Errno::ENOENT), "not all of it mapped");
    let first = alloc(&mut guest, 0, 100, PAGE).unwrap();
    assert_eq!(alloc(&mut guest, 0, 0, PAGE), Err(Errno::EEXIST));
    let second = alloc(&mut guest, 1, 0, 2 * PAGE).unwrap();
    assert_eq!(guest.lab.destroy(first), Err(Errno::EBUSY), "the second depends on it");
    assert_eq!(guest.lab.destroy(guest.viommu), Err(Errno::EBUSY));
    let unmap = IoasUnmap { ioas_id: ioas, iova, length: 2 * PAGE, ..IoasUnmap::default() };
    assert_eq!(guest.lab.call(unmap).unwrap_err(), Errno::EBUSY);
    assert_eq!((guest.lab.destroy(second), guest.lab.destroy(first)), (Ok(()), Ok(())));
    assert_eq!(guest.lab.call(unmap).unwrap().length, 2 * PAGE);
    assert_eq!(guest.lab.destroy(guest.viommu), Ok(()));
}

/// IOMMUFD-2.3, IOMMUFD-2.7: objects of all kinds end with the context, whatever
/// hangs on what.
#[test]
fn closing_ends_everything() {
    let mut guest = Guest::new();
    guest.vdevice(guest.mock.device, 0x99).unwrap();
    let nested = guest.nested();
    guest.attach(nested).unwrap();
    let (_, file) = veventq(&mut guest, test::VEVENTQ, 2).unwrap();
    let (_, faults) = guest.lab.fault_queue();
    let access = guest.lab.test(op::CREATE_ACCESS, guest.ioas, &[0, 1]).unwrap().u32_at(16);
    let access = guest.lab.file_of(access);
    guest.lab.map(guest.ioas, MEMORY, PAGE, test::APERTURE_START).unwrap();
    hw_queue(&mut guest, test::TYPE, 0, test::APERTURE_START, PAGE).unwrap();
    guest.lab.iommufd.release(guest.lab.file);
    for file in [file, faults, access] {
        guest.lab.iommufd.release(file);
    }
    assert!(guest.lab.iommufd.context(guest.lab.file).is_none());
    guest.lab.file = guest.lab.files.allocate();
    guest.lab.iommufd.open(guest.lab.file, false);
    assert!(guest.lab.test_wide(op::MD_CHECK_REFS, 0, &[PAGE, MEMORY, 0]).is_ok());
    assert_eq!(guest.lab.ioas(), ObjectId(1).0);
}
