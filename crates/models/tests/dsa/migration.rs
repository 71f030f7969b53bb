// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An accelerator is stopped, saved, and goes on as another one on the same
//! memory.

use device::ResetKind;
use device::migration::{Activity, LoadError};
use models::dsa::spec::{self, Descriptor, State, command, flag, opcode, permission};
use models::dsa::{Accelerator, Config};
use models::testing::{Access, Bench, TestMemory};
use zerocopy::IntoBytes as _;

use crate::fixture::{BOTH, DATA, Fixture, LIST, OTHER, RECORD, SHARED, fresh, moving, noise, ready};
use crate::missing::{Blocking, HOLE, PAGE};

use iommu::PageResponseCode::{Invalid, Success};

const RECORDED: u32 = flag::RECORD | flag::REQUEST_RECORD;

/// A descriptor with the n-th completion record.
fn recorded(n: u64, descriptor: Descriptor) -> Descriptor {
    Descriptor { operation: descriptor.operation | RECORDED, completion: RECORD + 32 * n, ..descriptor }
}

/// Which of `count` records were written since the last look.
fn take_records(f: &Fixture, count: u64) -> Vec<u64> {
    let written: Vec<u64> = (0..count).filter(|n| f.record(RECORD + 32 * n).status != 0).collect();
    written.iter().for_each(|n| f.memory.set(RECORD + 32 * n, &[0; 32]));
    written
}

/// MIG-049: what is submitted in RUNNING_P2P is kept and waits; it is done
/// once, where the accelerator then is.
#[test]
fn what_was_submitted_is_done_once() {
    for access in BOTH {
        let mut f = ready(access);
        f.submit(0, 0, &recorded(0, moving(DATA, OTHER, 64)));
        f.bench.endpoint.set_activity(Activity::Quiesced, 0);
        for n in 1..8 {
            f.submit(0, 0, &recorded(n, moving(DATA, OTHER, 64)));
        }
        f.bench.run();
        assert!(take_records(&f, 8).is_empty(), "nothing is started");
        let source = f.take_over();
        source.run();
        assert!(take_records(&f, 8).is_empty(), "the source has stopped");
        f.bench.run();
        assert_eq!(take_records(&f, 8), (0..8).collect::<Vec<_>>());
        f.bench.run();
        assert!(take_records(&f, 8).is_empty(), "each once");
        assert_eq!(f.execute(moving(DATA, OTHER, 64)).status, 1, "the queue goes on");
    }
}

/// A descriptor that is under way goes on where it was.
#[test]
fn halfway() {
    let mut f = ready(Access::Mapped);
    let bytes = noise(3, 3 << 20);
    f.memory.set(DATA, &bytes);
    f.submit(0, 0, &recorded(0, moving(DATA, OTHER, 3 << 20)));
    f.bench.turn();
    f.take_over();
    // What was done is not done again.
    f.memory.set(DATA, &[0; 4096]);
    assert!(take_records(&f, 1).is_empty());
    f.bench.run();
    assert_eq!(take_records(&f, 1), [0]);
    assert!(f.get(OTHER, 3 << 20) == bytes);
}

/// What waits for a page asks for it anew, and the answer to what the source
/// has asked for is nobody's.
#[test]
fn blocked_on_faults() {
    let mut b = Blocking::dedicated();
    let bytes = noise(1, 0x2000);
    b.f.memory.set(DATA, &bytes);
    b.submit(0, moving(DATA, HOLE + 0x10, 0x2000));
    b.submit(1, moving(HOLE + 8 * PAGE, OTHER, 64));
    let requests = b.take();
    b.map(&requests[0]);
    b.answer(&requests[0], Success);
    let at_source = [b.take_one(), requests[1]];
    let (source, _) = b.take_over();
    let first = requests[0];
    b.map(&first);
    b.f.bench.run();
    let mut again = b.take();
    again.sort_by_key(|request| request.addr);
    let asked = again.iter().map(|request| request.addr).collect::<Vec<_>>();
    assert_eq!(asked, [HOLE + PAGE, HOLE + 8 * PAGE], "each asks where it was");
    for request in &at_source {
        use iommu::PageResponder as _;
        source.endpoint.page_requests.respond(iommu::PageResponse::to(request, Success));
        source.run();
    }
    assert_eq!([b.status(0), b.status(1)], [0, 0], "the source does nothing");
    b.answer(&again[1], Invalid);
    assert_eq!([b.status(0), b.status(1)], [0, 3]);
    let mut next = again[0];
    loop {
        b.map(&next);
        b.answer(&next, Success);
        match b.take()[..] {
            [request] => next = request,
            _ => break,
        }
    }
    assert_eq!(b.status(0), 1);
    let mut there = vec![0; 0x2000];
    b.pages.get(0x10, &mut there);
    assert!(there == bytes);
}

