// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Linux would have a migrating device do: by migration-fsm.csv, the rules
//! of draining and what the lab has fail.

use std::sync::Arc;

use caller::testing::Counter;
use uapi::Errno;

use super::{PRE_COPY, PRE_COPY_P2P, RESUMING, RUNNING, RUNNING_P2P, STOP, STOP_COPY};

const TABLE: &str = include_str!("../../../vfio/src/device/migration/migration-fsm.csv");
const NAMES: [&str; 8] =
    ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
pub(crate) const ERROR: u32 = 0;

/// Keys of a device, and what it is in the table.
pub(crate) const KINDS: [(&str, &str); 2] = [("p2p", "STOP_COPY+P2P"), ("pre-copy-p2p", "STOP_COPY+P2P+PRE_COPY")];
/// A device as Linux would have it.
pub(crate) struct Card {
    combo: &'static str,
    pub(crate) state: u32,
    pub(crate) drains: bool,
    /// The drain that was begun last and is not over.
    pub(crate) drain: Option<Arc<Counter>>,
    /// An arc that is to fail: from, to, where, how often.
    pub(crate) plan: Option<(u32, u32, &'static str, u32)>,
}

/// What SET returns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gives {
    Nothing,
    Stream,
    Event,
}

/// From, to, where and how often, of an arc that the lab has fail.
pub(crate) fn planned(plan: &'static str) -> Option<(u32, u32, &'static str, u32)> {
    let (arc, rest) = plan.split_once(':')?;
    let (from, to) = arc.split_once('>')?;
    let number = |name: &str| NAMES.iter().position(|n| *n == name).unwrap() as u32;
    let (at, times) = rest.split_once(':').unwrap_or((rest, "1"));
    Some((number(from), number(to), at, times.parse().unwrap()))
}

impl Card {
    pub(crate) fn new(keys: &str) -> Card {
        let combo = KINDS.iter().find(|kind| kind.0 == keys).unwrap().1;
        Card { combo, state: RUNNING, drains: false, drain: None, plan: None }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, ERROR | STOP | STOP_COPY | RESUMING)
    }

    /// What SET gives, and where it leads: by the table and the rules of
    /// draining.
    pub(crate) fn set(&mut self, to: u32) -> Result<Gives, Errno> {
        let name = NAMES.get(to as usize).ok_or(Errno::EINVAL)?;
        if self.state == to && to != ERROR {
            return Ok(Gives::Nothing);
        }
        let start = format!("{},{},{name},", self.combo, NAMES[self.state as usize]);
        let row: Vec<&str> = TABLE.lines().find(|line| line.starts_with(&start)).unwrap().split(',').collect();
        let number = |name: &str| NAMES.iter().position(|n| *n == name).unwrap() as u32;
        let path: Vec<u32> = row[4].split('>').filter(|name| !name.is_empty()).map(number).collect();
        if path.is_empty() {
            return Err(Errno::EINVAL);
        }
        let is_drain = |arc: &[u32]| matches!(arc, [RUNNING, RUNNING_P2P] | [PRE_COPY, PRE_COPY_P2P]);
        let last = path.windows(2).last().is_some_and(is_drain);
        if self.drains {
            if path[..path.len() - 1].windows(2).any(is_drain) {
                return Err(Errno::EINVAL);
            }
            if self.drain.is_some() && matches!(to, STOP | STOP_COPY | RESUMING) {
                return Err(Errno::EBUSY);
            }
        }
        for arc in path.windows(2) {
            if let Some((from, to, at, times)) = self.plan
                && arc == [from, to]
            {
                self.plan = (times > 1).then_some((from, to, at, times - 1));
                if at == "middle" {
                    self.state = ERROR;
                }
                return Err(Errno::EIO);
            }
            if arc == [RESUMING, STOP] {
                return Err(Errno::EINVAL); // Nothing was written.
            }
            self.state = arc[1];
        }
        Ok(match row[5] {
            "yes" => Gives::Stream,
            _ if self.drains && last => Gives::Event,
            _ => Gives::Nothing,
        })
    }
}
