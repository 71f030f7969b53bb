// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that run beside the test: what they print is waited for, QEMU is
//! talked to, and none outlives the test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// A program that runs.
#[derive(Debug)]
pub struct Live {
    child: Child,
    output: PathBuf,
    /// Printed, too, if something that is waited for does not come.
    also: Option<PathBuf>,
    shown: String,
    deadline: Instant,
}

impl Live {
    /// Starts a command in a process group of its own; what it prints goes to
    /// this file. It has to end within `limit`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(mut command: Command, output: PathBuf, limit: Duration) -> Live {
        let shown = format!("{command:?}");
        let file = File::create(&output).expect("our own file");
        let also = file.try_clone().expect("a file can be shared");
        command.stdin(Stdio::null()).stdout(file).stderr(also).process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
        Live { child, output, also: None, shown, deadline: Instant::now() + limit }
    }

    /// Shows this file, too, if something that is waited for does not come.
    pub(crate) fn show(&mut self, file: PathBuf) {
        self.also = Some(file);
    }

    /// What it has printed so far.
    #[must_use]
    pub fn text(&self) -> String {
        text(&self.output)
    }

    /// A file beside its output, if it is there.
    #[must_use]
    pub fn beside(&self, name: &str) -> Option<PathBuf> {
        let path = self.output.with_file_name(name);
        path.exists().then_some(path)
    }

    /// Waits until it has printed this.
    ///
    /// # Panics
    /// If it ends before, or its time does.
    #[track_caller]
    pub fn says(&mut self, words: &str) {
        self.says_often(words, 1);
    }

    /// Waits until it has printed this so many times.
    ///
    /// # Panics
    /// If it ends before, or its time does.
    #[track_caller]
    pub fn says_often(&mut self, words: &str, times: usize) {
        self.wait_for(words, |live| live.text().matches(words).count() >= times);
    }

    /// Waits for something that it brings about.
    ///
    /// # Panics
    /// If it ends before, or its time does.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, mut is: impl FnMut(&Live) -> bool) {
        loop {
            let ended = self.ended();
            if is(self) {
                return;
            }
            self.pause(what, ended);
        }
    }

    /// How it has ended, if it has. Asked before each look: what is printed
    /// last still counts.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Until the next look at what is waited for.
    #[track_caller]
    pub(crate) fn pause(&self, what: &str, ended: Option<ExitStatus>) {
        let said = || self.also.iter().chain([&self.output]).map(|file| text(file)).collect::<String>();
        assert!(ended.is_none(), "{} ended with {ended:?} before {what:?}:\n{}", self.shown, said());
        assert!(Instant::now() < self.deadline, "{}: no {what:?} in time:\n{}", self.shown, said());
        thread::sleep(Duration::from_millis(20));
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If its time is over before.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String) {
        loop {
            if let Some(status) = self.ended() {
                return (status, self.text());
            }
            assert!(Instant::now() < self.deadline, "{} does not end:\n{}", self.shown, self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// What a program has written, as lines.
pub(crate) fn text(file: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).replace('\r', "")
}

/// QEMU's monitor (QMP).
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects, if somebody listens already.
    ///
    /// # Panics
    /// If what listens is no monitor.
    #[must_use]
    pub fn connect(socket: &Path) -> Option<Monitor> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time above 0");
        let mut monitor = Monitor(BufReader::new(stream));
        assert!(monitor.line().get("QMP").is_some(), "a monitor greets");
        monitor.run("qmp_capabilities");
        Some(monitor)
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the monitor answers in time");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// Runs a command without arguments; what it returns.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&mut self, command: &str) -> Value {
        self.tell(command, &json!({}))
    }

    /// Runs a command; what it returns.
    ///
    /// # Panics
    /// If it fails.
    pub fn tell(&mut self, command: &str, arguments: &Value) -> Value {
        self.ask(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a command; what it returns, or why it is refused.
    ///
    /// # Panics
    /// If QEMU is gone.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        // In one piece: QEMU has done `quit` when it has the last brace.
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.0.get_mut().write_all(line.as_bytes()).expect("QEMU runs");
        loop {
            let mut line = self.line();
            if let Some(result) = line.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = line.get_mut("error") {
                return Err(error.take());
            }
            assert!(line.get("event").is_some(), "{command}: {line}");
        }
    }

    /// Waits for an event of this name; its data.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let mut line = self.line();
            if line.get("event").and_then(Value::as_str) == Some(name) {
                return line.get_mut("data").map(Value::take).unwrap_or_default();
            }
        }
    }
}
