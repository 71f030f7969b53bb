// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens on the way from one state to the next (MIG-013 to MIG-018).

use ::device::migration::{Activity, Failure, LoadError, Stage};
use ::device::{Board, Nanos};
use uapi::Errno;

use super::fsm::{self, State};
use super::loading::Loading;
use super::saving::Saving;
use super::{Migration, Session, Stream};

impl Migration {
    /// Goes from state to state until `target` is reached or an arc fails,
    /// which leaves the device where the last one has brought it (MIG-016).
    /// Whether a stream was opened on the last arc.
    pub(super) fn set_state(&mut self, target: u32, board: &mut Board, now: Nanos) -> Result<bool, Errno> {
        let target = State::from_raw(target).filter(|target| *target != State::Error).ok_or(Errno::EINVAL)?;
        let mut opened = false;
        while self.state != target {
            let next = fsm::next(self.flags, self.state, target).ok_or(Errno::EINVAL)?;
            opened = self.arc(next, board, now)?;
            if opened && next != target {
                self.session = None;
                return Err(Errno::EINVAL); // MIG-018
            }
        }
        Ok(opened)
    }

    /// One arc, as the lab wants it. Whether a stream was opened.
    fn arc(&mut self, to: State, board: &mut Board, now: Nanos) -> Result<bool, Errno> {
        let from = self.state;
        self.pass(now);
        let failure = planned(board, self, from, to);
        let result = match failure {
            None => self.go(to, now),
            Some(Stage::Before) => Err(Errno::EIO),
            Some(Stage::Middle) => {
                self.session = None;
                self.enter(State::Error, now);
                Err(Errno::EIO)
            }
            // The way back to a drain would not take it up again: it goes on.
            Some(Stage::After) if self.is_draining() => Err(Errno::EIO),
            Some(Stage::After) => {
                // What it did to the device is undone, and nobody has seen it.
                self.enter(to, now);
                self.enter(from, now);
                Err(Errno::EIO)
            }
        };
        tracing::info!(
            name: "vfio.migration_arc", device = %self.address, from = from.name(), to = to.name(), at = now,
            now = self.state.name(), failed = result.is_err(),
        );
        result
    }

    fn enter(&mut self, state: State, now: Nanos) {
        self.state = state;
        let activity = self.activity(state);
        match self.drain.take() {
            Some(done) if activity == Activity::Quiesced => self.endpoint.drain(done, now),
            later => {
                self.drain = later;
                self.endpoint.set_activity(activity, now);
            }
        }
    }

    fn go(&mut self, to: State, now: Nanos) -> Result<bool, Errno> {
        use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

        match (self.state, to) {
            (Stop, StopCopy) => {
                self.save(now);
                self.finish_saving(now);
                self.state = to;
                Ok(true)
            }
            (Running, PreCopy) | (RunningP2p, PreCopyP2p) => {
                self.save(now);
                self.enter(to, now);
                Ok(true)
            }
            (PreCopy | PreCopyP2p, StopCopy) => {
                self.enter(to, now);
                self.finish_saving(now);
                Ok(false)
            }
            (Stop, Resuming) => {
                self.memory.ensure(now);
                let stream = Stream::Loading(Loading::new(self.hello.clone()));
                self.session = Some(Session { file: None, readiness: None, stream, until: None });
                self.state = to;
                Ok(true)
            }
            (Resuming, Stop) => {
                self.load(now)?;
                self.session = None;
                self.state = to;
                Ok(false)
            }
            (StopCopy, Stop) | (PreCopy, Running) | (PreCopyP2p, RunningP2p) => {
                self.session = None;
                self.enter(to, now);
                Ok(false)
            }
            _ => {
                self.enter(to, now);
                Ok(false)
            }
        }
    }

    fn save(&mut self, now: Nanos) {
        self.memory.ensure(now);
        let saving = Saving::new(self.hello.clone(), &mut self.memory, self.reinit_after);
        self.session = Some(Session { file: None, readiness: None, stream: Stream::Saving(saving), until: None });
    }

    /// The device stands still: its registers belong to the stream.
    fn finish_saving(&mut self, now: Nanos) {
        let model = self.endpoint.save(now);
        if let Some(Session { stream: Stream::Saving(saving), .. }) = &mut self.session {
            saving.stop(model);
        }
    }

    /// Takes the state over: `EINVAL` if it is none (MIG-031), or there is
    /// none (MIG-032). A session whose descriptor could not be given has
    /// nothing to check (MIG-019).
    fn load(&mut self, now: Nanos) -> Result<(), Errno> {
        let Some(Session { stream: Stream::Loading(loading), .. }) = &self.session else { return Ok(()) };
        let loaded = loading.finish().and_then(|model| self.endpoint.load(model, now));
        loaded.map_err(|error: LoadError| {
            tracing::warn!(name: "vfio.migration_refused", device = %self.address, %error);
            Errno::EINVAL
        })
    }
}

/// What the lab has planned for an arc; counted.
fn planned(board: &mut Board, migration: &Migration, from: State, to: State) -> Option<Stage> {
    let failures = &mut board.slots.get_mut(&migration.address)?.migration.as_mut()?.failures;
    let stage = failures.iter_mut().find_map(|failure| match failure {
        Failure::Arc { from: f, to: t, at, times } if (*f, *t) == (from as u32, to as u32) && *times > 0 => {
            if *times != u32::MAX {
                *times -= 1;
            }
            Some(*at)
        }
        _ => None,
    });
    failures.retain(|failure| !matches!(failure, Failure::Arc { times: 0, .. }));
    stage
}
