// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's monitor: JSON lines over a Unix socket (QMP).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// How long a monitor may take to greet.
const PATIENCE: Duration = Duration::from_secs(10);

/// A monitor, ready for commands.
pub(super) struct Monitor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    sent: u64,
}

impl Monitor {
    pub(super) async fn connect(socket: &Path) -> Result<Monitor> {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            let shown = socket.display();
            format!("no monitor answers at {shown}; start QEMU with -qmp unix:{shown},server=on,wait=off")
        })?;
        let (reader, writer) = stream.into_split();
        let mut monitor = Monitor { lines: BufReader::new(reader).lines(), writer, sent: 0 };
        let greeting = tokio::time::timeout(PATIENCE, monitor.line()).await.with_context(|| {
            let shown = socket.display();
            format!("{shown} does not answer: QEMU serves one client at a monitor; give it another -qmp")
        })??;
        if greeting.is_none_or(|greeting| greeting.get("QMP").is_none()) {
            bail!("{} is not a QMP monitor", socket.display());
        }
        monitor.run("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// The next line; `None` when QEMU has ended.
    async fn line(&mut self) -> Result<Option<Value>> {
        match self.lines.next_line().await {
            Ok(Some(line)) => Ok(Some(serde_json::from_str(&line).context("the monitor's answer")?)),
            // It may end in the middle of things.
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// The name of the next event; `None` when QEMU has ended.
    pub(super) async fn event(&mut self) -> Result<Option<String>> {
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if let Some(name) = line.get("event").and_then(Value::as_str) {
                return Ok(Some(name.to_owned()));
            }
        }
    }

    /// Runs a command; what it returns.
    pub(super) async fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.sent += 1;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": self.sent }).to_string();
        text.push('\n');
        self.writer.write_all(text.as_bytes()).await.context("QEMU has ended")?;
        loop {
            let mut line = self.line().await?.context("QEMU has ended")?;
            if line.get("id").and_then(Value::as_u64) != Some(self.sent) {
                continue;
            }
            if let Some(error) = line.get("error") {
                bail!("{command}: {}", error.get("desc").and_then(Value::as_str).unwrap_or("refused"));
            }
            return Ok(line.get_mut("return").map(Value::take).unwrap_or_default());
        }
    }

    /// Runs a command for people; what it prints.
    pub(super) async fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.run("human-monitor-command", json!({ "command-line": line })).await?;
        Ok(answer.as_str().unwrap_or_default().trim_end().to_owned())
    }

    /// A property of an object.
    pub(super) async fn property(&mut self, path: &str, property: &str) -> Result<Value> {
        self.run("qom-get", json!({ "path": path, "property": property })).await
    }

    /// Properties of an object: name and type.
    pub(super) async fn list(&mut self, path: &str) -> Result<Vec<(String, String)>> {
        let answer = self.run("qom-list", json!({ "path": path })).await?;
        let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let entries = answer.as_array().into_iter().flatten();
        Ok(entries.map(|entry| (text(entry, "name"), text(entry, "type"))).collect())
    }
}
