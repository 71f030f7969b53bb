// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of devices that programs use: what recovery does to them, what they
//! are told, what the lab file can plan.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use std::sync::Arc;

use caller::FileId;
use host::lab::Behaviour;
use host::{Host, Lab, NotInjected};
use pci::aer::spec::register;
use pci::aer::{AerError, InjectError, parse};
use pci::cap;
use sim::{BASE, SimPlatform, SimStorage};
use world::*;

/// ERR-094: the vectors of section 2.5 follow, each with its votes, resets,
/// calls of slot_reset and eventfd counts. ERR-033, ERR-006: {votes: can-recover twice, no reset, no slot_reset,
/// eventfds 1 and 1}.
#[test]
fn nonfatal_all_vfio() {
    let mut w = World::pair("");
    let ((a, a_err), (_, b_err)) = (w.user(A), w.user(B));
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    w.raise(B, NONFATAL);
    w.settle();
    assert_eq!((a_err.take(), b_err.take()), (1, 1));
    assert_eq!(w.command(A) & 6, 6, "ERR-004: nothing was touched");
    // ERR-009: the host has cleared the status.
    let aer = 0x100;
    assert_eq!(w.load(a, CONFIG, aer + u64::from(register::UNCORRECTABLE_STATUS), 4), 0);
}

/// ERR-008: the end of a recovery is told by no index at all.
#[test]
fn the_end_is_not_told() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    let request = w.event(a, 4);
    w.raise(A, FATAL);
    assert_eq!(error.take(), 1);
    w.settle();
    assert_eq!((error.take(), request.take()), (0, 0));
}

/// ERR-010, ERR-011, ERR-012: the two indexes, and the self-test.
#[test]
fn the_indexes() {
    let bridge = "[[port]]\naddr = \"00:02.0\"\nbus = 5\nkind = \"pci-bridge\"\n";
    let old = "[[device]]\nmodel = \"nvme\"\naddr = \"05:03.0\"\nsize = \"1M\"\n";
    let mut w = World::new(&format!("{bridge}{old}{}", function(0)));
    let info = |w: &mut World, device: FileId, index: u32| {
        let bytes: Vec<u8> = [16, 0, index, 0].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        w.client.set(BASE, &bytes);
        w.host.ioctl(device, 0x3b6d, BASE, &w.client)?;
        let mut count = [0; 4];
        w.client.get(BASE + 12, &mut count);
        Ok::<u32, uapi::Errno>(u32::from_le_bytes(count))
    };
    let (a, error) = w.user(A);
    assert_eq!((info(&mut w, a, 3), info(&mut w, a, 4)), (Ok(1), Ok(1)));
    let trigger = |w: &mut World, flags: u32, data: &[u8]| {
        let mut bytes: Vec<u8> =
            [20 + data.len() as u32, flags | 32, 3, 0, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(data);
        w.client.set(BASE, &bytes);
        w.host.ioctl(a, SET_IRQS, BASE, &w.client).unwrap();
    };
    trigger(&mut w, 1, &[]);
    trigger(&mut w, 2, &[1]);
    trigger(&mut w, 2, &[0]);
    assert_eq!(error.take(), 2, "loopback");
    w.container = None;
    let conventional = w.open("0000:05:03.0");
    assert_eq!(info(&mut w, conventional, 3), Err(uapi::Errno::EINVAL));
    assert_eq!(info(&mut w, conventional, 4), Ok(1));
}

/// ERR-003: nobody registered: the same, without a word.
#[test]
fn nobody_listens() {
    let mut w = World::pair("");
    w.open(A);
    w.raise(A, NONFATAL);
    w.settle();
    w.raise(A, FATAL);
    w.settle();
    assert_eq!(w.host.root_error_counters(at(PORT)), [0, 1, 1]);
}

/// ERR-034: {can-recover, need-reset; one reset; slot_reset of the sibling;
/// eventfd 1}.
#[test]
fn nonfatal_sibling_needs_reset() {
    let mut w = World::pair("driver = \"nic\"\non_error = \"normal=need-reset slot_reset=recovered resume\"\n");
    let (a, error) = w.user(A);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!(error.take(), 1);
    assert_eq!(w.command(A) & 6, 0, "the passive reset");
}

/// ERR-035: {can-recover, no-aer-driver; no reset; eventfd 2}.
#[test]
fn nonfatal_sibling_without_handlers() {
    for more in ["driver = \"none\"\n", "driver = \"nic\"\non_error = \"none\"\n"] {
        let mut w = World::pair(more);
        let (_, error) = w.user(A);
        w.raise(A, NONFATAL);
        w.settle();
        assert_eq!(error.take(), 2);
    }
}

/// ERR-036, ERR-005, ERR-038: {can-recover twice; one reset; no slot_reset;
/// eventfds 1 and 1}.
#[test]
fn fatal_all_vfio() {
    let mut w = World::pair("");
    let ((a, a_err), (_, b_err)) = (w.user(A), w.user(B));
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    w.raise(A, FATAL);
    assert!(w.host.is_recovering(at(A)) && w.host.is_recovering(at(B)));
    w.settle();
    assert!(!w.host.is_recovering(at(A)));
    assert_eq!((a_err.take(), b_err.take()), (1, 1), "ERR-008: none for the end");
    assert_eq!((w.command(A), w.command(B)), (0, 0));
}

/// ERR-037: {can-recover, disconnect; reset all the same; eventfd 2}.
#[test]
fn fatal_sibling_gives_up() {
    let mut w = World::pair("driver = \"nic\"\non_error = \"frozen=disconnect\"\n");
    let (_, error) = w.user(A);
    w.raise(B, FATAL);
    w.settle();
    assert_eq!((error.take(), w.command(A)), (2, 0));
}

/// ERR-007
#[test]
fn correctable_errors_do_not_reach_the_user() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    let correctable = AerError { correctable: 1, ..AerError::default() };
    w.host.raise(at(A), &correctable).unwrap();
    w.settle();
    assert_eq!(error.take(), 0);
    assert_eq!(w.load(a, CONFIG, 0x110, 4), 0, "logged and cleared");
    let text = w.text(&format!("/sys/devices/pci0000:00/{PORT}/{A}/aer_dev_correctable"));
    assert!(text.starts_with("RxErr 1\n") && text.ends_with("TOTAL_ERR_COR 1\n"), "ERR-057: {text}");
    assert_eq!(w.text(&format!("/sys/devices/pci0000:00/{PORT}/aer_rootport_total_err_cor")), "1\n");
}

