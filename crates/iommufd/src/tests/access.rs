// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses (iommufd-api.md, section 13; IOMMUFD-5.21, IOMMUFD-5.22).

use caller::testing::{Client, MemFile};
use iommu::PageId;
use uapi::Errno;
use uapi::iommufd::{IoasMap, IoasMapFile};

use super::{FIXED, NOTHING, PAGE, RAM, READ, ROM, RW, WRITE, lab};
use crate::ObjectId;
use crate::backing::DmaBuf;
use crate::ioas::Use;
use crate::testing::{Lab, domain};

fn access(lab: &mut Lab, ioas: u32, pins: bool) -> ObjectId {
    let access = lab.context().create_access(pins).unwrap();
    lab.context().attach_access(access, ioas).unwrap();
    access
}

fn pin(lab: &mut Lab, access: ObjectId, iova: u64, length: u64, how: Use) -> Result<u32, Errno> {
    lab.context().pin_pages(access, iova, length, how).map(|(pin, _)| pin)
}

/// IOMMUFD-13.1
#[test]
fn pin_checks() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | READ, RAM, 4 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | WRITE, RAM + 8 * PAGE, 4 * PAGE, 4 * PAGE).unwrap();
    lab.map(ioas, FIXED | RW, NOTHING, 4 * PAGE, 8 * PAGE).unwrap();
    lab.copy((ioas, 4 * PAGE), (ioas, 20 * PAGE), FIXED | READ, 4 * PAGE).unwrap();
    let loose = lab.context().create_access(true).unwrap();
    assert_eq!(pin(&mut lab, loose, 0, 0, Use::Read), Err(Errno::EINVAL));
    assert_eq!(pin(&mut lab, loose, u64::MAX, 2, Use::Read), Err(Errno::EOVERFLOW));
    assert_eq!(pin(&mut lab, loose, 0, PAGE, Use::Read), Err(Errno::ENOENT), "no IOAS");
    lab.context().attach_access(loose, ioas).unwrap();
    let mut pin = |iova, pages, how| pin(&mut lab, loose, iova, pages * PAGE, how);
    assert_eq!(pin(100 * PAGE, 1, Use::Read), Err(Errno::ENOENT));
    assert_eq!(pin(24 * PAGE - PAGE, 2, Use::Read), Err(Errno::ENOENT), "half covered");
    assert_eq!(pin(PAGE / 2, 1, Use::Read), Err(Errno::EINVAL));
    assert_eq!(pin(0, 1, Use::Write), Err(Errno::EPERM));
    assert_eq!(pin(4 * PAGE, 1, Use::Read), Err(Errno::EPERM));
    assert_eq!(pin(20 * PAGE, 1, Use::Write), Err(Errno::EPERM), "its own rights, not the pages'");
    assert_eq!(pin(8 * PAGE, 1, Use::Read), Err(Errno::EFAULT));
    assert_eq!(pin(6 * PAGE, 4, Use::Write), Err(Errno::EFAULT), "half way");
    assert_eq!(pin(2 * PAGE, 3, Use::Read), Err(Errno::EPERM), "half way");
    assert_eq!(lab.counts(), (0, 0, 0), "a part is undone");
    lab.client.memlock.set(PAGE);
    let limit = lab.context().pin_pages(loose, 0, 2 * PAGE, Use::Read).map(|_| ());
    assert_eq!((limit, lab.counts()), (Err(Errno::ENOMEM), (0, 0, 0)));
    let other = access(&mut lab, ioas, false);
    assert_eq!(lab.context().pin_pages(other, 0, PAGE, Use::Read).map(|_| ()), Err(Errno::EINVAL), "cannot pin");
}

