// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network device, driven as a program would.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use device::virtio::feature as transport;
use device::{Frames, NetPort, Offloads};
use models::testing::virtio::DriverRing;
use models::testing::{TestMemory, VirtioBench};
use models::virtio::net::{Config, Net, Wire};
use models::virtio::ring::Part;
use models::virtio::spec::net::{HEADER, Header, control, feature, link};
use zerocopy::IntoBytes;

use crate::rings::part;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A port that keeps what is sent and gives what it is given.
#[derive(Debug, Default)]
pub(crate) struct Port(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sent: Vec<(u16, Vec<u8>)>,
    come: Vec<VecDeque<Vec<u8>>>,
    offloads: Offloads,
    pairs: u16,
    down: bool,
}

impl Port {
    pub(crate) fn give(&self, pair: usize, frame: &[u8]) {
        let mut state = self.0.lock().unwrap();
        if state.come.len() <= pair {
            state.come.resize(pair + 1, VecDeque::new());
        }
        state.come[pair].push_back(frame.to_vec());
    }

    pub(crate) fn take(&self) -> Vec<(u16, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap().sent)
    }
}

impl NetPort for Port {
    fn offloads(&self) -> Offloads {
        Offloads::TCP
    }

    fn send(&self, pair: u16, frames: &mut Frames) {
        self.0.lock().unwrap().sent.extend(frames.iter().map(|frame| (pair, frame.to_vec())));
        frames.clear();
    }

    fn receive(&self, pair: u16, frames: &mut Frames, limit: usize) {
        let mut state = self.0.lock().unwrap();
        let Some(come) = state.come.get_mut(usize::from(pair)) else { return };
        (0..limit).map_while(|_| come.pop_front()).for_each(|frame| frames.push(&frame));
    }

    fn set_offloads(&self, offloads: Offloads) {
        self.0.lock().unwrap().offloads = offloads;
    }

    fn set_pairs(&self, pairs: u16) {
        self.0.lock().unwrap().pairs = pairs;
    }

    fn is_up(&self) -> bool {
        !self.0.lock().unwrap().down
    }
}

pub(crate) struct Rig {
    pub(crate) bench: VirtioBench,
    pub(crate) port: Arc<Port>,
    pub(crate) rings: Vec<DriverRing>,
    pub(crate) data: u64,
}

pub(crate) fn rig_with(pairs: u16, wanted: u64, remote: bool) -> Rig {
    let port = Arc::<Port>::default();
    let config = Config { pairs, packed: true, ..Config::new(port.clone(), MAC) };
    let memory = TestMemory::new(8 << 20, remote);
    let mut bench = VirtioBench::new(Box::new(Net::new(config)), memory, wanted);
    let count = bench.endpoint.spec().queues.len() as u16;
    let rings = (0..count).map(|index| bench.queue(index, 256)).collect();
    bench.start();
    let data = bench.free();
    Rig { bench, port, rings, data }
}

fn rig(wanted: u64) -> Rig {
    rig_with(1, wanted, false)
}

const SPLIT: u64 = !transport::RING_PACKED;

/// A frame to `to`, with an empty header.
fn frame(to: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(to);
    frame.extend((0..len - 6).map(|i| (i as u8).wrapping_add(seed)));
    frame
}

impl Rig {
    /// Gives the device buffers of `len` bytes to receive into.
    fn offer(&mut self, queue: usize, count: u64, len: u32) {
        for i in 0..count {
            let at = self.data + (1 << 20) + i * 4096;
            self.rings[queue].add(&[], &[part(at, len)], None).unwrap();
        }
        self.rings[queue].publish();
    }

    /// What was received into buffer `number` of those offered.
    fn get(&self, number: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.bench.memory.get(self.data + (1 << 20) + number * 4096, &mut bytes);
        bytes
    }

    fn send(&mut self, queue: usize, parts: &[Part]) {
        self.rings[queue].add(parts, &[], None).unwrap();
        self.bench.finish(&mut self.rings[queue]);
    }

    /// A command; the answer.
    fn command(&mut self, command: [u8; 2], data: &[u8]) -> u8 {
        let (at, number) = (self.data, self.rings.len() - 1);
        self.bench.memory.set(at, &command);
        self.bench.memory.set(at + 64, data);
        self.bench.memory.set(at + 32, &[0xee]);
        let parts = [part(at, 2), part(at + 64, data.len() as u32)];
        self.rings[number].add(&parts, &[part(at + 32, 1)], None).unwrap();
        let (_, len) = self.bench.finish(&mut self.rings[number]);
        assert_eq!(len, 1);
        let mut answer = [0];
        self.bench.memory.get(at + 32, &mut answer);
        answer[0]
    }

