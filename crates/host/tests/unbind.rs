// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that are taken away from devices in use: whom the store asks, how
//! long it waits, and what others get meanwhile.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::Arc;

use caller::{FileId, Platform, Reply, Ticket, Wait, Wake};
use host::tree::{Entry, Node};
use host::{Host, Lab};
use models::testing::CountedEvent;
use sim::{BASE, Client, Fd, SimPlatform, SimStorage};
use uapi::Errno;

const UNBIND: &str = "/sys/bus/pci/drivers/vfio-pci/unbind";
const DEVICE: &str = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
const PORT: &str = "/sys/devices/pci0000:00/0000:00:01.0";
const RESET: u32 = 0x3b6f;
const SECOND: u64 = 1_000_000_000;

struct World {
    host: Host,
    platform: Arc<SimPlatform>,
    client: Client,
}

impl World {
    fn new(text: &str) -> World {
        let platform = SimPlatform::new(1);
        let lab = Lab::parse("test", text).unwrap();
        let host = Host::new(lab, Arc::clone(&platform) as _, Box::new(SimStorage)).unwrap();
        World { host, platform, client: Client::new(1) }
    }

    fn one() -> World {
        World::new("[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n")
    }

    fn sriov() -> World {
        let text = "[vfio]\nenable_sriov = true\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"1M\"\n\
            total_vfs = 4\nvfs = 2\n";
        World::new(text)
    }

    /// Opens a device by its group: the group's and the device's file.
    fn open(&mut self, address: &str) -> (FileId, FileId) {
        let number = self.host.functions().into_iter().find(|f| f.address == address).and_then(|f| f.group).unwrap();
        let container = self.host.open(Node::VfioContainer, &self.client).unwrap();
        let fd = self.client.install(Fd::File(container));
        let group = self.host.open(Node::VfioGroup(number), &self.client).unwrap();
        self.client.set(BASE, &fd.to_le_bytes());
        self.host.ioctl(group, 0x3b68, BASE, &self.client).unwrap();
        self.host.ioctl(container, 0x3b66, 3, &self.client).unwrap();
        (group, self.device(group, address).unwrap())
    }

    fn device(&mut self, group: FileId, address: &str) -> Result<FileId, Errno> {
        self.client.set(BASE, format!("{address}\0").as_bytes());
        match self.host.ioctl(group, 0x3b6a, BASE, &self.client)? {
            Reply::NewFile(device) => Ok(device),
            other => panic!("{other:?}"),
        }
    }

    /// Registers an eventfd for the REQ index.
    fn on_request(&mut self, device: FileId) -> Arc<CountedEvent> {
        let event = Arc::new(CountedEvent::default());
        let fd = self.client.install(Fd::Event(Arc::clone(&event)));
        let words = [24u32, 4 | 32, 4, 0, 1, fd as u32];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.client.set(BASE, &bytes);
        self.host.ioctl(device, 0x3b6e, BASE, &self.client).unwrap();
        event
    }

    fn store(&mut self, path: &str, text: &str) -> Result<Reply, Errno> {
        self.host.store(path, text.as_bytes())
    }

    fn waits(&mut self, path: &str, text: &str) -> Ticket {
        match self.store(path, text) {
            Ok(Reply::Parked(ticket)) => ticket,
            other => panic!("{path}: {other:?}"),
        }
    }

    fn has(&self, path: &str) -> bool {
        self.host.tree().get(path).is_some()
    }

    /// Lets time pass; the host is called at its deadlines, as it asked.
    fn pass(&mut self, nanos: u64) {
        let end = self.platform.now() + nanos;
        while let Some(at) = self.host.deadline().filter(|at| *at <= end) {
            self.platform.advance(at - self.platform.now());
            self.host.elapse();
        }
        self.platform.advance(end - self.platform.now());
        self.host.elapse();
    }
}

