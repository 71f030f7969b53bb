// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ten scenarios of section 5, each step by step with answers that carry a
//! sequence number (SEQ), nine bits, and nine bits whose owed indexes are kept
//! back.

use std::fmt::Write as _;

use device::PageTicket;
use device::page_requests::status;
use iommufd::{PageRequest, PageResponse, PageResponseCode};
use uapi::Errno;
use uapi::iommufd_events::PageFault;

use crate::fault::Faulting;
use crate::pri::{Consumer, Function, MODES, Mode};

/// What a step came to, step by step.
type Steps = Vec<(&'static str, String)>;

/// A function, its requests by name, and what happened.
struct Play {
    on: Function,
    names: Vec<(&'static str, PageTicket)>,
    steps: Steps,
}

impl Play {
    fn new(mode: Mode) -> Play {
        Play::on(Function::new(mode))
    }

    fn on(on: Function) -> Play {
        Play { on, names: Vec::new(), steps: Vec::new() }
    }

    /// The function sends a request, which the consumer reads.
    fn request(&mut self, step: &'static str, name: &'static str, pasid: Option<u32>, to: Consumer) -> PageFault {
        self.ask(name, pasid);
        let record = self.on.read_one(to);
        self.steps.push((step, "pending".into()));
        record
    }

    fn ask(&mut self, name: &'static str, pasid: Option<u32>) {
        let ticket = self.on.ask(pasid);
        self.names.push((name, ticket));
    }

    /// The consumer answers what it has read.
    fn answer(&mut self, step: &'static str, from: Consumer, record: &PageFault, code: u32) {
        let result = self.on.write(from, record.cookie, code);
        let seen = self.seen();
        let text = match result {
            Ok(_) if seen.is_empty() => "swallowed".into(),
            Ok(_) => seen,
            Err(Errno::EINVAL) => {
                assert_eq!(seen, "", "the function sees nothing of what is rejected");
                "rejected".into()
            }
            Err(other) => panic!("{other}"),
        };
        self.steps.push((step, text));
    }

    /// Something that answers for the consumer.
    fn host(&mut self, step: &'static str, act: impl FnOnce(&mut Function)) {
        act(&mut self.on);
        let seen = self.seen();
        self.steps.push((step, seen));
    }

    fn seen(&mut self) -> String {
        let name = |ticket| self.names.iter().find(|(_, of)| *of == ticket).map_or("?", |(name, _)| *name);
        let seen = self.on.seen();
        seen.iter().map(|(ticket, code)| format!("{} {code:?}", name(*ticket))).collect::<Vec<_>>().join(", ")
    }

    /// Every request had one answer, and the function none that it did not expect.
    fn end(self) -> Steps {
        assert_eq!(self.on.pri.outstanding(), 0, "{:?}", self.steps);
        assert_eq!(self.on.pri.status() & (status::UNEXPECTED | status::RESPONSE_FAILURE), 0);
        self.steps
    }
}

/// 5.1: a late answer after unregister and register, its index in use again.
fn stale_after_register(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("1 register", |on| on.attach(0, guest));
    let pr1 = play.request("2 PR1 on G1", "PR1", None, guest);
    play.request("3 PR2 on G2", "PR2", None, guest);
    play.host("4 unregister", |on| on.detach(0));
    play.host("5 register", |on| on.attach(0, guest));
    let pr3 = play.request("6 PR3 on G1", "PR3", None, guest);
    play.answer("7 late answer to PR1", guest, &pr1, 1);
    play.answer("8 answer to PR3", guest, &pr3, 0);
    play.end()
}

/// 5.2: a late answer, its index not in use.
fn stale_alone(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("1 register", |on| on.attach(0, guest));
    let pr1 = play.request("2 PR1 on G1", "PR1", None, guest);
    play.host("4 unregister", |on| on.detach(0));
    play.host("5 register", |on| on.attach(0, guest));
    play.answer("7 late answer to PR1", guest, &pr1, 0);
    let pr3 = play.request("8 PR3 on G1", "PR3", None, guest);
    play.answer("9 answer to PR3", guest, &pr3, 0);
    play.end()
}

/// 5.3: a late answer, its index in use by another PASID.
fn other_pasid(mode: Mode, needs_pasid: bool) -> Steps {
    let mut play = Play::on(Function::with(mode.options(), needs_pasid, 512));
    let guest = play.on.consumer();
    play.host("0 register P1, P2", |on| {
        on.attach(1, guest);
        on.attach(2, guest);
    });
    let pr1 = play.request("1 PR1 on G1 of P1", "PR1", Some(1), guest);
    play.host("1 detach P1", |on| on.detach(1));
    let pr2 = play.request("2 PR2 on G1 of P2", "PR2", Some(2), guest);
    play.answer("3 late answer G1 P1", guest, &pr1, 1);
    play.answer("4 answer G1 P2", guest, &pr2, 0);
    play.end()
}

/// 5.4: a PASID goes from one mediated device to another.
fn pasid_reused(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let [m1, m2] = [play.on.consumer(), play.on.consumer()];
    play.host("0 P1 to M1", |on| on.attach(1, m1));
    let pr1 = play.request("1 PR1 on G1 of P1", "PR1", Some(1), m1);
    play.host("2 revoke P1", |on| on.detach(1));
    play.host("3 P1 to M2", |on| on.attach(1, m2));
    let pr2 = play.request("4 PR2 on G1 of P1", "PR2", Some(1), m2);
    play.answer("5 M1 answers PR1", m1, &pr1, 1);
    play.answer("6 M2 answers PR2", m2, &pr2, 0);
    // M1 has a PASID again, and answers once more.
    play.host("7 P2 to M1", |on| on.attach(2, m1));
    play.answer("8 M1 answers PR1", m1, &pr1, 1);
    play.end()
}

/// 5.5: a new request and a late answer pass each other.
fn crossing(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("0 register P1", |on| on.attach(1, guest));
    let pr1 = play.request("1 PR1 on G1 of P1", "PR1", Some(1), guest);
    play.host("1 unregister, register", |on| {
        on.detach(1);
        on.attach(1, guest);
    });
    let pr2 = play.request("4 PR2 on G1 of P1", "PR2", Some(1), guest);
    play.answer("5 answer to PR1", guest, &pr1, 1);
    play.answer("6 answer to PR2", guest, &pr2, 0);
    play.end()
}

/// 5.6: the same answer twice, and once more when the index is in use again.
fn duplicate(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("0 register", |on| on.attach(0, guest));
    let pr1 = play.request("1 PR1 on G1", "PR1", None, guest);
    play.answer("2 answer to PR1", guest, &pr1, 0);
    play.answer("3 again", guest, &pr1, 1);
    let pr2 = play.request("4 PR2 on G1", "PR2", None, guest);
    play.answer("5 again", guest, &pr1, 1);
    play.answer("6 answer to PR2", guest, &pr2, 0);
    play.end()
}

/// 5.7: what the guest has in place of the private data comes back changed.
fn altered(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("0 register", |on| on.attach(0, guest));
    let pr1 = play.request("1 PR1", "PR1", None, guest);
    play.answer("2 altered value", guest, &PageFault { cookie: pr1.cookie ^ 0x40, ..pr1 }, 0);
    play.answer("3 answer to PR1", guest, &pr1, 0);
    play.end()
}

/// 5.8: unregistering with everything outstanding.
fn never_fails(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("0 register", |on| on.attach(0, guest));
    (0..512).for_each(|_| play.ask("PR", None));
    assert_eq!(play.on.read(guest).len(), 512);
    play.steps.push(("1 512 requests, no answer", "pending".into()));
    play.on.detach(0);
    let seen = play.on.seen();
    assert!(seen.iter().all(|(_, code)| *code == PageResponseCode::Invalid));
    play.steps.push(("2 unregister", format!("{} Invalid", seen.len())));
    play.end()
}

/// 5.9 has Linux's own numbers; 5.10: what may still be answered is not in use.
fn owed(mode: Mode) -> Steps {
    let mut play = Play::new(mode);
    let guest = play.on.consumer();
    play.host("0 register", |on| on.attach(0, guest));
    (0..512).for_each(|_| play.ask("PR", None));
    play.on.read(guest);
    play.on.detach(0);
    play.on.attach(0, guest);
    play.steps.push(("1 512 are owed", format!("{} Invalid", play.on.seen().len())));
    play.ask("PR1", None);
    let record = play.on.read(guest);
    let seen = play.seen();
    play.steps.push(("2 PR1", if record.is_empty() { seen } else { "pending".into() }));
    if let [record] = record[..] {
        play.answer("3 answer to PR1", guest, &record, 0);
    } else {
        play.steps.push(("3 answer to PR1", "-".into()));
    }
    let drained = play.on.write(guest, u32::MAX, 0);
    play.steps.push(("4 the guest has drained", if drained.is_ok() { "taken" } else { "rejected" }.into()));
    let pr2 = play.request("5 PR2", "PR2", None, guest);
    play.answer("6 answer to PR2", guest, &pr2, 0);
    play.end()
}

/// What the steps come to, from the first that is named.
#[track_caller]
fn check(play: impl Fn(Mode) -> Steps, expected: &[(&str, [&str; 3])]) {
    let columns = MODES.map(play);
    for (step, results) in expected {
        for ((column, result), mode) in columns.iter().zip(results).zip(MODES) {
            let found: Vec<_> = column.iter().filter(|(name, _)| name.starts_with(step)).collect();
            assert_eq!(found.last().map(|(_, text)| text.as_str()), Some(*result), "{step} {mode:?}");
        }
    }
}

/// FAULT-5.1
#[test]
fn scenario_1_stale_answer_after_unregister_and_register() {
    check(
        stale_after_register,
        &[
            ("4", ["PR1 Invalid, PR2 Invalid"; 3]),
            ("7", ["rejected", "PR3 Invalid", "swallowed"]),
            ("8", ["PR3 Success", "rejected", "PR3 Success"]),
        ],
    );
}

/// FAULT-5.2
#[test]
fn scenario_2_late_answer_index_not_reused() {
    check(stale_alone, &[("7", ["rejected", "rejected", "swallowed"]), ("9", ["PR3 Success"; 3])]);
}

/// FAULT-5.3
#[test]
fn scenario_3_late_answer_with_another_pasid() {
    check(
        |mode| other_pasid(mode, true),
        &[("1", ["PR1 Invalid"; 3]), ("3", ["rejected", "rejected", "swallowed"]), ("4", ["PR2 Success"; 3])],
    );
    check(
        |mode| other_pasid(mode, false),
        &[("3", ["rejected", "PR2 Invalid", "swallowed"]), ("4", ["PR2 Success", "rejected", "PR2 Success"])],
    );
}

/// FAULT-5.4
#[test]
fn scenario_4_pasid_reused_between_mediated_devices() {
    check(
        pasid_reused,
        &[
            ("2", ["PR1 Invalid"; 3]),
            ("5", ["rejected", "rejected", "swallowed"]),
            ("6", ["PR2 Success"; 3]),
            ("8", ["rejected"; 3]),
        ],
    );
}

/// FAULT-5.5
#[test]
fn scenario_5_request_and_stale_answer_cross() {
    check(
        crossing,
        &[("5", ["rejected", "PR2 Invalid", "swallowed"]), ("6", ["PR2 Success", "rejected", "PR2 Success"])],
    );
}

/// FAULT-5.6
#[test]
fn scenario_6_duplicate_answer() {
    check(
        duplicate,
        &[
            ("2", ["PR1 Success"; 3]),
            ("3", ["rejected"; 3]),
            ("5", ["rejected", "PR2 Invalid", "rejected"]),
            ("6", ["PR2 Success", "rejected", "PR2 Success"]),
        ],
    );
}

/// FAULT-5.7: the function has its own bytes back, the program has never seen them.
#[test]
fn scenario_7_private_data() {
    check(altered, &[("2", ["rejected"; 3]), ("3", ["PR1 Success"; 3])]);
    let mut on = Faulting::new(iommufd::FaultCookies::Monotonic);
    let private = 0x1122_3344_5566_7788_99aa_bbcc_ddee_ff10_u128;
    let request = PageRequest { private_data: Some(private), ..crate::fault::last(3) };
    on.report(request).unwrap();
    let bytes = on.lab.read(on.file, 40).unwrap();
    let parts = private.to_le_bytes();
    assert!(parts.chunks(4).all(|part| !bytes.windows(4).any(|window| window == part)));
    let cookie = u32::from_ne_bytes(bytes[36..].try_into().unwrap());
    on.answer(&[(cookie, 0)]).unwrap();
    let answer = PageResponse { pasid: None, group: 3, code: PageResponseCode::Success, private_data: Some(private) };
    assert_eq!(on.answers.take(), [answer]);
}

/// FAULT-5.8
#[test]
fn scenario_8_unregistering_never_fails() {
    check(never_fails, &[("2", ["512 Invalid"; 3])]);
}

/// FAULT-5.9: with Linux's cookies the late answer of 5.1 is taken for another
/// request; the one of 5.4 is not, as the queue is another one.
#[test]
fn scenario_9_cookies_of_linux() {
    let result = |steps: &Steps, step: &str| steps.iter().find(|(name, _)| name.starts_with(step)).unwrap().1.clone();
    let steps = stale_after_register(Mode::Linux);
    assert_eq!([result(&steps, "7"), result(&steps, "8")], ["PR3 Invalid", "rejected"]);
    let steps = pasid_reused(Mode::Linux);
    assert_eq!([result(&steps, "5"), result(&steps, "6")], ["rejected", "PR2 Success"]);
}

/// FAULT-5.10
#[test]
fn scenario_10_owed_indexes() {
    check(
        owed,
        &[
            ("1", ["512 Invalid"; 3]),
            ("2", ["pending", "pending", "PR1 Invalid"]),
            ("3", ["PR1 Success", "PR1 Success", "-"]),
            ("4", ["rejected", "rejected", "taken"]),
            ("6", ["PR2 Success"; 3]),
        ],
    );
}

/// FAULT-5.1 to FAULT-5.10: prints every step in each column.
#[test]
fn the_table_of_scenarios() {
    type Scenario = (&'static str, fn(Mode) -> Steps);
    let all: [Scenario; 10] = [
        ("5.1 stale answer after unregister/register", stale_after_register),
        ("5.2 late answer, index not reused", stale_alone),
        ("5.3 late answer with another PASID", |mode| other_pasid(mode, true)),
        ("5.3 the same, answers without PASID", |mode| other_pasid(mode, false)),
        ("5.4 PASID reused between mediated devices", pasid_reused),
        ("5.5 request and stale answer cross", crossing),
        ("5.6 duplicate answer", duplicate),
        ("5.7 altered private data", altered),
        ("5.8 unregister with 512 outstanding", never_fails),
        ("5.10 owed indexes", owed),
    ];
    let mut text = String::new();
    for (name, play) in all {
        let columns = MODES.map(play);
        writeln!(text, "{name:<44} {:<26} {:<26} quarantined", "SEQ", "9-bit").unwrap();
        for (n, (step, seq)) in columns[0].iter().enumerate() {
            let [_, nine, kept] = &columns;
            writeln!(text, "  {step:<42} {seq:<26} {:<26} {}", nine[n].1, kept[n].1).unwrap();
        }
    }
    println!("{text}");
    assert_eq!(text.matches("quarantined\n").count(), all.len());
}
