// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers in BAR 0 and portals in BAR 2.

/// BAR of the registers.
pub const REGISTER_BAR: usize = 0;
/// BAR of the portals.
pub const PORTAL_BAR: usize = 2;

/// Version of the interface, 32 bits.
pub const VERSION: u64 = 0x00;
/// General capabilities, 64 bits.
pub const GENCAP: u64 = 0x10;
/// Work queue capabilities, 64 bits.
pub const WQCAP: u64 = 0x20;
/// Group capabilities, 64 bits.
pub const GRPCAP: u64 = 0x30;
/// Engine capabilities, 64 bits.
pub const ENGCAP: u64 = 0x38;
/// Operations, 256 bits.
pub const OPCAP: u64 = 0x40;
/// Where the tables are, 128 bits.
pub const OFFSETS: u64 = 0x60;
/// General configuration, 32 bits.
pub const GENCFG: u64 = 0x80;
/// General control, 32 bits.
pub const GENCTRL: u64 = 0x88;
/// General status, 32 bits: [`State`] in bits 1:0, [`ResetType`] in bits 3:2.
pub const GENSTS: u64 = 0x90;
/// Why vector 0 was signalled, 32 bits, write 1 to clear.
pub const INTCAUSE: u64 = 0x98;
/// Command, 32 bits: operand in bits 19:0, [`command`] in bits 24:20, bit 31
/// asks for an interrupt.
pub const CMD: u64 = 0xa0;
/// Command status, 32 bits: error in bits 7:0, result in bits 23:8, bit 31
/// while it is under way.
pub const CMDSTS: u64 = 0xa8;
/// Commands, 32 bits, one each.
pub const CMDCAP: u64 = 0xb0;
/// The first error that no completion record tells of, 256 bits; bits 0 and 1
/// are write 1 to clear.
pub const SWERROR: u64 = 0xc0;

/// Groups, each [`GROUP_BYTES`].
pub const GRPCFG: u64 = 0x400;
/// Permissions of the MSI-X vectors, 64 bits each.
pub const MSIX_PERM: u64 = 0x600;
/// Work queues' configuration, 32 or 64 bytes each.
pub const WQCFG: u64 = 0x800;
/// MSI-X table.
pub const MSIX_TABLE: u32 = 0x2000;
/// MSI-X pending bits.
pub const MSIX_PBA: u32 = 0x3000;
/// Bytes of BAR 0.
pub const REGISTER_BYTES: u64 = 0x1_0000;
/// Bytes of a group's configuration: four words of queues, one of engines, one
/// of flags, 64 bits each.
pub const GROUP_BYTES: u64 = 64;
/// Offset of the engines in it.
pub const GROUP_ENGINES: u64 = 32;
/// Offset of the flags in it.
pub const GROUP_FLAGS: u64 = 40;

/// [`VERSION`] 1.0.
pub const VERSION_1: u32 = 0x100;

/// Bits of [`GENCAP`].
pub mod gencap {
    /// Page requests instead of page faults, if a descriptor asks for it.
    pub const BLOCK_ON_FAULT: u64 = 1 << 0;
    /// Source and destination of a move may overlap.
    pub const OVERLAPPING_COPY: u64 = 1 << 1;
    /// Cache control for memory.
    pub const CACHE_CONTROL_MEMORY: u64 = 1 << 2;
    /// Cache control for the cache.
    pub const CACHE_CONTROL_CACHE: u64 = 1 << 3;
    /// There is a [`super::CMDCAP`].
    pub const COMMAND_CAPABILITIES: u64 = 1 << 4;
    /// Destination readback.
    pub const DESTINATION_READBACK: u64 = 1 << 8;
    /// Position of log2 of the longest operation.
    pub const MAX_TRANSFER: u32 = 16;
    /// Position of log2 of the longest batch.
    pub const MAX_BATCH: u32 = 21;
    /// What is configured can be changed.
    pub const CONFIGURABLE: u64 = 1 << 31;
}

