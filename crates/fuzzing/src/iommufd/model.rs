// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What iommufd does, written down as plainly as possible: address spaces as
//! lists of areas, pages one by one.

use std::collections::{BTreeMap, BTreeSet};

use uapi::Errno;

pub(super) const PAGE: u64 = 4096;
pub(super) const RAM: u64 = 0x4000_0000;
pub(super) const RAM_LEN: u64 = 64 * PAGE;
pub(super) const ROM: u64 = 0x5000_0000;
pub(super) const ROM_LEN: u64 = 16 * PAGE;
pub(super) const FILE_LEN: u64 = 32 * PAGE;
/// `FIXED_IOVA`, `WRITEABLE`, `READABLE`.
const FIXED: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

type Result<T> = std::result::Result<T, Errno>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    None,
    User,
    Process,
}

/// What was mapped by one call.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    pub(super) file: bool,
    /// Address or offset of page 0.
    pub(super) base: u64,
    pub(super) writable: bool,
    pub(super) who: usize,
    pub(super) mode: Mode,
    /// Users of each page that is pinned.
    pub(super) pinned: BTreeMap<u64, u32>,
}

impl Pages {
    /// Whether a page can be pinned.
    fn has(&self, index: u64) -> bool {
        let Some(address) = index.checked_mul(PAGE).and_then(|offset| self.base.checked_add(offset)) else {
            return false;
        };
        let within = |start: u64, len: u64| address >= start && address - start < len;
        match self.file {
            true => within(0, FILE_LEN),
            false => within(RAM, RAM_LEN) || (within(ROM, ROM_LEN) && !self.writable),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) last: u64,
    pub(super) prot: u32,
    pub(super) pages: usize,
    /// Byte of the pages at which it begins.
    pub(super) start: u64,
    pub(super) accesses: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) page: u64,
    pub(super) automatic: bool,
    pub(super) devices: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Ioas {
    pub(super) areas: BTreeMap<u64, Area>,
    /// Ranges, and whose they are: a domain's, or nobody's (0).
    pub(super) reserved: Vec<(u32, u64, u64)>,
    pub(super) allowed: Vec<(u64, u64)>,
    pub(super) domains: BTreeMap<u32, Domain>,
    pub(super) huge: bool,
}

impl Default for Ioas {
    fn default() -> Ioas {
        Ioas { areas: BTreeMap::new(), reserved: Vec::new(), allowed: Vec::new(), domains: BTreeMap::new(), huge: true }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) id: u32,
    pub(super) ioas: u32,
    pub(super) pins: bool,
    /// Ranges by number.
    pub(super) items: BTreeMap<u32, (u64, u64)>,
    pub(super) next: u32,
}

/// One context and two programs of one user.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Every id in use.
    pub(super) ids: BTreeSet<u32>,
    pub(super) ioases: BTreeMap<u32, Ioas>,
    /// By descriptor.
    pub(super) accesses: BTreeMap<i32, Access>,
    /// Mock devices: their device's id, IOAS and HWPT.
    pub(super) mocks: BTreeMap<u32, (u32, u32, u32)>,
    pub(super) pages: Vec<Pages>,
    pub(super) compat: Option<u32>,
    pub(super) process_mode: bool,
    pub(super) privileged: [bool; 2],
    pub(super) limit: [u64; 2],
    /// Of each program: locked, pinned; and of their user: locked.
    pub(super) locked: [u64; 2],
    pub(super) pinned: [u64; 2],
    pub(super) user: u64,
}

