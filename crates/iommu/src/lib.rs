// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an IOMMU is: address spaces, who is attached to them, translation on
//! the DMA path, and the fence that makes an unmap final.
#![forbid(unsafe_code)]

mod arena;
mod mapping;
mod memories;
mod memory;
mod port;
mod requester;
mod session;
mod space;
mod sync;
mod table;

pub use mapping::{MapError, Mapping, Prot};
pub use memory::{Memory, MemoryFault, Segment};
pub use requester::{Access, DmaFault, FaultReason, Requester};
pub use session::{Session, Translation};
pub use space::AddressSpace;
