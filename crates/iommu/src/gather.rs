// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many translations at a time, for a device that moves the data of several
//! commands in one go.
//!
//! A translation borrows its session, so there is only one at a time. A
//! [`Gather`] keeps what they come to as numbers, which mean something in its
//! session alone and go with it, and makes segments of them when all are there.

use std::ops::Range;

use vm_memory::VolatileSlice;

use crate::{Access, DmaFault, FaultReason, Segment, Session};

/// Room for what a [`Gather`] finds, to be used again by the next one.
#[derive(Debug, Default)]
pub struct Places(Vec<Place>);

/// Runs up to this length are fetched while others are being translated: a
/// frame of a network that a program has just touched takes longer to get from
/// its core than to copy.
const SHORT: usize = 256;

/// A run of translated bytes.
#[derive(Clone, Copy, Debug)]
struct Place {
    memory: u32,
    offset: u64,
    len: usize,
}

/// Translated runs of bytes, all of one session. Their number is the caller's
/// to bound: one for each mapping that a range touches.
#[derive(Debug)]
pub struct Gather<'s, 'a> {
    session: &'s mut Session<'a>,
    places: &'s mut Vec<Place>,
    /// The mapping that the first run is in: most others are, too.
    home: Option<Place>,
}

/// The runs of a [`Gather`], to be used.
#[derive(Clone, Copy, Debug)]
pub struct Gathered<'g, 'a> {
    session: &'g Session<'a>,
    places: &'g [Place],
    home: Option<(Place, VolatileSlice<'g>)>,
}

impl<'a> Session<'a> {
    /// Starts with no runs.
    pub fn gather<'s>(&'s mut self, places: &'s mut Places) -> Gather<'s, 'a> {
        places.0.clear();
        Gather { session: self, places: &mut places.0, home: None }
    }
}

impl<'a> Gather<'_, 'a> {
    /// Translates `iova .. iova + len` and adds its runs, none of which goes
    /// beyond its mapping. A refusal is logged, and nothing is added then.
    /// After IOVA 2^64-1 comes a fault.
    pub fn add(&mut self, iova: u64, len: usize, access: Access) -> Result<(), DmaFault> {
        let before = self.places.len();
        self.add_runs(iova, len, access).inspect_err(|_| self.places.truncate(before))
    }

    fn add_runs(&mut self, iova: u64, len: usize, access: Access) -> Result<(), DmaFault> {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            self.session.resolve(at, access)?;
            let hit = *self.session.hit();
            let Some(memory) = self.session.memory(hit.memory) else {
                return Err(self.session.refuse(DmaFault { iova: at, access, reason: FaultReason::Memory }));
            };
            let run = left.min(usize::try_from(hit.last - at).unwrap_or(usize::MAX).saturating_add(1));
            if run <= SHORT {
                memory.prefetch(hit.offset(at), run, access);
            }
            if self.home.is_none() {
                let len = usize::try_from(hit.last - hit.first).unwrap_or(usize::MAX).saturating_add(1);
                self.home = Some(Place { memory: hit.memory, offset: hit.offset(hit.first), len });
            }
            self.places.push(Place { memory: hit.memory, offset: hit.offset(at), len: run });
            self.session.mark(&hit, at, run, access);
            left -= run;
            at = at.wrapping_add(run as u64);
            if at == 0 && left > 0 {
                return Err(self.session.refuse(DmaFault { iova: at, access, reason: FaultReason::NotMapped }));
            }
        }
        Ok(())
    }

    /// Number of runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets all runs but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.places.truncate(len);
    }

    /// The runs, in the order in which they were added.
    #[must_use]
    pub fn all(&self) -> Gathered<'_, 'a> {
        let Gather { session, places, home } = self;
        let whole = |home: Place| match session.segment(home.memory, home.offset, home.len) {
            Some(Segment::Direct(slice)) => Some((home, slice)),
            _ => None,
        };
        Gathered { session, places, home: home.and_then(whole) }
    }

    /// Some of the runs, in the order in which they were added.
    pub fn segments(&self, runs: Range<usize>) -> impl Iterator<Item = Segment<'_>> {
        self.all().segments(runs)
    }
}

impl<'g> Gathered<'g, '_> {
    /// Some of the runs.
    #[inline]
    pub fn segments(self, runs: Range<usize>) -> impl Iterator<Item = Segment<'g>> {
        let places = self.places.get(runs).unwrap_or_default();
        places.iter().filter_map(move |place| self.segment(place))
    }

    #[inline]
    fn segment(&self, place: &Place) -> Option<Segment<'g>> {
        if let Some((home, slice)) = &self.home
            && place.memory == home.memory
            && let Some(at) = place.offset.checked_sub(home.offset)
            && let Ok(slice) = slice.subslice(at as usize, place.len)
        {
            return Some(Segment::Direct(slice));
        }
        self.session.segment(place.memory, place.offset, place.len)
    }
}
