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

/// How a block begins. What follows in its line is a status: the server's own word.
const VERSION: &str = "NATS/1.0";

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    subject: String,
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
        // What was no text in the subject, the server has replaced. With headers, the client divides its line at any space.
        let is_strange = |letter: char| {
            letter == char::REPLACEMENT_CHARACTER || (!self.headers.is_empty() && letter.is_whitespace())
        };
        !self.subject.contains(is_strange) && (self.headers.is_empty() || are_readable(&self.headers))
    }

    /// The subject as the client hands it on.
    pub(super) fn subject(&self) -> &str {
        if self.headers.is_empty() { &self.subject } else { self.subject.trim() }
    }
}

/// As the client reads a block: lines end at a line feed, and one that begins with a space belongs to the header before it.
fn are_readable(headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else { return false };
    let mut lines = text.lines().peekable();
    let status = lines.next().and_then(|line| line.strip_prefix(VERSION)).map(|rest| rest.split_whitespace().next());
    if !matches!(status, Some(None | Some("200"))) {
        return false;
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else { return false };
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        if HeaderName::from_str(name).is_err() || HeaderValue::from_str(value.trim_end()).is_err() {
            return false;
        }
    }
    true
}

/// Header blocks that end a session, each in its own way.
#[cfg(test)]
pub(in crate::intake) const POISON: [&[u8]; 13] = [
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
    b"NATS/1.0\r\n x\r\n\r\n",
    b"NATS/1.0\r\n a: b\r\n\r\n",
    b"NATS/1.0\r\na: b\r\n\r\n c\r\n\r\n",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_the_client_cannot_hand_on_are_known() {
        let readable: [&[u8]; 6] = [
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0\r\nce-id: 1\r\nce-source: /a b\r\n\r\n",
            b"NATS/1.0\r\nempty:\r\n\r\n",
            b"NATS/1.0\r\nlong: a\r\n b\r\n\r\n",
            b"NATS/1.0\r\na: b\nc: d\r\n\r\n",
            b"NATS/1.0 200 OK\r\na: b\r\n\r\n",
        ];
        assert!(readable.iter().all(|headers| are_readable(headers)));
        for headers in POISON {
            assert!(!are_readable(headers), "{}", String::from_utf8_lossy(headers));
        }
        assert!(!are_readable(b"garbage"));
        let stored = |subject: &str, headers: &[u8]| Stored {
            sequence: 1,
            subject: subject.to_owned(),
            headers: headers.to_vec(),
            payload: Bytes::new(),
            at_nanos: 0,
        };
        let plain: &[u8] = b"NATS/1.0\r\n\r\n";
        assert!(stored("a.b", plain).is_readable() && stored("a.b\u{3000}c", b"").is_readable());
        assert!(!stored("a.b\u{3000}c", plain).is_readable() && !stored("a.\u{fffd}", b"").is_readable());
        assert_eq!([stored("a\u{3000}", plain).subject(), stored("a\u{3000}", b"").subject()], ["a", "a\u{3000}"]);
    }
}
