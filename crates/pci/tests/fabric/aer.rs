// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors as functions detect them, and the way of their messages.

use pci::aer::spec::{correctable, register, root, uncorrectable};
use pci::aer::{AerError, RaiseError, Raised, Severity};
use pci::{Address, Fabric, FabricBuilder, FunctionSpec, Item, Place, PortType, Signal, cap};

use crate::common::{at, nvme, plain};

/// A root port at 00:01.0 that leads to a switch with two drives.
fn switch() -> Fabric {
    let mut builder = FabricBuilder::new();
    builder.add(Item::port(Place::root(), PortType::RootPort).named("root"));
    builder.switch("switch", Place::below("root"), 2, &FunctionSpec::port(PortType::DownstreamPort));
    builder.add(Item::new(Place::below("switch.0"), nvme()).named("a"));
    builder.add(Item::new(Place::below("switch.1"), nvme()).named("b"));
    builder.add(Item::new(Place::root().at(9, 0), nvme()).named("integrated"));
    builder.build().unwrap()
}

fn one() -> Fabric {
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at("01:00.0"), nvme());
    builder.build().unwrap()
}

const DRIVE: &str = "01:00.0";
const PORT: &str = "00:01.0";

fn aer(fabric: &Fabric, address: Address, offset: u16) -> u32 {
    let at = fabric.function(address).unwrap().extended_capability(cap::EXT_AER).unwrap();
    fabric.function(address).unwrap().peek(at + offset, 4)
}

fn set_aer(fabric: &mut Fabric, address: Address, offset: u16, value: u32) {
    let function = fabric.function_mut(address).unwrap();
    let at = function.extended_capability(cap::EXT_AER).unwrap();
    function.write(at + offset, 4, value);
}

fn express(fabric: &Fabric, address: Address, offset: u16) -> u32 {
    let at = fabric.function(address).unwrap().capability(cap::EXPRESS).unwrap();
    fabric.function(address).unwrap().peek(at + offset, 2)
}

fn set_express(fabric: &mut Fabric, address: Address, offset: u16, value: u32) {
    let function = fabric.function_mut(address).unwrap();
    let at = function.capability(cap::EXPRESS).unwrap();
    function.write(at + offset, 2, value);
}

fn uncor(bits: u32) -> AerError {
    AerError { uncorrectable: bits, header: Some([1, 2, 3, 4]), ..AerError::default() }
}

fn cor(bits: u32) -> AerError {
    AerError { correctable: bits, ..AerError::default() }
}

fn sent(fabric: &mut Fabric, address: Address, error: &AerError) -> Vec<Severity> {
    fabric.raise(address, error).unwrap().sent
}

/// ERR-043: the root port says what came, of whom, and interrupts.
#[test]
fn a_message_reaches_the_root_port() {
    for (error, severity, status, source) in [
        (cor(correctable::BAD_TLP), Severity::Correctable, root::COR, 0x0100),
        (uncor(uncorrectable::COMPLETER_ABORT), Severity::NonFatal, root::UNCOR | root::NONFATAL, 0x0100_0000),
        (uncor(uncorrectable::MALFORMED), Severity::Fatal, root::UNCOR | root::FATAL | root::FIRST_FATAL, 0x0100_0000),
    ] {
        let mut fabric = one();
        assert_eq!(sent(&mut fabric, at(DRIVE), &error), [severity]);
        assert_eq!(aer(&fabric, at(PORT), register::ROOT_STATUS), status);
        assert_eq!(aer(&fabric, at(PORT), register::SOURCE), source);
        assert_eq!(fabric.take_signals(), [Signal::RootError(at(PORT))]);
        assert_eq!(express(&fabric, at(DRIVE), 0x0a), severity.bit(), "device status");
        assert_eq!(fabric.take_signals(), []);
    }
}

/// ERR-044: a second one before software cleared the first is counted, not named.
#[test]
fn several_messages() {
    let mut fabric = switch();
    let (a, b, port) = (fabric.named("a").unwrap(), fabric.named("b").unwrap(), fabric.named("root").unwrap());
    sent(&mut fabric, a, &uncor(uncorrectable::COMPLETER_ABORT));
    sent(&mut fabric, b, &uncor(uncorrectable::MALFORMED));
    sent(&mut fabric, b, &cor(correctable::RECEIVER));
    sent(&mut fabric, a, &cor(correctable::RECEIVER));
    let all = root::UNCOR | root::MULTI_UNCOR | root::NONFATAL | root::FATAL | root::COR | root::MULTI_COR;
    assert_eq!(aer(&fabric, port, register::ROOT_STATUS), all, "the first was not fatal");
    let source = u32::from(a.requester_id()) << 16 | u32::from(b.requester_id());
    assert_eq!(aer(&fabric, port, register::SOURCE), source);
    assert_eq!(fabric.take_signals(), [Signal::RootError(port)], "one interrupt that nobody has served");
    set_aer(&mut fabric, port, register::ROOT_STATUS, all);
    assert_eq!(aer(&fabric, port, register::ROOT_STATUS), 0, "RW1C");
}

