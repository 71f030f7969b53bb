// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random transitions, streams, failures, resets and closes, beside a model
//! that takes its ways from migration-fsm.csv: what GET reports is the state in
//! which Linux would have the device.

use ::device::migration::{Activity, Failure, Migration, Stage};
use caller::FileId;
use proptest::prelude::*;
use uapi::Errno;
use uapi::vfio::device as request;

use super::migration::{ERROR, RESUMING, RUNNING, STOP, STOP_COPY, drain, file, get, open, read, rig, set, write};
use super::{ADDRESS, Rig};

#[derive(Clone, Debug)]
enum Call {
    Set(u32),
    Reset,
    Reopen,
    Plan(u32, u32, u8, u32),
    Read(u16),
    /// Bytes of a whole state, or all that are left of one.
    Write(u16),
    WriteRest,
    Garbage,
    Mend,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        12 => (0..9_u32).prop_map(Call::Set),
        1 => Just(Call::Set(u32::MAX)),
        2 => Just(Call::Reset),
        1 => Just(Call::Reopen),
        3 => (1..8_u32, 1..8_u32, 0..3_u8, 1..3_u32).prop_map(|(from, to, at, times)| Call::Plan(from, to, at, times)),
        4 => any::<u16>().prop_map(Call::Read),
        3 => any::<u16>().prop_map(Call::Write),
        3 => Just(Call::WriteRest),
        1 => Just(Call::Garbage),
        1 => Just(Call::Mend),
    ]
}

/// What has been written of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Bytes(usize),
    Wrong,
}

struct Model {
    combo: &'static str,
    state: u32,
    failures: Vec<(u32, u32, Stage, u32)>,
    written: Written,
    whole: usize,
}

const NAMES: [&str; 8] =
    ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];

impl Model {
    /// The way, itself included; `None`: EINVAL.
    fn way(&self, to: u32) -> Option<(Vec<u32>, bool)> {
        let name = |state: u32| NAMES.get(state as usize).copied();
        let start = format!("{},{},{},", self.combo, name(self.state)?, name(to)?);
        let row = include_str!("../migration/migration-fsm.csv").lines().find(|line| line.starts_with(&start)).unwrap();
        let fields: Vec<&str> = row.split(',').collect();
        let number = |name: &str| NAMES.iter().position(|n| *n == name).unwrap() as u32;
        let path = fields[4];
        (!path.is_empty()).then(|| (path.split('>').map(number).collect(), fields[5] == "yes"))
    }

    /// Whether a descriptor comes, or why not.
    fn set(&mut self, to: u32) -> Result<bool, Errno> {
        if self.state == to && to != ERROR {
            return Ok(false);
        }
        let (way, opens) = self.way(to).ok_or(Errno::EINVAL)?;
        for arc in way.windows(2) {
            let (from, next) = (arc[0], arc[1]);
            let failure = self.failures.iter_mut().find(|(f, t, ..)| (*f, *t) == (from, next));
            if let Some((_, _, at, times)) = failure {
                let at = *at;
                *times -= 1;
                self.failures.retain(|failure| failure.3 > 0);
                if at == Stage::Middle {
                    self.state = ERROR;
                }
                return Err(Errno::EIO);
            }
            if (from, next) == (RESUMING, STOP) && self.written != Written::Bytes(self.whole) {
                return Err(Errno::EINVAL);
            }
            if next == RESUMING {
                self.written = Written::Bytes(0);
            }
            self.state = next;
        }
        Ok(opens)
    }
}

fn check(rig: &mut Rig, model: &Model, call: &Call) {
    assert_eq!(get(rig), model.state, "after {call:?}");
    let activity = rig.endpoint().activity();
    match model.state {
        RUNNING | 6 => assert_eq!(activity, Activity::Running),
        ERROR | STOP | STOP_COPY | RESUMING => assert_eq!(activity, Activity::Stopped),
        _ => assert_ne!(activity, Activity::Stopped),
    }
}

fn run(p2p: bool, pre_copy: bool, calls: Vec<Call>) {
    let spec = Migration { p2p, pre_copy, state_size: 70_000, ..Migration::default() };
    let combo = match (p2p, pre_copy) {
        (false, false) => "STOP_COPY",
        (true, false) => "STOP_COPY+P2P",
        (false, true) => "STOP_COPY+PRE_COPY",
        (true, true) => "STOP_COPY+P2P+PRE_COPY",
    };
    let mut rig = rig(spec);
    let saving = open(&mut rig, STOP_COPY);
    let whole = drain(&mut rig, saving, 1 << 16);
    set(&mut rig, RUNNING).unwrap();
    let mut model = Model { combo, state: RUNNING, failures: vec![], written: Written::Bytes(0), whole: whole.len() };
    let mut stream: Option<FileId> = None;
    for call in calls {
        match call {
            Call::Set(to) => {
                let expected = model.set(to);
                let found = set(&mut rig, to);
                assert_eq!(found.map(|fd| fd >= 0), expected, "{call:?}");
                if let Ok(fd) = found
                    && fd >= 0
                {
                    stream = Some(file(&rig, fd));
                }
            }
            Call::Reset => {
                rig.ioctl(request::RESET, 0).unwrap();
                model.state = RUNNING;
            }
            Call::Reopen => {
                rig.lab.release(rig.file);
                rig.file = rig.reopen();
                rig.set_command(super::MEMORY | super::MASTER);
                model.state = RUNNING;
            }
            Call::Plan(from, to, at, times) => {
                let at = [Stage::Before, Stage::Middle, Stage::After][usize::from(at)];
                let migration = rig.lab.board.slots.get_mut(&ADDRESS).unwrap().migration.as_mut().unwrap();
                migration.failures.push(Failure::Arc { from, to, at, times });
                model.failures.push((from, to, at, times));
            }
            Call::Mend => {
                rig.lab.board.slots.get_mut(&ADDRESS).unwrap().migration.as_mut().unwrap().failures.clear();
                model.failures.clear();
            }
            Call::Read(len) => {
                if let Some(file) = stream {
                    let _ = read(&mut rig, file, len.into());
                }
            }
            Call::Write(_) | Call::WriteRest | Call::Garbage => {
                let Some(file) = stream.filter(|_| model.state == RESUMING) else { continue };
                let Written::Bytes(done) = model.written else { continue };
                let bytes = match call {
                    Call::Write(len) => whole[done..].iter().take(len.into()).copied().collect(),
                    Call::WriteRest => whole[done..].to_vec(),
                    _ => vec![0x5a; 100],
                };
                let right = whole[done..].starts_with(&bytes);
                let result = write(&mut rig, file, &bytes);
                if right {
                    assert_eq!(result, Ok(bytes.len() as u64));
                    model.written = Written::Bytes(done + bytes.len());
                } else {
                    model.written = Written::Wrong;
                }
            }
        }
        check(&mut rig, &model, &call);
    }
    // MIG-020, MIG-074
    rig.ioctl(request::RESET, 0).unwrap();
    assert_eq!(get(&mut rig), RUNNING);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 128 }, ..ProptestConfig::default() })]

    /// MIG-006, MIG-013, MIG-016, MIG-017, MIG-020, MIG-072, MIG-074, MIG-075
    #[test]
    fn what_get_reports_is_what_linux_would(
        p2p in any::<bool>(), pre_copy in any::<bool>(), calls in prop::collection::vec(call(), 1..80)
    ) {
        run(p2p, pre_copy, calls);
    }
}
