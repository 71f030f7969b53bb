// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of errors, resets, removals and changes of drivers: recovery
//! ends, nothing stays blocked, and configuration comes back as Linux would
//! have restored it.

use std::collections::BTreeMap;

use pci::aer::AerError;
use pci::aer::spec::{self, uncorrectable};
use pci::recovery::Channel;
use pci::{Address, Answers, FabricBuilder, Function, FunctionSpec, Item, Place, PortType, Slot, Timing, cap, dpc};
use proptest::prelude::*;

use crate::common::{nvme, plain};
use crate::recovery::{GOOD, Lab, NONE, PORT, VFIO};

const MS: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Op {
    Raise { at: usize, bit: u32, correctable: bool },
    Contain { port: usize },
    LinkDown { port: usize },
    Remove { port: usize },
    Hang { at: usize },
    Slow { at: usize, ms: u64 },
    Driver { at: usize, kind: u8 },
    Command { at: usize, value: u16 },
    BusReset { port: usize, assert: bool },
    Step { count: usize },
    Pass { ms: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..16usize;
    prop_oneof![
        8 => (at.clone(), 0..32u32, any::<bool>()).prop_map(|(at, n, correctable)| Op::Raise { at, bit: 1 << n, correctable }),
        1 => at.clone().prop_map(|port| Op::Contain { port }),
        1 => at.clone().prop_map(|port| Op::LinkDown { port }),
        1 => at.clone().prop_map(|port| Op::Remove { port }),
        1 => at.clone().prop_map(|at| Op::Hang { at }),
        1 => (at.clone(), 0..3000u64).prop_map(|(at, ms)| Op::Slow { at, ms }),
        2 => (at.clone(), 0..4u8).prop_map(|(at, kind)| Op::Driver { at, kind }),
        1 => (at.clone(), any::<u16>()).prop_map(|(at, value)| Op::Command { at, value }),
        2 => (at, any::<bool>()).prop_map(|(port, assert)| Op::BusReset { port, assert }),
        8 => (1..20usize).prop_map(|count| Op::Step { count }),
        3 => (0..2000u64).prop_map(|ms| Op::Pass { ms }),
    ]
}

/// A port that contains errors with two functions, a hot-plug slot, a switch
/// with two drives.
fn lab() -> Lab {
    let mut builder = FabricBuilder::new();
    let containing = FunctionSpec { dpc: true, ..FunctionSpec::port(PortType::RootPort) };
    builder.add(Item::new(Place::root(), containing).named("dpc"));
    builder.add(Item::new(Place::below("dpc").at(0, 0), plain()));
    builder.add(Item::new(Place::below("dpc").at(0, 1), plain()));
    let slot = Some(Slot { number: 1, power: 25, hotplug: true });
    builder
        .add(Item::new(Place::root(), FunctionSpec { slot, ..FunctionSpec::port(PortType::RootPort) }).named("slot"));
    builder.add(Item::new(Place::below("slot"), nvme()));
    builder.add(Item::port(Place::root(), PortType::RootPort).named("root"));
    builder.switch("switch", Place::below("root"), 2, &FunctionSpec::port(PortType::DownstreamPort));
    builder.add(Item::new(Place::below("switch.0"), nvme()));
    builder.add(Item::new(Place::below("switch.1"), nvme()));
    let mut lab = Lab::new(&builder, &[]);
    for address in lab.all() {
        if !lab.fabric.is_bridge(address) {
            lab.kernel.drivers.insert(address, VFIO);
        }
    }
    lab
}

impl Lab {
    fn all(&self) -> Vec<Address> {
        self.fabric.functions().map(|(address, _)| address).collect()
    }

    fn ports(&self) -> Vec<Address> {
        self.all()
            .into_iter()
            .filter(|a| self.fabric.is_bridge(*a) && self.fabric.port_type(*a) != Some(PortType::UpstreamPort))
            .collect()
    }

    fn act(&mut self, op: &Op) {
        let (all, ports) = (self.all(), self.ports());
        let function = |n: usize| all[n % all.len()];
        let port = |n: usize| ports[n % ports.len()];
        match *op {
            Op::Raise { at, bit, correctable } => {
                let error = if correctable {
                    AerError { correctable: bit & spec::CORRECTABLE, ..AerError::default() }
                } else {
                    AerError { uncorrectable: bit & spec::UNCORRECTABLE, ..AerError::default() }
                };
                self.fabric.raise(function(at), &error).unwrap();
            }
            Op::Contain { port: n } => {
                let port = port(n);
                if let Some(at) = self.fabric.function(port).unwrap().extended_capability(cap::EXT_DPC) {
                    self.fabric.write(port, at + dpc::CONTROL, 2, 0x49);
                }
            }
            Op::LinkDown { port: n } => self.fabric.surprise_down(port(n), true),
            Op::Remove { port: n } => self.fabric.surprise_removal(port(n)),
            // Nothing resets what is on a root bus.
            Op::Hang { at } if self.fabric.parent(function(at)).is_none() => {}
            Op::Hang { at } => self.fabric.hang(function(at)),
            // Linux waits for the first function below the port that was reset,
            // and takes the others for ready when that is.
            Op::Slow { at, ms } => {
                let address = function(at);
                let first = self
                    .fabric
                    .parent(address)
                    .is_some_and(|port| self.fabric.parent(port).is_none() && self.fabric.children(port)[0] == address);
                let (ready, link) = if first { (ms * MS, 0) } else { (0, ms / 4 * MS) };
                if first || self.fabric.parent(address).is_none() {
                    self.fabric.set_timing(address, Timing { ready, link });
                }
            }
            Op::Driver { at, kind } => {
                let address = function(at);
                if !self.fabric.is_bridge(address) {
                    let driver = [VFIO, GOOD, NONE, NONE][usize::from(kind)];
                    self.kernel.drivers.insert(address, driver);
                    if kind == 3 {
                        self.kernel.drivers.remove(&address);
                    }
                }
            }
            Op::Command { at, value } => {
                self.fabric.write(function(at), cap::COMMAND, 2, u32::from(value));
            }
            Op::BusReset { port: n, assert } => {
                self.fabric.write(port(n), cap::BRIDGE_CONTROL, 2, if assert { 0x42 } else { 0x02 });
            }
            Op::Step { count } => {
                for _ in 0..count {
                    self.service.step(&mut self.fabric, &mut self.kernel, self.now);
                }
            }
            Op::Pass { ms } => self.now += ms * MS,
        }
    }

    /// Every bus is reset from the top; what is there answers after its time.
    fn heal(&mut self) {
        let mut roots = self.ports();
        roots.retain(|port| self.fabric.parent(*port).is_none());
        for root in roots {
            self.fabric.write(root, cap::BRIDGE_CONTROL, 2, 0x42);
            self.fabric.write(root, cap::BRIDGE_CONTROL, 2, 0x02);
        }
        self.now += 60_000 * MS;
        self.fabric.advance(self.now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn after_any_sequence(ops in prop::collection::vec(op(), 0..60)) {
        let mut lab = lab();
        let boot: BTreeMap<Address, Function> = lab.fabric.functions().map(|(a, f)| (a, f.clone())).collect();
        for op in &ops {
            lab.act(op);
        }
        // Ends, with every function that was held released again.
        lab.run();
        for port in lab.ports() {
            prop_assert!(!lab.fabric.is_contained(port), "containment of {port} was not ended");
        }
        lab.heal();
        lab.run();
        for address in lab.all() {
            let function = lab.fabric.function(address).unwrap();
            let gone = lab.fabric.is_removed(address);
            prop_assert_eq!(function.answers(), if gone { Answers::No } else { Answers::Yes }, "{}", address);
            let lost = gone || lab.service.channel(address) != Channel::PermFailure;
            prop_assert!(lost, "{address} was given up and is there");
        }

        // One more error of each root port, with drivers that restore: the
        // configuration is what they saved.
        for address in lab.all() {
            let driver = if lab.fabric.is_bridge(address) { PORT } else { GOOD };
            lab.kernel.drivers.insert(address, driver);
            if lab.fabric.parent(address).is_none() {
                let saved = lab.kernel.saved[&address].clone();
                lab.fabric.function_mut(address).unwrap().restore(&saved);
            }
        }
        for root in lab.ports().into_iter().filter(|port| lab.fabric.parent(*port).is_none()).collect::<Vec<_>>() {
            let error = AerError { uncorrectable: uncorrectable::MALFORMED, ..AerError::default() };
            lab.fabric.raise(root, &error).unwrap();
        }
        lab.run();
        for address in lab.all() {
            if lab.fabric.path(address).iter().any(|a| lab.fabric.is_removed(*a)) {
                continue;
            }
            let siblings_gone = lab.fabric.path(address).iter().any(|a| {
                lab.fabric.children(*a).iter().any(|child| lab.fabric.is_removed(*child))
            }) || {
                let root = lab.fabric.path(address)[0];
                lab.fabric.below(root).iter().any(|a| lab.fabric.is_removed(*a))
            };
            // With somebody gone who votes to disconnect, recovery fails.
            if !siblings_gone {
                let (function, before) = (lab.fabric.function(address).unwrap(), &boot[&address]);
                for at in 0..function.size() {
                    let (mask, _) = function.write_masks(at);
                    let (now, then) = (function.peek(at, 1) as u8 & mask, before.peek(at, 1) as u8 & mask);
                    prop_assert_eq!(now, then, "{} at {:#x}", address, at);
                }
                prop_assert_eq!(lab.service.channel(address), Channel::Normal);
            }
        }
    }
}
