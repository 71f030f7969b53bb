// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket of a running lab: HTTP/1.1 and JSON over a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/functions` | every function: address, ids, driver, group, whether open |
//! | `GET /v1/functions/{address}` | one of them, 404 if there is none |

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use host::{FunctionInfo, Host};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

type Shared = Arc<Mutex<Host>>;

/// A control socket that is being served; it goes away with this.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens at `path` and answers from a thread of its own.
    pub(crate) fn serve(path: &Path, host: Shared) -> Result<Control> {
        let listener = listen(path)?;
        listener.set_nonblocking(true).context("control socket")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("control socket")?;
        let router = Router::new()
            .route("/v1/functions", get(functions))
            .route("/v1/functions/{address}", get(function))
            .with_state(host);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                runtime.block_on(async move {
                    let served = match tokio::net::UnixListener::from_std(listener) {
                        Ok(listener) => axum::serve(listener, router).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = served {
                        tracing::error!(%error, "the control socket has failed");
                    }
                });
            })
            .context("control socket")?;
        Ok(Control { path: path.to_owned() })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Whether it is still there or not, nobody listens any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket left by a lab that was killed is taken over; one that answers is not.
fn listen(path: &Path) -> Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .with_context(|| format!("cannot listen at {}; is another lab using it?", path.display()))
}

async fn functions(State(host): State<Shared>) -> Json<Vec<FunctionInfo>> {
    Json(host.lock().unwrap_or_else(|e| e.into_inner()).functions())
}

async fn function(
    State(host): State<Shared>,
    Segment(address): Segment<String>,
) -> Result<Json<FunctionInfo>, (StatusCode, String)> {
    let wanted: pci::Address = address.parse().map_err(|e| (StatusCode::BAD_REQUEST, format!("{e}\n")))?;
    let wanted = wanted.to_string();
    let all = host.lock().unwrap_or_else(|e| e.into_inner()).functions();
    let found = all.into_iter().find(|f| f.address == wanted);
    found.map(Json).ok_or_else(|| (StatusCode::NOT_FOUND, format!("no function at {wanted}\n")))
}

/// Asks a running lab; the body of its answer.
pub(crate) fn ask(socket: &Path, request: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket)
            .await
            .with_context(|| format!("no lab answers at {}; start one with --control", socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let talk = async {
            let request = hyper::Request::get(request).header("host", "lab").body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            if !status.is_success() {
                bail!("{}", body.trim_end());
            }
            Ok(body)
        };
        tokio::pin!(talk);
        tokio::pin!(connection);
        tokio::select! {
            answer = &mut talk => answer,
            closed = &mut connection => {
                closed?;
                talk.await
            }
        }
    })
}
