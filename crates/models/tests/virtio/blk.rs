// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The block device, driven as a program would.

use std::sync::Arc;

use device::virtio::{feature as transport, status as device_status};
use device::{Disk, DiskError, Turn};
use models::testing::virtio::DriverRing;
use models::testing::{MemoryDisk, TestMemory, VirtioBench};
use models::virtio::blk::{Blk, Config};
use models::virtio::ring::Part;
use models::virtio::spec::blk::{Config as Space, Header, Range, feature, request, status};
use zerocopy::{FromBytes, IntoBytes};

use crate::rings::part;

/// A driver of one queue, with room for data.
struct Rig {
    bench: VirtioBench,
    ring: DriverRing,
    data: u64,
}

const SIZE: usize = 1 << 20;

fn rig_with(config: Config, wanted: u64, remote: bool) -> Rig {
    let memory = TestMemory::new(4 << 20, remote);
    let mut bench = VirtioBench::new(Box::new(Blk::new(config)), memory, wanted);
    let ring = bench.queue(0, 64);
    bench.start();
    let data = bench.free();
    Rig { bench, ring, data }
}

fn rig(disk: &Arc<MemoryDisk>) -> Rig {
    rig_with(Config::new(disk.clone()), u64::MAX, false)
}

impl Rig {
    fn header(&self, kind: u32, sector: u64) {
        let header = Header { kind: kind.into(), reserved: 0.into(), sector: sector.into() };
        self.bench.memory.set(self.data, header.as_bytes());
        self.bench.memory.set(self.data + 16, &[0xee]);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.bench.memory.get(self.data + 16, &mut status);
        status[0]
    }

    /// A request with its header and status in buffers of their own.
    fn ask(&mut self, kind: u32, sector: u64, send: &[Part], receive: &[Part]) -> (u8, u32) {
        self.header(kind, sector);
        let read: Vec<Part> = [part(self.data, 16)].into_iter().chain(send.iter().copied()).collect();
        let write: Vec<Part> = receive.iter().copied().chain([part(self.data + 16, 1)]).collect();
        self.ring.add(&read, &write, None).unwrap();
        let (_, len) = self.bench.finish(&mut self.ring);
        (self.status(), len)
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// VNET-6.4: data go to the disk and come back, cut anywhere, split and
/// packed, by copying and not; the used length counts data and status.
#[test]
fn data_go_and_come_back() {
    for (packed, remote) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = MemoryDisk::new(SIZE);
        let wanted = if packed { u64::MAX } else { !transport::RING_PACKED };
        let mut rig = rig_with(Config { packed: true, ..Config::new(disk.clone()) }, wanted, remote);
        assert_eq!(rig.bench.features & transport::RING_PACKED != 0, packed);
        let (out, back) = (rig.data + 4096, rig.data + 65536);
        let bytes = pattern(8192, 7);
        rig.bench.memory.set(out, &bytes);
        let cut = [part(out, 1), part(out + 1, 4095), part(out + 4096, 4096)];
        assert_eq!(rig.ask(request::OUT, 3, &cut, &[]), (status::OK, 1));
        assert_eq!(disk.get(3 * 512..3 * 512 + 8192), bytes);
        let cut = [part(back, 5000), part(back + 5000, 3192)];
        assert_eq!(rig.ask(request::IN, 3, &[], &cut), (status::OK, 8193));
        let mut got = vec![0; 8192];
        rig.bench.memory.get(back, &mut got);
        assert_eq!(got, bytes);
    }
}

/// Drivers may cut a buffer anywhere: the header in two, header and data in
/// one, the status behind the data.
#[test]
fn buffers_are_cut_anywhere() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    let header = Header { kind: request::OUT.into(), reserved: 0.into(), sector: 1.into() };
    let at = rig.data;
    rig.bench.memory.set(at, header.as_bytes());
    rig.bench.memory.set(at + 16, &pattern(512, 3));
    rig.ring.add(&[part(at, 7), part(at + 7, 521)], &[part(at + 1000, 1)], None).unwrap();
    assert_eq!(rig.bench.finish(&mut rig.ring).1, 1);
    assert_eq!(disk.get(512..1024), pattern(512, 3));
    let header = Header { kind: request::IN.into(), reserved: 0.into(), sector: 1.into() };
    rig.bench.memory.set(at, header.as_bytes());
    rig.ring.add(&[part(at, 16)], &[part(at + 2000, 513)], None).unwrap();
    assert_eq!(rig.bench.finish(&mut rig.ring).1, 513);
    let mut got = vec![0; 513];
    rig.bench.memory.get(at + 2000, &mut got);
    assert_eq!(got[..512], pattern(512, 3));
    assert_eq!(got[512], status::OK);
}

