// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The controller: enabling, reset and shutdown, and its turns.

use device::migration::{Activity, LoadError};
use device::{Device, Io, Nanos, ResetKind, Turn};
use iommu::{DmaFault, FaultReason, Places};
use pci::FunctionSpec;
use tracing::{Level, event};

use super::admin::Outcome;
use super::config::{Config, MAX_QUEUE_PAIRS};
use super::error::Error;
use super::events::Events;
use super::features::Features;
use super::logs::{Culprit, Logs};
use super::namespace::Namespace;
use super::prp::Run;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::DOORBELLS;
use super::spec::{Aqa, AsyncEvent, Cap, Cc, Command, Completion, Csts, Shutdown, Status};

/// Largest number of entries of a queue.
const MAX_ENTRIES: u16 = 4096;
/// The host waits for CSTS.RDY that long, in units of 500 ms.
const READY_TIMEOUT: u8 = 20;
/// Memory pages up to 64 KiB.
const MAX_PAGE: u8 = 4;

/// Commands executed in a turn.
const TURN_COMMANDS: usize = 64;
/// Bytes moved in a turn, after which no other command begins.
const TURN_BYTES: u64 = 2 << 20;
/// Commands taken from one queue before the next has its turn.
pub(super) const BURST: usize = 32;
/// Bytes moved before completions are posted, so that the host has something
/// to do meanwhile.
const POST_BYTES: u64 = 512 << 10;
/// How long to wait with bus mastering off before looking again.
const BUS_MASTER_RETRY: Nanos = 1_000_000;

/// An NVMe controller.
#[derive(Debug)]
pub struct Controller {
    pub(super) config: Config,
    pub(super) namespaces: Vec<Namespace>,

    // Registers.
    pub(super) cap: Cap,
    pub(super) cc: Cc,
    pub(super) csts: Csts,
    pub(super) aqa: Aqa,
    pub(super) asq: u64,
    pub(super) acq: u64,
    /// Interrupt mask, of which the pin uses bit 0.
    pub(super) mask: u32,
    /// What was last stored to each doorbell.
    pub(super) doorbells: Vec<u32>,

    /// Bytes of a memory page, since the controller was enabled.
    pub(super) page: u64,
    /// Queues by id; 0 is the admin queue.
    pub(super) sqs: Vec<Option<SubmissionQueue>>,
    pub(super) cqs: Vec<Option<CompletionQueue>>,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) logs: Logs,

    // What follows is worked out from the above, or only speeds it up.
    /// Ids of the I/O submission queues.
    pub(super) io_queues: Vec<u16>,
    /// Indexes of the completion queues' doorbells.
    pub(super) cq_doorbells: Vec<usize>,
    /// The doorbell looked at last in the rotation through all of them.
    pub(super) probe: usize,
    /// Completion queues that may have something to post, a bit each.
    pub(super) touched: u128,
    /// Submission queues that may have commands to be taken, likewise.
    pub(super) waiting: u128,
    /// Id of the I/O queue to begin with.
    pub(super) next_queue: u32,
    /// Level of the pin, and whether it has to be worked out again.
    pub(super) pin: bool,
    pub(super) pin_changed: bool,
    /// A DMA was held back because bus mastering is off.
    held: bool,
    /// Its state has come from elsewhere, and it has not run since.
    pub(super) arrived: bool,
    pub(super) runs: Vec<Run>,
    pub(super) places: Places,
    pub(super) compare_buffers: [Vec<u8>; 2],
}

/// What is left of a turn.
struct Budget {
    commands: usize,
    bytes: u64,
    since_post: u64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.commands == 0 || self.bytes == 0
    }
}

