// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mediated devices: several programs share one function, each with its own
//! PASIDs, in one reset domain.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod links;
mod reset;
mod scenarios;
mod users;

use host::tree::{Entry, Node};
use host::{Host, Lab};
use sim::SimStorage;
use uapi::Errno;
use uapi::vfio::cdev::BindIommufd;
use uapi::vfio::container::{CHECK_EXTENSION, SET_IOMMU};
use uapi::vfio::device::BIND_IOMMUFD;
use uapi::vfio::group::{GET_DEVICE_FD, SET_CONTAINER};

use users::{BACKING, HOLE, LAB, PAGE, Shared, User};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// GRP-032, GRP-047: a part stands on the mdev bus below its parent, with a
/// node and, if it has one, a group; not among the functions of the PCI bus.
#[test]
fn where_parts_stand() {
    let s = Shared::new("");
    let tree = s.host.tree();
    let parent = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
    let dir = format!("{parent}/{UUID}");
    for (link, target) in [
        (format!("/sys/bus/mdev/devices/{UUID}"), dir.clone()),
        (format!("{dir}/subsystem"), "/sys/bus/mdev".to_owned()),
        (format!("{dir}/driver"), "/sys/bus/mdev/drivers/idxd_mdev".to_owned()),
        ("/sys/class/mdev_bus/0000:01:00.0".to_owned(), parent.to_owned()),
    ] {
        let Some(Entry::Link(to)) = tree.get(&link) else { panic!("{link}") };
        assert_eq!(resolve(&link, to), target, "{link}");
    }
    assert!(tree.get(&format!("{dir}/iommu_group")).is_some());
    assert!(tree.get(&format!("{dir}/vfio-dev/vfio0/dev")).is_some());
    assert_eq!(tree.get("/dev/vfio/devices/vfio2"), Some(&Entry::Device(Node::VfioCdev(2))));
    let groups = tree.entries.values().filter(|entry| matches!(entry, Entry::Device(Node::VfioGroup(_)))).count();
    assert_eq!(groups, 2, "one part has no group of its own, the parent a kernel driver");
    let functions: Vec<&str> =
        tree.entries.keys().filter_map(|path| path.strip_prefix("/sys/bus/pci/devices/")).collect();
    assert_eq!(functions, ["0000:00:01.0", "0000:01:00.0"]);
    let part = s.host.functions().into_iter().find_map(|function| function.mediated);
    assert_eq!(part, Some(("0000:01:00.0".to_owned(), UUID.to_owned())));
}

/// Where a relative link leads.
fn resolve(link: &str, to: &str) -> String {
    if to.starts_with('/') {
        return to.to_owned();
    }
    let mut path: Vec<&str> = link.rsplit_once('/').unwrap().0.split('/').collect();
    for part in to.split('/') {
        match part {
            ".." => drop(path.pop()),
            _ => path.push(part),
        }
    }
    path.join("/")
}

/// IOMMUFD-8.14, FAULT-5.4: PASIDs are the function's: one that a part has
/// attached is `EBUSY` to the others, and free again when it is detached.
/// Outside its pool a part has none, nor may it name its own.
#[test]
fn pasids_belong_to_one_user_at_a_time() {
    let mut s = Shared::new("");
    let mut users: Vec<User> = (0..3).map(|n| s.user(n)).collect();
    let queues: Vec<_> = users.iter_mut().map(|user| user.queue(&mut s)).collect();
    assert_eq!(users[0].attach(&mut s, 40, queues[0]), Ok(()));
    assert_eq!(users[0].attach(&mut s, 40, queues[0]), Ok(()), "replaced by itself");
    assert_eq!(users[1].attach(&mut s, 40, queues[1]), Err(Errno::EBUSY));
    assert_eq!(users[2].attach(&mut s, 40, queues[2]), Err(Errno::EBUSY));
    assert_eq!(users[2].attach(&mut s, 31, queues[2]), Err(Errno::EINVAL), "not in its pool");
    assert_eq!(users[2].attach(&mut s, 32, queues[2]), Ok(()));
    assert_eq!(users[0].attach(&mut s, 100, queues[0]), Err(Errno::EINVAL), "its own: requests without a PASID");
    assert_eq!(users[1].attach(&mut s, 100, queues[1]), Err(Errno::EBUSY), "another's own");
    users[0].detach(&mut s, 40);
    assert_eq!(users[1].attach(&mut s, 40, queues[1]), Ok(()));
    // A closed device gives everything back.
    s.host.release(users[1].device);
    assert_eq!(users[0].attach(&mut s, 40, queues[0]), Ok(()));
}

