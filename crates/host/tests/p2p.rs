// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two accelerators that submit work to one another, moved together.
//!
//! The first one's descriptors copy descriptors to the second one's portal,
//! whose copy descriptors back to the first one's, which write memory. So each
//! chain of three ends in three completion records, if no store to a portal is
//! lost on the way.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod cards;

use cards::{MEMORY, RUNNING, RUNNING_P2P, STOP, STOP_COPY, World, mov, portal};
use models::dsa::spec::DESCRIPTOR_BYTES;
use uapi::Errno;
use zerocopy::IntoBytes as _;

const CHAINS: u64 = 24;
const SIZE: u32 = DESCRIPTOR_BYTES as u32;

/// Descriptors of the second and third step, and records of each step.
const SECOND: u64 = MEMORY + 0x10_0000;
const THIRD: u64 = MEMORY + 0x20_0000;

fn record(step: u64, n: u64) -> u64 {
    MEMORY + 0x30_0000 + step * 0x1_0000 + 32 * n
}

fn lab(more: &str) -> String {
    ["01:00.0", "02:00.0"]
        .map(|addr| format!("[[device]]\nmodel = \"dsa\"\naddr = \"{addr}\"\nmigration = \"p2p\"\n{more}\n"))
        .concat()
}

fn world(more: &str) -> World {
    let w = World::in_container(&lab(more), &["0000:01:00.0", "0000:02:00.0"]);
    for n in 0..CHAINS {
        let place = |card| portal(card) + 64 * (n % 64);
        let second = mov(THIRD + 64 * n, place(0), SIZE, record(1, n), 0);
        let third = mov(MEMORY, MEMORY + 0x1000 + 8 * n, 8, record(2, n), 0);
        w.client.memory.store(SECOND + 64 * n, second.as_bytes());
        w.client.memory.store(THIRD + 64 * n, third.as_bytes());
    }
    w
}

/// Submits the first step of each chain.
fn begin(w: &mut World) {
    for n in 0..CHAINS {
        w.submit(0, &mov(SECOND + 64 * n, portal(1) + 64 * (n % 64), SIZE, record(0, n), 0));
    }
}

/// Records that tell of a success, by step.
fn done(w: &World) -> [u64; 3] {
    [0, 1, 2].map(|step| (0..CHAINS).filter(|n| w.status(record(step, *n)) == 1).count() as u64)
}

/// Moves both to another lab, which has the same memory, and lets them run.
fn arrive(from: &mut World, states: &[Vec<u8>; 2], more: &str) -> World {
    let mut to = world(more);
    let mut memory = vec![0; 4 << 20];
    from.client.memory.load(MEMORY, &mut memory);
    to.client.memory.store(MEMORY, &memory);
    for (card, state) in states.iter().enumerate() {
        to.resume(card, state);
    }
    for state in [RUNNING_P2P, RUNNING] {
        (0..2).for_each(|card| assert_eq!(to.set(card, state), Ok(-1)));
    }
    to.run_all();
    to
}

fn save(w: &mut World, card: usize) -> Vec<u8> {
    let fd = w.set(card, STOP_COPY).unwrap();
    w.save(fd)
}

#[test]
fn devices_submit_to_one_another() {
    let mut w = world("");
    begin(&mut w);
    w.run_all();
    assert_eq!(done(&w), [CHAINS; 3]);
}

/// MIG-046, MIG-048: who is stopped while another one still runs loses what
/// that writes, and the writer is told of a success.
#[test]
fn one_stopped_wholly_first_loses_work() {
    let mut w = world("");
    begin(&mut w);
    w.set(1, STOP).unwrap();
    w.run(0);
    w.set(0, STOP).unwrap();
    assert_eq!(done(&w), [CHAINS, 0, 0]);
    let states = [save(&mut w, 0), save(&mut w, 1)];
    let to = arrive(&mut w, &states, "");
    assert_eq!(done(&to), [CHAINS, 0, 0], "the first step says that it is done, and nothing follows");
}

