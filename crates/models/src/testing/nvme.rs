// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small NVMe driver. It reaches the controller through a [`Machine`], so it
//! works on a [`Bench`] as well as through a whole lab.

use std::collections::BTreeMap;
use std::ops::Range;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Bench;
use crate::nvme::spec::{
    AdminOpcode, Aqa, Cc, Cns, Command, Completion, Csts, Feature, NvmOpcode, Register, Status, doorbell,
};

/// What a driver stands on.
pub trait Machine {
    /// Loads a 32-bit register of BAR 0.
    fn load(&mut self, offset: u64) -> u32;
    /// Stores to a 32-bit register of BAR 0.
    fn store(&mut self, offset: u64, value: u32);
    /// Copies memory at an IOVA of [`memory`](Self::memory).
    fn get(&self, iova: u64, to: &mut [u8]);
    /// Fills memory at an IOVA of [`memory`](Self::memory).
    fn set(&self, iova: u64, from: &[u8]);
    /// IOVAs that the driver may use, page aligned.
    fn memory(&self) -> Range<u64>;
    /// Gives the device time; `false`: nothing will happen without a store.
    fn step(&mut self) -> bool;
}

impl Machine for Bench {
    fn load(&mut self, offset: u64) -> u32 {
        self.load_bar(0, offset)
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.store_bar(0, offset, value);
    }

    fn get(&self, iova: u64, to: &mut [u8]) {
        self.memory.get(iova, to);
    }

    fn set(&self, iova: u64, from: &[u8]) {
        self.memory.set(iova, from);
    }

    fn memory(&self) -> Range<u64> {
        // Page 0 stays unused, so that a null pointer is found out.
        4096..self.memory.size() as u64
    }

    fn step(&mut self) -> bool {
        self.turn() == device::Turn::Busy
    }
}

/// Why the driver gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// CSTS never became what was waited for.
    #[error("the controller does not answer; CSTS is {0:?}")]
    Timeout(Csts),
    /// A command ended with an error.
    #[error("{0}")]
    Status(Status),
    /// A command never completed.
    #[error("command {0:#x} did not complete")]
    Lost(u16),
    /// The memory is used up.
    #[error("no memory left for the driver")]
    NoMemory,
    /// There is no such queue pair, or no place in it.
    #[error("queue {0} does not exist or is full")]
    Queue(u16),
}

impl From<Status> for DriverError {
    fn from(status: Status) -> DriverError {
        DriverError::Status(status)
    }
}

/// A submission queue and its completion queue.
#[derive(Clone, Copy, Debug)]
pub struct QueuePair {
    /// IOVA of the submission queue.
    pub sq: u64,
    /// IOVA of the completion queue.
    pub cq: u64,
    /// Entries of each.
    pub entries: u16,
    tail: u16,
    sq_head: u16,
    head: u16,
    phase: bool,
}

impl QueuePair {
    fn next(&self, index: u16) -> u16 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }

    /// Commands that can be submitted without overrunning the queue.
    #[must_use]
    pub fn room(&self) -> u16 {
        let used = if self.tail >= self.sq_head { self.tail } else { self.tail + self.entries } - self.sq_head;
        self.entries - 1 - used
    }
}

/// The driver.
#[derive(Debug)]
pub struct Driver<M> {
    /// What it stands on.
    pub machine: M,
    /// Steps to wait for something.
    pub patience: usize,
    queues: BTreeMap<u16, QueuePair>,
    page: u64,
    next_free: u64,
    next_cid: u16,
}

impl<M: Machine> Driver<M> {
    /// A driver that has touched nothing yet.
    pub fn new(machine: M) -> Driver<M> {
        let next_free = machine.memory().start;
        Driver { machine, patience: 10_000, queues: BTreeMap::new(), page: 4096, next_free, next_cid: 0 }
    }

    /// Loads a register.
    pub fn register(&mut self, register: Register) -> u32 {
        self.machine.load(register.raw().into())
    }

