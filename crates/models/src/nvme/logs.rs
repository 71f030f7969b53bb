// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Log pages (5.14) and the counters behind them. They outlive resets of the
//! controller, as a drive's do.

use std::collections::VecDeque;

use device::Nanos;
use device::migration::LoadError;
use device::saved::{Reader, Writer};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes as _, FromZeros, IntoBytes};

use super::Controller;
use super::features::AMBIENT;
use super::spec::{
    AdminOpcode, CommandEffects, ErrorEntry, FirmwareSlots, LogPage, NvmOpcode, Smart, Status, critical_warning,
    effects, padded,
};

/// Entries of the error log (ELPE, not zero based).
pub(crate) const ERROR_ENTRIES: usize = 64;

const HOUR: Nanos = 3_600_000_000_000;

/// What the log pages are made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    /// Bytes read by the host.
    pub(crate) bytes_read: u64,
    /// Bytes written by the host.
    pub(crate) bytes_written: u64,
    /// Read and compare commands.
    pub(crate) reads: u64,
    /// Write commands.
    pub(crate) writes: u64,
    /// Errors of the medium.
    pub(crate) media_errors: u64,
    /// Power cycles.
    pub(crate) power_cycles: u64,
    /// Power losses without a shutdown before.
    pub(crate) unsafe_shutdowns: u64,
}

/// The command that an error concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Culprit {
    pub(crate) sq: u16,
    pub(crate) cid: u16,
    pub(crate) nsid: u32,
    pub(crate) lba: u64,
}

impl Culprit {
    /// No command in particular.
    pub(crate) const NONE: Culprit = Culprit { sq: 0xffff, cid: 0xffff, nsid: 0, lba: 0 };
}

impl Logs {
    /// As after the first power on.
    pub(crate) fn new() -> Logs {
        Logs { power_cycles: 1, ..Logs::default() }
    }

    pub(crate) fn save(&self, writer: &mut Writer) {
        writer.u32(self.errors.len() as u32);
        self.errors.iter().for_each(|entry| writer.bytes(entry.as_bytes()));
        for count in [self.error_count, self.bytes_read, self.bytes_written, self.reads, self.writes] {
            writer.u64(count);
        }
        [self.media_errors, self.power_cycles, self.unsafe_shutdowns].into_iter().for_each(|count| writer.u64(count));
    }

    pub(crate) fn load(reader: &mut Reader<'_>) -> Result<Logs, LoadError> {
        let errors = (0..reader.count(ERROR_ENTRIES)?)
            .map(|_| {
                let bytes = reader.bytes(size_of::<ErrorEntry>())?;
                ErrorEntry::read_from_bytes(bytes).map_err(|_| LoadError::Truncated)
            })
            .collect::<Result<_, LoadError>>()?;
        Ok(Logs {
            errors,
            error_count: reader.u64()?,
            bytes_read: reader.u64()?,
            bytes_written: reader.u64()?,
            reads: reader.u64()?,
            writes: reader.u64()?,
            media_errors: reader.u64()?,
            power_cycles: reader.u64()?,
            unsafe_shutdowns: reader.u64()?,
        })
    }

    /// Adds an entry to the error log; the oldest one goes if it is full.
    pub(crate) fn error(&mut self, culprit: Culprit, status: Status) {
        self.error_count += 1;
        if self.errors.len() == ERROR_ENTRIES {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry {
            count: self.error_count.into(),
            sq_id: culprit.sq.into(),
            cid: culprit.cid.into(),
            status: status.field(true).into(),
            location: 0xffff.into(),
            lba: culprit.lba.into(),
            nsid: culprit.nsid.into(),
            ..ErrorEntry::default()
        });
    }

    fn smart(&self, temperature_warning: bool, now: Nanos) -> Smart {
        let mut smart = Smart::new_zeroed();
        if temperature_warning {
            smart.critical_warning |= critical_warning::TEMPERATURE;
        }
        smart.temperature = AMBIENT.into();
        smart.spare = 100;
        smart.spare_threshold = 10;
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).into();
        smart.units_read = units(self.bytes_read);
        smart.units_written = units(self.bytes_written);
        smart.reads = u128::from(self.reads).into();
        smart.writes = u128::from(self.writes).into();
        smart.power_cycles = u128::from(self.power_cycles).into();
        smart.hours = u128::from(now / HOUR).into();
        smart.unsafe_shutdowns = u128::from(self.unsafe_shutdowns).into();
        smart.media_errors = u128::from(self.media_errors).into();
        smart.error_entries = u128::from(self.error_count).into();
        smart
    }

    fn error_page(&self) -> Vec<u8> {
        let mut page = self.errors.iter().flat_map(|entry| entry.as_bytes().iter().copied()).collect::<Vec<u8>>();
        page.resize(ERROR_ENTRIES * size_of::<ErrorEntry>(), 0);
        page
    }
}

fn command_effects() -> Box<CommandEffects> {
    let mut page = Box::new(CommandEffects::new_zeroed());
    let mut set = |table: fn(&mut CommandEffects) -> &mut [U32; 256], opcode: u8, value: u32| {
        table(&mut page)[usize::from(opcode)].set(effects::SUPPORTED | value);
    };
    for opcode in AdminOpcode::ALL {
        let blocks = if *opcode == AdminOpcode::FormatNvm { effects::BLOCKS } else { 0 };
        set(|page| &mut page.admin, opcode.raw(), blocks);
    }
    for opcode in NvmOpcode::ALL {
        let blocks = match opcode {
            NvmOpcode::Write | NvmOpcode::WriteZeroes | NvmOpcode::DatasetManagement => effects::BLOCKS,
            NvmOpcode::Flush | NvmOpcode::Read | NvmOpcode::Compare => 0,
        };
        set(|page| &mut page.nvm, opcode.raw(), blocks);
    }
    page
}

impl Controller {
    /// The bytes of a log page.
    pub(super) fn log_page(&self, page: LogPage, now: Nanos) -> Vec<u8> {
        match page {
            LogPage::Error => self.logs.error_page(),
            LogPage::Smart => self.logs.smart(self.features.temperature_warning(), now).as_bytes().to_vec(),
            LogPage::Firmware => {
                let mut slots = FirmwareSlots::new_zeroed();
                slots.active = 1;
                slots.revisions[0] = padded(&self.config.firmware);
                slots.as_bytes().to_vec()
            }
            LogPage::ChangedNamespaces => vec![0; 4096],
            LogPage::CommandEffects => command_effects().as_bytes().to_vec(),
        }
    }
}
