// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds that a program signals and the core wants to hear of (irqfds,
//! ioeventfds). One thread waits for all of them, takes their counters as
//! Linux's handlers do, and says which fired.
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use caller::WatchId;
use device::Event;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::event::EventFd;

/// No watch has this number: it wakes the thread to end it.
const STOP: u64 = u64::MAX;

/// Watched eventfds.
#[derive(Debug)]
pub struct Watches {
    shared: Arc<Shared>,
    fired: Mutex<Option<Fired>>,
    running: OnceLock<Option<Running>>,
}

struct Fired(Box<dyn Fn(WatchId) + Send>);

impl std::fmt::Debug for Fired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fired")
    }
}

#[derive(Debug)]
struct Running {
    poll: Arc<OwnedFd>,
    stop: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Each with a descriptor of its own: epoll takes one only once.
    watched: Mutex<HashMap<u64, (Arc<EventFd>, OwnedFd)>>,
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, HashMap<u64, (Arc<EventFd>, OwnedFd)>> {
        self.watched.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Watches {
    /// Watches nothing yet. `fired` is called on the watching thread, which
    /// starts with the first watch.
    #[must_use]
    pub fn new(fired: impl Fn(WatchId) + Send + 'static) -> Watches {
        Watches { shared: Arc::default(), fired: Mutex::new(Some(Fired(Box::new(fired)))), running: OnceLock::new() }
    }

    /// Calls `fired` each time that `event` has been signalled; at once if it
    /// is signalled already.
    pub fn add(&self, id: WatchId, event: &Arc<dyn Event>) {
        let Some(event) = EventFd::of(event) else { return };
        let Some(running) = self.running.get_or_init(|| self.start()) else { return };
        let own = match event.as_fd().try_clone_to_owned() {
            Ok(own) => own,
            Err(error) => {
                tracing::warn!(%error, id = id.0, "an eventfd cannot be watched");
                return;
            }
        };
        let mut watched = self.shared.watched();
        if let Err(error) = epoll::add(&*running.poll, &own, EventData::new_u64(id.0), EventFlags::IN) {
            tracing::warn!(%error, id = id.0, "an eventfd cannot be watched");
            return;
        }
        watched.insert(id.0, (event, own));
    }

    /// No call of `fired` for `id` starts after this.
    pub fn remove(&self, id: WatchId) {
        let removed = self.shared.watched().remove(&id.0);
        if let (Some((_, own)), Some(Some(running))) = (removed, self.running.get()) {
            // The descriptor is closed below, but others share what it stands for.
            let _ = epoll::delete(&*running.poll, &own);
        }
    }

    fn start(&self) -> Option<Running> {
        let fired = self.fired.lock().unwrap_or_else(|e| e.into_inner()).take()?;
        let start = || -> io::Result<Running> {
            let poll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
            let stop = EventFd::create(0, true, false).map_err(|e| io::Error::from_raw_os_error(e.raw()))?;
            epoll::add(&*poll, stop.as_fd(), EventData::new_u64(STOP), EventFlags::IN)?;
            let (shared, own_poll) = (Arc::clone(&self.shared), Arc::clone(&poll));
            let thread = std::thread::Builder::new()
                .name("vfuse-watch".into())
                .spawn(move || watch(&shared, &own_poll, &fired))?;
            Ok(Running { poll, stop, thread: Mutex::new(Some(thread)) })
        };
        start().inspect_err(|error| tracing::error!(%error, "eventfds cannot be watched")).ok()
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        if let Some(Some(running)) = self.running.get() {
            running.stop.signal();
            if let Some(thread) = running.thread.lock().unwrap_or_else(|e| e.into_inner()).take() {
                let _ = thread.join();
            }
        }
    }
}

fn watch(shared: &Shared, poll: &OwnedFd, fired: &Fired) {
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(poll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "eventfds are not watched any more");
                return;
            }
        }
        for ready in &events {
            let id = ready.data.u64();
            if id == STOP {
                return;
            }
            // The lock is held meanwhile, so that `remove` is final.
            let watched = shared.watched();
            // Another program may have taken the counter first.
            if watched.get(&id).is_some_and(|(event, _)| event.take() > 0) {
                (fired.0)(WatchId(id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_signal_is_reported_and_taken() {
        let (send, receive) = mpsc::channel();
        let watches = Watches::new(move |id| _ = send.send(id));
        let event = EventFd::create(1, false, false).unwrap();
        let core: Arc<dyn Event> = event.clone();
        let wait = Duration::from_secs(10);
        watches.add(WatchId(7), &core);
        assert_eq!(receive.recv_timeout(wait), Ok(WatchId(7)), "signalled before");
        event.signal();
        assert_eq!(receive.recv_timeout(wait), Ok(WatchId(7)));
        assert_eq!(event.take(), 0);
        // After `remove` the counter is left alone.
        watches.remove(WatchId(7));
        event.signal();
        watches.add(WatchId(8), &core);
        assert_eq!(receive.recv_timeout(wait), Ok(WatchId(8)));
        drop(watches);
        assert!(receive.recv().is_err(), "the thread is gone");
    }
}
