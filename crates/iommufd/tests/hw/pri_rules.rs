// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the IOMMU, its queue and a function's page request capability do, also
//! with functions that break the rules.

use std::sync::atomic::Ordering;

use device::page_requests::status;
use device::{Asked, PageRequests};
use iommu::Access;
use iommufd::{FaultReset, Options, PageRequest, PageResponder as _, PageResponse, PageResponseCode};
use uapi::Errno;

use crate::pri::{Function, Mode, add};

use PageResponseCode::{Failure, Invalid, Success};

fn raw(group: u32, last: bool, perm: u32) -> PageRequest {
    PageRequest { group, last, perm, addr: 0x7000, ..PageRequest::default() }
}

/// FAULT-2.1, FAULT-1.3: a request, its record, the answer.
#[test]
fn a_request_and_its_answer() {
    let mut on = Function::new(Mode::Seq);
    let guest = on.consumer();
    on.attach(9, guest);
    assert!(!on.is_readable(guest));
    let ticket = on.ask(Some(9));
    assert!(on.is_readable(guest), "FAULT-1.6: seen before anybody calls");
    let record = on.read_one(guest);
    assert_eq!((record.flags, record.pasid, record.grpid, record.perm, record.addr), (7, 9, 0, 1, 0x5000));
    assert!(!on.is_readable(guest));
    on.write(guest, record.cookie, 0).unwrap();
    assert_eq!(on.seen(), [(ticket, Success)]);
}

/// FAULT-2.2: nobody takes it, before, between and after attachments.
#[test]
fn nobody_takes_it() {
    let mut on = Function::new(Mode::Seq);
    let guest = on.consumer();
    for _ in 0..2 {
        let ticket = on.ask(None);
        on.lab.iommufd.elapse();
        assert_eq!(on.seen(), [(ticket, Invalid)]);
        on.attach(0, guest);
        on.detach(0);
    }
    assert!(!on.is_readable(guest));
    // It was on its way to the queue when the attachment went.
    on.attach(0, guest);
    let ticket = on.ask(None);
    assert!(on.is_readable(guest));
    on.detach(0);
    assert_eq!((on.seen(), on.is_readable(guest)), (vec![(ticket, Invalid)], false));
}

/// FAULT-4.3, FAULT-4.4: not more than was allocated, nothing while it is off.
#[test]
fn as_many_as_are_allocated() {
    let mut on = Function::with(Options::default(), true, 3);
    let guest = on.consumer();
    on.attach(0, guest);
    let tickets = [(); 3].map(|()| on.ask(None));
    assert_eq!(on.pri.ask(None, Access::Write, 0), Asked::Full);
    let records = on.read(guest);
    on.write(guest, records[1].cookie, 0).unwrap();
    assert_eq!(on.seen(), [(tickets[1], Success)]);
    let again = on.ask(None);
    assert_eq!(on.read_one(guest).grpid, 1, "the lowest index that is free");
    on.pri.set_enabled(false, 3);
    assert_eq!(on.pri.ask(None, Access::Read, 0), Asked::Off);
    assert_eq!(on.pri.status(), status::PASID_REQUIRED, "something is out: not stopped");
    on.detach(0);
    assert_eq!(on.seen(), [(tickets[0], Invalid), (tickets[2], Invalid), (again, Invalid)]);
    assert_eq!(on.pri.status(), status::PASID_REQUIRED | status::STOPPED);
}

/// FAULT-4.1, FAULT-4.8: an index has nine bits, and belongs to the function
/// whatever the PASID.
#[test]
fn indexes_are_the_functions() {
    let on = Function::with(Options::default(), true, 2048);
    for n in 0..512 {
        on.ask(Some(1 + n % 3));
    }
    assert_eq!(on.pri.ask(None, Access::Read, 0), Asked::Full);
}

