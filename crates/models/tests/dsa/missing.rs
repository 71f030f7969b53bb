// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Missing pages that descriptors wait for (block-on-fault).

use std::sync::{Arc, Mutex};

use iommu::{
    AddressSpace, Mapping, PageRequest, PageRequestQueue, PageResponder as _, PageResponse, PageResponseCode, Prot,
};
use models::dsa::Config;
use models::dsa::spec::{Completion, Descriptor, command, flag, opcode, wqcfg};
use models::testing::{Access, Bench, TestMemory};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::fixture::{DATA, DEDICATED, Fixture, MEMORY, OTHER, RECORD, SHARED, fresh, moving, noise};

use PageResponseCode::{Failure, Invalid, Success};

/// Where nothing is mapped at first.
pub(crate) const HOLE: u64 = 1 << 32;
pub(crate) const PAGE: u64 = 0x1000;
const BLOCK: u32 = flag::BLOCK_ON_FAULT;

/// The IOMMU's side.
#[derive(Debug, Default)]
pub(crate) struct Requests(pub(crate) Mutex<Vec<PageRequest>>);

impl PageRequestQueue for Requests {
    fn send(&self, request: PageRequest) -> Option<PageResponse> {
        self.0.lock().unwrap().push(request);
        None
    }
}

pub(crate) struct Blocking {
    pub(crate) f: Fixture,
    requests: Arc<Requests>,
    /// Behind the hole.
    pub(crate) pages: Arc<TestMemory>,
    space: Arc<AddressSpace>,
}

impl Blocking {
    pub(crate) fn new(mode: u32, allocation: u32) -> Blocking {
        let mut f = fresh(Access::Mapped, Config::default());
        f.configure(0, 64, mode | wqcfg::BLOCK_ON_FAULT);
        f.enable(0);
        let requests = Arc::<Requests>::default();
        f.bench.endpoint.page_requests.connect(Some(Arc::clone(&requests) as _));
        f.bench.endpoint.page_requests.set_enabled(true, allocation);
        let space = f.bench.space.clone();
        Blocking { f, requests, pages: TestMemory::new(64 << 12, false), space }
    }

    /// The accelerator goes on as another one, on the same memory; the one that
    /// it was, and its requests.
    pub(crate) fn take_over(&mut self) -> (Bench, Arc<Requests>) {
        let source = self.f.take_over();
        let requests = std::mem::take(&mut self.requests);
        self.f.bench.endpoint.page_requests.connect(Some(Arc::clone(&self.requests) as _));
        self.f.bench.endpoint.page_requests.set_enabled(true, 512);
        self.space = self.f.bench.space.clone();
        (source, requests)
    }

    pub(crate) fn dedicated() -> Blocking {
        Blocking::new(DEDICATED, 512)
    }

    /// Submits with a completion record; the n-th has the n-th record.
    pub(crate) fn submit(&mut self, n: u64, descriptor: Descriptor) {
        let completion = RECORD + 32 * n;
        self.f.memory.set(completion, &[0; 32]);
        let flags = flag::RECORD | flag::REQUEST_RECORD | if descriptor.opcode() == opcode::DRAIN { 0 } else { BLOCK };
        let descriptor = Descriptor { operation: descriptor.operation | flags, completion, ..descriptor };
        self.f.submit(0, 0, &descriptor);
        self.f.bench.run();
    }

    pub(crate) fn status(&self, n: u64) -> u8 {
        self.f.record(RECORD + 32 * n).status
    }

    pub(crate) fn take(&self) -> Vec<PageRequest> {
        std::mem::take(&mut *self.requests.0.lock().unwrap())
    }

    #[track_caller]
    pub(crate) fn take_one(&self) -> PageRequest {
        let requests = self.take();
        let [request] = requests[..] else { panic!("{requests:x?}") };
        request
    }

    /// Maps the page that was asked for.
    pub(crate) fn map(&self, request: &PageRequest) {
        let first = request.addr;
        let prot = Prot::READ | Prot::WRITE;
        let memory = self.pages.clone();
        self.space.map(Mapping { first, last: first + PAGE - 1, prot, memory, offset: first - HOLE, tag: 0 }).unwrap();
    }

    pub(crate) fn answer(&self, request: &PageRequest, code: PageResponseCode) {
        self.f.bench.endpoint.page_requests.respond(PageResponse::to(request, code));
        self.f.bench.run();
    }
}

