// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_CHANGE_PROCESS`: who calls pays for all that is mapped
//! (IOMMUFD-7.5).
//!
//! An area that is being made or removed, `EBUSY`, cannot be met: calls never
//! overlap.

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::IoasChangeProcess;

use crate::backing::{Backing, Mode, Origin, PagesOrigin, Payer};
use crate::context::Context;

/// Ways of paying, in the order in which they are charged.
const MODES: [Mode; 3] = [Mode::None, Mode::User, Mode::Process];

impl Context {
    pub(crate) fn ioas_change_process(&mut self, cmd: &IoasChangeProcess, caller: &dyn Caller) -> Result<(), Errno> {
        if cmd.reserved != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mm = caller.mm()?;
        let new = |mode| Payer { mm: mm.clone(), user: mm.user(), mode };
        let backing = &mut self.backing;
        if !backing.is_files_only() {
            return Err(Errno::EINVAL);
        }
        let mut charged: Vec<(Payer, u64)> = Vec::new();
        for mode in MODES {
            let payer = new(mode);
            let pages = backing.payers().filter(|(old, _)| old.mode == mode && moves(old, &payer));
            let pages = pages.map(|(_, pages)| pages).sum();
            if pages == 0 {
                continue;
            }
            // The old payer still pays, too.
            if let Err(errno) = payer.charge(&backing.accounts, pages) {
                charged.iter().for_each(|(payer, pages)| payer.uncharge(&backing.accounts, *pages));
                return Err(errno);
            }
            charged.push((payer, pages));
        }
        for (old, pages) in backing.payers() {
            if moves(old, &new(old.mode)) {
                old.uncharge(&backing.accounts, pages);
            }
        }
        let change = |payer: &mut Payer| *payer = new(payer.mode);
        backing.sources.change_payers(change);
        backing.pages.values_mut().for_each(|pages| change(&mut pages.payer));
        Ok(())
    }
}

/// Whether charges move from one to the other.
fn moves(old: &Payer, new: &Payer) -> bool {
    let other_mm = old.mm.process() != new.mm.process();
    match old.mode {
        Mode::None => false,
        Mode::User => other_mm || old.user != new.user,
        Mode::Process => other_mm,
    }
}

impl Backing {
    /// Whether all areas were made by `IOAS_MAP_FILE`, of no dma-buf.
    fn is_files_only(&self) -> bool {
        let is_file = |origin: &Origin| matches!(origin, Origin::File(_));
        self.sources.iter().all(|source| is_file(&source.origin))
            && self.pages.values().all(|pages| matches!(&pages.origin, PagesOrigin::Program(origin) if is_file(origin)))
    }

    /// Who pays, and for how many pages.
    fn payers(&self) -> impl Iterator<Item = (&Payer, u64)> {
        let own = self.sources.iter().map(|source| (&source.payer, source.pinned));
        own.chain(self.pages.values().map(|pages| (&pages.payer, pages.coverage.pages())))
    }
}
