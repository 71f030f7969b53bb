// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests, fault queues and their files.

use std::sync::Arc;

use caller::FileId;
use iommufd::{DeviceProperties, FaultCookies, ObjectId, PageRequest, PageResponse, PageResponseCode};
use uapi::Errno;
use uapi::iommufd::{FaultQueueAlloc, HwptAlloc};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::iommufd_test::{self as test, op};
use zerocopy::{FromBytes, IntoBytes};

use crate::lab::{Answers, FAULT_ID_VALID, Lab, NEST_PARENT, PAGE, PASID, able};

pub(crate) use PageResponseCode::{Invalid, Success};

/// A device with a fault queue.
pub(crate) struct Faulting {
    pub(crate) lab: Lab,
    pub(crate) answers: Arc<Answers>,
    pub(crate) device: ObjectId,
    pub(crate) ioas: u32,
    pub(crate) queue: u32,
    pub(crate) file: FileId,
}

impl Faulting {
    /// Its RID is attached to a HWPT with the queue.
    pub(crate) fn new(cookies: FaultCookies) -> Faulting {
        let mut lab = Lab::with(cookies);
        let answers = Arc::<Answers>::default();
        let (device, _) = lab.bind(1, able(&answers));
        let ioas = lab.ioas();
        let (queue, file) = lab.fault_queue();
        let mut this = Faulting { lab, answers, device, ioas, queue, file };
        let hwpt = this.hwpt();
        this.lab.attach(device, 0, hwpt).unwrap();
        this
    }

    /// A HWPT with the queue, for PASIDs, too.
    pub(crate) fn hwpt(&mut self) -> u32 {
        let (dev_id, pt_id, fault_id) = (self.device.0, self.ioas, self.queue);
        let base = HwptAlloc { dev_id, pt_id, fault_id, ..HwptAlloc::default() };
        self.lab.call(HwptAlloc { flags: FAULT_ID_VALID | PASID, ..base }).unwrap().out_hwpt_id
    }

    pub(crate) fn report(&mut self, request: PageRequest) -> Result<(), Errno> {
        self.lab.iommufd.report(self.lab.context, self.device, request)
    }

    /// The records of as many groups as fit.
    pub(crate) fn read(&mut self, records: usize) -> Result<Vec<PageFault>, Errno> {
        let bytes = self.lab.read(self.file, 40 * records as u64)?;
        Ok(bytes.chunks(40).map(|record| PageFault::read_from_bytes(record).unwrap()).collect())
    }

    pub(crate) fn answer(&mut self, answers: &[(u32, u32)]) -> Result<u64, Errno> {
        let answers: Vec<PageAnswer> =
            answers.iter().map(|(cookie, code)| PageAnswer { cookie: *cookie, code: *code }).collect();
        self.lab.write(self.file, answers.as_bytes())
    }

    /// What the device has been told, by index.
    pub(crate) fn told(&self) -> Vec<(u32, PageResponseCode)> {
        self.answers.take().iter().map(|answer| (answer.group, answer.code)).collect()
    }
}

/// The last request of a group.
pub(crate) fn last(group: u32) -> PageRequest {
    PageRequest {
        pasid: None,
        group,
        last: true,
        needs_pasid: false,
        perm: 1,
        addr: PAGE * u64::from(group),
        private_data: None,
    }
}

pub(crate) fn part(group: u32) -> PageRequest {
    PageRequest { last: false, ..last(group) }
}

fn with_pasid(pasid: u32, request: PageRequest) -> PageRequest {
    PageRequest { pasid: Some(pasid), ..request }
}

/// FAULT-1.1: flags, descriptors that are used up, who holds what.
#[test]
fn making_and_ending_a_queue() {
    let mut lab = Lab::new();
    assert_eq!(lab.call(FaultQueueAlloc { flags: 1, ..FaultQueueAlloc::default() }).unwrap_err(), Errno::EOPNOTSUPP);
    lab.client.max_fds.set(0);
    assert_eq!(lab.call(FaultQueueAlloc::default()).unwrap_err(), Errno::EMFILE);
    lab.client.max_fds.set(64);
    let (queue, file) = lab.fault_queue();
    assert_eq!(queue, 1, "nothing was left behind");
    assert_eq!(lab.destroy(queue), Err(Errno::EBUSY), "its file");
    lab.iommufd.release(lab.file);
    assert_eq!(lab.read(file, 40), Ok(vec![]), "IOMMUFD-2.6: it keeps the context");
    lab.iommufd.release(file);
    assert!(lab.iommufd.context(lab.file).is_none());
}

