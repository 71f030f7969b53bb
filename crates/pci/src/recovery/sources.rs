// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What ports and functions have logged, as Linux reads it: who sent a
//! message, and what of (ERR-043, ERR-044, ERR-046).

use super::Report;
use crate::aer::Severity;
use crate::aer::spec::{register, root};
use crate::{Address, Fabric, PortType, cap, dpc};

/// What a function has logged.
pub(super) struct Info {
    pub(super) status: u32,
    pub(super) mask: u32,
    first: u32,
    header: Option<[u32; 4]>,
}

impl Info {
    /// As a line of the log.
    pub(super) fn report(&self, address: Address, severity: Severity) -> Report {
        let Info { status, mask, first, header } = *self;
        Report::Error { address, severity, status, mask, first, header }
    }
}

fn aer(fabric: &Fabric, address: Address) -> Option<u16> {
    fabric.function(address)?.extended_capability(cap::EXT_AER)
}

/// Reads and clears a root status; `None` if it was somebody else's interrupt.
pub(super) fn take_root_status(fabric: &mut Fabric, port: Address) -> Option<(u32, u32)> {
    let at = aer(fabric, port)?;
    let status = fabric.read(port, at + register::ROOT_STATUS, 4);
    if status & (root::COR | root::MULTI_COR | root::UNCOR | root::MULTI_UNCOR) == 0 {
        return None;
    }
    let source = fabric.read(port, at + register::SOURCE, 4);
    fabric.write(port, at + register::ROOT_STATUS, 4, status);
    Some((status, source))
}

/// Clears a containment interrupt; whether it has triggered.
pub(super) fn take_containment(fabric: &mut Fabric, port: Address) -> bool {
    let Some(at) = fabric.function(port).and_then(|f| f.extended_capability(cap::EXT_DPC)) else { return false };
    let status = fabric.read(port, at + dpc::STATUS, 2);
    if status & dpc::STATUS_INTERRUPT == 0 || status == 0xffff {
        return false;
    }
    fabric.write(port, at + dpc::STATUS, 2, dpc::STATUS_INTERRUPT);
    status & dpc::STATUS_TRIGGER != 0
}

/// Integrated endpoints of a collector.
pub(super) fn integrated(fabric: &Fabric, collector: Address) -> Vec<Address> {
    let bus = fabric.bus(collector.segment, collector.bus);
    let all = bus.map(|bus| bus.devices.clone()).unwrap_or_default();
    all.into_iter().filter(|a| fabric.port_type(*a) == Some(PortType::IntegratedEndpoint)).collect()
}

/// Whether a message came from a function: by its id, or if that says nothing
/// (bus 0) or not all (several messages), by what the function has logged
/// (ERR-044).
pub(super) fn is_source(fabric: &Fabric, address: Address, severity: Severity, id: u16, multiple: bool) -> bool {
    if id >> 8 != 0 {
        if id == address.requester_id() {
            return true;
        }
        if !multiple {
            return false;
        }
    }
    let Some(function) = fabric.function(address) else { return false };
    let (Some(express), Some(aer)) = (function.capability(cap::EXPRESS), function.extended_capability(cap::EXT_AER))
    else {
        return false;
    };
    if function.read(express + 0x08, 2) & 0xf == 0 {
        return false;
    }
    let (status, mask) = match severity {
        Severity::Correctable => (register::CORRECTABLE_STATUS, register::CORRECTABLE_MASK),
        _ => (register::UNCORRECTABLE_STATUS, register::UNCORRECTABLE_MASK),
    };
    function.read(aer + status, 4) & !function.read(aer + mask, 4) != 0
}

/// Errors of which the TLP is logged.
const WITH_HEADER: u32 = 0xffbd_9000;

/// What a function has logged. After a fatal error of anything but a port its
/// registers are not asked (ERR-046); `None` if it has logged nothing.
pub(super) fn read_info(fabric: &Fabric, address: Address, severity: Severity) -> Option<Info> {
    let at = aer(fabric, address)?;
    let read = |offset| fabric.read(address, at + offset, 4);
    let mut info = Info { status: 0, mask: 0, first: 0, header: None };
    let port = matches!(
        fabric.port_type(address),
        Some(PortType::RootPort | PortType::EventCollector | PortType::DownstreamPort)
    );
    match severity {
        Severity::Correctable => {
            (info.status, info.mask) = (read(register::CORRECTABLE_STATUS), read(register::CORRECTABLE_MASK));
        }
        Severity::Fatal if !port => return Some(info),
        Severity::NonFatal | Severity::Fatal => {
            (info.status, info.mask) = (read(register::UNCORRECTABLE_STATUS), read(register::UNCORRECTABLE_MASK));
            info.first = read(register::CONTROL) & 0x1f;
            if info.status & !info.mask & WITH_HEADER != 0 {
                info.header = Some([0, 4, 8, 12].map(|word| read(register::HEADER_LOG + word)));
            }
        }
    }
    (info.status & !info.mask != 0).then_some(info)
}

/// The worst of what a port has logged itself.
pub(super) fn own_severity(fabric: &Fabric, port: Address) -> Option<Severity> {
    let at = aer(fabric, port)?;
    let read = |offset| fabric.read(port, at + offset, 4);
    let status = read(register::UNCORRECTABLE_STATUS) & !read(register::UNCORRECTABLE_MASK);
    let fatal = status & read(register::SEVERITY) != 0;
    (status != 0).then_some(if fatal { Severity::Fatal } else { Severity::NonFatal })
}
