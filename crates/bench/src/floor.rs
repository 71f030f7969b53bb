// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor under calls that are answered in another process: a supervisor
//! of seccomp notifications that knows nothing and answers at once.
//!
//! It does what the kernel makes unavoidable: it receives the call, copies
//! between the two processes as many bytes as the real answer has, and sends
//! the answer. The thorough one also makes the two calls without which the
//! answers to a mapping and its removal could not be Linux's: what the program
//! has mapped there, and the structure written back; and it reads the program's
//! bitmap before it writes it, since bits that are set there stay. Supervisor
//! and client are not pinned and sleep while it is the other's turn, as under
//! `vfuse run`.
#![allow(unsafe_code)] // seccomp, and a closure between fork and exec

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};
use libc::{c_long, c_ulong, sock_filter, sock_fprog};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use uapi::iommufd::{Command as _, HwptGetDirtyBitmap, IoasMap, IoasUnmap};
use uapi::vfio::{container, device, type1};
use zerocopy::IntoBytes as _;

use crate::process::{Client, own};

const SET_MODE_FILTER: c_ulong = 1;
const NEW_LISTENER: c_ulong = 1 << 3;
const WAIT_KILLABLE_RECV: c_ulong = 1 << 5;
const NOTIFY: u32 = 0x7fc0_0000;
const ALLOW: u32 = 0x7fff_0000;

const RECV: c_ulong = 0xc050_2100;
const SEND: c_ulong = 0xc018_2101;
const SET_FLAGS: c_ulong = 0x4008_2104;
const SYNC_WAKE_UP: c_ulong = 1;

#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

/// Bytes of a dirty bitmap of 16 GiB.
const BITMAP: usize = 512 << 10;

/// Starts a client of the kind `kind` under the bare supervisor; `thorough`:
/// see above.
pub(crate) fn start(kind: &str, thorough: bool) -> Result<Client> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let filter = filter();
    let mut command = own(kind)?;
    // SAFETY: system calls only, and nothing is allocated.
    unsafe { command.pre_exec(move || send(&theirs, install(&filter)?)) };
    // The program is past its exec when it is ready; the listener comes before.
    let waiting = std::thread::spawn(move || receive(&ours).map(|listener| serve(listener, thorough)));
    let client = Client::start(command);
    if waiting.is_finished()
        && let Ok(Err(error)) = waiting.join()
    {
        bail!("no seccomp listener: {error}");
    }
    client.context("the bare supervisor's client")
}

/// Requests of VFIO, reads beyond 2^45, and writes of a message of vhost-vdpa.
fn filter() -> [sock_filter; 15] {
    let load = |k| sock_filter { code: 0x20, jt: 0, jf: 0, k };
    let and = |k| sock_filter { code: 0x54, jt: 0, jf: 0, k };
    let equal = |k, jt, jf| sock_filter { code: 0x15, jt, jf, k };
    let at_least = |k, jt, jf| sock_filter { code: 0x35, jt, jf, k };
    let answer = |k| sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let high = (uapi::region::offset(0, 0) >> 32) as u32;
    [
        load(0), // the number
        equal(libc::SYS_ioctl as u32, 5, 0),
        equal(libc::SYS_pread64 as u32, 8, 0),
        equal(libc::SYS_write as u32, 0, 2),
        load(32), // the length
        equal(uapi::vhost::MSG_LEN as u32, 7, 0),
        answer(ALLOW),
        load(24), // the request
        and(0xff00),
        equal(u32::from(uapi::vfio::TYPE) << 8, 3, 0),
        answer(ALLOW),
        load(44), // the high half of the offset
        at_least(high, 0, 1),
        answer(NOTIFY),
        answer(ALLOW),
    ]
}