/// MIG-046 to MIG-049, MIG-086, MIG-088, MIG-091: all to RUNNING_P2P, then all
/// to STOP_COPY, at whatever point of the work and in whatever order: no store
/// to a portal is lost.
#[test]
fn in_two_passes_nothing_is_lost() {
    for more in ["", "p2p_stop = \"bus-master\""] {
        for turns in 0..8 {
            for [first, second] in [[0, 1], [1, 0]] {
                let mut w = world(more);
                begin(&mut w);
                (0..turns).for_each(|n| assert!(w.turn(n % 2).is_some()));
                w.set(first, RUNNING_P2P).unwrap();
                // The other one still writes to it.
                w.turn(second);
                w.set(second, RUNNING_P2P).unwrap();
                let before = done(&w);
                w.run_all();
                assert_eq!(done(&w), before, "nobody begins anything");
                let mut states = [Vec::new(), Vec::new()];
                for card in [first, second] {
                    states[card] = save(&mut w, card);
                }
                let to = arrive(&mut w, &states, more);
                assert_eq!(done(&to), [CHAINS; 3], "{turns} turns, {first} first, {more}");
            }
        }
    }
}

/// MIG-049: back in RUNNING, what was submitted meanwhile is done here.
#[test]
fn a_cancelled_move_loses_nothing() {
    for more in ["", "p2p_stop = \"bus-master\""] {
        let mut w = world(more);
        (0..2).for_each(|card| assert_eq!(w.set(card, RUNNING_P2P), Ok(-1)));
        begin(&mut w);
        w.run_all();
        assert_eq!(done(&w), [0; 3]);
        assert_eq!(w.set(1, STOP), Ok(-1));
        assert_eq!(w.load(1, 0, 0), 0, "stopped");
        (0..2).for_each(|card| assert_eq!(w.set(card, RUNNING), Ok(-1)));
        w.run_all();
        assert_eq!(done(&w), [CHAINS; 3]);
        assert_eq!(w.set(0, 9), Err(Errno::EINVAL));
    }
}

/// Two accelerators below a switch.
fn behind_switch(acs: bool) -> World {
    let ports = ["00:01.0 root 1", "01:00.0 upstream 2", "02:00.0 downstream 3", "02:01.0 downstream 4"].map(|port| {
        let [addr, kind, bus] = port.split(' ').collect::<Vec<_>>()[..] else { panic!() };
        format!("[[port]]\naddr = \"{addr}\"\nkind = \"{kind}\"\nbus = {bus}\nacs = {}\n", acs || kind == "root")
    });
    let devices = ["03:00.0", "04:00.0"].map(|addr| format!("[[device]]\nmodel = \"dsa\"\naddr = \"{addr}\"\n"));
    World::new(&(ports.concat() + &devices.concat()))
}

/// GRP-001, GRP-003: without ACS a switch passes a request on to the peer whose
/// bus address it carries, though nothing is mapped and no program has opened
/// anything; with ACS it goes up, where the IOMMU finds nothing.
#[test]
fn acs_decides_who_is_asked() {
    for acs in [false, true] {
        let w = behind_switch(acs);
        let address = "0000:04:00.0".parse().unwrap();
        let bar = w.host.board().fabric.resources(address)[0].start;
        let [one, other] = w.host.endpoints().map(std::sync::Arc::clone).collect::<Vec<_>>().try_into().unwrap();
        one.requester.set_bus_master(true);
        let mut word = [0; 8];
        let read = |word: &mut [u8; 8]| one.requester.session().read(bar, word).map_err(|fault| fault.reason);
        // Nobody decodes yet.
        let refused = if acs { iommu::FaultReason::Blocked } else { iommu::FaultReason::Memory };
        assert_eq!(read(&mut word), Err(refused));
        other.set_memory(true, 0);
        match acs {
            true => assert_eq!(read(&mut word), Err(refused)),
            false => {
                read(&mut word).unwrap();
                assert_ne!(word, [0; 8], "the version register");
            }
        }
    }
}
