//! What we say about ourselves: logs on stderr, metrics in Prometheus text, traces over OTLP.
//!
//! [`init`] sets all three up, once per process. [`logs`] writes the lines, [`traces`] exports spans and carries
//! `traceparent`, [`metric`] holds every metric's name on one page. Nothing here knows any other room but the
//! configuration and the clock.

pub mod logs;
pub mod metric;
pub mod traces;

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::task::AbortHandle;

use crate::config;

pub use traces::{parent_from_traceparent, traceparent};

/// How often the exporter folds what histograms gathered, so that memory does not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the last spans may take to leave.
const FLUSH: Duration = Duration::from_secs(3);

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
pub enum Unable {
    #[error("telemetry.log: not a filter, such as info,platform_api=debug: {0}")]
    Filter(String),
    #[error("telemetry.otlp_endpoint: {0}")]
    Endpoint(String),
    #[error("telemetry is set up already: {0}")]
    Twice(String),
}

/// Telemetry that runs; [`flush`](Telemetry::flush) it last.
#[derive(Debug)]
pub struct Telemetry {
    metrics: PrometheusHandle,
    upkeep: AbortHandle,
    traces: Option<SdkTracerProvider>,
}

/// Sets up logs, metrics and, with an endpoint, traces. Must be called within the runtime, and once per process.
///
/// # Errors
/// [`Unable`].
pub fn init(telemetry: &config::Telemetry) -> Result<Telemetry, Unable> {
    let traces = traces::provider(telemetry)?;
    logs::install(telemetry, traces.as_ref())?;
    let recorder = metric::recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| Unable::Twice(error.to_string()))?;
    metric::describe();
    let folded = handle.clone();
    let upkeep = tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            folded.run_upkeep();
        }
    });
    Ok(Telemetry { metrics: handle, upkeep: upkeep.abort_handle(), traces })
}

impl Telemetry {
    /// What renders the text of `GET /metrics`. Cheap to clone.
    #[must_use]
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// The text of `GET /metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        self.metrics.render()
    }

    /// Sends the last spans; waits for that a few seconds at most.
    pub async fn flush(self) {
        self.upkeep.abort();
        let Some(traces) = self.traces.clone() else { return };
        // The provider blocks its thread until the exporter, which needs ours, has finished.
        let flushed = tokio::task::spawn_blocking(move || traces.shutdown_with_timeout(FLUSH));
        if !matches!(tokio::time::timeout(FLUSH, flushed).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last spans could not be exported");
        }
    }
}

/// A URL as it may be shown: without user, password, query and fragment.
///
/// Reads the text rather than parsing it, so that a malformed URL keeps its secrets too: whatever stands between the
/// scheme and the last `@` is left out, and a text without a scheme is not shown at all. Several URLs may be separated
/// by commas.
#[must_use]
pub fn redacted(url: &str) -> String {
    if url.starts_with("sqlite:") && !url.contains(['@', '?']) {
        return url.to_owned();
    }
    let one = |url: &str| {
        let Some((scheme, rest)) = url.trim().split_once("://") else { return "***".to_owned() };
        let scheme = if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
            scheme
        } else {
            "***"
        };
        match rest.rsplit_once('@') {
            Some((_, place)) => format!("{scheme}://***@{}", until(place)),
            None => format!("{scheme}://{}", until(rest)),
        }
    };
    let mut urls: Vec<String> = Vec::new();
    for part in url.split(',') {
        match urls.last_mut() {
            // A comma within a URL, perhaps within its password.
            Some(last) if !part.contains("://") => *last = format!("{last},{part}"),
            _ => urls.push(part.to_owned()),
        }
    }
    urls.iter().map(|url| one(url)).collect::<Vec<_>>().join(",")
}

fn until(place: &str) -> &str {
    place.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_survives_redaction() {
        for (url, shown) in [
            ("redis://:s3cret@cache:6379/1", "redis://***@cache:6379/1"),
            ("rediss://user:s3cret@cache:6380", "rediss://***@cache:6380"),
            ("nats://s3cret@one:4222,nats://user:s3cret@two:4222", "nats://***@one:4222,nats://***@two:4222"),
            ("nats://user:s3,cret@one:4222", "nats://***@one:4222"),
            ("nats://one:4222,two:4222", "nats://one:4222,two:4222"),
            ("postgres://user:s3/cr@et@db/platform?sslmode=require", "postgres://***@db/platform"),
            ("postgres://db/platform?password=s3cret", "postgres://db/platform"),
            ("http://collector:4318", "http://collector:4318"),
            ("host=db password=s3cret", "***"),
            ("user:s3cret@cache", "***"),
            ("user:s3cret@x://cache", "***://cache"),
            ("sqlite:./data", "sqlite:./data"),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }
}