/// FAULT-1.2, FAULT-2.2, FAULT-4.8: a request without a PASID leaves the
/// function with the part's own, and comes to what the part has attached for
/// such requests. Indexes are the function's: no two parts have one in common.
#[test]
fn requests_carry_the_user_s_pasid() {
    let mut s = Shared::new("");
    let mut users: Vec<User> = (0..3).map(|n| s.user(n)).collect();
    let queues: Vec<_> = users.iter_mut().map(|user| user.queue(&mut s)).collect();
    for (user, queue) in users.iter_mut().zip(&queues) {
        user.attach_own(&mut s, *queue);
        user.client.memory.store(BACKING, b"of mine!");
        user.submit(&mut s, 0, None, HOLE);
    }
    let mut records = Vec::new();
    for (user, queue) in users.iter_mut().zip(&queues) {
        records.push((user.dev_id, user.read_one(&mut s, *queue)));
    }
    let seen: Vec<_> = records.iter().map(|(_, record)| (record.flags & 3, record.pasid, record.grpid)).collect();
    assert_eq!(seen, [(3, 100, 0), (3, 1, 1), (3, 2, 2)]);
    assert!(records.iter().all(|(dev_id, record)| record.dev_id == *dev_id));
    for ((user, queue), (_, record)) in users.iter_mut().zip(&queues).zip(&records).rev() {
        user.map(&mut s, HOLE, BACKING, PAGE);
        user.answer(&mut s, *queue, record.cookie, 0).unwrap();
        assert_eq!((user.status(0), user.outstanding()), (1, 0));
        assert_eq!(user.client.get_bytes(users::RESULTS, 8), b"of mine!");
    }
}

/// FAULT-4.4: what a part may have outstanding is its share of the function's
/// capacity, so that a user that never answers leaves the others theirs.
#[test]
fn a_silent_user_takes_its_share_only() {
    // Nine parts.
    let mut s = Shared::new(&"[[device]]\nmodel = \"dsa\"\nparent = \"01:00.0\"\n".repeat(6));
    let mut users: Vec<User> = (1..3).map(|n| s.user(n)).collect();
    let queues: Vec<_> = users.iter_mut().map(|user| user.queue(&mut s)).collect();
    users[0].attach_own(&mut s, queues[0]);
    users[1].attach_own(&mut s, queues[1]);
    for n in 0..64 {
        users[0].submit(&mut s, n, None, HOLE + n * PAGE);
    }
    assert_eq!(users[0].outstanding(), 512 / 9);
    users[1].client.memory.store(BACKING, b"for all!");
    users[1].map(&mut s, HOLE, BACKING, PAGE);
    users[1].submit(&mut s, 0, None, HOLE + PAGE);
    let record = users[1].read_one(&mut s, queues[1]);
    assert_eq!(record.grpid, 512 / 9);
    users[1].map(&mut s, HOLE + PAGE, BACKING, PAGE);
    users[1].answer(&mut s, queues[1], record.cookie, 0).unwrap();
    assert_eq!(users[1].status(0), 1);
}

/// API-047, API-049: a part is opened through its group by its UUID; its
/// driver has no options.
#[test]
fn by_a_group_and_a_container() {
    let mut s = Shared::new("");
    let user = caller::testing::Client::new(9);
    let groups: Vec<u32> = s.host.functions().iter().filter(|f| f.mediated.is_some()).filter_map(|f| f.group).collect();
    let container = s.host.open(Node::VfioContainer, &user).unwrap();
    let group = s.host.open(Node::VfioGroup(groups[0]), &user).unwrap();
    let fd = user.put(&user.fd(container));
    s.host.ioctl(group, SET_CONTAINER, fd, &user).unwrap();
    assert!(s.host.ioctl(container, CHECK_EXTENSION, 3, &user).is_ok());
    s.host.ioctl(container, SET_IOMMU, 3, &user).unwrap();
    for (name, result) in [("ffff:00:00.0", false), (&format!("{UUID} vf_token=x"), false), (UUID, true)] {
        let opened = s.host.ioctl(group, GET_DEVICE_FD, user.put_str(name), &user);
        assert_eq!(opened.is_ok(), result, "{name}: {opened:?}");
    }
    // API-037
    let iommufd = s.host.open(Node::Iommufd, &user).unwrap();
    let node = s.host.open(Node::VfioCdev(0), &user).unwrap();
    let bind = user.put(&BindIommufd { argsz: 16, iommufd: user.fd(iommufd), ..BindIommufd::default() });
    assert_eq!(s.host.ioctl(node, BIND_IOMMUFD, bind, &user), Err(Errno::EBUSY));
}

/// What a lab may not say.
#[test]
fn labs_that_cannot_be() {
    let part = "[[device]]\nmodel = \"dsa\"\nparent = \"01:00.0\"\n";
    let dsa = "[[device]]\nmodel = \"dsa\"\naddr = \"01:00.0\"\n";
    let nvme = dsa.replace("dsa", "nvme");
    let lent = format!("{dsa}driver = \"idxd\"\n");
    for (text, message) in [
        (part.to_owned(), "there is no device at 0000:01:00.0"),
        (format!("{dsa}{part}"), "needs the driver that shares it"),
        (format!("{nvme}{part}"), "has no PASIDs"),
        (format!("{lent}{part}pasid = 5\n{part}pasid = 5\n"), "`pasid`: 5 is another part's"),
        (format!("{lent}{}", part.replace("dsa", "ioat")), "only a dsa is shared"),
        (format!("{lent}{part}uuid = \"{UUID}\"\n{part}uuid = \"{UUID}\"\n"), "is another device's"),
    ] {
        let lab = Lab::parse("test", &text).unwrap();
        let error = Host::new(lab, std::sync::Arc::<caller::testing::TestPlatform>::default(), Box::new(SimStorage));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(Lab::parse("test", LAB).is_ok());
}