fn touches(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

fn end(first: u64, length: u64) -> Result<u64> {
    first.checked_add(length - 1).ok_or(Errno::EOVERFLOW)
}

/// A part of pages: which, from which byte, how many.
pub(super) type Slice = (usize, u64, u64);

impl Model {
    pub(super) fn next_id(&self) -> u32 {
        (1..).find(|id| !self.ids.contains(id)).unwrap_or(0)
    }

    pub(super) fn ioas(&mut self, id: u32) -> Result<&mut Ioas> {
        self.ioases.get_mut(&id).ok_or(Errno::ENOENT)
    }

    pub(super) fn alignment(&self, id: u32) -> u64 {
        let ioas = &self.ioases[&id];
        let domains = ioas.domains.values().map(|domain| domain.page);
        let pinning = self.accesses.values().any(|access| access.ioas == id && access.pins);
        domains.max().unwrap_or(1).max(if pinning || !ioas.huge { PAGE } else { 1 })
    }

    /// `EADDRINUSE` if an area does not fit an alignment.
    pub(super) fn conforms(&self, id: u32, alignment: u64) -> Result<()> {
        for (first, area) in &self.ioases[&id].areas {
            let offset = (self.pages[area.pages].base.wrapping_add(area.start)) % PAGE;
            if !(first | (area.last - first + 1) | offset).is_multiple_of(alignment) {
                return Err(Errno::EADDRINUSE);
            }
        }
        Ok(())
    }

    fn check_length(length: u64) -> Result<()> {
        if length == 0 || length > u64::MAX - PAGE { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn new_pages(&mut self, file: bool, address: u64, write: bool, who: usize) -> usize {
        let mode = match (self.privileged[who], self.process_mode) {
            (true, _) => Mode::None,
            (_, true) => Mode::Process,
            _ => Mode::User,
        };
        let base = address / PAGE * PAGE;
        self.pages.push(Pages { file, base, writable: write, who, mode, pinned: BTreeMap::new() });
        self.pages.len() - 1
    }

    fn check_flags(flags: u32, numbers: &[u64]) -> Result<()> {
        if flags & !(FIXED | WRITE | READ) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if numbers.contains(&u64::MAX) {
            return Err(Errno::EOVERFLOW);
        }
        if flags & (WRITE | READ) == 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }

    pub(super) fn map(&mut self, who: usize, ioas: u32, flags: u32, va: u64, length: u64, iova: u64) -> Result<u64> {
        Model::check_flags(flags, &[iova, length])?;
        self.ioas(ioas)?;
        self.map_user(who, ioas, flags, va, length, iova)
    }

    pub(super) fn map_user(
        &mut self,
        who: usize,
        ioas: u32,
        flags: u32,
        va: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64> {
        va.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        Model::check_length(length)?;
        let pages = self.new_pages(false, va, flags & WRITE != 0, who);
        self.insert(ioas, &[(pages, va % PAGE, length)], flags, iova)
    }

    pub(super) fn map_file(
        &mut self,
        who: usize,
        ioas: u32,
        flags: u32,
        start: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64> {
        Model::check_flags(flags, &[iova, length])?;
        self.ioas(ioas)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        end(start, length)?;
        Model::check_length(length)?;
        let pages = self.new_pages(true, start, flags & WRITE != 0, who);
        self.insert(ioas, &[(pages, start % PAGE, length)], flags, iova)
    }

    pub(super) fn copy(&mut self, from: (u32, u64), to: (u32, u64), flags: u32, length: u64) -> Result<u64> {
        Model::check_flags(flags, &[length, from.1, to.1])?;
        self.ioas(from.0)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = end(from.1, length)?;
        let slices = self.slices(from.0, from.1, last).ok_or(Errno::ENOENT)?;
        self.ioas(to.0)?;
        self.insert(to.0, &slices, flags, to.1)
    }

    /// What is behind a range, area by area, if all of it is mapped.
    pub(super) fn slices(&self, ioas: u32, first: u64, last: u64) -> Option<Vec<Slice>> {
        let (mut at, mut slices) = (first, Vec::new());
        loop {
            let (start, area) =
                self.ioases[&ioas].areas.range(..=at).next_back().filter(|(_, area)| area.last >= at)?;
            let stop = area.last.min(last);
            slices.push((area.pages, area.start + (at - start), stop - at + 1));
            if stop == last {
                return Some(slices);
            }
            at = stop + 1;
        }
    }

    fn insert(&mut self, id: u32, slices: &[Slice], flags: u32, iova: u64) -> Result<u64> {
        let alignment = self.alignment(id);
        let length: u64 = slices.iter().map(|slice| slice.2).sum();
        let address = |model: &Model, slice: &Slice| model.pages[slice.0].base.wrapping_add(slice.1);
        if !length.is_multiple_of(alignment) {
            return Err(Errno::EINVAL);
        }
        let ioas = &self.ioases[&id];
        let iova = if flags & FIXED == 0 {
            locate(ioas, address(self, &slices[0]), length, alignment)?
        } else {
            if !iova.is_multiple_of(alignment) {
                return Err(Errno::EINVAL);
            }
            let range = (iova, end(iova, length)?);
            if ioas.reserved.iter().any(|(_, first, last)| touches(range, (*first, *last))) {
                return Err(Errno::EINVAL);
            }
            if ioas.areas.iter().any(|(first, area)| touches(range, (*first, area.last))) {
                return Err(Errno::EEXIST);
            }
            iova
        };
        for slice in slices {
            if flags & WRITE != 0 && !self.pages[slice.0].writable {
                return Err(Errno::EPERM);
            }
            if !(address(self, slice) % PAGE).is_multiple_of(alignment) {
                return Err(Errno::EINVAL);
            }
        }
        if !self.ioases[&id].domains.is_empty() {
            for (n, slice) in slices.iter().enumerate() {
                let done = self.pin(*slice).and_then(|()| {
                    if flags & (READ | WRITE) != 0 {
                        return Ok(());
                    }
                    self.unpin(*slice);
                    Err(Errno::EINVAL)
                });
                if let Err(errno) = done {
                    slices[..n].iter().for_each(|slice| self.unpin(*slice));
                    return Err(errno);
                }
            }
        }
        let mut at = iova;
        for (pages, start, length) in slices {
            let area = Area { last: at + (length - 1), prot: flags, pages: *pages, start: *start, accesses: 0 };
            self.ioas(id)?.areas.insert(at, area);
            at = at.wrapping_add(*length);
        }
        Ok(iova)
    }

    /// Pins the pages of a part once more.
    pub(super) fn pin(&mut self, (id, start, length): Slice) -> Result<()> {
        let pages = &self.pages[id];
        let (first, last) = (start / PAGE, (start + length - 1) / PAGE);
        let mut new = 0;
        for index in first..=last {
            if !pages.pinned.contains_key(&index) {
                if !pages.has(index) {
                    return Err(if pages.file { Errno::EINVAL } else { Errno::EFAULT });
                }
                new += 1;
            }
        }
        self.charge(self.pages[id].who, self.pages[id].mode, new)?;
        for index in first..=last {
            *self.pages[id].pinned.entry(index).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn unpin(&mut self, (id, start, length): Slice) {
        let mut gone = 0;
        for index in start / PAGE..=(start + length - 1) / PAGE {
            if let Some(users) = self.pages[id].pinned.get_mut(&index) {
                *users -= 1;
                if *users == 0 {
                    self.pages[id].pinned.remove(&index);
                    gone += 1;
                }
            }
        }
        self.uncharge(self.pages[id].who, self.pages[id].mode, gone);
    }

    fn charge(&mut self, who: usize, mode: Mode, pages: u64) -> Result<()> {
        if pages == 0 {
            return Ok(());
        }
        let count = match mode {
            Mode::None => None,
            Mode::User => Some(&mut self.user),
            Mode::Process => Some(&mut self.locked[who]),
        };
        if let Some(count) = count {
            if *count + pages > self.limit[who] {
                return Err(Errno::ENOMEM);
            }
            *count += pages;
        }
        self.pinned[who] += pages;
        Ok(())
    }

    fn uncharge(&mut self, who: usize, mode: Mode, pages: u64) {
        match mode {
            Mode::None => {}
            Mode::User => self.user -= pages,
            Mode::Process => self.locked[who] -= pages,
        }
        self.pinned[who] = self.pinned[who].saturating_sub(pages);
    }

    fn slice_of(&self, ioas: u32, first: u64) -> Slice {
        let area = &self.ioases[&ioas].areas[&first];
        (area.pages, area.start, area.last - first + 1)
    }

    /// Removes areas in ascending order; the bytes, and how it ended.
    pub(super) fn unmap(&mut self, id: u32, first: u64, last: u64) -> (u64, Result<()>) {
        let mut bytes = 0;
        loop {
            let areas = &self.ioases[&id].areas;
            let Some((at, area)) = areas.iter().find(|(at, area)| touches((**at, area.last), (first, last))) else {
                return (bytes, Ok(()));
            };
            let (at, area) = (*at, *area);
            if at < first || area.last > last {
                return (bytes, Err(Errno::ENOENT));
            }
            if area.accesses > 0 {
                self.let_go(id, at, area.last);
            }
            if !self.ioases[&id].domains.is_empty() {
                self.unpin(self.slice_of(id, at));
            }
            self.ioases.entry(id).or_default().areas.remove(&at);
            bytes += area.last - at + 1;
        }
    }

    /// Accesses of an IOAS unpin what touches a range.
    fn let_go(&mut self, ioas: u32, first: u64, last: u64) {
        let accesses: Vec<i32> = self.accesses.iter().filter(|(_, a)| a.ioas == ioas).map(|(fd, _)| *fd).collect();
        for fd in accesses {
            let items = &self.accesses[&fd].items;
            let items: Vec<u32> =
                items.iter().filter(|(_, item)| touches(**item, (first, last))).map(|(item, _)| *item).collect();
            for item in items {
                let _ = self.unpin_item(fd, item);
            }
        }
    }

    pub(super) fn unpin_item(&mut self, fd: i32, item: u32) -> Result<()> {
        let access = self.accesses.get_mut(&fd).ok_or(Errno::EBADFD)?;
        let (first, last) = access.items.remove(&item).ok_or(Errno::ENOENT)?;
        let ioas = access.ioas;
        self.unpin_range(ioas, first, last);
        Ok(())
    }

    fn unpin_range(&mut self, ioas: u32, first: u64, last: u64) {
        for slice in self.slices(ioas, first, last).unwrap_or_default() {
            self.unpin(slice);
        }
        for (at, area) in &mut self.ioases.entry(ioas).or_default().areas {
            if touches((*at, area.last), (first, last)) {
                area.accesses -= 1;
            }
        }
    }

    pub(super) fn pin_item(&mut self, fd: i32, iova: u64, length: u64, write: bool) -> Result<u32> {
        if length > 16 << 20 {
            return Err(Errno::ENOMEM);
        }
        let access = self.accesses.get(&fd).ok_or(Errno::EBADFD)?;
        if !access.pins {
            return Err(Errno::EOPNOTSUPP);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = end(iova, length)?;
        let ioas = access.ioas;
        let mut at = iova;
        loop {
            match self.pin_part(ioas, at, last, write) {
                Ok(stop) if stop == last => break,
                Ok(stop) => at = stop + 1,
                Err(errno) => {
                    if at > iova {
                        self.unpin_range(ioas, iova, at - 1);
                    }
                    return Err(errno);
                }
            }
        }
        let access = self.accesses.get_mut(&fd).ok_or(Errno::EBADFD)?;
        let item = access.next;
        access.next += 1;
        access.items.insert(item, (iova, last));
        Ok(item)
    }

    fn pin_part(&mut self, ioas: u32, at: u64, last: u64, write: bool) -> Result<u64> {
        let areas = &self.ioases[&ioas].areas;
        let (first, area) = areas.range(..=at).next_back().filter(|(_, area)| area.last >= at).ok_or(Errno::ENOENT)?;
        let (first, area) = (*first, *area);
        let byte = |iova: u64| area.start + (iova - first);
        if byte(at) % PAGE != 0 || (last > area.last && byte(area.last) % PAGE != PAGE - 1) {
            return Err(Errno::EINVAL);
        }
        if area.prot & if write { WRITE } else { READ } == 0 || (write && !self.pages[area.pages].writable) {
            return Err(Errno::EPERM);
        }
        let stop = area.last.min(last);
        self.pin((area.pages, byte(at), stop - at + 1))?;
        if let Some(area) = self.ioas(ioas)?.areas.get_mut(&first) {
            area.accesses += 1;
        }
        Ok(stop)
    }

    /// What reading or writing would find, without the bytes.
    pub(super) fn rw(&self, who: usize, fd: i32, iova: u64, length: u64, write: bool, slow: bool) -> Result<()> {
        let access = self.accesses.get(&fd).ok_or(Errno::EBADFD)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let last = end(iova, length)?;
        let areas = &self.ioases[&access.ioas].areas;
        let mut at = iova;
        loop {
            let (first, area) =
                areas.range(..=at).next_back().filter(|(_, area)| area.last >= at).ok_or(Errno::ENOENT)?;
            let stop = area.last.min(last);
            let pages = &self.pages[area.pages];
            if area.prot & if write { WRITE } else { READ } == 0 || (write && !pages.writable) {
                return Err(Errno::EPERM);
            }
            let start = area.start + (at - first);
            let (from, to) = (start / PAGE, (start + (stop - at)) / PAGE);
            let as_program = |index| Pages { writable: write, ..pages.clone() }.has(index);
            let as_pin = |index| pages.pinned.contains_key(&index) || pages.has(index);
            let own = !pages.file && pages.who == who && !slow;
            let ok = (from..=to).all(|index| match (own, !pages.file && from == to) {
                (true, _) => as_program(index),
                (_, true) => as_program(index) || as_pin(index),
                _ => as_pin(index),
            });
            if !ok {
                return Err(if pages.file { Errno::EINVAL } else { Errno::EFAULT });
            }
            if stop == last {
                return Ok(());
            }
            at = stop + 1;
        }
    }

    pub(super) fn add_access(&mut self, fd: i32, id: u32, ioas: u32, pins: bool) {
        self.ids.insert(id);
        self.accesses.insert(fd, Access { id, ioas, pins, items: BTreeMap::new(), next: 0 });
    }

    pub(super) fn close_access(&mut self, fd: i32) {
        if let Some(access) = self.accesses.get(&fd) {
            let (id, ioas) = (access.id, access.ioas);
            let items: Vec<u32> = access.items.keys().copied().collect();
            for item in items {
                let _ = self.unpin_item(fd, item);
            }
            self.accesses.remove(&fd);
            self.ids.remove(&id);
            let _ = ioas;
        }
    }

    /// Whether a domain could begin to use an IOAS; if so, it does.
    pub(super) fn add_domain(&mut self, id: u32, hwpt: u32, domain: Domain) -> Result<()> {
        let alignment = domain.page.max(self.alignment(id));
        self.conforms(id, alignment)?;
        let mut reserved = Vec::new();
        if domain.first > 0 {
            reserved.push((hwpt, 0, domain.first - 1));
        }
        if domain.last < u64::MAX {
            reserved.push((hwpt, domain.last + 1, u64::MAX));
        }
        if reserved.iter().any(|(_, first, last)| self.is_used(id, *first, *last)) {
            return Err(Errno::EADDRINUSE);
        }
        if self.ioases[&id].domains.is_empty() {
            let areas: Vec<u64> = self.ioases[&id].areas.keys().copied().collect();
            for (n, first) in areas.iter().enumerate() {
                let slice = self.slice_of(id, *first);
                let refused = self.ioases[&id].areas[first].prot & (READ | WRITE) == 0;
                let done = self.pin(slice).and_then(|()| {
                    if refused {
                        self.unpin(slice);
                        return Err(Errno::EINVAL);
                    }
                    Ok(())
                });
                if let Err(errno) = done {
                    areas[..n].iter().for_each(|first| self.unpin(self.slice_of(id, *first)));
                    return Err(errno);
                }
            }
        }
        let ioas = self.ioas(id)?;
        ioas.reserved.extend(reserved);
        ioas.domains.insert(hwpt, domain);
        self.ids.insert(hwpt);
        Ok(())
    }

    pub(super) fn remove_domain(&mut self, id: u32, hwpt: u32) {
        let Some(ioas) = self.ioases.get_mut(&id) else { return };
        ioas.domains.remove(&hwpt);
        ioas.reserved.retain(|(owner, ..)| *owner != hwpt);
        let areas: Vec<u64> = ioas.areas.keys().copied().collect();
        if ioas.domains.is_empty() {
            areas.iter().for_each(|first| self.unpin(self.slice_of(id, *first)));
        }
        self.ids.remove(&hwpt);
    }

    /// Whether an area or an allowed range touches a range.
    pub(super) fn is_used(&self, id: u32, first: u64, last: u64) -> bool {
        let ioas = &self.ioases[&id];
        ioas.areas.iter().any(|(at, area)| touches((first, last), (*at, area.last)))
            || ioas.allowed.iter().any(|range| touches((first, last), *range))
    }

    pub(super) fn change_process(&mut self, who: usize) -> Result<()> {
        let used: BTreeSet<usize> =
            self.ioases.values().flat_map(|ioas| ioas.areas.values()).map(|area| area.pages).collect();
        if used.iter().any(|pages| !self.pages[*pages].file) {
            return Err(Errno::EINVAL);
        }
        let moved: Vec<usize> = used.iter().copied().filter(|id| self.pages[*id].who != who).collect();
        let total = |model: &Model, mode| -> u64 {
            let of = |id: &&usize| model.pages[**id].mode == mode;
            moved.iter().filter(of).map(|id| model.pages[*id].pinned.len() as u64).sum()
        };
        let (user, process) = (total(self, Mode::User), total(self, Mode::Process));
        self.charge(who, Mode::User, user)?;
        if let Err(errno) = self.charge(who, Mode::Process, process) {
            self.uncharge(who, Mode::User, user);
            return Err(errno);
        }
        self.uncharge(1 - who, Mode::User, user);
        self.uncharge(1 - who, Mode::Process, process);
        for id in used {
            self.pages[id].who = who;
        }
        Ok(())
    }

    /// Makes `iova` the last of an area.
    pub(super) fn cut(&mut self, id: u32, iova: u64) -> Result<()> {
        let alignment = self.alignment(id);
        let filled = !self.ioases[&id].domains.is_empty();
        let ioas = self.ioas(id)?;
        let huge = ioas.huge;
        let Some((first, area)) = ioas.areas.range_mut(..=iova).next_back().filter(|(_, area)| area.last >= iova)
        else {
            return Ok(());
        };
        if iova == *first || iova == area.last {
            return Ok(());
        }
        let byte = area.start + (iova + 1 - first);
        if !((iova + 1) | byte).is_multiple_of(alignment) || area.accesses > 0 || (filled && huge) {
            return Err(Errno::EINVAL);
        }
        let upper = Area { start: byte, ..*area };
        area.last = iova;
        ioas.areas.insert(iova + 1, upper);
        Ok(())
    }

    /// The holes between what is reserved.
    pub(super) fn holes(&self, id: u32) -> Vec<(u64, u64)> {
        gaps(self.ioases[&id].reserved.iter().map(|(_, first, last)| (*first, *last)), 0, u64::MAX)
    }
}

/// What is in none of the ranges.
fn gaps(ranges: impl Iterator<Item = (u64, u64)>, first: u64, last: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = ranges.collect();
    ranges.sort_unstable();
    let (mut at, mut gaps) = (Some(first), Vec::new());
    for (start, end) in ranges {
        let Some(from) = at else { break };
        if end < from {
            continue;
        }
        if start > last {
            break;
        }
        if start > from {
            gaps.push((from, start - 1));
        }
        at = end.checked_add(1);
    }
    if let Some(from) = at.filter(|from| *from <= last) {
        gaps.push((from, last));
    }
    gaps
}

/// The lowest free IOVA.
fn locate(ioas: &Ioas, address: u64, length: u64, alignment: u64) -> Result<u64> {
    if length >= u64::MAX / 2 {
        return Err(Errno::EOVERFLOW);
    }
    let natural = length.next_power_of_two();
    let lowest_bit = if address == 0 { u64::MAX } else { address & address.wrapping_neg() };
    let wanted = natural.min(lowest_bit).min(2 << 20);
    if wanted < alignment {
        return Err(Errno::EINVAL);
    }
    let fit = |(first, last): (u64, u64)| {
        let up = (first.checked_add(wanted - 1)? / wanted * wanted) | (address % PAGE);
        (up < last && last - up >= length - 1).then_some(up)
    };
    let used = || {
        let areas = ioas.areas.iter().map(|(first, area)| (*first, area.last));
        areas.chain(ioas.reserved.iter().map(|(_, first, last)| (*first, *last)))
    };
    let (least, most) = (PAGE, u64::MAX - PAGE);
    let not_allowed = gaps(ioas.allowed.iter().copied(), least, most);
    let spans = if ioas.allowed.is_empty() { vec![(least, most)] } else { gaps(not_allowed.into_iter(), least, most) };
    for span in spans {
        let Some(from) = fit(span) else { continue };
        if let Some(found) = gaps(used(), from, span.1).into_iter().find_map(fit) {
            return Ok(found);
        }
    }
    Err(Errno::ENOSPC)
}
