// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE (vfio-api.md, section 8).

use std::sync::Arc;

use ::device::Board;
use caller::{Caller, FileId, FileIds, Pinned};
use iommufd::Iommufd;
use uapi::Errno;
use uapi::vfio::device::{DmaBuf, DmaRange, Feature, FeatureFlags, LowPowerWakeup, feature, region_index};
use uapi::vfio::draining::DRAIN;
use uapi::vfio::recovery::{ERROR_RECOVERY, ErrorRecovery};
use zerocopy::{FromBytes, IntoBytes};

use super::state::{Device, PAGE};
use super::token::{TOKEN_SIZE, Tokens};
use crate::args;

/// A request whose fixed part is checked.
pub(crate) struct Request {
    pub(super) flags: FeatureFlags,
    /// Where the data starts.
    pub(crate) data: u64,
    /// Bytes that the caller provides there.
    pub(crate) size: u32,
    /// What lies there, as far as one look shows it: most features need no other.
    ahead: [u8; AHEAD],
    seen: usize,
}

/// A feature's number and the request, or what is wrong with it.
pub(crate) type Parsed = Result<(u32, Request), Errno>;

/// As long as the longest structure of a frequent feature.
const AHEAD: usize = 40;

impl Request {
    /// API-193: the feature's number, and the rest.
    pub(crate) fn parse(arg: u64, caller: &dyn Caller) -> Parsed {
        const HEAD: usize = size_of::<Feature>();
        // Not into the next page: that may not be there.
        let len = (PAGE - arg % PAGE).clamp(HEAD as u64, (HEAD + AHEAD) as u64) as usize;
        let mut bytes = [0; HEAD + AHEAD];
        caller.read(arg, &mut bytes[..len])?;
        let (head, ahead) = Feature::read_from_prefix(&bytes).map_err(|_| Errno::EFAULT)?;
        if (head.argsz as usize) < HEAD {
            return Err(Errno::EINVAL);
        }
        let flags = FeatureFlags::from_bits(head.flags).ok_or(Errno::EINVAL)?;
        let both = FeatureFlags::GET | FeatureFlags::SET;
        if flags.contains(both) && !flags.contains(FeatureFlags::PROBE) {
            return Err(Errno::EINVAL);
        }
        let size = head.argsz - size_of::<Feature>() as u32;
        let data = arg.checked_add(size_of::<Feature>() as u64).ok_or(Errno::EFAULT)?;
        let ahead = *ahead.first_chunk().ok_or(Errno::EFAULT)?;
        let request = Request { flags, data, size, ahead, seen: len - HEAD };
        Ok(((flags & FeatureFlags::INDEX).bits(), request))
    }

    /// The structure that the data begins with; `EFAULT`.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, caller: &dyn Caller) -> Result<T, Errno> {
        match self.ahead[..self.seen].get(..size_of::<T>()).map(T::read_from_bytes) {
            Some(Ok(value)) => Ok(value),
            _ => args::read_plain(caller, self.data),
        }
    }

    /// API-194: what the feature offers, and whether its data is all there.
    /// `false`: it was only a probe, and there is nothing to do.
    pub(crate) fn check(&self, offered: FeatureFlags, size: usize) -> Result<bool, Errno> {
        let operations = self.flags & (FeatureFlags::GET | FeatureFlags::SET);
        if !offered.contains(operations) {
            return Err(Errno::EINVAL);
        }
        if self.flags.contains(FeatureFlags::PROBE) {
            return Ok(false);
        }
        if operations.is_empty() || (self.size as usize) < size {
            return Err(Errno::EINVAL);
        }
        Ok(true)
    }
}

impl Device {
    /// DEVICE_FEATURE; the value is 0 or what the feature returns. `stream`
    /// becomes the file of a migration's stream that was opened.
    pub(super) fn feature(
        &mut self,
        (index, request): (u32, Request),
        caller: &dyn Caller,
        board: &mut Board,
        tokens: &mut Tokens,
        (files, stream, iommufd): (&mut FileIds, &mut Option<FileId>, &mut Iommufd),
        now: u64,
    ) -> Result<u64, Errno> {
        match index {
            feature::MIGRATION
            | feature::MIG_DEVICE_STATE
            | feature::MIG_DATA_SIZE
            | feature::MIG_PRECOPY_INFO_V2
            | feature::DMA_LOGGING_START
            | feature::DMA_LOGGING_STOP
            | feature::DMA_LOGGING_REPORT => {
                *stream = self.migration_feature(index, &request, caller, board, files, now)?;
                Ok(0)
            }
            feature::PCI_VF_TOKEN => self.set_token(&request, caller, board, tokens),
            feature::LOW_POWER_ENTRY => {
                if request.check(FeatureFlags::SET, 0)? {
                    self.enter_low_power(None, now)?;
                }
                Ok(0)
            }
            feature::LOW_POWER_ENTRY_WITH_WAKEUP => self.enter_with_wakeup(&request, caller, now),
            feature::LOW_POWER_EXIT => {
                if request.check(FeatureFlags::SET, 0)? {
                    self.exit_low_power(board, now);
                }
                Ok(0)
            }
            DRAIN => self.drain_feature(&request, caller).map(|()| 0),
            feature::DMA_BUF => self.dma_buf(&request, caller, board, (files, iommufd)),
            ERROR_RECOVERY => match request.check(FeatureFlags::GET | FeatureFlags::SET, size_of::<ErrorRecovery>())? {
                false => Ok(0),
                true if request.flags.contains(FeatureFlags::GET) => self.get_error_recovery(caller, request.data),
                true => self.set_error_recovery(caller, request.data),
            },
            // API-195; BUS_MASTER is for CDX devices.
            _ => Err(Errno::ENOTTY),
        }
    }

