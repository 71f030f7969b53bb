// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The measurements. Ours and the peer take turns, so that a drift of the
//! machine's speed hits both. `vfuse-bench` includes this file for its table.

pub(crate) mod dirty;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use iommu::{Access, AddressSpace, Mapping, Memory, MemoryFault, Prot, Requester};
use vm_memory::VolatileSlice;

const PAGE: u64 = 4096;
const BASE: u64 = 0x1_0000_0000;
const ROUNDS: usize = 11;

/// One measured row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) ours: f64,
    pub(crate) peer: f64,
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{},{:.2},{:.2}", self.name, self.ours, self.peer)
    }
}

/// All rows.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = vec![session(), same_page()];
    for (name, maps) in [("random_1k", 1_000), ("random_64k", 65_000), ("random_1m", 1_000_000)] {
        rows.push(random(name, maps));
    }
    rows.push(threads());
    rows.push(two_threads("two_threads_and_one_per_us_of_cpu", true));
    rows.extend(map_unmap());
    rows.extend(memory());
    rows.extend(dirty::all());
    rows
}

/// Memory that is never looked at.
#[derive(Debug)]
struct Nothing;

impl Memory for Nothing {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }
}

fn mapping(memory: &Arc<dyn Memory>, first: u64, pages: u64) -> Mapping {
    let last = first + (pages * PAGE - 1);
    Mapping { first, last, prot: Prot::READ | Prot::WRITE, memory: memory.clone(), offset: first, tag: 0 }
}

/// A space with `maps` pages mapped one by one from `BASE`, `every` pages apart.
fn space(maps: u64, every: u64) -> (Arc<AddressSpace>, Arc<dyn Memory>) {
    let space = AddressSpace::new();
    let memory: Arc<dyn Memory> = Arc::new(Nothing);
    for page in 0..maps {
        space.map(mapping(&memory, BASE + page * every * PAGE, 1)).expect("free");
    }
    (space, memory)
}

fn requester(space: &Arc<AddressSpace>) -> Arc<Requester> {
    let requester = Requester::new();
    requester.attach(Some(space.clone().into()));
    requester.set_bus_master(true);
    requester
}

/// Nanoseconds a step of `work`, which does `steps`.
fn time(steps: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / steps as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of two things measured in turn.
fn both(mut ours: impl FnMut() -> f64, mut peer: impl FnMut() -> f64) -> (f64, f64) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours());
        b.push(peer());
    }
    (median(a), median(b))
}

struct Random(u64);

