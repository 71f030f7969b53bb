// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The states of a migrating device and the ways between them (MIG-001 to
//! MIG-010).

use uapi::vfio::migration::MigrationFlags;

/// `enum vfio_device_mig_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub(crate) enum State {
    /// A transition has failed and could not be undone.
    Error = 0,
    /// Nothing moves.
    Stop = 1,
    /// The state after open and reset.
    #[default]
    Running = 2,
    /// STOP, and the stream gives the state.
    StopCopy = 3,
    /// STOP, and the stream takes the state.
    Resuming = 4,
    /// RUNNING without DMA to other devices.
    RunningP2p = 5,
    /// RUNNING, and the stream gives state in advance.
    PreCopy = 6,
    /// RUNNING_P2P, and the stream gives state in advance.
    PreCopyP2p = 7,
}

use State::{Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

/// By number.
pub(crate) const STATES: [State; 8] = [Error, Stop, Running, StopCopy, Resuming, RunningP2p, PreCopy, PreCopyP2p];

/// What a device must have, or lack, for an arc.
struct Arc(State, State, MigrationFlags, MigrationFlags);

const NONE: MigrationFlags = MigrationFlags::empty();
const P2P: MigrationFlags = MigrationFlags::P2P;
const PRE: MigrationFlags = MigrationFlags::PRE_COPY;
const BOTH: MigrationFlags = P2P.union(PRE);

/// What a driver implements (section 2): from, to, with, without.
const ARCS: [Arc; 18] = [
    Arc(Stop, Resuming, NONE, NONE),
    Arc(Resuming, Stop, NONE, NONE),
    Arc(Stop, StopCopy, NONE, NONE),
    Arc(StopCopy, Stop, NONE, NONE),
    Arc(Running, Stop, NONE, P2P),
    Arc(Stop, Running, NONE, P2P),
    Arc(Running, RunningP2p, P2P, NONE),
    Arc(RunningP2p, Running, P2P, NONE),
    Arc(RunningP2p, Stop, P2P, NONE),
    Arc(Stop, RunningP2p, P2P, NONE),
    Arc(Running, PreCopy, PRE, NONE),
    Arc(PreCopy, Running, PRE, NONE),
    Arc(PreCopy, StopCopy, PRE, P2P),
    Arc(RunningP2p, PreCopyP2p, BOTH, NONE),
    Arc(PreCopyP2p, RunningP2p, BOTH, NONE),
    Arc(PreCopy, PreCopyP2p, BOTH, NONE),
    Arc(PreCopyP2p, PreCopy, BOTH, NONE),
    Arc(PreCopyP2p, StopCopy, BOTH, NONE),
];

impl State {
    /// The state of a number; `None` from 8 on.
    pub(crate) fn from_raw(raw: u32) -> Option<State> {
        STATES.get(raw as usize).copied()
    }

    /// What Linux's documentation calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Error => "ERROR",
            Stop => "STOP",
            Running => "RUNNING",
            StopCopy => "STOP_COPY",
            Resuming => "RESUMING",
            RunningP2p => "RUNNING_P2P",
            PreCopy => "PRE_COPY",
            PreCopyP2p => "PRE_COPY_P2P",
        }
    }

    /// Whether there is a stream in it.
    fn has_stream(self) -> bool {
        matches!(self, StopCopy | Resuming | PreCopy | PreCopyP2p)
    }

    /// Whether a device with these flags has it (MIG-002).
    fn exists(self, flags: MigrationFlags) -> bool {
        flags.contains(match self {
            RunningP2p => P2P,
            PreCopy => PRE,
            PreCopyP2p => BOTH,
            _ => NONE,
        })
    }
}

/// The arcs of a device with these flags.
pub(crate) fn arcs(flags: MigrationFlags) -> impl Iterator<Item = (State, State)> {
    ARCS.iter().filter(move |arc| flags.contains(arc.2) && !flags.intersects(arc.3)).map(|arc| (arc.0, arc.1))
}

/// Whether a way may go through `via` from `from` on to `to`: no state with a
/// stream on the way, but one saving session may go on (MIG-006).
fn passes(from: State, via: State, to: State) -> bool {
    !via.has_stream() || (from, via, to) == (PreCopy, PreCopyP2p, StopCopy)
}

/// Where the first arc of the shortest way leads: `None` if there is none, or
/// one of the states is not to be set or left so (MIG-006, MIG-007). The two
/// differ.
pub(crate) fn next(flags: MigrationFlags, from: State, to: State) -> Option<State> {
    let usable = |state: State| state != Error && state.exists(flags);
    // Saving does not begin anew from its end.
    if !usable(from) || !usable(to) || from == StopCopy && matches!(to, PreCopy | PreCopyP2p) {
        return None;
    }
    // Backwards from the target, in rings.
    let mut ring = vec![(to, to)];
    let mut seen = vec![to];
    while !ring.is_empty() {
        if let Some((_, next)) = ring.iter().find(|(state, _)| *state == from) {
            return Some(*next);
        }
        let mut outer = Vec::new();
        for (state, next) in ring {
            for (before, _) in arcs(flags).filter(|(_, after)| *after == state) {
                let allowed = state == to || passes(before, state, next);
                if allowed && !seen.contains(&before) {
                    seen.push(before);
                    outer.push((before, state));
                }
            }
        }
        ring = outer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!("migration-fsm.csv");

    fn flags(combo: &str) -> MigrationFlags {
        combo
            .split('+')
            .fold(NONE, |flags, name| flags | MigrationFlags::from_name(name).unwrap_or_else(|| panic!("{name}")))
    }

    fn state(name: &str) -> State {
        STATES.into_iter().find(|state| state.name() == name).unwrap_or_else(|| panic!("{name}"))
    }

    /// MIG-006, MIG-007, MIG-008, MIG-009, MIG-010: every row of
    /// migration-fsm.csv, 256 of them.
    #[test]
    fn every_row_of_the_table() {
        let mut rows = 0;
        for line in TABLE.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let [combo, from, to, first, path, _] = fields[..] else { panic!("{line}") };
            let (flags, from, to) = (flags(combo), state(from), state(to));
            rows += 1;
            if from == to && from != Error && from.exists(flags) {
                assert_eq!(first, to.name());
                continue;
            }
            let found = next(flags, from, to);
            assert_eq!(found.map_or("EINVAL", State::name), first, "{line}");
            let mut way = Vec::new();
            let mut at = found.map(|_| from);
            while let Some(state) = at {
                way.push(state.name());
                at = if state == to { None } else { next(flags, state, to) };
            }
            assert_eq!(way.join(">"), path, "{line}");
        }
        assert_eq!(rows, 256);
    }

    /// MIG-002, MIG-004, MIG-005
    #[test]
    fn arcs_and_reachable_pairs_are_counted() {
        let combos = [NONE, P2P, PRE, BOTH].map(|flags| flags | MigrationFlags::STOP_COPY);
        assert_eq!(combos.map(|flags| arcs(flags).count()), [6, 8, 9, 15]);
        let pairs = |flags: MigrationFlags| {
            let all = STATES.into_iter().flat_map(|from| STATES.map(|to| (from, to)));
            all.filter(|(from, to)| {
                if from == to { *from != Error && from.exists(flags) } else { next(flags, *from, *to).is_some() }
            })
            .count()
        };
        assert_eq!(combos.map(pairs), [16, 25, 24, 47]);
    }
}