    /// Whether a frame to `to` gets through.
    fn hears(&mut self, to: [u8; 6]) -> bool {
        self.port.give(0, &frame(to, 60, 0));
        self.bench.run();
        match self.rings[0].used() {
            Some(_) => {
                self.offer(0, 1, 2048);
                true
            }
            None => false,
        }
    }
}

/// Frames go out as they are, their header with them, cut anywhere.
#[test]
fn frames_go_out() {
    for (wanted, remote) in [(SPLIT, false), (u64::MAX, false), (SPLIT, true), (u64::MAX, true)] {
        let mut rig = rig_with(1, wanted, remote);
        let header = Header { flags: 1, gso_type: 1, hdr_len: 54.into(), gso_size: 1448.into(), ..Header::default() };
        let mut sent = frame([0xff; 6], 3000, 5);
        sent[..HEADER].copy_from_slice(header.as_bytes());
        let at = rig.data;
        rig.bench.memory.set(at, &sent);
        rig.send(1, &[part(at, 5), part(at + 5, 7), part(at + 12, 1000), part(at + 1012, 2000)]);
        assert_eq!(rig.port.take(), [(0, sent.clone())]);
        // A whole ring of them goes in order.
        for i in 0..60 {
            rig.bench.memory.set(at + 4096 * i, &frame([i as u8; 6], 60, i as u8));
            rig.rings[1].add(&[part(at + 4096 * i, 72)], &[], None).unwrap();
        }
        rig.rings[1].publish();
        rig.bench.run();
        let expected: Vec<_> = (0..60).map(|i| (0, frame([i; 6], 60, i))).collect();
        assert_eq!(rig.port.take(), expected);
        assert_eq!((0..60).filter_map(|_| rig.rings[1].used()).filter(|used| used.1 == 0).count(), 60);
    }
}

/// What is no frame is dropped, and its buffer returns.
#[test]
fn bad_frames_are_dropped() {
    let mut rig = rig(SPLIT);
    let at = rig.data;
    for parts in [
        vec![part(at, 0)],
        vec![part(at, 12)],
        vec![part(at, 70_000)],
        vec![part(at, u32::MAX); 64],
        vec![part(at, 12), part(u64::MAX - 4, 60)],
        vec![part(1 << 40, 100)],
    ] {
        rig.send(1, &parts);
        assert_eq!(rig.port.take(), [], "{parts:?}");
    }
    rig.send(1, &[part(at, 100)]);
    assert_eq!(rig.port.take().len(), 1, "the next one goes");
}

/// A frame lies in as many buffers as it takes, all used at once, and its
/// header says how many.
#[test]
fn a_frame_takes_several_buffers() {
    for (wanted, remote) in [(SPLIT, false), (u64::MAX, false), (u64::MAX, true)] {
        let mut rig = rig_with(1, wanted, remote);
        rig.offer(0, 2, 1000);
        let big = frame(MAC, 2500, 9);
        rig.port.give(0, &big);
        rig.bench.run();
        assert_eq!(rig.rings[0].used(), None, "two are too few");
        for i in 2..4 {
            let at = rig.data + (1 << 20) + i * 4096;
            rig.rings[0].add(&[], &[part(at, 1000)], None).unwrap();
        }
        rig.rings[0].publish();
        rig.bench.run();
        let lens: Vec<u32> = (0..3).map(|_| rig.rings[0].used().unwrap().1).collect();
        assert_eq!(lens, [1000, 1000, 512]);
        assert_eq!(rig.rings[0].used(), None);
        let mut got: Vec<u8> = (0..3).flat_map(|i| rig.get(i, lens[i as usize])).collect();
        assert_eq!(got[10..12], [3, 0], "num_buffers");
        got[10] = 0;
        assert_eq!(got, big);
    }
}

/// Without mergeable buffers a frame needs one that is long enough; else it is
/// dropped, and the buffer stays.
#[test]
fn a_frame_needs_room_in_one_buffer() {
    let mut rig = rig(SPLIT & !feature::MRG_RXBUF);
    rig.offer(0, 1, 1000);
    rig.port.give(0, &frame(MAC, 2500, 9));
    rig.bench.run();
    assert_eq!(rig.rings[0].used(), None);
    rig.port.give(0, &frame(MAC, 500, 9));
    rig.bench.run();
    assert_eq!(rig.rings[0].used().unwrap().1, 512);
    assert_eq!(rig.get(0, 512)[10..12], [1, 0]);
}