/// FAULT-1.2, FAULT-2.4, FAULT-2.5: a group is shown whole, the last request last.
#[test]
fn a_group_is_read_whole() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    on.report(part(3)).unwrap();
    on.report(with_pasid(7, part(3))).unwrap_err();
    on.report(part(4)).unwrap();
    assert!(!on.lab.is_readable(on.file), "2.3: nothing is seen of parts");
    assert_eq!(on.read(1), Ok(vec![]));
    let end = PageRequest { needs_pasid: true, perm: 0xf, addr: 0x123_4000, ..last(3) };
    on.report(end).unwrap();
    assert!(on.lab.is_readable(on.file), "1.6");
    let records = on.read(4).unwrap();
    let [one, two] = records[..] else { panic!("{records:?}") };
    assert_eq!((one.flags, one.grpid, one.dev_id, one.cookie), (0, 3, on.device.0, two.cookie));
    assert_eq!((two.flags, two.perm, two.addr, two.length, two.reserved), (2 | 4, 0xf, 0x123_4000, 0, 0));
    assert!(!on.lab.is_readable(on.file), "1.6: unanswered ones do not count");
    assert_eq!(on.told(), [(3, Invalid)], "the one with a PASID that nobody has");
    assert_eq!(on.answer(&[(one.cookie, 0)]), Ok(8));
    let answer = on.answers.take();
    assert_eq!(answer, [PageResponse { pasid: None, group: 3, code: Success, private_data: None }], "1.5: one for all");
}

