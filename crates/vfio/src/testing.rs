// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab for this crate's tests: a program, a platform that only counts, and a
//! board with dummy devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ::device::migration::{Activity, LoadError};
use ::device::saved::{Reader, Writer};
use ::device::{Board, Device, Driver, Endpoint, Io, ResetKind, Slot, Turn};
pub(crate) use caller::testing::{Client, Counter, TestFile, TestPlatform};
use caller::{FileId, FileIds, Parking, Platform, Reply};
use iommufd::Iommufd;
use pci::{Address, FabricBuilder, FunctionSpec};
use uapi::Errno;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::device::{ATTACH_IOMMUFD_PT, BIND_IOMMUFD, DETACH_IOMMUFD_PT};
use uapi::vfio::group::{GET_DEVICE_FD, SET_CONTAINER};

use crate::{Context, Options, Vfio};

/// What a dummy device was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A trapped load of so many bytes.
    Read(usize, u64, usize),
    /// A trapped store.
    Write(usize, u64, Vec<u8>),
    /// Windows appeared.
    Publish,
    /// A reset.
    Reset(ResetKind),
    /// A turn was given, and whether it may start work.
    Turn(Activity),
}

/// A device whose BARs are plain memory.
pub(crate) struct Dummy {
    spec: FunctionSpec,
    bytes: BTreeMap<(usize, u64), u8>,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Dummy {
    /// The device, and what it will be asked to do.
    pub(crate) fn new(spec: FunctionSpec) -> (Dummy, Arc<Mutex<Vec<Asked>>>) {
        let log = Arc::<Mutex<Vec<Asked>>>::default();
        (Dummy { spec, bytes: BTreeMap::new(), log: Arc::clone(&log) }, log)
    }

    fn say(&self, asked: Asked) {
        self.log.lock().unwrap().push(asked);
    }
}

impl Device for Dummy {
    fn function(&self) -> FunctionSpec {
        self.spec.clone()
    }

    fn read(&mut self, _io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            *byte = self.bytes.get(&(bar, at)).copied().unwrap_or(0);
        }
        self.say(Asked::Read(bar, offset, data.len()));
    }

    fn write(&mut self, _io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        self.bytes.extend((offset..).zip(data).map(|(at, byte)| ((bar, at), *byte)));
        self.say(Asked::Write(bar, offset, data.to_vec()));
    }

    fn publish(&mut self, _io: &mut Io<'_>) {
        self.say(Asked::Publish);
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        self.say(Asked::Turn(io.activity));
        Turn::Idle
    }

    fn reset(&mut self, _io: &mut Io<'_>, kind: ResetKind) {
        self.bytes.clear();
        self.say(Asked::Reset(kind));
    }

    fn identity(&self) -> Option<Vec<u8>> {
        Some(b"dummy".to_vec())
    }

    /// The bytes of its BARs.
    fn save(&mut self, _io: &mut Io<'_>) -> Vec<u8> {
        let mut writer = Writer::new();
        for ((bar, at), byte) in &self.bytes {
            writer.u32(*bar as u32);
            writer.u64(*at);
            writer.u8(*byte);
        }
        writer.finish()
    }

    fn load(&mut self, _io: &mut Io<'_>, state: &[u8]) -> Result<(), LoadError> {
        let mut bytes = BTreeMap::new();
        let mut reader = Reader::new(state);
        for _ in 0..state.len() / 13 {
            bytes.insert((reader.u32()? as usize, reader.u64()?), reader.u8()?);
        }
        reader.finish()?;
        self.bytes = bytes;
        Ok(())
    }
}

/// The subsystem, what is plugged in, and one program.
pub(crate) struct Lab {
    pub(crate) vfio: Vfio,
    pub(crate) board: Board,
    pub(crate) iommufd: Iommufd,
    pub(crate) files: FileIds,
    pub(crate) parking: Parking,
    pub(crate) platform: Arc<TestPlatform>,
    pub(crate) client: Client,
}

impl Lab {
    /// Nothing plugged in.
    pub(crate) fn new(options: Options) -> Lab {
        let platform = Arc::<TestPlatform>::default();
        let vfio = Vfio::new(Arc::clone(&platform) as Arc<dyn Platform>, options);
        let accounts = vfio.accounts().clone();
        Lab {
            vfio,
            board: Board::default(),
            iommufd: Iommufd::new(Arc::clone(&platform) as Arc<dyn Platform>, iommufd::Options::default(), accounts),
            files: FileIds::default(),
            parking: Parking::default(),
            platform,
            client: Client::new(1),
        }
    }

