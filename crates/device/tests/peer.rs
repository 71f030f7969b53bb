// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that reach one another's BARs.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use device::migration::{Activity, LoadError};
use device::{Device, DeviceFile, Endpoint, Io, ResetKind, Turn, Wake, Window};
use iommu::{AddressSpace, FaultReason, Mapping, Memory, Prot};
use pci::{Bar, BarKind, FunctionSpec};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

/// Where each device finds the other's BARs 0 and 2.
const REGISTERS: u64 = 0x10_0000;
const MEMORY: u64 = 0x20_0000;
const SIZE: u64 = 0x2000;

/// What was stored, and where.
type Stores = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// BAR 0 has a doorbell at 0 and registers that keep what is stored; BAR 2 is
/// memory. While it runs it rings the other device's doorbell once a turn.
#[derive(Default)]
struct Talker {
    rings: Arc<AtomicU64>,
    talks: bool,
    stores: Stores,
    memory: Vec<u8>,
}

impl Device for Talker {
    fn function(&self) -> FunctionSpec {
        let bar = |size| Some(Bar { size, kind: BarKind::Memory32 { prefetchable: false }, mmap: true });
        let bars = [bar(SIZE), None, bar(SIZE), None, None, None];
        FunctionSpec { vendor: 1, device: 2, bars, ..FunctionSpec::default() }
    }

    fn read(&mut self, _io: &mut Io<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            2 => data.copy_from_slice(&self.memory[offset as usize..][..data.len()]),
            _ => data.fill(self.stores.lock().unwrap().len() as u8),
        }
    }

    fn write(&mut self, io: &mut Io<'_>, bar: usize, offset: u64, data: &[u8]) {
        assert!(io.activity != Activity::Stopped);
        match (bar, offset) {
            (2, _) => self.memory[offset as usize..][..data.len()].copy_from_slice(data),
            (_, 0) => {
                self.rings.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.stores.lock().unwrap().push((offset, data.to_vec())),
        }
    }

    fn is_memory(&self, bar: usize) -> bool {
        bar == 2
    }

    fn publish(&mut self, io: &mut Io<'_>) {
        if let Some(window) = io.windows[2] {
            window.slice().copy_from(&self.memory);
        }
    }

    fn collect(&mut self, io: &mut Io<'_>) {
        if let Some(window) = io.windows[2] {
            window.slice().copy_to(&mut self.memory[..]);
        }
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        if self.talks && io.activity == Activity::Running {
            io.dma.session().write(REGISTERS, &1u32.to_le_bytes()).unwrap();
            let mut back = [0; 8];
            io.dma.session().read(REGISTERS + 8, &mut back).unwrap();
        }
        Turn::Busy
    }

    fn reset(&mut self, _io: &mut Io<'_>, _kind: ResetKind) {
        self.memory.fill(0);
    }

    fn load(&mut self, _io: &mut Io<'_>, _state: &[u8]) -> Result<(), LoadError> {
        Err(LoadError::Unsupported)
    }
}

#[derive(Debug)]
struct Pages(MmapRegion);

impl Window for Pages {
    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// Where a program has mapped the BARs.
#[derive(Debug, Default)]
struct File {
    bars: Mutex<[Option<Arc<Pages>>; 6]>,
    peers: Mutex<Vec<(usize, Arc<dyn Memory>)>>,
    accessible: AtomicBool,
}

impl DeviceFile for File {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        let mut bars = self.bars.lock().unwrap();
        let there = bar == 0 || bar == 2;
        let made = || Arc::new(Pages(MmapRegion::new(SIZE as usize).unwrap()));
        there.then(|| Arc::clone(bars[bar].get_or_insert_with(made)) as Arc<dyn Window>)
    }

    fn set_accessible(&self, on: bool) {
        self.accessible.store(on, Ordering::Relaxed);
    }

    fn connect(&self, bar: usize, peer: Arc<dyn Memory>) {
        self.peers.lock().unwrap().push((bar, peer));
    }
}

struct Place {
    endpoint: Arc<Endpoint>,
    rings: Arc<AtomicU64>,
    stores: Stores,
    space: Arc<AddressSpace>,
}

fn place(talks: bool) -> Place {
    let talker = Talker { talks, memory: vec![0; SIZE as usize], ..Talker::default() };
    let (rings, stores) = (Arc::clone(&talker.rings), Arc::clone(&talker.stores));
    let endpoint = Endpoint::new(Box::new(talker));
    let space = AddressSpace::new();
    endpoint.requester.attach(Some(Arc::clone(&space).into()));
    endpoint.requester.set_bus_master(true);
    endpoint.set_memory(true, 0);
    Place { endpoint, rings, stores, space }
}

