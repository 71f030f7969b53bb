// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What noting writes costs, and asking for them: for 16 GiB of pages. And what
//! nested tables and PASIDs add to a translation.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::{Arc, Barrier};

use iommu::{
    Access, AddressSpace, DirtyLog, Domain, Mapping, Memory, MemoryFault, Nested, Places, Requester, Session, VtdStage1,
};
use vm_memory::VolatileSlice;

use super::{BASE, Nothing, PAGE, ROUNDS, Random, Row, mapping, median, time};

/// Pages of 16 GiB.
const PAGES: u64 = (16 << 30) / PAGE;
/// Pages that are written before it is another's turn.
const TURN: usize = 512;
/// Words of their bitmap: 512 KiB.
const WORDS: usize = (PAGES / 64) as usize;

/// Rows of this file.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (threads, sequential, random) in
        [(1, "mark_sequential", "mark_random"), (2, "mark_sequential_two_threads", "mark_random_two_threads")]
    {
        for (name, order) in [(sequential, Order::Sequential), (random, Order::Random)] {
            let mark = mark(threads, order);
            rows.push(Row { name, ours: mark.ours, peer: mark.plain() });
        }
    }
    rows.push(cached("nested_cached", Kind::Nested));
    rows.push(cached("pasid_cached", Kind::Pasid));
    for (name, dirty) in
        [("scan_none_dirty", Dirty::None), ("scan_1_percent_dirty", Dirty::OnePercent), ("scan_all_dirty", Dirty::All)]
    {
        rows.push(scan(name, dirty));
    }
    rows
}

/// One mapping of 16 GiB, and so many requesters with a log of pages.
fn lab(requesters: usize) -> (Arc<DirtyLog>, Vec<Arc<Requester>>) {
    let space = AddressSpace::new();
    let memory: Arc<dyn Memory> = Arc::new(Nothing);
    space.map(mapping(&memory, BASE, PAGES)).expect("free");
    let log = DirtyLog::new(12);
    let domain = Domain { space, log: Some(log.clone()), stage1: None };
    let requesters = (0..requesters).map(|_| {
        let requester = Requester::new();
        requester.attach(Some(domain.clone()));
        requester.set_bus_master(true);
        requester
    });
    (log, requesters.collect())
}

#[derive(Clone, Copy)]
pub(crate) enum Order {
    Sequential,
    Random,
}

/// All pages once, in this order.
fn pages(order: Order) -> Vec<u32> {
    let mut pages = Vec::from_iter(0..PAGES as u32);
    if let Order::Random = order {
        let mut random = Random(9);
        for at in 1..pages.len() {
            pages.swap(at, random.below(at as u64 + 1, 0) as usize);
        }
    }
    pages
}

/// What noting a write of a page costs, and a plain `or` into a bitmap of the
/// thread's own.
///
/// All ways take turns every few microseconds, so that they find the machine in
/// the same state, and a turn in which the thread had to wait does not count.
pub(crate) fn mark(threads: usize, order: Order) -> Mark {
    let ((log, on), (_, off)) = (lab(threads), lab(threads));
    log.set_enabled(true);
    let pages = pages(order);
    let barrier = Barrier::new(threads);
    let work = |thread: usize| {
        let mut turns = [const { Vec::new() }; 4];
        let mut bitmap = vec![0u64; WORDS];
        let bitmap: &mut [u64; WORDS] = bitmap.as_mut_slice().try_into().expect("length");
        let mut places = Places::default();
        barrier.wait();
        for round in 0..3 {
            for part in pages.chunks(TURN) {
                let times = [
                    turn(&on[thread], &mut places, part, |_| ()),
                    turn(&off[thread], &mut places, part, |_| ()),
                    turn(&off[thread], &mut places, part, |iova| {
                        bitmap[((iova - BASE) >> 18) as usize % WORDS] |= 1 << (iova >> 12 & 63);
                    }),
                    time(TURN as u64, || {
                        for page in part {
                            let iova = BASE + u64::from(*page) * PAGE;
                            bitmap[((iova - BASE) >> 18) as usize % WORDS] |= 1 << (iova >> 12 & 63);
                        }
                    }),
                ];
                // All memory is there after the first round.
                if round > 0 {
                    turns.iter_mut().zip(times).for_each(|(turns, time)| turns.push(time));
                }
            }
        }
        black_box(bitmap);
        turns
    };
    let mut turns = std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let turns = running.into_iter().map(|thread| thread.join().expect("ran"));
        turns.reduce(|mut all, one| {
            all.iter_mut().zip(one).for_each(|(all, one)| all.extend(one));
            all
        })
    });
    let [on, off, or, alone] = turns.take().map_or([f64::NAN; 4], |turns| turns.map(median));
    Mark { ours: on - off, in_place: or - off, alone }
}

/// Nanoseconds a page.
pub(crate) struct Mark {
    /// What noting a write adds to its translation.
    pub(crate) ours: f64,
    /// What a plain `or` adds in the same place.
    pub(crate) in_place: f64,
    /// A plain `or` in a loop of its own.
    pub(crate) alone: f64,
}