/// ERR-053
#[test]
fn what_is_masked_shows_and_says_nothing() {
    let mut fabric = one();
    let drive = at(DRIVE);
    set_aer(&mut fabric, drive, register::UNCORRECTABLE_MASK, uncorrectable::MALFORMED);
    set_aer(&mut fabric, drive, register::CORRECTABLE_MASK, correctable::BAD_TLP);
    assert_eq!(sent(&mut fabric, drive, &uncor(uncorrectable::MALFORMED)), []);
    assert_eq!(sent(&mut fabric, drive, &cor(correctable::BAD_TLP)), []);
    assert_eq!(aer(&fabric, drive, register::UNCORRECTABLE_STATUS), uncorrectable::MALFORMED);
    assert_eq!(aer(&fabric, drive, register::CORRECTABLE_STATUS), correctable::BAD_TLP);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG), 0);
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 0, "no first error");
    assert_eq!(express(&fabric, drive, 0x0a), 0x5, "device status knows no masks");
    assert_eq!(fabric.take_signals(), []);
    // The next one that is not masked is the first.
    sent(&mut fabric, drive, &uncor(uncorrectable::ECRC));
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 19);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG + 12), 4);
}

/// The log belongs to the first error until software clears its bit.
#[test]
fn the_first_error_keeps_the_log() {
    let mut fabric = one();
    let drive = at(DRIVE);
    sent(&mut fabric, drive, &uncor(uncorrectable::POISONED));
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 12);
    let later = AerError { header: Some([9; 4]), ..uncor(uncorrectable::ECRC) };
    sent(&mut fabric, drive, &later);
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 12);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG), 1);
    set_aer(&mut fabric, drive, register::UNCORRECTABLE_STATUS, uncorrectable::POISONED);
    assert_eq!(aer(&fabric, drive, register::UNCORRECTABLE_STATUS), uncorrectable::ECRC, "one bit cleared");
    let third = AerError { header: Some([7; 4]), ..uncor(uncorrectable::MALFORMED) };
    sent(&mut fabric, drive, &third);
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 18);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG), 7);
    assert_eq!(fabric.function(drive).unwrap().read(cap::STATUS, 2) & 0x8000, 0x8000, "poisoned: parity error");
}

/// ERR-054: who lets messages out.
#[test]
fn enables_of_the_function() {
    let mut fabric = one();
    let drive = at(DRIVE);
    let errors = [
        cor(correctable::BAD_DLLP),
        uncor(uncorrectable::ECRC),
        uncor(uncorrectable::MALFORMED),
        uncor(uncorrectable::UNSUPPORTED),
    ];
    for (control, serr, expected) in [
        (0x0, false, [false, false, false, false]),
        (0x1, false, [true, false, false, false]),
        (0x2, false, [false, true, false, false]),
        (0xa, false, [false, true, false, true]),
        (0x4, false, [false, false, true, false]),
        (0x0, true, [false, true, true, true]),
    ] {
        set_express(&mut fabric, drive, 0x08, control);
        fabric.function_mut(drive).unwrap().write(cap::COMMAND, 2, if serr { 0x100 } else { 0 });
        for (error, expected) in errors.iter().zip(expected) {
            assert_eq!(!sent(&mut fabric, drive, error).is_empty(), expected, "{control:#x} {serr} {error:?}");
        }
        let signalled = fabric.function(drive).unwrap().read(cap::STATUS, 2) & 0x4000 != 0;
        assert_eq!(signalled, serr, "signalled system error");
        fabric.function_mut(drive).unwrap().write(cap::STATUS, 2, 0xf900);
    }
    assert_eq!(express(&fabric, drive, 0x0a), 0xf, "unsupported request detected, too");
}

