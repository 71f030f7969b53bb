// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's recovery, with drivers of every kind: who is called, what they
//! say, what is reset, who is told.

use std::collections::{BTreeMap, BTreeSet};

use pci::aer::AerError;
use pci::aer::spec::{correctable, register, uncorrectable};
use pci::recovery::{Call, Channel, ErrorService, Handlers, Kernel, Next, Outcome, Report, Uevent, Vote};
use pci::{
    Address, Fabric, FabricBuilder, FunctionSpec, Id, Item, Place, PortType, Quirks, SavedConfig, Slot, Timing, cap,
};

use crate::common::{at, nvme, plain};

const MS: u64 = 1_000_000;

/// What a driver says to each callback; `None`: it has no such callback.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Driver {
    normal: Option<Vote>,
    frozen: Option<Vote>,
    mmio: Option<Vote>,
    slot_reset: Option<Vote>,
    resume: bool,
    correctable: bool,
    /// It restores the configuration in `slot_reset`.
    restores: bool,
}

/// vfio-pci (ERR-001, ERR-002).
pub(crate) const VFIO: Driver = Driver { normal: Some(Vote::CanRecover), frozen: Some(Vote::CanRecover), ..NONE };
/// A driver as the documentation wants it.
pub(crate) const GOOD: Driver = Driver {
    normal: Some(Vote::CanRecover),
    frozen: Some(Vote::NeedReset),
    mmio: Some(Vote::Recovered),
    slot_reset: Some(Vote::Recovered),
    resume: true,
    correctable: true,
    restores: true,
};
/// `pcieport`.
pub(crate) const PORT: Driver = Driver { resume: false, correctable: false, ..GOOD };
/// One without handlers.
pub(crate) const NONE: Driver = Driver {
    normal: None,
    frozen: None,
    mmio: None,
    slot_reset: None,
    resume: false,
    correctable: false,
    restores: false,
};

#[derive(Default)]
pub(crate) struct Lab {
    pub(crate) fabric: Fabric,
    pub(crate) service: ErrorService,
    pub(crate) kernel: TestKernel,
    pub(crate) now: u64,
}

#[derive(Default)]
pub(crate) struct TestKernel {
    pub(crate) drivers: BTreeMap<Address, Driver>,
    pub(crate) saved: BTreeMap<Address, SavedConfig>,
    calls: Vec<(Address, Call)>,
    uevents: Vec<(Address, Uevent)>,
    reports: Vec<Report>,
    held: BTreeMap<Address, i32>,
    models: Vec<Address>,
    removed: Vec<Address>,
    /// Device locks that recovery took and let go, in order.
    pub(crate) locks: Vec<(Address, bool)>,
    /// Functions whose device lock somebody else has.
    pub(crate) busy: BTreeSet<Address>,
}

impl Kernel for TestKernel {
    fn handlers(&self, address: Address) -> Handlers {
        let Some(driver) = self.drivers.get(&address) else { return Handlers::default() };
        Handlers {
            error_detected: driver.normal.is_some(),
            mmio_enabled: driver.mmio.is_some(),
            slot_reset: driver.slot_reset.is_some(),
            resume: driver.resume,
            cor_error_detected: driver.correctable,
        }
    }

    fn call(&mut self, fabric: &mut Fabric, address: Address, call: Call) -> Vote {
        let driver = self.drivers[&address];
        self.calls.push((address, call));
        let vote = match call {
            Call::ErrorDetected(Channel::Normal) => driver.normal,
            Call::ErrorDetected(Channel::Frozen) => driver.frozen,
            Call::ErrorDetected(Channel::PermFailure) => Some(Vote::Disconnect),
            Call::MmioEnabled => driver.mmio,
            Call::SlotReset => {
                if driver.restores {
                    fabric.function_mut(address).unwrap().restore(&self.saved[&address]);
                }
                driver.slot_reset
            }
            Call::Resume | Call::CorErrorDetected => Some(Vote::None),
        };
        vote.expect("only what it has is called")
    }

    fn follow(&mut self, fabric: &mut Fabric) {
        self.models.extend(fabric.take_resets());
    }

    fn hold(&mut self, _: &mut Fabric, address: Address, on: bool) {
        *self.held.entry(address).or_default() += if on { 1 } else { -1 };
    }

