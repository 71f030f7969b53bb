// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! read, write and mmap of regions (vfio-api.md, sections 9 and 10).

use ::device::Board;
use caller::{Caller, Platform};
use uapi::Errno;
use uapi::vfio::device::region_index;

use super::recovery::Access;
use super::state::{Device, PAGE};

/// The most that one call moves between a BAR and the program. Linux has no
/// such limit below 2 GiB; a call that long would hold up all others.
const BAR_MAX: u64 = 4 << 20;
/// Bytes copied to the program at a time.
const CHUNK: usize = 4096;

impl Device {
    /// Region and position of a file offset.
    pub(super) fn locate(&self, offset: u64) -> Result<(u32, u64), Errno> {
        match uapi::region::split(offset) {
            Some((number, index, pos)) if number == self.number && index < region_index::COUNT => Ok((index, pos)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The same for an access that the program made by a call: it may take
    /// Linux's layout for granted (API-130). A mapping may not, since its pages
    /// lie elsewhere.
    fn locate_access(&self, offset: u64) -> Result<(u32, u64), Errno> {
        match uapi::region::split_linux(offset) {
            Some((index, pos)) if index < region_index::COUNT => Ok((index, pos)),
            _ => self.locate(offset),
        }
    }

    /// `pread` of at least one byte.
    pub(super) fn read(
        &mut self,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
        board: &mut Board,
        clock: &dyn Platform,
    ) -> Result<u64, Errno> {
        match self.locate_access(offset)? {
            (region_index::CONFIG, pos) => self.read_config(pos, buf, len, caller, board),
            (region_index::ROM, pos) => self.read_rom(pos, buf, len, caller),
            (index @ region_index::BAR0..=region_index::BAR5, pos) => {
                self.read_bar(index as usize, pos, buf, len, caller, clock.now())
            }
            // VGA is not there (API-140, API-224).
            _ => Err(Errno::EINVAL),
        }
    }

    /// `pwrite` of at least one byte.
    pub(super) fn write(
        &mut self,
        offset: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
        board: &mut Board,
        now: u64,
    ) -> Result<u64, Errno> {
        match self.locate_access(offset)? {
            (region_index::CONFIG, pos) => self.write_config(pos, buf, len, caller, board, now),
            (index @ region_index::BAR0..=region_index::BAR5, pos) => {
                self.write_bar(index as usize, pos, buf, len, caller, now)
            }
            // The ROM cannot be written (API-213).
            _ => Err(Errno::EINVAL),
        }
    }

    /// API-225, API-226: no clipping.
    fn config_range(&self, pos: u64, len: u64) -> Result<std::ops::Range<usize>, Errno> {
        let end = pos.checked_add(len).filter(|end| *end <= self.config.size()).ok_or(Errno::EFAULT)?;
        Ok(pos as usize..end as usize)
    }

    fn read_config(&self, pos: u64, buf: u64, len: u64, caller: &dyn Caller, board: &mut Board) -> Result<u64, Errno> {
        let range = self.config_range(pos, len)?;
        if self.recovery.access == Access::Failed {
            caller.write(buf, &vec![0xff; range.len()])?;
            return Ok(len);
        }
        let function = board.fabric.function_mut(self.address).ok_or(Errno::EIO)?;
        if range.end > 0x100 {
            // What answers have done to it since.
            function.set_page_request_status(self.endpoint.page_requests.status());
        }
        // What programs do most: one register.
        if self.config.piece(range.start, range.len()) == range.len() {
            let value = self.config_read(function, range.start, range.len()).to_le_bytes();
            caller.write(buf, &value[..range.len()])?;
            return Ok(len);
        }
        let (mut at, mut to) = (range.start, buf);
        let mut chunk = [0; 256];
        while at < range.end {
            let mut filled = 0;
            while at < range.end && filled + 4 <= chunk.len() {
                let len = self.config.piece(at, range.end - at);
                let value = self.config_read(function, at, len).to_le_bytes();
                chunk[filled..filled + len].copy_from_slice(&value[..len]);
                (at, filled) = (at + len, filled + len);
            }
            caller.write(to, &chunk[..filled])?;
            to = to.wrapping_add(filled as u64);
        }
        Ok(len)
    }

    fn write_config(
        &mut self,
        pos: u64,
        buf: u64,
        len: u64,
        caller: &dyn Caller,
        board: &mut Board,
        now: u64,
    ) -> Result<u64, Errno> {
        let range = self.config_range(pos, len)?;
        if self.recovery.is_inert() {
            return Ok(len);
        }
        let (mut at, mut from) = (range.start, buf);
        while at < range.end {
            let len = self.config.piece(at, range.end - at);
            // What is dropped unseen is not even copied.
            if self.config.is_writable(at) {
                let mut value = [0; 4];
                caller.read(from, &mut value[..len])?;
                self.config_write(board, at, len, u32::from_le_bytes(value), now);
            }
            at += len;
            from = from.wrapping_add(len as u64);
        }
        Ok(len)
    }

    /// API-215: `EINVAL` outside, else the count clipped to the region's end.
    fn clip(size: u64, pos: u64, len: u64) -> Result<u64, Errno> {
        if pos >= size { Err(Errno::EINVAL) } else { Ok(len.min(size - pos)) }
    }

    /// API-223: beyond the image, ones; without memory no image is found.
    fn read_rom(&self, pos: u64, buf: u64, len: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let (size, image) = self.rom;
        let len = Self::clip(size, pos, len)?.min(BAR_MAX);
        if image == 0 || !self.accessible {
            return Err(Errno::ENOMEM);
        }
        let rom = &self.endpoint.spec().rom[..image as usize];
        let mut done = 0;
        while done < len {
            let mut chunk = [0xff; CHUNK];
            let part = (len - done).min(CHUNK as u64) as usize;
            let there = rom.get((pos + done) as usize..).unwrap_or_default();
            let there = &there[..there.len().min(part)];
            chunk[..there.len()].copy_from_slice(there);
            caller.write(buf.wrapping_add(done), &chunk[..part])?;
            done += part as u64;
        }
        Ok(len)
    }

    /// The gate of API-216, which is tested for each access (API-218).
    fn is_shut(&self, bar: usize) -> bool {
        self.bars[bar].memory && !self.accessible
    }

    /// Length of the next access to a BAR: natural, and wholly outside the
    /// MSI-X table; or `None` with the bytes of the table that follow
    /// (API-220, API-221).
    fn bar_piece(&self, bar: usize, pos: u64, left: u64) -> (Option<usize>, u64) {
        let (start, end) = self.bars[bar].table;
        let room = match pos {
            pos if pos < start => left.min(start - pos),
            pos if pos >= end => left,
            _ => return (None, left.min(end - pos)),
        };
        let len = [8, 4, 2].into_iter().find(|len| room >= *len && pos.is_multiple_of(*len)).unwrap_or(1);
        (Some(len as usize), len)
    }

    fn read_bar(&self, bar: usize, pos: u64, buf: u64, len: u64, caller: &dyn Caller, now: u64) -> Result<u64, Errno> {
        let len = Self::clip(self.bars[bar].size, pos, len)?.min(BAR_MAX);
        let mut done = 0;
        while done < len {
            let mut chunk = [0xff; CHUNK];
            let mut filled = 0;
            while done + (filled as u64) < len && filled + 8 <= CHUNK {
                let at = pos + done + filled as u64;
                let left = (len - done - filled as u64).min((CHUNK - filled) as u64);
                let (access, bytes) = self.bar_piece(bar, at, left);
                if let Some(access) = access {
                    if self.is_shut(bar) {
                        return Err(Errno::EIO);
                    }
                    self.endpoint.read(bar, at, &mut chunk[filled..filled + access], now);
                }
                filled += bytes as usize;
            }
            caller.write(buf.wrapping_add(done), &chunk[..filled])?;
            done += filled as u64;
        }
        Ok(len)
    }

    fn write_bar(&self, bar: usize, pos: u64, buf: u64, len: u64, caller: &dyn Caller, now: u64) -> Result<u64, Errno> {
        let len = Self::clip(self.bars[bar].size, pos, len)?.min(BAR_MAX);
        let mut done = 0;
        while done < len {
            let (access, bytes) = self.bar_piece(bar, pos + done, len - done);
            if let Some(access) = access {
                let mut data = [0; 8];
                caller.read(buf.wrapping_add(done), &mut data[..access])?;
                if self.is_shut(bar) {
                    return Err(Errno::EIO);
                }
                self.endpoint.write(bar, pos + done, &data[..access], now);
            }
            done += bytes;
        }
        Ok(len)
    }

    /// Stores an ioeventfd's value, unless the BAR is shut (API-187).
    pub(super) fn store(&self, bar: usize, pos: u64, data: u64, size: u32, now: u64) {
        if bar >= self.bars.len() || self.is_shut(bar) {
            return;
        }
        let bytes = &data.to_le_bytes()[..size.min(8) as usize];
        let mut done = 0;
        // An unaligned one becomes several, as a bus would do it.
        while done < bytes.len() {
            let (at, left) = (pos + done as u64, bytes.len() - done);
            let len = [4, 2].into_iter().find(|len| left >= *len && at.is_multiple_of(*len as u64)).unwrap_or(1);
            self.endpoint.write(bar, at, &bytes[done..done + len], now);
            done += len;
        }
    }

    /// API-228: whether a range may be mapped. Whether it can be touched
    /// shows at the touch (API-230).
    pub(super) fn mmap(&self, offset: u64, len: u64, shared: bool) -> Result<(), Errno> {
        let (index, pos) = self.locate(offset)?;
        if !shared || index > region_index::BAR5 {
            return Err(Errno::EINVAL);
        }
        let bar = self.bars.get(index as usize).filter(|bar| bar.mmap != 0).ok_or(Errno::EINVAL)?;
        let pages = len.checked_next_multiple_of(PAGE).filter(|len| *len != 0 && pos.is_multiple_of(PAGE));
        match pages.and_then(|len| pos.checked_add(len)) {
            Some(end) if end <= bar.mmap => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }
}
