// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab with its programs, one step at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use caller::{FileId, Reply};
use host::tree::Node;
use host::{FileKind, Host, Lab};
use models::testing::CountedEvent;
use pci::Address;
use uapi::Errno;
use uapi::vfio::{container, device as dev, group, type1};
use zerocopy::IntoBytes;

use crate::client::{BASE, Client, Fd, SIZE};
use crate::driver::{ARENA_IOVA, ARENA_LEN, Driver};
use crate::op::Op;
use crate::oracle::{File, Oracle};
use crate::platform::{SimPlatform, SimStorage};

/// A law was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) String);

pub(crate) type Step<T = ()> = Result<T, Broken>;

/// How much really happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Steps done.
    pub steps: usize,
    /// Times a program opened a device.
    pub opens: usize,
    /// Times a driver came up.
    pub starts: usize,
    /// Commands that completed.
    pub completions: usize,
    /// Accesses of devices to memory of programs.
    pub touches: usize,
    /// Drivers that came up on devices bound to `/dev/iommu`.
    pub bound_starts: usize,
    /// Mappings made there.
    pub bound_maps: usize,
    /// Mappings made.
    pub maps: usize,
    /// Errors recovered from.
    pub errors: usize,
    /// Devices moved through their stream.
    pub moves: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.steps += other.steps;
        self.opens += other.opens;
        self.starts += other.starts;
        self.completions += other.completions;
        self.touches += other.touches;
        self.bound_starts += other.bound_starts;
        self.bound_maps += other.bound_maps;
        self.maps += other.maps;
        self.errors += other.errors;
        self.moves += other.moves;
    }
}

/// Where arguments of calls lie in a program's memory.
const SCRATCH: u64 = BASE;
const PAGE: u64 = 4096;
/// IOVA of `iova_page` 0 of random maps: they reach into the arenas.
const IOVA: u64 = ARENA_IOVA - 64 * PAGE;
/// Turns in which an undisturbed device must be done with everything.
const PATIENCE: usize = 10_000;

/// Two controllers with groups of their own, two functions of one device that
/// share one.
const LAB: &str = r#"
[[device]]
model = "nvme"
addr = "01:00.0"
size = "256K"
queues = 2
migration = "pre-copy-p2p"
state_size = "70K"
[[device]]
model = "nvme"
addr = "02:00.0"
size = "256K"
block_size = 4096
queues = 2
migration = "stop-copy"
[[device]]
model = "nvme"
addr = "05:00.0"
size = "256K"
queues = 2
migration = "p2p"
[[device]]
model = "nvme"
addr = "05:00.1"
size = "256K"
queues = 2
"#;