    fn is_locked(&self, address: Address) -> bool {
        self.busy.contains(&address)
    }

    fn lock(&mut self, address: Address, on: bool) {
        assert!(!self.busy.contains(&address), "{address}: somebody else has its lock");
        self.locks.push((address, on));
    }

    fn uevent(&mut self, address: Address, event: Uevent) {
        self.uevents.push((address, event));
    }

    fn report(&mut self, report: &Report) {
        self.reports.push(report.clone());
    }

    fn removed(&mut self, _: &mut Fabric, functions: &[Address]) {
        self.removed.extend(functions);
    }
}

impl Lab {
    pub(crate) fn new(builder: &FabricBuilder, drivers: &[(&str, Driver)]) -> Lab {
        let mut lab = Lab { fabric: builder.build().unwrap(), ..Lab::default() };
        let all: Vec<Address> = lab.fabric.functions().map(|(address, _)| address).collect();
        for address in all {
            if lab.fabric.is_bridge(address) {
                lab.kernel.drivers.insert(address, PORT);
            } else {
                lab.fabric.function_mut(address).unwrap().write(cap::COMMAND, 2, 6);
            }
            lab.kernel.saved.insert(address, lab.fabric.function(address).unwrap().save());
        }
        for (name, driver) in drivers {
            let address = lab.fabric.named(name).unwrap_or_else(|| at(name));
            lab.kernel.drivers.insert(address, *driver);
        }
        lab
    }

    /// A device of two functions behind a root port.
    pub(crate) fn pair(a: Driver, b: Driver) -> Lab {
        let mut builder = FabricBuilder::new();
        builder.plug_auto(at(A), plain()).plug_auto(at(B), plain());
        Lab::new(&builder, &[(A, a), (B, b)])
    }

    pub(crate) fn raise(&mut self, address: &str, uncorrectable: u32) {
        let error = AerError { uncorrectable, header: Some([1, 2, 3, 4]), ..AerError::default() };
        let address = self.fabric.named(address).unwrap_or_else(|| at(address));
        self.fabric.raise(address, &error).unwrap();
    }

    /// Runs until nothing is left to do; the time passes as needed.
    pub(crate) fn run(&mut self) -> Vec<Outcome> {
        let from = self.kernel.reports.len();
        loop {
            match self.service.run(&mut self.fabric, &mut self.kernel, self.now, 10_000) {
                Next::Idle => break,
                Next::At(time) => self.now = time,
                Next::Now => panic!("it does not end"),
            }
        }
        assert!(self.service.is_idle());
        assert!(self.kernel.held.values().all(|count| *count == 0), "ERR-017: released after");
        self.kernel.reports[from..].iter().filter_map(outcome).collect()
    }

    pub(crate) fn calls(&self, address: &str) -> Vec<Call> {
        let address = self.fabric.named(address).unwrap_or_else(|| at(address));
        self.kernel.calls.iter().filter(|call| call.0 == address).map(|call| call.1).collect()
    }

    fn uevents(&self, address: &str) -> Vec<Uevent> {
        self.kernel.uevents.iter().filter(|event| event.0 == at(address)).map(|event| event.1).collect()
    }

    pub(crate) fn command(&self, address: &str) -> u32 {
        self.fabric.read(at(address), cap::COMMAND, 2)
    }

    pub(crate) fn aer(&self, address: Address, offset: u16) -> u32 {
        let at = self.fabric.function(address).unwrap().extended_capability(cap::EXT_AER).unwrap();
        self.fabric.read(address, at + offset, 4)
    }
}

fn outcome(report: &Report) -> Option<Outcome> {
    match report {
        Report::Recovery { outcome, .. } => Some(*outcome),
        _ => None,
    }
}

pub(crate) const A: &str = "01:00.0";
pub(crate) const B: &str = "01:00.1";
pub(crate) const ROOT: &str = "00:01.0";
pub(crate) const NONFATAL: u32 = uncorrectable::ECRC;
pub(crate) const FATAL: u32 = uncorrectable::MALFORMED;
const NORMAL: Call = Call::ErrorDetected(Channel::Normal);
pub(crate) const FROZEN: Call = Call::ErrorDetected(Channel::Frozen);
pub(crate) const GONE: Call = Call::ErrorDetected(Channel::PermFailure);

