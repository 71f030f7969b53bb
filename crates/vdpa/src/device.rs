// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the vdpa bus, bound to `vhost_vdpa`.

use std::sync::Arc;

use ::device::VirtioEndpoint;

use crate::open::Open;
use crate::parent::{Driver, ParentSpec};

/// A vdpa device and its node.
#[derive(Debug)]
pub(crate) struct VdpaDevice {
    pub(crate) name: String,
    /// The management device that made it; `None` for one that was always there.
    pub(crate) management: Option<String>,
    /// `N` of `/dev/vhost-vdpa-N`; `None` if vhost_vdpa refused it (VDPA-1.8).
    pub(crate) number: Option<u32>,
    pub(crate) driver: Driver,
    pub(crate) open: Option<Open>,
    /// It was deleted, and is there for who has it open (VDPA-1.9).
    pub(crate) leaving: bool,
}

impl VdpaDevice {
    pub(crate) fn new(name: String, spec: ParentSpec, endpoint: Arc<VirtioEndpoint>) -> VdpaDevice {
        let driver = Driver::new(spec, endpoint);
        VdpaDevice { name, management: None, number: None, driver, open: None, leaving: false }
    }

    /// Whether vhost_vdpa's probe takes it (VDPA-1.8).
    pub(crate) fn can_probe(&self) -> bool {
        self.driver.spec.mapping != crate::Mapping::Platform
            || self.driver.groups() <= 1 && self.driver.address_spaces() <= 1
    }
}
