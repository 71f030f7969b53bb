// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pretend kernel just large enough to see that calls arrive, once each,
//! and that answers get back.
#![allow(dead_code, unreachable_pub)] // each user takes a part of it

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use caller::{Caller, FileId, FileIds, Mm, Parking, ProcessId, Readiness, Reply, Ticket, Wait, Wake};
use device::{DeviceFile, DeviceFiles, RegionLayout};
use intercept::{FileKind, Kernel, Node, Tree};
use uapi::{Errno, region};

/// What happened, for tests to look at.
#[derive(Debug, Default)]
pub struct Log {
    pub opened: u64,
    pub released: u64,
    pub maps: u64,
    pub unmaps: u64,
    pub stores: Vec<(String, Vec<u8>)>,
    pub processes: Vec<ProcessId>,
    pub abandoned: u64,
    pub interrupted: u64,
}

/// The pretend kernel.
pub struct Fake {
    ids: FileIds,
    files: BTreeMap<FileId, FileKind>,
    device: Option<Arc<dyn DeviceFile>>,
    config: [u8; 256],
    generation: u64,
    vfs: u32,
    parking: Parking,
    /// Calls at the gate; `None` if it is open.
    gate: Option<Vec<Ticket>>,
    /// Calls that wait for a close.
    for_close: Vec<Ticket>,
    /// What queues hold, and who shows it.
    queues: BTreeMap<FileId, (Vec<u8>, Arc<dyn Readiness>)>,
    /// The memory of whoever gave it last.
    mm: Option<Arc<dyn Mm>>,
    pub log: Arc<Mutex<Log>>,
}

/// Requests of the tests' own.
pub const NEW_HANDLE: u32 = 0x3ba1;
pub const NEW_QUEUE: u32 = 0x3ba2;
pub const FILL_QUEUES: u32 = 0x3ba3;
pub const PIN_FILE: u32 = 0x3ba4;
pub const KEEP_MM: u32 = 0x3ba5;
pub const READ_MM: u32 = 0x3ba6;
pub const IS_MAPPED: u32 = 0x3ba7;
pub const OPEN_FILES: u32 = 0x3ba8;

pub const GET_API_VERSION: u32 = 0x3b64;
pub const CHECK_EXTENSION: u32 = 0x3b65;
pub const GROUP_GET_STATUS: u32 = 0x3b67;
pub const GET_DEVICE_FD: u32 = 0x3b6a;
pub const DEVICE_GET_INFO: u32 = 0x3b6b;
pub const SET_IRQS: u32 = 0x3b6e;
pub const RESET: u32 = 0x3b6f;
pub const MAP_DMA: u32 = 0x3b71;
pub const UNMAP_DMA: u32 = 0x3b72;

const DEVICE: &str = "/sys/devices/pci0000:00/0000:00:1e.0/0000:01:00.0";

impl Fake {
    pub fn new() -> Fake {
        Fake {
            ids: FileIds::default(),
            files: BTreeMap::new(),
            device: None,
            config: std::array::from_fn(|n| n as u8),
            generation: 1,
            vfs: 0,
            parking: Parking::default(),
            gate: None,
            for_close: Vec::new(),
            queues: BTreeMap::new(),
            mm: None,
            log: Arc::default(),
        }
    }

    fn add(&mut self, kind: FileKind) -> FileId {
        let id = self.ids.allocate();
        self.files.insert(id, kind);
        if kind == FileKind::Device && self.device.is_none() {
            let layout = RegionLayout { base: region::offset(0, 0), mmap: [8192, 0, 0, 0, 0, 0] };
            self.device = sys::window::MemfdFiles.create(&layout).ok();
        }
        self.log.lock().unwrap().opened += 1;
        id
    }

    /// Makes the call wait if the gate is closed.
    fn at_gate(&mut self, wait: Wait) -> Option<Reply> {
        let gate = self.gate.as_mut()?;
        let ticket = self.parking.park(wait);
        gate.push(ticket);
        Some(Reply::Parked(ticket))
    }

    fn count(&self, kind: FileKind) -> usize {
        self.files.values().filter(|other| **other == kind).count()
    }
}

fn first_byte(pinned: &caller::Pinned) -> Result<u8, Errno> {
    let mut byte = [0u8];
    let segment = iommu::Segment::Remote { memory: &*pinned.memory, offset: pinned.offset, len: 1 };
    segment.read(&mut byte).map_err(|_| Errno::EFAULT)?;
    Ok(byte[0])
}

