// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a lab description to a board: fabric, models, bound drivers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use device::{Board, Disk, Driver, Endpoint, NetPort, Slot};
use models::{dsa, ioat, nvme};
use pci::{Address, Fabric, FabricBuilder, FabricError, FunctionSpec, Item, Place, PortType, Timing, cap};

use crate::lab::{self, DeviceSpec, DiskSpec, Lab, LabError, Medium, Model, NetworkSpec, NvmeSpec, PortKind, PortSpec};
use crate::{drivers, mediated};

/// Makes the disks and networks of a lab.
pub trait Storage: Send + Debug {
    /// A disk as described; a message that says what to do if there is none.
    fn open(&self, spec: &DiskSpec) -> Result<Arc<dyn Disk>, String>;

    /// A network of this machine as described, or the recording of `inner`,
    /// which is of the lab; a message that says what to do if there is none.
    fn network(
        &self,
        spec: &NetworkSpec,
        pairs: u16,
        inner: Option<Arc<dyn NetPort>>,
    ) -> Result<Arc<dyn NetPort>, String> {
        let _ = (spec, pairs, inner);
        Err("there are no networks here but `loop` and `wire`".to_owned())
    }
}

/// Which device of the lab stands at which address.
pub(crate) type Placed = BTreeMap<Address, usize>;

/// Builds the board of a lab.
pub(crate) fn board(lab: &Lab, storage: &dyn Storage) -> Result<(Board, Placed), LabError> {
    let placed = place(lab)?;
    let mut builder = FabricBuilder::new();
    builder.native_errors(lab.aer.native);
    for port in &lab.ports {
        let kind = match port.kind {
            PortKind::Root => PortType::RootPort,
            PortKind::Upstream => PortType::UpstreamPort,
            PortKind::Downstream => PortType::DownstreamPort,
            PortKind::PciBridge => PortType::PcieToPciBridge,
        };
        let mut spec = FunctionSpec::port(kind);
        if !port.acs {
            spec.acs = None;
        }
        spec.dpc = port.dpc;
        if let Some(slot) = &mut spec.slot {
            slot.hotplug = port.hotplug;
        }
        let name = port.address.to_string();
        builder.add(Item::new(Place::At(port.address), spec).named(&name).leads_to(port.bus));
    }
    let mut slots = BTreeMap::new();
    for (address, n) in &placed {
        let Some(device) = lab.devices.get(*n) else { continue };
        if let Some(part) = &device.part {
            mediated::add(&mut builder, &mut slots, (*address, device, part), lab)?;
            continue;
        }
        let endpoint = endpoint(device, storage, &serial(device, *address))?;
        let mut spec = endpoint.spec().clone();
        if device.acs {
            spec.acs = Some(ISOLATING);
        }
        if let Some(resets) = device.resets {
            (spec.flr, spec.no_soft_reset) = (resets.flr, !resets.pm);
        }
        let mut item = Item::new(Place::At(*address), spec).named(&address.to_string());
        item.no_iommu = !device.iommu;
        builder.add(item);
        let slot = Slot { endpoint: Some(endpoint), migration: device.migration.clone(), ..Slot::default() };
        slots.insert(*address, slot);
    }
    for (address, n) in &placed {
        let saved = slots.get(address).and_then(|slot: &Slot| slot.endpoint.as_ref()).and_then(|e| e.identity());
        if let Some(device) = lab.devices.get(*n).filter(|device| device.migration.is_some() && saved.is_none()) {
            return Err(LabError::new(&device.place, "`migration`: this model cannot be saved"));
        }
    }
    let fabric = builder.build().map_err(|error| blame(lab, &placed, &error))?;
    let mut board = Board { fabric, slots };
    for port in &lab.ports {
        board.fabric.set_timing(port.address, Timing { link: port.link_time, ready: 0 });
    }
    for (address, n) in &placed {
        let ready = lab.devices.get(*n).map_or(0, |device| device.ready_time);
        board.fabric.set_timing(*address, Timing { link: 0, ready });
    }
    placed.keys().for_each(|address| enable_page_requests(&mut board.fabric, *address));
    let ports: Vec<Address> = board.fabric.functions().map(|(address, _)| address).collect();
    for address in ports {
        let driver = match placed.get(&address).and_then(|n| lab.devices.get(*n)) {
            Some(device) => device.driver.as_deref().map(drivers::driver),
            None if board.fabric.is_bridge(address) => Some(Driver::Pcieport),
            None => None,
        };
        board.slots.entry(address).or_default().driver = driver;
    }
    mediated::check(&board, lab)?;
    for (address, slot) in &board.slots {
        // A part's DMA leaves by its function.
        let source = slot.mediated.as_ref().map_or(*address, |part| part.parent);
        if let Some(endpoint) = &slot.endpoint {
            endpoint.log_faults(source.to_string());
        }
    }
    Ok((board, placed))
}

/// Entries of VT-d's queue for page requests, as Linux makes it.
const PRQ_DEPTH: u32 = 2048;

/// What VT-d's driver turns on when it finds a function with page requests:
/// translation requests, PASIDs, and page requests, as many as both sides can
/// have outstanding (FAULT-4.3).
fn enable_page_requests(fabric: &mut Fabric, address: Address) {
    let Some(function) = fabric.function_mut(address) else { return };
    let Some(at) = function.extended_capability(cap::EXT_PRI) else { return };
    if let Some(ats) = function.extended_capability(cap::EXT_ATS) {
        function.write(ats + 6, 2, 0x8000);
    }
    if let Some(pasid) = function.extended_capability(cap::EXT_PASID) {
        let offered = function.read(pasid + 4, 2) & 0x6;
        function.write(pasid + 6, 2, 1 | offered);
    }
    let capacity = function.read(at + 8, 4);
    function.write(at + 12, 4, capacity.min(PRQ_DEPTH));
    function.write(at + 4, 2, 1);
}

