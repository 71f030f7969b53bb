// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets that take time, and those that never end.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use caller::{Reply, Wake};
use uapi::Errno;
use world::*;

const RESET: u32 = 0x3b6f;
const ON: [u8; 2] = [6, 0];

fn slow(ready: &str) -> World {
    World::new(&format!("{}ready_ms = {ready}\n{}", function(0), function(1)))
}

/// ERR-075, ERR-077, ERR-079, HOT-026, HOT-027, HOT-055: a function reset ends
/// when the function answers. Who touches it meanwhile waits; a hot reset only
/// tries for its lock.
#[test]
fn a_reset_ends_when_the_function_answers() {
    let mut w = slow("700");
    let (a, b) = (w.open(A), w.open(B));
    w.store(a, CONFIG, 4, &ON);
    let version = w.load(a, 0, 8, 4);
    w.store(a, 0, 0x14, &0x46_0001u32.to_le_bytes());
    let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
    let again = parked(w.host.ioctl(a, RESET, 0, &w.client));
    let load = parked(w.try_load(a, 0, 8));
    assert_ne!(w.load(b, 0, 8, 4), !0, "its sibling is not concerned");
    assert_eq!((w.hot_reset(a).err(), w.hot_reset(b).err()), (Some(Errno::EBUSY), Some(Errno::EBUSY)));
    w.pass(700);
    assert!(w.host.take_woken().is_empty());
    // It is asked at growing distances.
    w.pass(700);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0))), (again, Wake::Retry), (load, Wake::Retry)]);
    assert_eq!((w.command(A) & 6, w.load(a, 0, 8, 4), w.load(a, 0, 0x14, 4)), (6, version, 0));
    // Back to back.
    for _ in 0..3 {
        let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
        w.pass(2_000);
        assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))]);
    }
}

/// ERR-068: a minute for FLR, then the next method has its turn. At last
/// nothing has worked.
#[test]
fn a_reset_that_never_ends() {
    let mut w = slow("\"never\"");
    let a = w.open(A);
    let mut path = "/sys/devices/pci0000:00/0000:00:01.0/".to_owned() + A;
    path.push_str("/reset_method");
    assert_eq!(w.text(&path).split_whitespace().next(), Some("flr"));
    let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
    w.pass(59_000);
    assert!(w.host.take_woken().is_empty());
    w.pass(10_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Err(Errno::ENOTTY)))]);
    // Nobody is left blocked.
    assert_eq!(w.load(a, 0, 8, 4), !0);
    assert!(w.host.is_calm() && w.host.waiting() == 0);
}

/// HOT-026, HOT-029: who resets one of the set through sysfs has the device's
/// lock and not the memory lock.
#[test]
fn a_hot_reset_during_the_hosts_reset() {
    let mut w = slow("700");
    let (_a, b) = (w.open(A), w.open(B));
    let reset = parked(w.host.store(&format!("/sys/bus/pci/devices/{A}/reset"), b"1"));
    assert_eq!(w.hot_reset(b).err(), Some(Errno::EAGAIN));
    w.pass(2_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(1)))]);
    assert!(matches!(w.hot_reset(b), Ok(Reply::Parked(_))));
}

/// ERR-082: a reset by the register holds up the store, which does not tell.
#[test]
fn a_reset_by_the_register() {
    for (ready, ms) in [("300", 800), ("\"never\"", 70_000)] {
        let mut w = slow(ready);
        let a = w.open(A);
        let express = w.host.board().fabric.function(at(A)).unwrap().capability(pci::cap::EXPRESS).unwrap();
        let store = parked(w.try_store(a, CONFIG, u64::from(express) + 8, 0x8000));
        w.pass(ms);
        assert_eq!(w.host.take_woken(), [(store, Wake::Done(Ok(4)))]);
    }
}

