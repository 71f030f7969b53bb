// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device and a program for tests.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::{Arc, Mutex};

use ::device::Turn;
use ::device::virtio::{
    Latch, QueueSetup, QueueSpec, QueueState, VirtioDevice, VirtioEndpoint, VirtioIo, VirtioSpec, feature,
};
use caller::testing::{Client, Counter, TestPlatform};
use caller::{Accounts, FileId, FileIds};
use iommu::Requester;
use uapi::Errno;
use uapi::vhost::{ConfigHeader, IotlbMsg, MSG_V2, VringAddr, VringFile, VringState, iotlb, request};
use zerocopy::IntoBytes;

use crate::{ParentSpec, Vdpa};

/// What a test device has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Features that were set, one for each time.
    pub features: Vec<u64>,
    /// Queues that run, and how they were set up.
    pub running: Vec<(u16, QueueSetup)>,
    /// Kicks.
    pub kicks: Vec<u16>,
    /// Buffers taken.
    pub taken: u64,
    /// Looks at a ring that was not there.
    pub faults: u64,
    /// What was written to configuration space.
    pub config: Vec<u8>,
}

/// A device of split rings: each available buffer is used at once, in order;
/// bytes that the device reads are added up into those that it writes.
#[derive(Debug)]
pub struct LoopBack {
    spec: VirtioSpec,
    seen: Arc<Mutex<Seen>>,
    queues: Vec<Option<(QueueSetup, u16)>>,
}

impl LoopBack {
    /// A device and what it sees.
    #[must_use]
    pub fn new(spec: VirtioSpec) -> (LoopBack, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen { config: vec![0; spec.config_size as usize], ..Seen::default() }));
        (LoopBack { queues: vec![None; spec.queues.len()], spec, seen: Arc::clone(&seen) }, seen)
    }

    /// Like vdpa_sim's net device: two data queues, a control queue in a group
    /// of its own, two address spaces (VDPA-9.3).
    #[must_use]
    pub fn net() -> VirtioSpec {
        let queue = |group| QueueSpec { group, max_size: 256 };
        VirtioSpec {
            device_id: 1,
            vendor_id: 0x1af4,
            features: feature::VERSION_1 | feature::ACCESS_PLATFORM | feature::ANY_LAYOUT | 1 << 17,
            queues: vec![queue(0), queue(0), queue(1)],
            groups: 2,
            address_spaces: 2,
            config_size: 12,
        }
    }

    /// A block device: one queue, one group (VDPA-9.4).
    #[must_use]
    pub fn block() -> VirtioSpec {
        VirtioSpec {
            device_id: 2,
            queues: vec![QueueSpec { group: 0, max_size: 256 }],
            groups: 1,
            address_spaces: 1,
            config_size: 60,
            ..LoopBack::net()
        }
    }

    /// One available buffer; whether there was one. A fault of the ring ends it.
    fn serve(&self, dma: &Requester, setup: &QueueSetup, next: u16) -> Option<()> {
        let mut session = dma.session();
        let mut word = |iova: u64| {
            let mut bytes = [0; 2];
            let read = session.read(iova, &mut bytes);
            self.seen.lock().unwrap().faults += u64::from(read.is_err());
            read.ok().map(|()| u16::from_le_bytes(bytes))
        };
        if word(setup.driver + 2)? == next {
            return None;
        }
        let slot = u64::from(next % setup.size);
        let head = word(setup.driver + 4 + 2 * slot)?;
        let mut descriptor = [0; 16];
        session.read(setup.descriptors + 16 * u64::from(head), &mut descriptor).ok()?;
        let address = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
        let mut byte = [0];
        let fine = session.read(address, &mut byte).is_ok();
        if fine {
            session.write(address, &[byte[0].wrapping_add(1)]).ok();
        }
        let mut used = [0; 8];
        used[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        used[4..].copy_from_slice(&u32::from(fine).to_le_bytes());
        session.write(setup.device + 4 + 8 * slot, &used).ok()?;
        session.write(setup.device + 2, &next.wrapping_add(1).to_le_bytes()).ok()
    }
}

impl VirtioDevice for LoopBack {
    fn spec(&self) -> VirtioSpec {
        self.spec.clone()
    }