/// IOMMUFD-13.1: page borders between areas.
#[test]
fn pins_across_areas() {
    let (mut lab, ioas) = lab();
    let access = access(&mut lab, ioas, true);
    lab.map(ioas, FIXED | RW, RAM, 2 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | RW, RAM + 8 * PAGE, 2 * PAGE, 2 * PAGE).unwrap();
    let (number, pieces) = lab.context().pin_pages(access, PAGE, 2 * PAGE + 100, Use::Read).unwrap();
    let ids: Vec<Option<PageId>> = pieces.iter().map(|piece| piece.memory.identity(piece.offset)).collect();
    let lengths: Vec<u64> = pieces.iter().map(|piece| piece.length).collect();
    let at = |offset| Some(PageId { object: 1, offset });
    assert_eq!((ids, lengths), (vec![at(RAM + PAGE), at(RAM + 8 * PAGE)], vec![PAGE, 2 * PAGE]));
    assert_eq!(lab.counts(), (0, 3, 3));
    lab.context().unpin_pages(access, number).unwrap();
    assert_eq!(lab.context().unpin_pages(access, number), Err(Errno::ENOENT));
    assert_eq!(lab.counts(), (0, 0, 0));
    // Areas of less than pages cannot even be there.
    let other = lab.ioas();
    lab.map(other, FIXED | RW, RAM, 2048, 0).unwrap();
    assert_eq!(lab.context().replace_access(access, other), Err(Errno::EADDRINUSE));
    assert_eq!(lab.context().access_ioas(access), Some(ObjectId(ioas)));
}

/// IOMMUFD-5.22, IOMMUFD-13.5: an unmap lets go of what is pinned.
#[test]
fn unmap_asks_accesses_to_let_go() {
    let (mut lab, ioas) = lab();
    let one = access(&mut lab, ioas, true);
    let two = access(&mut lab, ioas, true);
    lab.map(ioas, FIXED | RW, RAM, 8 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | RW, RAM, 8 * PAGE, 8 * PAGE).unwrap();
    let first = pin(&mut lab, one, 0, 2 * PAGE, Use::Read).unwrap();
    let across = pin(&mut lab, two, 7 * PAGE, 2 * PAGE, Use::Write).unwrap();
    let second = pin(&mut lab, one, 10 * PAGE, 2 * PAGE, Use::Read).unwrap();
    assert_eq!(lab.counts(), (0, 6, 6));
    assert_eq!(lab.unmap(ioas, 0, 8 * PAGE), Ok(8 * PAGE));
    assert_eq!(lab.counts(), (0, 2, 2));
    assert_eq!(lab.context().unpin_pages(one, first), Err(Errno::ENOENT));
    assert_eq!(lab.context().unpin_pages(two, across), Err(Errno::ENOENT));
    // An area that cannot go keeps what is pinned.
    assert_eq!(lab.unmap(ioas, 0, 12 * PAGE), Err(Errno::ENOENT));
    lab.context().unpin_pages(one, second).unwrap();
    pin(&mut lab, one, 10 * PAGE, 2 * PAGE, Use::Read).unwrap();
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Ok(8 * PAGE));
    assert_eq!(lab.counts(), (0, 0, 0));
}

/// Pins and domains share pages, and each keeps them from going.
#[test]
fn pins_and_domains() {
    let (mut lab, ioas) = lab();
    let access = access(&mut lab, ioas, true);
    lab.map(ioas, FIXED | RW, RAM, 4 * PAGE, 0).unwrap();
    let early = pin(&mut lab, access, PAGE, PAGE, Use::Read).unwrap();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.counts(), (0, 4, 4));
    let late = pin(&mut lab, access, 2 * PAGE, 2 * PAGE, Use::Read).unwrap();
    pin(&mut lab, access, 2 * PAGE, 2 * PAGE, Use::Read).unwrap();
    lab.remove_domain(1000, ioas);
    assert_eq!(lab.counts(), (0, 3, 3));
    lab.context().unpin_pages(access, early).unwrap();
    lab.context().unpin_pages(access, late).unwrap();
    assert_eq!(lab.counts(), (0, 2, 2), "it was pinned twice");
    lab.context().destroy_access(access);
    assert_eq!(lab.counts(), (0, 0, 0));
}

