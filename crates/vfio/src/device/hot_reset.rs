// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot reset: a slot or a bus with everything on it (vfio-hot-reset.md,
//! sections 2, 3, 5 and 6, as far as groups go).
//!
//! Calls do not overlap here, so contention is with a task that waits: an
//! unbind, or a reset that takes time.

use std::collections::BTreeSet;

use ::device::{Board, Driver, ResetKind};
use caller::{Caller, FileId, Ticket};
use iommufd::ContextId;
use pci::{Address, SavedConfig, cap};
use uapi::Errno;
use uapi::vfio::device::{
    DependentDevice, HOT_RESET_DEV_ID, HOT_RESET_DEV_ID_OWNED, HOT_RESET_NOT_OWNED, HotReset, HotResetInfo,
};
use zerocopy::IntoBytes;

use super::Devices;
use super::slow_reset::Holds;
use crate::{Context, args};

/// What the groups know.
pub(crate) trait GroupFacts {
    /// The group that a function is in.
    fn group_of(&self, board: &Board, address: Address) -> Option<u32>;
    /// The group that a file was opened for.
    fn group_of_file(&self, file: FileId) -> Option<u32>;
    /// Whether the context has claimed the reset of a function (extension).
    fn claims(&self, board: &Board, address: Address, context: ContextId) -> bool;
    /// The context that a bound file of a device's own node belongs to.
    fn context_of_cdev(&self, file: FileId) -> Option<ContextId>;
    /// The id of a function that is bound to the context, 0 if only another one
    /// of its group is; `None` if the context does not own it (HOT-013).
    fn dev_id(&self, board: &Board, address: Address, context: ContextId) -> Option<u32>;
}

impl Devices {
    /// GET_PCI_HOT_RESET_INFO: `ENODEV` if neither slot nor bus can be reset,
    /// `ENOSPC` with the number needed, `EPERM` if a device has no group
    /// (HOT-004 to HOT-011).
    pub(crate) fn hot_reset_info(
        &self,
        file: FileId,
        arg: u64,
        cx: &Context<'_>,
        groups: &dyn GroupFacts,
    ) -> Result<(), Errno> {
        let address = self.address(file).ok_or(Errno::EINVAL)?;
        let mut info: HotResetInfo = args::read(cx.caller, arg, size_of::<HotResetInfo>())?;
        info.flags = 0;
        let scope = cx.board.fabric.hot_reset_scope(address).map_err(|_| Errno::ENODEV)?;
        info.count = scope.len() as u32;
        let room = (info.argsz as usize - size_of::<HotResetInfo>()) / size_of::<DependentDevice>();
        if room < scope.len() {
            args::write_prefix(cx.caller, arg, &info, size_of::<HotResetInfo>())?;
            return Err(Errno::ENOSPC);
        }
        let context = groups.context_of_cdev(file);
        if context.is_some() {
            info.flags = HOT_RESET_DEV_ID | HOT_RESET_DEV_ID_OWNED;
        }
        let set = dev_set(cx.board, address);
        let mut devices = Vec::with_capacity(scope.len());
        for address in scope {
            let group_id = match context {
                None => groups.group_of(cx.board, address).ok_or(Errno::EPERM)?,
                Some(context) => {
                    // Nobody else gets a function whose reset is claimed.
                    let known = set.contains(&address) || groups.claims(cx.board, address, context);
                    let owned = known.then(|| groups.dev_id(cx.board, address, context)).flatten();
                    if owned.is_none() {
                        info.flags &= !HOT_RESET_DEV_ID_OWNED;
                    }
                    owned.unwrap_or(HOT_RESET_NOT_OWNED)
                }
            };
            let (segment, bus, devfn) = (address.segment, address.bus, address.devfn());
            devices.push(DependentDevice { group_id, segment, bus, devfn });
        }
        let list = arg.checked_add(size_of::<HotResetInfo>() as u64).ok_or(Errno::EFAULT)?;
        cx.caller.write(list, devices.as_bytes())?;
        args::write_prefix(cx.caller, arg, &info, size_of::<HotResetInfo>())
    }

    /// PCI_HOT_RESET with the groups that the caller owns (HOT-016 to HOT-030).
    /// It waits while one of them is blocked (extension).
    pub(crate) fn hot_reset(
        &mut self,
        file: FileId,
        arg: u64,
        cx: &mut Context<'_>,
        groups: &dyn GroupFacts,
    ) -> Result<Option<Ticket>, Errno> {
        let address = self.address(file).ok_or(Errno::EINVAL)?;
        let request: HotReset = args::read(cx.caller, arg, size_of::<HotReset>())?;
        let context = groups.context_of_cdev(file);
        if request.flags != 0 || (request.count == 0) != context.is_some() {
            return Err(Errno::EINVAL); // HOT-017, HOT-018
        }
        let scope = cx.board.fabric.hot_reset_scope(address).map_err(|_| Errno::ENODEV)?;
        if request.count as usize > scope.len() {
            return Err(Errno::EINVAL);
        }
        let owned_groups = owned_groups(cx.caller, arg, request.count, groups)?;
        let set = dev_set(cx.board, address);
        // The set's lock is waited for (HOT-023, HOT-036).
        if let Some(device) = self.held(&set, Holds::Set) {
            return Ok(Some(self.gate.park(device, cx.parking)));
        }
        let claimed = |device| context.is_some_and(|context| groups.claims(cx.board, device, context));
        if !scope.iter().all(|device| set.contains(device) || claimed(*device)) {
            return Err(Errno::EINVAL);
        }
        let is_owned = |device: &Address| match context {
            Some(context) => groups.dev_id(cx.board, *device, context).is_some(),
            None => groups.group_of(cx.board, *device).is_some_and(|g| owned_groups.contains(&g)),
        };
        if !set.iter().all(is_owned) {
            return Err(Errno::EINVAL);
        }
        // The memory locks, only tried for (HOT-026). Who came before the
        // contended one has lost its mappings for a moment (HOT-027).
        if self.held(&scope, Holds::Memory).is_some() {
            return Err(Errno::EBUSY);
        }
        let blocked = |device: &&Address| self.open.get(*device).is_some_and(|d| d.recovery.is_blocked());
        let bridge = cx.board.fabric.parent(address);
        let resetting = scope.iter().chain(&bridge).any(|device| self.is_resetting(*device));
        if let Some(device) = scope.iter().find(blocked).filter(|_| !resetting) {
            return Ok(Some(self.gate.park(*device, cx.parking)));
        }
        if resetting || scope.iter().chain(&bridge).any(|device| cx.board.is_locked(*device)) {
            return Err(Errno::EAGAIN);
        }
        let now = self.now();
        if let Some(bridge) = bridge.filter(|bridge| cx.board.fabric.is_slow_behind(*bridge)) {
            let saved = self.block_all(&scope, cx.board);
            return Ok(Some(self.wait_for_hot_reset(bridge, saved, (0, Holds::Set), cx.board, cx.parking)));
        }
        self.reset_all(&scope, cx.board, now);
        for address in &scope {
            if let Some(device) = self.open.get_mut(address) {
                device.user_has_reset(true, cx.board, now);
            }
        }
        Ok(None)
    }

