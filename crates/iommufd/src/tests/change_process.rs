// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_IOAS_CHANGE_PROCESS` (IOMMUFD-7.5).

use caller::testing::{Client, MemFile};
use caller::{Capability, UserId};
use uapi::Errno;
use uapi::iommufd::{IoasChangeProcess, IoasMapFile, IoasUnmap};

use super::{FIXED, PAGE, RAM, RW, give_memory};
use crate::testing::{Lab, domain};

const CHANGE: IoasChangeProcess = IoasChangeProcess { size: 0, reserved: 0 };

/// An IOAS with a domain and six pages of a file, of which a copy has two.
fn six_pages(process: bool) -> (Lab, u32) {
    let mut lab = Lab::new();
    give_memory(&lab);
    lab.file = lab.open(process);
    let ioas = lab.ioas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    let fd = lab.client.mem_fd(&MemFile::new(1, 16 * PAGE));
    for (iova, start, pages) in [(0, 0, 4), (10, 8, 2)] {
        let (iova, start, length) = (iova * PAGE, start * PAGE, pages * PAGE);
        lab.run(IoasMapFile { ioas_id: ioas, flags: FIXED | RW, fd, iova, start, length, ..Default::default() })
            .unwrap();
    }
    lab.copy((ioas, PAGE), (ioas, 20 * PAGE), FIXED | RW, 2 * PAGE).unwrap();
    (lab, ioas)
}

#[test]
fn order_of_checks() {
    let (mut lab, ioas) = six_pages(false);
    assert_eq!(lab.run(IoasChangeProcess { reserved: 1, ..CHANGE }), Err(Errno::EOPNOTSUPP));
    lab.map(ioas, FIXED | RW, RAM, PAGE, 50 * PAGE).unwrap();
    assert_eq!(lab.run(CHANGE), Err(Errno::EINVAL), "an area that is no file's");
    let other = lab.ioas();
    lab.unmap(ioas, 50 * PAGE, PAGE).unwrap();
    lab.map(other, FIXED | RW, RAM, PAGE, 50 * PAGE).unwrap();
    assert_eq!(lab.run(CHANGE), Err(Errno::EINVAL), "of whatever IOAS");
    lab.unmap(other, 0, u64::MAX).unwrap();
    lab.run(CHANGE).unwrap();
    lab.unmap(ioas, 0, u64::MAX).unwrap();
    lab.run(CHANGE).unwrap();
}

#[test]
fn charges_move() {
    for (process, user) in [(false, 1000), (false, 7), (true, 1000)] {
        let (mut lab, ioas) = six_pages(process);
        let heir = Client::new(2);
        heir.user.set(UserId(user));
        heir.memlock.set(5 * PAGE);
        assert_eq!(lab.counts(), if process { (6, 0, 6) } else { (0, 6, 6) });
        assert_eq!(lab.run_as(&heir, CHANGE), Err(Errno::ENOMEM));
        assert_eq!(lab.counts().2, 6, "nothing changes");
        // While it moves both pay.
        heir.memlock.set(11 * PAGE);
        let moved = lab.run_as(&heir, CHANGE);
        if user == 1000 && !process {
            assert_eq!(moved, Err(Errno::ENOMEM));
            heir.memlock.set(12 * PAGE);
            lab.run_as(&heir, CHANGE).unwrap();
        } else {
            moved.unwrap();
        }
        assert_eq!(lab.counts_of(&heir), if process { (6, 0, 6) } else { (0, 6, 6) });
        assert_eq!(lab.counts().2, 0);
        // The heir pays for what comes back, too.
        lab.client.memory.end();
        lab.remove_domain(1000, ioas);
        assert_eq!(lab.counts_of(&heir).2, 0);
        lab.add_domain(1000, ioas, &domain()).unwrap();
        assert_eq!(lab.counts_of(&heir).2, 6);
        lab.run_as(&heir, CHANGE).unwrap();
        let all = IoasUnmap { ioas_id: ioas, length: u64::MAX, ..IoasUnmap::default() };
        lab.run_as(&heir, all).unwrap();
        assert_eq!(lab.counts_of(&heir), (0, 0, 0));
    }
}

/// Who pays nothing moves nothing, as on Linux, but is another program's.
#[test]
fn without_accounting() {
    let mut lab = Lab::new();
    lab.client.capabilities.borrow_mut().push(Capability::IpcLock);
    let ioas = lab.ioas();
    lab.add_domain(1000, ioas, &domain()).unwrap();
    let fd = lab.client.mem_fd(&MemFile::new(1, 16 * PAGE));
    lab.run(IoasMapFile { ioas_id: ioas, flags: FIXED | RW, fd, length: PAGE, ..Default::default() }).unwrap();
    let heir = Client::new(2);
    heir.memlock.set(0);
    lab.run_as(&heir, CHANGE).unwrap();
    assert_eq!((lab.counts(), lab.counts_of(&heir)), ((0, 0, 1), (0, 0, 0)));
}
