// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stores to sysfs attributes: binding drivers, enabling VFs, resets.

use caller::{Caller, Capability, Reply};
use device::{Driver, Slot};
use pci::Address;
use uapi::Errno;

use crate::assemble;
use crate::drivers;
use crate::host::Host;
use crate::lab::LabError;
use crate::peers;
use crate::unbind::Stored;

impl Host {
    /// Whether the caller may write to the attribute at `path` at all, besides
    /// what the file's mode says: `EPERM`. Asked before what is written counts.
    pub fn may_store(&self, path: &str, caller: &dyn Caller) -> Result<(), Errno> {
        // GRP-042
        let restricted = path.ends_with("/reset_subordinate");
        if restricted && !caller.capable(Capability::SysAdmin) { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// A program has written `data` to the attribute at `path`; the bytes
    /// taken, always all of them. It [waits](Reply::Parked) for the device's
    /// lock and for the users of a device that is unbound.
    pub fn store(&mut self, path: &str, data: &[u8]) -> Result<Reply, Errno> {
        // PAGE_SIZE is the most that sysfs passes on.
        if data.len() >= 4096 {
            return Err(Errno::EINVAL);
        }
        let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let text = text.split(['\n', '\0']).next().unwrap_or_default();
        let (dir, attribute) = path.rsplit_once('/').ok_or(Errno::ENOENT)?;
        let name = dir.rsplit('/').next().unwrap_or_default();
        let result = if let Some(driver) = dir.strip_prefix("/sys/bus/pci/drivers/") {
            self.store_driver(driver, attribute, text, data.len() as u64)
        } else if dir == "/sys/bus/pci" && attribute == "drivers_probe" {
            let address = self.address(text).ok_or(Errno::ENODEV)?;
            match self.wait_for_lock(address).or_else(|| self.wait_for_recovery(address)) {
                Some(ticket) => Ok(Some(ticket)),
                None => self.attach(address, None).map(|()| None),
            }
        } else if let Some(address) = self.address(name) {
            self.store_function(address, attribute, text, data.len() as u64)
        } else {
            Err(Errno::EACCES)
        };
        self.changed();
        tracing::debug!(target: "vfuse::sysfs", path, text, ?result, "store");
        Ok(result?.map_or(Reply::Value(data.len() as u64), Reply::Parked))
    }

    fn address(&self, text: &str) -> Option<Address> {
        let address: Address = text.trim().parse().ok()?;
        let function = self.board.fabric.function(address).filter(|_| self.board.mediated(address).is_none());
        function.map(|_| address)
    }

    /// GRP-061, GRP-065
    fn store_driver(&mut self, name: &str, attribute: &str, text: &str, len: u64) -> Stored {
        let driver = self.drivers.named(name).ok_or(Errno::ENOENT)?;
        match attribute {
            "bind" => {
                let address = self.address(text).ok_or(Errno::ENODEV)?;
                if let Some(ticket) = self.wait_for_lock(address).or_else(|| self.wait_for_recovery(address)) {
                    return Ok(Some(ticket));
                }
                if self.board.driver(address).is_some() {
                    return Err(Errno::EBUSY);
                }
                // The override keeps every other driver out; new_id lets vfio-pci in.
                if self.drivers.matching(&self.board, address).as_ref() != Some(&driver) && driver == Driver::VfioPci {
                    return Err(Errno::ENODEV);
                }
                self.attach(address, Some(driver))?;
            }
            "unbind" => {
                let address = self.address(text).ok_or(Errno::ENODEV)?;
                if self.board.driver(address) != Some(&driver) {
                    return Err(Errno::ENODEV);
                }
                // Whose parts users may have; Linux would wait for all of them.
                if self.board.parts(address).next().is_some() {
                    return Err(Errno::EBUSY);
                }
                return self.unbind(address, len);
            }
            "new_id" if driver == Driver::VfioPci => {
                self.drivers.new_id(text)?;
                self.probe_all();
            }
            "remove_id" if driver == Driver::VfioPci => self.drivers.remove_id(text)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(None)
    }

    /// The module option `ids` of vfio-pci (GRP-062).
    pub(crate) fn take_ids(&mut self) -> Result<(), LabError> {
        for id in self.lab.ids.clone() {
            if let Err(error) = self.drivers.option_id(&id) {
                let message =
                    format!("[vfio] `ids`: `{id}` is not vendor:device[:sub:sub[:class[:mask]]] in hex ({error})");
                return Err(LabError::new(&crate::lab::Place::whole(), message));
            }
        }
        self.probe_all();
        Ok(())
    }

    /// Binds what has no driver and matches one.
    fn probe_all(&mut self) {
        let all: Vec<Address> = self.board.fabric.functions().map(|(address, _)| address).collect();
        for address in all {
            if self.board.driver(address).is_none() && self.drivers.matching(&self.board, address).is_some() {
                // A function that vfio-pci refuses stays unbound.
                let _ = self.attach(address, None);
            }
        }
    }

    fn store_function(&mut self, address: Address, attribute: &str, text: &str, len: u64) -> Stored {
        match attribute {
            "driver_override" => {
                let slot = self.board.slots.entry(address).or_default();
                slot.driver_override = Some(text.to_owned()).filter(|t| !t.is_empty());
            }
            "sriov_numvfs" => return self.set_vfs(address, text.trim().parse().map_err(|_| Errno::EINVAL)?, len),
            "sriov_drivers_autoprobe" => {
                let on = match text.trim() {
                    "1" | "y" | "Y" => true,
                    "0" | "n" | "N" => false,
                    _ => return Err(Errno::EINVAL),
                };
                self.board.slots.entry(address).or_default().sriov_autoprobe = on;
            }
            "reset" => {
                if number(text)? != 1 {
                    return Err(Errno::EINVAL);
                }
                if self.board.reset_methods(address).is_empty() {
                    return Err(Errno::ENOTTY);
                }
                // The bridge above is locked first.
                for locked in self.board.fabric.parent(address).into_iter().chain([address]) {
                    if let Some(ticket) = self.wait_for_lock(locked) {
                        return Ok(Some(ticket));
                    }
                }
                return self.vfio.host_reset_waiting(address, len, &mut self.board, &mut self.parking);
            }
            "reset_method" => self.choose_reset_methods(address, text)?,
            "reset_subordinate" => {
                if number(text)? != 0 {
                    return self.reset_below(address, len);
                }
            }
            _ => return Err(Errno::EACCES),
        }
        Ok(None)
    }

    /// ERR-072: `EINVAL`, and nothing changed, for a name that is unknown or
    /// that the function does not support, and for more than seven.
    fn choose_reset_methods(&mut self, address: Address, text: &str) -> Result<(), Errno> {
        const MOST: usize = 7;
        let offered = self.board.fabric.reset_methods(address);
        if offered.is_empty() {
            return Err(Errno::EACCES);
        }
        let chosen = match text {
            "default" => None,
            "" => Some(Vec::new()),
            _ => {
                let names = text.split(' ').filter(|name| !name.is_empty()).map(str::trim);
                let method = |name: &str| offered.iter().copied().find(|method| method.name() == name);
                let methods: Option<Vec<_>> = names.map(method).collect();
                Some(methods.filter(|methods| methods.len() <= MOST).ok_or(Errno::EINVAL)?)
            }
        };
        self.board.slots.entry(address).or_default().reset_methods = chosen;
        Ok(())
    }

    /// Resets the bus behind a bridge, with the configuration of each function
    /// saved before and restored after (GRP-042). `EAGAIN` while somebody holds
    /// the lock of one of them.
    fn reset_below(&mut self, bridge: Address, len: u64) -> Stored {
        let below = self.board.fabric.below(bridge);
        if below
            .iter()
            .chain([&bridge])
            .any(|function| self.board.is_locked(*function) || self.vfio.is_resetting(*function))
        {
            return Err(Errno::EAGAIN);
        }
        Ok(self.vfio.host_reset_all(bridge, len, &mut self.board, &mut self.parking))
    }

    /// Binds a function: to `driver`, or to whichever matches.
    fn attach(&mut self, address: Address, driver: Option<Driver>) -> Result<(), Errno> {
        if self.board.driver(address).is_some() {
            return Ok(());
        }
        let Some(driver) = driver.or_else(|| self.drivers.matching(&self.board, address)) else {
            return Ok(());
        };
        self.vfio.ensure_known(address, &mut self.board)?;
        drivers::probe(&self.board, address, &driver, self.lab.vfio.enable_unsafe_noiommu_mode)?;
        // GRP-029
        self.vfio.check_bind(address, &driver, &self.board)?;
        self.board.slots.entry(address).or_default().driver = Some(driver);
        self.save_for_driver(address);
        self.form_noiommu_group(address);
        self.vfio.driver_bound(address, &self.board);
        Ok(())
    }

    /// A function without IOMMU gets a group of its own from vfio-pci, if that
    /// is allowed (GRP-057); else vfio-pci does not take it.
    pub(crate) fn form_noiommu_group(&mut self, address: Address) {
        if self.board.driver(address) != Some(&Driver::VfioPci) || self.board.fabric.group(address).is_some() {
            return;
        }
        if !self.lab.vfio.enable_unsafe_noiommu_mode {
            if let Some(slot) = self.board.slots.get_mut(&address) {
                slot.driver = None;
            }
            return;
        }
        if let Some(group) = self.board.fabric.form_group(address) {
            self.vfio.add_noiommu_group(group, vec![address]);
        }
    }

    /// GRP-050, GRP-051
    fn set_vfs(&mut self, pf: Address, wanted: u16, len: u64) -> Stored {
        let total = self.board.fabric.function(pf).map_or(0, |f| f.spec().total_vfs);
        if wanted > total {
            return Err(Errno::ERANGE);
        }
        if let Some(ticket) = self.wait_for_lock(pf) {
            return Ok(Some(ticket));
        }
        let present = self.board.fabric.virtual_functions(pf).to_vec();
        if usize::from(wanted) == present.len() {
            return Ok(None);
        }
        match self.board.driver(pf) {
            Some(Driver::VfioPci) if !self.lab.vfio.enable_sriov => return Err(Errno::ENOENT),
            Some(_) => {}
            None => return Err(Errno::ENOENT),
        }
        if wanted == 0 {
            return Ok(self.remove_vfs(pf, len));
        }
        if !present.is_empty() {
            return Err(Errno::EBUSY);
        }
        self.enable_vfs(pf, wanted).map_err(|_| Errno::ENOMEM)?;
        peers::connect(&self.board);
        Ok(None)
    }

    /// VFs that the lab wants from the start.
    pub(crate) fn enable_initial_vfs(&mut self) -> Result<(), LabError> {
        for (address, vfs) in assemble::initial_vfs(&self.lab, &self.placed) {
            self.enable_vfs(address, vfs)?;
        }
        Ok(())
    }

    fn enable_vfs(&mut self, pf: Address, count: u16) -> Result<(), LabError> {
        let autoprobe = self.board.slots.get(&pf).is_none_or(|s| s.sriov_autoprobe);
        let by_vfio = self.board.driver(pf) == Some(&Driver::VfioPci);
        let place = crate::lab::Place::whole();
        let vfs = self.board.fabric.enable_vfs(pf, count);
        let vfs = vfs.map_err(|error| LabError::new(&place, format!("{pf}: {error}")))?;
        for (n, (vf, _)) in vfs.into_iter().enumerate() {
            let endpoint = assemble::virtual_function(&self.lab, &self.placed, self.storage.as_ref(), pf, n)?;
            endpoint.log_faults(vf.to_string());
            let slot = Slot {
                endpoint: Some(endpoint),
                // GRP-051
                driver_override: by_vfio.then(|| "vfio-pci".to_owned()),
                ..Slot::default()
            };
            self.board.slots.insert(vf, slot);
            self.vfio.function_added(vf, &self.board, &mut self.iommufd);
            if autoprobe {
                // A VF that its driver refuses is there all the same, unbound.
                let _ = self.attach(vf, None);
            }
        }
        Ok(())
    }
}

/// A number as `kstrtoul` with base 0 reads it: `EINVAL`.
fn number(text: &str) -> Result<u64, Errno> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // from_str_radix would take a sign.
    if digits.starts_with(['+', '-']) {
        return Err(Errno::EINVAL);
    }
    u64::from_str_radix(digits, base).map_err(|_| Errno::EINVAL)
}
