// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An Intel I/OAT DMA engine (CB 3.3) with one channel: the smallest device
//! that a driver of DPDK (`dma_ioat`) takes.
//!
//! It maps BAR 0 and stores to it without a trap, so the registers *are* the
//! mapped page while there is one; [`Engine::turn`] looks at them. Where a
//! driver may store the same value twice, the register is put back so that the
//! second store can be seen (`CHANCMD`, and `DMACOUNT` at a reset or suspend).
//! Hardware changes its state in the instant of a store; a looker-on would be
//! late for a driver that reads the state right behind its store. So a channel
//! with nothing to do says that it is suspended, which every driver takes for
//! "may be started" and "has stopped" alike, and one that a driver has reset
//! asks to be looked at all the time, as a poll-mode driver looks at its device.
//! Once a store has trapped, states are those of hardware: nobody is late then.
//!
//! # What it doesn't do
//! XOR and P+Q operations, DCA, more than one channel, interrupts by the pin.
//! `CHANERR` of a mapped page is cleared by a reset of the channel: a store of
//! the value that is already there cannot be seen. A driver that reads the
//! state within nanoseconds of its store, as that of Linux's VFIO selftests
//! does, is too quick for a mapped page; its accesses have to trap.

pub mod spec;
mod state;

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use device::migration::{Activity, LoadError};
use device::{Device, Io, ResetKind, Turn};
use iommu::{DmaFault, Session};
use pci::FunctionSpec;
use pci::spec::{Bar, BarKind, Msix};
use vm_memory::{AtomicInteger, VolatileMemory, VolatileSlice};
use zerocopy::FromZeros as _;
use zerocopy::IntoBytes as _;

use spec::{Descriptor, State, chanerr, ctl};

const BAR_SIZE: u64 = 0x4000;
/// log2 of the longest transfer.
const XFERCAP_LOG2: u8 = 20;
/// Descriptors and bytes in a turn.
const TURN_DESCRIPTORS: usize = 64;
const TURN_BYTES: usize = 4 << 20;
/// Bytes moved at a time; small enough to stay in the cache.
const CHUNK: usize = 64 << 10;

/// The engine.
#[derive(Debug)]
pub struct Engine {
    /// Registers while no page is mapped.
    own: Box<[u8]>,
    state: State,
    /// Descriptors done since the chain was armed, modulo 2^16.
    done: u16,
    /// IOVA of the last descriptor done.
    last: u64,
    /// IOVA of the next one; `None`: take it from `CHAINADDR`.
    next: Option<u64>,
    /// An error has halted the channel.
    failed: bool,
    /// A driver has reset the channel and is there to use it.
    driven: bool,
    /// The program's stores trap.
    exact: bool,
    /// The vector was signalled since the last reset.
    signalled: bool,
    /// A state was taken over, and nobody was told.
    arrived: bool,
    buffer: Box<[u8]>,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine::new()
    }
}

impl Engine {
    /// An engine after power on.
    #[must_use]
    pub fn new() -> Engine {
        let mut engine = Engine {
            own: vec![0; spec::REGISTERS].into(),
            state: State::Halted,
            done: 0,
            last: 0,
            next: None,
            failed: false,
            driven: false,
            exact: false,
            signalled: false,
            arrived: false,
            buffer: vec![0; CHUNK].into(),
        };
        engine.power_on();
        engine
    }

    fn power_on(&mut self) {
        (self.state, self.done, self.last, self.next) = (State::Halted, 0, 0, None);
        (self.failed, self.driven, self.exact) = (false, false, false);
        (self.signalled, self.arrived) = (false, false);
        self.own.fill(0);
        self.own[spec::CHANCNT] = 1;
        self.own[spec::XFERCAP] = XFERCAP_LOG2;
        self.own[spec::CBVER] = 0x33;
        self.own[spec::CHANSTS] = State::Halted as u8;
    }

