// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The type1 backend of containers, versions 1 and 2: mappings of programs'
//! memory for the devices of the container's groups.
//!
//! A mapping is one entry of the container's [`AddressSpace`] and nothing
//! else: what type1 must remember of it fits the entry's tag.

mod dirty;
mod info;
mod map;
mod owners;
mod unmap;

use std::sync::Arc;

use ::device::Board;
use caller::{Accounts, Caller};
use iommu::{AddressSpace, Mapping};
use pci::Address;
use uapi::Errno;
use uapi::vfio::container::extension;
use uapi::vfio::type1::{DIRTY_PAGES, DISABLE, ENABLE, GET_INFO, IovaRange, MAP_DMA, UNMAP_DMA};

use crate::Options;
use owners::Owners;

const PAGE: u64 = 4096;

/// Page sizes that the IOMMU maps: 4 KiB, 2 MiB and 1 GiB.
const PAGE_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// Messages of interrupts go there on x86, so nothing can be mapped.
const MSI_WINDOW: IovaRange = IovaRange { start: 0xfee0_0000, end: 0xfeef_ffff };

/// Most pages of one mapping that a dirty bitmap can hold.
const TRACKED_PAGES_MAX: u64 = i32::MAX as u64;

/// Bits of a mapping's tag.
mod tag {
    /// `vaddr` was taken away.
    pub(super) const INVALID: u32 = 1;
    /// A device's BAR, of whose pages nobody keeps account.
    pub(super) const PEER: u32 = 2;
    /// Above this bit: who pays for the pages, an index of `Owners`.
    pub(super) const OWNER_SHIFT: u32 = 8;
}

/// A type1 backend in a container.
#[derive(Debug)]
pub(crate) struct Type1 {
    v2: bool,
    space: Arc<AddressSpace>,
    /// Mappings that may still be made.
    available: u32,
    /// IOVAs that can be mapped; empty while there is no group.
    ranges: Vec<IovaRange>,
    groups: u32,
    coherent: bool,
    owners: Owners,
    /// Mappings whose `vaddr` was taken away.
    invalid: u64,
    /// Mappings too large for a dirty bitmap.
    untrackable: u64,
    tracking: bool,
}

impl Type1 {
    /// Whether the backend claims an extension before it is chosen.
    pub(crate) fn claims(number: u64) -> u64 {
        u64::from(matches!(number, extension::TYPE1 | extension::TYPE1_V2 | extension::UNMAP_ALL))
    }

    /// The backend for `SET_IOMMU(number)`; `EINVAL` if that is no type.
    pub(crate) fn open(number: u64, options: &Options) -> Result<Type1, Errno> {
        let v2 = match number {
            extension::TYPE1 => false,
            extension::TYPE1_V2 => true,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Type1 {
            v2,
            space: AddressSpace::new(),
            available: options.dma_entry_limit,
            ranges: Vec::new(),
            groups: 0,
            coherent: options.cache_coherency,
            owners: Owners::default(),
            invalid: 0,
            untrackable: 0,
            tracking: false,
        })
    }

    /// Answer of `CHECK_EXTENSION` once the backend is chosen.
    pub(crate) fn check_extension(&self, number: u64) -> u64 {
        match number {
            extension::DMA_CC => u64::from(self.coherent),
            extension::UPDATE_VADDR => 1,
            _ => Type1::claims(number),
        }
    }

    /// Attaches a group's devices.
    pub(crate) fn attach(&mut self, members: &[Address], options: &Options, board: &Board) -> Result<(), Errno> {
        if self.invalid > 0 {
            return Err(Errno::EBUSY); // API-045
        }
        let ranges = iova_ranges(options);
        if self.outside(&ranges) {
            return Err(Errno::EINVAL); // API-045
        }
        if !options.interrupt_remapping && !options.allow_unsafe_interrupts {
            return Err(Errno::EPERM); // API-044
        }
        self.ranges = ranges;
        self.groups += 1;
        for address in members {
            self.attach_function(*address, board);
        }
        Ok(())
    }

    /// Attaches one more function of a group that is attached.
    pub(crate) fn attach_function(&self, address: Address, board: &Board) {
        if let Some(endpoint) = board.endpoint(address) {
            endpoint.requester.attach(Some(Arc::clone(&self.space).into()));
        }
    }

    /// Detaches a group's devices; their DMA is over when it returns.
    pub(crate) fn detach(&mut self, members: &[Address], board: &Board) {
        self.groups = self.groups.saturating_sub(1);
        for endpoint in members.iter().filter_map(|address| board.endpoint(*address)) {
            endpoint.requester.attach(None);
        }
    }

    /// The backend goes, and all mappings with it. No device is attached.
    pub(crate) fn release(self, locked: &Accounts) {
        self.owners.release(locked);
    }

    /// A request that the container leaves to its backend.
    pub(crate) fn ioctl(
        &mut self,
        request: u32,
        arg: u64,
        caller: &dyn Caller,
        locked: &Accounts,
    ) -> Result<(), Errno> {
        match request {
            GET_INFO => self.get_info(arg, caller),
            MAP_DMA => self.map_dma(arg, caller, locked),
            UNMAP_DMA => self.unmap_dma(arg, caller, locked),
            DIRTY_PAGES => self.dirty_pages(arg, caller),
            ENABLE | DISABLE => Err(Errno::ENOTTY), // API-100
            _ => Err(Errno::ENOTTY),
        }
    }

    /// Whether a mapping lies outside of `ranges`. Every mapping was inside of
    /// the present ranges when it was made, so only their gaps are looked at.
    fn outside(&self, ranges: &[IovaRange]) -> bool {
        if self.ranges == ranges {
            return false;
        }
        let mut next = 0;
        let touches = |start: u64, end: u64| self.overlap(start, end).is_some();
        for range in ranges {
            if range.start > next && touches(next, range.start - 1) {
                return true;
            }
            match range.end.checked_add(1) {
                Some(after) => next = after,
                None => return false,
            }
        }
        touches(next, u64::MAX)
    }

    /// The first mapping that touches a range.
    fn overlap(&self, first: u64, last: u64) -> Option<Mapping> {
        self.space.at_or_after(first).filter(|m| m.first <= last)
    }

    /// Whether a mapping lies across one end of a range.
    fn bisects(&self, first: u64, last: u64) -> bool {
        let Some(at_first) = self.overlap(first, last) else { return false };
        if at_first.first < first {
            return true;
        }
        // Most ranges are exactly one mapping: no second look then.
        at_first.last != last && self.overlap(last, last).is_some_and(|m| m.last != last)
    }
}

/// Pages of a mapping.
fn pages(m: &Mapping) -> u64 {
    (m.last - m.first) / PAGE + 1
}

/// Pages of a mapping that somebody pays for.
fn charged(m: &Mapping) -> u64 {
    if m.tag & tag::PEER != 0 { 0 } else { pages(m) }
}

/// What the IOMMU can map for every group: its aperture without the window of
/// interrupt messages (API-066).
fn iova_ranges(options: &Options) -> Vec<IovaRange> {
    let last = match options.address_width {
        width @ 0..64 => (1 << width) - 1,
        _ => u64::MAX,
    };
    let below = IovaRange { start: 0, end: last.min(MSI_WINDOW.start - 1) };
    let above = IovaRange { start: MSI_WINDOW.end + 1, end: last };
    [below, above].into_iter().filter(|r| r.start <= r.end).collect()
}