/// An answer that has come and was not seen: the refusal goes with the
/// descriptor.
#[test]
fn a_refusal_on_the_way() {
    let mut b = Blocking::dedicated();
    b.submit(0, moving(HOLE, DATA, 64));
    let request = b.take_one();
    b.f.bench.endpoint.set_activity(Activity::Quiesced, 0);
    b.answer(&request, Invalid);
    assert_eq!(b.status(0), 0);
    b.take_over();
    b.f.bench.run();
    assert_eq!((b.status(0), b.take()), (3, vec![]));
}

/// A batch moves at each of its steps: its list, one of its descriptors, that
/// one's record, its own record.
#[test]
fn a_batch_at_each_step() {
    for steps in 0..5 {
        let mut b = Blocking::dedicated();
        let (list, source, record, last) = (HOLE, HOLE + PAGE, HOLE + 2 * PAGE, HOLE + 3 * PAGE);
        let flags = RECORDED | flag::BLOCK_ON_FAULT;
        let inner = |completion, from| Descriptor {
            operation: moving(0, 0, 0).operation | flags,
            completion,
            ..moving(from, OTHER, 8)
        };
        b.pages.set(0, [inner(record, source), inner(RECORD + 64, DATA)].as_bytes());
        let batch = Descriptor { source: list, size: 2, completion: last, ..Descriptor::new(opcode::BATCH, flags) };
        b.f.submit(0, 0, &batch);
        b.f.bench.run();
        for (n, page) in [list, source, record, last].into_iter().enumerate() {
            if n == steps {
                let here = b.take_one();
                b.take_over();
                // The guest's tables move with it.
                for before in [list, source, record, last].into_iter().take(n) {
                    b.map(&iommu::PageRequest { addr: before, ..here });
                }
                b.f.bench.run();
            }
            let request = b.take_one();
            assert_eq!(request.addr, page, "moved at {steps}");
            b.map(&request);
            b.answer(&request, Success);
        }
        let status = |at: u64| {
            let mut byte = [0];
            b.pages.get(at - HOLE, &mut byte);
            byte[0]
        };
        assert_eq!([status(record), status(last), b.f.record(RECORD + 64).status], [1; 3], "moved at {steps}");
        assert_eq!(b.f.error(), 0);
    }
}

/// A long batch of which a part is done.
#[test]
fn a_long_batch() {
    let mut f = ready(Access::Trapped);
    let list: Vec<Descriptor> = (0..900).map(|n| moving(DATA + 8 * n, OTHER + 8 * n, 8)).collect();
    let bytes = noise(9, 8 * 900);
    f.memory.set(DATA, &bytes);
    f.memory.set(LIST, list.as_bytes());
    f.submit(0, 0, &recorded(0, Descriptor { source: LIST, size: 900, ..Descriptor::new(opcode::BATCH, 0) }));
    let mut moves = 0;
    while take_records(&f, 1).is_empty() {
        f.bench.turn();
        f.take_over();
        moves += 1;
        assert!(moves < 100);
    }
    assert!(moves > 2);
    assert!(f.get(OTHER, bytes.len()) == bytes);
}

