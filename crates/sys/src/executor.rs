// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Worker threads that give devices their turns.
//!
//! A program that stores to a mapped doorbell tells nobody, so a device finds
//! out by looking. Workers look at the devices that a program has open, and
//! only at those: all the time for some tens of microseconds after something
//! happened (giving way to other programs of the core after the first few),
//! then after sleeps that grow with the silence: a quarter of it up to
//! [`LONG_SLEEP`], later a hundredth up to [`LONGEST_SLEEP`]. Thus a command
//! after a long silence comes to wait a hundredth of it, 20 ms at most, and a
//! lab that does nothing costs well below 1% of a core. A trapped access ends
//! the pause ([`Wake::kick`]).
//!
//! What a look costs is the wake-up: 20 to 70 µs are booked on a worker for it,
//! 98% of that in the kernel (leaving idle, soft interrupts, RCU; `perf record`
//! of an idle lab), and less than 1 µs for the device. So only fewer looks
//! help. Nothing can be woken by a store to a page of a memfd that another
//! program has mapped: userfaultfd and mprotect act on the program's own
//! mapping, which is not ours to change.
//!
//! A device is given to the worker that has the fewest when a program opens
//! it, and stays there until it is closed: one device never has two turns at
//! once, and a busy device gets one turn for each turn of its neighbours.
#![allow(unsafe_code)] // the timer slack of a thread

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use device::{Nanos, Steppable, Turn, Wake};

use crate::clock::Clock;

/// How long a worker looks without sleeping after something happened.
pub const SPIN: Nanos = 60_000;
/// How long of that it keeps its core. A driver that sends burst after burst is
/// quiet for less, and each `sched_yield` is a system call that gives the core
/// away where somebody else has work: 4% of a device's time with packets, 9% with
/// a disk. In rates, 0 to 40 µs differed by no more than a busy machine's noise.
const EAGER: Nanos = 5_000;
/// First sleep is at least this long.
const SHORTEST_SLEEP: Nanos = 15_000;
/// A worker whose devices have done nothing for a while looks this often.
pub const LONG_SLEEP: Nanos = 2_000_000;
/// And this often if they have done nothing for [`LONG_QUIET`].
pub const LONGEST_SLEEP: Nanos = 20_000_000;
/// See [`LONGEST_SLEEP`].
pub const LONG_QUIET: Nanos = 100 * LONGEST_SLEEP;
/// A kick wakes a worker that sleeps longer than this; a system call costs
/// more than the rest of a shorter sleep is worth.
const WORTH_WAKING: Nanos = 100_000;

/// Gives endpoints their turns.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    workers: Vec<Arc<Worker>>,
    members: Mutex<Vec<Arc<Member>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Worker {
    number: usize,
    /// Its open devices.
    list: Mutex<Vec<Arc<Member>>>,
    /// Length of `list`, for choosing a worker.
    load: AtomicUsize,
    /// Counts changes of `list`.
    changes: AtomicU64,
    kicked: AtomicBool,
    stop: AtomicBool,
    /// Length of the sleep it is in, in ns; 0 while it is awake.
    asleep: AtomicU64,
    thread: OnceLock<Thread>,
}

/// An endpoint's place in the executor.
#[derive(Debug)]
struct Member {
    endpoint: Arc<dyn Steppable>,
    shared: Weak<Shared>,
    /// The worker that serves it; none while no program has it open.
    place: Mutex<Option<Arc<Worker>>>,
}

/// What an endpoint holds; weak, so that the two do not keep each other.
#[derive(Debug)]
struct Handle {
    shared: Weak<Shared>,
    endpoint: Weak<dyn Steppable>,
    /// An endpoint takes one handle in its life, but may come back as another member.
    member: Mutex<Weak<Member>>,
}

impl Handle {
    fn member(&self) -> Option<Arc<Member>> {
        let mut member = lock(&self.member);
        if let Some(member) = member.upgrade() {
            return Some(member);
        }
        let found = self.shared.upgrade()?.member(&self.endpoint.upgrade()?)?;
        *member = Arc::downgrade(&found);
        Some(found)
    }
}

impl Wake for Handle {
    fn set_active(&self, on: bool) {
        if let Some(member) = self.member() {
            member.set_active(on);
        }
    }

    fn kick(&self) {
        if let Some(member) = self.member() {
            member.kick();
        }
    }
}

