// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that writes to its disk moves from one QEMU to another; then the
//! states of its device on both sides, as text and as a trace that Perfetto
//! and `chrome://tracing` load. `make demo-migration`.

use std::collections::BTreeMap;
use std::fs;

use programs::{Guest, Machine, Vfuse, Way};
use serde_json::json;

const SCRIPT: &str = "
    n=0
    while [ $n -lt 40 ]; do
        yes block-$n | head -c 4096 | dd of=/dev/nvme0n1 bs=4k seek=$n conv=fsync 2>/dev/null && echo wrote block $n
        n=$((n + 1))
    done
    echo all=done
";

const DEVICE: &str = "migration = \"pre-copy-p2p\"\nstate_size = \"32M\"\nstate_dirty_rate = \"1M\"\n";

fn side(first: Option<&Machine>, incoming: &[&str]) -> Machine {
    let vfuse = Vfuse::new(Way::NobodyUserns);
    let place = first.map_or(&vfuse.place, |machine| &machine.vfuse.place);
    if first.is_none() {
        let _ = place.write("disk", &vec![0; 4 << 20]);
    }
    let lab = format!(
        "[vfio]\nunlimited_memlock = true\n[[device]]\nmodel = \"nvme\"\naddr = \"01:00.0\"\nfile = \"{}\"\n\
         shared = true\n{DEVICE}",
        place.path("disk").display()
    );
    let vfuse = vfuse.lab(&lab).traced();
    let guest = Guest::quiet(&vfuse.place, SCRIPT);
    let device = ["-device", "vfio-pci,host=0000:01:00.0,enable-migration=on"];
    Machine::start(vfuse, guest, device.iter().chain(incoming))
}

fn main() {
    println!(
        "1. Two QEMUs, each under a vfuse of its own, without root; the same disk, an NVMe controller on each side:"
    );
    print!("{DEVICE}");
    let mut source = side(None, &[]);
    let uri = format!("unix:{}", source.vfuse.place.path("move").display());
    let mut target = side(Some(&source), &["-incoming", &uri]);
    source.await_serial("wrote block 3\n");
    println!("\n2. The guest writes to the disk; migrate {uri}");
    source.migrate(&uri);
    let status = source.await_migration(&["completed", "failed"]);
    let migration = source.migration();
    println!(
        "   {status}: downtime {} ms, {} bytes of device state",
        migration["downtime"], migration["vfio"]["transferred"]
    );
    target.await_serial("all=done");
    let last = |text: String| text.lines().filter(|line| line.starts_with("wrote")).map(str::to_owned).next_back();
    println!("   last on the source:      {}", last(source.serial()).unwrap_or_default());
    println!("   last on the destination: {}", last(target.serial()).unwrap_or_default());

    println!("\n3. What the devices did:");
    let sides = [("source", source.arcs()), ("destination", target.arcs())];
    let start = sides.iter().flat_map(|(_, arcs)| arcs.iter().filter(|arc| arc.3 == "PRE_COPY")).map(|arc| arc.0).min();
    let start = start.unwrap_or(0);
    let mut lines = BTreeMap::new();
    for (side, arcs) in &sides {
        for (at, device, from, to) in arcs.iter().filter(|arc| arc.0 >= start || arc.3 == "RESUMING") {
            lines.insert((*at, *side), format!("{device} {from} > {to}"));
        }
    }
    for ((at, side), text) in &lines {
        let column = if *side == "source" { 0 } else { 40 };
        let ms = (i128::from(*at) - i128::from(start)) as f64 / 1e6;
        println!("   {ms:>10.1} ms  {:column$}{text}", "");
    }
    println!("   {:>13}  {:<40}destination", "", "source");

    let mut events = Vec::new();
    for (number, (side, arcs)) in (1..).zip(&sides) {
        events.push(json!({ "ph": "M", "name": "process_name", "pid": number, "args": { "name": side } }));
        let ends = arcs.iter().skip(1).map(|arc| arc.0).chain(arcs.last().map(|arc| arc.0 + 100_000_000));
        for ((at, device, _, to), end) in arcs.iter().zip(ends) {
            let (ts, dur) = (*at as f64 / 1e3, (end - at) as f64 / 1e3);
            events.push(json!({ "ph": "X", "name": to, "cat": device, "pid": number, "tid": 1, "ts": ts, "dur": dur }));
        }
    }
    let path = "build/migration-trace.json";
    let written = fs::write(path, json!({ "traceEvents": events }).to_string());
    println!(
        "\n4. The same for Perfetto (https://ui.perfetto.dev): {path} {}",
        if written.is_ok() { "" } else { "could not be written" }
    );
    assert_eq!(status, "completed", "{}\n{}", source.output(), target.output());
}
