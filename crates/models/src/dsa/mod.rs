// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel's Data Streaming Accelerator, version 1.0, as Linux's `idxd`, its VFIO
//! selftests and DPDK's `dma_idxd` drive it.
//!
//! Built of: `registers` (what a program sees in BAR 0), `command`, `portal`
//! (how descriptors come in), `queue` (where they wait), `execute` (one after
//! the other, to the completion record), `check` and `operate` (whether one
//! makes sense, and what it does), `moving` and `crc`; `state` is what moves to
//! another accelerator.
//!
//! # Registers and portals that are mapped
//! A program that stores to a mapped page tells nobody; the device looks at
//! the page in its turns. Three things follow for a program that maps the BARs
//! and is not run with its accesses trapped:
//! - `CMDSTS` says nothing of a command until the device has seen it. Who reads
//!   it nanoseconds after the store sees what the command before came to.
//! - A second store to a place of a portal, before the first was taken, takes
//!   its place. A place is free when its first eight bytes are zero again. One
//!   who goes round the 64 places and has fewer than 64 descriptors under way
//!   loses none. A loss that is noticed is a software error
//!   ([`spec::Refusal::Overwritten`]); one between two looks cannot be.
//! - A store that is not one of 64 bytes at once has to put its first eight
//!   bytes last.
//!
//! Trapped accesses are not affected: each store is a submission, each command
//! is carried out before the store returns.
//!
//! # Missing pages
//! A descriptor with block-on-fault, in a queue that allows it, asks for the
//! page and stands aside; those behind it go on. When the page is there it
//! goes on where it was, and ends with a page fault if it will not come. The
//! descriptors of a batch are done one after the other, so a batch stands
//! aside as one. A completion record waits for its page in any queue that lets
//! descriptors block. Where page requests are off a fault is the end.
//!
//! # What it doesn't do
//! DIF operations, event log, interrupt message storage, occupancy interrupts,
//! performance counters, read buffers: what `GENCAP`, `WQCAP` and `OPCAP` do
//! not offer.

mod breaks;
mod check;
mod command;
mod config;
mod crc;
mod execute;
mod moving;
mod operate;
mod pages;
mod portal;
mod queue;
mod registers;
pub mod spec;
mod state;

use device::migration::{Activity, LoadError};
use device::{Device, Io, Nanos, ResetKind, Turn};
use pci::FunctionSpec;
use pci::spec::{Bar, BarKind, Msix};

pub use breaks::Breaks;
pub use config::{Config, MAX_BATCH, MAX_ENGINES, MAX_ENTRIES, MAX_QUEUES, MAX_TRANSFER};
pub use portal::ANSWER;
pub use queue::Answer;

use command::Pending;
use execute::Budget;
use moving::Room;
use portal::Filling;
use queue::Queue;
use spec::{PORTAL_BAR, REGISTER_BAR, ResetType, State, wqcfg};

/// Descriptors and bytes in a turn; whoever unmaps waits for it.
const TURN_DESCRIPTORS: u32 = 256;
const TURN_BYTES: u64 = 1 << 20;
/// Turns between two looks at every register of the mapped page.
const LOOKS: u32 = 64;
/// How long to wait with bus mastering off before looking again.
const BUS_MASTER_RETRY: Nanos = 1_000_000;

/// An accelerator.
#[derive(Debug)]
pub struct Accelerator {
    config: Config,
    /// Registers, as a program reads them.
    words: Vec<u32>,
    queues: Vec<Queue>,
    /// Queues that have an engine, a bit each; does not change unless the device
    /// is disabled.
    served: u64,
    /// The command under way.
    pending: Option<Pending>,
    /// The place of a portal that trapped stores are filling.
    filling: Filling,
    /// The queue to begin with.
    next: usize,
    /// The portal looked at besides the first.
    portal: u64,
    /// Turns so far.
    looks: u32,
    /// The last one found something in a mapped portal.
    found: bool,
    /// Vectors that were signalled since the last reset, a bit each.
    signalled: u32,
    /// A state was taken over, and nobody was told.
    arrived: bool,
    room: Room,
}

impl Default for Accelerator {
    fn default() -> Accelerator {
        Accelerator::new(Config::default())
    }
}

impl Accelerator {
    /// An accelerator after power on.
    #[must_use]
    pub fn new(config: Config) -> Accelerator {
        let config = config.clamped();
        let mut accelerator = Accelerator {
            config,
            words: vec![0; (registers::BYTES / 4) as usize],
            queues: (0..config.queues).map(|_| Queue::default()).collect(),
            served: 0,
            pending: None,
            filling: Filling::default(),
            next: 0,
            portal: 0,
            looks: 0,
            found: false,
            signalled: 0,
            arrived: false,
            room: Room::default(),
        };
        accelerator.reset_registers(ResetType::Cold);
        accelerator
    }

    /// A queue's configuration as after a reset.
    fn reset_queue(&mut self, io: &Io<'_>, queue: usize) {
        let bytes = self.config.queue_bytes();
        let start = spec::WQCFG + queue as u64 * bytes;
        for (word, offset) in (start..start + bytes).step_by(4).enumerate() {
            let operations = registers::operations();
            let value = match word {
                wqcfg::OPERATIONS => operations as u32,
                word if word == wqcfg::OPERATIONS + 1 => (operations >> 32) as u32,
                _ => 0,
            };
            self.set(io, offset, value);
        }
    }

    /// Takes what was stored to mapped pages; whether there were descriptors.
    fn look(&mut self, io: &Io<'_>) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.scan_registers(io, !self.looks.is_multiple_of(LOOKS));
        self.scan_portals(io)
    }