/// A move asks for each page as it comes to it, and goes on where it was.
#[test]
fn a_move_over_missing_pages() {
    let mut b = Blocking::dedicated();
    let bytes = noise(1, 3 * PAGE as usize);
    b.f.memory.set(DATA, &bytes);
    b.submit(0, moving(DATA, HOLE + 0x10, 0x2000));
    for page in 0..3 {
        assert_eq!(b.status(0), 0);
        let request = b.take_one();
        assert_eq!((request.addr, request.perm, request.group), (HOLE + page * PAGE, PageRequest::WRITE, 0));
        assert_eq!((request.pasid, request.last, request.needs_pasid), (None, true, false));
        b.map(&request);
        b.answer(&request, Success);
    }
    assert_eq!((b.status(0), b.take()), (1, vec![]));
    let mut there = vec![0; 0x2000];
    b.pages.get(0x10, &mut there);
    assert_eq!(there, bytes[..0x2000]);
    b.submit(1, moving(HOLE + 4 * PAGE - 8, OTHER, 16));
    let request = b.take_one();
    assert_eq!((request.addr, request.perm), (HOLE + 3 * PAGE, PageRequest::READ));
}

/// Refused pages end a descriptor where it was; a page that is not there after
/// all is asked for again.
#[test]
fn answers() {
    for code in [Invalid, Failure] {
        let mut b = Blocking::dedicated();
        b.submit(0, moving(DATA, HOLE - 16, 64));
        let first = b.take_one();
        b.answer(&first, code);
        assert_eq!(b.status(0), 0x83);
        let record = b.f.record(RECORD);
        assert_eq!((record.done, record.address), (0, HOLE - 16));
        b.submit(1, moving(DATA, HOLE, 64));
        assert_eq!(b.take().len(), usize::from(code == Invalid), "FAULT-4.5: a failure is the last");
        assert_eq!(b.status(1), if code == Failure { 0x83 } else { 0 });
    }
    let mut b = Blocking::dedicated();
    b.submit(0, moving(HOLE, DATA, 64));
    let first = b.take_one();
    b.answer(&first, Success);
    let second = b.take_one();
    assert_eq!((second.addr, second.group), (first.addr, first.group));
    assert_ne!(second.private_data, first.private_data);
    b.answer(&first, Success);
    assert_eq!(b.take(), [], "an answer to the first does nothing for the second");
    b.map(&second);
    b.answer(&second, Success);
    assert_eq!(b.status(0), 1);
}

/// Those behind go on; as many wait as may have requests out, the rest until
/// there is room.
#[test]
fn others_go_on() {
    let mut b = Blocking::new(DEDICATED, 3);
    for n in 0..5 {
        b.submit(n, moving(HOLE + n * PAGE, DATA + n * PAGE, 64));
    }
    b.submit(5, moving(DATA, OTHER, 64));
    assert_eq!(b.status(5), 0, "the queue stalls at the fourth");
    let mut requests = b.take();
    assert_eq!(requests.iter().map(|r| r.group).collect::<Vec<_>>(), [0, 1, 2]);
    let last = requests.pop().unwrap();
    b.answer(&last, Invalid);
    assert_eq!(b.status(2), 3);
    requests.extend(b.take());
    while let Some(request) = requests.pop() {
        b.map(&request);
        b.answer(&request, Success);
        requests.extend(b.take());
    }
    assert_eq!([0, 1, 3, 4, 5].map(|n| b.status(n)), [1; 5]);
}

/// A drain waits for what waits.
#[test]
fn a_drain_waits() {
    let mut b = Blocking::dedicated();
    b.submit(0, moving(HOLE, DATA, 64));
    b.submit(1, Descriptor::new(opcode::DRAIN, 0));
    assert_eq!(b.status(1), 0);
    let request = b.take_one();
    b.map(&request);
    b.answer(&request, Success);
    assert_eq!([b.status(0), b.status(1)], [1, 1]);
}

/// Each step of a batch: its list, one of its descriptors, that one's record,
/// its own record.
#[test]
fn batches() {
    let mut b = Blocking::dedicated();
    let (list, source, record, last) = (HOLE, HOLE + PAGE, HOLE + 2 * PAGE, HOLE + 3 * PAGE);
    let flags = flag::RECORD | flag::REQUEST_RECORD | BLOCK;
    let inner = |completion, from| Descriptor {
        operation: moving(0, 0, 0).operation | flags,
        completion,
        ..moving(from, OTHER, 8)
    };
    b.pages.set(0, [inner(record, source), inner(RECORD + 64, DATA)].as_bytes());
    let batch = Descriptor { source: list, size: 2, completion: last, ..Descriptor::new(opcode::BATCH, flags) };
    b.f.submit(0, 0, &batch);
    b.f.bench.run();
    for page in [list, source, record, last] {
        let request = b.take_one();
        assert_eq!(request.addr, page);
        b.map(&request);
        b.answer(&request, Success);
    }
    let status = |at: u64| {
        let mut bytes = [0; 32];
        b.pages.get(at - HOLE, &mut bytes);
        Completion::read_from_bytes(&bytes).unwrap().status
    };
    assert_eq!([status(record), status(last), b.f.record(RECORD + 64).status], [1; 3]);
    assert_eq!(b.f.error(), 0);
}

