//! Kept-alive HTTP connections with as little between the socket and us as will do: what the client spends is taken from
//! the daemon on the same cores. [`Link`] waits in a task, [`Wire`] in a thread.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a thread waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
const BROKEN: &str = "the connection was closed before the answer was complete";

pub(crate) struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer's status and where its parts stand in the buffer.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) head: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        let text = String::from_utf8_lossy(self.body);
        if !(200..300).contains(&self.status) {
            bail!("answered {}: {text}", self.status);
        }
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// A header's value; `name` in lower case, as our servers' HTTP library and nginx's names are compared.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(self.head).ok()?;
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value.trim()))
    }
}

impl Link {
    pub(crate) async fn to(address: &str) -> anyhow::Result<Link> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Link { stream, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request that was written before, and reads its answer to the end.
    pub(crate) async fn send(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let mut parts = None;
        while parts.is_none() {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!(BROKEN);
            }
            parts = Parts::complete(&self.buffer)?;
        }
        parts.map(|parts| parts.of(&self.buffer)).context(BROKEN)
    }
}

/// A connection that a thread waits for.
pub(crate) struct Wire {
    stream: std::net::TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Wire {
    pub(crate) fn to(address: &str) -> anyhow::Result<Wire> {
        let stream = std::net::TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Wire { stream, buffer: vec![0; 64 * 1024], filled: 0 })
    }

    /// Sends a request that was written before, and reads its answer to the end.
    pub(crate) fn send(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request)?;
        self.filled = 0;
        loop {
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.filled * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                bail!(BROKEN);
            }
            self.filled += read;
            if let Some(parts) = Parts::complete(&self.buffer[..self.filled])? {
                return Ok(parts.of(&self.buffer));
            }
        }
    }
}

/// Where the parts of an answer stand.
struct Parts {
    status: u16,
    head: usize,
    end: usize,
}

impl Parts {
    /// `None` while there is more to come.
    fn complete(bytes: &[u8]) -> anyhow::Result<Option<Parts>> {
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let answer = Answer { status: 0, head: &bytes[..head + 4], body: &[] };
        let status = std::str::from_utf8(answer.head.get(9..12).unwrap_or_default())?.parse()?;
        let length: usize = answer.header("content-length").unwrap_or("0").parse()?;
        if length > ANSWER_BYTES_MAX {
            bail!("an answer of {length} bytes");
        }
        let parts = Parts { status, head: head + 4, end: head + 4 + length };
        Ok(Some(parts).filter(|parts| parts.end <= bytes.len()))
    }

    fn of<'a>(&self, bytes: &'a [u8]) -> Answer<'a> {
        Answer { status: self.status, head: &bytes[..self.head], body: &bytes[self.head..self.end] }
    }
}

/// A request's bytes.
pub(crate) fn request(method: &str, path: &str, key: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n").into_bytes();
    if let Some(body) = body {
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        bytes.extend_from_slice(head.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}
