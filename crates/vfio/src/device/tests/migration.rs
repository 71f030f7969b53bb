// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration of a device as its user sees it (vfio-migration.md).

use std::collections::BTreeSet;

use ::device::migration::{Activity, Failure, Migration, P2pStop, Stage};
use ::device::saved::HEADER;
use caller::{FileId, Reply};
use uapi::Errno;
use uapi::vfio::device as request;
use uapi::vfio::migration::{MIG_GET_PRECOPY_INFO, MigState, PRECOPY_INFO_REINIT, PrecopyInfo};
use zerocopy::IntoBytes;

use super::{ADDRESS, Rig, spec};
use crate::Options;
use crate::testing::Asked;

pub(super) const GET: u32 = 1 << 16;
pub(super) const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;

pub(super) const ERROR: u32 = 0;
pub(super) const STOP: u32 = 1;
pub(super) const RUNNING: u32 = 2;
pub(super) const STOP_COPY: u32 = 3;
pub(super) const RESUMING: u32 = 4;
const RUNNING_P2P: u32 = 5;
const PRE_COPY: u32 = 6;
const PRE_COPY_P2P: u32 = 7;

/// Everything there is, with a little memory.
pub(super) fn full() -> Migration {
    Migration { p2p: true, pre_copy: true, state_size: 3 << 20, ..Migration::default() }
}

pub(super) fn rig(migration: Migration) -> Rig {
    let mut rig = Rig::with(spec(), Options::default());
    rig.lab.release(rig.file);
    rig.lab.board.slots.get_mut(&ADDRESS).unwrap().migration = Some(migration);
    rig.file = rig.reopen();
    rig.set_command(super::MEMORY | super::MASTER);
    rig
}

/// DEVICE_FEATURE with so much data; what is there afterwards.
pub(super) fn feature(rig: &mut Rig, flags: u32, data: &[u8]) -> Result<Vec<u8>, (Errno, Vec<u8>)> {
    let head = [8 + data.len() as u32, flags];
    let arg = rig.lab.client.put_bytes(&[head.as_bytes(), data].concat());
    let result = rig.ioctl(request::FEATURE, arg);
    let after = rig.lab.client.get_bytes(arg + 8, data.len());
    result.map(|_| after.clone()).map_err(|errno| (errno, after))
}

fn state(bytes: &[u8]) -> MigState {
    zerocopy::FromBytes::read_from_bytes(bytes).unwrap()
}

pub(super) fn get(rig: &mut Rig) -> u32 {
    let junk = MigState { device_state: 99, data_fd: 99 };
    let mig = state(&feature(rig, GET | 2, junk.as_bytes()).unwrap());
    assert_eq!(mig.data_fd, -1);
    mig.device_state
}

/// SET; the descriptor.
pub(super) fn set(rig: &mut Rig, target: u32) -> Result<i32, Errno> {
    let asked = MigState { device_state: target, data_fd: 99 };
    match feature(rig, SET | 2, asked.as_bytes()) {
        Ok(after) => {
            assert_eq!(state(&after).device_state, target);
            Ok(state(&after).data_fd)
        }
        Err((errno, after)) => {
            // MIG-015
            assert_eq!(state(&after), MigState { device_state: target, data_fd: -1 });
            Err(errno)
        }
    }
}

pub(super) fn file(rig: &Rig, fd: i32) -> FileId {
    caller::Caller::file(&rig.lab.client, fd).unwrap().unwrap()
}

/// SET to a state with a stream; its file.
pub(super) fn open(rig: &mut Rig, target: u32) -> FileId {
    let fd = set(rig, target).unwrap();
    assert!(fd >= 0);
    file(rig, fd)
}

fn moved(reply: Result<Reply, Errno>) -> Result<u64, Errno> {
    match reply? {
        Reply::Value(bytes) => Ok(bytes),
        other => panic!("{other:?}"),
    }
}

fn read_at(rig: &mut Rig, file: FileId, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let buf = rig.lab.client.room(len);
    let (vfio, mut cx) = rig.lab.parts();
    let done = moved(vfio.transfer_stream(file, (offset, buf, len), false, &mut cx))?;
    Ok(rig.lab.client.get_bytes(buf, done as usize))
}

pub(super) fn read(rig: &mut Rig, file: FileId, len: u64) -> Result<Vec<u8>, Errno> {
    read_at(rig, file, 0, len)
}

