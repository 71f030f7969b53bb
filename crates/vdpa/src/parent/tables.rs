// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of mappings: what a parent has in its own table, or in
//! the platform's IOMMU, and which group looks into which.

use std::sync::Arc;

use device::VirtioEndpoint;
use iommu::{AddressSpace, Domain, MapError, Mapping as Entry, Prot};
use uapi::Errno;
use uapi::vhost::iotlb;

use super::{Identity, Mapping, ParentSpec};
use crate::iotlb::{Change, Iotlb, Record};

/// Tables of one device.
#[derive(Debug)]
pub(crate) struct Tables {
    tables: Vec<Table>,
    /// The address space of each group.
    groups: Vec<u32>,
    /// The domain of the platform's IOMMU, while the node is open.
    domain: Option<Arc<AddressSpace>>,
    pub(crate) identity: Arc<Identity>,
}

/// What the device has of one address space.
#[derive(Debug)]
struct Table {
    space: Arc<AddressSpace>,
    /// Everything leads to itself (VDPA-8.6).
    one_to_one: bool,
    /// It is what the records were at the last `set_map`.
    follows: bool,
}

impl Tables {
    pub(crate) fn new(spec: &ParentSpec, endpoint: &VirtioEndpoint) -> Tables {
        let identity = Arc::<Identity>::default();
        let count = match spec.mapping {
            Mapping::Platform => 0,
            Mapping::DmaMap | Mapping::SetMap => endpoint.spec().address_spaces,
        };
        let mut tables: Vec<Table> = (0..count).map(|_| Table::new()).collect();
        tables.iter_mut().for_each(|table| table.clean(spec, &identity));
        let groups = vec![0; endpoint.spec().groups as usize];
        let tables = Tables { tables, groups, domain: None, identity };
        tables.attach(endpoint);
        tables
    }

    /// Every group looks where it is to look.
    fn attach(&self, endpoint: &VirtioEndpoint) {
        for (group, asid) in (0..).zip(&self.groups) {
            let space = self.domain.as_ref().or_else(|| Some(&self.tables.get(*asid as usize)?.space));
            if let Some(requester) = endpoint.requester(group) {
                requester.attach(space.map(|space| Domain::from(Arc::clone(space))));
            }
        }
    }

    /// The node was opened: a fresh domain of the platform's IOMMU, or none any
    /// more (VDPA-1.4, VDPA-1.6).
    pub(crate) fn set_domain(&mut self, domain: Option<Arc<AddressSpace>>, endpoint: &VirtioEndpoint) {
        self.domain = domain;
        self.attach(endpoint);
    }

    /// Records begin anew: the next `set_map` has nothing to go on from.
    pub(crate) fn begin(&mut self) {
        self.tables.iter_mut().for_each(|table| table.follows = false);
    }

    /// Puts a group into an address space.
    pub(crate) fn set_group(&mut self, group: u32, asid: u32, endpoint: &VirtioEndpoint) {
        if let Some(of) = self.groups.get_mut(group as usize) {
            *of = asid;
        }
        self.attach(endpoint);
    }

    /// All groups back to address space 0.
    pub(crate) fn reset_groups(&mut self, endpoint: &VirtioEndpoint) {
        if self.groups.iter().any(|asid| *asid != 0) {
            self.groups.fill(0);
            self.attach(endpoint);
        }
    }

    /// The address space that a group looks into.
    pub(crate) fn group(&self, group: u32) -> u32 {
        self.groups.get(group as usize).copied().unwrap_or(0)
    }

    /// `compat_reset` with CLEAN_MAP: all tables as if nothing was ever mapped.
    pub(crate) fn clean(&mut self, spec: &ParentSpec) {
        for table in &mut self.tables {
            table.clean(spec, &self.identity);
        }
    }

    /// `reset_map`
    pub(crate) fn reset_map(&mut self, asid: u32, spec: &ParentSpec) {
        if let Some(table) = self.tables.get_mut(asid as usize)
            && !table.one_to_one
        {
            table.clean(spec, &self.identity);
        }
    }

    /// A record has been added (VDPA-7.23). The errno is the parent's.
    pub(crate) fn added(&mut self, spec: &ParentSpec, asid: u32, first: u64, record: &Record) -> Result<(), Errno> {
        match (spec.mapping, &self.domain) {
            (Mapping::Platform, Some(domain)) => map(domain, first, record, platform_prot(record.perm)),
            (Mapping::Platform, None) => Err(Errno::EINVAL),
            (Mapping::DmaMap | Mapping::SetMap, _) => {
                let table = self.tables.get_mut(asid as usize).ok_or(Errno::EINVAL)?;
                table.leave_one_to_one();
                if table.space.len() >= spec.table_entries {
                    return Err(Errno::ENOSPC);
                }
                map(&table.space, first, record, prot(record.perm))
            }
        }
    }

