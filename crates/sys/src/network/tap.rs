// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A TAP interface of this machine.
//!
//! Frames keep their virtio-net header, so checksums and segments to be made
//! are left to Linux, or come from it where the driver takes them. Each pair
//! of queues has a queue of the interface.
//!
//! A frame is a system call each way; there is no other way into a TAP. While
//! a device looks, it reads by itself. When nothing has come for some looks,
//! the queue is given to a thread that waits for all queues of the interface
//! and wakes the device.
#![allow(unsafe_code)] // the ioctls of TAP have no safe wrapper

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use device::{FRAME_HEADER, Frames, MAX_FRAME, NetPort, Offloads, Wake};
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};

/// Looks that find nothing before the thread waits instead.
const LOOKS: u32 = 64;
/// The thread's own eventfd among the queues.
const STOP: u64 = u64::MAX;

/// An interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No TAP device in this machine, or no right to it.
    #[error("cannot open /dev/net/tun: {0}")]
    Open(#[source] std::io::Error),
    /// The name is longer than an interface's can be.
    #[error("`{0}` is too long for the name of an interface")]
    Name(String),
    /// No such interface, or not the right to use or to make it.
    #[error("cannot use the TAP interface {name} ({error}); make it with `ip tuntap add {name} mode tap`")]
    Attach {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// No descriptor or thread left.
    #[error("cannot wait for the TAP interface: {0}")]
    Wait(#[source] std::io::Error),
}

/// A TAP interface, made if it is not there and we may.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    queues: Vec<Queue>,
    epoll: OwnedFd,
    stop: OwnedFd,
    wake: OnceLock<Arc<dyn Wake>>,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Queue {
    file: File,
    attached: AtomicBool,
    /// Looks that found nothing; [`LOOKS`]: the thread waits.
    empty: AtomicU32,
}

/// `struct ifreq`, as far as TAP goes.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

// include/uapi/linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;

impl Request {
    fn new(name: &str, flags: i16) -> Option<Request> {
        let mut bytes = [0; 16];
        // The last byte stays 0.
        bytes.get_mut(..15)?.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Request { name: bytes, flags, rest: [0; 22] })
    }

    fn call(&mut self, file: &File, request: libc::c_ulong) -> std::io::Result<()> {
        // SAFETY: both requests read and write a `struct ifreq` of 40 bytes,
        // which `self` is.
        match unsafe { libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_mut(self)) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Queue {
    fn open(name: &str, flags: i16) -> Result<Queue, TapError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = file.map_err(TapError::Open)?;
        let mut request = Request::new(name, flags).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let attached = request.call(&file, TUNSETIFF).and_then(|()| {
            let size = FRAME_HEADER as libc::c_int;
            // SAFETY: the request reads an int, which `size` is.
            match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
        attached.map_err(|error| TapError::Attach { name: name.to_owned(), error })?;
        Ok(Queue { file, attached: AtomicBool::new(true), empty: AtomicU32::new(0) })
    }

    fn set_attached(&self, on: bool) {
        if self.attached.swap(on, Ordering::AcqRel) != on
            && let Some(mut request) = Request::new("", if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE })
            && let Err(error) = request.call(&self.file, TUNSETQUEUE)
        {
            tracing::debug!(%error, on, "a queue of a TAP interface stays as it is");
        }
    }
}

impl Tap {
    /// Opens `pairs` queues of the interface `name`.
    pub fn open(name: &str, pairs: u16) -> Result<Arc<Tap>, TapError> {
        let many = if pairs > 1 { IFF_MULTI_QUEUE } else { 0 };
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | many;
        let queues: Vec<Queue> = (0..pairs.max(1)).map(|_| Queue::open(name, flags)).collect::<Result<_, _>>()?;
        let wait = |error: rustix::io::Errno| TapError::Wait(error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(wait)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN).map_err(wait)?;
        for (number, queue) in (0..).zip(&queues) {
            let never = epoll::EventFlags::ONESHOT;
            epoll::add(&epoll, &queue.file, epoll::EventData::new_u64(number), never).map_err(wait)?;
        }
        let (wake, dropped) = (OnceLock::new(), AtomicU64::new(0));
        let shared = Arc::new(Shared { queues, epoll, stop, wake, dropped });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("vfuse-tap".into()).spawn(move || own.wait());
        let thread = Mutex::new(Some(thread.map_err(TapError::Wait)?));
        Ok(Arc::new(Tap { shared, thread }))
    }

    /// Frames that Linux did not take.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Wakes the device until it is told to stop.
    fn wait(&self) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "nobody waits for a TAP interface any more"),
            }
            for event in &events {
                let number = event.data.u64();
                if number == STOP {
                    return;
                }
                if let Some(queue) = self.queues.get(number as usize) {
                    queue.empty.store(0, Ordering::Release);
                }
            }
            if let Some(wake) = self.wake.get() {
                wake.kick();
            }
        }
    }

    /// Has the thread wait for a queue.
    fn arm(&self, number: usize, queue: &Queue) {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        let data = epoll::EventData::new_u64(number as u64);
        if epoll::modify(&self.epoll, queue.file.as_fd(), data, flags).is_err() {
            queue.empty.store(0, Ordering::Release);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A counter that is full has stopped it already.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

impl NetPort for Tap {
    fn offloads(&self) -> Offloads {
        Offloads::TCP
    }

    fn send(&self, pair: u16, frames: &mut Frames) {
        if let Some(queue) = self.shared.queues.get(usize::from(pair)) {
            let mut file = &queue.file;
            for frame in frames.iter() {
                // EIO: the interface is down. EINVAL: a header that makes no sense.
                if !matches!(file.write(frame), Ok(len) if len == frame.len()) {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        frames.clear();
    }

    fn receive(&self, pair: u16, frames: &mut Frames, limit: usize) {
        let Some(queue) = self.shared.queues.get(usize::from(pair)) else { return };
        if queue.empty.load(Ordering::Acquire) >= LOOKS {
            return;
        }
        let mut file = &queue.file;
        while frames.len() < limit {
            let number = frames.len();
            frames.add(MAX_FRAME);
            match frames.get_mut(number).map(|place| file.read(place)) {
                Some(Ok(len)) if len >= FRAME_HEADER => frames.cut(len),
                _ => {
                    frames.pop();
                    break;
                }
            }
        }
        if !frames.is_empty() {
            queue.empty.store(0, Ordering::Relaxed);
        } else if queue.empty.fetch_add(1, Ordering::AcqRel) + 1 == LOOKS {
            self.shared.arm(usize::from(pair), queue);
        }
    }

    fn set_offloads(&self, takes: Offloads) {
        let mut bits = 0;
        if takes.checksum {
            bits |= TUN_F_CSUM;
            bits |= if takes.tso4 { TUN_F_TSO4 } else { 0 };
            bits |= if takes.tso6 { TUN_F_TSO6 } else { 0 };
            bits |= if takes.ecn && (takes.tso4 || takes.tso6) { TUN_F_TSO_ECN } else { 0 };
        }
        let Some(queue) = self.shared.queues.first() else { return };
        // SAFETY: the request takes a number, and touches no memory.
        if unsafe { libc::ioctl(queue.file.as_raw_fd(), TUNSETOFFLOAD as _, bits) } != 0 {
            tracing::warn!(error = %crate::last_errno(), "a TAP interface does not take what the driver does");
        }
    }

    fn set_pairs(&self, pairs: u16) {
        if self.shared.queues.len() > 1 {
            for (number, queue) in (0..).zip(&self.shared.queues) {
                // One stays, or the interface is without carrier.
                queue.set_attached(number < pairs.max(1));
            }
        }
    }

    fn set_wake(&self, wake: Arc<dyn Wake>) {
        let _ = self.shared.wake.set(wake);
    }
}
