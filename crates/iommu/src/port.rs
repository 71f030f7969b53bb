// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fence: how sessions and those who take something away meet.
//!
//! A requester has a [`Port`] for each attachment, and a port a place
//! ([`Worker`]) for each session that is open at a time. An open session
//! holds its place's mutex; it never waits for it, but tries the next place,
//! and makes another where there is none. A fence takes the mutex of every
//! place once:
//!
//! - A session that had the place before is over when the fence has it.
//! - A session that gets it afterwards sees, by the mutex, all that was done
//!   before the fence: the mapping is gone.
//!
//! Since the fence has the place to itself, it also throws out what the place
//! remembers (translations, memories, the space). So nothing of it has to be
//! checked during a session, and memory that was unmapped is let go at once.

use std::sync::Arc;

use crate::sync::{AtomicU32, Mutex, MutexGuard, OnceLock, Ordering, lock, pass, try_lock, visit};
use crate::table::Entry;
use crate::{AddressSpace, FaultReason, Memory, Prot};

/// One attachment of a requester: that of its RID, or of a PASID.
#[derive(Debug, Default)]
pub(crate) struct Port {
    /// Held while the attachment is being changed, waiting included.
    turn: Mutex<()>,
    /// What new places start with. Held for moments only. Whoever adds a place
    /// holds it, and whoever fences has held it: so either the fence sees the
    /// place, or the place's sessions see what was done before the fence.
    space: Mutex<Option<Arc<AddressSpace>>>,
    first: Worker,
}

/// A place for a session. Apart from others' cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Worker {
    state: Mutex<State>,
    /// Number of fences that wait for the place: it is left to them, so that
    /// each waits for no more than one session.
    wanted: AtomicU32,
    next: OnceLock<Box<Worker>>,
}

/// Translations that a place remembers.
const HITS: usize = 16;

/// What a session has.
#[derive(Debug)]
pub(crate) struct State {
    space: Option<Arc<AddressSpace>>,
    /// Whether there may be something in `hits`.
    warm: bool,
    /// Where the last one used stands among the hits.
    latest: usize,
    hits: [Hit; HITS],
    /// By number; filled as they are used.
    memories: Vec<Option<Arc<dyn Memory>>>,
}

/// A translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    first: u64,
    pub(crate) last: u64,
    /// Offset in the memory less IOVA.
    distance: u64,
    pub(crate) memory: u32,
    pub(crate) prot: Prot,
}

/// Covers nothing.
const MISS: Hit = Hit { first: 1, last: 0, distance: 0, memory: 0, prot: Prot::empty() };

impl Default for State {
    fn default() -> State {
        State { space: None, warm: false, latest: 0, hits: [MISS; HITS], memories: Vec::new() }
    }
}

impl Port {
    /// Starts a session. Never waits for anybody.
    #[inline]
    pub(crate) fn open(&self) -> MutexGuard<'_, State> {
        let mut worker = &self.first;
        loop {
            if worker.wanted.load(Ordering::Relaxed) == 0
                && let Some(state) = try_lock(&worker.state)
            {
                return state;
            }
            worker = match worker.next.get() {
                Some(next) => next,
                None => self.grow(worker),
            };
        }
    }

    #[cold]
    fn grow<'a>(&self, worker: &'a Worker) -> &'a Worker {
        let space = lock(&self.space);
        worker.next.get_or_init(|| {
            let state = State { space: space.clone(), ..State::default() };
            Box::new(Worker { state: Mutex::new(state), ..Worker::default() })
        })
    }

    /// Attaches to `space` or to nothing. On return no session uses the old one.
    pub(crate) fn attach(self: &Arc<Port>, space: Option<Arc<AddressSpace>>) {
        let _turn = lock(&self.turn);
        if lock(&self.space).as_ref().map(Arc::as_ptr) == space.as_ref().map(Arc::as_ptr) {
            return;
        }
        if let Some(space) = &space {
            space.add_port(self);
        }
        let old = std::mem::replace(&mut *lock(&self.space), space.clone());
        self.each(&mut |state| {
            state.flush();
            state.memories = Vec::new();
            state.space.clone_from(&space);
        });
        if let Some(old) = old {
            old.remove_port(self);
        }
    }

    /// Waits for the sessions open now; makes later ones forget all
    /// translations and the memories numbered in `dead`.
    pub(crate) fn fence(&self, dead: &[u32]) {
        pass(&self.space);
        self.each(&mut |state| {
            state.flush();
            for number in dead {
                if let Some(memory) = state.memories.get_mut(*number as usize) {
                    *memory = None;
                }
            }
        });
    }

    fn each(&self, change: &mut dyn FnMut(&mut State)) {
        let mut worker = Some(&self.first);
        while let Some(Worker { state, wanted, next }) = worker {
            visit(state, wanted, &mut *change);
            worker = next.get().map(|next| &**next);
        }
    }
}

impl Hit {
    #[inline]
    fn covers(&self, iova: u64) -> bool {
        self.first <= iova && iova <= self.last
    }

    /// Offset in the memory of the byte at `iova`.
    #[inline]
    pub(crate) fn offset(&self, iova: u64) -> u64 {
        iova.wrapping_add(self.distance)
    }
}

impl State {
    /// The remembered translation that covers `iova`.
    #[inline]
    pub(crate) fn hit(&mut self, iova: u64) -> Option<Hit> {
        let latest = self.hits[self.latest % HITS];
        if latest.covers(iova) {
            return Some(latest);
        }
        self.latest = place(iova);
        let hit = self.hits[place(iova)];
        hit.covers(iova).then_some(hit)
    }

    /// Translates `iova` and remembers the result.
    #[inline]
    pub(crate) fn look_up(&mut self, iova: u64) -> Result<Hit, FaultReason> {
        let space = self.space.as_ref().ok_or(FaultReason::Blocked)?;
        let Entry { first, last, offset, memory, prot, .. } = space.translate(iova).ok_or(FaultReason::NotMapped)?;
        if self.memory(memory).is_none() {
            self.learn(memory);
        }
        let hit = Hit { first, last, distance: offset.wrapping_sub(first), memory, prot };
        self.hits[place(iova)] = hit;
        self.warm = true;
        Ok(hit)
    }

    /// The memory of a remembered translation.
    #[inline]
    pub(crate) fn memory(&self, number: u32) -> Option<&dyn Memory> {
        self.memories.get(number as usize)?.as_deref()
    }

    #[cold]
    fn learn(&mut self, number: u32) {
        let memory = self.space.as_ref().and_then(|space| space.memory(number));
        let number = number as usize;
        if self.memories.len() <= number {
            self.memories.resize(number + 1, None);
        }
        self.memories[number] = memory;
    }

    fn flush(&mut self) {
        if self.warm {
            self.hits = [MISS; HITS];
            self.warm = false;
        }
    }
}

#[inline]
fn place(iova: u64) -> usize {
    (iova >> 12) as usize % HITS
}
