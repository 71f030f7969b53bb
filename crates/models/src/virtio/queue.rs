// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring that runs, and when its device looks at it.
//!
//! A device that has something to do looks by itself and wants no kicks, which
//! spares the driver a system call each time. When there was nothing for
//! [`LOOK`], it asks for a kick and sleeps.

use device::Nanos;
use device::virtio::{QueueSetup, QueueState, VirtioIo, feature};
use iommu::{Requester, Session};

use super::ring::{Base, Batch, Ring, RingError, Setup};

/// How long a device looks at a ring without being kicked.
const LOOK: Nanos = 50_000;
/// How long it leaves a ring alone that is not mapped.
const UNMAPPED: Nanos = 1_000_000;

/// What serving a queue came to: whether there was something, or when to look
/// again.
pub(super) type Served = Result<bool, Option<Nanos>>;

#[derive(Debug)]
pub(super) struct Queue {
    ring: Ring,
    packed: bool,
    /// Since when there was nothing.
    quiet: Nanos,
    /// Whether a kick was asked for.
    listens: bool,
    /// Whether none is wanted, and the driver knows.
    hushed: bool,
    /// Buffers taken since the device was made.
    pub(super) taken: u64,
}

/// What a look at a ring found.
pub(super) enum Look {
    /// Buffers, in the batch.
    Some,
    /// None.
    None,
    /// The ring is not mapped just now.
    Unmapped,
    /// The driver has broken it.
    Broken,
}

impl Queue {
    /// A queue that starts; `None` if the driver has set what cannot be.
    pub(super) fn new(setup: &QueueSetup, features: u64, now: Nanos) -> Option<Queue> {
        let base = match setup.state {
            QueueState::Split { avail } => Base { index: avail, wrap: false },
            // Nothing is in flight when a queue starts: the used half says the
            // same, or nothing (VNET-3.2).
            QueueState::Packed { avail, avail_wrap, .. } => Base { index: avail, wrap: avail_wrap },
        };
        let QueueSetup { size, descriptors: desc, driver, device, .. } = *setup;
        let ring = Ring::new(&Setup { size, desc, driver, device, features, base });
        let packed = features & feature::RING_PACKED != 0;
        match ring {
            Ok(ring) => Some(Queue { ring, packed, quiet: now, listens: false, hushed: false, taken: 0 }),
            Err(error) => {
                tracing::warn!(target: "vfuse::virtio", %error, "a queue does not start");
                None
            }
        }
    }

    pub(super) fn state(&self) -> QueueState {
        let Base { index, wrap } = self.ring.base();
        match self.packed {
            false => QueueState::Split { avail: index },
            true => QueueState::Packed { avail: index, avail_wrap: wrap, used: index, used_wrap: wrap },
        }
    }

    /// Stops. Whoever has the ring next is kicked.
    pub(super) fn stop(mut self, dma: &Requester) -> QueueState {
        // A ring that is not mapped any more needs no word.
        let _ = self.ring.listen(&mut dma.session());
        self.state()
    }

    #[inline]
    pub(super) fn look(&mut self, session: &mut Session<'_>, batch: &mut Batch, limit: usize) -> Look {
        match self.ring.fetch(session, batch, limit) {
            Ok(()) if batch.chains().is_empty() => Look::None,
            Ok(()) => Look::Some,
            Err(RingError::Dma(fault)) => {
                tracing::debug!(target: "vfuse::virtio", %fault, "a ring is not mapped");
                Look::Unmapped
            }
            Err(error) => {
                tracing::warn!(target: "vfuse::virtio", %error, "a ring is broken");
                Look::Broken
            }
        }
    }

    /// What a look came to that found no buffers. The session is over.
    pub(super) fn none(&mut self, look: &Look, dma: &Requester, io: &mut VirtioIo<'_>) -> Served {
        match look {
            Look::Some => Ok(true),
            Look::None => Err(self.was_idle(dma, io.now)),
            Look::Unmapped => Err(Some(io.now.saturating_add(UNMAPPED))),
            Look::Broken => {
                io.fail("a ring is broken");
                Err(None)
            }
        }
    }

