// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SET_IRQS: checks in Linux's order, then the matrix of index, action and
//! data (vfio-api.md, sections 6.4 to 6.6).

use std::sync::Arc;

use ::device::{Board, Event, Mode};
use caller::Caller;
use pci::cap;
use uapi::Errno;
use uapi::vfio::device::{IrqSet, IrqSetFlags, irq_index};
use uapi::vfio::recovery::{IRQ_NON_FATAL, IRQ_PASSIVE_RESET};

use super::state::Device;
use super::watches::{Action, Watches};
use crate::args;

/// Bytes of the fixed part.
const MINSZ: u32 = size_of::<IrqSet>() as u32;

/// What a request carries.
enum Data {
    None,
    /// A byte a vector.
    Bool(Vec<u8>),
    /// A descriptor a vector.
    Eventfd(Vec<i32>),
}

/// The vectors that a request is about.
#[derive(Clone, Copy)]
struct Range {
    start: u16,
    count: u16,
}

impl Range {
    fn is_first_only(self) -> bool {
        self.start == 0 && self.count == 1
    }

    fn vectors(self) -> std::ops::Range<u16> {
        self.start..self.start.saturating_add(self.count)
    }
}

/// What a call may use.
pub(super) struct Tools<'a> {
    pub(super) caller: &'a dyn Caller,
    pub(super) board: &'a mut Board,
    pub(super) watches: &'a mut Watches,
    pub(super) now: u64,
}

impl Tools<'_> {
    /// The eventfd `fd`; `None` for a negative one.
    fn event(&self, fd: i32) -> Result<Option<Arc<dyn Event>>, Errno> {
        if fd < 0 { Ok(None) } else { self.caller.event(fd).map(Some) }
    }
}

impl Device {
    /// How many vectors an index has (API-146); an index that does not exist
    /// has none.
    pub(super) fn irq_count(&self, board: &Board, index: u32) -> u32 {
        let Some(function) = board.fabric.function(self.address) else { return 0 };
        match index {
            irq_index::INTX => u32::from(self.config.pin() != 0),
            irq_index::MSI => {
                function.capability(cap::MSI).map_or(0, |at| 1 << (function.read(at + 2, 2) >> 1 & 7).min(5))
            }
            irq_index::MSIX => function.capability(cap::MSIX).map_or(0, |at| (function.read(at + 2, 2) & 0x7ff) + 1),
            irq_index::ERR => u32::from(function.capability(cap::EXPRESS).is_some()),
            irq_index::REQ => 1,
            _ if self.recovery.has_irq(index) => u32::from(function.capability(cap::EXPRESS).is_some()),
            _ => 0,
        }
    }

    /// SET_IRQS. The value is 0, or the number of vectors to be had (API-165).
    pub(super) fn set_irqs(&mut self, arg: u64, tools: &mut Tools<'_>) -> Result<u64, Errno> {
        let set: IrqSet = args::read_plain(tools.caller, arg)?;
        let index_count = self.irq_count(tools.board, set.index);
        let data_size = validate(&set, self.recovery.irq_indexes(), index_count)?;
        let data = read_data(tools.caller, arg, &set, data_size)?;
        let range = Range { start: set.start as u16, count: set.count as u16 };
        let action = IrqSetFlags::from_bits_retain(set.flags) & IrqSetFlags::ACTION_TYPE;
        match (set.index, action) {
            (irq_index::INTX, IrqSetFlags::ACTION_MASK) => self.mask_intx(range, &data),
            (irq_index::INTX, IrqSetFlags::ACTION_UNMASK) => self.unmask_intx(range, &data, tools),
            (irq_index::INTX, IrqSetFlags::ACTION_TRIGGER) => self.trigger_intx(range, &data, tools),
            (irq_index::MSI, IrqSetFlags::ACTION_TRIGGER) => self.trigger_msi(Mode::Msi, range, &data, tools),
            (irq_index::MSIX, IrqSetFlags::ACTION_TRIGGER) => self.trigger_msi(Mode::Msix, range, &data, tools),
            (irq_index::ERR, IrqSetFlags::ACTION_TRIGGER) => trigger_single(&mut self.error, range, &data, tools),
            (irq_index::REQ, IrqSetFlags::ACTION_TRIGGER) => trigger_single(&mut self.request, range, &data, tools),
            (IRQ_NON_FATAL, IrqSetFlags::ACTION_TRIGGER) => {
                trigger_single(&mut self.recovery.non_fatal, range, &data, tools)
            }
            (IRQ_PASSIVE_RESET, IrqSetFlags::ACTION_TRIGGER) => {
                trigger_single(&mut self.recovery.passive_reset, range, &data, tools)
            }
            // API-151, API-162
            _ => Err(Errno::ENOTTY),
        }?;
        Ok(0)
    }

