// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One open device: what its open and close do, and what of the hardware a
//! program can reach at any time (vfio-api.md, sections 7 and 12).

use std::sync::{Arc, Weak};

use ::device::{Board, DeviceFile, Endpoint, Event, Mode, RegionLayout, ResetKind};
use caller::{Platform, WatchId};
use iommufd::DmaBuf;
use pci::resource::IORESOURCE_MEM;
use pci::{Address, Answers, Effect, Function, PortType, Resource, SavedConfig, cap};
use uapi::Errno;

use super::config::Config;
use super::ioeventfd::IoEvents;
use super::migration::Migration;
use super::power::LowPower;
use super::recovery::Recovery;
use super::slow_reset::Started;
use super::watches::Watches;
use crate::Options;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// A BAR as the host claimed it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bar {
    /// Bytes; 0 if there is none.
    pub(super) size: u64,
    /// Gated by memory enable.
    pub(super) memory: bool,
    /// Bytes that can be mapped: whole pages, or 0.
    pub(super) mmap: u64,
    /// Bytes that cannot be reached, the MSI-X table: start and end.
    pub(super) table: (u64, u64),
}

/// What becomes of accesses to mapped BARs while the device is blocked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    /// It is not blocked.
    #[default]
    No,
    /// They wait (ERR-079).
    Waits,
    /// They cannot be made to wait: loads give ones, stores are lost.
    Ones,
}

/// State shared by the files of one device (API-053).
#[derive(Debug)]
pub(super) struct Device {
    pub(super) address: Address,
    /// Which range of file offsets is its own.
    pub(super) number: u32,
    /// Open files.
    pub(super) files: u32,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) file: Arc<dyn DeviceFile>,
    pub(super) bars: [Bar; 6],
    /// Bytes of the ROM BAR, and of the image in it.
    pub(super) rom: (u64, u64),
    pub(super) config: Config,
    /// A function reset was proven at open.
    pub(super) reset_works: bool,
    /// The state at open, loaded at close.
    saved: SavedConfig,
    /// The state at the entry of D3hot, for functions that lose it.
    pub(super) before_d3: Option<SavedConfig>,
    pub(super) low_power: LowPower,
    /// INTx can be masked in the function (PCI 2.3).
    pub(super) intx_maskable: bool,
    /// INTx is not offered: the quirk list (API-178).
    pub(super) no_intx: bool,
    /// The program's INTx disable bit as last acted upon.
    pub(super) intx_disabled: bool,
    /// Log2 of the messages that SET_IRQS allocated last.
    pub(super) msi_granted: u8,
    /// eventfd of the ERR index.
    pub(super) error: Option<Arc<dyn Event>>,
    /// eventfd of the REQ index.
    pub(super) request: Option<Arc<dyn Event>>,
    /// irqfd that unmasks INTx.
    pub(super) unmask: Option<WatchId>,
    pub(super) ioevents: IoEvents,
    pub(super) recovery: Recovery,
    /// A reset that the present call has begun and is to wait for.
    pub(super) started: Option<Started>,
    /// `None`: it does not migrate.
    pub(super) migration: Option<Migration>,
    /// What was exported of its BARs.
    pub(super) buffers: Vec<Weak<DmaBuf>>,
    /// Memory of the BARs can be reached.
    pub(super) accessible: bool,
    held: Held,
    bus_master: bool,
    disable_idle_d3: bool,
}

/// Functions whose pin is known to be broken: i40e and X550 (API-178).
fn has_broken_intx(function: &Function) -> bool {
    let spec = function.spec();
    spec.vendor == 0x8086
        && matches!(spec.device, 0x1563 | 0x1572 | 0x1574 | 0x1580 | 0x1581 | 0x1583..=0x158b | 0x37d0..=0x37d2)
}

