// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling what is dirty, chunk after chunk.

use std::ops::{ControlFlow, RangeInclusive};

use crate::chunk::{CHUNK, Chunk, WORD, WORDS, covers, granules, is_clean, words};

/// Who is told: the address of a first granule, and bits from there.
pub(crate) type Each<'a> = &'a mut dyn FnMut(u64, &[u64]) -> ControlFlow<()>;

/// A report under way. It is shown the chunks there are, in ascending order,
/// and puts in those of which nothing is known.
pub(crate) struct Report<'a> {
    shift: u32,
    /// What is asked for.
    asked: RangeInclusive<u64>,
    /// Where it is not known what is dirty, of what is asked for.
    unknown: Option<RangeInclusive<u64>>,
    /// Chunks before this one are done.
    next: u64,
    each: Each<'a>,
    result: ControlFlow<()>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        shift: u32,
        asked: RangeInclusive<u64>,
        unknown: Option<RangeInclusive<u64>>,
        each: Each<'a>,
    ) -> Report<'a> {
        let unknown = unknown
            .map(|all| *all.start().max(asked.start())..=*all.end().min(asked.end()))
            .filter(|unknown| !unknown.is_empty());
        let next = asked.start() >> CHUNK;
        Report { shift, asked, unknown, next, each, result: ControlFlow::Continue(()) }
    }

    /// Shows the next chunk. Whether it was passed on: it is asked for, and
    /// nobody has broken off before.
    pub(crate) fn chunk(&mut self, number: u64, chunk: &Chunk) -> bool {
        if number > self.asked.end() >> CHUNK {
            return false;
        }
        self.unknown_before(number);
        if self.result.is_break() {
            return false;
        }
        let unknown = self.unknown_in(number);
        if !unknown && covers(number, &self.asked) {
            self.show(number, chunk);
            return true;
        }
        let mut own = [0; WORDS];
        words(number, &self.asked, |word, bits| own[word] = chunk[word] & bits);
        if let Some(unknown) = self.unknown.as_ref().filter(|_| unknown) {
            words(number, unknown, |word, bits| own[word] |= bits);
        }
        self.show(number, &own);
        true
    }

    /// Clears what was asked for of a chunk. Whether nothing is left.
    pub(crate) fn clear(&self, number: u64, chunk: &mut Chunk) -> bool {
        if covers(number, &self.asked) {
            // Untouched pages stay so.
            if chunk.iter().any(|word| *word != 0) {
                chunk.fill(0);
            }
            return true;
        }
        words(number, &self.asked, |word, bits| chunk[word] &= !bits);
        is_clean(chunk)
    }

    /// Ends. The last granule that was passed on, if any.
    pub(crate) fn finish(mut self) -> (ControlFlow<()>, Option<u64>) {
        self.unknown_before((self.asked.end() >> CHUNK) + 1);
        if self.result.is_continue() {
            return (self.result, Some(*self.asked.end()));
        }
        let last = self.next.checked_sub(1).map(|number| *granules(number).end());
        (self.result, last.map(|last| last.min(*self.asked.end())))
    }

    /// Passes the chunks before `number` on in which there is something unknown.
    fn unknown_before(&mut self, number: u64) {
        let Some(unknown) = self.unknown.clone() else { return };
        let start = self.next.max(unknown.start() >> CHUNK);
        for at in start..number.min((unknown.end() >> CHUNK) + 1) {
            if self.result.is_break() {
                return;
            }
            let mut own = [0; WORDS];
            words(at, &unknown, |word, bits| own[word] = bits);
            self.show(at, &own);
        }
    }

    fn unknown_in(&self, number: u64) -> bool {
        self.unknown
            .as_ref()
            .is_some_and(|unknown| (unknown.start() >> CHUNK..=unknown.end() >> CHUNK).contains(&number))
    }

    fn show(&mut self, number: u64, chunk: &Chunk) {
        self.next = number + 1;
        let Some(from) = chunk.iter().position(|word| *word != 0) else { return };
        let to = chunk.iter().rposition(|word| *word != 0).unwrap_or(from);
        let granule = (number << CHUNK) + ((from as u64) << WORD);
        self.result = (self.each)(granule << self.shift, &chunk[from..=to]);
    }
}
