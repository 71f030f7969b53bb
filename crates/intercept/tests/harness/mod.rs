// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs the `runner` example, as this user or as nobody, and reads what it
//! says.
#![allow(dead_code, unreachable_pub)] // each test takes a part of it

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

/// A user without any rights.
const NOBODY: u32 = 65534;

/// A way to run a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub isolation: &'static str,
    pub nobody: bool,
    /// As in a container: namespaces, mounts and `pidfd_getfd` are denied.
    pub denied: bool,
}

impl Way {
    /// Those that this user can try: all as root, the rootless ones as
    /// nobody.
    pub fn all() -> Vec<Way> {
        let root = rustix::process::geteuid().is_root();
        let way = |isolation, nobody| Way { isolation, nobody, denied: false };
        let container = Way { isolation: "auto", nobody: root, denied: true };
        let mut ways = vec![way("userns", root), way("paths", root), container];
        if root {
            ways.push(way("namespaces", false));
        }
        ways
    }
}

/// How a run went.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Ran {
        Ran {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A number of the kernel's line.
    pub fn seen(&self, what: &str) -> u64 {
        let line = self.stderr.lines().find(|line| line.starts_with("kernel: ")).unwrap_or_default();
        let word = line.split(' ').find_map(|word| word.strip_prefix(what)?.strip_prefix('='));
        word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {what} in {}", self.text()))
    }

    pub fn text(&self) -> String {
        format!("code {:?} signal {:?}\n{}\n{}", self.code, self.signal, self.stdout, self.stderr)
    }
}

/// The examples, where nobody can execute them.
fn examples() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        use std::os::unix::fs::PermissionsExt;
        let built = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples");
        let dir = std::env::temp_dir().join(format!("intercept-tests-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["runner", "client"] {
            let copy = dir.join(name);
            std::fs::copy(built.join(name), &copy).unwrap();
            std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        }
        // SAFETY: registers a function that removes a directory.
        #[allow(unsafe_code)]
        unsafe {
            libc::atexit(remove_examples);
        }
        dir
    })
}

extern "C" fn remove_examples() {
    let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("intercept-tests-{}", std::process::id())));
}

/// Path of the client.
pub fn client() -> String {
    examples().join("client").to_str().unwrap().to_owned()
}

/// The runner, ready to be started.
pub fn command(way: Way, options: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(examples().join("runner"));
    command.arg(way.isolation).args(options).args(program).stdin(Stdio::null());
    command.env_remove("XDG_RUNTIME_DIR").env("RUST_BACKTRACE", "0").env("PATH", "/usr/bin:/bin").current_dir("/");
    if way.denied {
        command.env("VFUSE_TEST_DENY", "1");
    }
    if way.nobody {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs a program and takes everything it says.
pub fn runner(way: Way, options: &[&str], program: &[&str]) -> Ran {
    Ran::of(&command(way, options, program).output().unwrap())
}

/// Runs a program.
pub fn run(way: Way, program: &[&str]) -> Ran {
    runner(way, &[], program)
}

/// Starts a program whose output can be read as it comes, in a process group
/// of its own as a shell would.
pub fn spawn(way: Way, program: &[&str]) -> Child {
    command(way, &[], program).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