    /// Looks at the registers and does a bounded piece of work.
    fn step(&mut self, io: &Io<'_>, registers: Registers<'_>) -> Turn {
        let before = (self.state, self.done);
        let command = registers.load::<AtomicU8>(spec::CHANCMD);
        if command & spec::CMD_RESET != 0 {
            self.reset_channel(registers);
            self.driven = !self.exact;
            registers.store::<AtomicU8>(spec::CHANCMD, 0);
            return Turn::Busy;
        }
        if self.state == State::Halted && !self.failed && registers.load::<AtomicU64>(spec::CHAINADDR) != 0 {
            self.next = None;
            self.set_state(State::Armed, registers);
        }
        let more = self.state != State::Halted && self.run(io, registers);
        if command & spec::CMD_SUSPEND != 0 && !more {
            self.forget_count(registers);
            if self.state != State::Halted {
                self.set_state(State::Suspended, registers);
            }
            registers.store::<AtomicU8>(spec::CHANCMD, 0);
            return Turn::Busy;
        }
        if more || before != (self.state, self.done) {
            Turn::Busy
        } else if self.driven {
            Turn::Until(io.now)
        } else {
            Turn::Idle
        }
    }

    fn reset_channel(&mut self, registers: Registers<'_>) {
        self.forget_count(registers);
        registers.store::<AtomicU32>(spec::CHANERR, 0);
        self.last = 0;
        let state = match (self.exact, self.failed) {
            (true, _) => {
                registers.store::<AtomicU64>(spec::CHAINADDR, 0);
                State::Halted
            }
            // After an error a driver has given the rest of its chain, and
            // waits until that is taken.
            (false, true) => State::Armed,
            (false, false) => State::Suspended,
        };
        self.failed = false;
        self.set_state(state, registers);
    }

    /// `DMACOUNT` starts again at 0, so that the next store of any count is
    /// seen. A count that was not run yet came behind the command: it stays.
    fn forget_count(&mut self, registers: Registers<'_>) {
        registers.replace(spec::DMACOUNT, self.done, 0);
        (self.done, self.next) = (0, None);
    }

    fn set_state(&mut self, state: State, registers: Registers<'_>) {
        self.state = state;
        registers.store::<AtomicU64>(spec::CHANSTS, self.status());
    }

    fn status(&self) -> u64 {
        self.last | self.state as u64
    }

    /// Runs what `DMACOUNT` asks for; whether there is more to do.
    fn run(&mut self, io: &Io<'_>, registers: Registers<'_>) -> bool {
        let wanted = registers.load::<AtomicU16>(spec::DMACOUNT);
        if wanted == self.done {
            return false;
        }
        let (mut descriptors, mut bytes) = (0, 0);
        while self.done != wanted {
            if descriptors == TURN_DESCRIPTORS || bytes >= TURN_BYTES {
                return true;
            }
            let at = self.next.unwrap_or_else(|| registers.load::<AtomicU64>(spec::CHAINADDR));
            match self.descriptor(io, at, registers, wanted) {
                Ok(descriptor) => {
                    self.next = Some(descriptor.next);
                    bytes += descriptor.size as usize;
                }
                Err(error) => {
                    tracing::debug!(target: "vfuse::ioat", at, error, "channel halted");
                    let errors = registers.load::<AtomicU32>(spec::CHANERR) | error;
                    registers.store::<AtomicU32>(spec::CHANERR, errors);
                    registers.store::<AtomicU64>(spec::CHAINADDR, 0);
                    registers.store::<AtomicU16>(spec::DMACOUNT, 0);
                    (self.done, self.next, self.failed) = (0, None, true);
                    self.set_state(State::Halted, registers);
                    if registers.load::<AtomicU16>(spec::CHANCTRL) & spec::CTRL_ERROR_INTERRUPT != 0 {
                        self.signal(io);
                    }
                    return false;
                }
            }
            descriptors += 1;
        }
        self.set_state(if self.exact { State::Done } else { State::Suspended }, registers);
        false
    }