pub(crate) fn recovered(vote: Vote, reset: bool) -> Vec<Outcome> {
    vec![Outcome { vote, recovered: true, reset }]
}

pub(crate) fn failed(vote: Vote, reset: bool) -> Vec<Outcome> {
    vec![Outcome { vote, recovered: false, reset }]
}

/// ERR-033, ERR-024: the channel is normal.
#[test]
fn nonfatal_all_vfio() {
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, false));
    // ERR-006: the one that did not err is told as well; eventfds 1, 1.
    assert_eq!((lab.calls(A), lab.calls(B)), (vec![NORMAL], vec![NORMAL]));
    assert_eq!((lab.command(A), lab.command(B)), (6, 6));
    assert_eq!(lab.uevents(B), [Uevent::Begin, Uevent::Success]);
    assert_eq!(lab.kernel.models, []);
    assert_eq!(lab.now, 0, "nothing to wait for");
}

/// ERR-034: the passive reset.
#[test]
fn nonfatal_sibling_needs_reset() {
    let needs = Driver { normal: Some(Vote::NeedReset), ..GOOD };
    let mut lab = Lab::pair(VFIO, needs);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.calls(A), [NORMAL], "no notice of the reset");
    assert_eq!(lab.calls(B), [NORMAL, Call::SlotReset, Call::Resume]);
    assert_eq!((lab.command(A), lab.command(B)), (0, 6), "its driver restores, vfio does not");
    assert_eq!(lab.kernel.models, [at(A), at(B)]);
}

/// ERR-035: nobody to ask in the scope.
#[test]
fn nonfatal_with_a_driver_without_handlers_or_none() {
    for unbound in [false, true] {
        let mut lab = Lab::pair(VFIO, NONE);
        if unbound {
            lab.kernel.drivers.remove(&at(B));
        }
        lab.raise(A, NONFATAL);
        assert_eq!(lab.run(), failed(Vote::NoAerDriver, false));
        assert_eq!(lab.calls(A), [NORMAL, GONE], "eventfd signalled twice");
        // ERR-032: no event for the vote, one for the failure.
        assert_eq!(lab.uevents(A), [Uevent::Begin, Uevent::Failed]);
        assert_eq!(lab.uevents(B), [Uevent::Failed]);
        // ERR-030: a later error is told again.
        assert_eq!(lab.service.channel(at(A)), Channel::Normal);
        lab.raise(A, NONFATAL);
        lab.run();
        assert_eq!(lab.calls(A), [NORMAL, GONE, NORMAL, GONE]);
    }
}

/// ERR-036, ERR-038, ERR-024: the channel is frozen.
#[test]
fn fatal_all_vfio() {
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(B, FATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!((lab.calls(A), lab.calls(B)), (vec![FROZEN], vec![FROZEN]), "no slot_reset");
    assert_eq!((lab.command(A), lab.command(B)), (0, 0), "nobody restores");
    assert_eq!(lab.fabric.read(at(A), cap::BAR0, 4) & !0xf, 0);
    assert_eq!(lab.service.channel(at(A)), Channel::Normal);
    assert!(lab.now >= 100 * MS);
}

/// ERR-037
#[test]
fn fatal_with_nobody_to_ask_or_one_who_gives_up() {
    for (sibling, vote) in
        [(NONE, Vote::NoAerDriver), (Driver { frozen: Some(Vote::Disconnect), ..GOOD }, Vote::Disconnect)]
    {
        let mut lab = Lab::pair(VFIO, sibling);
        lab.raise(A, FATAL);
        assert_eq!(lab.run(), failed(vote, true));
        assert_eq!(lab.calls(A), [FROZEN, GONE]);
        assert_eq!(lab.command(A), 0);
        // ERR-030: after a fatal error it stays frozen.
        assert_eq!(lab.service.channel(at(A)), Channel::Frozen);
        lab.raise(A, FATAL);
        lab.run();
        assert_eq!(lab.calls(A), [FROZEN, GONE], "its reports are off since the reset");
        let function = lab.fabric.function_mut(at(A)).unwrap();
        function.restore(&lab.kernel.saved[&at(A)]);
        lab.raise(A, FATAL);
        lab.run();
        assert_eq!(lab.calls(A), [FROZEN, GONE, FROZEN, GONE]);
    }
}

/// ERR-041: votes cannot avoid a reset after a fatal error, and can bring one
/// about after another.
#[test]
fn well_behaved_drivers() {
    let mut lab = Lab::pair(GOOD, GOOD);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, false));
    assert_eq!(lab.calls(A), [NORMAL, Call::MmioEnabled, Call::Resume]);
    lab.raise(A, FATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.calls(B)[3..], [FROZEN, Call::SlotReset, Call::Resume]);
    assert_eq!((lab.command(A), lab.command(B)), (6, 6));
    let stubborn = Driver { frozen: Some(Vote::Recovered), ..GOOD };
    let mut lab = Lab::pair(stubborn, stubborn);
    lab.raise(A, FATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.calls(A), [FROZEN, Call::Resume], "Recovered is not CanRecover: no mmio_enabled");
}

