// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Doing what requests ask for.

use device::{DiskError, DiskPart};
use iommu::{Access, Requester};
use zerocopy::{FromZeros, IntoBytes};

use super::request::{HEADER, Request};
use super::{BATCH_BYTES, Blk, Parts, RANGE_SECTORS, RANGES, extent};
use crate::virtio::parts;
use crate::virtio::ring::Chain;
use crate::virtio::spec::blk::{ID_LEN, Range, SECTOR, UNMAP, feature, request, status};

impl Blk {
    /// Does the first requests of the batch; how many. Their status bytes are
    /// written then.
    pub(super) fn execute(&mut self, dma: &Requester) -> usize {
        let mut session = dma.session();
        self.requests.clear();
        self.requests.extend(self.batch.chains().iter().map(|chain| Request::read(&mut session, &self.batch, chain)));
        drop(session);
        let (mut done, mut bytes) = (0, 0);
        while let Some(first) = self.requests.get(done) {
            // What has been done goes to the driver first.
            if done > 0 && bytes >= BATCH_BYTES {
                break;
            }
            done += match first.kind {
                request::IN | request::OUT if first.is_whole() => {
                    let (count, moved) = self.transfer(dma, done);
                    bytes += moved;
                    count
                }
                _ => self.single(dma, done),
            };
        }
        let mut session = dma.session();
        for (request, chain) in self.requests.iter_mut().zip(self.batch.chains()).take(done) {
            if !request.is_whole() {
                continue;
            }
            let at = chain.write_len - 1;
            if parts::write(&mut session, self.batch.writable(chain), at, &[request.status]).is_err() {
                request.written = 0;
            }
        }
        done
    }

    /// Reads or writes of one kind, from `first` on: how many, and the bytes.
    fn transfer(&mut self, dma: &Requester, first: usize) -> (usize, u64) {
        let Blk { space, batch, requests, places, config, .. } = self;
        let (Some(requests), Some(chains)) = (requests.get_mut(first..), batch.chains().get(first..)) else {
            return (1, 0);
        };
        let kind = requests.first().map_or(request::IN, |request| request.kind);
        let write = kind == request::OUT;
        let access = if write { Access::Read } else { Access::Write };
        let mut session = dma.session();
        let mut gather = session.gather(places);
        let (mut count, mut bytes) = (0, 0);
        for (request, chain) in requests.iter_mut().zip(chains) {
            let len = if write { request.sent } else { request.room };
            if !request.is_whole() || request.kind != kind || count > 0 && bytes + len > BATCH_BYTES {
                break;
            }
            count += 1;
            let before = gather.len();
            let parts = if write { batch.readable(chain) } else { batch.writable(chain) };
            let mut parts = parts::slice(parts, if write { HEADER } else { 0 }, len);
            let allowed = !write || !config.disk.is_read_only();
            match extent(space, request.sector, len).filter(|_| allowed) {
                Some(offset) if parts.try_for_each(|part| gather.add(part.iova, part.len as usize, access)).is_ok() => {
                    request.offset = offset;
                    bytes += len;
                }
                _ => {
                    gather.truncate(before);
                    request.status = status::IOERR;
                }
            }
            request.places = gather.len();
        }
        let mut moves: Parts<'_> = Vec::with_capacity(gather.len());
        let mut from = 0;
        for request in requests.iter().take(count) {
            let mut offset = request.offset;
            for segment in gather.segments(from..request.places) {
                let part = DiskPart::new(offset, segment);
                offset += part.segment.len() as u64;
                moves.push(part);
            }
            from = request.places;
        }
        match write {
            true => config.disk.write_many(&mut moves),
            false => config.disk.read_many(&mut moves),
        }
        let mut from = 0;
        for request in requests.iter_mut().take(count) {
            let own = moves.get(from..request.places).unwrap_or_default();
            from = request.places;
            if let Some(error) = own.iter().find_map(|part| part.result.err()) {
                tracing::debug!(target: "vfuse::virtio", %error, "a transfer failed");
                request.status = status::IOERR;
            }
            let data = if write || request.status != status::OK { 0 } else { request.room };
            request.end(request.status, data);
        }
        (count, bytes)
    }

    /// A request of another kind.
    fn single(&mut self, dma: &Requester, number: usize) -> usize {
        let (Some(request), Some(chain)) = (self.requests.get(number).copied(), self.batch.chains().get(number)) else {
            return 1;
        };
        let chain = *chain;
        if !request.is_whole() {
            return 1;
        }
        let disk = &*self.config.disk;
        let (status, data) = match request.kind {
            request::FLUSH => (result(disk.flush()), 0),
            request::GET_ID => self.get_id(dma, &chain, request.room),
            request::DISCARD if self.queues.has(feature::DISCARD) => (self.ranges(dma, &chain, &request, 0), 0),
            request::WRITE_ZEROES if self.queues.has(feature::WRITE_ZEROES) => {
                (self.ranges(dma, &chain, &request, UNMAP), 0)
            }
            _ => (status::UNSUPP, 0),
        };
        if let Some(request) = self.requests.get_mut(number) {
            request.end(status, data);
        }
        1
    }

    fn get_id(&self, dma: &Requester, chain: &Chain, room: u64) -> (u8, u64) {
        let id = self.serial();
        let id = id.get(..(room.min(ID_LEN as u64)) as usize).unwrap_or_default();
        match parts::write(&mut dma.session(), self.batch.writable(chain), 0, id) {
            Ok(len) => (status::OK, len as u64),
            Err(_) => (status::IOERR, 0),
        }
    }

    /// Discards or zeroes ranges, all of which are checked before one is done.
    fn ranges(&self, dma: &Requester, chain: &Chain, request: &Request, flags: u32) -> u8 {
        let mut ranges = [Range::new_zeroed(); RANGES as usize];
        let size = size_of::<Range>() as u64;
        let count = (request.sent / size) as usize;
        if request.sent == 0 || !request.sent.is_multiple_of(size) {
            return status::IOERR;
        }
        let Some(ranges) = ranges.get_mut(..count) else { return status::IOERR };
        let readable = self.batch.readable(chain);
        if parts::read(&mut dma.session(), readable, HEADER, ranges.as_mut_bytes()).is_err() {
            return status::IOERR;
        }
        // What is not known may mean anything (5.2.6.2).
        if ranges.iter().any(|range| range.flags.get() & !flags != 0) {
            return status::UNSUPP;
        }
        let zero = request.kind == request::WRITE_ZEROES;
        for range in ranges.iter() {
            let sectors = range.sectors.get();
            let inside = extent(&self.space, range.sector.get(), u64::from(sectors) * SECTOR).is_some();
            if !inside || sectors > RANGE_SECTORS {
                return status::IOERR;
            }
        }
        let disk = &*self.config.disk;
        let done = ranges.iter().try_for_each(|range| {
            let (offset, len) = (range.sector.get() * SECTOR, u64::from(range.sectors.get()) * SECTOR);
            match zero && range.flags.get() & UNMAP == 0 {
                true => disk.write_zeroes(offset, len),
                false => disk.discard(offset, len),
            }
        });
        result(done)
    }
}

fn result(result: Result<(), DiskError>) -> u8 {
    match result {
        Ok(()) => status::OK,
        Err(error) => {
            tracing::debug!(target: "vfuse::virtio", %error, "a request failed");
            status::IOERR
        }
    }
}