    /// A lab with group 7, which is 0000:01:00.0, bound to vfio-pci.
    pub(crate) fn with_group() -> Lab {
        let mut lab = Lab::new(Options::default());
        lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
        lab
    }

    /// Plugs a dummy device in and puts it into a group, whatever the fabric
    /// thinks of that.
    pub(crate) fn add(&mut self, group: u32, address: &str, driver: Option<Driver>) -> Arc<Endpoint> {
        let (endpoint, address) = self.plug(address, driver);
        self.vfio.table.add_member(group, address);
        endpoint
    }

    fn plug(&mut self, address: &str, driver: Option<Driver>) -> (Arc<Endpoint>, Address) {
        let spec = FunctionSpec { vendor: 0x1234, device: 0x5678, ..FunctionSpec::default() };
        let address: Address = address.parse().unwrap();
        let endpoint = Endpoint::new(Box::new(Dummy::new(spec).0));
        let slot = Slot { endpoint: Some(Arc::clone(&endpoint)), driver, ..Slot::default() };
        self.board.slots.insert(address, slot);
        (endpoint, address)
    }

    /// The functions of a fabric, all endpoints dummies without driver.
    pub(crate) fn with_fabric(builder: &FabricBuilder, options: Options) -> Lab {
        let mut lab = Lab::new(options);
        lab.board.fabric = builder.build().unwrap();
        for (address, function) in lab.board.fabric.functions() {
            let slot = if lab.board.fabric.is_bridge(address) {
                Slot { driver: Some(Driver::Pcieport), ..Slot::default() }
            } else {
                let (dummy, _) = Dummy::new(function.spec().clone());
                Slot { endpoint: Some(Endpoint::new(Box::new(dummy))), ..Slot::default() }
            };
            lab.board.slots.insert(address, slot);
        }
        lab
    }

    /// The group of a function.
    pub(crate) fn group_of(&self, address: &str) -> u32 {
        self.board.fabric.group(address.parse().unwrap()).unwrap()
    }

    /// Plugs a dummy device in that has no IOMMU, bound to vfio-pci.
    pub(crate) fn add_noiommu(&mut self, group: u32, address: &str) -> Arc<Endpoint> {
        let (endpoint, address) = self.plug(address, Some(Driver::VfioPci));
        self.vfio.add_noiommu_group(group, vec![address]);
        endpoint
    }

    /// Binds a function to another driver.
    pub(crate) fn bind(&mut self, address: &str, driver: Option<Driver>) {
        let address: Address = address.parse().unwrap();
        self.board.slots.get_mut(&address).unwrap().driver = driver;
    }

    /// The device at an address.
    pub(crate) fn endpoint(&self, address: &str) -> Arc<Endpoint> {
        Arc::clone(self.board.endpoint(address.parse().unwrap()).unwrap())
    }

