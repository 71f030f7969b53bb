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
//! remembers (translations, memories, the domain). So nothing of it has to be
//! checked during a session, and memory that was unmapped is let go at once.

use std::sync::Arc;

use crate::marks::Marks;
use crate::reach::{DIRECT, Direct, Reach, between, direct_at};
use crate::sync::{AtomicU32, Mutex, MutexGuard, OnceLock, Ordering, lock, pass, try_lock, visit};
use crate::{Access, DirtyLog, Domain, FaultReason, Memory, Prot};

/// One attachment of a requester: that of its RID, or of a PASID.
#[derive(Debug, Default)]
pub(crate) struct Port {
    /// Held while the attachment is being changed, waiting included.
    turn: Mutex<()>,
    /// What new places start with. Held for moments only. Whoever adds a place
    /// holds it, and whoever fences has held it: so either the fence sees the
    /// place, or the place's sessions see what was done before the fence.
    domain: Mutex<Option<Domain>>,
    /// Likewise the log of what the device itself notes.
    own: Mutex<Option<Arc<DirtyLog>>>,
    /// Likewise the devices that are reached without the IOMMU.
    direct: Mutex<Option<Arc<[Direct]>>>,
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
    domain: Option<Domain>,
    /// Whether there may be something in `hits`.
    warm: bool,
    /// Where the last one used stands among the hits.
    latest: usize,
    hits: [Hit; HITS],
    reach: Reach,
    /// Where the domain has a log that is on.
    marks: Option<Box<Marks>>,
    /// The log of the device itself, and its marks while it is on.
    own: Option<Arc<DirtyLog>>,
    own_marks: Option<Box<Marks>>,
    /// Devices that are reached without the IOMMU.
    direct: Option<Arc<[Direct]>>,
}

/// A translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Offset in the memory less IOVA.
    distance: u64,
    /// Address in the space less IOVA: 0 unless there is a stage 1.
    nested: u64,
    pub(crate) memory: u32,
    pub(crate) prot: Prot,
}

/// Covers nothing.
const MISS: Hit = Hit { first: 1, last: 0, distance: 0, nested: 0, memory: 0, prot: Prot::empty() };

impl Default for State {
    fn default() -> State {
        let reach = Reach::default();
        State {
            domain: None,
            warm: false,
            latest: 0,
            hits: [MISS; HITS],
            reach,
            marks: None,
            own: None,
            own_marks: None,
            direct: None,
        }
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
        let domain = lock(&self.domain);
        worker.next.get_or_init(|| {
            let mut state = State::default();
            state.enter(domain.as_ref());
            state.set_own(lock(&self.own).as_ref());
            state.direct.clone_from(&lock(&self.direct));
            Box::new(Worker { state: Mutex::new(state), ..Worker::default() })
        })
    }

    /// Attaches to `domain` or to nothing. On return no session uses the old one.
    pub(crate) fn attach(self: &Arc<Port>, domain: Option<Domain>) {
        let _turn = lock(&self.turn);
        let old = lock(&self.domain).clone();
        if is(old.as_ref(), domain.as_ref()) {
            return;
        }
        if let Some(domain) = &domain {
            domain.add_port(self);
        }
        lock(&self.domain).clone_from(&domain);
        let change = |hand_over: &mut dyn FnMut(&mut Marks)| {
            self.each(&mut |state| {
                // A place added since began with the new domain, and may have
                // been used.
                if is(state.domain.as_ref(), domain.as_ref()) {
                    return;
                }
                if let Some(mut marks) = state.marks.take() {
                    hand_over(&mut marks);
                }
                state.enter(domain.as_ref());
            });
        };
        match old.as_ref().and_then(|old| old.log.as_ref()) {
            Some(log) => log.leave(change),
            None => change(&mut |_| ()),
        }
        if let Some(old) = old {
            old.remove_port(self);
        }
    }

