// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links that go down: by containment, by reset, by themselves, with the
//! device.

use pci::aer::AerError;
use pci::aer::spec::{register, uncorrectable};
use pci::{
    Address, Answers, Effect, Fabric, FabricBuilder, FunctionSpec, Item, Place, PortType, Signal, Slot, Timing, cap,
    dpc,
};

use crate::common::{at, nvme};

const DRIVE: &str = "01:00.0";
const MS: u64 = 1_000_000;

fn behind(port: FunctionSpec) -> (Fabric, Address) {
    let mut builder = FabricBuilder::new();
    builder.add(Item::new(Place::root(), port).named("port").leads_to(1));
    builder.plug_auto(at(DRIVE), nvme());
    let fabric = builder.build().unwrap();
    let port = fabric.named("port").unwrap();
    (fabric, port)
}

fn plain_port() -> FunctionSpec {
    FunctionSpec::port(PortType::RootPort)
}

fn containing() -> FunctionSpec {
    FunctionSpec { dpc: true, ..plain_port() }
}

fn link_active(fabric: &Fabric, port: Address) -> bool {
    let function = fabric.function(port).unwrap();
    function.peek(function.capability(cap::EXPRESS).unwrap() + 0x12, 2) & 0x2000 != 0
}

fn dpc_register(fabric: &Fabric, port: Address, offset: u16) -> u32 {
    let function = fabric.function(port).unwrap();
    function.read(function.extended_capability(cap::EXT_DPC).unwrap() + offset, 2)
}

fn fatal() -> AerError {
    AerError { uncorrectable: uncorrectable::MALFORMED, ..AerError::default() }
}

fn nonfatal() -> AerError {
    AerError { uncorrectable: uncorrectable::ECRC, ..AerError::default() }
}

/// ERR-048: the port takes the link down and keeps the message to itself.
#[test]
fn containment() {
    let (mut fabric, port) = behind(containing());
    fabric.function_mut(at(DRIVE)).unwrap().write(cap::COMMAND, 2, 6);
    fabric.raise(at(DRIVE), &nonfatal()).unwrap();
    assert_eq!(fabric.take_signals(), [Signal::RootError(port)], "Linux enables it for ERR_FATAL only");
    fabric.raise(at(DRIVE), &fatal()).unwrap();
    assert_eq!(fabric.take_signals(), [Signal::Contained(port)]);
    assert!(fabric.is_contained(port) && !link_active(&fabric, port));
    let status = dpc::STATUS_TRIGGER | dpc::STATUS_INTERRUPT | dpc::Reason::FatalMessage.bits();
    assert_eq!(dpc_register(&fabric, port, dpc::STATUS), status);
    assert_eq!(dpc_register(&fabric, port, dpc::SOURCE), 0x0100);
    assert_eq!(fabric.take_resets().into_iter().collect::<Vec<_>>(), [at(DRIVE)]);
    let drive = fabric.function_mut(at(DRIVE)).unwrap();
    assert_eq!((drive.read(0, 4), drive.read(cap::COMMAND, 2)), (!0, 0xffff));
    assert_eq!((drive.write(cap::COMMAND, 2, 6), drive.command()), (vec![], 0), "reset, and out of reach");

    // What happens now reaches nobody.
    fabric.raise(at(DRIVE), &fatal()).unwrap();
    assert_eq!(fabric.take_signals(), []);

    // Clearing the interrupt is not enough.
    let function = fabric.function(port).unwrap();
    let dpc = function.extended_capability(cap::EXT_DPC).unwrap();
    fabric.write(port, dpc + dpc::STATUS, 2, dpc::STATUS_INTERRUPT);
    assert!(!fabric.link_is_up(port));
    fabric.set_timing(port, Timing { link: 30 * MS, ready: 0 });
    fabric.set_timing(at(DRIVE), Timing { ready: 50 * MS, link: 0 });
    fabric.write(port, dpc + dpc::STATUS, 2, dpc::STATUS_TRIGGER);
    assert!(!fabric.is_contained(port) && !link_active(&fabric, port));
    fabric.advance(30 * MS);
    assert!(link_active(&fabric, port));
    assert_eq!(fabric.read(at(DRIVE), 0, 4), 0xffff_0001, "request retry status");
    assert_eq!(fabric.read(at(DRIVE), 0, 2), 0x0001);
    assert_eq!(fabric.read(at(DRIVE), cap::COMMAND, 2), 0xffff);
    fabric.advance(80 * MS);
    assert_eq!(fabric.read(at(DRIVE), 0, 4), 0x0010_1b36);
    assert_eq!(fabric.function(at(DRIVE)).unwrap().answers(), Answers::Yes);
}

