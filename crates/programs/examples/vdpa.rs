// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program of vhost-vdpa for the demo and the tests: maps, starts, resets,
//! maps again, and says what came of each step.
//!
//! `vdpa VFUSE CONTROL NAME [ack]` asks the lab to explain the device before and
//! after the reset; `vdpa` alone only does its steps.
#![allow(clippy::unwrap_used)] // fails by panicking
#![allow(unsafe_code)] // ioctls

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::mm::{MapFlags, ProtFlags, mmap};
use uapi::vhost::{IotlbMsg, MSG_V2, backend, iotlb, request};
use zerocopy::IntoBytes;

const SIZE: usize = 64 << 10;

fn ioctl<T>(node: &File, number: u32, arg: &mut T) -> std::io::Result<()> {
    // SAFETY: `arg` is as large as the number says, and lives over the call.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), libc::Ioctl::from(number), std::ptr::from_mut(arg)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn message(node: &mut File, kind: u8, uaddr: u64) -> std::io::Result<usize> {
    let body = IotlbMsg { iova: 0, size: SIZE as u64, uaddr, perm: iotlb::RW, kind, pad: [0; 6] };
    let mut bytes = [0; 72];
    bytes[..4].copy_from_slice(&MSG_V2.to_le_bytes());
    bytes[8..40].copy_from_slice(body.as_bytes());
    node.write(&bytes)
}

fn explain(words: &[String]) {
    let [vfuse, control, name, ..] = words else { return };
    let told = Command::new(vfuse).args(["vdpa", "explain", name, "--control", control]).output().unwrap();
    print!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut node = OpenOptions::new().read(true).write(true).open("/dev/vhost-vdpa-0").unwrap();
    let mut offered = 0u64;
    ioctl(&node, request::GET_BACKEND_FEATURES, &mut offered).unwrap();
    let persist = if words.iter().any(|word| word == "ack") { backend::IOTLB_PERSIST } else { 0 };
    let acked = ioctl(&node, request::SET_BACKEND_FEATURES, &mut (offered & !backend::IOTLB_PERSIST | persist));
    println!("SET_BACKEND_FEATURES: {acked:?}");
    if acked.is_err() {
        return;
    }
    ioctl(&node, request::SET_OWNER, &mut ()).unwrap();
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, SIZE as u64).unwrap();
    // SAFETY: a new mapping of our own file, which nobody else uses.
    let at =
        unsafe { mmap(std::ptr::null_mut(), SIZE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memory, 0) };
    let at = at.unwrap() as u64;
    println!("UPDATE: {:?}", message(&mut node, iotlb::UPDATE, at));
    let mut features = 0u64;
    ioctl(&node, request::GET_FEATURES, &mut features).unwrap();
    ioctl(&node, request::SET_FEATURES, &mut features).unwrap();
    ioctl(&node, request::VDPA_SET_STATUS, &mut 0xfu8).unwrap();
    explain(&words);
    println!("SET_STATUS 0: {:?}", ioctl(&node, request::VDPA_SET_STATUS, &mut 0u8));
    explain(&words);
    println!("UPDATE of the same range: {:?}", message(&mut node, iotlb::UPDATE, at).map_err(|e| e.to_string()));
    println!("INVALIDATE: {:?}", message(&mut node, iotlb::INVALIDATE, 0));
    println!("UPDATE: {:?}", message(&mut node, iotlb::UPDATE, at));
    another_file_at_its_number(node);
}

/// The node stays open under another number, and its own comes to mean a file.
fn another_file_at_its_number(node: File) {
    let number = node.as_raw_fd();
    let mut again = node.try_clone().unwrap();
    drop(node);
    let memory = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(memory.as_raw_fd(), number, "the lowest number that is free");
    let mut file = File::from(memory);
    let written = file.write(&[b'x'; 72]);
    println!("a file at its number: {written:?}, it has {} bytes", file.metadata().unwrap().len());
    println!("INVALIDATE: {:?}", message(&mut again, iotlb::INVALIDATE, 0));
}
