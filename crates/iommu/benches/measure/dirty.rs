// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What noting writes costs, and asking for them: for 16 GiB of pages.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::{Arc, Barrier, Mutex};

use iommu::{Access, AddressSpace, DirtyLog, Domain, Memory, Places, Requester};

use super::{BASE, Nothing, PAGE, ROUNDS, Random, Row, mapping, median, time};

/// Pages of 16 GiB.
const PAGES: u64 = (16 << 30) / PAGE;
/// Words of their bitmap: 512 KiB.
const WORDS: usize = (PAGES / 64) as usize;

/// Rows of this file.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (threads, sequential, random) in
        [(1, "mark_sequential", "mark_random"), (2, "mark_sequential_two_threads", "mark_random_two_threads")]
    {
        rows.push(mark(sequential, threads, Order::Sequential));
        rows.push(mark(random, threads, Order::Random));
    }
    for (name, dirty) in [("scan_none_dirty", 0.0), ("scan_1_percent_dirty", 0.01), ("scan_all_dirty", 1.0)] {
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

/// What noting a write of a page adds to its translation; the peer is a plain
/// `or` into a bitmap of the thread's own.
pub(crate) fn mark(name: &'static str, threads: usize, order: Order) -> Row {
    let (log, requesters) = lab(threads);
    let pages = pages(order);
    let bitmaps: Vec<_> = (0..threads).map(|_| Mutex::new(vec![0u64; WORDS])).collect();
    let translate = |thread: usize| {
        let mut places = Places::default();
        for batch in pages.chunks(256) {
            let mut session = requesters[thread].session();
            let mut gather = session.gather(&mut places);
            for page in batch {
                let result = gather.add(BASE + u64::from(*page) * PAGE, PAGE as usize, Access::Write);
                assert!(result.is_ok());
            }
            black_box(gather.len());
        }
    };
    let or = |thread: usize| {
        let mut bitmap = bitmaps[thread].lock().expect("own");
        let bitmap: &mut [u64; WORDS] = bitmap.as_mut_slice().try_into().expect("length");
        for page in &pages {
            bitmap[*page as usize / 64 % WORDS] |= 1 << (page % 64);
        }
        black_box(bitmap);
    };
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..2 * ROUNDS {
        log.set_enabled(true);
        together(threads, PAGES, &translate);
        times[0].push(together(threads, PAGES, &translate));
        log.set_enabled(false);
        times[1].push(together(threads, PAGES, &translate));
        times[2].push(together(threads, PAGES, &or));
    }
    let [on, off, or] = times.map(median);
    Row { name, ours: on - off, peer: or }
}

/// Nanoseconds a step of the slowest of so many threads.
fn together(threads: usize, steps: u64, work: &(dyn Fn(usize) + Sync)) -> f64 {
    if threads == 1 {
        return time(steps, || work(0));
    }
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    time(steps, || work(thread))
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("ran")).fold(0.0, f64::max)
    })
}

/// Asking what is dirty, and clearing it; the peer copies and clears a bitmap.
pub(crate) fn scan(name: &'static str, dirty: f64) -> Row {
    let (log, requesters) = lab(1);
    log.set_enabled(true);
    let mut random = Random(4);
    let mut bitmap = vec![0u64; WORDS];
    let mut out = vec![0u64; WORDS];
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        let mut session = requesters[0].session();
        for page in 0..PAGES {
            if random.below(1 << 20, 0) < (dirty * f64::from(1 << 20)) as u64 {
                black_box(session.translate(BASE + page * PAGE, Access::Write).is_ok());
            }
        }
        drop(session);
        ours.push(time(1, || {
            let _ = log.read(BASE, BASE + (PAGES * PAGE - 1), true, &mut |iova, words| {
                let at = ((iova - BASE) / PAGE / 64) as usize;
                out[at..at + words.len()].copy_from_slice(words);
                ControlFlow::Continue(())
            });
        }));
        black_box(&mut out);
        bitmap.fill(black_box(u64::MAX));
        peer.push(time(1, || {
            out.copy_from_slice(&bitmap);
            bitmap.fill(0);
        }));
        black_box((&mut out, &mut bitmap));
    }
    Row { name, ours: median(ours), peer: median(peer) }
}
