// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saved states: a device's stream with anything done to it, written to another
//! device of its kind.
//!
//! A state is saved from a device that has work. Frames are changed with and
//! without a right checksum, so that what lies behind it is reached, then bytes
//! are. Whatever comes of it: it is taken over or refused with EINVAL, GET
//! reports a state that Linux could, no byte outside of what is mapped for the
//! device changes, and after a reset the device takes the true state.

use arbitrary::Unstructured;
use caller::{Caller as _, FileId, Reply};
use device::saved::{Frame, HEADER, Kind, MAX_PAYLOAD};
use host::tree::Node;
use host::{Host, Lab};
use models::dsa::spec as dsa;
use models::dsa::spec::{Descriptor, command, flag, opcode, wqcfg};
use sim::{BASE, Client, SIZE, SimPlatform, SimStorage};
use uapi::Errno;
use uapi::vfio::cdev::BindIommufd;
use uapi::vfio::device as dev;
use uapi::vfio::migration::MigState;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{Blob, Number, Wire, operations, seed, wire};

wire! {
    /// What is done to a stream.
    enum Op {
        /// A byte of a frame's payload changes, and its checksum with it.
        Payload { frame: u8, at: Number, value: u8 },
        /// Another length of payload.
        Resize { frame: u8, len: Number },
        /// Another kind, another place.
        Retag { frame: u8, kind: u8 },
        Place { frame: u8, at: Number },
        /// Frames in another order, once more, or not at all.
        Swap { one: u8, other: u8 },
        Repeat { frame: u8, to: u8 },
        Drop { frame: u8 },
        Insert { to: u8, kind: u8, at: Number, payload: Blob },
        /// From here on bytes change, and checksums do not.
        Flip { at: Number, mask: u8 },
        Cut { at: Number },
        Remove { at: Number, len: Number },
        Again { at: Number, len: Number },
        Splice { at: Number, bytes: Blob },
        /// Bytes of each write, at most.
        Piece { len: u16 },
        /// The stream is left and begun anew before this write.
        Reset { before: u8 },
    }
}

const SET: u32 = 1 << 17;
const GET: u32 = 1 << 16;
const STATE: u32 = 2;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;

/// Where arguments and pieces of streams lie.
const SCRATCH: u64 = BASE;
const PIECES: u64 = BASE + 0x1000;
const PIECE: usize = 0x7000;
/// What devices may touch: a part of the program's memory at IOVA 0.
const MAPPED: u64 = BASE + 0x1_0000;
const LENGTH: u64 = 0x1_0000;

const MODELS: [&str; 3] = ["nvme,size=256K,queues=2", "dsa,queues=2,entries=16,engines=1", "ioat"];

/// A device and its program.
struct Side {
    host: Host,
    client: Client,
    device: FileId,
}