    /// API-198
    fn set_token(
        &self,
        request: &Request,
        caller: &dyn Caller,
        board: &Board,
        tokens: &mut Tokens,
    ) -> Result<u64, Errno> {
        if !tokens.has(self.address, board) {
            return Err(Errno::ENOTTY);
        }
        if request.check(FeatureFlags::SET, TOKEN_SIZE)? {
            let mut token = [0; TOKEN_SIZE];
            caller.read(request.data, &mut token)?;
            tokens.set(self.address, token);
        }
        Ok(0)
    }

    /// API-203
    fn enter_with_wakeup(&mut self, request: &Request, caller: &dyn Caller, now: u64) -> Result<u64, Errno> {
        if !request.check(FeatureFlags::SET, size_of::<LowPowerWakeup>())? {
            return Ok(0);
        }
        let entry: LowPowerWakeup = request.read(caller)?;
        if entry.wakeup_eventfd < 0 {
            return Err(Errno::EINVAL);
        }
        let event = caller.event(entry.wakeup_eventfd)?;
        self.enter_low_power(Some(event), now)?;
        Ok(0)
    }

    /// API-206 to API-209: the descriptor.
    fn dma_buf(
        &mut self,
        request: &Request,
        caller: &dyn Caller,
        board: &Board,
        (files, iommufd): (&mut FileIds, &mut Iommufd),
    ) -> Result<u64, Errno> {
        if !request.check(FeatureFlags::GET, size_of::<DmaBuf>())? {
            return Ok(0);
        }
        let head: DmaBuf = request.read(caller)?;
        if head.nr_ranges == 0 || head.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let bar = match self.bars.get(head.region_index as usize) {
            Some(bar) if head.region_index <= region_index::BAR5 && bar.size != 0 => *bar,
            _ => return Err(Errno::ENODEV),
        };
        // What Linux's allocator refuses (a list of more than 4 MiB).
        if head.nr_ranges > (4 << 20) / size_of::<DmaRange>() as u32 {
            return Err(Errno::ENOMEM);
        }
        let list = request.data.checked_add(size_of::<DmaBuf>() as u64).ok_or(Errno::EFAULT)?;
        let mut ranges = vec![DmaRange::default(); head.nr_ranges as usize];
        caller.read(list, ranges.as_mut_bytes())?;
        let mut total: u64 = 0;
        for range in &ranges {
            if range.length == 0 || !range.offset.is_multiple_of(PAGE) || !range.length.is_multiple_of(PAGE) {
                return Err(Errno::EINVAL);
            }
            total = total.checked_add(range.length).ok_or(Errno::EINVAL)?;
        }
        // The highest bit is one that Linux's IOVA state uses.
        if total >> 63 != 0 {
            return Err(Errno::EINVAL);
        }
        // Only memory has a peer-to-peer provider.
        let index = head.region_index as usize;
        let memory = self.endpoint.peer(index).ok_or(Errno::EINVAL)?;
        let start = board.fabric.resources(self.address).get(index).ok_or(Errno::EINVAL)?.start;
        for range in &ranges {
            let first = start.checked_add(range.offset).ok_or(Errno::EOVERFLOW)?;
            let end = first.checked_add(range.length).ok_or(Errno::EOVERFLOW)?;
            if end > start + bar.size {
                return Err(Errno::EINVAL);
            }
        }
        let offset = ranges.first().map_or(0, |range| range.offset);
        let (fd, buffer) = iommufd.export(total, Pinned { memory, offset }, ranges.len() == 1, caller, files)?;
        buffer.set_revoked(!self.accessible);
        self.buffers.retain(|buffer| buffer.strong_count() > 0);
        self.buffers.push(Arc::downgrade(&buffer));
        Ok(u64::from(fd.cast_unsigned()))
    }
}
