// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine as the core sees it: clock, randomness, device files, eventfds
//! that somebody else signals.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use caller::{Platform, WatchId};
use device::{DeviceFiles, Event};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use sys::clock::Clock;
use sys::event::EventFd;
use sys::window::MemfdFiles;

/// This machine.
#[derive(Debug)]
pub(crate) struct Real {
    clock: Clock,
    files: MemfdFiles,
    watches: Arc<Watches>,
    waker: intercept::Waker,
}

/// What the core waits for: eventfds (irqfd and ioeventfd), and the time.
#[derive(Debug)]
struct Watches {
    epoll: OwnedFd,
    timer: OwnedFd,
    state: Mutex<State>,
}

/// Stands for the timer among the watches.
const TIMER: u64 = u64::MAX;

#[derive(Default)]
struct State {
    events: HashMap<u64, Watched>,
    fired: Vec<WatchId>,
}

/// An eventfd that is watched.
enum Watched {
    /// Its counter is taken, and the host told.
    Taken(Arc<EventFd>),
    /// Somebody is told at once. A descriptor of its own: queues may share an
    /// eventfd.
    Heard(OwnedFd, Arc<dyn Fn() + Send + Sync>),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("events", &self.events.len()).field("fired", &self.fired).finish()
    }
}

impl Watches {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes the counters of watched events for ever, and wakes whoever
    /// collects what fired.
    fn wait(&self, waker: &intercept::Waker) {
        let mut ready = Vec::with_capacity(64);
        let mut heard: Vec<Arc<dyn Fn() + Send + Sync>> = Vec::new();
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "irqfd and ioeventfd have stopped working");
                    return;
                }
            }
            let mut state = self.state();
            let mut wanted = false;
            heard.clear();
            for event in &ready {
                let id = event.data.u64();
                if id == TIMER {
                    let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
                    wanted = true;
                    continue;
                }
                match state.events.get(&id) {
                    Some(Watched::Taken(event)) if event.take() > 0 => {
                        state.fired.push(WatchId(id));
                        wanted = true;
                    }
                    Some(Watched::Heard(_, signalled)) => heard.push(Arc::clone(signalled)),
                    _ => {}
                }
            }
            drop(state);
            heard.iter().for_each(|signalled| signalled());
            if wanted {
                waker.wake();
            }
        }
    }
}

impl Real {
    /// `waker` is used when a watched event has fired; [`fired`](Self::fired) says which.
    pub(crate) fn new(waker: intercept::Waker) -> Result<Arc<Real>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot make an epoll descriptor")?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .context("cannot make a timer")?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).context("cannot make a timer")?;
        let watches = Arc::new(Watches { epoll, timer, state: Mutex::default() });
        let waiter = Arc::clone(&watches);
        let own = waker.clone();
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || waiter.wait(&waker))
            .context("cannot start a thread")?;
        Ok(Arc::new(Real { clock: Clock::new(), files: MemfdFiles, watches, waker: own }))
    }

    /// Takes the watches that fired since the last call.
    pub(crate) fn fired(&self) -> Vec<WatchId> {
        std::mem::take(&mut self.watches.state().fired)
    }

    /// The waker is used at this time of [`now`](Platform::now), too.
    pub(crate) fn set_deadline(&self, at: Option<u64>) {
        // Zero disarms.
        let left = at.map_or(0, |at| at.saturating_sub(self.clock.now()).max(1));
        let value = Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if let Err(error) = timerfd_settime(&self.watches.timer, TimerfdTimerFlags::empty(), &spec) {
            tracing::error!(%error, "a deadline cannot be set");
        }
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }
}

impl Platform for Real {
    fn watch(&self, id: WatchId, event: &Arc<dyn Event>) {
        let Some(event) = EventFd::of(event) else { return };
        let added = epoll::add(&self.watches.epoll, &*event, EventData::new_u64(id.0), EventFlags::IN | EventFlags::ET);
        if let Err(error) = added {
            tracing::error!(%error, "an eventfd cannot be watched");
            return;
        }
        self.watches.state().events.insert(id.0, Watched::Taken(event));
    }

    fn listen(&self, id: WatchId, event: &Arc<dyn Event>, signalled: Arc<dyn Fn() + Send + Sync>) {
        let Some(event) = EventFd::of(event) else { return };
        let own = match std::os::fd::AsFd::as_fd(&*event).try_clone_to_owned() {
            Ok(own) => own,
            Err(error) => {
                tracing::error!(%error, "an eventfd cannot be listened to");
                return;
            }
        };
        let mut state = self.watches.state();
        // Edge-triggered: each signal is an event, though nobody takes the counter.
        let flags = EventFlags::IN | EventFlags::ET;
        match epoll::add(&self.watches.epoll, &own, EventData::new_u64(id.0), flags) {
            Ok(()) => {
                state.events.insert(id.0, Watched::Heard(own, signalled));
            }
            Err(error) => tracing::error!(%error, "an eventfd cannot be listened to"),
        }
    }

    fn unwatch(&self, id: WatchId) {
        // It is closed next, which takes it out as well.
        let _ = match self.watches.state().events.remove(&id.0) {
            Some(Watched::Taken(event)) => epoll::delete(&self.watches.epoll, &*event),
            Some(Watched::Heard(own, _)) => epoll::delete(&self.watches.epoll, &own),
            None => Ok(()),
        };
    }

    fn random(&self) -> [u8; 16] {
        sys::random::bytes()
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = self.waker.clone();
        Arc::new(move || waker.wake())
    }

    fn device_files(&self) -> &dyn DeviceFiles {
        &self.files
    }
}