/// The port's own errors trigger without a message; software can trigger, too.
#[test]
fn other_reasons_to_contain() {
    let (mut fabric, port) = behind(containing());
    let raised = fabric.raise(port, &nonfatal()).unwrap();
    assert!(raised.contained && raised.sent.is_empty());
    assert_eq!(dpc_register(&fabric, port, dpc::STATUS) & 0x67, dpc::STATUS_TRIGGER | dpc::Reason::OwnError.bits());

    let (mut fabric, port) = behind(containing());
    let control = fabric.function(port).unwrap().extended_capability(cap::EXT_DPC).unwrap() + dpc::CONTROL;
    assert_eq!(fabric.write(port, control, 2, 0x49), [Effect::ContainmentTrigger]);
    assert_eq!(dpc_register(&fabric, port, dpc::CONTROL), 0x09, "the trigger bit reads 0");
    assert_eq!(dpc_register(&fabric, port, dpc::STATUS) & 0x67, dpc::STATUS_TRIGGER | dpc::Reason::Software.bits());
    // Not enabled: nothing.
    let (mut fabric, port) = behind(containing());
    fabric.write(port, control, 2, 0x40);
    assert!(!fabric.is_contained(port));
    fabric.write(port, control, 2, 0x0a);
    fabric.raise(at(DRIVE), &nonfatal()).unwrap();
    assert_eq!(
        dpc_register(&fabric, port, dpc::STATUS) & 0x67,
        dpc::STATUS_TRIGGER | dpc::Reason::NonFatalMessage.bits()
    );
    // A second reason while it holds does not change the first.
    fabric.raise(port, &fatal()).unwrap();
    assert_eq!(dpc_register(&fabric, port, dpc::STATUS) & 6, dpc::Reason::NonFatalMessage.bits());
}

#[test]
fn a_bus_reset_by_the_bridge_control_register() {
    let (mut fabric, port) = behind(plain_port());
    fabric.set_timing(port, Timing { link: 10 * MS, ready: 0 });
    fabric.function_mut(at(DRIVE)).unwrap().write(cap::COMMAND, 2, 6);
    let control = fabric.read(port, cap::BRIDGE_CONTROL, 2);
    fabric.write(port, cap::BRIDGE_CONTROL, 2, control | 0x40);
    assert_eq!(fabric.read(at(DRIVE), 0, 4), !0);
    fabric.advance(2 * MS);
    assert!(!link_active(&fabric, port), "reset is still asserted");
    fabric.write(port, cap::BRIDGE_CONTROL, 2, control);
    fabric.advance(11 * MS);
    assert_eq!(fabric.read(at(DRIVE), 0, 4), !0, "the link trains");
    fabric.advance(12 * MS);
    assert_eq!((fabric.read(at(DRIVE), 0, 4), fabric.read(at(DRIVE), cap::COMMAND, 2)), (0x0010_1b36, 0));
    assert!(fabric.take_resets().contains(&at(DRIVE)));
}

/// A function that never gets ready answers with retry for ever.
#[test]
fn a_reset_that_never_ends() {
    let (mut fabric, port) = behind(plain_port());
    fabric.set_timing(at(DRIVE), Timing { ready: u64::MAX, link: 0 });
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x42);
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x02);
    fabric.advance(u64::MAX / 2);
    assert_eq!(fabric.read(at(DRIVE), 0, 4), 0xffff_0001);
    assert!(link_active(&fabric, port));
}

