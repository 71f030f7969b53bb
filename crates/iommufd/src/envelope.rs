// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How structures pass between a program and iommufd (iommufd-api.md, 1.3 to
//! 1.5).

use caller::Caller;
use uapi::Errno;
use uapi::iommufd::Command;
use zerocopy::{Immutable, IntoBytes};

/// A request's argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument {
    address: u64,
    size: u32,
    /// What lies there, as far as one look shows it: most calls need no other.
    head: [u8; HEAD],
    seen: usize,
}

/// As long as the longest structure of a frequent call, and then some.
const HEAD: usize = 48;

/// Bytes of a tail that are looked at in one go.
const STEP: usize = 4096;

impl Argument {
    /// Reads the size in front: `EFAULT`.
    pub(crate) fn at(address: u64, caller: &dyn Caller) -> Result<Argument, Errno> {
        // Not into the next page: that may not be there.
        let room = STEP - (address % STEP as u64) as usize;
        let seen = HEAD.min(room.max(4));
        let mut head = [0; HEAD];
        caller.read(address, &mut head[..seen])?;
        let size = head.first_chunk().map_or(0, |size| u32::from_ne_bytes(*size));
        Ok(Argument { address, size, head, seen })
    }

    /// Reads the structure. `EINVAL` if it is too short, `E2BIG` if what lies
    /// behind it is not zero, `EFAULT`.
    pub(crate) fn read<T: Command>(&self, caller: &dyn Caller) -> Result<T, Errno> {
        let (size, known) = (self.size as usize, size_of::<T>());
        if size < T::MIN {
            return Err(Errno::EINVAL);
        }
        let mut at = known;
        let mut tail = [0; STEP];
        while at < size {
            let address = self.address.checked_add(at as u64).ok_or(Errno::EFAULT)?;
            // Never more than a page, and not into the next one.
            let room = STEP - (address % STEP as u64) as usize;
            let part = &mut tail[..room.min(size - at)];
            caller.read(address, part)?;
            if part.iter().any(|byte| *byte != 0) {
                return Err(Errno::E2BIG);
            }
            at += part.len();
        }
        let mut value = T::new_zeroed();
        let bytes = &mut value.as_mut_bytes()[..size.min(known)];
        match self.head[..self.seen].get(..bytes.len()) {
            Some(head) => bytes.copy_from_slice(head),
            None => caller.read(self.address, bytes)?,
        }
        Ok(value)
    }

    /// Writes one field, which every caller knows: `EFAULT`.
    pub(crate) fn put<T: IntoBytes + Immutable>(
        &self,
        caller: &dyn Caller,
        offset: usize,
        field: &T,
    ) -> Result<(), Errno> {
        let address = self.address.checked_add(offset as u64).ok_or(Errno::EFAULT)?;
        caller.write(address, field.as_bytes())
    }

    /// Writes the structure back, as far as the caller knows it: `EFAULT`.
    pub(crate) fn respond<T: Command>(&self, caller: &dyn Caller, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        caller.write(self.address, &bytes[..bytes.len().min(self.size as usize)])
    }
}
