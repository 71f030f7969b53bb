// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How often pages are pinned, which on Linux their reference counts tell.

use std::collections::HashMap;

use iommu::{Memory, PageId};

use crate::context::Context;
use crate::{Iommufd, PAGE};

impl Iommufd {
    /// How many times each page is pinned, all contexts together.
    pub(super) fn pin_counts(&self, pages: &[PageId]) -> Vec<u64> {
        let mut counts: HashMap<PageId, u64> = pages.iter().map(|page| (*page, 0)).collect();
        for context in self.contexts.values() {
            context.count_pins(&mut counts);
        }
        pages.iter().map(|page| counts.get(page).copied().unwrap_or(0)).collect()
    }
}

impl Context {
    fn count_pins(&self, counts: &mut HashMap<PageId, u64>) {
        let mut count = |memory: &dyn Memory, offset: u64, length: u64| {
            for page in (0..length).step_by(PAGE as usize) {
                let page = memory.identity(offset.wrapping_add(page));
                if let Some(count) = page.and_then(|page| counts.get_mut(&page)) {
                    *count += 1;
                }
            }
        };
        for area in self.ioases.values().flat_map(|ioas| ioas.pinned_areas()) {
            // Whole pages, whatever part of them the area has.
            let within = area.memory.identity(area.offset).map_or(0, |byte| byte.offset % PAGE);
            count(&*area.memory, area.offset.wrapping_sub(within), area.last - area.first + 1 + within);
        }
        for pages in self.backing.pages.values() {
            for piece in pages.coverage.pieces(0, u64::MAX) {
                count(&*piece.memory, piece.offset, piece.length);
            }
        }
    }
}