/// ERR-055: a non-fatal error that somebody else deals with.
#[test]
fn advisory_errors() {
    let mut fabric = one();
    let drive = at(DRIVE);
    let advisory = AerError { advisory: true, ..uncor(uncorrectable::UNEXPECTED_COMPLETION) };
    assert_eq!(sent(&mut fabric, drive, &advisory), [], "masked from power on");
    assert_eq!(aer(&fabric, drive, register::CORRECTABLE_STATUS), correctable::ADVISORY);
    assert_eq!(aer(&fabric, drive, register::UNCORRECTABLE_STATUS), uncorrectable::UNEXPECTED_COMPLETION);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG), 0);
    set_aer(&mut fabric, drive, register::CORRECTABLE_MASK, 0);
    assert_eq!(sent(&mut fabric, drive, &advisory), [Severity::Correctable]);
    assert_eq!(aer(&fabric, drive, register::CONTROL) & 0x1f, 16);
    assert_eq!(aer(&fabric, at(PORT), register::ROOT_STATUS), root::COR);
    // Fatal by the severity register: not advisory.
    set_aer(&mut fabric, drive, register::SEVERITY, uncorrectable::UNEXPECTED_COMPLETION);
    assert_eq!(sent(&mut fabric, drive, &advisory), [Severity::Fatal]);
}

/// ERR-056
#[test]
fn a_function_without_the_capability() {
    let mut builder = FabricBuilder::new();
    builder.plug_auto(at(DRIVE), FunctionSpec { aer: false, ..nvme() });
    let mut fabric = builder.build().unwrap();
    assert_eq!(sent(&mut fabric, at(DRIVE), &uncor(uncorrectable::MALFORMED)), [], "Linux enables no reports then");
    assert_eq!(express(&fabric, at(DRIVE), 0x0a), 4);
    set_express(&mut fabric, at(DRIVE), 0x08, 0x7);
    assert_eq!(sent(&mut fabric, at(DRIVE), &uncor(uncorrectable::MALFORMED)), [Severity::Fatal]);
    assert_eq!(sent(&mut fabric, at(DRIVE), &uncor(uncorrectable::ECRC)), [Severity::NonFatal]);
}

#[test]
fn bridges_on_the_way() {
    let status = |fabric: &Fabric, port| aer(fabric, port, register::ROOT_STATUS);
    let mut fabric = switch();
    let (a, port) = (fabric.named("a").unwrap(), fabric.named("root").unwrap());
    let upstream = fabric.named("switch").unwrap();
    // Bridge Control holds all messages back.
    fabric.function_mut(upstream).unwrap().write(cap::BRIDGE_CONTROL, 2, 0);
    sent(&mut fabric, a, &cor(correctable::BAD_TLP));
    sent(&mut fabric, a, &uncor(uncorrectable::MALFORMED));
    assert_eq!(status(&fabric, port), 0);
    let secondary = |fabric: &Fabric, bridge| fabric.function(bridge).unwrap().read(0x1e, 2) & 0x4000 != 0;
    assert!(secondary(&fabric, upstream) && !secondary(&fabric, port), "received system error");
    fabric.function_mut(upstream).unwrap().write(cap::BRIDGE_CONTROL, 2, 2);
    // Without reports of its own nor SERR#, a bridge passes correctable ones.
    set_express(&mut fabric, upstream, 0x08, 0);
    sent(&mut fabric, a, &uncor(uncorrectable::MALFORMED));
    sent(&mut fabric, a, &cor(correctable::BAD_TLP));
    assert_eq!(status(&fabric, port), root::COR);
    fabric.function_mut(upstream).unwrap().write(cap::COMMAND, 2, 0x106);
    sent(&mut fabric, a, &uncor(uncorrectable::MALFORMED));
    assert_eq!(status(&fabric, port), root::COR | root::UNCOR | root::FATAL | root::FIRST_FATAL);
    assert_eq!(fabric.function(upstream).unwrap().read(cap::STATUS, 2) & 0x4000, 0x4000, "signalled system error");
}

/// Root Command and Root Control choose between interrupt and system error.
#[test]
fn how_the_root_port_tells() {
    let mut fabric = one();
    let (drive, port) = (at(DRIVE), at(PORT));
    set_aer(&mut fabric, port, register::ROOT_COMMAND, 0x4);
    sent(&mut fabric, drive, &uncor(uncorrectable::ECRC));
    assert_eq!(fabric.take_signals(), []);
    set_express(&mut fabric, port, 0x1c, 0x4);
    sent(&mut fabric, drive, &uncor(uncorrectable::MALFORMED));
    assert_eq!(fabric.take_signals(), [Signal::RootError(port), Signal::SystemError(port)]);
    // A root port's own error needs no link.
    sent(&mut fabric, port, &uncor(uncorrectable::COMPLETION_TIMEOUT));
    assert_eq!(aer(&fabric, port, register::UNCORRECTABLE_STATUS), uncorrectable::COMPLETION_TIMEOUT);
    assert_eq!(aer(&fabric, port, register::ROOT_STATUS) & root::MULTI_UNCOR, root::MULTI_UNCOR);
}

