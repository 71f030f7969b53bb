// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![cfg(not(miri))]
//! The crate under loom, which tries every order that the memory model allows,
//! also those in which a thread still sees an old value. Small cases only;
//! `model` has the larger ones.
// The crate's files, seen from here, offer more than is used.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]

#[path = "../../src/arena.rs"]
mod arena;
#[path = "../../src/chunk.rs"]
mod chunk;
#[path = "../../src/dirty.rs"]
mod dirty;
#[path = "../../src/domain.rs"]
mod domain;
#[path = "../../src/gather.rs"]
mod gather;
#[path = "../../src/mapping.rs"]
mod mapping;
#[path = "../../src/marks.rs"]
mod marks;
#[path = "../../src/memories.rs"]
mod memories;
#[path = "../../src/memory.rs"]
mod memory;
#[path = "../../src/nested.rs"]
mod nested;
#[path = "../../src/port.rs"]
mod port;
#[path = "../../src/ports.rs"]
mod ports;
#[path = "../../src/reach.rs"]
mod reach;
#[path = "../../src/report.rs"]
mod report;
#[path = "../../src/requester.rs"]
mod requester;
#[path = "../../src/session.rs"]
mod session;
#[path = "../../src/space.rs"]
mod space;
mod sync;
#[path = "../../src/table.rs"]
mod table;

use std::ops::ControlFlow;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use dirty::DirtyLog;
pub use domain::Domain;
pub use gather::{Gather, Places};
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;
pub use mapping::{MapError, Mapping, Prot};
pub use memory::{Memory, MemoryFault, PageId, Segment};
pub use nested::{Nested, Stage1, Stage1Page, Tables};
pub use reach::Direct;
pub use requester::{Access, DmaFault, FaultReason, Requester};
pub use session::{Session, Translation};
pub use space::AddressSpace;
use sync::BROKEN;
use vm_memory::VolatileSlice;

const PAGE: u64 = 4096;

/// Memory that knows whether it may still be reached.
#[derive(Debug, Default)]
struct Marked(AtomicBool);

impl Marked {
    fn touch(&self) {
        assert!(!self.0.load(Ordering::SeqCst), "memory was reached after it was taken away");
    }
}

impl Memory for Marked {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.touch();
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.touch();
        Ok(())
    }
}

fn mapping(page: u64, memory: &Arc<Marked>) -> Mapping {
    let (first, last) = (page * PAGE, page * PAGE + PAGE - 1);
    Mapping { first, last, prot: Prot::READ, memory: memory.clone(), offset: 0, tag: 0 }
}

fn lab(memory: &Arc<Marked>) -> (Arc<AddressSpace>, Arc<Requester>) {
    let (space, requester) = (AddressSpace::new(), Requester::new());
    space.map(mapping(7, memory)).expect("free");
    requester.set_bus_master(true);
    requester.attach(Some(space.clone().into()));
    (space, requester)
}

/// Reads the page in a session on another thread. (What is shared outlives the
/// thread: loom does not know what an `Arc` orders.)
fn device(requester: &Arc<Requester>) -> thread::JoinHandle<Option<FaultReason>> {
    let requester = requester.clone();
    thread::spawn(move || requester.session().read(7 * PAGE, &mut [0]).err().map(|fault| fault.reason))
}

/// A page is unmapped. The device makes a new place for its session if it
/// finds the first one taken by the fence.
fn unmapped() {
    let memory = Arc::new(Marked::default());
    let (space, requester) = lab(&memory);
    let device = device(&requester);
    space.unmap(7 * PAGE, 8 * PAGE - 1, &mut |_| ());
    memory.0.store(true, Ordering::SeqCst);
    assert!(matches!(device.join().expect("ran"), None | Some(FaultReason::NotMapped)));
}

/// Bus mastering goes off.
fn silenced() {
    let memory = Arc::new(Marked::default());
    let (_space, requester) = lab(&memory);
    let device = device(&requester);
    requester.set_bus_master(false);
    memory.0.store(true, Ordering::SeqCst);
    assert!(matches!(device.join().expect("ran"), None | Some(FaultReason::BusMasterOff)));
}

/// The page stays mapped while another comes and goes beside it.
fn steady() {
    let (fixed, passing) = (Arc::new(Marked::default()), Arc::new(Marked::default()));
    let (space, requester) = lab(&fixed);
    let device = device(&requester);
    space.map(mapping(8, &passing)).expect("free");
    space.unmap(8 * PAGE, 9 * PAGE - 1, &mut |_| ());
    passing.0.store(true, Ordering::SeqCst);
    assert_eq!(device.join().expect("ran"), None);
}

/// A page that holds one number.
#[derive(Debug)]
struct Number(AtomicU64);

impl Memory for Number {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        self.0.store(1, Relaxed);
        Ok(())
    }
}

/// A log goes on while a device writes. What a copy made then does not have is
/// dirty later.
fn written() {
    let (space, requester, memory) = (AddressSpace::new(), Requester::new(), Arc::new(Number(AtomicU64::new(0))));
    let (prot, log) = (Prot::WRITE, DirtyLog::new(12));
    space.map(Mapping { first: 0, last: PAGE - 1, prot, memory: memory.clone(), offset: 0, tag: 0 }).expect("free");
    requester.attach(Some(Domain { space, log: Some(log.clone()), stage1: None }));
    requester.set_bus_master(true);
    let device = {
        let requester = requester.clone();
        thread::spawn(move || requester.session().write(0, &[1]))
    };
    log.set_enabled(true);
    let copy = memory.0.load(Relaxed);
    device.join().expect("ran").expect("mapped");
    let mut dirty = false;
    let _ = log.read(0, PAGE - 1, true, &mut |_, words| {
        dirty |= words[0] & 1 == 1;
        ControlFlow::Continue(())
    });
    assert!(copy == 1 || dirty);
}

fn check(scenario: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(scenario);
}

#[test]
fn fences_reach_new_places() {
    for scenario in [unmapped, silenced, written] {
        BROKEN.store(false, Ordering::SeqCst);
        check(scenario);
        BROKEN.store(true, Ordering::SeqCst);
        let result = catch_unwind(|| check(scenario));
        BROKEN.store(false, Ordering::SeqCst);
        assert!(result.is_err(), "a fence that does not wait for new places was not noticed");
    }
    check(steady);
}
