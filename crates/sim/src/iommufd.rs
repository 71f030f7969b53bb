// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that use `/dev/iommu` and devices' own nodes.

use caller::FileId;
use host::FileKind;
use host::tree::Node;
use uapi::iommufd::{
    Command, Destroy, HwptAlloc, HwptFlags, HwptGetDirtyBitmap, HwptSetDirtyTracking, IoasAlloc, IoasCopy, IoasMap,
    IoasUnmap, MapFlags, VfioIoas, vfio_ioas,
};
use uapi::vfio::cdev::{AttachIommufdPt, BindIommufd, DetachIommufdPt};
use uapi::vfio::{device as dev, group, type1};
use zerocopy::IntoBytes;

use crate::client::{BASE, Fd};
use crate::driver::ARENA_IOVA;
use crate::op::IommufdOp;
use crate::oracle::{File, Map};
use crate::world::{World, asked, pick};

const PAGE: u64 = 4096;
/// IOVA of `iova_page` 0: as for containers.
const IOVA: u64 = ARENA_IOVA - 64 * PAGE;
/// Where a dirty bitmap goes: what random maps cover has 256 pages.
const BITMAP: u64 = BASE + 1024;

fn iova(page: u16) -> u64 {
    IOVA + u64::from(page) * PAGE
}

