// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accelerators of one iommufd whose page requests come to the program.

use caller::{Caller as _, FileId, Reply};
use host::tree::Node;
use models::dsa::spec::{Descriptor, flag, wqcfg};
use uapi::Errno;
use uapi::iommufd::{Command, FaultQueueAlloc, HwptAlloc, IoasAlloc, IoasMap, IoasMapFile};
use uapi::iommufd_events::{PageAnswer, PageFault};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd, DetachIommufdPt, PT_PASID};
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT, FEATURE, feature};
use uapi::vfio::draining::{DRAIN, Drain, DrainFlags};
use zerocopy::{FromBytes as _, IntoBytes};

use super::{GET, LEN, MEMORY, SET, World, mov, portal};

pub(crate) const PAGE: u64 = 4096;
/// IOVAs where nothing is mapped at first; the program's memory for them.
pub(crate) const HOLE: u64 = 1 << 40;
pub(crate) const BACKING: u64 = MEMORY + 0x10_0000;
pub(crate) const PASID: u32 = 5;

pub(crate) const ON: u32 = DrainFlags::ON.bits();
pub(crate) const UNDER_WAY: u32 = DrainFlags::UNDER_WAY.bits();

/// Accelerators whose page requests come to a program.
pub(crate) struct Paging {
    pub(crate) w: World,
    pub(crate) iommufd: FileId,
    ioas: u32,
    pub(crate) faults: FileId,
    /// Tables with a fault queue and without.
    pub(crate) hwpts: [u32; 2],
}

impl Paging {
    /// One, with these keys.
    pub(crate) fn new(migration: &str) -> Paging {
        Paging::several(&[migration])
    }

    /// So many, each with its keys. They find each other's portals.
    pub(crate) fn several(migrations: &[&str]) -> Paging {
        let device = |(n, keys): (usize, &&str)| format!("[[device]]\nmodel = \"dsa\"\naddr = \"0{n}:00.0\"\n{keys}\n");
        let mut w = World::new(&(1..).zip(migrations).map(device).collect::<String>());
        let iommufd = w.host.open(Node::Iommufd, &w.client).unwrap();
        let mut p = Paging { w, iommufd, ioas: 0, faults: iommufd, hwpts: [0; 2] };
        p.ioas = p.call(IoasAlloc::default()).out_ioas_id;
        p.map(MEMORY, MEMORY, LEN);
        let queue = p.call(FaultQueueAlloc::default());
        p.faults = p.w.client.file(queue.out_fault_fd.cast_signed()).unwrap().unwrap();
        for card in 0..migrations.len() {
            let device = p.w.host.open(Node::VfioCdev(card as u32), &p.w.client).unwrap();
            let bind = BindIommufd { argsz: 16, iommufd: p.w.client.fd(iommufd), ..BindIommufd::default() };
            let at = p.w.client.put(&bind);
            p.w.host.ioctl(device, BIND_IOMMUFD, at, &p.w.client).unwrap();
            let dev_id = p.w.client.get::<BindIommufd>(at).out_devid;
            p.w.add(device);
            if card == 0 {
                // For PASIDs.
                let plain = HwptAlloc { flags: 8, dev_id, pt_id: p.ioas, ..HwptAlloc::default() };
                let faults = HwptAlloc { flags: 4 | 8, fault_id: queue.out_fault_id, ..plain };
                p.hwpts = [faults, plain].map(|hwpt| p.call(hwpt).out_hwpt_id);
            }
            p.attach(card, p.hwpts[0]);
            p.enable(card);
        }
        if migrations.len() > 1 {
            (0..migrations.len()).for_each(|card| p.connect(card));
        }
        p
    }

    /// Memory, bus mastering and a shared work queue, as after a reset.
    pub(crate) fn enable(&mut self, card: usize) {
        self.w.enable(card, wqcfg::PASID_ENABLE | wqcfg::BLOCK_ON_FAULT);
    }

    /// Attaches the PASID, or replaces what it is attached to.
    pub(crate) fn attach(&mut self, card: usize, pt_id: u32) {
        let attach = AttachIommufdPt { argsz: 16, flags: PT_PASID, pt_id, pasid: PASID };
        let at = self.w.client.put(&attach);
        self.w.host.ioctl(self.w.cards[card].file, ATTACH_IOMMUFD_PT, at, &self.w.client).unwrap();
    }

    pub(crate) fn detach(&mut self, card: usize) {
        let detach = DetachIommufdPt { argsz: 12, flags: PT_PASID, pasid: PASID };
        let at = self.w.client.put(&detach);
        self.w.host.ioctl(self.w.cards[card].file, DETACH_IOMMUFD_PT, at, &self.w.client).unwrap();
    }

