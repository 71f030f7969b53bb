// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Somebody copies what is dirty while devices write, as a migration does: in
//! the end the copy is the memory, whatever comes between.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::ops::ControlFlow;
use std::panic::catch_unwind;
use std::sync::Arc;

use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use vm_memory::VolatileSlice;

use crate::sync::set_broken;
use crate::{
    AddressSpace, DirtyLog, Domain, Mapping, Memory, MemoryFault, PAGE, Prot, RUNS, Requester, SEED, check, run,
};

/// A page that holds one number.
#[derive(Debug, Default)]
struct Number(AtomicU64);

impl Memory for Number {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write(&self, _: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        thread::yield_now();
        let mut byte = [0u8];
        from.copy_to(&mut byte);
        self.0.store(byte[0].into(), Ordering::SeqCst);
        Ok(())
    }
}

struct Lab {
    memory: Arc<Number>,
    domain: Domain,
    log: Arc<DirtyLog>,
    requester: Arc<Requester>,
}

fn lab() -> Lab {
    let (space, memory) = (AddressSpace::new(), Arc::new(Number::default()));
    let mapping = Mapping { first: 0, last: PAGE - 1, prot: Prot::WRITE, memory: memory.clone(), offset: 0, tag: 0 };
    space.map(mapping).unwrap();
    let (log, requester) = (DirtyLog::new(12), Requester::new());
    let domain = Domain { space, log: Some(log.clone()), stage1: None };
    requester.set_bus_master(true);
    requester.attach(Some(domain.clone()));
    Lab { memory, domain, log, requester }
}

impl Lab {
    /// A device that writes numbers, each in a session of its own.
    fn device(&self, numbers: &'static [u8]) -> thread::JoinHandle<()> {
        let requester = self.requester.clone();
        thread::spawn(move || {
            for number in numbers {
                let _ = requester.session().write(8, &[*number]);
            }
        })
    }

    fn number(&self) -> u64 {
        self.memory.0.load(Ordering::SeqCst)
    }

    /// Copies the page if it is dirty.
    fn update(&self, copy: &mut u64) {
        let mut dirty = false;
        let _ = self.log.read(0, PAGE - 1, true, &mut |_, words| {
            dirty |= words[0] & 1 == 1;
            ControlFlow::Continue(())
        });
        if dirty {
            *copy = self.number();
        }
    }
}

/// Two devices write, somebody copies.
fn copied() {
    let lab = lab();
    lab.log.set_enabled(true);
    let devices = [lab.device(&[1, 2]), lab.device(&[3])];
    let mut copy = 0;
    lab.update(&mut copy);
    lab.update(&mut copy);
    devices.into_iter().for_each(|device| device.join().unwrap());
    lab.update(&mut copy);
    assert_eq!(copy, lab.number());
}

/// The device goes, and comes back to another domain with the log.
fn detached() {
    let lab = lab();
    lab.log.set_enabled(true);
    let device = lab.device(&[1, 2]);
    let mut copy = 0;
    lab.requester.attach(None);
    lab.update(&mut copy);
    assert_eq!(copy, lab.number(), "what was written before the detach is known after it");
    lab.requester.attach(Some(lab.domain.clone()));
    device.join().unwrap();
    lab.update(&mut copy);
    assert_eq!(copy, lab.number());
}

/// The log goes on while the device writes; all is copied then.
fn begun() {
    let lab = lab();
    let device = lab.device(&[1, 2]);
    lab.log.set_enabled(true);
    let mut copy = lab.number();
    device.join().unwrap();
    lab.update(&mut copy);
    assert_eq!(copy, lab.number());
}

/// The domain is attached while its log goes on and somebody copies.
fn attached() {
    let lab = lab();
    lab.requester.attach(None);
    let device = lab.device(&[1, 2]);
    let (requester, domain) = (lab.requester.clone(), lab.domain.clone());
    let owner = thread::spawn(move || requester.attach(Some(domain)));
    lab.log.set_enabled(true);
    let mut copy = lab.number();
    lab.update(&mut copy);
    owner.join().unwrap();
    device.join().unwrap();
    lab.update(&mut copy);
    assert_eq!(copy, lab.number());
}

#[test]
fn no_write_is_lost() {
    for scenario in [copied, detached, begun, attached] {
        check(scenario);
    }
}

#[test]
fn a_log_that_does_not_wait_is_noticed() {
    for scenario in [detached, begun] {
        set_broken(true);
        let result = catch_unwind(|| run(RandomScheduler::new_from_seed(SEED, 20 * RUNS), scenario));
        set_broken(false);
        assert!(result.is_err());
    }
}