/// An integrated endpoint tells the event collector of its bus.
#[test]
fn integrated_endpoints() {
    let mut fabric = switch();
    let endpoint = fabric.named("integrated").unwrap();
    sent(&mut fabric, endpoint, &uncor(uncorrectable::MALFORMED));
    assert_eq!(fabric.take_signals(), [], "there is no collector");
    let mut builder = FabricBuilder::new();
    let collector = FunctionSpec { aer: true, class: 0x08_07_00, port_type: PortType::EventCollector, ..plain() };
    builder.add(Item::new(Place::root().at(8, 0), collector).named("collector"));
    builder.add(Item::new(Place::root().at(9, 0), nvme()).named("integrated"));
    let mut fabric = builder.build().unwrap();
    let (endpoint, collector) = (fabric.named("integrated").unwrap(), fabric.named("collector").unwrap());
    sent(&mut fabric, endpoint, &uncor(uncorrectable::MALFORMED));
    assert_eq!(fabric.take_signals(), [Signal::RootError(collector)]);
    assert_eq!(aer(&fabric, collector, register::SOURCE) >> 16, u32::from(endpoint.requester_id()));
}

#[test]
fn what_cannot_be_raised() {
    let mut builder = FabricBuilder::new();
    builder.add(Item::port(Place::root(), PortType::PcieToPciBridge).named("pci"));
    builder.add(Item::new(Place::below("pci").at(3, 0), nvme()).named("old"));
    let mut fabric = builder.build().unwrap();
    let old = fabric.named("old").unwrap();
    assert_eq!(fabric.raise(old, &cor(1)), Err(RaiseError::NotExpress(old)));
    assert_eq!(fabric.raise(at("7f:00.0"), &cor(1)), Err(RaiseError::NoFunction(at("7f:00.0"))));
    let bridge = fabric.named("pci").unwrap();
    assert_eq!(fabric.raise(bridge, &cor(2)), Err(RaiseError::Correctable(2)));
    assert_eq!(fabric.raise(bridge, &uncor(2)), Err(RaiseError::Uncorrectable(2)));
    assert_eq!(fabric.raise(bridge, &AerError::default()), Ok(Raised::default()));
}

/// ECRC cannot be switched on where it is not offered.
#[test]
fn ecrc_is_read_only_where_it_is_not_offered() {
    for (no_ecrc, expected) in [(false, 0x01e0), (true, 0)] {
        let mut builder = FabricBuilder::new();
        builder.plug_auto(at(DRIVE), FunctionSpec { no_ecrc, ..nvme() });
        let mut fabric = builder.build().unwrap();
        set_aer(&mut fabric, at(DRIVE), register::CONTROL, !0);
        assert_eq!(aer(&fabric, at(DRIVE), register::CONTROL), expected);
    }
}

/// ERR-058: masks and severities survive what resets; so does the log.
#[test]
fn a_reset_keeps_the_log() {
    let mut fabric = one();
    let (drive, port) = (at(DRIVE), at(PORT));
    set_aer(&mut fabric, drive, register::SEVERITY, uncorrectable::ECRC);
    sent(&mut fabric, drive, &uncor(uncorrectable::ECRC));
    let saved = fabric.function(drive).unwrap().save();
    fabric.secondary_bus_reset(port);
    assert_eq!(aer(&fabric, drive, register::UNCORRECTABLE_STATUS), uncorrectable::ECRC);
    assert_eq!(aer(&fabric, drive, register::HEADER_LOG + 4), 2);
    assert_eq!(aer(&fabric, drive, register::SEVERITY), uncorrectable::ECRC);
    assert_eq!(express(&fabric, drive, 0x08) & 0xf, 0, "enables are lost");
    fabric.function_mut(drive).unwrap().restore(&saved);
    assert_eq!(aer(&fabric, drive, register::UNCORRECTABLE_STATUS), 0, "status is not restored");
    assert_eq!(express(&fabric, drive, 0x08) & 0xf, 0xf);
}
