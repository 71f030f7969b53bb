// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab's vdpa bus: devices from their descriptions, and its management.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use caller::FileId;
use device::virtio::VirtioEndpoint;
use serde::{Deserialize, Serialize};
use uapi::Errno;
use vdpa::{Deletion, Mapping, Vdpa};

use crate::host::Host;
use crate::lab::{LabError, VdpaSpec, VirtioModel};
use crate::{Storage, VirtioMaker};

/// The bus, and what makes devices for it.
#[derive(Debug)]
pub(crate) struct VdpaBus {
    pub(crate) vdpa: Vdpa,
    maker: VirtioMaker,
    /// `/sys/bus/vdpa` is there: there is or was a device.
    pub(crate) shown: bool,
    /// Who is told when a device has gone, by its name.
    leaving: BTreeMap<String, Gone>,
}

/// Is called when a device that was deleted has gone.
struct Gone(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gone")
    }
}

/// A device of the bus, as `vdpa dev show` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdpaInfo {
    /// Its name.
    pub name: String,
    /// The management device.
    pub mgmtdev: String,
    /// Kind of parent.
    pub parent: String,
    /// `/dev/vhost-vdpa-N`, if vhost_vdpa took it.
    pub node: Option<String>,
    /// `network` or `block`.
    pub kind: String,
    /// Vendor id.
    pub vendor_id: u32,
    /// Number of queues.
    pub max_vqs: u32,
    /// Largest queue.
    pub max_vq_size: u16,
    /// Whether a program has it open.
    pub open: bool,
}

/// Its configuration, as `vdpa dev config show` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdpaConfig {
    /// Configuration space, in hex.
    pub config: String,
    /// MAC address of a network device.
    pub mac: Option<String>,
    /// Sectors of a block device.
    pub capacity: Option<u64>,
    /// Features offered, in hex.
    pub features: String,
    /// Features in force after FEATURES_OK, in hex.
    pub negotiated_features: Option<String>,
}

/// Why management is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VdpaError {
    /// The description cannot be used.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The bus refuses.
    #[error("{name}: {errno}")]
    Refused {
        /// The device.
        name: String,
        /// Linux's reason.
        errno: Errno,
    },
}

impl VdpaBus {
    pub(crate) fn new(vdpa: Vdpa) -> VdpaBus {
        VdpaBus { vdpa, maker: VirtioMaker::default(), shown: false, leaving: BTreeMap::new() }
    }

    /// The last reference to a file has gone; whether a device went with it.
    pub(crate) fn release(&mut self, file: FileId) -> bool {
        let Some(name) = self.vdpa.release(file) else { return false };
        if let Some(Gone(tell)) = self.leaving.remove(&name) {
            tell();
        }
        true
    }

    /// Makes a device and puts it on the bus; its name.
    pub(crate) fn add(&mut self, spec: &VdpaSpec, storage: &dyn Storage) -> Result<String, VdpaError> {
        let free = || (0..).map(|n| format!("vdpa{n}")).find(|name| !self.vdpa.exists(name)).unwrap_or_default();
        let name = spec.name.clone().unwrap_or_else(free);
        let refused = |errno| VdpaError::Refused { name: name.clone(), errno };
        if self.vdpa.exists(&name) {
            return Err(refused(Errno::EEXIST));
        }
        let device = self.maker.make(&name, &spec.model, storage)?;
        let endpoint = match spec.parent.mapping {
            // VDPA-1.8: such drivers have one group for all queues.
            Mapping::Platform => VirtioEndpoint::with_one_group(device, spec.latch),
            Mapping::DmaMap | Mapping::SetMap => VirtioEndpoint::new(device, spec.latch),
        };
        let kind = match spec.model {
            VirtioModel::Net(_) => "net",
            VirtioModel::Blk(_) => "blk",
        };
        // vdpasim_net and vdpasim_blk are Linux's.
        let management = format!("vdpa{}_{kind}", spec.parent.parent);
        self.vdpa.add(&name, Some(&management), spec.parent.clone(), endpoint).map_err(refused)?;
        self.shown = true;
        Ok(name)
    }
}

