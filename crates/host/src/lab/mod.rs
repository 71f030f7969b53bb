// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lab descriptions: what is plugged in and how the host is set up.
//!
//! A lab file (TOML) and `--device` arguments say the same things with the
//! same keys. [`Lab::parse`] and [`Lab::add_device`] only check what can be
//! checked on paper; [`crate::Host::new`] builds it.

mod device;
mod dsa;
mod error;
mod file;
pub(crate) mod migration;
mod part;
mod section;
mod vdpa;
mod virtio;

pub use device::{DeviceSpec, DiskSpec, FunctionResets, Medium, Model, NvmeSpec, PortKind, PortSpec};
pub use error::{Behaviour, ErrorSpec, When};
pub use part::PartSpec;
pub use section::Place;
pub use vdpa::VdpaSpec;
pub use virtio::{BlkSpec, NetSpec, NetworkKind, NetworkSpec, RingSpec, VirtioModel};

use iommufd::{FaultCookies, FaultReset, FaultTransport, LabIommu};
use section::{Number, Section, Size, Switch};

/// A lab description that cannot be used: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct LabError {
    place: Place,
    message: String,
}

impl LabError {
    pub(crate) fn new(place: &Place, message: impl Into<String>) -> LabError {
        LabError { place: place.clone(), message: message.into() }
    }
}

/// The IOMMU of the lab, `[iommu]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuSpec {
    /// Bits of an I/O virtual address, 30 to 57.
    pub address_width: u8,
    /// Interrupt remapping; without it type1 refuses groups (API-044).
    pub interrupt_remapping: bool,
    /// Linux's `IOMMU_TEST_CMD` and the mock IOMMU behind it.
    pub selftest: bool,
    /// `/proc/PID/status` shows what the lab has locked and pinned
    /// (IOMMUFD-7.2).
    pub process_figures: bool,
    /// Page tables tell which pages devices have written.
    pub dirty_tracking: bool,
    /// Bits of a PASID that it takes, at most 20; 0: none.
    pub pasid_bits: u8,
    /// Bytes that the objects and mappings of `/dev/iommu` may take, about.
    pub memory_limit: u64,
    /// How answers to page requests are told apart, `[fault] cookies`.
    pub fault_cookies: FaultCookies,
    /// What they can carry, `[fault] transport` and `quarantine`.
    pub fault_transport: FaultTransport,
    /// What a reset of the function does to its page requests, `[fault] on_reset`.
    pub fault_reset: FaultReset,
    /// Nanoseconds until a page request is answered for a program that does
    /// not, `[fault] timeout_ms`; `None` for never.
    pub fault_timeout: Option<u64>,
}

impl IommuSpec {
    /// What iommufd is told of it.
    pub(crate) fn offers(&self) -> LabIommu {
        let IommuSpec { address_width, dirty_tracking, pasid_bits, .. } = *self;
        LabIommu { address_width, dirty_tracking, pasid_bits }
    }

    /// `[fault]`
    fn take_fault(&mut self, section: &mut Section) -> Result<(), LabError> {
        let place = section.place_of("cookies");
        self.fault_cookies = match section.take_or("cookies", String::from("monotonic"))?.as_str() {
            "monotonic" => FaultCookies::Monotonic,
            "lowest-free" => FaultCookies::LowestFree,
            _ => return Err(LabError::new(&place, "`cookies` is monotonic or lowest-free")),
        };
        let place = section.place_of("transport");
        let nine = match section.take_or("transport", String::from("cookie"))?.as_str() {
            "cookie" => false,
            "9bit" => true,
            _ => return Err(LabError::new(&place, "`transport` is cookie or 9bit")),
        };
        let place = section.place_of("quarantine");
        self.fault_transport = match (nine, section.take_or("quarantine", Switch(false))?.0) {
            (false, false) => FaultTransport::Cookie,
            (true, false) => FaultTransport::NineBit,
            (true, true) => FaultTransport::Quarantine,
            (false, true) => return Err(LabError::new(&place, "`quarantine` goes with `transport = \"9bit\"`")),
        };
        let place = section.place_of("on_reset");
        self.fault_reset = match section.take_or("on_reset", String::from("keep"))?.as_str() {
            "keep" => FaultReset::Keep,
            "answer" => FaultReset::Answer,
            _ => return Err(LabError::new(&place, "`on_reset` is keep or answer")),
        };
        let Number(timeout) = section.take_or("timeout_ms", Number(0))?;
        self.fault_timeout = (timeout > 0).then(|| timeout.saturating_mul(1_000_000));
        Ok(())
    }
}

