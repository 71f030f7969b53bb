// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration protocol by plain system calls: a program that knows nothing
//! of vfuse, in each way in which one can be run.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::path::Path;

use programs::{Outcome, Vfuse, Way, arcs};

const TABLE: &[u8] = include_bytes!("../../vfio/src/device/migration/migration-fsm.csv");

/// Keys of `migration` and what they are in the table.
const COMBINATIONS: [(&str, &str); 4] = [
    ("stop-copy", "STOP_COPY"),
    ("p2p", "STOP_COPY+P2P"),
    ("pre-copy", "STOP_COPY+PRE_COPY"),
    ("pre-copy-p2p", "STOP_COPY+P2P+PRE_COPY"),
];

fn mover(vfuse: &Vfuse) -> String {
    vfuse.place.program(Path::new(env!("CARGO_BIN_EXE_mover"))).display().to_string()
}

/// Runs it with a device that can do everything.
fn run(way: Way, what: &str) -> Outcome {
    let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,migration=pre-copy-p2p,state_size=300K");
    vfuse.run([&mover(&vfuse), what, "0000:01:00.0"])
}

programs::in_each_way! {
    /// MIG-006, MIG-007, MIG-008, MIG-012, MIG-014, MIG-015, MIG-020: all 256
    /// rows of migration-fsm.csv by calls, and from the trace the arcs that
    /// the device went on.
    fn every_row(way) {
        for (key, combination) in COMBINATIONS {
            let broken = "migration_fails=RUNNING>STOP:middle:always+RUNNING>RUNNING_P2P:middle:always";
            let vfuse = Vfuse::new(way)
                .device(format!("nvme,addr=01:00.0,migration={key},state_size=100K"))
                .device(format!("nvme,addr=02:00.0,migration={key},{broken}"))
                .traced();
            let table = vfuse.place.write("table.csv", TABLE).display().to_string();
            let outcome = vfuse.run([&mover(&vfuse), "rows", &table, combination, "0000:01:00.0", "0000:02:00.0"]);
            outcome.succeeded();
            assert!(outcome.text.contains("rows=64"), "{}", outcome.text);
            went_the_ways_of(&vfuse, combination);
        }
    }

    /// MIG-023, MIG-025, MIG-026, MIG-027, MIG-031, MIG-033, MIG-036: data
    /// descriptors in the wrong direction, after their session, copied, in two
    /// threads, closed while the state changes.
    fn data_descriptors(way) {
        let outcome = run(way, "streams");
        outcome.succeeded();
        assert!(outcome.text.contains("streams=ok"), "{}", outcome.text);
    }

    /// MIG-007, MIG-011: SET with every value, size and flag.
    fn every_value(way) {
        let outcome = run(way, "values");
        outcome.succeeded();
        assert!(outcome.text.contains("values="), "{}", outcome.text);
    }
}

programs::in_each_way! {
    /// MIG-030, MIG-049, MIG-094, MIG-096, MIG-099, MIG-101, MIG-102: an
    /// accelerator with work of which some waits for pages goes from one run to
    /// another, the second of which has nothing but the stream and the memory.
    /// Each descriptor is done once, here or there, whether the page requests
    /// were drained, by a guest that answers at once or late, or go on at the
    /// other side. A guest that never answers keeps it where it is.
    fn an_accelerator_with_work_under_way(way) {
        let done = |text: &str| -> u32 {
            let (_, rest) = text.split_once("done=").unwrap_or_else(|| panic!("{text}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        for (how, here, answers) in [("answers", 8, 8), ("late", 8, 8), ("undrained", 4, 16)] {
            let vfuse = Vfuse::new(way).locks_memory().device("dsa,addr=01:00.0,migration=pre-copy-p2p,state_size=100K");
            let (mover, place) = (mover(&vfuse), vfuse.place.path("").display().to_string());
            let left = vfuse.run([&mover, "leave", how, &place, "0000:01:00.0"]);
            left.succeeded();
            let arrived = vfuse.run([&mover, "arrive", &place, "0000:01:00.0"]);
            arrived.succeeded();
            assert_eq!((done(&left.text), done(&arrived.text)), (here, 16 - here), "{how}");
            arrived.said(&format!("answered={answers}"));
        }
        let vfuse = Vfuse::new(way).locks_memory().device("dsa,addr=01:00.0,migration=pre-copy-p2p");
        let (mover, place) = (mover(&vfuse), vfuse.place.path("").display().to_string());
        let stayed = vfuse.run([&mover, "leave", "never", &place, "0000:01:00.0"]);
        stayed.succeeded();
        stayed.said("stayed done=16 answered=16");
    }
}

/// The good device's arcs are those of the table's paths, one after the other:
/// the first save, then for each row the way there and the row's own.
fn went_the_ways_of(vfuse: &Vfuse, combination: &str) {
    let table = std::str::from_utf8(TABLE).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    let path = |from: &str, to: &str| -> Vec<String> {
        let row = rows.iter().find(|row| row[0] == combination && row[1] == from && row[2] == to).unwrap();
        row[4].split('>').skip(1).map(str::to_owned).collect()
    };
    let mut wanted = [path("RUNNING", "STOP_COPY"), path("STOP_COPY", "RUNNING")].concat();
    for row in rows.iter().filter(|row| row[0] == combination && row[1] != "ERROR") {
        if row[1] != "RUNNING" {
            wanted.extend(path("RUNNING", row[1]));
        }
        if row[1] != row[2] {
            wanted.extend(row[4].split('>').skip(1).map(str::to_owned));
        }
    }
    let all = arcs(&vfuse.place.path("trace.json"));
    let found: Vec<String> =
        all.into_iter().filter(|(_, device, ..)| device == "0000:01:00.0").map(|(.., to)| to).collect();
    assert_eq!(found, wanted, "{combination}");
}

/// MIG-016, MIG-092: a running lab is told to have an arc or a stream fail, and
/// to mend it.
#[test]
fn failures_by_the_control_socket() {
    for (what, said) in
        [("STOP>STOP_COPY:before:always", "failed errno=5 in STOP"), ("stream-breaks:5000", "broken errno=5")]
    {
        let vfuse = Vfuse::new(Way::RootNamespaces).device("nvme,addr=01:00.0,migration=stop-copy,state_size=100K");
        let socket = vfuse.place.path("lab.sock").display().to_string();
        let vfuse = vfuse.options(["--control", &socket]);
        let mut live = vfuse.start([&mover(&vfuse), "fails", "0000:01:00.0"]);
        live.wait_for("a control socket", |_| Path::new(&socket).exists());
        let migration = |words: &[&str]| {
            let socket = ["--control", &socket];
            vfuse.also(["migration"].iter().chain(words).chain(&socket))
        };
        let refused = migration(&["fail", "01:00.0", "RUNNING>NOWHERE:before"]);
        assert!(!refused.status.success() && refused.text.contains("is no failure"), "{}", refused.text);
        assert!(migration(&["fail", "07:00.0", what]).text.contains("no function at"));
        let planned = migration(&["fail", "01:00.0", what]);
        planned.succeeded();
        assert!(planned.text.contains(what), "{}", planned.text);
        live.says(said);
        let mended = migration(&["mend", "01:00.0"]);
        mended.succeeded();
        assert!(!mended.text.contains(what), "{}", mended.text);
        live.says("works bytes=");
        let listed = migration(&["list"]);
        assert!(listed.text.contains("0000:01:00.0") || !listed.status.success(), "{}", listed.text);
        assert!(live.end().0.success());
    }
}