/// A buffer that is mapped nowhere returns empty; its frame is lost, the next
/// one is not.
#[test]
fn buffers_that_are_not_there() {
    let mut rig = rig(SPLIT);
    rig.rings[0].add(&[], &[part(1 << 40, 2000)], None).unwrap();
    rig.offer(0, 1, 2000);
    rig.port.give(0, &frame(MAC, 500, 1));
    rig.port.give(0, &frame(MAC, 600, 2));
    rig.bench.run();
    assert_eq!(rig.rings[0].used().unwrap().1, 0);
    assert_eq!(rig.rings[0].used().unwrap().1, 612);
}

/// An old driver's header is two bytes shorter.
#[test]
fn a_driver_without_version_1() {
    let mut rig = rig(SPLIT & !transport::VERSION_1 & !feature::MRG_RXBUF);
    let at = rig.data;
    let whole = frame(MAC, 100, 4);
    rig.bench.memory.set(at, &whole[2..]);
    rig.send(1, &[part(at, 110)]);
    assert_eq!(rig.port.take(), [(0, whole.clone())]);
    rig.offer(0, 1, 2000);
    rig.port.give(0, &whole);
    rig.bench.run();
    assert_eq!(rig.rings[0].used().unwrap().1, 110);
    assert_eq!(rig.get(0, 110)[10..], whole[12..]);
}

/// VNET-2.1, VNET-3.1: the address can be set; nothing else can.
#[test]
fn configuration() {
    let rig = rig_with(4, SPLIT, false);
    let endpoint = &rig.bench.endpoint;
    let mut bytes = [0; 24];
    endpoint.read_config(0, &mut bytes);
    assert_eq!(
        (bytes[..6].to_vec(), bytes[6..8].to_vec(), bytes[8..10].to_vec()),
        (MAC.to_vec(), vec![1, 0], vec![4, 0])
    );
    endpoint.write_config(0, &[0xff; 24]);
    endpoint.read_config(0, &mut bytes);
    assert_eq!(bytes[..10], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 4, 0]);
    assert!(endpoint.set_mac(MAC));
    endpoint.read_config(0, &mut bytes);
    assert_eq!(bytes[..6], MAC);
    assert_ne!(endpoint.generation(), 0);
}

/// VNET-2.3: the control queue has a group of its own, the last queue if the
/// driver takes MQ, else the third.
#[test]
fn the_control_queue_is_where_the_driver_looks() {
    let mut all = rig_with(2, SPLIT, false);
    assert_eq!(all.bench.endpoint.spec().queues.iter().map(|queue| queue.group).collect::<Vec<_>>(), [0, 0, 0, 0, 1]);
    assert_eq!(all.command(control::MAC_ADDR_SET, &[2, 3, 4, 5, 6, 7]), control::OK);
    let mut few = rig_with(2, SPLIT & !feature::MQ, false);
    few.rings.truncate(3);
    assert_eq!(few.command(control::MAC_ADDR_SET, &[2, 3, 4, 5, 6, 7]), control::OK);
}

