// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! type1 against a model that keeps one entry a page: random calls, the same
//! answers and the same pages afterwards.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uapi::Errno;
use uapi::vfio::type1::{Bitmap, DirtyFlags};

use super::{ALL, PAGE, RAM, RW, Type1Lab, VADDR};
use crate::Options;

/// Pages that the calls play with.
const PAGES: u64 = 48;
/// Mappings that fit.
const LIMIT: u32 = 10;

#[derive(Clone, Debug)]
enum Call {
    Map { first: u64, pages: u64 },
    MapVaddr { first: u64, pages: u64 },
    Unmap { first: u64, pages: u64 },
    UnmapReport { first: u64, pages: u64 },
    UnmapVaddr { first: u64, pages: u64 },
    UnmapAll,
    UnmapAllVaddr,
    Report { first: u64, pages: u64 },
}

fn call() -> impl Strategy<Value = Call> {
    let range = || (0..PAGES, 1..9u64);
    prop_oneof![
        6 => range().prop_map(|(first, pages)| Call::Map { first, pages }),
        2 => range().prop_map(|(first, pages)| Call::MapVaddr { first, pages }),
        4 => (0..PAGES, 1..PAGES).prop_map(|(first, pages)| Call::Unmap { first, pages }),
        2 => range().prop_map(|(first, pages)| Call::UnmapReport { first, pages }),
        2 => range().prop_map(|(first, pages)| Call::UnmapVaddr { first, pages }),
        1 => Just(Call::UnmapAll),
        1 => Just(Call::UnmapAllVaddr),
        1 => (0..PAGES, 1..PAGES).prop_map(|(first, pages)| Call::Report { first, pages }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    first: u64,
    pages: u64,
    valid: bool,
}

/// The mapping that each page belongs to.
#[derive(Clone, Default)]
struct Model {
    v2: bool,
    pages: BTreeMap<u64, Entry>,
}

impl Model {
    fn entries(&self) -> Vec<Entry> {
        self.pages.iter().filter(|(page, e)| **page == e.first).map(|(_, e)| *e).collect()
    }

    fn set(&mut self, entry: Entry) {
        for page in entry.first..entry.first + entry.pages {
            self.pages.insert(page, entry);
        }
    }

    /// Mappings that a call on a range is about.
    fn about(&self, first: u64, pages: u64) -> Result<Vec<Entry>, Errno> {
        let last = first + pages - 1;
        let straddles = |page: u64, edge: u64| self.pages.get(&page).is_some_and(|e| self.pages.get(&edge) == Some(e));
        if self.v2 && (first > 0 && straddles(first - 1, first) || straddles(last, last + 1)) {
            return Err(Errno::EINVAL);
        }
        if first > 0 && straddles(first - 1, first) {
            return Ok(Vec::new());
        }
        Ok(self.entries().into_iter().filter(|e| (first..=last).contains(&e.first)).collect())
    }

    fn map(&mut self, first: u64, pages: u64) -> Result<(), Errno> {
        if (first..first + pages).any(|page| self.pages.contains_key(&page)) {
            return Err(Errno::EEXIST);
        }
        if self.entries().len() as u32 == LIMIT {
            return Err(Errno::ENOSPC);
        }
        self.set(Entry { first, pages, valid: true });
        Ok(())
    }

    fn map_vaddr(&mut self, first: u64, pages: u64) -> Result<(), Errno> {
        let found = (first..first + pages).find_map(|page| self.pages.get(&page)).copied().ok_or(Errno::ENOENT)?;
        if found != (Entry { first, pages, valid: false }) {
            return Err(Errno::EINVAL);
        }
        self.set(Entry { valid: true, ..found });
        Ok(())
    }

    fn remove(&mut self, entries: &[Entry]) -> u64 {
        self.pages.retain(|_, e| !entries.contains(e));
        entries.iter().map(|e| e.pages).sum()
    }

    fn invalidate(&mut self, entries: &[Entry]) -> Result<u64, Errno> {
        if entries.iter().any(|e| !e.valid) {
            return Err(Errno::EINVAL);
        }
        for entry in entries {
            self.set(Entry { valid: false, ..*entry });
        }
        Ok(entries.iter().map(|e| e.pages).sum())
    }

    fn bits(&self, first: u64, entries: &[Entry]) -> u64 {
        entries.iter().flat_map(|e| e.first..e.first + e.pages).map(|page| 1 << (page - first)).sum()
    }
}

fn check(v2: bool, calls: &[Call]) -> Result<(), TestCaseError> {
    let options = Options { dma_entry_limit: LIMIT, ..Options::default() };
    let mut t = Type1Lab::with(if v2 { 3 } else { 1 }, options);
    let mut model = Model { v2, ..Model::default() };
    if v2 {
        t.dirty(DirtyFlags::START).unwrap();
    }
    let data = t.lab.client.room(16);
    let bitmap = Bitmap { pgsize: PAGE, size: 16, data };
    for call in calls {
        let zero = [0; 16];
        caller::Caller::write(&t.lab.client, data, &zero).unwrap();
        match *call {
            Call::Map { first, pages } => {
                let answer = t.map(RW, RAM + first * PAGE, first * PAGE, pages * PAGE);
                prop_assert_eq!(answer, model.map(first, pages));
            }
            Call::MapVaddr { first, pages } => {
                let answer = t.map(VADDR, RAM + first * PAGE, first * PAGE, pages * PAGE);
                prop_assert_eq!(answer, model.map_vaddr(first, pages));
            }
            Call::Unmap { first, pages } => {
                let answer = t.unmap(0, first * PAGE, pages * PAGE).map(|bytes| bytes / PAGE);
                let expected = model.about(first, pages).map(|entries| model.remove(&entries));
                prop_assert_eq!(answer, expected);
            }
            Call::UnmapReport { first, pages } => {
                let answer = t.unmap_report(first * PAGE, pages * PAGE, bitmap).map(|bytes| bytes / PAGE);
                let expected = if v2 { model.about(first, pages) } else { Err(Errno::EINVAL) };
                let bits = expected.as_ref().map_or(0, |entries| model.bits(first, entries));
                prop_assert_eq!(answer, expected.map(|entries| model.remove(&entries)));
                prop_assert_eq!(t.lab.client.get::<u64>(data), bits);
            }
            Call::UnmapVaddr { first, pages } => {
                let answer = t.unmap(VADDR, first * PAGE, pages * PAGE).map(|bytes| bytes / PAGE);
                let expected = model.about(first, pages).and_then(|entries| model.invalidate(&entries));
                prop_assert_eq!(answer, expected);
            }
            Call::UnmapAll => {
                let entries = model.entries();
                prop_assert_eq!(t.unmap(ALL, 0, 0), Ok(model.remove(&entries) * PAGE));
            }
            Call::UnmapAllVaddr => {
                let entries = model.entries();
                let answer = t.unmap(ALL | VADDR, 0, 0).map(|bytes| bytes / PAGE);
                prop_assert_eq!(answer, model.invalidate(&entries));
            }
            Call::Report { first, pages } => {
                let answer = t.report(first * PAGE, pages * PAGE, bitmap);
                match if v2 { model.about(first, pages) } else { Err(Errno::EACCES) } {
                    Ok(entries) => {
                        prop_assert_eq!(answer, Ok(0));
                        prop_assert_eq!(t.lab.client.get::<u64>(data), model.bits(first, &entries));
                    }
                    Err(errno) => prop_assert_eq!(answer, Err(errno)),
                }
            }
        }
        for page in 0..PAGES + 8 {
            let reached = t.dma_read(page * PAGE).is_some();
            prop_assert_eq!(reached, model.pages.contains_key(&page), "page {}", page);
        }
        let locked = t.lab.vfio.locked.pages(t.lab.client.process);
        prop_assert_eq!(locked, model.pages.len() as u64);
    }
    t.lab.release(t.group);
    prop_assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 0);
    Ok(())
}

proptest! {
    /// API-072, API-073, API-074, API-084, API-085, API-086, API-089, API-091
    #[test]
    fn v2_is_the_model(calls in prop::collection::vec(call(), 1..40)) {
        check(true, &calls)?;
    }

    /// API-087, API-092
    #[test]
    fn v1_is_the_model(calls in prop::collection::vec(call(), 1..40)) {
        check(false, &calls)?;
    }
}