    /// The reset at close (HOT-043, HOT-044): tried once nobody else of the
    /// set has a device open, silently.
    pub(super) fn reset_after_close(&mut self, address: Address, was_reset: bool, board: &mut Board) {
        if was_reset {
            self.needs_reset.remove(&address);
        } else {
            self.needs_reset.insert(address);
        }
        let set = dev_set(board, address);
        if set.iter().any(|device| self.is_open(*device)) || set.is_disjoint(&self.needs_reset) {
            return;
        }
        let Ok(scope) = board.fabric.hot_reset_scope(address) else { return };
        if scope.iter().all(|device| set.contains(device) && !board.is_locked(*device)) {
            let bridge = board.fabric.parent(address);
            if scope.iter().chain(&bridge).any(|device| self.is_resetting(*device)) || self.start_set(&scope, board) {
                return;
            }
            let now = self.now();
            self.reset_all(&scope, board, now);
            self.needs_reset.retain(|device| !set.contains(device));
        }
    }

    /// A reset of all these by the host (`reset_subordinate` of sysfs).
    pub(crate) fn host_reset_all(&mut self, scope: &[Address], board: &mut Board) {
        let now = self.now();
        self.reset_all(scope, board, now);
    }

    /// Every function of the scope: BARs zapped, D0, state saved.
    pub(super) fn prepare_all(
        &mut self,
        scope: &[Address],
        board: &mut Board,
        now: u64,
    ) -> Vec<(Address, SavedConfig)> {
        let mut saved = Vec::with_capacity(scope.len());
        for address in scope {
            if let Some(device) = self.open.get_mut(address) {
                device.zap(now);
                let _ = device.set_power_state(board, 0, now);
            }
            let Some(function) = board.fabric.function_mut(*address) else { continue };
            saved.push((*address, function.save()));
            function.write(cap::COMMAND, 2, u32::from(cap::COMMAND_INTX_DISABLE));
        }
        saved
    }

    /// The same, then reset, and state restored (HOT-028, HOT-037 to HOT-041).
    fn reset_all(&mut self, scope: &[Address], board: &mut Board, now: u64) {
        let saved = self.prepare_all(scope, board, now);
        // A slot is all of its bus.
        if let Some(bridge) = scope.first().and_then(|first| board.fabric.parent(*first)) {
            board.fabric.secondary_bus_reset(bridge);
        }
        for (address, _) in &saved {
            if let Some(device) = self.open.get_mut(address) {
                device.after_reset(board, ResetKind::Bus, now);
            } else if let Some(endpoint) = board.endpoint(*address) {
                endpoint.reset(ResetKind::Bus, now);
                endpoint.interrupts.reset();
            }
        }
        for (address, state) in &saved {
            if let Some(device) = self.open.get_mut(address) {
                device.migration_reset(now); // HOT-041
                device.restore(board, state, now);
                device.sync(board, now);
            } else if let Some(function) = board.fabric.function_mut(*address) {
                function.restore(state);
            }
        }
        tracing::info!(name: "vfio.hot_reset", functions = scope.len());
    }
}

/// The groups whose descriptors follow the request.
fn owned_groups(caller: &dyn Caller, arg: u64, count: u32, groups: &dyn GroupFacts) -> Result<BTreeSet<u32>, Errno> {
    let list = arg.checked_add(size_of::<HotReset>() as u64).ok_or(Errno::EFAULT)?;
    let mut bytes = vec![0; count as usize * 4];
    caller.read(list, &mut bytes)?;
    let words = bytes.chunks_exact(4).filter_map(|word| word.first_chunk());
    words
        .map(|word| {
            let file = caller.file(i32::from_ne_bytes(*word))?;
            file.and_then(|file| groups.group_of_file(file)).ok_or(Errno::EINVAL)
        })
        .collect()
}

/// The VFIO devices that are reset together with this one (HOT-034, HOT-035).
fn dev_set(board: &Board, address: Address) -> BTreeSet<Address> {
    let scope = board.fabric.reset_scope(address);
    let bound = board.slots.iter().filter(|(_, slot)| slot.driver == Some(Driver::VfioPci));
    bound.map(|(device, _)| *device).filter(|device| board.fabric.reset_scope(*device) == scope).collect()
}
