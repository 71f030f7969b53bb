// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where ordinary areas come from. Areas of one origin and payer whose pinned
//! memory lies equally far from their addresses share a source, so that few
//! are needed however many areas there are.

use std::collections::HashMap;
use std::sync::Arc;

use caller::{ClientFile, Pinned, ProcessId, UserId, is_user_range};
use uapi::Errno;

use super::{Mode, Payer};
use crate::PAGE;

/// What a program mapped.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// Its memory.
    User,
    /// A file, which stays open.
    File(Arc<dyn ClientFile>),
}

impl Origin {
    /// Pins so many pages at an address: `EFAULT`, of a file `EINVAL`.
    pub(crate) fn pin(&self, payer: &Payer, address: u64, pages: u64, write: bool) -> Result<Pinned, Errno> {
        match self {
            Origin::User => {
                let length = pages.checked_mul(PAGE).ok_or(Errno::EFAULT)?;
                if !is_user_range(address, length) {
                    return Err(Errno::EFAULT);
                }
                payer.mm.pin(address, length, write)
            }
            Origin::File(file) => {
                let length = pages.checked_mul(PAGE).ok_or(Errno::EINVAL)?;
                address.checked_add(length).ok_or(Errno::EINVAL)?;
                file.pin(address, length)
            }
        }
    }

    fn key(&self) -> usize {
        match self {
            Origin::User => 0,
            Origin::File(file) => Arc::as_ptr(file).cast::<()>().addr(),
        }
    }
}

/// What the areas of a source have in common.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) payer: Payer,
    pub(crate) origin: Origin,
    /// Address less offset in the memory.
    pub(crate) distance: u64,
    areas: u64,
    /// Pages of them that are pinned.
    pub(crate) pinned: u64,
}

type Key = (ProcessId, UserId, Mode, usize, u64);

fn key(payer: &Payer, origin: &Origin, distance: u64) -> Key {
    (payer.mm.process(), payer.user, payer.mode, origin.key(), distance)
}

/// The sources of a context, by an index that fits a tag.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    slots: Vec<Option<Source>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    latest: u32,
}

/// Indices have so many bits.
const BITS: u32 = 28;

impl Sources {
    pub(crate) fn get(&self, index: u32) -> Option<&Source> {
        self.slots.get(index as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Source> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.slots.iter().flatten()
    }

    /// The source for one more area; nothing if there are too many.
    pub(crate) fn take(&mut self, payer: &Payer, origin: &Origin, distance: u64) -> Option<u32> {
        if let Some(source) = self.get_mut(self.latest)
            && source.distance == distance
            && source.origin.key() == origin.key()
            && source.payer.is(payer)
        {
            source.areas += 1;
            return Some(self.latest);
        }
        let key = key(payer, origin, distance);
        let index = match self.by_key.get(&key) {
            Some(index) => *index,
            None => {
                let source = Source { payer: payer.clone(), origin: origin.clone(), distance, areas: 0, pinned: 0 };
                let index = match self.free.pop() {
                    Some(index) => index,
                    None => {
                        let index = u32::try_from(self.slots.len()).ok().filter(|index| index >> BITS == 0)?;
                        self.slots.push(None);
                        index
                    }
                };
                self.slots[index as usize] = Some(source);
                self.by_key.insert(key, index);
                index
            }
        };
        if let Some(source) = self.get_mut(index) {
            source.areas += 1;
        }
        self.latest = index;
        Some(index)
    }

    /// One more area of a source that has some.
    pub(crate) fn share(&mut self, index: u32) {
        if let Some(source) = self.get_mut(index) {
            source.areas += 1;
        }
    }

    /// `areas` areas fewer.
    pub(crate) fn give(&mut self, index: u32, areas: u64) {
        let Some(source) = self.get_mut(index) else { return };
        source.areas -= areas;
        if source.areas > 0 {
            return;
        }
        debug_assert_eq!(source.pinned, 0);
        let key = key(&source.payer, &source.origin, source.distance);
        if self.by_key.get(&key) == Some(&index) {
            self.by_key.remove(&key);
        }
        self.slots[index as usize] = None;
        self.free.push(index);
    }

    /// Changes who pays for all of them.
    pub(crate) fn change_payers(&mut self, change: impl Fn(&mut Payer)) {
        self.by_key.clear();
        for (index, slot) in (0..).zip(&mut self.slots) {
            if let Some(source) = slot {
                change(&mut source.payer);
                // Two may have become alike; either can be found then.
                self.by_key.insert(key(&source.payer, &source.origin, source.distance), index);
            }
        }
    }
}
