// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The extensions of error recovery (vfio-error-recovery.md, section 7).
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod world;

use caller::{Reply, Wake};
use sim::BASE;
use uapi::Errno;
use world::*;

const INFO: u32 = 0x3b6b;
const IRQ_INFO: u32 = 0x3b6d;
const RESET: u32 = 0x3b6f;
const HOT_RESET: u32 = 0x3b71;
const FEATURE: u32 = 0x3b75;
/// Command register: memory and bus mastering.
const ON: [u8; 2] = [6, 0];
/// States of access.
const OPEN: u32 = 0;
const BLOCKED: u32 = 1;
const AWAITS: u32 = 2;
const FAILED: u32 = 3;

/// ERR-088, ERR-092: without being asked for, nothing of it is there; with it,
/// what is on shows.
#[test]
fn off_until_asked_for() {
    let mut w = World::pair("");
    let a = w.open(A);
    assert_eq!(w.words(a, INFO, [20, 0, 0, 0, 0]).unwrap().1[1..4], [3, 9, 5]);
    for index in [5, 6, 7] {
        assert_eq!(w.words(a, IRQ_INFO, [16, 0, index, 0]).err(), Some(Errno::EINVAL));
        assert_eq!(w.words(a, SET_IRQS, [24, 0x24, index, 0, 1, !0]).err(), Some(Errno::EINVAL));
    }
    assert_eq!(w.recovery_state(a), [0, OPEN]);
    // A program asks for it.
    let set = |flags, state| [24, 1 << 17 | 0xff00, flags, state, 5, 0];
    assert_eq!(w.words(a, FEATURE, set(32, 0)).err(), Some(Errno::EINVAL));
    assert_eq!(w.words(a, FEATURE, set(1, 1)).err(), Some(Errno::EINVAL));
    assert_eq!(w.words(a, FEATURE, [24, 1 << 17 | 0xff00, 1, 0, 600_001, 0]).err(), Some(Errno::EINVAL));
    assert_eq!(w.words(a, FEATURE, [23, 1 << 17 | 0xff00, 1, 0, 0, 0]).err(), Some(Errno::EINVAL));
    w.words(a, FEATURE, set(1 | 4, 0)).unwrap();
    assert_eq!(w.words(a, INFO, [20, 0, 0, 0, 0]).unwrap().1[1..4], [3 | 5 << 24, 9, 7]);
    assert_eq!(w.words(a, IRQ_INFO, [16, 0, 5, 0]).unwrap().1[1..], [9, 5, 1]);
    assert_eq!(w.words(a, IRQ_INFO, [16, 0, 6, 0]).err(), Some(Errno::EINVAL), "passive reset was not asked for");
    let event = w.event(a, 5);
    w.words(a, FEATURE, set(0, 0)).unwrap();
    w.words(a, FEATURE, set(1, 0)).unwrap();
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!(event.take(), 0, "an index that went has dropped its eventfd");
}

/// ERR-085, ERR-092, ERR-093: {non-fatal: index 5; fatal and failed: ERR}.
/// ERR-089: who looks for the error's status then finds it cleared.
#[test]
fn nonfatal_errors_have_their_own_index() {
    let mut w = World::extended("non-fatal", "");
    let ((a, a_err), (b, b_err)) = (w.user(A), w.user(B));
    let a_soft = w.event(a, 5);
    w.raise(B, NONFATAL);
    w.settle();
    assert_eq!(w.load(b, CONFIG, 0x104, 4), 0);
    assert_eq!((a_soft.take(), a_err.take(), b_err.take()), (1, 0, 1), "who has no eventfd there hears of it by ERR");
    w.raise(A, FATAL);
    w.settle();
    assert_eq!((a_soft.take(), a_err.take(), b_err.take()), (0, 1, 1));
    // Loopback, as on ERR (ERR-011).
    w.words(a, SET_IRQS, [20, 0x21, 5, 0, 1]).unwrap();
    assert_eq!(a_soft.take(), 1);
    // A sibling without handlers: recovery fails, which is no longer non-fatal.
    let mut w = World::extended("non-fatal", "driver = \"none\"\n");
    let (a, a_err) = w.user(A);
    let a_soft = w.event(a, 5);
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!((a_soft.take(), a_err.take()), (1, 1));
}

