// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab with programs in it, for tests of error recovery.
#![allow(clippy::unwrap_used, dead_code)] // helpers of tests fail by panicking; no test uses all

use std::sync::Arc;

use caller::{FileId, Reply};
use host::tree::{Entry, Node};
use host::{Host, Lab};
use models::testing::CountedEvent;
use pci::Address;
use pci::aer::AerError;
use pci::aer::spec::uncorrectable;
use sim::{BASE, Client, Fd, SimPlatform, SimStorage};

pub(crate) const A: &str = "0000:01:00.0";
pub(crate) const B: &str = "0000:01:00.1";
pub(crate) const PORT: &str = "0000:00:01.0";
pub(crate) const MS: u64 = 1_000_000;
/// VFIO_DEVICE_SET_IRQS.
pub(crate) const SET_IRQS: u32 = 0x3b6e;
/// Where configuration space lies in a device's file.
pub(crate) const CONFIG: u64 = 7;

pub(crate) struct World {
    pub(crate) host: Host,
    pub(crate) platform: Arc<SimPlatform>,
    pub(crate) client: Client,
    pub(crate) container: Option<i32>,
    /// Descriptors of the groups opened.
    pub(crate) groups: Vec<i32>,
    /// Calls whose wait ended while another was waited for.
    pub(crate) woken: Vec<(caller::Ticket, caller::Wake)>,
}