    /// From now on sessions note what they write in `log`, too, which is asked
    /// for it by the address that the device gave. On return no session uses
    /// another one.
    pub(crate) fn set_own_log(self: &Arc<Port>, log: Option<&Arc<DirtyLog>>) {
        let _turn = lock(&self.turn);
        if lock(&self.own).as_ref().map(Arc::as_ptr) == log.map(Arc::as_ptr) {
            return;
        }
        if let Some(log) = log {
            log.add_port(self);
        }
        let old = std::mem::replace(&mut *lock(&self.own), log.cloned());
        self.visit(&mut |state| state.set_own(log));
        if let Some(old) = old {
            old.remove_port(self);
        }
    }

    /// From now on sessions reach these devices without the IOMMU. On return no
    /// session goes by what was before.
    pub(crate) fn set_direct(&self, direct: Option<&Arc<[Direct]>>) {
        let _turn = lock(&self.turn);
        *lock(&self.direct) = direct.cloned();
        self.visit(&mut |state| {
            state.flush();
            state.direct = direct.cloned();
        });
    }

    /// Waits for the sessions open now; makes later ones forget all
    /// translations and the memories numbered in `dead`.
    pub(crate) fn fence(&self, dead: &[u32]) {
        self.visit(&mut |state| {
            state.flush();
            for number in dead {
                state.reach.forget(*number);
            }
        });
    }

    /// Waits for the sessions open now; makes later ones forget what they know
    /// of the addresses.
    pub(crate) fn invalidate(&self, first: u64, last: u64) {
        self.visit(&mut |state| {
            for hit in &mut state.hits {
                if hit.first <= last && first <= hit.last {
                    *hit = MISS;
                }
            }
        });
    }

    /// Waits for the sessions open now, and has each place to itself.
    pub(crate) fn visit(&self, change: &mut dyn FnMut(&mut State)) {
        pass(&self.domain);
        self.each(change);
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

    /// Address in the space of the byte at `iova`.
    #[inline]
    fn address(&self, iova: u64) -> u64 {
        iova.wrapping_add(self.nested)
    }
}

impl State {
    /// Finds the remembered translation that covers `iova`. Whether there is
    /// one; it is [`current`](Self::current) then.
    #[inline]
    pub(crate) fn recall(&mut self, iova: u64) -> bool {
        if self.current().covers(iova) {
            return true;
        }
        self.latest = place(iova);
        self.current().covers(iova)
    }

    /// The translation found last.
    #[inline]
    pub(crate) fn current(&self) -> &Hit {
        &self.hits[self.latest % HITS]
    }

    /// A remembered translation that covers `iova` and gives rights.
    #[inline]
    pub(crate) fn remembered(&self, iova: u64, need: Prot) -> Option<&Hit> {
        let hits = [self.latest % HITS, place(iova)].map(|at| &self.hits[at]);
        hits.into_iter().find(|hit| hit.covers(iova) && hit.prot.contains(need))
    }

    /// Translates `iova` and remembers the result, which is [`current`](Self::current) then.
    pub(crate) fn look_up(&mut self, iova: u64, access: Access) -> Result<(), FaultReason> {
        if let Some((memory, window)) = self.direct.as_deref().and_then(|direct| direct_at(direct, iova)) {
            let Direct { first, last, .. } = *window;
            let hit =
                Hit { first, last, distance: first.wrapping_neg(), nested: 0, memory, prot: Prot::READ | Prot::WRITE };
            self.keep(iova, hit);
            return Ok(());
        }
        let domain = self.domain.as_ref().ok_or(FaultReason::Blocked)?;
        let mut hit = match &domain.stage1 {
            None => {
                let entry = self.reach.find(&domain.space, iova)?;
                Hit {
                    first: entry.first,
                    last: entry.last,
                    distance: entry.offset.wrapping_sub(entry.first),
                    nested: 0,
                    memory: entry.memory,
                    prot: entry.prot,
                }
            }
            Some(stage1) => {
                let mut tables = self.reach.tables(&domain.space, self.marks.as_deref_mut());
                let page = stage1.walk(iova, access, &mut tables)?;
                let nested = page.output.wrapping_sub(page.first);
                let entry = self.reach.find(&domain.space, iova.wrapping_add(nested))?;
                Hit {
                    // As much as both tables hold for. A page does not wrap.
                    first: page.first.max(entry.first.max(page.output).wrapping_sub(nested)),
                    last: page
                        .last
                        .min(entry.last.min(page.output.saturating_add(page.last - page.first)).wrapping_sub(nested)),
                    distance: entry.offset.wrapping_sub(entry.first).wrapping_add(nested),
                    nested,
                    memory: entry.memory,
                    prot: entry.prot & page.prot,
                }
            }
        };
        if let Some(direct) = &self.direct {
            (hit.first, hit.last) = between(direct, iova, (hit.first, hit.last));
        }
        self.keep(iova, hit);
        Ok(())
    }

