// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An open device as a program sees it, one file a topic.

mod config;
mod dma_buf;
mod feature;
mod hot_reset;
mod info;
mod ioeventfd;
mod irqs;
mod logging;
mod migration;
mod migration_random;
mod open;
mod peer;
mod random;
mod reset;
mod rw;
mod token;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ::device::{Driver, Endpoint, Slot};
use caller::{FileId, Reply};
use pci::{Address, Bar, BarKind, Function, FunctionSpec, Msix, cap};
use uapi::Errno;
use uapi::vfio::device::{self, IrqSet, RegionInfo, region_index};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Options;
use crate::testing::{Asked, Counter, Dummy, Lab, TestFile};

/// Where the device under test is.
pub(super) const ADDRESS: Address = Address::new(0, 1, 0, 0);

/// A register of the command word.
pub(super) const MEMORY: u32 = cap::COMMAND_MEMORY as u32;
pub(super) const MASTER: u32 = cap::COMMAND_MASTER as u32;
pub(super) const INTX_DISABLE: u32 = cap::COMMAND_INTX_DISABLE as u32;

/// Offset of the MSI-X table in BAR 0.
pub(super) const TABLE: u64 = 0x2000;
/// Vectors of MSI-X.
pub(super) const VECTORS: u32 = 8;

fn bar(size: u64, kind: BarKind) -> Option<Bar> {
    Some(Bar { size, kind, mmap: true })
}

/// A ROM with one image of 512 bytes and 512 bytes that no image covers.
pub(super) fn rom() -> Vec<u8> {
    let mut rom: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    rom[24..26].copy_from_slice(&[0x40, 0]);
    rom[0x40..0x44].copy_from_slice(b"PCIR");
    rom[0x50..0x52].copy_from_slice(&[1, 0]);
    rom[0x55] = 0x80;
    rom
}

/// A function with a bit of everything.
pub(super) fn spec() -> FunctionSpec {
    let memory64 = BarKind::Memory64 { prefetchable: false };
    FunctionSpec {
        vendor: 0x1b36,
        device: 0x0010,
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        class: 0x01_0802,
        revision: 2,
        bars: [
            bar(0x4000, memory64),
            None,
            bar(32, BarKind::Io),
            bar(256, BarKind::Memory32 { prefetchable: false }),
            bar(0x10_0000, BarKind::Memory32 { prefetchable: true }),
            None,
        ],
        rom: rom(),
        interrupt_pin: 1,
        msi: Some(3),
        msix: Some(Msix { vectors: VECTORS as u16, table: (0, TABLE as u32), pba: (0, 0x3000) }),
        flr: true,
        aer: true,
        acs: Some(0x1d),
        pasid: Some(16),
        serial: Some(0x1122_3344_5566_7788),
        vpd: pci::vpd::image("Disk", &[(*b"SN", "0815")]),
        vendor_specific: vec![vec![1, 2, 3, 4, 5]],
        ..FunctionSpec::default()
    }
}

fn value(reply: Reply) -> u64 {
    match reply {
        Reply::Value(value) => value,
        other => panic!("{other:?}"),
    }
}

/// A lab with one open device.
pub(super) struct Rig {
    pub(super) lab: Lab,
    /// What the model was asked to do.
    pub(super) log: Arc<Mutex<Vec<Asked>>>,
    pub(super) container: FileId,
    pub(super) group: FileId,
    pub(super) file: FileId,
}

/// Plugs a device in and binds vfio-pci to it.
pub(super) fn plug(lab: &mut Lab, address: Address, spec: FunctionSpec) -> Arc<Mutex<Vec<Asked>>> {
    let (dummy, log) = Dummy::new(spec.clone());
    lab.board.fabric.plug_auto(address, spec).unwrap();
    bind(lab, address, dummy);
    log
}

/// Puts a model in place.
pub(super) fn bind(lab: &mut Lab, address: Address, dummy: Dummy) {
    let endpoint = Some(Endpoint::new(Box::new(dummy)));
    lab.board.slots.insert(address, Slot { endpoint, driver: Some(Driver::VfioPci), ..Slot::default() });
}

impl Rig {
    /// The device of [`spec`], open.
    pub(super) fn new() -> Rig {
        Rig::with(spec(), Options::default())
    }

    /// Another device, open.
    pub(super) fn with(spec: FunctionSpec, options: Options) -> Rig {
        let mut lab = Lab::new(options);
        let log = plug(&mut lab, ADDRESS, spec);
        let number = lab.board.fabric.group(ADDRESS).unwrap();
        let (container, group) = lab.container_with(number, 3);
        let file = lab.get_device_fd(group, &ADDRESS.to_string()).unwrap();
        Rig { lab, log, container, group, file }
    }