/// Between fork and exec.
fn install(filter: &[sock_filter]) -> io::Result<OwnedFd> {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = NEW_LISTENER | WAIT_KILLABLE_RECV;
    // SAFETY: the program is valid for the call, which copies it.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Between fork and exec.
fn send(socket: &OwnedFd, listener: OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.context("the program ended before it had a filter")
}

/// Answers until nobody is left.
fn serve(listener: OwnedFd, thorough: bool) {
    let fd = listener.as_raw_fd();
    // SAFETY: the flags are a number.
    unsafe { libc::ioctl(fd, SET_FLAGS, SYNC_WAKE_UP) };
    let mut maps: Option<File> = None;
    let mut bitmap = vec![u8::MAX; BITMAP];
    loop {
        let mut call = Notification::default();
        // SAFETY: RECV fills one structure of this size.
        if unsafe { libc::ioctl(fd, RECV, &raw mut call) } != 0 {
            if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return;
        }
        if thorough && c_long::from(call.nr) == libc::SYS_ioctl {
            look(&call, &mut maps);
        }
        let mut answer = Answer { id: call.id, val: answer(&call, &mut bitmap, thorough), error: 0, flags: 0 };
        // SAFETY: SEND reads one structure of this size.
        unsafe { libc::ioctl(fd, SEND, &raw mut answer) };
    }
}

/// Copies what the real answer would copy; the value to return.
fn answer(call: &Notification, bitmap: &mut [u8], thorough: bool) -> i64 {
    if c_long::from(call.nr) == libc::SYS_pread64 {
        copy(call, call.args[1], 4, Way::To);
        return 4;
    }
    if c_long::from(call.nr) == libc::SYS_write {
        copy(call, call.args[1], uapi::vhost::MSG_LEN as usize, Way::From);
        return uapi::vhost::MSG_LEN as i64;
    }
    match call.args[1] as u32 {
        container::CHECK_EXTENSION => return 1,
        // One copy for each; what Linux writes back the thorough one does, too.
        type1::MAP_DMA => copy(call, call.args[2], size_of::<type1::DmaMap>(), Way::From),
        type1::UNMAP_DMA => put_back(call, size_of::<type1::DmaUnmap>(), thorough),
        IoasMap::REQUEST => put_back(call, size_of::<IoasMap>(), thorough),
        IoasUnmap::REQUEST => put_back(call, size_of::<IoasUnmap>(), thorough),
        HwptGetDirtyBitmap::REQUEST => {
            let mut get = [0u64; size_of::<HwptGetDirtyBitmap>() / 8];
            transfer(call, call.args[2], get.as_mut_bytes(), Way::From);
            let there = get.last().copied().unwrap_or(0);
            if thorough {
                transfer(call, there, bitmap, Way::From);
            }
            transfer(call, there, bitmap, Way::To);
            bitmap.fill(0);
        }
        device::GET_REGION_INFO => {
            let len = size_of::<device::RegionInfo>();
            copy(call, call.args[2], len, Way::From);
            copy(call, call.args[2], len, Way::To);
        }
        device::FEATURE => feature(call, bitmap, thorough),
        _ => {}
    }
    0
}

/// A device feature: the header and what is behind it come and go. A report of
/// logged writes ends with the pointer to its bitmap.
fn feature(call: &Notification, bitmap: &mut [u8], thorough: bool) {
    let mut own = [0u64; 5];
    transfer(call, call.args[2], own.as_mut_bytes(), Way::From);
    let number = (own[0] >> 32) as u32 & 0xffff;
    if number != device::feature::DMA_LOGGING_REPORT {
        return copy(call, call.args[2], 16, Way::To);
    }
    if thorough {
        // What is set in the program's stays.
        let mut old = vec![0; bitmap.len()];
        transfer(call, own[4], &mut old, Way::From);
        bitmap.iter_mut().zip(&old).for_each(|(new, old)| *new |= old);
    }
    transfer(call, own[4], bitmap, Way::To);
    bitmap.fill(0);
}

/// Asks what is mapped where, for a mapping.
fn look(call: &Notification, maps: &mut Option<File>) {
    const PROCMAP_QUERY: libc::Ioctl = libc::_IOWR::<[u64; 13]>('f' as u32, 17);
    if !matches!(call.args[1] as u32, type1::MAP_DMA | IoasMap::REQUEST) {
        return;
    }
    let Some(maps) = maps.as_ref() else {
        *maps = File::open(format!("/proc/{}/maps", call.pid)).ok();
        return;
    };
    // Size, flags and address; the argument lies in mapped memory, too.
    let mut query = [0u64; 13];
    (query[0], query[2]) = (size_of_val(&query) as u64, call.args[2]);
    // SAFETY: PROCMAP_QUERY reads and writes a structure of the size given in it.
    unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, query.as_mut_ptr()) };
    std::hint::black_box(&query);
}

/// Reads a structure, and writes it back if asked to.
fn put_back(call: &Notification, len: usize, back: bool) {
    let mut own = [0u64; 8];
    let own = &mut own.as_mut_bytes()[..len];
    transfer(call, call.args[2], own, Way::From);
    if back {
        transfer(call, call.args[2], own, Way::To);
    }
}

/// Seen from here.
enum Way {
    From,
    To,
}

fn copy(call: &Notification, addr: u64, len: usize, way: Way) {
    let mut own = [0u64; 9];
    let len = len.min(size_of_val(&own));
    transfer(call, addr, &mut own.as_mut_bytes()[..len], way);
    std::hint::black_box(&own);
}

fn transfer(call: &Notification, addr: u64, own: &mut [u8], way: Way) {
    let len = own.len();
    let local = libc::iovec { iov_base: own.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len };
    let pid = call.pid as i32;
    // SAFETY: `own` has `len` bytes; the other address is the client's.
    unsafe {
        match way {
            Way::From => libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0),
            Way::To => libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0),
        }
    };
    std::hint::black_box(&own);
}