pub(super) fn write(rig: &mut Rig, file: FileId, data: &[u8]) -> Result<u64, Errno> {
    let buf = rig.lab.client.put_bytes(data);
    let (vfio, mut cx) = rig.lab.parts();
    moved(vfio.transfer_stream(file, (0, buf, data.len() as u64), true, &mut cx))
}

/// Reads so many bytes, in pieces.
fn take(rig: &mut Rig, file: FileId, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend(read(rig, file, (len - all.len()).min(1 << 16) as u64).unwrap());
    }
    all
}

/// Everything until the end, in pieces.
pub(super) fn drain(rig: &mut Rig, file: FileId, piece: u64) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let part = read(rig, file, piece).unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

fn info(rig: &mut Rig, file: FileId, flags: u32) -> Result<PrecopyInfo, Errno> {
    let arg = rig.lab.client.put(&PrecopyInfo { argsz: 24, flags, initial_bytes: 77, dirty_bytes: 77 });
    rig.lab.ioctl(file, MIG_GET_PRECOPY_INFO, arg)?;
    Ok(rig.lab.client.get(arg))
}

fn pass(rig: &Rig, seconds: u64) {
    rig.lab.platform.now.fetch_add(seconds * 1_000_000_000, std::sync::atomic::Ordering::SeqCst);
}

fn activity(rig: &Rig) -> Activity {
    rig.endpoint().activity()
}

/// MIG-001, MIG-003, MIG-011, MIG-012, MIG-043: what a device offers, in each
/// combination and without migration.
#[test]
fn what_is_offered() {
    let mut none = Rig::new();
    for number in [1, 2, 6, 7, 8, 9] {
        for flags in [GET, SET, GET | PROBE, SET | PROBE, 0] {
            assert_eq!(feature(&mut none, flags | number, &[0; 32]).unwrap_err().0, Errno::ENOTTY, "{number}");
        }
    }
    assert_eq!(feature(&mut none, SET | PROBE | 12, &[]).unwrap_err().0, Errno::EINVAL);
    for (p2p, pre_copy, flags) in [(false, false, 1_u64), (true, false, 3), (false, true, 5), (true, true, 7)] {
        let mut rig = rig(Migration { p2p, pre_copy, ..Migration::default() });
        assert_eq!(feature(&mut rig, GET | 1, &[9; 8]).unwrap(), flags.to_le_bytes());
        assert_eq!(feature(&mut rig, GET | 1, &[9; 7]).unwrap_err().0, Errno::EINVAL);
        assert_eq!(feature(&mut rig, SET | 1, &[9; 8]).unwrap_err().0, Errno::EINVAL);
        assert_eq!(feature(&mut rig, GET | PROBE | 1, &[9; 0]).unwrap(), []);
        assert!(feature(&mut rig, GET | SET | PROBE | 2, &[]).is_ok());
        assert_eq!(feature(&mut rig, GET | 2, &[0; 7]).unwrap_err().0, Errno::EINVAL);
        let v2 = if pre_copy { Ok(vec![]) } else { Err((Errno::EINVAL, vec![])) };
        assert_eq!(feature(&mut rig, SET | 12, &[]), v2);
        assert_eq!(feature(&mut rig, SET | PROBE | 12, &[]), v2);
        assert_eq!(feature(&mut rig, GET | 12, &[]).unwrap_err().0, Errno::EINVAL);
        assert_eq!(get(&mut rig), RUNNING);
    }
}

