// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who has what: opens by group and by device node, claims of reset ownership,
//! hot resets; each checked against what Linux's rules and the claims say.

use std::any::Any;
use std::sync::Arc;

use caller::{FileId, Reply, Ticket, Wake};
use host::tree::Node;
use pci::Answers;
use sim::{BASE, Fd};
use uapi::Errno;
use uapi::vfio::device::{BIND_IOMMUFD, HOT_RESET_DEV_ID_OWNED};
use uapi::vfio::recovery::BIND_CLAIM_RESET;

use crate::game::{ALL, C, Game, User};
use crate::world::*;

const RESET: u32 = 0x3b6f;
const HOT_RESET_INFO: u32 = 0x3b70;
const HOT_RESET: u32 = 0x3b71;

/// How a program has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through its group, in the one container.
    Group,
    /// By its node, bound to one of the iommufds.
    Node { context: usize, claims: bool },
}

impl Way {
    pub(crate) const ALL: [Way; 5] = [
        Way::Group,
        Way::Node { context: 0, claims: false },
        Way::Node { context: 0, claims: true },
        Way::Node { context: 1, claims: false },
        Way::Node { context: 1, claims: true },
    ];

    fn context(self) -> Option<usize> {
        if let Way::Node { context, .. } = self { Some(context) } else { None }
    }
}

/// Whether a reset takes the two down together.
fn together(a: &str, b: &str) -> bool {
    (a == C) == (b == C)
}

impl Game {
    /// The users of a device's reset scope.
    fn others<'a>(&'a self, address: &'a str) -> impl Iterator<Item = &'a User> {
        self.users.iter().filter(move |(other, _)| together(other, address)).map(|(_, user)| user)
    }

    /// Whose claim covers a device.
    fn claimer(&self, address: &str) -> Option<usize> {
        let claims = |user: &User| matches!(user.way, Way::Node { claims: true, .. });
        self.others(address).find(|user| claims(user)).and_then(|user| user.way.context())
    }

    /// Whether a claim keeps a device from somebody who wants it like this.
    fn is_kept_from(&self, address: &str, way: Way) -> bool {
        let claimed = self.claimer(address).is_some_and(|owner| way.context() != Some(owner));
        let wants_all = matches!(way, Way::Node { claims: true, .. });
        claimed || wants_all && self.others(address).any(|user| user.way.context() != way.context())
    }

    /// Whether all that falls with a device is its user's (HOT-013, HOT-025).
    fn owns_all(&self, address: &str, context: usize) -> bool {
        let mine = |other: &str| self.users.get(other).is_some_and(|user| user.way.context() == Some(context));
        let claims = self.claimer(address) == Some(context);
        ALL.into_iter().filter(|other| together(other, address)).all(|other| claims || mine(other))
    }

    pub(crate) fn open(&mut self, address: &'static str, way: Way) {
        if self.users.contains_key(address) {
            return;
        }
        let vfio = self.w.host.board().driver(at(address)).is_some_and(|driver| driver.name() == "vfio-pci");
        if !vfio || self.w.host.board().is_leaving(at(address)) || self.w.host.is_recovering(at(address)) {
            return;
        }
        // EIO with the extension, for its state is not known.
        if self.blocks && self.w.host.board().fabric.function(at(address)).unwrap().answers() != Answers::Yes {
            return;
        }
        let file = match way {
            Way::Group => self.open_by_group(address),
            Way::Node { context, claims } => self.open_by_node(address, context, claims),
        };
        let Some(file) = file else { return };
        let error = self.w.event(file, 3);
        let flags = self.w.recovery_state(file)[0];
        let more = [5, 6].into_iter().filter(|index| flags >> (index - 5) & 1 != 0);
        let more = more.map(|index| self.w.event(file, index)).collect();
        self.w.store(file, CONFIG, 4, &[6, 0]);
        if self.w.host.board().fabric.function(at(address)).is_some_and(|f| f.answers() == Answers::Yes) {
            self.silent.retain(|other| *other != address);
        } else {
            self.lost.push(address);
        }
        let registers = self.registers(address);
        let pages: Arc<dyn Any + Send + Sync> = self.w.host.device_file(file).unwrap();
        let pages = pages.downcast().unwrap();
        self.users.insert(address, User { way, file, error, more, most: 0, heard: 0, registers, pages });
    }

    fn open_by_group(&mut self, address: &'static str) -> Option<FileId> {
        let new = !self.groups.contains_key(address);
        if new {
            if self.groups.is_empty() {
                self.w.container = None;
            }
            self.groups.insert(address, self.w.groups.len());
            self.w.enter(address);
        }
        let group = self.groups[address];
        if self.is_kept_from(address, Way::Group) {
            assert_eq!(self.w.open_again(address, group).err(), Some(Errno::EBUSY), "{address} is claimed");
            self.saw("a claim keeps a group's user off");
            return None;
        }
        if new {
            let file = self.w.client.file_id(self.w.groups[group]).unwrap();
            return Some(self.w.open_device(file, address));
        }
        match self.w.open_again(address, group) {
            Ok(Reply::NewFile(file)) => Some(file),
            Ok(Reply::Parked(ticket)) => {
                self.w.host.abandon(ticket);
                None
            }
            Err(Errno::EBUSY) => panic!("{address}: nobody claims it"),
            _ => None,
        }
    }

