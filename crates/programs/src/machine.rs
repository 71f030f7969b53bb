// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A QEMU with a guest in the background, under `vfuse run`, told what to do by
//! QMP.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::{Guest, Vfuse};

/// How long one waits between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A machine that runs; it is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    /// The run that it is in.
    pub vfuse: Vfuse,
    child: Child,
    qmp: BufReader<UnixStream>,
    limit: Duration,
}

impl Machine {
    /// Starts a guest; the names of its files begin with `name`.
    ///
    /// # Panics
    /// If QEMU does not come up.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(vfuse: Vfuse, guest: Guest, options: impl IntoIterator<Item = S>) -> Machine {
        let limit = Duration::from_secs(150);
        let (serial, socket) = (vfuse.place.write("serial", b""), vfuse.place.path("qmp"));
        let guest = guest
            .with(options)
            .with(["-serial", &format!("file:{}", serial.display())])
            .with(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let output = File::create(vfuse.place.path("output")).expect("a file in our own place");
        let also = output.try_clone().expect("a file can be shared");
        let mut command = vfuse.command(guest.program());
        command.stdin(Stdio::null()).stdout(also).stderr(output).process_group(0);
        let mut child = command.spawn().expect("vfuse can be started");
        let start = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            let text = || fs::read_to_string(vfuse.place.path("output")).unwrap_or_default();
            if let Ok(Some(status)) = child.try_wait() {
                panic!("QEMU has ended ({status}): {}", text());
            }
            assert!(start.elapsed() < limit, "QEMU does not listen: {}", text());
            thread::sleep(LOOK);
        };
        let mut machine = Machine { vfuse, child, qmp: BufReader::new(stream), limit };
        machine.line();
        machine.tell("qmp_capabilities", &json!({}));
        machine
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QMP");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("QMP said {line:?}: {e}; {}", self.output()))
    }

    /// A QMP command; what it returns.
    ///
    /// # Panics
    /// If it is refused.
    pub fn tell(&mut self, command: &str, arguments: &Value) -> Value {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.qmp.get_mut().write_all(line.as_bytes()).expect("QMP");
        loop {
            let answer = self.line();
            if let Some(error) = answer.get("error") {
                panic!("{command}: {error}");
            }
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
        }
    }

    /// What the guest has written on its serial line.
    #[must_use]
    pub fn serial(&self) -> String {
        let bytes = fs::read(self.vfuse.place.path("serial")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What QEMU and vfuse have said.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.vfuse.place.path("output")).unwrap_or_default()
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
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < self.limit, "no {what}:\n{}\n{}", self.serial(), self.output());
            thread::sleep(LOOK);
        }
    }

    /// Begins a migration to this place.
    pub fn migrate(&mut self, uri: &str) {
        let limits = json!({ "downtime-limit": 5000, "max-bandwidth": 1_u64 << 30 });
        self.tell("migrate-set-parameters", &limits);
        self.tell("migrate", &json!({ "uri": uri }));
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

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
