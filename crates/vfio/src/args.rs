// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How VFIO structures pass between a program and the subsystem: the argsz
//! rule (API-003), the capability chain (API-004, API-005) and strings.

use caller::Caller;
use uapi::Errno;
use uapi::vfio::InfoCapHeader;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Copies the first `minsz` bytes of the structure at `arg`; what lies behind
/// them is zero. `EFAULT`; `EINVAL` if its first word, argsz, is less than
/// `minsz` (API-003).
pub(crate) fn read<T: FromBytes + IntoBytes>(caller: &dyn Caller, arg: u64, minsz: usize) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    let bytes = value.as_mut_bytes();
    let minsz = minsz.min(bytes.len());
    caller.read(arg, &mut bytes[..minsz])?;
    let argsz = bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    if (argsz as usize) < minsz {
        return Err(Errno::EINVAL);
    }
    Ok(value)
}

/// Checks that what the caller provides behind the structure of `size` bytes
/// is zero: `E2BIG`, `EFAULT`.
pub(crate) fn check_tail(caller: &dyn Caller, arg: u64, size: usize, argsz: u32) -> Result<(), Errno> {
    const PAGE: u64 = 4096;
    let end = u64::from(argsz);
    let mut at = size as u64;
    while at < end {
        // Never into a page that may not be there.
        let address = arg.checked_add(at).ok_or(Errno::EFAULT)?;
        let mut part = vec![0; (PAGE - address % PAGE).min(end - at) as usize];
        caller.read(address, &mut part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        at += part.len() as u64;
    }
    Ok(())
}

/// Copies a whole value without argsz from `arg`; `EFAULT`.
pub(crate) fn read_plain<T: FromBytes + IntoBytes>(caller: &dyn Caller, arg: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(arg, value.as_mut_bytes())?;
    Ok(value)
}

/// Copies the first `len` bytes of `value`, or all of it if it is shorter, to
/// `arg` (API-006); `EFAULT`.
pub(crate) fn write_prefix<T: IntoBytes + Immutable>(
    caller: &dyn Caller,
    arg: u64,
    value: &T,
    len: usize,
) -> Result<(), Errno> {
    let bytes = value.as_bytes();
    caller.write(arg, &bytes[..len.min(bytes.len())])
}

/// Copies a string that ends in NUL, at most `max` bytes with it. `EFAULT` if
/// a byte before the NUL cannot be read, `EINVAL` if there is none.
pub(crate) fn read_string(caller: &dyn Caller, arg: u64, max: usize) -> Result<Vec<u8>, Errno> {
    const PAGE: u64 = 4096;
    let mut text = Vec::new();
    while text.len() < max {
        // Up to the next page border: what lies behind it may not be mapped.
        let at = arg.checked_add(text.len() as u64).ok_or(Errno::EFAULT)?;
        let room = (PAGE - at % PAGE) as usize;
        let mut part = vec![0; room.min(max - text.len())];
        caller.read(at, &mut part)?;
        if let Some(end) = part.iter().position(|b| *b == 0) {
            text.extend_from_slice(&part[..end]);
            return Ok(text);
        }
        text.extend_from_slice(&part);
    }
    Err(Errno::EINVAL)
}

/// The capabilities that follow an info structure.
#[derive(Debug, Default)]
pub(crate) struct InfoChain {
    bytes: Vec<u8>,
    last: Option<usize>,
}

impl InfoChain {
    /// No capability.
    pub(crate) fn new() -> InfoChain {
        InfoChain::default()
    }

    /// Adds a capability; `body` is what follows its header.
    pub(crate) fn add(&mut self, id: u16, version: u16, body: &[u8]) {
        let start = self.bytes.len();
        if let Some(last) = self.last {
            self.link(last, start);
        }
        self.bytes.extend_from_slice(InfoCapHeader { id, version, next: 0 }.as_bytes());
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.last = Some(start);
    }

    /// Whether there is no capability (then the CAPS flag stays clear).
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Copies the chain to the caller, behind the structure of `size` bytes at
    /// `arg`, if `argsz` says that there is room. Returns the argsz and the
    /// cap_offset to put into the structure (API-005). `EFAULT`.
    pub(crate) fn place(self, caller: &dyn Caller, arg: u64, size: usize, argsz: u32) -> Result<(u32, u32), Errno> {
        if self.is_empty() {
            return Ok((argsz, 0));
        }
        let needed = size + self.bytes.len();
        if (argsz as usize) < needed {
            return Ok((u32::try_from(needed).map_err(|_| Errno::EINVAL)?, 0));
        }
        let (mut chain, mut at) = (self, 0);
        // Offsets were counted from the chain's start, Linux counts from the
        // structure's.
        while let Some(next) = chain.next(at) {
            chain.link(at, next + size);
            at = next;
        }
        caller.write(arg.checked_add(size as u64).ok_or(Errno::EFAULT)?, &chain.bytes)?;
        Ok((argsz, size as u32))
    }

    const NEXT: usize = std::mem::offset_of!(InfoCapHeader, next);

    fn next(&self, at: usize) -> Option<usize> {
        let word = self.bytes.get(at + Self::NEXT..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*word) as usize).filter(|next| *next != 0)
    }

    fn link(&mut self, at: usize, next: usize) {
        if let Some(word) = self.bytes.get_mut(at + Self::NEXT..).and_then(|b| b.first_chunk_mut()) {
            *word = (next as u32).to_ne_bytes();
        }
    }
}