    fn open_by_node(&mut self, address: &'static str, context: usize, claims: bool) -> Option<FileId> {
        // A group that is open keeps its devices (API-037).
        self.leave_group(address);
        let tree = self.w.host.tree();
        let dir = format!("/{address}/vfio-dev/vfio");
        let number = tree.entries.keys().find_map(|path| path.split_once(&dir)?.1.parse().ok())?;
        let file = self.w.host.open(Node::VfioCdev(number), &self.w.client).unwrap();
        let kept = self.is_kept_from(address, Way::Node { context, claims });
        let iommufd = self.iommufd(context);
        let flags = if claims { BIND_CLAIM_RESET } else { 0 };
        for _ in 0..2 {
            match self.w.words(file, BIND_IOMMUFD, [16, flags, iommufd as u32, 0]).map(|(reply, _)| reply) {
                Ok(Reply::Value(_)) => {
                    assert!(!kept, "{address} is kept from {context}");
                    self.saw(if claims { "a claim" } else { "a bind" });
                    return Some(file);
                }
                // For the reset of a device that takes its time.
                Ok(Reply::Parked(ticket)) => self.wait_for(ticket),
                Ok(other) => panic!("{other:?}"),
                Err(errno) => {
                    assert_eq!(errno == Errno::EBUSY, kept, "{address}: {errno:?}");
                    self.saw(if claims { "a claim refused" } else { "a bind refused" });
                    break;
                }
            }
        }
        self.w.host.release(file);
        None
    }

    fn wait_for(&mut self, ticket: Ticket) {
        for _ in 0..10_000 {
            let mut woken = self.w.host.take_woken();
            let over = woken.contains(&(ticket, Wake::Retry));
            woken.retain(|(other, _)| *other != ticket);
            self.w.woken.append(&mut woken);
            if over {
                return;
            }
            self.w.pass(10);
        }
        panic!("{ticket:?} waits for ever");
    }

    fn iommufd(&mut self, context: usize) -> i32 {
        while self.iommufds.len() <= context {
            let file = self.w.host.open(Node::Iommufd, &self.w.client).unwrap();
            let fd = self.w.client.install(Fd::File(file));
            self.iommufds.push(fd);
        }
        self.iommufds[context]
    }

    pub(crate) fn leave_group(&mut self, address: &str) {
        if let Some(group) = self.groups.remove(address) {
            let file = self.w.client.file_id(self.w.groups[group]).unwrap();
            self.w.host.release(file);
        }
    }

    pub(crate) fn close(&mut self, address: &'static str) {
        let Some(user) = self.users.remove(address) else { return };
        if self.w.host.board().is_leaving(at(address)) {
            self.leave_group(address);
        }
        for ticket in self.waiting.iter().filter(|(_, who)| **who == address).map(|(t, _)| *t).collect::<Vec<_>>() {
            self.waiting.remove(&ticket);
            self.w.host.abandon(ticket);
        }
        self.w.host.release(user.file);
    }

    /// A call of a user, which may wait.
    pub(crate) fn call(&mut self, address: &'static str, kind: u64) {
        let Some(&User { file, way, .. }) = self.users.get(address) else { return };
        let reply = match kind {
            0 => self.w.try_load(file, CONFIG, 0),
            1 => self.w.try_load(file, 0, 8),
            2 => self.w.try_store(file, 0, 0x24, 0),
            3 => self.w.host.ioctl(file, RESET, 0, &self.w.client),
            _ => match way {
                Way::Group => self.hot_reset_by_groups(address, file),
                Way::Node { context, .. } => self.hot_reset_by_context(address, file, context),
            },
        };
        if let Ok(Reply::Parked(ticket)) = reply {
            self.waiting.insert(ticket, address);
        }
    }

    fn hot_reset_by_groups(&mut self, address: &str, file: FileId) -> Result<Reply, Errno> {
        let groups: Vec<i32> = ALL[..2].iter().filter_map(|a| Some(self.w.groups[*self.groups.get(a)?])).collect();
        let mut words = vec![12 + 4 * groups.len() as u32, 0, groups.len() as u32];
        words.extend(groups.iter().map(|fd| *fd as u32));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.w.client.set(BASE, &bytes);
        let reply = self.w.host.ioctl(file, HOT_RESET, BASE, &self.w.client);
        // HOT-023, HOT-025: both functions are vfio-pci's, and their groups
        // were named.
        let bound = |a: &&str| self.w.host.board().driver(at(a)).is_some_and(|d| d.name() == "vfio-pci");
        let owns = address != C && groups.len() == 2 && ALL[..2].iter().all(bound);
        if matches!(reply, Ok(Reply::Value(_))) && address != C {
            assert!(owns, "a hot reset without owning all");
        }
        reply
    }

    /// HOT-014: the reset is `EINVAL` if, and only if, the report says that not
    /// all is owned; and that is what the ways of opening say.
    fn hot_reset_by_context(&mut self, address: &str, file: FileId, context: usize) -> Result<Reply, Errno> {
        let mut info = [0; 3 + 2 * 4];
        info[0] = 4 * info.len() as u32;
        let owned = match self.w.words(file, HOT_RESET_INFO, info) {
            Ok((Reply::Value(_), info)) => info[1] & HOT_RESET_DEV_ID_OWNED != 0,
            other => panic!("{other:?}"),
        };
        assert_eq!(owned, self.owns_all(address, context), "{address}");
        let reply = self.w.words(file, HOT_RESET, [12, 0, 0]).map(|(reply, _)| reply);
        if !matches!(reply, Ok(Reply::Parked(_))) {
            assert_eq!(reply == Err(Errno::EINVAL), !owned, "{address}: {reply:?}");
        }
        let alone = address != C && ALL[..2].iter().any(|other| !self.users.contains_key(other));
        match (owned, alone) {
            (true, true) => self.saw("a hot reset by a claim"),
            (true, false) => self.saw("a hot reset of all that is owned"),
            (false, _) => self.saw("a hot reset refused"),
        }
        reply
    }
}