/// FAULT-1.4
#[test]
fn what_read_says() {
    let mut on = Faulting::new(FaultCookies::LowestFree);
    let read = |on: &mut Faulting, offset, len, buf| {
        let caller = &on.lab.client;
        on.lab.iommufd.read(on.file, offset, buf, len, caller)
    };
    let room = on.lab.client.room(4000);
    for len in [1, 39, 41] {
        assert_eq!(read(&mut on, 0, len, room), Err(Errno::ESPIPE));
    }
    assert_eq!(read(&mut on, 40, 40, room), Err(Errno::ESPIPE));
    assert_eq!((read(&mut on, 0, 0, room), read(&mut on, 0, 40, room)), (Ok(0), Ok(0)), "empty: never waits");
    for group in [5, 6] {
        on.report(part(group)).unwrap();
        on.report(last(group)).unwrap();
    }
    on.report(last(7)).unwrap();
    assert_eq!((read(&mut on, 0, 0, room), read(&mut on, 0, 40, room)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
    assert_eq!(read(&mut on, 0, 80, 16), Err(Errno::EFAULT), "4.6: it stays");
    let records = on.read(3).unwrap();
    assert_eq!(records.iter().map(|r| (r.grpid, r.cookie)).collect::<Vec<_>>(), [(5, 1), (5, 1)], "4.3, 4.4, 4.5");
    let page = 0x6000_0000;
    on.lab.client.memory.map(page, PAGE, true);
    assert_eq!(read(&mut on, 0, 120, page + PAGE - 80), Ok(80), "4.6: what was before counts");
    assert_eq!(on.read(3).unwrap().iter().map(|r| (r.grpid, r.cookie)).collect::<Vec<_>>(), [(7, 3)]);
}

/// FAULT-1.5, FAULT-1.3
#[test]
fn what_write_says() {
    let mut on = Faulting::new(FaultCookies::LowestFree);
    (1..=4).for_each(|group| on.report(last(group)).unwrap());
    let cookies: Vec<u32> = on.read(4).unwrap().iter().map(|record| record.cookie).collect();
    assert_eq!(cookies, [1, 2, 3, 4]);
    assert_eq!(on.lab.write(on.file, &[0; 7]), Err(Errno::ESPIPE));
    assert_eq!(on.lab.iommufd.write(on.file, 8, 0, 8, &on.lab.client), Err(Errno::ESPIPE));
    assert_eq!(on.lab.iommufd.write(on.file, 0, 0, 0, &on.lab.client), Ok(0));
    assert_eq!(on.lab.iommufd.write(on.file, 0, 16, 8, &on.lab.client), Err(Errno::EFAULT));
    assert_eq!(on.answer(&[(99, 2)]), Err(Errno::EINVAL), "FAILURE cannot be said");
    assert_eq!(on.answer(&[(99, 0)]), Err(Errno::EINVAL));
    assert_eq!(on.answer(&[(2, 1), (1, 0), (2, 0), (3, 0)]), Ok(16), "to the first that is wrong");
    assert_eq!(on.told(), [(2, Invalid), (1, Success)]);
    assert_eq!(on.answer(&[(1, 0)]), Err(Errno::EINVAL), "answered already");
}

/// FAULT-1.4, FAULT-5.9: Linux gives the lowest number that is free; by default
/// none comes again.
#[test]
fn cookies() {
    for (cookies, again) in [(FaultCookies::LowestFree, 1), (FaultCookies::Monotonic, 3)] {
        let mut on = Faulting::new(cookies);
        on.report(last(1)).unwrap();
        on.report(last(2)).unwrap();
        assert_eq!(on.read(2).unwrap().iter().map(|r| r.cookie).collect::<Vec<_>>(), [1, 2]);
        on.answer(&[(1, 0)]).unwrap();
        on.report(last(1)).unwrap();
        assert_eq!(on.read(1).unwrap()[0].cookie, again);
    }
}

/// FAULT-2.2: who takes a request.
#[test]
fn the_way_of_a_request() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let hwpt = on.hwpt();
    assert_eq!(on.report(with_pasid(9, last(1))), Err(Errno::EINVAL), "no attachment, and the RID's is not nested");
    assert_eq!(on.report(with_pasid(9, part(1))), Err(Errno::EINVAL));
    assert_eq!(on.told(), [(1, Invalid), (1, Invalid)], "whether it is the last or not");
    on.lab.attach(on.device, 9, hwpt).unwrap();
    assert_eq!(on.report(with_pasid(9, last(1))), Ok(()));
    let record = on.read(1).unwrap()[0];
    assert_eq!((record.flags, record.pasid, record.grpid), (1 | 2, 9, 1));
    let plain = on.lab.hwpt(on.device.0, on.ioas, PASID).unwrap();
    on.lab.attach(on.device, 10, plain).unwrap();
    assert_eq!(on.report(with_pasid(10, last(1))), Err(Errno::EINVAL), "a domain without a queue");
    on.answer(&[(record.cookie, 1)]).unwrap();
    assert_eq!(on.answers.take()[1], PageResponse { pasid: Some(9), group: 1, code: Invalid, private_data: None });
}

/// FAULT-2.2, SELF-4.9, SELF-3.15: a nested domain of the RID takes the PASIDs
/// that nobody attached.
#[test]
fn a_nested_domain_takes_unknown_pasids() {
    let mut lab = Lab::new();
    let ioas = lab.ioas();
    let mock = lab.mock(ioas).unwrap();
    let (queue, file) = lab.fault_queue();
    let parent = lab.hwpt(mock.device, ioas, NEST_PARENT).unwrap();
    let data = test::HwptData::default();
    let nested = lab.mock_hwpt(mock.device, parent, FAULT_ID_VALID, queue, &data).unwrap();
    let trigger = |lab: &mut Lab, device| lab.test(op::TRIGGER_IOPF, 0, &[device, 1, 2, 3, 0x5000, 0]).map(|_| ());
    assert_eq!(trigger(&mut lab, ioas), Err(Errno::ENOENT));
    assert_eq!(trigger(&mut lab, mock.device), Ok(()), "its result is not told");
    assert_eq!(lab.read(file, 40), Ok(vec![]));
    lab.test(op::MOCK_DOMAIN_REPLACE, mock.object, &[nested]).unwrap();
    assert_eq!(trigger(&mut lab, mock.device), Ok(()));
    let record = PageFault::read_from_bytes(&lab.read(file, 40).unwrap()).unwrap();
    assert_eq!((record.flags, record.pasid, record.grpid, record.perm, record.addr), (3, 1, 2, 3, 0x5000));
    assert_eq!(lab.write(file, PageAnswer { cookie: record.cookie, code: 0 }.as_bytes()), Ok(8));
}

/// FAULT-2.4: requests of another PASID with the same index join a group.
#[test]
fn the_index_makes_a_group() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let hwpt = on.hwpt();
    on.lab.attach(on.device, 9, hwpt).unwrap();
    on.report(with_pasid(9, part(1))).unwrap();
    on.report(part(2)).unwrap();
    on.report(last(1)).unwrap();
    let records = on.read(8).unwrap();
    assert_eq!(records.iter().map(|r| (r.flags, r.pasid)).collect::<Vec<_>>(), [(1, 9), (2, 0)]);
}

/// FAULT-2.9: two groups with one index may be outstanding.
#[test]
fn one_index_twice() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    on.report(last(1)).unwrap();
    on.report(last(1)).unwrap();
    let records = on.read(2).unwrap();
    assert_ne!(records[0].cookie, records[1].cookie);
    on.answer(&[(records[1].cookie, 1), (records[0].cookie, 0)]).unwrap();
    assert_eq!(on.told(), [(1, Invalid), (1, Success)]);
}