impl Controller {
    /// A controller as after power on.
    #[must_use]
    pub fn new(mut config: Config) -> Controller {
        config.max_queue_pairs = config.max_queue_pairs.clamp(1, MAX_QUEUE_PAIRS);
        // As many as an Active Namespace List tells in one go.
        config.namespaces.truncate(1024);
        let disks = std::mem::take(&mut config.namespaces);
        let namespaces = (1..)
            .zip(disks)
            .map(|(id, disk)| Namespace::new(disk, config.lba_size, &config.serial, id))
            .collect::<Vec<_>>();
        let queues = usize::from(config.max_queue_pairs) + 1;
        Controller {
            namespaces,
            cap: Cap::new(MAX_ENTRIES, READY_TIMEOUT, MAX_PAGE),
            cc: Cc::default(),
            csts: Csts::empty(),
            aqa: Aqa::default(),
            asq: 0,
            acq: 0,
            mask: 0,
            doorbells: vec![0; DOORBELLS],
            page: 4096,
            sqs: vec![None; queues],
            cqs: vec![None; queues],
            features: Features::new(0),
            events: Events::default(),
            logs: Logs::new(),
            io_queues: Vec::new(),
            cq_doorbells: Vec::new(),
            probe: 0,
            touched: 0,
            waiting: 0,
            next_queue: 0,
            pin: false,
            pin_changed: false,
            held: false,
            arrived: false,
            runs: Vec::new(),
            places: Places::default(),
            compare_buffers: [Vec::new(), Vec::new()],
            config,
        }
    }

    /// Number of I/O queue pairs.
    pub(super) fn queue_pairs(&self) -> u16 {
        self.config.max_queue_pairs
    }

    pub(super) fn cq(&mut self, id: u16) -> Option<&mut CompletionQueue> {
        self.cqs.get_mut(usize::from(id))?.as_mut()
    }

    pub(super) fn has_io_queues(&self) -> bool {
        self.cqs.iter().skip(1).any(Option::is_some)
    }

    /// Queues have come or gone.
    pub(super) fn list_queues(&mut self) {
        self.io_queues = self.sqs.iter().skip(1).flatten().map(|queue| queue.id).collect();
        self.cq_doorbells = self.cqs.iter().flatten().map(|queue| 2 * usize::from(queue.id) + 1).collect();
        self.pin_changed = true;
    }

    /// CC is stored (3.1.5).
    pub(super) fn configure(&mut self, io: &mut Io<'_>, cc: Cc) {
        let old = std::mem::replace(&mut self.cc, cc);
        if old.enable() && !cc.enable() {
            self.controller_reset(io);
        }
        if cc.shutdown() != old.shutdown() {
            match cc.shutdown() {
                Shutdown::Normal | Shutdown::Abrupt => self.shut_down(),
                // Only a reset ends a shutdown.
                Shutdown::None if !cc.enable() => self.csts.remove(Csts::SHUT_DOWN),
                Shutdown::None | Shutdown::Reserved => {}
            }
        }
        if !old.enable() && cc.enable() {
            self.enable();
        }
        self.publish_status(io);
    }

    fn enable(&mut self) {
        let (cc, aqa) = (self.cc, self.aqa);
        self.page = 4096 << cc.mps().min(MAX_PAGE);
        let supported = cc.css() == 0 && cc.ams() == 0 && cc.mps() <= self.cap.max_page();
        let queues = aqa.submission_entries() >= 2 && aqa.completion_entries() >= 2;
        let aligned = self.asq.is_multiple_of(self.page) && self.acq.is_multiple_of(self.page);
        if !supported || !queues || !aligned {
            return self.fail("the settings in CC, AQA, ASQ or ACQ are not supported");
        }
        self.csts.remove(Csts::SHUT_DOWN);
        if let (Some(sq), Some(cq)) = (self.sqs.first_mut(), self.cqs.first_mut()) {
            *sq = Some(SubmissionQueue::new(0, 0, self.asq, aqa.submission_entries()));
            *cq = Some(CompletionQueue::new(0, self.acq, aqa.completion_entries(), Some(0)));
        }
        self.list_queues();
        self.csts.insert(Csts::RDY);
        event!(name: "enable", target: "vfuse::nvme", Level::DEBUG, serial = %self.config.serial, page = self.page);
    }

    /// Controller Reset (7.3.2): queues, features and events go; AQA, ASQ and
    /// ACQ stay.
    fn controller_reset(&mut self, io: &mut Io<'_>) {
        event!(name: "reset", target: "vfuse::nvme", Level::DEBUG, serial = %self.config.serial, kind = "controller");
        self.stop(io);
    }

