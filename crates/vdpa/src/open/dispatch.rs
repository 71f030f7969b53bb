// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of the whole device: backend features, status, features,
//! configuration, owner; and which request is whose.

use std::sync::Arc;

use caller::Caller;
use device::virtio::status;
use uapi::Errno;
use uapi::vhost::{ConfigHeader, IovaRange, MemoryHeader, MemoryRegion, backend, request};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Cx, Open, Owner};
use crate::device::VdpaDevice;
use crate::parent::OnReset;

/// Reads a structure: `EFAULT`.
pub(super) fn get<T: FromBytes + IntoBytes + FromZeros>(caller: &dyn Caller, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a structure: `EFAULT`.
pub(super) fn put<T: IntoBytes + Immutable>(caller: &dyn Caller, address: u64, value: &T) -> Result<u64, Errno> {
    caller.write(address, value.as_bytes())?;
    Ok(0)
}

/// Bits that SET_BACKEND_FEATURES knows.
const KNOWN: u64 = backend::IOTLB_MSG_V2
    | backend::IOTLB_BATCH
    | backend::IOTLB_ASID
    | backend::SUSPEND
    | backend::RESUME
    | backend::ENABLE_AFTER_DRIVER_OK
    | backend::DESC_ASID
    | backend::IOTLB_PERSIST;

/// Most regions of SET_MEM_TABLE.
const MAX_REGIONS: u32 = 64;

impl VdpaDevice {
    /// Backend features offered (VDPA-4.1).
    pub(crate) fn backend_features(&self) -> u64 {
        let spec = &self.driver.spec;
        let given = |has: bool, bit: u64| if has { bit } else { 0 };
        // A parent that declares PERSIST itself stops when it is made to clean.
        let own = spec.backend & !given(spec.on_reset == OnReset::Clean, backend::IOTLB_PERSIST);
        backend::IOTLB_MSG_V2
            | backend::IOTLB_BATCH
            | backend::IOTLB_ASID
            | given(spec.suspend, backend::SUSPEND)
            | given(spec.resume, backend::RESUME)
            | given(spec.desc_group, backend::DESC_ASID)
            | given(spec.has_persistent_map(), backend::IOTLB_PERSIST)
            | own
    }

    /// `ioctl` (VDPA-3).
    pub(crate) fn ioctl(&mut self, number: u32, address: u64, cx: &mut Cx<'_>) -> Result<u64, Errno> {
        let caller = cx.caller;
        let now = cx.platform.now();
        match number {
            request::SET_BACKEND_FEATURES => self.set_backend_features(get(caller, address)?),
            request::VDPA_GET_DEVICE_ID => put(caller, address, &self.driver.endpoint.spec().device_id),
            request::VDPA_GET_STATUS => put(caller, address, &self.driver.endpoint.status()),
            request::VDPA_SET_STATUS => self.set_status(get(caller, address)?, now),
            request::VDPA_GET_CONFIG => self.get_config(address, caller),
            request::VDPA_SET_CONFIG => self.set_config(address, caller),
            request::GET_FEATURES => put(caller, address, &self.driver.endpoint.spec().features),
            request::SET_FEATURES => self.set_features(address, caller),
            request::VDPA_GET_VRING_NUM => put(caller, address, &self.driver.max_size()),
            request::VDPA_GET_GROUP_NUM => put(caller, address, &self.driver.groups()),
            request::VDPA_GET_AS_NUM => put(caller, address, &self.driver.address_spaces()),
            request::SET_LOG_BASE | request::SET_LOG_FD => Err(Errno::ENOTTY),
            request::VDPA_SET_CONFIG_CALL => self.set_config_call(get(caller, address)?, caller),
            request::GET_BACKEND_FEATURES => put(caller, address, &self.backend_features()),
            request::VDPA_GET_IOVA_RANGE => {
                let (first, last) = self.driver.spec.iova;
                put(caller, address, &IovaRange { first, last })
            }
            request::VDPA_GET_CONFIG_SIZE => put(caller, address, &self.driver.endpoint.spec().config_size),
            request::VDPA_GET_VQS_COUNT => put(caller, address, &self.driver.queues()),
            request::VDPA_SUSPEND => self.suspend(now),
            request::VDPA_RESUME => self.resume(now),
            request::SET_OWNER => self.set_owner(caller),
            request::SET_FORK_FROM_OWNER => self.set_fork_from_owner(address, caller),
            request::GET_FORK_FROM_OWNER => put(caller, address, &self.opened()?.fork_owner),
            _ => {
                if !self.opened()?.is_owner(caller) {
                    return Err(Errno::EPERM);
                }
                match number {
                    request::SET_MEM_TABLE => set_mem_table(address, caller),
                    _ => self.vring_ioctl(number, address, cx),
                }
            }
        }
    }

    pub(super) fn opened(&mut self) -> Result<&mut Open, Errno> {
        self.open.as_mut().ok_or(Errno::EBADF)
    }

    /// VDPA-4.2, in its order; VDPA-4.3, VDPA-4.4
    fn set_backend_features(&mut self, features: u64) -> Result<u64, Errno> {
        let spec = &self.driver.spec;
        let has = |bit| features & bit != 0;
        if features & !KNOWN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if has(backend::SUSPEND) && !spec.suspend || has(backend::RESUME) && !spec.resume {
            return Err(Errno::EOPNOTSUPP);
        }
        if has(backend::DESC_ASID) && !has(backend::IOTLB_ASID) {
            return Err(Errno::EINVAL);
        }
        if has(backend::DESC_ASID) && !spec.desc_group {
            return Err(Errno::EOPNOTSUPP);
        }
        if has(backend::IOTLB_PERSIST) && !spec.has_persistent_map() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.opened()?.backend = features;
        Ok(0)
    }

    /// VDPA-5.1, VDPA-5.2
    fn set_status(&mut self, new: u8, now: u64) -> Result<u64, Errno> {
        let old = self.driver.endpoint.status();
        if new != 0 && old & !new != 0 {
            return Err(Errno::EINVAL);
        }
        if new == 0 {
            self.reset(now);
            return Ok(0);
        }
        let acked = self.opened()?.backend & backend::IOTLB_PERSIST != 0;
        if self.driver.spec.on_reset == OnReset::MustAck && new & !old & status::DRIVER_OK != 0 && !acked {
            tracing::warn!(
                target: "vfuse::vdpa", device = self.name,
                "DRIVER_OK is refused: the program has not acknowledged VHOST_BACKEND_F_IOTLB_PERSIST (bit 8), \
                 and this device has iotlb_on_reset = \"must-ack\""
            );
            return Err(Errno::EOPNOTSUPP);
        }
        self.driver.endpoint.set_status(new, now);
        tracing::debug!(target: "vfuse::vdpa", device = self.name, status = new, "status");
        Ok(0)
    }

    /// VDPA-5.4
    fn set_features(&mut self, address: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        if self.driver.endpoint.status() & status::FEATURES_OK != 0 {
            return Err(Errno::EBUSY);
        }
        let features: u64 = get(caller, address)?;
        self.driver.set_features(features).map_err(|_| Errno::EINVAL)?;
        let actual = self.driver.endpoint.features();
        self.opened()?.vrings.iter_mut().for_each(|vring| vring.features = actual);
        Ok(0)
    }

    /// VDPA-5.5
    fn config_header(&self, address: u64, caller: &dyn Caller) -> Result<(ConfigHeader, u64), Errno> {
        let header: ConfigHeader = get(caller, address)?;
        let size = self.driver.endpoint.spec().config_size;
        if header.len == 0 || header.off > size || header.len > size - header.off {
            return Err(Errno::EINVAL);
        }
        let bytes = address.checked_add(size_of::<ConfigHeader>() as u64).ok_or(Errno::EFAULT)?;
        Ok((header, bytes))
    }

    fn get_config(&mut self, address: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let (header, bytes) = self.config_header(address, caller)?;
        let mut data = vec![0; header.len as usize];
        self.driver.read_config(header.off, &mut data);
        caller.write(bytes, &data)?;
        Ok(0)
    }

    fn set_config(&mut self, address: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let (header, bytes) = self.config_header(address, caller)?;
        let mut data = vec![0; header.len as usize];
        caller.read(bytes, &mut data)?;
        self.driver.endpoint.write_config(header.off, &data);
        Ok(0)
    }

    /// VDPA-5.6
    fn set_config_call(&mut self, fd: i32, caller: &dyn Caller) -> Result<u64, Errno> {
        let event = if fd == -1 { None } else { Some(caller.event(fd)?) };
        self.opened()?.config_call.clone_from(&event);
        self.driver.endpoint.interrupts.bind_config(event);
        Ok(0)
    }

    /// VDPA-5.7
    fn suspend(&mut self, now: u64) -> Result<u64, Errno> {
        if !self.driver.is_running() {
            return Ok(0);
        }
        if !self.driver.spec.suspend {
            return Err(Errno::EOPNOTSUPP);
        }
        self.driver.endpoint.suspend(now);
        self.opened()?.suspended = true;
        Ok(0)
    }

    /// VDPA-5.7
    fn resume(&mut self, now: u64) -> Result<u64, Errno> {
        if !self.driver.is_running() {
            return Ok(0);
        }
        if !self.driver.spec.resume {
            return Err(Errno::EOPNOTSUPP);
        }
        self.driver.endpoint.resume(now);
        self.opened()?.suspended = false;
        Ok(0)
    }

    /// VDPA-3.5
    fn set_owner(&mut self, caller: &dyn Caller) -> Result<u64, Errno> {
        let open = self.opened()?;
        if open.owner.is_some() {
            return Err(Errno::EBUSY);
        }
        let mm = caller.mm()?;
        open.owner = Some(Owner { process: caller.process(), mm: Arc::clone(&mm) });
        self.driver.bind_mm(Some(mm));
        Ok(0)
    }

    /// In VDPA-3's table.
    fn set_fork_from_owner(&mut self, address: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let open = self.opened()?;
        if open.owner.is_some() {
            return Err(Errno::EBUSY);
        }
        let value: u8 = get(caller, address)?;
        if value > 1 {
            return Err(Errno::EINVAL);
        }
        open.fork_owner = value;
        Ok(0)
    }
}

/// Of vhost-net: looked at, no effect.
fn set_mem_table(address: u64, caller: &dyn Caller) -> Result<u64, Errno> {
    let header: MemoryHeader = get(caller, address)?;
    if header.padding != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if header.nregions > MAX_REGIONS {
        return Err(Errno::E2BIG);
    }
    let mut at = address.checked_add(size_of::<MemoryHeader>() as u64).ok_or(Errno::EFAULT)?;
    let mut regions = Vec::new();
    for _ in 0..header.nregions {
        regions.push(get::<MemoryRegion>(caller, at)?);
        at = at.checked_add(size_of::<MemoryRegion>() as u64).ok_or(Errno::EFAULT)?;
    }
    let wraps = |region: &MemoryRegion| region.guest.wrapping_add(region.size).wrapping_sub(1) < region.guest;
    if regions.iter().any(wraps) { Err(Errno::EFAULT) } else { Ok(0) }
}
