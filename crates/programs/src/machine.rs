// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QEMU with a guest in the background, under `vfuse run`, told what to do by
//! QMP.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::live::text;
use crate::{Guest, Live, Monitor, Vfuse};

/// In which a machine has to do all that it is to do.
const LIMIT: Duration = Duration::from_secs(280);

/// What QEMU says to a migration before the one that was cancelled is over.
const BUSY: [&str; 2] = ["duplicate yank instance", "There's a migration process in progress"];

/// A machine that runs; it is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    /// The run that it is in.
    pub vfuse: Vfuse,
    live: Live,
    monitor: Monitor,
}

impl Machine {
    /// Starts a guest.
    ///
    /// # Panics
    /// If QEMU does not come up.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(vfuse: Vfuse, guest: Guest, options: impl IntoIterator<Item = S>) -> Machine {
        let (serial, socket) = (vfuse.place.write("serial", b""), vfuse.place.path("qmp"));
        let guest = guest
            .with(options)
            .with(["-serial", &format!("file:{}", serial.display())])
            .with(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let mut live = Live::start(vfuse.command(guest.program()), vfuse.place.path("output"), LIMIT);
        live.show(serial);
        let mut monitor = None;
        live.wait_for("a monitor", |_| {
            monitor = Monitor::connect(&socket);
            monitor.is_some()
        });
        Machine { vfuse, live, monitor: monitor.expect("it was waited for") }
    }

    /// A QMP command; what it returns.
    ///
    /// # Panics
    /// If it is refused.
    pub fn tell(&mut self, command: &str, arguments: &Value) -> Value {
        self.monitor.tell(command, arguments)
    }

    /// What the guest has written on its serial line.
    #[must_use]
    pub fn serial(&self) -> String {
        text(&self.vfuse.place.path("serial"))
    }

    /// What QEMU and vfuse have said.
    #[must_use]
    pub fn output(&self) -> String {
        self.live.text()
    }

    /// Waits until the guest has written this.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn await_serial(&mut self, words: &str) {
        self.wait(&format!("{words:?} on the serial line"), |machine| machine.serial().contains(words));
    }

    /// Waits for something.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Machine) -> bool) {
        loop {
            let ended = self.live.ended();
            if done(self) {
                return;
            }
            self.live.pause(what, ended);
        }
    }

    /// Begins a migration to this place, as soon as one that was cancelled is over.
    ///
    /// # Panics
    /// If that takes too long, or it is refused.
    pub fn migrate(&mut self, uri: &str) {
        // Of the speed that QEMU sees by itself there may be too little left for it
        // to stop the machine: a guest that does little has nothing to send.
        let limits = json!({
            "downtime-limit": 5000, "max-bandwidth": 1_u64 << 30, "avail-switchover-bandwidth": 1_u64 << 30
        });
        self.tell("migrate-set-parameters", &limits);
        let uri = json!({ "uri": uri });
        self.wait("the end of another migration", |machine| match machine.monitor.ask("migrate", &uri) {
            Ok(_) => true,
            Err(error) if BUSY.iter().any(|busy| error["desc"] == json!(busy)) => false,
            Err(error) => panic!("migrate: {error}"),
        });
    }

    /// Turns capabilities of migration on or off.
    pub fn capabilities(&mut self, names: &[&str], on: bool) {
        let all: Vec<Value> = names.iter().map(|name| json!({ "capability": name, "state": on })).collect();
        self.tell("migrate-set-capabilities", &json!({ "capabilities": all }));
    }

    /// `query-migrate`.
    pub fn migration(&mut self) -> Value {
        self.tell("query-migrate", &json!({}))
    }

    /// Waits until the migration is in one of these states; which.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn await_migration(&mut self, states: &[&str]) -> String {
        let mut last = String::new();
        self.wait(&format!("migration in {states:?}"), |machine| {
            last = machine.migration()["status"].as_str().unwrap_or_default().to_owned();
            states.contains(&&*last)
        });
        last
    }

    /// Whether the guest runs.
    pub fn is_running(&mut self) -> bool {
        self.tell("query-status", &json!({}))["running"] == json!(true)
    }

    /// Arcs of the devices' migration so far, from the trace: nanoseconds since
    /// 1970, the device, from, to.
    #[must_use]
    pub fn arcs(&self) -> Vec<(u64, String, String, String)> {
        arcs(&self.trace())
    }

    /// The trace's file.
    #[must_use]
    pub fn trace(&self) -> PathBuf {
        self.vfuse.place.path("trace.json")
    }
}

/// Arcs in a trace, with the time of the machine.
#[must_use]
pub fn arcs(trace: &PathBuf) -> Vec<(u64, String, String, String)> {
    let text = fs::read_to_string(trace).unwrap_or_default();
    let events = || text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let start = events().find_map(|event| event["unix_ns"].as_u64()).unwrap_or(0);
    let word = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let arcs = events().filter(|event| event["event"] == json!("vfio.migration_arc"));
    arcs.map(|event| {
        let at = start + event["ns"].as_u64().unwrap_or(0);
        (at, word(&event, "device"), word(&event, "from"), word(&event, "now"))
    })
    .collect()
}