    /// Maps a device's portals for all, by a dma-buf.
    fn connect(&mut self, card: usize) {
        let length = self.w.host.endpoints().nth(card).unwrap().portals()[0].2;
        let head = [48, GET | feature::DMA_BUF, 2, 2, 0, 1];
        let range = [0, length];
        let at = self.w.client.put_bytes(&[head.as_bytes(), range.as_bytes()].concat());
        let Ok(Reply::Value(fd)) = self.w.host.ioctl(self.w.cards[card].file, FEATURE, at, &self.w.client) else {
            panic!("no dma-buf")
        };
        let whole = IoasMapFile { fd: fd as i32, start: 0, length, iova: portal(card), ..IoasMapFile::default() };
        self.call(IoasMapFile { flags: 7, ioas_id: self.ioas, ..whole });
    }

    /// With draining asked for.
    pub(crate) fn draining(migration: &str) -> Paging {
        let mut p = Paging::new(migration);
        assert_eq!(p.ask(ON), Ok(()));
        p
    }

    pub(crate) fn call<T: Command>(&mut self, mut value: T) -> T {
        value.as_mut_bytes()[..4].copy_from_slice(&(size_of::<T>() as u32).to_ne_bytes());
        let at = self.w.client.put_bytes(value.as_bytes());
        self.w.host.ioctl(self.iommufd, T::REQUEST, at, &self.w.client).unwrap();
        self.w.client.get(at)
    }

    pub(crate) fn map(&mut self, iova: u64, user_va: u64, length: u64) {
        self.call(IoasMap { flags: 7, ioas_id: self.ioas, user_va, length, iova, ..IoasMap::default() });
    }

    pub(crate) fn descriptor(n: u64, source: u64) -> Descriptor {
        let descriptor = mov(source, MEMORY + 0x1000 + 8 * n, 8, MEMORY + 32 * n, flag::BLOCK_ON_FAULT);
        Descriptor { pasid: PASID, ..descriptor }
    }

    /// Submits a move of 8 bytes with the n-th record.
    pub(crate) fn submit(&mut self, n: u64, source: u64) {
        self.w.submit(0, &Paging::descriptor(n, source));
        self.w.run(0);
    }

    pub(crate) fn status(&self, n: u64) -> u8 {
        self.w.status(MEMORY + 32 * n)
    }

    /// Cookies of the requests that have come.
    pub(crate) fn requests(&mut self) -> Vec<u32> {
        self.faulted().into_iter().map(|(cookie, _)| cookie).collect()
    }

    /// The same with the addresses that are asked for.
    pub(crate) fn faulted(&mut self) -> Vec<(u32, u64)> {
        let at = self.w.client.room(40 * 64);
        let Ok(Reply::Value(len)) = self.w.host.read(self.faults, 0, at, 40 * 64, &self.w.client) else { panic!() };
        let bytes = self.w.client.get_bytes(at, len as usize);
        let record =
            |bytes: &[u8]| PageFault::read_from_bytes(bytes).map(|record| (record.cookie, record.addr)).unwrap();
        bytes.chunks(40).map(record).collect()
    }

    pub(crate) fn answer(&mut self, cookie: u32) {
        self.answer_with(cookie, 0).unwrap();
        self.w.run(0);
    }

    /// SUCCESS (0) or INVALID (1), with no turn.
    pub(crate) fn answer_with(&mut self, cookie: u32, code: u32) -> Result<Reply, Errno> {
        let at = self.w.client.put(&PageAnswer { cookie, code });
        self.w.host.write(self.faults, 0, at, 8, &self.w.client)
    }

    /// A descriptor that waits for a page, and the request's cookie.
    pub(crate) fn blocked(&mut self) -> u32 {
        self.w.client.memory.store(BACKING, b"on time!");
        self.submit(0, HOLE);
        let [cookie] = self.requests()[..] else { panic!() };
        cookie
    }

    pub(crate) fn ask(&mut self, flags: u32) -> Result<(), Errno> {
        self.ask_of(0, flags)
    }

    pub(crate) fn ask_of(&mut self, card: usize, flags: u32) -> Result<(), Errno> {
        self.w.feature(card, SET | DRAIN, Drain { flags, count: 0 }.as_bytes()).0
    }

    pub(crate) fn told(&mut self) -> u32 {
        self.told_of(0)
    }

    pub(crate) fn told_of(&mut self, card: usize) -> u32 {
        let (_, after) = self.w.feature(card, GET | DRAIN, Drain::default().as_bytes());
        Drain::read_from_bytes(&after).unwrap().flags
    }
}