    /// What the model was asked since the last look.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    pub(super) fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(self.lab.board.endpoint(ADDRESS).unwrap())
    }

    /// The hardware.
    pub(super) fn function(&mut self) -> &mut Function {
        self.lab.board.fabric.function_mut(ADDRESS).unwrap()
    }

    pub(super) fn hw(&mut self, pos: u16, len: u8) -> u32 {
        self.function().read(pos, len)
    }

    /// The newest device file.
    pub(super) fn device_file(&self) -> Arc<TestFile> {
        Arc::clone(self.lab.platform.made.lock().unwrap().last().unwrap())
    }

    /// Whether the mapped BARs can be touched.
    pub(super) fn mapped(&self) -> bool {
        self.device_file().accessible.load(Ordering::Relaxed)
    }

    pub(super) fn ioctl(&mut self, request: u32, arg: u64) -> Result<u64, Errno> {
        self.lab.ioctl(self.file, request, arg)
    }

    /// An `ioctl` on a structure, which is read back.
    pub(super) fn call<T: IntoBytes + Immutable + FromBytes>(&mut self, request: u32, value: &T) -> Result<T, Errno> {
        let arg = self.lab.client.put(value);
        self.ioctl(request, arg)?;
        Ok(self.lab.client.get(arg))
    }

    pub(super) fn event(&self) -> (i32, Arc<Counter>) {
        self.lab.client.eventfd()
    }

    /// SET_IRQS with as much argsz as there is data.
    pub(super) fn irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, data: &[u8]) -> Result<u64, Errno> {
        let head = IrqSet { argsz: 20 + data.len() as u32, flags, index, start, count };
        let arg = self.lab.client.put_bytes(&[head.as_bytes(), data].concat());
        self.ioctl(device::SET_IRQS, arg)
    }

    /// SET_IRQS TRIGGER EVENTFD.
    pub(super) fn bind_fds(&mut self, index: u32, start: u32, fds: &[i32]) -> Result<u64, Errno> {
        self.irqs(index, 0x24, start, fds.len() as u32, fds.as_bytes())
    }

    pub(super) fn region(&mut self, index: u32) -> Result<RegionInfo, Errno> {
        let info = RegionInfo { argsz: 40, index, cap_offset: 0x77, ..RegionInfo::default() };
        self.call(device::GET_REGION_INFO, &info)
    }

    /// File offset of a position in a region.
    pub(super) fn at(&mut self, index: u32, pos: u64) -> u64 {
        self.region(index).unwrap().offset + pos
    }

    pub(super) fn pread(&mut self, index: u32, pos: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let offset = self.at(index, pos);
        let buf = self.lab.client.room(len);
        let (file, (vfio, mut cx)) = (self.file, self.lab.parts());
        let done = value(vfio.read(file, offset, buf, len, &mut cx)?);
        Ok(self.lab.client.get_bytes(buf, done as usize))
    }

    pub(super) fn pwrite(&mut self, index: u32, pos: u64, data: &[u8]) -> Result<u64, Errno> {
        let offset = self.at(index, pos);
        let buf = self.lab.client.put_bytes(data);
        let (file, (vfio, mut cx)) = (self.file, self.lab.parts());
        vfio.write(file, offset, buf, data.len() as u64, &mut cx).map(value)
    }

    pub(super) fn mmap(&mut self, index: u32, pos: u64, len: u64, shared: bool) -> Result<(), Errno> {
        let offset = self.at(index, pos);
        self.lab.vfio.mmap(self.file, offset, len, shared, &self.lab.board)
    }

    /// Configuration space as the program sees it.
    pub(super) fn cfg(&mut self, pos: u16, len: usize) -> u32 {
        let bytes = self.pread(region_index::CONFIG, u64::from(pos), len as u64).unwrap();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    pub(super) fn cfg_write(&mut self, pos: u16, len: usize, value: u32) {
        let done = self.pwrite(region_index::CONFIG, u64::from(pos), &value.to_le_bytes()[..len]);
        assert_eq!(done, Ok(len as u64));
    }

    pub(super) fn set_command(&mut self, command: u32) {
        self.cfg_write(cap::COMMAND, 2, command);
    }

    /// Offset of a capability in hardware.
    pub(super) fn cap(&mut self, id: u8) -> u16 {
        self.function().capability(id).unwrap()
    }

    pub(super) fn ext(&mut self, id: u16) -> u16 {
        self.function().extended_capability(id).unwrap()
    }

    /// Another file of the same device.
    pub(super) fn reopen(&mut self) -> FileId {
        self.lab.get_device_fd(self.group, &ADDRESS.to_string()).unwrap()
    }

    /// Signals a watched event as the platform would.
    pub(super) fn fire(&mut self) {
        let ids: Vec<_> = self.lab.platform.watches.lock().unwrap().keys().copied().collect();
        for id in ids {
            self.lab.vfio.event_fired(id, &mut self.lab.board);
        }
    }

    pub(super) fn watched(&self) -> usize {
        self.lab.platform.watches.lock().unwrap().len()
    }
}