/// MIG-006, MIG-007, MIG-008, MIG-013, MIG-014, MIG-016: every row of
/// migration-fsm.csv by calls, with the states on the way made visible by a
/// failure of the last arc.
#[test]
fn every_row_by_calls() {
    const NAMES: [&str; 8] =
        ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
    let number = |name: &str| NAMES.iter().position(|n| *n == name).unwrap() as u32;
    let mut rows = 0;
    for line in include_str!("../migration/migration-fsm.csv").lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [combo, from, to, _, path, new_fd] = fields[..] else { panic!("{line}") };
        let (p2p, pre_copy) = (combo.contains("P2P"), combo.contains("PRE_COPY"));
        let (from, to) = (number(from), number(to));
        let exists = match from {
            RUNNING_P2P => p2p,
            PRE_COPY => pre_copy,
            PRE_COPY_P2P => p2p && pre_copy,
            _ => true,
        };
        rows += 1;
        if !exists {
            assert_eq!(path, "", "{line}");
            continue;
        }
        let mut rig = rig(Migration { p2p, pre_copy, ..Migration::default() });
        bring(&mut rig, from);
        let result = set(&mut rig, to);
        if path.is_empty() {
            assert_eq!((result, get(&mut rig)), (Err(Errno::EINVAL), from), "{line}");
            continue;
        }
        assert_eq!((result.map(|fd| fd >= 0), get(&mut rig)), (Ok(new_fd == "yes"), to), "{line}");

        // Again, with the last arc failing: the one before is where it stays.
        let way: Vec<u32> = path.split('>').map(number).collect();
        if let [.., before, last] = way[..] {
            rig.ioctl(request::RESET, 0).unwrap();
            bring(&mut rig, from);
            plan(&mut rig, Failure::Arc { from: before, to: last, at: Stage::Before, times: 1 });
            assert_eq!((set(&mut rig, to), get(&mut rig)), (Err(Errno::EIO), before), "{line}");
        }
    }
    assert_eq!(rows, 256);
}

fn plan(rig: &mut Rig, failure: Failure) {
    rig.lab.board.slots.get_mut(&ADDRESS).unwrap().migration.as_mut().unwrap().failures = vec![failure];
}

/// Brings a device that is RUNNING to a state; RESUMING has a whole stream.
fn bring(rig: &mut Rig, to: u32) {
    match to {
        ERROR => {
            plan(rig, Failure::Arc { from: STOP, to: STOP_COPY, at: Stage::Middle, times: 1 });
            assert_eq!(set(rig, STOP_COPY), Err(Errno::EIO));
        }
        RESUMING => {
            let saving = open(rig, STOP_COPY);
            let state = drain(rig, saving, 1 << 16);
            let resuming = open(rig, RESUMING);
            assert_eq!(write(rig, resuming, &state), Ok(state.len() as u64));
        }
        _ => assert!(set(rig, to).is_ok()),
    }
    assert_eq!(get(rig), to);
}

/// MIG-023, MIG-044: a stream has a direction and no positions, and `poll` shows
/// what is saved ready at any time, as of drivers without a poll function.
#[test]
fn streams_have_a_direction() {
    let mut rig = rig(full());
    let saving = open(&mut rig, PRE_COPY);
    assert!(rig.lab.client.queues.borrow()[&saving].is_readable());
    assert_eq!(write(&mut rig, saving, &[1]), Err(Errno::EBADF));
    assert_eq!(read_at(&mut rig, saving, 8, 1), Err(Errno::ESPIPE));
    assert_eq!(read(&mut rig, saving, 0), Ok(vec![]));
    let resuming = open(&mut rig, RESUMING);
    assert_eq!(read(&mut rig, resuming, 1), Err(Errno::EBADF));
    assert_eq!(write(&mut rig, resuming, &[]), Ok(0));
    // MIG-036: other requests, and any on a resuming stream.
    assert_eq!(rig.lab.ioctl(saving, request::RESET, 0), Err(Errno::ENOTTY));
    assert_eq!(rig.lab.ioctl(resuming, MIG_GET_PRECOPY_INFO, 0), Err(Errno::ENOTTY));
    let (vfio, _) = rig.lab.parts();
    assert!(vfio.is_stream(saving));
    rig.lab.release(saving);
    assert!(!rig.lab.vfio.is_stream(saving));
}