/// IOMMUFD-5.21: a hardware queue's area stays.
#[test]
fn locked_areas() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    lab.map(ioas, FIXED | RW, RAM + PAGE, PAGE, PAGE).unwrap();
    lab.map(ioas, FIXED | RW, RAM + 2 * PAGE, PAGE, 2 * PAGE).unwrap();
    let queue = lab.context().create_internal_access().unwrap();
    lab.context().attach_access(queue, ioas).unwrap();
    let number = pin(&mut lab, queue, PAGE, PAGE, Use::Read).unwrap();
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Err(Errno::EBUSY));
    assert_eq!(lab.areas(ioas).len(), 2, "what comes before is gone");
    assert_eq!(lab.unmap(ioas, PAGE + 1, PAGE), Err(Errno::EBUSY), "before the range is looked at");
    lab.context().unpin_pages(queue, number).unwrap();
    assert_eq!(lab.unmap(ioas, 0, u64::MAX), Ok(2 * PAGE));
}

/// IOMMUFD-13.2
#[test]
fn reads_and_writes() {
    let (mut lab, ioas) = lab();
    let access = access(&mut lab, ioas, false);
    lab.map(ioas, FIXED | RW, RAM + 5, 100, 0).unwrap();
    lab.map(ioas, FIXED | READ, ROM + 3 * PAGE - 7, PAGE, 100).unwrap();
    lab.map(ioas, FIXED | WRITE, RAM + PAGE, 10, 100 + PAGE).unwrap();
    lab.map(ioas, FIXED | RW, NOTHING, PAGE, 1 << 20).unwrap();
    lab.client.memory.store(RAM + 5, &[9; 100]);
    for slow in [false, true] {
        let Lab { iommufd, client, file, .. } = &mut lab;
        let context = iommufd.context(*file).unwrap();
        let context = &iommufd.contexts[&context];
        let rw = |iova, length, how| {
            let mut data = vec![1; length];
            context.rw(access, iova, &mut data, how, slow, client).map(|()| data)
        };
        assert_eq!(rw(0, 0, Use::Read), Err(Errno::EINVAL));
        assert_eq!(rw(u64::MAX, 2, Use::Read), Err(Errno::EOVERFLOW));
        assert_eq!(rw(1 << 30, 2, Use::Read), Err(Errno::ENOENT));
        assert_eq!(rw(1 << 20, 2, Use::Read), Err(Errno::EFAULT));
        assert_eq!(rw(100, 1, Use::Write), Err(Errno::EPERM));
        assert_eq!(rw(100 + PAGE, 1, Use::Read), Err(Errno::EPERM));
        assert_eq!(rw(90, 20, Use::Read).unwrap(), [[9; 10], [0; 10]].concat(), "across areas");
        assert_eq!(rw(100 + PAGE, 10, Use::Write).map(|_| ()), Ok(()));
        assert_eq!(rw(100 + PAGE, 11, Use::Write), Err(Errno::ENOENT));
        assert_eq!(client.get_bytes(RAM + PAGE, 11), [&[1; 10][..], &[0]].concat());
        assert_eq!(rw(95, 10, Use::Write), Err(Errno::EPERM));
        assert_eq!(client.get_bytes(RAM + 5 + 95, 5), [1; 5], "what comes before is done");
        client.memory.store(RAM + 5 + 95, &[9; 5]);
        client.memory.store(RAM + PAGE, &[0; 10]);
    }
}