    fn keep(&mut self, iova: u64, hit: Hit) {
        self.latest = place(iova);
        self.hits[place(iova)] = hit;
        self.warm = true;
    }

    /// Whether the rights of a remembered translation may have grown.
    #[inline]
    pub(crate) fn may_allow(&self) -> bool {
        self.domain.as_ref().is_some_and(|domain| domain.stage1.is_some())
    }

    /// Whether writes are noted.
    #[inline]
    pub(crate) fn takes_notes(&self) -> bool {
        self.marks.is_some() || self.own_marks.is_some()
    }

    /// Notes that `len` bytes at `iova`, at least one and all in `hit`, are
    /// written by this session.
    #[inline]
    pub(crate) fn mark(&mut self, hit: &Hit, iova: u64, len: usize) {
        if hit.memory >= DIRECT {
            return; // No page is written.
        }
        if let Some(marks) = &mut self.marks {
            let address = hit.address(iova);
            marks.mark(address, address + (len as u64 - 1));
        }
        if let Some(marks) = &mut self.own_marks {
            marks.mark(iova, iova + (len as u64 - 1));
        }
    }

    /// Notes that `iova`, in `hit`, is written by this session; up to where that
    /// holds.
    #[inline]
    pub(crate) fn mark_granule(&mut self, hit: &Hit, iova: u64) -> u64 {
        let mut last = hit.last;
        if hit.memory >= DIRECT {
            return last;
        }
        if let Some(marks) = &mut self.marks {
            let address = hit.address(iova);
            marks.mark(address, address);
            last = last.min(iova.saturating_add(!address & marks.within()));
        }
        if let Some(marks) = &mut self.own_marks {
            marks.mark(iova, iova);
            last = last.min(iova.saturating_add(!iova & marks.within()));
        }
        last
    }

    /// The memory of a remembered translation.
    #[inline]
    pub(crate) fn memory(&self, number: u32) -> Option<&dyn Memory> {
        self.reach.memory(number).or_else(|| self.direct_memory(number))
    }

    #[cold]
    fn direct_memory(&self, number: u32) -> Option<&dyn Memory> {
        let direct = self.direct.as_ref()?.get(number.checked_sub(DIRECT)? as usize)?;
        Some(&*direct.memory)
    }

    /// Where the marks of `log` are, if it is one of the state's.
    pub(crate) fn marks_of(&mut self, log: &DirtyLog) -> Option<&mut Option<Box<Marks>>> {
        let is = |used: Option<&DirtyLog>| used.is_some_and(|used| std::ptr::eq(used, log));
        if is(self.own.as_deref()) {
            Some(&mut self.own_marks)
        } else if is(self.domain.as_ref().and_then(|domain| domain.log.as_deref())) {
            Some(&mut self.marks)
        } else {
            None
        }
    }

    fn set_own(&mut self, log: Option<&Arc<DirtyLog>>) {
        self.own_marks = log.filter(|log| log.is_enabled()).map(|log| log.marks());
        self.own = log.cloned();
    }

    /// Starts anew in another domain.
    fn enter(&mut self, domain: Option<&Domain>) {
        self.flush();
        self.reach = Reach::default();
        self.marks = domain.and_then(Domain::enabled_log).map(|log| log.marks());
        self.domain = domain.cloned();
    }

    fn flush(&mut self) {
        if self.warm {
            self.hits = [MISS; HITS];
            self.warm = false;
        }
    }
}

fn is(one: Option<&Domain>, other: Option<&Domain>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

#[inline]
fn place(iova: u64) -> usize {
    (iova >> 12) as usize % HITS
}