/// ERR-039, ERR-040: after a reset behind its back the program's own view
/// stands, accesses reach nobody, and writing COMMAND brings all but the
/// interrupts back.
#[test]
fn what_a_program_sees_after_a_fatal_error() {
    let mut w = World::pair("");
    let (a, _error) = w.user(A);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    let message = w.event(a, 2);
    let version = w.load(a, 0, 8, 4);
    assert_ne!(version, !0);
    let bar = w.load(a, CONFIG, 0x10, 4);
    w.raise(A, FATAL);
    w.settle();
    assert_eq!(w.load(a, CONFIG, 0x10, 4), bar, "the shadow stands");
    assert_eq!(w.load(a, CONFIG, 4, 2), 0, "COMMAND is the hardware's");
    assert_eq!(w.load(a, 0, 8, 4), !0, "no error, but nobody answers");
    w.store(a, 0, 8, &[0; 4]);
    let endpoint = Arc::clone(w.host.board().endpoint(at(A)).unwrap());
    endpoint.interrupts.message(0);
    assert_eq!(message.take(), 0);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    assert_eq!(w.load(a, 0, 8, 4), version);
    assert_eq!(w.command(A) & 6, 6);
    let hardware = w.host.board().fabric.function(at(A)).unwrap().read(cap::BAR0, 4);
    assert_eq!(hardware & !0xf, w.host.board().fabric.resources(at(A))[0].start as u32);
    endpoint.interrupts.message(0);
    assert_eq!(message.take(), 0, "interrupts stay off until they are set up anew");
    let words = [20u32, 1 | 32, 2, 0, 0];
    let off: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    w.client.set(BASE, &off);
    w.host.ioctl(a, SET_IRQS, BASE, &w.client).unwrap();
    let message = w.event(a, 2);
    endpoint.interrupts.message(0);
    assert_eq!(message.take(), 1);
}

/// ERR-013: the eventfd survives a reset.
#[test]
fn errors_are_told_after_a_reset_too() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    w.host.ioctl(a, 0x3b6f, 0, &w.client).unwrap();
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!(error.take(), 1);
}

