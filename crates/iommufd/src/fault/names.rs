// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What unanswered groups are called, and which group an answer is for
//! (FAULT-1.4, FAULT-1.5, FAULT-5).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uapi::Errno;

use crate::fault::queue::FaultGroup;
use crate::fault::{FaultCookies, FaultTransport};
use crate::ids::ObjectId;
use iommu::PAGE_GROUPS;

/// The cookie that says, with code 0 and where indexes are kept back, that
/// nothing which was read before will be answered any more.
pub(crate) const DRAINED: u32 = u32::MAX;

/// Groups that are read and not answered, by name.
#[derive(Debug)]
pub(crate) struct Names {
    how: How,
    /// Several of a name only where a transport cannot tell them apart: oldest
    /// first.
    waiting: BTreeMap<u32, VecDeque<FaultGroup>>,
}

#[derive(Debug)]
enum How {
    Monotonic { last: u32 },
    LowestFree,
    NineBit,
    Quarantine(Quarantine),
}

/// Indexes of a queue's own.
#[derive(Debug)]
struct Quarantine {
    /// Those in no use, the one that was in use longest ago first.
    free: VecDeque<u32>,
    /// Those that a program may still answer, and for which device.
    owed: BTreeMap<u32, ObjectId>,
}

/// A name for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) cookie: u32,
    /// The index that is shown.
    pub(crate) index: u32,
}

/// What an answer comes to.
#[derive(Debug)]
pub(crate) enum Meant {
    Group(FaultGroup),
    /// A request that is over.
    Nothing,
}

impl Names {
    pub(crate) fn new(cookies: FaultCookies, transport: FaultTransport) -> Names {
        let how = match (transport, cookies) {
            (FaultTransport::Cookie, FaultCookies::Monotonic) => How::Monotonic { last: 0 },
            (FaultTransport::Cookie, FaultCookies::LowestFree) => How::LowestFree,
            (FaultTransport::NineBit, _) => How::NineBit,
            (FaultTransport::Quarantine, _) => {
                How::Quarantine(Quarantine { free: (0..PAGE_GROUPS).collect(), owed: BTreeMap::new() })
            }
        };
        Names { how, waiting: BTreeMap::new() }
    }

    /// The name that the group would have; `None` if there is none now.
    pub(crate) fn propose(&mut self, group: &FaultGroup) -> Option<Name> {
        let last = group.requests.last()?;
        let waiting = &self.waiting;
        let cookie = match &mut self.how {
            How::Monotonic { last } => {
                let start = *last;
                loop {
                    *last = last.checked_add(1).unwrap_or(1);
                    if !waiting.contains_key(last) {
                        break *last;
                    }
                    if *last == start {
                        return None;
                    }
                }
            }
            How::LowestFree => {
                let mut free: u32 = 1;
                for cookie in waiting.keys() {
                    if *cookie != free {
                        break;
                    }
                    free = free.checked_add(1)?;
                }
                free
            }
            How::NineBit => {
                let pasid = last.pasid.filter(|_| last.needs_pasid);
                last.group | pasid.map_or(0, |pasid| 1 << 9 | pasid << 12)
            }
            How::Quarantine(quarantine) => {
                let index = *quarantine.free.front()?;
                return Some(Name { cookie: index, index });
            }
        };
        Some(Name { cookie, index: last.group })
    }

    /// The group was read under the name proposed for it.
    pub(crate) fn insert(&mut self, name: Name, group: FaultGroup) {
        if let How::Quarantine(quarantine) = &mut self.how {
            quarantine.free.retain(|index| *index != name.cookie);
        }
        self.waiting.entry(name.cookie).or_default().push_back(group);
    }

    /// The group that an answer is for: `EINVAL` if there is none.
    pub(crate) fn answer(&mut self, cookie: u32, success: bool) -> Result<Meant, Errno> {
        if let Some(group) = self.take(cookie) {
            if let How::Quarantine(quarantine) = &mut self.how {
                quarantine.free.push_back(cookie);
            }
            return Ok(Meant::Group(group));
        }
        let How::Quarantine(quarantine) = &mut self.how else { return Err(Errno::EINVAL) };
        if cookie == DRAINED && success {
            self.forgive(|_| true);
            return Ok(Meant::Nothing);
        }
        quarantine.owed.remove(&cookie).ok_or(Errno::EINVAL)?;
        quarantine.free.push_back(cookie);
        Ok(Meant::Nothing)
    }

    /// Takes out groups that are answered for the program, which may still do
    /// so itself.
    pub(crate) fn take_where(&mut self, over: impl Fn(&FaultGroup) -> bool) -> Vec<FaultGroup> {
        let hit = |(cookie, groups): (&u32, &VecDeque<FaultGroup>)| groups.iter().any(&over).then_some(*cookie);
        let cookies: BTreeSet<u32> = self.waiting.iter().filter_map(hit).collect();
        let mut taken = Vec::new();
        for cookie in cookies {
            let Some(groups) = self.waiting.get_mut(&cookie) else { continue };
            let (gone, kept): (VecDeque<_>, VecDeque<_>) = groups.drain(..).partition(&over);
            *groups = kept;
            if groups.is_empty() {
                self.waiting.remove(&cookie);
            }
            if let (How::Quarantine(quarantine), Some(group)) = (&mut self.how, gone.front()) {
                quarantine.owed.insert(cookie, group.from);
            }
            taken.extend(gone);
        }
        taken
    }

    /// The groups that were read and not answered.
    pub(crate) fn waiting(&mut self) -> impl Iterator<Item = &mut FaultGroup> {
        self.waiting.values_mut().flatten()
    }

    /// A device was reset: its requests of before will not be answered.
    pub(crate) fn reset(&mut self, device: ObjectId) {
        self.forgive(|owed| owed == device);
    }

    fn forgive(&mut self, who: impl Fn(ObjectId) -> bool) {
        let How::Quarantine(Quarantine { free, owed }) = &mut self.how else { return };
        owed.retain(|index, device| {
            let gone = who(*device);
            if gone {
                free.push_back(*index);
            }
            !gone
        });
    }

    /// Whether a group can be named now.
    pub(crate) fn has_room(&self) -> bool {
        if let How::Quarantine(quarantine) = &self.how { !quarantine.free.is_empty() } else { true }
    }

    /// Whether none can be until the program has drained its queue.
    pub(crate) fn is_shut(&self) -> bool {
        if let How::Quarantine(quarantine) = &self.how { quarantine.owed.len() as u32 >= PAGE_GROUPS } else { false }
    }

    fn take(&mut self, cookie: u32) -> Option<FaultGroup> {
        let groups = self.waiting.get_mut(&cookie)?;
        let group = groups.pop_front();
        if groups.is_empty() {
            self.waiting.remove(&cookie);
        }
        group
    }
}