    fn stop(&mut self, io: &mut Io<'_>) {
        self.sqs.fill(None);
        self.cqs.fill(None);
        self.list_queues();
        self.features = Features::new(io.now);
        self.events = Events::default();
        self.touched = 0;
        self.waiting = 0;
        self.next_queue = 0;
        self.held = false;
        self.arrived = false;
        self.set_mask(io, 0);
        // A program sees RDY go when the doorbells are zero already.
        self.clear_doorbells(io);
        self.csts = Csts::empty();
        self.publish_status(io);
    }

    fn shut_down(&mut self) {
        event!(name: "shutdown", target: "vfuse::nvme", Level::DEBUG, serial = %self.config.serial,
            kind = ?self.cc.shutdown());
        if let Err(error) = self.flush_all() {
            // There is no way to tell the host.
            event!(name: "shutdown_flush", target: "vfuse::nvme", Level::ERROR, serial = %self.config.serial, %error);
        }
        self.csts.insert(Csts::SHUT_DOWN);
    }

    /// Something failed that no completion can tell of: only a reset helps.
    fn fail(&mut self, reason: &str) {
        event!(name: "fatal", target: "vfuse::nvme", Level::WARN, serial = %self.config.serial, reason);
        self.csts.insert(Csts::CFS);
    }

    /// Whether commands are executed.
    fn is_running(&self) -> bool {
        self.csts == Csts::RDY
    }

    /// Adds a completion to the queue that its submission queue completes to.
    pub(super) fn complete(&mut self, sq_id: u16, cid: u16, dword: u32, status: Status, more: bool) {
        let Some(Some(sq)) = self.sqs.get(usize::from(sq_id)) else { return };
        let (cq_id, sq_head) = (sq.cq, sq.head());
        event!(name: "completion", target: "vfuse::nvme", Level::TRACE, serial = %self.config.serial,
            qid = sq_id, cid, %status, dword);
        if let Some(cq) = self.cq(cq_id) {
            cq.push(Completion {
                dw0: dword.into(),
                dw1: 0.into(),
                sq_head: sq_head.into(),
                sq_id: sq_id.into(),
                cid: cid.into(),
                status: status.field(more).into(),
            });
            self.touched |= 1 << cq_id;
        }
    }