/// FAULT-4.2, FAULT-4.5: a failure ends page requests until they are enabled
/// anew; FAULT-3.2: no program and no detaching can say it.
#[test]
fn a_failure_turns_them_off() {
    let on = Function::new(Mode::Seq);
    let ticket = on.ask(None);
    on.pri.respond(PageResponse { pasid: None, group: 0, code: Failure, private_data: Some(1) });
    assert_eq!(on.seen(), [(ticket, Failure)]);
    assert_eq!(on.pri.status() & status::RESPONSE_FAILURE, 1);
    assert_eq!(on.pri.ask(None, Access::Read, 0), Asked::Off);
    on.pri.set_enabled(true, 512);
    assert_eq!(on.pri.ask(None, Access::Read, 0), Asked::Off, "it was on all the time");
    on.pri.set_enabled(false, 512);
    on.pri.set_enabled(true, 512);
    assert_eq!(on.pri.status() & status::RESPONSE_FAILURE, 0);
    on.ask(None);
}

/// FAULT-4.5: an answer to an index that is not out, with another PASID, with
/// other private data.
#[test]
fn unexpected_answers() {
    for (pasid, group, private_data) in [(Some(9), 1, 1), (Some(8), 0, 1), (None, 0, 1), (Some(9), 0, 2)] {
        let on = Function::new(Mode::Seq);
        on.ask(Some(9));
        let response = PageResponse { pasid, group, code: Success, private_data: Some(private_data) };
        on.pri.respond(response);
        assert_eq!((on.seen(), on.pri.status() & status::UNEXPECTED), (vec![], status::UNEXPECTED), "{response:?}");
        assert_eq!(on.pri.outstanding(), 1);
    }
}

/// FAULT-2.8: nobody hears of a stop marker, and nobody answers it.
#[test]
fn stop_markers_are_dropped() {
    let mut on = Function::new(Mode::Seq);
    let guest = on.consumer();
    on.attach(9, guest);
    on.pri.stop(9);
    assert!(!on.is_readable(guest));
    assert_eq!((on.read(guest), on.pri.status() & status::UNEXPECTED), (vec![], 0));
}

/// FAULT-4.7, FAULT-4.6: what VT-d's driver refuses; indexes are cut to nine bits.
#[test]
fn requests_that_are_refused() {
    let mut on = Function::new(Mode::Seq);
    let guest = on.consumer();
    on.attach(0, guest);
    for (perm, addr) in [(1, 1 << 47), (1, !0 << 48), (1 | 8, 0), (2 | 8, 0), (4 | 1, 0)] {
        on.pri.reset();
        on.pri.set_enabled(true, 512);
        on.pri.send(PageRequest { perm, addr, ..raw(1, true, 0) });
        assert_eq!(on.read(guest), []);
        assert_eq!(on.pri.status() & status::UNEXPECTED, status::UNEXPECTED, "it was answered: {perm} {addr:#x}");
    }
    on.pri.send(PageRequest { addr: !0 << 47, ..raw(0x1ff + 3, true, 1) });
    assert_eq!(on.read_one(guest).grpid, 2);
}

/// FAULT-2.7, FAULT-4.4: a function that never ends a group, or does not care
/// how many it may have out. Requests are lost, what ends a group is answered
/// so that it is tried again, and the others of all devices are forgotten.
#[test]
fn a_function_that_floods() {
    let mut on = Function::with(Options::default(), false, 32);
    let guest = on.consumer();
    on.attach(0, guest);
    for _ in 0..100_000 {
        on.pri.send(raw(1, false, 1));
    }
    assert_eq!(on.read(guest), []);
    on.pri.send(raw(1, true, 1));
    assert_eq!(on.read(guest).len(), 1, "the parts were discarded");
    let answered = |on: &Function| on.pri.status() & status::UNEXPECTED != 0;
    assert!(!answered(&on));
    for _ in 0..31 {
        on.pri.send(raw(1, true, 1));
        assert_eq!(on.read(guest).len(), 1);
    }
    on.pri.send(raw(1, true, 1));
    assert_eq!((on.read(guest).len(), answered(&on)), (0, true), "32 are out");
    on.detach(0);
    on.attach(0, guest);
    on.pri.send(raw(1, true, 1));
    assert_eq!(on.read(guest).len(), 1, "room again");
}

