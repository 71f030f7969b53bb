// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decodes the program's calls on open files, has the kernel answer them, and
//! encodes the answers.

use std::os::fd::OwnedFd;

use caller::{Caller, FileId, Reply, Ticket};
use uapi::{Errno, region};

use crate::filter::{KVM_SET_DEVICE_ATTR, TYPE_VHOST};
use crate::identity::{self, Identity};
use crate::listener::{Listener, Notification, to_core};
use crate::parked::On;
use crate::processes::Known;
use crate::queues::Target;
use crate::state::State;
use crate::thread::{Giver, Thread};
use crate::{FileKind, Node};

/// How a call is to be answered.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With a value or an error.
    Done(Result<u64, Errno>),
    /// The real kernel does it.
    GoOn,
    /// With a new descriptor.
    NewFd {
        /// The description.
        fd: OwnedFd,
        /// Whether it is closed by `execve`.
        cloexec: bool,
        /// What the number will mean; `None`: none of our files.
        known: Option<Known>,
    },
    /// Later: the caller waits.
    Parked(Ticket, On),
}

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Outcome {
        Outcome::Done(Err(errno))
    }
}

/// Makes a [`Thread`] of disjoint parts of the state.
macro_rules! thread {
    ($state:ident, $process:expr, $tid:expr) => {
        $crate::thread::Thread {
            tid: $tid,
            process: &*$process,
            files: &$state.files,
            events: &$state.events,
            pinner: &$state.pinner,
            tree: $state.farm.tree(),
            giver: None,
        }
    };
}
pub(crate) use thread;

/// Every kind of file.
pub(crate) const KINDS: [FileKind; 6] =
    [FileKind::Container, FileKind::Group, FileKind::Device, FileKind::Iommufd, FileKind::VhostVdpa, FileKind::Other];
/// Most bytes that Linux moves in one `read` or `write`.
const MAX_RW: u64 = 0x7fff_f000;
/// Most buffers of one vectored call.
const MAX_IOV: u64 = 1024;

impl State {
    /// Answers `ioctl`.
    pub(crate) fn ioctl(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let [fd, request, arg, ..] = n.args;
        let (fd, request) = (fd as i32, request as u32);
        if request == KVM_SET_DEVICE_ATTR {
            return self.kvm_device_attr(n, listener, fd, arg);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let known = process
            .known(fd)
            .filter(|known| !is_first(request) && belongs(known.kind, request) && self.files.is_open(known.file));
        let file = match known {
            Some(known) => known.file,
            None => match self.look(n, listener, fd)? {
                Some(known) => known.file,
                None => return Ok(Outcome::GoOn),
            },
        };
        self.ioctl_on(n, listener, file)
    }

    /// Answers `ioctl` on a file that is known.
    pub(crate) fn ioctl_on(&mut self, n: &Notification, listener: &Listener, file: FileId) -> Result<Outcome, Errno> {
        let [_, request, arg, ..] = n.args;
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let giver = Some(Giver { listener, id: n.id, queues: &self.queues });
        let thread = Thread { giver, ..thread!(self, process, n.tid) };
        match self.kernel.ioctl(file, request as u32, arg, &thread)? {
            Reply::Value(value) => Ok(Outcome::Done(Ok(value))),
            Reply::NewFile(file) => {
                let (fd, kind) = self.describe(file)?;
                Ok(Outcome::NewFd { fd, cloexec: true, known: Some(Known { file, kind, device: None }) })
            }
            Reply::Parked(ticket) => Ok(Outcome::Parked(ticket, On::Ioctl(file))),
        }
    }

    /// Finds out what `fd` is, and remembers it. A stand-in is replaced by
    /// what it stands for.
    fn look(&mut self, n: &Notification, listener: &Listener, fd: i32) -> Result<Option<Known>, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        process.forget(fd);
        let node = match identity::identify(process, n.tid, fd, &self.files, self.farm.tree())? {
            Identity::File(file) => {
                let kind = self.kernel.kind(file).unwrap_or(FileKind::Other);
                let known = Known { file, kind, device: None };
                process.learn(fd, known);
                return Ok(Some(known));
            }
            Identity::StandIn(id, node, file) => return self.stand_down(n, listener, fd, (id, node, file)).map(Some),
            Identity::Placeholder(node) => node,
            Identity::Foreign(_) => return Ok(None),
        };
        self.take_place(n, listener, fd, node).map(Some)
    }

