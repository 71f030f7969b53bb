// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of one group attach together, and their DMA goes where they are.

use std::sync::Arc;

use iommu::{FaultReason, Requester};
use iommufd::{Binding, DeviceProperties, Iommufd, ObjectId, Options};
use uapi::Errno;

use crate::lab::{Lab, MEMORY, PAGE, PASID};

/// A group of two bound devices and a third function.
struct Three {
    devices: [ObjectId; 2],
    requesters: Vec<Arc<Requester>>,
}

fn three(lab: &mut Lab, properties: &DeviceProperties) -> Three {
    let requesters: Vec<_> = (0..3).map(|_| Requester::new()).collect();
    requesters.iter().for_each(|requester| requester.set_bus_master(true));
    let bind = |lab: &mut Lab, n: usize| {
        let binding = Binding {
            group: 7,
            requester: Arc::clone(&requesters[n]),
            members: requesters.clone(),
            properties: properties.clone(),
        };
        lab.iommufd.bind(lab.context, binding).unwrap()
    };
    let devices = [bind(lab, 0), bind(lab, 1)];
    Three { devices, requesters }
}

/// What a function reads at an IOVA, of a PASID.
fn dma(requester: &Requester, pasid: u32, iova: u64) -> Result<u8, FaultReason> {
    let mut byte = [0];
    let mut session = if pasid == 0 { requester.session() } else { requester.session_pasid(pasid) };
    session.read(iova, &mut byte).map(|()| byte[0]).map_err(|fault| fault.reason)
}

/// IOASes in which IOVA 0 is a page with the byte 1, 2, …
fn spaces<const N: usize>(lab: &mut Lab) -> [u32; N] {
    std::array::from_fn(|n| {
        let ioas = lab.ioas();
        let at = MEMORY + n as u64 * PAGE;
        lab.client.memory.store(at, &[n as u8 + 1]);
        lab.map(ioas, at, PAGE, 0).unwrap();
        ioas
    })
}

/// IOMMUFD-8.11, IOMMUFD-8.18, API-115: the group goes with its first; a sibling joins or is
/// refused. All functions' DMA is translated, bound or not.
#[test]
fn siblings_join_the_first() {
    let mut lab = Lab::new();
    let Three { devices: [one, two], requesters } = three(&mut lab, &DeviceProperties::default());
    let [ioas, other] = spaces(&mut lab);
    let hwpt = lab.attach(one, 0, ioas).unwrap();
    for requester in &requesters {
        assert_eq!(dma(requester, 0, 0), Ok(1));
    }
    assert_eq!(lab.attach(two, 0, other), Err(Errno::EINVAL));
    assert_eq!(lab.attach(two, 0, ioas), Ok(hwpt));
    lab.detach(one, 0);
    assert_eq!(dma(&requesters[0], 0, 0), Ok(1), "the other has it attached still");
    assert_eq!(lab.destroy(hwpt), Err(Errno::EBUSY));
    lab.detach(two, 0);
    for requester in &requesters {
        assert_eq!(dma(requester, 0, 0), Err(FaultReason::Blocked), "8.18");
    }
    assert_eq!(lab.destroy(hwpt), Err(Errno::ENOENT));
}

/// IOMMUFD-8.16: a replace moves the siblings, without a call of theirs.
#[test]
fn a_replace_moves_the_whole_group() {
    let mut lab = Lab::new();
    let Three { devices: [one, two], requesters } = three(&mut lab, &DeviceProperties::default());
    let [ioas, other] = spaces(&mut lab);
    let old = lab.attach(one, 0, ioas).unwrap();
    lab.attach(two, 0, ioas).unwrap();
    let new = lab.replace(two, 0, other).unwrap();
    for requester in &requesters {
        assert_eq!(dma(requester, 0, 0), Ok(2));
    }
    assert_eq!(lab.destroy(old), Err(Errno::ENOENT), "automatic, and nobody's any more");
    assert_eq!(lab.destroy(ioas), Ok(()));
    lab.detach(two, 0);
    assert_eq!(dma(&requesters[1], 0, 0), Ok(2));
    assert_eq!(lab.destroy(new), Err(Errno::EBUSY));
    lab.detach(one, 0);
    assert_eq!(lab.destroy(other), Ok(()));
}

