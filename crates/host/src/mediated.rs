// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mediated devices: parts of a function that its kernel driver lends to
//! users.
//!
//! To VFIO a part is a function like any other, in a segment of its own that
//! no bus leads to and sysfs does not show; programs know it by its UUID on
//! the mdev bus, below its parent. What the parts of a function share is
//! `device::mediated`'s.

use std::sync::Arc;

use device::{Board, Driver, Endpoint, Mediated, Slot};
use models::dsa;
use pci::{Address, FabricBuilder, FunctionSpec, Item, Place, PortType};

use crate::lab::{DeviceSpec, Lab, LabError, Model, PartSpec};
use crate::sysfs::{DEVICES, GROUPS};
use crate::tree::{Node, Tree};

/// The segment of parts.
const SEGMENT: u16 = 0xffff;
/// As many as there are slots on a segment's root buses.
const PARTS: usize = 1 << 13;
const BUS: &str = "/sys/bus/mdev";
const PARENTS: &str = "/sys/class/mdev_bus";

/// Where the n-th part stands.
pub(crate) fn place(n: usize, device: &DeviceSpec) -> Result<Address, LabError> {
    let slot = u8::try_from(n % 32).unwrap_or(0);
    let bus = u8::try_from(n / 32).ok().filter(|_| n < PARTS);
    let bus =
        bus.ok_or_else(|| LabError::new(&device.place, format!("there are more than {PARTS} mediated devices")))?;
    Ok(Address::new(SEGMENT, bus, slot, 0))
}

/// Makes a part of a function that stands among `slots`.
pub(crate) fn add(
    builder: &mut FabricBuilder,
    slots: &mut std::collections::BTreeMap<Address, Slot>,
    (address, device, part): (Address, &DeviceSpec, &PartSpec),
    lab: &Lab,
) -> Result<(), LabError> {
    let refuse = |why: String| LabError::new(&device.place, format!("`parent`: {why}"));
    let parent = slots.get(&part.parent).and_then(|slot| slot.endpoint.clone());
    let parent = parent.ok_or_else(|| refuse(format!("there is no device at {}", part.parent)))?;
    if parent.spec().pasid.is_none() {
        return Err(refuse(format!("{} has no PASIDs to tell its users apart", part.parent)));
    }
    let Model::Dsa(config) = &device.model else {
        return Err(refuse("only a dsa is shared".to_owned()));
    };
    let siblings = || lab.devices.iter().filter_map(|other| other.part.as_ref()).filter(|p| p.parent == part.parent);
    let is_free = |pasid: &u32| {
        let used = slots.values().filter_map(|slot| slot.mediated.as_ref()).filter(|m| m.parent == part.parent);
        !siblings().any(|p| p.pasid == Some(*pasid)) && !used.map(|m| m.pasids.own()).any(|own| own == *pasid)
    };
    let own = part.pasid.or_else(|| (1..1 << 20).find(is_free)).unwrap_or(0);
    let model = Box::new(dsa::Accelerator::new(*config));
    let shared = parent.share(model, own, part.pasids.clone());
    let (endpoint, pasids) =
        shared.ok_or_else(|| LabError::new(&device.place, format!("`pasid`: {own} is another part's")))?;
    let capacity = parent.spec().pri.map(|all| (all / siblings().count().max(1) as u32).max(1));
    let spec =
        FunctionSpec { port_type: PortType::IntegratedEndpoint, aer: false, pri: capacity, ..endpoint.spec().clone() };
    let number = u32::from(address.bus) << 5 | u32::from(address.device());
    let uuid = part.uuid.clone().unwrap_or_else(|| format!("fd5e0000-0000-4000-8000-{:012x}", number + 1));
    if slots.values().any(|slot| slot.mediated.as_ref().is_some_and(|other| other.uuid == uuid)) {
        return Err(LabError::new(&device.place, format!("`uuid`: {uuid} is another device's")));
    }
    builder.root_bus(address.segment, address.bus);
    builder.add(Item::new(Place::At(address), spec).named(&uuid));
    let mediated = Mediated { parent: part.parent, uuid, group: part.group, pasids };
    slots.insert(address, slot(endpoint, device, mediated));
    Ok(())
}

fn slot(endpoint: Arc<Endpoint>, device: &DeviceSpec, mediated: Mediated) -> Slot {
    let migration = device.migration.clone();
    Slot { endpoint: Some(endpoint), migration, mediated: Some(mediated), ..Slot::default() }
}

/// A function is shared by its kernel driver.
pub(crate) fn check(board: &Board, lab: &Lab) -> Result<(), LabError> {
    for device in &lab.devices {
        let Some(part) = &device.part else { continue };
        if !matches!(board.driver(part.parent), Some(Driver::Kernel(_))) {
            let message = format!("`parent`: {} needs the driver that shares it: driver = \"idxd\"", part.parent);
            return Err(LabError::new(&device.place, message));
        }
    }
    Ok(())
}

/// What sysfs and `/dev` show of a part whose parent's directory is `parent`.
/// Its directory.
pub(crate) fn show(tree: &mut Tree, board: &Board, address: Address, parent: &str) -> Option<String> {
    let part = board.mediated(address)?;
    let leaving = board.is_leaving(address);
    let dir = format!("{parent}/{}", part.uuid);
    let driver = match board.driver(part.parent) {
        Some(driver) => format!("{BUS}/drivers/{}_mdev", driver.name()),
        None => format!("{BUS}/drivers/mdev"),
    };
    for own in [BUS, PARENTS, &format!("{BUS}/devices"), &format!("{BUS}/drivers"), &driver] {
        tree.own(own);
    }
    tree.link(&format!("{PARENTS}/{}", part.parent), parent);
    tree.link(&format!("{BUS}/devices/{}", part.uuid), &dir);
    tree.link(&format!("{dir}/subsystem"), BUS);
    if board.driver(address).is_some() && !leaving {
        tree.link(&format!("{dir}/driver"), &driver);
        tree.link(&format!("{driver}/{}", part.uuid), &dir);
    }
    tree.attribute(format!("{dir}/uevent"), Some(format!("DRIVER={}\n", driver.rsplit('/').next()?)));
    tree.attribute(format!("{dir}/power/control"), Some("auto\n".into()));
    let Some(group) = board.fabric.group(address).filter(|_| part.group) else { return Some(dir) };
    let of = format!("{GROUPS}/{group}");
    tree.link(&format!("{dir}/iommu_group"), &of);
    tree.link(&format!("{of}/devices/{}", part.uuid), &dir);
    tree.text(format!("{of}/reserved_regions"), "0x00000000fee00000 0x00000000feefffff msi\n");
    tree.attribute(format!("{of}/type"), Some("unknown\n".into()));
    if board.driver(address) == Some(&Driver::VfioPci) {
        let name = group.to_string();
        tree.device(&format!("/dev/vfio/{name}"), Node::VfioGroup(group));
        tree.link(&format!("/sys/class/vfio/{name}"), &format!("{DEVICES}/virtual/vfio/{name}"));
        tree.text(format!("{DEVICES}/virtual/vfio/{name}/uevent"), format!("DEVNAME=vfio/{name}\n"));
        tree.link(&format!("{DEVICES}/virtual/vfio/{name}/subsystem"), "/sys/class/vfio");
    }
    Some(dir)
}