    /// Opens `node` and puts it in the place of `fd`, which was opened natively.
    fn take_place(&mut self, n: &Notification, listener: &Listener, fd: i32, node: Node) -> Result<Known, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        let file = self.kernel.open(node, &thread)?;
        let (description, kind) = self.describe_node(file)?;
        self.put_in_place(n, listener, fd, &description, Known { file, kind, device: None })
    }

    /// Puts what a stand-in stands for in the place of its descriptor `fd`:
    /// the file that another descriptor of it has got, or a new one.
    fn stand_down(
        &mut self,
        n: &Notification,
        listener: &Listener,
        fd: i32,
        (stand_in, node, file): (u64, Node, Option<FileId>),
    ) -> Result<Known, Errno> {
        let Some(file) = file else {
            let known = self.take_place(n, listener, fd, node)?;
            self.files.took_place(stand_in, known.file);
            return Ok(known);
        };
        let description = self.files.again(file).map_err(to_core)?;
        let kind = self.kernel.kind(file).unwrap_or(FileKind::Other);
        self.put_in_place(n, listener, fd, &description, Known { file, kind, device: None })
    }

    fn put_in_place(
        &mut self,
        n: &Notification,
        listener: &Listener,
        fd: i32,
        description: &OwnedFd,
        known: Known,
    ) -> Result<Known, Errno> {
        let cloexec = identity::is_cloexec(n.tid, fd);
        listener.replace_fd(n.id, std::os::fd::AsFd::as_fd(description), fd, cloexec).map_err(to_core)?;
        self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.learn(fd, known);
        Ok(known)
    }

    /// The kvm-vfio device takes only the real kernel's files; what it would
    /// do with ours (cache coherency, SPAPR) is nothing.
    fn kvm_device_attr(&mut self, n: &Notification, listener: &Listener, fd: i32, arg: u64) -> Result<Outcome, Errno> {
        const KVM_DEV_VFIO_FILE: u32 = 1;
        if identity::link(n.tid, fd).is_none_or(|link| link.as_os_str() != "anon_inode:kvm-vfio") {
            return Ok(Outcome::GoOn);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        let mut attr = [0u8; 24];
        thread.read(arg, &mut attr)?;
        let group = u32::from_le_bytes([attr[4], attr[5], attr[6], attr[7]]);
        let addr = u64::from_le_bytes([attr[16], attr[17], attr[18], attr[19], attr[20], attr[21], attr[22], attr[23]]);
        if group != KVM_DEV_VFIO_FILE {
            return Ok(Outcome::GoOn);
        }
        let mut number = [0u8; 4];
        thread.read(addr, &mut number)?;
        let number = i32::from_le_bytes(number);
        match self.look(n, listener, number) {
            Ok(Some(_)) => Ok(Outcome::Done(Ok(0))),
            _ => Ok(Outcome::GoOn),
        }
    }

    /// Answers `read`, `pread64` and their like, on a number of a queue or at
    /// an offset of a device.
    pub(crate) fn transfer(&mut self, n: &Notification, listener: &Listener, how: Transfer) -> Result<Outcome, Errno> {
        let [fd, _, _, offset, ..] = n.args;
        if self.queues.contains(&(fd as i32))
            && let Some(outcome) = self.queue_call(n, listener, how)?
        {
            return Ok(outcome);
        }
        if how.write
            && how.plain
            && !self.messages.is_empty()
            && let Some(outcome) = self.message_call(n, listener, how)?
        {
            return Ok(outcome);
        }
        match libc::c_long::from(n.nr) {
            libc::SYS_write => self.write_call(n, listener),
            _ if how.plain || offset < region::FIRST => Ok(Outcome::GoOn),
            _ => self.read_write(n, listener, how),
        }
    }

    /// Answers `write` and `writev` of a message. `None`: the file takes none.
    ///
    /// Looking takes three system calls of the seven that answer a message. What
    /// is remembered of a number may be wrong: other files are written to as
    /// well, and a number can be closed untold while a duplicate stays open. So
    /// only what the remembered file has taken as a message was meant for it,
    /// and for all else the number is looked at.
    fn message_call(&mut self, n: &Notification, listener: &Listener, how: Transfer) -> Result<Option<Outcome>, Errno> {
        let [fd, buf, len, ..] = n.args;
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let known = process.known(fd as i32).map(|known| known.file).filter(|_| !how.vectored);
        let known = known.filter(|file| self.messages.contains(file) && self.files.is_open(*file));
        let mut refused = None;
        if let Some(file) = known {
            match self.kernel.write_message(file, &[(buf, len)], &thread!(self, process, n.tid)) {
                Ok(done) => return Ok(Some(Outcome::Done(Ok(done)))),
                Err(errno) => refused = Some((file, errno)),
            }
        }
        let file = match identity::identify(process, n.tid, fd as i32, &self.files, self.farm.tree()) {
            Ok(Identity::File(file)) if self.messages.contains(&file) => file,
            // Also where it cannot be told: the real kernel knows.
            _ => return Ok(None),
        };
        if let Some((_, errno)) = refused.filter(|(other, _)| *other == file) {
            return Err(errno);
        }
        let kind = self.kernel.kind(file).unwrap_or(FileKind::Other);
        process.learn(fd as i32, Known { file, kind, device: None });
        let thread = thread!(self, process, n.tid);
        if !how.vectored {
            return self.kernel.write_message(file, &[(buf, len)], &thread).map(|done| Some(Outcome::Done(Ok(done))));
        }
        let parts = iovecs(&thread, buf, len)?;
        if parts.iter().all(|(_, len)| *len == 0) {
            return Ok(Some(Outcome::Done(Ok(0))));
        }
        self.kernel.write_message(file, &parts, &thread).map(|done| Some(Outcome::Done(Ok(done))))
    }

    /// Answers `pread64` and its like. The offset says that a device is meant,
    /// and which; where Linux lays regions, it does not say which.
    fn read_write(&mut self, n: &Notification, listener: &Listener, how: Transfer) -> Result<Outcome, Errno> {
        let [fd, _, _, offset, ..] = n.args;
        let fd = fd as i32;
        let device = region::split(offset).map(|(device, ..)| device);
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let known = process.known(fd);
        let known = known.filter(|known| device.is_some() && known.device == device && self.files.is_open(known.file));
        let known = match known {
            Some(known) => known,
            None => match self.look(n, listener, fd)? {
                Some(known) => known,
                None => return Ok(Outcome::GoOn),
            },
        };
        let outcome = self.transfer_on(n, listener, known, how, 0)?;
        if known.device.is_none() && device.is_some() {
            let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
            process.learn(fd, Known { device, ..known });
        }
        Ok(outcome)
    }

    /// Answers a transfer on a file that is known, whose first `done` bytes
    /// have been moved.
    pub(crate) fn transfer_on(
        &mut self,
        n: &Notification,
        listener: &Listener,
        known: Known,
        how: Transfer,
        mut done: u64,
    ) -> Result<Outcome, Errno> {
        let [_, buf, len, mut offset, ..] = n.args;
        // What is no device is read from its start, wherever a list has got to.
        let stream = known.kind == FileKind::Stream;
        let queue = known.kind == FileKind::Other || stream;
        if stream && !how.plain && !(how.flags && offset == u64::MAX) {
            return Err(Errno::ESPIPE);
        }
        if how.plain || queue && how.flags && offset == u64::MAX {
            offset = 0;
        } else if offset > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let thread = thread!(self, process, n.tid);
        let mut one = |buf, len: u64, offset| {
            let len = len.min(MAX_RW);
            if how.write {
                self.kernel.write(known.file, offset, buf, len, &thread)
            } else {
                self.kernel.read(known.file, offset, buf, len, &thread)
            }
        };
        let wait = |ticket, done| Ok(Outcome::Parked(ticket, On::Transfer { known, how, done }));
        if !how.vectored {
            return match one(buf, len, offset)? {
                Reply::Value(done) => Ok(Outcome::Done(Ok(done))),
                Reply::Parked(ticket) => wait(ticket, 0),
                Reply::NewFile(_) => Err(Errno::EIO),
            };
        }
        if n.args[5] != 0 && how.flags {
            // No per-call flag means anything on a device.
            return Err(Errno::EOPNOTSUPP);
        }
        let mut before = done;
        for (base, len) in iovecs(&thread, buf, len)? {
            // Buffers that were moved before the call waited.
            if before > 0 && len <= before {
                before -= len;
                continue;
            }
            let at = if queue { offset } else { offset.saturating_add(done) };
            match one(base, len, at) {
                Ok(Reply::Value(n)) => {
                    done += n;
                    if n < len {
                        break;
                    }
                }
                Ok(Reply::Parked(ticket)) => return wait(ticket, done),
                Ok(Reply::NewFile(_)) => return Err(Errno::EIO),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(Outcome::Done(Ok(done)))
    }

    /// Answers `mmap`: refuses what the device does not have; the mapping
    /// itself is the real kernel's.
    pub(crate) fn mmap(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let [_, len, prot, flags, fd, offset] = n.args;
        let flags = flags as i32;
        if flags & libc::MAP_ANONYMOUS != 0 {
            return Ok(Outcome::GoOn);
        }
        let found = match self.look(n, listener, fd as i32) {
            // Any program maps files at low offsets, also one that cannot be looked into.
            Err(_) if offset < region::FIRST => None,
            found => found?,
        };
        if let Some(known) = found {
            let shared = flags & libc::MAP_TYPE != libc::MAP_PRIVATE;
            let exec = prot as i32 & libc::PROT_EXEC != 0;
            if known.kind == FileKind::VhostVdpa {
                let read = prot as i32 & libc::PROT_READ != 0;
                self.kernel.map_doorbell(known.file, offset, len, shared, read)?;
                return Ok(Outcome::GoOn);
            }
            self.kernel.mmap(known.file, offset, len, shared, exec)?;
            if self.hold.is_active() {
                let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
                self.hold.include(process.pid);
            }
        }
        Ok(Outcome::GoOn)
    }

    /// Answers `ftruncate` and `fallocate`, which character devices do not
    /// have.
    pub(crate) fn resize(&mut self, n: &Notification, listener: &Listener, refusal: Errno) -> Result<Outcome, Errno> {
        match self.look(n, listener, n.args[0] as i32)? {
            Some(_) => Err(refusal),
            None => Ok(Outcome::GoOn),
        }
    }

    /// `dup` and its like: numbers come to mean other files.
    pub(crate) fn duplicated(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        let process = self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?;
        let nr = libc::c_long::from(n.nr);
        #[cfg(target_arch = "x86_64")]
        let onto = nr == libc::SYS_dup3 || nr == libc::SYS_dup2;
        #[cfg(not(target_arch = "x86_64"))]
        let onto = nr == libc::SYS_dup3;
        let [fd, second, third, ..] = n.args.map(|arg| arg as i32);
        let target = if onto {
            process.forget(second);
            Target::Exactly(second)
        } else {
            process.forget_all();
            match nr {
                libc::SYS_fcntl => Target::From(third, second == libc::F_DUPFD_CLOEXEC),
                _ => Target::From(0, false),
            }
        };
        Ok(self.duplicate_queue(n, listener, fd, target)?.unwrap_or(Outcome::GoOn))
    }

    /// The rights of the process are about to change, or (`others`) maybe those
    /// of another.
    pub(crate) fn rights_change(
        &mut self,
        n: &Notification,
        listener: &Listener,
        others: bool,
    ) -> Result<Outcome, Errno> {
        if others {
            self.processes.limits_change();
        } else {
            self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.rights.change();
        }
        Ok(Outcome::GoOn)
    }

    /// The capabilities of the thread are about to change.
    pub(crate) fn capabilities_change(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.rights.change_capabilities();
        Ok(Outcome::GoOn)
    }

    /// `execve` is about to replace memory and close descriptors.
    pub(crate) fn exec(&mut self, n: &Notification, listener: &Listener) -> Result<Outcome, Errno> {
        self.processes.of_thread(n.tid, || listener.is_waiting(n.id))?.before_exec();
        Ok(Outcome::GoOn)
    }

    /// The answer has been given and the program has descriptor `fd`.
    pub(crate) fn given(&mut self, n: &Notification, fd: i32, known: Option<Known>) {
        if let (Some(known), Ok(process)) = (known, self.processes.of_thread(n.tid, || true)) {
            process.learn(fd, known);
        }
    }

    /// The file that a cached or fresh look gives, for events.
    pub(crate) fn file_of(&mut self, n: &Notification, fd: i32) -> Option<FileId> {
        self.processes.of_thread(n.tid, || true).ok()?.known(fd).map(|known| known.file)
    }
}

/// How `pread64` and its like differ.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transfer {
    /// To the device.
    pub(crate) write: bool,
    /// Buffers come as a list.
    pub(crate) vectored: bool,
    /// There is a flags argument.
    pub(crate) flags: bool,
    /// There is no offset argument.
    pub(crate) plain: bool,
}

fn iovecs(thread: &Thread<'_>, addr: u64, count: u64) -> Result<Vec<(u64, u64)>, Errno> {
    if count > MAX_IOV {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0u8; count as usize * 16];
    thread.read(addr, &mut bytes)?;
    buffers(&bytes)
}

/// Addresses and lengths of a list of buffers: `EINVAL` if they are too much.
pub(crate) fn buffers(bytes: &[u8]) -> Result<Vec<(u64, u64)>, Errno> {
    let (pairs, _) = bytes.as_chunks::<16>();
    let mut total = 0u64;
    pairs
        .iter()
        .map(|pair| {
            let (words, _) = pair.as_chunks::<8>();
            let word = |n: usize| words.get(n).map_or(0, |word| u64::from_le_bytes(*word));
            let (base, len) = (word(0), word(1));
            total = total.saturating_add(len);
            if len > i64::MAX as u64 || total > i64::MAX as u64 { Err(Errno::EINVAL) } else { Ok((base, len)) }
        })
        .collect()
}

/// `VFIO_GET_API_VERSION` and `VFIO_GROUP_GET_STATUS` change nothing and come
/// first on a new descriptor: their file is always looked up, so that what is
/// remembered of a number that came in untold (`SCM_RIGHTS`) is put right.
fn is_first(request: u32) -> bool {
    matches!(request, 0x3b64 | 0x3b67)
}

/// Whether a kind of file knows a request. If not, the number may have come
/// to mean another file.
pub(crate) fn belongs(kind: FileKind, request: u32) -> bool {
    if request >> 8 & 0xff == TYPE_VHOST {
        return kind == FileKind::VhostVdpa;
    }
    let number = request & 0xff;
    match kind {
        FileKind::Container => matches!(number, 0x64..=0x66 | 0x70..=0x75),
        FileKind::Group => matches!(number, 0x67..=0x6a),
        FileKind::Device => matches!(number, 0x6b..=0x78),
        FileKind::Iommufd => matches!(number, 0x64..=0x66 | 0x70..=0x75 | 0x80..),
        FileKind::VhostVdpa | FileKind::AerInject => false,
        FileKind::Stream | FileKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // API-002
    #[test]
    fn a_request_tells_kinds_apart_where_it_can() {
        assert!(belongs(FileKind::Container, 0x3b71) && belongs(FileKind::Device, 0x3b71));
        assert!(!belongs(FileKind::Group, 0x3b71) && belongs(FileKind::Group, 0x3b6a));
        assert!(belongs(FileKind::Iommufd, 0x3b85) && !belongs(FileKind::Container, 0x3b85));
        assert!(belongs(FileKind::VhostVdpa, 0x8008_af00) && !belongs(FileKind::Device, 0x8008_af00));
    }
}
