// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file of a fault queue: any bytes written to it, any requests of two
//! functions that keep no rules, attachments that come and go. Laws: nobody
//! panics, each request of a function that does keep them is answered once, and
//! nothing is kept of what is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arbitrary::Unstructured;
use caller::testing::{Client, TestPlatform};
use caller::{Accounts, Caller as _, FileId, FileIds};
use device::{Asked, PageRequests, PageTicket};
use iommu::{Access, PageRequest, PageResponder, PageResponseCode, Requester};
use iommufd::{
    Binding, Call, ContextId, DeviceProperties, FaultCookies, FaultReset, FaultTransport, Iommufd, ObjectId, Options,
};
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc};
use uapi::iommufd_events::PageAnswer;
use zerocopy::IntoBytes as _;

use crate::wire::{Blob, Number, Wire, operations, seed, wire};

wire! {
    /// What a program or a function does.
    enum Op {
        Ask { function: u8, pasid: u8 },
        /// A request as it comes.
        Send { function: u8, pasid: u32, group: u32, flags: u8, addr: Number },
        /// A stop marker.
        Stop { function: u8, pasid: u8 },
        Read { queue: u8, offset: u8, len: u16 },
        Write { queue: u8, offset: u8, len: Number, bytes: Blob },
        Answer { queue: u8, cookie: u32, code: u8 },
        Attach { function: u8, pasid: u8, queue: u8 },
        Replace { function: u8, pasid: u8, queue: u8 },
        Detach { function: u8, pasid: u8 },
        Reset { function: u8 },
        Enable { function: u8, on: bool, allocation: u16 },
        Close { queue: u8 },
        Wait { time: u16 },
    }
}

const ALLOCATION: u32 = 16;
const TIMEOUT: u64 = 5000;

struct Function {
    id: ObjectId,
    pri: Arc<PageRequests>,
    asked: BTreeSet<PageTicket>,
    attached: BTreeSet<u32>,
}

struct World {
    iommufd: Iommufd,
    platform: Arc<TestPlatform>,
    client: Client,
    files: FileIds,
    file: FileId,
    context: ContextId,
    functions: Vec<Function>,
    /// Files and HWPTs of the queues.
    queues: Vec<(FileId, u32)>,
}

impl World {
    fn new(settings: u8) -> World {
        let cookies = if settings & 1 == 0 { FaultCookies::Monotonic } else { FaultCookies::LowestFree };
        let transport = match settings >> 1 & 3 {
            0 | 3 => FaultTransport::Cookie,
            1 => FaultTransport::NineBit,
            _ => FaultTransport::Quarantine,
        };
        let fault_timeout = (settings & 8 != 0).then_some(TIMEOUT);
        let fault_reset = if settings & 32 == 0 { FaultReset::Keep } else { FaultReset::Answer };
        let options = Options {
            fault_cookies: cookies,
            fault_transport: transport,
            fault_timeout,
            fault_reset,
            ..Options::default()
        };
        let platform = Arc::<TestPlatform>::default();
        let mut iommufd = Iommufd::new(Arc::clone(&platform) as _, options, Accounts::new(false));
        let (mut files, client) = (FileIds::default(), Client::new(1));
        let file = files.allocate();
        iommufd.open(file, false);
        let context = iommufd.context(file).unwrap_or_else(|| panic!("an open file has a context"));
        let mut world =
            World { iommufd, platform, client, files, file, context, functions: Vec::new(), queues: Vec::new() };
        for group in 0..2 {
            let pri = PageRequests::new(settings & 16 != 0);
            let requester = Requester::new();
            let properties = DeviceProperties {
                max_pasids: 1 << 20,
                responder: Some(Arc::clone(&pri) as Arc<dyn PageResponder>),
                page_requests: ALLOCATION,
                ..DeviceProperties::default()
            };
            let members = vec![Arc::clone(&requester)];
            let binding = Binding { group, requester, members, properties };
            let id = world.iommufd.bind(context, binding).unwrap_or_else(|error| panic!("{error}"));
            pri.set_enabled(true, ALLOCATION);
            world.functions.push(Function { id, pri, asked: BTreeSet::new(), attached: BTreeSet::new() });
        }
        let ioas = world.call(IoasAlloc::default()).out_ioas_id;
        for _ in 0..2 {
            let queue = world.call(FaultQueueAlloc::default());
            let file = world.client.file(queue.out_fault_fd.cast_signed()).ok().flatten();
            let base = HwptAlloc { dev_id: world.functions[0].id.0, pt_id: ioas, ..HwptAlloc::default() };
            let hwpt = world.call(HwptAlloc { flags: 4 | 8, fault_id: queue.out_fault_id, ..base }).out_hwpt_id;
            world.queues.push((file.unwrap_or_else(|| panic!("a queue has a file")), hwpt));
        }
        world
    }