/// ERR-025, ERR-026, ERR-027: a driver that changes its mind.
#[test]
fn mmio_enabled_asks_for_a_reset() {
    let mind = Driver { mmio: Some(Vote::NeedReset), ..GOOD };
    let mut lab = Lab::pair(VFIO, mind);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.calls(B), [NORMAL, Call::MmioEnabled, Call::SlotReset, Call::Resume]);
    let hopeless = Driver { slot_reset: Some(Vote::Disconnect), ..mind };
    let mut lab = Lab::pair(VFIO, hopeless);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run(), failed(Vote::Disconnect, true));
    assert_eq!(lab.calls(B), [NORMAL, Call::MmioEnabled, Call::SlotReset, GONE]);
}

/// ERR-028: every vote of one driver against what vfio says.
#[test]
fn every_vote() {
    for vote in Vote::ALL {
        let mut lab = Lab::pair(VFIO, Driver { normal: Some(vote), ..GOOD });
        lab.raise(A, NONFATAL);
        let expected = match vote {
            Vote::None | Vote::CanRecover => recovered(Vote::Recovered, false),
            Vote::NeedReset => recovered(Vote::Recovered, true),
            Vote::Recovered => recovered(Vote::Recovered, false),
            Vote::Disconnect | Vote::NoAerDriver => failed(vote, false),
        };
        assert_eq!(lab.run(), expected, "{vote}");
        let mmio = matches!(vote, Vote::None | Vote::CanRecover);
        assert_eq!(lab.calls(B).contains(&Call::MmioEnabled), mmio, "{vote}: ERR-025");
        let event = match vote {
            Vote::NoAerDriver => None,
            Vote::Recovered => Some(Uevent::Success),
            Vote::Disconnect => Some(Uevent::Failed),
            _ => Some(Uevent::Begin),
        };
        assert_eq!(lab.uevents(B).len(), if event.is_some() { 2 } else { 1 });
        assert!(event.is_none_or(|event| lab.uevents(B)[0] == event), "ERR-032");
    }
}

/// ERR-019, ERR-020 and the merge table of section 2.3.
#[test]
fn votes_are_merged() {
    use Vote::{CanRecover as C, Disconnect as D, NeedReset as N, NoAerDriver as X, None as O, Recovered as R};
    assert_eq!([O, C, N, D, R, X].map(|vote| vote as u32), [1, 2, 3, 4, 5, 6]);
    assert_eq!([Channel::Normal, Channel::Frozen, Channel::PermFailure].map(|c| c as u32), [1, 2, 3]);
    let table = [
        (C, [C, C, N, D, R, X]),
        (R, [R, C, N, D, R, X]),
        (N, [N, N, N, N, N, X]),
        (D, [D, D, N, D, D, X]),
        (X, [X, X, X, X, X, X]),
    ];
    for (before, row) in table {
        for (vote, after) in [O, C, N, D, R, X].into_iter().zip(row) {
            assert_eq!(before.merge(vote), after, "{before} × {vote}");
        }
    }
}

