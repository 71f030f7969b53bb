// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draining page requests before an accelerator is moved (extension).
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod cards;

use caller::{Caller as _, FileId, Reply};
use cards::{
    GET, LEN, MEMORY, PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, SET, STOP, STOP_COPY, World, mov,
};
use host::tree::Node;
use models::dsa::spec::{Descriptor, flag, wqcfg};
use uapi::Errno;
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc, IoasMap};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd, PT_PASID};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, RESET};
use uapi::vfio::draining::{DRAIN, Drain, DrainFlags, DrainPages};
use zerocopy::{FromBytes as _, IntoBytes};

const PAGE: u64 = 4096;
/// IOVAs where nothing is mapped at first; the program's memory for them.
const HOLE: u64 = 1 << 40;
const BACKING: u64 = MEMORY + 0x10_0000;
const PASID: u32 = 5;

const ON: u32 = DrainFlags::ON.bits();
const UNDER_WAY: u32 = DrainFlags::UNDER_WAY.bits();

/// An accelerator whose page requests come to a program.
struct Paging {
    w: World,
    iommufd: FileId,
    ioas: u32,
    faults: FileId,
}

impl Paging {
    fn new(migration: &str) -> Paging {
        let mut w = World::new(&format!("[[device]]\nmodel = \"dsa\"\naddr = \"01:00.0\"\n{migration}\n"));
        let iommufd = w.host.open(Node::Iommufd, &w.client).unwrap();
        let device = w.host.open(Node::VfioCdev(0), &w.client).unwrap();
        let mut p = Paging { w, iommufd, ioas: 0, faults: iommufd };
        let bind = BindIommufd { argsz: 16, iommufd: p.w.client.fd(iommufd), ..BindIommufd::default() };
        let at = p.w.client.put(&bind);
        p.w.host.ioctl(device, BIND_IOMMUFD, at, &p.w.client).unwrap();
        let dev_id = p.w.client.get::<BindIommufd>(at).out_devid;
        p.w.add(device);
        p.ioas = p.call(IoasAlloc::default()).out_ioas_id;
        p.map(MEMORY, MEMORY, LEN);
        let queue = p.call(FaultQueueAlloc::default());
        p.faults = p.w.client.file(queue.out_fault_fd.cast_signed()).unwrap().unwrap();
        // A fault queue, and PASIDs.
        let base = HwptAlloc { flags: 4 | 8, fault_id: queue.out_fault_id, ..HwptAlloc::default() };
        let hwpt = p.call(HwptAlloc { dev_id, pt_id: p.ioas, ..base }).out_hwpt_id;
        let attach = AttachIommufdPt { argsz: 16, flags: PT_PASID, pt_id: hwpt, pasid: PASID };
        let at = p.w.client.put(&attach);
        p.w.host.ioctl(device, ATTACH_IOMMUFD_PT, at, &p.w.client).unwrap();
        p.w.enable(0, wqcfg::PASID_ENABLE | wqcfg::BLOCK_ON_FAULT);
        p
    }

    /// With draining asked for.
    fn draining(migration: &str) -> Paging {
        let mut p = Paging::new(migration);
        assert_eq!(p.ask(ON), Ok(()));
        p
    }

    fn call<T: Command>(&mut self, mut value: T) -> T {
        value.as_mut_bytes()[..4].copy_from_slice(&(size_of::<T>() as u32).to_ne_bytes());
        let at = self.w.client.put_bytes(value.as_bytes());
        self.w.host.ioctl(self.iommufd, T::REQUEST, at, &self.w.client).unwrap();
        self.w.client.get(at)
    }

    fn map(&mut self, iova: u64, user_va: u64, length: u64) {
        self.call(IoasMap { flags: 7, ioas_id: self.ioas, user_va, length, iova, ..IoasMap::default() });
    }

    fn descriptor(n: u64, source: u64) -> Descriptor {
        let descriptor = mov(source, MEMORY + 0x1000 + 8 * n, 8, MEMORY + 32 * n, flag::BLOCK_ON_FAULT);
        Descriptor { pasid: PASID, ..descriptor }
    }

    /// Submits a move of 8 bytes with the n-th record.
    fn submit(&mut self, n: u64, source: u64) {
        self.w.submit(0, &Paging::descriptor(n, source));
        self.w.run(0);
    }

    fn status(&self, n: u64) -> u8 {
        self.w.status(MEMORY + 32 * n)
    }

    /// Cookies of the requests that have come.
    fn requests(&mut self) -> Vec<u32> {
        let at = self.w.client.room(40 * 64);
        let Ok(Reply::Value(len)) = self.w.host.read(self.faults, 0, at, 40 * 64, &self.w.client) else { panic!() };
        let bytes = self.w.client.get_bytes(at, len as usize);
        bytes.chunks(40).map(|record| PageFault::read_from_bytes(record).unwrap().cookie).collect()
    }

    fn answer(&mut self, cookie: u32) {
        let at = self.w.client.put(&PageAnswer { cookie, code: 0 });
        self.w.host.write(self.faults, 0, at, 8, &self.w.client).unwrap();
        self.w.run(0);
    }

    /// A descriptor that waits for a page, and the request's cookie.
    fn blocked(&mut self) -> u32 {
        self.w.client.memory.store(BACKING, b"on time!");
        self.submit(0, HOLE);
        let [cookie] = self.requests()[..] else { panic!() };
        cookie
    }

    fn ask(&mut self, flags: u32) -> Result<(), Errno> {
        self.w.feature(0, SET | DRAIN, Drain { flags, count: 0 }.as_bytes()).0
    }

    fn told(&mut self) -> u32 {
        let (_, after) = self.w.feature(0, GET | DRAIN, Drain::default().as_bytes());
        Drain::read_from_bytes(&after).unwrap().flags
    }
}

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