/// Who serves `/dev/vfio/vfio`: what Linux decides when it is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerServer {
    /// VFIO's own containers.
    #[default]
    Type1,
    /// iommufd (`CONFIG_IOMMUFD_VFIO_CONTAINER`, API-023).
    Iommufd,
}

impl std::str::FromStr for ContainerServer {
    type Err = String;

    fn from_str(text: &str) -> Result<ContainerServer, String> {
        match text {
            "type1" => Ok(ContainerServer::Type1),
            "iommufd" => Ok(ContainerServer::Iommufd),
            _ => Err(format!("`{text}` is neither type1 nor iommufd")),
        }
    }
}

/// Whose business errors of PCI Express are, and whether programs can inject
/// some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AerSpec {
    /// Firmware grants them to the system (ERR-042).
    pub native: bool,
    /// Linux's module `aer_inject` is loaded: `/dev/aer_inject` (ERR-059).
    pub inject: bool,
}

impl Default for AerSpec {
    fn default() -> AerSpec {
        AerSpec { native: true, inject: false }
    }
}

/// A whole lab.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The IOMMU.
    pub iommu: IommuSpec,
    /// Module options of VFIO, `[vfio]`.
    pub vfio: vfio::Options,
    /// Who serves `/dev/vfio/vfio`.
    pub container: ContainerServer,
    /// Errors of PCI Express, `[aer]`.
    pub aer: AerSpec,
    /// Extension: sysfs shows which functions are reset together.
    pub reset_groups: bool,
    /// `ids` of vfio-pci: `vendor:device[:sub:sub[:class[:mask]]]` in hex; such
    /// functions are vfio-pci's unless the lab says otherwise.
    pub ids: Vec<String>,
    /// Ports and bridges, in the order of the description.
    pub ports: Vec<PortSpec>,
    /// Devices, in the order of the description.
    pub devices: Vec<DeviceSpec>,
    /// Devices of the vdpa bus, in the order of the description.
    pub vdpa: Vec<VdpaSpec>,
    /// Errors that are planned.
    pub errors: Vec<ErrorSpec>,
}

impl Default for Lab {
    /// A lab with an IOMMU and nothing plugged in.
    fn default() -> Lab {
        Lab {
            iommu: IommuSpec {
                address_width: 48,
                interrupt_remapping: true,
                selftest: false,
                dirty_tracking: true,
                pasid_bits: 20,
                process_figures: false,
                memory_limit: iommufd::Options::default().memory_limit,
                fault_cookies: FaultCookies::default(),
                fault_transport: FaultTransport::default(),
                fault_reset: FaultReset::default(),
                fault_timeout: None,
            },
            vfio: vfio::Options::default(),
            container: ContainerServer::default(),
            aer: AerSpec::default(),
            reset_groups: false,
            ids: Vec::new(),
            ports: Vec::new(),
            devices: Vec::new(),
            vdpa: Vec::new(),
            errors: Vec::new(),
        }
    }
}

impl Lab {
    /// The lab of a run that describes none: an NVMe controller with a RAM
    /// disk of 1 GiB at 0000:01:00.0.
    #[must_use]
    pub fn standard() -> Lab {
        let mut lab = Lab::default();
        lab.devices.push(DeviceSpec::standard_nvme());
        lab
    }