impl Host {
    /// Every device of the vdpa bus; the executor gives them their turns.
    pub fn vdpa_endpoints(&self) -> impl Iterator<Item = &Arc<VirtioEndpoint>> {
        self.vdpa.vdpa.endpoints()
    }

    /// Adds a device as `vdpa dev add` does, from `MODEL[,key=value]...`; its
    /// name.
    pub fn vdpa_add(&mut self, argument: &str) -> Result<String, VdpaError> {
        let spec = VdpaSpec::parse("vdpa dev add", argument)?;
        let name = self.vdpa.add(&spec, self.storage.as_ref())?;
        self.changed();
        Ok(name)
    }

    /// Deletes a device as `vdpa dev del` does. `gone` is called when it has
    /// gone: before the return, or when its file is closed (VDPA-1.9). It is
    /// called with the host locked.
    pub fn vdpa_delete(&mut self, name: &str, gone: impl FnOnce() + Send + 'static) -> Result<(), VdpaError> {
        match self.vdpa.vdpa.delete(name).map_err(|errno| refused(name, errno))? {
            Deletion::Done => gone(),
            Deletion::Waits => drop(self.vdpa.leaving.insert(name.to_owned(), Gone(Box::new(gone)))),
        }
        self.changed();
        Ok(())
    }

    /// Whether a device is there, one that is leaving included.
    #[must_use]
    pub fn vdpa_exists(&self, name: &str) -> bool {
        self.vdpa.vdpa.exists(name)
    }

    /// Every device.
    #[must_use]
    pub fn vdpa_devices(&self) -> Vec<VdpaInfo> {
        self.vdpa.vdpa.list().into_iter().map(info).collect()
    }

    /// A device's configuration.
    pub fn vdpa_config(&mut self, name: &str) -> Result<VdpaConfig, VdpaError> {
        let config = self.vdpa.vdpa.config(name).map_err(|errno| refused(name, errno))?;
        let hex = |bytes: &[u8], between: &str| {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between)
        };
        let mac = config.bytes.get(..6).filter(|_| config.device_id == 1).map(|mac| hex(mac, ":"));
        let capacity = config.bytes.first_chunk().filter(|_| config.device_id == 2).map(|n| u64::from_le_bytes(*n));
        Ok(VdpaConfig {
            config: hex(&config.bytes, ""),
            mac,
            capacity,
            features: format!("{:#x}", config.features),
            negotiated_features: config.negotiated.map(|features| format!("{features:#x}")),
        })
    }

    /// Vendor statistics of a queue.
    pub fn vdpa_statistics(&self, name: &str, queue: Option<u32>) -> Result<Vec<(String, u64)>, VdpaError> {
        let all = self.vdpa.vdpa.statistics(name, queue).map_err(|errno| refused(name, errno))?;
        Ok(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Which rule for a device's mappings holds now, and why.
    pub fn vdpa_explain(&self, name: &str) -> Result<String, VdpaError> {
        self.vdpa.vdpa.explain(name).map(|told| told.to_string()).map_err(|errno| refused(name, errno))
    }
}

fn refused(name: &str, errno: Errno) -> VdpaError {
    VdpaError::Refused { name: name.to_owned(), errno }
}

fn info(device: vdpa::DeviceInfo) -> VdpaInfo {
    VdpaInfo {
        name: device.name,
        mgmtdev: device.management.unwrap_or_default(),
        parent: device.parent.to_owned(),
        node: device.node.map(|number| format!("/dev/vhost-vdpa-{number}")),
        kind: if device.device_id == 1 { "network" } else { "block" }.to_owned(),
        vendor_id: device.vendor_id,
        max_vqs: device.queues,
        max_vq_size: device.max_size,
        open: device.open,
    }
}

/// Devices as the vdpa tool prints them.
#[must_use]
pub fn vdpa_table(devices: &[VdpaInfo]) -> String {
    let mut table = String::new();
    for d in devices {
        let node = d.node.as_deref().unwrap_or("no node");
        let open = if d.open { "open" } else { "closed" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{}: type {} mgmtdev {} vendor_id {} max_vqs {} max_vq_size {} {node} {open}",
            d.name, d.kind, d.mgmtdev, d.vendor_id, d.max_vqs, d.max_vq_size
        );
    }
    table
}