    fn call<T: Command>(&mut self, mut value: T) -> T {
        let size = size_of::<T>() as u32;
        value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        let at = self.client.put_bytes(value.as_bytes());
        let mut call = Call { caller: &self.client, files: &mut self.files };
        let result = self.iommufd.ioctl(self.file, T::REQUEST, at, &mut call);
        assert!(result.is_ok(), "{result:?}");
        self.client.get(at)
    }

    fn step(&mut self, op: &Op) {
        let function = |n: &u8| usize::from(n % 2);
        let queue = |n: &u8| usize::from(n % 2);
        let World { iommufd, client, functions, queues, context, .. } = self;
        match op {
            Op::Ask { function: n, pasid } => {
                let of = &mut functions[function(n)];
                let pasid = Some(u32::from(*pasid % 4)).filter(|pasid| *pasid > 0);
                if let Asked::Sent(ticket) = of.pri.ask(pasid, Access::Write, 0x1000) {
                    assert!(of.asked.insert(ticket), "a ticket twice");
                }
            }
            Op::Send { function: n, pasid, group, flags, addr } => {
                functions[function(n)].pri.send(PageRequest {
                    pasid: (flags & 1 != 0).then_some(*pasid),
                    group: *group,
                    last: flags & 2 != 0,
                    needs_pasid: flags & 4 != 0,
                    perm: u32::from(flags >> 3),
                    addr: addr.value(),
                    private_data: None,
                });
            }
            Op::Stop { function: n, pasid } => functions[function(n)].pri.stop(u32::from(*pasid)),
            Op::Read { queue: n, offset, len } => {
                let at = client.room(u64::from(*len));
                let read = iommufd.read(queues[queue(n)].0, u64::from(*offset / 200), at, u64::from(*len), client);
                assert!(read.is_ok_and(|read| read <= u64::from(*len) && read % 40 == 0) || read.is_err());
            }
            Op::Write { queue: n, offset, len, bytes } => {
                let at = client.put_bytes(&bytes.0);
                let len = if len.value() == 0 { bytes.0.len() as u64 } else { len.value() };
                let _ = iommufd.write(queues[queue(n)].0, u64::from(*offset / 200), at, len % (1 << 16), client);
            }
            Op::Answer { queue: n, cookie, code } => {
                let at = client.put_bytes(PageAnswer { cookie: *cookie, code: u32::from(code % 4) }.as_bytes());
                let _ = iommufd.write(queues[queue(n)].0, 0, at, 8, client);
            }
            Op::Attach { function: n, pasid, queue: to } => {
                let (of, pasid) = (&mut functions[function(n)], u32::from(pasid % 4));
                if iommufd.attach(*context, of.id, pasid, queues[queue(to)].1).is_ok() {
                    of.attached.insert(pasid);
                }
            }
            Op::Replace { function: n, pasid, queue: to } => {
                let of = &functions[function(n)];
                let _ = iommufd.replace(*context, of.id, u32::from(pasid % 4), queues[queue(to)].1);
            }
            Op::Detach { function: n, pasid } => {
                let (of, pasid) = (&mut functions[function(n)], u32::from(pasid % 4));
                if of.attached.remove(&pasid) {
                    iommufd.detach(*context, of.id, pasid);
                }
            }
            Op::Reset { function: n } => {
                let of = &mut functions[function(n)];
                of.pri.reset();
                of.pri.set_enabled(true, ALLOCATION);
                of.asked.clear();
            }
            Op::Enable { function: n, on, allocation } => {
                functions[function(n)].pri.set_enabled(*on, u32::from(*allocation));
            }
            Op::Close { queue: n } => iommufd.release(queues[queue(n)].0),
            Op::Wait { time } => {
                self.platform.now.fetch_add(u64::from(*time), Ordering::Relaxed);
                iommufd.elapse();
            }
        }
        self.check();
    }