/// HOT-028, HOT-029, HOT-030: a hot reset ends when the link is up and the bus
/// answers; without a link in time it is `ENOTTY`.
#[test]
fn hot_resets_wait_for_the_link() {
    for (link, works) in [("400", true), ("\"never\"", false)] {
        let port = format!("[[port]]\naddr = \"00:01.0\"\nbus = 1\nlink_ms = {link}\n");
        let mut w = World::new(&format!("{port}{}{}", function(0), function(1)));
        let (a, b) = (w.open(A), w.open(B));
        w.store(a, CONFIG, 4, &ON);
        let version = w.load(a, 0, 8, 4);
        let reset = parked(w.hot_reset(a));
        let [one, other] = [a, b].map(|file| parked(w.try_load(file, 0, 8)));
        // The set's lock is waited for, and whoever gets it resets once more.
        let second = parked(w.hot_reset(b));
        w.pass(70_000);
        let result = if works { Ok(0) } else { Err(Errno::ENOTTY) };
        let mut woken = w.host.take_woken();
        woken.sort_by_key(|(ticket, _)| *ticket);
        let retries = [one, other, second].map(|ticket| (ticket, Wake::Retry));
        assert_eq!(woken, [vec![(reset, Wake::Done(result))], retries.to_vec()].concat());
        assert_eq!(w.load(a, 0, 8, 4), if works { version } else { !0 });
        assert_eq!(w.command(A) & 6, if works { 6 } else { w.command(A) & 6 });
    }
}

/// ERR-081: a PF is reset with its VFs in use or not; the registers of SR-IOV
/// come back.
#[test]
fn a_pf_with_vfs() {
    for ready in ["0", "500"] {
        let more = format!("total_vfs = 2\nvfs = 2\nready_ms = {ready}\n");
        let mut w = World::new(&format!("[vfio]\nenable_sriov = true\n{}{more}", function(0)));
        let a = w.open(A);
        let sriov = |w: &World| {
            let function = w.host.board().fabric.function(at(A)).unwrap();
            let base = function.extended_capability(pci::cap::EXT_SRIOV).unwrap();
            (function.peek(base + 8, 2) & 1, function.peek(base + 0x10, 2))
        };
        assert_eq!(sriov(&w), (1, 2));
        match w.host.ioctl(a, RESET, 0, &w.client).unwrap() {
            Reply::Value(0) => assert_eq!(ready, "0"),
            Reply::Parked(reset) => {
                w.pass(3_000);
                assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(sriov(&w), (1, 2));
        assert_eq!(w.host.board().fabric.virtual_functions(at(A)).len(), 2);
    }
}

/// HOT-036: a device is opened when the hot reset is over.
#[test]
fn opening_waits_for_a_hot_reset() {
    let mut w = World::new(&format!("{}ready_ms = 2000\n{}", function(0), function(1)));
    let (a, b) = (w.open(A), w.open(B));
    w.host.release(b);
    let reset = parked(w.hot_reset(a));
    let open = parked(w.open_again(B, 1));
    w.pass(9_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0))), (open, Wake::Retry)]);
    assert!(matches!(w.open_again(B, 1), Ok(Reply::NewFile(_))));
}

/// GRP-054, GRP-057, GRP-008: a function without IOMMU has a group in no-IOMMU
/// mode as long as vfio-pci has it, and none else.
#[test]
fn no_iommu_mode() {
    let device = format!("{}iommu = false\n", function(0));
    let w = World::new(&device);
    let path = format!("/sys/bus/pci/devices/{A}/driver");
    assert!(w.host.tree().get(&path).is_none(), "vfio-pci does not take it");
    let mut w = World::new(&format!("[vfio]\nenable_unsafe_noiommu_mode = true\n{device}"));
    let group = w.host.functions().into_iter().find(|f| f.address == A).and_then(|f| f.group).unwrap();
    let tree = w.host.tree();
    assert_eq!(tree.get(&format!("/dev/vfio/{group}")), None);
    assert!(tree.get(&format!("/dev/vfio/noiommu-{group}")).is_some());
    assert_eq!(w.text(&format!("/sys/kernel/iommu_groups/{group}/name")), "vfio-noiommu\n");
    assert_eq!(w.text("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"), "Y\n");
    w.host.store("/sys/bus/pci/drivers/vfio-pci/unbind", A.as_bytes()).unwrap();
    assert!(w.host.functions().into_iter().all(|f| f.address != A || f.group.is_none()));
    assert_eq!(w.host.tree().get(&format!("/dev/vfio/noiommu-{group}")), None);
    w.host.store(&format!("/sys/bus/pci/devices/{A}/driver_override"), b"vfio-pci").unwrap();
    w.host.store("/sys/bus/pci/drivers_probe", A.as_bytes()).unwrap();
    assert!(w.host.tree().get(&format!("/dev/vfio/noiommu-{group}")).is_some());
}

