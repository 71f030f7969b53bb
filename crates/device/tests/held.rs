// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped BARs that are taken away from a program whose accesses wait: what it
//! stored at the last moment counts.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use device::migration::LoadError;
use device::{Device, DeviceFile, Endpoint, Io, ResetKind, Turn, Window};
use pci::{Bar, BarKind, FunctionSpec};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

const SIZE: u64 = 0x1000;

/// A doorbell at 0, of which it tells the values that it has seen.
#[derive(Default)]
struct Bell {
    value: u32,
    rung: Arc<Mutex<Vec<u32>>>,
    turns: Arc<AtomicU32>,
}

impl Device for Bell {
    fn function(&self) -> FunctionSpec {
        let bar = Some(Bar { size: SIZE, kind: BarKind::Memory32 { prefetchable: false }, mmap: true });
        FunctionSpec { vendor: 1, device: 2, bars: [bar, None, None, None, None, None], ..FunctionSpec::default() }
    }

    fn read(&mut self, _io: &mut Io<'_>, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _io: &mut Io<'_>, _bar: usize, _offset: u64, _data: &[u8]) {}

    fn publish(&mut self, io: &mut Io<'_>) {
        if let Some(window) = io.windows[0] {
            window.slice().write_obj(self.value, 0).unwrap();
        }
    }

    fn collect(&mut self, io: &mut Io<'_>) {
        let Some(window) = io.windows[0] else { return };
        let value = window.slice().read_obj(0).unwrap();
        if value != self.value {
            self.value = value;
            self.rung.lock().unwrap().push(value);
        }
    }

    fn turn(&mut self, io: &mut Io<'_>) -> Turn {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.collect(io);
        Turn::Idle
    }

    fn reset(&mut self, _io: &mut Io<'_>, _kind: ResetKind) {
        self.value = 0;
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

/// The program stores while its pages are taken away.
#[derive(Debug)]
struct File {
    pages: Arc<Pages>,
    last: AtomicU32,
    accessible: AtomicBool,
}

impl DeviceFile for File {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        (bar == 0).then(|| Arc::clone(&self.pages) as Arc<dyn Window>)
    }

    fn set_accessible(&self, on: bool) {
        let last = self.last.swap(0, Ordering::Relaxed);
        if self.accessible.swap(on, Ordering::Relaxed) && !on && last != 0 {
            self.pages.slice().write_obj(last, 0).unwrap();
        }
    }
}

struct Place {
    endpoint: Arc<Endpoint>,
    file: Arc<File>,
    rung: Arc<Mutex<Vec<u32>>>,
    turns: Arc<AtomicU32>,
}

fn place() -> Place {
    let bell = Bell::default();
    let (rung, turns) = (Arc::clone(&bell.rung), Arc::clone(&bell.turns));
    let endpoint = Endpoint::new(Box::new(bell));
    let pages = Arc::new(Pages(MmapRegion::new(SIZE as usize).unwrap()));
    let file = Arc::new(File { pages, last: AtomicU32::new(0), accessible: AtomicBool::new(false) });
    let any: Arc<dyn Any + Send + Sync> = file.clone();
    endpoint.set_file(Some(any.downcast::<File>().unwrap()), 0);
    endpoint.set_memory(true, 0);
    Place { endpoint, file, rung, turns }
}

impl Place {
    /// The program rings at the last moment.
    fn hold(&self, value: u32) {
        self.file.last.store(value, Ordering::Relaxed);
        self.endpoint.hold_memory(0);
    }

    fn rung(&self) -> Vec<u32> {
        std::mem::take(&mut self.rung.lock().unwrap())
    }
}

/// The device hears of it when the pages are back, once, and rests until then.
#[test]
fn a_last_store_counts() {
    let p = place();
    for value in 1..4 {
        p.hold(value);
        let turns = p.turns.load(Ordering::Relaxed);
        assert_eq!(p.endpoint.turn(0), Some(Turn::Idle));
        assert_eq!((p.rung(), p.turns.load(Ordering::Relaxed)), (vec![], turns));
        p.endpoint.set_memory(true, 0);
        assert_eq!(p.rung(), [value]);
        p.endpoint.turn(0);
        assert_eq!((p.rung(), p.turns.load(Ordering::Relaxed)), (vec![], turns + 1));
    }
}

/// A link that is down for a while changes nothing of that.
#[test]
fn over_a_link_that_was_down() {
    let p = place();
    p.hold(5);
    p.endpoint.set_responding(false, 0);
    p.endpoint.set_responding(true, 0);
    p.endpoint.set_memory(true, 0);
    assert_eq!(p.rung(), [5]);
}

/// A reset loses it, and the device works again at once.
#[test]
fn a_reset_loses_it() {
    let p = place();
    p.hold(7);
    p.endpoint.reset(ResetKind::Bus, 0);
    p.endpoint.turn(0);
    assert_eq!(p.turns.load(Ordering::Relaxed), 1);
    p.endpoint.set_memory(true, 0);
    assert_eq!((p.rung(), p.file.pages.slice().read_obj::<u32>(0).unwrap()), (vec![], 0));
}
