// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who is attached to something.

use std::sync::Arc;

use crate::port::Port;

/// Ports, in no order; one may be there twice while its attachment changes.
#[derive(Debug, Default)]
pub(crate) struct Ports(Vec<Arc<Port>>);

impl Ports {
    pub(crate) fn add(&mut self, port: &Arc<Port>) {
        self.0.push(port.clone());
    }

    pub(crate) fn remove(&mut self, port: &Arc<Port>) {
        if let Some(at) = self.0.iter().position(|other| Arc::ptr_eq(other, port)) {
            self.0.swap_remove(at);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.0.iter()
    }

    pub(crate) fn memory_used(&self) -> usize {
        self.0.capacity() * size_of::<Arc<Port>>()
    }
}
