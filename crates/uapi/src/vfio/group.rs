// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on `/dev/vfio/N`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request;

/// Fills a [`Status`].
pub const GET_STATUS: u32 = request(3);
/// The argument points to a descriptor of a container or an iommufd.
pub const SET_CONTAINER: u32 = request(4);
/// No argument.
pub const UNSET_CONTAINER: u32 = request(5);
/// The argument is a device's name; the answer a descriptor.
pub const GET_DEVICE_FD: u32 = request(6);

/// Longest name that `GET_DEVICE_FD` takes, with its final NUL (API-047).
pub const NAME_MAX: usize = 4096;

/// `struct vfio_group_status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Status {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`StatusFlags`].
    pub flags: u32,
}

bitflags! {
    /// State of a group.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct StatusFlags: u32 {
        /// Nobody else drives a device of the group.
        const VIABLE = 1;
        /// The group is in a container.
        const CONTAINER_SET = 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bindings::bindings::vfio as linux;

    #[test]
    fn numbers_and_layout_are_linux_s() {
        assert_eq!([GET_STATUS, SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD], [0x3b67, 0x3b68, 0x3b69, 0x3b6a]);
        assert_eq!(size_of::<Status>(), size_of::<linux::vfio_group_status>());
        assert_eq!(std::mem::offset_of!(Status, flags), 4);
        assert_eq!(StatusFlags::VIABLE.bits(), linux::VFIO_GROUP_FLAGS_VIABLE);
        assert_eq!(StatusFlags::CONTAINER_SET.bits(), linux::VFIO_GROUP_FLAGS_CONTAINER_SET);
    }
}
