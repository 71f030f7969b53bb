// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds of programs.
//!
//! A program owns the file status flags of its eventfd: it may be blocking,
//! and a plain `write` to a full one would stop a device thread for ever. The
//! kernel itself signals eventfds without blocking, and asynchronous I/O lets
//! a program have it do so: an operation that is complete at once (a poll of
//! a file that is always ready) with the eventfd as the one to notify. That
//! adds 1 and saturates, exactly as VFIO's own interrupts do, for 0.7 µs where
//! `poll` and then `write` take 0.6 and a bare `write` 0.3. Where AIO is
//! denied, `poll` then `write` is used; only a program that fills its own
//! counter between the two could then hold up a thread.
#![allow(unsafe_code)] // raw io_setup/io_submit: no safe wrapper has them

use std::any::Any;
use std::cell::RefCell;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use device::Event;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno as Raw, ReadWriteFlags, preadv2};
use uapi::Errno;

/// An eventfd.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Takes `fd` over: `EINVAL` if it is not an eventfd.
    pub fn new(fd: OwnedFd) -> Result<Arc<EventFd>, Errno> {
        if is_eventfd(fd.as_fd()) { Ok(EventFd::adopt(fd)) } else { Err(Errno::EINVAL) }
    }

    /// A new eventfd, close-on-exec. `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn create(initial: u32, nonblocking: bool, semaphore: bool) -> Result<Arc<EventFd>, Errno> {
        let mut flags = EventfdFlags::CLOEXEC;
        flags.set(EventfdFlags::NONBLOCK, nonblocking);
        flags.set(EventfdFlags::SEMAPHORE, semaphore);
        let fd = eventfd(initial, flags).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
        Ok(EventFd::adopt(fd))
    }

    fn adopt(fd: OwnedFd) -> Arc<EventFd> {
        Arc::new(EventFd { fd })
    }

    /// The eventfd that a core event is; `None` if it is of another kind.
    #[must_use]
    pub fn of(event: &Arc<dyn Event>) -> Option<Arc<EventFd>> {
        let any: Arc<dyn Any + Send + Sync> = event.clone();
        any.downcast().ok()
    }

    /// Takes the counter: 0 if nothing was signalled. Never blocks.
    pub fn take(&self) -> u64 {
        let mut value = [0; 8];
        let mut parts = [IoSliceMut::new(&mut value)];
        // u64::MAX: a descriptor without a position.
        let got = match preadv2(&self.fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
            // Linux before 5.8; somebody may take the counter in between.
            Err(Raw::OPNOTSUPP) if ready(self.fd.as_fd(), PollFlags::IN) => rustix::io::read(&self.fd, &mut value),
            got => got,
        };
        if got == Ok(8) { u64::from_ne_bytes(value) } else { 0 }
    }

    fn write_if_ready(&self) {
        if ready(self.fd.as_fd(), PollFlags::OUT) {
            // EAGAIN: somebody filled it in between. It is full, as it should be.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Event for EventFd {
    fn signal(&self) {
        let sent = QUEUE.try_with(|queue| {
            let Ok(mut queue) = queue.try_borrow_mut() else { return false };
            let queue = queue.get_or_insert_with(Queue::new);
            queue.as_ref().is_some_and(|queue| queue.notify(self.fd.as_fd()))
        });
        if !sent.unwrap_or(false) {
            self.write_if_ready();
        }
    }

    /// What the kernel shows in `fdinfo`.
    fn number(&self) -> Option<u64> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd())).ok()?;
        info.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?.trim().parse().ok()
    }
}

/// Whether `fd` is an eventfd.
#[must_use]
pub fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(flags)
}

thread_local! {
    /// The thread's AIO context; the inner `None` if the machine has none for it.
    static QUEUE: RefCell<Option<Option<Queue>>> = const { RefCell::new(None) };
}

