// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SET_IRQS: API-147 to API-178.

use uapi::Errno;
use uapi::vfio::device::{self, IrqSet, irq_index::*};
use zerocopy::IntoBytes;

use super::{INTX_DISABLE, Rig, VECTORS, spec};
use crate::Options;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const FD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn raw(rig: &mut Rig, set: IrqSet) -> Result<u64, Errno> {
    let arg = rig.lab.client.put(&set);
    rig.ioctl(device::SET_IRQS, arg)
}

/// API-147, API-148, API-149, API-150, API-151
#[test]
fn checks_come_in_order() {
    let mut rig = Rig::new();
    assert_eq!(rig.ioctl(device::SET_IRQS, 0), Err(Errno::EFAULT));
    let good = IrqSet { argsz: 20, flags: TRIGGER | NONE, index: MSIX, start: 0, count: 1 };
    let einval = [
        IrqSet { argsz: 19, ..good },
        IrqSet { index: 5, ..good },
        IrqSet { start: 1, count: u32::MAX - 1, ..good },
        IrqSet { start: u32::MAX, count: 0, ..good },
        IrqSet { flags: TRIGGER | NONE | 64, ..good },
        IrqSet { start: VECTORS, count: 0, ..good },
        IrqSet { start: 1, count: VECTORS, ..good },
        IrqSet { flags: TRIGGER, ..good },
        IrqSet { flags: TRIGGER | NONE | BOOL, ..good },
        IrqSet { flags: TRIGGER | BOOL, ..good },
        IrqSet { flags: TRIGGER | FD, argsz: 23, ..good },
    ];
    for set in einval {
        assert_eq!(raw(&mut rig, set), Err(Errno::EINVAL), "{set:?}");
    }
    // Data that cannot be read.
    let end = rig.lab.client.room(64) & !0xf_ffff | 0x10_0000;
    rig.lab.client.memory.map(end, 4096, true);
    let at = end + 4096 - 20;
    {
        use caller::Caller;
        rig.lab.client.write(at, IrqSet { flags: MASK | FD, argsz: 24, ..good }.as_bytes()).unwrap();
    }
    assert_eq!(rig.ioctl(device::SET_IRQS, at), Err(Errno::EFAULT));
    // Only then the action.
    for flags in [NONE, NONE | MASK | TRIGGER, NONE | MASK | UNMASK | TRIGGER] {
        assert_eq!(raw(&mut rig, IrqSet { flags, ..good }), Err(Errno::ENOTTY));
    }
}