    /// Stores to a register.
    pub fn set_register(&mut self, register: Register, value: u32) {
        self.machine.store(register.raw().into(), value);
    }

    /// CSTS.
    pub fn status(&mut self) -> Csts {
        Csts::from_bits_retain(self.register(Register::Csts))
    }

    /// Pages for `len` bytes; never given back.
    pub fn alloc(&mut self, len: u64) -> Result<u64, DriverError> {
        let iova = self.next_free.next_multiple_of(self.page);
        let end = iova + len.next_multiple_of(self.page);
        if end > self.machine.memory().end {
            return Err(DriverError::NoMemory);
        }
        self.next_free = end;
        Ok(iova)
    }

    /// Gives all memory back; queues are forgotten.
    pub fn forget(&mut self) {
        self.next_free = self.machine.memory().start;
        self.queues.clear();
    }

    /// Waits until CSTS has or lacks a bit.
    pub fn wait(&mut self, bit: Csts, set: bool) -> Result<(), DriverError> {
        for _ in 0..self.patience {
            let status = self.status();
            if status.contains(bit) == set {
                return Ok(());
            }
            if set && status.contains(Csts::CFS) {
                return Err(DriverError::Timeout(status));
            }
            self.machine.step();
        }
        Err(DriverError::Timeout(self.status()))
    }

    /// Disables the controller and waits until it is.
    pub fn disable(&mut self) -> Result<(), DriverError> {
        let cc = self.register(Register::Cc);
        self.set_register(Register::Cc, cc & !1);
        self.wait(Csts::RDY, false)
    }

    /// Resets and enables the controller with an admin queue of that size.
    pub fn enable(&mut self, entries: u16) -> Result<(), DriverError> {
        self.enable_with(entries, Cc::ENABLED)
    }

    /// The same with a configuration of the caller's.
    pub fn enable_with(&mut self, entries: u16, cc: Cc) -> Result<(), DriverError> {
        self.disable()?;
        self.forget();
        self.page = 4096 << cc.mps();
        let pair = self.queue_memory(entries)?;
        self.set_register(Register::Aqa, Aqa::new(entries, entries).0);
        self.set_register(Register::AsqLow, pair.sq as u32);
        self.set_register(Register::AsqHigh, (pair.sq >> 32) as u32);
        self.set_register(Register::AcqLow, pair.cq as u32);
        self.set_register(Register::AcqHigh, (pair.cq >> 32) as u32);
        self.set_register(Register::Cc, cc.0);
        self.wait(Csts::RDY, true)?;
        self.queues.insert(0, pair);
        Ok(())
    }

    /// Tells the controller of a normal shutdown and waits for its end.
    pub fn shut_down(&mut self) -> Result<(), DriverError> {
        let cc = self.register(Register::Cc);
        self.set_register(Register::Cc, cc & !(3 << 14) | 1 << 14);
        self.wait(Csts::SHUT_DOWN, true)
    }

    /// Zeroed memory for a queue pair.
    pub fn queue_memory(&mut self, entries: u16) -> Result<QueuePair, DriverError> {
        let (sq_len, cq_len) =
            (u64::from(entries) * Command::SIZE as u64, u64::from(entries) * Completion::SIZE as u64);
        let (sq, cq) = (self.alloc(sq_len)?, self.alloc(cq_len)?);
        self.machine.set(sq, &vec![0; sq_len as usize]);
        self.machine.set(cq, &vec![0; cq_len as usize]);
        Ok(QueuePair { sq, cq, entries, tail: 0, sq_head: 0, head: 0, phase: true })
    }

