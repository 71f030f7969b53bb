// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draining page requests before an accelerator is moved (extension).
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod cards;

use cards::paging::{BACKING, HOLE, ON, PAGE, Paging, UNDER_WAY};
use cards::{GET, MEMORY, PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, SET, STOP, STOP_COPY};
use device::DeviceFile as _;
use uapi::Errno;
use uapi::vfio::device::RESET;
use uapi::vfio::draining::{DRAIN, Drain, DrainPages};
use zerocopy::{FromBytes as _, IntoBytes as _};

const P2P: &str = "migration = \"p2p\"";
const FULL: &str = "migration = \"pre-copy-p2p\"";

/// MIG-100, MIG-101: who has not asked gets no descriptor and may go to STOP.
#[test]
fn without_asking_nothing_is_new() {
    let mut p = Paging::new(FULL);
    p.blocked();
    assert_eq!(p.told(), 0);
    assert_eq!(p.w.set(0, RUNNING_P2P), Ok(-1));
    assert_eq!(p.w.set(0, RUNNING), Ok(-1));
    assert_eq!(p.w.set(0, STOP), Ok(-1));
    // One who has asked and takes it back is like one who has not.
    p.w.set(0, RUNNING).unwrap();
    p.ask(ON).unwrap();
    p.ask(0).unwrap();
    assert_eq!(p.w.set(0, RUNNING_P2P), Ok(-1));
}

/// MIG-096, MIG-102: it returns at once, the regions work, nothing new begins,
/// and the eventfd counts once when the last answer has come, however late.
#[test]
fn the_eventfd_counts_once_when_it_is_over() {
    let mut p = Paging::draining(P2P);
    let cookie = p.blocked();
    let fd = p.w.set(0, RUNNING_P2P).unwrap();
    let counter = p.w.counter(fd);
    assert_eq!((p.w.state(0), p.told(), counter.peek()), (RUNNING_P2P, ON | UNDER_WAY, 0));
    assert_ne!(p.w.load(0, 0, 0), 0, "registers answer");
    p.submit(1, MEMORY);
    assert_eq!((p.status(0), p.status(1)), (0, 0));
    for target in [STOP, STOP_COPY, RESUMING] {
        assert_eq!(p.w.set(0, target), Err(Errno::EBUSY));
        assert_eq!((p.w.state(0), counter.peek()), (RUNNING_P2P, 0));
    }
    assert_eq!(p.ask(0), Err(Errno::EBUSY));
    assert_eq!(p.w.set(0, RUNNING_P2P), Ok(-1), "MIG-008: there already");
    p.map(HOLE, BACKING, PAGE);
    p.answer(cookie);
    assert_eq!((p.status(0), counter.peek(), p.told()), (1, 1, ON));
    assert_eq!(p.w.client.get_bytes(MEMORY + 0x1000, 8), b"on time!");
    p.submit(2, HOLE + PAGE);
    assert!(p.requests().is_empty(), "nothing new begins");
    assert_eq!((p.w.set(0, STOP), counter.take()), (Ok(-1), 1));
    assert_eq!(p.w.set(0, RUNNING), Ok(-1), "the way back drains nothing");
    p.w.run(0);
    assert_eq!(p.status(1), 1);
    assert_eq!(p.requests().len(), 1);
    assert_eq!(counter.take(), 0);
}

/// MIG-099, MIG-102: what is submitted while it drains moves, and is done where
/// it arrives.
#[test]
fn what_was_kept_is_done_at_the_destination() {
    let mut p = Paging::draining(P2P);
    let cookie = p.blocked();
    let fd = p.w.set(0, RUNNING_P2P).unwrap();
    p.submit(1, MEMORY + 0x8000);
    p.submit(2, HOLE + PAGE);
    p.map(HOLE, BACKING, PAGE);
    p.answer(cookie);
    assert_eq!(p.w.counter(fd).take(), 1);
    p.submit(3, MEMORY + 0x8000);
    let stream = p.w.set(0, STOP_COPY).unwrap();
    let state = p.w.save(stream);
    assert_eq!([0, 1, 2, 3].map(|n| p.status(n)), [1, 0, 0, 0]);

    let mut to = Paging::new(P2P);
    to.w.client.memory.store(MEMORY + 0x8000, b"replayed");
    to.w.client.memory.store(BACKING + PAGE, b"and this");
    to.w.resume(0, &state);
    to.w.set(0, RUNNING).unwrap();
    to.w.run(0);
    assert_eq!([0, 1, 2, 3].map(|n| to.status(n)), [0, 1, 0, 1], "what was done is not done again");
    let [cookie] = to.requests()[..] else { panic!() };
    to.map(HOLE, BACKING, 2 * PAGE);
    to.answer(cookie);
    assert_eq!(to.status(2), 1);
    assert_eq!(to.w.client.get_bytes(MEMORY + 0x1008, 16), b"replayedand this");
}

