// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine as the core sees it: clock, randomness, device files, eventfds
//! that somebody else signals.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result};
use caller::{Platform, WatchId};
use device::{DeviceFiles, Event};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use sys::clock::Clock;
use sys::event::EventFd;
use sys::window::HoldingFiles;

/// This machine.
#[derive(Debug)]
pub(crate) struct Real {
    clock: Clock,
    files: HoldingFiles,
    watches: Watches,
    kicks: OnceLock<Arc<Kicks>>,
    waker: intercept::Waker,
}

/// What the core waits for: eventfds (irqfd and ioeventfd), and the time. The
/// front door waits for `epoll` itself: a thread between the two cost a wake-up
/// across cores (30 to 70 µs here) for each event.
#[derive(Debug)]
struct Watches {
    epoll: Arc<OwnedFd>,
    timer: OwnedFd,
    events: Mutex<HashMap<u64, Arc<EventFd>>>,
}

/// Stands for the timer among the watches.
const TIMER: u64 = u64::MAX;

impl Watches {
    fn events(&self) -> MutexGuard<'_, HashMap<u64, Arc<EventFd>>> {
        self.events.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Eventfds of which somebody is told at once, whatever the front door is at:
/// a thread of their own waits for them, from the first on.
struct Kicks {
    epoll: OwnedFd,
    heard: Mutex<HashMap<u64, Heard>>,
}

/// A descriptor of its own, since queues may share an eventfd, and who is told.
type Heard = (OwnedFd, Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Kicks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kicks").field("heard", &self.heard().len()).finish_non_exhaustive()
    }
}

impl Kicks {
    fn start() -> std::io::Result<Arc<Kicks>> {
        let kicks = Arc::new(Kicks { epoll: epoll::create(CreateFlags::CLOEXEC)?, heard: Mutex::default() });
        let waiter = Arc::clone(&kicks);
        std::thread::Builder::new().name("kicks".into()).spawn(move || waiter.wait())?;
        Ok(kicks)
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<u64, Heard>> {
        self.heard.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait(&self) {
        let mut ready = Vec::with_capacity(64);
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "kicks have stopped working");
                    return;
                }
            }
            let heard = self.heard();
            let told: Vec<_> = ready
                .iter()
                .filter_map(|event| heard.get(&event.data.u64()))
                .map(|(_, told)| Arc::clone(told))
                .collect();
            drop(heard);
            told.iter().for_each(|signalled| signalled());
        }
    }

    fn add(&self, id: u64, event: &EventFd, signalled: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<()> {
        let own = event.as_fd().try_clone_to_owned()?;
        let mut heard = self.heard();
        // Edge-triggered: each signal is an event, though nobody takes the counter.
        epoll::add(&self.epoll, &own, EventData::new_u64(id), EventFlags::IN | EventFlags::ET)?;
        heard.insert(id, (own, signalled));
        Ok(())
    }
}

impl Real {
    /// `waker` is for others to use (see [`Platform::waker`]).
    /// `hold` is the front door's, for programs that access blocked devices.
    pub(crate) fn new(waker: intercept::Waker, hold: intercept::Hold) -> Result<Arc<Real>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot make an epoll descriptor")?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .context("cannot make a timer")?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).context("cannot make a timer")?;
        let watches = Watches { epoll: Arc::new(epoll), timer, events: Mutex::default() };
        Ok(Arc::new(Real {
            clock: Clock::new(),
            files: HoldingFiles(Arc::new(hold)),
            watches,
            kicks: OnceLock::new(),
            waker,
        }))
    }

    /// Readable while [`fired`](Self::fired) has something to take.
    pub(crate) fn events(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.watches.epoll)
    }

    /// Takes the counters of watched events; the watches that fired.
    pub(crate) fn fired(&self) -> Vec<WatchId> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (mut ready, mut fired) = (Vec::with_capacity(64), Vec::new());
        let events = self.watches.events();
        match epoll::wait(&self.watches.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "irqfd and ioeventfd do not work"),
        }
        for event in &ready {
            let id = event.data.u64();
            if id == TIMER {
                let _ = rustix::io::read(&self.watches.timer, &mut [0u8; 8]);
            } else if events.get(&id).is_some_and(|event| event.take() > 0) {
                fired.push(WatchId(id));
            }
        }
        fired
    }

    /// [`events`](Self::events) is readable from this time of
    /// [`now`](Platform::now) on, too.
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
        self.watches.events().insert(id.0, event);
    }

    fn listen(&self, id: WatchId, event: &Arc<dyn Event>, signalled: Arc<dyn Fn() + Send + Sync>) {
        let Some(event) = EventFd::of(event) else { return };
        let kicks = match self.kicks.get() {
            Some(kicks) => Ok(kicks),
            None => Kicks::start().map(|kicks| self.kicks.get_or_init(|| kicks)),
        };
        if let Err(error) = kicks.and_then(|kicks| kicks.add(id.0, &event, signalled)) {
            tracing::error!(%error, "an eventfd cannot be listened to");
        }
    }

    fn unwatch(&self, id: WatchId) {
        if let Some(kicks) = self.kicks.get()
            && let Some((own, _)) = kicks.heard().remove(&id.0)
        {
            // It is closed next, which takes it out as well.
            let _ = epoll::delete(&kicks.epoll, &own);
        }
        if let Some(event) = self.watches.events().remove(&id.0) {
            let _ = epoll::delete(&self.watches.epoll, &*event);
        }
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

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    use super::*;

    fn is_readable(fd: &OwnedFd, wait: i64) -> bool {
        let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&wait)).unwrap() == 1
    }

    /// API-156: an event that is signalled acts once, and nobody is told of
    /// one that is no longer watched.
    #[test]
    fn watched_events_and_deadlines_make_the_descriptor_readable() {
        let real = Real::new(intercept::Waker::new().unwrap(), intercept::Hold::new()).unwrap();
        let events = real.events();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let signal = || rustix::io::write(&fd, &3u64.to_ne_bytes()).unwrap();
        let event: Arc<dyn Event> = EventFd::new(fd.try_clone().unwrap()).unwrap();
        real.watch(WatchId(7), &event);
        assert!(!is_readable(&events, 0));
        for _ in 0..3 {
            signal();
            signal();
            assert!(is_readable(&events, 0));
            assert_eq!(real.fired(), [WatchId(7)]);
            assert!(!is_readable(&events, 0) && real.fired().is_empty());
        }
        real.set_deadline(Some(real.now() + 1_000_000));
        assert!(is_readable(&events, 10));
        assert!(real.fired().is_empty() && !is_readable(&events, 0));
        real.unwatch(WatchId(7));
        signal();
        assert!(!is_readable(&events, 0));
    }
}