/// ERR-022, ERR-031: out of permanent failure no way leads back.
#[test]
fn channels() {
    use Channel::{Frozen, Normal, PermFailure};
    for (from, to, ends, did) in [
        (Normal, Frozen, Frozen, true),
        (Frozen, Frozen, Frozen, true),
        (Frozen, Normal, Normal, true),
        (Normal, Normal, Normal, true),
        (PermFailure, Frozen, PermFailure, false),
        (PermFailure, Normal, PermFailure, false),
        (Frozen, PermFailure, PermFailure, true),
    ] {
        let mut channel = from;
        assert_eq!((channel.set(to), channel), (did, ends), "{from:?} to {to:?}");
    }
}

pub(crate) fn switch(drivers: &[(&str, Driver)]) -> Lab {
    let mut builder = FabricBuilder::new();
    builder.add(Item::port(Place::root(), PortType::RootPort).named("root"));
    builder.switch("switch", Place::below("root"), 2, &FunctionSpec::port(PortType::DownstreamPort));
    builder.add(Item::new(Place::below("switch.0"), nvme()).named("a"));
    builder.add(Item::new(Place::below("switch.1"), nvme()).named("b"));
    Lab::new(&builder, drivers)
}

/// ERR-015, ERR-016, ERR-018: how far it reaches, in which order.
#[test]
fn scope_and_order() {
    // An endpoint: what is behind the port above it.
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    lab.raise("a", NONFATAL);
    lab.run();
    assert_eq!((lab.calls("a").len(), lab.calls("b").len()), (1, 0));
    // The root port itself: everything below it, not itself.
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    lab.raise("root", NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, false));
    let order: Vec<Address> = lab.kernel.calls.iter().filter(|c| c.1 == NORMAL).map(|c| c.0).collect();
    let names = ["switch", "switch.0", "a", "switch.1", "b"];
    assert_eq!(order, names.map(|name| lab.fabric.named(name).unwrap()));
    // An upstream port: as an endpoint.
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    lab.raise("switch", NONFATAL);
    lab.run();
    assert_eq!((lab.calls("switch"), lab.calls("a")), (vec![NORMAL, Call::MmioEnabled], vec![NORMAL]));
    // A downstream port: what is below it.
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    lab.raise("switch.1", NONFATAL);
    lab.run();
    assert_eq!((lab.calls("a").len(), lab.calls("b").len(), lab.calls("switch.1").len()), (0, 1, 0));
}

/// A switch in the scope asks for a reset and restores itself, so slot_reset
/// is broadcast also with vfio alone.
#[test]
fn fatal_with_a_switch_in_the_scope() {
    let mut lab = switch(&[("a", VFIO), ("b", GOOD)]);
    lab.raise("root", FATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    assert_eq!(lab.calls("switch.0"), [FROZEN, Call::SlotReset]);
    assert_eq!(lab.calls("a"), [FROZEN]);
    assert_eq!(lab.calls("b"), [FROZEN, Call::SlotReset, Call::Resume]);
    let (a, b) = (lab.fabric.named("a").unwrap(), lab.fabric.named("b").unwrap());
    assert_eq!((lab.fabric.read(a, cap::COMMAND, 2), lab.fabric.read(b, cap::COMMAND, 2)), (0, 6));
}

/// ERR-023: a bridge without driver has no opinion.
#[test]
fn a_bridge_without_driver() {
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    let bridge = lab.fabric.named("switch.0").unwrap();
    lab.kernel.drivers.remove(&bridge);
    lab.raise("root", NONFATAL);
    assert_eq!(lab.run(), recovered(Vote::Recovered, false));
}

/// ERR-047, ERR-007: correctable errors are cleared and concern one driver.
#[test]
fn correctable_errors() {
    let mut lab = Lab::pair(GOOD, VFIO);
    for address in [A, B] {
        let error = AerError { correctable: correctable::BAD_TLP, ..AerError::default() };
        lab.fabric.raise(at(address), &error).unwrap();
        assert_eq!(lab.run(), []);
        assert_eq!(lab.aer(at(address), register::CORRECTABLE_STATUS), 0);
        let counters = lab.service.counters(at(address));
        assert_eq!((counters.correctable[6], counters.total), (1, [1, 0, 0]));
    }
    assert_eq!((lab.calls(A), lab.calls(B)), (vec![Call::CorErrorDetected], vec![]));
    assert_eq!(lab.service.root_counters(at(ROOT)), [2, 0, 0]);
}

/// ERR-043: both kinds at once: the correctable one first.
#[test]
fn correctable_and_uncorrectable() {
    let mut lab = Lab::pair(GOOD, VFIO);
    let error = AerError { correctable: correctable::RECEIVER, uncorrectable: FATAL, ..AerError::default() };
    lab.fabric.raise(at(A), &error).unwrap();
    lab.run();
    assert_eq!(lab.calls(A)[..2], [Call::CorErrorDetected, FROZEN]);
}

/// ERR-046: what is read of whom; ERR-029: what is cleared.
#[test]
fn what_is_read_and_cleared() {
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, NONFATAL);
    lab.run();
    let error = |lab: &Lab| lab.kernel.reports.iter().find(|r| matches!(r, Report::Error { .. })).cloned().unwrap();
    let Report::Error { status, first, header, .. } = error(&lab) else { unreachable!() };
    assert_eq!((status, first, header), (NONFATAL, 19, Some([1, 2, 3, 4])));
    assert_eq!(lab.aer(at(A), register::UNCORRECTABLE_STATUS), 0);
    assert_eq!(lab.service.counters(at(A)).nonfatal[19], 1);

    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(A, FATAL);
    lab.run();
    let Report::Error { status, header, .. } = error(&lab) else { unreachable!() };
    assert_eq!((status, header), (0, None), "the link is presumed down");
    assert_eq!(lab.aer(at(A), register::UNCORRECTABLE_STATUS), FATAL, "a fatal status is left");
    let counters = lab.service.counters(at(A));
    assert_eq!((counters.total, counters.fatal.iter().sum::<u64>()), ([0, 0, 1], 0));

    let mut lab = Lab::pair(VFIO, VFIO);
    lab.raise(ROOT, FATAL);
    lab.run();
    let Report::Error { status, .. } = error(&lab) else { unreachable!() };
    assert_eq!(status, FATAL, "a port can be read");
}