/// API-148
#[test]
fn an_index_without_vectors_is_invalid() {
    let spec = pci::FunctionSpec { interrupt_pin: 0, msi: None, msix: None, ..spec() };
    let mut rig = Rig::with(spec, Options::default());
    for index in [INTX, MSI, MSIX] {
        assert_eq!(rig.irqs(index, TRIGGER | NONE, 0, 0, &[]), Err(Errno::EINVAL));
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    Nothing,
    Intx,
    Msi,
    Msix,
}

fn enter(state: In) -> Rig {
    let mut rig = Rig::new();
    let (fd, _) = rig.event();
    match state {
        In::Nothing => {}
        In::Intx => assert_eq!(rig.bind_fds(INTX, 0, &[fd]), Ok(0)),
        In::Msi => assert_eq!(rig.bind_fds(MSI, 0, &[fd, fd]), Ok(0)),
        In::Msix => assert_eq!(rig.bind_fds(MSIX, 0, &[fd, fd]), Ok(0)),
    }
    rig
}

/// What each combination answers. Data is all zeros, so descriptor 0, which
/// is not open.
///
/// API-152, API-153, API-154, API-155, API-157, API-158, API-159, API-161,
/// API-162, API-163, API-164, API-168, API-169, API-170, API-172, API-173,
/// API-174
#[test]
fn matrix() {
    use Errno as E;
    use In::{Intx, Msi, Msix, Nothing};
    let all = [Nothing, Intx, Msi, Msix];
    let only = |state: In| move |s: In| if s == state { Ok(0) } else { Err(E::EINVAL) };
    type Answer<'a> = Box<dyn Fn(In) -> Result<u64, E> + 'a>;
    let is = |answer: Result<u64, E>| -> Answer<'_> { Box::new(move |_| answer) };
    let table: Vec<(u32, u32, u32, u32, Answer<'_>)> = vec![
        // index, flags, start, count, answer by mode
        (INTX, MASK | NONE, 0, 1, Box::new(only(Intx))),
        (INTX, MASK | NONE, 0, 0, is(Err(E::EINVAL))),
        (INTX, MASK | BOOL, 0, 1, Box::new(only(Intx))),
        (INTX, MASK | FD, 0, 1, Box::new(|s| if s == Intx { Err(E::ENOTTY) } else { Err(E::EINVAL) })),
        (INTX, UNMASK | NONE, 0, 1, Box::new(only(Intx))),
        (INTX, UNMASK | NONE, 0, 0, is(Err(E::EINVAL))),
        (INTX, UNMASK | BOOL, 0, 1, Box::new(only(Intx))),
        (INTX, UNMASK | FD, 0, 1, Box::new(|s| if s == Intx { Err(E::EBADF) } else { Err(E::EINVAL) })),
        (INTX, TRIGGER | NONE, 0, 0, Box::new(only(Intx))),
        (INTX, TRIGGER | NONE, 0, 1, Box::new(only(Intx))),
        (INTX, TRIGGER | BOOL, 0, 0, is(Err(E::EINVAL))),
        (INTX, TRIGGER | BOOL, 0, 1, Box::new(only(Intx))),
        (INTX, TRIGGER | FD, 0, 0, is(Err(E::EINVAL))),
        (
            INTX,
            TRIGGER | FD,
            0,
            1,
            Box::new(|s| if matches!(s, Intx | Nothing) { Err(E::EBADF) } else { Err(E::EINVAL) }),
        ),
        (MSI, MASK | NONE, 0, 1, is(Err(E::ENOTTY))),
        (MSI, UNMASK | BOOL, 0, 1, is(Err(E::ENOTTY))),
        (MSI, UNMASK | FD, 0, 1, is(Err(E::ENOTTY))),
        (MSI, TRIGGER | NONE, 0, 0, Box::new(only(Msi))),
        (MSI, TRIGGER | NONE, 0, 1, Box::new(only(Msi))),
        (MSI, TRIGGER | NONE, 0, 8, Box::new(only(Msi))),
        (MSI, TRIGGER | BOOL, 0, 2, Box::new(only(Msi))),
        (
            MSI,
            TRIGGER | FD,
            0,
            0,
            Box::new(|s| match s {
                Msi => Ok(0),
                Nothing => Err(E::ERANGE),
                _ => Err(E::EINVAL),
            }),
        ),
        (
            MSI,
            TRIGGER | FD,
            0,
            1,
            Box::new(|s| if matches!(s, Msi | Nothing) { Err(E::EBADF) } else { Err(E::EINVAL) }),
        ),
        (MSI, TRIGGER | FD, 2, 1, Box::new(|s| if s == Nothing { Err(E::EBADF) } else { Err(E::EINVAL) })),
        (MSIX, MASK | NONE, 0, 1, is(Err(E::ENOTTY))),
        (MSIX, UNMASK | NONE, 0, 1, is(Err(E::ENOTTY))),
        (MSIX, TRIGGER | NONE, 0, 0, Box::new(only(Msix))),
        (MSIX, TRIGGER | NONE, 3, 5, Box::new(only(Msix))),
        (MSIX, TRIGGER | BOOL, 0, 2, Box::new(only(Msix))),
        (
            MSIX,
            TRIGGER | FD,
            0,
            0,
            Box::new(|s| match s {
                Msix => Ok(0),
                Nothing => Err(E::ERANGE),
                _ => Err(E::EINVAL),
            }),
        ),
        (
            MSIX,
            TRIGGER | FD,
            7,
            1,
            Box::new(|s| if matches!(s, Msix | Nothing) { Err(E::EBADF) } else { Err(E::EINVAL) }),
        ),
        (ERR, MASK | NONE, 0, 1, is(Err(E::ENOTTY))),
        (ERR, TRIGGER | NONE, 0, 0, is(Err(E::EINVAL))),
        (ERR, TRIGGER | NONE, 0, 1, is(Err(E::EINVAL))),
        (ERR, TRIGGER | BOOL, 0, 0, is(Err(E::EINVAL))),
        (ERR, TRIGGER | BOOL, 0, 1, is(Ok(0))),
        (ERR, TRIGGER | FD, 0, 0, is(Err(E::EINVAL))),
        (ERR, TRIGGER | FD, 0, 1, is(Err(E::EBADF))),
        (REQ, UNMASK | FD, 0, 1, is(Err(E::ENOTTY))),
        (REQ, TRIGGER | NONE, 0, 1, is(Err(E::EINVAL))),
        (REQ, TRIGGER | BOOL, 0, 1, is(Ok(0))),
        (REQ, TRIGGER | FD, 0, 1, is(Err(E::EBADF))),
    ];
    for (index, flags, start, count, answer) in &table {
        for state in all {
            let mut rig = enter(state);
            let size = [0, 1, 4][(flags & 7).trailing_zeros() as usize];
            let data = vec![0; *count as usize * size];
            let got = rig.irqs(*index, *flags, *start, *count, &data);
            assert_eq!(got, answer(state), "index {index} flags {flags:#x} {start}+{count} in {state:?}");
        }
    }
}

/// API-164, API-166, API-167
#[test]
fn msix_vectors_come_and_go() {
    let mut rig = Rig::new();
    let irq = rig.endpoint();
    let (a, on_a) = rig.event();
    let (b, on_b) = rig.event();
    assert_eq!(rig.bind_fds(MSIX, 2, &[a]), Ok(0));
    let at = rig.cap(0x11);
    assert_eq!(rig.cfg(at + 2, 2) & 0xc000, 0x8000, "enabled, as the program sees it");
    // Vector 0 is there, unbound: what it has to say waits.
    irq.interrupts.message(0);
    irq.interrupts.message(2);
    assert_eq!(on_a.take(), 1);
    assert_eq!(rig.bind_fds(MSIX, 0, &[b]), Ok(0));
    assert_eq!(on_b.take(), 1);
    // Beyond what was allocated at first.
    assert_eq!(rig.bind_fds(MSIX, 7, &[b]), Ok(0));
    irq.interrupts.message(7);
    assert_eq!(on_b.take(), 1);
    // An error unbinds all of the block up to it; -2 is as good as -1.
    assert_eq!(rig.bind_fds(MSIX, 0, &[a, 999, b]), Err(Errno::EBADF));
    irq.interrupts.message(0);
    assert_eq!((on_a.take(), on_b.take()), (0, 0));
    irq.interrupts.message(2);
    assert_eq!(on_a.take(), 1, "behind the failing one nothing changed");
    assert_eq!(rig.bind_fds(MSIX, 2, &[-2]), Ok(0));
    irq.interrupts.message(2);
    assert_eq!(on_a.take(), 0);
    let foreign = rig.lab.client.foreign_fd();
    assert_eq!(rig.bind_fds(MSIX, 0, &[foreign]), Err(Errno::EINVAL));
}

/// API-163, API-164, API-166
#[test]
fn a_failed_first_enable_leaves_no_mode() {
    let mut rig = Rig::new();
    let (a, on_a) = rig.event();
    assert_eq!(rig.bind_fds(MSIX, 0, &[a, 999]), Err(Errno::EBADF));
    assert_eq!(rig.irqs(MSIX, TRIGGER | NONE, 0, 0, &[]), Err(Errno::EINVAL));
    assert_eq!(std::sync::Arc::strong_count(&on_a), 2, "the descriptor's and ours");
    assert_eq!(rig.bind_fds(MSI, 0, &[a]), Ok(0));
    assert_eq!(rig.irqs(MSI, TRIGGER | NONE, 0, 0, &[]), Ok(0));
    assert_eq!(std::sync::Arc::strong_count(&on_a), 2);
    assert_eq!(rig.bind_fds(INTX, 0, &[a]), Ok(0), "no mode is left");
}

/// API-167
#[test]
fn msi_does_not_grow() {
    let mut rig = Rig::new();
    let (a, on_a) = rig.event();
    assert_eq!(rig.bind_fds(MSI, 0, &[a, a]), Ok(0));
    assert_eq!(rig.bind_fds(MSI, 2, &[a]), Err(Errno::EINVAL));
    assert_eq!(rig.bind_fds(MSI, 2, &[-1]), Ok(0));
    rig.endpoint().interrupts.message(1);
    assert_eq!(on_a.take(), 1);
}

/// API-169, API-161
#[test]
fn loopback() {
    let mut rig = Rig::new();
    let (a, on_a) = rig.event();
    assert_eq!(rig.bind_fds(MSIX, 1, &[a]), Ok(0));
    assert_eq!(rig.irqs(MSIX, TRIGGER | NONE, 0, VECTORS, &[]), Ok(0));
    assert_eq!(on_a.take(), 1, "the unbound are skipped");
    assert_eq!(rig.irqs(MSIX, TRIGGER | BOOL, 0, 3, &[1, 0, 1]), Ok(0));
    assert_eq!(on_a.take(), 0);
    assert_eq!(rig.irqs(MSIX, TRIGGER | BOOL, 0, 3, &[0, 2, 0]), Ok(0));
    assert_eq!(on_a.take(), 1);

    let mut rig = Rig::new();
    let (a, on_a) = rig.event();
    rig.bind_fds(INTX, 0, &[a]).unwrap();
    rig.irqs(INTX, TRIGGER | NONE, 0, 1, &[]).unwrap();
    rig.irqs(INTX, TRIGGER | BOOL, 0, 1, &[0]).unwrap();
    rig.irqs(INTX, TRIGGER | BOOL, 0, 1, &[1]).unwrap();
    assert_eq!(on_a.take(), 2);
}

/// API-154, API-155, API-175
#[test]
fn pin_is_masked_until_unmasked() {
    let mut rig = Rig::new();
    let irq = rig.endpoint();
    let (a, on_a) = rig.event();
    rig.bind_fds(INTX, 0, &[a]).unwrap();
    irq.interrupts.set_pin(true);
    assert_eq!((on_a.take(), rig.cfg(6, 2) & 8), (1, 8), "told once, and status shows it");
    assert_eq!(rig.irqs(INTX, UNMASK | BOOL, 0, 1, &[0]), Ok(0));
    assert_eq!(on_a.take(), 0);
    assert_eq!(rig.irqs(INTX, UNMASK | NONE, 0, 1, &[]), Ok(0));
    assert_eq!(on_a.take(), 1, "still asserted");
    irq.interrupts.set_pin(false);
    assert_eq!(rig.irqs(INTX, UNMASK | BOOL, 0, 1, &[9]), Ok(0));
    assert_eq!(rig.irqs(INTX, MASK | BOOL, 0, 1, &[1]), Ok(0));
    irq.interrupts.set_pin(true);
    assert_eq!((on_a.take(), rig.cfg(6, 2) & 8), (0, 8));
    assert_eq!(rig.irqs(INTX, UNMASK | NONE, 0, 1, &[]), Ok(0));
    assert_eq!(on_a.take(), 1);
}

/// API-156
#[test]
fn unmask_by_eventfd() {
    let mut rig = Rig::new();
    let irq = rig.endpoint();
    let (a, on_a) = rig.event();
    let (unmask, _) = rig.event();
    let foreign = rig.lab.client.foreign_fd();
    rig.bind_fds(INTX, 0, &[a]).unwrap();
    let set = |rig: &mut Rig, fd: i32| rig.irqs(INTX, UNMASK | FD, 0, 1, fd.as_bytes());
    assert_eq!(set(&mut rig, foreign), Err(Errno::EINVAL));
    assert_eq!(set(&mut rig, unmask), Ok(0));
    assert_eq!(set(&mut rig, unmask), Err(Errno::EBUSY));
    irq.interrupts.set_pin(true);
    assert_eq!(on_a.take(), 1);
    rig.fire();
    assert_eq!(on_a.take(), 1, "unmasked, still asserted");
    assert_eq!(set(&mut rig, -7), Ok(0));
    assert_eq!(rig.watched(), 0);
    assert_eq!(set(&mut rig, unmask), Ok(0));
    assert_eq!(rig.irqs(INTX, TRIGGER | NONE, 0, 0, &[]), Ok(0));
    assert_eq!(rig.watched(), 0, "disable drops it");
}

/// API-159
#[test]
fn pin_without_eventfd_is_lost() {
    let mut rig = Rig::new();
    let irq = rig.endpoint();
    let (a, on_a) = rig.event();
    assert_eq!(rig.bind_fds(INTX, 0, &[-1]), Ok(0));
    irq.interrupts.set_pin(true);
    assert_eq!(rig.bind_fds(INTX, 0, &[a]), Ok(0));
    assert_eq!(on_a.take(), 0, "masked before it was swapped");
    assert_eq!(rig.irqs(INTX, UNMASK | NONE, 0, 1, &[]), Ok(0));
    assert_eq!(on_a.take(), 1);
}

/// API-176, API-177
#[test]
fn virtual_intx_disable_masks() {
    let mut rig = Rig::new();
    let irq = rig.endpoint();
    let (a, on_a) = rig.event();
    let command = rig.cfg(4, 2);
    rig.set_command(command | INTX_DISABLE);
    irq.interrupts.set_pin(true);
    rig.bind_fds(INTX, 0, &[a]).unwrap();
    assert_eq!(on_a.take(), 0);
    rig.irqs(INTX, UNMASK | NONE, 0, 1, &[]).unwrap();
    assert_eq!(on_a.take(), 0);
    rig.set_command(command);
    assert_eq!(on_a.take(), 1);
    // Through the upper byte alone.
    rig.cfg_write(5, 1, 4);
    irq.interrupts.set_pin(false);
    irq.interrupts.set_pin(true);
    assert_eq!(on_a.take(), 0);
    rig.cfg_write(5, 1, 0);
    assert_eq!(on_a.take(), 1);
}

/// API-172, API-173, API-174
#[test]
fn err_and_req_have_one_eventfd() {
    for index in [ERR, REQ] {
        let mut rig = Rig::new();
        let (a, on_a) = rig.event();
        let (b, on_b) = rig.event();
        let foreign = rig.lab.client.foreign_fd();
        let signal = |rig: &Rig| match index {
            ERR => rig.lab.vfio.signal_error(super::ADDRESS),
            _ => rig.lab.vfio.request_release(super::ADDRESS),
        };
        assert!(!signal(&rig));
        assert_eq!(rig.bind_fds(index, 0, &[-1]), Ok(0), "none to deregister");
        assert_eq!(rig.bind_fds(index, 0, &[-2]), Err(Errno::EINVAL));
        assert_eq!(rig.bind_fds(index, 0, &[foreign]), Err(Errno::EINVAL));
        assert_eq!(rig.bind_fds(index, 0, &[a]), Ok(0));
        assert_eq!(rig.bind_fds(index, 0, &[999]), Err(Errno::EBADF));
        assert!(signal(&rig));
        assert_eq!(on_a.take(), 1);
        assert_eq!(rig.irqs(index, TRIGGER | NONE, 0, 1, &[]), Ok(0));
        assert_eq!(rig.irqs(index, TRIGGER | BOOL, 0, 1, &[1]), Ok(0));
        assert_eq!(rig.irqs(index, TRIGGER | BOOL, 0, 1, &[0]), Ok(0));
        assert_eq!(on_a.take(), 2);
        assert_eq!(rig.bind_fds(index, 0, &[b]), Ok(0), "replaced");
        assert!(signal(&rig));
        assert_eq!((on_a.take(), on_b.take()), (0, 1));
        assert_eq!(rig.irqs(index, TRIGGER | NONE, 0, 0, &[]), Ok(0));
        assert_eq!(rig.irqs(index, TRIGGER | NONE, 0, 0, &[]), Err(Errno::EINVAL));
        assert!(!signal(&rig));
    }
}

/// API-171: more than one vector is caught by the count already.
#[test]
fn err_and_req_have_one_vector() {
    let mut rig = Rig::new();
    for (start, count) in [(1, 0), (0, 2), (1, 1)] {
        assert_eq!(rig.irqs(REQ, TRIGGER | NONE, start, count, &[]), Err(Errno::EINVAL));
    }
}