#[test]
fn surprise_down() {
    let (mut fabric, port) = behind(plain_port());
    fabric.surprise_down(port, true);
    let aer = fabric.function(port).unwrap().extended_capability(cap::EXT_AER).unwrap();
    assert_eq!(fabric.read(port, aer + register::UNCORRECTABLE_STATUS, 4), uncorrectable::SURPRISE_DOWN);
    assert_eq!(fabric.take_signals(), [Signal::RootError(port)]);
    assert!(!link_active(&fabric, port));
    assert_eq!(fabric.read(at(DRIVE), 0, 4), !0);
    // A reset trains it again.
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x42);
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x02);
    assert!(link_active(&fabric, port));
    assert_eq!(fabric.read(at(DRIVE), 0, 4), 0x0010_1b36);
    // Not if the device is gone.
    fabric.surprise_removal(port);
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x42);
    fabric.write(port, cap::BRIDGE_CONTROL, 2, 0x02);
    fabric.advance(MS);
    assert!(!link_active(&fabric, port) && fabric.is_removed(at(DRIVE)));
    assert_eq!(fabric.read(at(DRIVE), 0, 4), !0);
}

/// In a hot-plug slot that expects it, it is no error.
#[test]
fn removal_from_a_hot_plug_slot() {
    let slot = Slot { number: 4, power: 25, hotplug: true };
    let (mut fabric, port) = behind(FunctionSpec { slot: Some(slot), ..plain_port() });
    fabric.surprise_removal(port);
    assert_eq!(fabric.take_signals(), [Signal::Removed(port)]);
    let function = fabric.function(port).unwrap();
    let status = function.read(function.capability(cap::EXPRESS).unwrap() + 0x1a, 2);
    assert_eq!(status & 0x148, 0x108, "presence and link changed, nothing present");
    let aer = function.extended_capability(cap::EXT_AER).unwrap();
    assert_eq!(function.read(aer + register::UNCORRECTABLE_STATUS, 4), 0);
    // So it is if the link goes and the device stays.
    let (mut fabric, port) = behind(FunctionSpec { slot: Some(slot), ..plain_port() });
    fabric.surprise_down(port, true);
    assert_eq!(fabric.take_signals(), [Signal::Removed(port)]);
    let function = fabric.function(port).unwrap();
    assert_eq!(function.read(function.capability(cap::EXPRESS).unwrap() + 0x1a, 2) & 0x148, 0x140);
    assert!(fabric.is_removed(at(DRIVE)));
}

/// What is behind a switch goes with the switch, and comes back with it.
#[test]
fn everything_behind_a_link() {
    let mut builder = FabricBuilder::new();
    builder.add(Item::port(Place::root(), PortType::RootPort).named("root"));
    builder.switch("switch", Place::below("root"), 2, &FunctionSpec::port(PortType::DownstreamPort));
    builder.add(Item::new(Place::below("switch.0"), nvme()));
    builder.add(Item::new(Place::below("switch.1"), nvme()).named("last"));
    let mut fabric = builder.build().unwrap();
    let (root, last) = (fabric.named("root").unwrap(), fabric.named("last").unwrap());
    let upstream = fabric.named("switch").unwrap();
    fabric.set_timing(upstream, Timing { ready: MS, link: 0 });
    fabric.write(root, cap::BRIDGE_CONTROL, 2, 0x42);
    assert_eq!(fabric.take_resets().len(), 5);
    fabric.write(root, cap::BRIDGE_CONTROL, 2, 0x02);
    assert_eq!(fabric.function(upstream).unwrap().answers(), Answers::Retry);
    assert_eq!(fabric.read(last, 0, 4), !0, "the switch does not forward yet");
    fabric.advance(MS);
    assert_eq!(fabric.read(last, 0, 4), 0x0010_1b36);
}