impl Device {
    /// The first open (API-189). `EAGAIN` while somebody holds the device's lock.
    /// `reset`: it was reset for that, which may have worked.
    pub(super) fn open(
        address: Address,
        number: u32,
        file: Arc<dyn DeviceFile>,
        board: &mut Board,
        platform: &dyn Platform,
        options: &Options,
        reset: Option<bool>,
    ) -> Result<Device, Errno> {
        let endpoint = Arc::clone(board.endpoint(address).ok_or(Errno::ENODEV)?);
        let bars = claim_bars(board, address);
        let function = board.fabric.function_mut(address).ok_or(Errno::ENODEV)?;
        let sizes = bars.map(|bar| bar.size);
        let now = platform.now();

        // What a walk out of D3hot loses comes back.
        let before_d3 = (function.power_state() == 3).then(|| function.save());
        let mut device = Device {
            address,
            number,
            files: 0,
            endpoint,
            file,
            bars,
            rom: (function.spec().rom_size(), image_size(&function.spec().rom)),
            config: Config::new(function, sizes, false),
            reset_works: false,
            saved: function.save(),
            before_d3,
            low_power: LowPower::default(),
            intx_maskable: false,
            no_intx: has_broken_intx(function),
            intx_disabled: false,
            msi_granted: 0,
            error: None,
            request: None,
            unmask: None,
            ioevents: IoEvents::default(),
            recovery: Recovery::new(options.recovery),
            started: None,
            migration: None,
            buffers: Vec::new(),
            accessible: false,
            held: Held::No,
            bus_master: false,
            disable_idle_d3: options.disable_idle_d3,
        };
        device.endpoint.requester.set_bus_master(false);
        device.set_power_state(board, 0, now)?;
        // The initial saved state has no bus mastering (API-190).
        let function = board.fabric.function_mut(address).ok_or(Errno::ENODEV)?;
        let command = function.command() & !cap::COMMAND_MASTER | enables(function);
        function.write(cap::COMMAND, 2, u32::from(command));
        device.reset_works = match reset {
            Some(worked) => worked,
            None => match device.reset_function(board, now) {
                Err(Errno::EAGAIN) => return Err(Errno::EAGAIN),
                result => result.is_ok(),
            },
        };
        let function = board.fabric.function_mut(address).ok_or(Errno::ENODEV)?;
        device.saved = function.save();
        device.intx_maskable = !device.no_intx && probe_intx_disable(function);
        let command = function.command();
        let wanted = match device.no_intx {
            true => command | cap::COMMAND_INTX_DISABLE,
            false if device.intx_maskable => command & !cap::COMMAND_INTX_DISABLE,
            false => command,
        };
        function.write(cap::COMMAND, 2, u32::from(wanted));
        device.config = Config::new(function, sizes, device.no_intx);
        device.migration = Migration::of(board, address, &device.endpoint);
        device.endpoint.set_file(Some(Arc::clone(&device.file)), now);
        device.sync(board, now);
        tracing::info!(name: "vfio.device_open", device = %address, reset_works = device.reset_works);
        Ok(device)
    }

    /// The last close (API-270). Whether a function reset was done, or else the
    /// one to be gone on with, after which the state of open comes back.
    pub(super) fn close(&mut self, board: &mut Board, watches: &mut Watches, now: u64) -> (bool, Option<Started>) {
        self.exit_low_power(board, now);
        let _ = self.set_power_state(board, 0, now);
        let command = self.hw_read(board, cap::COMMAND, 2) as u16 & !cap::COMMAND_MASTER;
        self.hw_write(board, cap::COMMAND, 2, u32::from(command), now);
        self.disable_irqs(board, watches, now);
        self.ioevents.clear(watches);
        if let Some(migration) = &mut self.migration {
            migration.close(now);
        }
        self.intx_disabled = false;
        self.endpoint.interrupts.set_intx_disabled(false);

        // INTx disable as the only bit, then the reset, then the state of open.
        self.hw_write(board, cap::COMMAND, 2, u32::from(cap::COMMAND_INTX_DISABLE), now);
        self.zap(now);
        let mut reset = false;
        let mut started = None;
        // One that is under way goes on, and is that of the close.
        let resetting = self.recovery.is_resetting();
        if self.reset_works && !board.is_locked(self.address) && !resetting {
            // What was not given back is put right later.
            started = self.start_close(board).filter(|_| self.recovery.is_open());
            reset = started.is_none() && self.try_methods(board, now).is_ok();
        }
        if started.is_none()
            && !resetting
            && let Some(function) = board.fabric.function_mut(self.address)
        {
            let effects = function.restore(&self.saved);
            self.effects(board, &effects, now);
            let command = self.hw_read(board, cap::COMMAND, 2) as u16 & !cap::COMMAND_MASTER;
            self.hw_write(board, cap::COMMAND, 2, u32::from(command), now);
        }
        self.zap(now);
        // Who has it next finds it as it is then.
        self.endpoint.set_responding(true, now);
        self.endpoint.set_file(None, now);
        self.let_accesses_go();
        self.error = None;
        self.request = None;
        self.kill_buffers();
        tracing::info!(name: "vfio.device_close", device = %self.address, reset, goes_on = started.is_some());
        (reset, started)
    }

