// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draining page requests, an extension (MIG-094 to MIG-103).
//!
//! A device with page requests may have begun what only the program, or its
//! guest, can let come to an end. On Linux the way into RUNNING_P2P would have
//! to wait for that. A program that has asked for draining gets an eventfd
//! instead, as the answer to the `SET` that ends in RUNNING_P2P or
//! PRE_COPY_P2P, and goes on: the device finishes what it has begun, in all its
//! regions it can be used, and what is submitted is kept. The eventfd is
//! signalled once when nothing is outstanding.
//!
//! - Until then the way to STOP and beyond is `EBUSY`. Back to RUNNING ends the
//!   drain, and so does a reset: the eventfd stays silent.
//! - The arc that drains must be the last of a request (MIG-097): a way that
//!   goes on behind it is `EINVAL`, whether or not anything is outstanding
//!   (MIG-103).
//! - What was kept is part of the state: it is done where the state is loaded,
//!   or here, back in RUNNING.

use ::device::migration::{Activity, P2pStop};
use ::device::{Board, Nanos};
use caller::Caller;
use uapi::Errno;
use uapi::vfio::device::FeatureFlags;
use uapi::vfio::draining::{Drain, DrainFlags, DrainPages};
use uapi::vfio::migration::{MigState, MigrationFlags};
use zerocopy::IntoBytes;

use super::Migration;
use super::fsm::{self, State};
use crate::device::feature::Request;
use crate::device::state::Device;

impl Device {
    /// The feature that asks for draining and tells how it stands: `ENOTTY`
    /// where the device has no RUNNING_P2P, or stops its DMA by force.
    pub(in crate::device) fn drain_feature(&mut self, request: &Request, caller: &dyn Caller) -> Result<(), Errno> {
        let number = self.number;
        let migration = self.migration.as_mut().filter(|migration| migration.can_drain()).ok_or(Errno::ENOTTY)?;
        if !request.check(FeatureFlags::GET | FeatureFlags::SET, size_of::<Drain>())? {
            return Ok(());
        }
        let drain: Drain = request.read(caller)?;
        if request.flags.contains(FeatureFlags::SET) {
            let flags = DrainFlags::from_bits(drain.flags).ok_or(Errno::EINVAL)?;
            if drain.count != 0 || flags.contains(DrainFlags::UNDER_WAY) {
                return Err(Errno::EINVAL);
            }
            if migration.is_draining() {
                return Err(Errno::EBUSY);
            }
            migration.drains = flags.contains(DrainFlags::ON);
            return Ok(());
        }
        let pages: Vec<DrainPages> = migration
            .endpoint
            .portals()
            .into_iter()
            .map(|(bar, at, length)| DrainPages { offset: uapi::region::offset(number, bar as u32) + at, length })
            .collect();
        let mut flags = DrainFlags::empty();
        flags.set(DrainFlags::ON, migration.drains);
        flags.set(DrainFlags::UNDER_WAY, migration.is_draining());
        let told = Drain { flags: flags.bits(), count: pages.len() as u32 };
        caller.write(request.data, told.as_bytes())?;
        let whole = size_of::<Drain>() + pages.as_bytes().len();
        if drain.count < told.count || (request.size as usize) < whole {
            return Err(Errno::ENOSPC);
        }
        let list = request.data.checked_add(size_of::<Drain>() as u64).ok_or(Errno::EFAULT)?;
        caller.write(list, pages.as_bytes())
    }
}

/// Whether an arc takes a device from where it begins work to where it does
/// not.
fn drains(from: State, to: State) -> bool {
    matches!((from, to), (State::Running, State::RunningP2p) | (State::PreCopy, State::PreCopyP2p))
}

impl Migration {
    fn can_drain(&self) -> bool {
        self.flags.contains(MigrationFlags::P2P) && self.p2p_stop == P2pStop::Quiesce
    }

    pub(super) fn is_draining(&self) -> bool {
        self.endpoint.activity() == Activity::Draining
    }

    /// Whether the way to a state ends in a drain: `EBUSY` from one that is not
    /// over, `EINVAL` if it would go on behind one.
    pub(super) fn drain_for(&self, target: u32) -> Result<bool, Errno> {
        // What cannot be set is for others to say.
        let Some(target) = State::from_raw(target) else { return Ok(false) };
        let (mut at, mut drained) = (self.state, false);
        while at != target {
            if drained {
                return Err(Errno::EINVAL); // MIG-097
            }
            let Some(next) = fsm::next(self.flags, at, target) else { return Ok(false) };
            drained = drains(at, next);
            at = next;
        }
        let stays = matches!(target, State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p);
        if self.is_draining() && !stays {
            return Err(Errno::EBUSY);
        }
        Ok(drained)
    }

    /// SET of a state that is reached by a drain: the eventfd is there before
    /// anything is changed. Where it cannot be told it is closed, and the state
    /// has changed all the same (MIG-019).
    pub(super) fn set_and_drain(
        &mut self,
        request: &Request,
        mut mig: MigState,
        caller: &dyn Caller,
        board: &mut Board,
        now: Nanos,
    ) -> Result<(), Errno> {
        let made = caller.new_event();
        let done = made.and_then(|(fd, event)| {
            self.drain = Some(event);
            let set = self.set_state(mig.device_state, board, now);
            self.drain = None;
            set.map(|_| fd).inspect_err(|_| caller.close(fd))
        });
        mig.data_fd = *done.as_ref().unwrap_or(&-1);
        let told = caller.write(request.data, mig.as_bytes());
        if let (Ok(fd), Err(_)) = (&done, &told) {
            caller.close(*fd);
        }
        told.and(done.map(|_| ()))
    }
}
