// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An accelerator with work under way goes from one run to another.
//!
//! The memory that the device works on goes to the other run, too, as a guest's
//! would; the device's addresses are offsets in it. Some descriptors read memory of
//! which nothing is mapped: they wait for pages, two each, and who answers the
//! requests is the guest. In one run all work is submitted, and the device is
//! stopped and saved (`leave`); in the other it goes on (`arrive`). What was
//! done in the first is wiped out of memory then, so that it would be seen if it
//! were done again.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::accelerator::{Accelerator, Memory, RECORD, read_to_end, readable};
use crate::raw::{self, GET, PRE_COPY, RESUMING, RUNNING, SET, STOP, STOP_COPY, fill};

const PRE_COPY_P2P: u32 = 7;
/// Draining: a word of flags and a count, then pages (an extension).
const DRAIN: u32 = 0xff03;
const ON: u32 = 1;
const UNDER_WAY: u32 = 2;

/// Descriptors that were begun, and all.
const BEGUN: u64 = 8;
const ALL: u64 = 16;
/// Bytes that each moves.
const LEN: u64 = 16;

/// Where records, results and sources lie; the last are not mapped.
const RESULTS: u64 = 0x1000;
const SOURCES: u64 = 0x2000;
const MAPPED: u64 = 0x3000;
const HOLES: u64 = 0x10_0000;
const MEMORY: u64 = HOLES + ALL * 0x2000;

/// What is not a result.
const WIPED: u8 = 0xee;

/// Whether a descriptor reads what is not mapped.
fn waits(n: u64) -> bool {
    n % 2 == 1
}

/// Where a descriptor reads: half of it in each of two pages, if it waits.
fn source(n: u64) -> u64 {
    if waits(n) { HOLES + 0x2000 * n + 0x1000 - LEN / 2 } else { SOURCES + LEN * n }
}

fn value(n: u64) -> u8 {
    0x40 + n as u8
}

/// Which descriptors have a record, all of them of a success.
fn done(memory: &Memory) -> Vec<u64> {
    let status = |n: u64| memory.byte(RECORD * n).load(Ordering::Acquire);
    let done: Vec<u64> = (0..ALL).filter(|n| status(*n) != 0).collect();
    assert!(done.iter().all(|n| status(*n) == 1), "{:?}", (0..ALL).map(status).collect::<Vec<_>>());
    done
}

/// What a descriptor has moved is there.
fn moved(memory: &Memory, n: u64) -> bool {
    memory.holds(RESULTS + LEN * n, LEN, value(n))
}

fn submit(device: &mut Accelerator, n: u64, written: bool) {
    device.submit((source(n), RESULTS + LEN * n), LEN as u32, RECORD * n, written);
}