/// MIG-094, MIG-102: a guest that never answers holds up nothing for longer
/// than the program wants: back in RUNNING nothing is lost, and the eventfd
/// stays silent whatever comes.
#[test]
fn back_to_running_cancels() {
    for (from, via) in [(P2P, RUNNING_P2P), (FULL, PRE_COPY_P2P)] {
        let mut p = Paging::draining(from);
        let cookie = p.blocked();
        if via == PRE_COPY_P2P {
            assert!(p.w.set(0, PRE_COPY).unwrap() >= 0);
        }
        let fd = p.w.set(0, via).unwrap();
        p.submit(1, MEMORY);
        (0..1000).for_each(|_| p.w.run(0));
        assert_eq!(p.w.set(0, STOP_COPY), Err(Errno::EBUSY));
        assert_eq!(p.w.set(0, RUNNING), Ok(-1));
        p.w.run(0);
        assert_eq!((p.status(0), p.status(1), p.told()), (0, 1, ON));
        p.map(HOLE, BACKING, PAGE);
        p.answer(cookie);
        assert_eq!((p.status(0), p.w.counter(fd).peek()), (1, 0));
        // Another drain has an eventfd of its own.
        let again = p.w.set(0, RUNNING_P2P).unwrap();
        assert_eq!((p.w.counter(again).peek(), p.w.counter(fd).peek()), (1, 0), "nothing is outstanding");
    }
}

/// MIG-072, MIG-102: a reset ends a drain, and so does closing the device.
#[test]
fn a_reset_aborts() {
    let mut p = Paging::draining(P2P);
    let cookie = p.blocked();
    let fd = p.w.set(0, RUNNING_P2P).unwrap();
    let file = p.w.cards[0].file;
    p.w.host.ioctl(file, RESET, 0, &p.w.client).unwrap();
    p.w.run(0);
    assert_eq!((p.w.state(0), p.told()), (RUNNING, ON));
    p.map(HOLE, BACKING, PAGE);
    p.answer(cookie);
    assert_eq!((p.status(0), p.w.counter(fd).peek()), (0, 0));

    let mut p = Paging::draining(P2P);
    p.blocked();
    let fd = p.w.set(0, RUNNING_P2P).unwrap();
    let file = p.w.cards[0].file;
    p.w.host.release(file);
    p.w.run(0);
    assert_eq!(p.w.counter(fd).peek(), 0);
}

/// MIG-097, MIG-103: a drain is the last arc of a request, or the request is
/// refused and nothing has changed, also if there is nothing to drain.
#[test]
fn no_way_goes_on_behind_a_drain() {
    for blocks in [false, true] {
        let mut p = Paging::draining(FULL);
        if blocks {
            p.blocked();
        }
        for target in [STOP, STOP_COPY, RESUMING, PRE_COPY_P2P] {
            assert_eq!(p.w.set(0, target), Err(Errno::EINVAL));
            assert_eq!(p.w.state(0), RUNNING);
        }
        assert!(p.w.set(0, PRE_COPY).unwrap() >= 0);
        for target in [STOP, STOP_COPY, RESUMING] {
            assert_eq!(p.w.set(0, target), Err(Errno::EINVAL));
            assert_eq!(p.w.state(0), PRE_COPY);
        }
        let fd = p.w.set(0, RUNNING_P2P).unwrap();
        assert_eq!(p.w.counter(fd).peek(), u64::from(!blocks));
        // Into the other state without DMA the drain goes on.
        assert!(p.w.set(0, PRE_COPY_P2P).unwrap() >= 0);
        assert_eq!(p.told(), if blocks { ON | UNDER_WAY } else { ON });
        let end = if blocks { Err(Errno::EBUSY) } else { Ok(-1) };
        assert_eq!(p.w.set(0, STOP_COPY), end);
        assert_eq!(p.w.set(0, ERROR), Err(Errno::EINVAL));
        assert_eq!(p.w.set(0, 8), Err(Errno::EINVAL));
    }
}

const ERROR: u32 = 0;

