//! `[nats]`: the usage stream, and where alerts are published.

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
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
    /// Events read and not yet counted, for the whole node, and their bytes. Up to two pulls of at most 8 MiB each, or of
    /// the server's longest message, are on their way beside them.
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

/// Who the servers' URLs say we are: a user with a password, or a token. The client library reads their addresses alone.
#[must_use]
pub fn nats_login(url: &SecretString) -> Option<(String, Option<String>)> {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let of = |one: &str| {
        let url = reqwest::Url::parse(one.trim()).ok().filter(|url| !url.username().is_empty())?;
        Some((plain(url.username()), url.password().map(plain)))
    };
    url.expose_secret().split(',').find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_say_who_we_are() {
        let login = |url: &str| nats_login(&SecretString::from(url));
        assert_eq!(login("nats://127.0.0.1:4222"), None);
        assert_eq!(login("127.0.0.1:4222"), None);
        assert_eq!(login("nats://t0ken@nats:4222"), Some(("t0ken".into(), None)));
        let expected = Some(("ada".into(), Some("p@ss/word".into())));
        assert_eq!(login("nats://ada:p%40ss%2Fword@nats:4222"), expected);
        assert_eq!(login("nats://one:4222, tls://ada:p%40ss%2Fword@two:4222"), expected);
    }
}
