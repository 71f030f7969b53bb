// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A wire between two devices of a lab.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use device::{FRAME_HEADER, Frames, NetPort, Offloads, Wake};

use super::checksum;
use crate::virtio::spec::net::Header;
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
/// ones; segments to be made go to those alone that take them.
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
            adapt(frames, takes);
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

/// Makes checksums whole, and drops what the receiver does not take.
fn adapt(frames: &mut Frames, takes: Offloads) {
    let mut bad = false;
    for number in 0..frames.len() {
        let Some(frame) = frames.get_mut(number) else { return };
        let kind = frame.get(..FRAME_HEADER).and_then(|head| Header::read_from_bytes(head).ok());
        let Some(Header { flags, gso_type, .. }) = kind else { continue };
        if flags == 0 && gso_type == 0 {
            continue;
        }
        let segments = match gso_type & !GSO_ECN {
            0 => true,
            1 => takes.tso4,
            4 => takes.tso6,
            _ => false,
        } && (gso_type & GSO_ECN == 0 || takes.ecn);
        if !segments || !takes.checksum && !checksum::complete(frame) {
            frame.fill(0);
            bad = true;
        }
    }
    if bad {
        let mut good = Frames::new();
        let whole = |frame: &&[u8]| frame.iter().any(|byte| *byte != 0);
        frames.iter().filter(whole).for_each(|frame| good.push(frame));
        *frames = good;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