    /// Something happened that the host may want to know.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        self.events.raise(event);
        self.report_events();
    }

    /// Completes event requests for which there are events.
    pub(super) fn report_events(&mut self) {
        while let Some((cid, event)) = self.events.next() {
            self.complete(0, cid, event.dword(), Status::SUCCESS, false);
        }
    }

    fn work(&mut self, io: &mut Io<'_>) -> Turn {
        if !self.is_running() {
            return Turn::Idle;
        }
        if self.features.keep_alive_deadline.is_some_and(|deadline| io.now >= deadline) {
            self.fail("the keep alive timer expired");
            self.publish_status(io);
            return Turn::Idle;
        }
        self.held = false;
        let mut budget = Budget { commands: TURN_COMMANDS, bytes: TURN_BYTES, since_post: 0 };
        let mut progress = self.waiting & 1 != 0 && self.run_queue(io, 0, &mut budget);
        // Round robin (4.13.1): from the queue after the last one served.
        let from = u128::MAX << self.next_queue;
        let io_queues = self.waiting & !1;
        for mut left in [io_queues & from, io_queues & !from] {
            while left != 0 && !budget.is_spent() {
                let id = left.trailing_zeros() as u16;
                left &= left - 1;
                if self.run_queue(io, id, &mut budget) {
                    progress = true;
                    self.next_queue = u32::from(id + 1);
                }
            }
        }
        progress |= self.post(io);
        if self.csts.contains(Csts::CFS) {
            self.publish_status(io);
            return Turn::Idle;
        }
        match (progress, self.held, self.features.keep_alive_deadline) {
            (true, ..) => Turn::Busy,
            (false, true, _) => Turn::Until(io.now.saturating_add(BUS_MASTER_RETRY)),
            (false, false, Some(deadline)) => Turn::Until(deadline),
            (false, false, None) => Turn::Idle,
        }
    }

    /// Executes a burst of commands of one queue; whether there were any.
    fn run_queue(&mut self, io: &mut Io<'_>, id: u16, budget: &mut Budget) -> bool {
        if !self.is_running() {
            return false;
        }
        let Some(sq) = self.sqs.get(usize::from(id)).and_then(Option::as_ref).filter(|sq| sq.waiting() > 0) else {
            self.waiting &= !(1 << id);
            return false;
        };
        let Some(Some(cq)) = self.cqs.get(usize::from(sq.cq)) else { return false };
        // A command begins only if its completion has a place.
        let count = BURST.min(budget.commands).min(cq.room() as usize);
        let mut burst = [Command::default(); BURST];
        let Some(commands) = burst.get_mut(..count).filter(|commands| !commands.is_empty()) else { return false };
        let fetched = match sq.fetch(&mut io.dma.session(), commands) {
            Ok(fetched) => fetched,
            Err(fault) => {
                self.queue_fault(id, fault, "a submission queue could not be read");
                return false;
            }
        };
        let mut left = commands.get(..fetched).unwrap_or_default();
        while let Some(command) = left.first()
            && budget.bytes > 0
            && self.is_running()
        {
            let batch = if id == 0 { 0 } else { self.batch(left, budget.bytes) };
            let bytes = if batch == 0 {
                self.take(id);
                self.execute(io, id, command)
            } else {
                self.transfer(io, id, left.get(..batch).unwrap_or_default())
            };
            let count = batch.max(1);
            left = left.get(count..).unwrap_or_default();
            budget.commands -= count;
            budget.bytes = budget.bytes.saturating_sub(bytes);
            budget.since_post += bytes;
            if budget.since_post >= POST_BYTES {
                budget.since_post = 0;
                self.post(io);
            }
        }
        true
    }

    /// Moves a submission queue's head past a command that is executed.
    pub(super) fn take(&mut self, sq: u16) {
        if let Some(Some(sq)) = self.sqs.get_mut(usize::from(sq)) {
            sq.take();
        }
    }

    pub(super) fn trace_command(&self, sq: u16, command: &Command) {
        event!(name: "command", target: "vfuse::nvme", Level::TRACE, serial = %self.config.serial,
            qid = sq, cid = command.cid.get(), opcode = command.opcode, nsid = command.nsid.get(),
            cdw10 = command.cdw10.get(), cdw11 = command.cdw11.get(), cdw12 = command.cdw12.get());
    }

    /// Executes one command; the bytes it moved.
    fn execute(&mut self, io: &mut Io<'_>, sq: u16, command: &Command) -> u64 {
        self.trace_command(sq, command);
        let cid = command.cid.get();
        let result = if sq == 0 {
            self.admin_command(io, command).map(|outcome| (outcome, 0))
        } else {
            self.nvm_command(io, command).map(|bytes| (Outcome::Complete(0), bytes))
        };
        match result {
            Ok((Outcome::Complete(dword), bytes)) => {
                self.complete(sq, cid, dword, Status::SUCCESS, false);
                bytes
            }
            Ok((Outcome::Outstanding, _)) => {
                self.report_events();
                0
            }
            Err(error) => {
                self.command_failed(sq, command, &error);
                0
            }
        }
    }

    pub(super) fn command_failed(&mut self, sq: u16, command: &Command, error: &Error) {
        let (cid, nsid, status) = (command.cid.get(), command.nsid.get(), error.status());
        event!(name: "command_failed", target: "vfuse::nvme", Level::DEBUG, serial = %self.config.serial,
            qid = sq, cid, opcode = command.opcode, nsid, %error);
        if let Error::Dma(fault) = error {
            self.trace_fault(sq, fault);
        }
        if error.is_medium() {
            self.logs.media_errors += 1;
        }
        // A comparison that fails is an answer, not an error.
        let logged = status != Status::COMPARE_FAILURE;
        if logged {
            let lba = if sq == 0 { 0 } else { command.slba() };
            self.logs.error(Culprit { sq, cid, nsid, lba }, status);
        }
        self.complete(sq, cid, 0, status, logged);
    }

    /// Posts what waits; one interrupt a queue. Whether anything was posted.
    fn post(&mut self, io: &mut Io<'_>) -> bool {
        let mut progress = false;
        let mut left = std::mem::take(&mut self.touched);
        while left != 0 {
            let id = left.trailing_zeros() as u16;
            left &= left - 1;
            let Some(cq) = self.cq(id).filter(|cq| cq.can_post()) else { continue };
            let vector = cq.vector;
            match cq.post(&mut io.dma.session()) {
                Ok(()) => {
                    progress = true;
                    self.pin_changed = true;
                    if let Some(vector) = vector {
                        io.interrupts.message(vector);
                    }
                }
                Err(fault) => {
                    self.touched |= 1 << id;
                    self.queue_fault(id, fault, "a completion queue could not be written");
                }
            }
        }
        progress
    }

    /// A queue could not be reached. With bus mastering off the request waits
    /// inside the function; everything else is fatal (3.1.6, CFS).
    fn queue_fault(&mut self, id: u16, fault: DmaFault, reason: &str) {
        if fault.reason == FaultReason::BusMasterOff {
            self.held = true;
            return;
        }
        self.trace_fault(id, &fault);
        self.fail(reason);
    }

    fn trace_fault(&self, qid: u16, fault: &DmaFault) {
        event!(name: "dma_fault", target: "vfuse::nvme", Level::WARN, serial = %self.config.serial,
            qid, iova = fault.iova, access = ?fault.access, reason = ?fault.reason);
    }

    /// The pin is asserted while a queue with interrupts on has completions
    /// that the host has not consumed (7.5.1.1).
    fn drive_pin(&mut self, io: &Io<'_>) {
        if !std::mem::take(&mut self.pin_changed) {
            return;
        }
        let asks = |cq: &CompletionQueue| cq.vector.is_some() && cq.used() > 0;
        let level = self.mask & 1 == 0 && self.cqs.iter().flatten().any(asks);
        if level != self.pin {
            self.pin = level;
            io.interrupts.set_pin(level);
        }
    }
}

