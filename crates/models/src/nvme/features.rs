// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Get Features and Set Features (5.13, 5.21). Nothing is saveable: a reset of
//! the controller brings the defaults back.

use device::migration::LoadError;
use device::saved::{Reader, Writer};
use device::{Io, Nanos};

use super::Controller;
use super::config::VECTORS;
use super::error::Error;
use super::prp;
use super::spec::{ALL_NAMESPACES, AsyncEvent, Command, Feature, Select, Status};

/// The composite temperature, constant, in kelvin: 34 °C.
pub(crate) const AMBIENT: u16 = 307;
/// Temperature from which a warning is due, in kelvin: 70 °C.
pub(crate) const WARNING: u16 = 343;
/// Critical temperature in kelvin: 80 °C.
pub(crate) const CRITICAL: u16 = 353;
/// Granularity of the keep alive timer in units of 100 ms.
pub(crate) const KEEP_ALIVE_UNITS: u16 = 10;

const MILLISECOND: Nanos = 1_000_000;
/// Asynchronous Event Configuration: SMART warnings and namespace notices.
const ASYNC_EVENTS: u32 = 0x1ff;
const ASYNC_TEMPERATURE: u32 = 1 << 1;

/// Values in force.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arbitration: u32,
    temperature_over: u16,
    temperature_under: u16,
    error_recovery: u32,
    /// Whether written data may wait for a Flush.
    pub(crate) write_cache: bool,
    coalescing: u32,
    vectors_without_coalescing: u128,
    write_atomicity: u32,
    async_events: u32,
    timestamp: Timestamp,
    keep_alive: u32,
    /// When the host must have sent a Keep Alive.
    pub(crate) keep_alive_deadline: Option<Nanos>,
}

/// Milliseconds since 1970, if the host has set them; else since the reset.
#[derive(Clone, Copy, Debug, Default)]
struct Timestamp {
    base: u64,
    since: Nanos,
    from_host: bool,
}

impl Features {
    /// Defaults, at the time of a reset.
    pub(crate) fn new(now: Nanos) -> Features {
        Features {
            arbitration: 7, // No limit to a burst.
            temperature_over: WARNING,
            temperature_under: 0,
            error_recovery: 0,
            write_cache: true,
            coalescing: 0,
            vectors_without_coalescing: 0,
            write_atomicity: 0,
            async_events: 0,
            timestamp: Timestamp { since: now, ..Timestamp::default() },
            keep_alive: 0,
            keep_alive_deadline: None,
        }
    }

    /// Whether the temperature is at or beyond a threshold.
    pub(crate) fn temperature_warning(&self) -> bool {
        AMBIENT >= self.temperature_over || AMBIENT <= self.temperature_under
    }

    /// A Keep Alive came, or the timer was set: it starts again.
    pub(crate) fn restart_keep_alive(&mut self, now: Nanos) {
        let time = Nanos::from(self.keep_alive) * MILLISECOND;
        self.keep_alive_deadline = (time > 0).then(|| now.saturating_add(time));
    }

    fn timestamp(&self, now: Nanos) -> [u8; 8] {
        let Timestamp { base, since, from_host } = self.timestamp;
        let millis = base.wrapping_add(now.saturating_sub(since) / MILLISECOND);
        let mut data = millis.to_le_bytes();
        data[6] = u8::from(from_host) << 1;
        data[7] = 0;
        data
    }

    pub(crate) fn save(&self, now: Nanos, writer: &mut Writer) {
        writer.u32(self.arbitration);
        writer.u16(self.temperature_over);
        writer.u16(self.temperature_under);
        writer.u32(self.error_recovery);
        writer.flag(self.write_cache);
        writer.u32(self.coalescing);
        writer.u128(self.vectors_without_coalescing);
        writer.u32(self.write_atomicity);
        writer.u32(self.async_events);
        // Clocks differ between hosts: what has passed, and what is left.
        writer.u64(self.timestamp.base);
        writer.u64(now.saturating_sub(self.timestamp.since));
        writer.flag(self.timestamp.from_host);
        writer.u32(self.keep_alive);
        writer.option(self.keep_alive_deadline.map(|deadline| deadline.saturating_sub(now)));
    }

    pub(crate) fn load(now: Nanos, reader: &mut Reader<'_>) -> Result<Features, LoadError> {
        Ok(Features {
            arbitration: reader.u32()?,
            temperature_over: reader.u16()?,
            temperature_under: reader.u16()?,
            error_recovery: reader.u32()?,
            write_cache: reader.flag()?,
            coalescing: reader.u32()?,
            vectors_without_coalescing: reader.u128()?,
            write_atomicity: reader.u32()?,
            async_events: reader.u32()?,
            timestamp: {
                let (base, passed) = (reader.u64()?, reader.u64()?);
                let base = base.wrapping_add(passed / MILLISECOND);
                Timestamp { base, since: now, from_host: reader.flag()? }
            },
            keep_alive: reader.u32()?,
            keep_alive_deadline: reader.option()?.map(|left| now.saturating_add(left)),
        })
    }

    /// A value as Get Features returns it in dword 0; `selector` is dword 11.
    fn get(&self, feature: Feature, selector: u32, queues: u16) -> Result<u32, Status> {
        Ok(match feature {
            Feature::Arbitration => self.arbitration,
            Feature::PowerManagement => 0,
            Feature::TemperatureThreshold => match threshold(selector)? {
                Threshold::Over => u32::from(self.temperature_over),
                Threshold::Under => u32::from(self.temperature_under),
            },
            Feature::ErrorRecovery => self.error_recovery,
            Feature::VolatileWriteCache => u32::from(self.write_cache),
            Feature::NumberOfQueues => u32::from(queues - 1) | u32::from(queues - 1) << 16,
            Feature::InterruptCoalescing => self.coalescing,
            Feature::InterruptVector => {
                let vector = vector(selector)?;
                vector | u32::from(self.vectors_without_coalescing >> vector & 1 != 0) << 16
            }
            Feature::WriteAtomicity => self.write_atomicity,
            Feature::AsyncEvents => self.async_events,
            Feature::Timestamp => 0,
            Feature::KeepAliveTimer => self.keep_alive,
        })
    }
}