/// MIG-024, MIG-102: in a saving session the stream stays as it is, and goes on
/// to its end when the drain is over.
#[test]
fn a_saving_session_goes_on() {
    let mut p = Paging::draining(FULL);
    let cookie = p.blocked();
    let stream = p.w.set(0, PRE_COPY).unwrap();
    let fd = p.w.set(0, PRE_COPY_P2P).unwrap();
    assert_ne!(fd, stream);
    assert_eq!(p.w.set(0, STOP_COPY), Err(Errno::EBUSY));
    p.map(HOLE, BACKING, PAGE);
    p.answer(cookie);
    assert_eq!(p.w.counter(fd).take(), 1);
    assert_eq!(p.w.set(0, STOP_COPY), Ok(-1));
    let state = p.w.save(stream);
    let mut to = Paging::new(FULL);
    to.w.resume(0, &state);
    assert_eq!(to.w.set(0, RUNNING), Ok(-1));
}

/// MIG-098, MIG-099: where submissions are made, so that a program can have
/// them come by `write` while the device drains.
#[test]
fn the_portals_are_told() {
    let mut p = Paging::draining(P2P);
    let head = |count| Drain { flags: 0, count };
    let (short, after) = p.w.feature(0, GET | DRAIN, head(0).as_bytes());
    assert_eq!((short, after), (Err(Errno::ENOSPC), Drain { flags: ON, count: 1 }.as_bytes().to_vec()));
    let room = [head(1).as_bytes(), &[0; 16]].concat();
    let (done, after) = p.w.feature(0, GET | DRAIN, &room);
    done.unwrap();
    let pages = DrainPages::read_from_bytes(&after[8..]).unwrap();
    assert_eq!(pages.offset, p.w.cards[0].regions[2]);
    assert!(pages.length.is_multiple_of(PAGE) && pages.length > 0);
    assert_eq!(p.w.feature(0, GET | DRAIN, &[0; 7]).0, Err(Errno::EINVAL));
    for (flags, count) in [(ON | UNDER_WAY, 0), (4, 0), (ON, 1)] {
        assert_eq!(p.w.feature(0, SET | DRAIN, Drain { flags, count }.as_bytes()).0, Err(Errno::EINVAL));
    }
    assert_eq!(p.w.feature(0, 7 << 16 | DRAIN, &[]).0, Ok(()), "a probe");
}

/// MIG-096, MIG-099: a store through a mapping of a portal that was there
/// before is not refused while the device drains: it is a submission like any
/// other, kept in its order, and done once where the device goes on.
#[test]
fn stores_through_a_mapping_are_kept() {
    let mut p = Paging::draining(P2P);
    let cookie = p.blocked();
    let fd = p.w.set(0, RUNNING_P2P).unwrap();
    let made = std::sync::Arc::clone(p.w.platform.made.lock().unwrap().last().unwrap());
    let window = made.window(2).unwrap();
    for n in 1..4 {
        let descriptor = Paging::descriptor(n, MEMORY + 0x8000);
        match n {
            2 => p.submit(n, MEMORY + 0x8000),
            _ => window.slice().subslice(0, 64).unwrap().copy_from(descriptor.as_bytes()),
        }
        p.w.run(0);
        let mut place = [0_u8; 16];
        window.slice().subslice(0, 16).unwrap().copy_to(&mut place[..]);
        assert_eq!(place, [0; 16], "taken, and not refused");
    }
    p.map(HOLE, BACKING, PAGE);
    p.answer(cookie);
    assert_eq!((p.w.counter(fd).take(), [0, 1, 2, 3].map(|n| p.status(n))), (1, [1, 0, 0, 0]));
    let stream = p.w.set(0, STOP_COPY).unwrap();
    let state = p.w.save(stream);
    let mut to = Paging::new(P2P);
    to.w.resume(0, &state);
    to.w.set(0, RUNNING).unwrap();
    to.w.run(0);
    assert_eq!([0, 1, 2, 3].map(|n| to.status(n)), [0, 1, 1, 1]);
}

/// The flags of the feature MIGRATION.
fn capabilities(p: &mut Paging) -> u64 {
    let (result, after) = p.w.feature(0, GET | 1, &[0; 8]);
    result.unwrap();
    u64::from_ne_bytes(after.try_into().unwrap())
}

