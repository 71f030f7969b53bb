// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who pays for pinned pages (iommufd-api.md, section 7).

use caller::testing::Client;
use caller::{Capability, UserId};
use uapi::Errno;
use uapi::iommufd::{IoasMap, SetOption};

use super::{FIXED, PAGE, RAM, RW, give_memory, lab};
use crate::Options;
use crate::testing::{Lab, domain};

/// IOMMUFD-7.1, IOMMUFD-7.2, IOMMUFD-7.3
#[test]
fn modes() {
    for process in [false, true] {
        let mut lab = Lab::new();
        give_memory(&lab);
        lab.file = lab.open(process);
        let ioas = lab.ioas();
        lab.map(ioas, FIXED | RW, RAM + 1, 2 * PAGE, 1).unwrap();
        assert_eq!(lab.counts(), (0, 0, 0), "not while it is lazy");
        lab.unmap(ioas, 0, u64::MAX).unwrap();
        lab.add_domain(1000, ioas, &domain()).unwrap();
        lab.map(ioas, FIXED | RW, RAM, 2 * PAGE, 0).unwrap();
        lab.add_domain(1001, ioas, &domain()).unwrap();
        assert_eq!(lab.counts(), if process { (2, 0, 2) } else { (0, 2, 2) });
        // CAP_IPC_LOCK wins, and the mode is the one of the time of mapping.
        lab.client.capabilities.borrow_mut().push(Capability::IpcLock);
        lab.map(ioas, FIXED | RW, RAM, 3 * PAGE, 8 * PAGE).unwrap();
        lab.client.capabilities.borrow_mut().clear();
        assert_eq!(lab.counts(), if process { (2, 0, 5) } else { (0, 2, 5) });
        lab.unmap(ioas, 8 * PAGE, 3 * PAGE).unwrap();
        assert_eq!(lab.counts().2, 2);
        lab.remove_domain(1000, ioas);
        assert_eq!(lab.counts().2, 2);
        lab.remove_domain(1001, ioas);
        assert_eq!(lab.counts(), (0, 0, 0));
    }
}

/// IOMMUFD-7.1: users' counts go together, programs' do not.
#[test]
fn who_shares_a_limit() {
    for (process, same_user) in [(false, true), (false, false), (true, true)] {
        let mut lab = Lab::new();
        lab.file = lab.open(process);
        let ioas = lab.ioas();
        lab.add_domain(1000, ioas, &domain()).unwrap();
        give_memory(&lab);
        let other = Client::new(2);
        other.memory.map(RAM, 8 * PAGE, true);
        other.user.set(if same_user { lab.client.user.get() } else { UserId(7) });
        other.memlock.set(4 * PAGE);
        lab.map(ioas, FIXED | RW, RAM, 2 * PAGE, 0).unwrap();
        let map = IoasMap { ioas_id: ioas, flags: FIXED | RW, user_va: RAM, iova: 1 << 20, ..IoasMap::default() };
        let pages = if same_user && !process { 2 } else { 4 };
        let over = IoasMap { length: (pages + 1) * PAGE, ..map };
        assert_eq!(lab.run_as(&other, over), Err(Errno::ENOMEM), "{process} {same_user}");
        assert_eq!(lab.counts_of(&other).2, 0, "IOMMUFD-7.4: nothing left behind");
        lab.run_as(&other, IoasMap { length: pages * PAGE, ..map }).unwrap();
        // A bad address is found before the limit is.
        let bad = IoasMap { length: 64 * PAGE, iova: 2 << 20, ..map };
        assert_eq!(lab.run_as(&other, bad), Err(Errno::EFAULT));
    }
}

/// IOMMUFD-7.4 when a domain comes.
#[test]
fn a_domain_over_the_limit() {
    let (mut lab, ioas) = lab();
    lab.map(ioas, FIXED | RW, RAM, 3 * PAGE, 0).unwrap();
    lab.map(ioas, FIXED | RW, RAM, 3 * PAGE, 8 * PAGE).unwrap();
    lab.client.memlock.set(5 * PAGE);
    assert_eq!(lab.add_domain(1000, ioas, &domain()), Err(Errno::ENOMEM));
    assert_eq!(lab.counts(), (0, 0, 0));
    lab.client.memlock.set(6 * PAGE);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.counts(), (0, 6, 6));
    lab.client.memlock.set(0);
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    assert_eq!(lab.map(ioas, FIXED | RW, RAM, PAGE, 0), Err(Errno::ENOMEM));
}

/// VFIO's pages and those of process mode are one count.
#[test]
fn vfio_and_process_mode_share() {
    let mut lab = Lab::with(Options::default());
    give_memory(&lab);
    lab.client.capabilities.borrow_mut().push(Capability::SysResource);
    lab.run(SetOption { val64: 1, ..SetOption::default() }).unwrap();
    let ioas = lab.ioas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    lab.client.memlock.set(4 * PAGE);
    let accounts = lab.iommufd.accounts.clone();
    accounts.try_charge(&lab.client, 2).unwrap();
    assert_eq!(lab.map(ioas, FIXED | RW, RAM, 3 * PAGE, 0), Err(Errno::ENOMEM));
    lab.map(ioas, FIXED | RW, RAM, 2 * PAGE, 0).unwrap();
    assert_eq!(accounts.try_charge(&lab.client, 1), Err(Errno::ENOMEM));
    accounts.uncharge(lab.client.process, 2);
    let file = lab.file;
    lab.remove_domain(1000, ioas);
    lab.iommufd.release(file);
    assert_eq!(lab.counts(), (0, 0, 0));
}