/// MIG-024, MIG-027, MIG-028, MIG-030, MIG-034, MIG-037, MIG-038, MIG-039,
/// MIG-040: one descriptor from PRE_COPY to the end of STOP_COPY.
#[test]
fn one_stream_for_a_saving_session() {
    let mut rig = rig(Migration { state_dirty_rate: 1 << 20, ..full() });
    let file = open(&mut rig, PRE_COPY);
    let begin = info(&mut rig, file, 0).unwrap();
    assert!(begin.initial_bytes > 3 << 20 && begin.dirty_bytes == 0);
    let mut total = 0;
    let mut last = begin.initial_bytes;
    while last > 0 {
        total += read(&mut rig, file, 60_000).unwrap().len() as u64;
        let now = info(&mut rig, file, 0).unwrap();
        assert!(now.initial_bytes < last, "only falls");
        last = now.initial_bytes;
    }
    assert_eq!(total, begin.initial_bytes, "what was announced");
    assert_eq!(read(&mut rig, file, 10), Err(Errno::ENOMSG));
    assert_eq!(info(&mut rig, file, 0).unwrap().dirty_bytes, 0);
    pass(&rig, 1);
    let dirty = info(&mut rig, file, 0).unwrap();
    assert!(dirty.initial_bytes == 0 && dirty.dirty_bytes >= 1 << 20, "{dirty:?}");
    take(&mut rig, file, 100);
    assert_eq!(set(&mut rig, PRE_COPY_P2P), Ok(-1));
    let quiet = info(&mut rig, file, 0).unwrap();
    pass(&rig, 1);
    assert_eq!(info(&mut rig, file, 0), Ok(quiet), "nothing changes while it is quiet");
    assert_eq!(set(&mut rig, STOP_COPY), Ok(-1), "the same stream");
    assert_eq!(info(&mut rig, file, 0), Err(Errno::EINVAL));
    let rest = drain(&mut rig, file, 4096);
    assert!(rest.len() > 1 << 19, "what was not read in PRE_COPY comes now");
    assert_eq!(read(&mut rig, file, 10), Ok(vec![]), "the end, for ever");
    assert_eq!(read(&mut rig, file, 10), Ok(vec![]));
}

/// MIG-035, MIG-036, MIG-041, MIG-042, MIG-043: the pre-copy information and
/// its second version.
#[test]
fn precopy_information() {
    let mut rig = rig(Migration { reinit_after: Some(1 << 20), ..full() });
    let file = open(&mut rig, PRE_COPY);
    assert_eq!(rig.lab.ioctl(file, MIG_GET_PRECOPY_INFO, 8), Err(Errno::EFAULT));
    let arg = rig.lab.client.put(&PrecopyInfo { argsz: 23, ..PrecopyInfo::default() });
    assert_eq!(rig.lab.ioctl(file, MIG_GET_PRECOPY_INFO, arg), Err(Errno::EINVAL));
    assert_eq!(info(&mut rig, file, 0xdead).unwrap().flags, 0xdead, "junk in, junk out");
    assert!(feature(&mut rig, SET | 12, &[]).is_ok());
    assert_eq!(info(&mut rig, file, 0xdead).unwrap().flags, 0);
    let before = info(&mut rig, file, 0).unwrap().initial_bytes;
    take(&mut rig, file, (1 << 20) + 4096);
    // The frame under way comes to its end first.
    take(&mut rig, file, 1 << 20);
    let again = info(&mut rig, file, 0).unwrap();
    assert_eq!((again.flags, again.dirty_bytes), (PRECOPY_INFO_REINIT, 0));
    assert!(again.initial_bytes > before - (1 << 20) - 8192, "it starts anew");
    assert_eq!(info(&mut rig, file, 0).unwrap().flags, 0, "told once");
    // A state that came from a stream that started anew is whole.
    set(&mut rig, STOP_COPY).unwrap();
    let rest = drain(&mut rig, file, 1 << 16);
    assert!(rest.len() > 1 << 20);
    // Sticky until the last close.
    rig.lab.release(rig.file);
    rig.file = rig.reopen();
    let file = open(&mut rig, PRE_COPY);
    assert_eq!(info(&mut rig, file, 5).unwrap().flags, 5);
}

