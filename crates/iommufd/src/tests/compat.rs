// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VFIO's calls on a context (iommufd-api.md, section 12).

use caller::{Capability, Reply};
use uapi::Errno;
use uapi::iommufd::{VfioIoas, vfio_ioas};
use uapi::vfio::container::{CHECK_EXTENSION, GET_API_VERSION, SET_IOMMU};
use uapi::vfio::type1::{DIRTY_PAGES, DmaMap, DmaUnmap, GET_INFO, Info, IovaRange, MAP_DMA, UNMAP_DMA};

use super::{PAGE, RAM, ROM, give_memory};
use crate::testing::{Lab, domain};
use crate::{ContextId, ObjectId};

const ALL: u32 = 2;

/// A lab whose VFIO calls work on an IOAS of this type.
fn lab(number: u64) -> (Lab, u32) {
    let mut lab = Lab::new();
    give_memory(&lab);
    let id = context(&lab);
    lab.iommufd.create_compat_ioas(id).unwrap();
    lab.ioctl(SET_IOMMU, number).unwrap();
    let ioas = lab.iommufd.compat_ioas(id).unwrap().0;
    (lab, ioas)
}

fn context(lab: &Lab) -> ContextId {
    lab.iommufd.context(lab.file).unwrap()
}

fn map(lab: &mut Lab, flags: u32, vaddr: u64, iova: u64, size: u64) -> Result<(), Errno> {
    let arg = lab.client.put(&DmaMap { argsz: 32, flags, vaddr, iova, size });
    lab.ioctl(MAP_DMA, arg).map(|_| ())
}

/// The result, and the size written back.
fn unmap(lab: &mut Lab, flags: u32, iova: u64, size: u64) -> (Result<(), Errno>, u64) {
    let arg = lab.client.put(&DmaUnmap { argsz: 24, flags, iova, size });
    let done = lab.ioctl(UNMAP_DMA, arg).map(|_| ());
    (done, lab.client.get::<DmaUnmap>(arg).size)
}