/// ERR-044: whoever has logged something, if there was more than one.
#[test]
fn several_sources() {
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    lab.raise("b", NONFATAL);
    lab.raise("a", NONFATAL);
    assert_eq!(lab.run().len(), 2);
    assert_eq!((lab.calls("a"), lab.calls("b")), (vec![NORMAL], vec![NORMAL]));
    // Both had bits of their own; with one message only its sender is looked at.
    let mut lab = switch(&[("a", VFIO), ("b", VFIO)]);
    let a = lab.fabric.named("a").unwrap();
    lab.fabric.function_mut(a).unwrap().write(0x78, 2, 0);
    lab.raise("a", NONFATAL);
    lab.raise("b", NONFATAL);
    assert_eq!(lab.run().len(), 1);
    assert_eq!((lab.calls("a"), lab.calls("b")), (vec![], vec![NORMAL]));
}

/// ERR-045: what comes faster than it is handled is dropped at 128.
#[test]
fn the_queue_of_a_root_port_is_bounded() {
    let mut lab = Lab::pair(VFIO, VFIO);
    lab.fabric.set_timing(at(A), Timing { ready: u64::MAX, link: 0 });
    lab.raise(A, FATAL);
    // It waits for the function and takes interrupts meanwhile: of the port
    // itself, as those from below are off.
    while lab.service.step(&mut lab.fabric, &mut lab.kernel, 200 * MS) == Next::Now {}
    let root = lab.fabric.function_mut(at(ROOT)).unwrap();
    let aer = root.extended_capability(cap::EXT_AER).unwrap();
    root.write(aer + register::ROOT_COMMAND, 4, 7);
    for _ in 0..200 {
        lab.raise(ROOT, NONFATAL);
        lab.service.step(&mut lab.fabric, &mut lab.kernel, 200 * MS);
    }
    lab.now = 200 * MS;
    lab.run();
    assert_eq!(lab.service.root_counters(at(ROOT)), [0, 128, 1]);
}

/// ERR-050
#[test]
fn the_log_is_limited() {
    let mut lab = Lab::pair(VFIO, VFIO);
    let printed = |lab: &Lab| lab.kernel.reports.iter().filter(|r| matches!(r, Report::Error { .. })).count();
    for _ in 0..25 {
        lab.raise(A, NONFATAL);
        lab.run();
    }
    assert_eq!(printed(&lab), 10);
    assert_eq!(lab.service.counters(at(A)).total[1], 25, "counted all the same");
    lab.raise(B, NONFATAL);
    lab.run();
    assert_eq!(printed(&lab), 11, "each device has its own");
    lab.now += 6000 * MS;
    lab.raise(A, NONFATAL);
    lab.run();
    assert_eq!(printed(&lab), 12);
}

