// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOMMU groups: who is in one, why, and who stands in a user's way.

use std::collections::{BTreeMap, BTreeSet};

use pci::{Address, PortType};
use serde::{Deserialize, Serialize};

use super::Survey;
use super::function::Isolation;

/// An IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Its number.
    pub group: u32,
    /// Its functions, each with what holds it.
    pub functions: Vec<(String, String)>,
    /// Whether a user can have it: no driver in it does DMA of its own
    /// (GRP-027).
    pub viable: bool,
    /// Who stands in the way.
    pub in_the_way: Vec<String>,
    /// Why the functions are together; empty for one alone.
    pub why: Vec<String>,
}

impl Survey {
    /// All IOMMU groups by number.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupReport> {
        let mut groups: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
        for (address, function) in &self.functions {
            if let Some(group) = function.group {
                groups.entry(group).or_default().push(*address);
            }
        }
        groups.into_iter().map(|(group, members)| self.group(group, &members)).collect()
    }

    fn group(&self, group: u32, members: &[Address]) -> GroupReport {
        let known = || members.iter().filter_map(|address| Some((address, self.functions.get(address)?)));
        let blocks = known().filter(|(_, f)| f.owns_dma());
        let in_the_way: Vec<String> =
            blocks.map(|(address, f)| format!("{address} is bound to {}", f.holder())).collect();
        GroupReport {
            group,
            functions: known().map(|(address, f)| (address.to_string(), f.holder())).collect(),
            viable: in_the_way.is_empty(),
            in_the_way,
            why: self.why_together(members),
        }
    }

    /// Bridges and functions that keep members from groups of their own.
    fn why_together(&self, members: &[Address]) -> Vec<String> {
        if members.len() < 2 {
            return Vec::new();
        }
        let mut found = BTreeSet::new();
        let mut unknown = false;
        for address in members {
            let mut note = |at: Address, isolation| match isolation {
                Isolation::Shared(why) => drop(found.insert((at, why))),
                Isolation::Unknown => unknown = true,
                Isolation::Isolated => {}
            };
            for bridge in self.above(*address) {
                note(bridge, self.isolation(bridge));
            }
            let sibling = members.iter().any(|m| m != address && same_device(*m, *address));
            if sibling {
                note(*address, self.isolation(*address));
            }
        }
        let mut why: Vec<String> = found.iter().map(|(at, why)| format!("{}{at} {why}", self.kind(*at))).collect();
        if why.is_empty() {
            why.push(if unknown {
                "configuration space cannot be read beyond 64 bytes; try as root".into()
            } else {
                "a DMA alias, or the host decided so for a reason that is not to be seen here".into()
            });
        }
        why
    }

    fn isolation(&self, address: Address) -> Isolation {
        let several = self.functions.keys().any(|other| *other != address && same_device(*other, address));
        self.functions.get(&address).map_or(Isolation::Unknown, |f| f.isolation(&self.quirks, several))
    }

    /// `root port ` and the like, for a sentence.
    pub(super) fn kind(&self, address: Address) -> &'static str {
        match self.functions.get(&address).and_then(|f| f.port_type()) {
            Some(PortType::RootPort) => "root port ",
            Some(PortType::UpstreamPort) => "upstream port ",
            Some(PortType::DownstreamPort) => "downstream port ",
            Some(kind) if kind.is_bridge() => "bridge ",
            _ => "",
        }
    }
}

fn same_device(a: Address, b: Address) -> bool {
    (a.segment, a.bus, a.device()) == (b.segment, b.bus, b.device())
}