/// `how`: the guest `answers` while the device drains, `late` or `never`; or
/// `undrained`, the device is stopped with requests that are out.
pub(crate) fn leave(how: &str, place: &Path, address: &str) {
    let memory = Memory::anonymous(MEMORY);
    memory.fill(RESULTS, LEN * ALL, WIPED);
    (0..ALL).for_each(|n| memory.fill(source(n), LEN, value(n)));
    let mut device = Accelerator::open(address);
    device.map(&memory, 0, MAPPED);
    device.enable();
    (0..BEGUN).for_each(|n| submit(&mut device, n, n % 4 < 2));
    let begun = |waits_too: bool| (0..BEGUN).filter(|n| waits_too || !waits(*n)).collect::<Vec<_>>();
    let mut requests = Vec::new();
    while requests.len() < (BEGUN / 2) as usize || done(&memory) != begun(false) {
        requests.extend(device.requests());
    }
    if how != "undrained" {
        drain_on(&device);
    }
    let stream = device.device.stream(PRE_COPY);
    let mut state = Vec::new();
    read_to_end(stream.as_raw_fd(), &mut state);
    let event = device.device.set(PRE_COPY_P2P).unwrap_or_else(|errno| panic!("PRE_COPY_P2P: errno {errno}"));
    assert_eq!(event.is_some(), how != "undrained");
    assert_eq!((device.device.get(), device.load(0) != 0), (PRE_COPY_P2P, true));
    // The guest goes on, through its mapping and by writes of its machine.
    (BEGUN..ALL).for_each(|n| submit(&mut device, n, n % 4 < 2));
    if let Some(event) = event {
        assert!(!readable(&event, if how == "answers" { 0 } else { 50 }), "nobody has answered");
        assert_eq!(device.device.set(STOP_COPY).err(), Some(libc::EBUSY));
        assert_eq!((device.device.get(), flags(&device)), (PRE_COPY_P2P, ON | UNDER_WAY));
        if how == "never" {
            stay(device, &memory, &event, requests);
            return;
        }
        requests.drain(..).for_each(|request| device.answer(&memory, request));
        device.serve(&memory, "the end of the drain", || readable(&event, 0));
        let mut count = [0; 8];
        assert_eq!((raw::read(event.as_raw_fd(), &mut count), u64::from_ne_bytes(count)), (Ok(8), 1));
        assert_eq!((done(&memory), flags(&device)), (begun(true), ON), "what was begun, and nothing else");
        stop(&device, &stream, &mut state);
        assert!(!readable(&event, 0), "it counts once");
    } else {
        stop(&device, &stream, &mut state);
        // Too late: nobody is there any more to take the answers.
        requests.drain(..).for_each(|request| device.answer(&memory, request));
        assert_eq!(done(&memory), begun(false));
    }
    let here = done(&memory);
    assert!(here.iter().all(|n| moved(&memory, *n)));
    for n in &here {
        memory.fill(RECORD * n, RECORD, 0);
        memory.fill(RESULTS + LEN * n, LEN, WIPED);
    }
    let bytes = (0..MEMORY).map(|at| memory.byte(at).load(Ordering::Relaxed)).collect();
    for (name, bytes) in [("state", state), ("memory", bytes), ("here", here.iter().map(|n| *n as u8).collect())] {
        fs::write(place.join(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    println!("left done={} answered={}", here.len(), device.answered);
}

/// The rest of the stream.
fn stop(device: &Accelerator, stream: &OwnedFd, state: &mut Vec<u8>) {
    assert!(device.device.set(STOP_COPY).is_ok_and(|fd| fd.is_none()), "STOP_COPY goes on with the stream");
    read_to_end(stream.as_raw_fd(), state);
    assert!(device.device.set(STOP).is_ok());
}

/// Asks for draining; its list of portals is the region that they are in.
fn drain_on(device: &Accelerator) {
    let (result, _) = device.device.feature(16, SET | DRAIN, [ON, 0]);
    assert_eq!(result, Ok(()), "draining");
    let (short, [_, count]) = device.device.feature(16, GET | DRAIN, [0, 0]);
    assert_eq!((short, count), (Err(libc::ENOSPC), 1));
    let mut pages = [32_u32, GET | DRAIN, 0, 1, 0, 0, 0, 0];
    assert!(device.device.feature_words(&mut pages).is_ok());
    assert_eq!(u64::from(pages[4]) | u64::from(pages[5]) << 32, device.portals);
}

fn flags(device: &Accelerator) -> u32 {
    device.device.feature(16, GET | DRAIN, [0, 0]).1[0]
}

/// The program has waited long enough: back to RUNNING, where everything is
/// done once the guest answers after all.
fn stay(mut device: Accelerator, memory: &Memory, event: &OwnedFd, requests: Vec<(u32, u64)>) {
    assert!(device.device.set(RUNNING).is_ok_and(|fd| fd.is_none()));
    requests.into_iter().for_each(|request| device.answer(memory, request));
    device.serve(memory, "the end of all work", || done(memory).len() as u64 == ALL);
    assert!((0..ALL).all(|n| moved(memory, n)));
    assert!(!readable(event, 0), "a drain that was given up tells nobody");
    println!("stayed done={ALL} answered={}", device.answered);
}

/// The other side.
pub(crate) fn arrive(place: &Path, address: &str) {
    let memory = Memory::anonymous(MEMORY);
    let read = |name: &str| fs::read(place.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let here = read("here");
    (0..).zip(read("memory")).for_each(|(at, byte)| memory.byte(at).store(byte, Ordering::Relaxed));
    let mut device = Accelerator::open(address);
    device.map(&memory, 0, MAPPED);
    let stream = device.device.stream(RESUMING);
    fill(stream.as_raw_fd(), &read("state"));
    assert!(device.device.set(RUNNING).is_ok_and(|fd| fd.is_none()));
    let there: Vec<u64> = (0..ALL).filter(|n| !here.contains(&(*n as u8))).collect();
    device.serve(&memory, "the rest of the work", || done(&memory).len() >= there.len());
    // One more, behind all of them: whatever was there twice has come by then.
    let last = RESULTS - RECORD;
    device.submit((source(0), RESULTS + LEN * ALL), LEN as u32, last, false);
    device.serve(&memory, "one more", || memory.byte(last).load(Ordering::Acquire) == 1);
    assert_eq!(done(&memory), there, "each once, here or there");
    assert!((0..ALL).all(|n| if there.contains(&n) { moved(&memory, n) } else { !moved(&memory, n) }));
    println!("arrived done={} answered={}", there.len(), device.answered);
}
