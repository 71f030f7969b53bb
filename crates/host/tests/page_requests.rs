// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests through the whole lab: an accelerator finds no page, a program
//! reads of it from a fault queue, maps and answers, and the descriptor ends.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::Arc;
use std::sync::atomic::Ordering;

use caller::testing::{Client, TestPlatform};
use caller::{Caller as _, FileId, Platform as _, Reply};
use device::page_requests::status;
use device::{Endpoint, Turn};
use host::tree::Node;
use host::{Host, Lab};
use models::dsa::spec::{self, Descriptor, command, flag, opcode, wqcfg};
use pci::cap;
use sim::SimStorage;
use uapi::Errno;
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc, IoasMap};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd, DetachIommufdPt, PT_PASID};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT, GET_REGION_INFO, RESET};
use zerocopy::{FromBytes as _, IntoBytes};

const PAGE: u64 = 4096;
/// The program's memory, mapped at the same IOVA for records.
const MEMORY: u64 = 0x4000_0000;
const RECORD: u64 = MEMORY;
/// IOVAs where nothing is mapped at first; the program's memory for them.
const HOLE: u64 = 1 << 40;
const BACKING: u64 = MEMORY + 0x10_0000;

const FAULT_ID_VALID: u32 = 4;
const PASIDS: u32 = 8;

struct World {
    host: Host,
    platform: Arc<TestPlatform>,
    client: Client,
    iommufd: FileId,
    device: FileId,
    ioas: u32,
    dev_id: u32,
    bars: [u64; 8],
}

/// A fault queue and its HWPT.
#[derive(Clone, Copy)]
struct Queue {
    file: FileId,
    hwpt: u32,
}

impl World {
    fn new(fault: &str) -> World {
        World::with(fault, "")
    }

