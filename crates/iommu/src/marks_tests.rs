// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the window of a bitmap comes to lie (IOMMUFD-9.1). Apart from
//! `marks`, which the model checker compiles too.

use std::sync::Arc;

use crate::chunk::{Budget, CHUNK};
use crate::marks::{Marks, Taken};

const PAGE: u32 = 12;

fn marks() -> Marks {
    Marks::new(PAGE, Arc::new(Budget::new(1 << 16)))
}

/// Marks a page in each of these chunks.
fn mark(marks: &mut Marks, chunks: impl IntoIterator<Item = u64>) {
    for chunk in chunks {
        let page = ((chunk << CHUNK) | (chunk % 1000)) << PAGE;
        marks.mark(page, page + 7);
    }
}

/// What is dirty: the chunks, each once and with one page.
fn taken(marks: &mut Marks) -> (Vec<u64>, usize) {
    let mut taken = Taken::default();
    marks.take(&(0..=u64::MAX >> PAGE), &mut taken);
    assert!(taken.unrecorded.get().is_none());
    let windows = taken.windows.len();
    let inside = taken.windows.iter().flat_map(|(first, chunks)| (*first..).zip(chunks.iter()));
    let apart = taken.chunks.iter().map(|(number, chunk)| (*number, &**chunk));
    let dirty = inside.chain(apart).filter(|(_, chunk)| chunk.iter().any(|word| *word != 0));
    let mut chunks: Vec<u64> = dirty
        .map(|(number, chunk)| {
            assert_eq!(chunk.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
            let page = number % 1000;
            assert_eq!(chunk[page as usize / 64] >> (page % 64) & 1, 1);
            number
        })
        .collect();
    chunks.sort_unstable();
    (chunks, windows)
}

#[test]
fn a_page_far_away_does_not_stretch_the_window() {
    let mut marks = marks();
    mark(&mut marks, [8192, 8]);
    assert_eq!(marks.numbers(), 8192..8200);
    mark(&mut marks, 8200..8320);
    assert_eq!(marks.numbers(), 8192..8320);
    assert_eq!(taken(&mut marks), ([8].into_iter().chain([8192]).chain(8200..8320).collect(), 1));
}

#[test]
fn the_window_goes_where_most_is() {
    let mut marks = marks();
    mark(&mut marks, (8..12).chain(8192..8320));
    let window = marks.numbers();
    assert!(window.start >= 8192 && window.contains(&8319), "{window:?}");
    assert_eq!(taken(&mut marks).0, (8..12).chain(8192..8320).collect::<Vec<_>>());
    // It begins where it was.
    mark(&mut marks, [8300]);
    assert_eq!(marks.numbers(), window);
}

#[test]
fn pages_at_random_end_up_in_one_window() {
    let mut marks = marks();
    let chunks = (0..128).map(|n: u64| 100 + n * 37 % 128);
    mark(&mut marks, chunks);
    assert!(marks.numbers().start <= 100 && marks.numbers().end >= 228);
    assert_eq!(taken(&mut marks), ((100..228).collect(), 1));
}
