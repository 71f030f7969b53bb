// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Children that never outlive their time.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it wrote, standard output and error as they came.
    pub text: String,
    shown: String,
}

impl Outcome {
    /// Of a program that ran beside the test.
    #[must_use]
    pub fn new(status: ExitStatus, text: String) -> Outcome {
        Outcome { status, text, shown: "the program".into() }
    }

    /// Passes the outcome on if the program exited with 0.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    #[allow(clippy::must_use_candidate)] // a check by itself
    pub fn succeeded(&self) -> &Outcome {
        self.exited(0)
    }

    /// Passes the outcome on if the program exited with this code.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    #[allow(clippy::must_use_candidate)] // a check by itself
    pub fn exited(&self, code: i32) -> &Outcome {
        assert_eq!(self.status.code(), Some(code), "{} ended with {}:\n{}", self.shown, self.status, self.text);
        self
    }

    /// Passes the outcome on if this signal ended the program.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    #[allow(clippy::must_use_candidate)] // a check by itself
    pub fn killed_by(&self, signal: Signal) -> &Outcome {
        let got = self.status.signal();
        assert_eq!(got, Some(signal.as_raw()), "{} ended with {}:\n{}", self.shown, self.status, self.text);
        self
    }

    /// Passes the outcome on if the program said this.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    #[allow(clippy::must_use_candidate)] // a check by itself
    pub fn said(&self, words: &str) -> &Outcome {
        assert!(self.text.contains(words), "{} did not say {words:?}:\n{}", self.shown, self.text);
        self
    }
}

/// Runs a command without standard input and waits for it. Its process group
/// is killed when the time is over.
///
/// # Panics
/// If it cannot be started or takes longer than `limit`.
#[track_caller]
#[must_use]
pub fn run_child(mut command: Command, limit: Duration) -> Outcome {
    let shown = format!("{command:?}");
    let mut output = tempfile::tempfile().expect("/tmp can be written");
    let also = |file: &File| file.try_clone().expect("a file can be shared");
    command.stdin(Stdio::null()).stdout(also(&output)).stderr(also(&output)).process_group(0);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    let group = Pid::from_child(&child);

    let (tell, ended) = mpsc::channel();
    let waiter = thread::spawn(move || tell.send(child.wait()));
    let status = ended.recv_timeout(limit);
    if status.is_err() {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = waiter.join();

    let mut text = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut text)).expect("our own file");
    let text = String::from_utf8_lossy(&text).into_owned();
    match status {
        Ok(status) => Outcome { status: status.expect("our own child"), text, shown },
        Err(_) => panic!("{shown} did not end within {limit:?}:\n{text}"),
    }
}