    /// With keys of the accelerator.
    fn with(fault: &str, keys: &str) -> World {
        let platform = Arc::<TestPlatform>::default();
        let text = format!("{fault}\n[[device]]\nmodel = \"dsa\"\naddr = \"01:00.0\"\n{keys}\n");
        let lab = Lab::parse("test", &text).unwrap();
        let mut host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).unwrap();
        let client = Client::new(1);
        client.memory.map(MEMORY, 16 << 20, true);
        let iommufd = host.open(Node::Iommufd, &client).unwrap();
        let device = host.open(Node::VfioCdev(0), &client).unwrap();
        let mut world = World { host, platform, client, iommufd, device, ioas: 0, dev_id: 0, bars: [0; 8] };
        let bind = BindIommufd { argsz: 16, iommufd: world.client.fd(iommufd), ..BindIommufd::default() };
        world.dev_id = world.vfio(BIND_IOMMUFD, bind).unwrap().out_devid;
        world.ioas = world.call(IoasAlloc::default()).unwrap().out_ioas_id;
        world.map(MEMORY, MEMORY, 16 << 20);
        for index in [0, 2, 7] {
            let info = [32_u32, 0, index, 0, 0, 0, 0, 0];
            let at = world.client.put(&info);
            world.host.ioctl(device, GET_REGION_INFO, at, &world.client).unwrap();
            world.bars[index as usize] = world.client.get(at + 24);
        }
        world
    }

    /// With a shared queue that lets descriptors wait.
    fn ready(fault: &str) -> World {
        World::new(fault).set_up()
    }

    fn set_up(self) -> World {
        let mut world = self;
        // Memory and bus mastering.
        world.store(7, u64::from(cap::COMMAND), &[6, 0]);
        let mode = wqcfg::PASID_ENABLE | wqcfg::BLOCK_ON_FAULT | 1 << 4;
        for (word, value) in
            [(wqcfg::SIZE, 64), (wqcfg::THRESHOLD, 64), (wqcfg::MODE, mode), (wqcfg::LIMITS, 31 | 10 << 5)]
        {
            world.register(spec::WQCFG + 4 * word as u64, value);
        }
        world.register(spec::GRPCFG, 1);
        world.register(spec::GRPCFG + spec::GROUP_ENGINES, 1);
        world.register(spec::CMD, command::ENABLE_DEVICE << 20);
        world.register(spec::CMD, command::ENABLE_QUEUE << 20);
        world
    }

    fn call<T: Command>(&mut self, mut value: T) -> Result<T, Errno> {
        let size = size_of::<T>() as u32;
        value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        let at = self.client.put_bytes(value.as_bytes());
        self.host.ioctl(self.iommufd, T::REQUEST, at, &self.client)?;
        Ok(self.client.get(at))
    }

    fn vfio<T: IntoBytes + zerocopy::FromBytes + zerocopy::Immutable>(
        &mut self,
        request: u32,
        value: T,
    ) -> Result<T, Errno> {
        let at = self.client.put(&value);
        self.host.ioctl(self.device, request, at, &self.client)?;
        Ok(self.client.get(at))
    }

    fn map(&mut self, iova: u64, user_va: u64, length: u64) {
        let map = IoasMap { flags: 7, ioas_id: self.ioas, user_va, length, iova, ..IoasMap::default() };
        self.call(map).unwrap();
    }

    fn queue(&mut self) -> Queue {
        let made = self.call(FaultQueueAlloc::default()).unwrap();
        let file = self.client.file(made.out_fault_fd.cast_signed()).unwrap().unwrap();
        let (dev_id, pt_id, fault_id) = (self.dev_id, self.ioas, made.out_fault_id);
        let base = HwptAlloc { dev_id, pt_id, fault_id, ..HwptAlloc::default() };
        let hwpt = self.call(HwptAlloc { flags: FAULT_ID_VALID | PASIDS, ..base }).unwrap().out_hwpt_id;
        Queue { file, hwpt }
    }

    fn attach(&mut self, pasid: u32, queue: Queue) {
        let attach = AttachIommufdPt { argsz: 16, flags: PT_PASID, pt_id: queue.hwpt, pasid };
        self.vfio(ATTACH_IOMMUFD_PT, attach).unwrap();
    }

    fn detach(&mut self, pasid: u32) {
        self.vfio(DETACH_IOMMUFD_PT, DetachIommufdPt { argsz: 12, flags: PT_PASID, pasid }).unwrap();
    }

    fn store(&mut self, region: usize, offset: u64, bytes: &[u8]) {
        let at = self.client.put_bytes(bytes);
        self.host.write(self.device, self.bars[region] + offset, at, bytes.len() as u64, &self.client).unwrap();
    }

    fn load(&mut self, region: usize, offset: u64) -> u32 {
        let at = self.client.room(4);
        self.host.read(self.device, self.bars[region] + offset, at, 4, &self.client).unwrap();
        self.client.get(at)
    }

    fn register(&mut self, offset: u64, value: u32) {
        self.store(0, offset, &value.to_le_bytes());
        self.run();
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(self.host.endpoints().next().unwrap())
    }

    /// Gives it turns as long as it is busy, with an end: one that may ask
    /// again at once never rests.
    fn run(&self) {
        let endpoint = self.endpoint();
        let mut turns = 20;
        while turns > 0 && endpoint.turn(self.platform.now()) == Some(Turn::Busy) {
            turns -= 1;
        }
    }

    /// Moves 8 bytes from the hole to the memory. The n-th has the n-th record.
    fn submit(&mut self, n: u64, pasid: u32, source: u64) {
        self.client.memory.store(RECORD + 32 * n, &[0; 32]);
        let flags = flag::RECORD | flag::REQUEST_RECORD | flag::BLOCK_ON_FAULT;
        let completion = RECORD + 32 * n;
        let (destination, size) = (MEMORY + 0x1000 + 8 * n, 8);
        let descriptor =
            Descriptor { pasid, completion, source, destination, size, ..Descriptor::new(opcode::MOVE, flags) };
        for (at, part) in (0..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.store(2, at, part);
        }
        self.run();
    }

    fn status(&self, n: u64) -> u8 {
        self.client.get(RECORD + 32 * n)
    }

    fn read(&mut self, queue: Queue) -> Vec<PageFault> {
        let at = self.client.room(40 * 512);
        let Reply::Value(len) = self.host.read(queue.file, 0, at, 40 * 512, &self.client).unwrap() else { panic!() };
        let bytes = self.client.get_bytes(at, len as usize);
        bytes.chunks(40).map(|record| PageFault::read_from_bytes(record).unwrap()).collect()
    }

    fn read_one(&mut self, queue: Queue) -> PageFault {
        let records = self.read(queue);
        let [record] = records[..] else { panic!("{records:?}") };
        record
    }

    fn answer(&mut self, queue: Queue, cookie: u32, code: u32) -> Result<Reply, Errno> {
        let at = self.client.put(&PageAnswer { cookie, code });
        let result = self.host.write(queue.file, 0, at, 8, &self.client);
        self.run();
        result
    }

    fn is_readable(&self, queue: Queue) -> bool {
        self.client.queues.borrow()[&queue.file].is_readable()
    }

    /// The capability's control, status, capacity and allocation.
    fn pri(&mut self) -> [u32; 4] {
        let address = "0000:01:00.0".parse().unwrap();
        let at =
            u64::from(self.host.board().fabric.function(address).unwrap().extended_capability(cap::EXT_PRI).unwrap());
        let first = self.load(7, at + 4);
        [first & 0xffff, first >> 16, self.load(7, at + 8), self.load(7, at + 12)]
    }
}