/// ERR-048: containment is always frozen.
#[test]
fn containment() {
    for (drivers, vote_reset) in [([VFIO, VFIO], false), ([VFIO, GOOD], true)] {
        let mut builder = FabricBuilder::new();
        let port = FunctionSpec { dpc: true, ..FunctionSpec::port(PortType::RootPort) };
        builder.add(Item::new(Place::root(), port).named("port").leads_to(1));
        builder.plug_auto(at(A), plain()).plug_auto(at(B), plain());
        let mut lab = Lab::new(&builder, &[(A, drivers[0]), (B, drivers[1])]);
        lab.fabric.set_timing(at(ROOT), Timing { link: 15 * MS, ready: 0 });
        lab.raise(A, FATAL);
        assert_eq!(lab.run(), recovered(Vote::Recovered, true));
        assert_eq!(lab.calls(A), [FROZEN]);
        assert_eq!(lab.calls(B).contains(&Call::SlotReset), vote_reset);
        assert!(!lab.fabric.is_contained(at(ROOT)) && lab.fabric.link_is_up(at(ROOT)));
        assert_eq!(lab.command(A), 0);
        assert!((120 * MS..140 * MS).contains(&lab.now), "20 ms, the link, 100 ms: {}", lab.now);
    }
}

/// ERR-049: a root-complex function is reset by itself, if it can.
#[test]
fn integrated_endpoints() {
    for (flr, driver, expected) in [
        (true, VFIO, recovered(Vote::Recovered, true)),
        (false, VFIO, failed(Vote::Recovered, false)),
        (true, GOOD, recovered(Vote::Recovered, true)),
    ] {
        let mut builder = FabricBuilder::new();
        let collector = FunctionSpec { aer: true, class: 0x08_07_00, port_type: PortType::EventCollector, ..plain() };
        builder.add(Item::new(Place::root().at(8, 0), collector));
        builder.add(Item::new(Place::root().at(9, 0), FunctionSpec { flr, ..nvme() }).named("one"));
        builder.add(Item::new(Place::root().at(10, 0), nvme()).named("other"));
        let mut lab = Lab::new(&builder, &[("one", driver), ("other", VFIO)]);
        lab.raise("one", FATAL);
        assert_eq!(lab.run(), expected);
        assert_eq!(lab.calls("other"), [], "scope is the one function");
        assert_eq!(lab.calls("one")[0], FROZEN);
    }
}

/// ERR-049: a bus that must not be reset, a link that stays down, a function
/// that is never ready.
#[test]
fn resets_that_fail() {
    let fast = FunctionSpec { device: 0x7777, ..plain() };
    let mut builder = FabricBuilder::new();
    builder.quirks(Quirks { no_bus_reset: vec![Id::new(0x1b36, 0x7777)], ..Quirks::default() });
    builder.plug_auto(at(A), fast);
    let mut lab = Lab::new(&builder, &[(A, VFIO)]);
    lab.raise(A, FATAL);
    assert_eq!((lab.run(), lab.now), (failed(Vote::Recovered, false), 0));
    assert_eq!(lab.calls(A), [FROZEN, GONE]);

    let mut lab = Lab::pair(VFIO, VFIO);
    lab.fabric.set_timing(at(ROOT), Timing { link: u64::MAX, ready: 0 });
    lab.raise(A, FATAL);
    assert_eq!(lab.run(), failed(Vote::Recovered, false));
    assert!((1000 * MS..1100 * MS).contains(&lab.now), "{}", lab.now);
    assert_eq!(lab.calls(B), [FROZEN, GONE]);

    for (speed, most) in [(4, 70_000), (2, 70_000)] {
        let mut builder = FabricBuilder::new();
        let link = pci::Link { speed, width: 1 };
        let port = FunctionSpec { link, ..FunctionSpec::port(PortType::RootPort) };
        builder.add(Item::new(Place::root(), port).leads_to(1));
        builder.plug_auto(at(A), plain());
        let mut lab = Lab::new(&builder, &[(A, VFIO)]);
        lab.fabric.set_timing(at(A), Timing { ready: u64::MAX, link: 0 });
        lab.raise(A, FATAL);
        assert_eq!(lab.run(), failed(Vote::Recovered, false));
        assert!((32_000 * MS..most * MS).contains(&lab.now), "about a minute at growing distances: {}", lab.now);
        // One that is slow and then ready is waited for.
        let mut lab = Lab::new(&builder, &[(A, VFIO)]);
        lab.fabric.set_timing(at(A), Timing { ready: 5000 * MS, link: 0 });
        lab.raise(A, FATAL);
        assert_eq!(lab.run(), recovered(Vote::Recovered, true));
        assert!((5000 * MS..9000 * MS).contains(&lab.now), "{}", lab.now);
    }
}