/// The first word and the next of a structure, 32 bits each.
fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl World {
    pub(crate) fn act_iommufd(&mut self, op: &IommufdOp) {
        // Whatever is refused: what is open stays open.
        let _ = self.try_iommufd(op);
    }

    fn try_iommufd(&mut self, op: &IommufdOp) -> Option<()> {
        match *op {
            IommufdOp::Open { client } => {
                self.open_iommufd(client.into())?;
            }
            IommufdOp::OpenDevice { client, device, fd, new, log } => {
                self.open_cdev(client, device.into(), fd, new, log)?;
            }
            IommufdOp::Alloc { client, fd } => {
                let (fd, _) = self.pick(client, fd, FileKind::Iommufd)?;
                self.call(client.into(), fd, IoasAlloc::default())?;
            }
            IommufdOp::Hwpt { client, fd, device, object } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let pt_id = self.object(file, object)?;
                let flags = HwptFlags::from_bits_truncate(u32::from(device >> 4)).bits();
                // Ids are few: a device's is among the first.
                let dev_id = u32::from(device & 7);
                self.call(client.into(), fd, HwptAlloc { flags, dev_id, pt_id, ..HwptAlloc::default() })?;
            }
            IommufdOp::Destroy { client, fd, object } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let id = self.object(file, object)?;
                self.call(client.into(), fd, Destroy { id, ..Destroy::default() })?;
            }
            IommufdOp::Attach { client, device, object } => {
                let (fd, file) = self.pick(client, device, FileKind::VfioDevice)?;
                let Some(File::Cdev { bound: Some(context), .. }) = self.oracle.files.get(&file) else { return None };
                let pt_id = self.object(*context, object)?;
                self.attach(client.into(), fd, pt_id)?;
            }
            IommufdOp::Detach { client, device } => {
                let (fd, _) = self.pick(client, device, FileKind::VfioDevice)?;
                let detach = DetachIommufdPt { argsz: 12, ..DetachIommufdPt::default() };
                self.ioctl(client.into(), fd, dev::DETACH_IOMMUFD_PT, detach.as_bytes()).ok()?;
            }
            IommufdOp::Map { client, fd, object, flags, iova_page, page, pages } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let (_, ioas_id) = self.oracle.iommufd.ioas_of(file, self.object(file, object)?)?;
                let (user_va, length) = (BASE + u64::from(page) * PAGE, u64::from(pages) * PAGE);
                let map = IoasMap { ioas_id, flags: flags.into(), user_va, length, ..IoasMap::default() };
                self.call(client.into(), fd, IoasMap { iova: iova(iova_page), ..map })?;
            }
            IommufdOp::Copy { client, fd, from, to, flags, src_page, dst_page, pages } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let (_, src_ioas_id) = self.oracle.iommufd.ioas_of(file, self.object(file, from)?)?;
                let (_, dst_ioas_id) = self.oracle.iommufd.ioas_of(file, self.object(file, to)?)?;
                let (src_iova, dst_iova) = (iova(src_page), iova(dst_page));
                let (flags, length) = (flags.into(), u64::from(pages) * PAGE);
                let copy = IoasCopy { size: 0, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova };
                self.call(client.into(), fd, copy)?;
            }
            IommufdOp::Unmap { client, fd, object, iova_page, pages, all } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let (_, ioas_id) = self.oracle.iommufd.ioas_of(file, self.object(file, object)?)?;
                let (iova, length) = if all { (0, u64::MAX) } else { (iova(iova_page), u64::from(pages) * PAGE) };
                self.call(client.into(), fd, IoasUnmap { size: 0, ioas_id, iova, length })?;
            }
            IommufdOp::Dirty { client, fd, object, what } => {
                let (fd, file) = self.pick(client, fd, FileKind::Iommufd)?;
                let (hwpt_id, flags) = (self.object(file, object)?, u32::from(what & 1));
                if what & 2 != 0 {
                    let set = HwptSetDirtyTracking { flags, hwpt_id, ..HwptSetDirtyTracking::default() };
                    self.call(client.into(), fd, set)?;
                } else {
                    let get = HwptGetDirtyBitmap { hwpt_id, flags, data: BITMAP, ..HwptGetDirtyBitmap::default() };
                    let (iova, length, page_size) = (IOVA, 256 * PAGE, PAGE << (what >> 2 & 3));
                    self.call(client.into(), fd, HwptGetDirtyBitmap { iova, length, page_size, ..get })?;
                }
            }
        }
        Some(())
    }

    /// A call with a structure whose size is filled in.
    fn call<T: Command>(&mut self, client: usize, fd: i32, command: T) -> Option<()> {
        let mut bytes = command.as_bytes().to_vec();
        let size = (bytes.len() as u32).to_le_bytes();
        bytes.get_mut(..4)?.copy_from_slice(&size);
        self.ioctl(client, fd, T::REQUEST, &bytes).ok()?;
        Some(())
    }

    fn object(&self, context: FileId, n: u8) -> Option<u32> {
        pick(&self.oracle.iommufd.objects(context), n)
    }

    fn open_iommufd(&mut self, client: usize) -> Option<(i32, FileId)> {
        let caller = self.client(client);
        let file = self.host.borrow_mut().open(Node::Iommufd, &*caller).ok()?;
        Some((caller.install(Fd::File(file)), file))
    }

    fn open_cdev(&mut self, client: u8, device: usize, fd: u8, new: bool, log: bool) -> Option<()> {
        let address = self.device(device);
        let caller = self.client(client.into());
        let number = (0..4).find(|number| self.cdev(*number) == Some(address))?;
        let file = self.host.borrow_mut().open(Node::VfioCdev(number), &*caller).ok()?;
        self.oracle.files.insert(file, File::Cdev { address, bound: None, ioas: None });
        let cdev = caller.install(Fd::File(file));
        let (iommufd, context) = match self.pick(client, fd, FileKind::Iommufd) {
            Some(found) if !new => found,
            _ => self.open_iommufd(client.into())?,
        };
        let bind = BindIommufd { argsz: 16, iommufd, ..BindIommufd::default() };
        self.ioctl(client.into(), cdev, dev::BIND_IOMMUFD, bind.as_bytes().get(..16)?).ok()?;
        let mut id = [0; 4];
        caller.get(BASE + 12, &mut id);
        self.tally.opens += 1;
        if self.object(context, 0).is_none() {
            self.call(client.into(), iommufd, IoasAlloc::default())?;
        }
        let mut pt_id = self.object(context, 0)?;
        if log {
            let flags = HwptFlags::DIRTY_TRACKING.bits();
            let dev_id = u32::from_le_bytes(id);
            self.call(client.into(), iommufd, HwptAlloc { flags, dev_id, pt_id, ..HwptAlloc::default() })?;
            let mut made = [0; 4];
            caller.get(BASE + 16, &mut made);
            pt_id = u32::from_le_bytes(made);
            let on = HwptSetDirtyTracking { flags: 1, hwpt_id: pt_id, ..HwptSetDirtyTracking::default() };
            self.call(client.into(), iommufd, on)?;
        }
        self.attach(client.into(), cdev, pt_id)
    }

    fn attach(&mut self, client: usize, fd: i32, pt_id: u32) -> Option<()> {
        let attach = AttachIommufdPt { argsz: 12, pt_id, ..AttachIommufdPt::default() };
        self.ioctl(client, fd, dev::ATTACH_IOMMUFD_PT, attach.as_bytes().get(..12)?).ok()?;
        Some(())
    }

    /// The device that a node is of: they are numbered in the lab's order.
    fn cdev(&self, number: u32) -> Option<pci::Address> {
        Some(self.device(number as usize))
    }

    /// Maps an arena in the IOAS of an open device.
    pub(crate) fn map_ioas_arena(
        &mut self,
        client: usize,
        file: FileId,
        iova: u64,
        va: u64,
        length: u64,
    ) -> Option<()> {
        let Some(File::Cdev { ioas: Some((context, ioas_id)), .. }) = self.oracle.files.get(&file) else { return None };
        let (context, ioas_id) = (*context, *ioas_id);
        let caller = self.client(client);
        let fd = caller.open().into_iter().find(|fd| caller.file_id(*fd) == Some(context))?;
        let _ = self.call(client, fd, IoasUnmap { size: 0, ioas_id, iova, length });
        let flags = (MapFlags::FIXED_IOVA | MapFlags::READABLE | MapFlags::WRITEABLE).bits();
        self.call(client, fd, IoasMap { ioas_id, flags, user_va: va, length, iova, ..IoasMap::default() })
    }

    /// Tells the observer of a call on `/dev/iommu` or about one.
    pub(crate) fn observe_iommufd(&mut self, client: usize, file: FileId, request: u32, arg: u64, done: bool) {
        let kind = self.host.borrow().kind(file);
        let before = |at: usize| asked(&self.asked, at);
        let caller = self.client(client);
        let after = |offset: u64| {
            let mut bytes = [0; 8];
            caller.get(arg + offset, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let client = client % 2;
        match (kind, request) {
            // Not atomic: what came before the area that was refused is gone.
            (Some(FileKind::Iommufd), IoasUnmap::REQUEST) => {
                let (id, first, length) = (halves(before(0)).1, before(8), before(16));
                let last = if length == u64::MAX { u64::MAX } else { first.saturating_add(length).saturating_sub(1) };
                if length != 0 {
                    self.oracle.iommufd.unmapped((file, id), first, last);
                }
                self.disturb_all();
            }
            _ if !done => {}
            (Some(FileKind::Iommufd), IoasAlloc::REQUEST) => {
                self.oracle.iommufd.allocated((file, halves(after(8)).0), client);
            }
            (Some(FileKind::Iommufd), HwptAlloc::REQUEST) => {
                self.oracle.iommufd.allocated_hwpt((file, halves(after(16)).0), halves(before(8)).1);
            }
            (Some(FileKind::Iommufd), Destroy::REQUEST) => {
                self.oracle.iommufd.destroyed((file, halves(before(0)).1));
                self.disturb_all();
            }
            (Some(FileKind::Iommufd), IoasMap::REQUEST) => {
                self.tally.bound_maps += 1;
                let (flags, id) = (halves(before(0)).1, halves(before(8)).0);
                let (vaddr, length, iova) = (before(16), before(24), after(32));
                let (read, write) = (flags & 4 != 0, flags & 2 != 0);
                let map = Map { iova: iova..iova.saturating_add(length), vaddr: vec![vaddr], read, write };
                self.oracle.iommufd.mapped((file, id), map);
            }
            (Some(FileKind::Iommufd), IoasCopy::REQUEST) => {
                let (flags, (to, from)) = (halves(before(0)).1, halves(before(8)));
                let range = (before(32), after(24), before(16));
                let prot = (flags & 4 != 0, flags & 2 != 0);
                self.oracle.iommufd.copied((file, from), (file, to), range, prot);
            }
            (Some(FileKind::Iommufd), VfioIoas::REQUEST) => {
                let op = halves(before(8)).0 as u16;
                let id = halves(before(0)).1;
                match op {
                    vfio_ioas::SET => drop(self.oracle.iommufd.compat.insert(file, id)),
                    vfio_ioas::CLEAR => drop(self.oracle.iommufd.compat.remove(&file)),
                    _ => {}
                }
            }
            (Some(FileKind::Iommufd), type1::MAP_DMA) => {
                let Some(id) = self.oracle.iommufd.compat.get(&file).copied() else { return };
                let (flags, vaddr, iova, length) = (halves(before(0)).1, before(8), before(16), before(24));
                let (read, write) = (flags & 1 != 0, flags & 2 != 0);
                let map = Map { iova: iova..iova.saturating_add(length), vaddr: vec![vaddr], read, write };
                self.oracle.iommufd.mapped((file, id), map);
            }
            (Some(FileKind::Iommufd), type1::UNMAP_DMA) => {
                let Some(id) = self.oracle.iommufd.compat.get(&file).copied() else { return };
                let (all, iova, length) = (halves(before(0)).1 & 2 != 0, before(8), before(16));
                let last = if all { u64::MAX } else { iova.saturating_add(length).saturating_sub(1) };
                self.oracle.iommufd.unmapped((file, id), iova, last);
                self.disturb_all();
            }
            (Some(FileKind::VfioGroup), group::SET_CONTAINER) => {
                let to = caller.file_id(halves(before(0)).0.cast_signed());
                let Some(to) = to.filter(|to| self.host.borrow().kind(*to) == Some(FileKind::Iommufd)) else { return };
                // One without a compat IOAS has one from now on.
                const AT: u64 = BASE + 512;
                caller.set(AT, VfioIoas { size: 12, ..VfioIoas::default() }.as_bytes());
                let got = self.host.borrow_mut().ioctl(to, VfioIoas::REQUEST, AT, &*caller);
                if got.is_ok() {
                    let mut id = [0; 4];
                    caller.get(AT + 4, &mut id);
                    let id = u32::from_le_bytes(id);
                    self.oracle.iommufd.allocated((to, id), client);
                    self.oracle.iommufd.compat.insert(to, id);
                }
            }
            (Some(FileKind::VfioDevice), dev::BIND_IOMMUFD) => {
                let to = caller.file_id(halves(before(8)).0.cast_signed());
                if let Some(File::Cdev { bound, .. }) = self.oracle.files.get_mut(&file) {
                    *bound = to;
                }
            }
            (Some(FileKind::VfioDevice), dev::ATTACH_IOMMUFD_PT) if halves(before(0)).1 == 0 => {
                let (pt_id, used) = (halves(before(8)).0, halves(after(8)).0);
                let Some(File::Cdev { address, bound: Some(context), .. }) = self.oracle.files.get(&file) else {
                    return;
                };
                let (address, context) = (*address, *context);
                let space = self.oracle.iommufd.ioas_of(context, pt_id);
                self.oracle.iommufd.allocated_hwpt((context, used), pt_id);
                self.regroup(address, context, space);
                if let Some(File::Cdev { ioas, .. }) = self.oracle.files.get_mut(&file) {
                    *ioas = space;
                }
                self.disturb_all();
            }
            (Some(FileKind::VfioDevice), dev::DETACH_IOMMUFD_PT) if halves(before(0)).1 == 0 => {
                if let Some(File::Cdev { ioas, .. }) = self.oracle.files.get_mut(&file) {
                    *ioas = None;
                }
                self.disturb_all();
            }
            _ => {}
        }
    }

    /// IOMMUFD-8.16: members of a group that are attached move along.
    fn regroup(&mut self, address: pci::Address, context: FileId, space: Option<crate::spaces::SpaceId>) {
        let group = |address| self.host.borrow().board().fabric.group(address);
        let own = group(address);
        for file in self.oracle.files.values_mut() {
            if let File::Cdev { address, bound, ioas } = file
                && *bound == Some(context)
                && ioas.is_some()
                && group(*address) == own
            {
                *ioas = space;
            }
        }
    }
}