    /// Runs one descriptor; bits of `CHANERR` if it fails.
    fn descriptor(&mut self, io: &Io<'_>, at: u64, registers: Registers<'_>, wanted: u16) -> Result<Descriptor, u32> {
        let mut dma = io.dma.session();
        let mut descriptor = Descriptor::new_zeroed();
        dma.read(at, descriptor.as_mut_bytes()).map_err(|_| chanerr::DESCRIPTOR)?;
        if descriptor.size == 0 || descriptor.size > 1 << XFERCAP_LOG2 {
            return Err(chanerr::LENGTH);
        }
        tracing::trace!(target: "vfuse::ioat", at, ?descriptor, "descriptor");
        match descriptor.control >> 24 {
            ctl::COPY => self.copy(&mut dma, &descriptor)?,
            ctl::FILL => self.fill(&mut dma, &descriptor)?,
            _ => return Err(chanerr::CONTROL),
        }
        self.done = self.done.wrapping_add(1);
        self.last = at & !0x3f;
        self.set_state(if self.done == wanted { State::Done } else { State::Active }, registers);
        if descriptor.control & ctl::COMPLETION != 0 {
            let to = registers.load::<AtomicU64>(spec::CHANCMP);
            dma.write(to, &self.status().to_le_bytes()).map_err(|_| chanerr::COMPLETION)?;
        }
        drop(dma);
        if descriptor.control & ctl::INTERRUPT != 0 {
            self.signal(io);
        }
        Ok(descriptor)
    }

    fn signal(&mut self, io: &Io<'_>) {
        self.signalled = true;
        io.interrupts.message(0);
    }

    fn copy(&mut self, dma: &mut Session<'_>, descriptor: &Descriptor) -> Result<(), u32> {
        let mut done = 0;
        while done < u64::from(descriptor.size) {
            let len = CHUNK.min((u64::from(descriptor.size) - done) as usize);
            let chunk = &mut self.buffer[..len];
            dma.read(descriptor.source.wrapping_add(done), chunk).map_err(|_: DmaFault| chanerr::SOURCE)?;
            dma.write(descriptor.destination.wrapping_add(done), chunk).map_err(|_| chanerr::DESTINATION)?;
            done += len as u64;
        }
        Ok(())
    }

    fn fill(&mut self, dma: &mut Session<'_>, descriptor: &Descriptor) -> Result<(), u32> {
        let pattern = descriptor.source.to_le_bytes();
        let len = CHUNK.min(descriptor.size as usize);
        for (byte, value) in self.buffer[..len].iter_mut().zip(pattern.iter().cycle()) {
            *byte = *value;
        }
        let mut done = 0;
        while done < u64::from(descriptor.size) {
            let len = CHUNK.min((u64::from(descriptor.size) - done) as usize);
            let to = descriptor.destination.wrapping_add(done);
            dma.write(to, &self.buffer[..len]).map_err(|_| chanerr::DESTINATION)?;
            done += len as u64;
        }
        Ok(())
    }

    /// Calls `with` on the registers: the mapped page, or our own copy.
    fn with<R>(&mut self, io: &Io<'_>, with: impl FnOnce(&mut Engine, Registers<'_>) -> R) -> R {
        if let Some(registers) = io.windows[0].and_then(|w| w.slice().subslice(0, spec::REGISTERS).ok()) {
            let result = with(self, Registers(registers));
            // The page may be taken away before the next turn.
            registers.copy_to(&mut self.own[..]);
            return result;
        }
        let mut own = std::mem::take(&mut self.own);
        let result = with(self, Registers(VolatileSlice::from(&mut *own)));
        self.own = own;
        result
    }
}

/// The register page. All accesses are atomic; the program stores to it at any
/// time.
#[derive(Clone, Copy)]
struct Registers<'a>(VolatileSlice<'a>);

