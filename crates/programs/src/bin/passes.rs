// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that opens `/dev/iommu` and a device and has another process use
//! them, as libvirt and container runtimes do: the descriptors go over a
//! socket (`SCM_RIGHTS`).
//!
//! `passes fresh` passes them as they were opened; `passes bound` binds and
//! attaches first; `passes kept` keeps its own and uses the device that the
//! other process has bound. `passes receive` is that process: the socket is its
//! standard input.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, ptr};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

const PAGE: usize = 4096;
const BIND: u64 = 0x3b76;
const ATTACH: u64 = 0x3b77;
const GET_INFO: u64 = 0x3b6b;
const REGION_INFO: u64 = 0x3b6c;
const IOAS_ALLOC: u64 = 0x3b81;
const IOAS_MAP: u64 = 0x3b85;

/// A request with the words of its structure.
fn ioctl(fd: &OwnedFd, request: u64, words: &mut [u32]) -> io::Result<()> {
    // SAFETY: no request used here writes more than its structure, which is
    // what the words are.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(path: &str) -> OwnedFd {
    let file = fs::File::options().read(true).write(true).open(path);
    OwnedFd::from(file.unwrap_or_else(|e| panic!("cannot open {path}: {e}")))
}

/// The two, and the space that the device is attached to.
struct Device {
    iommu: OwnedFd,
    cdev: OwnedFd,
    ioas: u32,
}

impl Device {
    fn open() -> Device {
        let name = fs::read_dir("/dev/vfio/devices").expect("cdevs").flatten().next().expect("a cdev").file_name();
        let cdev = open(&format!("/dev/vfio/devices/{}", name.to_string_lossy()));
        Device { iommu: open("/dev/iommu"), cdev, ioas: 0 }
    }

    fn bind_and_attach(&mut self) {
        ioctl(&self.cdev, BIND, &mut [24, 0, self.iommu.as_raw_fd() as u32, 0, 0, 0]).expect("bind");
        let mut ioas = [12, 0, 0];
        ioctl(&self.iommu, IOAS_ALLOC, &mut ioas).expect("an address space");
        self.ioas = ioas[2];
        ioctl(&self.cdev, ATTACH, &mut [12, 0, self.ioas]).expect("attach");
    }

    /// Where a region lies in the device's file.
    fn region(&self, index: u32) -> u64 {
        let mut info = [32, 0, index, 0, 0, 0, 0, 0];
        ioctl(&self.cdev, REGION_INFO, &mut info).expect("a region");
        u64::from(info[6]) | u64::from(info[7]) << 32
    }

    /// Has the controller say who it is, into this process's memory.
    fn identify(&self) -> String {
        let config = self.region(7);
        rustix::io::pwrite(&self.cdev, &6_u16.to_le_bytes(), config + 4).expect("configuration space");
        let memory = map(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, 3 * PAGE, -1, 0);
        let address = memory as u64;
        let mut words = [40, 7, self.ioas, 0, address as u32, (address >> 32) as u32, 3 * PAGE as u32, 0, 0, 0];
        ioctl(&self.iommu, IOAS_MAP, &mut words).expect("a mapping");

        // Queues at IOVA 0 and 4096, what it answers at 8192.
        let mut command = [0_u32; 16];
        (command[0], command[6], command[10]) = (6, 2 * PAGE as u32, 1);
        for (at, word) in command.into_iter().enumerate() {
            store(memory, 4 * at, word);
        }
        let bar = map(libc::MAP_SHARED, 2 * PAGE, self.cdev.as_raw_fd(), self.region(0));
        let registers = [(0x24, 0x1_0001), (0x28, 0), (0x2c, 0), (0x30, PAGE as u32), (0x34, 0), (0x14, 0x46_0001)];
        for (register, value) in registers {
            store(bar, register, value);
        }
        wait(|| load(bar, 0x1c) & 1 == 1, "the controller is ready");
        store(bar, 0x1000, 1);
        wait(|| load(memory, PAGE + 12) >> 16 & 1 == 1, "the command is done");
        assert_eq!(load(memory, PAGE + 12) >> 17, 0, "status");
        let model: Vec<u8> = (24..64).step_by(4).flat_map(|at| load(memory, 2 * PAGE + at).to_le_bytes()).collect();
        String::from_utf8_lossy(&model).trim().to_owned()
    }
}

fn map(flags: i32, len: usize, fd: i32, offset: u64) -> *mut u8 {
    // SAFETY: a new mapping takes nothing away.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset as i64) };
    assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    at.cast()
}

fn store(base: *mut u8, offset: usize, value: u32) {
    // SAFETY: inside of a mapping of this program, aligned.
    unsafe { base.add(offset).cast::<u32>().write_volatile(value) }
}

fn load(base: *mut u8, offset: usize) -> u32 {
    // SAFETY: as above.
    unsafe { base.add(offset).cast::<u32>().read_volatile() }
}

fn wait(mut until: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

fn send(socket: &UnixStream, device: &Device) {
    let fds = [device.iommu.as_fd(), device.cdev.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let ioas = device.ioas.to_ne_bytes();
    rustix::net::sendmsg(socket, &[IoSlice::new(&ioas)], &mut control, SendFlags::empty())
        .expect("the socket takes it");
}

fn receive() -> Device {
    let socket = io::stdin();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut ioas = [0; 4];
    rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut ioas)], &mut control, RecvFlags::empty())
        .expect("a message");
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<OwnedFd>>(),
        _ => Vec::new(),
    });
    let (Some(iommu), Some(cdev)) = (fds.next(), fds.next()) else { panic!("no descriptors came") };
    Device { iommu, cdev, ioas: u32::from_ne_bytes(ioas) }
}

fn main() {
    let how = env::args().nth(1).unwrap_or_default();
    if how == "receive" {
        let mut device = receive();
        if device.ioas == 0 {
            device.bind_and_attach();
        }
        println!("received: {}", device.identify());
        return;
    }
    let mut device = Device::open();
    if how == "bound" {
        device.bind_and_attach();
    }
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let program = env::current_exe().expect("a program has a path");
    let mut other =
        Command::new(program).arg("receive").stdin(Stdio::from(OwnedFd::from(theirs))).spawn().expect("it starts");
    send(&ours, &device);
    let kept = (how == "kept").then_some(device);
    assert!(other.wait().expect("our own child").success(), "the receiver failed");
    if let Some(device) = kept {
        let mut info = [24, 0, 0, 0, 0, 0];
        ioctl(&device.cdev, GET_INFO, &mut info).expect("the other process has bound this very file");
        println!("kept: flags {:#x}, {} regions", info[1], info[2]);
    }
}