/// Bits of [`WQCAP`].
pub mod wqcap {
    /// Position of the number of queues.
    pub const QUEUES: u32 = 16;
    /// Position of log2 of the bytes of a queue's configuration, less 5.
    pub const CONFIG_BYTES: u32 = 24;
    /// Shared queues.
    pub const SHARED: u64 = 1 << 48;
    /// Dedicated queues.
    pub const DEDICATED: u64 = 1 << 49;
    /// Address translation can be turned off for a queue.
    pub const ATS: u64 = 1 << 50;
    /// Priorities.
    pub const PRIORITY: u64 = 1 << 51;
    /// The configuration shows the occupancy.
    pub const OCCUPANCY: u64 = 1 << 52;
    /// The configuration says which operations a queue takes.
    pub const OPERATIONS: u64 = 1 << 54;
}

/// Bits of [`GENCTRL`].
pub mod genctrl {
    /// Interrupt at a software error.
    pub const ERROR_INTERRUPT: u32 = 1 << 0;
    /// What can be set.
    pub const MASK: u32 = 0x3;
}

/// What can be set of [`GENCFG`].
pub const GENCFG_MASK: u32 = 0x10ff;

/// Bits of [`INTCAUSE`].
pub mod cause {
    /// A software error.
    pub const ERROR: u32 = 1 << 0;
    /// A command has been carried out.
    pub const COMMAND: u32 = 1 << 1;
}

/// States of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// It can be configured.
    #[default]
    Disabled = 0,
    /// Its work queues can be enabled.
    Enabled = 1,
    /// It is about to be disabled.
    Draining = 2,
}

/// What the last reset was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetType {
    /// A command.
    Software = 0,
    /// Function level reset.
    FunctionLevel = 1,
    /// Power stayed on.
    Warm = 2,
    /// Power on.
    Cold = 3,
}

/// Numbers of commands.
pub mod command {
    /// Enable the device.
    pub const ENABLE_DEVICE: u32 = 1;
    /// Drain and disable the device.
    pub const DISABLE_DEVICE: u32 = 2;
    /// Wait for what was submitted.
    pub const DRAIN_ALL: u32 = 3;
    /// Drop what was submitted.
    pub const ABORT_ALL: u32 = 4;
    /// Disable the device and forget its configuration.
    pub const RESET_DEVICE: u32 = 5;
    /// Enable the queue of this number.
    pub const ENABLE_QUEUE: u32 = 6;
    /// Drain and disable some queues.
    pub const DISABLE_QUEUE: u32 = 7;
    /// Wait for what was submitted to some queues.
    pub const DRAIN_QUEUE: u32 = 8;
    /// Drop what was submitted to some queues.
    pub const ABORT_QUEUE: u32 = 9;
    /// Disable some queues and forget their configuration.
    pub const RESET_QUEUE: u32 = 10;
    /// Wait for what was submitted with a PASID.
    pub const DRAIN_PASID: u32 = 11;
    /// Drop what was submitted with a PASID.
    pub const ABORT_PASID: u32 = 12;
    /// Get a handle for an MSI-X vector.
    pub const REQUEST_HANDLE: u32 = 13;
    /// Give it back.
    pub const RELEASE_HANDLE: u32 = 14;
    /// [`super::CMD`]: interrupt when done.
    pub const INTERRUPT: u32 = 1 << 31;
    /// [`REQUEST_HANDLE`]: in interrupt message storage.
    pub const IMS: u32 = 1 << 16;
    /// [`super::CMDSTS`]: under way.
    pub const ACTIVE: u32 = 1 << 31;
}

