// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether a descriptor makes sense, before anything is done.

use super::spec::{DELTA_BYTES, DESCRIPTOR_BYTES, Descriptor, Status, flag, opcode};

/// What a queue's configuration lets a descriptor be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Longest operation in bytes.
    pub(super) bytes: u64,
    /// Longest batch in descriptors.
    pub(super) batch: u32,
    /// Operations that are taken, a bit each.
    pub(super) operations: u64,
    /// Flags that are not offered to descriptors of this queue.
    pub(super) withheld: u32,
    /// The descriptor stands in a batch.
    pub(super) in_batch: bool,
}

/// Why a descriptor is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: Status,
    /// The flags that are wrong.
    pub(super) flags: u32,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused { status, flags: 0 }
    }
}

/// Longest range of which a delta record tells: its offsets have 16 bits and
/// count 8 bytes.
const MAX_DELTA_RANGE: u32 = 8 << 16;
/// Shortest room for a delta record.
const MIN_DELTA_ROOM: u32 = 80;

/// Flags that every operation has. A fence outside a batch has nothing to wait
/// for; drivers set it there.
const COMMON: u32 =
    flag::FENCE | flag::RECORD | flag::REQUEST_RECORD | flag::INTERRUPT | flag::STEER_RECORD | flag::CLASS_RECORD;
/// Flags of operations that read memory.
const READS: u32 = flag::BLOCK_ON_FAULT | flag::CLASS_1;
/// Flags of operations that write memory.
const WRITES: u32 = flag::BLOCK_ON_FAULT | flag::CACHE | flag::CLASS_2 | flag::STRICT | flag::READBACK | flag::STEER;
/// Flags of operations that compute a CRC.
const CRCS: u32 = flag::READ_SEED | flag::RAW_CRC | flag::RAW_DATA;

/// Flags of an operation.
const fn flags(operation: u8) -> u32 {
    COMMON
        | match operation {
            opcode::BATCH => READS,
            opcode::MOVE => READS | WRITES,
            opcode::FILL => WRITES,
            opcode::COMPARE => READS | flag::CLASS_2 | flag::CHECK_RESULT,
            opcode::COMPARE_PATTERN => READS | flag::CHECK_RESULT,
            opcode::CREATE_DELTA => READS | WRITES | flag::CLASS_3 | flag::CHECK_RESULT,
            opcode::APPLY_DELTA => READS | WRITES,
            opcode::DUAL_CAST => READS | WRITES | flag::CLASS_3,
            opcode::CRC => READS | CRCS | flag::CLASS_3,
            opcode::COPY_CRC => READS | WRITES | CRCS | flag::CLASS_3,
            opcode::FLUSH => flag::BLOCK_ON_FAULT | flag::CACHE | flag::CLASS_2,
            _ => 0,
        }
}

/// Bits of the operation's own fields that mean something.
const fn own_fields(operation: u8) -> [u64; 3] {
    const WORD: u64 = 0xffff_ffff;
    match operation {
        opcode::COMPARE | opcode::COMPARE_PATTERN => [0xff, 0, 0],
        opcode::CREATE_DELTA => [!0, WORD, 0xff],
        opcode::APPLY_DELTA => [WORD, 0, 0],
        opcode::DUAL_CAST => [!0, 0, 0],
        opcode::CRC | opcode::COPY_CRC => [WORD, !0, 0],
        _ => [0; 3],
    }
}

fn reserved_is_zero(descriptor: &Descriptor) -> bool {
    let fields = own_fields(descriptor.opcode());
    let wrong = descriptor.words().iter().zip(fields).fold(0, |wrong, (word, field)| wrong | word & !field);
    descriptor.reserved == 0 && descriptor.pasid & 0x7ff0_0000 == 0 && wrong == 0
}

fn overlap(a: u64, b: u64, len: u64) -> bool {
    a.abs_diff(b) < len
}

/// Checks a descriptor, its completion record and interrupt handle aside.
pub(super) fn check(descriptor: &Descriptor, limits: &Limits) -> Result<(), Refused> {
    let operation = descriptor.opcode();
    let offered = operation < 64 && limits.operations & 1 << operation != 0;
    if !offered || limits.in_batch && matches!(operation, opcode::BATCH | opcode::DRAIN) {
        return Err(Status::Opcode.into());
    }
    let mut wrong = descriptor.flags() & (!flags(operation) | limits.withheld);
    if descriptor.has(flag::REQUEST_RECORD) && !descriptor.has(flag::RECORD) {
        wrong |= flag::REQUEST_RECORD;
    }
    if wrong != 0 {
        return Err(Refused { status: Status::Flags, flags: wrong });
    }
    if !reserved_is_zero(descriptor) {
        return Err(Status::Reserved.into());
    }
    match operation {
        opcode::NO_OPERATION | opcode::DRAIN => return Ok(()),
        opcode::BATCH => {
            if !(2..=limits.batch).contains(&descriptor.size) {
                return Err(Status::Count.into());
            }
            if !descriptor.source.is_multiple_of(DESCRIPTOR_BYTES as u64) {
                return Err(Status::ListAlignment.into());
            }
            return Ok(());
        }
        _ => {}
    }
    let size = u64::from(descriptor.size);
    if size == 0 || size > limits.bytes {
        return Err(Status::Size.into());
    }
    check_operands(descriptor, size)
}

fn check_operands(descriptor: &Descriptor, size: u64) -> Result<(), Refused> {
    let Descriptor { source, destination, .. } = *descriptor;
    match descriptor.opcode() {
        opcode::DUAL_CAST => {
            let second = descriptor.second();
            if (destination ^ second) & 0xfff != 0 {
                return Err(Status::DualCast.into());
            }
            if overlap(source, destination, size) || overlap(source, second, size) || overlap(destination, second, size)
            {
                return Err(Status::Overlap.into());
            }
        }
        opcode::COPY_CRC if overlap(source, destination, size) => return Err(Status::Overlap.into()),
        opcode::CREATE_DELTA => {
            let (record, room) = (descriptor.second(), descriptor.max_delta());
            if !size.is_multiple_of(8) || descriptor.size > MAX_DELTA_RANGE {
                return Err(Status::Size.into());
            }
            if room < MIN_DELTA_ROOM || !room.is_multiple_of(DELTA_BYTES as u32) {
                return Err(Status::DeltaSize.into());
            }
            if (source | destination | record) & 7 != 0 {
                return Err(Status::Alignment.into());
            }
            let len = size.max(room.into());
            if overlap(source, record, len) || overlap(destination, record, len) {
                return Err(Status::Overlap.into());
            }
        }
        opcode::APPLY_DELTA => {
            if !size.is_multiple_of(8) || descriptor.size > MAX_DELTA_RANGE {
                return Err(Status::Size.into());
            }
            let record = descriptor.word();
            if !record.is_multiple_of(DELTA_BYTES as u32) || u64::from(record) / DELTA_BYTES as u64 > size / 8 {
                return Err(Status::DeltaSize.into());
            }
            if (source | destination) & 7 != 0 {
                return Err(Status::Alignment.into());
            }
            if overlap(source, destination, size.max(record.into())) {
                return Err(Status::Overlap.into());
            }
        }
        opcode::CRC | opcode::COPY_CRC if descriptor.has(flag::READ_SEED) && descriptor.seed_address() & 3 != 0 => {
            return Err(Status::Alignment.into());
        }
        _ => {}
    }
    Ok(())
}
