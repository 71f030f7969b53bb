// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The board: the fabric, the device in each slot, and the driver bound to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pci::{Address, Fabric, ResetMethod};

use crate::Endpoint;
use crate::mediated::Pasids;
use crate::migration::Migration;

/// A driver of the pretend kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// `vfio-pci`.
    VfioPci,
    /// `pcieport`: bound to ports, does no DMA of its own (GRP-028).
    Pcieport,
    /// Any other kernel driver; it owns DMA of its group (API-041).
    Kernel(String),
}

impl Driver {
    /// The driver's name in sysfs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Driver::VfioPci => "vfio-pci",
            Driver::Pcieport => "pcieport",
            Driver::Kernel(name) => name,
        }
    }
}

/// What stands at an address besides configuration space.
#[derive(Debug)]
pub struct Slot {
    /// The model; ports have none.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The bound driver.
    pub driver: Option<Driver>,
    /// `driver_override` of sysfs.
    pub driver_override: Option<String>,
    /// `sriov_drivers_autoprobe` of sysfs: whether new VFs are probed.
    pub sriov_autoprobe: bool,
    /// `reset_method` of sysfs: which methods a reset tries, in this order
    /// (ERR-072); `None`: those that the function has.
    pub reset_methods: Option<Vec<ResetMethod>>,
    /// How it migrates; `None`: not at all.
    pub migration: Option<Migration>,
    /// A task that waits holds the device's lock: who only tries for it, as
    /// resets do, gets `EAGAIN`.
    pub locked: bool,
    /// Recovery resets the link that it is behind, or in front of, and holds
    /// the device's lock meanwhile.
    pub link_reset: bool,
    /// Its driver is being taken away and waits for the users that there are:
    /// no new ones (API-273).
    pub leaving: bool,
    /// It is a part of another function, not one of the bus.
    pub mediated: Option<Mediated>,
}

/// A mediated device.
#[derive(Clone, Debug)]
pub struct Mediated {
    /// The function that it is a part of.
    pub parent: Address,
    /// Its name on the mdev bus, a UUID.
    pub uuid: String,
    /// Whether it has a group of its own, with a node.
    pub group: bool,
    /// The function's PASIDs as it has them.
    pub pasids: Pasids,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            endpoint: None,
            driver: None,
            driver_override: None,
            sriov_autoprobe: true,
            reset_methods: None,
            migration: None,
            locked: false,
            link_reset: false,
            leaving: false,
            mediated: None,
        }
    }
}

/// Everything that is plugged in.
#[derive(Debug, Default)]
pub struct Board {
    /// Functions and their connections.
    pub fabric: Fabric,
    /// Models and drivers by address.
    pub slots: BTreeMap<Address, Slot>,
}

impl Board {
    /// The driver bound to a function.
    #[must_use]
    pub fn driver(&self, address: Address) -> Option<&Driver> {
        self.slots.get(&address)?.driver.as_ref()
    }

    /// The methods that a reset of the function tries, in order (ERR-068,
    /// ERR-072).
    #[must_use]
    pub fn reset_methods(&self, address: Address) -> Vec<ResetMethod> {
        let chosen = self.slots.get(&address).and_then(|slot| slot.reset_methods.clone());
        chosen.unwrap_or_else(|| self.fabric.reset_methods(address))
    }

    /// Whether a task that waits holds the device's lock.
    #[must_use]
    pub fn is_locked(&self, address: Address) -> bool {
        self.slots.get(&address).is_some_and(|slot| slot.locked || slot.link_reset)
    }

    /// Whether recovery holds the device's lock.
    #[must_use]
    pub fn is_link_reset(&self, address: Address) -> bool {
        self.slots.get(&address).is_some_and(|slot| slot.link_reset)
    }

    /// Whether the driver is being taken away from a function.
    #[must_use]
    pub fn is_leaving(&self, address: Address) -> bool {
        self.slots.get(&address).is_some_and(|slot| slot.leaving)
    }

    /// What is mediated at an address.
    #[must_use]
    pub fn mediated(&self, address: Address) -> Option<&Mediated> {
        self.slots.get(&address)?.mediated.as_ref()
    }

    /// The parts of a function that users share.
    pub fn parts(&self, address: Address) -> impl Iterator<Item = Address> {
        let of = move |slot: &Slot| slot.mediated.as_ref().is_some_and(|part| part.parent == address);
        self.slots.iter().filter(move |(_, slot)| of(slot)).map(|(at, _)| *at)
    }

    /// The model at an address.
    #[must_use]
    pub fn endpoint(&self, address: Address) -> Option<&Arc<Endpoint>> {
        self.slots.get(&address)?.endpoint.as_ref()
    }
}
