// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `/dev/aer_inject`, and labs whose firmware keeps errors to itself.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use caller::{FileId, Reply};
use host::tree::{Entry, Node};
use pci::aer::spec::register;
use pci::cap;
use sim::BASE;
use uapi::Errno;
use world::*;

const ON: &str = "[aer]\ninject = true\n";

/// A record: where, uncorrectable and correctable bits.
fn record(address: &str, uncorrectable: u32, correctable: u32) -> [u8; 32] {
    let address = at(address);
    let mut record = [0; 32];
    record[..3].copy_from_slice(&[address.bus, address.device(), address.function()]);
    record[4..8].copy_from_slice(&uncorrectable.to_le_bytes());
    record[8..12].copy_from_slice(&correctable.to_le_bytes());
    record
}

fn lab(more: &str) -> World {
    let mut w = World::new(&format!("{ON}{more}{}{}", function(0), function(1)));
    w.client.privileged = true;
    w
}

fn node(w: &mut World) -> FileId {
    w.host.open(Node::AerInject, &w.client).unwrap()
}

fn write(w: &mut World, file: FileId, bytes: &[u8]) -> Result<u64, Errno> {
    w.client.set(BASE, bytes);
    w.host.write_message(file, &[(BASE, bytes.len() as u64)], &w.client)
}

/// ERR-059, ERR-063, ERR-064: one write is one injection and takes the whole
/// record; the user of the device is told once.
#[test]
fn a_write_is_an_injection() {
    let mut w = lab("");
    let (_, error) = w.user(A);
    let file = node(&mut w);
    assert_eq!(write(&mut w, file, &record(A, NONFATAL, 0)), Ok(32));
    w.settle();
    assert_eq!((w.host.root_error_counters(at(PORT)), error.take()), ([0, 1, 0], 1));
    assert_eq!(write(&mut w, file, &record(B, FATAL, 0)[..28]), Ok(28), "without a domain");
    w.settle();
    assert_eq!((w.host.root_error_counters(at(PORT)), error.take()), ([0, 1, 1], 1));
    // writev: a record a part.
    w.client.set(BASE, &[record(A, 0, 0x40), record(A, 0, 0x80), record("0000:07:00.0", 1, 0)].concat());
    let parts = [(BASE, 32), (BASE + 32, 32), (BASE + 64, 32)];
    assert_eq!(w.host.write_message(file, &parts, &w.client), Ok(64));
    w.settle();
    assert_eq!(w.host.root_error_counters(at(PORT)), [2, 1, 1]);
    assert_eq!(w.host.read(file, 0, BASE, 32, &w.client), Err(Errno::EINVAL));
    assert_eq!(w.host.ioctl(file, 0x3b64, 0, &w.client), Err(Errno::ENOTTY));
    assert_eq!(w.host.mmap(file, 0, 4096, true, false), Err(Errno::ENODEV));
    w.host.release(file);
    assert_eq!(write(&mut w, file, &record(A, NONFATAL, 0)), Err(Errno::EBADF));
}

/// ERR-059, ERR-060, ERR-061, ERR-062: what is refused, in this order.
#[test]
fn what_is_refused() {
    let third = "[[device]]\nmodel = \"ioat\"\naddr = \"02:00.0\"\n";
    let mut w = lab(third);
    let file = node(&mut w);
    w.client.privileged = false;
    assert_eq!(write(&mut w, file, &[]), Ok(0));
    assert_eq!(write(&mut w, file, &[0; 27]), Err(Errno::EPERM));
    w.client.privileged = true;
    for length in [1, 27, 33, 4096] {
        assert_eq!(write(&mut w, file, &vec![0xff; length]), Err(Errno::EINVAL), "{length}");
    }
    assert_eq!(w.host.write_message(file, &[(1 << 46, 32)], &w.client), Err(Errno::EFAULT));
    assert_eq!(write(&mut w, file, &record("0000:07:00.0", NONFATAL, 0)), Err(Errno::ENODEV));
    let mut far = record(A, NONFATAL, 0);
    far[30] = 1;
    assert_eq!(write(&mut w, file, &far), Err(Errno::ENODEV), "domain 0x10000");
    let masked = 0x2000;
    assert_eq!(write(&mut w, file, &record(A, 0, masked)), Err(Errno::EINVAL));
    assert_eq!(w.host.root_error_counters(at(PORT)), [0; 3]);
    // What was refused shows with what comes next.
    let function = w.host.board().fabric.function(at(A)).unwrap();
    let status = function.extended_capability(cap::EXT_AER).unwrap() + register::CORRECTABLE_STATUS;
    assert_eq!(function.read(status, 4) & masked, masked);
}

/// ERR-059: the node is there only if the lab says so.
#[test]
fn the_node_is_asked_for() {
    let entry = |w: &World, path: &str| w.host.tree().get(path).cloned();
    assert_eq!(entry(&lab(""), "/dev/aer_inject"), Some(Entry::Device(Node::AerInject)));
    let plain = World::pair("");
    for path in ["/dev/aer_inject", "/sys/module/aer_inject/initstate", "/sys/class/misc/aer_inject"] {
        assert_eq!(entry(&plain, path), None);
        assert!(entry(&lab(""), path).is_some(), "{path}");
    }
}

/// ERR-042, ERR-061: firmware that keeps errors: no function reports any, and
/// the root port has no service for those that are injected.
#[test]
fn firmware_keeps_errors() {
    let mut w = lab("native = false\n");
    let (device, error) = w.user(A);
    let express = w.host.board().fabric.function(at(A)).unwrap().capability(cap::EXPRESS).unwrap();
    assert_eq!(w.load(device, CONFIG, u64::from(express) + 8, 2) & 0xf, 0, "no reports");
    w.raise(A, FATAL);
    w.settle();
    assert_eq!((w.host.root_error_counters(at(PORT)), error.take()), ([0; 3], 0));
    let file = node(&mut w);
    assert_eq!(write(&mut w, file, &record(A, NONFATAL, 0)), Err(Errno::ENODEV));
    assert!(w.host.is_calm() && error.take() == 0);
    // By the mail that an embedder or the control socket sends it is the same.
    let injection = pci::aer::Injection { uncorrectable: FATAL, ..Default::default() };
    assert!(w.host.inject(&[injection], Some(at(A))).is_err());
    assert!(matches!(w.try_load(device, 0, 8), Ok(Reply::Value(4))));
}

/// ERR-057: sysfs shows what an error has changed, of the functions concerned
/// only, and with no more than their files.
#[test]
fn files_that_errors_change() {
    let third = "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"1M\"\n";
    let mut w = World::new(&format!("{}{}{third}", function(0), function(1)));
    let (_, error) = w.user(A);
    let generation = w.host.generation();
    let before = w.host.tree();
    w.host.take_changed_files();
    for bits in [NONFATAL, FATAL] {
        w.raise(A, bits);
        w.settle();
        assert!(w.host.has_changed_files() && w.host.generation() == generation);
        let files = w.host.take_changed_files();
        assert!(files.iter().all(|(path, _)| !path.contains("02:00.0")), "another root port");
        // They bring an old tree up to date.
        let mut tree = before.clone();
        for (path, entry) in files {
            assert!(before.get(&path).is_some(), "{path}");
            tree.entries.insert(path, entry);
        }
        assert_eq!(tree, w.host.tree());
        assert!(!w.host.has_changed_files());
    }
    assert_eq!(error.take(), 2);
}