impl Place {
    /// Maps another device's BARs.
    fn map(&self, other: &Place) {
        for (first, bar) in [(REGISTERS, 0), (MEMORY, 2)] {
            let (memory, prot) = (other.endpoint.peer(bar).unwrap(), Prot::READ | Prot::WRITE);
            self.space.map(Mapping { first, last: first + SIZE - 1, prot, memory, offset: 0, tag: 0 }).unwrap();
        }
    }

    fn write(&self, iova: u64, data: &[u8]) {
        self.endpoint.requester.session().write(iova, data).unwrap();
    }

    fn read(&self, iova: u64, len: usize) -> Result<Vec<u8>, FaultReason> {
        let mut data = vec![0xee; len];
        self.endpoint.requester.session().read(iova, &mut data).map_err(|fault| fault.reason)?;
        Ok(data)
    }
}

fn pair() -> (Place, Place) {
    let (one, other) = (place(false), place(false));
    one.map(&other);
    other.map(&one);
    (one, other)
}

/// A run of bytes is as many naturally aligned accesses, in order, done before
/// whatever else touches the device.
#[test]
fn a_write_is_posted_and_done_before_anything_else() {
    let (one, other) = pair();
    one.write(REGISTERS + 0x101, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert!(other.stores.lock().unwrap().is_empty(), "it is on its way");
    // Four pieces have come when a program's load finds the device.
    let mut byte = [0];
    other.endpoint.read(0, 0x10, &mut byte, 0);
    assert_eq!(byte, [5]);
    let stores: Vec<_> = other.stores.lock().unwrap().iter().map(|(at, data)| (*at, data.len())).collect();
    assert_eq!(stores, [(0x101, 1), (0x102, 2), (0x104, 4), (0x108, 4), (0x10c, 1)]);
    // A read of the other device comes after its own writes.
    one.write(REGISTERS + 0x20, &[7]);
    assert_eq!(one.read(REGISTERS + 0x10, 1), Ok(vec![6]));
    one.write(REGISTERS, &[1, 0, 0, 0]);
    other.endpoint.turn(0);
    assert_eq!(other.rings.load(Ordering::Relaxed), 1);
}

/// Memory that a program has mapped is where it sees it at once; what was there
/// before the program came, and after it has gone, is the same.
#[test]
fn memory_is_the_program_s_while_it_is_mapped() {
    let (one, other) = pair();
    one.write(MEMORY + 0x100, b"before");
    let file = Arc::<File>::default();
    other.endpoint.set_file(Some(file.clone()), 0);
    assert_eq!(file.peers.lock().unwrap().iter().map(|(bar, _)| *bar).collect::<Vec<_>>(), [0, 2]);
    let pages = Arc::clone(file.bars.lock().unwrap()[2].as_ref().unwrap());
    let mut seen = [0; 6];
    pages.0.as_volatile_slice().read_slice(&mut seen, 0x100).unwrap();
    assert_eq!(&seen, b"before");
    one.write(MEMORY + 0x100, b"during");
    pages.0.as_volatile_slice().read_slice(&mut seen, 0x100).unwrap();
    assert_eq!(&seen, b"during", "nothing has to happen for it");
    assert_eq!(one.read(MEMORY + 0x100, 6), Ok(b"during".to_vec()));
    other.endpoint.set_file(None, 0);
    assert_eq!(one.read(MEMORY + 0x100, 6), Ok(b"during".to_vec()));
}

/// MIG-047, MIG-048: a quiesced device takes in, a stopped one does not; one
/// that does not decode answers nobody.
#[test]
fn who_answers() {
    let (one, other) = pair();
    let ring = || one.write(REGISTERS, &[1, 0, 0, 0]);
    let rings = || {
        other.endpoint.turn(0);
        other.rings.load(Ordering::Relaxed)
    };
    // On its way at the moment of the change, it counts.
    ring();
    other.endpoint.set_activity(Activity::Quiesced, 0);
    ring();
    assert_eq!(rings(), 2);
    ring();
    other.endpoint.set_activity(Activity::Stopped, 0);
    assert_eq!(other.rings.load(Ordering::Relaxed), 3);
    ring();
    assert_eq!(one.read(REGISTERS + 8, 4), Ok(vec![0; 4]));
    assert_eq!(one.read(MEMORY, 4), Ok(vec![0; 4]));
    other.endpoint.set_activity(Activity::Running, 0);
    assert_eq!(rings(), 3, "what was written meanwhile is lost");
    ring();
    other.endpoint.set_memory(false, 0);
    assert_eq!(other.rings.load(Ordering::Relaxed), 4);
    ring();
    assert_eq!(one.read(REGISTERS, 4), Err(FaultReason::Memory));
    assert_eq!(one.read(MEMORY, 4), Err(FaultReason::Memory));
    other.endpoint.set_memory(true, 0);
    assert_eq!((rings(), one.read(MEMORY, 4)), (4, Ok(vec![0; 4])));
    other.endpoint.set_responding(false, 0);
    ring();
    assert_eq!(one.read(REGISTERS, 4), Err(FaultReason::Memory));
    other.endpoint.set_responding(true, 0);
    assert_eq!(rings(), 4);
    // A reset forgets what was on its way.
    ring();
    other.endpoint.reset(ResetKind::FunctionLevel, 0);
    assert_eq!(rings(), 4);
}

/// Behind the end of a BAR nobody answers, and the device may be gone.
#[test]
fn there_is_an_end() {
    let (one, other) = pair();
    let last = SIZE - 4;
    assert_eq!(one.read(REGISTERS + last, 4), Ok(vec![0; 4]));
    let whole = other.endpoint.peer(0).unwrap();
    let mut bytes = [0; 8];
    assert!(whole.read(last, &VolatileSlice::from(&mut bytes[..])).is_err());
    assert!(whole.read(u64::MAX - 3, &VolatileSlice::from(&mut bytes[..])).is_err());
    assert!(whole.write(u64::MAX - 3, &VolatileSlice::from(&mut bytes[..])).is_ok(), "lost");
    assert!(whole.is_peer() && whole.slice(0, 4).is_none());
    assert!(other.endpoint.peer(1).is_none() && other.endpoint.peer(7).is_none());
    drop(other);
    assert_eq!(one.read(REGISTERS, 4), Err(FaultReason::Memory));
}

/// What is on its way is bounded: a device that has no turn does not make
/// another one's writes take all memory.
#[test]
fn the_inbox_is_bounded() {
    let (one, other) = pair();
    let page = [0; 4096];
    let refused = (0..).find(|_| one.endpoint.requester.session().write(REGISTERS + 0x1000, &page).is_err());
    assert!(refused.is_some_and(|n| (128..512).contains(&n)), "{refused:?}");
    other.endpoint.turn(0);
    one.write(REGISTERS + 0x1000, &page);
}

#[derive(Debug, Default)]
struct Kicks(AtomicU64);

impl Wake for Kicks {
    fn set_active(&self, _: bool) {}

    fn kick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A turn that a read was in the way of is made up for.
#[test]
fn who_is_read_has_a_turn() {
    let (one, other) = pair();
    let kicks = Arc::<Kicks>::default();
    other.endpoint.set_wake(Arc::clone(&kicks) as Arc<dyn Wake>);
    one.read(REGISTERS + 8, 4).unwrap();
    assert_eq!(kicks.0.load(Ordering::Relaxed), 1);
}

/// Each in the middle of its turn reaches the other, and itself: nobody waits.
#[test]
fn two_devices_do_not_wait_for_one_another() {
    // Fewer than an inbox holds: the other thread may not run for long.
    const TURNS: u64 = if cfg!(miri) { 50 } else { 10_000 };
    let (one, other) = (place(true), place(true));
    one.map(&other);
    other.map(&one);
    std::thread::scope(|scope| {
        for place in [&one, &other] {
            place.endpoint.set_file(Some(Arc::<File>::default()), 0);
            // No turn while the other one reads from it; another try follows.
            let turn = || while place.endpoint.turn(0).is_none() {};
            scope.spawn(move || (0..TURNS).for_each(|_| turn()));
        }
    });
    for place in [&one, &other] {
        place.endpoint.set_activity(Activity::Stopped, 0);
        assert_eq!(place.rings.load(Ordering::Relaxed), TURNS);
    }
    let alone = place(true);
    alone.map(&alone);
    alone.endpoint.set_file(Some(Arc::<File>::default()), 0);
    (0..10).for_each(|_| assert!(alone.endpoint.turn(0).is_some()));
    alone.endpoint.set_activity(Activity::Stopped, 0);
    assert_eq!(alone.rings.load(Ordering::Relaxed), 10);
}