/// ERR-061, ERR-062, ERR-065: through the text format, with Linux's errnos.
#[test]
fn injection() {
    let mut w = World::pair("");
    let (_, error) = w.user(A);
    let text = format!("AER PCI_ID {A} UNCOR_STATUS COMP_ABORT HEADER_LOG 0 1 2 3 AER ID {B} COR_STATUS BAD_TLP");
    let done = w.host.inject(&parse(&text).unwrap(), None).unwrap();
    assert_eq!(done.iter().map(|i| i.address).collect::<Vec<_>>(), [at(A), at(B)]);
    w.settle();
    assert_eq!(error.take(), 1);
    assert_eq!(w.host.error_counters(at(A)).nonfatal[15], 1);
    assert_eq!(w.host.error_counters(at(B)).correctable[6], 1);
    let nowhere = parse("AER COR_STATUS RCVR").unwrap();
    assert_eq!(w.host.inject(&nowhere, None), Err(NotInjected::NoTarget((1, 1))));
    assert!(w.host.inject(&nowhere, Some(at(B))).is_ok());
    let refused = w.host.inject(&nowhere, Some(at("07:00.0"))).unwrap_err();
    assert_eq!(refused, NotInjected::Refused { error: InjectError::NoDevice(at("07:00.0")) });
    assert!(refused.to_string().ends_with("(ENODEV)"), "{refused}");
    let masked = parse("AER COR_STATUS 0x2000").unwrap();
    assert!(w.host.inject(&masked, Some(at(A))).unwrap_err().to_string().ends_with("(EINVAL)"));
    // No driver at the root port: nobody to tell.
    w.host.store("/sys/bus/pci/drivers/pcieport/unbind", PORT.as_bytes()).unwrap();
    assert!(w.host.inject(&nowhere, Some(at(A))).unwrap_err().to_string().ends_with("(ENODEV)"));
}

/// A device that stops answering: ones, no DMA, and a reset helps.
#[test]
fn a_device_that_hangs() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    w.host.misbehave(at(A), Behaviour::Timeout, &AerError::default()).unwrap();
    // The port waited in vain: not fatal, so nothing is reset.
    w.settle();
    assert_eq!(error.take(), 1);
    assert_eq!((w.load(a, 0, 8, 4), w.load(a, CONFIG, 0x104, 4)), (!0, !0));
    w.host.store(&format!("/sys/devices/pci0000:00/{PORT}/reset_subordinate"), b"1").unwrap();
    assert_ne!(w.load(a, CONFIG, 0x104, 4), !0);
}

/// A link that fails is trained again by recovery.
#[test]
fn a_link_that_fails() {
    let mut w = World::pair("");
    let (a, error) = w.user(A);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    w.host.misbehave(at(A), Behaviour::LinkDown, &AerError::default()).unwrap();
    assert_eq!(w.load(a, 0, 8, 4), !0);
    w.settle();
    assert_eq!(error.take(), 1);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    assert_ne!(w.load(a, 0, 8, 4), !0);
}

/// Pulled out of its slot: the user is asked to let go, and does.
#[test]
fn a_device_that_is_pulled_out() {
    let port = "[[port]]\naddr = \"00:01.0\"\nbus = 1\nhotplug = true\n";
    let mut w = World::new(&format!("{port}{}", function(0)));
    let (a, error) = w.user(A);
    let request = w.event(a, 4);
    w.host.misbehave(at(A), Behaviour::Remove, &AerError::default()).unwrap();
    assert_eq!((error.take(), request.take()), (0, 1));
    assert_eq!(w.load(a, CONFIG, 0x104, 4), !0);
    assert!(w.host.functions().iter().any(|f| f.address == A));
    w.host.release(a);
    assert!(!w.host.functions().iter().any(|f| f.address == A), "it has left");
    assert!(w.host.tree().get(&format!("/sys/bus/pci/devices/{A}")).is_none());
    assert_eq!((w.host.deadline(), w.host.waiting()), (None, 0));
    // Nobody had it open: at once.
    let mut w = World::new(&format!("{port}{}", function(0)));
    w.host.misbehave(at(A), Behaviour::Remove, &AerError::default()).unwrap();
    assert!(!w.host.functions().iter().any(|f| f.address == A));
}

/// Waits of recovery are deadlines of the lab's clock.
#[test]
fn slow_links_and_devices() {
    let port = "[[port]]\naddr = \"00:01.0\"\nbus = 1\nlink_ms = 300\ndpc = true\n";
    let mut w = World::new(&format!("{port}{}ready_ms = 2000\n", function(0)));
    let (a, error) = w.user(A);
    let before = caller::Platform::now(&*w.platform);
    w.raise(A, FATAL);
    assert_eq!(error.take(), 1);
    assert_eq!(w.host.deadline(), Some(before + 20 * MS));
    w.settle();
    let now = caller::Platform::now(&*w.platform) - before;
    assert!((2300 * MS..5000 * MS).contains(&now), "{now}");
    assert_eq!(error.take(), 0);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    assert_ne!(w.load(a, 0, 8, 4), !0);
    let mut w = World::new(&format!("{port}{}ready_ms = \"never\"\n", function(0)));
    let (a, error) = w.user(A);
    w.raise(A, FATAL);
    w.settle();
    assert_eq!(error.take(), 2, "failed");
    assert_eq!(w.load(a, CONFIG, 0x104, 4), !0);
}

