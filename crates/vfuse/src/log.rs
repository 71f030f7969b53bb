// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where events go: lines on standard error for people, JSON lines in a file
//! for programs, the same lines for who listens to a running lab. All show an
//! event's stable name, its fields and its time.

use std::fmt::{self, Debug, Write as _};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt as format};

use crate::events::Events;

/// Starts logging. `RUST_LOG` wins over `verbose`; the trace file gets
/// everything whatever either says. `listen`: events can be listened to.
pub(crate) fn start(verbose: u8, trace: Option<&Path>, listen: bool) -> Result<Option<Events>> {
    let default = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(default.into()).from_env().context("RUST_LOG")?;
    let start = Start(Instant::now());
    let (events, hub) = listen.then(|| Events::new(start)).unzip();
    let people = format::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .event_format(Line(start))
        .with_filter(filter);
    let file = match trace {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write the trace {}", path.display()))?;
            Some(Trace::begin(file, start).with_filter(ours(LevelFilter::TRACE)))
        }
        None => None,
    };
    tracing_subscriber::registry().with(hub).with(people).with(file).try_init().context("cannot start logging")?;
    Ok(events)
}

/// When logging has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start(Instant);

/// Where the project's own events come from.
const OURS: [&str; 8] = ["vfuse", "vfio", "host", "models", "sys", "intercept", "iommu", "pci"];

/// The project's own events of this level and above.
pub(crate) fn ours(level: LevelFilter) -> EnvFilter {
    let words: Vec<String> = OURS.iter().map(|target| format!("{target}={level}")).collect();
    EnvFilter::new(words.join(","))
}

/// An event's stable name: `vfio.set_iommu`, `nvme.command`, `call`.
pub(crate) fn name(event: &Event<'_>) -> String {
    let metadata = event.metadata();
    let source = metadata.target().trim_start_matches("vfuse::");
    match metadata.name() {
        unnamed if unnamed.starts_with("event ") => source.to_owned(),
        whole if whole.contains('.') => whole.to_owned(),
        part => format!("{source}.{part}"),
    }
}

/// One event a line for people: seconds since the start, level, name, fields.
struct Line(Start);

impl<S, N> format::FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> format::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &format::FmtContext<'_, S, N>,
        mut writer: format::format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = self.0.0.elapsed();
        write!(
            writer,
            "{:4}.{:06} {:5} {} ",
            time.as_secs(),
            time.subsec_micros(),
            event.metadata().level(),
            name(event)
        )?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// One JSON object a line for programs: `ns` since the start, `level`, `event`,
/// and the event's fields.
pub(crate) fn line(event: &Event<'_>, Start(start): Start) -> String {
    let mut fields = Fields(Map::new());
    fields.0.insert("ns".into(), json!(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)));
    fields.0.insert("level".into(), json!(event.metadata().level().as_str()));
    fields.0.insert("event".into(), json!(name(event)));
    event.record(&mut fields);
    let mut line = Value::Object(fields.0).to_string();
    line.push('\n');
    line
}

/// Such lines in a file.
struct Trace {
    start: Start,
    file: Mutex<File>,
}

impl Trace {
    /// The first line says when time 0 was, for those who lay traces side by
    /// side.
    fn begin(mut file: File, start: Start) -> Trace {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(start.0.elapsed());
        let unix = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        let _ = writeln!(file, "{}", json!({ "ns": 0, "level": "INFO", "event": "trace.begin", "unix_ns": unix }));
        Trace { start, file: Mutex::new(file) }
    }
}

impl<S: Subscriber> Layer<S> for Trace {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let line = line(event, self.start);
        // A full disk must not end the run; the program's result counts.
        let _ = self.file.lock().unwrap_or_else(|e| e.into_inner()).write_all(line.as_bytes());
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:?}");
        self.0.insert(field.name().into(), Value::String(text));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), json!(value));
    }
}