impl Kernel for Fake {
    fn open(&mut self, node: Node, caller: &dyn Caller) -> Result<FileId, Errno> {
        self.log.lock().unwrap().processes.push(caller.process());
        match node {
            Node::VfioContainer => Ok(self.add(FileKind::Container)),
            // API-035
            Node::VfioGroup(7) if self.count(FileKind::Group) > 0 => Err(Errno::EBUSY),
            Node::VfioGroup(7) => Ok(self.add(FileKind::Group)),
            Node::VfioCdev(0) => Ok(self.add(FileKind::Device)),
            Node::Iommufd => Ok(self.add(FileKind::Iommufd)),
            _ => Err(Errno::ENODEV),
        }
    }

    fn ioctl(&mut self, file: FileId, request: u32, arg: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        let kind = *self.files.get(&file).ok_or(Errno::EBADF)?;
        let value = match (kind, request) {
            (FileKind::Container, GET_API_VERSION) => 0,
            (FileKind::Container, CHECK_EXTENSION) => u64::from(arg == 1 || arg == 3),
            (FileKind::Container, MAP_DMA) => {
                let mut map = [0u8; 32];
                caller.read(arg, &mut map)?;
                let word = |n: usize| u64::from_le_bytes(map[n..n + 8].try_into().unwrap());
                // Marks in the address: only whether the caller has the right.
                if word(16) == 0xa110c {
                    return if caller.memlock_allows(word(24)) { Ok(Reply::Value(0)) } else { Err(Errno::ENOMEM) };
                }
                if word(16) == 0xcab1e {
                    let capable = caller.capable(caller::Capability::IpcLock);
                    return if capable { Ok(Reply::Value(0)) } else { Err(Errno::EPERM) };
                }
                if word(24) != 0 {
                    caller.pin(word(8), word(24), true)?;
                }
                self.log.lock().unwrap().maps += 1;
                0
            }
            (FileKind::Container, UNMAP_DMA) => {
                let mut unmap = [0u8; 24];
                caller.read(arg, &mut unmap)?;
                unmap[16] = 1;
                caller.write(arg, &unmap)?;
                self.log.lock().unwrap().unmaps += 1;
                0
            }
            (FileKind::Group, GROUP_GET_STATUS) => {
                caller.write(arg.wrapping_add(4), &1u32.to_le_bytes())?;
                0
            }
            // An s32 descriptor: 0 if it is a container.
            (FileKind::Group, 0x3b68) => {
                let mut fd = [0u8; 4];
                caller.read(arg, &mut fd)?;
                match caller.file(i32::from_le_bytes(fd))? {
                    Some(file) if self.files.get(&file) == Some(&FileKind::Container) => 0,
                    _ => return Err(Errno::EBADFD),
                }
            }
            (FileKind::Group, GET_DEVICE_FD) => {
                let mut name = [0u8; 13];
                caller.read(arg, &mut name)?;
                if &name != b"0000:01:00.0\0" {
                    return Err(Errno::ENODEV);
                }
                return Ok(Reply::NewFile(self.add(FileKind::Device)));
            }
            (FileKind::Device, DEVICE_GET_INFO) => {
                let mut info = [0u8; 16];
                caller.read(arg, &mut info)?;
                info[8] = 9;
                info[12] = 5;
                caller.write(arg, &info)?;
                0
            }
            (FileKind::Device, SET_IRQS) => {
                let mut fd = [0u8; 4];
                caller.read(arg.wrapping_add(20), &mut fd)?;
                caller.event(i32::from_le_bytes(fd))?.signal();
                0
            }
            // A mistake in the kernel, for the front door to survive.
            (FileKind::Device, RESET) if arg == 0xbad => panic!("asked for"),
            (FileKind::Device, RESET) if arg == 0x10 => match self.at_gate(Wait::Uninterruptible) {
                Some(waits) => return Ok(waits),
                None => 77,
            },
            (FileKind::Device, RESET) if arg == 0x11 => {
                let waiting = self.parking.len();
                for ticket in self.gate.take().unwrap_or_default() {
                    self.parking.wake(ticket, Wake::Retry);
                }
                waiting as u64
            }
            (FileKind::Device, RESET) if arg == 0x12 => match self.at_gate(Wait::Interruptible) {
                Some(waits) => return Ok(waits),
                None => 77,
            },
            (FileKind::Device, RESET) if arg == 0x13 => {
                self.gate.get_or_insert_default();
                0
            }
            (FileKind::Device, RESET) if arg == 0x14 => self.parking.len() as u64,
            (FileKind::Device, RESET) if arg == 0x15 => {
                let ticket = self.parking.park(Wait::Uninterruptible);
                self.for_close.push(ticket);
                return Ok(Reply::Parked(ticket));
            }
            (FileKind::Device, RESET) => 0,
            (FileKind::Iommufd, 0x3b81) => 5,
            (FileKind::Iommufd, NEW_HANDLE) => {
                let file = self.add(FileKind::Other);
                let fd = caller.new_handle(file).inspect_err(|_| self.release(file))?;
                if arg == 1 {
                    caller.close(fd);
                }
                fd as u64
            }
            (FileKind::Iommufd, NEW_QUEUE) => {
                let file = self.add(FileKind::Other);
                let made = if arg == 1 { caller.new_event_queue(file) } else { caller.new_queue(file) };
                let (fd, readiness) = made.inspect_err(|_| self.release(file))?;
                self.queues.insert(file, (Vec::new(), readiness));
                fd as u64
            }
            // So many bytes into every queue.
            (FileKind::Iommufd, FILL_QUEUES) => {
                for (content, readiness) in self.queues.values_mut() {
                    *content = vec![b'q'; arg as usize & 0xff];
                    readiness.set_readable(!content.is_empty());
                }
                0
            }
            (FileKind::Iommufd, PIN_FILE) => {
                let pinned = caller.client_file(arg as u32 as i32)?.pin(4096 * (arg >> 32), 4096)?;
                u64::from(first_byte(&pinned)?)
            }
            (FileKind::Iommufd, OPEN_FILES) => self.files.len() as u64,
            (FileKind::Iommufd, KEEP_MM) => {
                let mm = caller.mm()?;
                assert_eq!((mm.process(), mm.memlock_limit()), (caller.process(), caller.memlock_limit()));
                self.mm = Some(mm);
                0
            }
            (FileKind::Iommufd, READ_MM) => {
                let mm = self.mm.as_ref().ok_or(Errno::ENOENT)?;
                let mut byte = [0];
                mm.read(arg, &mut byte)?;
                let pinned = mm.pin(arg & !4095, 4096, true)?;
                assert_eq!(
                    pinned.memory.identity(pinned.offset),
                    mm.pin(arg & !4095, 1, false)?.memory.identity(pinned.offset)
                );
                u64::from(byte[0])
            }
            (FileKind::Device, IS_MAPPED) => u64::from(caller.is_mapped(file, region::offset(0, 0) + 4096 * arg, 4096)),
            _ => return Err(Errno::ENOTTY),
        };
        Ok(Reply::Value(value))
    }

    fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        if let Some((content, readiness)) = self.queues.get_mut(&file) {
            if offset != 0 {
                return Err(Errno::ESPIPE);
            }
            let taken = content.len().min(len as usize);
            caller.write(buf, &content[..taken])?;
            content.drain(..taken);
            readiness.set_readable(!content.is_empty());
            return Ok(Reply::Value(taken as u64));
        }
        let (0, 7, at) = region::split(offset).ok_or(Errno::EINVAL)? else { return Err(Errno::EINVAL) };
        if self.files.get(&file) != Some(&FileKind::Device) {
            return Err(Errno::EINVAL);
        }
        if at == 0xf0
            && let Some(waits) = self.at_gate(Wait::Uninterruptible)
        {
            return Ok(waits);
        }
        let len = len.min(256u64.saturating_sub(at));
        caller.write(buf, &self.config[(at.min(256)) as usize..(at.min(256) + len) as usize])?;
        Ok(Reply::Value(len))
    }

    fn write(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno> {
        if self.queues.contains_key(&file) {
            let mut byte = [0];
            caller.read(buf, &mut byte)?;
            return if byte[0] == b'w' { Ok(Reply::Value(len)) } else { Err(Errno::EFBIG) };
        }
        let (0, 7, at) = region::split(offset).ok_or(Errno::EINVAL)? else { return Err(Errno::EINVAL) };
        if self.files.get(&file) != Some(&FileKind::Device) {
            return Err(Errno::EINVAL);
        }
        let len = len.min(256u64.saturating_sub(at));
        caller.read(buf, &mut self.config[(at.min(256)) as usize..(at.min(256) + len) as usize])?;
        Ok(Reply::Value(len))
    }

    fn mmap(&mut self, file: FileId, offset: u64, len: u64, shared: bool, _exec: bool) -> Result<(), Errno> {
        match self.files.get(&file) {
            Some(FileKind::Iommufd) => return Err(Errno::ENXIO),
            Some(FileKind::Device) => {}
            _ => return Err(Errno::ENODEV),
        }
        let inside = matches!(region::split(offset), Some((0, 0, at)) if at.saturating_add(len) <= 8192);
        if inside && shared { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn release(&mut self, file: FileId) {
        let kind = self.files.remove(&file);
        self.queues.remove(&file);
        let mut log = self.log.lock().unwrap();
        log.released += u64::from(kind.is_some());
        drop(log);
        if kind == Some(FileKind::Device) {
            for ticket in std::mem::take(&mut self.for_close) {
                self.parking.wake(ticket, Wake::Done(Ok(55)));
            }
        }
        if self.count(FileKind::Device) == 0 {
            self.device = None;
        }
    }

    fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>> {
        if self.files.get(&file) != Some(&FileKind::Device) {
            return None;
        }
        self.device.clone()
    }

    fn kind(&self, file: FileId) -> Option<FileKind> {
        self.files.get(&file).copied()
    }

    fn tree_generation(&self) -> u64 {
        self.generation
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        tree.own("/dev/vfio");
        for node in [Node::VfioContainer, Node::VfioGroup(7), Node::VfioCdev(0), Node::Iommufd] {
            tree.node(node);
        }
        tree.own("/sys/bus/pci");
        tree.symlink("/sys/bus/pci/devices/0000:01:00.0", format!("../../../devices{}", &DEVICE[12..]));
        tree.own(DEVICE);
        tree.file(format!("{DEVICE}/vendor"), 0o444, "0x1b36\n");
        tree.file(format!("{DEVICE}/config"), 0o644, self.config);
        tree.file(format!("{DEVICE}/sriov_numvfs"), 0o644, format!("{}\n", self.vfs));
        tree.file(format!("{DEVICE}/vfio-dev/vfio0/dev"), 0o444, "1:3\n");
        tree.symlink(format!("{DEVICE}/iommu_group"), "../../../../kernel/iommu_groups/7");
        tree.own("/sys/kernel/iommu_groups");
        tree.symlink("/sys/kernel/iommu_groups/7/devices/0000:01:00.0", format!("../../../..{}", &DEVICE[4..]));
        tree.own("/sys/module/vfio");
        tree.own("/sys/module/vfio_pci");
        for n in 0..self.vfs {
            tree.symlink(
                format!("/sys/bus/pci/devices/0000:01:00.{}", n + 1),
                format!("../../../devices{}", &DEVICE[12..]),
            );
            tree.node(Node::VfioGroup(8 + n));
        }
        tree
    }

    fn figures(&self, _process: caller::ProcessId) -> intercept::Figures {
        intercept::Figures { locked: 8, pinned: 12 }
    }

    fn wait(&self, ticket: Ticket) -> Option<Wait> {
        self.parking.wait(ticket)
    }

    fn take_woken(&mut self) -> Vec<(Ticket, Wake)> {
        self.parking.take_woken()
    }

    fn interrupted(&mut self, ticket: Ticket) {
        self.log.lock().unwrap().interrupted += 1;
        self.parking.wake(ticket, Wake::Done(Err(Errno::ERESTARTSYS)));
    }

    fn abandon(&mut self, ticket: Ticket) {
        self.log.lock().unwrap().abandoned += 1;
        self.parking.abandon(ticket);
    }

    fn write_attribute(&mut self, path: &str, data: &[u8]) -> Result<Reply, Errno> {
        if data == b"wait\n"
            && let Some(waits) = self.at_gate(Wait::Uninterruptible)
        {
            return Ok(waits);
        }
        self.log.lock().unwrap().stores.push((path.to_owned(), data.to_owned()));
        if path.ends_with("/sriov_numvfs") {
            let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
            if text == "wait\n" {
                return Ok(Reply::Value(5));
            }
            let vfs: u32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
            if vfs > 4 {
                return Err(Errno::ERANGE);
            }
            self.vfs = vfs;
            self.generation += 1;
        }
        Ok(Reply::Value(data.len() as u64))
    }
}