/// FAULT-3.1, FAULT-3.2: detaching answers what came through the attachment, read
/// or not, and nothing else.
#[test]
fn detaching_answers() {
    let mut on = Faulting::new(FaultCookies::LowestFree);
    let hwpt = on.hwpt();
    on.lab.attach(on.device, 9, hwpt).unwrap();
    on.report(last(1)).unwrap();
    on.report(with_pasid(9, last(2))).unwrap();
    on.read(2).unwrap();
    on.report(last(3)).unwrap();
    on.report(with_pasid(9, last(4))).unwrap();
    on.lab.detach(on.device, 0);
    assert_eq!(on.told(), [(3, Invalid), (1, Invalid)]);
    assert_eq!(on.answer(&[(1, 0)]), Err(Errno::EINVAL), "too late");
    assert_eq!(on.read(1).unwrap()[0].grpid, 4);
    assert_eq!(on.answer(&[(2, 0)]), Ok(8));
    assert_eq!(on.told(), [(2, Success)]);
}

/// FAULT-3.1, IOMMUFD-8.19: replacing answers, too, even by a HWPT with the same
/// queue; by the same HWPT, or in vain, it does nothing.
#[test]
fn replacing_answers() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let (second, third) = (on.hwpt(), on.hwpt());
    on.lab.replace(on.device, 0, second).unwrap();
    on.report(last(1)).unwrap();
    on.report(part(2)).unwrap();
    on.lab.replace(on.device, 0, second).unwrap();
    assert_eq!(on.lab.replace(on.device, 0, 99), Err(Errno::ENOENT));
    assert_eq!(on.told(), []);
    on.lab.replace(on.device, 0, third).unwrap();
    assert_eq!(on.told(), [(1, Invalid)]);
    assert_eq!(on.read(1), Ok(vec![]));
    on.report(last(2)).unwrap();
    assert_eq!(on.read(2).unwrap().len(), 2, "parts are kept while a HWPT has a queue");
}

/// FAULT-2.7, FAULT-3.1: with the last HWPT that has a queue the parts go, and
/// nobody is told.
#[test]
fn parts_go_without_an_answer() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let hwpt = on.hwpt();
    on.lab.attach(on.device, 9, hwpt).unwrap();
    on.report(part(1)).unwrap();
    on.lab.detach(on.device, 9);
    on.lab.attach(on.device, 9, hwpt).unwrap();
    on.lab.detach(on.device, 9);
    on.lab.detach(on.device, 0);
    on.lab.attach(on.device, 0, hwpt).unwrap();
    on.report(last(1)).unwrap();
    assert_eq!(on.read(2).unwrap().len(), 1);
    on.report(part(2)).unwrap();
    on.lab.iommufd.discard_partial_requests(on.lab.context, on.device);
    on.report(last(2)).unwrap();
    assert_eq!(on.read(2).unwrap().len(), 1, "the IOMMU overflowed");
    assert_eq!(on.told(), []);
}

/// FAULT-3.1: a queue whose file is closed keeps its groups until the device
/// leaves; a queue that is destroyed answers what is left.
#[test]
fn closing_the_file() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    on.report(last(1)).unwrap();
    on.lab.iommufd.release(on.file);
    on.report(last(2)).unwrap();
    assert_eq!(on.told(), []);
    assert_eq!(on.lab.destroy(on.queue), Err(Errno::EBUSY), "a HWPT has it");
    on.lab.iommufd.unbind(on.lab.context, on.device);
    assert_eq!(on.told(), [(1, Invalid), (2, Invalid)]);
}

/// FAULT-2.3, FAULT-2.6: what a device may have outstanding here is bounded; beyond
/// it requests are dropped, groups answered FAILURE.
#[test]
fn a_flood_is_bounded() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let parts = (0..5000).map(|_| on.report(part(1))).collect::<Vec<_>>();
    assert_eq!(parts.iter().filter(|result| result.is_ok()).count(), 4096);
    assert_eq!(parts[4999], Err(Errno::ENOMEM));
    for _ in 0..=1 << 16 {
        on.report(last(2)).unwrap();
    }
    assert_eq!(on.told(), [(2, PageResponseCode::Failure)]);
    let cookie = on.read(1).unwrap()[0].cookie;
    on.answer(&[(cookie, 0)]).unwrap();
    on.report(last(3)).unwrap();
    assert_eq!(on.told(), [(2, Success)], "room for one again");
}

/// FAULT-1.1: one queue serves several devices, each with its own name.
#[test]
fn a_queue_serves_many() {
    let mut on = Faulting::new(FaultCookies::Monotonic);
    let answers = Arc::<Answers>::default();
    let (second, _) = on.lab.bind(2, DeviceProperties { ..able(&answers) });
    let hwpt = on.hwpt();
    on.lab.attach(second, 0, hwpt).unwrap();
    on.report(last(1)).unwrap();
    on.lab.iommufd.report(on.lab.context, second, last(1)).unwrap();
    let records = on.read(2).unwrap();
    assert_eq!([records[0].dev_id, records[1].dev_id], [on.device.0, second.0]);
    on.answer(&[(records[1].cookie, 0)]).unwrap();
    assert_eq!((on.told().len(), answers.take().len()), (0, 1));
}