/// ERR-086, ERR-093: {a sibling needs a reset: index 6 at slot_reset; fatal,
/// all vfio: index 6 at resume, without slot_reset}.
#[test]
fn passive_resets_are_told() {
    let sibling = "driver = \"nic\"\non_error = \"normal=need-reset slot_reset=recovered resume\"\n";
    let mut w = World::extended("passive-reset non-fatal", sibling);
    let (a, error) = w.user(A);
    let (soft, passive) = (w.event(a, 5), w.event(a, 6));
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!((soft.take(), passive.take(), error.take()), (1, 1, 0));
    assert_eq!(w.command(A) & 6, 0, "nothing more: the registers are as after the reset");
    let mut w = World::extended("passive-reset", "");
    let ((a, a_err), (_b, b_err)) = (w.user(A), w.user(B));
    let passive = w.event(a, 6);
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!((passive.take(), a_err.take(), b_err.take()), (0, 1, 1), "no reset, no notice");
    w.raise(A, FATAL);
    assert_eq!((passive.take(), a_err.take()), (0, 1));
    w.settle();
    assert_eq!((passive.take(), a_err.take(), b_err.take()), (1, 0, 2), "without eventfd: by ERR");
}

/// ERR-084: from the error to resume the device is out of reach; then all is as
/// it was.
#[test]
fn access_waits_for_recovery() {
    for fatal in [false, true] {
        // A reset or not: the sibling's driver has it need-reset.
        let sibling =
            "driver = \"nic\"\non_error = \"normal=need-reset frozen=need-reset slot_reset=recovered resume\"\n";
        let mut w = World::extended("block", sibling);
        let (a, error) = w.user(A);
        w.store(a, CONFIG, 4, &ON);
        let message = w.event(a, 2);
        let version = w.load(a, 0, 8, 4);
        w.raise(A, if fatal { FATAL } else { NONFATAL });
        assert_eq!(error.take(), 1);
        assert_eq!(w.recovery_state(a), [4, BLOCKED]);
        let mut waiting = vec![parked(w.try_load(a, CONFIG, 0))];
        // Low power.
        waiting.push(parked(w.words(a, FEATURE, [8, 1 << 17 | 3]).map(|(reply, _)| reply)));
        waiting.push(parked(w.try_load(a, 0, 8)));
        waiting.push(parked(w.try_store(a, CONFIG, 4, 6)));
        waiting.push(parked(w.host.ioctl(a, RESET, 0, &w.client)));
        waiting.push(parked(w.words(a, SET_IRQS, [20, 0x21, 3, 0, 1]).map(|(reply, _)| reply)));
        // What does not touch the device goes on.
        assert!(w.words(a, INFO, [20, 0, 0, 0, 0]).is_ok() && w.words(a, IRQ_INFO, [16, 0, 3, 0]).is_ok());
        // A signal ends one wait, the end of its caller another.
        let (signalled, killed) = (parked(w.try_load(a, 0, 8)), parked(w.try_load(a, 0, 8)));
        w.host.interrupted(signalled);
        w.host.abandon(killed);
        assert_eq!(w.host.take_woken(), [(signalled, Wake::Done(Err(Errno::ERESTARTSYS)))]);
        w.settle();
        let mut woken: Vec<_> = w.host.take_woken();
        woken.sort_by_key(|(ticket, _)| *ticket);
        assert_eq!(woken, waiting.iter().map(|ticket| (*ticket, Wake::Retry)).collect::<Vec<_>>());
        assert_eq!(w.host.waiting(), 0);
        // The registers are back, interrupts too.
        assert_eq!((w.command(A) & 6, w.load(a, 0, 8, 4)), (6, version));
        w.host.board().endpoint(at(A)).unwrap().interrupts.message(0);
        assert_eq!(message.take(), 1);
        assert_eq!(w.recovery_state(a), [4, OPEN]);
    }
}

/// A device that does not answer when recovery is over is given back once it
/// does; not at all if that takes too long.
#[test]
fn a_device_is_given_back_only_when_it_answers() {
    for (ready, failed) in [(9_000, false), (30_000, true)] {
        let slow = format!("ready_ms = {ready}\n");
        // The one that is asked for the bus's readiness is the first.
        let mut w = World::new(&format!("{}{}{}{slow}", extensions("block"), function(0), function(1)));
        let (b, error) = w.user(B);
        let (a, _) = w.user(A);
        w.store(b, CONFIG, 4, &ON);
        let version = w.load(b, 0, 8, 4);
        w.raise(B, FATAL);
        assert_eq!(error.take(), 1);
        w.pass(5_000);
        assert!(w.host.is_calm());
        assert_eq!(w.recovery_state(a), [4, OPEN]);
        let wait = parked(w.try_load(b, 0, 8));
        w.pass(4_500);
        if !failed {
            assert_eq!(w.host.take_woken(), [(wait, Wake::Retry)]);
            assert_eq!((w.recovery_state(b), w.load(b, 0, 8, 4), w.command(B) & 6), ([4, OPEN], version, 6));
            continue;
        }
        assert!(w.host.take_woken().is_empty());
        w.pass(12_000);
        assert_eq!(w.host.take_woken(), [(wait, Wake::Retry)]);
        assert_eq!((w.recovery_state(b), error.take()), ([4, FAILED], 1), "its user is told");
        assert_eq!((w.load(b, CONFIG, 0, 4), w.load(b, 0, 8, 4)), (!0, !0));
        assert_eq!(w.words(b, SET_IRQS, [20, 0x21, 3, 0, 1]).err(), Some(Errno::EIO));
        w.store(b, CONFIG, 4, &[0, 0]);
        // Well again, it stays failed until a reset of the user's.
        w.pass(20_000);
        assert_eq!(w.recovery_state(b), [4, FAILED]);
        let reset = parked(w.host.ioctl(b, RESET, 0, &w.client));
        w.pass(70_000);
        assert_eq!(w.host.take_woken(), [(reset, Wake::Done(Ok(0)))]);
        assert_eq!(w.recovery_state(b), [4, OPEN]);
        assert_ne!(w.load(b, CONFIG, 0, 4), !0);
    }
}

