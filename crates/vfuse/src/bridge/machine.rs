// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's side: which of its ports has which of the lab's devices, and
//! whether an error injected at such a port means to the guest what it means
//! at the host.
//!
//! At the host an error of a function concerns everything below the port above
//! it. So in the guest all that, and nothing else, has to be below one port.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use host::survey::ResetReport;
use pci::Address;

use super::qmp::Monitor;

/// Ports at which QEMU injects errors.
const PORTS: [&str; 3] = ["pcie-root-port", "ioh3420", "xio3130-downstream"];
/// Where QEMU keeps devices, with ids of their own and without.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// Devices of the lab that the guest has.
#[derive(Debug, Default)]
pub(super) struct Machine {
    devices: BTreeMap<Address, Device>,
}

#[derive(Debug)]
struct Device {
    path: String,
    /// Its bus.
    bus: String,
}

impl Machine {
    /// Looks at every `vfio-pci` of a machine.
    pub(super) async fn read(monitor: &mut Monitor) -> Result<Machine> {
        let mut machine = Machine::default();
        for parent in DEVICES {
            for (name, kind) in monitor.list(parent).await? {
                // With variants: vfio-pci-nohotplug.
                if !kind.starts_with("child<vfio-pci") {
                    continue;
                }
                let path = format!("{parent}/{name}");
                if let Some(address) = host_address(monitor, &path).await? {
                    let bus = text(monitor, &path, "parent_bus").await?;
                    machine.devices.insert(address, Device { path, bus });
                }
            }
        }
        Ok(machine)
    }

    /// The devices.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.devices.keys().copied().collect()
    }

    /// The id of the port at which errors of a device are to be injected.
    /// `together`: what is reset together with it at the host.
    pub(super) async fn port(&self, monitor: &mut Monitor, address: Address, together: &ResetReport) -> Result<String> {
        let Some(device) = self.devices.get(&address) else { bail!("the guest does not have {address}") };
        let port = device.bus.rsplit_once('/').map_or("", |(port, _)| port);
        let kind = text(monitor, port, "type").await.unwrap_or_default();
        ensure!(
            PORTS.contains(&kind.as_str()),
            "{address} is not below a port that reports errors in the guest; give it one: \
             -device pcie-root-port,id=rp0,x-speed=5,x-width=1 -device vfio-pci,host={address},bus=rp0"
        );
        let Some(id) = port.strip_prefix("/machine/peripheral/") else {
            bail!("the guest's port above {address} has no id; the monitor needs one")
        };
        // Above 5 GT/s Linux waits for an active link after a reset, which
        // QEMU's ports never show.
        if let Ok(speed) = text(monitor, port, "x-speed").await {
            let slow = ["2_5", "5", "2.5"].contains(&speed.as_str());
            ensure!(slow, "the guest's port {id} has x-speed={speed}: Linux does not recover behind it; use x-speed=5");
        }
        for member in &together.functions {
            let Ok(other) = member.address.parse::<Address>() else { continue };
            let Some(found) = self.devices.get(&other) else {
                bail!(
                    "an error of {address} concerns {other} too ({}), which the guest does not have: \
                     the guest cannot do for it what the host does",
                    member.holder
                );
            };
            ensure!(
                found.bus == device.bus,
                "an error of {address} concerns {other} too, which the guest has below another port: \
                 put both below {id}"
            );
        }
        if let Some(other) = self.others(monitor, &device.bus, together).await?.first() {
            bail!("the guest's port {id} has {other} too, which an error of {address} does not concern at the host");
        }
        Ok(id.to_owned())
    }

    /// What is on a guest's bus besides these functions of the host.
    async fn others(&self, monitor: &mut Monitor, bus: &str, together: &ResetReport) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for (name, _) in monitor.list(bus).await? {
            if !name.starts_with("child[") {
                continue;
            }
            let path = text(monitor, bus, &name).await?;
            let ours = together.functions.iter().filter_map(|member| member.address.parse::<Address>().ok());
            let known = ours.filter_map(|address| self.devices.get(&address)).any(|device| device.path == path);
            if !known {
                others.push(path.rsplit('/').next().unwrap_or_default().to_owned());
            }
        }
        Ok(others)
    }
}

/// The function that a `vfio-pci` device is; `None` if it was given by a
/// descriptor or is none of PCI.
async fn host_address(monitor: &mut Monitor, path: &str) -> Result<Option<Address>> {
    let host = text(monitor, path, "host").await?.parse();
    if let Ok(address) = host {
        return Ok(Some(address));
    }
    let sysfs = text(monitor, path, "sysfsdev").await.unwrap_or_default();
    Ok(sysfs.rsplit('/').next().and_then(|name| name.parse().ok()))
}

async fn text(monitor: &mut Monitor, path: &str, property: &str) -> Result<String> {
    let value = monitor.property(path, property).await?;
    Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}