/// IOMMUFD-13.2, IOMMUFD-5.8: of a program that is gone, what is pinned.
#[test]
fn reads_of_another_program() {
    let (mut lab, ioas) = lab();
    let access = access(&mut lab, ioas, true);
    let other = Client::new(2);
    let file = MemFile::new(1, 16 * PAGE);
    other.memory.map_file(RAM, 16 * PAGE, true, &file, 0);
    other.memory.store(RAM + PAGE - 1, &[5, 6]);
    let map =
        |iova| IoasMap { ioas_id: ioas, flags: FIXED | RW, user_va: RAM, length: 2 * PAGE, iova, ..IoasMap::default() };
    lab.run_as(&other, map(0)).unwrap();
    let read = |lab: &mut Lab, iova: u64| {
        let mut data = [0; 2];
        let client = Client::new(3);
        lab.context().rw(access, iova, &mut data, Use::Read, false, &client).map(|()| data)
    };
    assert_eq!(read(&mut lab, PAGE - 1), Ok([5, 6]), "two pages");
    assert_eq!(read(&mut lab, PAGE - 2), Ok([0, 5]), "one page");
    assert_eq!(lab.counts_of(&other), (0, 0, 0), "nothing stays pinned");
    pin(&mut lab, access, 0, PAGE, Use::Read).unwrap();
    other.memory.end();
    assert_eq!(read(&mut lab, PAGE - 2), Ok([0, 5]));
    assert_eq!(read(&mut lab, PAGE - 1), Err(Errno::EFAULT), "the second page was not pinned");
    assert_eq!(read(&mut lab, PAGE), Err(Errno::EFAULT));
}

/// IOMMUFD-5.11, IOMMUFD-13.1
#[test]
fn dma_bufs_are_for_devices() {
    let (mut lab, ioas) = lab();
    let access = access(&mut lab, ioas, true);
    let file = lab.files.allocate();
    lab.iommufd.dma_bufs.insert(file, DmaBuf::new(PAGE, MemFile::new(1, PAGE)));
    let fd = lab.client.fd(file);
    lab.run(IoasMapFile { ioas_id: ioas, flags: FIXED | RW, fd, length: PAGE, ..Default::default() }).unwrap();
    assert_eq!(pin(&mut lab, access, 0, PAGE, Use::Read), Err(Errno::EINVAL));
    let client = Client::new(3);
    assert_eq!(lab.context().rw(access, 0, &mut [0], Use::Read, false, &client), Err(Errno::EINVAL));
}

/// IOMMUFD-13.3
#[test]
fn alignment_of_accesses() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, 100, 0).unwrap();
    let rw = access(&mut lab, ioas, false);
    assert_eq!(lab.context().ioas(ioas).unwrap().alignment(), 1);
    let pinning = lab.context().create_access(true).unwrap();
    assert_eq!(lab.context().attach_access(pinning, ioas), Err(Errno::EADDRINUSE));
    lab.unmap(ioas, 0, 100).unwrap();
    lab.context().attach_access(pinning, ioas).unwrap();
    assert_eq!(lab.context().ioas(ioas).unwrap().alignment(), PAGE);
    lab.context().destroy_access(pinning);
    assert_eq!(lab.context().ioas(ioas).unwrap().alignment(), 1);
    lab.context().destroy_access(rw);
    let accesses: Vec<ObjectId> = (0..1 << 16).map(|_| access(&mut lab, ioas, false)).collect();
    let more = lab.context().create_access(false).unwrap();
    assert_eq!(lab.context().attach_access(more, ioas), Err(Errno::EBUSY));
    lab.context().destroy_access(accesses[7]);
    lab.context().attach_access(more, ioas).unwrap();
}

/// IOMMUFD-13.4
#[test]
fn replacing_the_ioas() {
    let (mut lab, ioas) = lab();
    let other = lab.ioas();
    let access = lab.context().create_access(true).unwrap();
    assert_eq!(lab.context().replace_access(access, ioas), Err(Errno::ENOENT), "it has none");
    lab.context().attach_access(access, ioas).unwrap();
    assert_eq!(lab.context().replace_access(access, 99), Err(Errno::ENOENT));
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    let number = pin(&mut lab, access, 0, PAGE, Use::Read).unwrap();
    lab.context().replace_access(access, ioas).unwrap();
    assert_eq!(lab.counts(), (0, 1, 1), "the same: nothing changes");
    lab.context().replace_access(access, other).unwrap();
    assert_eq!(lab.counts(), (0, 0, 0), "it let go");
    assert_eq!(lab.context().unpin_pages(access, number), Err(Errno::ENOENT));
    assert_eq!(lab.context().ids.users(ObjectId(ioas)), 0);
    assert_eq!(lab.context().ids.users(ObjectId(other)), 1);
}
