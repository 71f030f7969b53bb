// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports and devices of a lab.

use std::path::PathBuf;
use std::str::FromStr;

use device::migration::Migration;
use models::dsa;
use pci::Address;

use super::LabError;
use super::part::PartSpec;
use super::section::{Millis, Number, Place, Section, Size, Switch};
use crate::errors::ErrorPolicy;

/// What kind of port or bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// PCI Express root port.
    Root,
    /// Upstream port of a switch.
    Upstream,
    /// Downstream port of a switch.
    Downstream,
    /// PCI Express to PCI bridge: behind it requester ids are not told apart.
    PciBridge,
}

impl FromStr for PortKind {
    type Err = String;

    fn from_str(text: &str) -> Result<PortKind, String> {
        match text {
            "root" => Ok(PortKind::Root),
            "upstream" => Ok(PortKind::Upstream),
            "downstream" => Ok(PortKind::Downstream),
            "pci-bridge" => Ok(PortKind::PciBridge),
            _ => Err(format!("`{text}` is not a kind of port; there are root, upstream, downstream and pci-bridge")),
        }
    }
}

/// A port, `[[port]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its address.
    pub address: Address,
    /// The bus that it leads to.
    pub bus: u8,
    /// Its kind.
    pub kind: PortKind,
    /// Whether it has Access Control Services (all four bits that isolation
    /// asks for, GRP-001).
    pub acs: bool,
    /// Its slot is a hot-plug one.
    pub hotplug: bool,
    /// Downstream Port Containment.
    pub dpc: bool,
    /// Nanoseconds that its link takes to come up after a reset; `u64::MAX` for
    /// ever.
    pub link_time: u64,
    /// Where it was described.
    pub place: Place,
}

/// A device, `[[device]]` or `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its address; `None`: the first free bus gets a root port of its own.
    pub address: Option<Address>,
    /// The kernel driver bound at the start; `None` for none.
    pub driver: Option<String>,
    /// Access Control Services on the function itself.
    pub acs: bool,
    /// Whether the IOMMU serves it.
    pub iommu: bool,
    /// How its kernel driver takes part in error recovery.
    pub on_error: ErrorPolicy,
    /// Nanoseconds after a reset of its bus until it answers; `u64::MAX` for
    /// ever.
    pub ready_time: u64,
    /// Resets of the function alone; `None`: the model's own.
    pub resets: Option<FunctionResets>,
    /// How it migrates; `None`: not at all.
    pub migration: Option<Migration>,
    /// The function that it is a part of, if it is mediated.
    pub part: Option<PartSpec>,
    /// What it is.
    pub model: Model,
    /// Where it was described.
    pub place: Place,
}

/// Resets that a function offers for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FunctionResets {
    /// Function Level Reset.
    pub flr: bool,
    /// By a walk through D3hot.
    pub pm: bool,
}

/// `flr`, `pm`, both separated by spaces, or `none`.
impl FromStr for FunctionResets {
    type Err = String;

    fn from_str(text: &str) -> Result<FunctionResets, String> {
        let mut resets = FunctionResets::default();
        for word in text.split_whitespace().filter(|_| text != "none") {
            match word {
                "flr" => resets.flr = true,
                "pm" => resets.pm = true,
                _ => {
                    return Err(format!(
                        "`{word}` is not a reset of a function; write `none`, `flr`, `pm` or `flr pm`"
                    ));
                }
            }
        }
        Ok(resets)
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// An NVM Express controller.
    Nvme(NvmeSpec),
    /// An Intel I/OAT DMA engine.
    Ioat,
    /// An Intel Data Streaming Accelerator.
    Dsa(dsa::Config),
}

/// Keys of `model = "nvme"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeSpec {
    /// What its namespace stores.
    pub disk: DiskSpec,
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// I/O queue pairs, 1 to 64.
    pub queues: u16,
    /// Serial number, up to 20 characters; `None`: made from the address.
    pub serial: Option<String>,
    /// SR-IOV: number of virtual functions offered.
    pub total_vfs: u16,
    /// Virtual functions enabled at the start.
    pub vfs: u16,
}

