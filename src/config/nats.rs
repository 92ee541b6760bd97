//! `[nats]`: the usage stream, and where alerts are published.

use secrecy::SecretString;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// `nats://…`; NATS is off without it.
    pub url: Option<SecretString>,
    pub stream: String,
    pub consumer: String,
    /// Where usage events arrive; `<subject>.<tenantId>` too.
    pub subject: String,
    /// Where alerts are published, and the stream that keeps them.
    pub alert_subject: String,
    pub alert_stream: String,
    /// Messages of one pull.
    pub pull_messages: usize,
    /// Events read and not yet counted, for the whole node, and their bytes.
    pub in_flight_events: usize,
    pub in_flight_bytes: usize,
    /// Messages delivered and not yet acknowledged: those in flight, and those that wait for an older one.
    pub ack_pending_max: usize,
    pub ack_wait_ms: u64,
    /// Events that their tenant cannot take for this long are parked in quarantine until it can.
    pub park_after_ms: u64,
}

impl Default for Nats {
    fn default() -> Nats {
        Nats {
            url: None,
            stream: "USAGE".into(),
            consumer: "platform-api".into(),
            subject: "quota.updated".into(),
            alert_subject: "quota.alert".into(),
            alert_stream: "QUOTA_ALERTS".into(),
            pull_messages: 2_000,
            in_flight_events: 32_000,
            in_flight_bytes: 64 * 1024 * 1024,
            ack_pending_max: 200_000,
            ack_wait_ms: 30_000,
            park_after_ms: 10_000,
        }
    }
}
