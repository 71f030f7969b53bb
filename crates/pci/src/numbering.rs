// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bus numbers, as firmware gives them: depth first in device order, except
//! that a bridge may be told which bus is behind it.
//!
//! What is told stands; what is not told takes the first free range that its
//! subtree fits into. Buses that the virtual functions of a bus reach come
//! right after it.

use std::collections::BTreeMap;

use crate::FabricError;

/// How often a subtree may be tried in all before the numbers are called
/// contradictory; bounds the work that a lab file can ask for.
const TRIES: u32 = 100_000;

/// One function in the tree.
pub(crate) struct Node {
    /// Whether there is a bus behind it.
    pub(crate) bridge: bool,
    /// The number that bus must have.
    pub(crate) fixed: Option<u8>,
    /// Device and function.
    pub(crate) order: u8,
    /// Buses after its own that its virtual functions reach.
    pub(crate) extra: u8,
}

/// The functions by the bus they are on.
pub(crate) struct Tree {
    pub(crate) roots: BTreeMap<(u16, u8), Vec<usize>>,
    pub(crate) below: Vec<Vec<usize>>,
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// Last bus number of a root bus: up to the next root bus.
    pub(crate) fn root_end(&self, segment: u16, bus: u8) -> u8 {
        self.roots.range((segment, bus)..=(segment, 255)).nth(1).map_or(255, |(next, _)| next.1 - 1)
    }
}

/// Secondary and subordinate bus of each bridge.
pub(crate) fn number(tree: &Tree) -> Result<Vec<Option<(u8, u8)>>, FabricError> {
    let mut buses = vec![None; tree.nodes.len()];
    let anchored = anchors(tree);
    for (&(segment, bus), devices) in &tree.roots {
        let mut walk = Walk { tree, segment, anchored: &anchored, tries: 0, buses: &mut buses };
        walk.bus(devices, u16::from(bus), u16::from(tree.root_end(segment, bus)))?;
    }
    Ok(buses)
}

/// Which nodes have a fixed number somewhere below them.
fn anchors(tree: &Tree) -> Vec<bool> {
    let mut anchored = vec![false; tree.nodes.len()];
    let mut parent = vec![None; tree.nodes.len()];
    for (i, below) in tree.below.iter().enumerate() {
        for &child in below {
            parent[child] = Some(i);
        }
    }
    for (i, node) in tree.nodes.iter().enumerate() {
        let mut at = parent[i];
        while let (Some(up), Some(_)) = (at, node.fixed) {
            if std::mem::replace(&mut anchored[up], true) {
                break;
            }
            at = parent[up];
        }
    }
    anchored
}

struct Walk<'a> {
    tree: &'a Tree,
    segment: u16,
    anchored: &'a [bool],
    tries: u32,
    buses: &'a mut Vec<Option<(u8, u8)>>,
}

impl Walk<'_> {
    fn conflict(&self, bus: u16) -> FabricError {
        FabricError::BusConflict { segment: self.segment, bus: bus.min(255) as u8 }
    }

    /// Numbers what is behind the bridges of a bus; the last number used.
    fn bus(&mut self, devices: &[usize], bus: u16, limit: u16) -> Result<u16, FabricError> {
        self.tries += 1;
        if self.tries > TRIES {
            return Err(self.conflict(bus));
        }
        let tree = self.tree;
        let mut taken: Vec<(u16, u16)> = Vec::new();
        let extra = devices.iter().map(|&i| u16::from(tree.nodes[i].extra)).max().unwrap_or(0);
        if bus + extra > limit {
            return Err(FabricError::NoFreeBus(self.segment));
        }
        if extra != 0 {
            taken.push((bus + 1, bus + extra));
        }
        let mut bridges: Vec<usize> = devices.iter().copied().filter(|&i| tree.nodes[i].bridge).collect();
        bridges.sort_by_key(|&i| {
            let node = &tree.nodes[i];
            (node.fixed.is_none(), node.fixed, !self.anchored[i], node.order)
        });
        for bridge in bridges {
            let range = match tree.nodes[bridge].fixed.map(u16::from) {
                Some(fixed) if fixed <= bus || fixed > limit => return Err(self.conflict(fixed)),
                Some(fixed) => (fixed, self.bus(&tree.below[bridge], fixed, limit)?),
                None => self.first_fit(bridge, bus + 1, limit, &taken)?,
            };
            if let Some(other) = taken.iter().find(|t| t.0 <= range.1 && range.0 <= t.1) {
                return Err(self.conflict(other.0.max(range.0)));
            }
            taken.push(range);
            self.buses[bridge] = Some((range.0 as u8, range.1 as u8));
        }
        Ok(taken.iter().map(|t| t.1).max().unwrap_or(bus))
    }

    fn first_fit(
        &mut self,
        bridge: usize,
        from: u16,
        limit: u16,
        taken: &[(u16, u16)],
    ) -> Result<(u16, u16), FabricError> {
        let tree = self.tree;
        let mut start = from;
        let mut error = FabricError::NoFreeBus(self.segment);
        while start <= limit {
            if let Some(inside) = taken.iter().find(|t| t.0 <= start && start <= t.1) {
                start = inside.1 + 1;
                continue;
            }
            let next = taken.iter().filter(|t| t.0 > start).min();
            let gap_end = next.map_or(limit, |t| t.0 - 1);
            match self.bus(&tree.below[bridge], start, gap_end) {
                Ok(last) => return Ok((start, last)),
                Err(why) => error = why,
            }
            match next {
                Some(next) => start = next.1 + 1,
                None => break,
            }
        }
        Err(error)
    }
}
