//! Spans over OTLP/HTTP, and `traceparent` in and out.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Unable;
use crate::config;

const SERVICE: &str = "platform-api";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const TRACEPARENT: &str = "traceparent";

/// Makes `span` a child of the remote span that `traceparent` names (W3C Trace Context). A malformed one is ignored.
pub fn parent_from_traceparent(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = TraceContextPropagator::new().extract(&carrier);
    if parent.span().span_context().is_valid() {
        // Refused when the span has been entered already, or when there are no traces: neither is the caller's concern.
        let _ = span.set_parent(parent);
    }
}

/// The `traceparent` that makes a remote span a child of the current one; `None` when traces are off.
#[must_use]
pub fn traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// `None` without an endpoint.
pub(super) fn provider(telemetry: &config::Telemetry) -> Result<Option<SdkTracerProvider>, Unable> {
    let Some(endpoint) = &telemetry.otlp_endpoint else { return Ok(None) };
    // The endpoint may hold credentials, so no error repeats it.
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let parsed = reqwest::Url::parse(&url).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    if parsed.is_none() {
        return Err(Unable::Endpoint("not an http:// or https:// URL".into()));
    }
    // Fails when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(EXPORT_TIMEOUT).build();
    let client = client.map_err(|error| Unable::Endpoint(error.without_url().to_string()))?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(url)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|_| Unable::Endpoint("no exporter could be made for it".into()))?;
    let resource = Resource::builder()
        .with_service_name(SERVICE)
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
        .build();
    Ok(Some(provider))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_leaves_as_the_child_of_its_remote_parent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let telemetry = config::Telemetry { otlp_endpoint: Some(endpoint), ..config::Telemetry::default() };
        let provider = provider(&telemetry).unwrap().unwrap();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = Registry::default().with(layer);
        let onward = tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("commit");
            parent_from_traceparent(&span, "nonsense");
            parent_from_traceparent(&span, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
            span.in_scope(traceparent)
        });
        let onward = onward.unwrap();
        assert!(onward.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{onward}");
        assert!(!onward.contains("b7ad6b7169203331"));

        let collector = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 65_536];
            let mut read = 0;
            // The name of the span is in the body, the last of it to arrive.
            while !bytes[..read].windows(6).any(|part| part == b"commit") {
                read += stream.read(&mut bytes[read..]).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            bytes.truncate(read);
            bytes
        });
        tokio::task::spawn_blocking(move || provider.shutdown()).await.unwrap().unwrap();
        let bytes = collector.await.unwrap();
        assert!(bytes.starts_with(b"POST /v1/traces HTTP/1.1"));
        assert!(bytes.windows(12).any(|part| part == b"platform-api"));
        let parent = 0xb7ad_6b71_6920_3331_u64.to_be_bytes();
        assert!(bytes.windows(8).any(|part| part == parent), "the remote span is the parent");
    }

    #[test]
    fn without_traces_there_is_no_traceparent_and_nothing_breaks() {
        let span = tracing::info_span!("commit");
        parent_from_traceparent(&span, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(span.in_scope(traceparent), None);
        let telemetry =
            config::Telemetry { otlp_endpoint: Some("user:secret@host".into()), ..config::Telemetry::default() };
        assert!(provider(&telemetry).is_err_and(|error| !error.to_string().contains("secret")));
    }
}
