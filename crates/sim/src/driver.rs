// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An NVMe driver in a simulated program, with what it is owed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use caller::FileId;
use host::Host;
use models::nvme::spec::{Command, NvmOpcode};
use models::testing::CountedEvent;
use models::testing::nvme::{Driver as Nvme, Machine, blocks_command};
use pci::Address;
use vm_memory::Bytes;

use crate::client::Client;
use crate::world::{Broken, Step};

/// IOVA of the first driver's arena.
pub(crate) const ARENA_IOVA: u64 = 0x1000_0000;
/// Bytes of an arena: queues in the lower half, a page for each command above.
pub(crate) const ARENA_LEN: u64 = 0x2_0000;
const QUEUES: u64 = ARENA_LEN / 2;
const PAGE: u64 = 4096;
const SLOTS: u64 = (ARENA_LEN - QUEUES) / PAGE;
/// Both I/O queue pairs have this many entries.
const ENTRIES: u16 = 8;
const BLOCKS: u64 = 64;

/// What a command that is under way will do.
#[derive(Clone, Copy, Debug)]
struct Owed {
    slot: Option<u64>,
    block: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write(u8),
    Read,
    Other,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Known(u8),
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Driver {
    nvme: Nvme<Mapped>,
    owed: BTreeMap<(u16, u16), Owed>,
    blocks: Vec<Block>,
    stamp: u8,
    event: Arc<CountedEvent>,
    /// Something was done to the device, its memory or its mappings behind the
    /// driver's back: it is owed nothing any more but that nothing completes twice.
    pub(crate) disturbed: bool,
    /// The device was moved since the last look: interrupts came once more.
    pub(crate) moved: bool,
    quiet: bool,
}

impl Driver {
    /// Enables the controller and makes two queue pairs; `None` if it refuses.
    pub(crate) fn start(
        host: Rc<RefCell<Host>>,
        client: Rc<Client>,
        file: FileId,
        address: Address,
        iova: u64,
        vaddr: u64,
        event: Arc<CountedEvent>,
    ) -> Option<Driver> {
        let machine = Mapped { host, client, file, address, iova, vaddr };
        let mut nvme = Nvme::new(machine);
        nvme.disable().ok()?;
        nvme.enable(16).ok()?;
        nvme.create_queue_pair(1, ENTRIES, Some(1)).ok()?;
        nvme.create_queue_pair(2, ENTRIES, Some(2)).ok()?;
        event.take();
        let blocks = vec![Block::Unknown; BLOCKS as usize];
        let owed = BTreeMap::new();
        Some(Driver { nvme, owed, blocks, stamp: 0, event, disturbed: false, moved: false, quiet: false })
    }

    /// The IOVAs of its arena.
    pub(crate) fn arena(&self) -> Range<u64> {
        self.nvme.machine.iova..self.nvme.machine.iova + ARENA_LEN
    }

    /// Commands that have not completed.
    pub(crate) fn outstanding(&self) -> usize {
        self.owed.len()
    }

    /// Whether the last [`reap`](Self::reap) found nothing.
    pub(crate) fn idle(&self) -> bool {
        self.quiet
    }

    /// Puts up to `count` commands into both queues and rings. `wild`: with
    /// buffers at IOVAs that may not be mapped.
    pub(crate) fn submit(&mut self, count: u8, kind: u8, wild: bool) {
        for n in 0..count {
            let id = 1 + u16::from(n & 1);
            let in_use = |slot: u64, owed: &BTreeMap<(u16, u16), Owed>| {
                owed.values().any(|o| o.slot == Some(slot) || o.block == slot)
            };
            // A slot is also the block that the command is about, so that no
            // two commands under way are about the same one.
            let Some(slot) = (0..SLOTS).find(|slot| !in_use(*slot, &self.owed)) else { break };
            let block = slot;
            let what = match (kind.wrapping_add(n)) % 5 {
                0 | 1 => {
                    self.stamp = self.stamp.wrapping_add(1);
                    Kind::Write(self.stamp)
                }
                2 | 3 => Kind::Read,
                _ => Kind::Other,
            };
            let mut built: Command = match what {
                Kind::Write(_) => blocks_command(NvmOpcode::Write, 1, block, 1),
                Kind::Read => blocks_command(NvmOpcode::Read, 1, block, 1),
                Kind::Other => blocks_command(NvmOpcode::Flush, 1, 0, 1),
            };
            let buffer = self.arena().start + QUEUES + slot * PAGE;
            let wild = wild && what != Kind::Other;
            built.prp1 = if wild { buffer.wrapping_sub(u64::from(kind) * 5 * PAGE).into() } else { buffer.into() };
            match what {
                Kind::Write(stamp) => {
                    if let Some(b) = self.blocks.get_mut(block as usize) {
                        *b = Block::Unknown;
                    }
                    self.nvme.machine.set(buffer, &[stamp; PAGE as usize]);
                }
                Kind::Read => self.nvme.machine.set(buffer, &[0xee; PAGE as usize]),
                Kind::Other => {}
            }
            if wild && self.arena().contains(&built.prp1.get()) {
                // It may overwrite queues and other buffers.
                self.disturbed = true;
            }
            let Ok(cid) = self.nvme.put(id, built) else { break };
            let slot = Some(slot).filter(|_| !wild);
            self.owed.insert((id, cid), Owed { slot, block, kind: if wild { Kind::Other } else { what } });
        }
        self.nvme.ring(1);
        self.nvme.ring(2);
    }

