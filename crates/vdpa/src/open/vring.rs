// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of one ring (VDPA-6), in the order of VDPA-3.2.

use device::virtio::feature;
use uapi::Errno;
use uapi::vhost::{VringAddr, VringFile, VringState, request};

use super::dispatch::{get, put};
use super::{Cx, Vring};
use crate::device::VdpaDevice;
use crate::watch::Watch;

/// A descriptor that unbinds.
const UNBIND: i32 = -1;

impl Vring {
    fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }
}

impl VdpaDevice {
    /// The caller is the owner.
    pub(super) fn vring_ioctl(&mut self, number: u32, address: u64, cx: &mut Cx<'_>) -> Result<u64, Errno> {
        let caller = cx.caller;
        let index = match number {
            request::SET_VRING_NUM => get::<VringState>(caller, address)?.index,
            _ => get::<u32>(caller, address)?,
        };
        if index >= self.driver.queues() {
            return Err(Errno::ENOBUFS);
        }
        // There are at most 65536.
        let queue = index as u16;
        let state = || get::<VringState>(caller, address);
        let answer = |num: u32| put(caller, address, &VringState { index, num });
        match number {
            request::SET_VRING_NUM => self.set_num(queue, state()?.num),
            request::VDPA_SET_VRING_ENABLE => {
                let ready = state()?.num != 0;
                self.driver.endpoint.set_ready(queue, ready, cx.platform.now());
                Ok(0)
            }
            request::VDPA_GET_VRING_GROUP => answer(self.group_of(index, self.driver.spec.vq_group)?),
            request::VDPA_GET_VRING_DESC_GROUP => answer(self.group_of(index, self.driver.spec.desc_group)?),
            request::VDPA_SET_GROUP_ASID => self.set_group_asid(index, state()?.num),
            request::VDPA_GET_VRING_SIZE => {
                if !self.driver.spec.vq_size {
                    return Err(Errno::EOPNOTSUPP);
                }
                answer(u32::from(self.driver.vq_size(queue)))
            }
            request::GET_VRING_BASE => answer(self.base(queue)?),
            request::SET_VRING_ADDR => self.set_address(queue, &get(caller, address)?),
            request::SET_VRING_BASE => self.set_base(queue, state()?.num),
            request::SET_VRING_KICK => self.set_kick(queue, get(caller, address)?, cx),
            request::SET_VRING_CALL => {
                let event = bound(get(caller, address)?, cx)?;
                self.vring(queue)?.call.clone_from(&event);
                self.driver.endpoint.interrupts.bind_queue(queue, event);
                Ok(0)
            }
            request::SET_VRING_ERR => {
                self.vring(queue)?.error = bound(get(caller, address)?, cx)?;
                Ok(0)
            }
            request::SET_VRING_BUSYLOOP_TIMEOUT => {
                self.vring(queue)?.busyloop = state()?.num;
                Ok(0)
            }
            request::GET_VRING_BUSYLOOP_TIMEOUT => answer(self.vring(queue)?.busyloop),
            // SET_VRING_ENDIAN and GET_VRING_ENDIAN among them (VDPA-3.4).
            _ => Err(Errno::ENOTTY),
        }
    }

    fn vring(&mut self, queue: u16) -> Result<&mut Vring, Errno> {
        self.opened()?.vrings.get_mut(usize::from(queue)).ok_or(Errno::ENOBUFS)
    }

    /// Rings and positions of a running device stay (VDPA-6.2, VDPA-6.3).
    fn is_fixed(&mut self) -> Result<bool, Errno> {
        Ok(self.driver.is_running() && !self.opened()?.suspended)
    }

    /// VDPA-6.1
    fn set_num(&mut self, queue: u16, num: u32) -> Result<u64, Errno> {
        let max = self.opened()?.max_size;
        match u16::try_from(num) {
            Ok(size) if num.is_power_of_two() && size <= max => {
                self.driver.endpoint.set_queue_size(queue, size);
                Ok(0)
            }
            _ => {
                let device = self.name.as_str();
                tracing::warn!(target: "vfuse::vdpa", device, queue, num, max, "refused a size: `queue_size` in the lab raises the largest");
                Err(Errno::EINVAL)
            }
        }
    }