/// FAULT-2.1, FAULT-1.2, FAULT-1.5: the way of a request through everything.
#[test]
fn a_page_on_demand() {
    let mut w = World::ready("");
    let queue = w.queue();
    w.attach(5, queue);
    w.client.memory.store(BACKING + 0x18, b"on time!");
    w.submit(0, 5, HOLE + 0x18);
    assert!(w.is_readable(queue));
    let record = w.read_one(queue);
    assert_eq!((record.flags, record.dev_id, record.pasid), (7, w.dev_id, 5));
    assert_eq!((record.grpid, record.perm, record.addr, record.length), (0, 1, HOLE, 0));
    w.map(HOLE, BACKING, PAGE);
    w.answer(queue, record.cookie, 0).unwrap();
    assert_eq!(w.status(0), 1);
    assert_eq!(w.client.get_bytes(MEMORY + 0x1000, 8), b"on time!");
    w.submit(1, 5, HOLE + PAGE);
    let record = w.read_one(queue);
    w.answer(queue, record.cookie, 1).unwrap();
    assert_eq!(w.status(1), 3, "refused: a page fault");
    assert_eq!(w.pri()[1], 0x8000);
}

/// FAULT-4.3: what the host has set up, what the program sees of it and cannot
/// change, and what a reset leaves of it.
#[test]
fn the_capability() {
    let mut w = World::ready("");
    let on = [1, 0x8000, 512, 512];
    assert_eq!(w.pri(), on);
    let address = "0000:01:00.0".parse().unwrap();
    let at = u64::from(w.host.board().fabric.function(address).unwrap().extended_capability(cap::EXT_PRI).unwrap());
    w.store(7, at + 4, &[0, 0, 0, 0]);
    w.store(7, at + 12, &[9, 0, 0, 0]);
    assert_eq!(w.pri(), on);
    w.host.ioctl(w.device, RESET, 0, &w.client).unwrap();
    assert_eq!(w.pri(), on, "enabled again, nothing out");
}

/// FAULT-3.1: detaching, and closing the device, answer; FAULT-4.5: an answer
/// that comes after a reset is unexpected, and reaches no new request.
#[test]
fn the_host_answers() {
    let mut w = World::ready("");
    let queue = w.queue();
    w.attach(5, queue);
    w.attach(6, queue);
    w.submit(0, 5, HOLE);
    w.submit(1, 6, HOLE);
    let records = w.read(queue);
    w.detach(5);
    w.run();
    assert_eq!(w.status(0), 0, "the PASID's record cannot be written any more");
    assert_eq!(w.load(0, spec::SWERROR) >> 8 & 0xff, 0x1a);
    assert_eq!(w.answer(queue, records[0].cookie, 0), Err(Errno::EINVAL));
    w.host.ioctl(w.device, RESET, 0, &w.client).unwrap();
    assert_eq!(w.answer(queue, records[1].cookie, 0), Ok(Reply::Value(8)), "as in Linux");
    assert_eq!((w.status(1), w.pri()[1]), (0, 0x8000 | u32::from(status::UNEXPECTED)));
    let pri = Arc::clone(&w.endpoint().page_requests);
    w.host.release(w.device);
    assert_eq!(pri.outstanding(), 0);
}

