//! Log lines: one JSON object per line on stderr, or text for people on a terminal.
//!
//! A line is flat: `timestamp`, `level`, `target`, `message`, `trace_id` if there is one, the fields of the spans around
//! it from the outermost in, and its own fields, which win.

use std::fmt;
use std::io::{IsTerminal, Write};

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::Unable;
use crate::clock::Clock;
use crate::config;

/// Rooms of others that trace the export of traces itself.
const NEVER_EXPORTED: [&str; 4] = ["hyper", "reqwest", "h2", "opentelemetry"];

pub(super) fn install(telemetry: &config::Telemetry, traces: Option<&SdkTracerProvider>) -> Result<(), Unable> {
    let filter = EnvFilter::try_new(&telemetry.log).map_err(|error| Unable::Filter(error.to_string()))?;
    let spans = traces.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("platform-api"))
            .with_filter(filter_fn(|metadata| !NEVER_EXPORTED.iter().any(|room| metadata.target().starts_with(room))))
    });
    let text = match telemetry.log_format.as_str() {
        "text" => true,
        "json" => false,
        _ => std::io::stderr().is_terminal(),
    };
    let lines: Box<dyn Layer<_> + Send + Sync> = if text {
        Box::new(
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()),
        )
    } else {
        Box::new(JsonLines::new(std::io::stderr, Clock::system()))
    };
    let installed = Registry::default().with(spans).with(lines).with(filter).try_init();
    installed.map_err(|error| Unable::Twice(error.to_string()))?;
    if !text {
        log_panics();
    }
    Ok(())
}

/// A panic is caught by whoever supervises the task; it must not break the stream of JSON lines.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(panic = text, location, "panicked");
    }));
}

/// Writes events as JSON lines.
#[derive(Debug)]
pub struct JsonLines<W> {
    writer: W,
    clock: Clock,
}

/// The fields of a span, kept with it.
#[derive(Debug, Default)]
struct Fields(Map<String, Value>);

impl<W> JsonLines<W> {
    #[must_use]
    pub fn new(writer: W, clock: Clock) -> JsonLines<W> {
        JsonLines { writer, clock }
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Fields::default();
        line.0.insert("timestamp".into(), Value::String(self.clock.now().to_string()));
        line.0.insert("level".into(), Value::from(metadata.level().as_str()));
        line.0.insert("target".into(), Value::from(metadata.target()));
        let current = opentelemetry::Context::current();
        let trace = current.span().span_context().clone();
        if trace.is_valid() {
            line.0.insert("trace_id".into(), Value::String(trace.trace_id().to_string()));
        }
        for span in context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.0.extend(fields.0.clone());
            }
        }
        event.record(&mut line);
        // One write per line: lines of different threads do not mix.
        let mut text = Value::Object(line.0).to_string();
        text.push('\n');
        // There is no other place to complain to.
        let _ = self.writer.make_writer_for(metadata).write_all(text.as_bytes());
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_flat_and_carries_its_spans() {
        let paper = Paper::default();
        let writer = paper.clone();
        let clock = Clock::held_at("2026-11-20T15:37:12.345Z".parse().unwrap());
        let subscriber = Registry::default().with(JsonLines::new(move || writer.clone(), clock));
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("request", request_id = "r-1", tenant = tracing::field::Empty);
            outer.record("tenant", "t-1");
            let _entered = outer.enter();
            let _inner = tracing::info_span!("commit", events = 3, tenant = "t-2").entered();
            tracing::warn!(events = 4_u64, late = true, "line\nbreak \"quoted\"");
        });
        tracing::subscriber::with_default(Registry::default(), || tracing::info!("not for this paper"));
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "timestamp": "2026-11-20T15:37:12.345Z", "level": "WARN", "target": "platform_api::telemetry::logs::tests",
            "message": "line\nbreak \"quoted\"", "request_id": "r-1", "tenant": "t-2", "events": 4, "late": true,
        });
        assert_eq!(line, expected);
    }
}