/// MIG-025, MIG-026, MIG-072, MIG-074, MIG-075: what ends a session.
#[test]
fn a_session_ends() {
    let mut rig = rig(full());
    type End = fn(&mut Rig);
    let ends: [(u32, End); 6] = [
        (STOP_COPY, |rig| assert_eq!(set(rig, STOP), Ok(-1))),
        (PRE_COPY, |rig| assert_eq!(set(rig, RUNNING), Ok(-1))),
        (PRE_COPY_P2P, |rig| assert_eq!(set(rig, RUNNING_P2P), Ok(-1))),
        (PRE_COPY, |rig| assert_eq!(rig.ioctl(request::RESET, 0), Ok(0))),
        (STOP_COPY, |rig| {
            // FLR in configuration space.
            let at = rig.cap(pci::cap::EXPRESS) + 8;
            rig.cfg_write(at, 2, 0x8000);
        }),
        (STOP_COPY, |rig| {
            rig.lab.release(rig.file);
            rig.file = rig.reopen();
        }),
    ];
    for (n, (state, end)) in ends.into_iter().enumerate() {
        let file = open(&mut rig, state);
        read(&mut rig, file, 10).unwrap();
        end(&mut rig);
        assert_eq!(read(&mut rig, file, 10), Err(Errno::ENODEV), "{n}");
        // A new session does not give the old file life.
        let new = open(&mut rig, STOP_COPY);
        assert_eq!(read(&mut rig, file, 10), Err(Errno::ENODEV), "{n}");
        assert_eq!(read(&mut rig, new, 10).map(|b| b.len()), Ok(10), "{n}");
        rig.ioctl(request::RESET, 0).unwrap();
        assert_eq!((get(&mut rig), activity(&rig)), (RUNNING, Activity::Running), "{n}");
    }
    let file = open(&mut rig, STOP_COPY);
    set(&mut rig, STOP).unwrap();
    assert_eq!(info(&mut rig, file, 0), Err(Errno::EINVAL), "the state comes first");
    set(&mut rig, PRE_COPY).unwrap();
    assert_eq!(info(&mut rig, file, 0), Err(Errno::ENODEV));
    let resuming = open(&mut rig, RESUMING);
    rig.ioctl(request::RESET, 0).unwrap();
    assert_eq!(write(&mut rig, resuming, &[1]), Err(Errno::ENODEV));
}

/// MIG-031, MIG-034: a state arrives whole, in any pieces.
#[test]
fn a_state_arrives() {
    let mut source = rig(Migration { state_dirty_rate: 1 << 20, ..full() });
    source.pwrite(3, 8, &7_u32.to_le_bytes()).unwrap();
    source.cfg_write(0x3c, 1, 0x55);
    let file = open(&mut source, PRE_COPY);
    let mut state = take(&mut source, file, 1 << 20);
    pass(&source, 2);
    state.extend(take(&mut source, file, 2_000_000));
    pass(&source, 1);
    set(&mut source, STOP_COPY).unwrap();
    state.extend(drain(&mut source, file, 55_555));
    for piece in [1 << 16, 4096, 4099] {
        let mut target = rig(full());
        let file = open(&mut target, RESUMING);
        for part in state.chunks(piece) {
            assert_eq!(write(&mut target, file, part), Ok(part.len() as u64));
        }
        assert_eq!(set(&mut target, RUNNING), Ok(-1));
        assert_eq!(target.pread(3, 8, 4).unwrap(), 7_u32.to_le_bytes());
        // MIG-077: configuration space is the user's to move.
        assert_eq!(target.cfg(pci::cap::COMMAND, 2) & 4, 4);
        assert_ne!(target.cfg(0x3c, 1), 0x55);
        // The same memory: what it saves at once is the same.
        let again = open(&mut target, STOP_COPY);
        let copy = drain(&mut target, again, 1 << 16);
        set(&mut source, STOP).unwrap();
        let fresh = open(&mut source, STOP_COPY);
        assert!(copy == drain(&mut source, fresh, 1 << 16), "in pieces of {piece}");
        assert_eq!(write(&mut target, file, &[0]), Err(Errno::ENODEV));
    }
}

/// MIG-017, MIG-031, MIG-032, MIG-033: what is no state of this device is
/// refused, the device stays in RESUMING, and a reset makes it usable.
#[test]
fn no_state_of_this_device() {
    let small = || Migration { state_size: 100, ..full() };
    let mut source = rig(small());
    let file = open(&mut source, STOP_COPY);
    let state = drain(&mut source, file, 1 << 16);
    let mut other = rig(Migration { state_size: 101, ..full() });
    let file = open(&mut other, STOP_COPY);
    let foreign = drain(&mut other, file, 1 << 16);

    let mut target = rig(small());
    let mut attempt = |bytes: &[u8]| {
        let file = open(&mut target, RESUMING);
        let written = write(&mut target, file, bytes);
        if written.is_err() {
            assert_eq!(write(&mut target, file, &state), Err(Errno::EINVAL), "nothing is taken any more");
        }
        let moved = set(&mut target, RUNNING);
        if moved.is_err() {
            assert_eq!((moved, get(&mut target)), (Err(Errno::EINVAL), RESUMING));
        }
        target.ioctl(request::RESET, 0).unwrap();
        assert_eq!(get(&mut target), RUNNING);
        moved
    };
    assert_eq!(attempt(&state), Ok(-1));
    assert_eq!(attempt(&[]), Err(Errno::EINVAL));
    assert_eq!(attempt(&foreign), Err(Errno::EINVAL));
    for end in (1..state.len()).step_by(7) {
        assert_eq!(attempt(&state[..end]), Err(Errno::EINVAL), "cut at {end}");
    }
    for at in 0..state.len() {
        let mut changed = state.clone();
        changed[at] ^= 0x10;
        assert_eq!(attempt(&changed), Err(Errno::EINVAL), "flipped at {at}");
    }
    let twice = [&state[..], &state[..HEADER]].concat();
    assert_eq!(attempt(&twice), Err(Errno::EINVAL), "more than the state");
    assert_eq!(attempt(&state), Ok(-1));
}

