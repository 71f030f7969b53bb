// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine under a simulated lab: virtual time, seeded randomness, device
//! files and disks in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use caller::{Platform, WatchId};
use device::{DeviceFile, DeviceFiles, Disk, Event, NoDeviceFile, RegionLayout};
use host::Storage;
use host::lab::DiskSpec;
use models::testing::{MemoryDisk, TestFile};

/// The simulated machine.
#[derive(Debug)]
pub struct SimPlatform {
    now: AtomicU64,
    random: Mutex<fastrand::Rng>,
    /// Whether programs can be held at mapped BARs.
    holds: AtomicBool,
}

impl SimPlatform {
    /// A machine whose time starts now.
    pub fn new(seed: u64) -> Arc<SimPlatform> {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        Arc::new(SimPlatform { now: AtomicU64::new(0), random, holds: AtomicBool::new(false) })
    }

    /// From now on accesses to device files that are made can be held.
    pub fn can_hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Platform for SimPlatform {
    // Nobody but the simulated client signals events; it says so itself.
    fn watch(&self, _id: WatchId, _event: &Arc<dyn Event>) {}

    // A simulated device looks at its rings whenever it has a turn.
    fn listen(&self, _id: WatchId, _event: &Arc<dyn Event>, _signalled: Arc<dyn Fn() + Send + Sync>) {}

    fn unwatch(&self, _id: WatchId) {}

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.random.lock().unwrap_or_else(|e| e.into_inner()).fill(&mut bytes);
        bytes
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn device_files(&self) -> &dyn DeviceFiles {
        self
    }
}

impl DeviceFiles for SimPlatform {
    fn create(&self, layout: &RegionLayout) -> Result<Arc<dyn DeviceFile>, NoDeviceFile> {
        let holds = self.holds.load(Ordering::Relaxed);
        Ok(if holds { TestFile::holding(layout.mmap) } else { TestFile::new(layout.mmap) })
    }
}

/// Disks in memory.
#[derive(Debug)]
pub struct SimStorage;

impl Storage for SimStorage {
    fn open(&self, spec: &DiskSpec) -> Result<Arc<dyn Disk>, String> {
        let size = usize::try_from(spec.size.unwrap_or_default()).map_err(|_| "the disk is too large".to_owned())?;
        Ok(MemoryDisk::new(size))
    }
}
