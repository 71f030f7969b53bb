// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests as a function has them (PRI, PCIe 10.4): which group indexes
//! are out, how many requests it may have outstanding, and what came back.
//!
//! A model whose access found no page [asks](PageRequests::ask) and goes on
//! with other things; when the answer has come the endpoint gets a turn, in
//! which the model [takes](PageRequests::take_answers) it. Nobody waits.
//!
//! What comes back must be the answer to what is out: index, PASID where the
//! function wants it, and the private data, which no two requests share. All
//! else is dropped and shows in the status register.
//!
//! A function that is shared has one such object for each of its users
//! ([`PageRequests::share`]). They have the function's indexes in common, for
//! the index space is the function's (FAULT-4.8), and nothing else: each has
//! its own queue, and takes answers to its own requests only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use iommu::{Access, PAGE_GROUPS, PageRequest, PageRequestQueue, PageResponder, PageResponse, PageResponseCode};

use crate::Wake;

/// Bits of the status register (FAULT-4.3).
pub mod status {
    /// The last answer was a failure: no more requests until PRI is enabled anew.
    pub const RESPONSE_FAILURE: u16 = 0x0001;
    /// An answer came to a group that is not out.
    pub const UNEXPECTED: u16 = 0x0002;
    /// Off, and nothing is out.
    pub const STOPPED: u16 = 0x0100;
    /// Answers must tell the PASID.
    pub const PASID_REQUIRED: u16 = 0x8000;
}

/// Names a request of this function for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageTicket(u64);

/// What became of the wish to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The request is out; its answer has this ticket.
    Sent(PageTicket),
    /// Nothing more may be out now: ask again when an answer has come.
    Full,
    /// Page requests are off.
    Off,
}

/// A function's page requests, shared by its model and the host.
#[derive(Default)]
pub struct PageRequests {
    state: Mutex<State>,
    /// Whether a model may ask; it looks at nothing else in between.
    on: AtomicBool,
    /// Whether there are answers to take.
    answered: AtomicBool,
    status: AtomicU16,
    wake: OnceLock<Arc<dyn Wake>>,
    /// The PASID of requests that name none.
    own_pasid: Option<u32>,
    function: Arc<Mutex<Function>>,
}

/// What the users of one function have in common. Locked last.
#[derive(Debug, Default)]
struct Function {
    /// Indexes that are out.
    taken: BTreeSet<u32>,
    last_ticket: u64,
}

#[derive(Debug, Default)]
struct State {
    enabled: bool,
    failed: bool,
    unexpected: bool,
    /// The response must have the PASID of the request.
    needs_pasid: bool,
    /// Requests that may be out: what the host has allocated.
    allocation: u32,
    /// By index.
    out: BTreeMap<u32, Out>,
    answers: VecDeque<(PageTicket, PageResponseCode)>,
    queue: Option<Arc<dyn PageRequestQueue>>,
}

/// A group of one request that is out.
#[derive(Clone, Copy, Debug)]
struct Out {
    ticket: PageTicket,
    pasid: Option<u32>,
}

impl Debug for PageRequests {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let State { enabled, failed, allocation, .. } = &*state;
        let mut all = f.debug_struct("PageRequests");
        all.field("enabled", enabled).field("failed", failed).field("allocation", allocation);
        all.field("out", &state.out.len()).finish_non_exhaustive()
    }
}

impl PageRequests {
    /// Off, of a function with PASIDs or without.
    #[must_use]
    pub fn new(needs_pasid: bool) -> Arc<PageRequests> {
        let this = PageRequests::default();
        let mut state = this.lock();
        state.needs_pasid = needs_pasid;
        this.show(&state);
        drop(state);
        Arc::new(this)
    }

    /// Those of another user of the function: off. Its requests that name no
    /// PASID have `pasid`.
    #[must_use]
    pub fn share(&self, pasid: u32) -> Arc<PageRequests> {
        let mut this = PageRequests { own_pasid: Some(pasid), ..PageRequests::default() };
        this.function = Arc::clone(&self.function);
        let mut state = this.lock();
        state.needs_pasid = true;
        this.show(&state);
        drop(state);
        Arc::new(this)
    }