/// MIG-019: no descriptor, or nowhere to tell it: the state has changed all the
/// same, and the stream is lost.
#[test]
fn a_descriptor_that_cannot_be_given() {
    let mut rig = rig(full());
    rig.lab.client.max_fds.set(0);
    assert_eq!(feature(&mut rig, SET | 2, &[3, 0, 0, 0, 9, 0, 0, 0]).unwrap_err().0, Errno::EMFILE);
    assert_eq!(get(&mut rig), STOP_COPY);
    rig.lab.client.max_fds.set(usize::MAX);
    assert_eq!(set(&mut rig, STOP_COPY), Ok(-1), "leave and enter again");
    assert_eq!(set(&mut rig, STOP), Ok(-1));
    assert!(set(&mut rig, STOP_COPY).unwrap() >= 0);
    assert_eq!(set(&mut rig, STOP), Ok(-1));
    rig.lab.client.max_fds.set(0);
    assert_eq!(feature(&mut rig, SET | 2, &[4, 0, 0, 0, 9, 0, 0, 0]).unwrap_err().0, Errno::EMFILE);
    rig.lab.client.max_fds.set(usize::MAX);
    assert_eq!((get(&mut rig), set(&mut rig, STOP)), (RESUMING, Ok(-1)), "nothing came, nothing is checked");
}

/// MIG-007, MIG-020: ERROR is left by a reset or a close only.
#[test]
fn error_is_left_by_reset() {
    let mut rig = rig(full());
    bring(&mut rig, ERROR);
    assert_eq!(activity(&rig), Activity::Stopped);
    let targets: BTreeSet<u32> = (0..10).chain([u32::MAX]).collect();
    for target in targets {
        assert_eq!((set(&mut rig, target), get(&mut rig)), (Err(Errno::EINVAL), ERROR), "{target}");
    }
    rig.ioctl(request::RESET, 0).unwrap();
    assert_eq!((get(&mut rig), activity(&rig)), (RUNNING, Activity::Running));
    bring(&mut rig, ERROR);
    rig.lab.release(rig.file);
    rig.file = rig.reopen();
    assert_eq!(get(&mut rig), RUNNING);
}

/// MIG-016, MIG-092: arcs that fail before, in the middle and after; the state
/// that is left can be gone on from.
#[test]
fn arcs_fail_on_demand() {
    let mut rig = rig(full());
    plan(&mut rig, Failure::Arc { from: RUNNING_P2P, to: STOP, at: Stage::After, times: 2 });
    for _ in 0..2 {
        assert_eq!((set(&mut rig, STOP_COPY), get(&mut rig)), (Err(Errno::EIO), RUNNING_P2P));
        assert_eq!(activity(&rig), Activity::Quiesced, "undone");
        assert_eq!(set(&mut rig, RUNNING), Ok(-1));
    }
    assert!(set(&mut rig, STOP_COPY).unwrap() >= 0, "no more than twice");
    plan(&mut rig, Failure::Arc { from: STOP_COPY, to: STOP, at: Stage::Before, times: u32::MAX });
    for _ in 0..5 {
        assert_eq!((set(&mut rig, RUNNING), get(&mut rig)), (Err(Errno::EIO), STOP_COPY));
    }
}

