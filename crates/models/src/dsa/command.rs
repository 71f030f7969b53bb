// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands.

use device::Io;

use super::Accelerator;
use super::portal;
use super::spec::{CommandError, ResetType, State, cause, command, field, wqcfg};

/// A command that waits for descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) wait: Wait,
    pub(super) then: Then,
    pub(super) interrupt: bool,
}

/// What it waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// These queues, a bit each.
    Queues(u32),
    /// Descriptors with this PASID.
    Pasid(u32),
}

/// What is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    DisableQueues,
    DisableDevice,
}

/// What a command comes to at once.
enum Done {
    /// It has this result.
    Result(u16),
    Waits(Wait, Then),
}

const DONE: Result<Done, CommandError> = Ok(Done::Result(0));

impl Accelerator {
    /// A store to the command register.
    pub(super) fn command(&mut self, io: &Io<'_>, value: u32) {
        if self.pending.is_some() {
            // A driver waits before it gives another one.
            tracing::debug!(target: "vfuse::dsa", value, "command while one is under way: ignored");
            return;
        }
        let (number, operand) = (value >> 20 & 0x1f, value & 0xf_ffff);
        let interrupt = value & command::INTERRUPT != 0;
        let done = self.carry_out(io, number, operand);
        let result = done.as_ref().err();
        tracing::debug!(target: "vfuse::dsa", number, operand, ?result, "command");
        match done {
            Ok(Done::Result(result)) => self.command_done(io, u32::from(result) << 8, interrupt),
            Ok(Done::Waits(wait, then)) => {
                self.pending = Some(Pending { wait, then, interrupt });
                self.show_command(io, command::ACTIVE);
                self.finish_command(io);
            }
            Err(error) => self.command_done(io, error as u32, interrupt),
        }
    }

    fn command_done(&mut self, io: &Io<'_>, status: u32, interrupt: bool) {
        self.show_command(io, status);
        if interrupt {
            self.interrupt_cause(io, cause::COMMAND);
        }
    }

    /// Ends a command that has nothing to wait for any more; whether it did.
    pub(super) fn finish_command(&mut self, io: &Io<'_>) -> bool {
        let Some(Pending { wait, then, interrupt }) = self.pending else { return false };
        let busy = match wait {
            Wait::Queues(queues) => self.chosen(queues).any(|n| self.queues.get(n).is_some_and(|q| q.occupancy() > 0)),
            Wait::Pasid(pasid) => self.queues.iter().any(|queue| queue.pasids().any(|p| p == pasid)),
        };
        if busy {
            return false;
        }
        self.pending = None;
        if let Wait::Pasid(pasid) = wait {
            io.page_requests.stop(pasid);
        }
        if let (Wait::Queues(queues), Then::DisableQueues | Then::DisableDevice) = (wait, then) {
            self.disable_queues(io, queues);
        }
        if then == Then::DisableDevice {
            self.set_state(io, State::Disabled);
        }
        self.command_done(io, 0, interrupt);
        true
    }

    /// Numbers of the queues that exist, of a bit each.
    fn chosen(&self, queues: u32) -> impl Iterator<Item = usize> + use<> {
        (0..usize::from(self.config.queues)).filter(move |n| queues & 1 << n != 0)
    }

    /// Queues of an operand: 16 of them, a bit each, in the half that its high
    /// bits say.
    fn operand_queues(&self, operand: u32) -> Result<u32, CommandError> {
        let existing = (1_u32 << self.config.queues) - 1;
        match (operand >> 16, operand & 0xffff) {
            (0, queues) if queues != 0 && queues & !existing == 0 => Ok(queues),
            _ => Err(CommandError::Queue),
        }
    }

    fn carry_out(&mut self, io: &Io<'_>, number: u32, operand: u32) -> Result<Done, CommandError> {
        if number > 31 || self.config.commands() & 1 << number == 0 {
            return Err(CommandError::Command);
        }
        let enabled = self.state() == State::Enabled;
        let needs_device = |error| if enabled { Ok(()) } else { Err(error) };
        match number {
            command::ENABLE_DEVICE => self.enable_device(io),
            command::DISABLE_DEVICE => {
                needs_device(CommandError::Disabled)?;
                self.set_state(io, State::Draining);
                Ok(Done::Waits(Wait::Queues(u32::MAX), Then::DisableDevice))
            }
            command::DRAIN_ALL => Ok(Done::Waits(Wait::Queues(u32::MAX), Then::Nothing)),
            command::ABORT_ALL => {
                self.abort_queues(io, u32::MAX);
                DONE
            }
            command::RESET_DEVICE => {
                self.disable_queues(io, u32::MAX);
                self.reset_registers(ResetType::Software);
                self.publish_registers(io);
                DONE
            }
            command::ENABLE_QUEUE => self.enable_queue(io, operand),
            command::DISABLE_QUEUE | command::DRAIN_QUEUE => {
                needs_device(CommandError::QueueDisabled)?;
                let then = if number == command::DISABLE_QUEUE { Then::DisableQueues } else { Then::Nothing };
                Ok(Done::Waits(Wait::Queues(self.operand_queues(operand)?), then))
            }
            command::ABORT_QUEUE => {
                needs_device(CommandError::QueueDisabled)?;
                let queues = self.operand_queues(operand)?;
                self.abort_queues(io, queues);
                DONE
            }
            command::RESET_QUEUE => {
                needs_device(CommandError::QueueDisabled)?;
                let queues = self.operand_queues(operand)?;
                self.disable_queues(io, queues);
                for queue in self.chosen(queues) {
                    self.reset_queue(io, queue);
                }
                DONE
            }
            command::DRAIN_PASID => Ok(Done::Waits(Wait::Pasid(operand), Then::Nothing)),
            command::ABORT_PASID => {
                self.queues.iter_mut().for_each(|queue| queue.abort_pasid(operand));
                io.page_requests.stop(operand);
                DONE
            }
            command::REQUEST_HANDLE | command::RELEASE_HANDLE => {
                // A handle is the number of its vector.
                let vector = operand as u16;
                if operand & command::IMS != 0 || vector == 0 || vector >= self.config.vectors() {
                    return Err(CommandError::Vector);
                }
                Ok(Done::Result(if number == command::REQUEST_HANDLE { vector } else { 0 }))
            }
            _ => Err(CommandError::Command),
        }
    }

