// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Status codes of a completion (4.6.1).

use std::fmt;

/// Status code type in bits 10:8, status code in bits 7:0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($value);)*

            /// The specification's name of the code.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($value => $text,)*
                    _ => "unknown status",
                }
            }
        }
    };
}

statuses! {
    /// The command completed.
    SUCCESS = 0x000, "Successful Completion";
    /// The opcode is not supported.
    INVALID_OPCODE = 0x001, "Invalid Command Opcode";
    /// A field is reserved, unsupported or out of range.
    INVALID_FIELD = 0x002, "Invalid Field in Command";
    /// Data or metadata could not be transferred.
    DATA_TRANSFER_ERROR = 0x004, "Data Transfer Error";
    /// The controller failed.
    INTERNAL_ERROR = 0x006, "Internal Error";
    /// An Abort command named it.
    ABORT_REQUESTED = 0x007, "Command Abort Requested";
    /// No such namespace, or no such format.
    INVALID_NAMESPACE = 0x00b, "Invalid Namespace or Format";
    /// The command came at the wrong time.
    COMMAND_SEQUENCE_ERROR = 0x00c, "Command Sequence Error";
    /// A PRP entry's offset is not allowed.
    INVALID_PRP_OFFSET = 0x013, "PRP Offset Invalid";
    /// The namespace may not be written.
    WRITE_PROTECTED = 0x020, "Namespace is Write Protected";
    /// Blocks beyond the end of the namespace.
    LBA_OUT_OF_RANGE = 0x080, "LBA Out of Range";
    /// No room in the medium.
    CAPACITY_EXCEEDED = 0x081, "Capacity Exceeded";
    /// The completion queue named by Create I/O Submission Queue does not exist.
    COMPLETION_QUEUE_INVALID = 0x100, "Completion Queue Invalid";
    /// A queue id is in use, missing or out of range.
    INVALID_QUEUE_ID = 0x101, "Invalid Queue Identifier";
    /// A queue size is zero or larger than the controller's.
    INVALID_QUEUE_SIZE = 0x102, "Invalid Queue Size";
    /// More Asynchronous Event Requests than the limit.
    AER_LIMIT_EXCEEDED = 0x105, "Asynchronous Event Request Limit Exceeded";
    /// No such firmware slot.
    INVALID_FIRMWARE_SLOT = 0x106, "Invalid Firmware Slot";
    /// The interrupt vector does not exist.
    INVALID_INTERRUPT_VECTOR = 0x108, "Invalid Interrupt Vector";
    /// The log page is not supported.
    INVALID_LOG_PAGE = 0x109, "Invalid Log Page";
    /// The LBA format is not supported.
    INVALID_FORMAT = 0x10a, "Invalid Format";
    /// The completion queue still has submission queues.
    INVALID_QUEUE_DELETION = 0x10c, "Invalid Queue Deletion";
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 0x10d, "Feature Identifier Not Saveable";
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 0x10e, "Feature Not Changeable";
    /// The feature holds for the controller, not for a namespace.
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f, "Feature Not Namespace Specific";
    /// Data could not be written.
    WRITE_FAULT = 0x280, "Write Fault";
    /// Data could not be read.
    UNRECOVERED_READ_ERROR = 0x281, "Unrecovered Read Error";
    /// The data compared are not equal.
    COMPARE_FAILURE = 0x285, "Compare Failure";
}

impl Status {
    /// Status code type.
    #[must_use]
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status code.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether the command completed.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Whether the same command might succeed later: the Do Not Retry bit is
    /// the opposite.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Status::DATA_TRANSFER_ERROR | Status::INTERNAL_ERROR | Status::ABORT_REQUESTED)
            || matches!(self, Status::WRITE_FAULT | Status::UNRECOVERED_READ_ERROR | Status::SUCCESS)
    }

    /// The 16-bit status field of a completion without its phase tag: More is
    /// set when the error log has an entry about it.
    #[must_use]
    pub const fn field(self, more: bool) -> u16 {
        let dnr = !self.is_retryable();
        self.0 << 1 | (more as u16) << 14 | (dnr as u16) << 15
    }

    /// The status in a completion's 16-bit status field.
    #[must_use]
    pub const fn from_field(field: u16) -> Status {
        Status(field >> 1 & 0x7ff)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:x}/{:02x}h)", self.name(), self.code_type(), self.code())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
