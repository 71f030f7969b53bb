// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens in a running lab, for whoever listens at its control socket:
//! the events of `--trace`, one JSON object a line, as they happen.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/events` | events from now on; `?names=aer.,vfio.` only those whose names begin so, `?level=debug` or `trace` more than `info` |
//! | `POST /v1/aer/take?device=ADDRESS,…` | the same of `aer.` events; while it is read, non-fatal errors of these devices (`&fatal=true`: fatal ones too) are told here in place of the ERR eventfd |
//! | `POST /v1/aer/answered?device=ADDRESS,…` | the users of these devices know of the errors told so far |
//!
//! The first line is an event `events.start`. While nobody listens, events cost
//! nothing. A listener that does not keep up loses events and is told how many
//! by `events.lost`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use host::TakerId;
use hyper::body::{Bytes, Frame};
use pci::Address;
use tokio::sync::mpsc;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::{Layer, Registry, layer, reload};

use crate::control::{Refused, Shared, addresses};
use crate::log;

/// Listeners at a time.
const LISTENERS: usize = 64;
/// Events that a listener may be late.
const BEHIND: usize = 4096;

type Listeners = Mutex<Vec<Arc<Listener>>>;

/// Who listens.
#[derive(Clone)]
pub(crate) struct Events {
    listeners: Arc<Listeners>,
    filter: reload::Handle<EnvFilter, Registry>,
}

/// One who listens.
struct Listener {
    level: LevelFilter,
    /// Beginnings of the names wanted; empty for all.
    names: Vec<String>,
    lines: mpsc::Sender<String>,
    lost: AtomicU64,
}

/// Hands events to listeners.
pub(crate) struct Hub(Arc<Listeners>, log::Start);

fn lock(listeners: &Listeners) -> MutexGuard<'_, Vec<Arc<Listener>>> {
    listeners.lock().unwrap_or_else(|e| e.into_inner())
}

impl Events {
    /// And the layer that makes events come.
    pub(crate) fn new(start: log::Start) -> (Events, impl Layer<Registry>) {
        let listeners = Arc::new(Listeners::default());
        let (filter, handle) = reload::Layer::new(log::ours(LevelFilter::OFF));
        let hub = Hub(Arc::clone(&listeners), start).with_filter(filter);
        (Events { listeners, filter: handle }, hub)
    }

    fn listen(&self, level: LevelFilter, names: Vec<String>) -> Result<Stream, Refused> {
        let mut listeners = lock(&self.listeners);
        if listeners.len() >= LISTENERS {
            return Err((StatusCode::SERVICE_UNAVAILABLE, format!("{LISTENERS} listen already\n")));
        }
        let (lines, receiver) = mpsc::channel(BEHIND);
        let listener = Arc::new(Listener { level, names, lines, lost: AtomicU64::new(0) });
        let _ = listener.lines.try_send("{\"event\":\"events.start\"}\n".into());
        listeners.push(Arc::clone(&listener));
        drop(listeners);
        self.adjust();
        Ok(Stream { lines: receiver, listener, events: self.clone(), taken: None })
    }

    /// Events are made as far as somebody wants them.
    fn adjust(&self) {
        let most = lock(&self.listeners).iter().map(|l| l.level).max().unwrap_or(LevelFilter::OFF);
        if self.filter.reload(log::ours(most)).is_err() {
            tracing::error!("events cannot be listened to: logging has ended");
        }
    }
}

impl<S: Subscriber> Layer<S> for Hub {
    fn on_event(&self, event: &Event<'_>, _context: layer::Context<'_, S>) {
        // No lock is held while lines are made: that may bring events about.
        let listeners = lock(&self.0).clone();
        let name = log::name(event);
        let mut line = None;
        for listener in listeners {
            if *event.metadata().level() > listener.level
                || !(listener.names.is_empty() || listener.names.iter().any(|n| name.starts_with(n)))
            {
                continue;
            }
            let line: &mut String = line.get_or_insert_with(|| log::line(event, self.1));
            // What was lost is told of where it was lost.
            let lost = listener.lost.swap(0, Ordering::Relaxed);
            let sent = (lost == 0 || listener.lines.try_send(lost_line(lost)).is_ok())
                && listener.lines.try_send(line.clone()).is_ok();
            if !sent {
                listener.lost.fetch_add(lost + 1, Ordering::Relaxed);
            }
        }
    }
}

fn lost_line(count: u64) -> String {
    format!("{{\"event\":\"events.lost\",\"count\":{count}}}\n")
}

/// The body of an answer that goes on until the listener goes.
struct Stream {
    lines: mpsc::Receiver<String>,
    listener: Arc<Listener>,
    events: Events,
    taken: Option<(Shared, TakerId)>,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = match self.lines.poll_recv(cx) {
            // He has caught up.
            Poll::Pending => match self.listener.lost.swap(0, Ordering::Relaxed) {
                0 => return Poll::Pending,
                lost => Some(lost_line(lost)),
            },
            Poll::Ready(line) => line,
        };
        Poll::Ready(line.map(|line| Ok(Frame::data(Bytes::from(line)))))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.events.listeners).retain(|listener| !Arc::ptr_eq(listener, &self.listener));
        if let Some((shared, taker)) = self.taken.take() {
            shared.lock().give_errors_back(taker);
        }
        self.events.adjust();
    }
}

impl IntoResponse for Stream {
    fn into_response(self) -> Response {
        ([("content-type", "application/x-ndjson")], Body::new(self)).into_response()
    }
}

pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/events", get(events))
        .route("/v1/aer/take", post(take))
        .route("/v1/aer/answered", post(answered))
}

async fn events(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Refused> {
    let level = match query.get("level").map_or("info", String::as_str) {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        other => {
            let message = format!("`{other}` is not a level: error, warn, info, debug, trace\n");
            return Err((StatusCode::BAD_REQUEST, message));
        }
    };
    let names = query.get("names").map_or_else(Vec::new, |list| list.split(',').map(str::to_owned).collect());
    Ok(shared.events.listen(level, names)?.into_response())
}

async fn take(State(shared): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Result<Response, Refused> {
    let devices = devices(&query)?;
    let fatal = query.get("fatal").is_some_and(|fatal| fatal == "true");
    let mut stream = shared.events.listen(LevelFilter::INFO, vec!["aer.".into()])?;
    let taken = shared.lock().take_errors(&devices, fatal);
    let taker = taken.map_err(|error| {
        let status = match error {
            host::NotTaken::NoFunction(_) => StatusCode::NOT_FOUND,
            host::NotTaken::NotVfio(_) | host::NotTaken::Taken(_) => StatusCode::CONFLICT,
        };
        (status, format!("{error}\n"))
    })?;
    stream.taken = Some((shared, taker));
    Ok(stream.into_response())
}

/// How many notices were owed.
async fn answered(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<String, Refused> {
    let devices = devices(&query)?;
    let mut host = shared.lock();
    Ok(devices.into_iter().filter(|device| host.answered_error(*device)).count().to_string())
}

fn devices(query: &HashMap<String, String>) -> Result<Vec<Address>, Refused> {
    addresses(query, "device")?.ok_or_else(|| (StatusCode::BAD_REQUEST, "`device=ADDRESS,…` is missing\n".into()))
}