/// MIG-029: streams that break, end early, or are refused; and a slow one, whose
/// reader waits for what is not there yet.
#[test]
fn streams_fail_on_demand() {
    let mut source = rig(full());
    plan(&mut source, Failure::StreamBreaks(100));
    let file = open(&mut source, STOP_COPY);
    assert_eq!(read(&mut source, file, 4096).map(|b| b.len()), Ok(100));
    assert_eq!(read(&mut source, file, 4096), Err(Errno::EIO));
    set(&mut source, STOP).unwrap();
    plan(&mut source, Failure::StreamEnds(5000));
    let file = open(&mut source, STOP_COPY);
    let cut = drain(&mut source, file, 4096);
    assert_eq!(cut.len(), 5000);
    set(&mut source, STOP).unwrap();
    plan(&mut source, Failure::StreamSlow(1_000_000_000));
    let file = open(&mut source, STOP_COPY);
    let buf = source.lab.client.room(10);
    let (vfio, mut cx) = source.lab.parts();
    let Ok(Reply::Parked(ticket)) = vfio.transfer_stream(file, (0, buf, 10), false, &mut cx) else { panic!("waits") };
    assert_eq!(vfio.deadline(), Some(1_000_000_000));
    pass(&source, 1);
    let (vfio, cx) = source.lab.parts();
    vfio.elapse(cx.board);
    assert_eq!(vfio.take_released(), [(ticket, caller::Wake::Retry)]);
    assert_eq!(read(&mut source, file, 10).map(|b| b.len()), Ok(10));

    let mut target = rig(full());
    let resuming = open(&mut target, RESUMING);
    assert_eq!(write(&mut target, resuming, &cut), Ok(5000));
    assert_eq!(set(&mut target, RUNNING), Err(Errno::EINVAL), "cut off");
    target.ioctl(request::RESET, 0).unwrap();
    plan(&mut target, Failure::Refuses);
    let resuming = open(&mut target, RESUMING);
    assert_eq!(write(&mut target, resuming, &cut), Err(Errno::EINVAL));
    target.ioctl(request::RESET, 0).unwrap();
    plan(&mut target, Failure::StreamBreaks(64));
    let resuming = open(&mut target, RESUMING);
    assert_eq!(write(&mut target, resuming, &cut), Ok(64));
    assert_eq!(write(&mut target, resuming, &cut[64..]), Err(Errno::EIO));
}

/// MIG-029: what is planned while a stream is open holds for it at once, and no
/// longer than it is planned.
#[test]
fn an_open_stream_breaks() {
    let mut rig = rig(full());
    let file = open(&mut rig, STOP_COPY);
    assert_eq!(read(&mut rig, file, 4096).map(|b| b.len()), Ok(4096));
    plan(&mut rig, Failure::StreamBreaks(5000));
    assert_eq!(read(&mut rig, file, 4096).map(|b| b.len()), Ok(904));
    assert_eq!(read(&mut rig, file, 4096), Err(Errno::EIO));
    plan(&mut rig, Failure::StreamEnds(100));
    assert_eq!(read(&mut rig, file, 4096), Ok(vec![]));
    rig.lab.board.slots.get_mut(&ADDRESS).unwrap().migration.as_mut().unwrap().failures.clear();
    assert_eq!(read(&mut rig, file, 4096).map(|b| b.len()), Ok(4096));
    // What has failed so often as it was to is planned no more.
    plan(&mut rig, Failure::Arc { from: STOP_COPY, to: STOP, at: Stage::Before, times: 1 });
    assert_eq!(set(&mut rig, STOP), Err(Errno::EIO));
    assert!(rig.lab.board.slots[&ADDRESS].migration.as_ref().unwrap().failures.is_empty());
}

/// MIG-046, MIG-047, MIG-049, MIG-100: in RUNNING_P2P the device answers and starts
/// nothing; in STOP loads give zeros, stores are dropped, and it gets no turn.
#[test]
fn what_a_state_allows() {
    let mut rig = rig(full());
    rig.pwrite(3, 8, &5_u32.to_le_bytes()).unwrap();
    let turn = |rig: &mut Rig| {
        rig.asked();
        rig.endpoint().turn(0);
        rig.asked()
    };
    assert_eq!(turn(&mut rig), [Asked::Turn(Activity::Running)]);
    assert_eq!(set(&mut rig, RUNNING_P2P), Ok(-1), "no descriptor, and it is drained");
    assert_eq!(turn(&mut rig), [Asked::Turn(Activity::Quiesced)]);
    rig.pwrite(3, 12, &6_u32.to_le_bytes()).unwrap();
    assert_eq!(rig.pread(3, 8, 4).unwrap(), 5_u32.to_le_bytes());
    set(&mut rig, STOP).unwrap();
    assert_eq!(turn(&mut rig), []);
    assert_eq!(rig.pread(3, 8, 4).unwrap(), [0; 4]);
    rig.pwrite(3, 8, &9_u32.to_le_bytes()).unwrap();
    assert_eq!(rig.cfg(0, 2), u32::from(spec().vendor), "configuration space is the function's");
    set(&mut rig, RUNNING).unwrap();
    assert_eq!(rig.pread(3, 8, 8).unwrap(), [5, 0, 0, 0, 6, 0, 0, 0], "dropped in STOP, kept in RUNNING_P2P");
    assert_eq!(turn(&mut rig), [Asked::Turn(Activity::Running)]);
}

