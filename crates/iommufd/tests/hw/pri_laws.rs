// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Over random requests, reads, answers (right, late, twice, made up), PASIDs
//! that come, go and change hands, resets, deadlines and closing: each request
//! has exactly one answer, and a program's answer reaches nothing but a request
//! that this program has read; where answers carry enough, the one it is for.

use std::collections::BTreeMap;

use device::{Asked, PageTicket};
use iommu::Access;
use iommufd::{FaultReset, Options, PageResponseCode};
use proptest::prelude::*;
use uapi::Errno;

use crate::pri::{Function, Mode};

const PASIDS: u32 = 3;
const CONSUMERS: usize = 3;
const TIMEOUT: u64 = 1000;

#[derive(Clone, Copy, Debug)]
enum Op {
    Ask {
        pasid: u32,
    },
    Read {
        consumer: usize,
    },
    /// What the consumer has read so many records ago.
    Answer {
        consumer: usize,
        back: usize,
        code: u32,
    },
    /// What another consumer has read.
    Steal {
        consumer: usize,
        of: usize,
        back: usize,
    },
    MakeUp {
        consumer: usize,
        cookie: u32,
    },
    Detach {
        pasid: u32,
    },
    Attach {
        pasid: u32,
        consumer: usize,
    },
    Replace {
        pasid: u32,
        consumer: usize,
    },
    Reset,
    Drain {
        consumer: usize,
    },
    Wait {
        time: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let consumer = 0..CONSUMERS;
    let pasid = 0..PASIDS;
    prop_oneof![
        8 => pasid.clone().prop_map(|pasid| Op::Ask { pasid }),
        6 => consumer.clone().prop_map(|consumer| Op::Read { consumer }),
        8 => (consumer.clone(), 0..6usize, 0..2u32)
            .prop_map(|(consumer, back, code)| Op::Answer { consumer, back, code }),
        2 => (consumer.clone(), consumer.clone(), 0..4usize)
            .prop_map(|(consumer, of, back)| Op::Steal { consumer, of, back }),
        1 => (consumer.clone(), prop_oneof![0..8u32, any::<u32>()])
            .prop_map(|(consumer, cookie)| Op::MakeUp { consumer, cookie }),
        3 => pasid.clone().prop_map(|pasid| Op::Detach { pasid }),
        4 => (pasid.clone(), consumer.clone()).prop_map(|(pasid, consumer)| Op::Attach { pasid, consumer }),
        2 => (pasid, consumer.clone()).prop_map(|(pasid, consumer)| Op::Replace { pasid, consumer }),
        1 => Just(Op::Reset),
        1 => consumer.prop_map(|consumer| Op::Drain { consumer }),
        2 => (0..TIMEOUT).prop_map(|time| Op::Wait { time }),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Seq), Just(Mode::NineBit), Just(Mode::Quarantined), Just(Mode::Linux)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, ..ProptestConfig::default() })]

    /// FAULT-1.5, FAULT-3.1, FAULT-3.2, FAULT-5.1 to FAULT-5.6
    #[test]
    fn each_request_has_one_answer_and_from_its_own_consumer(
        ops in prop::collection::vec(op(), 1..120),
        mode in mode(),
        timeout in any::<bool>(),
        reset in prop_oneof![Just(FaultReset::Keep), Just(FaultReset::Answer)],
    ) {
        let fault_timeout = timeout.then_some(TIMEOUT);
        let options = Options { fault_timeout, fault_reset: reset, ..mode.options() };
        let mut on = Function::with(options, true, 8);
        let consumers = [(); CONSUMERS].map(|()| on.consumer());
        let mut attached: BTreeMap<u32, usize> = BTreeMap::new();
        // Requests that are out, by the address that each has for itself.
        let mut out: BTreeMap<PageTicket, u64> = BTreeMap::new();
        // Cookies read by each consumer, and the addresses they were for.
        let mut read: [Vec<(u32, u64)>; CONSUMERS] = Default::default();
        let mut address = 0;
        // The last address of before a reset that answers.
        let mut over = 0;
        for op in ops {
            // Who may have caused answers other than INVALID, and for what.
            let mut by_program: Option<(usize, Option<u64>)> = None;
            match op {
                Op::Ask { pasid } => {
                    address += 0x1000;
                    if let Asked::Sent(ticket) = on.pri.ask((pasid > 0).then_some(pasid), Access::Read, address) {
                        prop_assert!(out.insert(ticket, address).is_none());
                    }
                }
                Op::Read { consumer } => {
                    for record in on.read(consumers[consumer]) {
                        prop_assert!(mode != Mode::Seq || read.iter().all(|of| of.iter().all(|(_, at)| *at != record.addr)));
                        prop_assert!(record.addr > over, "its answer was the reset");
                        read[consumer].push((record.cookie, record.addr));
                    }
                }
                Op::Answer { consumer, back, code } => {
                    let Some(at) = read[consumer].len().checked_sub(back + 1) else { continue };
                    let (cookie, addr) = read[consumer][at];
                    by_program = Some((consumer, Some(addr)));
                    let result = on.write(consumers[consumer], cookie, code);
                    prop_assert!(mode != Mode::Seq || addr > over || result == Err(Errno::EINVAL));
                }
                Op::Steal { consumer, of, back } => {
                    let Some(at) = read[of].len().checked_sub(back + 1) else { continue };
                    by_program = Some((consumer, None));
                    let _ = on.write(consumers[consumer], read[of][at].0, 0);
                }
                Op::MakeUp { consumer, cookie } => {
                    by_program = Some((consumer, None));
                    let _ = on.write(consumers[consumer], cookie, 0);
                }
                Op::Detach { pasid } => {
                    if attached.remove(&pasid).is_some() {
                        on.detach(pasid);
                    }
                }
                Op::Attach { pasid, consumer } => {
                    if let std::collections::btree_map::Entry::Vacant(free) = attached.entry(pasid) {
                        free.insert(consumer);
                        on.attach(pasid, consumers[consumer]);
                    }
                }
                Op::Replace { pasid, consumer } => {
                    if let Some(of) = attached.get_mut(&pasid) {
                        let hwpt = on.hwpt(consumers[consumer].queue);
                        on.lab.replace(on.device, pasid, hwpt).unwrap();
                        *of = consumer;
                    }
                }
                Op::Reset => {
                    on.pri.reset();
                    on.pri.set_enabled(true, 8);
                    // The function takes no answer for those: the reset was it.
                    out.clear();
                    if reset == FaultReset::Answer {
                        over = address;
                    }
                }
                Op::Drain { consumer } => drop(on.write(consumers[consumer], u32::MAX, 0)),
                Op::Wait { time } => {
                    on.advance(time);
                    on.lab.iommufd.elapse();
                }
            }
            let mut accepted = 0;
            for (ticket, code) in on.seen() {
                let addr = out.remove(&ticket);
                prop_assert!(addr.is_some(), "a second answer, or one to nothing");
                let addr = addr.unwrap_or_default();
                // After a reset the IOMMU's queue may be full of what came before.
                let lost = matches!(op, Op::Ask { .. }) && addr == address;
                if lost {
                    prop_assert_eq!(code, PageResponseCode::Success, "to be tried again");
                } else if code == PageResponseCode::Success {
                    accepted += 1;
                    let Some((consumer, meant)) = by_program else {
                        return Err(TestCaseError::fail("nobody said so"));
                    };
                    prop_assert!(read[consumer].iter().any(|(_, at)| *at == addr), "not its own");
                    if let (Mode::Seq | Mode::Quarantined, Some(meant)) = (mode, meant) {
                        prop_assert_eq!(addr, meant, "another request");
                    }
                }
                prop_assert!(code != PageResponseCode::Failure);
            }
            prop_assert!(accepted <= 1);
        }
        on.lab.iommufd.unbind(on.lab.context, on.device);
        for (ticket, code) in on.seen() {
            prop_assert_eq!(code, PageResponseCode::Invalid);
            prop_assert!(out.remove(&ticket).is_some());
        }
        prop_assert!(out.is_empty(), "never answered: {out:?}");
    }
}
