// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging: the device tells which pages it has written (section 7).
//!
//! The device's way to memory notes its writes in a log of its own; the
//! domain's is another. The tracker has pages of any power of two from 4 KiB to
//! 1 GiB and as many ranges as Linux lets a user name.

use std::ops::ControlFlow;
use std::sync::Arc;

use ::device::Board;
use ::device::migration::Failure;
use caller::Caller;
use iommu::DirtyLog;
use iommufd::DirtyBitmap;
use uapi::Errno;
use uapi::vfio::migration::{LoggingControl, LoggingRange, LoggingReport};
use zerocopy::IntoBytes;

use super::{Migration, failures};
use crate::args;
use crate::device::feature::Request;

/// Most ranges: a page full of them.
const MAX_RANGES: u32 = 4096 / size_of::<LoggingRange>() as u32;
/// The tracker's pages, as powers of two.
const SHIFTS: (u32, u32) = (12, 30);

/// Logging that is on.
#[derive(Debug)]
pub(super) struct Logging {
    log: Arc<DirtyLog>,
    /// First and last byte of each range, in ascending order.
    ranges: Vec<(u64, u64)>,
}

impl Migration {
    /// `ENOTTY` without logging (MIG-051).
    pub(super) fn check_logging(&self) -> Result<(), Errno> {
        if self.dma_logging { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    /// DMA_LOGGING_START with this request (MIG-052 to MIG-057).
    pub(super) fn start_logging(&mut self, request: &Request, caller: &dyn Caller) -> Result<(), Errno> {
        let mut control: LoggingControl = request.read(caller)?;
        if control.num_ranges == 0 {
            return Err(Errno::EINVAL);
        }
        if control.num_ranges > MAX_RANGES {
            return Err(Errno::E2BIG);
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let within = control.page_size.wrapping_sub(1);
        for n in 0..u64::from(control.num_ranges) {
            let at = control.ranges.checked_add(n * size_of::<LoggingRange>() as u64).ok_or(Errno::EFAULT)?;
            let range: LoggingRange = args::read_plain(caller, at)?;
            if range.iova & within != 0 || range.length & within != 0 {
                return Err(Errno::EINVAL);
            }
            range.iova.checked_add(range.length).ok_or(Errno::EOVERFLOW)?;
            // No bytes, no pages (MIG-055).
            let Some(last) = range.length.checked_sub(1).map(|rest| range.iova + rest) else { continue };
            if ranges.iter().any(|(first, end)| range.iova <= *end && *first <= last) {
                return Err(Errno::EINVAL);
            }
            ranges.push((range.iova, last));
        }
        ranges.sort_unstable();
        if self.logging.is_some() {
            return Err(Errno::EINVAL); // MIG-056
        }
        let shift = control.page_size.checked_ilog2().unwrap_or(0).clamp(SHIFTS.0, SHIFTS.1);
        let log = DirtyLog::new(shift);
        log.set_enabled(true);
        self.endpoint.requester.set_log(Some(Arc::clone(&log)));
        self.logging = Some(Logging { log, ranges });
        tracing::info!(name: "vfio.dma_logging", device = %self.address, on = true, page = 1_u64 << shift);
        control.page_size = 1 << shift;
        caller.write(request.data, control.as_bytes()).inspect_err(|_| self.stop_logging())
    }

    /// DMA_LOGGING_STOP, which also is no error if it is off (MIG-059).
    pub(super) fn stop_logging(&mut self) {
        if self.logging.take().is_some() {
            self.endpoint.requester.set_log(None);
            tracing::info!(name: "vfio.dma_logging", device = %self.address, on = false);
        }
    }

    /// DMA_LOGGING_REPORT with this request (MIG-060 to MIG-068).
    pub(super) fn report_logging(&self, request: &Request, caller: &dyn Caller, board: &Board) -> Result<(), Errno> {
        let report: LoggingReport = request.read(caller)?;
        if report.page_size < 4096 || !report.page_size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        report.iova.checked_add(report.length).ok_or(Errno::EOVERFLOW)?;
        let last = report.length.checked_sub(1).ok_or(Errno::EINVAL)? + report.iova;
        // What Linux pins first.
        let mut byte = [0];
        caller.read(report.bitmap, &mut byte)?;
        caller.write(report.bitmap, &byte)?;
        let Logging { log, ranges } = self.logging.as_ref().ok_or(Errno::EINVAL)?;
        if failures(board, self.address).contains(&Failure::LoggingLost) {
            return Err(Errno::EIO);
        }
        let shift = report.page_size.trailing_zeros();
        let mut bitmap = DirtyBitmap::new(caller, report.bitmap, report.iova..=last, shift, log.page_shift());
        for (from, to) in ranges {
            let (from, to) = (report.iova.max(*from), last.min(*to));
            if from <= to {
                let _ = log.read(from, to, true, &mut |first, words| {
                    bitmap.add(first, words);
                    ControlFlow::Continue(())
                });
            }
        }
        bitmap.flush();
        Ok(())
    }
}