enum Threshold {
    Over,
    Under,
}

/// Which temperature threshold a command means: there is the composite one
/// only (sensor 0; a host sets all sensors with Fh).
fn threshold(selector: u32) -> Result<Threshold, Status> {
    match (selector >> 16 & 0xf, selector >> 20 & 3) {
        (0 | 0xf, 0) => Ok(Threshold::Over),
        (0 | 0xf, 1) => Ok(Threshold::Under),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn vector(selector: u32) -> Result<u32, Status> {
    let vector = selector & 0xffff;
    if vector < u32::from(VECTORS) { Ok(vector) } else { Err(Status::INVALID_FIELD) }
}

/// Changeable, in the capabilities that Get Features can select.
const CHANGEABLE: u32 = 1 << 2;
/// Namespace specific, likewise.
const NAMESPACE_SPECIFIC: u32 = 1 << 1;

fn feature(command: &Command) -> Result<Feature, Status> {
    Feature::from_raw(command.cdw10.get() as u8).ok_or(Status::INVALID_FIELD)
}

impl Controller {
    pub(super) fn get_features(&mut self, io: &mut Io<'_>, command: &Command) -> Result<u32, Error> {
        let feature = feature(command)?;
        let select = Select::from_raw((command.cdw10.get() >> 8 & 7) as u8).ok_or(Status::INVALID_FIELD)?;
        let defaults;
        let features = match select {
            Select::Capabilities => {
                let specific = if feature == Feature::ErrorRecovery { NAMESPACE_SPECIFIC } else { 0 };
                return Ok(CHANGEABLE | specific);
            }
            Select::Current => &self.features,
            // Where nothing is saved, the default counts as saved (7.8).
            Select::Default | Select::Saved => {
                defaults = Features::new(io.now);
                &defaults
            }
        };
        if feature == Feature::ErrorRecovery && command.nsid.get() != ALL_NAMESPACES {
            self.namespace(command.nsid.get())?;
        }
        if feature == Feature::Timestamp {
            let data = features.timestamp(io.now);
            prp::send(&mut io.dma.session(), command, &data, self.page, &mut self.runs)?;
        }
        Ok(features.get(feature, command.cdw11.get(), self.queue_pairs())?)
    }

    pub(super) fn set_features(&mut self, io: &mut Io<'_>, command: &Command) -> Result<u32, Error> {
        let feature = feature(command)?;
        if command.cdw10.get() >> 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.into());
        }
        let nsid = command.nsid.get();
        if nsid != 0 && nsid != ALL_NAMESPACES {
            self.namespace(nsid)?;
            // QEMU's driver names its namespace for the write cache, too, and
            // gives up if that is refused.
            if !matches!(feature, Feature::ErrorRecovery | Feature::VolatileWriteCache) {
                return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.into());
            }
        }
        let value = command.cdw11.get();
        let features = &mut self.features;
        match feature {
            Feature::Arbitration => features.arbitration = value & 0xffff_ff07,
            Feature::PowerManagement if value & 0x1f != 0 => return Err(Status::INVALID_FIELD.into()),
            Feature::PowerManagement => {}
            Feature::TemperatureThreshold => {
                let was = features.temperature_warning();
                match threshold(value)? {
                    Threshold::Over => features.temperature_over = value as u16,
                    Threshold::Under => features.temperature_under = value as u16,
                }
                if !was && features.temperature_warning() && features.async_events & ASYNC_TEMPERATURE != 0 {
                    self.raise(AsyncEvent::TEMPERATURE);
                }
            }
            Feature::ErrorRecovery => features.error_recovery = value & 0xffff,
            Feature::VolatileWriteCache => {
                features.write_cache = value & 1 != 0;
                if !features.write_cache {
                    self.flush_all()?;
                }
            }
            Feature::NumberOfQueues => {
                // FFFFh is not a zero based count (5.21.1.7).
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD.into());
                }
                if self.has_io_queues() {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.into());
                }
                return Ok(self.features.get(feature, value, self.queue_pairs())?);
            }
            Feature::InterruptCoalescing => features.coalescing = value & 0xffff,
            Feature::InterruptVector => {
                let bit = 1 << vector(value)?;
                match value & 1 << 16 {
                    0 => features.vectors_without_coalescing &= !bit,
                    _ => features.vectors_without_coalescing |= bit,
                }
            }
            Feature::WriteAtomicity => features.write_atomicity = value & 1,
            Feature::AsyncEvents => features.async_events = value & ASYNC_EVENTS,
            Feature::Timestamp => {
                let mut data = [0; 8];
                prp::receive(&mut io.dma.session(), command, &mut data, self.page, &mut self.runs)?;
                let base = u64::from_le_bytes(data) & 0xffff_ffff_ffff;
                self.features.timestamp = Timestamp { base, since: io.now, from_host: true };
            }
            Feature::KeepAliveTimer => {
                let unit = u32::from(KEEP_ALIVE_UNITS) * 100;
                features.keep_alive = value.div_ceil(unit).saturating_mul(unit);
                features.restart_keep_alive(io.now);
            }
        }
        Ok(0)
    }
}