    /// Writes the hardware and follows what that sets off.
    pub(super) fn hw_write(&mut self, board: &mut Board, pos: u16, len: u8, value: u32, now: u64) {
        if let Some(function) = board.fabric.function_mut(self.address) {
            let effects = function.write(pos, len, value);
            self.effects(board, &effects, now);
        }
    }

    /// Follows what a write to the hardware set off: what it took away first.
    pub(super) fn effects(&mut self, board: &Board, effects: &[Effect], now: u64) {
        if effects.is_empty() {
            return;
        }
        self.sync(board, now);
        for effect in effects {
            match effect {
                Effect::FunctionLevelReset => self.reset_model(ResetKind::FunctionLevel, now),
                Effect::Power { from: 3, to: 0 } if !self.endpoint.spec().no_soft_reset => {
                    self.reset_model(ResetKind::PowerManagement, now);
                }
                Effect::Msi(_) | Effect::Msix { .. } => self.follow_messages(board),
                Effect::PageRequestReset => self.endpoint.page_requests.reset(),
                _ => {}
            }
        }
    }

    /// The model and what it had raised are as after power on.
    pub(super) fn reset_model(&mut self, kind: ResetKind, now: u64) {
        self.endpoint.reset(kind, now);
        self.endpoint.interrupts.reset();
        // A driver is not told of the way out of D3hot.
        if kind != ResetKind::PowerManagement {
            self.migration_reset(now);
        }
    }

    /// Messages go out while the enable bit of the mode in force is on.
    pub(super) fn follow_messages(&self, board: &Board) {
        let interrupts = &self.endpoint.interrupts;
        let (id, bit) = match interrupts.mode() {
            Mode::Msi => (cap::MSI, 0x0001),
            Mode::Msix => (cap::MSIX, 0x8000),
            Mode::None | Mode::Intx => return,
        };
        let function = board.fabric.function(self.address);
        let control = function.and_then(|f| Some(f.peek(f.capability(id)? + 2, 2))).unwrap_or(0);
        interrupts.set_messages_enabled(control & bit != 0);
    }

    /// Opens and shuts what the registers and the power state allow: the BARs
    /// to the program (API-216, API-217), memory to the device.
    ///
    /// The program's memory enable decides whether it may access the BARs, the
    /// hardware's whether anybody answers: they differ after a reset behind the
    /// program's back (ERR-039).
    pub(super) fn sync(&mut self, board: &Board, now: u64) {
        let Some(function) = board.fabric.function(self.address) else { return };
        let awake = function.power_state() < 3;
        // A part of a function answers as long as that does.
        let carrier = board.mediated(self.address).map(|part| board.fabric.function(part.parent));
        let gone = |carrier: Option<&Function>| carrier.is_none_or(|f| f.answers() != Answers::Yes);
        let answers = function.answers() == Answers::Yes && !carrier.is_some_and(gone);
        let command = function.command();
        let decodes = self.config.no_command_memory || command & cap::COMMAND_MEMORY != 0;
        let memory = awake && self.config.memory() && !self.low_power.engaged();
        let may = self.migration.as_ref().is_none_or(Migration::allows_dma);
        let master = may && awake && answers && command & cap::COMMAND_MASTER != 0;
        if master != self.bus_master {
            self.bus_master = master;
            self.endpoint.requester.set_bus_master(master);
        }
        if let Some(at) = function.extended_capability(cap::EXT_PRI) {
            let enabled = awake && answers && function.read(at + 4, 2) & 1 != 0;
            self.endpoint.page_requests.set_enabled(enabled, function.read(at + 12, 4));
        }
        let blocked = self.recovery.is_blocked();
        if blocked && self.held == Held::No && self.accessible {
            self.held = if self.file.hold(true) { Held::Waits } else { Held::Ones };
        }
        let waits = blocked && self.held == Held::Waits;
        if waits {
            // Before anything shows that is not the device. What the program
            // stores until then is not lost.
            self.endpoint.hold_memory(now);
            self.set_accessible(false, now);
        }
        self.endpoint.set_responding(answers && decodes && self.recovery.is_open(), now);
        self.set_accessible(memory && !waits, now);
        if !blocked {
            self.let_accesses_go();
        }
    }

    /// Accesses to mapped BARs that waited are made again.
    fn let_accesses_go(&mut self) {
        if std::mem::take(&mut self.held) == Held::Waits {
            self.file.hold(false);
        }
    }

    /// Takes the mapped BARs away; the next [`sync`](Self::sync) gives them
    /// back if it may.
    pub(super) fn zap(&mut self, now: u64) {
        self.set_accessible(false, now);
    }

