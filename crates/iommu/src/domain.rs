// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a requester is attached to.

use std::sync::Arc;

use crate::port::Port;
use crate::{AddressSpace, DirtyLog, Nested};

/// What a requester's addresses lead through. Domains may share a space: all
/// of one iommufd address space have the same mappings.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The mappings. With `stage1` they are of the addresses that it gives.
    pub space: Arc<AddressSpace>,
    /// Where writes are noted while it is on, by address in `space`.
    pub log: Option<Arc<DirtyLog>>,
    /// The program's own table, which addresses go through first.
    pub stage1: Option<Arc<Nested>>,
}

impl From<Arc<AddressSpace>> for Domain {
    fn from(space: Arc<AddressSpace>) -> Domain {
        Domain { space, log: None, stage1: None }
    }
}

impl Domain {
    /// Whether attaching the one instead of the other changes nothing.
    pub(crate) fn is(&self, other: &Domain) -> bool {
        Arc::ptr_eq(&self.space, &other.space) && same(&self.log, &other.log) && same(&self.stage1, &other.stage1)
    }

    /// The log, where it is on.
    pub(crate) fn enabled_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|log| log.is_enabled())
    }

    /// From now on those who change a part of the domain know of `port`.
    pub(crate) fn add_port(&self, port: &Arc<Port>) {
        self.space.add_port(port);
        if let Some(log) = &self.log {
            log.add_port(port);
        }
        if let Some(stage1) = &self.stage1 {
            stage1.add_port(port);
        }
    }

    /// No session of `port` uses the domain any more.
    pub(crate) fn remove_port(&self, port: &Arc<Port>) {
        self.space.remove_port(port);
        if let Some(log) = &self.log {
            log.remove_port(port);
        }
        if let Some(stage1) = &self.stage1 {
            stage1.remove_port(port);
        }
    }
}

fn same<T>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
}
