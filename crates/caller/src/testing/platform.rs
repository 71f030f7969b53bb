// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine whose clock stands and whose events are looked at.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use device::{DeviceFile, DeviceFiles, Event, NoDeviceFile, RegionLayout, Window};
use iommu::Memory;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::Counter;
use crate::{Platform, WatchId};

/// Pages of a device's BAR.
#[derive(Debug)]
struct Pages(MmapRegion);

impl Window for Pages {
    fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// A device file of the test platform.
#[derive(Debug)]
pub struct TestFile {
    /// What it was made for.
    pub layout: RegionLayout,
    /// What [`DeviceFile::set_accessible`] said last.
    pub accessible: AtomicBool,
    windows: [Option<Arc<Pages>>; 6],
    peers: Mutex<[Option<Arc<dyn Memory>>; 6]>,
}

impl TestFile {
    /// What devices reach where a program has mapped a BAR.
    pub fn peer(&self, bar: usize) -> Option<Arc<dyn Memory>> {
        self.peers.lock().unwrap().get(bar)?.clone()
    }
}

impl DeviceFile for TestFile {
    fn window(&self, bar: usize) -> Option<Arc<dyn Window>> {
        let pages = self.windows.get(bar)?.as_ref()?;
        Some(Arc::clone(pages) as Arc<dyn Window>)
    }

    fn set_accessible(&self, on: bool) {
        self.accessible.store(on, Ordering::Relaxed);
    }

    fn connect(&self, bar: usize, peer: Arc<dyn Memory>) {
        self.peers.lock().unwrap()[bar] = Some(peer);
    }
}

/// Somebody who is told when an event is signalled.
pub struct Listener {
    event: Arc<dyn Event>,
    signalled: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("event", &self.event).finish_non_exhaustive()
    }
}

impl TestPlatform {
    /// Somebody signals an event: adds 1 and tells those who listen to it.
    pub fn signal(&self, event: &Arc<dyn Event>) {
        event.signal();
        let same = |listener: &&Listener| std::ptr::addr_eq(Arc::as_ptr(&listener.event), Arc::as_ptr(event));
        let told: Vec<_> = {
            let listeners = self.listeners.lock().unwrap();
            listeners.values().filter(same).map(|listener| Arc::clone(&listener.signalled)).collect()
        };
        told.iter().for_each(|signalled| signalled());
    }
}

/// A machine whose clock stands unless it is set.
#[derive(Debug, Default)]
pub struct TestPlatform {
    /// The time in nanoseconds.
    pub now: AtomicU64,
    /// Events that are watched.
    pub watches: Mutex<BTreeMap<WatchId, Arc<dyn Event>>>,
    /// Events that are listened to.
    pub listeners: Mutex<BTreeMap<WatchId, Listener>>,
    /// Device files made so far.
    pub made: Mutex<Vec<Arc<TestFile>>>,
    random: AtomicU64,
}

impl Platform for TestPlatform {
    fn watch(&self, id: WatchId, event: &Arc<dyn Event>) {
        self.watches.lock().unwrap().insert(id, Arc::clone(event));
    }

    fn listen(&self, id: WatchId, event: &Arc<dyn Event>, signalled: Arc<dyn Fn() + Send + Sync>) {
        let any: Arc<dyn Any + Send + Sync> = event.clone();
        if any.downcast::<Counter>().is_ok_and(|counter| counter.peek() > 0) {
            signalled();
        }
        self.listeners.lock().unwrap().insert(id, Listener { event: Arc::clone(event), signalled });
    }

    fn unwatch(&self, id: WatchId) {
        self.listeners.lock().unwrap().remove(&id);
        self.watches.lock().unwrap().remove(&id);
    }

    fn random(&self) -> [u8; 16] {
        let n = self.random.fetch_add(1, Ordering::Relaxed) + 1;
        let mut bytes = [0xa5; 16];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn device_files(&self) -> &dyn DeviceFiles {
        self
    }
}

impl DeviceFiles for TestPlatform {
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
        let pages = |len: u64| {
            let len = usize::try_from(len).map_err(|_| NoDeviceFile)?;
            (len > 0).then(|| MmapRegion::new(len).map(|r| Arc::new(Pages(r))).map_err(|_| NoDeviceFile)).transpose()
        };
        let mut windows: [Option<Arc<Pages>>; 6] = Default::default();
        for (window, len) in windows.iter_mut().zip(layout.mmap) {
            *window = pages(len)?;
        }
        let file = Arc::new(TestFile {
            layout: layout.clone(),
            accessible: AtomicBool::new(true),
            windows,
            peers: Mutex::default(),
        });
        self.made.lock().unwrap().push(Arc::clone(&file));
        Ok(file)
    }
}