/// FAULT-2.7: requests lost of one function take the others' parts with them.
#[test]
fn parts_of_all_devices_go() {
    let mut on = Function::with(Options::default(), false, 4);
    let guest = on.consumer();
    let (second, other) = add(&mut on.lab, 2, false, 4);
    let hwpt = on.hwpt(guest.queue);
    on.lab.attach(second, 0, hwpt).unwrap();
    on.attach(0, guest);
    other.send(raw(1, false, 1));
    on.lab.iommufd.elapse();
    (0..5).for_each(|_| on.pri.send(raw(2, false, 1)));
    on.lab.iommufd.elapse();
    other.send(raw(1, true, 1));
    assert_eq!(on.read(guest).len(), 1);
}

/// FAULT-3.1: a reset. The groups that are complete stay the program's, as in
/// Linux; the function wants no answer to them any more, and no request that
/// comes after can get one of theirs.
#[test]
fn a_reset_of_the_function() {
    let mut on = Function::new(Mode::Linux);
    let guest = on.consumer();
    on.attach(0, guest);
    let before = on.ask(None);
    on.pri.send(raw(7, false, 1));
    let record = on.read_one(guest);
    on.pri.reset();
    on.pri.set_enabled(true, 512);
    on.pri.send(raw(7, true, 1));
    assert_eq!(on.read(guest).len(), 1, "its part went with the reset");
    let after = on.ask(None);
    let second = on.read_one(guest);
    assert_eq!(second.grpid, record.grpid);
    assert_eq!(on.write(guest, record.cookie, 0), Ok(8));
    assert_eq!((on.seen(), on.pri.status() & status::UNEXPECTED), (vec![], status::UNEXPECTED));
    on.write(guest, second.cookie, 0).unwrap();
    assert_eq!(on.seen(), [(after, Success)]);
    assert_ne!(before, after);
}

/// FAULT-3.1: a reset that answers (an extension): nothing of before is read or
/// answered any more, whether it was read or not, and the function is told
/// nothing, for it knows of none. Another function's requests stay.
#[test]
fn a_reset_that_answers() {
    for mode in [Mode::Seq, Mode::NineBit, Mode::Quarantined, Mode::Linux] {
        let mut on = Function::with(Options { fault_reset: FaultReset::Answer, ..mode.options() }, true, 512);
        let guest = on.consumer();
        on.attach(0, guest);
        on.ask(None);
        let read = on.read_one(guest);
        on.ask(None);
        assert!(on.is_readable(guest));
        on.pri.reset();
        on.pri.set_enabled(true, 512);
        on.lab.iommufd.elapse();
        assert!(!on.is_readable(guest), "{mode:?}");
        let late = if mode == Mode::Quarantined { Ok(8) } else { Err(Errno::EINVAL) };
        assert_eq!(on.write(guest, read.cookie, 0), late, "{mode:?}");
        let after = on.ask(None);
        let record = on.read_one(guest);
        on.write(guest, record.cookie, 0).unwrap();
        assert_eq!(on.seen(), [(after, Success)], "{mode:?}");
        assert_eq!(on.pri.status() & status::UNEXPECTED, 0, "{mode:?}");
    }
}

/// FAULT-4.4: answers to requests from before a reset give the function no
/// room for more than it may have outstanding.
#[test]
fn late_answers_make_no_room() {
    let mut on = Function::with(Mode::Seq.options(), true, 2);
    let guest = on.consumer();
    on.attach(0, guest);
    let before = [on.ask(None), on.ask(None)].map(|_| on.read_one(guest).cookie);
    on.pri.reset();
    on.pri.set_enabled(true, 2);
    let _after = [on.ask(None), on.ask(None)];
    on.read(guest);
    for cookie in before {
        assert_eq!(on.write(guest, cookie, 0), Ok(8));
    }
    // One that breaks its rule is dropped by the IOMMU.
    on.pri.send(raw(9, true, 1));
    assert_eq!(on.read(guest).len(), 0);
}

