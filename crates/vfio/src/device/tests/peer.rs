// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A BAR that a program has mapped, mapped for another device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::device::Endpoint;
use iommu::FaultReason;
use pci::Address;
use uapi::Errno;
use uapi::vfio::type1::{DmaMap, DmaUnmap, MAP_DMA, UNMAP_DMA};

use super::{MASTER, MEMORY, Rig, plug, spec};
use crate::testing::Asked;

const OTHER: Address = Address::new(0, 2, 0, 0);
/// Where the program has mapped BAR 4, and where devices find it.
const VADDR: u64 = 0x7000_0000;
const IOVA: u64 = 0x40_0000;
const LEN: u64 = 0x10_0000;

/// A device whose BAR 4 is mapped by the program, and another one in the same
/// container that masters the bus.
fn rig() -> (Rig, Arc<Endpoint>) {
    let mut rig = Rig::new();
    rig.set_command(MEMORY);
    let file = rig.device_file();
    rig.lab.client.memory.map_bar(VADDR, LEN, &file, 4, 0);
    plug(&mut rig.lab, OTHER, spec());
    let number = rig.lab.board.fabric.group(OTHER).unwrap();
    let group = rig.lab.open_group(number).unwrap();
    rig.lab.set_container(group, rig.container).unwrap();
    let other = rig.lab.get_device_fd(group, &OTHER.to_string()).unwrap();
    let first = std::mem::replace(&mut rig.file, other);
    rig.set_command(MASTER);
    rig.file = first;
    let endpoint = Arc::clone(rig.lab.board.endpoint(OTHER).unwrap());
    rig.asked();
    (rig, endpoint)
}

fn map(rig: &mut Rig, vaddr: u64, len: u64) -> Result<u64, Errno> {
    let arg = rig.lab.client.put(&DmaMap { argsz: 32, flags: 3, vaddr, iova: IOVA, size: len });
    rig.lab.ioctl(rig.container, MAP_DMA, arg)
}

fn unmap(rig: &mut Rig) {
    let arg = rig.lab.client.put(&DmaUnmap { argsz: 24, flags: 0, iova: IOVA, size: LEN });
    rig.lab.ioctl(rig.container, UNMAP_DMA, arg).unwrap();
}

fn read(endpoint: &Endpoint, at: u64) -> Result<[u8; 4], FaultReason> {
    let mut bytes = [0; 4];
    endpoint.requester.session().read(at, &mut bytes).map_err(|fault| fault.reason)?;
    Ok(bytes)
}

/// API-075: a device's pages are reserved ones, for which nobody pays; what is
/// written comes to the device.
#[test]
fn type1_maps_a_bar_and_nobody_pays() {
    let (mut rig, other) = rig();
    rig.lab.client.memlock.set(0);
    assert_eq!(map(&mut rig, VADDR, LEN), Ok(0));
    assert_eq!(rig.lab.vfio.locked.pages(rig.lab.client.process), 0);
    other.requester.session().write(IOVA + 0x124, &[1, 2, 3, 4]).unwrap();
    rig.endpoint().turn(0);
    assert!(rig.asked().contains(&Asked::Write(4, 0x124, vec![1, 2, 3, 4])));
    assert_eq!(read(&other, IOVA + 0x124), Ok([1, 2, 3, 4]));
    unmap(&mut rig);
    assert_eq!(read(&other, IOVA + 0x124), Err(FaultReason::NotMapped));
    assert_eq!(rig.lab.vfio.locked.pages(rig.lab.client.process), 0);
    // One page of it, in the middle.
    assert_eq!(map(&mut rig, VADDR + 0x3000, 0x1000), Ok(0));
    other.requester.session().write(IOVA + 8, &[9; 8]).unwrap();
    rig.endpoint().turn(0);
    assert!(rig.asked().contains(&Asked::Write(4, 0x3008, vec![9; 8])));
    rig.lab.client.memlock.set(u64::MAX);
    let arg = rig.lab.client.put(&DmaMap { argsz: 32, flags: 3, vaddr: VADDR, iova: 0, size: 2 * LEN });
    assert_eq!(rig.lab.ioctl(rig.container, MAP_DMA, arg), Err(Errno::EFAULT), "beyond its end");
}

/// API-204, API-216: a BAR that cannot be touched cannot be mapped, and one
/// that was mapped before does not answer until it can.
#[test]
fn memory_disable_is_a_fence() {
    let (mut rig, other) = rig();
    map(&mut rig, VADDR, LEN).unwrap();
    rig.set_command(0);
    assert!(!rig.device_file().accessible.load(Ordering::Relaxed));
    assert_eq!(read(&other, IOVA), Err(FaultReason::Memory), "an unsupported request");
    other.requester.session().write(IOVA, &[1; 4]).unwrap();
    unmap(&mut rig);
    assert_eq!(map(&mut rig, VADDR, LEN), Err(Errno::EFAULT));
    rig.set_command(MEMORY);
    assert_eq!(map(&mut rig, VADDR, LEN), Ok(0));
    assert_eq!(read(&other, IOVA), Ok([0; 4]), "what was written to nobody is lost");
    // A reset forgets what was on its way, and the mapping stays.
    other.requester.session().write(IOVA, &[1; 4]).unwrap();
    rig.ioctl(uapi::vfio::device::RESET, 0).unwrap();
    assert_eq!(read(&other, IOVA), Ok([0; 4]));
    // Who closes the device takes it away.
    let file = rig.file;
    rig.lab.release(file);
    assert_eq!(read(&other, IOVA), Err(FaultReason::Memory));
}

/// API-013: iommufd has no pages to pin there.
#[test]
fn iommufd_does_not_map_a_bar() {
    let (mut rig, _) = rig();
    let file = rig.lab.open_iommufd();
    let ioas = rig.lab.ioas(file);
    // A domain pins at once.
    let (vaddr, len) = (VADDR as u32, LEN as u32);
    let map = [40, 7, ioas, 0, vaddr, 0, len, 0, IOVA as u32, 0];
    assert!(rig.lab.iommufd_call(file, 0x3b85, map).is_ok(), "nothing is pinned without a domain");
    let access = caller::Caller::mm(&rig.lab.client).unwrap();
    assert_eq!(access.pin(VADDR, LEN, true).unwrap_err(), Errno::EFAULT);
}
