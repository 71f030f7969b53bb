// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What iommufd asks of the IOMMU in front of a device: what Linux calls
//! `iommu_ops`. There are two: the lab's (`vtd`) and the selftest's mock.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use caller::Caller;
use iommu::{DirtyLog, Domain, Requester};
use uapi::Errno;
use uapi::iommufd::HwptFlags;
use uapi::iommufd_hw::NONE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::ids::ObjectId;

/// Which IOMMU a device is behind. Domains of one are not for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// The lab's.
    Lab,
    /// The selftest's.
    Mock,
}

/// The IOMMU as one group of devices has it.
pub(crate) trait Driver: Any + Debug + Send {
    /// Which one it is.
    fn iommu(&self) -> Iommu;

    /// The answer to `GET_HW_INFO`: its type and bytes. `kind` is the type asked
    /// for, 0 for any; `EOPNOTSUPP`.
    fn hw_info(&self, kind: u32) -> Result<(u32, Vec<u8>), Errno> {
        if kind == NONE { Ok((NONE, Vec::new())) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// What a domain for an IOAS is like: `EOPNOTSUPP`, `EINVAL`, `EFAULT`.
    fn alloc_paging(&self, flags: HwptFlags, data: Option<&UserData<'_>>) -> Result<Paging, Errno>;

    /// A domain for a program's own table, in front of `parent`.
    fn alloc_nested(&self, parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno> {
        let _ = (parent, flags, data);
        Err(Errno::EOPNOTSUPP)
    }

    /// What is particular to a vIOMMU of a type. `EOPNOTSUPP`
    fn check_viommu(&self, kind: u32) -> Result<(), Errno> {
        let _ = kind;
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes a vIOMMU of a type that it has checked. `region` gives pages to
    /// map, of a length: where they lie.
    fn alloc_viommu(
        &self,
        data: Option<&UserData<'_>>,
        region: &mut dyn FnMut(u64) -> Result<NewRegion, Errno>,
    ) -> Result<Box<dyn ViommuDriver>, Errno> {
        let _ = (data, region);
        Err(Errno::EOPNOTSUPP)
    }

    /// Attaches a PASID of all devices of the group, 0 for requests without
    /// one, or blocks its DMA with `None`, which cannot fail. On an error
    /// nothing has changed.
    fn attach(&mut self, pasid: u32, target: Option<&Target<'_>>) -> Result<(), Errno>;

    /// Another function is in the group, whose attachments are these.
    fn add_member(&mut self, requester: &Arc<Requester>, attached: &[(u32, Domain)]) {
        let _ = (requester, attached);
    }
}

/// What a new domain for an IOAS is like.
#[derive(Clone, Debug)]
pub(crate) struct Paging {
    /// A bit for each page size.
    pub(crate) page_sizes: u64,
    /// First and last IOVA.
    pub(crate) aperture: (u64, u64),
    /// Where writes are noted; `None` for a domain without dirty tracking.
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// Whether DMA is cache coherent whatever the device asks for.
    pub(crate) enforces_coherency: bool,
    /// Whether only mappings with WRITE are allowed.
    pub(crate) force_writeable: bool,
}

/// What a group is to be attached to.
pub(crate) struct Target<'a> {
    /// Mappings, log and the program's own table.
    pub(crate) domain: &'a Domain,
    /// Only devices with dirty tracking may be attached.
    pub(crate) dirty: bool,
    /// The vIOMMU of a nested domain, and the device's number on it if it has one.
    pub(crate) viommu: Option<(ObjectId, Option<u64>)>,
    /// The program's own table, as the driver made it.
    pub(crate) nested: Option<&'a dyn Nested>,
}

/// A domain for a program's own table.
pub(crate) trait Nested: Any + Debug + Send {
    /// What requesters are attached to.
    fn domain(&self) -> Domain;

    /// `HWPT_INVALIDATE`, in order, to the first entry that is wrong.
    fn invalidate(&mut self, entries: &mut Entries<'_>) -> Result<(), Errno>;
}

/// What is particular to a vIOMMU.
pub(crate) trait ViommuDriver: Any + Debug + Send {
    /// A nested domain on it.
    fn alloc_nested(&self, parent: &Domain, flags: HwptFlags, data: &UserData<'_>) -> Result<Box<dyn Nested>, Errno>;

    /// `HWPT_INVALIDATE`; `find` gives the driver of the device with a number.
    fn invalidate(&mut self, entries: &mut Entries<'_>, find: FindDevice<'_>) -> Result<(), Errno>;

    /// Whether it has hardware queues of a type: `EOPNOTSUPP`.
    fn check_hw_queue(&self, kind: u32) -> Result<(), Errno>;

    /// A new hardware queue; the one that it depends on.
    fn add_hw_queue(&mut self, index: u32, id: ObjectId) -> Result<Option<ObjectId>, Errno>;

    /// A hardware queue is gone.
    fn remove_hw_queue(&mut self, id: ObjectId);
}

/// Gives the driver of the device that has a number on a vIOMMU.
pub(crate) type FindDevice<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut(&mut dyn Driver)) -> bool;

/// Pages that a program can map.
#[derive(Clone, Debug)]
pub(crate) struct NewRegion {
    /// Offset in the context's file.
    pub(crate) offset: u64,
    /// The pages.
    pub(crate) window: Arc<dyn ::device::Window>,
}

/// What a program passes for a driver.
pub(crate) struct UserData<'a> {
    pub(crate) kind: u32,
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) caller: &'a dyn Caller,
}

impl UserData<'_> {
    /// Copies a structure of a type, of which the caller must know `min` bytes
    /// (IOMMUFD-8.6): `EINVAL`, `EFAULT`.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, kind: u32, min: usize) -> Result<T, Errno> {
        self.check::<T>(kind, min)?;
        read_struct(self.caller, self.address, self.len)
    }

    /// Copies a structure back.
    pub(crate) fn write<T: IntoBytes + Immutable>(&self, kind: u32, min: usize, value: &T) -> Result<(), Errno> {
        self.check::<T>(kind, min)?;
        let bytes = value.as_bytes();
        self.caller.write(self.address, &bytes[..bytes.len().min(self.len as usize)])
    }

    fn check<T>(&self, kind: u32, min: usize) -> Result<(), Errno> {
        let len = self.len as usize;
        if self.kind != kind || len < min || len > size_of::<T>() { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// Copies a structure of which the caller knows `len` bytes: what it does not
/// know is 0. `E2BIG` if it knows more, and that is not 0.
fn read_struct<T: FromBytes + IntoBytes>(caller: &dyn Caller, address: u64, len: u32) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    let known = size_of::<T>().min(len as usize);
    let mut tail = vec![0; len as usize - known];
    caller.read(address.checked_add(known as u64).ok_or(Errno::EFAULT)?, &mut tail)?;
    if tail.iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    caller.read(address, &mut value.as_mut_bytes()[..known])?;
    Ok(value)
}

/// The entries of `HWPT_INVALIDATE`.
pub(crate) struct Entries<'a> {
    pub(crate) kind: u32,
    pub(crate) address: u64,
    /// Bytes of an entry, at most a page.
    pub(crate) len: u32,
    /// How many there are.
    pub(crate) count: u32,
    /// How many were handled.
    pub(crate) done: u32,
    pub(crate) caller: &'a dyn Caller,
}

impl Entries<'_> {
    /// Handles one entry after the other, each read when its turn comes. The
    /// type must be `kind`, which can be asked with no entry (IOMMUFD-11.3).
    pub(crate) fn each<T: FromBytes + IntoBytes>(
        &mut self,
        kind: u32,
        min: usize,
        each: &mut dyn FnMut(&T) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.kind != kind {
            return Err(Errno::EINVAL);
        }
        while self.done < self.count {
            let address = self.at(self.done)?;
            let data = UserData { kind, address, len: self.len, caller: self.caller };
            each(&data.read(kind, min)?)?;
            self.done += 1;
        }
        Ok(())
    }

    /// Reads all entries first, then handles one after the other. An entry may
    /// have another length than the structure.
    pub(crate) fn each_of_all<T: FromBytes + IntoBytes>(
        &mut self,
        kind: u32,
        each: &mut dyn FnMut(&T) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.kind != kind {
            return Err(Errno::EINVAL);
        }
        let read = |n| read_struct(self.caller, self.at(n)?, self.len);
        let all = (0..self.count).map(read).collect::<Result<Vec<T>, Errno>>()?;
        for entry in &all {
            each(entry)?;
            self.done += 1;
        }
        Ok(())
    }

    fn at(&self, n: u32) -> Result<u64, Errno> {
        self.address.checked_add(u64::from(n) * u64::from(self.len)).ok_or(Errno::EFAULT)
    }
}
