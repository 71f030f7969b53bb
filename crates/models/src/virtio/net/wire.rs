// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A wire between two devices of a lab.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use device::{FRAME_HEADER, Frames, NetPort, Offloads, Wake};

use super::checksum;
use super::segment::{Version, segment};
use crate::virtio::spec::net::{Header, NEEDS_CSUM};
use zerocopy::FromBytes;

/// Frames and bytes under way to a pair of queues; more are dropped.
const FRAMES: usize = 4096;
const BYTES: usize = 4 << 20;
/// `gso_type` of a frame with ECN.
const GSO_ECN: u8 = 0x80;

/// One end of a wire.
///
/// What an end sends comes out of the other one's pair of queues with the same
/// number, modulo the pairs that the driver there uses. While no driver runs
/// there it is dropped. A receiver that takes no partial checksums gets whole
/// ones, and one that takes no segments to be made gets segments.
#[derive(Debug)]
pub struct Wire {
    own: Arc<End>,
    peer: Arc<End>,
    loops: bool,
}

/// What is under way to an end.
#[derive(Debug)]
struct End {
    ways: Vec<Mutex<Way>>,
    /// Pairs in use; 0: nobody listens.
    pairs: AtomicU16,
    offloads: Mutex<Offloads>,
    wake: OnceLock<Arc<dyn Wake>>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Way {
    batches: VecDeque<Frames>,
    frames: usize,
    bytes: usize,
    /// Rooms to be used again.
    spare: Vec<Frames>,
}

/// Spare rooms that are kept.
const SPARE: usize = 16;

impl End {
    fn new(pairs: u16) -> Arc<End> {
        Arc::new(End {
            ways: (0..pairs.max(1)).map(|_| Mutex::default()).collect(),
            pairs: AtomicU16::new(0),
            offloads: Mutex::default(),
            wake: OnceLock::new(),
            dropped: AtomicU64::new(0),
        })
    }
}

impl Wire {
    /// Both ends of a wire, for devices of up to so many pairs.
    #[must_use]
    pub fn new(pairs: u16) -> (Arc<Wire>, Arc<Wire>) {
        let (one, other) = (End::new(pairs), End::new(pairs));
        let end = |own: &Arc<End>, peer: &Arc<End>| Wire { own: own.clone(), peer: peer.clone(), loops: false };
        (Arc::new(end(&one, &other)), Arc::new(end(&other, &one)))
    }

    /// A wire whose two ends are one: a device hears what it sends.
    #[must_use]
    pub fn looped(pairs: u16) -> Arc<Wire> {
        let end = End::new(pairs);
        Arc::new(Wire { own: end.clone(), peer: end, loops: true })
    }

    /// Frames on the way to this end that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.own.dropped.load(Ordering::Relaxed)
    }
}

impl NetPort for Wire {
    fn offloads(&self) -> Offloads {
        Offloads::TCP
    }

    fn send(&self, pair: u16, frames: &mut Frames) {
        let pairs = self.peer.pairs.load(Ordering::Acquire);
        let way = pair.checked_rem(pairs).and_then(|way| self.peer.ways.get(usize::from(way)));
        let Some(mut way) = way.map(lock) else {
            self.peer.dropped.fetch_add(frames.len() as u64, Ordering::Relaxed);
            frames.clear();
            return;
        };
        if way.frames + frames.len() > FRAMES || way.bytes + frames.size() > BYTES {
            self.peer.dropped.fetch_add(frames.len() as u64, Ordering::Relaxed);
            frames.clear();
            return;
        }
        let first = way.batches.is_empty();
        way.frames += frames.len();
        way.bytes += frames.size();
        let room = way.spare.pop().unwrap_or_default();
        let batch = std::mem::replace(frames, room);
        frames.clear();
        way.batches.push_back(batch);
        drop(way);
        if first
            && !self.loops
            && let Some(wake) = self.peer.wake.get()
        {
            wake.kick();
        }
    }

    fn receive(&self, pair: u16, frames: &mut Frames, _limit: usize) {
        let Some(way) = self.own.ways.get(usize::from(pair)) else { return };
        let mut way = lock(way);
        // A batch is what one turn of the sender came to.
        let Some(batch) = way.batches.pop_front() else { return };
        way.frames -= batch.len();
        way.bytes -= batch.size();
        let mut room = std::mem::replace(frames, batch);
        room.clear();
        if way.spare.len() < SPARE {
            way.spare.push(room);
        }
        drop(way);
        let takes = *lock(&self.own.offloads);
        if takes != Offloads::TCP {
            let lost = adapt(frames, takes);
            self.own.dropped.fetch_add(lost, Ordering::Relaxed);
        }
    }

    fn set_offloads(&self, offloads: Offloads) {
        *lock(&self.own.offloads) = Offloads { ufo: false, ..offloads };
    }

    fn set_pairs(&self, pairs: u16) {
        self.own.pairs.store(pairs.min(self.own.ways.len() as u16), Ordering::Release);
        for way in self.own.ways.iter().skip(usize::from(pairs)) {
            *lock(way) = Way::default();
        }
    }

    fn set_wake(&self, wake: Arc<dyn Wake>) {
        let _ = self.own.wake.set(wake);
    }
}

/// Makes of frames what the receiver takes: whole checksums, single segments.
/// What cannot be made so is dropped, as is what exceeds the wire's room; how
/// many frames that were.
fn adapt(frames: &mut Frames, takes: Offloads) -> u64 {
    let mut number = 0;
    // Most frames stay as they are, where they are.
    while let Some(frame) = frames.get_mut(number) {
        if Kind::of(frame, takes) == Kind::Sum && !checksum::complete(frame) || Kind::of(frame, takes) > Kind::Sum {
            break;
        }
        number += 1;
    }
    if number == frames.len() {
        return 0;
    }
    let (mut good, mut lost) = (Frames::new(), 0);
    for number in 0..frames.len() {
        let Some(frame) = frames.get_mut(number) else { break };
        let room = good.len() < FRAMES && good.size() < BYTES;
        let kept = room
            && match Kind::of(frame, takes) {
                Kind::Plain => true,
                Kind::Sum => checksum::complete(frame),
                Kind::Segments(version) => {
                    lost += u64::from(segment(frame, version, &mut good, FRAMES, BYTES).is_none());
                    continue;
                }
                Kind::Bad => false,
            };
        if kept {
            good.push(frame);
        } else {
            lost += 1;
        }
    }
    *frames = good;
    lost
}

/// What is left to do of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Nothing.
    Plain,
    /// Its checksum.
    Sum,
    /// Segments and their checksums.
    Segments(Version),
    /// It is of a kind that nobody has negotiated.
    Bad,
}

impl Kind {
    fn of(frame: &[u8], takes: Offloads) -> Kind {
        let head = frame.get(..FRAME_HEADER).and_then(|head| Header::read_from_bytes(head).ok());
        let Some(Header { flags, gso_type, .. }) = head else { return Kind::Bad };
        let (version, taken) = match gso_type & !GSO_ECN {
            0 if flags & NEEDS_CSUM == 0 || takes.checksum => return Kind::Plain,
            0 => return Kind::Sum,
            1 => (Version::V4, takes.tso4),
            4 => (Version::V6, takes.tso6),
            _ => return Kind::Bad,
        };
        let taken = taken && takes.checksum && (gso_type & GSO_ECN == 0 || takes.ecn);
        if taken { Kind::Plain } else { Kind::Segments(version) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