    /// API-153, API-154
    fn mask_intx(&mut self, range: Range, data: &Data) -> Result<(), Errno> {
        if self.endpoint.interrupts.mode() != Mode::Intx || !range.is_first_only() {
            return Err(Errno::EINVAL);
        }
        match data {
            Data::None => {
                self.endpoint.interrupts.mask_intx();
            }
            Data::Bool(bytes) => {
                if is_set(bytes, 0) {
                    self.endpoint.interrupts.mask_intx();
                }
            }
            Data::Eventfd(_) => return Err(Errno::ENOTTY),
        }
        Ok(())
    }

    /// API-153, API-155, API-156
    fn unmask_intx(&mut self, range: Range, data: &Data, tools: &mut Tools<'_>) -> Result<(), Errno> {
        if self.endpoint.interrupts.mode() != Mode::Intx || !range.is_first_only() {
            return Err(Errno::EINVAL);
        }
        match data {
            Data::None => self.endpoint.interrupts.unmask_intx(),
            Data::Bool(bytes) => {
                if is_set(bytes, 0) {
                    self.endpoint.interrupts.unmask_intx();
                }
            }
            Data::Eventfd(fds) => match tools.event(first(fds))? {
                Some(_) if self.unmask.is_some() => return Err(Errno::EBUSY),
                Some(event) => self.unmask = Some(tools.watches.add(self.address, Action::Unmask, &event)),
                None => self.remove_unmask(tools.watches),
            },
        }
        Ok(())
    }

    /// API-157 to API-161
    fn trigger_intx(&mut self, range: Range, data: &Data, tools: &mut Tools<'_>) -> Result<(), Errno> {
        let mode = self.endpoint.interrupts.mode();
        if mode == Mode::Intx && range.count == 0 && matches!(data, Data::None) {
            self.disable_irqs(tools.board, tools.watches, tools.now);
            return Ok(());
        }
        if !matches!(mode, Mode::Intx | Mode::None) || !range.is_first_only() {
            return Err(Errno::EINVAL);
        }
        if let Data::Eventfd(fds) = data {
            let event = tools.event(first(fds))?;
            if mode == Mode::Intx {
                self.endpoint.interrupts.set_intx_event(event);
            } else {
                self.enable_intx(event, tools);
            }
            return Ok(());
        }
        if mode != Mode::Intx {
            return Err(Errno::EINVAL);
        }
        if !matches!(data, Data::Bool(bytes) if !is_set(bytes, 0)) {
            self.endpoint.interrupts.trigger_intx();
        }
        Ok(())
    }

    fn enable_intx(&mut self, event: Option<Arc<dyn Event>>, tools: &mut Tools<'_>) {
        if self.intx_maskable {
            self.set_intx_disable(tools.board, self.intx_disabled, tools.now);
        }
        self.endpoint.interrupts.enable_intx(event);
        tracing::debug!(name: "vfio.irq_enable", device = %self.address, mode = ?Mode::Intx);
    }

    fn remove_unmask(&mut self, watches: &mut Watches) {
        if let Some(id) = self.unmask.take() {
            watches.remove(id);
        }
    }

    /// API-163 to API-169
    fn trigger_msi(&mut self, kind: Mode, range: Range, data: &Data, tools: &mut Tools<'_>) -> Result<(), Errno> {
        let mode = self.endpoint.interrupts.mode();
        if mode == kind && range.count == 0 && matches!(data, Data::None) {
            self.disable_irqs(tools.board, tools.watches, tools.now);
            return Ok(());
        }
        if mode != kind && mode != Mode::None {
            return Err(Errno::EINVAL);
        }
        if let Data::Eventfd(fds) = data {
            if mode == kind {
                return self.bind_vectors(range, fds, tools);
            }
            self.enable_msi(kind, range.vectors().end, tools)?;
            return self.bind_vectors(range, fds, tools).inspect_err(|_| {
                self.disable_irqs(tools.board, tools.watches, tools.now);
            });
        }
        if mode != kind {
            return Err(Errno::EINVAL);
        }
        for (i, vector) in range.vectors().enumerate() {
            if !matches!(data, Data::Bool(bytes) if !is_set(bytes, i)) {
                self.endpoint.interrupts.trigger(vector);
            }
        }
        Ok(())
    }