/// The four ACS bits that isolation asks for (GRP-001): source validation,
/// request redirect, completion redirect, upstream forwarding.
const ISOLATING: u16 = 0x1 | 0x4 | 0x8 | 0x10;

/// Gives devices without an address the first bus that nobody names.
fn place(lab: &Lab) -> Result<Placed, LabError> {
    let mut used: BTreeSet<u8> = lab.ports.iter().map(|p| p.bus).collect();
    used.extend(lab.devices.iter().filter_map(|d| d.address).map(|a| a.bus));
    let mut placed = Placed::new();
    let mut parts = 0..;
    for (n, device) in lab.devices.iter().enumerate() {
        if device.part.is_some() {
            placed.insert(mediated::place(parts.next().unwrap_or(usize::MAX), device)?, n);
            continue;
        }
        let address = device.address.or_else(|| {
            let bus = (1..=u8::MAX).find(|bus| !used.contains(bus))?;
            used.insert(bus);
            Some(Address::new(0, bus, 0, 0))
        });
        let address =
            address.ok_or_else(|| LabError::new(&device.place, "no bus is left for the device; give it `addr`"))?;
        if placed.insert(address, n).is_some() {
            return Err(LabError::new(&device.place, format!("`addr`: {address} is in use by another device")));
        }
    }
    Ok(placed)
}

/// Names the line of the lab that made the fabric impossible.
fn blame(lab: &Lab, placed: &Placed, error: &FabricError) -> LabError {
    let text = error.to_string();
    let port = |p: &&PortSpec| match error {
        FabricError::BusConflict { bus, .. } => p.bus == *bus,
        _ => text.contains(&p.address.to_string()),
    };
    let device = || {
        placed.iter().find(|(address, _)| text.contains(&address.to_string())).and_then(|(_, n)| lab.devices.get(*n))
    };
    let place = lab.ports.iter().rev().find(port).map(|p| &p.place).or_else(|| device().map(|d| &d.place));
    LabError::new(place.unwrap_or(&lab::Place::whole()), text)
}

fn endpoint(device: &DeviceSpec, storage: &dyn Storage, serial: &str) -> Result<Arc<Endpoint>, LabError> {
    match &device.model {
        Model::Nvme(nvme) => {
            let disk = open(storage, &nvme.disk)?;
            if disk.len() < u64::from(nvme.block_size) {
                return Err(LabError::new(
                    &nvme.disk.place,
                    format!("the disk has {} bytes, not even one block", disk.len()),
                ));
            }
            Ok(controller(nvme, disk, serial.to_owned(), 0))
        }
        Model::Ioat => Ok(Endpoint::new(Box::new(ioat::Engine::new()))),
        Model::Dsa(config) => Ok(Endpoint::new(Box::new(dsa::Accelerator::new(*config)))),
    }
}

fn controller(nvme: &NvmeSpec, disk: Arc<dyn Disk>, serial: String, id: u16) -> Arc<Endpoint> {
    let lba_size = if nvme.block_size == 4096 { nvme::LbaSize::B4096 } else { nvme::LbaSize::B512 };
    Endpoint::new(Box::new(nvme::Controller::new(nvme::Config {
        serial,
        lba_size,
        max_queue_pairs: nvme.queues,
        namespaces: vec![disk],
        controller_id: id,
        total_vfs: if id == 0 { nvme.total_vfs } else { 0 },
        ..nvme::Config::default()
    })))
}

/// The controller of virtual function `n` (from 0) of `pf`: a RAM disk of its
/// own, as large as the PF's.
pub(crate) fn virtual_function(
    lab: &Lab,
    placed: &Placed,
    storage: &dyn Storage,
    pf: Address,
    n: usize,
) -> Result<Arc<Endpoint>, LabError> {
    let device = placed.get(&pf).and_then(|n| lab.devices.get(*n));
    let Some(DeviceSpec { model: Model::Nvme(nvme), .. }) = device else {
        return Err(LabError::new(&lab::Place::whole(), format!("{pf} has no virtual functions")));
    };
    let size = nvme.disk.size.or(Some(1 << 30));
    let disk = DiskSpec { medium: Medium::Ram, size, read_only: false, shared: false, place: nvme.disk.place.clone() };
    let id = u16::try_from(n + 1).unwrap_or(u16::MAX);
    Ok(controller(nvme, open(storage, &disk)?, format!("vf{id}-{pf}"), id))
}

/// Virtual functions that the lab wants enabled from the start.
pub(crate) fn initial_vfs(lab: &Lab, placed: &Placed) -> Vec<(Address, u16)> {
    let vfs = |n: &usize| {
        lab.devices.get(*n).map_or(0, |d| match &d.model {
            Model::Nvme(nvme) => nvme.vfs,
            Model::Ioat | Model::Dsa(_) => 0,
        })
    };
    placed.iter().map(|(address, n)| (*address, vfs(n))).filter(|(_, vfs)| *vfs > 0).collect()
}

fn open(storage: &dyn Storage, spec: &DiskSpec) -> Result<Arc<dyn Disk>, LabError> {
    storage.open(spec).map_err(|message| LabError::new(&spec.place, message))
}

fn serial(device: &DeviceSpec, address: Address) -> String {
    match &device.model {
        Model::Nvme(NvmeSpec { serial: Some(serial), .. }) => serial.clone(),
        _ => format!("vfuse-{address}"),
    }
}
