// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device on a test bench: memory mapped at IOVA 0, bus mastering and memory
//! decoding on, interrupts counted, no host around it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use device::{Device, Endpoint, Nanos, Turn, Window};
use iommu::{AddressSpace, Mapping, Prot};
use vm_memory::Bytes;

use super::{CountedEvent, TestFile, TestMemory};

/// How the pretend program reaches registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads and stores to mapped BARs; the device finds out in its turn.
    Mapped,
    /// Each access traps.
    Trapped,
}

/// A device and what is wired to it.
#[derive(Debug)]
pub struct Bench {
    /// The device.
    pub endpoint: Arc<Endpoint>,
    /// What it is attached to.
    pub space: Arc<AddressSpace>,
    /// Memory at IOVA 0 of `space`.
    pub memory: Arc<TestMemory>,
    /// The mapped BARs, with [`Access::Mapped`].
    pub file: Option<Arc<TestFile>>,
    /// MSI-X vectors, bound to these.
    pub events: Vec<Arc<CountedEvent>>,
    /// The time.
    pub now: Nanos,
}

/// Turns after which a device that is still busy counts as stuck.
const MAX_TURNS: usize = 1_000_000;

impl Bench {
    /// Puts a device on the bench, with MSI-X on.
    #[must_use]
    pub fn new(device: Box<dyn Device>, access: Access, memory: Arc<TestMemory>) -> Bench {
        let endpoint = Endpoint::new(device);
        let space = AddressSpace::new();
        let mapping = Mapping {
            first: 0,
            last: memory.size() as u64 - 1,
            prot: Prot::READ | Prot::WRITE,
            memory: memory.clone(),
            offset: 0,
            tag: 0,
        };
        space.map(mapping).unwrap_or_else(|error| panic!("{error}"));
        endpoint.requester.attach(Some(space.clone().into()));
        endpoint.requester.set_bus_master(true);
        let vectors = endpoint.spec().msix.as_ref().map_or(0, |msix| msix.vectors);
        endpoint.interrupts.enable_msix(vectors);
        let events: Vec<_> = (0..vectors).map(|_| Arc::<CountedEvent>::default()).collect();
        for (vector, event) in (0..).zip(&events) {
            endpoint.interrupts.bind(vector, Some(event.clone()));
        }
        let file = (access == Access::Mapped).then(|| {
            let bars = endpoint.spec().bars.each_ref();
            TestFile::new(bars.map(|bar| bar.as_ref().filter(|bar| bar.mmap).map_or(0, |bar| bar.size)))
        });
        endpoint.set_memory(true, 0);
        if let Some(file) = &file {
            endpoint.set_file(Some(file.clone()), 0);
        }
        Bench { endpoint, space, memory, file, events, now: 0 }
    }

    /// A 32-bit load of the program.
    #[must_use]
    pub fn load_bar(&self, bar: usize, offset: u64) -> u32 {
        if let Some(window) = self.file.as_ref().and_then(|file| file.bar(bar)) {
            let load = window.slice().load::<u32>(offset as usize, Ordering::Acquire);
            return u32::from_le(load.unwrap_or_else(|error| panic!("BAR {bar} at {offset:#x}: {error}")));
        }
        let mut data = [0; 4];
        self.endpoint.read(bar, offset, &mut data, self.now);
        u32::from_le_bytes(data)
    }

    /// A 32-bit store of the program.
    pub fn store_bar(&self, bar: usize, offset: u64, value: u32) {
        if let Some(window) = self.file.as_ref().and_then(|file| file.bar(bar)) {
            let stored = window.slice().store(value.to_le(), offset as usize, Ordering::Release);
            return stored.unwrap_or_else(|error| panic!("BAR {bar} at {offset:#x}: {error}"));
        }
        self.endpoint.write(bar, offset, &value.to_le_bytes(), self.now);
    }

    /// One turn.
    pub fn turn(&self) -> Turn {
        self.endpoint.turn(self.now).unwrap_or(Turn::Idle)
    }

    /// Turns until the device has nothing to do. Panics if it never ends.
    pub fn run(&self) {
        until_idle(|| self.turn());
    }
}

/// Turns until the device has nothing to do. Panics if it never ends.
pub(super) fn until_idle(mut turn: impl FnMut() -> Turn) {
    for _ in 0..MAX_TURNS {
        if turn() != Turn::Busy {
            return;
        }
    }
    panic!("the device is still busy after {MAX_TURNS} turns");
}