/// The lab key that shows reset groups; without it nothing is there.
#[test]
fn reset_groups_in_sysfs() {
    let path = format!("/sys/devices/pci0000:00/{PORT}/{A}/pci_reset_group");
    assert!(World::pair("").host.tree().get(&path).is_none());
    let w = World::new(&format!("[vfio]\nreset_groups = true\n{}{}", function(0), function(1)));
    assert_eq!(w.text(&path), format!("{PORT}\n"));
    assert!(w.host.tree().get(&format!("/sys/devices/pci0000:00/{PORT}/pci_reset_group")).is_none(), "a root bus");
}

/// A program that is killed in the middle of its reset leaves nothing behind.
#[test]
fn killed_in_the_middle() {
    let mut w = slow("5000");
    let (a, _) = w.user(A);
    let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
    w.host.abandon(reset);
    w.host.release(a);
    let group = w.client.file_id(w.groups[0]).unwrap();
    let before = caller::Platform::now(&*w.platform);
    w.open_device(group, A);
    assert!((caller::Platform::now(&*w.platform) - before) / MS >= 10_000, "that reset, and the open's");
    assert_eq!((w.host.waiting(), w.host.deadline()), (0, None));
}

/// Errors while a reset runs: recovery waits for the device's lock (ERR-018).
#[test]
fn recovery_waits_for_a_reset() {
    let mut w = slow("5000");
    let ((a, a_err), (_b, b_err)) = (w.user(A), w.user(B));
    let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
    w.raise(B, NONFATAL);
    assert_eq!((a_err.take(), b_err.take()), (0, 0));
    w.pass(15_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))]);
    w.settle();
    assert_eq!((a_err.take(), b_err.take()), (1, 1));
}

/// The user's link reset of a fatal error, over a slow link.
#[test]
fn a_slow_link_reset_of_the_users() {
    let text = extensions("user-reset block passive-reset");
    let mut w = World::new(&format!("{text}{}ready_ms = 5000\n{}", function(0), function(1)));
    let ((a, _), _) = (w.user(A), w.user(B));
    let passive = w.event(a, 6);
    w.store(a, CONFIG, 4, &ON);
    w.raise(A, FATAL);
    w.pass(2_000);
    assert_eq!(w.recovery_state(a)[1], 2);
    let reset = parked(w.hot_reset(a));
    w.pass(15_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))]);
    w.settle();
    assert_eq!((w.recovery_state(a)[1], passive.take(), w.command(A) & 6), (0, 0, 6));
}

/// API-189, ERR-075: an open waits for the reset that it makes.
#[test]
fn an_open_takes_as_long_as_its_reset() {
    let mut w = slow("700");
    let before = caller::Platform::now(&*w.platform);
    let a = w.open(A);
    let took = (caller::Platform::now(&*w.platform) - before) / MS;
    assert!((700..2_000).contains(&took), "{took} ms");
    assert_eq!(w.command(A) & 4, 0, "API-190");
    let before = caller::Platform::now(&*w.platform);
    w.open(B);
    assert_eq!(caller::Platform::now(&*w.platform), before, "its sibling is quick");
    let reset = parked(w.host.ioctl(a, RESET, 0, &w.client));
    w.pass(2_000);
    assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))], "it was proven");
}

/// API-270, HOT-036: what is closed is reset; who wants it next waits for that,
/// and then for the reset of the open.
#[test]
fn a_close_takes_as_long_as_its_reset() {
    let mut w = slow("700");
    let a = w.open(A);
    w.store(a, CONFIG, 4, &ON);
    w.store(a, 0, 0x14, &0x46_0001u32.to_le_bytes());
    w.host.release(a);
    assert!(!w.host.is_open(at(A)));
    let unbind = parked(w.host.store("/sys/bus/pci/drivers/vfio-pci/unbind", A.as_bytes()));
    let before = caller::Platform::now(&*w.platform);
    let reset = parked(w.host.store(&format!("/sys/bus/pci/devices/{A}/reset"), b"1"));
    w.pass(2_000);
    let mut woken = w.host.take_woken();
    woken.sort_by_key(|(ticket, _)| *ticket);
    assert_eq!(woken, [(unbind, Wake::Retry), (reset, Wake::Retry)]);
    assert_eq!(w.command(A) & 6, 2, "as at open, without bus mastering");
    let a = {
        let group = w.client.file_id(w.groups[0]).unwrap();
        w.open_device(group, A)
    };
    assert!((caller::Platform::now(&*w.platform) - before) / MS >= 2_700);
    assert_eq!(w.load(a, 0, 0x14, 4), 0);
}

