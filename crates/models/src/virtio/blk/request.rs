// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a buffer asks for.

use iommu::Session;
use zerocopy::{FromZeros, IntoBytes};

use crate::virtio::parts;
use crate::virtio::ring::{Batch, Chain};
use crate::virtio::spec::blk::{Header, status};

/// Bytes of a header.
pub(super) const HEADER: u64 = size_of::<Header>() as u64;

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// Bytes of data to read from the driver.
    pub(super) sent: u64,
    /// Room for data to the driver.
    pub(super) room: u64,
    /// Where on the disk a read or write goes.
    pub(super) offset: u64,
    /// Its places among those of its batch.
    pub(super) places: usize,
    pub(super) status: u8,
    /// Bytes written to the buffer, the status included. 0: there is no place
    /// for a status, so nothing is done.
    pub(super) written: u32,
}

impl Request {
    /// Reads what a buffer asks for. A buffer without a whole header, or
    /// without a byte for the status, asks for nothing.
    pub(super) fn read(session: &mut Session<'_>, batch: &Batch, chain: &Chain) -> Request {
        let mut header = Header::new_zeroed();
        let got = parts::read(session, batch.readable(chain), 0, header.as_mut_bytes());
        let whole = got == Ok(HEADER as usize) && chain.write_len > 0;
        Request {
            kind: header.kind.get(),
            sector: header.sector.get(),
            sent: chain.read_len.saturating_sub(HEADER),
            room: chain.write_len.saturating_sub(1),
            offset: 0,
            places: 0,
            status: status::OK,
            written: u32::from(whole),
        }
    }

    /// Whether it asks for anything.
    pub(super) fn is_whole(&self) -> bool {
        self.written > 0
    }

    /// Ends it; `data` bytes went to the driver.
    pub(super) fn end(&mut self, status: u8, data: u64) {
        self.status = status;
        self.written = u32::try_from(data).unwrap_or(u32::MAX).saturating_add(1);
    }
}
