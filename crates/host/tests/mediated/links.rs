// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function that is shared fails, and every part with it.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::sync::atomic::Ordering;

use host::lab::Behaviour;
use models::dsa::spec;
use pci::Address;
use pci::aer::AerError;
use uapi::Errno;

use crate::users::{HOLE, Queue, Shared, User};

const PARENT: Address = Address::new(0, 1, 0, 0);
const ALL_ONES: u32 = !0;

/// Two users below a port, whose descriptors wait for a page; a third part is
/// free.
fn below_a_port(slot: &str) -> (Shared, [(User, Queue); 2]) {
    let mut s = Shared::new(&format!("[[port]]\naddr = \"00:01.0\"\nbus = 1\n{slot}"));
    let users = [(0, 10), (1, 11)].map(|(number, pasid)| {
        let mut user = s.user(number);
        let queue = user.queue(&mut s);
        user.attach(&mut s, pasid, queue).unwrap();
        user.submit(&mut s, 0, Some(pasid), HOLE);
        (user, queue)
    });
    (s, users)
}

/// Lets the host do all that it waits for.
fn settle(s: &mut Shared) {
    while let Some(deadline) = s.host.deadline() {
        s.platform.now.store(deadline, Ordering::Relaxed);
        s.host.elapse();
    }
    assert!(s.host.is_calm());
}

/// How many functions there are, parts included.
fn functions(s: &Shared) -> usize {
    s.host.functions().len()
}

/// ERR-073: the link goes, and recovery trains it again: no part is reached
/// meanwhile, their requests are forgotten, and each can be used again.
#[test]
fn the_link_fails() {
    let (mut s, mut users) = below_a_port("");
    s.host.misbehave(PARENT, Behaviour::LinkDown, &AerError::default()).unwrap();
    for (user, queue) in &mut users {
        assert_eq!((user.outstanding(), user.load(&mut s, 0, spec::GENSTS)), (0, ALL_ONES));
        // Linux leaves in the queue what was not read.
        let late = user.read_one(&mut s, *queue);
        assert_eq!(user.answer(&mut s, *queue, late.cookie, 0), Ok(()));
    }
    settle(&mut s);
    for ((user, queue), pasid) in users.iter_mut().zip(10..) {
        user.start(&mut s);
        user.submit(&mut s, 1, Some(pasid), HOLE);
        assert_eq!(user.outstanding(), 1);
        let record = user.read_one(&mut s, *queue);
        user.answer(&mut s, *queue, record.cookie, 1).unwrap();
        assert_eq!((user.outstanding(), user.status(0)), (0, 0), "nothing of before the loss ends");
        assert_ne!(user.status(1), 0);
    }
}

/// ERR-073: it hangs: loads give ones for every user, until it is reset.
#[test]
fn the_function_hangs() {
    let (mut s, mut users) = below_a_port("");
    s.host.misbehave(PARENT, Behaviour::Timeout, &AerError::default()).unwrap();
    settle(&mut s);
    for (user, _) in &mut users {
        assert_eq!(user.load(&mut s, 0, spec::GENSTS), ALL_ONES);
    }
    s.host.store("/sys/bus/pci/devices/0000:01:00.0/reset", b"1").unwrap();
    for ((user, _), pasid) in users.iter_mut().zip(10..) {
        user.start(&mut s);
        user.submit(&mut s, 1, Some(pasid), HOLE);
        assert_eq!(user.outstanding(), 1);
    }
}

/// API-047: it is pulled out: parts that nobody has go at once, the others when
/// their users let go; until then nothing of it is reached.
#[test]
fn the_function_is_pulled_out() {
    let (mut s, mut users) = below_a_port("hotplug = true\n");
    let before = functions(&s);
    s.host.misbehave(PARENT, Behaviour::Remove, &AerError::default()).unwrap();
    assert_eq!(functions(&s), before - 1);
    for (user, queue) in &mut users {
        assert_eq!((user.outstanding(), user.load(&mut s, 0, spec::GENSTS)), (0, ALL_ONES));
        let late = user.read_one(&mut s, *queue);
        assert_eq!(user.answer(&mut s, *queue, late.cookie, 0), Ok(()));
        assert_eq!(user.answer(&mut s, *queue, late.cookie, 0), Err(Errno::EINVAL));
    }
    for (n, (user, _)) in users.iter().enumerate() {
        s.host.release(user.device);
        // The function itself goes with the last of its parts.
        let left = if n == 0 { before - 2 } else { before - 4 };
        assert_eq!(functions(&s), left);
    }
    assert_eq!((s.host.deadline(), s.host.waiting()), (None, 0));
}
