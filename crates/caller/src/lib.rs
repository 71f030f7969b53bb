// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program that called: what the core may ask of it and of the machine it
//! runs on. Front doors and the simulation implement these traits; the core
//! uses nothing else of the outside world.
#![forbid(unsafe_code)]

pub mod parking;
pub mod tree;

use std::fmt::Debug;
use std::sync::Arc;

use device::Event;
use iommu::Memory;
use uapi::Errno;

mod accounts;
mod mm;
#[cfg(feature = "testing")]
pub mod testing;

pub use accounts::Accounts;
pub use mm::{Area, ClientFile, FilePart, Mm, Readiness, UserId};
pub use parking::{Parking, Ticket, Wait, Wake};

/// An open file of the pretend kernel. Ids are never reused in a lab's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// Gives out [`FileId`]s.
#[derive(Debug, Default)]
pub struct FileIds(u64);

impl FileIds {
    /// A fresh id.
    pub fn allocate(&mut self) -> FileId {
        self.0 += 1;
        FileId(self.0)
    }
}

/// An address space of a program: a process as far as memory goes. Never
/// reused in a lab's life; `fork` and `exec` make new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u64);

/// Rights that Linux asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: no limit on locked memory.
    IpcLock,
    /// `CAP_SYS_RAWIO`: no-IOMMU groups.
    SysRawio,
    /// `CAP_SYS_ADMIN`: resets of buses through sysfs.
    SysAdmin,
    /// `CAP_SYS_RESOURCE`: choice of accounting.
    SysResource,
}

/// Client memory made reachable for devices.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The memory.
    pub memory: Arc<dyn Memory>,
    /// Offset in it of the first byte.
    pub offset: u64,
}

/// The thread whose call is being served.
pub trait Caller {
    /// Copies from its memory; `EFAULT`.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Copies to its memory; `EFAULT`.
    fn write(&self, addr: u64, buf: &[u8]) -> Result<(), Errno>;

    /// Its eventfd `fd`: `EBADF` if not open, `EINVAL` if not an eventfd.
    fn event(&self, fd: i32) -> Result<Arc<dyn Event>, Errno>;

    /// Its open file `fd`: `EBADF` if not open, `None` if it is none of ours.
    fn file(&self, fd: i32) -> Result<Option<FileId>, Errno>;

    /// Makes `len` bytes at `vaddr` reachable for devices: `EFAULT` if a page
    /// is not mapped or (with `write`) not writable. A mapped BAR is its
    /// device's ([`Memory::is_peer`]); `EFAULT` while it cannot be touched.
    fn pin(&self, vaddr: u64, len: u64, write: bool) -> Result<Pinned, Errno>;

    /// Whether it has a capability.
    fn capable(&self, capability: Capability) -> bool;

    /// `RLIMIT_MEMLOCK` in bytes; `u64::MAX` for none.
    fn memlock_limit(&self) -> u64;

    /// Whether `RLIMIT_MEMLOCK` is at least so many bytes. May say yes by what
    /// it was a moment ago, and so be quicker.
    fn memlock_allows(&self, bytes: u64) -> bool {
        bytes <= self.memlock_limit()
    }

    /// Whose memory it is.
    fn process(&self) -> ProcessId;

    /// Its memory, to hold on to after the call.
    fn mm(&self) -> Result<Arc<dyn Mm>, Errno>;

    /// Its open file `fd` as memory for devices: `EBADF` if not open. Whether
    /// it can be pinned shows when it is.
    fn client_file(&self, fd: i32) -> Result<Arc<dyn ClientFile>, Errno>;

    /// A new descriptor, close-on-exec, for a file of ours that has no more
    /// than requests: `EMFILE`.
    fn new_handle(&self, file: FileId) -> Result<i32, Errno>;

    /// A new eventfd with counter zero, close-on-exec: `EMFILE`.
    fn new_event(&self) -> Result<(i32, Arc<dyn Event>), Errno>;

    /// A new descriptor, close-on-exec, for a file of ours that is read,
    /// written and polled: `EMFILE`.
    fn new_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno>;

    /// The same for a file that is read only: `poll` never shows it writable
    /// (IOMMUFD-11.10).
    fn new_event_queue(&self, file: FileId) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        self.new_queue(file)
    }

    /// The same for a stream that is read only or, with `write`, written only.
    fn new_stream(&self, file: FileId, write: bool) -> Result<(i32, Arc<dyn Readiness>), Errno> {
        if write { self.new_queue(file) } else { self.new_event_queue(file) }
    }

    /// Closes a descriptor that [`new_handle`](Self::new_handle),
    /// [`new_event`](Self::new_event) or [`new_queue`](Self::new_queue) gave in the same call. Where a program's
    /// descriptors cannot be closed from outside the number stays taken, by
    /// nothing of ours.
    fn close(&self, fd: i32);

    /// Whether any program has a page of the range of our file mapped.
    fn is_mapped(&self, file: FileId, offset: u64, len: u64) -> bool;
}

/// First address that no program has (x86-64 with four-level tables; what
/// Linux's `access_ok` compares with).
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// Whether a range lies in the half of the address space that programs have.
#[must_use]
pub fn is_user_range(addr: u64, len: u64) -> bool {
    addr.checked_add(len).is_some_and(|end| end <= USER_END)
}

/// A number that says which watched event has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// The machine that the core runs on.
pub trait Platform: Send + Sync + Debug {
    /// Asks for `host::Host::event_fired(id)` each time that somebody signals
    /// `event` (irqfd, ioeventfd).
    fn watch(&self, id: WatchId, event: &Arc<dyn Event>);

    /// Calls `signalled`, on any thread, each time that somebody signals
    /// `event`, and once soon if its counter is not zero now. The counter is
    /// never taken (kicks of a virtio queue, VDPA-6.11).
    fn listen(&self, id: WatchId, event: &Arc<dyn Event>, signalled: Arc<dyn Fn() + Send + Sync>);

    /// Takes either request back.
    fn unwatch(&self, id: WatchId);

    /// 16 random bytes.
    fn random(&self) -> [u8; 16];

    /// Nanoseconds since the lab started.
    fn now(&self) -> u64;

    /// Something that any thread may call: `host::Host::elapse` is then called
    /// soon.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }

    /// Makes the files through which programs see devices.
    fn device_files(&self) -> &dyn device::DeviceFiles;
}

/// What a call gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A value.
    Value(u64),
    /// A new descriptor, close-on-exec, for this file.
    NewFile(FileId),
    /// None yet: the caller waits.
    Parked(Ticket),
}
