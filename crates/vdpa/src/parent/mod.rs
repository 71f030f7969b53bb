// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parents: the drivers of vdpa devices, as small pieces that differ in just
//! what the kernel's do (VDPA-8, VDPA-9).

mod identity;
mod spec;
mod tables;

use std::sync::Arc;

use caller::Mm;
use device::VirtioEndpoint;
use device::virtio::{QueueState, feature, status};
use uapi::Errno;

pub(crate) use identity::Identity;
pub use spec::{MAX_ENTRIES, Mapping, OnReset, Parent, ParentSpec, UnknownWord};
pub(crate) use tables::Tables;

/// A device with its parent's driver: the operations of the vdpa bus.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) spec: ParentSpec,
    pub(crate) endpoint: Arc<VirtioEndpoint>,
    pub(crate) tables: Tables,
    /// Features were set since the last reset (VDPA-5.5).
    features_valid: bool,
}

impl Driver {
    pub(crate) fn new(spec: ParentSpec, endpoint: Arc<VirtioEndpoint>) -> Driver {
        let tables = Tables::new(&spec, &endpoint);
        Driver { spec, endpoint, tables, features_valid: false }
    }

    pub(crate) fn queues(&self) -> u32 {
        self.endpoint.spec().queues.len() as u32
    }

    pub(crate) fn groups(&self) -> u32 {
        self.endpoint.spec().groups
    }

    pub(crate) fn address_spaces(&self) -> u32 {
        self.endpoint.spec().address_spaces
    }

    /// Largest ring of all queues.
    pub(crate) fn max_size(&self) -> u16 {
        self.endpoint.spec().queues.iter().map(|queue| queue.max_size).max().unwrap_or(0)
    }

    /// The core's reset: `compat_reset` if the parent has one and the table is
    /// to be cleaned, else the plain reset (VDPA-8.1, VDPA-8.6, VDPA-8.7).
    pub(crate) fn reset(&mut self, clean: bool, now: u64) {
        self.features_valid = false;
        self.endpoint.reset(now);
        if !self.spec.keeps_groups {
            self.tables.reset_groups(&self.endpoint);
        }
        if clean && self.spec.compat_reset {
            self.tables.clean(&self.spec);
        }
    }

    /// The core's set_features: `EINVAL`, or the parent's own.
    pub(crate) fn set_features(&mut self, features: u64) -> Result<(), Errno> {
        self.features_valid = true;
        self.set_driver_features(features)
    }

    /// VDPA-5.4: addresses are IOVAs always; unknown bits are dropped.
    fn set_driver_features(&mut self, features: u64) -> Result<(), Errno> {
        if features & feature::ACCESS_PLATFORM == 0 {
            return Err(Errno::EINVAL);
        }
        self.endpoint.set_features(features);
        Ok(())
    }

    /// The core's get_config: before features were set a legacy driver is
    /// assumed (VDPA-5.5).
    pub(crate) fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        if !self.features_valid {
            // Refused or not.
            let _ = self.set_features(0);
        }
        self.endpoint.read_config(offset, data);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.endpoint.status() & status::DRIVER_OK != 0
    }

    /// `get_vq_group`
    pub(crate) fn vq_group(&self, queue: u32) -> u32 {
        self.endpoint.spec().queues.get(queue as usize).map_or(u32::MAX, |queue| queue.group)
    }

    /// `get_vq_size`: a ring's size while it runs, else what it may be.
    pub(crate) fn vq_size(&self, queue: u16) -> u16 {
        if self.is_running() {
            self.endpoint.queue_size(queue)
        } else {
            self.endpoint.spec().queues.get(usize::from(queue)).map_or(0, |queue| queue.max_size)
        }
    }

    /// `get_vq_state`
    pub(crate) fn vq_state(&self, queue: u16) -> QueueState {
        let state = self.endpoint.queue_state(queue);
        if self.spec.split_positions { QueueState::from_word(state.word(), false) } else { state }
    }

    /// `set_vq_state`
    pub(crate) fn set_vq_state(&self, queue: u16, word: u32, packed: bool) {
        let state = QueueState::from_word(word, packed && !self.spec.split_positions);
        self.endpoint.set_queue_state(queue, state);
    }

    /// `bind_mm`
    pub(crate) fn bind_mm(&self, mm: Option<Arc<dyn Mm>>) {
        if self.spec.use_va {
            self.tables.identity.bind(mm);
        }
    }
}
