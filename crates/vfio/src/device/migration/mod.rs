// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration of an open device, version 2 of the protocol
//! (vfio-migration.md).
//!
//! `fsm` knows the states and ways, `arcs` what happens on one, `saving` and
//! `loading` the streams, `stream` their files, `memory` the internal state
//! that a lab gives a device, `logging` the tracking of written pages,
//! `draining` the extension that finishes page requests first, and `features`
//! decodes the calls.
//!
//! Choices where Linux's drivers differ: a stream that has no more for now
//! gives ENOMSG in PRE_COPY (MIG-028), `poll` shows every stream ready, as of
//! drivers without a poll function (MIG-044), a failing RESUMING to STOP stays
//! in RESUMING (MIG-017), and no state at all cannot be resumed from
//! (MIG-032).

mod arcs;
mod draining;
mod features;
mod fsm;
mod loading;
mod logging;
mod memory;
mod saving;
mod stream;

use std::sync::Arc;

use ::device::migration::{self, Activity, P2pStop};
use ::device::saved::Writer;
use ::device::{Board, Endpoint, Event, Nanos};
use caller::{FileId, Readiness};
use pci::Address;
use uapi::vfio::migration::MigrationFlags;

pub(crate) use fsm::State;
use loading::Loading;
use logging::Logging;
use memory::DeviceMemory;
use saving::Saving;
pub(super) use stream::StreamFile;

/// What an open device's migration is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// The state, as Linux's documentation calls it.
    pub state: &'static str,
    /// What the stream does that is open, and bytes so far.
    pub stream: Option<(&'static str, u64)>,
    /// It notes which pages it writes.
    pub logging: bool,
}

/// The migration of an open device.
#[derive(Debug)]
pub(super) struct Migration {
    address: Address,
    endpoint: Arc<Endpoint>,
    flags: MigrationFlags,
    p2p_stop: P2pStop,
    dma_logging: bool,
    reinit_after: Option<u64>,
    state: State,
    memory: DeviceMemory,
    session: Option<Session>,
    logging: Option<Logging>,
    /// The user understands version 2 of the pre-copy information (MIG-043).
    precopy_v2: bool,
    /// The user has asked for draining (extension).
    drains: bool,
    /// Who is told that the drain is over which the present call begins.
    drain: Option<Arc<dyn Event>>,
    /// Whose state it takes.
    hello: Vec<u8>,
}

/// A stream that can be used.
#[derive(Debug)]
struct Session {
    /// `None`: there is no descriptor of it.
    file: Option<FileId>,
    readiness: Option<Arc<dyn Readiness>>,
    stream: Stream,
    /// When a transfer that the lab makes wait may go on.
    until: Option<Nanos>,
}

#[derive(Debug)]
enum Stream {
    Saving(Saving),
    Loading(Loading),
}

impl Migration {
    /// `None` if the lab or the model lets the device not migrate (MIG-003).
    pub(super) fn of(board: &Board, address: Address, endpoint: &Arc<Endpoint>) -> Option<Migration> {
        let spec = board.slots.get(&address)?.migration.as_ref()?;
        let identity = endpoint.identity()?;
        let mut flags = MigrationFlags::STOP_COPY;
        flags.set(MigrationFlags::P2P, spec.p2p);
        flags.set(MigrationFlags::PRE_COPY, spec.pre_copy);
        Some(Migration {
            address,
            endpoint: Arc::clone(endpoint),
            flags,
            p2p_stop: spec.p2p_stop,
            dma_logging: spec.dma_logging,
            reinit_after: spec.reinit_after,
            state: State::default(),
            memory: DeviceMemory::new(spec.state_size, spec.state_dirty_rate),
            session: None,
            logging: None,
            precopy_v2: false,
            drains: false,
            drain: None,
            hello: hello(endpoint, &identity),
        })
    }

    fn report(&self) -> MigrationReport {
        let stream = self.session.as_ref().map(|session| match &session.stream {
            Stream::Saving(saving) => ("saving", saving.given()),
            Stream::Loading(loading) => ("resuming", loading.taken()),
        });
        MigrationReport { state: self.state.name(), stream, logging: self.logging.is_some() }
    }

    /// The state that GET reports.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the device may be bus master, as far as migration goes.
    pub(super) fn allows_dma(&self) -> bool {
        self.p2p_stop != P2pStop::BusMaster || !matches!(self.state, State::RunningP2p | State::PreCopyP2p)
    }

    /// A reset of the function: RUNNING, and no stream can be used any more
    /// (MIG-072). Logging goes on (MIG-070).
    pub(super) fn reset(&mut self, now: Nanos) {
        if self.state != State::Running || self.session.is_some() {
            tracing::info!(name: "vfio.migration_reset", device = %self.address, from = self.state.name(), at = now);
        }
        self.session = None;
        self.memory.reset();
        self.state = State::Running;
        self.endpoint.set_activity(Activity::Running, now);
    }

    /// The last close (MIG-075).
    pub(super) fn close(&mut self, now: Nanos) {
        self.stop_logging();
        self.reset(now);
        self.precopy_v2 = false;
        self.drains = false;
    }

    /// What the device may do in a state.
    fn activity(&self, state: State) -> Activity {
        match state {
            State::Running | State::PreCopy => Activity::Running,
            State::RunningP2p | State::PreCopyP2p => match self.p2p_stop {
                P2pStop::Quiesce => Activity::Quiesced,
                P2pStop::BusMaster => Activity::Running,
            },
            State::Stop | State::StopCopy | State::Resuming | State::Error => Activity::Stopped,
        }
    }

    /// The memory is what it is at this time.
    fn pass(&mut self, now: Nanos) {
        let runs = self.activity(self.state) == Activity::Running && self.allows_dma();
        self.memory.advance(now, runs);
    }
}

/// What a stream begins with: the function and the model that it is of.
fn hello(endpoint: &Endpoint, identity: &[u8]) -> Vec<u8> {
    let spec = endpoint.spec();
    let mut writer = Writer::new();
    for id in [spec.vendor, spec.device, spec.subsystem_vendor, spec.subsystem_device] {
        writer.u16(id);
    }
    writer.u8(spec.revision);
    writer.bytes(identity);
    writer.finish()
}

impl super::state::Device {
    /// The state of its migration; `None` if it does not migrate.
    pub(super) fn migration_state(&self) -> Option<State> {
        self.migration.as_ref().map(Migration::state)
    }

    /// What its migration is doing; `None` if it does not migrate.
    pub(crate) fn migration_report(&self) -> Option<MigrationReport> {
        self.migration.as_ref().map(Migration::report)
    }

    /// A reset that Linux's drivers are told of.
    pub(super) fn migration_reset(&mut self, now: Nanos) {
        if let Some(migration) = &mut self.migration {
            migration.reset(now);
        }
    }
}

/// What the lab has planned to go wrong.
fn failures(board: &Board, address: Address) -> &[migration::Failure] {
    board.slots.get(&address).and_then(|slot| slot.migration.as_ref()).map_or(&[], |spec| &spec.failures)
}