    /// What a call needs, with another program.
    pub(crate) fn split<'a>(&'a mut self, client: &'a Client) -> (&'a mut Vfio, Context<'a>) {
        let Lab { vfio, board, iommufd, files, parking, .. } = self;
        (vfio, Context { caller: client, board, iommufd, files, parking })
    }

    /// What a call needs.
    pub(crate) fn parts(&mut self) -> (&mut Vfio, Context<'_>) {
        let Lab { vfio, board, iommufd, files, parking, client, .. } = self;
        (vfio, Context { caller: client, board, iommufd, files, parking })
    }

    /// Opens `/dev/vfio/vfio`.
    pub(crate) fn open_container(&mut self) -> FileId {
        let file = self.files.allocate();
        self.vfio.open_container(file);
        file
    }

    /// Opens `/dev/vfio/N`.
    pub(crate) fn open_group(&mut self, group: u32) -> Result<FileId, Errno> {
        let file = self.files.allocate();
        let (vfio, mut cx) = self.parts();
        vfio.open_group(file, group, &mut cx).map(|()| file)
    }

    /// `ioctl` whose answer is a number.
    pub(crate) fn ioctl(&mut self, file: FileId, request: u32, arg: u64) -> Result<u64, Errno> {
        let (vfio, mut cx) = self.parts();
        match vfio.ioctl(file, request, arg, &mut cx)? {
            Reply::Value(value) => Ok(value),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// `ioctl` of another program.
    pub(crate) fn ioctl_as(&mut self, client: &Client, file: FileId, request: u32, arg: u64) -> Result<Reply, Errno> {
        let (vfio, mut cx) = self.split(client);
        vfio.ioctl(file, request, arg, &mut cx)
    }

    /// SET_CONTAINER.
    pub(crate) fn set_container(&mut self, group: FileId, container: FileId) -> Result<u64, Errno> {
        let fd = self.client.fd(container);
        let arg = self.client.put(&fd);
        self.ioctl(group, SET_CONTAINER, arg)
    }

    /// GET_DEVICE_FD.
    pub(crate) fn get_device_fd(&mut self, group: FileId, name: &str) -> Result<FileId, Errno> {
        let arg = self.client.put_str(name);
        let (vfio, mut cx) = self.parts();
        match vfio.ioctl(group, GET_DEVICE_FD, arg, &mut cx)? {
            Reply::NewFile(file) => Ok(file),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// A container with one group in it and an IOMMU type set.
    pub(crate) fn container_with(&mut self, group: u32, number: u64) -> (FileId, FileId) {
        let container = self.open_container();
        let group = self.open_group(group).unwrap();
        self.set_container(group, container).unwrap();
        self.ioctl(container, SET_IOMMU, number).unwrap();
        (container, group)
    }

    /// Plugs a device in that can be opened, into a group of the test's, with
    /// a node of its own.
    pub(crate) fn plug_in(&mut self, group: u32, address: &str, driver: Option<Driver>) {
        let at: Address = address.parse().unwrap();
        let spec = FunctionSpec { vendor: 0x1234, device: 0x5678, ..FunctionSpec::default() };
        self.board.fabric.plug_auto(at, spec).unwrap();
        self.add(group, address, driver);
        self.vfio.driver_bound(at, &self.board);
    }

    /// Opens `/dev/vfio/devices/vfioN`.
    pub(crate) fn open_cdev(&mut self, number: u32) -> Result<FileId, Errno> {
        let file = self.files.allocate();
        self.vfio.open_cdev(file, number, &self.board).map(|()| file)
    }

    /// Opens `/dev/iommu`.
    pub(crate) fn open_iommufd(&mut self) -> FileId {
        let file = self.files.allocate();
        self.iommufd.open(file, false);
        file
    }

    /// `ioctl` on `/dev/iommu` with a structure, which is read back.
    pub(crate) fn iommufd_call<const N: usize>(
        &mut self,
        file: FileId,
        request: u32,
        words: [u32; N],
    ) -> Result<[u32; N], Errno> {
        let arg = self.client.put(&words);
        let mut call = iommufd::Call { caller: &self.client, files: &mut self.files };
        self.iommufd.ioctl(file, request, arg, &mut call)?;
        Ok(self.client.get(arg))
    }

    /// A new IOAS.
    pub(crate) fn ioas(&mut self, file: FileId) -> u32 {
        self.iommufd_call(file, 0x3b81, [12, 0, 0]).unwrap()[2]
    }

    /// BIND_IOMMUFD; the device's id.
    pub(crate) fn bind_cdev(&mut self, cdev: FileId, iommufd: FileId) -> Result<u32, Errno> {
        let fd = self.client.fd(iommufd) as u32;
        let arg = self.client.put(&[16, 0, fd, 0]);
        self.ioctl(cdev, BIND_IOMMUFD, arg)?;
        Ok(self.client.get::<[u32; 4]>(arg)[3])
    }

    /// ATTACH_IOMMUFD_PT; the HWPT.
    pub(crate) fn attach(&mut self, cdev: FileId, pt_id: u32, pasid: Option<u32>) -> Result<u32, Errno> {
        let arg = self.client.put(&[16, u32::from(pasid.is_some()), pt_id, pasid.unwrap_or(0)]);
        self.ioctl(cdev, ATTACH_IOMMUFD_PT, arg)?;
        Ok(self.client.get::<[u32; 4]>(arg)[2])
    }

    /// DETACH_IOMMUFD_PT.
    pub(crate) fn detach(&mut self, cdev: FileId, pasid: Option<u32>) -> Result<u64, Errno> {
        let arg = self.client.put(&[12, u32::from(pasid.is_some()), pasid.unwrap_or(0)]);
        self.ioctl(cdev, DETACH_IOMMUFD_PT, arg)
    }

    /// Closes a file.
    pub(crate) fn release(&mut self, file: FileId) {
        self.vfio.release(file, &mut self.board, &mut self.iommufd);
    }
}
