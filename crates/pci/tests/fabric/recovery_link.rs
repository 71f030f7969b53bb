// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The link reset of a recovery: the device locks that it is under, and a link
//! that fails while it is reset.

use pci::aer::spec::{register, uncorrectable};
use pci::recovery::{Channel, Next, Vote};
use pci::{Address, Answers, FabricBuilder, FunctionSpec, Item, Place, PortType, Timing, cap, dpc};

use crate::common::{at, nvme, plain};
use crate::recovery::{A, B, FATAL, FROZEN, GONE, GOOD, Lab, NONFATAL, ROOT, VFIO, failed, recovered, switch};

const MS: u64 = 1_000_000;

impl Lab {
    /// Goes on until the link is being reset.
    fn until_reset(&mut self) {
        for _ in 0..100 {
            let control = self.fabric.read(at(ROOT), cap::BRIDGE_CONTROL, 2);
            if control & u32::from(cap::BRIDGE_CONTROL_RESET) != 0 {
                return;
            }
            self.service.step(&mut self.fabric, &mut self.kernel, self.now);
        }
        panic!("no reset");
    }

    /// Whose locks recovery has.
    fn locked(&self) -> Vec<Address> {
        let mut locked = Vec::new();
        for (address, on) in &self.kernel.locks {
            match on {
                true => locked.push(*address),
                false => assert_eq!(locked.pop(), Some(*address), "the last taken goes first"),
            }
        }
        locked
    }
}

/// ERR-018, ERR-049: the bridge's lock, then those of all below from the top,
/// for the time of the reset and no longer.
#[test]
fn a_bus_reset_is_under_all_locks() {
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    let root = lab.fabric.named("root").unwrap();
    lab.raise("root", FATAL);
    lab.run();
    let taken: Vec<Address> = lab.kernel.locks.iter().filter(|(_, on)| *on).map(|(address, _)| *address).collect();
    assert_eq!(taken, [vec![root], lab.fabric.below(root)].concat());
    assert_eq!(lab.locked(), []);

    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, FATAL);
    lab.until_reset();
    assert_eq!(lab.locked(), [at(ROOT), at(A), at(B)]);
    lab.run();
    assert_eq!(lab.locked(), []);
    // Nothing is reset: no locks.
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, NONFATAL);
    assert_eq!((lab.run(), lab.kernel.locks.len()), (recovered(Vote::Recovered, false), 0));
}

/// ERR-048, ERR-049: the end of containment and the reset of a root-complex
/// function take none.
#[test]
fn other_resets_take_no_locks() {
    let mut builder = FabricBuilder::new();
    let port = FunctionSpec { dpc: true, ..FunctionSpec::port(PortType::RootPort) };
    builder.add(Item::new(Place::root(), port).named("port").leads_to(1));
    builder.plug_auto(at(A), plain());
    let mut lab = Lab::new(&builder, &[(A, VFIO)]);
    lab.raise(A, FATAL);
    assert_eq!((lab.run()[0].reset, lab.kernel.locks.len()), (true, 0));

    let mut builder = FabricBuilder::new();
    let collector = FunctionSpec { aer: true, class: 0x08_07_00, port_type: PortType::EventCollector, ..plain() };
    builder.add(Item::new(Place::root().at(8, 0), collector));
    builder.add(Item::new(Place::root().at(9, 0), FunctionSpec { flr: true, ..nvme() }).named("one"));
    let mut lab = Lab::new(&builder, &[("one", VFIO)]);
    lab.raise("one", FATAL);
    assert_eq!((lab.run()[0].reset, lab.kernel.locks.len()), (true, 0));
}

/// ERR-049: somebody takes a lock between the last callback and the reset,
/// which then waits, with the locks it has already.
#[test]
fn a_bus_reset_waits_for_each_lock() {
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, FATAL);
    while lab.kernel.locks.is_empty() {
        lab.service.step(&mut lab.fabric, &mut lab.kernel, 0);
    }
    lab.kernel.busy.insert(at(B));
    let next = lab.service.run(&mut lab.fabric, &mut lab.kernel, 0, 1000);
    assert_eq!(next, Next::Idle);
    assert_eq!(lab.locked(), [at(ROOT), at(A)]);
    assert_eq!(lab.fabric.function(at(A)).unwrap().answers(), Answers::Yes, "not reset yet");
    lab.kernel.busy.clear();
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.locked(), []);
}

fn port_of_speed(speed: u8) -> Lab {
    let mut builder = FabricBuilder::new();
    let link = pci::Link { speed, width: 1 };
    let port = FunctionSpec { link, ..FunctionSpec::port(PortType::RootPort) };
    builder.add(Item::new(Place::root(), port).leads_to(1));
    builder.plug_auto(at(A), plain());
    Lab::new(&builder, &[(A, VFIO)])
}

