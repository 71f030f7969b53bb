// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies between translated memory and frames.

use iommu::{Access, Memory, MemoryFault, Segment};
use vm_memory::VolatileSlice;

/// An offset in a memory, and where its bytes go or come from.
type Piece<'a> = (u64, VolatileSlice<'a>);

/// Copies all segments from or to the start of `bytes`, which are long enough.
/// What lies in one memory that can only be copied goes in one call.
#[inline]
pub(super) fn copy<'a>(
    segments: impl Iterator<Item = Segment<'a>>,
    bytes: &mut [u8],
    access: Access,
) -> Result<(), MemoryFault> {
    let own = VolatileSlice::from(bytes);
    let mut at = 0;
    let mut far: Option<(&'a dyn Memory, Vec<Piece<'_>>)> = None;
    for segment in segments {
        let part = own.subslice(at, segment.len()).map_err(|_| MemoryFault)?;
        at += part.len();
        match segment {
            Segment::Direct(slice) => match access {
                Access::Read => slice.copy_to_volatile_slice(part),
                Access::Write => part.copy_to_volatile_slice(slice),
            },
            Segment::Remote { memory, offset, .. } => match &mut far {
                Some((same, parts)) if std::ptr::addr_eq(*same, memory) => parts.push((offset, part)),
                _ => {
                    if let Some((memory, parts)) = far.replace((memory, vec![(offset, part)])) {
                        copy_far(memory, &parts, access)?;
                    }
                }
            },
        }
    }
    match far {
        Some((memory, parts)) => copy_far(memory, &parts, access),
        None => Ok(()),
    }
}

#[cold]
fn copy_far(memory: &dyn Memory, parts: &[Piece<'_>], access: Access) -> Result<(), MemoryFault> {
    match access {
        Access::Read => memory.read_many(parts),
        Access::Write => memory.write_many(parts),
    }
}