    /// VDPA-6.2
    fn set_address(&mut self, queue: u16, addr: &VringAddr) -> Result<u64, Errno> {
        if addr.flags & !1 != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if addr.avail & 1 != 0 || addr.used & 3 != 0 || addr.log & 3 != 0 {
            return Err(Errno::EINVAL);
        }
        if self.is_fixed()? {
            return Err(Errno::EINVAL);
        }
        self.driver.endpoint.set_queue_addresses(queue, addr.desc, addr.avail, addr.used);
        Ok(0)
    }

    /// VDPA-6.3
    fn set_base(&mut self, queue: u16, num: u32) -> Result<u64, Errno> {
        let vring = self.vring(queue)?;
        let packed = vring.is_packed();
        if packed {
            (vring.last_avail, vring.last_used) = (num as u16, (num >> 16) as u16);
        } else {
            vring.last_avail = u16::try_from(num).map_err(|_| Errno::EINVAL)?;
        }
        if self.is_fixed()? {
            return Err(Errno::EINVAL);
        }
        self.driver.set_vq_state(queue, num, packed);
        Ok(0)
    }

    /// VDPA-6.4
    fn base(&mut self, queue: u16) -> Result<u32, Errno> {
        let word = self.driver.vq_state(queue).word();
        let vring = self.vring(queue)?;
        vring.last_avail = word as u16;
        if vring.is_packed() {
            vring.last_used = (word >> 16) as u16;
            return Ok(u32::from(vring.last_avail) | u32::from(vring.last_used) << 16);
        }
        Ok(u32::from(vring.last_avail))
    }

    /// VDPA-6.5, VDPA-6.11
    fn set_kick(&mut self, queue: u16, file: VringFile, cx: &mut Cx<'_>) -> Result<u64, Errno> {
        let event = bound(file, cx)?;
        let open = self.open.as_mut().ok_or(Errno::EBADF)?;
        let vring = open.vrings.get_mut(usize::from(queue)).ok_or(Errno::ENOBUFS)?;
        match event {
            Some(event) if vring.kick.as_ref().is_some_and(|watch| watch.hears(&event)) => {}
            Some(event) => {
                vring.kick = None;
                let watch = Watch::start(cx.watches, cx.platform, event, &self.driver.endpoint, queue);
                vring.kick = Some(watch);
            }
            None => vring.kick = None,
        }
        Ok(0)
    }

    /// VDPA-6.7
    fn group_of(&self, queue: u32, offered: bool) -> Result<u32, Errno> {
        if !offered {
            return Err(Errno::EOPNOTSUPP);
        }
        let group = self.driver.vq_group(queue);
        if group >= self.driver.groups() { Err(Errno::EIO) } else { Ok(group) }
    }

    /// VDPA-6.8; the index is a group's number, and yet was compared with the
    /// number of rings (VDPA-3.7).
    fn set_group_asid(&mut self, group: u32, asid: u32) -> Result<u64, Errno> {
        if group >= self.driver.groups() || asid >= self.driver.address_spaces() {
            return Err(Errno::EINVAL);
        }
        if self.driver.is_running() {
            return Err(Errno::EBUSY);
        }
        if !self.driver.spec.set_group_asid {
            return Err(Errno::EOPNOTSUPP);
        }
        self.driver.tables.set_group(group, asid, &self.driver.endpoint);
        Ok(0)
    }
}

/// The eventfd of a request; `None` to unbind: `EBADF`, `EINVAL`.
fn bound(file: VringFile, cx: &Cx<'_>) -> Result<Option<std::sync::Arc<dyn device::Event>>, Errno> {
    if file.fd == UNBIND { Ok(None) } else { cx.caller.event(file.fd).map(Some) }
}