    /// Creates an I/O queue pair; `vector`: with interrupts.
    pub fn create_queue_pair(&mut self, id: u16, entries: u16, vector: Option<u16>) -> Result<(), DriverError> {
        let pair = self.queue_memory(entries)?;
        let size = u32::from(id) | u32::from(entries - 1) << 16;
        self.admin(Command {
            cdw10: size.into(),
            cdw11: vector.map_or(1, |vector| 3 | u32::from(vector) << 16).into(),
            prp1: pair.cq.into(),
            ..command(AdminOpcode::CreateCompletionQueue)
        })?;
        self.admin(Command {
            cdw10: size.into(),
            cdw11: (1 | u32::from(id) << 16).into(),
            prp1: pair.sq.into(),
            ..command(AdminOpcode::CreateSubmissionQueue)
        })?;
        self.queues.insert(id, pair);
        Ok(())
    }

    /// Deletes an I/O queue pair.
    pub fn delete_queue_pair(&mut self, id: u16) -> Result<(), DriverError> {
        for opcode in [AdminOpcode::DeleteSubmissionQueue, AdminOpcode::DeleteCompletionQueue] {
            self.admin(Command { cdw10: u32::from(id).into(), ..command(opcode) })?;
        }
        self.queues.remove(&id);
        Ok(())
    }

    /// A queue pair.
    #[must_use]
    pub fn queue(&self, id: u16) -> Option<&QueuePair> {
        self.queues.get(&id)
    }

    /// Puts a command into a queue, with a fresh command id; the controller is
    /// not told.
    pub fn put(&mut self, id: u16, mut command: Command) -> Result<u16, DriverError> {
        let pair = self.queues.get_mut(&id).filter(|pair| pair.room() > 0).ok_or(DriverError::Queue(id))?;
        let cid = self.next_cid;
        // FFFFh means no command in the error log.
        self.next_cid = if cid == 0xfffe { 0 } else { cid + 1 };
        command.cid.set(cid);
        self.machine.set(pair.sq + u64::from(pair.tail) * Command::SIZE as u64, command.as_bytes());
        pair.tail = pair.next(pair.tail);
        Ok(cid)
    }

    /// Tells the controller of what was put into a queue.
    pub fn ring(&mut self, id: u16) {
        if let Some(pair) = self.queues.get(&id) {
            self.machine.store(doorbell::submission(id), pair.tail.into());
        }
    }

    /// Puts a command into a queue and tells the controller.
    pub fn submit(&mut self, id: u16, command: Command) -> Result<u16, DriverError> {
        let cid = self.put(id, command)?;
        self.ring(id);
        Ok(cid)
    }

    /// Takes the next completion, if there is one; the controller is not told.
    pub fn peek(&mut self, id: u16) -> Option<Completion> {
        let pair = self.queues.get_mut(&id)?;
        let mut completion = Completion::new_zeroed();
        self.machine.get(pair.cq + u64::from(pair.head) * Completion::SIZE as u64, completion.as_mut_bytes());
        if completion.phase() != pair.phase {
            return None;
        }
        pair.sq_head = completion.sq_head.get();
        pair.head = pair.next(pair.head);
        if pair.head == 0 {
            pair.phase = !pair.phase;
        }
        Some(completion)
    }

    /// Takes all completions and gives their entries back.
    pub fn reap(&mut self, id: u16) -> Vec<Completion> {
        let mut completions = Vec::new();
        while let Some(completion) = self.peek(id) {
            completions.push(completion);
        }
        if !completions.is_empty() {
            self.release(id);
        }
        completions
    }

    /// Gives the entries of the completions taken back to the controller.
    pub fn release(&mut self, id: u16) {
        if let Some(pair) = self.queues.get(&id) {
            self.machine.store(doorbell::completion(id), pair.head.into());
        }
    }

    /// Executes one command on a queue that is otherwise idle.
    pub fn execute(&mut self, id: u16, command: Command) -> Result<Completion, DriverError> {
        let cid = self.submit(id, command)?;
        for _ in 0..self.patience {
            self.machine.step();
            if let Some(completion) = self.peek(id) {
                self.release(id);
                return if completion.cid.get() == cid { Ok(completion) } else { Err(DriverError::Lost(cid)) };
            }
        }
        Err(DriverError::Lost(cid))
    }