/// The page of a completion record does not come: a software error.
#[test]
fn a_record_that_cannot_be_written() {
    let mut b = Blocking::dedicated();
    let descriptor = Descriptor { completion: HOLE, ..Descriptor::new(opcode::NO_OPERATION, 0xc) };
    b.f.submit(0, 0, &descriptor);
    b.f.bench.run();
    let request = b.take_one();
    assert_eq!((b.f.error(), request.perm), (0, PageRequest::WRITE));
    b.answer(&request, Invalid);
    assert_eq!(b.f.error() >> 8 & 0xff, 0x1a);
    assert_eq!(b.f.command(command::DRAIN_ALL, 0), 0);
}

/// The list of a batch does not come.
#[test]
fn a_list_that_cannot_be_read() {
    let mut b = Blocking::dedicated();
    b.submit(0, Descriptor { source: HOLE, size: 2, ..Descriptor::new(opcode::BATCH, 0) });
    let request = b.take_one();
    b.answer(&request, Invalid);
    assert_eq!((b.status(0), b.f.record(RECORD).address), (6, HOLE));
}

/// FAULT-4.8: a request has the PASID of its descriptor, an index of the
/// function's; the answer must have the PASID.
#[test]
fn pasids() {
    let mut b = Blocking::new(SHARED, 512);
    for pasid in [7, 9] {
        let space = AddressSpace::new();
        let (memory, prot) = (b.f.memory.clone(), Prot::READ | Prot::WRITE);
        space.map(Mapping { first: 0, last: MEMORY as u64 - 1, prot, memory, offset: 0, tag: 0 }).unwrap();
        b.f.bench.endpoint.requester.attach_pasid(pasid, Some(space.clone().into()));
        b.space = space;
    }
    for (n, pasid) in [(0, 7), (1, 9)] {
        b.submit(n, Descriptor { pasid, ..moving(HOLE, DATA, 8) });
    }
    let requests = b.take();
    assert_eq!(requests.iter().map(|r| (r.pasid, r.group)).collect::<Vec<_>>(), [(Some(7), 0), (Some(9), 1)]);
    assert!(requests.iter().all(|request| request.needs_pasid));
    b.map(&requests[1]);
    b.answer(&PageRequest { pasid: Some(7), ..requests[1] }, Success);
    assert_eq!(b.status(1), 0);
    b.answer(&requests[1], Success);
    assert_eq!([b.status(0), b.status(1)], [0, 1]);
    assert_eq!(b.f.command(command::ABORT_PASID, 7), 0);
    assert!(b.take_one().is_stop_marker());
    assert_eq!(b.f.command(command::DRAIN_ALL, 0), 0, "nothing is left");
    b.answer(&requests[0], Success);
    assert_eq!(b.status(0), 0, "it is gone");
}

/// A PASID that is attached to nothing is no missing page.
#[test]
fn a_pasid_of_nobody() {
    let mut b = Blocking::new(SHARED, 512);
    b.submit(0, Descriptor { pasid: 3, ..moving(DATA, OTHER, 8) });
    assert_eq!((b.take(), b.f.error() >> 8 & 0xff), (vec![], 0x1a));
}

/// Aborting and resetting leave nothing that waits, and answers that come
/// later nothing to do.
#[test]
fn aborts_and_resets() {
    for reset in [false, true] {
        let mut b = Blocking::dedicated();
        b.submit(0, moving(HOLE, DATA, 8));
        let request = b.take_one();
        if reset {
            b.f.bench.endpoint.reset(device::ResetKind::FunctionLevel, 0);
        } else {
            assert_eq!(b.f.command(command::ABORT_QUEUE, 1), 0);
        }
        b.map(&request);
        b.answer(&request, Success);
        assert_eq!((b.status(0), b.take()), (0, vec![]));
        let unexpected = b.f.bench.endpoint.page_requests.status() & device::page_requests::status::UNEXPECTED;
        assert_eq!(unexpected != 0, reset, "after an abort the index is still out");
    }
}

/// Without page requests a fault is the end, as without the flag.
#[test]
fn page_requests_are_off() {
    let mut b = Blocking::dedicated();
    b.f.bench.endpoint.page_requests.set_enabled(false, 0);
    b.submit(0, moving(HOLE, DATA, 8));
    assert_eq!((b.status(0), b.take()), (3, vec![]));
}

/// A pattern goes on where it was, also in its middle.
#[test]
fn patterns_go_on() {
    let mut b = Blocking::dedicated();
    let pattern = 0x8877_6655_4433_2211_u64;
    let fill =
        |destination, size| Descriptor { source: pattern, destination, size, ..Descriptor::new(opcode::FILL, 0) };
    b.submit(0, fill(HOLE + PAGE - 3, 16));
    for _ in 0..2 {
        let request = b.take_one();
        b.map(&request);
        b.answer(&request, Success);
    }
    let mut there = [0; 16];
    b.pages.get(PAGE - 3, &mut there);
    assert_eq!(there, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88].repeat(2)[..]);
    assert_eq!(b.status(0), 1);
}