    /// The PASID of requests that name none, if it is not that they have none.
    pub(crate) fn own_pasid(&self) -> Option<u32> {
        self.own_pasid
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_wake(&self, wake: Arc<dyn Wake>) {
        let _ = self.wake.set(wake);
    }

    /// Keeps what is seen without the lock.
    fn show(&self, state: &State) {
        let on = state.enabled && state.allocation > 0 && !state.failed && state.queue.is_some();
        self.on.store(on, Ordering::Release);
        self.answered.store(!state.answers.is_empty(), Ordering::Release);
        let bit = |is: bool, bit: u16| if is { bit } else { 0 };
        let bits = bit(state.failed, status::RESPONSE_FAILURE)
            | bit(state.unexpected, status::UNEXPECTED)
            | bit(!state.enabled && state.out.is_empty(), status::STOPPED)
            | bit(state.needs_pasid, status::PASID_REQUIRED);
        self.status.store(bits, Ordering::Release);
    }

    // What a model does.

    /// Whether asking makes sense.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Asks for the page at `iova`, in a group of its own.
    pub fn ask(&self, pasid: Option<u32>, access: Access, iova: u64) -> Asked {
        if !self.is_on() {
            return Asked::Off;
        }
        let mut state = self.lock();
        let Some(queue) = state.queue.clone().filter(|_| state.enabled && !state.failed) else { return Asked::Off };
        if state.out.len() as u64 >= u64::from(state.allocation) {
            return Asked::Full;
        }
        let Some((group, ticket)) = self.function().take() else { return Asked::Full };
        let pasid = pasid.or(self.own_pasid);
        state.out.insert(group, Out { ticket, pasid });
        let request = PageRequest {
            pasid,
            group,
            last: true,
            needs_pasid: pasid.is_some() && state.needs_pasid,
            perm: match access {
                Access::Read => PageRequest::READ,
                Access::Write => PageRequest::WRITE,
            },
            addr: iova & !0xfff,
            private_data: Some(ticket.0.into()),
        };
        // Under the lock: who disconnects the queue has what went before.
        if let Some(response) = queue.send(request) {
            self.accept(&mut state, response);
        }
        self.show(&state);
        Asked::Sent(ticket)
    }

    /// Says that nothing more is done with a PASID: a stop marker.
    pub fn stop(&self, pasid: u32) {
        self.send(PageRequest { pasid: Some(pasid), last: true, ..PageRequest::default() });
    }

    /// Sends a request as it is, which a function that keeps the rules would
    /// not. Its answer is an unexpected one.
    pub fn send(&self, request: PageRequest) {
        let mut state = self.lock();
        let Some(queue) = state.queue.clone().filter(|_| state.enabled && !state.failed) else { return };
        if let Some(response) = queue.send(request) {
            self.accept(&mut state, response);
            self.show(&state);
        }
    }

    /// Takes the answers that have come, in order.
    pub fn take_answers(&self) -> Vec<(PageTicket, PageResponseCode)> {
        if !self.answered.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut state = self.lock();
        let answers = state.answers.drain(..).collect();
        self.show(&state);
        answers
    }

    /// Groups that are out.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.lock().out.len()
    }

    // What the host does.

    /// The enable bit and the allocation of the capability. To be enabled anew
    /// ends a failure. Takes effect at once; what is out stays out.
    pub fn set_enabled(&self, on: bool, allocation: u32) {
        let mut state = self.lock();
        if on && !state.enabled {
            (state.failed, state.unexpected) = (false, false);
        }
        (state.enabled, state.allocation) = (on, allocation);
        self.show(&state);
    }

    /// The function was reset, or its page requests were: what is out is
    /// forgotten, and what comes for it will be dropped.
    pub fn reset(&self) {
        let mut state = self.lock();
        (state.enabled, state.failed, state.unexpected) = (false, false, false);
        self.function().taken.retain(|group| !state.out.contains_key(group));
        state.out.clear();
        state.answers.clear();
        if let Some(queue) = &state.queue {
            queue.reset();
        }
        self.show(&state);
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Acquire)
    }

    fn accept(&self, state: &mut State, response: PageResponse) {
        let answers = |out: &Out| {
            let same_pasid = !state.needs_pasid || out.pasid == response.pasid;
            same_pasid && response.private_data == Some(out.ticket.0.into())
        };
        match state.out.get(&response.group).copied().filter(answers) {
            Some(out) => {
                state.out.remove(&response.group);
                self.function().taken.remove(&response.group);
                state.answers.push_back((out.ticket, response.code));
            }
            None => {
                tracing::debug!(target: "vfuse::pri", ?response, "unexpected answer");
                state.unexpected = true;
            }
        }
        state.failed |= response.code == PageResponseCode::Failure;
    }
}

impl Function {
    /// The lowest free index, and a ticket that no request of the function has.
    fn take(&mut self) -> Option<(u32, PageTicket)> {
        let taken = (0..PAGE_GROUPS).zip(&self.taken).take_while(|(index, taken)| index == *taken).count();
        let group = u32::try_from(taken).ok().filter(|group| *group < PAGE_GROUPS)?;
        self.taken.insert(group);
        self.last_ticket += 1;
        Some((group, PageTicket(self.last_ticket)))
    }
}

impl PageResponder for PageRequests {
    fn respond(&self, response: PageResponse) {
        let mut state = self.lock();
        self.accept(&mut state, response);
        self.show(&state);
        drop(state);
        if let Some(wake) = self.wake.get() {
            wake.kick();
        }
    }

    fn connect(&self, queue: Option<Arc<dyn PageRequestQueue>>) {
        let mut state = self.lock();
        state.queue = queue;
        self.show(&state);
    }
}