/// VNET-4: a configuration of 60 bytes, of which a program reads all.
#[test]
fn configuration_has_sixty_bytes() {
    let disk = MemoryDisk::new(SIZE + 100);
    let mut rig = rig_with(Config { queues: 3, ..Config::new(disk) }, u64::MAX, false);
    assert_eq!(rig.bench.endpoint.spec().config_size, 60);
    let mut bytes = [0; 60];
    rig.bench.endpoint.read_config(0, &mut bytes);
    let space = Space::read_from_bytes(&bytes).unwrap();
    assert_eq!((space.capacity.get(), space.blk_size.get(), space.num_queues.get()), (2048, 512, 3));
    assert!(space.seg_max.get() >= 1 && space.max_discard_seg.get() >= 1);
    let mut part = [0; 2];
    rig.bench.endpoint.read_config(34, &mut part);
    assert_eq!(part, [3, 0], "any part of it can be read");
    rig.bench.endpoint.write_config(0, &[0xff; 60]);
    rig.bench.endpoint.read_config(0, &mut bytes);
    assert_eq!(Space::read_from_bytes(&bytes).unwrap().capacity.get(), 2048, "nothing can be written");
    let at = rig.data + 8192;
    assert_eq!(rig.ask(request::IN, 2047, &[], &[crate::rings::part(at, 512)]).0, status::OK);
}

/// Beyond the disk, in parts of a sector, on a medium that cannot be written:
/// an error and nothing else.
#[test]
fn errors_are_statuses() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    let data = rig.data + 4096;
    for (sector, len) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX - 1, 1024), (0, 511), (0, 513)] {
        for (kind, len) in [(request::IN, len), (request::OUT, len)] {
            let parts = [part(data, len)];
            let (send, receive): (&[Part], &[Part]) = if kind == request::IN { (&[], &parts) } else { (&parts, &[]) };
            assert_eq!(rig.ask(kind, sector, send, receive), (status::IOERR, 1), "{kind} {sector} {len}");
        }
    }
    for kind in [2, 3, 7, 14, u32::MAX] {
        assert_eq!(rig.ask(kind, 0, &[], &[]), (status::UNSUPP, 1), "{kind}");
    }
    disk.fail(Some(DiskError::Medium(5)));
    assert_eq!(rig.ask(request::IN, 0, &[], &[part(data, 512)]), (status::IOERR, 1));
    assert_eq!(rig.ask(request::OUT, 0, &[part(data, 512)], &[]), (status::IOERR, 1));
    assert_eq!(rig.ask(request::FLUSH, 0, &[], &[]), (status::IOERR, 1));
    disk.fail(None);
    assert_eq!(rig.ask(request::FLUSH, 0, &[], &[]), (status::OK, 1));
    let disk = MemoryDisk::read_only(SIZE);
    let mut rig = rig_with(Config::new(disk.clone()), u64::MAX, false);
    assert_eq!(rig.bench.features & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
    assert_eq!(rig.ask(request::OUT, 0, &[part(data, 512)], &[]), (status::IOERR, 1));
    assert_eq!(disk.take_calls().writes, 0);
}

/// Data that are mapped nowhere fail their own request, not its neighbours.
#[test]
fn a_fault_is_one_requests_own() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    let (data, nowhere) = (rig.data + 4096, rig.bench.memory.size() as u64 - 100);
    for (i, at) in [data, nowhere, u64::MAX - 10, data + 512].into_iter().enumerate() {
        let own = rig.data + 32 * i as u64;
        let header = Header { kind: request::IN.into(), reserved: 0.into(), sector: (i as u64).into() };
        rig.bench.memory.set(own, header.as_bytes());
        rig.bench.memory.set(own + 16, &[0xee]);
        rig.ring.add(&[part(own, 16)], &[part(at, 512), part(own + 16, 1)], None).unwrap();
    }
    rig.ring.publish();
    rig.bench.run();
    let mut statuses = [0; 4];
    for (i, place) in statuses.iter_mut().enumerate() {
        let mut byte = [0];
        rig.bench.memory.get(rig.data + 32 * i as u64 + 16, &mut byte);
        *place = byte[0];
    }
    assert_eq!(statuses, [status::OK, status::IOERR, status::IOERR, status::OK]);
    assert_eq!((0..4).map(|_| rig.ring.used().unwrap().1).collect::<Vec<_>>(), [513, 1, 1, 513]);
    assert_eq!(rig.bench.endpoint.status() & device_status::NEEDS_RESET, 0);
}