/// Every command, and what is none.
#[test]
fn commands() {
    let mut rig = rig_with(2, SPLIT, false);
    rig.offer(0, 8, 2048);
    let (other, many) = ([2, 9, 9, 9, 9, 9], [1, 0, 0x5e, 0, 0, 1]);
    assert!(rig.hears(other) && rig.hears(many) && rig.hears([0xff; 6]), "all, at first");
    assert_eq!(rig.command(control::RX_PROMISC, &[0]), control::OK);
    assert!(!rig.hears(other) && !rig.hears(many) && rig.hears([0xff; 6]) && rig.hears(MAC));
    for (command, to) in [(control::RX_ALLMULTI, many), (control::RX_ALLUNI, other)] {
        assert_eq!(rig.command(command, &[1]), control::OK);
        assert!(rig.hears(to));
        assert_eq!(rig.command(command, &[0]), control::OK);
        assert!(!rig.hears(to));
    }
    assert_eq!(rig.command(control::RX_NOBCAST, &[1]), control::OK);
    assert!(!rig.hears([0xff; 6]));
    let mut tables = vec![1, 0, 0, 0];
    tables.extend(other);
    tables.extend([1, 0, 0, 0]);
    tables.extend(many);
    assert_eq!(rig.command(control::MAC_TABLE_SET, &tables), control::OK);
    assert!(rig.hears(other) && rig.hears(many));
    for cut in [0, 3, 4, 10, 15, 19] {
        assert_eq!(rig.command(control::MAC_TABLE_SET, &tables[..cut]), control::ERR, "{cut}");
    }
    assert_eq!(rig.command(control::MAC_TABLE_SET, &[0xff; 8]), control::ERR);
    assert_eq!(rig.command(control::MAC_ADDR_SET, &[2, 1, 1, 1, 1, 1]), control::OK);
    assert!(rig.hears([2, 1, 1, 1, 1, 1]) && !rig.hears(MAC));
    assert_eq!(rig.command(control::MAC_ADDR_SET, &[2; 5]), control::ERR);
    assert_eq!(rig.command(control::MQ_VQ_PAIRS_SET, &[2, 0]), control::OK);
    assert_eq!(rig.port.0.lock().unwrap().pairs, 2);
    for bad in [[0, 0], [3, 0]] {
        assert_eq!(rig.command(control::MQ_VQ_PAIRS_SET, &bad), control::ERR);
    }
    for bad in [[0, 6], [1, 2], [2, 2], [9, 9], [4, 1]] {
        assert_eq!(rig.command(bad, &[0, 0]), control::ERR, "{bad:?}");
    }
    assert_eq!(rig.command(control::VLAN_ADD, &[5, 0]), control::OK);
    let mut tagged = frame([2, 1, 1, 1, 1, 1], 60, 0);
    for (vlan, heard) in [(5, true), (6, false)] {
        tagged[24..28].copy_from_slice(&[0x81, 0, 0, vlan]);
        rig.port.give(0, &tagged);
        rig.bench.run();
        assert_eq!(rig.rings[0].used().is_some(), heard, "{vlan}");
    }
    assert_eq!(rig.command(control::VLAN_ADD, &[0, 0x10]), control::ERR);
}

/// A reset brings everything back.
#[test]
fn a_reset_forgets_commands() {
    let mut rig = rig(SPLIT);
    assert_eq!(rig.command(control::MAC_ADDR_SET, &[2; 6]), control::OK);
    assert_eq!(rig.port.0.lock().unwrap().pairs, 1);
    rig.bench.endpoint.reset(0);
    assert_eq!(rig.port.0.lock().unwrap().pairs, 0);
    let mut mac = [0; 6];
    rig.bench.endpoint.read_config(0, &mut mac);
    assert_eq!(mac, MAC);
}

/// What the driver takes is the port's to know, and can be changed within what
/// was negotiated.
#[test]
fn offloads_are_told() {
    let takes = |rig: &Rig| rig.port.0.lock().unwrap().offloads;
    let mut all = rig(SPLIT);
    assert_eq!(takes(&all), Offloads::TCP);
    let only = feature::GUEST_CSUM | feature::GUEST_TSO4;
    assert_eq!(all.command(control::GUEST_OFFLOADS_SET, &only.to_le_bytes()), control::OK);
    assert_eq!(takes(&all), Offloads { checksum: true, tso4: true, ..Offloads::default() });
    assert_eq!(all.command(control::GUEST_OFFLOADS_SET, &u64::MAX.to_le_bytes()), control::ERR);
    let none = rig(SPLIT & !feature::GUEST_CSUM);
    assert_eq!(takes(&none), Offloads::default());
}