/// MIG-046: a device that stops P2P by its bus mastering, whatever the user's
/// bit says.
#[test]
fn a_weaker_device_clears_bus_mastering() {
    let mut rig = rig(Migration { p2p_stop: P2pStop::BusMaster, ..full() });
    assert!(rig.endpoint().requester.is_bus_master());
    for state in [RUNNING_P2P, PRE_COPY_P2P] {
        set(&mut rig, state).unwrap();
        assert!(!rig.endpoint().requester.is_bus_master());
        rig.set_command(super::MEMORY | super::MASTER);
        assert!(!rig.endpoint().requester.is_bus_master());
        assert_eq!(rig.cfg(pci::cap::COMMAND, 2) & super::MASTER, super::MASTER);
        assert_eq!(activity(&rig), Activity::Running);
        set(&mut rig, RUNNING).unwrap();
        assert!(rig.endpoint().requester.is_bus_master());
    }
    set(&mut rig, RUNNING_P2P).unwrap();
    rig.ioctl(request::RESET, 0).unwrap();
    assert!(rig.endpoint().requester.is_bus_master());
}

/// MIG-076: in every state the host can ask for the device, and waits.
#[test]
fn the_host_asks_for_the_device() {
    let mut rig = rig(full());
    let (fd, event) = rig.event();
    rig.bind_fds(4, 0, &[fd]).unwrap();
    for state in [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] {
        rig.ioctl(request::RESET, 0).unwrap();
        set(&mut rig, state).unwrap();
        assert!(rig.lab.vfio.request_release(ADDRESS));
        assert_eq!((event.take(), get(&mut rig), rig.lab.vfio.is_open(ADDRESS)), (1, state, true));
    }
}

/// MIG-045: the size of what STOP_COPY would give, in any state.
#[test]
fn data_size() {
    let mut rig = rig(full());
    let size = |rig: &mut Rig| u64::from_le_bytes(feature(rig, GET | 9, &[0; 8]).unwrap().try_into().unwrap());
    let all = size(&mut rig);
    assert!((3 << 20..4 << 20).contains(&all));
    assert_eq!(feature(&mut rig, GET | 9, &[0; 7]).unwrap_err().0, Errno::EINVAL);
    assert_eq!(feature(&mut rig, SET | 9, &[0; 8]).unwrap_err().0, Errno::EINVAL);
    let file = open(&mut rig, PRE_COPY);
    take(&mut rig, file, 2 << 20);
    let left = size(&mut rig);
    assert!(left < all - (1 << 20));
    set(&mut rig, STOP_COPY).unwrap();
    assert!((drain(&mut rig, file, 1 << 16).len() as u64).abs_diff(left) < 4096);
    for state in [STOP, RESUMING] {
        set(&mut rig, state).unwrap();
        assert!(size(&mut rig) > 3 << 20);
    }
}

/// MIG-021, MIG-022, MIG-050: a device in low power is woken for a SET, and
/// goes on sleeping.
#[test]
fn low_power() {
    let mut rig = rig(full());
    feature(&mut rig, SET | 3, &[]).unwrap();
    assert_eq!(set(&mut rig, RUNNING_P2P), Ok(-1));
    assert_eq!(get(&mut rig), RUNNING_P2P);
    feature(&mut rig, SET | 5, &[]).unwrap();
    assert_eq!((get(&mut rig), activity(&rig)), (RUNNING_P2P, Activity::Quiesced), "no reset that a driver sees");
    assert_eq!(set(&mut rig, RUNNING), Ok(-1));
}