    /// Records between these ends have gone. When this returns the device does
    /// not touch what they led to.
    pub(crate) fn removed(&mut self, spec: &ParentSpec, asid: u32, first: u64, last: u64) {
        match spec.mapping {
            Mapping::Platform => {
                if let Some(domain) = &self.domain {
                    domain.unmap(first, last, &mut |_| ());
                }
            }
            Mapping::DmaMap | Mapping::SetMap => {
                if let Some(table) = self.tables.get_mut(asid as usize) {
                    // VDPA-8.10: also if the record was not in it.
                    table.leave_one_to_one();
                    table.space.unmap(first, last, &mut |_| ());
                }
            }
        }
    }

    /// `set_map`: the table becomes what the records are, at once as far as the
    /// device can see (every such driver holds a lock, or stops the device). A
    /// program may so replace what a running ring lies in, within a batch. On
    /// error the table is empty.
    pub(crate) fn set_map(
        &mut self,
        spec: &ParentSpec,
        asid: u32,
        iotlb: &mut Iotlb,
        endpoint: &VirtioEndpoint,
    ) -> Result<(), Errno> {
        let Some(table) = self.tables.get_mut(asid as usize) else { return Err(Errno::EINVAL) };
        let changes = iotlb.take_changes().filter(|_| table.follows && !table.one_to_one);
        let result = if iotlb.len() > spec.table_entries {
            Err(Errno::ENOSPC)
        } else {
            match changes.as_deref() {
                // One change is at once by itself.
                Some([change]) => table.apply(*change, iotlb),
                Some(changes) => endpoint.still(|| changes.iter().try_for_each(|change| table.apply(*change, iotlb))),
                None => endpoint.still(|| table.replace(iotlb)),
            }
        };
        table.follows = result.is_ok();
        table.one_to_one = false;
        if result.is_err() {
            table.space.unmap(0, u64::MAX, &mut |_| ());
        }
        result
    }

    /// Ranges of IOVAs that the device reaches in an address space, ends
    /// inclusive; `None` for all of them at their own addresses.
    pub(crate) fn reach(&self, asid: u32) -> Option<Vec<(u64, u64)>> {
        let space = match (&self.domain, self.tables.get(asid as usize)) {
            (Some(domain), _) => domain,
            (None, Some(table)) if table.one_to_one => return None,
            (None, Some(table)) => &table.space,
            (None, None) => return Some(Vec::new()),
        };
        let mut ranges = Vec::new();
        let mut next = Some(0);
        while let Some(mapping) = next.and_then(|iova| space.at_or_after(iova)) {
            ranges.push((mapping.first, mapping.last));
            next = mapping.last.checked_add(1);
        }
        Some(ranges)
    }
}

impl Table {
    fn new() -> Table {
        Table { space: AddressSpace::new(), one_to_one: false, follows: false }
    }

    /// As if nothing was ever mapped.
    fn clean(&mut self, spec: &ParentSpec, identity: &Arc<Identity>) {
        self.space.unmap(0, u64::MAX, &mut |_| ());
        self.follows = false;
        self.one_to_one = spec.one_to_one;
        if spec.one_to_one {
            let all = Entry {
                first: 0,
                last: u64::MAX,
                prot: Prot::all(),
                memory: Arc::clone(identity) as _,
                offset: 0,
                tag: 0,
            };
            if self.space.map(all).is_err() {
                tracing::error!(target: "vfuse::vdpa", "no memory for the table: nothing is mapped");
            }
        }
    }

    fn leave_one_to_one(&mut self) {
        if std::mem::take(&mut self.one_to_one) {
            self.space.unmap(0, u64::MAX, &mut |_| ());
        }
    }

    fn apply(&self, change: Change, iotlb: &Iotlb) -> Result<(), Errno> {
        match change {
            Change::Removed(first, last) => self.space.unmap(first, last, &mut |_| ()),
            Change::Added(first) => {
                // It may have gone again, or come more than once.
                if let Some(record) = iotlb.get(first)
                    && self.space.at_or_after(first).is_none_or(|mapping| mapping.first != first)
                {
                    map(&self.space, first, record, prot(record.perm))?;
                }
            }
        }
        Ok(())
    }

    fn replace(&self, iotlb: &Iotlb) -> Result<(), Errno> {
        self.space.unmap(0, u64::MAX, &mut |_| ());
        iotlb.iter().try_for_each(|(first, record)| map(&self.space, first, record, prot(record.perm)))
    }
}

fn map(space: &AddressSpace, first: u64, record: &Record, prot: Prot) -> Result<(), Errno> {
    let memory = Arc::clone(&record.memory);
    let entry = Entry { first, last: record.last, prot, memory, offset: record.offset, tag: 0 };
    space.map(entry).map_err(|error| match error {
        MapError::Overlap => Errno::EEXIST,
        MapError::NoMemory => Errno::ENOMEM,
    })
}

/// VDPA-7.14
fn platform_prot(perm: u8) -> Prot {
    match perm {
        iotlb::RO => Prot::READ,
        iotlb::WO => Prot::WRITE,
        iotlb::RW => Prot::all(),
        _ => {
            tracing::warn!(target: "vfuse::vdpa", perm, "permission is none: mapped without reading and writing");
            Prot::empty()
        }
    }
}

/// Parents with tables of their own look at the two bits.
fn prot(perm: u8) -> Prot {
    Prot::from_bits_truncate(perm)
}
