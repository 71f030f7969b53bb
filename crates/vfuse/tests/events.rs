// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse events`, and errors that a listener takes, on a running lab.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Scratch, end, vfuse, waiting};
use serde_json::Value;

/// An answer that goes on, read by hand.
struct Listener(BufReader<UnixStream>);

impl Listener {
    fn open(socket: &str, request: &str) -> Result<Listener, String> {
        let mut stream = UnixStream::connect(socket).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n").unwrap();
        let mut listener = Listener(BufReader::new(stream));
        let status = listener.line();
        if !status.contains(" 200 ") {
            return Err(std::io::read_to_string(listener.0).unwrap());
        }
        while !listener.line().is_empty() {}
        assert_eq!(listener.event()["event"], "events.start");
        Ok(listener)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next event: a chunk of its own.
    fn event(&mut self) -> Value {
        loop {
            let line = self.line();
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    /// The next event of this name.
    fn wait(&mut self, name: &str) -> Value {
        loop {
            let event = self.event();
            if event["event"] == name {
                return event;
            }
        }
    }
}

fn inject(socket: &str, text: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfuse"))
        .args(["aer", "inject", "-s", "01:00.0", "--control", socket])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn events(arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_vfuse")).arg("events").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "{\"event\":\"events.start\"}\n");
    (child, out)
}

const NONFATAL: &str = "AER UNCOR_STATUS COMP_ABORT";

/// Everybody who listens gets what he asked for, until the lab ends.
#[test]
fn events_are_shown_as_they_happen() {
    let scratch = Scratch::new("events");
    let socket = scratch.path("lab.sock");
    let lab = waiting(&["--control", &socket]);
    let (mut all, mut out) = events(&["--control", &socket]);
    let (mut few, mut few_out) = events(&["--control", &socket, "aer.rec", "aer.uevent"]);
    let mut listener = Listener::open(&socket, "GET /v1/events?names=aer.notice").unwrap();
    inject(&socket, NONFATAL);
    let notice = listener.wait("aer.notice");
    assert_eq!((notice["device"].as_str(), notice["by"].as_str()), (Some("0000:01:00.0"), Some("nobody")));
    let names = |out: &mut BufReader<ChildStdout>| -> Vec<String> {
        let mut names = Vec::new();
        while names.last().is_none_or(|name| name != "aer.recovery") {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            names.push(event["event"].as_str().unwrap().to_owned());
        }
        names
    };
    assert_eq!(names(&mut few_out), ["aer.uevent", "aer.uevent", "aer.recovery"]);
    let all_names = names(&mut out);
    for name in ["aer.injected", "aer.message", "aer.error", "aer.notice", "aer.call", "aer.recovery"] {
        assert!(all_names.iter().any(|n| n == name), "{name}: {all_names:?}");
    }
    end(lab);
    assert!(all.wait().unwrap().success() && few.wait().unwrap().success());
}

/// ERR-085, ERR-092: as long as somebody reads them, non-fatal errors go to
/// him; when he goes without a word, what he was told goes to the eventfd,
/// which is nobody's here.
#[test]
fn errors_are_taken_while_somebody_listens() {
    let scratch = Scratch::new("take");
    let socket = scratch.path("lab.sock");
    let lab = waiting(&["--control", &socket]);
    let mut watcher = Listener::open(&socket, "GET /v1/events?names=aer.notice").unwrap();
    let take = "POST /v1/aer/take?device=01:00.0";
    let mut taker = Listener::open(&socket, take).unwrap();
    assert!(Listener::open(&socket, take).err().unwrap().contains("are taken already"));
    let by = |listener: &mut Listener| listener.wait("aer.notice")["by"].as_str().unwrap().to_owned();
    inject(&socket, NONFATAL);
    assert_eq!((by(&mut taker), by(&mut watcher)), ("taker".into(), "taker".into()));
    let answer = |request: &str| Listener::open(&socket, request).err();
    let done = UnixStream::connect(&socket).and_then(|mut stream| {
        write!(
            stream,
            "POST /v1/aer/answered?device=01:00.0 HTTP/1.1\r\nhost: lab\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
        std::io::read_to_string(stream)
    });
    assert!(done.unwrap().ends_with("\r\n\r\n1"));
    inject(&socket, "AER UNCOR_STATUS MALF_TLP");
    assert_eq!(by(&mut watcher), "nobody", "fatal ones were not asked for");
    inject(&socket, NONFATAL);
    assert_eq!(by(&mut watcher), "taker");
    drop(taker);
    let notice = watcher.wait("aer.notice");
    assert_eq!((notice["kind"].as_str(), notice["by"].as_str()), (Some("owed"), Some("nobody")));
    inject(&socket, NONFATAL);
    assert_eq!(by(&mut watcher), "nobody");
    for (request, complaint) in [
        ("POST /v1/aer/take", "is missing"),
        ("POST /v1/aer/take?device=1:2", "is not a PCI address"),
        ("POST /v1/aer/take?device=09:00.0", "there is no function at 0000:09:00.0"),
        ("POST /v1/aer/take?device=00:01.0", "0000:00:01.0 is not bound to vfio-pci"),
        ("GET /v1/events?level=loud", "`loud` is not a level"),
    ] {
        let got = answer(request).unwrap();
        assert!(got.contains(complaint), "{request}: {got}");
    }
    end(lab);
    let refused = vfuse(&["events", "--control", &socket]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no lab answers"));
}

/// One who does not read does not hold the lab up, and more than some are not
/// served.
#[test]
fn listeners_are_bounded() {
    let scratch = Scratch::new("listeners");
    let socket = scratch.path("lab.sock");
    let lab = waiting(&["--control", &socket]);
    let mut asleep = Listener::open(&socket, "GET /v1/events?level=trace").unwrap();
    let others: Vec<Listener> =
        (0..63).map(|_| Listener::open(&socket, "GET /v1/events?names=none.").unwrap()).collect();
    assert!(Listener::open(&socket, "GET /v1/events").err().unwrap().contains("listen already"));
    let burst = "AER PCI_ID 0000:01:00.0 COR_STATUS BAD_TLP\n".repeat(2000);
    for _ in 0..8 {
        inject(&socket, &burst);
    }
    drop(others);
    let lost = asleep.wait("events.lost");
    assert!(lost["count"].as_u64().unwrap() > 0);
    end(lab);
}
