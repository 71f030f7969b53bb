// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extensions of error recovery and reset ownership; Linux has none of this.
//!
//! A program asks for the recovery extensions of a device by
//! `VFIO_DEVICE_FEATURE` with [`ERROR_RECOVERY`], or a lab file does for all
//! devices (`[vfio] error_recovery`). What is on shows in the flags of
//! `VFIO_DEVICE_GET_INFO`, shifted by [`INFO_SHIFT`]. The feature numbers and
//! flag bits are the highest that there are, far from those that Linux gives
//! out.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Feature: which recovery extensions are on, [`ErrorRecovery`]. GET, SET.
pub const ERROR_RECOVERY: u32 = 0xff00;
/// Feature: the address of a device of the caller's context, [`DevIdAddress`].
/// GET, on files of devices' own nodes.
pub const DEV_ID_ADDRESS: u32 = 0xff01;
/// Feature: which ids of the caller's context must share an address space,
/// [`SharedSpaces`]. GET, on files of devices' own nodes.
pub const SHARED_SPACES: u32 = 0xff02;

/// `VFIO_PCI_NON_FATAL_ERR_IRQ_INDEX` (ERR-088).
pub const IRQ_NON_FATAL: u32 = 5;
/// `VFIO_PCI_PASSIVE_RESET_IRQ_INDEX` (ERR-088).
pub const IRQ_PASSIVE_RESET: u32 = 6;
/// How many interrupt indexes a device has of which one of these is on.
pub const IRQ_COUNT: u32 = 7;

/// Where [`RecoveryFlags`] start in the flags of `vfio_device_info`.
pub const INFO_SHIFT: u32 = 24;

/// Flag of BIND_IOMMUFD: claims the reset of all that falls with the device.
pub const BIND_CLAIM_RESET: u32 = 1 << 31;

bitflags! {
    /// Recovery extensions.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RecoveryFlags: u32 {
        /// Non-fatal errors are told by index 5 if it has an eventfd.
        const NON_FATAL = 1;
        /// A reset that the user has not asked for is told by index 6; without
        /// an eventfd there by the ERR index.
        const PASSIVE_RESET = 2;
        /// The user's accesses wait while the host recovers.
        const BLOCK = 4;
        /// The vote on every error is to give the device up.
        const DISCONNECT = 8;
        /// The user's hot reset is the link reset of a fatal error.
        const USER_RESET = 16;
    }
}

impl RecoveryFlags {
    /// How a lab file names each.
    pub const NAMES: [(&'static str, RecoveryFlags); 5] = [
        ("non-fatal", RecoveryFlags::NON_FATAL),
        ("passive-reset", RecoveryFlags::PASSIVE_RESET),
        ("block", RecoveryFlags::BLOCK),
        ("disconnect", RecoveryFlags::DISCONNECT),
        ("user-reset", RecoveryFlags::USER_RESET),
    ];
}

/// How a device's recovery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum AccessState {
    /// Accesses reach the device.
    Open = 0,
    /// They wait.
    Blocked = 1,
    /// The user is to reset the link.
    AwaitsReset = 2,
    /// Recovery has failed: loads give ones.
    Failed = 3,
}

/// Data of [`ERROR_RECOVERY`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorRecovery {
    /// [`RecoveryFlags`]; others are `EINVAL`.
    pub flags: u32,
    /// Given back: an [`AccessState`]. Zero to SET.
    pub state: u32,
    /// How long an access waits, in milliseconds, 1 to 600,000. 0 to SET:
    /// as it is.
    pub wait_ms: u32,
    /// How long the host waits for the user's link reset, in milliseconds, 1
    /// to 600,000. 0 to SET: as it is.
    pub reset_ms: u32,
}

/// Data of [`DEV_ID_ADDRESS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevIdAddress {
    /// Which id.
    pub dev_id: u32,
    /// Given back: PCI segment.
    pub segment: u16,
    /// Given back: bus.
    pub bus: u8,
    /// Given back: device and function.
    pub devfn: u8,
}

/// The fixed part of the data of [`SHARED_SPACES`]; [`SharedSpace`]s follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedSpaces {
    /// How many entries there is room for; given back: how many there are.
    /// More than room: `ENOSPC`, and no entry is written.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// An entry of [`SHARED_SPACES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedSpace {
    /// A device of the context.
    pub dev_id: u32,
    /// Devices with the same number must be attached to the same IOAS: it is
    /// the lowest id among them.
    pub space: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ERR-088
    #[test]
    fn numbers() {
        use crate::vfio::device::irq_index;
        assert_eq!((IRQ_NON_FATAL, IRQ_PASSIVE_RESET), (irq_index::COUNT, irq_index::COUNT + 1));
        assert_eq!((size_of::<ErrorRecovery>(), size_of::<DevIdAddress>(), size_of::<SharedSpaces>()), (16, 8, 8));
        let names = RecoveryFlags::NAMES.iter().fold(RecoveryFlags::empty(), |all, (_, flag)| all | *flag);
        assert_eq!(names, RecoveryFlags::all());
        assert!(names.bits().checked_shl(INFO_SHIFT).is_some_and(|bits| bits >> INFO_SHIFT == names.bits()));
    }
}
