// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset groups: what a hot reset takes down, and who may do one (HOT-001 to
//! HOT-003, HOT-023, HOT-025, HOT-034).

use std::collections::BTreeSet;

use pci::Address;
use serde::{Deserialize, Serialize};

use super::Survey;

/// A function of a reset group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Address.
    pub address: String,
    /// What holds it.
    pub holder: String,
    /// IOMMU group.
    pub group: Option<u32>,
    /// Resets of the function alone, in order of use.
    pub function_resets: Vec<String>,
}

/// Whether a hot reset would be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum HotReset {
    /// It would.
    Allowed,
    /// By a user who has these groups.
    Needs {
        /// Their numbers.
        groups: Vec<u32>,
    },
    /// `EINVAL`: these stand in the way, each with why.
    Refused {
        /// Sentences.
        in_the_way: Vec<String>,
    },
    /// `ENODEV`: neither slot nor bus can be reset.
    Impossible {
        /// Why not.
        why: String,
    },
}

/// What is reset together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// The port whose bus or slot is reset, or the function that can only be
    /// reset alone.
    pub name: String,
    /// `slot`, `bus`, or `function` for one that no hot reset reaches.
    pub kind: String,
    /// Why these functions are together.
    pub why: String,
    /// Functions in the order of a bus walk.
    pub functions: Vec<Member>,
    /// Whether a hot reset would be done.
    pub hot_reset: HotReset,
}

impl Survey {
    /// Every reset group that has a function which can be handed out. `user`:
    /// the functions that somebody has, whose groups are then his; `None` asks
    /// what a user would need.
    #[must_use]
    pub fn reset_groups(&self, user: Option<&[Address]>) -> Vec<ResetReport> {
        let mut seen = BTreeSet::new();
        let mut reports = Vec::new();
        for (address, function) in &self.functions {
            let key = self.reset_key(*address);
            if !function.is_bridge() && seen.insert(key) {
                reports.push(self.reset_report(*address, user));
            }
        }
        reports
    }

    /// The reset group of a function.
    #[must_use]
    pub fn reset_group(&self, address: Address, user: Option<&[Address]>) -> Option<ResetReport> {
        self.functions.contains_key(&address).then(|| self.reset_report(address, user))
    }

    /// All functions that a hot reset of this one takes down, in bus walk
    /// order, itself alone if it cannot be done.
    pub fn hot_reset_scope(&self, address: Address) -> Result<Vec<Address>, String> {
        let function = self.functions.get(&address).ok_or("there is no such function")?;
        if function.physical.is_some_and(|pf| pf.bus != address.bus) {
            return Err("it is a virtual function on a bus that has no bridge".into());
        }
        let Some(port) = function.parent else {
            return Err("it is on a root bus".into());
        };
        let mut scope = Vec::new();
        self.walk(port, address.bus, &mut scope);
        let forbids = |a: &Address| {
            let id = self.functions.get(a).map_or((0, 0), |f| f.id);
            self.quirks.no_bus_reset.iter().any(|quirk| quirk.matches(id.0, id.1))
        };
        let forbidding = scope.iter().chain([&port]).copied().find(|a| forbids(a));
        match forbidding {
            Some(device) => Err(format!("{device} does not survive a reset of its bus")),
            None => Ok(scope),
        }
    }

    fn walk(&self, bridge: Address, bus: u8, found: &mut Vec<Address>) {
        let mut children = self.children(bridge);
        // Virtual functions come after those that are there from the start;
        // those on buses of their own are not on this one.
        children.retain(|child| child.bus == bus);
        children.sort_by_key(|child| (self.functions.get(child).is_some_and(|f| f.physical.is_some()), *child));
        for child in children {
            if found.contains(&child) {
                continue;
            }
            found.push(child);
            if let Some(below) = self.children(child).first().map(|below| below.bus) {
                self.walk(child, below, found);
            }
        }
    }

