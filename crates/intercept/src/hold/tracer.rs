// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that traces the program while something is held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::tracee::{self, News};
use super::{Hold, Order};
use crate::Waker;
use crate::files::InodeId;
use crate::signals::descendants;

/// Passes over a program's threads until none is new.
const PASSES: u32 = 64;
/// How long signals are waited for that were raised before the pages were
/// back, at most: a thread that gets no processor for so long may get SIGBUS.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two looks meanwhile, and at a program whose end somebody else takes.
const LOOK: Duration = Duration::from_millis(1);

struct Tracer {
    /// The program, whose end is not ours to take.
    main: i32,
    traced: BTreeSet<i32>,
    /// What is held now, and what has been.
    held: BTreeSet<InodeId>,
    known: BTreeSet<InodeId>,
    /// Who waits, and for what.
    waiting: BTreeMap<i32, InodeId>,
    /// Accesses that were made again since something was held last.
    again: BTreeMap<i32, u64>,
    /// Until when news of the past is waited for, and what each thread had run
    /// when that began.
    drain: Option<(Instant, BTreeMap<i32, u64>)>,
}

/// Works until nothing is held any more.
pub(super) fn work(hold: &Hold, main: i32, over: &Waker) {
    /// Whoever waits for an answer gets none from a thread that has failed.
    struct Gone<'a>(&'a Hold);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.state().tracer = None;
                self.0.0.answered.notify_all();
            }
        }
    }
    let _gone = Gone(hold);
    {
        let _waits = hold.0.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tracer = Tracer {
            main,
            traced: BTreeSet::new(),
            held: BTreeSet::new(),
            known: BTreeSet::new(),
            waiting: BTreeMap::new(),
            again: BTreeMap::new(),
            drain: None,
        };
        while tracer.round(hold) {}
    }
    // The end of this thread is the end of tracing. What others did not wait
    // for meanwhile they do now.
    over.wake();
}

impl Tracer {
    /// Whether there is more to do.
    fn round(&mut self, hold: &Hold) -> bool {
        let mut state = hold.state();
        if let Some(order) = state.order.take() {
            drop(state);
            let done = self.obey(order);
            hold.state().answer = Some(done);
            hold.0.answered.notify_all();
            return true;
        }
        if self.held.is_empty() && !self.is_owed_anything() {
            // Whoever comes now starts another.
            state.tracer = None;
            return false;
        }
        drop(state);
        match tracee::next(!self.held.is_empty()) {
            Ok(Some((tid, true))) if tid == self.main => std::thread::sleep(LOOK),
            Ok(Some((tid, _))) => self.see_to(tid),
            Ok(None) => std::thread::sleep(LOOK),
            // Nobody is traced.
            Err(Errno::CHILD) => std::thread::sleep(LOOK),
            Err(_) => {}
        }
        true
    }

    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Hold(file) => {
                let works = self.seize_all(|pid| tracee::maps(pid, file));
                // Who came too late for the last one may come too late for this.
                self.again.clear();
                if works {
                    self.held.insert(file);
                    self.known.insert(file);
                    self.drain = None;
                } else {
                    self.rest();
                }
                works
            }
            Order::Include(pid) => self.seize_all(|other| other == pid),
            Order::Release(file) => {
                self.held.remove(&file);
                let free: Vec<i32> = self.waiting.iter().filter(|(_, of)| **of == file).map(|(tid, _)| *tid).collect();
                for tid in free {
                    self.waiting.remove(&tid);
                    tracee::go_on(tid, 0);
                }
                self.rest();
                true
            }
        }
    }

    /// If nothing is held, what is on its way is waited for.
    fn rest(&mut self) {
        if self.held.is_empty() {
            let ran = self.traced.iter().map(|tid| (*tid, tracee::on_cpu(*tid))).collect();
            self.drain = Some((Instant::now() + DRAIN, ran));
        }
    }

    fn is_owed_anything(&mut self) -> bool {
        let Some((until, ran)) = &self.drain else { return false };
        let ends = Instant::now() > *until;
        !ends && self.traced.iter().any(|tid| tracee::may_owe(*tid, ran.get(tid).copied().unwrap_or(0)))
    }

    /// Seizes all threads of the processes that are meant; whether there is
    /// none left that cannot be.
    fn seize_all(&mut self, is_meant: impl Fn(i32) -> bool) -> bool {
        let mut pids = BTreeSet::new();
        descendants(std::process::id() as i32, &mut pids);
        for pid in pids.into_iter().filter(|pid| is_meant(*pid)) {
            if let Err((tid, errno)) = self.seize_process(pid) {
                tracing::warn!(
                    target: "vfuse::run", pid, tid, %errno,
                    "cannot be held at mapped BARs of a blocked device: loads give ones, stores are lost"
                );
                return false;
            }
        }
        true
    }

    fn seize_process(&mut self, pid: i32) -> Result<(), (i32, Errno)> {
        for _ in 0..PASSES {
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Ok(()) };
            let threads = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
            let mut new = false;
            for tid in threads.collect::<Vec<_>>() {
                if self.traced.contains(&tid) {
                    continue;
                }
                match tracee::seize(tid) {
                    Ok(()) => new |= self.traced.insert(tid),
                    Err(_) if tracee::is_dead(tid) || self.is_ours(tid) => {}
                    Err(errno) => return Err((tid, errno)),
                }
            }
            if !new {
                break;
            }
        }
        Ok(())
    }

    /// Whether a thread came to be traced with the one that made it, of which
    /// the news has not been taken yet.
    fn is_ours(&mut self, tid: i32) -> bool {
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        let status = crate::processes::status(tid);
        let tracer =
            status.and_then(|text| text.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok()));
        let ours = tracer.is_some_and(|pid: i32| pid == me || pid == std::process::id() as i32);
        if ours {
            self.traced.insert(tid);
        }
        ours
    }

    /// Takes the news of a thread and sees to it.
    fn see_to(&mut self, tid: i32) {
        let Some(news) = tracee::take(tid) else { return };
        match news {
            News::Ended => {
                self.traced.remove(&tid);
                self.waiting.remove(&tid);
                self.again.remove(&tid);
                return;
            }
            News::Signal(libc::SIGBUS) => self.bad_access(tid),
            News::Signal(signal) => tracee::go_on(tid, signal),
            News::Stopped => tracee::stay_stopped(tid),
            News::Passing => tracee::go_on(tid, 0),
        }
        self.traced.insert(tid);
    }

    /// A thread is about to get SIGBUS: it waits if what it wants is held, and
    /// tries again if that is back by now.
    fn bad_access(&mut self, tid: i32) {
        let address = tracee::bad_access(tid);
        let file = address.and_then(|address| tracee::mapped_at(tid, address)).filter(|file| self.known.contains(file));
        match (address, file) {
            (Some(_), Some(file)) if self.held.contains(&file) => {
                self.waiting.insert(tid, file);
            }
            // Once for each time that it was held: a program may have turned
            // memory off.
            (Some(address), Some(_)) if self.again.insert(tid, address) != Some(address) => tracee::go_on(tid, 0),
            _ => tracee::go_on(tid, libc::SIGBUS),
        }
    }
}