/// A link that goes and comes is told, and announced when it comes.
#[test]
fn the_link_is_told() {
    let mut rig = rig(SPLIT);
    let status = |rig: &Rig| {
        let mut status = [0; 2];
        rig.bench.endpoint.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!(status(&rig), link::UP);
    rig.port.0.lock().unwrap().down = true;
    rig.bench.run();
    assert_eq!((status(&rig), rig.bench.config.take()), (0, 1));
    rig.port.0.lock().unwrap().down = false;
    rig.bench.run();
    assert_eq!((status(&rig), rig.bench.config.take()), (link::UP | link::ANNOUNCE, 1));
    assert_eq!(rig.command(control::ANNOUNCE_ACK, &[]), control::OK);
    assert_eq!(status(&rig), link::UP);
}

/// Two devices on a wire: frames get there, checksums are made for a driver
/// that takes none, and segments for nobody are dropped.
#[test]
fn a_wire_between_two_devices() {
    let (one, other) = Wire::new(1);
    let device = |port: Arc<Wire>, wanted: u64| {
        let memory = TestMemory::new(8 << 20, false);
        let mut bench = VirtioBench::new(Box::new(Net::new(Config::new(port, MAC))), memory, wanted);
        let rings: Vec<DriverRing> = (0..2).map(|index| bench.queue(index, 64)).collect();
        bench.start();
        (bench, rings)
    };
    let (sender, mut from) = device(one, SPLIT);
    let (receiver, mut to) = device(other, SPLIT & !feature::GUEST_CSUM);
    let (data, buffer) = (sender.free(), receiver.free());
    for i in 0..3 {
        to[0].add(&[], &[part(buffer + 4096 * i, 2048)], None).unwrap();
    }
    to[0].publish();
    let plain = frame(MAC, 60, 1);
    let mut partial = frame(MAC, 60, 2);
    let header = Header { flags: 1, csum_start: 20.into(), csum_offset: 4.into(), ..Header::default() };
    partial[..HEADER].copy_from_slice(header.as_bytes());
    let mut segments = frame(MAC, 3000, 3);
    segments[..HEADER].copy_from_slice(Header { flags: 1, gso_type: 1, ..Header::default() }.as_bytes());
    for (i, frame) in (0..).zip([&plain, &segments, &partial]) {
        sender.memory.set(data + 4096 * i, frame);
        from[1].add(&[part(data + 4096 * i, frame.len() as u32)], &[], None).unwrap();
    }
    from[1].publish();
    sender.run();
    receiver.run();
    let mut got = [vec![0; 72], vec![0; 72]];
    for (i, got) in (0..).zip(&mut got) {
        assert_eq!(to[0].used().unwrap().1, 72);
        receiver.memory.get(buffer + 4096 * i, got);
    }
    assert_eq!(to[0].used(), None);
    assert_eq!(got[0][12..], plain[12..]);
    assert_eq!(got[1][..10], [0; 10], "nothing is left to do");
    assert_ne!(got[1][36..38], partial[36..38]);
    assert_eq!(got[1][12..36], partial[12..36]);
}

/// A driver that is not there hears nothing, and frames do not wait for it.
#[test]
fn a_wire_to_nobody() {
    let (one, other) = Wire::new(1);
    let mut frames = Frames::new();
    frames.push(&frame(MAC, 60, 0));
    one.send(0, &mut frames);
    assert!(frames.is_empty());
    other.set_pairs(1);
    other.receive(0, &mut frames, 64);
    assert!(frames.is_empty());
    assert_eq!(other.dropped(), 1);
}

/// A driver that forwards what it hears, as testpmd does: thousands of frames
/// go around, split and packed, and rings wrap many times.
#[test]
fn frames_go_around_for_long() {
    for (wanted, remote) in [(SPLIT, false), (u64::MAX, false), (!transport::EVENT_IDX, false), (u64::MAX, true)] {
        let config = Config { packed: true, ..Config::new(Wire::looped(1), MAC) };
        let memory = TestMemory::new(8 << 20, remote);
        let mut bench = VirtioBench::new(Box::new(Net::new(config)), memory, wanted);
        let (mut to, mut from) = (bench.queue(0, 256), bench.queue(1, 256));
        bench.start();
        let data = bench.free();
        let buffer = |i: u64| part(data + (i % 512) * 4096, 2048);
        for i in 0..256 {
            to.add(&[], &[buffer(i)], None).unwrap();
        }
        to.publish();
        for i in 0..32 {
            from.add(&[part(data + (512 + i) * 4096, 72)], &[], None).unwrap();
        }
        let mut heard = 0_u64;
        for round in 0..300 {
            from.publish();
            // Long enough to ask for a kick now and then.
            bench.now += if round % 3 == 0 { 1_000_000 } else { 1000 };
            bench.run();
            while from.used().is_some() {}
            let mut got = 0;
            while let Some((_, len)) = to.used() {
                assert_eq!(len, 72);
                to.add(&[], &[buffer(heard)], None).unwrap();
                from.add(&[part(data + (512 + got) * 4096, 72)], &[], None).unwrap();
                (got, heard) = (got + 1, heard + 1);
            }
            assert_eq!(got, 32, "round {round}");
            to.publish();
        }
    }
}