    /// Lets those go on whose page requests were answered; whether there are any.
    fn take_answers(&mut self, io: &Io<'_>) -> bool {
        let mut any = false;
        for (ticket, code) in io.page_requests.take_answers() {
            // Of what was aborted meanwhile nobody waits for it.
            any |= self.queues.iter_mut().any(|queue| queue.answered(ticket, code));
        }
        any
    }

    /// Finds out which queues have an engine.
    fn serve(&mut self) {
        self.served = (0..self.config.engines)
            .map(|group| self.group(group))
            .fold(0, |served, (queues, engines)| if engines == 0 { served } else { served | queues });
    }

    /// Does a bounded piece of work; whether there was any.
    fn work(&mut self, io: &Io<'_>) -> bool {
        let mut budget = Budget { descriptors: TURN_DESCRIPTORS, bytes: TURN_BYTES };
        let mut worked = false;
        let first = self.next;
        let from_first = u64::MAX << first;
        for number in bits(self.served & from_first).chain(bits(self.served & !from_first)) {
            if budget.is_spent() {
                break;
            }
            if self.has_work(io, number) && self.run_queue(io, number, &mut budget) {
                worked = true;
                self.next = if number + 1 < self.queues.len() { number + 1 } else { 0 };
                self.show_queue(io, number);
            }
        }
        worked
    }
}

/// Numbers of the bits that are set, lowest first.
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = set.trailing_zeros() as usize;
        set &= set.checked_sub(1)?;
        Some(number)
    })
}

impl Device for Accelerator {
    fn function(&self) -> FunctionSpec {
        let memory = BarKind::Memory64 { prefetchable: true };
        let mut bars: [Option<Bar>; 6] = Default::default();
        bars[REGISTER_BAR] = Some(Bar { size: spec::REGISTER_BYTES, kind: memory, mmap: true });
        bars[PORTAL_BAR] = Some(Bar { size: self.config.portal_bytes(), kind: memory, mmap: true });
        FunctionSpec {
            vendor: 0x8086,
            device: 0x0b25,
            subsystem_vendor: 0x8086,
            subsystem_device: 0,
            class: 0x08_8000,
            bars,
            msix: Some(Msix {
                vectors: self.config.vectors(),
                table: (REGISTER_BAR as u8, spec::MSIX_TABLE),
                pba: (REGISTER_BAR as u8, spec::MSIX_PBA),
            }),
            flr: true,
            aer: true,
            ats: true,
            pasid: Some(20),
            pri: Some(512),
            ..FunctionSpec::default()
        }
    }

    fn read(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match bar {
            REGISTER_BAR => {
                self.scan_registers(io, true);
                self.load_registers(offset, data);
            }
            PORTAL_BAR => self.load_portal(offset, data),
            _ => {}
        }
    }

    fn write(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            REGISTER_BAR => {
                // What was stored to the mapped page came before.
                self.scan_registers(io, false);
                self.store_registers(io, offset, data);
            }
            PORTAL_BAR => self.store_portal(io, offset, data),
            _ => {}
        }
    }

    fn publish(&mut self, io: &mut Io<'_>) {
        self.publish_registers(io);
        portal::publish(io, self.queues.len());
    }

    fn collect(&mut self, io: &mut Io<'_>) {
        self.scan_registers(io, false);
        // All places; each of the portals but the first has its turn.
        self.looks = 0;
        (1..4).for_each(|_| {
            self.scan_portals(io);
        });
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        let found = self.look(io) | self.take_answers(io);
        if !matches!(io.activity, Activity::Running | Activity::Draining) {
            // What is submitted is kept, and waits (MIG-049).
            return Turn::Idle;
        }
        self.announce(io);
        if self.state() == State::Disabled {
            return Turn::Idle;
        }
        if !io.dma.is_bus_master() {
            let held = self.queues.iter().any(|queue| queue.occupancy() > 0);
            return if held { Turn::Until(io.now.saturating_add(BUS_MASTER_RETRY)) } else { Turn::Idle };
        }
        let worked = self.work(io);
        let finished = self.finish_command(io);
        if found || worked || finished { Turn::Busy } else { Turn::Idle }
    }

    fn reset(&mut self, io: &mut Io<'_>, kind: ResetKind) {
        tracing::debug!(target: "vfuse::dsa", ?kind, "reset");
        for number in 0..self.queues.len() {
            portal::clear(io, number);
            if let Some(queue) = self.queues.get_mut(number) {
                *queue = Queue::default();
            }
        }
        (self.pending, self.filling, self.next) = (None, Filling::default(), 0);
        (self.signalled, self.arrived) = (0, false);
        self.reset_registers(match kind {
            ResetKind::PowerOn => ResetType::Cold,
            ResetKind::FunctionLevel => ResetType::FunctionLevel,
            ResetKind::PowerManagement | ResetKind::Bus => ResetType::Warm,
        });
    }

    fn is_drained(&self) -> bool {
        self.queues.iter().all(|queue| queue.ready.is_empty() && queue.blocked.is_empty())
    }

    fn portals(&self) -> Vec<(usize, u64, u64)> {
        vec![(PORTAL_BAR, 0, self.config.portal_bytes())]
    }

    fn identity(&self) -> Option<Vec<u8>> {
        Some(self.saved_identity())
    }

    fn save(&mut self, _: &mut Io<'_>) -> Vec<u8> {
        self.saved_state()
    }

    fn load(&mut self, _: &mut Io<'_>, state: &[u8]) -> Result<(), LoadError> {
        self.load_state(state)
    }
}