/// FAULT-2.2: nobody takes requests of a domain without a queue: the host is
/// woken, and answers.
#[test]
fn without_a_queue() {
    let mut w = World::ready("");
    let attach = AttachIommufdPt { argsz: 16, flags: PT_PASID, pt_id: w.ioas, pasid: 0 };
    w.vfio(ATTACH_IOMMUFD_PT, AttachIommufdPt { flags: 0, argsz: 12, ..attach }).unwrap();
    let plain = HwptAlloc { dev_id: w.dev_id, pt_id: w.ioas, flags: PASIDS, ..HwptAlloc::default() };
    w.vfio(ATTACH_IOMMUFD_PT, DetachIommufdPt::default()).unwrap_err();
    w.vfio(DETACH_IOMMUFD_PT, DetachIommufdPt { argsz: 12, ..DetachIommufdPt::default() }).unwrap();
    let hwpt = w.call(plain).unwrap().out_hwpt_id;
    w.vfio(ATTACH_IOMMUFD_PT, AttachIommufdPt { pt_id: hwpt, pasid: 4, ..attach }).unwrap();
    w.submit(0, 4, HOLE);
    assert_eq!(w.status(0), 0);
    w.host.elapse();
    w.run();
    assert_eq!(w.status(0), 3);
}

/// A request that nobody answers, with a deadline (an extension).
#[test]
fn a_silent_program() {
    let mut w = World::ready("[fault]\ntimeout_ms = 20");
    let queue = w.queue();
    w.attach(5, queue);
    w.submit(0, 5, HOLE);
    w.host.elapse();
    assert_eq!(w.host.deadline(), Some(20_000_000));
    w.platform.now.store(20_000_000, Ordering::Relaxed);
    w.host.elapse();
    w.run();
    assert_eq!((w.status(0), w.is_readable(queue), w.host.deadline()), (3, false, None));
}

/// A program resets its device, with requests read and not read. Linux's queue
/// keeps both; with the extension the reset was their answer.
#[test]
fn a_reset_of_the_device() {
    for (keys, kept) in [("", true), ("[fault]\non_reset = \"answer\"", false)] {
        let mut w = World::ready(keys);
        let queue = w.queue();
        w.attach(5, queue);
        w.submit(0, 5, HOLE);
        let read = w.read_one(queue);
        w.submit(1, 5, HOLE + PAGE);
        assert!(w.is_readable(queue));
        w.vfio(RESET, 0u32).unwrap();
        w.host.elapse();
        assert_eq!(w.is_readable(queue), kept);
        assert_eq!(w.answer(queue, read.cookie, 0).is_ok(), kept);
    }
}

/// FAULT-5.4: two users of one function, each with PASIDs of its own.
#[test]
fn users_of_one_function() {
    let mut w = World::ready("");
    let queues = [w.queue(), w.queue()];
    w.attach(5, queues[0]);
    w.attach(6, queues[1]);
    w.submit(0, 5, HOLE);
    w.submit(1, 6, HOLE);
    let [first, second] = queues.map(|queue| w.read_one(queue));
    assert_eq!([first.pasid, second.pasid, first.grpid, second.grpid], [5, 6, 0, 1]);
    // PASID 5 goes from the one to the other.
    w.detach(5);
    w.attach(5, queues[1]);
    w.run();
    w.submit(2, 5, HOLE);
    let third = w.read_one(queues[1]);
    assert_eq!((third.pasid, third.grpid), (5, 0));
    assert_eq!(w.answer(queues[0], first.cookie, 1), Err(Errno::EINVAL));
    w.map(HOLE, BACKING, PAGE);
    w.answer(queues[1], third.cookie, 0).unwrap();
    w.answer(queues[1], second.cookie, 0).unwrap();
    assert_eq!([w.status(1), w.status(2)], [1, 1]);
}