    /// What VFIO puts functions together by (HOT-034): a port, or nothing.
    fn reset_key(&self, address: Address) -> Address {
        match self.functions.get(&address) {
            Some(f) if f.physical.is_none() => f.parent.unwrap_or(address),
            _ => address,
        }
    }

    fn reset_report(&self, address: Address, user: Option<&[Address]>) -> ResetReport {
        let scope = self.hot_reset_scope(address);
        let port = self.functions.get(&address).and_then(|f| f.parent);
        let slot = port.and_then(|port| self.functions.get(&port)).is_some_and(|f| f.has_hotplug_slot());
        let (kind, name) = match (&scope, port) {
            (Ok(_), Some(_)) => (if slot { "slot" } else { "bus" }, self.reset_key(address)),
            _ => ("function", address),
        };
        let members = scope.clone().unwrap_or_else(|_| vec![address]);
        let why = match (kind, port) {
            ("slot", Some(port)) => format!("they are in the slot behind {}{port}", self.kind(port)),
            ("bus", Some(port)) => {
                format!(
                    "a reset of bus {:04x}:{:02x} behind {}{port} takes down all on it and below it",
                    address.segment,
                    address.bus,
                    self.kind(port)
                )
            }
            _ => "no reset of a bus or slot reaches it".to_owned(),
        };
        let hot_reset = match scope {
            Err(why) => HotReset::Impossible { why },
            Ok(scope) => self.hot_reset(address, &scope, user),
        };
        ResetReport {
            name: name.to_string(),
            kind: kind.to_owned(),
            why,
            functions: members.iter().map(|member| self.member(*member)).collect(),
            hot_reset,
        }
    }

    fn member(&self, address: Address) -> Member {
        let function = self.functions.get(&address);
        Member {
            address: address.to_string(),
            holder: function.map_or_else(String::new, |f| f.holder()),
            group: function.and_then(|f| f.group),
            function_resets: function.and_then(|f| f.reset_methods.clone()).unwrap_or_default(),
        }
    }

    fn hot_reset(&self, address: Address, scope: &[Address], user: Option<&[Address]>) -> HotReset {
        let key = self.reset_key(address);
        let in_set = |a: &Address| self.functions.get(a).is_some_and(|f| f.is_vfio()) && self.reset_key(*a) == key;
        let mut in_the_way = Vec::new();
        // Everything that is reset must be VFIO's and of one set (HOT-023).
        for member in scope.iter().filter(|a| !in_set(a)) {
            let Some(function) = self.functions.get(member) else { continue };
            in_the_way.push(if function.is_bridge() {
                format!("{member} is a bridge")
            } else if function.is_vfio() && (function.physical.is_some() || key == address) {
                format!("{member} is in another device set: a virtual function has one of its own")
            } else if function.is_vfio() {
                format!("{member} is in another device set: it is behind another port")
            } else {
                format!("{member} has {}", function.holder())
            });
        }
        // And each must be the user's, by its group (HOT-025).
        let groups: BTreeSet<u32> =
            self.functions.iter().filter(|(a, _)| in_set(a)).filter_map(|(_, f)| f.group).collect();
        if let Some(user) = user {
            let own: BTreeSet<u32> = user.iter().filter_map(|a| self.functions.get(a)?.group).collect();
            for member in self.functions.keys().filter(|a| in_set(a)) {
                match self.functions.get(member).and_then(|f| f.group) {
                    Some(group) if own.contains(&group) => {}
                    Some(group) => in_the_way.push(format!("{member} is in group {group}, which the user has not")),
                    None => in_the_way.push(format!("{member} has no IOMMU group")),
                }
            }
        }
        match (in_the_way.is_empty(), user) {
            (false, _) => HotReset::Refused { in_the_way },
            (true, Some(_)) => HotReset::Allowed,
            (true, None) => HotReset::Needs { groups: groups.into_iter().collect() },
        }
    }
}