impl Device for Controller {
    fn function(&self) -> FunctionSpec {
        self.config.function()
    }

    fn read(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar == 0 {
            self.scan(io); // Stores through a mapping come before.
            self.load_bytes(offset, data);
        }
    }

    fn write(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        if bar == 0 {
            self.scan(io);
            self.store_bytes(io, offset, data);
            self.drive_pin(io);
        }
    }

    fn publish(&mut self, io: &mut Io<'_>) {
        self.publish_registers(io);
    }

    fn collect(&mut self, io: &mut Io<'_>) {
        self.scan_everything(io);
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        self.scan_quickly(io);
        if io.activity != Activity::Running {
            // Doorbells are kept, what they tell of waits (MIG-049).
            self.drive_pin(io);
            return Turn::Idle;
        }
        self.announce(io);
        let turn = self.work(io);
        self.drive_pin(io);
        turn
    }

    fn reset(&mut self, io: &mut Io<'_>, kind: ResetKind) {
        event!(name: "reset", target: "vfuse::nvme", Level::DEBUG, serial = %self.config.serial, ?kind);
        if kind == ResetKind::PowerOn {
            self.logs.power_cycles += 1;
            self.logs.unsafe_shutdowns += u64::from(self.is_running());
        }
        self.cc = Cc::default();
        self.aqa = Aqa::default();
        (self.asq, self.acq) = (0, 0);
        self.stop(io);
        self.drive_pin(io);
    }

    fn identity(&self) -> Option<Vec<u8>> {
        Some(self.saved_identity())
    }

    fn save(&mut self, io: &mut Io<'_>) -> Vec<u8> {
        self.saved_state(io)
    }

    fn load(&mut self, io: &mut Io<'_>, state: &[u8]) -> Result<(), LoadError> {
        self.load_state(io, state)
    }
}