    /// Law: each command completes once; data read is data written; an
    /// interrupt came if anything completed.
    /// How many completed.
    pub(crate) fn reap(&mut self) -> Step<usize> {
        self.quiet = true;
        let signals = self.event.take();
        let mut completed = 0_usize;
        for id in [1, 2] {
            for completion in self.nvme.reap(id) {
                self.quiet = false;
                completed += 1;
                let cid = completion.cid.get();
                let Some(owed) = self.owed.remove(&(id, cid)) else {
                    if self.disturbed {
                        continue;
                    }
                    return Err(Broken(format!("queue {id}: command {cid} completed that is not under way")));
                };
                if self.disturbed {
                    continue;
                }
                self.settle(owed, completion.status().is_success())?;
            }
        }
        let most = if std::mem::take(&mut self.moved) { u64::MAX } else { completed as u64 };
        if !self.disturbed && (completed > 0 && signals == 0 || signals > most) {
            return Err(Broken(format!("{completed} completions were told by {signals} interrupts")));
        }
        Ok(completed)
    }

    fn settle(&mut self, owed: Owed, success: bool) -> Step {
        let Some(block) = self.blocks.get_mut(owed.block as usize) else { return Ok(()) };
        match owed.kind {
            Kind::Write(stamp) => *block = if success { Block::Known(stamp) } else { Block::Unknown },
            Kind::Read if success => {
                if let (Some(slot), Block::Known(stamp)) = (owed.slot, *block) {
                    let mut first = [0; 512];
                    self.nvme.machine.get(self.nvme.machine.iova + QUEUES + slot * PAGE, &mut first);
                    if first != [stamp; 512] {
                        return Err(Broken(format!("block {} holds {:#x}, not {stamp:#x}", owed.block, first[0])));
                    }
                }
            }
            Kind::Read | Kind::Other => {}
        }
        Ok(())
    }
}

/// The controller through the mapped BAR of an open device.
#[derive(Debug)]
struct Mapped {
    host: Rc<RefCell<Host>>,
    client: Rc<Client>,
    file: FileId,
    address: Address,
    iova: u64,
    vaddr: u64,
}

impl Machine for Mapped {
    fn load(&mut self, offset: u64) -> u32 {
        let window = self.host.borrow().device_file(self.file).and_then(|f| f.window(0));
        window.and_then(|w| w.slice().load(offset as usize, Ordering::Acquire).ok()).unwrap_or(u32::MAX)
    }

    fn store(&mut self, offset: u64, value: u32) {
        if let Some(window) = self.host.borrow().device_file(self.file).and_then(|f| f.window(0)) {
            // Past the end of the BAR there is nothing to store to.
            let _ = window.slice().store(value, offset as usize, Ordering::Release);
        }
    }

    fn get(&self, iova: u64, to: &mut [u8]) {
        self.client.get(self.vaddr.wrapping_add(iova.wrapping_sub(self.iova)), to);
    }

    fn set(&self, iova: u64, from: &[u8]) {
        self.client.set(self.vaddr.wrapping_add(iova.wrapping_sub(self.iova)), from);
    }

    fn memory(&self) -> Range<u64> {
        self.iova..self.iova + QUEUES
    }

    fn step(&mut self) -> bool {
        let endpoint = self.host.borrow().board().endpoint(self.address).map(Arc::clone);
        endpoint.and_then(|e| e.turn(0)) == Some(device::Turn::Busy)
    }
}