/// API-272, API-273, GRP-064: the user is asked at once and every ten seconds; the store
/// ends when it closes. Meanwhile nobody can open the device.
#[test]
fn the_user_is_asked_until_it_closes() {
    let mut world = World::one();
    let (group, device) = world.open("0000:01:00.0");
    let event = world.on_request(device);
    let ticket = world.waits(UNBIND, "0000:01:00.0\n");
    assert_eq!(world.host.wait(ticket), Some(Wait::Interruptible));
    assert_eq!(event.take(), 1);
    world.pass(9 * SECOND);
    assert_eq!(event.take(), 0);
    world.pass(SECOND);
    assert_eq!(event.take(), 1);
    world.pass(60 * SECOND);
    assert_eq!(event.take(), 6);

    assert_eq!(world.device(group, "0000:01:00.0"), Err(Errno::ENODEV));
    assert!(!world.has(&format!("{DEVICE}/driver")), "the links go first");
    assert!(world.host.take_woken().is_empty());
    world.host.release(device);
    assert_eq!(world.host.take_woken(), [(ticket, Wake::Done(Ok(13)))]);
    assert_eq!((world.host.deadline(), world.host.waiting()), (None, 0));
    let driver =
        |world: &World| world.host.functions().into_iter().find(|f| f.address == "0000:01:00.0").unwrap().driver;
    assert_eq!(driver(&world), None);
    assert!(
        !world
            .host
            .tree()
            .iter()
            .any(|(path, entry)| path.starts_with("/dev/vfio/1") && matches!(entry, Entry::Device(_)))
    );
    // It can be bound and opened again.
    world.store(&format!("{DEVICE}/driver_override"), "vfio-pci").unwrap();
    world.store("/sys/bus/pci/drivers_probe", "0000:01:00.0").unwrap();
    assert_eq!(driver(&world).as_deref(), Some("vfio-pci"));
    world.host.release(group);
    world.open("0000:01:00.0");
}

/// API-272: a user that cannot be asked is waited for in silence.
#[test]
fn a_user_without_request_eventfd_is_waited_for() {
    let mut world = World::one();
    let (_, device) = world.open("0000:01:00.0");
    let ticket = world.waits(UNBIND, "0000:01:00.0");
    world.pass(100 * SECOND);
    assert_eq!(world.host.wait(ticket), Some(Wait::Interruptible));
    // One that is registered late is signalled at the next turn.
    let event = world.on_request(device);
    world.pass(10 * SECOND);
    assert_eq!(event.take(), 1);
    world.host.release(device);
    assert_eq!(world.host.take_woken(), [(ticket, Wake::Done(Ok(12)))]);
}

/// API-272: a signal makes the wait uninterruptible and the user is asked
/// again; a store whose process is gone is not answered, but takes effect.
#[test]
fn signals_and_kills_do_not_stop_an_unbind() {
    let mut world = World::one();
    let (_, device) = world.open("0000:01:00.0");
    let event = world.on_request(device);
    let ticket = world.waits(UNBIND, "0000:01:00.0");
    world.pass(3 * SECOND);
    event.take();
    world.host.interrupted(ticket);
    assert_eq!((event.take(), world.host.wait(ticket)), (1, Some(Wait::Uninterruptible)));
    world.host.interrupted(ticket);
    assert_eq!(event.take(), 0, "once");
    world.pass(10 * SECOND);
    assert_eq!(event.take(), 1, "ten seconds from then");
    world.host.abandon(ticket);
    world.pass(10 * SECOND);
    assert_eq!(event.take(), 1, "the request stands");
    world.host.release(device);
    assert!(world.host.take_woken().is_empty());
    assert!(!world.has(&format!("{DEVICE}/driver")));
    assert_eq!(world.host.functions().iter().find(|f| f.address == "0000:01:00.0").unwrap().driver, None);
}

