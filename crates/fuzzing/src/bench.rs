// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device on a bench whose program means harm: what both device models'
//! targets do to them besides their own registers.

use std::sync::Arc;

use device::{Device, Endpoint, ResetKind};
use iommu::{AddressSpace, Mapping, Prot};
use models::testing::{Access, Bench, TestMemory};

use crate::wire::{Blob, Number, wire};

/// Bytes of the memory at IOVA 0, which the device may read and write.
pub(crate) const MEMORY: u64 = 1 << 20;
/// IOVA of a page that it may only read.
pub(crate) const READ_ONLY: u64 = 1 << 40;
const PAGE: usize = 4096;

wire! {
    /// What a program or its host may do to any device.
    enum Common {
        Store { offset: Number, value: u32 },
        Trapped { bar: u8, offset: u16, log2: u8, value: u64 },
        Load { bar: u8, offset: u16, log2: u8 },
        Fill { at: u32, bytes: Blob },
        Turn { times: u8 },
        Time { now: u64 },
        Reset { kind: u8 },
        BusMaster { on: bool },
        Memory { on: bool },
        Unmap { page: u8, pages: u8 },
        Map { page: u8, pages: u8, write: bool },
    }
}

const KINDS: [ResetKind; 4] =
    [ResetKind::PowerOn, ResetKind::FunctionLevel, ResetKind::PowerManagement, ResetKind::Bus];

/// A device, the memory it may only read, and memory that it should never reach.
pub(crate) struct Rig {
    pub(crate) endpoint: Arc<Endpoint>,
    space: Arc<AddressSpace>,
    memory: Arc<TestMemory>,
    read_only: Arc<TestMemory>,
}

/// A device on a bench; `settings` bit 0: with trapped registers, bit 1: with
/// memory that is reached by copying.
pub(crate) fn rig(device: Box<dyn Device>, settings: u8) -> (Rig, Bench) {
    let access = if settings & 1 == 0 { Access::Mapped } else { Access::Trapped };
    let memory = TestMemory::new(MEMORY as usize, settings & 2 != 0);
    let bench = Bench::new(device, access, Arc::clone(&memory));
    let read_only = TestMemory::new(PAGE, settings & 2 != 0);
    read_only.set(0, &[0x5a; PAGE]);
    let space = Arc::clone(&bench.space);
    let last = READ_ONLY + PAGE as u64 - 1;
    let memory_of = Arc::clone(&read_only) as Arc<dyn iommu::Memory>;
    map(&space, READ_ONLY, last, Prot::READ, memory_of, 0);
    (Rig { endpoint: Arc::clone(&bench.endpoint), space, memory, read_only }, bench)
}

fn map(space: &AddressSpace, first: u64, last: u64, prot: Prot, memory: Arc<dyn iommu::Memory>, offset: u64) {
    // What is mapped already stays as it is.
    let _ = space.map(Mapping { first, last, prot, memory, offset, tag: 0 });
}

/// What can be stored to memory and registers of a bench.
pub(crate) trait Program {
    fn bench(&mut self) -> &mut Bench;
}

impl Rig {
    pub(crate) fn step(&self, program: &mut impl Program, op: &Common) {
        let bench = program.bench();
        match op {
            Common::Store { offset, value } => {
                let offset = (offset.value() % 0x4000) & !3;
                bench.store_bar(0, offset, *value);
            }
            Common::Trapped { bar, offset, log2, value } => {
                let len = 1_usize << (log2 & 3);
                if let Some(offset) = self.inside(*bar, *offset, len) {
                    self.endpoint.write(usize::from(*bar % 6), offset, &value.to_le_bytes()[..len], bench.now);
                }
            }
            Common::Load { bar, offset, log2 } => {
                let len = 1_usize << (log2 & 3);
                if let Some(offset) = self.inside(*bar, *offset, len) {
                    self.endpoint.read(usize::from(*bar % 6), offset, &mut [0; 8][..len], bench.now);
                }
            }
            Common::Fill { at, bytes } => {
                let at = u64::from(*at) % (MEMORY - 256);
                self.memory.set(at, &bytes.0);
            }
            Common::Turn { times } => (0..=*times % 16).for_each(|_| {
                bench.turn();
            }),
            Common::Time { now } => bench.now = *now,
            Common::Reset { kind } => self.endpoint.reset(KINDS[usize::from(*kind) % KINDS.len()], bench.now),
            Common::BusMaster { on } => {
                self.endpoint.requester.set_bus_master(*on);
                if !on {
                    self.silent(bench);
                }
            }
            Common::Memory { on } => self.endpoint.set_memory(*on, bench.now),
            Common::Unmap { page, pages } => {
                let (first, len) = (u64::from(*page) << 12, (u64::from(*pages) + 1) << 12);
                self.space.unmap(first, first + len - 1, &mut |_| {});
            }
            Common::Map { page, pages, write } => {
                let first = u64::from(*page) << 12;
                let last = (first + (u64::from(*pages) << 12) + 0xfff).min(MEMORY - 1);
                let prot = if *write { Prot::READ | Prot::WRITE } else { Prot::READ };
                map(&self.space, first, last, prot, Arc::clone(&self.memory) as _, first);
            }
        }
    }

    /// An access that the host would let through: aligned and inside the BAR.
    fn inside(&self, bar: u8, offset: u16, len: usize) -> Option<u64> {
        let bar = self.endpoint.spec().bars.get(usize::from(bar % 6))?.as_ref()?;
        let offset = u64::from(offset) & !(len as u64 - 1);
        (offset + len as u64 <= bar.size).then_some(offset)
    }

    /// With bus mastering off nothing changes in memory.
    fn silent(&self, bench: &Bench) {
        let before = self.contents();
        for _ in 0..3 {
            bench.turn();
        }
        assert!(self.contents() == before, "memory changed with bus mastering off");
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.get(0, &mut bytes);
        bytes
    }

    /// What must be so after anything: what may only be read was not written.
    /// Then the bench is put in order, for a driver that means well.
    pub(crate) fn finish(&self, program: &mut impl Program) {
        let mut bytes = [0; PAGE];
        self.read_only.get(0, &mut bytes);
        assert!(bytes == [0x5a; PAGE], "memory that may only be read was written");
        self.space.unmap(0, MEMORY - 1, &mut |_| {});
        map(&self.space, 0, MEMORY - 1, Prot::READ | Prot::WRITE, Arc::clone(&self.memory) as _, 0);
        self.endpoint.requester.set_bus_master(true);
        self.endpoint.set_memory(true, 0);
        self.endpoint.reset(ResetKind::FunctionLevel, 0);
        program.bench().now = 0;
    }
}
