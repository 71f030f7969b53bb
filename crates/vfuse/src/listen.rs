// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other side of a lab's events: an answer that is read line by line, and
//! `vfuse events`.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;

use crate::args::Events;

/// An answer that goes on.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// Asks a running lab, from inside a runtime.
    pub(crate) async fn open(socket: &Path, method: &str, path: &str) -> Result<Lines> {
        let stream = tokio::net::UnixStream::connect(socket)
            .await
            .with_context(|| format!("no lab answers at {}; start one with --control", socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the body.
        tokio::spawn(connection);
        let request =
            hyper::Request::builder().method(method).uri(path).header("host", "lab").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body();
        if !status.is_success() {
            let complaint = body.collect().await?.to_bytes();
            bail!("{}", String::from_utf8_lossy(&complaint).trim_end());
        }
        Ok(Lines { body, buffer: Vec::new() })
    }

    /// The next line; `None` when the lab has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.into_data().unwrap_or_default()),
                // A lab that ends does not say good-bye.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// Prints events as they come.
pub(crate) fn events(command: &Events) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let names =
            if command.names.is_empty() { String::new() } else { format!("&names={}", command.names.join(",")) };
        let path = format!("/v1/events?level={}{names}", command.level);
        let mut lines = Lines::open(&command.control, "GET", &path).await?;
        let mut out = std::io::stdout();
        while let Some(line) = lines.next().await? {
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                other => other.context("standard output")?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