    /// Allocates `count` vectors and turns the capability on. The host always
    /// has as many as the device (API-165 does not come about).
    fn enable_msi(&mut self, kind: Mode, count: u16, tools: &mut Tools<'_>) -> Result<(), Errno> {
        if count == 0 {
            return Err(Errno::ERANGE);
        }
        let Some(at) = self.irq_capability(kind, tools.board) else { return Err(Errno::EINVAL) };
        // The pin is silent meanwhile.
        if self.intx_maskable {
            self.set_intx_disable(tools.board, true, tools.now);
        }
        let control = self.hw_read(tools.board, at + 2, 2);
        if kind == Mode::Msix {
            let table = (control & 0x7ff) as u16 + 1;
            self.endpoint.interrupts.enable_msix(table);
            self.hw_write(tools.board, at + 2, 2, control & !0x4000 | 0x8000, tools.now);
        } else {
            self.msi_granted = count.next_power_of_two().trailing_zeros() as u8;
            self.endpoint.interrupts.enable_msi(count, control & 0x100 != 0);
            // The host masks all vectors until they are bound.
            self.mask_msi(tools.board, u32::MAX, true, tools.now);
            let enabled = control & !0x70 | u32::from(self.msi_granted) << 4 | 1;
            self.hw_write(tools.board, at + 2, 2, enabled, tools.now);
        }
        tracing::debug!(name: "vfio.irq_enable", device = %self.address, mode = ?kind, vectors = count);
        Ok(())
    }

    /// Sets or clears mask bits of MSI, if it has any.
    fn mask_msi(&mut self, board: &mut Board, bits: u32, masked: bool, now: u64) {
        let Some(at) = self.irq_capability(Mode::Msi, board) else { return };
        let control = self.hw_read(board, at + 2, 2);
        if control & 0x100 == 0 {
            return;
        }
        let register = at + if control & 0x80 != 0 { 16 } else { 12 };
        let old = self.hw_read(board, register, 4);
        self.hw_write(board, register, 4, if masked { old | bits } else { old & !bits }, now);
        self.follow_msi_mask(board);
    }

    /// What the mask bits of MSI say now is in force.
    pub(super) fn follow_msi_mask(&self, board: &Board) {
        let Some(at) = self.irq_capability(Mode::Msi, board) else { return };
        let control = self.hw_read(board, at + 2, 2);
        if control & 0x100 != 0 {
            let register = at + if control & 0x80 != 0 { 16 } else { 12 };
            self.endpoint.interrupts.set_msi_mask(self.hw_read(board, register, 4));
        }
    }

    fn irq_capability(&self, kind: Mode, board: &Board) -> Option<u16> {
        let id = if kind == Mode::Msix { cap::MSIX } else { cap::MSI };
        board.fabric.function(self.address)?.capability(id)
    }