/// Storage of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// What holds the bytes.
    pub medium: Medium,
    /// Size in bytes; `None`: the file's own.
    pub size: Option<u64>,
    /// Writes fail.
    pub read_only: bool,
    /// Other labs that say so may use the file at the same time.
    pub shared: bool,
    /// Where it was described.
    pub place: Place,
}

/// What holds a disk's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Memory, gone with the lab.
    Ram,
    /// A file or block device.
    File(PathBuf),
}

const MODELS: &str = "nvme, ioat, dsa";

impl PortSpec {
    pub(super) fn decode(mut section: Section) -> Result<PortSpec, LabError> {
        let place = section.place.clone();
        let address = section.take("addr")?.ok_or_else(|| LabError::new(&place, "a port needs `addr`"))?;
        let bus_place = section.place_of("bus");
        let Number(bus) =
            section.take("bus")?.ok_or_else(|| LabError::new(&place, "a port needs `bus`, the bus it leads to"))?;
        let bus = u8::try_from(bus).map_err(|_| LabError::new(&bus_place, "`bus` is 0 to 255"))?;
        let kind = section.take_or("kind", PortKind::Root)?;
        let acs = section.take_or("acs", Switch(true))?.0;
        let hotplug = section.take_or("hotplug", Switch(false))?.0;
        let dpc = section.take_or("dpc", Switch(false))?.0;
        let link_time = section.take_or("link_ms", Millis(0))?.0;
        section.finish()?;
        Ok(PortSpec { address, bus, kind, acs, hotplug, dpc, link_time, place })
    }
}

impl DeviceSpec {
    /// The device of [`super::Lab::standard`].
    pub(super) fn standard_nvme() -> DeviceSpec {
        let place = Place::argument("the standard lab");
        let disk = DiskSpec {
            medium: Medium::Ram,
            size: Some(1 << 30),
            read_only: false,
            shared: false,
            place: place.clone(),
        };
        DeviceSpec {
            address: Some(Address::new(0, 1, 0, 0)),
            driver: Some("vfio-pci".into()),
            acs: false,
            iommu: true,
            on_error: ErrorPolicy::GOOD,
            ready_time: 0,
            resets: None,
            migration: None,
            part: None,
            model: Model::Nvme(NvmeSpec { disk, block_size: 512, queues: 64, serial: None, total_vfs: 0, vfs: 0 }),
            place,
        }
    }

    pub(super) fn decode(mut section: Section) -> Result<DeviceSpec, LabError> {
        let place = section.place.clone();
        let model_place = section.place_of("model");
        let name: String = section
            .take("model")?
            .ok_or_else(|| LabError::new(&place, format!("a device needs `model`; models are {MODELS}")))?;
        let part = PartSpec::decode(&mut section)?;
        let mut bus = BusKeys::default();
        if part.is_none() {
            bus = BusKeys::decode(&mut section)?;
        }
        let BusKeys { address, driver, acs, iommu, on_error, ready_time, resets } = bus;
        let migration = super::migration::decode(&mut section)?;
        let model = match name.as_str() {
            "nvme" => {
                section.what = "an nvme device".into();
                Model::Nvme(NvmeSpec::decode(&mut section)?)
            }
            "ioat" => {
                section.what = "an ioat device".into();
                Model::Ioat
            }
            "dsa" => {
                section.what = "a dsa device".into();
                Model::Dsa(super::dsa::decode(&mut section)?)
            }
            _ => return Err(LabError::new(&model_place, format!("unknown model `{name}`; models are {MODELS}"))),
        };
        section.finish()?;
        let driver = Some(driver).filter(|d| d != "none");
        Ok(DeviceSpec { address, driver, acs, iommu, on_error, ready_time, resets, migration, part, model, place })
    }
}

