// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which rule for mappings holds now, and why: `vfuse vdpa explain`.

use std::fmt;

use uapi::Errno;
use uapi::vhost::backend;

use crate::device::VdpaDevice;
use crate::parent::{Mapping, OnReset};
use crate::{ParentSpec, Vdpa};

/// What a device would do with its mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The device.
    pub device: String,
    /// Its parent.
    pub parent: &'static str,
    /// The choice of the lab.
    pub on_reset: &'static str,
    /// How mappings reach the device.
    pub mapping: &'static str,
    /// `PA` or `VA`.
    pub mode: &'static str,
    /// Whether IOTLB_PERSIST (bit 8) is offered.
    pub offered: bool,
    /// Whether the program has acknowledged it; `None` if nobody has it open.
    pub acked: Option<bool>,
    /// What a reset does, and why.
    pub reset: String,
    /// What the last close does.
    pub release: String,
    /// What putting a group into another address space does.
    pub asid: String,
    /// Each address space.
    pub spaces: Vec<SpaceReport>,
}

/// An address space of an open node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceReport {
    /// Its number.
    pub asid: u32,
    /// Groups that look into it.
    pub groups: Vec<u32>,
    /// Records that vhost-vdpa has.
    pub records: usize,
    /// Ranges that the device reaches; `None`: everything at its own address.
    pub reach: Option<usize>,
    /// Ranges that it would reach after a reset.
    pub after_reset: Option<usize>,
}

impl Vdpa {
    /// Explains a device: `EINVAL` without a name, `ENODEV`.
    pub fn explain(&self, name: &str) -> Result<Explanation, Errno> {
        if name.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.devices.get(name).ok_or(Errno::ENODEV).map(explain)
    }

    /// The ranges that the device reaches in an address space, ends inclusive;
    /// `None`: everything at its own address. For tests and reports.
    #[must_use]
    pub fn reach(&self, name: &str, asid: u32) -> Option<Vec<(u64, u64)>> {
        self.devices.get(name)?.driver.tables.reach(asid)
    }

    /// The records of an address space, ends inclusive; `None` if it does not
    /// exist.
    #[must_use]
    pub fn records(&self, name: &str, asid: u32) -> Option<Vec<(u64, u64)>> {
        let space = self.devices.get(name)?.open.as_ref()?.spaces.get(&asid)?;
        Some(space.iter().map(|(first, record)| (first, record.last)).collect())
    }

    /// The address space that a group looks into.
    #[must_use]
    pub fn group_asid(&self, name: &str, group: u32) -> Option<u32> {
        Some(self.devices.get(name)?.driver.tables.group(group))
    }
}

fn explain(device: &VdpaDevice) -> Explanation {
    let spec = &device.driver.spec;
    let acked = device.open.as_ref().map(|open| open.backend & backend::IOTLB_PERSIST != 0);
    let cleans = device.would_clean() && spec.compat_reset;
    let spaces = (0..device.driver.address_spaces()).map(|asid| report(device, asid, cleans)).collect();
    Explanation {
        device: device.name.clone(),
        parent: spec.parent.name(),
        on_reset: spec.on_reset.name(),
        mapping: match spec.mapping {
            Mapping::Platform => "platform IOMMU",
            Mapping::DmaMap => "dma_map",
            Mapping::SetMap => "set_map",
        },
        mode: if spec.use_va { "VA" } else { "PA" },
        offered: spec.has_persistent_map(),
        acked,
        reset: reset(spec, acked),
        release: release(spec),
        asid: match (spec.set_group_asid, spec.keeps_groups) {
            (false, _) => "the parent has no operation for it (EOPNOTSUPP)".into(),
            (true, false) => "no mapping changes; a reset puts all groups back into address space 0".into(),
            (true, true) => "no mapping changes, and groups stay where they are over a reset".into(),
        },
        spaces,
    }
}

fn report(device: &VdpaDevice, asid: u32, cleans: bool) -> SpaceReport {
    let (spec, tables) = (&device.driver.spec, &device.driver.tables);
    let reach = tables.reach(asid).map(|ranges| ranges.len());
    let empty = if spec.one_to_one { None } else { Some(0) };
    let records = device.open.as_ref().and_then(|open| open.spaces.get(&asid)).map_or(0, |space| space.len());
    let groups = (0..device.driver.groups()).filter(|group| tables.group(*group) == asid).collect();
    SpaceReport { asid, groups, records, reach, after_reset: if cleans { empty } else { reach } }
}

fn reset(spec: &ParentSpec, acked: Option<bool>) -> String {
    let after = if spec.one_to_one { "leads everything to itself (1:1)" } else { "is empty" };
    let wiped = format!(
        "the device's table {after} after it; vhost-vdpa's records and pins stay, so mapping the same range again is EEXIST"
    );
    match (spec.on_reset, spec.mapping, spec.compat_reset) {
        (_, Mapping::Platform, _) => {
            "kept: the mappings are in a domain of vhost-vdpa's own, which no reset touches".into()
        }
        (_, _, false) => "kept: the parent has no compat_reset to clean its table with".into(),
        (OnReset::Clean, ..) => format!("cleaned: the lab says `clean`; {wiped}"),
        (OnReset::Keep, ..) => "kept: the lab says `keep`".into(),
        (OnReset::Negotiated | OnReset::MustAck, ..) => match acked {
            Some(true) => "kept: the program has acknowledged IOTLB_PERSIST".into(),
            Some(false) => format!("cleaned: the program has not acknowledged IOTLB_PERSIST; {wiped}"),
            None => "nobody has it open: the program's acknowledgement of IOTLB_PERSIST will decide".into(),
        },
    }
}

fn release(spec: &ParentSpec) -> String {
    let told = match (spec.mapping, spec.reset_map) {
        (Mapping::Platform, _) => "the domain is emptied and freed; the next open gets a fresh one",
        (_, true) => "reset_map puts the table of each address space that was used into its first state",
        (Mapping::DmaMap, false) => "each record is unmapped",
        (Mapping::SetMap, false) => "the parent is not told: its table is stale until the next set_map",
    };
    format!("all records go, pins with them; {told}")
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: parent {} ({}, {} mode)", self.device, self.parent, self.mapping, self.mode)?;
        let acked = match self.acked {
            None => "not open",
            Some(true) => "acknowledged",
            Some(false) => "not acknowledged",
        };
        let offered = if self.offered { "offered" } else { "not offered" };
        writeln!(f, "IOTLB_PERSIST: {offered}, {acked}; iotlb_on_reset = \"{}\"", self.on_reset)?;
        writeln!(f, "at a reset: {}", self.reset)?;
        writeln!(f, "at the last close: {}", self.release)?;
        writeln!(f, "at SET_GROUP_ASID: {}", self.asid)?;
        let count = |ranges: Option<usize>| ranges.map_or("everything 1:1".to_owned(), |n| format!("{n} ranges"));
        for SpaceReport { asid, groups, records, reach, after_reset } in &self.spaces {
            let (now, then) = (count(*reach), count(*after_reset));
            writeln!(
                f,
                "address space {asid} (groups {groups:?}): {records} records; the device reaches {now}, after a reset {then}"
            )?;
        }
        Ok(())
    }
}