    fn set_features(&mut self, features: u64) {
        self.seen.lock().unwrap().features.push(features);
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let seen = self.seen.lock().unwrap();
        data.copy_from_slice(&seen.config[offset as usize..][..data.len()]);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.seen.lock().unwrap().config[offset as usize..][..data.len()].copy_from_slice(data);
    }

    fn start_queue(&mut self, _: &mut VirtioIo<'_>, queue: u16, setup: &QueueSetup) {
        self.queues[usize::from(queue)] = Some((*setup, setup.state.word() as u16));
        self.seen.lock().unwrap().running.push((queue, *setup));
    }

    fn stop_queue(&mut self, _: &mut VirtioIo<'_>, queue: u16) -> QueueState {
        let state = self.queue_state(queue);
        self.queues[usize::from(queue)] = None;
        self.seen.lock().unwrap().running.retain(|(running, _)| *running != queue);
        state
    }

    fn queue_state(&self, queue: u16) -> QueueState {
        QueueState::Split { avail: self.queues[usize::from(queue)].map_or(0, |(_, next)| next) }
    }

    fn kick(&mut self, queue: u16) {
        self.seen.lock().unwrap().kicks.push(queue);
    }

    fn turn(&mut self, io: &mut VirtioIo<'_>) -> Turn {
        let mut busy = false;
        for index in 0..self.queues.len() {
            let Some((setup, next)) = self.queues[index] else { continue };
            let group = self.spec.queues[index].group as usize;
            if self.serve(&io.dma[group], &setup, next).is_some() {
                self.queues[index] = Some((setup, next.wrapping_add(1)));
                self.seen.lock().unwrap().taken += 1;
                io.interrupts.queue(index as u16);
                busy = true;
            }
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    fn reset(&mut self, _: &mut VirtioIo<'_>) {}

    fn statistics(&self, _: u16) -> Option<Vec<(&'static str, u64)>> {
        Some(vec![("taken", self.seen.lock().unwrap().taken)])
    }

    fn set_mac(&mut self, mac: [u8; 6]) -> bool {
        self.seen.lock().unwrap().config[..6].copy_from_slice(&mac);
        true
    }
}

/// Where a program has a shared file.
pub const SHARED: u64 = 0x4000_0000;
/// Where it has private memory.
pub const PRIVATE: u64 = 0x8000_0000;
/// Length of each in bytes.
pub const AREA: u64 = 16 << 20;

/// A bus with one device, and a program that has its node open.
#[derive(Debug)]
pub struct Bench {
    /// The bus.
    pub vdpa: Vdpa,
    /// The machine.
    pub platform: Arc<TestPlatform>,
    /// Who calls.
    pub client: Client,
    /// The open node.
    pub file: FileId,
    /// The device.
    pub endpoint: Arc<VirtioEndpoint>,
    /// What it has seen.
    pub seen: Arc<Mutex<Seen>>,
    /// Pages that are pinned.
    pub accounts: Accounts,
    /// Ids of more files.
    pub ids: FileIds,
}

impl Bench {
    /// A device `dev` of this parent, open and owned.
    #[must_use]
    pub fn owned(spec: ParentSpec) -> Bench {
        let mut bench = Bench::new(spec);
        assert_eq!(bench.ioctl(request::SET_OWNER, 0), Ok(0));
        bench
    }

    /// The device that suits the parent: block behind the platform's IOMMU, net
    /// behind others.
    #[must_use]
    pub fn new(spec: ParentSpec) -> Bench {
        let device = if spec.mapping == crate::Mapping::Platform { LoopBack::block() } else { LoopBack::net() };
        Bench::with(spec, device)
    }

    /// A device `dev` of this kind, open.
    #[must_use]
    pub fn with(spec: ParentSpec, device: VirtioSpec) -> Bench {
        let platform = Arc::<TestPlatform>::default();
        let accounts = Accounts::new(false);
        let mut vdpa = Vdpa::new(Arc::clone(&platform) as _, accounts.clone());
        let (device, seen) = LoopBack::new(device);
        let endpoint = VirtioEndpoint::new(Box::new(device), Latch::Run);
        assert_eq!(vdpa.add("dev", Some("test"), spec, Arc::clone(&endpoint)), Ok(Some(0)));
        let mut ids = FileIds::default();
        let file = ids.allocate();
        assert_eq!(vdpa.open(file, 0), Ok(()));
        Bench { vdpa, platform, client: program(1), file, endpoint, seen, accounts, ids }
    }

    /// The program closes the node and opens it again.
    pub fn reopen(&mut self) {
        self.vdpa.release(self.file);
        self.file = self.ids.allocate();
        assert_eq!(self.vdpa.open(self.file, 0), Ok(()));
    }

    /// A request with its argument's address.
    pub fn ioctl(&mut self, number: u32, arg: u64) -> Result<u64, Errno> {
        self.vdpa.ioctl(self.file, number, arg, &self.client)
    }

    /// A request with its argument.
    pub fn set<T: IntoBytes + zerocopy::Immutable>(&mut self, number: u32, value: T) -> Result<u64, Errno> {
        let at = self.client.put(&value);
        self.ioctl(number, at)
    }

    /// A request that answers.
    pub fn get<T: zerocopy::FromBytes + IntoBytes>(&mut self, number: u32) -> Result<T, Errno> {
        let at = self.client.room(size_of::<T>() as u64);
        self.ioctl(number, at)?;
        Ok(self.client.get(at))
    }

    /// A request on a ring (or a group) with a number.
    pub fn ring(&mut self, number: u32, index: u32, num: u32) -> Result<u64, Errno> {
        self.set(number, VringState { index, num })
    }

    /// A request that answers with a number.
    pub fn ask(&mut self, number: u32, index: u32) -> Result<u32, Errno> {
        let at = self.client.put(&VringState { index, num: 0xdead });
        self.ioctl(number, at)?;
        let state: VringState = self.client.get(at);
        assert_eq!(state.index, index);
        Ok(state.num)
    }

    /// Binds an eventfd: 0x20 kick, 0x21 call, 0x22 error.
    pub fn bind(&mut self, number: u32, index: u32, fd: i32) -> Result<u64, Errno> {
        self.set(number, VringFile { index, fd })
    }

    /// Status byte.
    pub fn status(&mut self) -> u8 {
        self.get(request::VDPA_GET_STATUS).unwrap()
    }

    /// Sets it.
    pub fn set_status(&mut self, status: u8) -> Result<u64, Errno> {
        self.set(request::VDPA_SET_STATUS, status)
    }

    /// Reads configuration space.
    pub fn config(&mut self, off: u32, len: u32) -> Result<Vec<u8>, Errno> {
        let at = self.client.room(8 + 4096);
        self.client.memory.store(at, ConfigHeader { off, len }.as_bytes());
        self.ioctl(request::VDPA_GET_CONFIG, at)?;
        Ok(self.client.get_bytes(at + 8, len as usize))
    }

    /// Writes configuration space.
    pub fn set_config(&mut self, off: u32, data: &[u8]) -> Result<u64, Errno> {
        let header = ConfigHeader { off, len: data.len() as u32 };
        let at = self.client.put_bytes(&[header.as_bytes(), data].concat());
        self.ioctl(request::VDPA_SET_CONFIG, at)
    }

    /// A write of these bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<u64, Errno> {
        let at = self.client.put_bytes(bytes);
        self.vdpa.write(self.file, &[(at, bytes.len() as u64)], &self.client)
    }

    /// A message of version 2.
    pub fn message(&mut self, asid: u32, message: IotlbMsg) -> Result<u64, Errno> {
        self.write(&envelope(MSG_V2, asid, message))
    }

    /// Maps memory of the program for reading and writing.
    pub fn update(&mut self, asid: u32, iova: u64, size: u64, uaddr: u64) -> Result<u64, Errno> {
        let message = IotlbMsg { iova, size, uaddr, perm: iotlb::RW, kind: iotlb::UPDATE, pad: [0; 6] };
        self.message(asid, message)
    }

    /// Removes mappings.
    pub fn invalidate(&mut self, asid: u32, iova: u64, size: u64) -> Result<u64, Errno> {
        self.message(asid, IotlbMsg { iova, size, kind: iotlb::INVALIDATE, ..IotlbMsg::default() })
    }

    /// Begins or ends a batch.
    pub fn batch(&mut self, asid: u32, kind: u8) -> Result<u64, Errno> {
        self.message(asid, IotlbMsg { kind, ..IotlbMsg::default() })
    }

    /// Records of an address space.
    #[must_use]
    pub fn records(&self, asid: u32) -> Option<Vec<(u64, u64)>> {
        self.vdpa.records("dev", asid)
    }

    /// What the device reaches; `None` for everything.
    #[must_use]
    pub fn reach(&self, asid: u32) -> Option<Vec<(u64, u64)>> {
        self.vdpa.reach("dev", asid)
    }

    /// Whether the device can read a byte as a group, and which.
    #[must_use]
    pub fn dma(&self, group: u32, iova: u64) -> Option<u8> {
        let mut byte = [0];
        let requester = self.endpoint.requester(group).unwrap();
        requester.session().read(iova, &mut byte).ok().map(|()| byte[0])
    }

    /// Turns until nothing happens.
    pub fn settle(&self) {
        use ::device::Steppable as _;
        while self.endpoint.turn(0) == Some(Turn::Busy) {}
    }

    /// Features as a program takes them.
    pub fn negotiate(&mut self) {
        let features: u64 = self.get(request::GET_FEATURES).unwrap();
        assert_eq!(self.set_status(3), Ok(0));
        assert_eq!(self.set(request::SET_FEATURES, features), Ok(0));
        assert_eq!(self.set_status(0xb), Ok(0));
    }

    /// A ring of 16 at an IOVA that leads to zeros, not ready.
    pub fn set_ring(&mut self, queue: u32, iova: u64) {
        assert_eq!(self.ring(request::SET_VRING_NUM, queue, 16), Ok(0));
        assert_eq!(self.ring(request::SET_VRING_BASE, queue, 0), Ok(0));
        let addr =
            VringAddr { index: queue, desc: iova, avail: iova + 0x100, used: iova + 0x200, ..Default::default() };
        assert_eq!(self.set(request::SET_VRING_ADDR, addr), Ok(0));
    }

    /// Puts a buffer of one byte into a ring that lies at `ring` of the
    /// program's memory; it is the byte at IOVA `buffer`.
    pub fn post(&self, ring: u64, buffer: u64) {
        let memory = &self.client.memory;
        let mut bytes = [0; 2];
        memory.load(ring + 0x102, &mut bytes);
        let next = u16::from_le_bytes(bytes);
        let slot = u64::from(next % 16);
        memory.store(ring + 16 * slot, &buffer.to_le_bytes());
        memory.store(ring + 16 * slot + 8, &1u32.to_le_bytes());
        memory.store(ring + 0x104 + 2 * slot, &(slot as u16).to_le_bytes());
        memory.store(ring + 0x102, &next.wrapping_add(1).to_le_bytes());
    }

    /// How many buffers of the ring at `ring` were used, and how long the last
    /// one was: 1 if the device reached it.
    #[must_use]
    pub fn used(&self, ring: u64) -> (u16, u32) {
        let mut bytes = [0; 2];
        self.client.memory.load(ring + 0x202, &mut bytes);
        let used = u16::from_le_bytes(bytes);
        let mut len = [0; 4];
        self.client.memory.load(ring + 0x204 + 8 * u64::from(used.wrapping_sub(1) % 16) + 4, &mut len);
        (used, u32::from_le_bytes(len))
    }

    /// A fresh eventfd bound to a ring.
    pub fn event(&mut self, number: u32, queue: u32) -> Arc<Counter> {
        let (fd, counter) = self.client.eventfd();
        assert_eq!(self.bind(number, queue, fd), Ok(0));
        counter
    }

    /// Backend features acknowledged.
    pub fn ack(&mut self, features: u64) {
        assert_eq!(self.set(request::SET_BACKEND_FEATURES, features), Ok(0));
    }
}

/// A program with a shared file and private memory.
#[must_use]
pub fn program(number: u64) -> Client {
    let client = Client::new(number);
    let file = caller::testing::MemFile::new(number as u32, AREA);
    client.memory.map_file(SHARED, AREA, true, &file, 0);
    client.memory.map(PRIVATE, AREA, true);
    client
}

/// The bytes of a message.
#[must_use]
pub fn envelope(kind: u32, asid: u32, message: IotlbMsg) -> Vec<u8> {
    let mut bytes = vec![0; 72];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&asid.to_le_bytes());
    bytes[8..40].copy_from_slice(message.as_bytes());
    bytes
}
