// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks of a lab, made on this machine.

use std::sync::Arc;

use device::Disk;
use host::Storage;
use host::lab::{DiskSpec, Medium};
use sys::disk::{FileDisk, Options, RamDisk};

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
                let options = Options { size: spec.size, read_only: spec.read_only };
                Ok(Arc::new(FileDisk::open(path, options).map_err(|e| e.to_string())?))
            }
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
}
