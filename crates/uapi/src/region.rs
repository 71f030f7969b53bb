// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the regions of a device lie in its file.
//!
//! Linux puts region `n` at `n << 40` (API-130). Ours start higher and each
//! device of a lab has a range of its own, so that an access through a device
//! file is told from one on an ordinary file, and from one on another device,
//! by its offset alone. Programs use the offset that
//! `VFIO_DEVICE_GET_REGION_INFO` reports.

/// Bits of an offset that are the position inside a region.
pub const SHIFT: u32 = 40;
/// Region slots that each device has.
pub const PER_DEVICE: u32 = 32;
/// Devices that fit in a file offset (a positive `i64`).
pub const MAX_DEVICES: u32 = (1 << (63 - SHIFT)) / PER_DEVICE - 1;

/// The lowest offset that is a region's, in any layout: of region 1 where
/// Linux has it.
pub const FIRST: u64 = 1 << SHIFT;

/// File offset at which region `index` of device number `device` starts.
#[must_use]
pub const fn offset(device: u32, index: u32) -> u64 {
    ((device as u64 + 1) * PER_DEVICE as u64 + index as u64) << SHIFT
}

/// Device number, region index and position of a file offset; `None` below
/// the first device.
#[must_use]
pub const fn split(offset: u64) -> Option<(u32, u32, u64)> {
    let slot = (offset >> SHIFT) as u32;
    if slot < PER_DEVICE {
        return None;
    }
    Some((slot / PER_DEVICE - 1, slot % PER_DEVICE, offset & ((1 << SHIFT) - 1)))
}

/// Region index and position of an offset as Linux lays regions out, for
/// programs that do not ask (DPDK before 23.07). Region 0 is not told from an
/// ordinary file's start: `None`, as above the layout.
#[must_use]
pub const fn split_linux(offset: u64) -> Option<(u32, u64)> {
    let slot = offset >> SHIFT;
    if slot == 0 || slot >= PER_DEVICE as u64 {
        return None;
    }
    Some((slot as u32, offset & ((1 << SHIFT) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_undoes_offset() {
        for device in [0, 1, 77, MAX_DEVICES - 1] {
            for index in [0, 7, 31] {
                assert_eq!(split(offset(device, index) + 0x1234), Some((device, index, 0x1234)));
            }
        }
        assert_eq!(split_linux((7 << SHIFT) + 4), Some((7, 4)));
        assert_eq!(split_linux(4), None);
        assert_eq!(split_linux(offset(0, 0)), None);
        assert_eq!(split(0), None);
        assert_eq!(split(offset(0, 0) - 1), None);
        assert!(offset(MAX_DEVICES - 1, PER_DEVICE - 1) + ((1 << SHIFT) - 1) <= i64::MAX as u64);
    }
}