impl Random {
    /// A number below `end`; `before` is something that must be known first.
    fn below(&mut self, end: u64, before: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407 + before);
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

/// Opening and ending a session, and one translation in it; a session's
/// translation alone.
fn session() -> Row {
    const STEPS: u64 = 1_000_000;
    let (space, _) = space(1000, 1);
    let requester = requester(&space);
    let (ours, peer) = both(
        || {
            time(STEPS, || {
                for _ in 0..STEPS {
                    let mut session = requester.session();
                    black_box(session.translate(black_box(BASE), Access::Read).is_ok());
                }
            })
        },
        || {
            let mut session = requester.session();
            time(STEPS, || {
                for _ in 0..STEPS {
                    black_box(session.translate(black_box(BASE), Access::Read).is_ok());
                }
            })
        },
    );
    Row { name: "session_and_translation", ours, peer }
}

/// The least that a cache of one entry can do.
struct Bare {
    first: u64,
    last: u64,
    offset: u64,
    write: bool,
}

impl Bare {
    #[inline(never)]
    fn translate(&self, iova: u64, write: bool) -> Option<u64> {
        (self.first <= iova && iova <= self.last && (self.write || !write)).then(|| self.offset + (iova - self.first))
    }
}

/// The same page again, each step waiting for the one before; the peer is a
/// bare cache of one entry.
pub(crate) fn same_page() -> Row {
    const STEPS: u64 = 4_000_000;
    let (space, _) = space(1_000_000, 1);
    let requester = requester(&space);
    let mut session = requester.session();
    let bare = Bare { first: BASE, last: BASE + PAGE - 1, offset: BASE, write: true };
    let none = black_box(0);
    let (ours, peer) = both(
        || {
            let mut at = 0;
            time(STEPS, || {
                for _ in 0..STEPS {
                    let offset = session.translate(BASE + at, Access::Read).expect("mapped").offset;
                    at = (at + 64) % PAGE + (offset & none);
                }
                black_box(at);
            })
        },
        || {
            let mut at = 0;
            time(STEPS, || {
                for _ in 0..STEPS {
                    let offset = black_box(&bare).translate(BASE + at, false).expect("mapped");
                    at = (at + 64) % PAGE + (offset & none);
                }
                black_box(at);
            })
        },
    );
    Row { name: "same_page", ours, peer }
}

/// A random one of `maps` pages, each step waiting for the one before; the
/// peer is a `BTreeMap`.
pub(crate) fn random(name: &'static str, maps: u64) -> Row {
    const STEPS: u64 = 200_000;
    let (space, _) = space(maps, 1);
    let requester = requester(&space);
    let mut session = requester.session();
    let mut tree = BTreeMap::new();
    for page in 0..maps {
        let first = BASE + page * PAGE;
        tree.insert(first, (first + PAGE - 1, first, Prot::READ | Prot::WRITE));
    }
    let none = black_box(0);
    let (mut a, mut b) = (Random(1), Random(2));
    let (ours, peer) = both(
        || {
            let mut before = 0;
            time(STEPS, || {
                for _ in 0..STEPS {
                    let iova = BASE + a.below(maps, before) * PAGE;
                    before = session.translate(iova, Access::Read).expect("mapped").offset & none;
                }
            })
        },
        || {
            let mut before = 0;
            time(STEPS, || {
                for _ in 0..STEPS {
                    let iova = BASE + b.below(maps, before) * PAGE;
                    let (first, (last, offset, prot)) = tree.range(..=iova).next_back().expect("mapped");
                    assert!(iova <= *last && prot.contains(Prot::READ));
                    before = (offset + (iova - first)) & none;
                }
            })
        },
    );
    Row { name, ours, peer }
}

/// [`two_threads`] by the clock.
pub(crate) fn threads() -> Row {
    two_threads("two_threads_and_one_per_us", false)
}

/// Translations a microsecond of two threads with a requester each, and of
/// one. A session for every four translations.
///
/// With `cpu` only the time counts that a thread was running, for a machine
/// that has other work.
pub(crate) fn two_threads(name: &'static str, cpu: bool) -> Row {
    const STEPS: u64 = 1_000_000;
    let (space, _) = space(65_536, 1);
    let requesters = [requester(&space), requester(&space)];
    let work = |requester: &Requester, seed: u64| {
        let mut random = Random(seed);
        for _ in 0..STEPS / 4 {
            let mut session = requester.session();
            for _ in 0..4 {
                let iova = BASE + random.below(65_536, 0) * PAGE;
                black_box(session.translate(iova, Access::Write).is_ok());
            }
        }
    };
    let rate = |threads: usize| {
        let barrier = Barrier::new(threads);
        let slowest = std::thread::scope(|scope| {
            let running: Vec<_> = requesters[..threads]
                .iter()
                .map(|requester| {
                    let (barrier, work) = (&barrier, &work);
                    scope.spawn(move || {
                        barrier.wait();
                        let (start, before) = (Instant::now(), running_time());
                        work(requester, 7);
                        if cpu { running_time() - before } else { start.elapsed().as_nanos() as f64 }
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().expect("ran")).fold(0.0, f64::max)
        });
        (threads as u64 * STEPS) as f64 / slowest * 1000.0
    };
    let (ours, peer) = both(|| rate(2), || rate(1));
    Row { name, ours, peer }
}

/// Nanoseconds that this thread has been running.
fn running_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}

/// A pair of map and unmap beside `maps` live ones, at one place and all over
/// the place; the peer is always the pair with 1,000.
fn map_unmap() -> Vec<Row> {
    const STEPS: u64 = 100_000;
    let pair = |space: &AddressSpace, memory: &Arc<dyn Memory>, first: u64| {
        space.map(mapping(memory, first, 1)).expect("free");
        space.unmap(first, first + PAGE - 1, &mut |mapping| {
            black_box(mapping.tag);
        });
    };
    let one_place = |space: &AddressSpace, memory: &Arc<dyn Memory>, maps: u64| {
        time(STEPS, || (0..STEPS).for_each(|_| pair(space, memory, BASE + (maps / 2 * 2 + 1) * PAGE)))
    };
    let mut random = Random(3);
    let mut all_over = |space: &AddressSpace, memory: &Arc<dyn Memory>, maps: u64| {
        time(STEPS, || (0..STEPS).for_each(|_| pair(space, memory, BASE + (random.below(maps, 0) * 2 + 1) * PAGE)))
    };
    let (few, few_memory) = space(1000, 2);
    let _attached = requester(&few);
    let mut rows = Vec::new();
    for (maps, here, there) in [
        (1_000, "map_unmap_1k", "map_unmap_anywhere_1k"),
        (65_000, "map_unmap_65k", "map_unmap_anywhere_65k"),
        (1_000_000, "map_unmap_1m", "map_unmap_anywhere_1m"),
    ] {
        let (many, memory) = space(maps, 2);
        let _attached = requester(&many);
        let (ours, peer) = both(|| one_place(&many, &memory, maps), || one_place(&few, &few_memory, 1000));
        rows.push(Row { name: here, ours, peer });
        let all_over = std::cell::RefCell::new(&mut all_over);
        let (ours, peer) =
            both(|| all_over.borrow_mut()(&many, &memory, maps), || all_over.borrow_mut()(&few, &few_memory, 1000));
        rows.push(Row { name: there, ours, peer });
    }
    rows
}

fn each(space: &AddressSpace) -> f64 {
    space.memory_used() as f64 / space.len() as f64
}

/// Bytes of the table a map, where so many pages are mapped one by one.
pub(crate) fn bytes_a_map(name: &'static str, maps: u64) -> Row {
    let (dense, _) = space(maps, 1);
    Row { name, ours: each(&dense), peer: 64.0 }
}

/// Bytes of the table with one map of 16 GiB.
pub(crate) fn bytes_of_one_map() -> Row {
    let large = AddressSpace::new();
    let nothing: Arc<dyn Memory> = Arc::new(Nothing);
    large.map(mapping(&nothing, 16 << 30, (16 << 30) / PAGE)).expect("free");
    Row { name: "bytes_one_16g_map", ours: each(&large), peer: 4096.0 }
}

/// Bytes; the peer is the most that they should be.
fn memory() -> Vec<Row> {
    let nothing: Arc<dyn Memory> = Arc::new(Nothing);
    let scattered = AddressSpace::new();
    let mut random = Random(5);
    while scattered.len() < 65_535 {
        let _ = scattered.map(mapping(&nothing, random.below(1 << 52, 0) * PAGE, 1));
    }
    let pairs = AddressSpace::new();
    let mut random = Random(6);
    while pairs.len() < 65_534 {
        let first = random.below(1 << 47, 0) * 32 * PAGE;
        let _ = pairs.map(mapping(&nothing, first, 1));
        let _ = pairs.map(mapping(&nothing, first + PAGE, 1));
    }
    vec![
        bytes_a_map("bytes_a_map_1m", 1_000_000),
        bytes_of_one_map(),
        Row { name: "bytes_a_map_64k_scattered", ours: each(&scattered), peer: 256.0 },
        Row { name: "bytes_a_map_64k_scattered_pairs", ours: each(&pairs), peer: 256.0 },
    ]
}
