// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset ownership that is claimed (extension), and what else a user of
//! devices' own nodes may ask of its context.
//!
//! Linux looks at who owns what when a hot reset is asked for, so a user finds
//! out then, and a device that nobody has open can be in its way. A claim at
//! bind settles it before: all that falls with the device is the claimer's
//! context's or closed, now and as long as the device is bound, so that the
//! reset always works. Who is refused is who comes later, whoever that is.

use ::device::{Board, Driver};
use caller::Caller;
use iommufd::ContextId;
use pci::Address;
use uapi::Errno;
use uapi::vfio::device::FeatureFlags;
use uapi::vfio::recovery::{DEV_ID_ADDRESS, DevIdAddress, SHARED_SPACES, SharedSpace, SharedSpaces};
use zerocopy::IntoBytes;

use crate::binding::Bindings;
use crate::device::Request;
use crate::ownership::owns_dma;
use crate::{Context, Vfio, args};

/// The context that has claimed the reset of a function, by a device that
/// falls with it.
pub(crate) fn claimer(bindings: &Bindings, board: &Board, address: Address) -> Option<ContextId> {
    let reaches = |device: Address| board.fabric.hot_reset_scope(device).is_ok_and(|scope| scope.contains(&address));
    bindings.claims().find(|(device, _)| reaches(*device)).map(|(_, context)| context)
}

impl Vfio {
    /// Whether a context may claim the reset of a device: `ENODEV` if there is
    /// none; `EBUSY` if a function that falls with it has a kernel driver
    /// (which a bridge always has), or is open to anybody else.
    pub(crate) fn may_claim(&self, address: Address, context: ContextId, board: &Board) -> Result<(), Errno> {
        let scope = board.fabric.hot_reset_scope(address).map_err(|_| Errno::ENODEV)?;
        for function in scope {
            let driver = board.driver(function);
            let strange = board.fabric.is_bridge(function) || driver.is_some_and(|d| *d != Driver::VfioPci);
            let own = self.bindings.get(function).is_some_and(|bound| bound.context == context);
            if strange || self.devices.is_open(function) && !own {
                return Err(Errno::EBUSY);
            }
        }
        Ok(())
    }

    /// Whether somebody may open a device, by a context or without one:
    /// `EBUSY` if another context has claimed its reset.
    pub(crate) fn check_claim(&self, address: Address, by: Option<ContextId>, board: &Board) -> Result<(), Errno> {
        match claimer(&self.bindings, board, address) {
            Some(context) if Some(context) != by => Err(Errno::EBUSY),
            _ => Ok(()),
        }
    }

    /// Whether a claim keeps a driver off a function.
    pub(crate) fn claim_forbids(&self, address: Address, driver: &Driver, board: &Board) -> bool {
        owns_dma(driver) && claimer(&self.bindings, board, address).is_some()
    }

    /// The features that are about a whole context; `None`: another one.
    pub(crate) fn context_feature(
        &self,
        address: Address,
        (index, request): &(u32, Request),
        cx: &Context<'_>,
    ) -> Option<Result<u64, Errno>> {
        let context = self.bindings.get(address)?.context;
        match *index {
            DEV_ID_ADDRESS => Some(self.dev_id_address(context, request, cx.caller)),
            SHARED_SPACES => Some(self.shared_spaces(context, request, cx.caller)),
            _ => None,
        }
    }

    /// `ENOENT` if the context has no such device.
    fn dev_id_address(&self, context: ContextId, request: &Request, caller: &dyn Caller) -> Result<u64, Errno> {
        if !request.check(FeatureFlags::GET, size_of::<DevIdAddress>())? {
            return Ok(0);
        }
        let mut asked: DevIdAddress = request.read(caller)?;
        let mut devices = self.bindings.in_context(context);
        let (address, _) = devices.find(|(_, bound)| bound.id.0 == asked.dev_id).ok_or(Errno::ENOENT)?;
        (asked.segment, asked.bus, asked.devfn) = (address.segment, address.bus, address.devfn());
        args::write_prefix(caller, request.data, &asked, size_of::<DevIdAddress>())?;
        Ok(0)
    }

    /// Devices of one IOMMU group cannot be told apart by the IOMMU.
    fn shared_spaces(&self, context: ContextId, request: &Request, caller: &dyn Caller) -> Result<u64, Errno> {
        let head = size_of::<SharedSpaces>();
        if !request.check(FeatureFlags::GET, head)? {
            return Ok(0);
        }
        let mut asked: SharedSpaces = request.read(caller)?;
        if asked.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        let mut devices: Vec<_> =
            self.bindings.in_context(context).map(|(_, bound)| (bound.id.0, bound.group())).collect();
        devices.sort_unstable();
        let lowest = |group| devices.iter().find(|(_, other)| *other == group).map_or(0, |(id, _)| *id);
        let spaces: Vec<SharedSpace> =
            devices.iter().map(|(id, group)| SharedSpace { dev_id: *id, space: lowest(*group) }).collect();
        let room = (request.size as usize - head) / size_of::<SharedSpace>();
        let fits = spaces.len() <= room.min(asked.count as usize);
        asked.count = spaces.len() as u32;
        args::write_prefix(caller, request.data, &asked, head)?;
        if !fits {
            return Err(Errno::ENOSPC);
        }
        caller.write(request.data.checked_add(head as u64).ok_or(Errno::EFAULT)?, spaces.as_bytes())?;
        Ok(0)
    }
}