/// Surprise Down is the loss of a link that was up: while it is reset there is
/// nothing to report, and the reset trains it (ERR-049).
#[test]
fn a_link_that_fails_while_reset_is_asserted() {
    let mut lab = Lab::pair(GOOD, GOOD);
    lab.raise(A, FATAL);
    lab.until_reset();
    lab.fabric.surprise_down(at(ROOT), true);
    assert_eq!(lab.aer(at(ROOT), register::UNCORRECTABLE_STATUS) & uncorrectable::SURPRISE_DOWN, 0);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert!(lab.fabric.link_is_up(at(ROOT)));
}

/// The same once it is up again, while recovery waits for it: the port reports
/// it, but the root port does not interrupt, and its status is cleared
/// afterwards. So nobody hears of it. At up to 5 GT/s Linux asks the function,
/// and takes no answer for one; above, it waits for the link, and gives up
/// (ERR-049). The next reset trains the link.
#[test]
fn a_link_that_fails_while_it_is_waited_for() {
    for (speed, worked) in [(2, true), (4, false)] {
        let mut lab = port_of_speed(speed);
        lab.raise(A, FATAL);
        lab.until_reset();
        lab.now += 2 * MS;
        lab.service.run(&mut lab.fabric, &mut lab.kernel, lab.now, 1000);
        assert!(lab.fabric.link_is_up(at(ROOT)));
        lab.fabric.surprise_down(at(ROOT), true);
        let expected = if worked { recovered } else { failed };
        assert_eq!(lab.run(), expected(Vote::Recovered, worked));
        assert_eq!(lab.calls(A), if worked { vec![FROZEN] } else { vec![FROZEN, GONE] });
        assert_eq!(lab.aer(at(ROOT), register::ROOT_STATUS), 0, "as if nothing had been");
        assert_eq!(lab.aer(at(ROOT), register::UNCORRECTABLE_STATUS), uncorrectable::SURPRISE_DOWN);
        assert_eq!(lab.fabric.function(at(A)).unwrap().answers(), Answers::No);
        lab.fabric.secondary_bus_reset(at(ROOT));
        assert_eq!(lab.fabric.function(at(A)).unwrap().answers(), Answers::Yes);
    }
}

/// It fails while it trains: it was not up, so that is no Surprise Down.
#[test]
fn a_link_that_fails_while_it_trains() {
    let mut lab = port_of_speed(4);
    lab.fabric.set_timing(at(ROOT), Timing { link: 50 * MS, ready: 0 });
    lab.raise(A, FATAL);
    lab.until_reset();
    lab.now += 2 * MS;
    lab.service.run(&mut lab.fabric, &mut lab.kernel, lab.now, 1000);
    assert!(!lab.fabric.link_is_up(at(ROOT)));
    lab.fabric.surprise_down(at(ROOT), true);
    assert_eq!(lab.aer(at(ROOT), register::UNCORRECTABLE_STATUS), 0);
    assert_eq!(lab.run(), failed(Vote::Recovered, false));
    assert_eq!(lab.service.channel(at(A)), Channel::Frozen, "ERR-030");
}

/// ERR-048: containment is another interrupt, which recovery leaves on: a link
/// that it takes down meanwhile is recovered afterwards, whatever became of the
/// first recovery.
#[test]
fn containment_while_the_link_is_waited_for() {
    for (speed, worked) in [(2, true), (4, false)] {
        let mut builder = FabricBuilder::new();
        let link = pci::Link { speed, width: 1 };
        let port = FunctionSpec { link, dpc: true, ..FunctionSpec::port(PortType::RootPort) };
        builder.add(Item::new(Place::root(), port).leads_to(1));
        builder.plug_auto(at(A), plain());
        let mut lab = Lab::new(&builder, &[(A, VFIO)]);
        let control = lab.fabric.function(at(ROOT)).unwrap().extended_capability(cap::EXT_DPC).unwrap() + dpc::CONTROL;
        lab.raise(A, FATAL);
        lab.service.run(&mut lab.fabric, &mut lab.kernel, lab.now, 1000);
        assert!(lab.fabric.link_is_up(at(ROOT)), "containment has ended");
        lab.fabric.write(at(ROOT), control, 2, dpc::CONTROL_FATAL | dpc::CONTROL_INTERRUPT | dpc::CONTROL_TRIGGER);
        let first = if worked { recovered } else { failed }(Vote::Recovered, worked);
        assert_eq!(lab.run(), [first, recovered(Vote::Recovered, true)].concat());
        assert!(lab.fabric.link_is_up(at(ROOT)));
        assert_eq!(lab.calls(A), if worked { vec![FROZEN, FROZEN] } else { vec![FROZEN, GONE, FROZEN] });
    }
}