/// What only a function of the bus has.
struct BusKeys {
    address: Option<Address>,
    driver: String,
    acs: bool,
    iommu: bool,
    on_error: ErrorPolicy,
    ready_time: u64,
    resets: Option<FunctionResets>,
}

impl Default for BusKeys {
    fn default() -> BusKeys {
        let driver = "vfio-pci".into();
        let on_error = ErrorPolicy::GOOD;
        BusKeys { address: None, driver, acs: false, iommu: true, on_error, ready_time: 0, resets: None }
    }
}

impl BusKeys {
    fn decode(section: &mut Section) -> Result<BusKeys, LabError> {
        let usual = BusKeys::default();
        Ok(BusKeys {
            address: section.take("addr")?,
            driver: section.take_or("driver", usual.driver)?,
            acs: section.take_or("acs", Switch(usual.acs))?.0,
            iommu: section.take_or("iommu", Switch(usual.iommu))?.0,
            on_error: section.take_or("on_error", usual.on_error)?,
            ready_time: section.take_or("ready_ms", Millis(usual.ready_time))?.0,
            resets: section.take("resets")?,
        })
    }
}

impl NvmeSpec {
    fn decode(section: &mut Section) -> Result<NvmeSpec, LabError> {
        let place = section.place_of("block_size");
        let Number(block_size) = section.take_or("block_size", Number(512))?;
        if ![512, 4096].contains(&block_size) {
            return Err(LabError::new(&place, "`block_size` is 512 or 4096"));
        }
        let place = section.place_of("queues");
        let Number(queues) = section.take_or("queues", Number(64))?;
        if !(1..=64).contains(&queues) {
            return Err(LabError::new(&place, "`queues` is 1 to 64"));
        }
        let place = section.place_of("serial");
        let serial: Option<String> = section.take("serial")?;
        if serial
            .as_ref()
            .is_some_and(|s| s.is_empty() || s.len() > 20 || !s.bytes().all(|b| (0x20..0x7f).contains(&b)))
        {
            return Err(LabError::new(&place, "`serial` is 1 to 20 printable ASCII characters"));
        }
        let place = section.place_of("total_vfs");
        let Number(total_vfs) = section.take_or("total_vfs", Number(0))?;
        if total_vfs > 127 {
            return Err(LabError::new(&place, "`total_vfs` is 0 to 127"));
        }
        let place = section.place_of("vfs");
        let Number(vfs) = section.take_or("vfs", Number(0))?;
        if vfs > total_vfs {
            return Err(LabError::new(&place, format!("`vfs` is at most `total_vfs`, which is {total_vfs}")));
        }
        let disk = DiskSpec::decode(section, 1 << 30)?;
        let size_place = &disk.place;
        if disk.size.is_some_and(|size| size == 0 || size % block_size != 0) {
            return Err(LabError::new(
                size_place,
                format!("`size` is a multiple of the block size, {block_size}, above 0"),
            ));
        }
        Ok(NvmeSpec {
            disk,
            block_size: block_size as u32,
            queues: queues as u16,
            serial,
            total_vfs: total_vfs as u16,
            vfs: vfs as u16,
        })
    }
}

impl DiskSpec {
    /// `file=PATH[,size=…]`, or memory of `size`.
    pub(super) fn decode(section: &mut Section, ram_size: u64) -> Result<DiskSpec, LabError> {
        let file: Option<PathBuf> = section.take("file")?;
        let place = section.place_of("size");
        let size = section.take("size")?.map(|Size(size)| size);
        let Switch(read_only) = section.take_or("read_only", Switch(false))?;
        let Switch(shared) = section.take_or("shared", Switch(false))?;
        Ok(match file {
            Some(path) => DiskSpec { medium: Medium::File(path), size, read_only, shared, place },
            None => DiskSpec { medium: Medium::Ram, size: Some(size.unwrap_or(ram_size)), read_only, shared, place },
        })
    }
}
