// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How runs end: exit statuses, signals, kills, errors; and that nothing is
//! left behind.

#![allow(clippy::unwrap_used)] // helpers are not functions of their own test

mod harness;

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use harness::{Way, client, run, spawn};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Starts a client that has a device open and waits; its pid.
fn hanging(way: Way) -> (Child, Pid) {
    let mut runner = spawn(way, &[&client(), "hang"]);
    let mut line = String::new();
    BufReader::new(runner.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim().strip_prefix("ready ").unwrap().parse().unwrap();
    (runner, Pid::from_raw(pid).unwrap())
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).unwrap()
}

/// Waits for something that another process does in its own time.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn state_of(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid).is_err() || state_of(pid) == Some('Z')
}

#[test]
fn the_exit_status_is_the_programs() {
    for way in Way::all() {
        for code in [0, 1, 42, 255] {
            assert_eq!(run(way, &[&client(), "exit", &code.to_string()]).code, Some(code));
        }
    }
}

#[test]
fn a_program_that_a_signal_ends() {
    for way in Way::all() {
        for (name, signal) in [("KILL", libc::SIGKILL), ("TERM", libc::SIGTERM), ("INT", libc::SIGINT)] {
            let ran = run(way, &["/bin/sh", "-c", &format!("kill -{name} $$")]);
            assert_eq!(ran.signal, Some(signal), "{way:?}: {}", ran.text());
        }
    }
}

#[test]
fn errors_have_the_statuses_of_a_shell() {
    for way in Way::all() {
        for (program, code, text) in [
            ("/nonexistent/program", 127, "no such program"),
            ("no-such-program-anywhere", 127, "no such program"),
            ("", 127, "no such program"),
            ("/etc/passwd", 126, "executable"),
            ("/etc", 126, "executable"),
        ] {
            let ran = run(way, &[program]);
            assert_eq!(ran.code, Some(code), "{program}: {}", ran.text());
            assert!(ran.stderr.contains(text) && ran.stderr.contains(&format!("'{program}'")), "{}", ran.text());
        }
    }
}

#[test]
fn a_script_without_an_interpreter_line_runs_as_with_execvp() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("intercept-script-{}", std::process::id()));
    std::fs::write(&path, "echo script \"$1\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    for way in Way::all() {
        let ran = run(way, &[path.to_str().unwrap(), "arg"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "script arg\n"), "{}", ran.text());
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn signals_to_the_supervisor_reach_the_program() {
    for way in Way::all() {
        for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::USR1] {
            let (mut runner, pid) = hanging(way);
            kill_process(pid_of(&runner), signal).unwrap();
            assert_eq!(runner.wait().unwrap().signal(), Some(signal.as_raw()), "{way:?}");
            assert!(is_gone(pid));
        }
    }
}

#[test]
fn a_program_that_is_killed() {
    for way in Way::all() {
        let (runner, pid) = hanging(way);
        kill_process(pid, Signal::KILL).unwrap();
        let ran = harness::Ran::of(&runner.wait_with_output().unwrap());
        assert_eq!(ran.signal, Some(libc::SIGKILL));
        assert_eq!((ran.seen("opened"), ran.seen("released")), (2, 2));
    }
}