/// Errors of a command, bits 7:0 of [`CMDSTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandError {
    /// There is no such command.
    Command = 0x01,
    /// There is no such queue.
    Queue = 0x02,
    /// Enable: the device is enabled.
    DeviceEnabled = 0x10,
    /// Enable: bus mastering is off.
    BusMaster = 0x12,
    /// Enable: the queues are larger than the device.
    TotalSize = 0x14,
    /// Enable: a queue is in several groups.
    QueueGroups = 0x15,
    /// Enable: an engine is in several groups.
    EngineGroups = 0x16,
    /// Enable: a group has queues and no engine.
    NoEngine = 0x17,
    /// Enable: a queue with entries is in no group.
    NoGroup = 0x18,
    /// Enable queue: the device is not enabled.
    DeviceNotEnabled = 0x20,
    /// Enable queue: the queue is enabled.
    QueueEnabled = 0x21,
    /// Enable queue: the queue has no entries.
    QueueSize = 0x22,
    /// Enable queue: the priority is 0.
    Priority = 0x23,
    /// Enable queue: a shared queue needs PASIDs.
    NeedsPasid = 0x26,
    /// Enable queue: batches longer than those of the device.
    BatchSize = 0x27,
    /// Enable queue: operations longer than those of the device.
    TransferSize = 0x28,
    /// Disable: the device is not enabled.
    Disabled = 0x31,
    /// Disable, drain, abort or reset queue: the device is not enabled.
    QueueDisabled = 0x32,
    /// There is no such vector or handle.
    Vector = 0x41,
}

/// Fields of a queue's configuration, by 32-bit word.
pub mod wqcfg {
    /// Entries, 16 bits.
    pub const SIZE: usize = 0;
    /// Entries that a limited portal may fill, 16 bits.
    pub const THRESHOLD: usize = 1;
    /// Mode, PASID and the like.
    pub const MODE: usize = 2;
    /// Longest operation and batch.
    pub const LIMITS: usize = 3;
    /// Occupancy (bits 15:0) and state (bits 31:30).
    pub const STATE: usize = 6;
    /// Operations, 256 bits, if there are 64 bytes.
    pub const OPERATIONS: usize = 8;

    /// [`MODE`]: dedicated, else shared.
    pub const DEDICATED: u32 = 1 << 0;
    /// [`MODE`]: descriptors may block on a fault.
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// [`MODE`]: position and width of the priority.
    pub const PRIORITY: (u32, u32) = (4, 0xf);
    /// [`MODE`]: position and width of the PASID.
    pub const PASID: (u32, u32) = (8, 0xf_ffff);
    /// [`MODE`]: DMA goes with a PASID.
    pub const PASID_ENABLE: u32 = 1 << 28;
    /// [`LIMITS`]: position and width of log2 of the longest operation.
    pub const MAX_TRANSFER: (u32, u32) = (0, 0x1f);
    /// [`LIMITS`]: position and width of log2 of the longest batch.
    pub const MAX_BATCH: (u32, u32) = (5, 0xf);
    /// [`STATE`]: enabled.
    pub const ENABLED: u32 = 1 << 30;

    /// What can be set of the words before the operations.
    pub const MASKS: [u32; 8] = [0xffff, 0xffff, 0x3fff_ffff, 0x1ff, 0, 0, 0, 0];
}

/// Bits of an entry of [`MSIX_PERM`].
pub mod permission {
    /// No check of the PASID.
    pub const IGNORE: u32 = 1 << 2;
    /// For descriptors with a PASID.
    pub const PASID_ENABLE: u32 = 1 << 3;
    /// Position and width of the PASID.
    pub const PASID: (u32, u32) = (12, 0xf_ffff);
    /// What can be set.
    pub const MASK: u32 = 0xffff_f00c;
}

/// Bits of the first 64 bits of [`SWERROR`].
pub mod swerror {
    /// There is an error.
    pub const VALID: u64 = 1 << 0;
    /// There was another one.
    pub const OVERFLOW: u64 = 1 << 1;
    /// It has a descriptor.
    pub const DESCRIPTOR: u64 = 1 << 2;
    /// It has a queue.
    pub const QUEUE: u64 = 1 << 3;
    /// The descriptor was in a batch.
    pub const BATCH: u64 = 1 << 4;
    /// A write has faulted.
    pub const WRITE: u64 = 1 << 5;
}

/// Errors in bits 15:8 of [`SWERROR`] that no completion record can have: what
/// went wrong with a submission. The numbers are the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The portal's queue is not enabled.
    Disabled = 0x50,
    /// The dedicated queue was full.
    Full = 0x51,
    /// A store to a mapped portal came over one that was not taken yet.
    Overwritten = 0x52,
}

/// A field of a register.
#[must_use]
pub const fn field(register: u32, (position, width): (u32, u32)) -> u32 {
    register >> position & width
}