impl Side {
    fn new(model: &str) -> Side {
        let mut lab = Lab::default();
        let keys = format!("{model},addr=01:00.0,migration=pre-copy-p2p,state_size=70K");
        lab.add_device(&keys).unwrap_or_else(|e| panic!("{e}"));
        let platform = SimPlatform::new(1);
        let mut host = Host::new(lab, platform, Box::new(SimStorage)).unwrap_or_else(|e| panic!("{e}"));
        let client = Client::new(1);
        let iommu = host.open(Node::Iommufd, &client).unwrap_or_else(|e| panic!("{e:?}"));
        let device = host.open(Node::VfioCdev(0), &client).unwrap_or_else(|e| panic!("{e:?}"));
        let iommufd = client.new_handle(iommu).unwrap_or_else(|e| panic!("{e:?}"));
        let mut side = Side { host, client, device };
        let bind = BindIommufd { argsz: 16, iommufd, ..BindIommufd::default() };
        side.call(device, dev::BIND_IOMMUFD, bind.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        side.map(iommu);
        // Memory and bus mastering.
        side.config(4, &6_u16.to_le_bytes());
        side
    }

    /// Calls with a structure at the place of arguments.
    fn call(&mut self, file: FileId, request: u32, bytes: &[u8]) -> Result<Reply, Errno> {
        self.client.set(SCRATCH, bytes);
        self.host.ioctl(file, request, SCRATCH, &self.client)
    }

    fn map(&mut self, iommu: FileId) {
        use uapi::iommufd::{Command as _, IoasAlloc, IoasMap, MapFlags};
        use uapi::vfio::cdev::AttachIommufdPt;
        let alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, ..IoasAlloc::default() };
        self.call(iommu, IoasAlloc::REQUEST, alloc.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        let mut bytes = [0; size_of::<IoasAlloc>()];
        self.client.get(SCRATCH, &mut bytes);
        let pt_id = IoasAlloc::read_from_bytes(&bytes).map_or(0, |alloc| alloc.out_ioas_id);
        let attach = AttachIommufdPt { argsz: 16, pt_id, ..AttachIommufdPt::default() };
        let device = self.device;
        self.call(device, dev::ATTACH_IOMMUFD_PT, attach.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        let flags = (MapFlags::FIXED_IOVA | MapFlags::READABLE | MapFlags::WRITEABLE).bits();
        let size = size_of::<IoasMap>() as u32;
        let map =
            IoasMap { size, flags, ioas_id: pt_id, user_va: MAPPED, length: LENGTH, iova: 0, ..IoasMap::default() };
        self.call(iommu, IoasMap::REQUEST, map.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
    }

    fn config(&mut self, at: u64, bytes: &[u8]) {
        self.store(dev::region_index::CONFIG, at, bytes);
    }

    /// A write to a region.
    fn store(&mut self, region: u32, at: u64, bytes: &[u8]) {
        self.client.set(SCRATCH, bytes);
        let offset = uapi::region::offset(0, region) + at;
        let done = self.host.write(self.device, offset, SCRATCH, bytes.len() as u64, &self.client);
        assert!(done.is_ok(), "region {region} at {at:#x}: {done:?}");
    }

    fn turns(&self) {
        for _ in 0..6 {
            self.host.endpoints().for_each(|endpoint| {
                let _ = endpoint.turn(0);
            });
        }
    }

    fn get(&mut self) -> u32 {
        self.state_call(GET, 0).unwrap_or_else(|e| panic!("GET: {e:?}")).device_state
    }

    /// SET; the stream's file.
    fn set(&mut self, state: u32) -> Result<Option<FileId>, Errno> {
        let fd = self.state_call(SET, state)?.data_fd;
        Ok(self.client.file_id(fd))
    }

    fn state_call(&mut self, flags: u32, device_state: u32) -> Result<MigState, Errno> {
        let mig = MigState { device_state, data_fd: -1 };
        let device = self.device;
        self.call(device, dev::FEATURE, &[[16, flags | STATE].as_bytes(), mig.as_bytes()].concat())?;
        let mut after = [0; 8];
        self.client.get(SCRATCH + 8, &mut after);
        MigState::read_from_bytes(&after).map_err(|_| Errno::EFAULT)
    }

    fn save(&mut self) -> Vec<u8> {
        let file = self.set(STOP_COPY).ok().flatten().unwrap_or_else(|| panic!("no stream"));
        let mut state = Vec::new();
        loop {
            match self.host.read(file, 0, PIECES, PIECE as u64, &self.client) {
                Ok(Reply::Value(0)) => break,
                Ok(Reply::Value(len)) => {
                    let mut piece = vec![0; len as usize];
                    self.client.get(PIECES, &mut piece);
                    state.extend(piece);
                }
                other => panic!("{other:?}"),
            }
        }
        state
    }

    /// Writes a stream in pieces; whether all of it was taken.
    fn write(&mut self, file: FileId, stream: &[u8], piece: usize) -> Result<(), Errno> {
        for part in stream.chunks(piece.clamp(1, PIECE)) {
            let mut part = part;
            while !part.is_empty() {
                self.client.set(PIECES, part);
                match self.host.write(file, 0, PIECES, part.len() as u64, &self.client)? {
                    Reply::Value(done) => part = &part[done as usize..],
                    other => panic!("{other:?}"),
                }
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        let device = self.device;
        self.call(device, dev::RESET, &[]).unwrap_or_else(|e| panic!("RESET: {e:?}"));
        assert_eq!(self.get(), RUNNING);
    }

    /// Everything of the program's memory that no device may change.
    fn private(&self) -> Vec<u8> {
        let mut before = vec![0; (MAPPED - BASE) as usize];
        self.client.get(BASE, &mut before);
        let behind = MAPPED + LENGTH;
        let mut after = vec![0; (BASE + SIZE - behind) as usize];
        self.client.get(behind, &mut after);
        before.extend(after);
        before
    }
}

/// Gives a device something to save.
fn work(side: &mut Side, model: usize) {
    match model {
        0 => {
            // Admin queues, and the controller enabled.
            for (at, value) in [(0x24, 0x000f_000f_u32), (0x28, 0x1000), (0x30, 0x2000), (0x14, 0x0046_0001)] {
                side.store(0, at, &value.to_le_bytes());
            }
            side.turns();
            // An identify that nobody has looked at, one that waits.
            let identify = |cid: u8| {
                let mut bytes = [0_u8; 64];
                (bytes[0], bytes[2], bytes[25], bytes[40]) = (6, cid, 0x30, 1);
                bytes
            };
            for n in 0..2 {
                side.client.set(MAPPED + 0x1000 + 64 * u64::from(n), &identify(n));
            }
            side.store(0, 0x1000, &1_u32.to_le_bytes());
            side.turns();
            side.store(0, 0x1000, &2_u32.to_le_bytes());
        }
        1 => {
            for (word, value) in
                [(wqcfg::SIZE, 16), (wqcfg::MODE, wqcfg::DEDICATED | 1 << 4), (wqcfg::LIMITS, 31 | 5 << 5)]
            {
                side.store(0, dsa::WQCFG + 4 * word as u64, &value.to_le_bytes());
            }
            side.store(0, dsa::GRPCFG, &1_u32.to_le_bytes());
            side.store(0, dsa::GRPCFG + dsa::GROUP_ENGINES, &1_u32.to_le_bytes());
            for number in [command::ENABLE_DEVICE, command::ENABLE_QUEUE] {
                side.store(0, dsa::CMD, &(number << 20).to_le_bytes());
            }
            let list =
                [Descriptor { source: 0x4000, destination: 0x5000, size: 8, ..Descriptor::new(opcode::MOVE, 0) }; 2];
            side.client.set(MAPPED + 0x1000, list.as_bytes());
            let flags = flag::RECORD | flag::REQUEST_RECORD;
            for (n, descriptor) in [
                Descriptor { source: 0x1000, size: 2, ..Descriptor::new(opcode::BATCH, flags) },
                Descriptor { source: 0x4000, destination: 0x8000, size: 0x4000, ..Descriptor::new(opcode::CRC, flags) },
                Descriptor { source: 0x1000, destination: 1 << 40, size: 64, ..Descriptor::new(opcode::MOVE, flags) },
            ]
            .into_iter()
            .enumerate()
            {
                let descriptor = Descriptor { completion: 0x2000 + 32 * n as u64, ..descriptor };
                for (at, part) in descriptor.as_bytes().chunks(8).enumerate() {
                    side.store(2, (64 * n + 8 * at) as u64, part);
                }
            }
        }
        _ => {
            let descriptor = |next: u64| [8_u64, 0x4000, 0x5000, next, 0, 0, 0, 0];
            for n in 0..3 {
                side.client.set(MAPPED + 0x1000 + 64 * n, descriptor(0x1040 + 64 * n).as_bytes());
            }
            for (at, value) in [(0x98, 0x2000_u64), (0x90, 0x1000)] {
                side.store(0, at, &value.to_le_bytes());
            }
            side.store(0, 0x86, &3_u16.to_le_bytes());
        }
    }
}

/// A frame that can be changed.
#[derive(Clone)]
struct Loose {
    kind: Kind,
    at: u64,
    payload: Vec<u8>,
}

const KINDS: [Kind; 4] = [Kind::Hello, Kind::Bulk, Kind::Model, Kind::End];

fn frames(mut stream: &[u8]) -> Vec<Loose> {
    let mut all = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER>() {
        let frame = Frame::parse(header).unwrap_or_else(|e| panic!("{e}"));
        let (payload, rest) = rest.split_at(frame.len);
        all.push(Loose { kind: frame.kind, at: frame.at, payload: payload.to_vec() });
        stream = rest;
    }
    all
}

fn change(frames: &mut Vec<Loose>, op: &Op) {
    let count = frames.len().max(1);
    let pick = |n: &u8| usize::from(*n) % count;
    match op {
        Op::Payload { frame, at, value } => {
            if let Some(frame) = frames.get_mut(pick(frame)) {
                let len = frame.payload.len().max(1) as u64;
                if let Some(byte) = frame.payload.get_mut((at.value() % len) as usize) {
                    *byte = *value;
                }
            }
        }
        Op::Resize { frame, len } => {
            if let Some(frame) = frames.get_mut(pick(frame)) {
                frame.payload.resize((len.value() % MAX_PAYLOAD as u64) as usize % (1 << 17), 0);
            }
        }
        Op::Retag { frame, kind } => {
            if let Some(frame) = frames.get_mut(pick(frame)) {
                frame.kind = KINDS[usize::from(*kind) % KINDS.len()];
            }
        }
        Op::Place { frame, at } => {
            if let Some(frame) = frames.get_mut(pick(frame)) {
                frame.at = at.value();
            }
        }
        Op::Swap { one, other } if !frames.is_empty() => frames.swap(pick(one), pick(other)),
        Op::Repeat { frame, to } if frames.len() < 32 => {
            if let Some(again) = frames.get(pick(frame)).cloned() {
                frames.insert(pick(to), again);
            }
        }
        Op::Drop { frame } if !frames.is_empty() => drop(frames.remove(pick(frame))),
        Op::Insert { to, kind, at, payload } if frames.len() < 32 => {
            let kind = KINDS[usize::from(*kind) % KINDS.len()];
            frames.insert(pick(to).min(frames.len()), Loose { kind, at: at.value(), payload: payload.0.clone() });
        }
        _ => {}
    }
}

fn scribble(stream: &mut Vec<u8>, op: &Op) {
    let len = stream.len() as u64;
    let place = |at: &Number| (at.value() % (len + 1)) as usize;
    let range = |at: &Number, many: &Number| {
        let start = place(at);
        start..(start + (many.value() % 4096) as usize).min(len as usize)
    };
    match op {
        Op::Flip { at, mask } => {
            if let Some(byte) = stream.get_mut(place(at)) {
                *byte ^= mask;
            }
        }
        Op::Cut { at } => stream.truncate(place(at)),
        Op::Remove { at, len } => drop(stream.drain(range(at, len))),
        Op::Again { at, len } => {
            let range = range(at, len);
            let again = stream[range.clone()].to_vec();
            stream.splice(range.end..range.end, again);
        }
        Op::Splice { at, bytes } => {
            let at = place(at);
            stream.splice(at..at, bytes.0.iter().copied());
        }
        _ => {}
    }
}

/// Bits 0 and 1 of the settings choose the model.
pub(crate) fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let settings = u8::decode(&mut u).unwrap_or(0);
    let ops: Vec<Op> = operations(&mut u, 48);
    let model = usize::from(settings) % MODELS.len();
    let mut source = Side::new(MODELS[model]);
    work(&mut source, model);
    let genuine = source.save();

    let mut loose = frames(&genuine);
    ops.iter().for_each(|op| change(&mut loose, op));
    let mut stream = Vec::new();
    for (number, frame) in (0..).zip(&loose) {
        Frame::put(&mut stream, frame.kind, number, frame.at, &frame.payload);
    }
    ops.iter().for_each(|op| scribble(&mut stream, op));
    let piece = ops.iter().find_map(|op| if let Op::Piece { len } = op { Some(usize::from(*len)) } else { None });

    let mut target = Side::new(MODELS[model]);
    if settings & 0x80 != 0 {
        work(&mut target, model);
    }
    let file = target.set(RESUMING).ok().flatten().unwrap_or_else(|| panic!("no stream"));
    if let Some(Op::Reset { before }) = ops.iter().find(|op| matches!(op, Op::Reset { .. })) {
        let some = stream.get(..usize::from(*before)).unwrap_or(&stream).to_vec();
        let _ = target.write(file, &some, PIECE);
        target.reset();
        assert_eq!(target.write(file, &[1], 1), Err(Errno::ENODEV));
        return take(&mut target, &genuine);
    }
    let written = target.write(file, &stream, piece.unwrap_or(PIECE));
    assert!(matches!(written, Ok(()) | Err(Errno::EINVAL)), "{written:?}");
    let set = target.set(RUNNING);
    match (set, target.get()) {
        (Ok(None), RUNNING) => {
            assert!(written.is_ok(), "a stream that was refused was taken over");
            let before = target.private();
            target.turns();
            let after = target.private();
            assert!(before == after, "memory changed that is not mapped for the device");
        }
        (Err(Errno::EINVAL), RESUMING) => assert!(written.is_err() || stream != genuine, "the true state was refused"),
        other => panic!("{other:?}"),
    }
    target.reset();
    take(&mut target, &genuine);
}

/// After a reset the device takes what is really its state.
fn take(target: &mut Side, genuine: &[u8]) {
    let file = target.set(RESUMING).ok().flatten().unwrap_or_else(|| panic!("no stream"));
    assert_eq!(target.write(file, genuine, PIECE), Ok(()));
    assert_eq!(target.set(RUNNING), Ok(None));
    target.turns();
}

/// Seeds.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let n = Number::of;
    let s = |settings: u8, ops: &[Op]| seed(&settings, ops);
    vec![
        ("nvme", s(0, &[])),
        ("dsa", s(1, &[])),
        ("ioat", s(2, &[])),
        ("small-pieces", s(1, &[Op::Piece { len: 7 }])),
        ("busy-target", s(0x81, &[])),
        ("flipped", s(1, &[Op::Flip { at: n(40), mask: 1 }])),
        ("cut", s(0, &[Op::Cut { at: n(1000) }])),
        ("repeated", s(2, &[Op::Again { at: n(0), len: n(100) }])),
        ("removed", s(0, &[Op::Remove { at: n(60_000), len: n(64) }])),
        ("spliced", s(1, &[Op::Splice { at: n(32), bytes: Blob(vec![0xff; 40]) }])),
        ("another-register", s(1, &[Op::Payload { frame: 3, at: n(0x90), value: 0xff }])),
        ("another-queue", s(0, &[Op::Payload { frame: 3, at: n(0x200), value: 0x55 }])),
        ("no-registers", s(0, &[Op::Drop { frame: 3 }])),
        ("twice-registers", s(1, &[Op::Repeat { frame: 3, to: 3 }])),
        ("order", s(1, &[Op::Swap { one: 1, other: 3 }])),
        ("memory-beyond", s(2, &[Op::Place { frame: 1, at: n(69_000) }])),
        ("long-registers", s(0, &[Op::Resize { frame: 3, len: n(100_000) }])),
        ("other-kind", s(1, &[Op::Retag { frame: 1, kind: 2 }])),
        ("behind-the-end", s(1, &[Op::Insert { to: 4, kind: 3, at: n(0), payload: Blob(vec![]) }])),
        ("reset-in-between", s(1, &[Op::Reset { before: 200 }])),
    ]
}