#[test]
fn a_program_that_is_killed_while_its_call_waits() {
    for way in Way::all() {
        let mut runner = spawn(way, &[&client(), "hang-waiting"]);
        let mut line = String::new();
        BufReader::new(runner.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let pid = Pid::from_raw(line.trim().strip_prefix("ready ").unwrap().parse().unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let ran = harness::Ran::of(&runner.wait_with_output().unwrap());
        assert_eq!(ran.signal, Some(libc::SIGKILL));
        assert_eq!((ran.seen("opened"), ran.seen("released"), ran.seen("abandoned")), (2, 2, 1), "{way:?}");
    }
}

#[test]
fn the_program_dies_with_its_supervisor() {
    for way in Way::all() {
        let (mut runner, pid) = hanging(way);
        kill_process(pid_of(&runner), Signal::KILL).unwrap();
        runner.wait().unwrap();
        eventually("the program dies", || is_gone(pid));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("vfuse"), "{mounts}");
}

#[test]
fn stop_and_continue_are_for_both() {
    for way in Way::all() {
        let (mut runner, pid) = hanging(way);
        let supervisor = pid_of(&runner);
        // As from the terminal, but to the one process.
        kill_process(pid, Signal::TSTP).unwrap();
        eventually("both stop", || state_of(pid) == Some('T') && state_of(supervisor) == Some('T'));
        kill_process(supervisor, Signal::CONT).unwrap();
        eventually("both go on", || state_of(pid) == Some('S') && state_of(supervisor) == Some('S'));
        // A debugger stops only whom it stops.
        kill_process(pid, Signal::STOP).unwrap();
        eventually("the program stops", || state_of(pid) == Some('T'));
        assert_ne!(state_of(supervisor), Some('T'));
        kill_process(pid, Signal::CONT).unwrap();
        kill_process(supervisor, Signal::TERM).unwrap();
        assert_eq!(runner.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}

#[test]
fn ignored_signals_stay_ignored() {
    for way in Way::all() {
        let script = "trap '' HUP; exec \"$@\"";
        let mut program = harness::command(way, &[], &["/bin/sh", "-c", "kill -HUP $$; echo alive"]);
        let inner: Vec<_> = program.get_args().map(|arg| arg.to_owned()).collect();
        let mut outer = std::process::Command::new("/bin/sh");
        outer.args(["-c", script, "sh"]).arg(program.get_program()).args(inner);
        let _ = &mut program;
        let output = outer.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "alive\n", "{way:?}");
    }
}

#[test]
fn nothing_is_left_on_disk() {
    use std::os::unix::fs::PermissionsExt;
    for way in Way::all().into_iter().filter(|way| way.isolation == "paths") {
        let place = std::env::temp_dir().join(format!("intercept-place-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
        let held = || std::fs::read_dir(&place).unwrap().count();
        let command = |program: &[&str]| {
            let mut command = harness::command(way, &[], program);
            command.env("XDG_RUNTIME_DIR", &place).stdout(Stdio::piped()).stderr(Stdio::null());
            command
        };
        assert!(command(&["/bin/true"]).status().unwrap().success());
        assert_eq!(held(), 0);
        let start = || {
            let mut running = command(&[&client(), "hang"]).process_group(0).spawn().unwrap();
            BufReader::new(running.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
            assert_eq!(held(), 1);
            running
        };
        let janitors = |of: &Child| {
            let children = format!("/proc/{0}/task/{0}/children", of.id());
            let children = std::fs::read_to_string(children).unwrap();
            let named = |pid: &&str| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "vfuse-janitor\n")
            };
            let pids = children.split_ascii_whitespace().filter(named);
            pids.map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect::<Vec<_>>()
        };
        // It gives itself its name once it runs.
        let janitor_of = |of: &Child| {
            eventually("one janitor", || janitors(of).len() == 1);
            janitors(of)[0]
        };
        // Killed alone, and with its whole job.
        for all in [false, true] {
            let mut running = start();
            let janitor = janitor_of(&running);
            let pid = pid_of(&running);
            if all {
                rustix::process::kill_process_group(pid, Signal::KILL).unwrap();
            } else {
                kill_process(pid, Signal::KILL).unwrap();
            }
            running.wait().unwrap();
            eventually("the janitor removes it and ends", || held() == 0 && is_gone(janitor));
        }
        // Killed after its janitor: the next run removes it, once it is no longer fresh.
        let mut running = start();
        kill_process(janitor_of(&running), Signal::KILL).unwrap();
        kill_process(pid_of(&running), Signal::KILL).unwrap();
        running.wait().unwrap();
        eventually("the next run removes it", || {
            assert!(command(&["/bin/true"]).status().unwrap().success());
            held() == 0
        });
        std::fs::remove_dir(place).unwrap();
    }
}

#[test]
fn a_second_supervisor_is_told_why_not() {
    for way in Way::all() {
        let runner = client().replace("client", "runner");
        let ran = run(way, &[&runner, "paths", "/bin/true"]);
        assert_eq!(ran.code, Some(1), "{}", ran.text());
        assert!(ran.stderr.contains("another supervisor"), "{}", ran.text());
    }
}