    fn enable_device(&mut self, io: &Io<'_>) -> Result<Done, CommandError> {
        if self.state() != State::Disabled {
            return Err(CommandError::DeviceEnabled);
        }
        if !io.dma.is_bus_master() {
            return Err(CommandError::BusMaster);
        }
        self.check_device()?;
        self.serve();
        self.set_state(io, State::Enabled);
        DONE
    }

    /// Whether the device can be enabled with this configuration.
    pub(super) fn check_device(&self) -> Result<(), CommandError> {
        let sizes = (0..usize::from(self.config.queues)).map(|queue| self.wqcfg(queue, wqcfg::SIZE));
        if sizes.clone().sum::<u32>() > self.config.entries.into() {
            return Err(CommandError::TotalSize);
        }
        let (mut queues, mut engines) = (0, 0);
        for group in 0..self.config.engines {
            let (own_queues, own_engines) = self.group(group);
            if queues & own_queues != 0 {
                return Err(CommandError::QueueGroups);
            }
            if engines & own_engines != 0 {
                return Err(CommandError::EngineGroups);
            }
            if own_queues != 0 && own_engines == 0 {
                return Err(CommandError::NoEngine);
            }
            queues |= own_queues;
            engines |= own_engines;
        }
        if sizes.enumerate().any(|(queue, size)| size > 0 && queues & 1 << queue == 0) {
            return Err(CommandError::NoGroup);
        }
        Ok(())
    }

    fn enable_queue(&mut self, io: &Io<'_>, operand: u32) -> Result<Done, CommandError> {
        if self.state() != State::Enabled {
            return Err(CommandError::DeviceNotEnabled);
        }
        let number = operand as usize;
        let Some(queue) = self.queues.get(number) else { return Err(CommandError::Queue) };
        if queue.enabled {
            return Err(CommandError::QueueEnabled);
        }
        let size = self.check_queue(number)?;
        if let Some(queue) = self.queues.get_mut(number) {
            queue.enabled = true;
            queue.size = size;
            queue.next = 0;
        }
        self.show_queue(io, number);
        DONE
    }

    /// Entries of a queue, if it can be enabled with its configuration.
    pub(super) fn check_queue(&self, number: usize) -> Result<usize, CommandError> {
        let [size, mode, limits] = [wqcfg::SIZE, wqcfg::MODE, wqcfg::LIMITS].map(|word| self.wqcfg(number, word));
        if size == 0 {
            return Err(CommandError::QueueSize);
        }
        if field(mode, wqcfg::PRIORITY) == 0 {
            return Err(CommandError::Priority);
        }
        if mode & (wqcfg::DEDICATED | wqcfg::PASID_ENABLE) == 0 {
            return Err(CommandError::NeedsPasid);
        }
        if field(limits, wqcfg::MAX_BATCH) > self.config.max_batch.into() {
            return Err(CommandError::BatchSize);
        }
        if field(limits, wqcfg::MAX_TRANSFER) > self.config.max_transfer.into() {
            return Err(CommandError::TransferSize);
        }
        Ok(size as usize)
    }

    fn abort_queues(&mut self, io: &Io<'_>, queues: u32) {
        for number in self.chosen(queues) {
            if let Some(queue) = self.queues.get_mut(number) {
                queue.abort();
            }
            self.show_queue(io, number);
        }
    }

    /// Drops what is in them, if anything is, and takes nothing more.
    fn disable_queues(&mut self, io: &Io<'_>, queues: u32) {
        for number in self.chosen(queues) {
            if let Some(queue) = self.queues.get_mut(number).filter(|queue| queue.enabled) {
                queue.abort();
                queue.enabled = false;
                portal::clear(io, number);
            }
            self.show_queue(io, number);
        }
    }
}
