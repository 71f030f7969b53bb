// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the front door asks of the pretend kernel.
//!
//! The front door decodes system calls and encodes their results; every rule
//! and every errno comes from here.

use std::sync::Arc;

use caller::tree::{Entry, Node, Tree};
use caller::{Caller, FileId, ProcessId, Reply, Ticket, Wait, Wake};
use device::DeviceFile;
use uapi::Errno;

use crate::Figures;

/// The pretend kernel behind the intercepted calls. Calls never overlap.
///
/// `ioctl`, `read`, `write` and `write_attribute` may answer
/// [`Reply::Parked`]: the caller waits, everybody else is served, and the file
/// stays open until [`take_woken`](Self::take_woken) says how the wait ended.
pub trait Kernel: Send {
    /// `open()` of a node. The id is fresh; errors are those of `open`.
    fn open(&mut self, node: Node, caller: &dyn Caller) -> Result<FileId, Errno>;

    /// `ioctl()` on an open file.
    fn ioctl(&mut self, file: FileId, request: u32, arg: u64, caller: &dyn Caller) -> Result<Reply, Errno>;

    /// `pread()`: copies to the caller's buffer at `buf`; the bytes done.
    fn read(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno>;

    /// `pwrite()`: copies from the caller's buffer at `buf`; the bytes done.
    fn write(&mut self, file: FileId, offset: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<Reply, Errno>;

    /// `write()` or `writev()` of a message, gathered from `(address, length)`,
    /// on a [`FileKind::VhostVdpa`] or [`FileKind::AerInject`]; the bytes done.
    fn write_message(&mut self, file: FileId, parts: &[(u64, u64)], caller: &dyn Caller) -> Result<u64, Errno> {
        let _ = (file, parts, caller);
        Err(Errno::EINVAL)
    }

    /// Whether `mmap(len, offset)` of a [`FileKind::VhostVdpa`] is allowed;
    /// `shared` for `MAP_SHARED`, `read` for `PROT_READ`. The mapping itself is
    /// made natively.
    fn map_doorbell(&mut self, file: FileId, offset: u64, len: u64, shared: bool, read: bool) -> Result<(), Errno> {
        let _ = (file, offset, len, shared, read);
        Err(Errno::ENODEV)
    }

    /// Whether `mmap(len, offset)` of a file is allowed; `shared` for
    /// `MAP_SHARED`, `exec` for `PROT_EXEC`. The mapping itself is made natively.
    fn mmap(&mut self, file: FileId, offset: u64, len: u64, shared: bool, exec: bool) -> Result<(), Errno>;

    /// The last descriptor and mapping of a file are gone. Exactly once for
    /// each id that `open` or [`Reply::NewFile`] gave out.
    fn release(&mut self, file: FileId);

    /// The shared pages behind a file through which a device is seen. `None`:
    /// the file is a handle only (container, group, iommufd).
    fn device_file(&self, file: FileId) -> Option<Arc<dyn DeviceFile>>;

    /// What kind of file it is; lets the front door see that a descriptor
    /// number has come to mean another file. `None`: no such file.
    fn kind(&self, file: FileId) -> Option<FileKind>;

    /// Changes whenever [`tree`](Self::tree) would give something else. Asked
    /// after each call: cheap.
    fn tree_generation(&self) -> u64;

    /// The fake parts of `/dev`, `/sys` and `/proc`.
    fn tree(&self) -> Tree;

    /// Takes the files whose content has changed though the
    /// [`generation`](Self::tree_generation) has not. Asked after each call:
    /// cheap.
    fn take_changed_files(&mut self) -> Vec<(String, Entry)> {
        Vec::new()
    }

    /// Whether the caller may write to an attribute at all.
    fn may_write_attribute(&self, path: &str, caller: &dyn Caller) -> Result<(), Errno> {
        let _ = (path, caller);
        Ok(())
    }

    /// A store to a writable attribute (absolute path, symlinks resolved); the
    /// bytes taken.
    fn write_attribute(&mut self, path: &str, data: &[u8]) -> Result<Reply, Errno>;

    /// How a call waits; `None` if it does not.
    fn wait(&self, ticket: Ticket) -> Option<Wait> {
        let _ = ticket;
        None
    }

    /// Takes the calls whose wait is over. Asked after each call, release and
    /// [`attend`](Self::attend): cheap.
    fn take_woken(&mut self) -> Vec<(Ticket, Wake)> {
        Vec::new()
    }

    /// A signal has come for the caller of a call that waits interruptibly;
    /// said once. Ends the wait, as a rule with [`Errno::ERESTARTSYS`], or has
    /// it go on uninterruptibly.
    fn interrupted(&mut self, ticket: Ticket) {
        let _ = ticket;
    }

    /// The caller of a call that waits is gone.
    fn abandon(&mut self, ticket: Ticket) {
        let _ = ticket;
    }

    /// What is locked and pinned of a process's memory.
    fn figures(&self, _process: ProcessId) -> Figures {
        Figures::default()
    }

    /// Somebody used the [`Waker`](crate::Waker), or
    /// [`Options::events`](crate::Options::events) is readable.
    fn attend(&mut self) {}
}

/// Kinds of open file, as far as their requests differ (API-002).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/N`.
    Group,
    /// A device: from a group, or a cdev.
    Device,
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vhost-vdpa-N`.
    VhostVdpa,
    /// `/dev/aer_inject`.
    AerInject,
    /// A stream without positions: the data of a migration.
    Stream,
    /// Anything else (fault queue).
    Other,
}