/// Descriptors of any kind that come at any time, and an accelerator that is
/// moved at any time: each is completed once, here or there.
#[test]
fn random_moves() {
    for seed in 1..=40 {
        let mut random = noise(seed, 4000).into_iter();
        let mut next = |most: u8| random.next().unwrap_or(0) % most;
        let mut f = ready(if seed % 2 == 0 { Access::Mapped } else { Access::Trapped });
        let (mut submitted, mut completed) = (0_u64, 0_u64);
        let mut sources = Vec::new();
        f.memory.set(LIST, [moving(DATA, OTHER, 8); 16].as_bytes());
        for _ in 0..200 {
            match next(8) {
                0..3 if submitted < completed + 16 => {
                    let size = 1 << (3 + u32::from(next(19)));
                    let descriptor = match next(5) {
                        0 => Descriptor { source: DATA, size, ..Descriptor::new(opcode::CRC, 0) },
                        1 => Descriptor { source: 7, destination: OTHER, size, ..Descriptor::new(opcode::FILL, 0) },
                        2 => Descriptor { source: LIST, size: 16, ..Descriptor::new(opcode::BATCH, 0) },
                        3 => Descriptor::new(0x7f, 0),
                        _ => moving(DATA, OTHER, size),
                    };
                    f.submit(0, 0, &recorded(submitted % 64, descriptor));
                    submitted += 1;
                }
                0..6 => {
                    f.bench.turn();
                }
                6 => f.bench.endpoint.set_activity([Activity::Running, Activity::Quiesced][usize::from(next(2))], 0),
                _ => sources.push(f.take_over()),
            }
            sources.iter().for_each(|source| {
                source.turn();
            });
            let written = take_records(&f, 64);
            for n in &written {
                assert!((completed..submitted).any(|wanted| wanted % 64 == *n), "seed {seed}: {n} once more");
            }
            completed += written.len() as u64;
        }
        f.bench.endpoint.set_activity(Activity::Running, 0);
        f.bench.run();
        completed += take_records(&f, 64).len() as u64;
        assert_eq!(completed, submitted, "seed {seed}");
    }
}

/// Registers, a command that waits, interrupts and software errors.
#[test]
fn registers_and_commands() {
    let mut b = Blocking::dedicated();
    b.f.store(spec::GENCTRL, 1);
    assert_eq!(b.f.command(command::DRAIN_ALL, 0), 0);
    b.submit(0, moving(HOLE, DATA, 64));
    b.f.submit(0, 0, &Descriptor::new(0x7f, 0));
    b.f.bench.run();
    assert_ne!(b.f.error(), 0);
    b.f.store(spec::CMD, command::DISABLE_DEVICE << 20);
    b.f.bench.run();
    assert_eq!(b.f.load(spec::GENSTS) & 3, State::Draining as u32);
    assert_eq!(b.f.bench.events[0].take(), 1);
    let registers = |f: &Fixture| (0..0x900).step_by(4).map(|offset| f.load(offset)).collect::<Vec<_>>();
    let before = registers(&b.f);
    b.take_over();
    assert_eq!(registers(&b.f), before);
    b.f.bench.run();
    assert_eq!(b.f.bench.events[0].take(), 1, "it may have been lost on the way");
    let request = b.take_one();
    b.answer(&request, Invalid);
    assert_eq!(b.f.load(spec::GENSTS) & 3, State::Disabled as u32);
    assert_eq!(b.f.load(spec::CMDSTS), 0);
}

/// A shared queue with PASIDs, a limited portal, a vector with a PASID, and a
/// place that is half filled.
#[test]
fn queues_and_portals() {
    let mut f = fresh(Access::Trapped, Config { operations: true, handles: true, ..Config::default() });
    f.configure(1, 8, SHARED);
    f.store(spec::MSIX_PERM + 8, permission::PASID_ENABLE | 5 << 12);
    f.enable(1);
    f.bench.endpoint.set_activity(Activity::Quiesced, 0);
    for _ in 0..3 {
        f.submit(1, 1, &Descriptor { pasid: 5, ..moving(DATA, OTHER, 8) });
    }
    assert_eq!(f.answer(1, 2), 1, "two may wait through the limited portal");
    let last = Descriptor { pasid: 5, ..moving(DATA, OTHER, 8) };
    let (first, rest) = last.as_bytes().split_at(32);
    let store = |f: &Fixture, at, part: &[u8]| {
        for (at, part) in (at..).step_by(8).zip(part.chunks(8)) {
            f.bench.endpoint.write(spec::PORTAL_BAR, at, part, 0);
        }
    };
    store(&f, 0x4000, first);
    f.take_over();
    assert_eq!(f.answer(1, 2), 1);
    f.bench.endpoint.set_activity(Activity::Quiesced, 0);
    store(&f, 0x4020, rest);
    assert_eq!(f.load(f.wqcfg(1, spec::wqcfg::STATE)) & 0xffff, 3);
    assert_eq!(f.answer(1, 2), 0);
}