/// Keys of `[fault]`, and what goes with what.
#[test]
fn lab_keys() {
    let transport = |text: &str| Lab::parse("test", text).map(|lab| lab.iommu.fault_transport);
    for (text, expected) in [
        ("[fault]\ntransport = \"9bit\"", iommufd::FaultTransport::NineBit),
        ("[fault]\ntransport = \"9bit\"\nquarantine = true", iommufd::FaultTransport::Quarantine),
        ("[fault]\ntransport = \"cookie\"", iommufd::FaultTransport::Cookie),
    ] {
        assert_eq!(transport(text).unwrap(), expected);
    }
    for (text, message) in [
        ("[fault]\nquarantine = true", "test:2:"),
        ("[fault]\ntransport = \"10bit\"", "`transport` is cookie or 9bit"),
        ("[fault]\non_reset = \"drop\"", "`on_reset` is keep or answer"),
        ("[fault]\ntimeout_ms = \"soon\"", "`timeout_ms`"),
    ] {
        let error = transport(text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// FAULT-2.7, FAULT-2.9, FAULT-4.4, FAULT-4.5: a device that breaks each of the
/// rules: its own requests end as they should, what it forges changes nothing,
/// and nothing of it stays.
#[test]
fn a_device_that_breaks_the_rules() {
    for rule in ["wrong-index", "no-last", "over-capacity", "after-stop", "wrong-pasid"] {
        let mut w = World::with("", &format!("page_requests = \"{rule}\"")).set_up();
        let queue = w.queue();
        w.attach(5, queue);
        w.client.memory.store(BACKING, b"in spite");
        w.map(HOLE + 8 * PAGE, BACKING, PAGE);
        for n in 0..8 {
            w.submit(n, 5, HOLE + n * PAGE);
            w.map(HOLE + n * PAGE, BACKING, PAGE);
            // Answering what is forged, and what was answered SUCCESS because
            // there was too much, may take several rounds.
            for _ in 0..4 {
                for record in w.read(queue).into_iter().filter(|record| record.flags & 2 != 0) {
                    w.answer(queue, record.cookie, 0).unwrap();
                }
                w.host.elapse();
                w.run();
            }
            assert_eq!(w.status(n), 1, "{rule}");
            assert_eq!(w.client.get_bytes(MEMORY + 0x1000 + 8 * n, 8), b"in spite", "{rule}");
        }
        let endpoint = w.endpoint();
        assert_eq!(endpoint.page_requests.outstanding(), 0, "{rule}");
        let unexpected = endpoint.page_requests.status() & status::UNEXPECTED != 0;
        assert_eq!(unexpected, rule != "no-last", "{rule}");
        assert!(w.read(queue).is_empty(), "{rule}");
        // Works as before, and closes.
        w.submit(20, 5, HOLE + 8 * PAGE);
        assert_eq!(w.status(20), 1, "{rule}");
        w.host.release(w.device);
    }
    let unknown = Lab::default().add_device("dsa,page_requests=sometimes").unwrap_err().to_string();
    assert!(unknown.contains("`sometimes` is none of wrong-index"), "{unknown}");
}

/// FAULT-4.4: however long it floods a program that reads nothing, what waits
/// is bounded by what it may have outstanding.
#[test]
fn a_flood_that_nobody_reads() {
    let mut w = World::with("", "page_requests = \"over-capacity no-last wrong-index\"").set_up();
    let queue = w.queue();
    w.attach(5, queue);
    for n in 0..40 {
        w.submit(n, 5, HOLE + n * PAGE);
        w.host.elapse();
    }
    let mut records = w.read(queue).len();
    for _ in 0..3 {
        records += w.read(queue).len();
    }
    assert!((1..=512).contains(&records), "{records}");
}
