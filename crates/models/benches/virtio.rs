// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a frame or request costs in the virtio devices, with driver and
//! network or disk in the same thread, each beside the bare copy of its data:
//! rows of `name,ours,peer` in ns, medians over many runs.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use device::virtio::feature as transport;
use device::{Frames, NetPort};
use models::testing::virtio::DriverRing;
use models::testing::{MemoryDisk, TestMemory, VirtioBench};
use models::virtio::blk::{self, Blk};
use models::virtio::net::{Config, Net};
use models::virtio::ring::Part;
use models::virtio::spec::blk::{Header, request};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use zerocopy::IntoBytes;

const ROUNDS: usize = 31;
/// Buffers that are published at a time.
const BURST: usize = 64;

fn main() {
    println!("name,ours,peer");
    for (layout, features) in [("split", 0), ("packed", transport::RING_PACKED)] {
        send(layout, features);
        receive(layout, features);
    }
    reads();
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// ns of one piece of `work`, which is several `pieces`.
fn time(pieces: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / pieces as f64
}

/// Takes what is sent, gives frames without end.
#[derive(Debug)]
struct Mill(Frames);

impl NetPort for Mill {
    fn send(&self, _: u16, frames: &mut Frames) {
        black_box(&*frames);
        frames.clear();
    }

    fn receive(&self, _: u16, frames: &mut Frames, _: usize) {
        frames.clone_from(&self.0);
    }
}

/// Bytes from one buffer to the next: not a power of two, as in a pool of a
/// driver, or all would share a few lines of the cache.
const STRIDE: u64 = 2304;

/// A copy for each frame or request, between two regions.
fn copies(regions: &[MmapRegion; 2], len: usize) -> f64 {
    let [from, to] = regions;
    time(BURST, || {
        for i in 0..BURST {
            let from = from.get_slice(i * STRIDE as usize, len).expect("inside");
            from.copy_to_volatile_slice(to.get_slice(i * STRIDE as usize, len).expect("inside"));
        }
    })
}

fn device(features: u64, frames: Frames) -> (VirtioBench, Vec<DriverRing>) {
    let config = Config { packed: true, ..Config::new(Arc::new(Mill(frames)), [2, 0, 0, 0, 0, 1]) };
    let wanted = transport::VERSION_1 | transport::ACCESS_PLATFORM | features;
    let mut bench = VirtioBench::new(Box::new(Net::new(config)), TestMemory::new(4 << 20, false), wanted);
    let rings = (0..2).map(|queue| bench.queue(queue, 256)).collect();
    bench.start();
    (bench, rings)
}

/// What the device alone takes for a burst that is there.
fn rows(name: &str, len: usize, bench: &VirtioBench, mut refill: impl FnMut()) {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let regions = [0, 1].map(|_| MmapRegion::new(BURST * 4096).expect("memory"));
    for _ in 0..ROUNDS * 20 {
        refill();
        ours.push(time(BURST, || {
            black_box(bench.turn());
        }));
        peer.push(copies(&regions, len));
    }
    println!("{name},{:.1},{:.1}", median(ours), median(peer));
}

fn send(layout: &str, features: u64) {
    let (bench, mut rings) = device(features, Frames::new());
    let (data, mut ring) = (bench.free(), rings.remove(1));
    rows(&format!("send_64_bytes_{layout}"), 76, &bench, || {
        while ring.used().is_some() {}
        for i in 0..BURST as u64 {
            ring.add(&[Part { iova: data + i * STRIDE, len: 76 }], &[], None).expect("room");
        }
        ring.publish();
    });
}

fn receive(layout: &str, features: u64) {
    let mut frames = Frames::new();
    (0..BURST).for_each(|_| frames.push(&[0; 76]));
    let (bench, mut rings) = device(features, frames);
    let (data, mut ring) = (bench.free(), rings.remove(0));
    rows(&format!("receive_64_bytes_{layout}"), 76, &bench, || {
        while ring.used().is_some() {}
        for i in 0..BURST as u64 {
            ring.add(&[], &[Part { iova: data + i * STRIDE, len: 2048 }], None).expect("room");
        }
        ring.publish();
    });
}

fn reads() {
    let disk = MemoryDisk::new(8 << 20);
    let memory = TestMemory::new(4 << 20, false);
    let mut bench = VirtioBench::new(Box::new(Blk::new(blk::Config::new(disk))), memory, !transport::EVENT_IDX);
    let mut ring = bench.queue(0, 256);
    bench.start();
    let data = bench.free();
    let header = Header { kind: request::IN.into(), reserved: 0.into(), sector: 8.into() };
    bench.memory.set(data, header.as_bytes());
    rows("read_4k_qd64", 4096, &bench, || {
        while ring.used().is_some() {}
        for i in 0..BURST as u64 {
            let parts = [Part { iova: data + 8192 + i * 4096, len: 4096 }, Part { iova: data + 16, len: 1 }];
            ring.add(&[Part { iova: data, len: 16 }], &parts, None).expect("room");
        }
        ring.publish();
    });
}