/// Whether two are the same thing (a vtable may have several addresses).
fn same(one: &Arc<dyn Steppable>, other: &Arc<dyn Steppable>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Executor {
    /// An executor of at most `workers` threads (at least 1, and not more than
    /// the machine has cores). A thread starts when it has its first device.
    #[must_use]
    pub fn new(workers: usize, clock: Clock) -> Executor {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers =
            (0..workers.clamp(1, cores)).map(|number| Arc::new(Worker { number, ..Worker::default() })).collect();
        let shared = Shared { clock, workers, members: Mutex::default(), threads: Mutex::default() };
        Executor { shared: Arc::new(shared) }
    }

    /// Takes an endpoint in, and becomes the one that it tells of work. It gets
    /// turns while it is active.
    pub fn add(&self, endpoint: Arc<dyn Steppable>) {
        let member = Arc::new(Member {
            endpoint: Arc::clone(&endpoint),
            shared: Arc::downgrade(&self.shared),
            place: Mutex::default(),
        });
        endpoint.set_wake(Arc::new(Handle {
            shared: Arc::downgrade(&self.shared),
            endpoint: Arc::downgrade(&endpoint),
            member: Mutex::new(Arc::downgrade(&member)),
        }));
        lock(&self.shared.members).push(member);
    }

    /// Lets an endpoint go. A turn that has begun may still end after this.
    pub fn remove(&self, endpoint: &Arc<dyn Steppable>) {
        let mut gone = Vec::new();
        lock(&self.shared.members).retain(|member| {
            let stays = !same(&member.endpoint, endpoint);
            if !stays {
                gone.push(Arc::clone(member));
            }
            stays
        });
        gone.iter().for_each(|member| member.set_active(false));
    }

    /// Takes in those of `endpoints` that are new and lets go of all others.
    pub fn keep(&self, endpoints: impl IntoIterator<Item = Arc<dyn Steppable>>) {
        let mut new: Vec<Arc<dyn Steppable>> = endpoints.into_iter().collect();
        let mut gone = Vec::new();
        for member in lock(&self.shared.members).iter() {
            match new.iter().position(|endpoint| same(endpoint, &member.endpoint)) {
                Some(at) => drop(new.swap_remove(at)),
                None => gone.push(Arc::clone(&member.endpoint)),
            }
        }
        gone.iter().for_each(|endpoint| self.remove(endpoint));
        new.into_iter().for_each(|endpoint| self.add(endpoint));
    }

    /// Whether a program has the endpoint open; endpoints say so themselves.
    pub fn set_active(&self, endpoint: &Arc<dyn Steppable>, on: bool) {
        if let Some(member) = self.shared.member(endpoint) {
            member.set_active(on);
        }
    }

    /// Something happened to the endpoint: look at it soon.
    pub fn kick(&self, endpoint: &Arc<dyn Steppable>) {
        if let Some(member) = self.shared.member(endpoint) {
            member.kick();
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        for worker in &self.shared.workers {
            worker.stop.store(true, Ordering::SeqCst);
            worker.wake();
        }
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        for thread in threads {
            // A worker catches what its devices do; nothing to learn here.
            let _ = thread.join();
        }
        lock(&self.shared.members).clear();
    }
}

impl Member {
    fn set_active(self: &Arc<Self>, on: bool) {
        let mut place = lock(&self.place);
        match (&*place, on) {
            (None, true) => {
                let Some(shared) = self.shared.upgrade() else { return };
                let Some(worker) = shared.workers.iter().min_by_key(|w| w.load.load(Ordering::Relaxed)) else { return };
                shared.start(worker);
                worker.change(|list| list.push(Arc::clone(self)));
                *place = Some(Arc::clone(worker));
            }
            (Some(worker), false) => {
                worker.change(|list| list.retain(|member| !Arc::ptr_eq(member, self)));
                *place = None;
            }
            _ => {}
        }
    }

    fn kick(&self) {
        if let Some(worker) = &*lock(&self.place) {
            worker.kick();
        }
    }
}

impl Shared {
    fn member(&self, endpoint: &Arc<dyn Steppable>) -> Option<Arc<Member>> {
        lock(&self.members).iter().find(|member| same(&member.endpoint, endpoint)).cloned()
    }

    fn start(self: &Arc<Self>, worker: &Arc<Worker>) {
        let mut threads = lock(&self.threads);
        if worker.thread.get().is_some() {
            return;
        }
        let (clock, own) = (self.clock, Arc::clone(worker));
        let builder = std::thread::Builder::new().name(format!("vfuse-device-{}", worker.number));
        match builder.spawn(move || own.run(clock)) {
            Ok(thread) => {
                let _ = worker.thread.set(thread.thread().clone());
                threads.push(thread);
            }
            Err(error) => tracing::error!(%error, "no thread for devices"),
        }
    }
}

impl Worker {
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Member>>)) {
        let mut list = lock(&self.list);
        change(&mut list);
        self.load.store(list.len(), Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::SeqCst);
        drop(list);
        self.wake();
    }

    fn wake(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn kick(&self) {
        // Order matters: the worker sets `asleep` and then looks at `kicked`.
        self.kicked.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > WORTH_WAKING
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn run(&self, clock: Clock) {
        // The default slack of 50 µs would make each short sleep a long one.
        // SAFETY: PR_SET_TIMERSLACK takes a number of ns and touches no memory.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong) };
        let mut list: Vec<Arc<Member>> = Vec::new();
        let mut seen = None;
        let mut now = clock.now();
        let mut last = now;
        while !self.stop.load(Ordering::Relaxed) {
            let changes = self.changes.load(Ordering::SeqCst);
            if seen != Some(changes) {
                list.clone_from(&lock(&self.list));
                seen = Some(changes);
            }
            let round = round(&mut list, now);
            now = clock.now();
            if round.busy || self.kicked.swap(false, Ordering::SeqCst) {
                last = now;
            }
            if round.busy {
                continue;
            }
            if list.is_empty() {
                self.sleep(None);
                now = clock.now();
                continue;
            }
            let pause = pause(now.saturating_sub(last));
            match round.until.map_or(pause, |until| pause.min(until.saturating_sub(now))) {
                0 if now.saturating_sub(last) < EAGER => std::hint::spin_loop(),
                0 => std::thread::yield_now(),
                pause => self.sleep(Some(pause)),
            }
            now = clock.now();
        }
    }

    /// Sleeps for so many nanoseconds, or until woken.
    fn sleep(&self, pause: Option<Nanos>) {
        self.asleep.store(pause.unwrap_or(u64::MAX), Ordering::SeqCst);
        // What came before `asleep` was set has not unparked us.
        if !self.kicked.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
            match pause {
                Some(pause) => std::thread::park_timeout(Duration::from_nanos(pause)),
                None => std::thread::park(),
            }
        }
        self.asleep.store(0, Ordering::SeqCst);
    }
}

/// How long to sleep when nothing has happened for `quiet` ns.
fn pause(quiet: Nanos) -> Nanos {
    match quiet {
        ..SPIN => 0,
        SPIN.. => (quiet / 4).clamp(SHORTEST_SLEEP, LONG_SLEEP).max((quiet / 100).min(LONGEST_SLEEP)),
    }
}

/// What a round of turns came to.
struct Round {
    busy: bool,
    until: Option<Nanos>,
}

/// A turn for each device.
fn round(list: &mut Vec<Arc<Member>>, now: Nanos) -> Round {
    let mut round = Round { busy: false, until: None };
    let mut failed = false;
    for member in list.iter() {
        // A model that panics must not take its neighbours along.
        match catch_unwind(AssertUnwindSafe(|| member.endpoint.turn(now))) {
            Ok(Some(Turn::Busy)) => round.busy = true,
            Ok(Some(Turn::Until(until))) => round.until = Some(round.until.map_or(until, |at| at.min(until))),
            // None: a trapped access is being served; a kick follows it.
            Ok(Some(Turn::Idle) | None) => {}
            Err(_) => {
                tracing::error!(endpoint = ?member.endpoint, "the device model failed; it gets no more turns");
                member.set_active(false);
                failed = true;
            }
        }
    }
    if failed {
        list.retain(|member| lock(&member.place).is_some());
    }
    round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_part_of_the_silence() {
        let mut last = 0;
        for quiet in (0..2 * LONG_QUIET).step_by(9_999) {
            let pause = pause(quiet);
            assert!(pause >= last && pause <= LONGEST_SLEEP);
            assert!(pause <= quiet / 4);
            assert!(pause <= LONG_SLEEP || pause == quiet / 100 || quiet >= LONG_QUIET);
            last = pause;
        }
        assert_eq!((pause(SPIN - 1), pause(SPIN)), (0, SHORTEST_SLEEP));
        assert_eq!((pause(8_000_000), pause(200_000_000)), (LONG_SLEEP, LONG_SLEEP));
        assert_eq!((pause(LONG_QUIET - 200), pause(LONG_QUIET)), (LONGEST_SLEEP - 2, LONGEST_SLEEP));
    }
}
