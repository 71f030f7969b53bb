// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Arguments of the requests that only a device's own node takes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct vfio_device_bind_iommufd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BindIommufd {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`BIND_TOKEN`] or nothing.
    pub flags: u32,
    /// Descriptor of `/dev/iommu`.
    pub iommufd: i32,
    /// Given back: the device's id there.
    pub out_devid: u32,
    /// Address of a VF token, 16 bytes.
    pub token_uuid_ptr: u64,
}

impl BindIommufd {
    /// Bytes that every caller provides.
    pub const MINSZ: usize = 16;
}

/// A [`BindIommufd`] has a token.
pub const BIND_TOKEN: u32 = 1;

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttachIommufdPt {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`PT_PASID`] or nothing.
    pub flags: u32,
    /// An IOAS or HWPT; given back: the HWPT.
    pub pt_id: u32,
    /// With the flag.
    pub pasid: u32,
}

impl AttachIommufdPt {
    /// Bytes that every caller provides.
    pub const MINSZ: usize = 12;
}

/// `struct vfio_device_detach_iommufd_pt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DetachIommufdPt {
    /// Bytes that the caller provides.
    pub argsz: u32,
    /// [`PT_PASID`] or nothing.
    pub flags: u32,
    /// With the flag.
    pub pasid: u32,
}

impl DetachIommufdPt {
    /// Bytes that every caller provides.
    pub const MINSZ: usize = 8;
}

/// The request is about a PASID.
pub const PT_PASID: u32 = 1;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use vfio_bindings::bindings::vfio as linux;

    use super::*;

    #[test]
    fn layouts_are_linux_s() {
        assert_eq!(
            [size_of::<BindIommufd>(), size_of::<AttachIommufdPt>(), size_of::<DetachIommufdPt>()],
            [24, 16, 12]
        );
        assert_eq!(offset_of!(BindIommufd, out_devid), 12);
        assert_eq!(offset_of!(AttachIommufdPt, pt_id), offset_of!(linux::vfio_device_attach_iommufd_pt, pt_id));
        assert_eq!(offset_of!(DetachIommufdPt, pasid), 8);
    }
}
