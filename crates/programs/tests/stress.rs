// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile program with many threads (`src/bin/hostile`) and then one that
//! means well, in the same lab: vfuse serves both, and nothing is left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use programs::{Vfuse, Way, in_each_way};

in_each_way! {
    /// Racing threads, descriptors closed and passed under way, memory that
    /// goes while it is mapped, children, and a death in the middle of it.
    fn hostile_programs_harm_nobody_else(way) {
        let (vfuse, hostile) = prepared(way);
        // A pipe ends when every process that could write to it is gone.
        storms(&vfuse, &hostile, "vfio", [1000, 700, 300]);
    }

    /// The same on `/dev/iommu`, with a mock IOMMU and a controller that does
    /// DMA through what is mapped and unmapped meanwhile.
    fn hostile_programs_on_iommufd_harm_nobody_else(way) {
        let (vfuse, hostile) = prepared(way);
        storms(&vfuse.lab(LAB), &hostile, "iommufd", [2000, 1500, 700]);
    }

    /// Who wants more than there is gets an errno; the supervisor keeps its
    /// size, and serves the next one.
    fn a_greedy_program_is_refused(way) {
        let (vfuse, hostile) = prepared(way);
        let vfuse = vfuse.lab(LAB).limit(Duration::from_secs(120));
        let outcome = vfuse.shell(&format!(
            "{hostile} greedy 5000
             qemu-io -f raw -c 'write -P 0x5a 0 1M' -c 'read -P 0x5a 0 1M' nvme://0000:01:00.0/1"
        ));
        outcome.succeeded().said("read 1048576/1048576");
        assert!(!outcome.text.contains("panicked"), "{}", outcome.text);
        let size = outcome.text.lines().find_map(|line| line.strip_prefix("supervisor: ")?.strip_suffix(" KiB at most"));
        let size: u64 = size.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{}", outcome.text));
        assert!(size < 512 << 10, "the supervisor has grown to {size} KiB:\n{}", outcome.text);
    }

    /// The program that vfuse itself has started is the one that dies.
    fn a_killed_program_takes_vfuse_with_it(way) {
        let (vfuse, hostile) = prepared(way);
        let outcome = vfuse.run([&*hostile, "vfio", "500", "4", "kill"]);
        outcome.killed_by(rustix::process::Signal::KILL).said("killed after");
        assert!(!outcome.text.contains("panicked"), "{}", outcome.text);
        assert_eq!(left(&vfuse), Vec::<String>::new());
    }
}

const LAB: &str = "[iommu]\nselftest = true\n\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nsize = \"64M\"\n";

/// A run whose processes can be told by their environment, and the program.
fn prepared(way: Way) -> (Vfuse, String) {
    let vfuse = Vfuse::new(way);
    let hostile = vfuse.place.program(Path::new(env!("CARGO_BIN_EXE_hostile"))).display().to_string();
    let place = vfuse.place.path("").display().to_string();
    (vfuse.env("STRESS_PLACE", &place), hostile)
}

/// One attack three times, of so many milliseconds each: one that exits and
/// two that are killed. Then somebody who means well is served.
fn storms(vfuse: &Vfuse, hostile: &str, attack: &str, [first, second, third]: [u32; 3]) {
    // A pipe ends when every process that could write to it is gone.
    let lines = format!(
        "{hostile} {attack} {first} 1 exit | cat
         {hostile} {attack} {second} 2 kill | cat
         {hostile} {attack} {third} 3 kill | cat
         qemu-io -f raw -c 'write -P 0x5a 0 1M' -c 'read -P 0x5a 0 1M' nvme://0000:01:00.0/1
         echo served"
    );
    let outcome = vfuse.shell(&lines);
    outcome.succeeded().said("ended after").said("killed after").said("served").said("read 1048576/1048576");
    for word in ["panicked", "verification failed"] {
        assert!(!outcome.text.contains(word), "{}", outcome.text);
    }
    assert_eq!(left(vfuse), Vec::<String>::new());
}

/// Processes of a run that are still there.
fn left(vfuse: &Vfuse) -> Vec<String> {
    let place = format!("STRESS_PLACE={}", vfuse.place.path("").display());
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let of_run = |path: &Path| {
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&place)
    };
    processes.map(|entry| entry.path()).filter(|path| of_run(path)).map(|path| path.display().to_string()).collect()
}