/// FAULT-3.1, FAULT-3.3: closing everything in any state answers everything once.
#[test]
fn closing_answers() {
    for close_queue_first in [false, true] {
        let mut on = Function::new(Mode::Seq);
        let guest = on.consumer();
        on.attach(0, guest);
        let tickets = [(); 3].map(|()| on.ask(None));
        on.read_one(guest);
        if close_queue_first {
            on.lab.iommufd.release(guest.file);
            assert_eq!(on.seen(), []);
        }
        let late = on.ask(None);
        on.lab.iommufd.unbind(on.lab.context, on.device);
        let mut seen = on.seen();
        seen.sort_unstable_by_key(|(ticket, _)| *ticket);
        assert_eq!(seen, [tickets[0], tickets[1], tickets[2], late].map(|ticket| (ticket, Invalid)));
        assert_eq!(on.pri.ask(None, Access::Read, 0), Asked::Off, "it is connected to nothing");
    }
}

/// A request that nobody answers has a deadline, if the lab says so (an
/// extension); FAULT-3.2: its end is no failure.
#[test]
fn deadlines() {
    const SECOND: u64 = 1_000_000_000;
    for (mode, late) in [(Mode::Seq, Err(uapi::Errno::EINVAL)), (Mode::Quarantined, Ok(8))] {
        let options = Options { fault_timeout: Some(SECOND), ..mode.options() };
        let mut on = Function::with(options, true, 512);
        let guest = on.consumer();
        on.attach(0, guest);
        assert_eq!(on.lab.iommufd.deadline(), None);
        let first = on.ask(None);
        let record = on.read_one(guest);
        on.advance(SECOND / 2);
        let second = on.ask(None);
        on.lab.iommufd.elapse();
        assert_eq!((on.lab.iommufd.deadline(), on.seen()), (Some(SECOND), vec![]));
        on.advance(SECOND / 2);
        on.lab.iommufd.elapse();
        assert_eq!(on.seen(), [(first, Invalid)]);
        assert_eq!(on.write(guest, record.cookie, 0), late);
        assert_eq!(on.seen(), []);
        let record = on.read_one(guest);
        on.write(guest, record.cookie, 0).unwrap();
        assert_eq!((on.seen(), on.lab.iommufd.deadline()), (vec![(second, Success)], None));
        let third = on.ask(None);
        on.lab.iommufd.elapse();
        on.advance(2 * SECOND);
        on.lab.iommufd.elapse();
        assert_eq!((on.seen(), on.is_readable(guest)), (vec![(third, Invalid)], false), "it was never read");
    }
    let mut on = Function::new(Mode::Seq);
    let guest = on.consumer();
    on.attach(0, guest);
    on.ask(None);
    on.lab.platform.now.store(u64::MAX, Ordering::Relaxed);
    on.lab.iommufd.elapse();
    assert_eq!((on.seen(), on.lab.iommufd.deadline()), (vec![], None), "as in Linux: never");
}

/// FAULT-5.10: an owed index is not shown again before the program has drained
/// its queue, or the function was reset.
#[test]
fn owed_indexes_are_not_shown() {
    for reset in [false, true] {
        let mut on = Function::new(Mode::Quarantined);
        let guest = on.consumer();
        on.attach(0, guest);
        on.ask(None);
        let owed = on.read_one(guest).grpid;
        on.detach(0);
        on.attach(0, guest);
        let shown = |on: &mut Function| {
            (0..1100).any(|_| {
                on.ask(None);
                let record = on.read_one(guest);
                on.write(guest, record.cookie, 0).unwrap();
                assert_eq!((record.grpid, record.cookie < 512), (record.cookie, true));
                record.grpid == owed
            })
        };
        assert!(!shown(&mut on));
        if reset {
            on.pri.reset();
            on.pri.set_enabled(true, 512);
        } else {
            assert_eq!(on.write(guest, u32::MAX, 1), Err(uapi::Errno::EINVAL));
            on.write(guest, u32::MAX, 0).unwrap();
        }
        assert!(shown(&mut on));
        on.seen();
    }
}

/// Without a way to send, a function's page requests are off.
#[test]
fn not_connected() {
    let pri = PageRequests::new(false);
    pri.set_enabled(true, 512);
    assert_eq!((pri.ask(None, Access::Read, 0), pri.is_on()), (Asked::Off, false));
    assert_eq!(pri.status(), 0);
}
