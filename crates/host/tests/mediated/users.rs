// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that share an accelerator, each with a part of it.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::Arc;

use caller::testing::{Client, TestPlatform};
use caller::{Caller as _, FileId, Platform as _, Reply};
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
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT, GET_REGION_INFO};
use zerocopy::{FromBytes as _, IntoBytes};

pub(crate) const PAGE: u64 = 4096;
/// A program's memory, mapped at the same IOVA for records.
pub(crate) const MEMORY: u64 = 0x4000_0000;
/// IOVAs where nothing is mapped at first; the program's memory for them.
pub(crate) const HOLE: u64 = 1 << 40;
pub(crate) const BACKING: u64 = MEMORY + 0x10_0000;
/// Where results go.
pub(crate) const RESULTS: u64 = MEMORY + 0x1000;

const FAULT_ID_VALID: u32 = 4;
const PASIDS: u32 = 8;

/// Three parts of one accelerator.
pub(crate) const LAB: &str = "
[[device]]
model = \"dsa\"
addr = \"01:00.0\"
driver = \"idxd\"
[[device]]
model = \"dsa\"
parent = \"01:00.0\"
uuid = \"83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\"
pasid = 100
[[device]]
model = \"dsa\"
parent = \"01:00.0\"
group = \"none\"
[[device]]
model = \"dsa\"
parent = \"01:00.0\"
pasids = \"32-63\"
";

/// The lab that they share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) platform: Arc<TestPlatform>,
}

/// A program with one part.
pub(crate) struct User {
    pub(crate) client: Client,
    pub(crate) device: FileId,
    pub(crate) dev_id: u32,
    endpoint: Arc<Endpoint>,
    iommufd: FileId,
    ioas: u32,
    bars: [u64; 8],
}

/// A fault queue and its HWPT.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) file: FileId,
    pub(crate) hwpt: u32,
}

impl Shared {
    pub(crate) fn new(more: &str) -> Shared {
        let platform = Arc::<TestPlatform>::default();
        let lab = Lab::parse("test", &format!("{more}{LAB}")).unwrap();
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).unwrap();
        Shared { host, platform }
    }

    /// Program `number`, from 1, with part `number` from 0, set up to work.
    pub(crate) fn user(&mut self, number: u32) -> User {
        let client = Client::new(u64::from(number) + 1);
        client.memory.map(MEMORY, 16 << 20, true);
        let iommufd = self.host.open(Node::Iommufd, &client).unwrap();
        let device = self.host.open(Node::VfioCdev(number), &client).unwrap();
        let endpoint = Arc::clone(self.host.endpoints().nth(number as usize + 1).unwrap());
        let mut user = User { client, device, dev_id: 0, endpoint, iommufd, ioas: 0, bars: [0; 8] };
        let bind = BindIommufd { argsz: 16, iommufd: user.client.fd(iommufd), ..BindIommufd::default() };
        user.dev_id = user.vfio(self, BIND_IOMMUFD, bind).unwrap().out_devid;
        user.ioas = user.call(self, IoasAlloc::default()).unwrap().out_ioas_id;
        user.map(self, MEMORY, MEMORY, 16 << 20);
        for index in [0, 2, 7] {
            let at = user.client.put(&[32_u32, 0, index, 0, 0, 0, 0, 0]);
            self.host.ioctl(device, GET_REGION_INFO, at, &user.client).unwrap();
            user.bars[index as usize] = user.client.get(at + 24);
        }
        user.start(self);
        user
    }
}

impl User {
    /// Sets queue 0 up for PASIDs, queue 1 for work without one.
    pub(crate) fn start(&mut self, s: &mut Shared) {
        self.store(s, 7, u64::from(cap::COMMAND), &[6, 0]);
        let modes = [wqcfg::PASID_ENABLE | wqcfg::BLOCK_ON_FAULT | 1 << 4, wqcfg::DEDICATED | 2 | 1 << 4];
        for (queue, mode) in (0..).zip(modes) {
            let words = [(wqcfg::SIZE, 64), (wqcfg::THRESHOLD, 64), (wqcfg::MODE, mode), (wqcfg::LIMITS, 31 | 10 << 5)];
            for (word, value) in words {
                self.register(s, spec::WQCFG + 32 * queue + 4 * word as u64, value);
            }
        }
        self.register(s, spec::GRPCFG, 3);
        self.register(s, spec::GRPCFG + spec::GROUP_ENGINES, 1);
        self.register(s, spec::CMD, command::ENABLE_DEVICE << 20);
        self.register(s, spec::CMD, command::ENABLE_QUEUE << 20);
        self.register(s, spec::CMD, command::ENABLE_QUEUE << 20 | 1);
    }

    pub(crate) fn call<T: Command>(&mut self, s: &mut Shared, mut value: T) -> Result<T, Errno> {
        let size = size_of::<T>() as u32;
        value.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        let at = self.client.put_bytes(value.as_bytes());
        s.host.ioctl(self.iommufd, T::REQUEST, at, &self.client)?;
        Ok(self.client.get(at))
    }