/// ERR-074: the wait holds the device's lock: who wants it waits, who tries gets
/// EAGAIN (API-179, API-270, HOT-028).
#[test]
fn others_wait_for_the_lock_or_do_without() {
    let mut world = World::one();
    let (_, device) = world.open("0000:01:00.0");
    assert_eq!(world.host.ioctl(device, RESET, 0, &world.client), Ok(Reply::Value(0)));
    let first = world.waits(UNBIND, "0000:01:00.0");
    assert_eq!(world.host.ioctl(device, RESET, 0, &world.client), Err(Errno::EAGAIN));
    assert_eq!(world.store(&format!("{PORT}/reset_subordinate"), "1"), Err(Errno::EAGAIN));

    let second = world.waits(UNBIND, "0000:01:00.0\n");
    let reset = world.waits(&format!("{DEVICE}/reset"), "1");
    let probe = world.waits("/sys/bus/pci/drivers_probe", "0000:01:00.0");
    let bind = world.waits("/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:00.0");
    assert!([second, reset, probe, bind].iter().all(|t| world.host.wait(*t) == Some(Wait::Uninterruptible)));
    assert_eq!(world.store(&format!("{DEVICE}/driver_override"), "vfio-pci"), Ok(Reply::Value(8)));
    world.host.abandon(probe);
    world.host.release(device);
    let woken = world.host.take_woken();
    assert_eq!(
        woken,
        [(first, Wake::Done(Ok(12))), (second, Wake::Done(Ok(13))), (reset, Wake::Retry), (bind, Wake::Retry)]
    );
    assert_eq!(world.store(&format!("{DEVICE}/reset"), "1"), Ok(Reply::Value(1)));
    assert_eq!(world.store("/sys/bus/pci/drivers/vfio-pci/bind", "0000:01:00.0"), Ok(Reply::Value(12)));
}

/// VFs that are open hold up their removal, by sriov_numvfs and by the
/// physical function's unbind; each user is asked at its turn.
#[test]
fn virtual_functions_in_use_are_waited_for() {
    let mut world = World::sriov();
    let numvfs = format!("{DEVICE}/sriov_numvfs");
    let vfs: Vec<String> =
        world.host.functions().into_iter().filter(|f| f.physical_function.is_some()).map(|f| f.address).collect();
    let token = "vf_token=00000000-0000-0000-0000-000000000001";
    let (pf_group, pf) = world.open("0000:01:00.0");
    // A token that the VFs' users must know.
    let mut feature = vec![24u8, 0, 0, 0];
    feature.extend((1u32 << 17).to_le_bytes());
    feature.extend([0; 15]);
    feature.push(1);
    world.client.set(BASE, &feature);
    world.host.ioctl(pf, 0x3b75, BASE, &world.client).unwrap();
    let mut users = Vec::new();
    for vf in &vfs {
        let number = world.host.functions().into_iter().find(|f| f.address == *vf).and_then(|f| f.group).unwrap();
        let container = world.host.open(Node::VfioContainer, &world.client).unwrap();
        let fd = world.client.install(Fd::File(container));
        let group = world.host.open(Node::VfioGroup(number), &world.client).unwrap();
        world.client.set(BASE, &fd.to_le_bytes());
        world.host.ioctl(group, 0x3b68, BASE, &world.client).unwrap();
        world.host.ioctl(container, 0x3b66, 3, &world.client).unwrap();
        let device = world.device(group, &format!("{vf} {token}")).unwrap();
        users.push((device, world.on_request(device)));
    }

    let ticket = world.waits(&numvfs, "0\n");
    assert_eq!((users[0].1.take(), users[1].1.take()), (1, 0));
    assert_eq!(world.host.ioctl(pf, RESET, 0, &world.client), Err(Errno::EAGAIN), "its lock is held, too");
    let unbind = world.waits(UNBIND, "0000:01:00.0");
    let other = world.waits(&numvfs, "3");
    world.host.release(users[0].0);
    assert_eq!((users[0].1.take(), users[1].1.take()), (0, 1));
    world.pass(10 * SECOND);
    assert_eq!((users[0].1.take(), users[1].1.take()), (0, 1));
    assert!(world.host.take_woken().is_empty());
    world.host.release(users[1].0);
    assert_eq!(world.host.take_woken(), [(ticket, Wake::Done(Ok(2))), (unbind, Wake::Retry), (other, Wake::Retry)]);
    assert!(world.host.functions().iter().all(|f| f.physical_function.is_none()));

    // Again, and now the physical function's own user is waited for after them.
    assert_eq!(world.store(&numvfs, "1"), Ok(Reply::Value(1)));
    let event = world.on_request(pf);
    let unbind = world.waits(UNBIND, "0000:01:00.0");
    assert_eq!(event.take(), 1);
    assert!(world.host.functions().iter().all(|f| f.physical_function.is_none()), "VFs without users are gone");
    world.host.release(pf);
    assert_eq!(world.host.take_woken(), [(unbind, Wake::Done(Ok(12)))]);
    world.host.release(pf_group);
}
