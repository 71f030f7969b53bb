// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios of FAULT-5 with two users of one function: whatever one of
//! them answers, and when, nothing of the other's is completed.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use uapi::Errno;

use crate::users::{BACKING, HOLE, PAGE, Queue, Shared, User};

struct Two {
    s: Shared,
    users: [User; 2],
    queues: [Queue; 2],
}

/// Modes of answers, and whether a late answer of a user's own can hit a newer
/// request of its own.
const MODES: [(&str, bool); 4] = [
    ("", false),
    ("[fault]\ncookies = \"lowest-free\"\n", true),
    ("[fault]\ntransport = \"9bit\"\n", true),
    ("[fault]\ntransport = \"9bit\"\nquarantine = true\n", false),
];

impl Two {
    fn new(fault: &str) -> Two {
        let mut s = Shared::new(fault);
        let mut users = [s.user(0), s.user(1)];
        let queues = users.each_mut().map(|user| user.queue(&mut s));
        Two { s, users, queues }
    }

    fn attach(&mut self, who: usize, pasid: u32) {
        self.users[who].attach(&mut self.s, pasid, self.queues[who]).unwrap();
    }

    fn detach(&mut self, who: usize, pasid: u32) {
        self.users[who].detach(&mut self.s, pasid);
    }

    /// The user's n-th descriptor asks for a page: cookie, PASID and index.
    fn ask(&mut self, who: usize, n: u64, pasid: u32) -> (u32, u32, u32) {
        self.users[who].submit(&mut self.s, n, Some(pasid), HOLE);
        let record = self.users[who].read_one(&mut self.s, self.queues[who]);
        (record.cookie, record.pasid, record.grpid)
    }

    fn answer(&mut self, who: usize, cookie: u32, code: u32) -> Result<(), Errno> {
        self.users[who].answer(&mut self.s, self.queues[who], cookie, code)
    }

    fn outstanding(&self) -> [usize; 2] {
        self.users.each_ref().map(User::outstanding)
    }
}

/// FAULT-5.1, FAULT-5.2: a late answer after detach and attach, while the
/// other user has the index: refused, and the other's request waits on. This
/// in every mode, for an answer is looked up among its own user's requests.
#[test]
fn a_late_answer_meets_the_other_user_s_request() {
    for (mode, _) in MODES {
        let mut w = Two::new(mode);
        w.attach(0, 7);
        w.attach(1, 8);
        let (late, _, first) = w.ask(0, 0, 7);
        w.detach(0, 7);
        w.attach(0, 7);
        assert_eq!(w.outstanding(), [0, 0], "{mode}: answered by the host");
        let (cookie, pasid, index) = w.ask(1, 0, 8);
        if !mode.contains("quarantine") {
            assert_eq!((pasid, index), (8, first), "{mode}: the index is used again");
        }
        let swallowed = mode.contains("quarantine");
        assert_eq!(w.answer(0, late, 0), if swallowed { Ok(()) } else { Err(Errno::EINVAL) }, "{mode}");
        assert_eq!(w.outstanding(), [0, 1], "{mode}: the other still waits");
        w.users[1].map(&mut w.s, HOLE, BACKING, PAGE);
        w.answer(1, cookie, 0).unwrap();
        assert_eq!((w.outstanding(), w.users[1].status(0)), ([0, 0], 1), "{mode}");
    }
}

/// FAULT-5.3, FAULT-5.4: a PASID goes from one user to the other, with the
/// index. The first one's late answer is refused in every mode: it has the
/// PASID no more.
#[test]
fn a_pasid_changes_hands() {
    for (mode, _) in MODES {
        let mut w = Two::new(mode);
        w.attach(0, 7);
        let (late, _, index) = w.ask(0, 0, 7);
        w.detach(0, 7);
        w.attach(1, 7);
        let (cookie, pasid, again) = w.ask(1, 0, 7);
        if !mode.contains("quarantine") {
            assert_eq!((pasid, again), (7, index), "{mode}");
        }
        // The user may have got another PASID meanwhile.
        w.attach(0, 9);
        let swallowed = mode.contains("quarantine");
        assert_eq!(w.answer(0, late, 0), if swallowed { Ok(()) } else { Err(Errno::EINVAL) }, "{mode}");
        assert_eq!(w.outstanding(), [0, 1], "{mode}");
        assert_eq!(w.answer(1, cookie, 1), Ok(()), "{mode}");
        assert_eq!((w.outstanding(), w.users[1].status(0)), ([0, 0], 3), "{mode}: its own code");
    }
}

/// FAULT-5.5, FAULT-5.6: crossing and repeated answers. A wrong one can hit a
/// newer request of the same user where a mode cannot tell them apart, and
/// never one of the other's.
#[test]
fn a_wrong_answer_is_confined_to_its_user() {
    for (mode, hits) in MODES {
        let mut w = Two::new(mode);
        w.attach(0, 7);
        w.attach(1, 8);
        let (first, ..) = w.ask(0, 0, 7);
        assert_eq!(w.answer(0, first, 1), Ok(()), "{mode}");
        assert_eq!(w.answer(0, first, 1), Err(Errno::EINVAL), "{mode}: twice");
        let (other, ..) = w.ask(1, 0, 8);
        assert_eq!(w.answer(0, first, 1), Err(Errno::EINVAL), "{mode}: the other's is pending");
        assert_eq!(w.answer(0, other, 0), Err(Errno::EINVAL), "{mode}: the other's cookie");
        assert_eq!(w.answer(1, other, 1), Ok(()), "{mode}");
        let (newer, ..) = w.ask(0, 1, 7);
        let hit = w.answer(0, first, 1);
        assert_eq!(hit.is_ok(), hits, "{mode}");
        assert_eq!(w.outstanding(), [usize::from(!hits), 0], "{mode}");
        assert_eq!(w.answer(0, newer, 1).is_ok(), !hits, "{mode}");
        assert_eq!(w.outstanding(), [0, 0], "{mode}");
    }
}

/// FAULT-5.7: private data are the function's, so a number that one user's
/// request had is never another's, whoever has the index: nothing that comes
/// late to the device is taken for another request.
#[test]
fn an_answer_that_comes_after_a_reset() {
    let mut w = Two::new("");
    w.attach(0, 7);
    w.attach(1, 8);
    let (late, _, index) = w.ask(0, 0, 7);
    w.s.host.ioctl(w.users[0].device, uapi::vfio::device::RESET, 0, &w.users[0].client).unwrap();
    let (_, _, again) = w.ask(1, 0, 8);
    assert_eq!(again, index, "free again");
    assert_eq!(w.answer(0, late, 0), Ok(()), "as in Linux");
    assert_eq!(w.outstanding(), [0, 1], "no request of anybody's was completed");
}
