// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Over random requests, reads, answers, detachments and replacements each
//! group gets exactly one answer, and an answer of the program's only if its
//! cookie is that group's.

use std::collections::BTreeMap;

use iommufd::FaultCookies;
use proptest::prelude::*;
use uapi::Errno;

use crate::fault::{Faulting, Invalid, Success, last, part};

#[derive(Clone, Copy, Debug)]
enum Op {
    Request {
        last: bool,
    },
    Read {
        records: usize,
    },
    /// Answers the cookie that was given so many reads ago.
    Answer {
        back: usize,
        code: u32,
    },
    Replace,
    DetachAndAttach,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<bool>().prop_map(|last| Op::Request { last }),
        3 => (0..5usize).prop_map(|records| Op::Read { records }),
        4 => (0..6usize, 0..2u32).prop_map(|(back, code)| Op::Answer { back, code }),
        1 => Just(Op::Replace),
        1 => Just(Op::DetachAndAttach),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, ..ProptestConfig::default() })]

    /// FAULT-1.5, FAULT-3.1, FAULT-3.2, FAULT-5.1, FAULT-5.6
    #[test]
    fn every_group_gets_one_answer(ops in prop::collection::vec(op(), 1..80), linux in any::<bool>()) {
        let cookies = if linux { FaultCookies::LowestFree } else { FaultCookies::Monotonic };
        let mut on = Faulting::new(cookies);
        let mut hwpts = [on.hwpt(), on.hwpt()];
        // Each group has an index of its own, so that answers tell which it was.
        let mut index = 0;
        let mut parts = 0;
        let mut unread: Vec<(u32, usize)> = Vec::new();
        let mut read: BTreeMap<u32, u32> = BTreeMap::new();
        let mut given: Vec<u32> = Vec::new();
        for op in ops {
            let mut expected = Vec::new();
            match op {
                Op::Request { last: false } => {
                    on.report(part(index)).unwrap();
                    parts += 1;
                }
                Op::Request { last: true } => {
                    on.report(last(index)).unwrap();
                    unread.push((index, parts + 1));
                    (index, parts) = (index + 1, 0);
                }
                Op::Read { records } => match on.read(records) {
                    Ok(found) => {
                        let mut found = found.as_slice();
                        while let [record, ..] = found {
                            let (group, size) = unread.remove(0);
                            prop_assert_eq!(record.grpid, group);
                            prop_assert!(found.iter().take(size).all(|other| other.cookie == record.cookie));
                            prop_assert!(read.insert(record.cookie, group).is_none(), "of two groups");
                            if !linux {
                                prop_assert!(!given.contains(&record.cookie), "never again");
                            }
                            given.push(record.cookie);
                            found = &found[size..];
                        }
                    }
                    Err(error) => {
                        prop_assert_eq!(error, Errno::EINVAL);
                        prop_assert!(unread[0].1 > records);
                    }
                },
                Op::Answer { back, code } => {
                    let Some(cookie) = given.len().checked_sub(back + 1).map(|at| given[at]) else { continue };
                    let group = read.remove(&cookie);
                    prop_assert_eq!(on.answer(&[(cookie, code)]).is_ok(), group.is_some());
                    expected.extend(group.map(|group| (group, if code == 0 { Success } else { Invalid })));
                }
                Op::Replace | Op::DetachAndAttach => {
                    if matches!(op, Op::Replace) {
                        on.lab.replace(on.device, 0, hwpts[0]).unwrap();
                    } else {
                        on.lab.detach(on.device, 0);
                        on.lab.attach(on.device, 0, hwpts[0]).unwrap();
                        parts = 0;
                    }
                    hwpts.swap(0, 1);
                    let gone = unread.drain(..).map(|(group, _)| group);
                    let gone: Vec<u32> = gone.chain(std::mem::take(&mut read).into_values()).collect();
                    expected.extend(gone.into_iter().map(|group| (group, Invalid)));
                }
            }
            prop_assert_eq!(on.told(), expected);
            prop_assert_eq!(on.lab.is_readable(on.file), !unread.is_empty());
        }
        on.lab.iommufd.unbind(on.lab.context, on.device);
        prop_assert_eq!(on.told().len(), unread.len() + read.len());
    }
}
