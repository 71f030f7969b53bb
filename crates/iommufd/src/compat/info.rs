// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_GET_INFO` (IOMMUFD-12.7).
//!
//! Capabilities are written as far as there is room, part by part; the chain
//! begins only where all of it fits.

use caller::Caller;
use uapi::Errno;
use uapi::vfio::InfoCapHeader;
use uapi::vfio::type1::{CAP_DMA_AVAIL, CAP_IOVA_RANGE, Info, InfoFlags, IovaRange};
use zerocopy::IntoBytes;

use crate::PAGE;
use crate::context::Context;
use crate::ioas::Ioas;

const HEADER: u64 = size_of::<InfoCapHeader>() as u64;

impl Context {
    pub(super) fn compat_get_info(&mut self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut info = Info::default();
        caller.read(arg, &mut info.as_mut_bytes()[..Info::MINSZ])?;
        let argsz = info.argsz as usize;
        if argsz < Info::MINSZ {
            return Err(Errno::EINVAL);
        }
        let ioas = self.compat_ioas()?;
        let ioas = self.ioases.get(&ioas).ok_or(Errno::ENODEV)?;
        info.flags = (InfoFlags::PGSIZES | InfoFlags::CAPS).bits();
        info.iova_pgsizes = page_sizes(ioas);

        let provided = argsz as u64;
        let mut total = size_of::<Info>() as u64;
        let mut before = None;
        for capability in [dma_avail, iova_ranges] {
            let at = arg.wrapping_add(total);
            let length = capability(ioas, at, provided.saturating_sub(total), caller)?.next_multiple_of(8);
            if let Some(before) = before
                && provided >= total
            {
                let next = std::mem::offset_of!(InfoCapHeader, next) as u64;
                caller.write(arg.wrapping_add(before + next), (total as u32).as_bytes())?;
            }
            before = Some(total);
            total += length;
        }
        if provided >= total {
            info.cap_offset = size_of::<Info>() as u32;
        }
        info.argsz = total as u32;
        let bytes = info.as_bytes();
        caller.write(arg, &bytes[..argsz.min(bytes.len())])
    }
}

/// Pages below 4 KiB are not told of.
fn page_sizes(ioas: &Ioas) -> u64 {
    let mut sizes = ioas.page_sizes();
    if sizes & (PAGE - 1) != 0 {
        sizes = sizes & !(PAGE - 1) | PAGE;
    }
    sizes.max(ioas.alignment())
}

/// How many mappings are left, as far as there is room. Returns its length.
fn dma_avail(_ioas: &Ioas, at: u64, room: u64, caller: &dyn Caller) -> Result<u64, Errno> {
    let head = InfoCapHeader { id: CAP_DMA_AVAIL, version: 1, next: 0 };
    let length = HEADER + 4;
    if room >= length {
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(u32::MAX.as_bytes());
        caller.write(at, &bytes)?;
    }
    Ok(length)
}

/// What can be mapped, as far as there is room. Returns its length.
fn iova_ranges(ioas: &Ioas, at: u64, room: u64, caller: &dyn Caller) -> Result<u64, Errno> {
    let (mut length, mut count) = (HEADER + 8, 0_u32);
    for (start, end) in ioas.holes() {
        let range = IovaRange { start, end };
        let here = at.wrapping_add(length);
        length += size_of::<IovaRange>() as u64;
        count += 1;
        if room >= length {
            caller.write(here, range.as_bytes())?;
        }
    }
    if room >= length {
        let mut head = InfoCapHeader { id: CAP_IOVA_RANGE, version: 1, next: 0 }.as_bytes().to_vec();
        head.extend_from_slice(count.as_bytes());
        head.extend_from_slice(&[0; 4]);
        caller.write(at, &head)?;
    }
    Ok(length)
}
