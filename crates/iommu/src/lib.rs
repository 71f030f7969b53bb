// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an IOMMU is: address spaces, who is attached to them, translation on
//! the DMA path, and the fence that makes an unmap final.
#![forbid(unsafe_code)]

mod memory;
mod requester;
mod space;

pub use memory::{Memory, MemoryFault, Segment};
pub use requester::{Access, DmaFault, FaultReason, Requester, Session};
pub use space::{AddressSpace, MapError, Mapping, Prot};
