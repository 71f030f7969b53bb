// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket of a running lab: HTTP/1.1 and JSON over a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/functions` | every function: address, ids, driver, group, whether open |
//! | `GET /v1/functions/{address}` | one of them, 404 if there is none |
//! | `GET /v1/groups` | IOMMU groups |
//! | `GET /v1/reset-groups` | what is reset together; `?user=ADDRESS,…` asks for a user who has these |
//! | `GET /v1/reset-groups/{address}` | what is reset together with a function |
//! | `GET /v1/vdpa` | devices of the vdpa bus |
//! | `POST /v1/vdpa` | adds one; the body is `MODEL[,key=value]...` |
//! | `POST /v1/vdpa/{name}/delete` | deletes one; answers when nobody has it open any more |
//! | `GET /v1/vdpa/{name}/config` | its configuration |
//! | `GET /v1/vdpa/{name}/vstats/{queue}` | vendor statistics of a queue |
//! | `GET /v1/vdpa/{name}/explain` | what becomes of its mappings, as text |
//! | `POST /v1/aer/inject` | injects errors; the body is in `aer-inject`'s format, `?id=ADDRESS` says where |
//! | `GET /v1/events` and others | [what happens](crate::events) |

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, bail};
use axum::extract::{Path as Segment, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use host::survey::{GroupReport, ResetReport, Survey};
use host::{FunctionInfo, Host};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use pci::Address;

use crate::events::{self, Events};

/// The host, and who is to look at it when it was acted upon.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) host: Arc<Mutex<Host>>,
    pub(crate) waker: intercept::Waker,
    pub(crate) events: Events,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn survey(&self) -> Result<Survey, Refused> {
        let host = self.lock();
        let mut survey = Survey::read(&host.tree(), "/sys").map_err(|e| (StatusCode::NOT_FOUND, format!("{e}\n")))?;
        survey.set_open(|address| host.is_open(address));
        Ok(survey)
    }
}

/// Why a request is not answered.
pub(crate) type Refused = (StatusCode, String);

/// A control socket that is being served; it goes away with this.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens at `path` and answers from a thread of its own.
    pub(crate) fn serve(path: &Path, shared: Shared) -> Result<Control> {
        let listener = listen(path)?;
        listener.set_nonblocking(true).context("control socket")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("control socket")?;
        let router = Router::new()
            .route("/v1/functions", get(functions))
            .route("/v1/functions/{address}", get(function))
            .route("/v1/groups", get(groups))
            .route("/v1/reset-groups", get(reset_groups))
            .route("/v1/reset-groups/{address}", get(reset_group))
            .route("/v1/aer/inject", post(inject))
            .merge(crate::migration::routes())
            .merge(crate::vdpa::routes())
            .merge(events::routes())
            .with_state(shared);
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

async fn functions(State(shared): State<Shared>) -> Json<Vec<FunctionInfo>> {
    Json(shared.lock().functions())
}

async fn function(
    State(shared): State<Shared>,
    Segment(address): Segment<String>,
) -> Result<Json<FunctionInfo>, Refused> {
    let wanted = parse_address(&address)?.to_string();
    let found = shared.lock().functions().into_iter().find(|f| f.address == wanted);
    found.map(Json).ok_or_else(|| absent(&wanted))
}

async fn groups(State(shared): State<Shared>) -> Result<Json<Vec<GroupReport>>, Refused> {
    Ok(Json(shared.survey()?.groups()))
}

async fn reset_groups(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Vec<ResetReport>>, Refused> {
    let user = user(&query)?;
    Ok(Json(shared.survey()?.reset_groups(user.as_deref())))
}

async fn reset_group(
    State(shared): State<Shared>,
    Segment(address): Segment<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<ResetReport>, Refused> {
    let (address, user) = (parse_address(&address)?, user(&query)?);
    let found = shared.survey()?.reset_group(address, user.as_deref());
    found.map(Json).ok_or_else(|| absent(&address.to_string()))
}

/// What was injected, by address. Malformed text is 400 with line and column;
/// what Linux would refuse is 422 with its errno.
async fn inject(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    body: String,
) -> Result<Json<Vec<String>>, Refused> {
    let injections = pci::aer::parse(&body).map_err(|e| (StatusCode::BAD_REQUEST, format!("{e}\n")))?;
    let target = query.get("id").map(|id| parse_address(id)).transpose()?;
    let done = shared.lock().inject(&injections, target);
    // Deadlines and sysfs have changed.
    shared.waker.wake();
    let done = done.map_err(|e| (StatusCode::UNPROCESSABLE_ENTITY, format!("{e}\n")))?;
    Ok(Json(done.into_iter().map(|injected| injected.address.to_string()).collect()))
}

pub(crate) fn parse_address(text: &str) -> Result<Address, Refused> {
    text.parse().map_err(|e: pci::AddressError| (StatusCode::BAD_REQUEST, format!("{e}\n")))
}

fn absent(address: &str) -> Refused {
    (StatusCode::NOT_FOUND, format!("no function at {address}\n"))
}

fn user(query: &HashMap<String, String>) -> Result<Option<Vec<Address>>, Refused> {
    addresses(query, "user")
}

/// A list of addresses, if it is there.
pub(crate) fn addresses(query: &HashMap<String, String>, name: &str) -> Result<Option<Vec<Address>>, Refused> {
    query.get(name).map(|list| list.split(',').map(parse_address).collect()).transpose()
}

/// Asks a running lab; the body of its answer.
pub(crate) fn ask(socket: &Path, path: &str) -> Result<String> {
    send(socket, "GET", path, String::new())
}

/// Makes a running lab do something; the body of its answer.
pub(crate) fn post_to(socket: &Path, path: &str, body: String) -> Result<String> {
    send(socket, "POST", path, body)
}

fn send(socket: &Path, method: &str, path: &str, body: String) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket)
            .await
            .with_context(|| format!("no lab answers at {}; start one with --control", socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let talk = async {
            let request = hyper::Request::builder()
                .method(method)
                .uri(path)
                .header("host", "lab")
                .body(Full::new(Bytes::from(body)))?;
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