/// A file that is always ready: a memfd, which has no queue to wait in.
fn always_ready() -> Option<BorrowedFd<'static>> {
    static READY: OnceLock<Option<OwnedFd>> = OnceLock::new();
    READY.get_or_init(|| memfd_create("ready", MemfdFlags::CLOEXEC).ok()).as_ref().map(|fd| fd.as_fd())
}

/// Head of the completion ring that the kernel maps for an AIO context
/// (`struct aio_ring`).
#[repr(C)]
struct Ring {
    id: u32,
    nr: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
}

const RING_MAGIC: u32 = 0xa10a_10a1;
const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of a little-endian machine.
#[derive(Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// An AIO context of one thread.
struct Queue {
    ring: *const Ring,
    ready: BorrowedFd<'static>,
}

impl Queue {
    fn new() -> Option<Queue> {
        let ready = always_ready()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one c_ulong to the pointer, which is valid.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 4, &raw mut context) };
        if made != 0 {
            return None;
        }
        let queue = Queue { ring: context as *const Ring, ready };
        // SAFETY: a context's id is the address of its ring, which the kernel
        // has mapped and which stays until io_destroy (in drop).
        let magic = unsafe { (*queue.ring).magic };
        // Without the known layout completions could not be taken off the ring.
        (magic == RING_MAGIC).then_some(queue)
    }

    fn notify(&self, event: BorrowedFd<'_>) -> bool {
        let mut iocb = Iocb {
            opcode: IOCB_CMD_POLL,
            fd: self.ready.as_raw_fd() as u32,
            buf: libc::POLLIN as u64,
            flags: IOCB_FLAG_RESFD,
            resfd: event.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let mut list = [&raw mut iocb];
        // SAFETY: the context is live, the list has one valid iocb, and the
        // kernel does not look at either after the call: it copies the iocb,
        // and a poll writes to no buffer.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.ring, 1, list.as_mut_ptr()) };
        if submitted != 1 {
            return false;
        }
        // SAFETY: the ring is mapped (see `new`); head is ours to move, tail
        // is the kernel's, both are accessed atomically.
        let ring = unsafe { &*self.ring };
        ring.head.store(ring.tail.load(Ordering::Acquire), Ordering::Release);
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the context was made by io_setup and is destroyed once.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.ring) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(initial: u32, nonblocking: bool) -> Arc<EventFd> {
        EventFd::create(initial, nonblocking, false).unwrap()
    }

    #[test]
    fn signals_add_up() {
        for nonblocking in [false, true] {
            let event = create(0, nonblocking);
            assert_eq!(event.take(), 0);
            for _ in 0..1000 {
                event.signal();
            }
            assert_eq!(event.take(), 1000);
            event.write_if_ready();
            assert_eq!(event.take(), 1);
        }
    }

    #[test]
    fn the_machine_has_aio() {
        assert!(Queue::new().is_some_and(|queue| queue.notify(create(0, false).as_fd())));
    }

    #[test]
    fn a_full_counter_stays_full_and_nobody_waits() {
        let event = create(0, false);
        let full = u64::MAX - 1;
        assert_eq!(rustix::io::write(&event.fd, &full.to_ne_bytes()), Ok(8));
        event.write_if_ready();
        event.signal();
        event.signal();
        // The kernel's own signal may use the last value, a write may not.
        assert!(event.take() >= full);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(EventFd::new(null.into()).unwrap_err(), Errno::EINVAL);
        let fd = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(EventFd::new(fd).unwrap().take(), 3);
    }

    #[test]
    fn an_event_leads_back_to_its_descriptor() {
        #[derive(Debug)]
        struct Other;
        impl Event for Other {
            fn signal(&self) {}
        }
        let event = create(0, false);
        let core: Arc<dyn Event> = event.clone();
        assert!(Arc::ptr_eq(&EventFd::of(&core).unwrap(), &event));
        assert!(EventFd::of(&(Arc::new(Other) as Arc<dyn Event>)).is_none());
    }

    #[test]
    fn each_thread_has_its_own_queue() {
        let event = create(0, false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| event.signal()));
            }
        });
        assert_eq!(event.take(), 2000);
    }
}
