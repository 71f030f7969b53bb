// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who pays for pinned pages (iommufd-api.md, section 7).

use std::sync::Arc;

use caller::{Accounts, Caller, Capability, Mm, UserId};
use uapi::Errno;

/// What pages are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Nothing: the mapper had `CAP_IPC_LOCK`, or it is a dma-buf.
    None,
    /// The mapper's user.
    User,
    /// The mapper's memory, as VFIO does.
    Process,
}

/// The program that mapped an area: its memory is pinned, and it pays.
#[derive(Clone, Debug)]
pub(crate) struct Payer {
    pub(crate) mm: Arc<dyn Mm>,
    pub(crate) user: UserId,
    pub(crate) mode: Mode,
}

impl Payer {
    /// IOMMUFD-7.1
    pub(crate) fn of(caller: &dyn Caller, process_mode: bool) -> Result<Payer, Errno> {
        let mm = caller.mm()?;
        let mode = match process_mode {
            _ if caller.capable(Capability::IpcLock) => Mode::None,
            true => Mode::Process,
            false => Mode::User,
        };
        Ok(Payer { user: mm.user(), mm, mode })
    }

    /// Whether two are the same program, user and way of counting.
    pub(crate) fn is(&self, other: &Payer) -> bool {
        self.mode == other.mode && self.user == other.user && self.mm.process() == other.mm.process()
    }

    /// `ENOMEM` over the limit (IOMMUFD-7.4).
    pub(crate) fn charge(&self, accounts: &Accounts, pages: u64) -> Result<(), Errno> {
        match self.mode {
            Mode::None => {}
            Mode::User => accounts.charge_user(self.user, &*self.mm, pages)?,
            Mode::Process => accounts.charge_process(&*self.mm, pages)?,
        }
        accounts.pin(self.mm.process(), pages);
        Ok(())
    }

    pub(crate) fn uncharge(&self, accounts: &Accounts, pages: u64) {
        match self.mode {
            Mode::None => {}
            Mode::User => accounts.uncharge_user(self.user, pages),
            Mode::Process => accounts.uncharge(self.mm.process(), pages),
        }
        accounts.unpin(self.mm.process(), pages);
    }
}
