// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an IOMMU is: address spaces, who is attached to them, translation on
//! the DMA path, what was written there, and the fence that makes an unmap final.
//!
//! # How it is built
//!
//! An [`AddressSpace`] keeps each mapping once, as a record of 32 bytes in a
//! radix tree over the first IOVAs (`table`). Nodes exist only where keys
//! part, so a map costs at most a few hundred bytes wherever it lies: about
//! 50 where they are dense, 70 to 180 where they are scattered, and no more
//! if it is large. IOVAs have 64 bits, ends are inclusive, and nothing has to
//! be aligned. Readers walk the tree without a lock while one writer changes it.
//!
//! A [`Requester`] is a function's way in. Its [`Session`]s each hold a place
//! of the requester (`port`), which costs a compare-and-swap and never waits;
//! a translation inside is remembered by the place. Whoever unmaps, changes a
//! mapping's memory, detaches or turns bus mastering off goes once through all
//! places of the requesters concerned: that waits for the sessions under way,
//! makes the change known to later ones, and clears what was remembered. Only
//! then are records and nodes used again, and memories let go of.
//!
//! An access that is refused is logged, in bounds, and returned: as a device
//! sees it, a master abort.
//!
//! What a requester is attached to is a [`Domain`]: a space, which several
//! domains may share, and perhaps a [`DirtyLog`] of what is written and a table
//! of the program's own that addresses go through first ([`Nested`], for VT-d
//! [`VtdStage1`]). Both live in the places: bits are a place's own until the
//! log asks, and a translation through two tables is remembered like one
//! through one.
//!
//! # What it doesn't implement
//!
//! - **PASIDs** beyond an attachment each ([`Requester::attach_pasid`]).
//! - **Flags in a program's table** whose memory can only be copied: accessed and
//!   dirty flags cannot be set there at once, and are left as they are.
//! - **Asking for pages.** A fault ends an access; [`FaultReason::is_recoverable`]
//!   says whether a device that has page requests ([`PageRequest`]) may ask. It
//!   must not wait for the answer within a session, as the answer may unmap.
#![forbid(unsafe_code)]

mod arena;
mod chunk;
mod dirty;
mod domain;
mod gather;
mod mapping;
mod marks;
#[cfg(test)]
mod marks_tests;
mod memories;
mod memory;
mod nested;
mod page_request;
mod port;
mod ports;
mod reach;
mod report;
mod requester;
mod session;
mod space;
mod span;
mod sync;
mod table;
mod vtd;

pub use dirty::DirtyLog;
pub use domain::Domain;
pub use gather::{Gather, Gathered, Places};
pub use mapping::{MapError, Mapping, Prot};
pub use memory::{Memory, MemoryFault, PageId, Segment};
pub use nested::{Nested, Stage1, Stage1Page, Tables};
pub use page_request::{PAGE_GROUPS, PageRequest, PageRequestQueue, PageResponder, PageResponse, PageResponseCode};
pub use reach::Direct;
pub use requester::{Access, DmaFault, FaultLog, FaultReason, Requester};
pub use session::{Session, Translation};
pub use space::AddressSpace;
pub use span::Span;
pub use vtd::VtdStage1;