/// MIG-001, MIG-098: what a device can does not depend on what it is attached
/// to, and whether there is something to drain does. So draining can always be
/// asked for, and is over at once where no page requests can be out.
#[test]
fn whatever_it_is_attached_to() {
    let mut p = Paging::draining(FULL);
    let (before, [faults, plain]) = (capabilities(&mut p), p.hwpts);
    for (n, table) in [Some(faults), Some(plain), None, Some(plain), Some(faults)].into_iter().enumerate() {
        match table {
            Some(table) => p.attach(0, table),
            None => p.detach(0),
        }
        assert_eq!((capabilities(&mut p), p.told()), (before, ON));
        p.submit(n as u64, HOLE + n as u64 * PAGE);
        let asked = p.requests();
        // Where nobody takes requests the host refuses them.
        p.w.run(0);
        assert_eq!(asked.len(), usize::from(table == Some(faults)), "table {n}: {table:?}");
        let fd = p.w.set(0, RUNNING_P2P).unwrap();
        assert_eq!(p.w.counter(fd).peek(), u64::from(asked.is_empty()));
        assert_eq!(p.told() & UNDER_WAY != 0, !asked.is_empty());
        for cookie in asked {
            p.map(HOLE + n as u64 * PAGE, BACKING, PAGE);
            p.answer(cookie);
        }
        assert_eq!((p.w.counter(fd).peek(), p.told()), (1, ON));
        assert_eq!((p.w.set(0, STOP), p.w.set(0, RUNNING)), (Ok(-1), Ok(-1)));
    }
}

/// MIG-098, FAULT-1.4: the table is replaced or taken away while the device
/// drains: the host answers what came through it, and the drain is over.
#[test]
fn the_table_goes_while_it_drains() {
    for replaced in [false, true] {
        let mut p = Paging::draining(FULL);
        let (cookie, plain) = (p.blocked(), p.hwpts[1]);
        let fd = p.w.set(0, RUNNING_P2P).unwrap();
        assert_eq!(p.w.set(0, STOP), Err(Errno::EBUSY));
        match replaced {
            true => p.attach(0, plain),
            false => p.detach(0),
        }
        p.w.run(0);
        assert_eq!((p.w.counter(fd).peek(), p.told()), (1, ON), "replaced: {replaced}");
        // The page is not there: an answer that comes now is nobody's.
        assert_ne!(p.status(0), 1);
        let _ = p.answer_with(cookie, 0);
        p.w.run(0);
        assert_eq!((p.w.set(0, STOP), p.w.counter(fd).take()), (Ok(-1), 1));
    }
}

/// MIG-102, MIG-103: a way back that fails, or fails to be undone, does not end
/// the drain silently: it goes on, or the device is in ERROR.
#[test]
fn a_failing_way_back_drains_on() {
    for (at, state) in [("before", RUNNING_P2P), ("after", RUNNING_P2P), ("middle", ERROR)] {
        let mut p = Paging::draining(&format!("{P2P}\nmigration_fails = \"RUNNING_P2P>RUNNING:{at}\""));
        let cookie = p.blocked();
        let fd = p.w.set(0, RUNNING_P2P).unwrap();
        assert_eq!(p.w.set(0, RUNNING), Err(Errno::EIO));
        assert_eq!((p.w.state(0), p.w.counter(fd).peek()), (state, 0), "{at}");
        if state == ERROR {
            assert_eq!((p.told(), p.w.set(0, STOP)), (ON, Err(Errno::EINVAL)));
        } else {
            assert_eq!((p.told(), p.w.set(0, STOP)), (ON | UNDER_WAY, Err(Errno::EBUSY)), "{at}");
        }
        p.map(HOLE, BACKING, PAGE);
        p.answer(cookie);
        assert_eq!(p.w.counter(fd).peek(), u64::from(state != ERROR), "{at}");
    }
}

/// MIG-019: without a number for the eventfd nothing has changed.
#[test]
fn no_descriptor_no_drain() {
    let mut p = Paging::draining(P2P);
    p.w.client.max_fds.set(0);
    assert_eq!(p.w.set(0, RUNNING_P2P), Err(Errno::EMFILE));
    assert_eq!(p.w.state(0), RUNNING);
    p.w.client.max_fds.set(1024);
    assert!(p.w.set(0, RUNNING_P2P).unwrap() >= 0);
    // A failing arc tells nobody either.
    let mut p = Paging::draining(&format!("{P2P}\nmigration_fails = \"RUNNING>RUNNING_P2P:after\""));
    p.blocked();
    assert_eq!(p.w.set(0, RUNNING_P2P), Err(Errno::EIO));
    assert_eq!((p.w.state(0), p.told()), (RUNNING, ON));
    assert!(p.w.set(0, RUNNING_P2P).unwrap() >= 0);
}

/// Not of devices that have no RUNNING_P2P, or stop all DMA by force.
#[test]
fn who_cannot_drain() {
    for text in ["", "migration = \"stop-copy\"", "migration = \"p2p\"\np2p_stop = \"bus-master\""] {
        assert_eq!(Paging::new(text).ask(ON), Err(Errno::ENOTTY), "{text}");
    }
}
