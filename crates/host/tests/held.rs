// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When accesses to mapped BARs wait, and when no longer.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use std::any::Any;
use std::sync::Arc;

use caller::FileId;
use device::Window;
use models::testing::TestFile;
use vm_memory::Bytes;
use world::*;

const RESET: u32 = 0x3b6f;
const HOT_RESET: u32 = 0x3b71;
/// Version of an NVMe controller.
const VERSION: u32 = 0x1_0400;

/// How accesses to mapped BARs end now.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    /// With this word of the version register.
    Gives(u32),
    Waits,
}

fn file(w: &World, device: FileId) -> Arc<TestFile> {
    let file: Arc<dyn Any + Send + Sync> = w.host.device_file(device).unwrap();
    file.downcast().unwrap()
}

fn access(file: &TestFile) -> Access {
    assert_ne!(file.is_accessible(), file.is_held(), "pages are away while it is held, and then only");
    match file.is_held() {
        true => Access::Waits,
        false => Access::Gives(file.bar(0).unwrap().slice().load(8, std::sync::atomic::Ordering::Relaxed).unwrap()),
    }
}

fn open(w: &mut World, address: &str) -> (FileId, Arc<TestFile>) {
    w.platform.can_hold();
    let device = w.open(address);
    w.store(device, CONFIG, 4, &[6, 0]);
    let file = file(w, device);
    assert_eq!(access(&file), Access::Gives(VERSION));
    (device, file)
}

/// ERR-040, ERR-084: from `error_detected` to `resume`, on each function of
/// the scope.
#[test]
fn while_a_device_is_blocked() {
    let mut w = World::extended("block", "ready_ms = 500\n");
    let ((_, a), (_, b)) = (open(&mut w, A), open(&mut w, B));
    w.raise(A, FATAL);
    assert_eq!((access(&a), access(&b)), (Access::Waits, Access::Waits));
    w.pass(100);
    assert_eq!((access(&a), access(&b)), (Access::Waits, Access::Waits));
    // The first function answers sooner than its sibling.
    w.pass(300);
    assert_eq!((access(&a), access(&b)), (Access::Gives(VERSION), Access::Waits));
    w.settle();
    assert_eq!((access(&a), access(&b)), (Access::Gives(VERSION), Access::Gives(VERSION)));
}

/// ERR-040: as Linux has it nobody waits: the link is down, so loads give ones.
#[test]
fn not_without_the_extension() {
    let mut w = World::pair("");
    let (_, a) = open(&mut w, A);
    w.raise(A, FATAL);
    assert_eq!(access(&a), Access::Gives(!0));
}

/// ERR-079, HOT-028, HOT-040: in Linux the fault waits for the end of a reset.
#[test]
fn while_a_reset_goes_on() {
    for request in [RESET, HOT_RESET] {
        let mut w = World::new(&format!("{}ready_ms = 700\n", function(0)));
        let (device, a) = open(&mut w, A);
        let words = [16, 0, 1, w.groups[0] as u32];
        let (reply, _) = w.words(device, request, words).unwrap();
        parked(Ok(reply));
        assert_eq!(access(&a), Access::Waits, "{request:#x}");
        w.pass(600);
        assert_eq!(access(&a), Access::Waits);
        w.pass(3_000);
        assert_eq!(access(&a), Access::Gives(VERSION));
    }
}

/// A wait has an end: the device is given up, the program is to reset it
/// itself, or the device is closed.
#[test]
fn nobody_waits_for_ever() {
    let mut w = World::extended("block", "ready_ms = \"never\"\n");
    let (_, b) = open(&mut w, B);
    w.raise(B, FATAL);
    assert_eq!(access(&b), Access::Waits);
    w.pass(25_000);
    assert_eq!(access(&b), Access::Gives(!0), "recovery_wait_ms is over");

    let mut w = World::extended("block user-reset", "");
    let ((_, a), (_, b)) = (open(&mut w, A), open(&mut w, B));
    w.raise(A, FATAL);
    assert_eq!((access(&a), access(&b)), (Access::Gives(!0), Access::Gives(!0)), "it is the program's turn");
    w.pass(3_000);
    assert_eq!(access(&a), Access::Waits, "the host resets instead");
    w.settle();
    assert_eq!(access(&a), Access::Gives(VERSION));

    let mut w = World::extended("block", "");
    let (device, a) = open(&mut w, A);
    w.raise(A, FATAL);
    assert_eq!(access(&a), Access::Waits);
    w.host.release(device);
    assert!(!a.is_held());
}

/// Where the front door cannot have them wait, loads give ones.
#[test]
fn who_cannot_be_held() {
    let mut w = World::extended("block", "");
    let device = w.open(A);
    w.store(device, CONFIG, 4, &[6, 0]);
    let a = file(&w, device);
    w.raise(A, FATAL);
    assert_eq!(access(&a), Access::Gives(!0));
    w.settle();
    assert_eq!(access(&a), Access::Gives(VERSION));
}