impl Mark {
    /// What a plain `or` costs. In order it is the loop of its own that shows
    /// it: each `or` waits for the one before, which in place is hidden behind
    /// the translation. At random it is the other place: misses of the cache
    /// overlap in a loop of ten instructions, and hardly in a translation.
    pub(crate) fn plain(&self) -> f64 {
        self.in_place.max(self.alone)
    }
}

/// Nanoseconds a page, for the DMA of some, with something more for each.
#[inline(always)]
fn turn(requester: &Requester, places: &mut Places, pages: &[u32], mut more: impl FnMut(u64)) -> f64 {
    time(TURN as u64, || {
        let mut session = requester.session();
        let mut gather = session.gather(places);
        for page in pages {
            let iova = BASE + u64::from(*page) * PAGE;
            let result = gather.add(iova, PAGE as usize, Access::Write);
            assert!(result.is_ok());
            more(iova);
        }
        black_box(gather.len());
    })
}

#[derive(Clone, Copy)]
pub(crate) enum Dirty {
    None,
    OnePercent,
    All,
}

/// Pages of a large write: 128 MiB.
const LARGE: usize = 1 << 15;

/// Asking what is dirty, and clearing it; the peer copies and clears a bitmap.
pub(crate) fn scan(name: &'static str, dirty: Dirty) -> Row {
    let (log, requesters) = lab(1);
    log.set_enabled(true);
    // Where all is dirty the writes are large, so that the bits have been
    // written as lately as the peer's.
    let writes = match dirty {
        Dirty::None => Vec::new(),
        Dirty::OnePercent => pages(Order::Random)[..(PAGES / 100) as usize].to_vec(),
        Dirty::All => Vec::from_iter((0..PAGES as u32).step_by(LARGE)),
    };
    let length = PAGE as usize * if matches!(dirty, Dirty::All) { LARGE } else { 1 };
    let mut places = Places::default();
    let (mut bitmap, mut out) = (vec![0u64; WORDS], vec![0u64; WORDS]);
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 30 {
        let mut session = requesters[0].session();
        for page in &writes {
            let mut gather = session.gather(&mut places);
            assert!(gather.add(BASE + u64::from(*page) * PAGE, length, Access::Write).is_ok());
        }
        drop(session);
        out.fill(1);
        ours.push(time(1, || {
            let _ = log.read(BASE, BASE + (PAGES * PAGE - 1), true, &mut |iova, words| {
                let at = ((iova - BASE) / PAGE / 64) as usize;
                out[at..at + words.len()].copy_from_slice(words);
                ControlFlow::Continue(())
            });
        }));
        black_box(&mut out);
        bitmap.fill(black_box(u64::MAX));
        out.fill(1);
        peer.push(time(1, || {
            out.copy_from_slice(&bitmap);
            bitmap.fill(0);
        }));
        black_box((&mut out, &mut bitmap));
    }
    Row { name, ours: median(ours), peer: median(peer) }
}

/// Memory of tables that map all that they can to itself, in pages of 1 GiB.
#[derive(Debug)]
struct Identity;

impl Memory for Identity {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        // Present, writable, for users, accessed and dirty.
        const FLAGS: u64 = 0b110_0111;
        let entry = if offset < PAGE { PAGE | FLAGS } else { ((offset - PAGE) / 8) << 30 | 1 << 7 | FLAGS };
        to.copy_from(&entry.to_le_bytes());
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Err(MemoryFault)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Nested,
    Pasid,
}

/// A remembered translation through two tables, or of a PASID; the peer is a
/// plain one.
pub(crate) fn cached(name: &'static str, kind: Kind) -> Row {
    const STEPS: u64 = 1_000_000;
    const PASID: u32 = 5;
    let space = AddressSpace::new();
    let tables: Arc<dyn Memory> = Arc::new(Identity);
    space.map(Mapping { last: 2 * PAGE - 1, offset: 0, ..mapping(&tables, 0, 1) }).expect("free");
    let memory: Arc<dyn Memory> = Arc::new(Nothing);
    space.map(mapping(&memory, BASE, PAGES)).expect("free");
    let plain = super::requester(&space);
    let requester = Requester::new();
    requester.set_bus_master(true);
    let stage1 = VtdStage1::new(0, 48, false).map(Nested::new);
    let mut session = match kind {
        Kind::Nested => {
            requester.attach(Some(Domain { space, log: None, stage1 }));
            requester.session()
        }
        Kind::Pasid => {
            assert!(requester.attach_pasid(PASID, Some(space.into())));
            requester.session_pasid(PASID)
        }
    };
    let mut peer = plain.session();
    let work = |session: &mut Session<'_>| {
        time(STEPS, || {
            for step in 0..STEPS {
                black_box(session.translate(BASE + step % 4096, Access::Write).is_ok());
            }
        })
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        a.push(work(&mut session));
        b.push(work(&mut peer));
    }
    assert!(session.translate(BASE, Access::Write).is_ok());
    Row { name, ours: median(a), peer: median(b) }
}