    fn set_accessible(&mut self, on: bool, now: u64) {
        self.accessible = on;
        self.endpoint.set_memory(on, now);
        // API-211
        for buffer in self.buffers.iter().filter_map(Weak::upgrade) {
            buffer.set_revoked(!on);
        }
    }

    /// What was exported is dead from now on (API-211).
    fn kill_buffers(&mut self) {
        self.buffers.drain(..).filter_map(|buffer| buffer.upgrade()).for_each(|buffer| buffer.set_revoked(true));
    }

    /// The state at open.
    pub(super) fn saved_at_open(&self) -> &SavedConfig {
        &self.saved
    }

    /// Whether the host may power the device down while a program lets it.
    pub(super) fn may_suspend(&self) -> bool {
        !self.disable_idle_d3
    }

    /// Whether the function is a virtual one.
    pub(super) fn is_virtual(&self) -> bool {
        self.endpoint.spec().port_type == PortType::VirtualFunction
    }
}

/// The enables that Linux sets for a function's BARs when it is enabled.
fn enables(function: &Function) -> u16 {
    let bars = function.spec().bars.iter().flatten();
    bars.fold(0, |command, bar| command | if bar.is_memory() { cap::COMMAND_MEMORY } else { cap::COMMAND_IO })
}

/// Where the regions of device `number` lie in its files.
pub(super) fn layout(number: u32, board: &Board, address: Address) -> RegionLayout {
    let mmap = claim_bars(board, address).map(|bar| bar.mmap);
    RegionLayout { base: uapi::region::offset(number, 0), mmap }
}

/// What a program gets of each BAR (API-136). One that the host could give no
/// address is not there.
fn claim_bars(board: &Board, address: Address) -> [Bar; 6] {
    let Some(spec) = board.fabric.function(address).map(Function::spec) else { return Default::default() };
    let resources = board.fabric.resources(address);
    std::array::from_fn(|index| {
        let (Some(bar), Some(resource)) = (&spec.bars[index], resources.get(index)) else { return Bar::default() };
        if resource.start == 0 {
            return Bar::default();
        }
        let own_page = bar.size >= PAGE || has_page_to_itself(board, resource);
        let mappable = bar.is_memory() && bar.mmap && own_page;
        let table = match &spec.msix {
            Some(msix) if usize::from(msix.table.0) == index => {
                let start = u64::from(msix.table.1);
                (start, start + u64::from(msix.vectors) * 16)
            }
            _ => (0, 0),
        };
        let mmap = if mappable { bar.size.next_multiple_of(PAGE) } else { 0 };
        Bar { size: bar.size, memory: bar.is_memory(), mmap, table }
    })
}

/// Whether a BAR smaller than a page starts one, and nothing else is in it.
fn has_page_to_itself(board: &Board, bar: &Resource) -> bool {
    let page = bar.start..=bar.start | (PAGE - 1);
    let rest = bar.end + 1..=*page.end();
    let mut others = board.fabric.functions().flat_map(|(other, _)| {
        let count = if board.fabric.is_bridge(other) { 2 } else { 7 };
        board.fabric.resources(other).iter().take(count)
    });
    let clash = |other: &Resource| {
        !other.is_empty()
            && other.flags & IORESOURCE_MEM != 0
            && other.start <= *rest.end()
            && other.end >= *rest.start()
    };
    bar.start.is_multiple_of(PAGE) && !others.any(clash)
}

/// Whether INTx disable can be changed (PCI 2.3). Leaves it as it was.
fn probe_intx_disable(function: &mut Function) -> bool {
    let before = function.command();
    function.write(cap::COMMAND, 2, u32::from(before ^ cap::COMMAND_INTX_DISABLE));
    let changed = function.command() != before;
    function.write(cap::COMMAND, 2, u32::from(before));
    changed
}

/// Bytes of the images in a ROM that its headers vouch for; 0 if it is none.
fn image_size(rom: &[u8]) -> u64 {
    let word = |at: usize| rom.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b));
    let mut end = 0;
    while word(end) == Some(0xaa55) {
        let Some(data) = word(end + 24).map(|offset| end + usize::from(offset)) else { break };
        if rom.get(data..).and_then(|b| b.first_chunk()) != Some(b"PCIR") {
            break;
        }
        let (Some(length), Some(indicator)) = (word(data + 16), rom.get(data + 21)) else { break };
        end += usize::from(length) * 512;
        if length == 0 || indicator & 0x80 != 0 || end >= rom.len() {
            break;
        }
    }
    end.min(rom.len()) as u64
}