/// Buffers without a header or without a place for the status return empty.
#[test]
fn buffers_that_ask_for_nothing() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    rig.header(request::OUT, 0);
    let at = rig.data;
    for (read, write) in [
        (vec![part(at, 15)], vec![part(at + 16, 1)]),
        (vec![], vec![part(at + 16, 1)]),
        (vec![part(at, 16)], vec![]),
        (vec![part(at, 16)], vec![part(at + 16, 0)]),
        (vec![part(u64::MAX, 16)], vec![part(at + 16, 1)]),
    ] {
        rig.ring.add(&read, &write, None).unwrap();
        assert_eq!(rig.bench.finish(&mut rig.ring).1, 0, "{read:?} {write:?}");
        assert_eq!(rig.status(), 0xee);
    }
    assert_eq!(disk.take_calls(), Default::default());
}

/// Discards and zeroes: ranges are checked, then done; unknown flags are not
/// supported; a name has 20 bytes.
#[test]
fn ranges_and_names() {
    let disk = MemoryDisk::new(SIZE);
    disk.set(0, &pattern(8192, 1));
    let mut rig = rig_with(Config { serial: "disk-1".into(), ..Config::new(disk.clone()) }, u64::MAX, false);
    let data = rig.data + 4096;
    let range = |rig: &Rig, ranges: &[(u64, u32, u32)]| {
        for (i, (sector, sectors, flags)) in ranges.iter().enumerate() {
            let one = Range { sector: (*sector).into(), sectors: (*sectors).into(), flags: (*flags).into() };
            rig.bench.memory.set(data + 16 * i as u64, one.as_bytes());
        }
        [part(data, 16 * ranges.len() as u32)]
    };
    let send = range(&rig, &[(1, 1, 0), (4, 2, 0)]);
    assert_eq!(rig.ask(request::WRITE_ZEROES, 0, &send, &[]), (status::OK, 1));
    assert_eq!(disk.get(512..1024), [0; 512]);
    assert_eq!(disk.get(2048..3072), [0; 1024]);
    assert_eq!(disk.get(1024..2048), pattern(8192, 1)[1024..2048]);
    let send = range(&rig, &[(2, 1, 0)]);
    assert_eq!(rig.ask(request::DISCARD, 0, &send, &[]), (status::OK, 1));
    let calls = disk.take_calls();
    assert_eq!((calls.zeroes, calls.discards), (2, 1));
    let send = range(&rig, &[(2, 1, 1)]);
    assert_eq!(rig.ask(request::WRITE_ZEROES, 0, &send, &[]).0, status::OK);
    assert_eq!(disk.take_calls().discards, 1, "may be given back");
    for (kind, ranges, expected) in [
        (request::DISCARD, vec![(0, 1, 1)], status::UNSUPP),
        (request::WRITE_ZEROES, vec![(0, 1, 2)], status::UNSUPP),
        (request::WRITE_ZEROES, vec![(0, 1, 0), (2048, 1, 0)], status::IOERR),
        (request::DISCARD, vec![(u64::MAX, u32::MAX, 0)], status::IOERR),
        (request::DISCARD, vec![(0, 1, 0); 33], status::IOERR),
        (request::DISCARD, vec![], status::IOERR),
    ] {
        let send = range(&rig, &ranges);
        assert_eq!(rig.ask(kind, 0, &send, &[]), (expected, 1), "{kind} {ranges:?}");
    }
    assert_eq!(rig.ask(request::DISCARD, 0, &[part(data, 17)], &[]).0, status::IOERR);
    assert_eq!(disk.take_calls(), Default::default(), "none is done if one is wrong");
    assert_eq!(rig.ask(request::GET_ID, 0, &[], &[part(data, 20)]), (status::OK, 21));
    let mut name = [0; 20];
    rig.bench.memory.get(data, &mut name);
    assert_eq!(&name, b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

/// VDPA-5.7, VDPA-6.4: after a suspension the base is exact and stays; the
/// rest is done after it.
#[test]
fn suspended_and_resumed() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    let data = rig.data + 4096;
    for _ in 0..5 {
        assert_eq!(rig.ask(request::IN, 0, &[], &[part(data, 512)]).0, status::OK);
    }
    rig.bench.endpoint.suspend(0);
    rig.header(request::IN, 1);
    rig.ring.add(&[part(rig.data, 16)], &[part(data, 512), part(rig.data + 16, 1)], None).unwrap();
    rig.ring.publish();
    rig.bench.endpoint.kick(0);
    rig.bench.run();
    assert_eq!(rig.ring.used(), None);
    assert_eq!(rig.bench.endpoint.queue_state(0).word(), 5);
    assert_eq!(rig.bench.endpoint.queue_state(0).word(), 5);
    rig.bench.endpoint.resume(0);
    rig.bench.run();
    assert_eq!(rig.ring.used().map(|used| used.1), Some(513));
    assert_eq!(rig.bench.endpoint.queue_state(0).word(), 6);
}

/// A broken ring: NEEDS_RESET and a configuration interrupt; after a reset all
/// is well.
#[test]
fn a_broken_ring_needs_a_reset() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig(&disk);
    let data = rig.data + 4096;
    assert_eq!(rig.ask(request::IN, 0, &[], &[part(data, 512)]).0, status::OK);
    rig.ring.set_index(0x4000);
    rig.bench.run();
    assert_ne!(rig.bench.endpoint.status() & device_status::NEEDS_RESET, 0);
    assert_eq!(rig.bench.config.take(), 1);
    rig.ring.set_index(2);
    rig.bench.run();
    assert_eq!(rig.ring.used(), None, "nothing happens until then");
    rig.bench.endpoint.reset(0);
    rig.bench.negotiate();
    let fresh = rig.bench.queue(0, 64);
    rig.ring = fresh;
    rig.bench.start();
    assert_eq!(rig.ask(request::IN, 0, &[], &[part(data, 512)]).0, status::OK);
}