/// `[[error]]` by time and by calls.
#[test]
fn planned_errors() {
    let error = "[[error]]\ndevice = \"01:00.0\"\n";
    let plan = format!(
        "{}{}{error}uncorrectable = \"COMP_ABORT\"\nheader_log = \"1 2 3 4\"\nat_ms = 50\n\
         {error}uncorrectable = \"MalfTLP\"\nafter_calls = 5\n\
         [[error]]\ndevice = \"01:00.1\"\ncorrectable = \"BAD_TLP RCVR\"\nat_ms = 0\n",
        function(0),
        function(1)
    );
    let mut w = World::new(&plan);
    let (a, error) = w.user(A);
    w.host.elapse();
    assert_eq!(w.host.error_counters(at(B)).total, [1, 0, 0]);
    assert_eq!(w.host.deadline(), Some(50 * MS));
    assert_eq!(error.take(), 0);
    w.settle();
    assert_eq!((error.take(), w.host.error_counters(at(A)).nonfatal[15]), (1, 1));
    for _ in 0..3 {
        w.load(a, CONFIG, 0, 4);
    }
    w.settle();
    assert_eq!(error.take(), 1, "at the fifth call");
    assert_eq!(w.host.error_counters(at(A)).total, [0, 1, 1]);
}

/// `[[error]]` by the device's own work: in mid-transfer it is gone.
#[test]
fn planned_at_a_dma_read() {
    let error = "[[error]]\ndevice = \"01:00.0\"\nbehaviour = \"timeout\"\nafter_dma_reads = 3\n";
    let mut w = World::new(&format!("{}{error}", function(0)));
    let (a, event) = w.user(A);
    w.store(a, CONFIG, 4, &6u16.to_le_bytes());
    let container = w.client.file_id(w.container.unwrap()).unwrap();
    let map: Vec<u8> = [32u32, 3].iter().flat_map(|w| w.to_le_bytes()).collect();
    let map = [map, [BASE, 0x10_0000, 4096].iter().flat_map(|w: &u64| w.to_le_bytes()).collect()].concat();
    w.client.set(BASE, &map);
    w.host.ioctl(container, 0x3b71, BASE, &w.client).unwrap();
    let endpoint = Arc::clone(w.host.board().endpoint(at(A)).unwrap());
    let read = || endpoint.requester.session().read(0x10_0000, &mut [0; 16]).is_ok();
    assert_eq!([read(), read(), read(), read()], [true, true, false, false]);
    assert_eq!(event.take(), 0, "nobody has been told yet");
    w.host.elapse();
    w.settle();
    assert_eq!(event.take(), 1);
    assert_eq!(w.load(a, CONFIG, 0x104, 4), !0);
    w.host.elapse();
    assert_eq!(event.take(), 0, "once");
}

#[test]
fn plans_that_cannot_be() {
    let complaint = |error: &str| {
        let text = format!("{}[[error]]\n{error}", function(0));
        let lab = match Lab::parse("a.toml", &text) {
            Ok(lab) => lab,
            Err(error) => return error.to_string(),
        };
        Host::new(lab, SimPlatform::new(1), Box::new(SimStorage)).unwrap_err().to_string()
    };
    for (error, expected) in [
        ("at_ms = 1\n", "a.toml:6:1: an error needs `device`"),
        ("device = \"01:00.0\"\ncorrectable = \"RCVR\"\n", "a.toml:6:1: an error needs one of `at_ms`"),
        ("device = \"01:00.0\"\nat_ms = 1\n", "a.toml:6:1: an error needs `correctable`"),
        ("device = \"01:00.0\"\nat_ms = 1\ncorrectable = \"MALF_TLP\"\n", "a.toml:9:15: `correctable`: `MALF_TLP`"),
        ("device = \"01:00.0\"\nat_ms = 1\nuncorrectable = 2\n", "a.toml:9:17: `uncorrectable`: 0x2 has bits"),
        ("device = \"01:00.0\"\nat_ms = 1\nbehaviour = \"odd\"\n", "a.toml:9:13: `behaviour`: `odd` is not one of"),
        ("device = \"01:00.0\"\nat_ms = 1\nheader_log = \"1 2 3\"\n", "a.toml:9:14: `header_log`: a header is four"),
        ("device = \"02:00.0\"\nat_ms = 1\ncorrectable = 1\n", "a.toml:6:1: `device`: there is no function at"),
        ("device = \"00:01.0\"\nafter_dma_reads = 1\ncorrectable = 1\n", "a.toml:6:1: 0000:00:01.0 is a port"),
    ] {
        let complaint = complaint(error);
        assert!(complaint.starts_with(expected), "{complaint}");
    }
    let text = format!("{}on_error = \"maybe\"\n", function(0));
    assert!(Lab::parse("a.toml", &text).unwrap_err().to_string().starts_with("a.toml:6:12: `on_error`: `maybe`"));
}