/// A state that has something of everything.
fn rich() -> (Vec<u8>, Config) {
    let mut b = Blocking::dedicated();
    b.submit(0, moving(HOLE, DATA, 64));
    let crc = Descriptor::new(opcode::CRC, 0);
    b.submit(1, Descriptor { source: HOLE - 0x100, size: 0x200, ..crc });
    b.f.memory.set(LIST, [moving(DATA, OTHER, 64), moving(DATA, HOLE, 64)].map(with_block).as_bytes());
    b.submit(2, Descriptor { source: LIST, size: 2, ..Descriptor::new(opcode::BATCH, 0) });
    let delta = Descriptor { source: DATA, destination: HOLE, size: 64, ..Descriptor::new(opcode::APPLY_DELTA, 0) };
    b.submit(3, delta.with(0, &20_u32.to_le_bytes()));
    let requests = b.take();
    b.f.bench.endpoint.set_activity(Activity::Quiesced, 0);
    b.answer(&requests[0], Invalid);
    b.submit(4, moving(DATA, OTHER, 64));
    b.f.store(spec::CMD, command::DRAIN_ALL << 20);
    b.f.bench.run();
    b.f.bench.endpoint.set_activity(Activity::Stopped, 0);
    (b.f.bench.endpoint.save(0), Config::default())
}

fn with_block(descriptor: Descriptor) -> Descriptor {
    Descriptor { operation: descriptor.operation | flag::BLOCK_ON_FAULT, ..descriptor }
}

/// Any bytes: taken over whole, or refused and nothing has changed; never a
/// panic, and an accelerator that can be used after a reset.
#[test]
fn any_bytes() {
    let (state, config) = rich();
    let memory = TestMemory::new(crate::fixture::MEMORY, false);
    let target = Bench::new(Box::new(Accelerator::new(config)), Access::Trapped, memory);
    let endpoint = &target.endpoint;
    endpoint.set_activity(Activity::Stopped, 0);
    let empty = endpoint.save(0);
    for end in 0..state.len() {
        assert!(endpoint.load(&state[..end], 0).is_err(), "cut at {end}");
    }
    assert!(matches!(endpoint.load(&[&state[..], &[0]].concat(), 0), Err(LoadError::Corrupt(_))));
    assert_eq!(endpoint.save(0), empty, "nothing has changed");
    let mut taken = 0;
    for at in 0..state.len() {
        for value in [state[at] ^ 1, state[at] ^ 0x80, 0, 0xff] {
            let mut changed = state.clone();
            changed[at] = value;
            if endpoint.load(&changed, 0).is_ok() {
                taken += 1;
                assert_eq!(endpoint.save(0), changed, "byte {at}");
                endpoint.set_activity(Activity::Running, 0);
                (0..4).for_each(|_| {
                    let _ = target.turn();
                });
                endpoint.reset(ResetKind::FunctionLevel, 0);
                endpoint.set_activity(Activity::Stopped, 0);
            }
        }
    }
    assert!(taken > 100, "{taken}");
    assert_eq!(endpoint.load(&state, 0), Ok(()));
    let mut version = state;
    version[0] = 2;
    assert_eq!(endpoint.load(&version, 0), Err(LoadError::Version(2)));
}

/// What depends on the configuration is another identity.
#[test]
fn another_accelerator_is_another_identity() {
    let identity = |config| fresh(Access::Trapped, config).bench.endpoint.identity();
    let own = Config::default();
    for other in [
        Config { queues: 7, ..own },
        Config { entries: 127, ..own },
        Config { engines: 3, ..own },
        Config { max_transfer: 30, ..own },
        Config { max_batch: 9, ..own },
        Config { operations: true, ..own },
        Config { handles: true, ..own },
    ] {
        assert_ne!(identity(other), identity(own), "{other:?}");
    }
}
