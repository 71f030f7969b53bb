// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `linux/vfio.h`: request numbers and structures.
//!
//! One module per kind of file, for the same request number means different
//! things on different kinds (API-002).

pub mod cdev;
pub mod container;
pub mod device;
pub mod draining;
pub mod group;
pub mod migration;
pub mod recovery;
pub mod type1;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The type byte of every VFIO request, `';'`.
pub const TYPE: u8 = b';';

/// Request `n`: `_IO(';', 100 + n)` (API-001).
#[must_use]
pub const fn request(n: u8) -> u32 {
    (TYPE as u32) << 8 | (100 + n as u32)
}

/// `struct vfio_info_cap_header`: starts each capability of an info structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InfoCapHeader {
    /// Which capability.
    pub id: u16,
    /// Version of its layout.
    pub version: u16,
    /// Offset of the next one from the start of the info structure; 0 ends.
    pub next: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bindings::bindings::vfio as linux;

    /// API-001
    #[test]
    fn requests_are_io_without_size() {
        assert_eq!(u32::from(TYPE), u32::from(linux::VFIO_TYPE));
        assert_eq!(request(0), 0x3b64);
        assert_eq!(request(0), u32::from(linux::VFIO_TYPE) << 8 | linux::VFIO_BASE);
        assert_eq!(request(21), 0x3b79);
    }

    #[test]
    fn header_is_linux_s() {
        assert_eq!(size_of::<InfoCapHeader>(), size_of::<linux::vfio_info_cap_header>());
    }
}
