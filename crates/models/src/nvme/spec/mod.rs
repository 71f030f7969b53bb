// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! NVM Express 1.4 as typed data: registers, commands, data structures and
//! codes. Nothing here acts; drivers and tests use it as the controller does.
//!
//! Names and abbreviations are the specification's; clause numbers are those
//! of NVM Express 1.4, if nothing else is said.

/// Defines an enum of wire codes with a conversion from the raw value.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $raw:ty { $($(#[$doc:meta])* $code:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($raw)]
        pub enum $name {
            $($(#[$doc])* $code = $value,)*
        }

        impl $name {
            /// Every code, in the order of its number.
            pub const ALL: &'static [$name] = &[$($name::$code,)*];

            /// The code with this number.
            #[must_use]
            pub const fn from_raw(raw: $raw) -> Option<$name> {
                match raw {
                    $($value => Some($name::$code),)*
                    _ => None,
                }
            }

            /// Its number.
            #[must_use]
            pub const fn raw(self) -> $raw {
                self as $raw
            }
        }
    };
}

mod command;
mod feature;
mod identify;
mod log;
mod registers;
mod status;

pub use command::{AdminOpcode, Command, Completion, NvmOpcode, Range};
pub use feature::{Feature, Select};
pub use identify::{
    Cns, IdentifyController, IdentifyNamespace, LbaFormat, NidType, PowerState, controller, namespace, padded,
};
pub use log::{
    AsyncEvent, CommandEffects, ErrorEntry, EventType, FirmwareSlots, LogPage, Smart, critical_warning, effects,
};
pub use registers::{Aqa, Cap, Cc, Csts, Register, Shutdown, doorbell};
pub use status::Status;

/// The version register: 1.4.0.
pub const VERSION: u32 = 0x0001_0400;

/// The namespace id that means every namespace.
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// PCI class code: mass storage, non-volatile memory, NVM Express I/O controller.
pub const CLASS: u32 = 0x01_0802;
