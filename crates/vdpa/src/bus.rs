// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vdpa bus as its management tool sees it: devices come and go (VDPA-10).

use std::sync::Arc;

use ::device::VirtioEndpoint;
use ::device::virtio::status;
use uapi::Errno;

use crate::device::VdpaDevice;
use crate::{ParentSpec, Vdpa};

/// Virtio id of a net device.
const NET: u32 = 1;
/// Virtio id of a block device.
const BLOCK: u32 = 2;
/// Largest queue index that statistics can be asked for.
const MAX_INDEX: u32 = 0x8000;

/// What `vdpa dev show` tells of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// The management device that made it.
    pub management: Option<String>,
    /// Name of its parent's kind.
    pub parent: &'static str,
    /// `N` of `/dev/vhost-vdpa-N`.
    pub node: Option<u32>,
    /// Virtio id.
    pub device_id: u32,
    /// Vendor.
    pub vendor_id: u32,
    /// Number of queues.
    pub queues: u32,
    /// Largest ring.
    pub max_size: u16,
    /// Whether a program has its node open.
    pub open: bool,
}

/// What `vdpa dev config show` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Virtio id.
    pub device_id: u32,
    /// Configuration space.
    pub bytes: Vec<u8>,
    /// Features offered.
    pub features: u64,
    /// Features in force, after FEATURES_OK (VDPA-10.5).
    pub negotiated: Option<u64>,
}

/// How a deletion went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The device is gone.
    Done,
    /// The node is gone; the device goes when its file is closed (VDPA-1.9).
    Waits,
}

impl Vdpa {
    /// Adds a device: `EEXIST` if the name is taken, `EINVAL` if it is empty.
    /// It gets the lowest free node, unless vhost_vdpa refuses it.
    pub fn add(
        &mut self,
        name: &str,
        management: Option<&str>,
        spec: ParentSpec,
        endpoint: Arc<VirtioEndpoint>,
    ) -> Result<Option<u32>, Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        if self.devices.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let mut device = VdpaDevice::new(name.to_owned(), spec, endpoint);
        device.management = management.map(str::to_owned);
        if device.can_probe() {
            device.number = (0..).find(|number| self.devices.values().all(|other| other.number != Some(*number)));
        } else {
            tracing::warn!(
                target: "vfuse::vdpa", device = name,
                "vhost_vdpa takes no device behind the platform's IOMMU with several groups or address spaces: no node"
            );
        }
        let number = device.number;
        tracing::info!(target: "vfuse::vdpa", device = name, parent = device.driver.spec.parent.name(), ?number, "added");
        self.devices.insert(name.to_owned(), device);
        Ok(number)
    }

    /// Deletes a device (VDPA-10.4): `EINVAL` without a name and for one that
    /// no management device made, `ENODEV`.
    pub fn delete(&mut self, name: &str) -> Result<Deletion, Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        let device = self.devices.get_mut(name).filter(|device| !device.leaving).ok_or(Errno::ENODEV)?;
        if device.management.is_none() {
            return Err(Errno::EINVAL);
        }
        if device.open.is_some() {
            device.leaving = true;
            return Ok(Deletion::Waits);
        }
        self.devices.remove(name);
        Ok(Deletion::Done)
    }

    /// Whether there is a device of this name, one that is leaving included.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        self.devices.contains_key(name)
    }

    /// Every device, by name.
    #[must_use]
    pub fn list(&self) -> Vec<DeviceInfo> {
        self.devices.values().filter(|device| !device.leaving).map(info).collect()
    }

    /// One device: `EINVAL` without a name, `ENODEV`.
    pub fn show(&self, name: &str) -> Result<DeviceInfo, Errno> {
        self.named(name).map(info)
    }

    /// The configuration of a net or block device: else `EOPNOTSUPP`
    /// (VDPA-10.5).
    pub fn config(&mut self, name: &str) -> Result<DeviceConfig, Errno> {
        self.named(name)?;
        let device = self.devices.get_mut(name).ok_or(Errno::ENODEV)?;
        if device.management.is_none() {
            return Err(Errno::EINVAL);
        }
        let spec = device.driver.endpoint.spec().clone();
        if !matches!(spec.device_id, NET | BLOCK) {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut bytes = vec![0; spec.config_size as usize];
        // The device may change it while it is read.
        for _ in 0..16 {
            let before = device.driver.endpoint.generation();
            device.driver.read_config(0, &mut bytes);
            if device.driver.endpoint.generation() == before {
                break;
            }
        }
        let endpoint = &device.driver.endpoint;
        let negotiated = endpoint.status() & status::FEATURES_OK != 0;
        Ok(DeviceConfig {
            device_id: spec.device_id,
            bytes,
            features: spec.features,
            negotiated: negotiated.then(|| endpoint.features()),
        })
    }

    /// Vendor statistics of a queue, in the order of VDPA-10.6: `EINVAL`,
    /// `ENODEV`, `EOPNOTSUPP`, `ERANGE`, `EAGAIN` before FEATURES_OK.
    pub fn statistics(&self, name: &str, queue: Option<u32>) -> Result<Vec<(&'static str, u64)>, Errno> {
        let queue = queue.filter(|_| !name.is_empty()).ok_or(Errno::EINVAL)?;
        let device = self.named(name)?;
        if device.management.is_none() {
            return Err(Errno::EINVAL);
        }
        let endpoint = &device.driver.endpoint;
        if endpoint.spec().device_id != NET {
            return Err(Errno::EOPNOTSUPP);
        }
        if queue > MAX_INDEX {
            return Err(Errno::ERANGE);
        }
        if endpoint.status() & status::FEATURES_OK == 0 {
            return Err(Errno::EAGAIN);
        }
        if queue >= device.driver.queues() {
            return Err(Errno::EINVAL);
        }
        endpoint.statistics(queue as u16).ok_or(Errno::EOPNOTSUPP)
    }

    /// Gives a net device another MAC address, in the order of VDPA-10.7. A
    /// device that is not of a net management device ignores it.
    pub fn set_mac(&mut self, name: &str, mac: Option<[u8; 6]>) -> Result<(), Errno> {
        let device = self.named(name)?;
        if device.management.is_none() {
            return Err(Errno::EINVAL);
        }
        if device.driver.endpoint.spec().device_id != NET {
            return Ok(());
        }
        // Neither multicast nor zero.
        let mac = mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).ok_or(Errno::EOPNOTSUPP)?;
        if device.driver.endpoint.set_mac(mac) { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn named(&self, name: &str) -> Result<&VdpaDevice, Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.devices.get(name).filter(|device| !device.leaving).ok_or(Errno::ENODEV)
    }
}

fn info(device: &VdpaDevice) -> DeviceInfo {
    let spec = device.driver.endpoint.spec();
    DeviceInfo {
        name: device.name.clone(),
        management: device.management.clone(),
        parent: device.driver.spec.parent.name(),
        node: device.number,
        device_id: spec.device_id,
        vendor_id: device.driver.spec.vendor.unwrap_or(spec.vendor_id),
        queues: device.driver.queues(),
        max_size: device.driver.max_size(),
        open: device.open.is_some(),
    }
}
