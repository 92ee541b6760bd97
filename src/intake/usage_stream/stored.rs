//! Messages as the stream holds them, asked for by their place. Not as the client would hand them on: it ends the connection
//! at headers that it cannot read, and takes a message whose headers have a status for the server's own word. Anybody who may
//! publish can write such headers, and the message would then end each session that reads up to it, for everybody.

use std::str::FromStr;

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context, ErrorCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::resume::nanos;

/// The server's own words for "this is what comes now".
const VERSION_LINE: &str = "NATS/1.0\r\n";

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) subject: String,
    /// The block as it was sent; empty when there is none.
    headers: Vec<u8>,
    pub(super) payload: Bytes,
    /// When the server took it.
    pub(super) at_nanos: i64,
}

/// Why a message could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error("no message stands there")]
    Absent,
    #[error("{0}")]
    Refused(async_nats::jetstream::Error),
    #[error("{0}")]
    Unanswered(String),
}

#[derive(Deserialize)]
struct Answer {
    message: Raw,
}

/// As `$JS.API.STREAM.MSG.GET` answers: NATS ADR-31.
#[derive(Deserialize)]
struct Raw {
    seq: u64,
    subject: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: jiff::Timestamp,
}

/// The message at `sequence`.
pub(super) async fn at(context: &Context, stream: &str, sequence: u64) -> Result<Stored, Unread> {
    ask(context, stream, &json!({ "seq": sequence })).await
}

/// The first message at `sequence` or behind it.
pub(super) async fn from(context: &Context, stream: &str, sequence: u64) -> Result<Stored, Unread> {
    ask(context, stream, &json!({ "seq": sequence, "next_by_subj": ">" })).await
}

async fn ask(context: &Context, stream: &str, question: &serde_json::Value) -> Result<Stored, Unread> {
    let answer = context.request(format!("STREAM.MSG.GET.{stream}"), question).await;
    let raw = match answer.map_err(|error| Unread::Unanswered(error.to_string()))? {
        Response::Ok(Answer { message }) => message,
        Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => return Err(Unread::Absent),
        Response::Err { error } => return Err(Unread::Refused(error)),
    };
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| Unread::Unanswered(error.to_string()));
    Ok(Stored {
        sequence: raw.seq,
        subject: raw.subject,
        headers: bytes(&raw.hdrs)?,
        payload: bytes(&raw.data)?.into(),
        at_nanos: nanos(raw.time.as_nanosecond()),
    })
}

impl Stored {
    /// Would the client hand it on?
    pub(super) fn is_readable(&self) -> bool {
        self.headers.is_empty() || are_readable(&self.headers)
    }
}

fn are_readable(headers: &[u8]) -> bool {
    let lines = std::str::from_utf8(headers).ok().and_then(|text| text.strip_prefix(VERSION_LINE));
    lines.is_some_and(|lines| lines.split("\r\n").filter(|line| !line.is_empty()).all(is_readable))
}

fn is_readable(line: &str) -> bool {
    // The end of the line before.
    if let Some(rest) = line.strip_prefix([' ', '\t']) {
        return HeaderValue::from_str(rest).is_ok();
    }
    line.split_once(':')
        .is_some_and(|(name, value)| HeaderName::from_str(name).is_ok() && HeaderValue::from_str(value.trim()).is_ok())
}

/// Header blocks that end a session, each in its own way.
#[cfg(test)]
pub(in crate::intake) const POISON: [&[u8]; 10] = [
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 409 Nonsense\r\n\r\n",
    b"NATS/1.0 abc\r\n\r\n",
    b"NATS/1.0\r\nce-subject: caf\xe9\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nbad name: x\r\n\r\n",
    b"NATS/1.0\r\nvalue: a\rb\r\n\r\n",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_the_client_cannot_hand_on_are_known() {
        let readable: [&[u8]; 4] = [
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0\r\nce-id: 1\r\nce-source: /a b\r\n\r\n",
            b"NATS/1.0\r\nempty:\r\n\r\n",
            b"NATS/1.0\r\nlong: a\r\n b\r\n\r\n",
        ];
        assert!(readable.iter().all(|headers| are_readable(headers)));
        for headers in POISON {
            assert!(!are_readable(headers), "{}", String::from_utf8_lossy(headers));
        }
        assert!(!are_readable(b"garbage"));
    }
}