/// A device that has nothing to do asks for a kick and sleeps.
#[test]
fn it_sleeps_until_it_is_kicked() {
    let disk = MemoryDisk::new(SIZE);
    let mut rig = rig_with(Config::new(disk), !transport::EVENT_IDX, false);
    let data = rig.data + 4096;
    assert_eq!(rig.ask(request::IN, 0, &[], &[part(data, 512)]).0, status::OK);
    let Turn::Until(until) = rig.bench.turn() else { panic!("it looks for a while") };
    rig.header(request::IN, 0);
    let add = |rig: &mut Rig| {
        rig.ring.add(&[part(rig.data, 16)], &[part(data, 512), part(rig.data + 16, 1)], None).unwrap();
        rig.ring.publish()
    };
    assert!(!add(&mut rig), "no kick is wanted meanwhile");
    assert_eq!(rig.bench.turn(), Turn::Busy);
    rig.ring.used().unwrap();
    rig.bench.now = until;
    assert!(matches!(rig.bench.turn(), Turn::Idle | Turn::Until(_)));
    rig.bench.now = until * 3;
    assert_eq!(rig.bench.turn(), Turn::Idle);
    assert!(add(&mut rig), "a kick is wanted now");
    rig.bench.endpoint.kick(0);
    rig.bench.run();
    rig.ring.used().unwrap();
}

/// Several queues are served in turn, each with its own events and figures.
#[test]
fn several_queues() {
    let disk = MemoryDisk::new(SIZE);
    let memory = TestMemory::new(4 << 20, false);
    let config = Config { queues: 4, ..Config::new(disk.clone()) };
    let mut bench = VirtioBench::new(Box::new(Blk::new(config)), memory, u64::MAX);
    let mut rings: Vec<DriverRing> = (0..4).map(|index| bench.queue(index, 16)).collect();
    bench.start();
    let at = bench.free();
    for (i, ring) in rings.iter_mut().enumerate() {
        let own = at + 4096 * i as u64;
        let header = Header { kind: request::OUT.into(), reserved: 0.into(), sector: (i as u64).into() };
        bench.memory.set(own, header.as_bytes());
        bench.memory.set(own + 512, &[i as u8 + 1; 512]);
        ring.add(&[part(own, 16), part(own + 512, 512)], &[part(own + 16, 1)], None).unwrap();
        ring.publish();
    }
    bench.run();
    for (i, ring) in rings.iter_mut().enumerate() {
        assert_eq!(ring.used().unwrap().1, 1);
        assert_eq!(bench.events[i].take(), 1);
        assert_eq!(disk.get(i * 512..i * 512 + 512), [i as u8 + 1; 512]);
        let figures = bench.endpoint.statistics(i as u16).unwrap();
        assert_eq!(figures, [("received_desc", 1), ("completed_desc", 1)]);
    }
    assert_eq!(Disk::len(&*disk), SIZE as u64);
}