    /// Returns buffers and tells the driver. They stay with it if the ring is
    /// not mapped any more.
    #[inline]
    pub(super) fn complete(
        &mut self,
        session: &mut Session<'_>,
        batch: &Batch,
        written: &[u32],
        io: &VirtioIo<'_>,
        index: u16,
    ) -> Served {
        self.was_busy(session, io.now);
        match self.ring.complete(session, batch, written) {
            Ok(told) => {
                self.taken += written.len() as u64;
                if told {
                    io.interrupts.queue(index);
                }
                Ok(true)
            }
            Err(fault) => {
                tracing::debug!(target: "vfuse::virtio", %fault, "a ring has gone");
                Err(Some(io.now.saturating_add(UNMAPPED)))
            }
        }
    }

    /// There was something at `now`.
    #[inline]
    fn was_busy(&mut self, session: &mut Session<'_>, now: Nanos) {
        self.quiet = now;
        if !self.hushed {
            self.hush(session);
        }
    }

    /// The device has no use for buffers, whatever there are.
    #[inline]
    pub(super) fn is_unused(&mut self, dma: &Requester) {
        if !self.hushed {
            self.hush(&mut dma.session());
        }
    }

    fn hush(&mut self, session: &mut Session<'_>) {
        self.listens = false;
        // Where this fails the device is kicked for nothing.
        self.hushed = self.ring.hush(session).is_ok();
    }

    /// There was nothing at `now`. `None`: the device may sleep. Otherwise the
    /// time until which it looks again.
    pub(super) fn was_idle(&mut self, dma: &Requester, now: Nanos) -> Option<Nanos> {
        if self.listens {
            return None;
        }
        if now.saturating_sub(self.quiet) < LOOK {
            return Some(self.quiet.saturating_add(LOOK));
        }
        match self.ring.listen(&mut dma.session()) {
            // Something has come just now.
            Ok(true) => {
                self.quiet = now;
                Some(now)
            }
            Ok(false) => {
                self.listens = true;
                self.hushed = false;
                None
            }
            Err(_) => Some(now.saturating_add(UNMAPPED)),
        }
    }
}

/// The queues of a device.
#[derive(Debug)]
pub(super) struct Queues {
    running: Vec<Option<Queue>>,
    taken: Vec<u64>,
    features: u64,
}

impl Queues {
    pub(super) fn new(count: usize) -> Queues {
        Queues { running: (0..count).map(|_| None).collect(), taken: vec![0; count], features: 0 }
    }

    pub(super) fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    /// Features in force.
    #[inline]
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    #[inline]
    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub(super) fn start(&mut self, io: &mut VirtioIo<'_>, index: u16, setup: &QueueSetup) {
        let queue = Queue::new(setup, self.features, io.now);
        if queue.is_none() {
            io.fail("a queue cannot be as it was set up");
        }
        if let Some(place) = self.running.get_mut(usize::from(index)) {
            *place = queue;
        }
    }

    pub(super) fn stop(&mut self, dma: Option<&Requester>, index: u16) -> QueueState {
        let packed = self.has(feature::RING_PACKED);
        let Some(queue) = self.running.get_mut(usize::from(index)).and_then(Option::take) else {
            return QueueState::initial(packed);
        };
        if let Some(taken) = self.taken.get_mut(usize::from(index)) {
            *taken += queue.taken;
        }
        match dma {
            Some(dma) => queue.stop(dma),
            None => queue.state(),
        }
    }

    pub(super) fn state(&self, index: u16) -> QueueState {
        let packed = self.has(feature::RING_PACKED);
        self.running.get(usize::from(index)).and_then(Option::as_ref).map_or(QueueState::initial(packed), Queue::state)
    }

    pub(super) fn any_running(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Queue> {
        self.running.get_mut(index)?.as_mut()
    }

    /// As mlx5 counts (VDPA-10.6): what was taken, and what was returned, which
    /// is the same here.
    pub(super) fn statistics(&self, index: u16) -> Option<Vec<(&'static str, u64)>> {
        let before = *self.taken.get(usize::from(index))?;
        let now = self.running.get(usize::from(index)).and_then(Option::as_ref).map_or(0, |queue| queue.taken);
        Some(vec![("received_desc", before + now), ("completed_desc", before + now)])
    }
}

/// The sooner of two times to look again.
pub(super) fn sooner(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
