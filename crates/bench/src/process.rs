// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs that are run: `vfuse` itself and clients that do what they
//! are told through a pipe.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::client;

/// The program to measure.
pub(crate) fn vfuse() -> Result<PathBuf> {
    let path = match std::env::var_os("VFUSE") {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("vfuse"),
    };
    if !path.exists() {
        bail!("there is no {}: cargo build --release -p vfuse, or say in VFUSE where it is", path.display());
    }
    Ok(path)
}

/// `vfuse run` with these options; `--` and the program are still to come.
pub(crate) fn vfuse_run<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut command = Command::new(vfuse()?);
    command.env_remove("RUST_LOG").arg("run").args(options).arg("--");
    Ok(command)
}

/// This program as a client of the kind `kind`.
pub(crate) fn own(kind: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([client::WORD, kind]);
    Ok(command)
}

/// A client of VFIO under `vfuse run` with these options.
pub(crate) fn under_vfuse<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    under_vfuse_as(client::VFIO, options)
}

/// The same of another kind.
pub(crate) fn under_vfuse_as<'a>(kind: &str, options: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut command = vfuse_run(options)?;
    command.arg(std::env::current_exe()?).args([client::WORD, kind]);
    Ok(command)
}

/// A client that waits for orders.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Client {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(mut command: Command) -> Result<Client> {
        let shown = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut client = Client { child, to, from };
        client.answer().with_context(|| format!("the client is not ready: {shown}"))?;
        Ok(client)
    }

    /// Pid of the program that was started: `vfuse` for a client under it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something `count` times; what it answers, mostly ns each.
    pub(crate) fn ask(&mut self, what: &str, count: u64) -> Result<f64> {
        let to = self.to.as_mut().context("no pipe")?;
        writeln!(to, "{what} {count}").context("the client is gone")?;
        self.answer().with_context(|| format!("{what} {count}"))
    }

    fn answer(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match line.trim_end().split_once(' ') {
            Some(("ok", value)) => Ok(value.parse()?),
            Some(("error", text)) => bail!("{text}"),
            _ => bail!("the client has ended"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A client ends when it can get no more orders.
        self.to = None;
        let _ = self.child.wait();
    }
}