    /// What a function takes is the answer to something that it has asked for.
    fn check(&mut self) {
        for function in &mut self.functions {
            for (ticket, code) in function.pri.take_answers() {
                assert!(function.asked.remove(&ticket), "a second answer, or one to nothing");
                assert_ne!(code, PageResponseCode::Failure, "no program can say that");
            }
        }
    }

    fn finish(mut self) {
        for n in 0..self.functions.len() {
            self.iommufd.unbind(self.context, self.functions[n].id);
        }
        self.check();
        for function in &self.functions {
            assert!(function.asked.is_empty(), "never answered: {:?}", function.asked);
            assert_eq!(function.pri.outstanding(), 0);
        }
        for (file, _) in &self.queues {
            self.iommufd.release(*file);
        }
        self.iommufd.release(self.file);
        assert!(self.iommufd.context(self.file).is_none());
    }
}

/// The body of the target `faults`.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or_default();
    let mut world = World::new(settings);
    for op in operations(&mut u, 200) {
        world.step(&op);
    }
    world.finish();
}

/// Seeds: each names what it does.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    let attach = |pasid| Op::Attach { function: 0, pasid, queue: 0 };
    let ask = |pasid| Op::Ask { function: 0, pasid };
    let read = || Op::Read { queue: 0, offset: 0, len: 400 };
    let answer = |cookie, code| Op::Answer { queue: 0, cookie, code };
    let part = || Op::Send { function: 1, pasid: 1, group: 3, flags: 8, addr: Number::of(0x5000) };
    let late = || [attach(1), ask(1), read(), Op::Detach { function: 0, pasid: 1 }, attach(1), ask(1), read()];
    vec![
        ("answered", s(0, &[attach(0), ask(0), ask(0), read(), answer(1, 0), answer(2, 1)])),
        ("late", s(0, &[&late()[..], &[answer(1, 0), answer(2, 0)]].concat())),
        ("late-nine-bits", s(2 | 16, &[&late()[..], &[answer(1 << 9 | 1 << 12, 0), answer(0, 0)]].concat())),
        ("late-owed", s(4, &[&late()[..], &[answer(0, 0), answer(1, 0), answer(u32::MAX, 0)]].concat())),
        ("twice", s(1, &[attach(0), ask(0), read(), answer(1, 0), answer(1, 1), ask(0), read(), answer(1, 0)])),
        ("deadline", s(8, &[attach(0), ask(0), read(), Op::Wait { time: 6000 }, answer(1, 0)])),
        (
            "flood",
            s(
                0,
                &[&vec![part(); 40][..], &[Op::Attach { function: 1, pasid: 0, queue: 1 }], &vec![part(); 40]].concat(),
            ),
        ),
        (
            "reset",
            s(0, &[attach(0), ask(0), read(), Op::Reset { function: 0 }, ask(0), read(), answer(1, 0), answer(2, 0)]),
        ),
        ("replaced", s(0, &[attach(2), ask(2), Op::Replace { function: 0, pasid: 2, queue: 1 }, ask(2), read()])),
        ("closed", s(0, &[attach(0), ask(0), Op::Close { queue: 0 }, ask(0), answer(1, 0)])),
        (
            "bytes",
            s(
                0,
                &[
                    attach(0),
                    ask(0),
                    read(),
                    Op::Write {
                        queue: 0,
                        offset: 0,
                        len: Number::of(0),
                        bytes: Blob(vec![1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]),
                    },
                ],
            ),
        ),
        (
            "off",
            s(
                0,
                &[
                    attach(0),
                    ask(0),
                    Op::Enable { function: 0, on: false, allocation: 0 },
                    ask(0),
                    Op::Stop { function: 0, pasid: 1 },
                ],
            ),
        ),
    ]
}