/// Failed recovery: ones, and no call waits for ever.
#[test]
fn failure_lets_waiters_go() {
    let mut w = World::extended("block", "driver = \"nic\"\non_error = \"none\"\n");
    let (a, error) = w.user(A);
    w.raise(A, FATAL);
    let wait = parked(w.try_load(a, 0, 8));
    w.settle();
    assert_eq!((w.host.take_woken(), error.take()), (vec![(wait, Wake::Retry)], 2));
    assert_eq!((w.recovery_state(a)[1], w.load(a, 0, 8, 4)), (FAILED, !0));
}

/// The policy that gives a device up at every error: {disconnect; no reset if
/// not fatal; eventfd 2}.
#[test]
fn every_error_is_the_end() {
    let mut w = World::extended("disconnect", "");
    let ((_, a_err), (_, b_err)) = (w.user(A), w.user(B));
    w.raise(A, NONFATAL);
    w.settle();
    assert_eq!((a_err.take(), b_err.take()), (2, 2));
}

fn hot_reset(w: &mut World, device: caller::FileId, groups: &[i32]) -> Result<Reply, Errno> {
    let mut words = vec![12 + 4 * groups.len() as u32, 0, groups.len() as u32];
    words.extend(groups.iter().map(|fd| *fd as u32));
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    w.client.set(BASE, &bytes);
    w.host.ioctl(device, HOT_RESET, BASE, &w.client)
}

/// ERR-084: the user of all functions resets the link; the host does not.
#[test]
fn the_user_resets_the_link() {
    let mut w = World::extended("user-reset passive-reset block", "");
    let ((a, a_err), (b, _)) = (w.user(A), w.user(B));
    let passive = w.event(a, 6);
    w.store(a, CONFIG, 4, &ON);
    let version = w.load(a, 0, 8, 4);
    w.raise(A, FATAL);
    assert_eq!((a_err.take(), w.recovery_state(a)[1], w.recovery_state(b)[1]), (1, AWAITS, AWAITS));
    // Registers can be read; nothing else has an effect.
    assert_ne!(w.load(a, CONFIG, 0, 4), !0);
    assert_eq!(w.load(a, 0, 8, 4), !0);
    w.store(a, CONFIG, 4, &[0, 0]);
    w.pass(2_900);
    assert!(w.host.is_recovering(at(A)));
    // A reset of one function is not the link's.
    assert_eq!(w.host.ioctl(a, RESET, 0, &w.client), Ok(Reply::Value(0)));
    assert_eq!(w.recovery_state(a)[1], AWAITS);
    let groups = w.groups.clone();
    assert_eq!(hot_reset(&mut w, a, &groups), Ok(Reply::Value(0)));
    assert!(w.host.is_calm() && !w.host.is_recovering(at(A)));
    assert_eq!((w.recovery_state(a)[1], w.recovery_state(b)[1]), (OPEN, OPEN));
    assert_eq!((w.command(A) & 6, w.load(a, 0, 8, 4), passive.take()), (6, version, 0));
}

/// None comes: the host resets, before resume.
#[test]
fn the_host_does_not_wait_for_ever() {
    let mut w = World::extended("user-reset passive-reset block", "");
    let ((a, _), _) = (w.user(A), w.user(B));
    let passive = w.event(a, 6);
    w.store(a, CONFIG, 4, &ON);
    w.raise(A, FATAL);
    w.pass(2_900);
    assert_eq!((w.recovery_state(a)[1], passive.take()), (AWAITS, 0));
    w.pass(101);
    parked(w.try_load(a, 0, 8));
    w.settle();
    assert_eq!((w.recovery_state(a)[1], passive.take(), w.command(A) & 6), (OPEN, 1, 6));
}