    /// Executes a command and wants success; dword 0 of the completion.
    pub fn succeed(&mut self, id: u16, command: Command) -> Result<u32, DriverError> {
        let completion = self.execute(id, command)?;
        match completion.status() {
            Status::SUCCESS => Ok(completion.dw0.get()),
            status => Err(status.into()),
        }
    }

    /// Executes an admin command and wants success; dword 0 of the completion.
    pub fn admin(&mut self, command: Command) -> Result<u32, DriverError> {
        self.succeed(0, command)
    }

    /// Points a command at `len` bytes of contiguous memory, with a PRP list
    /// where it takes one.
    pub fn point(&mut self, mut command: Command, iova: u64, len: u64) -> Result<Command, DriverError> {
        command.prp1.set(iova);
        let first = self.page - iova % self.page;
        if len <= first {
            return Ok(command);
        }
        let second = iova + first;
        if len <= first + self.page {
            command.prp2.set(second);
            return Ok(command);
        }
        let pages: Vec<u64> = (second..iova + len).step_by(self.page as usize).collect();
        let list = self.prp_list(&pages)?;
        command.prp2.set(list);
        Ok(command)
    }

    /// A PRP list of these pages, chained where it takes more than one page.
    pub fn prp_list(&mut self, pages: &[u64]) -> Result<u64, DriverError> {
        let entries = self.page as usize / 8;
        let here = if pages.len() > entries { entries - 1 } else { pages.len() };
        let (now, later) = pages.split_at(here);
        let list = self.alloc(self.page)?;
        let mut entries: Vec<u64> = now.to_vec();
        if !later.is_empty() {
            entries.push(self.prp_list(later)?);
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.machine.set(list, &bytes);
        Ok(list)
    }

    /// A read, write or compare of `blocks` blocks of `size` bytes at `slba`
    /// of namespace 1, with its data at `iova`.
    pub fn transfer(
        &mut self,
        opcode: NvmOpcode,
        slba: u64,
        blocks: u32,
        size: u64,
        iova: u64,
    ) -> Result<Command, DriverError> {
        self.point(blocks_command(opcode, 1, slba, blocks), iova, u64::from(blocks) * size)
    }

    /// Identify, into fresh memory.
    pub fn identify<T: FromBytes + IntoBytes>(&mut self, cns: Cns, nsid: u32) -> Result<T, DriverError> {
        let iova = self.alloc(4096)?;
        let identify = Command {
            nsid: nsid.into(),
            cdw10: u32::from(cns.raw()).into(),
            prp1: iova.into(),
            ..command(AdminOpcode::Identify)
        };
        self.admin(identify)?;
        let mut data = T::new_zeroed();
        self.machine.get(iova, data.as_mut_bytes());
        Ok(data)
    }

    /// Set Features; dword 0 of the completion.
    pub fn set_feature(&mut self, feature: Feature, value: u32) -> Result<u32, DriverError> {
        self.admin(Command {
            cdw10: u32::from(feature.raw()).into(),
            cdw11: value.into(),
            ..command(AdminOpcode::SetFeatures)
        })
    }

    /// Get Features of the current value.
    pub fn feature(&mut self, feature: Feature) -> Result<u32, DriverError> {
        self.admin(Command { cdw10: u32::from(feature.raw()).into(), ..command(AdminOpcode::GetFeatures) })
    }
}

/// An admin command with nothing but its opcode.
#[must_use]
pub fn command(opcode: AdminOpcode) -> Command {
    Command { opcode: opcode.raw(), ..Command::default() }
}

/// An NVM command about blocks, without a data pointer.
#[must_use]
pub fn blocks_command(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32) -> Command {
    Command {
        opcode: opcode.raw(),
        nsid: nsid.into(),
        cdw10: (slba as u32).into(),
        cdw11: ((slba >> 32) as u32).into(),
        cdw12: (blocks.wrapping_sub(1) & 0xffff).into(),
        ..Command::default()
    }
}