    pub(crate) fn vfio<T: IntoBytes + zerocopy::FromBytes + zerocopy::Immutable>(
        &mut self,
        s: &mut Shared,
        request: u32,
        value: T,
    ) -> Result<T, Errno> {
        let at = self.client.put(&value);
        s.host.ioctl(self.device, request, at, &self.client)?;
        Ok(self.client.get(at))
    }

    pub(crate) fn map(&mut self, s: &mut Shared, iova: u64, user_va: u64, length: u64) {
        let map = IoasMap { flags: 7, ioas_id: self.ioas, user_va, length, iova, ..IoasMap::default() };
        self.call(s, map).unwrap();
    }

    pub(crate) fn queue(&mut self, s: &mut Shared) -> Queue {
        let made = self.call(s, FaultQueueAlloc::default()).unwrap();
        let file = self.client.file(made.out_fault_fd.cast_signed()).unwrap().unwrap();
        let (dev_id, pt_id, fault_id) = (self.dev_id, self.ioas, made.out_fault_id);
        let base = HwptAlloc { dev_id, pt_id, fault_id, ..HwptAlloc::default() };
        let hwpt = self.call(s, HwptAlloc { flags: FAULT_ID_VALID | PASIDS, ..base }).unwrap().out_hwpt_id;
        Queue { file, hwpt }
    }

    pub(crate) fn attach(&mut self, s: &mut Shared, pasid: u32, queue: Queue) -> Result<(), Errno> {
        let attach = AttachIommufdPt { argsz: 16, flags: PT_PASID, pt_id: queue.hwpt, pasid };
        self.vfio(s, ATTACH_IOMMUFD_PT, attach).map(drop)
    }

    /// What requests without a PASID go to.
    pub(crate) fn attach_own(&mut self, s: &mut Shared, queue: Queue) {
        let attach = AttachIommufdPt { argsz: 12, flags: 0, pt_id: queue.hwpt, pasid: 0 };
        self.vfio(s, ATTACH_IOMMUFD_PT, attach).unwrap();
    }

    pub(crate) fn detach(&mut self, s: &mut Shared, pasid: u32) {
        self.vfio(s, DETACH_IOMMUFD_PT, DetachIommufdPt { argsz: 12, flags: PT_PASID, pasid }).unwrap();
        self.run(s);
    }

    fn store(&mut self, s: &mut Shared, region: usize, offset: u64, bytes: &[u8]) {
        let at = self.client.put_bytes(bytes);
        s.host.write(self.device, self.bars[region] + offset, at, bytes.len() as u64, &self.client).unwrap();
    }

    pub(crate) fn load(&mut self, s: &mut Shared, region: usize, offset: u64) -> u32 {
        let at = self.client.room(4);
        s.host.read(self.device, self.bars[region] + offset, at, 4, &self.client).unwrap();
        self.client.get(at)
    }

    fn register(&mut self, s: &mut Shared, offset: u64, value: u32) {
        self.store(s, 0, offset, &value.to_le_bytes());
        self.run(s);
    }

    pub(crate) fn run(&self, s: &Shared) {
        while self.endpoint.turn(s.platform.now()) == Some(Turn::Busy) {}
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.endpoint.page_requests.outstanding()
    }

    /// Moves 8 bytes from `source` to the n-th result; the n-th record. With
    /// a PASID by queue 0, without by queue 1.
    pub(crate) fn submit(&mut self, s: &mut Shared, n: u64, pasid: Option<u32>, source: u64) {
        let completion = MEMORY + 32 * n;
        self.client.memory.store(completion, &[0; 32]);
        let flags = flag::RECORD | flag::REQUEST_RECORD | flag::BLOCK_ON_FAULT;
        let (destination, size) = (RESULTS + 8 * n, 8);
        let base = Descriptor::new(opcode::MOVE, flags);
        let descriptor = Descriptor { pasid: pasid.unwrap_or(0), completion, source, destination, size, ..base };
        let portal = if pasid.is_some() { 0 } else { 4 * PAGE };
        for (at, part) in (portal..).step_by(8).zip(descriptor.as_bytes().chunks(8)) {
            self.store(s, 2, at, part);
        }
        self.run(s);
    }

    pub(crate) fn status(&self, n: u64) -> u8 {
        self.client.get(MEMORY + 32 * n)
    }

    pub(crate) fn read(&mut self, s: &mut Shared, queue: Queue) -> Vec<PageFault> {
        let at = self.client.room(40 * 512);
        let Reply::Value(len) = s.host.read(queue.file, 0, at, 40 * 512, &self.client).unwrap() else { panic!() };
        let bytes = self.client.get_bytes(at, len as usize);
        bytes.chunks(40).map(|record| PageFault::read_from_bytes(record).unwrap()).collect()
    }

    pub(crate) fn read_one(&mut self, s: &mut Shared, queue: Queue) -> PageFault {
        let records = self.read(s, queue);
        let [record] = records[..] else { panic!("{records:?}") };
        record
    }

    pub(crate) fn answer(&mut self, s: &mut Shared, queue: Queue, cookie: u32, code: u32) -> Result<(), Errno> {
        let at = self.client.put(&PageAnswer { cookie, code });
        let result = s.host.write(queue.file, 0, at, 8, &self.client);
        self.run(s);
        result.map(drop)
    }
}
