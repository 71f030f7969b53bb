// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a management tool needs to know before it hands a device out: which
//! functions an IOMMU group holds and why, which a hot reset takes down, and
//! whether a user may do one (iommu-groups.md section 1, vfio-hot-reset.md).
//!
//! All is read from sysfs, whether of a lab or of a real machine, through
//! [`Files`]. Nothing is written. Without the right to read all of
//! configuration space (64 bytes are for everybody) reasons are missing;
//! memberships are not.
//!
//! What it cannot see: reset quirks other than by ids, and grouping that
//! firmware or a quirk asked for; then it says that the reason is unknown.

mod files;
mod function;
mod groups;
mod resets;
mod text;

use std::collections::BTreeMap;

use pci::{Address, Quirks};

pub use files::Files;
pub use function::Surveyed;
pub use groups::GroupReport;
pub use resets::{HotReset, Member, ResetReport};
pub use text::{group_table, reset_details, reset_table};

/// The functions of a machine.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    functions: BTreeMap<Address, Surveyed>,
    quirks: Quirks,
}

/// Nothing was found where a sysfs should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no PCI function in {0}; is it the root of a sysfs, as /sys is?")]
pub struct NoSysfs(pub String);

impl Survey {
    /// Reads a sysfs whose root is `root`, `/sys` on a live machine.
    pub fn read(files: &dyn Files, root: &str) -> Result<Survey, NoSysfs> {
        let devices = format!("{root}/bus/pci/devices");
        let mut functions = BTreeMap::new();
        for name in files.list(&devices) {
            // Domains of more than 16 bits (VMD) have no address here.
            if let Ok(address) = name.parse::<Address>() {
                functions.insert(address, Surveyed::read(files, &devices, &name, address));
            }
        }
        if functions.is_empty() {
            return Err(NoSysfs(root.to_owned()));
        }
        Ok(Survey { functions, quirks: Quirks::linux() })
    }

    /// A function.
    #[must_use]
    pub fn function(&self, address: Address) -> Option<&Surveyed> {
        self.functions.get(&address)
    }

    /// Says of functions whether programs have them open.
    pub fn set_open(&mut self, is_open: impl Fn(Address) -> bool) {
        for (address, function) in &mut self.functions {
            function.open = Some(is_open(*address));
        }
    }

    /// Functions on the bus behind a bridge, in address order.
    fn children(&self, bridge: Address) -> Vec<Address> {
        self.functions.iter().filter(|(_, f)| f.parent == Some(bridge)).map(|(address, _)| *address).collect()
    }

    /// Bridges above a function, the nearest first.
    fn above(&self, address: Address) -> Vec<Address> {
        let mut found = Vec::new();
        let mut at = address;
        while let Some(parent) = self.functions.get(&at).and_then(|f| f.parent) {
            // A link to oneself would go on for ever.
            if found.contains(&parent) {
                break;
            }
            found.push(parent);
            at = parent;
        }
        found
    }
}