/// What the root port logged while its link was reset is dropped, and its
/// interrupts are on again.
#[test]
fn the_root_port_after_a_reset() {
    let mut lab = Lab::pair(GOOD, GOOD);
    lab.raise(A, FATAL);
    lab.run();
    assert_eq!(lab.aer(at(ROOT), register::ROOT_COMMAND), 7);
    assert_eq!(lab.aer(at(ROOT), register::ROOT_STATUS), 0);
    lab.raise(A, NONFATAL);
    assert_eq!(lab.run().len(), 1);
}

/// ERR-021: pulled out: disconnected, and no driver is asked.
#[test]
fn a_device_that_is_gone() {
    let mut builder = FabricBuilder::new();
    let slot = Slot { number: 1, power: 25, hotplug: true };
    let port = FunctionSpec { slot: Some(slot), ..FunctionSpec::port(PortType::RootPort) };
    builder.add(Item::new(Place::root(), port).named("port").leads_to(1));
    builder.plug_auto(at(A), plain());
    let mut lab = Lab::new(&builder, &[(A, VFIO)]);
    lab.fabric.surprise_removal(at(ROOT));
    assert_eq!(lab.run(), []);
    assert_eq!(lab.kernel.removed, [at(A)]);
    assert_eq!(lab.service.channel(at(A)), Channel::PermFailure);
    lab.raise(ROOT, NONFATAL);
    assert_eq!(lab.run(), failed(Vote::Disconnect, false));
    assert_eq!(lab.calls(A), [GONE], "ERR-030: told of the failure all the same");
    assert_eq!(lab.uevents(A)[0], Uevent::Failed);
}

/// In the middle of a recovery: the device goes, or its driver.
#[test]
fn what_changes_under_a_recovery() {
    // Steps until the first driver was called.
    let begin = |lab: &mut Lab| {
        lab.raise(A, FATAL);
        while lab.kernel.calls.is_empty() {
            lab.service.step(&mut lab.fabric, &mut lab.kernel, 0);
        }
        assert!(lab.service.recovery_of(&lab.fabric, at(B)).is_some());
    };
    let mut lab = Lab::pair(GOOD, VFIO);
    begin(&mut lab);
    lab.kernel.drivers.remove(&at(B));
    assert_eq!(lab.run(), failed(Vote::NoAerDriver, true));
    // Unbound after it voted: its absence is not noticed any more.
    let mut lab = Lab::pair(GOOD, VFIO);
    begin(&mut lab);
    while lab.calls(B).is_empty() {
        lab.service.step(&mut lab.fabric, &mut lab.kernel, 0);
    }
    lab.kernel.drivers.remove(&at(B));
    assert_eq!(lab.run(), recovered(Vote::Recovered, true));
    // Pulled out: the link does not come back.
    let mut lab = Lab::pair(GOOD, VFIO);
    begin(&mut lab);
    lab.fabric.surprise_removal(at(ROOT));
    let outcomes = lab.run();
    assert!(!outcomes[0].recovered);
    assert!(lab.service.recovery_of(&lab.fabric, at(B)).is_none());
    // Again, while it runs: one more recovery, unless what was logged has been
    // cleared with the rest.
    for (sibling, recoveries) in [(VFIO, 2), (GOOD, 1)] {
        let mut lab = Lab::pair(GOOD, sibling);
        begin(&mut lab);
        lab.raise(B, NONFATAL);
        assert_eq!(lab.run().len(), recoveries);
    }
}