    /// Reads a lab file; `name` is how messages call it.
    pub fn parse(name: &str, text: &str) -> Result<Lab, LabError> {
        let mut lab = Lab::default();
        for mut section in file::sections(name, text)? {
            match section.what.as_str() {
                "[iommu]" => {
                    let place = section.place_of("address_width");
                    let Number(width) = section.take_or("address_width", Number(48))?;
                    lab.iommu.address_width = u8::try_from(width)
                        .ok()
                        .filter(|w| (30..=57).contains(w))
                        .ok_or_else(|| LabError::new(&place, "`address_width` is 30 to 57 bits"))?;
                    lab.iommu.interrupt_remapping = section.take_or("interrupt_remapping", Switch(true))?.0;
                    lab.iommu.selftest = section.take_or("selftest", Switch(false))?.0;
                    lab.iommu.dirty_tracking = section.take_or("dirty_tracking", Switch(true))?.0;
                    let place = section.place_of("pasid_bits");
                    let Number(bits) = section.take_or("pasid_bits", Number(20))?;
                    lab.iommu.pasid_bits = u8::try_from(bits)
                        .ok()
                        .filter(|bits| *bits <= 20)
                        .ok_or_else(|| LabError::new(&place, "`pasid_bits` is 0 to 20 bits"))?;
                    lab.iommu.process_figures = section.take_or("process_figures", Switch(false))?.0;
                    lab.iommu.memory_limit = section.take_or("memory_limit", Size(lab.iommu.memory_limit))?.0;
                    section.finish()?;
                }
                "[fault]" => {
                    lab.iommu.take_fault(&mut section)?;
                    section.finish()?;
                }
                "[vfio]" => {
                    let ids: String = section.take_or("ids", String::new())?;
                    lab.ids = ids.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect();
                    lab.container = section.take_or("container", ContainerServer::default())?;
                    lab.reset_groups = section.take_or("reset_groups", Switch(false))?.0;
                    lab.vfio = vfio_options(section)?;
                }
                "[aer]" => {
                    lab.aer.native = section.take_or("native", Switch(true))?.0;
                    lab.aer.inject = section.take_or("inject", Switch(false))?.0;
                    section.finish()?;
                }
                "port" => lab.ports.push(PortSpec::decode(section)?),
                "device" => lab.devices.push(DeviceSpec::decode(section)?),
                "vdpa" => lab.vdpa.push(VdpaSpec::decode(section)?),
                "error" => lab.errors.push(ErrorSpec::decode(section)?),
                what => {
                    let message = format!(
                        "unknown table `{what}`; a lab has [iommu], [fault], [vfio], [aer], [[port]], [[device]], [[vdpa]] and [[error]]"
                    );
                    return Err(LabError::new(&section.place, message));
                }
            }
        }
        Ok(lab)
    }

    /// Adds what a `--device MODEL[,key=value]...` argument describes.
    pub fn add_device(&mut self, argument: &str) -> Result<(), LabError> {
        let place = Place::argument(&format!("--device {argument}"));
        let section = arguments("device", place, argument)?;
        self.devices.push(DeviceSpec::decode(section)?);
        Ok(())
    }

    /// Adds what a `--vdpa MODEL[,key=value]...` argument describes.
    pub fn add_vdpa(&mut self, argument: &str) -> Result<(), LabError> {
        self.vdpa.push(VdpaSpec::parse(&format!("--vdpa {argument}"), argument)?);
        Ok(())
    }
}

/// A section from `MODEL[,key=value]...`.
fn arguments(what: &str, place: Place, argument: &str) -> Result<Section, LabError> {
    let mut section = Section::new(what, place.clone());
    for (n, item) in argument.split(',').enumerate() {
        let (key, value) = match item.split_once('=') {
            None if n == 0 => ("model", item),
            None => {
                return Err(LabError::new(&place, format!("`{item}` is not key=value")));
            }
            Some(pair) => pair,
        };
        if section.pairs.iter().any(|p| p.key == key) {
            return Err(LabError::new(&place, format!("`{key}` is given twice")));
        }
        section.pairs.push(section::Pair { key: key.into(), value: value.into(), place: place.clone() });
    }
    Ok(section)
}

fn vfio_options(mut section: Section) -> Result<vfio::Options, LabError> {
    let default = vfio::Options::default();
    let place = section.place_of("dma_entry_limit");
    let Number(limit) = section.take_or("dma_entry_limit", Number(u64::from(default.dma_entry_limit)))?;
    let flags = section.take_or("error_recovery", vfio::RecoveryNames::default())?.0;
    let mut recovery = vfio::RecoveryPolicy { flags, ..vfio::RecoveryPolicy::default() };
    let place_of_times = section.place_of("recovery_wait_ms");
    let Number(wait) = section.take_or("recovery_wait_ms", Number(0))?;
    let Number(reset) = section.take_or("user_reset_ms", Number(0))?;
    let short = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    recovery
        .set_times(short(wait), short(reset))
        .map_err(|_| LabError::new(&place_of_times, "`recovery_wait_ms` and `user_reset_ms` are at most 600000"))?;
    let options = vfio::Options {
        dma_entry_limit: u32::try_from(limit)
            .map_err(|_| LabError::new(&place, "`dma_entry_limit` is a number of at most 32 bits"))?,
        allow_unsafe_interrupts: section.take_or("allow_unsafe_interrupts", Switch(false))?.0,
        enable_unsafe_noiommu_mode: section.take_or("enable_unsafe_noiommu_mode", Switch(false))?.0,
        enable_sriov: section.take_or("enable_sriov", Switch(false))?.0,
        disable_idle_d3: section.take_or("disable_idle_d3", Switch(false))?.0,
        unlimited_memlock: section.take_or("unlimited_memlock", Switch(false))?.0,
        recovery,
        ..default
    };
    section.finish()?;
    Ok(options)
}

#[cfg(test)]
mod tests;
