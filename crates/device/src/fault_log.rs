// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOMMU's log of a function's faults: one event, `iommu.fault`, for an
//! access that was refused, with what Linux's VT-d driver prints of it.
//!
//! A function that asks for pages asks the IOMMU before it accesses, and is
//! told that there is none: that is no fault (FAULT-2.1). An access with bus
//! mastering off never reaches the IOMMU. A device that goes on faulting is
//! not told of each time: 64, and then whenever their number has doubled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu::{Access, DmaFault, FaultLog, FaultReason};

use crate::{Endpoint, PageRequests};

/// Faults of which each is told.
const EACH: u64 = 64;

#[derive(Debug)]
struct Log {
    /// Address of the function.
    source: String,
    page_requests: Arc<PageRequests>,
    count: AtomicU64,
}

impl FaultLog for Log {
    fn refused(&self, pasid: Option<u32>, fault: &DmaFault) {
        let DmaFault { iova, access, reason } = *fault;
        if reason == FaultReason::BusMasterOff || (reason.is_recoverable() && self.page_requests.is_on()) {
            return;
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count > EACH && !count.is_power_of_two() {
            return;
        }
        let pasid = pasid.or(self.page_requests.own_pasid());
        tracing::info!(
            name: "iommu.fault",
            target: "vfuse::iommu",
            device = self.source,
            pasid,
            address = format_args!("{iova:#x}"),
            ?access,
            reason = text(access, reason, pasid),
            count,
            "DMA fault"
        );
    }
}

fn text(access: Access, reason: FaultReason, pasid: Option<u32>) -> &'static str {
    match (reason, access) {
        (FaultReason::BusMasterOff, _) => "bus mastering is off",
        (FaultReason::Blocked, _) if pasid.is_some() => "present bit in PASID-table entry is clear",
        (FaultReason::Blocked, _) => "present bit in context entry is clear",
        (FaultReason::NotMapped | FaultReason::Permission, Access::Read) => "PTE read access is not set",
        (FaultReason::NotMapped | FaultReason::Permission, Access::Write) => "PTE write access is not set",
        (FaultReason::Memory, _) => "the memory is gone",
        (FaultReason::Stage1NotPresent, _) => "present bit in first-stage entry is clear",
        (FaultReason::Stage1Permission, _) => "first-stage entry does not allow it",
        (FaultReason::Stage1Invalid, _) => "no first-stage table, or no address of it",
        (FaultReason::Stage1Unreachable, _) => "first-stage table cannot be read",
    }
}

impl Endpoint {
    /// Has accesses that the IOMMU refuses logged, as those of the function at
    /// `source`.
    pub fn log_faults(&self, source: String) {
        let page_requests = Arc::clone(&self.page_requests);
        self.requester.set_fault_log(Arc::new(Log { source, page_requests, count: AtomicU64::new(0) }));
    }
}