pub(crate) struct World {
    pub(crate) host: Rc<RefCell<Host>>,
    platform: Arc<SimPlatform>,
    clients: Vec<Rc<Client>>,
    devices: Vec<Address>,
    pub(crate) oracle: Oracle,
    drivers: BTreeMap<FileId, Driver>,
    processes: u64,
    pub(crate) tally: Tally,
    /// The structure of the call under way as it was asked; the call overwrites it.
    pub(crate) asked: Vec<u8>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Step<World> {
        let broken = |e: &dyn std::fmt::Display| Broken(format!("the lab cannot be built: {e}"));
        let lab = Lab::parse("sim", LAB).map_err(|e| broken(&e))?;
        let platform = SimPlatform::new(seed);
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).map_err(|e| broken(&e))?;
        let devices =
            [(1, 0), (2, 0), (5, 0), (5, 1)].map(|(bus, function)| Address::new(0, bus, 0, function)).to_vec();
        Ok(World {
            host: Rc::new(RefCell::new(host)),
            platform,
            clients: vec![Rc::new(Client::new(1)), Rc::new(Client::new(2))],
            devices,
            oracle: Oracle::default(),
            drivers: BTreeMap::new(),
            processes: 2,
            tally: Tally::default(),
            asked: Vec::new(),
        })
    }

    /// Does one step and checks every law.
    pub(crate) fn step(&mut self, op: &Op) -> Step {
        self.tally.steps += 1;
        let mover = self.act(op)?;
        self.check_touches(mover)
    }

    /// Makes the observer believe that nothing is mapped: from now on each
    /// access breaks a law.
    #[cfg(test)]
    pub(crate) fn deceive(&mut self) {
        self.oracle.containers.values_mut().for_each(|c| c.maps.clear());
        self.oracle.iommufd.deceive();
    }

    /// Closes everything; nothing may be left.
    pub(crate) fn finish(&mut self) -> Step {
        self.resume_all();
        for device in self.devices.clone() {
            self.settle(device)?;
        }
        self.check_completions()?;
        for n in 0..self.clients.len() {
            self.kill(n);
        }
        self.check_touches(None)?;
        let open = self.host.borrow().open_files();
        if open != 0 {
            return Err(Broken(format!("{open} files are open after the last close")));
        }
        for process in 1..=self.processes {
            let counts = self.host.borrow().figures(caller::ProcessId(process));
            if counts != (0, 0) {
                return Err(Broken(format!("process {process} has {counts:?} pages locked and pinned for nothing")));
            }
        }
        for device in self.devices.clone() {
            self.turn(device);
            if self.host.borrow().is_open(device) {
                return Err(Broken(format!("{device} is open after the last close")));
            }
            if self.command(device) & 4 != 0 {
                return Err(Broken(format!("{device} may master the bus after the last close")));
            }
        }
        self.check_touches(None)
    }

    fn act(&mut self, op: &Op) -> Step<Option<Address>> {
        match *op {
            Op::OpenContainer { client } => {
                self.open_container(client.into());
            }
            Op::OpenGroup { client, device } => {
                self.open_group(client.into(), device.into());
            }
            Op::OpenDevice { client, device, v1 } => self.open_device(client.into(), device.into(), v1),
            Op::Map { client, fd, iova_page, page, pages, prot } => {
                if let Some((fd, _)) = self.pick(client, fd, FileKind::VfioContainer) {
                    let map = type1::DmaMap {
                        argsz: 32,
                        flags: prot.into(),
                        vaddr: BASE + u64::from(page) * PAGE,
                        iova: IOVA + u64::from(iova_page) * PAGE,
                        size: u64::from(pages) * PAGE,
                    };
                    let _ = self.ioctl(client.into(), fd, type1::MAP_DMA, map.as_bytes());
                }
            }
            Op::Unmap { client, fd, iova_page, pages, all } => {
                if let Some((fd, _)) = self.pick(client, fd, FileKind::VfioContainer) {
                    let unmap = type1::DmaUnmap {
                        argsz: 24,
                        flags: if all { 2 } else { 0 },
                        iova: if all { 0 } else { IOVA + u64::from(iova_page) * PAGE },
                        size: if all { 0 } else { u64::from(pages) * PAGE },
                    };
                    let _ = self.ioctl(client.into(), fd, type1::UNMAP_DMA, unmap.as_bytes());
                }
            }
            Op::Command { client, fd, value } => {
                if let Some((_, file)) = self.pick(client, fd, FileKind::VfioDevice) {
                    self.write_config(client.into(), file, 4, &value.to_le_bytes());
                    self.disturb(file);
                    return Ok(self.address(file));
                }
            }
            Op::Start { client, fd } => {
                if let Some((fd, file)) = self.pick(client, fd, FileKind::VfioDevice) {
                    self.start(client.into(), fd, file);
                    return Ok(self.address(file));
                }
            }
            Op::Submit { client, fd, commands, kind, wild } => {
                if let Some((_, file)) = self.pick(client, fd, FileKind::VfioDevice)
                    && !self.is_file_stopped(file)
                    && let Some(driver) = self.drivers.get_mut(&file)
                {
                    driver.submit(commands, kind, wild);
                    return Ok(self.address(file));
                }
            }
            Op::Reap { client, fd } => {
                if let Some((_, file)) = self.pick(client, fd, FileKind::VfioDevice)
                    && !self.is_file_stopped(file)
                    && let Some(driver) = self.drivers.get_mut(&file)
                {
                    self.tally.completions += driver.reap()?;
                    return Ok(self.address(file));
                }
            }
            Op::Migrate { client, fd, target } => return self.migrate(client, fd, target),
            Op::Relocate { client, fd } => return self.relocate(client, fd),
            Op::Turn { device } => {
                let device = self.device(device.into());
                self.turn(device);
                return Ok(Some(device));
            }
            Op::Reset { client, fd } => {
                if let Some((number, file)) = self.pick(client, fd, FileKind::VfioDevice)
                    && self.ioctl(client.into(), number, dev::RESET, &[]).is_ok()
                {
                    // Commands that were under way are reported lost by the reset.
                    self.drivers.remove(&file);
                    self.check_silent(file)?;
                }
            }
            Op::Unset { client, fd } => {
                if let Some((fd, _)) = self.pick(client, fd, FileKind::VfioGroup) {
                    let _ = self.ioctl(client.into(), fd, group::UNSET_CONTAINER, &[]);
                }
            }
            Op::Close { client, fd } => {
                let open = self.client(client.into()).open();
                if let Some(fd) = pick(&open, fd) {
                    self.close(client.into(), fd);
                }
            }
            Op::Kill { client } => self.kill(client.into()),
            Op::Poke { client, fd, offset, value } => {
                if let Some((_, file)) = self.pick(client, fd, FileKind::VfioDevice) {
                    self.poke(file, offset, value);
                    self.disturb(file);
                }
            }
            Op::Garbage { client, fd, request, seed } => self.garbage(client.into(), fd, request, seed),
            Op::Access { client, fd, region, offset, len, write } => {
                if let Some((_, file)) = self.pick(client, fd, FileKind::VfioDevice) {
                    self.access(client.into(), file, region, offset, len, write);
                    return Ok(self.address(file));
                }
            }
            Op::Iommufd(ref op) => self.act_iommufd(op),
            Op::Error { device, fatal } => self.error(self.device(usize::from(device)), fatal)?,
            Op::Advance { us } => self.platform.advance(u64::from(us) * 1000),
        }
        Ok(None)
    }

    // What programs do.

    fn open_container(&mut self, client: usize) -> Option<i32> {
        let caller = self.client(client);
        let file = self.host.borrow_mut().open(Node::VfioContainer, &*caller).ok()?;
        self.oracle.opened_container(file, client % self.clients.len());
        Some(caller.install(Fd::File(file)))
    }

    fn open_group(&mut self, client: usize, device: usize) -> Option<i32> {
        let caller = self.client(client);
        let number = self.host.borrow().board().fabric.group(self.device(device))?;
        let file = self.host.borrow_mut().open(Node::VfioGroup(number), &*caller).ok()?;
        self.oracle.opened_group(file);
        Some(caller.install(Fd::File(file)))
    }

    fn open_device(&mut self, client: usize, device: usize, v1: bool) {
        let mut open = || -> Option<()> {
            let group_fd = self.open_group(client, device)?;
            let container = self.open_container(client)?;
            self.ioctl(client, group_fd, group::SET_CONTAINER, &container.to_le_bytes()).ok()?;
            self.ioctl_value(client, container, container::SET_IOMMU, if v1 { 1 } else { 3 }).ok()?;
            let name = format!("{}\0", self.device(device));
            self.ioctl(client, group_fd, group::GET_DEVICE_FD, name.as_bytes()).ok()?;
            Some(())
        };
        // Whatever was refused on the way: what is open stays open.
        let _ = open();
    }

    /// A started driver: bus master and memory on, eventfds bound, an arena
    /// mapped, queues made.
    fn start(&mut self, client: usize, fd: i32, file: FileId) {
        let Some(address) = self.address(file) else { return };
        self.drivers.remove(&file);
        let caller = self.client(client);
        let slot = self.devices.iter().position(|d| *d == address).unwrap_or_default() as u64;
        let iova = ARENA_IOVA + slot * ARENA_LEN;
        let vaddr = BASE + 0x1_0000 + slot * ARENA_LEN;
        if self.map_arena(client, file, iova, vaddr).is_none() {
            return;
        }
        // None left from an earlier driver.
        let none = irq_set(1 | 32, &[]);
        let _ = self.ioctl(client, fd, dev::SET_IRQS, &none);
        let event = Arc::<CountedEvent>::default();
        let event_fd = caller.install(Fd::Event(Arc::clone(&event)));
        let set = irq_set(4 | 32, &[event_fd; 3]);
        if self.ioctl(client, fd, dev::SET_IRQS, &set).is_err() {
            return;
        }
        self.write_config(client, file, 4, &6u16.to_le_bytes());
        let driver = Driver::start(Rc::clone(&self.host), caller, file, address, iova, vaddr, event);
        if let Some(driver) = driver {
            self.tally.starts += 1;
            self.tally.bound_starts += usize::from(matches!(self.oracle.files.get(&file), Some(File::Cdev { .. })));
            self.drivers.insert(file, driver);
        }
    }

    /// Maps an arena for a device, by its container or its IOAS.
    fn map_arena(&mut self, client: usize, file: FileId, iova: u64, vaddr: u64) -> Option<()> {
        if let Some(File::Cdev { .. }) = self.oracle.files.get(&file) {
            return self.map_ioas_arena(client, file, iova, vaddr, ARENA_LEN);
        }
        let container = self.container_fd(client, file)?;
        let unmap = type1::DmaUnmap { argsz: 24, flags: 0, iova, size: ARENA_LEN };
        let _ = self.ioctl(client, container, type1::UNMAP_DMA, unmap.as_bytes());
        let map = type1::DmaMap { argsz: 32, flags: 3, vaddr, iova, size: ARENA_LEN };
        self.ioctl(client, container, type1::MAP_DMA, map.as_bytes()).ok()?;
        Some(())
    }

    fn write_config(&mut self, client: usize, file: FileId, offset: u64, bytes: &[u8]) {
        let caller = self.client(client);
        caller.set(SCRATCH, bytes);
        if let Some(at) = self.region(&caller, file, 7) {
            let _ = self.host.borrow_mut().write(file, at + offset, SCRATCH, bytes.len() as u64, &*caller);
        }
    }

    fn access(&mut self, client: usize, file: FileId, region: u8, offset: u16, len: u8, write: bool) {
        let caller = self.client(client);
        let Some(at) = self.region(&caller, file, region.into()) else { return };
        let (at, len) = (at + u64::from(offset), u64::from(len));
        let mut host = self.host.borrow_mut();
        if write {
            let _ = host.write(file, at, SCRATCH, len, &*caller);
        } else {
            let _ = host.read(file, at, SCRATCH, len, &*caller);
        }
        drop(host);
        if write {
            self.disturb(file);
        }
    }

    fn poke(&mut self, file: FileId, offset: u16, value: u32) {
        let Some(window) = self.host.borrow().device_file(file).and_then(|f| f.window(0)) else { return };
        let offset = usize::from(offset) & !3;
        // Past the end of the BAR there is nothing to store to.
        let _ = vm_memory::Bytes::store(&window.slice(), value, offset, std::sync::atomic::Ordering::SeqCst);
    }

    fn garbage(&mut self, client: usize, fd: u8, request: u8, seed: u64) {
        let caller = self.client(client);
        let Some(fd) = pick(&caller.open(), fd) else { return };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = [0u8; 64];
        for byte in &mut bytes {
            // Small numbers and zeros get further than noise.
            *byte = if rng.u8(..3) == 0 { rng.u8(..8) } else { 0 };
        }
        bytes[0..4].copy_from_slice(&rng.u32(0..80).to_le_bytes());
        if let Some(file) = caller.file_id(fd) {
            self.disturb(file);
        }
        let _ = self.ioctl(client, fd, 0x3b00 | u32::from(request), &bytes);
    }

    pub(crate) fn close(&mut self, client: usize, fd: i32) {
        match self.client(client).remove(fd) {
            Some(Fd::File(file)) => {
                self.drivers.remove(&file);
                self.host.borrow_mut().release(file);
                self.oracle.closed(file);
            }
            Some(Fd::Event(_)) | None => {}
        }
    }

    /// Closes all that a program has, and starts another in its place.
    fn kill(&mut self, client: usize) {
        let client = client % self.clients.len();
        for fd in self.client(client).open() {
            self.close(client, fd);
        }
        self.processes += 1;
        if let Some(slot) = self.clients.get_mut(client) {
            *slot = Rc::new(Client::new(self.processes));
        }
    }

    fn ioctl_value(&mut self, client: usize, fd: i32, request: u32, arg: u64) -> Result<Reply, Errno> {
        let caller = self.client(client);
        let file = caller.file_id(fd).ok_or(Errno::ENOTTY)?;
        let done = self.host.borrow_mut().ioctl(file, request, arg, &*caller);
        self.observe_iommufd(client, file, request, arg, done.is_ok());
        let reply = done?;
        self.observe(client, file, request, arg, reply);
        Ok(reply)
    }

    pub(crate) fn ioctl(&mut self, client: usize, fd: i32, request: u32, bytes: &[u8]) -> Result<Reply, Errno> {
        self.client(client).set(SCRATCH, bytes);
        self.asked = bytes.to_vec();
        self.ioctl_value(client, fd, request, SCRATCH)
    }

    /// Tells the observer of a call that succeeded.
    fn observe(&mut self, client: usize, file: FileId, request: u32, arg: u64, reply: Reply) {
        let caller = self.client(client);
        let word = |offset: u64| {
            let mut bytes = [0; 8];
            caller.get(arg + offset, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let fd = (word(0) & 0xffff_ffff) as i32;
        let flags = (word(4) & 0xffff_ffff) as u32;
        let kind = self.host.borrow().kind(file);
        match (kind, request) {
            (Some(FileKind::VfioContainer), container::SET_IOMMU) => self.oracle.set_iommu(file, arg),
            (Some(FileKind::VfioContainer), type1::MAP_DMA) => {
                self.tally.maps += 1;
                self.oracle.mapped(file, flags, word(16), word(8), word(24));
            }
            (Some(FileKind::VfioContainer), type1::UNMAP_DMA) => {
                // `size` was overwritten with what was removed; what was asked is in the request.
                let (iova, size) = (asked(&self.asked, 8), asked(&self.asked, 16));
                self.oracle.unmapped(file, flags, iova, size);
                self.disturb_all();
            }
            (Some(FileKind::VfioGroup), group::SET_CONTAINER) => {
                if let Some(to) = caller.file_id(fd) {
                    self.oracle.set_container(file, to);
                }
            }
            (Some(FileKind::VfioGroup), group::UNSET_CONTAINER) => self.oracle.unset_container(file),
            _ => {}
        }
        if let Reply::NewFile(new) = reply
            && let Some(address) = self.host.borrow().device_address(new)
        {
            self.tally.opens += 1;
            self.oracle.opened_device(new, file, address);
            caller.install(Fd::File(new));
        }
    }

    // What is where.

    pub(crate) fn client(&self, n: usize) -> Rc<Client> {
        Rc::clone(&self.clients[n % self.clients.len()])
    }

    pub(crate) fn device(&self, n: usize) -> Address {
        self.devices[n % self.devices.len()]
    }

    pub(crate) fn pick(&self, client: u8, fd: u8, kind: FileKind) -> Option<(i32, FileId)> {
        let caller = self.client(client.into());
        let host = self.host.borrow();
        let of_kind = |fd: i32| caller.file_id(fd).filter(|file| host.kind(*file) == Some(kind)).map(|file| (fd, file));
        let fds: Vec<(i32, FileId)> = caller.open().into_iter().filter_map(of_kind).collect();
        pick(&fds, fd)
    }

    pub(crate) fn address(&self, file: FileId) -> Option<Address> {
        self.host.borrow().device_address(file)
    }

    /// A descriptor of the container that a device's group is in.
    fn container_fd(&self, client: usize, file: FileId) -> Option<i32> {
        let Some(File::Device { group, .. }) = self.oracle.files.get(&file) else { return None };
        let Some(File::Group { container: Some(container), .. }) = self.oracle.files.get(group) else { return None };
        let caller = self.client(client);
        caller.open().into_iter().find(|fd| caller.file_id(*fd) == Some(*container))
    }

    /// Where a region starts in its device file, as the device says.
    fn region(&self, client: &Client, file: FileId, index: u32) -> Option<u64> {
        const INFO: u64 = SCRATCH + 512;
        client.set(INFO, &32u32.to_le_bytes());
        client.set(INFO + 8, &index.to_le_bytes());
        self.host.borrow_mut().ioctl(file, dev::GET_REGION_INFO, INFO, client).ok()?;
        let mut offset = [0; 8];
        client.get(INFO + 24, &mut offset);
        Some(u64::from_le_bytes(offset))
    }

    fn command(&self, address: Address) -> u16 {
        self.host.borrow().board().fabric.function(address).map_or(0, pci::Function::command)
    }

    fn turn(&self, address: Address) {
        let endpoint = self.host.borrow().board().endpoint(address).map(Arc::clone);
        if let Some(endpoint) = endpoint {
            endpoint.turn(caller::Platform::now(&*self.platform));
        }
    }

    pub(crate) fn forget_driver(&mut self, file: FileId) {
        self.drivers.remove(&file);
    }

    /// Where a device arrives it signals once more what may have been lost.
    pub(crate) fn moved(&mut self, file: FileId) {
        if let Some(driver) = self.drivers.get_mut(&file) {
            driver.moved = true;
        }
    }

    fn disturb(&mut self, file: FileId) {
        if let Some(driver) = self.drivers.get_mut(&file) {
            driver.disturbed = true;
        }
    }

    /// A device has an error. A fatal one resets all that is on its bus; one
    /// that is not fatal disturbs nobody, for all functions are vfio-pci's.
    fn error(&mut self, address: Address, fatal: bool) -> Step {
        use pci::aer::spec::uncorrectable::{ECRC, MALFORMED};
        let error = pci::aer::AerError { uncorrectable: if fatal { MALFORMED } else { ECRC }, ..Default::default() };
        if self.host.borrow_mut().raise(address, &error).is_err() {
            return Ok(());
        }
        if fatal {
            let hit: Vec<FileId> = self.drivers.keys().copied().collect();
            for file in hit {
                if self.address(file).is_some_and(|at| at.bus == address.bus) {
                    self.disturb(file);
                }
            }
        }
        self.tally.errors += 1;
        let mut host = self.host.borrow_mut();
        for _ in 0..PATIENCE {
            let Some(deadline) = host.deadline().filter(|_| !host.is_calm()) else { break };
            self.platform.advance(deadline.saturating_sub(caller::Platform::now(&*self.platform)));
            host.elapse();
        }
        if !host.is_calm() || host.is_recovering(address) || host.waiting() != 0 {
            return Err(Broken(format!("the recovery of {address} does not end")));
        }
        Ok(())
    }

    /// An unmap may have hit anybody's arena.
    pub(crate) fn disturb_all(&mut self) {
        for (file, driver) in &mut self.drivers {
            let whole = driver.arena();
            let of = match self.oracle.files.get(file) {
                Some(File::Device { address, .. } | File::Cdev { address, .. }) => self.oracle.space_of(*address),
                _ => None,
            };
            if !of.is_some_and(|(_, maps)| maps.iter().any(|m| m.iova == whole && m.read && m.write)) {
                driver.disturbed = true;
            }
        }
    }

    // The laws.

    /// No device touches what is not mapped for it, nor another program's
    /// memory, nor anything while it may not master the bus. Only `mover` has
    /// had reason to touch anything.
    fn check_touches(&mut self, mover: Option<Address>) -> Step {
        for (n, client) in self.clients.iter().enumerate() {
            for touch in client.memory.take_touched() {
                self.tally.touches += 1;
                let Some(mover) = mover else {
                    return Err(Broken(format!("{touch:x?} of program {n} by nobody")));
                };
                if self.is_stopped(mover) {
                    return Err(Broken(format!("{mover} has stopped and does {touch:x?} of program {n}")));
                }
                if !self.oracle.may(mover, n, &touch) {
                    return Err(Broken(format!("{mover} has no right to {touch:x?} of program {n}")));
                }
                debug_assert!(touch.vaddr.end <= BASE + SIZE);
            }
        }
        Ok(())
    }

    /// After a reset a device is silent.
    fn check_silent(&mut self, file: FileId) -> Step {
        if let Some(address) = self.address(file) {
            self.turn(address);
            self.turn(address);
        }
        self.check_touches(None)
    }

    /// Lets a device finish what it has.
    fn settle(&mut self, address: Address) -> Step {
        for _ in 0..PATIENCE {
            let endpoint = self.host.borrow().board().endpoint(address).map(Arc::clone);
            let busy = endpoint.and_then(|e| e.turn(caller::Platform::now(&*self.platform)));
            self.check_touches(Some(address))?;
            if busy != Some(device::Turn::Busy) {
                return Ok(());
            }
        }
        Err(Broken(format!("{address} is busy for ever")))
    }

    /// Every command of an undisturbed driver has completed.
    fn check_completions(&mut self) -> Step {
        let files: Vec<FileId> = self.drivers.keys().copied().collect();
        for file in files {
            let Some(address) = self.address(file) else { continue };
            for _ in 0..PATIENCE {
                let Some(driver) = self.drivers.get_mut(&file) else { break };
                if driver.disturbed || driver.outstanding() == 0 {
                    break;
                }
                let before = driver.outstanding();
                self.tally.completions += driver.reap()?;
                let after = driver.outstanding();
                self.settle(address)?;
                if before == after && self.drivers.get_mut(&file).is_some_and(|d| d.idle()) {
                    return Err(Broken(format!("{address}: {after} commands never completed")));
                }
            }
            self.check_touches(Some(address))?;
        }
        Ok(())
    }
}

/// A word of a structure as it was asked.
pub(crate) fn asked(bytes: &[u8], at: usize) -> u64 {
    // What is beyond its end reads as zero.
    bytes.iter().skip(at).take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

pub(crate) fn pick<T: Copy>(from: &[T], n: u8) -> Option<T> {
    from.get(usize::from(n).checked_rem(from.len())?).copied()
}

/// A `vfio_irq_set` for MSI-X vectors from 0.
fn irq_set(flags: u32, fds: &[i32]) -> Vec<u8> {
    let count = fds.len() as u32;
    let words = [20 + 4 * count, flags, 2, 0, count];
    words.into_iter().map(u32::to_le_bytes).chain(fds.iter().map(|fd| fd.to_le_bytes())).flatten().collect()
}