/// Several users, a function of nobody's, or one that is given back in the
/// middle: the host resets.
#[test]
fn only_the_user_of_all_resets_the_link() {
    // Not all are open.
    let mut w = World::extended("user-reset", "");
    let (a, _) = w.user(A);
    w.raise(A, FATAL);
    assert_eq!(w.recovery_state(a)[1], OPEN);
    w.settle();
    // Two users.
    let mut w = World::extended("user-reset", "");
    let (a, _) = w.user(A);
    w.container = None;
    w.user(B);
    w.raise(A, FATAL);
    assert_eq!(w.recovery_state(a)[1], OPEN);
    w.settle();
    // One is given back in the middle.
    let mut w = World::extended("user-reset passive-reset", "");
    let ((a, _), (b, _)) = (w.user(A), w.user(B));
    let passive = w.event(a, 6);
    w.raise(A, FATAL);
    assert_eq!(w.recovery_state(a)[1], AWAITS);
    w.host.release(b);
    assert_eq!(w.recovery_state(a)[1], OPEN, "the host does it at once");
    w.settle();
    assert_eq!(passive.take(), 1);
}

/// Given back in the middle of a recovery: nobody gets the device before its
/// state is known.
#[test]
fn given_back_in_the_middle() {
    // Containment resets the link without device locks, so drivers can change.
    let port = "[[port]]\naddr = \"00:01.0\"\nbus = 1\ndpc = true\n";
    let mut w = World::new(&format!("{}{port}{}{}", extensions("block"), function(0), function(1)));
    let ((a, _), (b, _)) = (w.user(A), w.user(B));
    w.store(a, CONFIG, 4, &ON);
    let bar = w.host.board().fabric.function(at(A)).unwrap().read(0x10, 4);
    w.raise(B, FATAL);
    let wait = parked(w.try_load(a, 0, 8));
    // Its program is killed.
    w.host.abandon(wait);
    w.host.release(a);
    assert_eq!(w.open_again(A, 0).err(), Some(Errno::EAGAIN));
    let path = "/sys/bus/pci/drivers/vfio-pci";
    assert!(matches!(w.host.store(&format!("{path}/unbind"), A.as_bytes()), Ok(Reply::Value(_))));
    let bind = parked(w.host.store("/sys/bus/pci/drivers_probe", A.as_bytes()));
    w.settle();
    assert_eq!(w.host.take_woken(), [(bind, Wake::Retry)]);
    let function = w.host.board().fabric.function(at(A)).unwrap();
    assert_eq!((function.read(0x10, 4), function.command() & 4), (bar, 0), "as it was before it was opened");
    assert!(w.host.store("/sys/bus/pci/drivers_probe", A.as_bytes()).is_ok());
    let _ = b;
}

/// It does not come back: programs and drivers are refused.
#[test]
fn given_back_and_dead() {
    let mut w = World::extended("block", "ready_ms = \"never\"\n");
    let ((_a, _), (b, _)) = (w.user(A), w.user(B));
    w.raise(A, FATAL);
    w.host.release(b);
    w.settle();
    assert_eq!(w.open_again(B, 1).err(), Some(Errno::EIO));
    assert!(w.host.store("/sys/bus/pci/drivers/vfio-pci/unbind", B.as_bytes()).is_ok());
    w.host.store(&format!("/sys/bus/pci/devices/{B}/driver_override"), b"vfio-pci").unwrap();
    assert_eq!(w.host.store("/sys/bus/pci/drivers_probe", B.as_bytes()), Err(Errno::EIO));
}

/// ERR-018: recovery takes each function's device lock: an unbind that waits
/// for its user holds recovery up.
#[test]
fn an_unbind_holds_recovery_up() {
    let mut w = World::pair("");
    let ((a, a_err), (_b, b_err)) = (w.user(A), w.user(B));
    let unbind = parked(w.host.store("/sys/bus/pci/drivers/vfio-pci/unbind", A.as_bytes()));
    w.raise(B, NONFATAL);
    w.pass(25_000);
    assert!(w.host.is_recovering(at(B)));
    assert_eq!((a_err.take(), b_err.take()), (0, 0), "the callback waits for the lock, the second comes after it");
    w.host.release(a);
    assert_eq!(w.host.take_woken(), [(unbind, Wake::Done(Ok(A.len() as u64)))]);
    w.settle();
    // Without a driver it has no part in recovery, which fails.
    assert_eq!((a_err.take(), b_err.take()), (0, 2));
}
