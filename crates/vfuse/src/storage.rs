// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks and networks of a lab, made on this machine.

use std::sync::Arc;

use device::{Disk, NetPort};
use host::Storage;
use host::lab::{DiskSpec, Medium, NetworkKind, NetworkSpec};
use sys::disk::{FileDisk, Options, RamDisk};
use sys::network::{NoNetwork, Recorder, Tap};

/// Opens files and takes memory.
#[derive(Debug)]
pub(crate) struct Real;

impl Storage for Real {
    fn open(&self, spec: &DiskSpec) -> Result<Arc<dyn Disk>, String> {
        match &spec.medium {
            Medium::Ram => {
                let size = spec.size.unwrap_or_default();
                let disk = RamDisk::new(size).map_err(|e| format!("cannot make a RAM disk of {size} bytes: {e}"))?;
                Ok(Arc::new(disk))
            }
            Medium::File(path) => {
                let options = Options { size: spec.size, read_only: spec.read_only, shared: spec.shared };
                Ok(Arc::new(FileDisk::open(path, options).map_err(|e| e.to_string())?))
            }
        }
    }

    fn network(
        &self,
        spec: &NetworkSpec,
        pairs: u16,
        inner: Option<Arc<dyn NetPort>>,
    ) -> Result<Arc<dyn NetPort>, String> {
        let port: Arc<dyn NetPort> = match (&spec.kind, inner) {
            (_, Some(inner)) => inner,
            (NetworkKind::Tap(name), Option::None) => Tap::open(name, pairs).map_err(|e| e.to_string())?,
            _ => Arc::new(NoNetwork),
        };
        match &spec.pcap {
            Some(path) => {
                let recorder = Recorder::create(path, port);
                Ok(recorder.map_err(|e| format!("cannot record to {}: {e}", path.display()))?)
            }
            Option::None => Ok(port),
        }
    }
}

/// Opens nothing; for looking at a lab.
#[derive(Debug)]
pub(crate) struct None;

impl Storage for None {
    fn open(&self, spec: &DiskSpec) -> Result<Arc<dyn Disk>, String> {
        let size = match (&spec.medium, spec.size) {
            (_, Some(size)) => size,
            (Medium::Ram, Option::None) => 0,
            (Medium::File(path), Option::None) => {
                std::fs::metadata(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?.len()
            }
        };
        Ok(Arc::new(RamDisk::new(size).map_err(|e| e.to_string())?))
    }

    fn network(&self, _: &NetworkSpec, _: u16, inner: Option<Arc<dyn NetPort>>) -> Result<Arc<dyn NetPort>, String> {
        Ok(inner.unwrap_or_else(|| Arc::new(NoNetwork)))
    }
}