/// IOMMUFD-8.13: each PASID has an attachment of its own.
#[test]
fn pasids_are_apart() {
    let mut lab = Lab::new();
    let able = DeviceProperties { max_pasids: 1 << 20, ..DeviceProperties::default() };
    let Three { devices: [one, two], requesters } = three(&mut lab, &able);
    let spaces: [u32; 3] = spaces(&mut lab);
    let hwpts = spaces.map(|ioas| lab.hwpt(one.0, ioas, PASID).unwrap());
    for (pasid, hwpt) in [0, 5, 0xf_ffff].into_iter().zip(hwpts) {
        lab.attach(one, pasid, hwpt).unwrap();
    }
    for requester in &requesters {
        let bytes = [0, 5, 0xf_ffff, 6].map(|pasid| dma(requester, pasid, 0));
        assert_eq!(bytes, [Ok(1), Ok(2), Ok(3), Err(FaultReason::Blocked)]);
    }
    lab.attach(two, 5, hwpts[1]).unwrap();
    lab.replace(two, 5, hwpts[2]).unwrap();
    lab.detach(one, 0);
    let bytes = [0, 5, 0xf_ffff].map(|pasid| dma(&requesters[2], pasid, 0));
    assert_eq!(bytes, [Err(FaultReason::Blocked), Ok(3), Ok(3)]);
    assert_eq!(lab.attach(one, 1 << 20, hwpts[0]), Err(Errno::EINVAL), "8.14");
}

/// A function that is plugged into a group goes where the group is.
#[test]
fn a_new_function_joins_its_group() {
    let mut lab = Lab::new();
    let able = DeviceProperties { max_pasids: 16, ..DeviceProperties::default() };
    let Three { devices: [one, _], .. } = three(&mut lab, &able);
    let [ioas, other] = spaces(&mut lab);
    let [first, second] = [ioas, other].map(|ioas| lab.hwpt(one.0, ioas, PASID).unwrap());
    lab.attach(one, 0, first).unwrap();
    lab.attach(one, 3, second).unwrap();
    let new = Requester::new();
    new.set_bus_master(true);
    lab.iommufd.group_member_added(8, &new);
    assert_eq!(dma(&new, 0, 0), Err(FaultReason::Blocked), "another group's");
    lab.iommufd.group_member_added(7, &new);
    assert_eq!((dma(&new, 0, 0), dma(&new, 3, 0)), (Ok(1), Ok(2)));
    lab.detach(one, 3);
    lab.replace(one, 0, second).unwrap();
    assert_eq!((dma(&new, 0, 0), dma(&new, 3, 0)), (Ok(2), Err(FaultReason::Blocked)));
}

/// API-106, API-110
#[test]
fn who_can_be_bound() {
    let mut lab = Lab::new();
    let bind = |iommufd: &mut Iommufd, context, properties| {
        let requester = Requester::new();
        let members = vec![Arc::clone(&requester)];
        iommufd.bind(context, Binding { group: 7, requester, members, properties })
    };
    let incoherent = DeviceProperties { coherent: false, ..DeviceProperties::default() };
    assert_eq!(bind(&mut lab.iommufd, lab.context, incoherent), Err(Errno::EINVAL));
    let shared_msi = DeviceProperties { isolated_msi: false, ..DeviceProperties::default() };
    assert_eq!(bind(&mut lab.iommufd, lab.context, shared_msi.clone()), Err(Errno::EPERM));
    let device = bind(&mut lab.iommufd, lab.context, DeviceProperties::default()).unwrap();
    assert!(lab.iommufd.has_group(lab.context, 7));

    let second = lab.files.allocate();
    lab.iommufd.open(second, false);
    let context = lab.iommufd.context(second).unwrap();
    assert_eq!(bind(&mut lab.iommufd, context, DeviceProperties::default()), Err(Errno::EPERM), "one context a group");
    lab.iommufd.unbind(lab.context, device);
    assert!(!lab.iommufd.has_group(lab.context, 7));
    assert!(bind(&mut lab.iommufd, context, DeviceProperties::default()).is_ok());

    let platform = Arc::<caller::testing::TestPlatform>::default();
    let options = Options { allow_unsafe_interrupts: true, ..Options::default() };
    let mut lax = Iommufd::new(platform, options, caller::Accounts::new(false));
    lax.open(second, false);
    let context = lax.context(second).unwrap();
    assert!(bind(&mut lax, context, shared_msi).is_ok());
}

/// IOMMUFD-2.4, IOMMUFD-2.6: a bound device keeps the context; its id is busy.
#[test]
fn a_bound_device_keeps_the_context() {
    let mut lab = Lab::new();
    let Three { devices: [one, two], requesters } = three(&mut lab, &DeviceProperties::default());
    let [ioas] = spaces(&mut lab);
    lab.attach(one, 0, ioas).unwrap();
    assert_eq!(lab.destroy(one.0), Err(Errno::EBUSY));
    lab.iommufd.release(lab.file);
    assert_eq!(dma(&requesters[0], 0, 0), Ok(1));
    lab.iommufd.unbind(lab.context, one);
    assert_eq!(dma(&requesters[0], 0, 0), Err(FaultReason::Blocked));
    assert!(lab.iommufd.has_group(lab.context, 7));
    lab.iommufd.unbind(lab.context, two);
    assert!(!lab.iommufd.has_group(lab.context, 7), "and with the last it is gone");
}
