// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects, ids and lifetimes (iommufd-api.md, sections 2 and 3).

use uapi::Errno;
use uapi::iommufd::{Command, Destroy, FaultQueueAlloc, VfioIoas, vfio_ioas};

use super::{FIXED, PAGE, RAM, RW, lab};
use crate::testing::{Lab, domain};
use crate::{Kind, ObjectId};

fn destroy(id: u32) -> Destroy {
    Destroy { id, ..Destroy::default() }
}

/// IOMMUFD-2.1
#[test]
fn the_lowest_id_is_given() {
    let mut lab = Lab::new();
    assert_eq!([lab.ioas(), lab.ioas(), lab.ioas()], [1, 2, 3]);
    lab.run(destroy(2)).unwrap();
    lab.run(destroy(1)).unwrap();
    assert_eq!(lab.run(destroy(1)), Err(Errno::ENOENT));
    assert_eq!(lab.run(FaultQueueAlloc::default()).unwrap().out_fault_id, 1);
    assert_eq!([lab.ioas(), lab.ioas()], [2, 4]);
    assert_eq!(lab.run(destroy(0)), Err(Errno::ENOENT));
    assert_eq!(lab.run(destroy(u32::MAX)), Err(Errno::ENOENT));
    // Contexts have ids of their own.
    let other = lab.open(false);
    assert_eq!(lab.run_on(other, uapi::iommufd::IoasAlloc::default()).unwrap().out_ioas_id, 1);
}

/// IOMMUFD-2.4, SELF-6.2
#[test]
fn destroy_errors() {
    let mut lab = Lab::new();
    assert_eq!(lab.ioctl(Destroy::REQUEST, 0), Err(Errno::EFAULT));
    assert_eq!(lab.run(destroy(1)), Err(Errno::ENOENT));
    let ioas = lab.ioas();
    lab.context().ids.get(ObjectId(ioas));
    assert_eq!(lab.run(destroy(ioas)), Err(Errno::EBUSY));
    lab.context().ids.put(ObjectId(ioas));
    lab.run(destroy(ioas)).unwrap();
}

/// IOMMUFD-2.8
#[test]
fn tombstones() {
    let mut lab = Lab::new();
    let id = lab.context().ids.add(Kind::Vdevice).unwrap();
    lab.context().ids.bury(id);
    assert_eq!(lab.run(destroy(id.0)), Err(Errno::ENOENT));
    assert_eq!(lab.ioas(), id.0 + 1);
}

/// IOMMUFD-2.5: what an access does to its IOAS; IOMMUFD-2.4: the access's own
/// id is its maker's.
#[test]
fn accesses_hold_their_ioas() {
    let (mut lab, ioas) = lab();
    let access = lab.context().create_access(false).unwrap();
    lab.context().attach_access(access, ioas).unwrap();
    assert_eq!(lab.run(destroy(ioas)), Err(Errno::EBUSY));
    assert_eq!(lab.run(destroy(access.0)), Err(Errno::EBUSY));
    lab.context().destroy_access(access);
    assert_eq!(lab.run(destroy(access.0)), Err(Errno::ENOENT));
    lab.run(destroy(ioas)).unwrap();
}

/// IOMMUFD-3.1, IOMMUFD-3.3, IOMMUFD-2.11
#[test]
fn an_ioas_goes_with_its_mappings() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    let other = lab.ioas();
    lab.copy((ioas, 0), (other, 0), FIXED | RW, PAGE).unwrap();
    lab.add_domain(1000, other, &domain()).unwrap();
    lab.run(VfioIoas { ioas_id: ioas, op: vfio_ioas::SET, ..VfioIoas::default() }).unwrap();
    lab.run(destroy(ioas)).unwrap();
    assert_eq!(lab.run(VfioIoas::default()), Err(Errno::ENODEV));
    assert_eq!(lab.counts(), (0, 1, 1), "a copy lives on");
    assert_eq!(lab.dma_read(other, 0), Some(0));
    lab.remove_domain(1000, other);
    lab.run(destroy(other)).unwrap();
    let context = lab.context();
    assert!(context.backing.pages.is_empty() && context.backing.sources.iter().next().is_none());
}

/// IOMMUFD-2.6, IOMMUFD-2.7: the last reference ends everything.
#[test]
fn closing_ends_all() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    lab.copy((ioas, 0), (ioas, PAGE), FIXED | RW, PAGE).unwrap();
    let queue = lab.run(FaultQueueAlloc::default()).unwrap();
    let fd = queue.out_fault_fd as i32;
    let context = lab.iommufd.context(lab.file).unwrap();
    let file = lab.file;
    lab.iommufd.release(file);
    assert!(lab.iommufd.contexts.contains_key(&context), "the queue's file holds it");
    let queue_file = caller::Caller::file(&lab.client, fd).unwrap().unwrap();
    lab.iommufd.release(queue_file);
    assert!(lab.iommufd.contexts.is_empty());
    assert_eq!(lab.iommufd.budget.left(), crate::Options::default().memory_limit);
    assert_eq!(lab.counts(), (0, 0, 0));
}

/// Programs cannot make the supervisor use memory without end.
#[test]
fn objects_are_bounded() {
    let options = crate::Options { memory_limit: 1 << 20, ..crate::Options::default() };
    let mut lab = Lab::with(options);
    super::give_memory(&lab);
    let ioas = lab.ioas();
    let mut maps = 0;
    while lab.map(ioas, FIXED | RW, RAM, PAGE, maps * PAGE).is_ok() {
        maps += 1;
    }
    assert_eq!(lab.map(ioas, FIXED | RW, RAM, PAGE, maps * PAGE), Err(Errno::ENOMEM));
    assert!((10_000..20_000).contains(&maps), "{maps}");
    assert_eq!(lab.run(uapi::iommufd::IoasAlloc::default()), Err(Errno::ENOMEM));
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    let more = (0..1000).take_while(|_| lab.run(uapi::iommufd::IoasAlloc::default()).is_ok()).count();
    assert!((100..300).contains(&more), "{more}");
}