impl World {
    pub(crate) fn new(text: &str) -> World {
        let platform = SimPlatform::new(1);
        let lab = Lab::parse("test", text).unwrap();
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).unwrap();
        World { host, platform, client: Client::new(1), container: None, groups: Vec::new(), woken: Vec::new() }
    }

    /// Two functions of one device, in groups of their own; `more` are keys of
    /// the second.
    pub(crate) fn pair(more: &str) -> World {
        World::new(&format!("{}{}{more}", function(0), function(1)))
    }

    /// Opens a device by its group.
    pub(crate) fn open(&mut self, address: &str) -> FileId {
        let group = self.enter(address);
        self.open_device(group, address)
    }

    /// Opens the group of a device, and puts it into the container.
    pub(crate) fn enter(&mut self, address: &str) -> FileId {
        let number = self.host.functions().into_iter().find(|f| f.address == address).and_then(|f| f.group).unwrap();
        let group = self.host.open(Node::VfioGroup(number), &self.client).unwrap();
        let first = self.container.is_none();
        let fd = match self.container {
            Some(fd) => fd,
            None => {
                let container = self.host.open(Node::VfioContainer, &self.client).unwrap();
                self.client.install(Fd::File(container))
            }
        };
        self.container = Some(fd);
        self.groups.push(self.client.install(Fd::File(group)));
        self.client.set(BASE, &fd.to_le_bytes());
        self.host.ioctl(group, 0x3b68, BASE, &self.client).unwrap();
        if first {
            let container = self.client.file_id(fd).unwrap();
            self.host.ioctl(container, 0x3b66, 3, &self.client).unwrap();
        }
        group
    }

    /// GET_DEVICE_FD. It waits for the reset of a device that takes its time.
    pub(crate) fn open_device(&mut self, group: FileId, address: &str) -> FileId {
        for _ in 0..100 {
            self.client.set(BASE, format!("{address}\0").as_bytes());
            match self.host.ioctl(group, 0x3b6a, BASE, &self.client).unwrap() {
                Reply::NewFile(device) => return device,
                Reply::Parked(ticket) => {
                    while self.host.wait(ticket).is_some() {
                        self.pass(10);
                    }
                    let mut woken = self.host.take_woken();
                    assert!(woken.contains(&(ticket, caller::Wake::Retry)), "{woken:?}");
                    woken.retain(|(other, _)| *other != ticket);
                    self.woken.append(&mut woken);
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("{address} cannot be opened");
    }

    /// Opens a device of a group that is open.
    pub(crate) fn open_again(&mut self, address: &str, group: usize) -> Result<Reply, uapi::Errno> {
        let file = self.client.file_id(self.groups[group]);
        self.client.set(BASE, format!("{address}\0").as_bytes());
        self.host.ioctl(file.unwrap(), 0x3b6a, BASE, &self.client)
    }

    /// Registers an eventfd for vector 0 of an index.
    pub(crate) fn event(&mut self, device: FileId, index: u32) -> Arc<CountedEvent> {
        let event = Arc::new(CountedEvent::default());
        let fd = self.client.install(Fd::Event(Arc::clone(&event)));
        let words = [24u32, 4 | 32, index, 0, 1, fd as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.client.set(BASE, &bytes);
        self.host.ioctl(device, SET_IRQS, BASE, &self.client).unwrap();
        event
    }

    /// Opens a device with an eventfd for errors.
    pub(crate) fn user(&mut self, address: &str) -> (FileId, Arc<CountedEvent>) {
        let device = self.open(address);
        let event = self.event(device, 3);
        (device, event)
    }

    /// Offset of a region in a device's file.
    pub(crate) fn offset(&mut self, device: FileId, region: u64) -> u64 {
        let mut info = [0u8; 32];
        info[..4].copy_from_slice(&32u32.to_le_bytes());
        info[8..12].copy_from_slice(&(region as u32).to_le_bytes());
        self.client.set(BASE, &info);
        self.host.ioctl(device, 0x3b6c, BASE, &self.client).unwrap();
        self.client.get(BASE, &mut info);
        u64::from_le_bytes(info[24..32].try_into().unwrap())
    }

    pub(crate) fn load(&mut self, device: FileId, region: u64, at: u64, len: usize) -> u32 {
        let offset = self.offset(device, region) + at;
        assert_eq!(self.host.read(device, offset, BASE, len as u64, &self.client), Ok(Reply::Value(len as u64)));
        let mut word = [0; 4];
        self.client.get(BASE, &mut word[..len]);
        u32::from_le_bytes(word)
    }

    pub(crate) fn store(&mut self, device: FileId, region: u64, at: u64, bytes: &[u8]) {
        let offset = self.offset(device, region) + at;
        self.client.set(BASE, bytes);
        let done = self.host.write(device, offset, BASE, bytes.len() as u64, &self.client);
        assert_eq!(done, Ok(Reply::Value(bytes.len() as u64)));
    }

    pub(crate) fn raise(&mut self, address: &str, uncorrectable: u32) {
        let error = AerError { uncorrectable, ..AerError::default() };
        self.host.raise(at(address), &error).unwrap();
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET` with all groups that are open.
    pub(crate) fn hot_reset(&mut self, device: FileId) -> Result<Reply, uapi::Errno> {
        let mut words = vec![12 + 4 * self.groups.len() as u32, 0, self.groups.len() as u32];
        words.extend(self.groups.iter().map(|fd| *fd as u32));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.client.set(BASE, &bytes);
        self.host.ioctl(device, 0x3b71, BASE, &self.client)
    }

    /// Lets the time pass that recovery takes.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            let Some(deadline) = self.host.deadline() else { break };
            let now = caller::Platform::now(&*self.platform);
            self.platform.advance(deadline.saturating_sub(now));
            self.host.elapse();
        }
        assert!(self.host.is_calm());
    }

    pub(crate) fn command(&self, address: &str) -> u16 {
        self.host.board().fabric.function(at(address)).unwrap().command()
    }

    pub(crate) fn text(&self, path: &str) -> String {
        match self.host.tree().get(path) {
            Some(Entry::File { content, .. }) => String::from_utf8(content.clone()).unwrap(),
            other => panic!("{path}: {other:?}"),
        }
    }
}

pub(crate) fn function(number: u8) -> String {
    format!("[[device]]\nmodel = \"nvme\"\naddr = \"01:00.{number}\"\nsize = \"1M\"\nacs = true\n")
}

pub(crate) fn at(text: &str) -> Address {
    text.parse().unwrap()
}

pub(crate) const NONFATAL: u32 = uncorrectable::ECRC;
pub(crate) const FATAL: u32 = uncorrectable::MALFORMED;

/// A lab file's head with these recovery extensions on.
pub(crate) fn extensions(names: &str) -> String {
    format!("[vfio]\nerror_recovery = \"{names}\"\nrecovery_wait_ms = 20000\nuser_reset_ms = 3000\n")
}

/// What a call that waits is answered with once it is made again.
pub(crate) fn parked(reply: Result<Reply, uapi::Errno>) -> caller::Ticket {
    match reply {
        Ok(Reply::Parked(ticket)) => ticket,
        other => panic!("{other:?} does not wait"),
    }
}

impl World {
    /// Two functions with recovery extensions on.
    pub(crate) fn extended(names: &str, more: &str) -> World {
        World::new(&format!("{}{}{}{more}", extensions(names), function(0), function(1)))
    }

    /// `pread` of a register, which may wait.
    pub(crate) fn try_load(&mut self, device: FileId, region: u64, at: u64) -> Result<Reply, uapi::Errno> {
        let offset = self.offset(device, region) + at;
        self.host.read(device, offset, BASE, 4, &self.client)
    }

    /// `pwrite` of a register, which may wait.
    pub(crate) fn try_store(&mut self, device: FileId, region: u64, at: u64, value: u32) -> Result<Reply, uapi::Errno> {
        let offset = self.offset(device, region) + at;
        self.client.set(BASE, &value.to_le_bytes());
        self.host.write(device, offset, BASE, 4, &self.client)
    }

    /// An `ioctl` on a structure of words, and what they are then.
    pub(crate) fn words<const N: usize>(
        &mut self,
        file: FileId,
        request: u32,
        words: [u32; N],
    ) -> Result<(Reply, [u32; N]), uapi::Errno> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.client.set(BASE, &bytes);
        let reply = self.host.ioctl(file, request, BASE, &self.client)?;
        let mut back = vec![0; 4 * N];
        self.client.get(BASE, &mut back);
        let word = |n: usize| u32::from_le_bytes(back[4 * n..4 * n + 4].try_into().unwrap());
        Ok((reply, std::array::from_fn(word)))
    }

    /// State of the recovery extensions: flags, [`uapi::vfio::recovery::AccessState`].
    pub(crate) fn recovery_state(&mut self, device: FileId) -> [u32; 2] {
        let (_, words) = self.words(device, 0x3b75, [24, 1 << 16 | 0xff00, 0, 0, 0, 0]).unwrap();
        [words[2], words[3]]
    }

    /// So many milliseconds pass; what is due is done at its time.
    pub(crate) fn pass(&mut self, ms: u64) {
        let now = || caller::Platform::now(&*self.platform);
        let end = now() + ms * MS;
        for _ in 0..10_000 {
            match self.host.deadline() {
                Some(deadline) if deadline <= end => {
                    self.platform.advance(deadline.saturating_sub(now()));
                    self.host.elapse();
                }
                _ => break,
            }
        }
        self.platform.advance(end.saturating_sub(now()));
        self.host.elapse();
    }
}
