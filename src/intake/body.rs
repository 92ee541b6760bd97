//! One HTTP body, from its bytes to its outcomes.

use bytes::Bytes;

use super::arrival::{self, Arrival, Format, Reporter};
use super::cloudevents;
use super::record::{ItemOutcome, NotNow, Recorder};

const EVENTS_ORIGIN: &str = "http:/v1/usage/events";
const LITELLM_ORIGIN: &str = "http:/v1/usage/litellm";
const OPENMETER_ORIGIN: &str = "http:/api/v1/events";

/// What a body is meant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyShape {
    /// Envelopes or CloudEvents; with `ce-*` headers, the data of one binary CloudEvent.
    Events {
        content_type: String,
        ce_headers: Vec<(String, String)>,
    },
    LiteLlm,
    /// CloudEvents in OpenMeter's form, structured.
    OpenMeter,
}

/// Why a body has no outcomes. What it held was not quarantined: its sender still has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("not JSON: {0}")]
    NotJson(String),
    #[error("too many events, at most {limit} are allowed")]
    TooManyItems { limit: usize },
    /// Sending the whole body again is safe.
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

impl Recorder {
    /// Reads and counts one body: one outcome per event, in order, each of them durable.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn record_body(
        &self,
        body: Bytes,
        shape: BodyShape,
        reporter: Reporter,
        request_id: &str,
    ) -> Result<Vec<ItemOutcome>, RecordError> {
        let (format, origin) = match shape {
            BodyShape::Events { .. } => (Format::Events, EVENTS_ORIGIN),
            BodyShape::LiteLlm => (Format::Litellm, LITELLM_ORIGIN),
            BodyShape::OpenMeter => (Format::OpenMeter, OPENMETER_ORIGIN),
        };
        let body = match &shape {
            BodyShape::Events { content_type, ce_headers } => {
                let headers = ce_headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                cloudevents::structured(headers.chain([("content-type", content_type.as_str())]), body)
            }
            BodyShape::LiteLlm | BodyShape::OpenMeter => body,
        };
        let limits = self.limits(format);
        let reading = arrival::read_body(body, format, limits).await;
        let reading = reading.map_err(|_| RecordError::TooManyItems { limit: limits.events_max })?;
        if reading.not_json {
            let reason = reading.items.into_iter().find_map(|item| item.reading.err()).map(|problem| problem.detail);
            return Err(RecordError::NotJson(reason.unwrap_or_default()));
        }
        let arrival = Arrival {
            origin: origin.to_owned(),
            format,
            request_id: request_id.to_owned(),
            patience: self.patience(format),
        };
        Ok(self.record(reading.items, reporter, &arrival).await?)
    }
}
