// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VADDR flag: a program's memory moves under live mappings. API-072,
//! API-089, API-090, API-101.

use ::device::Driver;
use uapi::Errno;

use super::{ALL, PAGE, RAM, READ, RW, Type1Lab, VADDR, give_memory};
use crate::testing::Client;

fn lab(number: u64) -> Type1Lab {
    let mut t = Type1Lab::new(number);
    for (page, pages) in [(2, 2), (4, 1), (8, 4)] {
        t.map(RW, RAM + page * PAGE, page * PAGE, pages * PAGE).unwrap();
    }
    t
}

/// API-090
#[test]
fn dma_goes_on_without_vaddr() {
    let mut t = lab(3);
    assert_eq!(t.unmap(VADDR, 2 * PAGE, 3 * PAGE), Ok(3 * PAGE));
    assert!(t.dma_write(2 * PAGE, 7));
    assert_eq!(t.lab.client.get::<u64>(RAM + 2 * PAGE), 7);
    assert_eq!(t.unmap(VADDR, 5 * PAGE, PAGE), Ok(0));
    assert_eq!(t.unmap(VADDR, 3 * PAGE, PAGE), Err(Errno::EINVAL), "bisected");
    assert_eq!(t.map(RW, RAM, 2 * PAGE, PAGE), Err(Errno::EEXIST), "mapped still");
}

/// API-072
#[test]
fn new_vaddr() {
    let mut t = lab(3);
    assert_eq!(t.map(VADDR, RAM, 5 * PAGE, PAGE), Err(Errno::ENOENT));
    assert_eq!(t.map(VADDR, RAM, 2 * PAGE, 2 * PAGE), Err(Errno::EINVAL), "has one");
    t.unmap(VADDR, 2 * PAGE, 2 * PAGE).unwrap();
    for (page, pages) in [(2, 1), (3, 1), (1, 3), (2, 3), (1, 2)] {
        assert_eq!(t.map(VADDR, RAM, page * PAGE, pages * PAGE), Err(Errno::EINVAL), "not the same range");
    }
    assert!(t.dma_write(2 * PAGE, 7));
    let elsewhere = RAM + 0x100_0000;
    assert_eq!(t.map(VADDR, elsewhere, 2 * PAGE, 2 * PAGE), Ok(()));
    assert_eq!(t.map(VADDR, elsewhere, 2 * PAGE, 2 * PAGE), Err(Errno::EINVAL), "has one again");
    assert!(t.dma_write(3 * PAGE, 9));
    assert_eq!(t.lab.client.get::<u64>(elsewhere + PAGE), 9);
    // An address with no memory is not looked at until something is pinned.
    t.unmap(VADDR, 4 * PAGE, PAGE).unwrap();
    assert_eq!(t.map(VADDR, 0, 4 * PAGE, PAGE), Ok(()));
    assert!(t.dma_write(4 * PAGE, 3));
    assert_eq!(t.lab.client.get::<u64>(RAM + 4 * PAGE), 3);
}

/// API-072: who gives the new address pays from now on.
#[test]
fn accounting_moves() {
    let mut t = lab(3);
    let other = Client::new(2);
    give_memory(&other);
    other.memlock.set(PAGE);
    let counts = |t: &Type1Lab| (t.lab.vfio.locked.pages(t.lab.client.process), t.lab.vfio.locked.pages(other.process));
    t.unmap(ALL | VADDR, 0, 0).unwrap();
    assert_eq!(counts(&t), (7, 0));
    assert_eq!(t.map_as(&other, VADDR, RAM, 2 * PAGE, 2 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(counts(&t), (7, 0));
    t.map_as(&other, VADDR, RAM, 4 * PAGE, PAGE).unwrap();
    assert_eq!(counts(&t), (6, 1));
    t.map(VADDR, RAM, 2 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(counts(&t), (6, 1), "the same program pays nothing twice");
    t.unmap(ALL, 0, 0).unwrap();
    assert_eq!(counts(&t), (0, 0));
}

/// API-089: one that is invalid already undoes the whole call.
#[test]
fn all_and_undo() {
    let mut t = lab(3);
    assert_eq!(t.unmap(ALL | VADDR, 0, 0), Ok(7 * PAGE));
    assert_eq!(t.unmap(ALL | VADDR, 0, 0), Err(Errno::EINVAL));
    for (page, pages) in [(2, 2), (4, 1)] {
        t.map(VADDR, RAM, page * PAGE, pages * PAGE).unwrap();
    }
    // Only 8-11 is invalid now; the call gets to it after 2-3 and 4.
    assert_eq!(t.unmap(VADDR, 0, 16 * PAGE), Err(Errno::EINVAL));
    assert_eq!(t.map(VADDR, RAM, 2 * PAGE, 2 * PAGE), Err(Errno::EINVAL), "undone");
    assert_eq!(t.map(VADDR, RAM, 4 * PAGE, PAGE), Err(Errno::EINVAL), "undone");
    assert_eq!(t.map(VADDR, RAM, 8 * PAGE, 4 * PAGE), Ok(()), "this one was not touched");
    assert_eq!(t.unmap(ALL | VADDR, 0, 0), Ok(7 * PAGE));
}

/// API-087 with VADDR
#[test]
fn v1_widens_too() {
    let mut t = lab(1);
    assert_eq!(t.unmap(VADDR, 3 * PAGE, 8 * PAGE), Ok(0));
    assert_eq!(t.unmap(VADDR, 4 * PAGE, 5 * PAGE), Ok(5 * PAGE));
    assert_eq!(t.map(VADDR, RAM, 8 * PAGE, 4 * PAGE), Ok(()));
}

/// API-045, API-101: no group comes in while an address is missing.
#[test]
fn attach_is_refused_meanwhile() {
    let mut t = lab(3);
    t.lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
    let group = t.lab.open_group(8).unwrap();
    t.unmap(VADDR, 2 * PAGE, 3 * PAGE).unwrap();
    assert_eq!(t.lab.set_container(group, t.container), Err(Errno::EBUSY));
    t.map(VADDR, RAM, 2 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(t.lab.set_container(group, t.container), Err(Errno::EBUSY));
    // Unmapping the mapping ends it as well.
    t.unmap(0, 4 * PAGE, PAGE).unwrap();
    assert_eq!(t.lab.set_container(group, t.container), Ok(0));
}

/// A mapping keeps its rights when its memory moves.
#[test]
fn rights_stay() {
    let mut t = Type1Lab::new(3);
    t.map(READ, RAM, 0, PAGE).unwrap();
    t.unmap(VADDR, 0, PAGE).unwrap();
    t.map(VADDR, RAM + PAGE, 0, PAGE).unwrap();
    assert!(!t.dma_write(0, 1));
    assert_eq!(t.lab.client.pins.borrow().last(), Some(&(RAM + PAGE, PAGE, false)));
}
