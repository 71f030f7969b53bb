// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Peer-to-peer: a device's BAR as the target of another device's DMA.
//!
//! A write is posted, as on the bus: it goes into the device's inbox and is
//! done, in order, before anything else that touches the device. So a device
//! never waits for another, whichever two write to one another, and the device
//! in whose thread the write was made needs none of the other's locks. A BAR
//! that is plain memory takes the bytes at once where a program has it mapped.
//!
//! A read finds the device as it is between two turns, with all writes before
//! it done. If the device is in the middle of a turn, it is what the mapped
//! pages show, as a program's load would.
//!
//! Where memory decoding is off or the function does not answer, a read is an
//! unsupported request and a write is lost, which the one who wrote is not
//! told. A stopped device (MIG-048) gives zeros and drops what is written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iommu::{Memory, MemoryFault};
use vm_memory::{Bytes, VolatileSlice};

use crate::{Endpoint, Window};

/// Bytes that may be on their way to a device.
const INBOX: usize = 1 << 20;
/// What a write takes besides its bytes.
const POST: usize = 64;

/// Who answers at a device's BARs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answering {
    /// Nobody.
    #[default]
    Nobody,
    /// The device, which is stopped.
    Stopped,
    /// The device.
    Device,
}

/// A write on its way.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) bar: usize,
    pub(crate) offset: u64,
    pub(crate) data: Box<[u8]>,
}

/// What other devices find at a device's BARs. Its lock is held for moments,
/// and no other is taken meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Whether there may be writes: a device looks at the start of each turn,
    /// and mostly nobody has written. Set with the lock held.
    written: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    answering: Answering,
    windows: [Option<Arc<dyn Window>>; 6],
    posts: VecDeque<Post>,
    bytes: usize,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is found from now on; what came before. A fence: at the return no
    /// access goes by what was before.
    pub(crate) fn set(&self, answering: Answering, windows: &[Option<Arc<dyn Window>>; 6]) -> VecDeque<Post> {
        let mut state = self.lock();
        state.answering = answering;
        state.windows.clone_from(windows);
        self.written.store(false, Ordering::Relaxed);
        state.take()
    }

    /// What has come, if anything has.
    pub(crate) fn take(&self) -> Option<VecDeque<Post>> {
        if !self.written.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.lock();
        self.written.store(false, Ordering::Relaxed);
        Some(state.take())
    }
}

impl State {
    /// The mapped bytes of an access.
    fn mapped(&self, bar: usize, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let window = self.windows.get(bar)?.as_ref()?;
        window.slice().subslice(usize::try_from(offset).ok()?, len).ok()
    }

    fn take(&mut self) -> VecDeque<Post> {
        self.bytes = 0;
        std::mem::take(&mut self.posts)
    }
}

/// A BAR as other devices reach it. Offsets count from its start.
#[derive(Debug)]
pub(crate) struct PeerBar {
    endpoint: Weak<Endpoint>,
    bar: usize,
    len: u64,
    /// Plain memory.
    memory: bool,
}

impl PeerBar {
    pub(crate) fn new(endpoint: &Weak<Endpoint>, bar: usize, len: u64, memory: bool) -> Arc<PeerBar> {
        Arc::new(PeerBar { endpoint: Weak::clone(endpoint), bar, len, memory })
    }

    /// Whether an access lies in the BAR. What a page has behind a BAR that is
    /// shorter answers to nobody.
    fn contains(&self, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.len)
    }
}

impl Memory for PeerBar {
    fn slice(&self, _offset: u64, _len: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let endpoint = self.endpoint.upgrade().ok_or(MemoryFault)?;
        if !self.contains(offset, to.len()) {
            return Err(MemoryFault);
        }
        let state = endpoint.inbox().lock();
        match (state.answering, state.mapped(self.bar, offset, to.len())) {
            (Answering::Nobody, _) => return Err(MemoryFault),
            (Answering::Stopped, _) => return to.write_slice(&vec![0; to.len()], 0).map_err(|_| MemoryFault),
            (Answering::Device, Some(from)) if self.memory => {
                from.copy_to_volatile_slice(*to);
                return Ok(());
            }
            (Answering::Device, _) => {}
        }
        drop(state);
        if let Some(data) = endpoint.peer_read(self.bar, offset, to.len()) {
            return to.write_slice(&data?, 0).map_err(|_| MemoryFault);
        }
        // It is in a turn, which may be what asks.
        let state = endpoint.inbox().lock();
        match (state.answering, state.mapped(self.bar, offset, to.len())) {
            (Answering::Device, Some(from)) => {
                from.copy_to_volatile_slice(*to);
                Ok(())
            }
            _ => Err(MemoryFault),
        }
    }

    fn write(&self, offset: u64, from: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let endpoint = self.endpoint.upgrade().ok_or(MemoryFault)?;
        let mut data = vec![0; from.len()];
        from.copy_to(&mut data[..]);
        let mut state = endpoint.inbox().lock();
        if state.answering != Answering::Device || !self.contains(offset, data.len()) {
            let stopped = state.answering == Answering::Stopped;
            drop(state);
            tracing::debug!(name: "p2p_lost", target: "vfuse::p2p", bar = self.bar, offset, len = data.len(), stopped);
            return Ok(());
        }
        if self.memory
            && let Some(to) = state.mapped(self.bar, offset, data.len())
        {
            from.copy_to_volatile_slice(to);
            return Ok(());
        }
        // A bus would hold the writer up until there is room.
        let taken = state.bytes + POST + data.len();
        if taken > INBOX && !state.posts.is_empty() {
            drop(state);
            return Err(MemoryFault);
        }
        state.bytes = taken;
        state.posts.push_back(Post { bar: self.bar, offset, data: data.into() });
        endpoint.inbox().written.store(true, Ordering::Release);
        drop(state);
        endpoint.kick();
        Ok(())
    }

    fn is_peer(&self) -> bool {
        true
    }
}

/// The naturally aligned accesses of 1, 2, 4 or 8 bytes that `len` bytes at
/// `offset` are: where each begins, counted from `offset`, and its length.
pub(crate) fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let size = [8, 4, 2, 1].into_iter().find(|size| at.is_multiple_of(*size as u64) && *size <= len - done)?;
        done += size;
        Some((done - size, size))
    })
}