/// An opener that goes away while it waits leaves a device that the next one
/// can open.
#[test]
fn an_opener_that_goes_away() {
    let mut w = slow("700");
    let b = w.open(B);
    let a = w.open(A);
    w.host.release(a);
    w.pass(5_000);
    w.host.take_woken();
    let group = w.client.file_id(w.groups[1]).unwrap();
    w.client.set(sim::BASE, format!("{A}\0").as_bytes());
    let ticket = parked(w.host.ioctl(group, 0x3b6a, sim::BASE, &w.client));
    w.host.abandon(ticket);
    w.pass(30_000);
    assert_eq!((w.host.take_woken(), w.host.waiting(), w.host.is_open(at(A))), (vec![], 0, false));
    let a = w.open_device(group, A);
    assert_eq!(w.load(a, CONFIG, 0, 4), w.load(b, CONFIG, 0, 4));
}

/// ERR-073, GRP-042: stores to `reset` and `reset_subordinate` wait; `reset`
/// tells whether it worked.
#[test]
fn resets_by_sysfs() {
    let path = format!("/sys/bus/pci/devices/{A}/reset");
    for (ready, ms, result) in [("300", 1_000, Ok(1)), ("\"never\"", 70_000, Err(Errno::ENOTTY))] {
        for open in [false, true] {
            let mut w = slow(ready);
            let device = open.then(|| w.open(A));
            if let Some(device) = device {
                w.store(device, CONFIG, 4, &ON);
            }
            let store = parked(w.host.store(&path, b"1"));
            let load = device.map(|device| parked(w.try_load(device, 0, 8)));
            w.pass(ms);
            let woken = w.host.take_woken();
            assert_eq!(woken.first(), Some(&(store, Wake::Done(result))), "{ready} {open}");
            assert_eq!(woken.get(1), load.map(|load| (load, Wake::Retry)).as_ref());
            assert_eq!(w.command(A) & 4 != 0, open && result.is_ok() || w.command(A) & 4 != 0);
        }
    }
    let mut w = slow("300");
    let (a, b) = (w.open(A), w.open(B));
    w.store(a, CONFIG, 4, &ON);
    let below = format!("/sys/bus/pci/devices/{PORT}/reset_subordinate");
    let store = parked(w.host.store(&below, b"1\n"));
    assert_eq!(w.host.store(&below, b"1\n"), Err(Errno::EAGAIN));
    let [one, other] = [a, b].map(|file| parked(w.try_load(file, 0, 8)));
    w.pass(3_000);
    let mut woken = w.host.take_woken();
    woken.sort_by_key(|(ticket, _)| *ticket);
    assert_eq!(woken, [(store, Wake::Done(Ok(2))), (one, Wake::Retry), (other, Wake::Retry)]);
    assert_eq!(w.command(A) & 6, 6);
}

/// HOT-044: the reset of a set after its last close takes its time, too.
#[test]
fn a_set_is_reset_after_its_last_close() {
    let functions = [0, 1].map(|n| format!("{}resets = \"none\"\nready_ms = 700\n", function(n))).concat();
    let mut w = World::new(&functions);
    let (a, b) = (w.open(A), w.open(B));
    w.store(a, 0, 0x14, &0x46_0001u32.to_le_bytes());
    w.host.release(a);
    w.host.release(b);
    let group = w.client.file_id(w.groups[0]).unwrap();
    let before = caller::Platform::now(&*w.platform);
    let a = w.open_device(group, A);
    assert!((caller::Platform::now(&*w.platform) - before) / MS >= 700);
    assert_eq!(w.load(a, 0, 0x14, 4), 0);
}
