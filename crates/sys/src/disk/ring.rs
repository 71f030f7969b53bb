// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several transfers of a file in one system call, by `io_uring`.
//!
//! What is in the page cache is copied before the call returns; what is not is
//! read side by side, as many at a time as were asked for. A thread has a ring
//! of its own, and nothing is under way in it between two calls: so nobody
//! touches memory that has been taken away since. Where the kernel gives no
//! ring (containers, `kernel.io_uring_disabled`) nothing is done here.
#![allow(unsafe_code)] // submissions name memory that programs share

use std::cell::RefCell;
use std::os::fd::RawFd;

use device::DiskPart;
use io_uring::{IoUring, opcode, types};
use iommu::Segment;

/// Most transfers of a call.
pub(super) const MANY: usize = 64;
/// Fewer are no quicker than a system call each.
const FEW: usize = 2;

/// A thread's ring.
enum Own {
    /// Not asked for yet.
    New,
    /// The kernel gives none, or it has failed.
    None,
    There(Box<IoUring>),
}

impl Own {
    fn get(&mut self) -> Option<&mut IoUring> {
        if let Own::New = self {
            let ring = (1..=2).find_map(|attempt| {
                let mut builder = IoUring::builder();
                if attempt == 1 {
                    // Linux 6.1: no other task is bothered with what is done.
                    builder.setup_single_issuer().setup_defer_taskrun();
                }
                builder.build(MANY as u32).ok()
            });
            tracing::debug!(target: "vfuse::disk", io_uring = ring.is_some(), "reads and writes files");
            *self = ring.map_or(Own::None, |ring| Own::There(Box::new(ring)));
        }
        match self {
            Own::There(ring) => Some(ring),
            Own::New | Own::None => None,
        }
    }
}

/// Does those of the first [`MANY`] transfers for which `allowed` holds and
/// whose memory can be addressed. Bit *n* says that part *n* was done as a
/// whole; of others nothing is known but that nobody is at them any more.
pub(super) fn transfer(
    file: RawFd,
    parts: &[DiskPart<'_>],
    write: bool,
    allowed: impl Fn(&DiskPart<'_>) -> bool,
) -> u64 {
    thread_local!(static RING: RefCell<Own> = const { RefCell::new(Own::New) });
    let wanted = |part: &&DiskPart<'_>| matches!(part.segment, Segment::Direct(_)) && allowed(part);
    if parts.iter().take(MANY).filter(wanted).count() < FEW {
        return 0;
    }
    RING.with_borrow_mut(|own| {
        let Some(ring) = own.get() else { return 0 };
        let mut left = 0;
        for (number, part) in parts.iter().enumerate().take(MANY).filter(|(_, part)| wanted(part)) {
            let Segment::Direct(slice) = &part.segment else { continue };
            let (memory, len) = (slice.ptr_guard_mut(), u32::try_from(slice.len()).unwrap_or(u32::MAX));
            let entry = match write {
                false => opcode::Read::new(types::Fd(file), memory.as_ptr(), len).offset(part.offset).build(),
                true => opcode::Write::new(types::Fd(file), memory.as_ptr(), len).offset(part.offset).build(),
            };
            // SAFETY: `len` bytes at the pointer belong to the slice, which is
            // borrowed until all is over, below; others may change them
            // meanwhile, as a VolatileSlice allows. The file stays open as long.
            let pushed = unsafe { ring.submission().push(&entry.user_data(number as u64)) };
            left += usize::from(pushed.is_ok());
        }
        let (done, sound) = wait(ring, parts, left);
        if !sound {
            *own = Own::None;
        }
        done
    })
}

/// Returns when nothing is under way any more: what was done, and whether the
/// ring can be used again.
fn wait(ring: &mut IoUring, parts: &[DiskPart<'_>], mut left: usize) -> (u64, bool) {
    let (mut done, mut sound) = (0, true);
    while left > 0 {
        match ring.submit_and_wait(left) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                tracing::debug!(target: "vfuse::disk", %error, "io_uring fails");
                sound = false;
            }
            _ => {}
        }
        for entry in ring.completion() {
            left -= 1;
            let number = entry.user_data();
            let whole = parts
                .get(number as usize)
                .is_some_and(|part| usize::try_from(entry.result()).is_ok_and(|moved| moved == part.segment.len()));
            done |= u64::from(whole) << number;
        }
        // What the kernel has not taken it never will: the ring goes.
        if !sound && ring.submission().len() == left {
            break;
        }
    }
    (done, sound)
}