/// IOMMUFD-12.1, API-024, API-025
#[test]
fn extensions() {
    let mut lab = Lab::new();
    let id = context(&lab);
    let check = |lab: &mut Lab, number| lab.ioctl(CHECK_EXTENSION, number);
    assert_eq!(lab.ioctl(GET_API_VERSION, 0), Ok(Reply::Value(0)));
    assert_eq!(check(&mut lab, 4), Err(Errno::ENODEV));
    for (number, answer) in [(1, 1), (3, 1), (9, 1), (8, 1), (10, 0), (2, 0), (6, 0), (7, 0), (u64::MAX, 0)] {
        assert_eq!(check(&mut lab, number), Ok(Reply::Value(answer)), "{number}");
    }
    lab.iommufd.create_compat_ioas(id).unwrap();
    let ioas = lab.iommufd.compat_ioas(id).unwrap().0;
    assert_eq!(check(&mut lab, 4), Ok(Reply::Value(1)));
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(check(&mut lab, 4), Ok(Reply::Value(1)));
    let mut incoherent = domain();
    incoherent.coherent = false;
    lab.add_domain(1001, ioas, &incoherent).unwrap();
    assert_eq!(check(&mut lab, 4), Ok(Reply::Value(0)));
    assert_eq!(lab.iommufd.set_noiommu(id), Err(Errno::EINVAL));

    lab.file = lab.open(true);
    let id = context(&lab);
    lab.iommufd.set_noiommu(id).unwrap();
    assert_eq!(lab.iommufd.create_compat_ioas(id), Err(Errno::EINVAL));
    for (number, answer) in [(1, 0), (3, 0), (9, 0), (8, 1)] {
        assert_eq!(check(&mut lab, number), Ok(Reply::Value(answer)), "{number}");
    }
    assert_eq!(lab.ioctl(SET_IOMMU, 3), Err(Errno::EINVAL));
    assert_eq!(lab.ioctl(SET_IOMMU, 8), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().push(Capability::SysRawio);
    lab.ioctl(SET_IOMMU, 8).unwrap();
}

/// IOMMUFD-12.2, IOMMUFD-2.11
#[test]
fn choosing_the_ioas() {
    let mut lab = Lab::new();
    let call = |op, ioas_id| VfioIoas { op, ioas_id, ..VfioIoas::default() };
    assert_eq!(lab.run(VfioIoas { reserved: 1, ..call(9, 0) }), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(call(3, 0)), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(call(vfio_ioas::GET, 0)), Err(Errno::ENODEV));
    assert_eq!(lab.run(call(vfio_ioas::SET, 1)), Err(Errno::ENOENT));
    let (one, two) = (lab.ioas(), lab.ioas());
    for ioas in [one, two] {
        assert_eq!(lab.run(call(vfio_ioas::SET, ioas)).unwrap(), VfioIoas { size: 12, ..call(vfio_ioas::SET, ioas) });
        assert_eq!(lab.run(call(vfio_ioas::GET, 0)).unwrap().ioas_id, ioas);
    }
    let id = context(&lab);
    lab.iommufd.create_compat_ioas(id).unwrap();
    assert_eq!(lab.iommufd.compat_ioas(id), Ok(ObjectId(two)), "there is one");
    lab.run(call(vfio_ioas::CLEAR, 77)).unwrap();
    lab.run(call(vfio_ioas::CLEAR, 0)).unwrap();
    assert_eq!(lab.run(call(vfio_ioas::GET, 0)), Err(Errno::ENODEV));
    assert!(lab.context().ioas(two).is_ok(), "nothing is destroyed");
    lab.iommufd.create_compat_ioas(id).unwrap();
    assert_eq!(lab.iommufd.compat_ioas(id), Ok(ObjectId(3)));
}

/// IOMMUFD-12.3, SELF-6.3, API-026
#[test]
fn what_needs_an_ioas() {
    let mut lab = Lab::new();
    assert_eq!(lab.ioctl(SET_IOMMU, 7), Err(Errno::EINVAL));
    assert_eq!(lab.ioctl(SET_IOMMU, 8), Err(Errno::EINVAL));
    assert_eq!(lab.ioctl(SET_IOMMU, 1), Err(Errno::ENODEV));
    assert_eq!(lab.ioctl(SET_IOMMU, 3), Err(Errno::ENODEV));
    for request in [GET_INFO, MAP_DMA, UNMAP_DMA] {
        assert_eq!(lab.ioctl(request, 0), Err(Errno::EFAULT));
        let short = lab.client.put(&[1_u32, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lab.ioctl(request, short), Err(Errno::EINVAL));
        let good = lab.client.put(&[32_u32, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lab.ioctl(request, good), Err(Errno::ENODEV));
    }
    // IOMMUFD-12.8, API-033
    assert_eq!(lab.ioctl(DIRTY_PAGES, 0), Err(Errno::ENOTTY));
    assert_eq!(lab.ioctl(0x3b75, 0), Err(Errno::ENOTTY));
    let (mut lab, ioas) = self::lab(3);
    assert!(lab.context().ioas(ioas).unwrap().huge_pages());
    lab.ioctl(SET_IOMMU, 1).unwrap();
    assert!(!lab.context().ioas(ioas).unwrap().huge_pages());
    let (mut lab, ioas) = self::lab(3);
    map(&mut lab, 3, RAM, 0, PAGE).unwrap();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.ioctl(SET_IOMMU, 1), Err(Errno::EINVAL), "the errors of IOMMUFD-6.3");
}

/// IOMMUFD-12.4, API-027
#[test]
fn map_dma() {
    let (mut lab, ioas) = lab(3);
    let arg = lab.client.put(&DmaMap { argsz: 31, flags: 3, vaddr: RAM, iova: 0, size: PAGE });
    assert_eq!(lab.ioctl(MAP_DMA, arg), Err(Errno::EINVAL));
    assert_eq!(map(&mut lab, 4, RAM, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(&mut lab, 3, RAM, 0, 0), Err(Errno::EINVAL));
    assert_eq!(map(&mut lab, 3, u64::MAX, 0, PAGE), Err(Errno::EOVERFLOW));
    assert_eq!(map(&mut lab, 0, RAM, 0, PAGE), Ok(()), "no right at all");
    assert_eq!(map(&mut lab, 3, RAM, 0, PAGE), Err(Errno::EEXIST));
    map(&mut lab, 1, ROM, PAGE, PAGE).unwrap();
    assert_eq!(lab.add_domain(1000, ioas, &domain()), Err(Errno::EINVAL), "which a domain refuses");
    assert_eq!(unmap(&mut lab, 0, 0, PAGE), (Ok(()), PAGE));
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(map(&mut lab, 0, RAM, 0, PAGE), Err(Errno::EINVAL));
    assert_eq!(map(&mut lab, 3, ROM, 0, PAGE), Err(Errno::EFAULT));
    assert_eq!(lab.counts(), (0, 1, 1));
}

/// IOMMUFD-12.5, API-028, API-030, API-031
#[test]
fn unmap_dma() {
    let (mut lab, _) = lab(3);
    let arg = lab.client.put(&DmaUnmap { argsz: 23, flags: 0, iova: 0, size: PAGE });
    assert_eq!(lab.ioctl(UNMAP_DMA, arg), Err(Errno::EINVAL));
    for flags in [1, 4, 3] {
        assert_eq!(unmap(&mut lab, flags, 0, PAGE), (Err(Errno::EINVAL), PAGE));
    }
    assert_eq!(unmap(&mut lab, ALL, 1, 0), (Err(Errno::EINVAL), 0));
    assert_eq!(unmap(&mut lab, ALL, 0, PAGE), (Err(Errno::EINVAL), PAGE), "not written back");
    assert_eq!(unmap(&mut lab, ALL, 0, 0), (Ok(()), 0));
    assert_eq!(unmap(&mut lab, 0, 5 * PAGE, PAGE), (Ok(()), 0), "nothing there is no error");
    assert_eq!(unmap(&mut lab, 0, 5 * PAGE + 1, 3), (Ok(()), 0), "aligned or not");
    assert_eq!(unmap(&mut lab, 0, 5 * PAGE, 0), (Err(Errno::EINVAL), 0));
    assert_eq!(unmap(&mut lab, 0, u64::MAX - PAGE, 2 * PAGE), (Err(Errno::EOVERFLOW), 0), "nothing was removed");
    for n in 0..4 {
        map(&mut lab, 3, RAM, n * 4 * PAGE, 2 * PAGE).unwrap();
    }
    assert_eq!(unmap(&mut lab, 0, 0, 9 * PAGE), (Err(Errno::ENOENT), 4 * PAGE), "the size is written, too");
    assert_eq!(unmap(&mut lab, ALL, 0, 0), (Ok(()), 4 * PAGE));
    let arg = lab.client.put(&DmaUnmap { argsz: 24, flags: ALL, iova: 0, size: 0 });
    let bytes = lab.client.get_bytes(arg, 24);
    lab.client.memory.store(ROM, &bytes);
    assert_eq!(lab.ioctl(UNMAP_DMA, ROM), Err(Errno::EFAULT));
}

/// IOMMUFD-12.6, API-029
#[test]
fn type1_unmaps_in_the_middle() {
    let (mut lab, ioas) = lab(1);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    map(&mut lab, 3, RAM, 0, 10 * PAGE).unwrap();
    lab.client.memory.store(RAM + 6 * PAGE, &8_u64.to_le_bytes());
    assert_eq!(unmap(&mut lab, 0, 2 * PAGE, 3 * PAGE), (Ok(()), 3 * PAGE));
    assert_eq!(lab.areas(ioas), [(0, 2 * PAGE - 1), (5 * PAGE, 10 * PAGE - 1)]);
    assert_eq!((lab.counts(), lab.dma_read(ioas, 6 * PAGE)), ((0, 7, 7), Some(8)));
    assert_eq!(lab.dma_read(ioas, 2 * PAGE), None);
    let cut = (Err(Errno::EINVAL), 2 * PAGE + 5);
    assert_eq!(unmap(&mut lab, 0, 6 * PAGE, 2 * PAGE + 5), cut, "not at a page's border; nothing is written");
    // Shared pages are split as well.
    lab.copy((ioas, 5 * PAGE), (ioas, 20 * PAGE), 7, 4 * PAGE).unwrap();
    assert_eq!(unmap(&mut lab, 0, 6 * PAGE, PAGE), (Ok(()), PAGE));
    assert_eq!((lab.counts(), lab.dma_read(ioas, 21 * PAGE)), ((0, 7, 7), Some(8)));
    assert_eq!(unmap(&mut lab, 0, 21 * PAGE, 8 * PAGE), (Ok(()), 3 * PAGE));
    assert_eq!(lab.counts(), (0, 6, 6));
    assert_eq!(lab.dma_read(ioas, 7 * PAGE), Some(0));
    // Pins of accesses forbid it.
    let access = lab.context().create_access(true).unwrap();
    lab.context().attach_access(access, ioas).unwrap();
    lab.context().pin_pages(access, 8 * PAGE, PAGE, crate::ioas::Use::Read).unwrap();
    assert_eq!(unmap(&mut lab, 0, 8 * PAGE, PAGE), (Err(Errno::EINVAL), PAGE));
    assert_eq!(unmap(&mut lab, ALL, 0, 0).0, Ok(()));
    assert_eq!(lab.counts(), (0, 0, 0));
    assert!(lab.context().backing.pages.is_empty());

    let (mut lab, ioas) = self::lab(3);
    map(&mut lab, 3, RAM, 0, 10 * PAGE).unwrap();
    assert_eq!(unmap(&mut lab, 0, 2 * PAGE, 3 * PAGE), (Err(Errno::ENOENT), 0));
    assert_eq!(lab.areas(ioas).len(), 1);
}

/// IOMMUFD-12.7, SELF-6.4, API-032: nothing beyond what was provided, whatever that is.
#[test]
fn get_info() {
    let (mut lab, ioas) = lab(3);
    lab.reserve(ioas, 100 * PAGE, 200 * PAGE - 1).unwrap();
    let full = 24 + 16 + 16 + 2 * 16;
    for argsz in 0..full + 20 {
        let arg = lab.client.put_bytes(&[0xa5; 256]);
        lab.client.memory.store(arg, &(argsz as u32).to_ne_bytes());
        if argsz < 16 {
            assert_eq!(lab.ioctl(GET_INFO, arg), Err(Errno::EINVAL));
            continue;
        }
        lab.ioctl(GET_INFO, arg).unwrap();
        let bytes = lab.client.get_bytes(arg, 256);
        assert!(bytes[argsz..].iter().all(|byte| *byte == 0xa5), "{argsz}");
        let info: Info = lab.client.get(arg);
        assert_eq!((info.argsz, info.flags, info.iova_pgsizes), (full as u32, 3, !0xfff), "{argsz}");
        if argsz >= full {
            assert_eq!(info.cap_offset, 24);
            let head: [u16; 4] = lab.client.get(arg + 24);
            assert_eq!((head, lab.client.get::<u32>(arg + 32)), ([3, 1, 40, 0], u32::MAX));
            let head: [u32; 4] = lab.client.get(arg + 40);
            assert_eq!(head, [1 | 1 << 16, 0, 2, 0]);
            let ranges: [IovaRange; 2] = lab.client.get(arg + 56);
            let expected = [(0, 100 * PAGE - 1), (200 * PAGE, u64::MAX)];
            assert_eq!(ranges.map(|range| (range.start, range.end)), expected);
        } else if argsz >= 20 {
            assert_eq!(info.cap_offset & 0xff, 0, "{argsz}");
        }
    }
    let mut pages = domain();
    pages.page_sizes = 1 << 11 | 1 << 20;
    lab.add_domain(1000, ioas, &pages).unwrap();
    let arg = lab.client.put(&Info { argsz: 24, ..Info::default() });
    lab.ioctl(GET_INFO, arg).unwrap();
    assert_eq!(lab.client.get::<Info>(arg).iova_pgsizes, 1 << 20 | 1 << 12);
}
