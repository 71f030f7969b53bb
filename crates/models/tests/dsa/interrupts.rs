// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts: of descriptors, commands and errors.

use models::dsa::Config;
use models::dsa::spec::{self, Descriptor, cause, command, flag, genctrl, opcode, permission};
use models::testing::Access;

use crate::fixture::{BOTH, DATA, DEDICATED, Fixture, OTHER, fresh, moving, ready};

fn taken(f: &Fixture) -> Vec<u64> {
    f.bench.events.iter().map(|event| event.take()).collect()
}

fn signals(vectors: &[usize]) -> Vec<u64> {
    (0..9).map(|vector| vectors.iter().filter(|v| **v == vector).count() as u64).collect()
}

/// Linux's selftest has its interrupt from vector 1 this way.
#[test]
fn when_a_descriptor_is_done() {
    for access in BOTH {
        let mut f = ready(access);
        let descriptor = moving(DATA, OTHER, 8);
        f.execute(descriptor);
        assert_eq!(taken(&f), signals(&[]));
        for vector in [1, 8] {
            let operation = descriptor.operation | flag::INTERRUPT;
            assert_eq!(f.execute(Descriptor { operation, interrupt: vector, ..descriptor }).status, 1);
            assert_eq!(taken(&f), signals(&[vector.into()]));
        }
        let operation = descriptor.operation | flag::INTERRUPT;
        f.execute(Descriptor { operation, interrupt: 2, source: 1 << 40, ..descriptor });
        assert_eq!(taken(&f), signals(&[2]), "one that has failed, too");
    }
}

#[test]
fn handles_that_are_none() {
    let mut f = ready(Access::Mapped);
    for vector in [0, 9, u16::MAX] {
        let nothing = Descriptor::new(opcode::NO_OPERATION, flag::INTERRUPT);
        assert_eq!(f.execute(Descriptor { interrupt: vector, ..nothing }).status, 0x19, "{vector}");
    }
    assert_eq!(taken(&f), signals(&[]));
}

/// A vector that is for a PASID is for no other.
#[test]
fn permissions() {
    let mut f = fresh(Access::Mapped, Config::default());
    f.configure(0, 16, DEDICATED);
    f.store(spec::MSIX_PERM + 8, permission::PASID_ENABLE | 5 << 12);
    f.store(spec::MSIX_PERM + 16, permission::PASID_ENABLE | 5 << 12 | permission::IGNORE);
    f.enable(0);
    for (vector, status) in [(1, 0x19), (2, 1), (3, 1)] {
        let nothing = Descriptor::new(opcode::NO_OPERATION, flag::INTERRUPT);
        assert_eq!(f.execute(Descriptor { interrupt: vector, ..nothing }).status, status, "{vector}");
    }
}

#[test]
fn when_a_command_is_done() {
    for access in BOTH {
        let mut f = ready(access);
        f.command(command::DRAIN_ALL, 0);
        assert_eq!(taken(&f), signals(&[]));
        f.store(spec::CMD, command::DRAIN_ALL << 20 | command::INTERRUPT);
        f.bench.turn();
        assert_eq!((taken(&f), f.load(spec::INTCAUSE)), (signals(&[0]), cause::COMMAND));
        if access == Access::Trapped {
            f.store(spec::INTCAUSE, cause::COMMAND);
            assert_eq!(f.load(spec::INTCAUSE), 0);
        }
    }
}

#[test]
fn at_an_error() {
    for access in BOTH {
        let mut f = ready(access);
        f.submit(0, 0, &Descriptor::new(0xff, 0));
        f.bench.run();
        assert_eq!((taken(&f), f.load(spec::INTCAUSE)), (signals(&[]), 0));
        f.store(spec::GENCTRL, genctrl::ERROR_INTERRUPT);
        f.command(command::DRAIN_ALL, 0);
        f.submit(0, 0, &Descriptor::new(0xff, 0));
        f.bench.run();
        assert_eq!((taken(&f), f.load(spec::INTCAUSE)), (signals(&[0]), cause::ERROR));
    }
}
