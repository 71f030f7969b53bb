// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `IOMMU_OPTION` (iommufd-api.md, section 6).

use caller::Capability;
use uapi::Errno;
use uapi::iommufd::{Command, SetOption, option};

use super::{FIXED, PAGE, RAM, ROM, RW, lab};
use crate::testing::{Lab, domain, put};

fn set(option_id: u32, object_id: u32, val64: u64) -> SetOption {
    SetOption { option_id, op: option::SET, object_id, val64, ..SetOption::default() }
}

fn get(option_id: u32, object_id: u32) -> SetOption {
    SetOption { op: option::GET, val64: 99, ..set(option_id, object_id, 0) }
}

/// IOMMUFD-6.1
#[test]
fn order_of_checks() {
    let (mut lab, ioas) = lab();
    assert_eq!(lab.run(SetOption { reserved: 1, ..get(1, ioas) }), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(get(2, 99)), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(SetOption { op: 2, ..get(1, 99) }), Err(Errno::ENOENT));
    assert_eq!(lab.run(SetOption { op: 2, ..get(1, ioas) }), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(SetOption { op: 2, ..get(0, 0) }), Err(Errno::EOPNOTSUPP));
    let arg = put(&lab.client, set(1, ioas, 1));
    let bytes = lab.client.get_bytes(arg, 24);
    lab.client.memory.store(ROM, &bytes);
    assert_eq!(lab.ioctl(SetOption::REQUEST, ROM), Err(Errno::EFAULT), "SET copies the value back, too");
}

/// IOMMUFD-6.2
#[test]
fn rlimit_mode() {
    let mut lab = Lab::new();
    assert_eq!(lab.run(get(0, 1)), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.run(get(0, 0)).unwrap().val64, 0);
    let ioas = lab.ioas();
    assert_eq!(lab.run(set(0, 0, 2)), Err(Errno::EPERM));
    lab.client.capabilities.borrow_mut().push(Capability::SysResource);
    assert_eq!(lab.run(set(0, 0, 2)), Err(Errno::EBUSY));
    lab.run(uapi::iommufd::Destroy { id: ioas, ..Default::default() }).unwrap();
    assert_eq!(lab.run(set(0, 0, 2)), Err(Errno::EINVAL));
    for mode in [1, 0, 1] {
        lab.run(set(0, 0, mode)).unwrap();
        assert_eq!(lab.run(get(0, 0)).unwrap().val64, mode);
    }
    // IOMMUFD-1.1
    let vfio = lab.open(true);
    assert_eq!(lab.run_on(vfio, get(0, 0)).unwrap().val64, 1);
}

/// IOMMUFD-6.3
#[test]
fn huge_pages() {
    let (mut lab, ioas) = lab();
    let mode = |lab: &mut Lab| lab.run(get(1, ioas)).unwrap().val64;
    assert_eq!(mode(&mut lab), 1);
    assert_eq!(lab.run(set(1, ioas, 2)), Err(Errno::EINVAL));
    assert_eq!(lab.run(set(1, 99, 0)), Err(Errno::ENOENT));
    lab.map(ioas, FIXED | RW, RAM, 100, 0).unwrap();
    assert_eq!(lab.run(set(1, ioas, 0)), Err(Errno::EADDRINUSE));
    assert_eq!(mode(&mut lab), 1, "it stays on");
    lab.unmap(ioas, 0, 100).unwrap();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    lab.run(set(1, ioas, 0)).unwrap();
    assert_eq!(lab.context().ioas(ioas).unwrap().alignment(), PAGE);
    lab.run(set(1, ioas, 1)).unwrap();
    assert_eq!(lab.context().ioas(ioas).unwrap().alignment(), 1);
    lab.add_domain(1000, ioas, &domain()).unwrap();
    assert_eq!(lab.run(set(1, ioas, 0)), Err(Errno::EINVAL));
    lab.unmap(ioas, 0, PAGE).unwrap();
    lab.run(set(1, ioas, 0)).unwrap();
    lab.map(ioas, FIXED | RW, RAM, PAGE, 0).unwrap();
    lab.run(set(1, ioas, 0)).unwrap();
    assert_eq!(mode(&mut lab), 0, "off already");
}