    /// Each vector of the range gets its eventfd or loses it; on an error all
    /// up to and including the failing one lose theirs (API-166).
    fn bind_vectors(&mut self, range: Range, fds: &[i32], tools: &mut Tools<'_>) -> Result<(), Errno> {
        for (vector, fd) in range.vectors().zip(fds) {
            self.bind(vector, None, tools);
            match self.vector_event(vector, *fd, tools) {
                Ok(None) => {}
                Ok(event) => self.bind(vector, event, tools),
                Err(errno) => {
                    for done in range.start..=vector {
                        self.bind(done, None, tools);
                    }
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// Binds a vector or unbinds it; an MSI vector is masked while unbound.
    fn bind(&mut self, vector: u16, event: Option<Arc<dyn Event>>, tools: &mut Tools<'_>) {
        let bound = event.is_some();
        self.endpoint.interrupts.bind(vector, event);
        if self.endpoint.interrupts.mode() == Mode::Msi && usize::from(vector) < self.endpoint.interrupts.vectors() {
            self.mask_msi(tools.board, 1 << vector.min(31), !bound, tools.now);
        }
    }

    /// API-167: vectors of MSI-X can be added at any time, those of MSI not.
    fn vector_event(&self, vector: u16, fd: i32, tools: &Tools<'_>) -> Result<Option<Arc<dyn Event>>, Errno> {
        if fd >= 0 && usize::from(vector) >= self.endpoint.interrupts.vectors() {
            return Err(Errno::EINVAL);
        }
        tools.event(fd)
    }

    /// Whatever is on goes off: eventfds and irqfds are dropped, the mode is
    /// none.
    pub(super) fn disable_irqs(&mut self, board: &mut Board, watches: &mut Watches, now: u64) {
        self.remove_unmask(watches);
        let mode = self.endpoint.interrupts.mode();
        self.endpoint.interrupts.disable();
        match mode {
            Mode::None => return,
            Mode::Intx => {}
            Mode::Msi | Mode::Msix => {
                if let Some(at) = self.irq_capability(mode, board) {
                    let enable = if mode == Mode::Msix { 0x8000 } else { 1 };
                    let control = self.hw_read(board, at + 2, 2);
                    self.hw_write(board, at + 2, 2, control & !enable, now);
                }
                if mode == Mode::Msi {
                    self.mask_msi(board, u32::MAX, false, now);
                }
                // The shutdown of MSI lets the pin speak again.
                self.set_intx_disable(board, self.no_intx, now);
            }
        }
        tracing::debug!(name: "vfio.irq_disable", device = %self.address, ?mode);
    }

    /// Signals the eventfd of the ERR index; whether there is one.
    pub(super) fn signal_error(&self) -> bool {
        self.error.as_ref().inspect(|event| event.signal()).is_some()
    }

    /// Signals the eventfd of the REQ index; whether there is one (API-272).
    pub(super) fn signal_request(&self) -> bool {
        self.request.as_ref().inspect(|event| event.signal()).is_some()
    }
}

/// API-147 to API-150: the size of a vector's data.
fn validate(set: &IrqSet, indexes: u32, index_count: u32) -> Result<u32, Errno> {
    let known = IrqSetFlags::DATA_TYPE | IrqSetFlags::ACTION_TYPE;
    if set.argsz < MINSZ || set.index >= indexes || set.count >= u32::MAX - set.start || set.flags & !known.bits() != 0
    {
        return Err(Errno::EINVAL);
    }
    if set.start >= index_count || set.start + set.count > index_count {
        return Err(Errno::EINVAL);
    }
    let size = match IrqSetFlags::from_bits_retain(set.flags) & IrqSetFlags::DATA_TYPE {
        IrqSetFlags::DATA_NONE => 0,
        IrqSetFlags::DATA_BOOL => 1,
        IrqSetFlags::DATA_EVENTFD => 4,
        _ => return Err(Errno::EINVAL),
    };
    // The count is at most the number of vectors.
    if set.argsz - MINSZ < set.count * size {
        return Err(Errno::EINVAL);
    }
    Ok(size)
}

fn read_data(caller: &dyn Caller, arg: u64, set: &IrqSet, size: u32) -> Result<Data, Errno> {
    let mut bytes = vec![0; (set.count * size) as usize];
    if !bytes.is_empty() {
        caller.read(arg.checked_add(u64::from(MINSZ)).ok_or(Errno::EFAULT)?, &mut bytes)?;
    }
    Ok(match size {
        0 => Data::None,
        1 => Data::Bool(bytes),
        _ => {
            let words = bytes.chunks_exact(4).filter_map(|word| word.first_chunk());
            Data::Eventfd(words.map(|word| i32::from_ne_bytes(*word)).collect())
        }
    })
}

fn is_set(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(|byte| *byte != 0)
}

fn first(fds: &[i32]) -> i32 {
    fds.first().copied().unwrap_or(-1)
}

/// ERR and REQ (API-171 to API-174).
fn trigger_single(
    slot: &mut Option<Arc<dyn Event>>,
    range: Range,
    data: &Data,
    tools: &Tools<'_>,
) -> Result<(), Errno> {
    if range.start != 0 || range.count > 1 {
        return Err(Errno::EINVAL);
    }
    match data {
        Data::None => {
            let event = slot.as_ref().ok_or(Errno::EINVAL)?;
            if range.count == 0 {
                *slot = None;
            } else {
                event.signal();
            }
        }
        _ if range.count == 0 => return Err(Errno::EINVAL),
        Data::Bool(bytes) => {
            if let Some(event) = slot.as_ref().filter(|_| is_set(bytes, 0)) {
                event.signal();
            }
        }
        Data::Eventfd(fds) => match first(fds) {
            fd @ 0.. => *slot = tools.event(fd)?,
            -1 => *slot = None,
            _ => return Err(Errno::EINVAL),
        },
    }
    Ok(())
}