impl Registers<'_> {
    fn load<T: AtomicInteger>(self, offset: usize) -> T::V
    where
        T::V: Default,
    {
        self.0.get_atomic_ref::<T>(offset).map(|r| r.load(Ordering::Acquire)).unwrap_or_default()
    }

    fn store<T: AtomicInteger>(self, offset: usize, value: T::V) {
        if let Ok(register) = self.0.get_atomic_ref::<T>(offset) {
            register.store(value, Ordering::Release);
        }
    }

    /// Stores `new` if the register still holds `old`.
    fn replace(self, offset: usize, old: u16, new: u16) {
        if let Ok(register) = self.0.get_atomic_ref::<AtomicU16>(offset) {
            // Lost to the program's own store: that one counts.
            let _ = register.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

/// Registers that a program may store to.
fn is_writable(offset: usize) -> bool {
    matches!(offset, 0x03 | spec::CHANCTRL..spec::CHANSTS | spec::CHAINADDR..spec::REGISTERS)
}

impl Device for Engine {
    fn function(&self) -> FunctionSpec {
        let memory = BarKind::Memory64 { prefetchable: false };
        let mut bars: [Option<Bar>; 6] = Default::default();
        bars[0] = Some(Bar { size: BAR_SIZE, kind: memory, mmap: true });
        bars[2] = Some(Bar { size: 0x2000, kind: memory, mmap: true });
        FunctionSpec {
            vendor: 0x8086,
            device: 0x2021,
            subsystem_vendor: 0x8086,
            subsystem_device: 0x2021,
            class: 0x08_8000,
            bars,
            msix: Some(Msix { vectors: 1, table: (2, 0), pba: (2, 0x1000) }),
            flr: true,
            ..FunctionSpec::default()
        }
    }

    fn read(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        if bar == 0 && offset < spec::REGISTERS {
            self.with(io, |_, registers| {
                if let Ok(from) = registers.0.subslice(offset, data.len()) {
                    from.copy_to(data);
                }
            });
        }
    }

    fn write(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else { return };
        if bar != 0 || offset >= spec::REGISTERS {
            return;
        }
        self.exact = true;
        self.with(io, |engine, registers| {
            if let (spec::CHANERR, Ok(bits)) = (offset, <[u8; 4]>::try_from(data)) {
                let errors = registers.load::<AtomicU32>(spec::CHANERR);
                registers.store::<AtomicU32>(spec::CHANERR, errors & !u32::from_le_bytes(bits));
            } else {
                let mut writable = data.to_vec();
                for (n, byte) in writable.iter_mut().enumerate() {
                    if !is_writable(offset + n) {
                        *byte = registers.load::<AtomicU8>(offset + n);
                    }
                }
                if let Ok(to) = registers.0.subslice(offset, data.len()) {
                    to.copy_from(&writable);
                }
            }
            if io.activity == Activity::Running {
                engine.step(io, registers);
            }
        });
    }

    fn publish(&mut self, io: &mut Io<'_>) {
        if let Some(window) = io.windows[0]
            && let Ok(registers) = window.slice().subslice(0, spec::REGISTERS)
        {
            registers.copy_from(&self.own);
        }
    }

    fn collect(&mut self, io: &mut Io<'_>) {
        self.with(io, |_, _| ());
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        if io.activity != Activity::Running {
            // What is stored is kept, and waits (MIG-049).
            return Turn::Idle;
        }
        self.announce(io);
        self.with(io, |engine, registers| engine.step(io, registers))
    }

    fn reset(&mut self, _io: &mut Io<'_>, kind: ResetKind) {
        tracing::debug!(target: "vfuse::ioat", ?kind, "reset");
        self.power_on();
    }

    fn identity(&self) -> Option<Vec<u8>> {
        Some(state::identity())
    }

    fn save(&mut self, io: &mut Io<'_>) -> Vec<u8> {
        self.with(io, |_, _| ());
        self.saved_state()
    }

    fn load(&mut self, _: &mut Io<'_>, state: &[u8]) -> Result<(), LoadError> {
        self.load_state(state)
    }
}
