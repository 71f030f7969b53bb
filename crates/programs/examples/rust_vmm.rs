// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A block device driven through rust-vmm's `vhost` crate the way Cloud
//! Hypervisor drives one (VNET-5): memory is mapped once, before features and
//! status; every backend feature that is offered is acknowledged; after a reset
//! rings are set up anew and nothing is mapped.
//!
//! `rust_vmm` does so; `rust_vmm without-persist` acknowledges all but
//! IOTLB_PERSIST.
#![allow(clippy::unwrap_used)] // fails by panicking

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::vdpa::VhostVdpa;
use vhost::vhost_kern::VhostKernFeatures;
use vhost::vhost_kern::vdpa::VhostKernVdpa;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory, and what is where in it.
const SIZE: usize = 1 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const DATA: u64 = 0x5000;
const QUEUE: u16 = 16;
const SECTOR: u32 = 512;

const IN: u32 = 0;
const OUT: u32 = 1;

/// Shared memory with a file behind it: a parent that maps by virtual address
/// takes no other (VDPA-7.19).
fn guest_memory() -> GuestMemoryMmap {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, SIZE as u64).unwrap();
    let region = MmapRegion::from_file(vm_memory::FileOffset::new(file.into(), 0), SIZE).unwrap();
    let region = vm_memory::GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

struct Device<'a> {
    node: VhostKernVdpa<&'a GuestMemoryMmap>,
    memory: &'a GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    next: u16,
}

impl Device<'_> {
    /// From a device after reset to one that runs (VNET-5.3).
    fn activate(&mut self, acked: u64) {
        let node = &mut self.node;
        let features = node.get_features().unwrap();
        node.set_features(features & !(1 << 28 | 1 << 29)).unwrap();
        node.set_backend_features(acked).unwrap();
        node.set_backend_features_acked(acked);
        for area in [DESC, AVAIL, USED] {
            self.memory.write_slice(&[0; 4096], GuestAddress(area)).unwrap();
        }
        self.next = 0;
        node.set_vring_num(0, QUEUE).unwrap();
        let config = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: DESC,
            used_ring_addr: USED,
            avail_ring_addr: AVAIL,
            log_addr: None,
        };
        node.set_vring_addr(0, &config).unwrap();
        node.set_vring_base(0, 0).unwrap();
        node.set_vring_call(0, &self.call).unwrap();
        node.set_vring_kick(0, &self.kick).unwrap();
        node.set_config_call(&EventFd::new(0).unwrap()).unwrap();
        node.set_vring_enable(0, true).unwrap();
        node.set_status(0xf).unwrap();
    }

    /// One request of a sector; its status byte, or `None` if none came.
    fn request(&mut self, kind: u32) -> Option<u8> {
        let memory = self.memory;
        memory.write_obj([kind, 0, 3, 0], GuestAddress(HEADER)).unwrap();
        memory.write_obj(0xff_u8, GuestAddress(STATUS)).unwrap();
        let data = if kind == IN { 2 } else { 0 };
        for (slot, address, len, flags, next) in
            [(0, HEADER, 16_u32, 1_u16, 1_u16), (1, DATA, SECTOR, 1 | data, 2), (2, STATUS, 1, 2, 0)]
        {
            let place = DESC + 16 * slot;
            memory.write_obj(address, GuestAddress(place)).unwrap();
            memory.write_obj(len, GuestAddress(place + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(place + 12)).unwrap();
            memory.write_obj(next, GuestAddress(place + 14)).unwrap();
        }
        memory.write_obj(0_u16, GuestAddress(AVAIL + 4 + 2 * u64::from(self.next % QUEUE))).unwrap();
        self.next = self.next.wrapping_add(1);
        memory.store(self.next, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        self.kick.write(1).unwrap();
        let start = Instant::now();
        while memory.load::<u16>(GuestAddress(USED + 2), Ordering::Acquire).unwrap() != self.next {
            if start.elapsed() > Duration::from_secs(2) {
                return None;
            }
            std::thread::yield_now();
        }
        Some(memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    /// What a guest's reset comes to (VNET-5.4).
    fn reset(&self) {
        self.node.set_vring_enable(0, false).unwrap();
        self.node.set_status(0).unwrap();
    }
}

fn main() {
    let memory = guest_memory();
    let mut node = VhostKernVdpa::new("/dev/vhost-vdpa-0", &memory).unwrap();
    node.set_owner().unwrap();
    println!("device {} of {} queues", node.get_device_id().unwrap(), node.get_vqs_count().unwrap());
    assert!(node.get_vring_num().unwrap() >= QUEUE);
    assert_ne!(node.get_features().unwrap() & 1 << 33, 0, "ACCESS_PLATFORM");
    let offered = node.get_backend_features().unwrap();
    // As Cloud Hypervisor does: what is offered counts as taken before it is
    // (VNET-5.2).
    node.set_backend_features_acked(offered);
    let range = node.get_iova_range().unwrap();
    assert_eq!(range.first, 0);
    let host = memory.get_host_address(GuestAddress(0)).unwrap();
    node.dma_map(0, SIZE as u64, host, false).unwrap();
    let mut config = vec![0; node.get_config_size().unwrap() as usize];
    node.get_config(0, &mut config).unwrap();
    println!("sectors {}", u64::from_le_bytes(*config.first_chunk().unwrap()));

    let without = std::env::args().any(|word| word == "without-persist");
    let acked = if without { offered & !(1 << 8) } else { offered };
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let mut device = Device { node, memory: &memory, kick, call, next: 0 };
    device.activate(acked);
    memory.write_slice(&[0x5a; SECTOR as usize], GuestAddress(DATA)).unwrap();
    println!("write {:?}", device.request(OUT));
    println!("interrupts {}", device.call.read().unwrap());
    for _ in 0..3 {
        device.reset();
        device.activate(acked);
        memory.write_slice(&[0; SECTOR as usize], GuestAddress(DATA)).unwrap();
        let status = device.request(IN);
        let mut sector = [0; SECTOR as usize];
        memory.read_slice(&mut sector, GuestAddress(DATA)).unwrap();
        println!("after a reset: read {status:?}, as written {}", sector == [0x5a; SECTOR as usize]);
        if without {
            break;
        }
    }
    device.node.dma_unmap(0, SIZE as u64).unwrap();
}
