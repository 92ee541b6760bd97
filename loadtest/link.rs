//! One kept-alive HTTP connection, with as little between the socket and us as will do: what the client spends is
//! taken from the daemon on the same cores.

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

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
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed before the answer was complete");
            }
            if let Some(head) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                return self.rest(head + 4).await;
            }
        }
    }

    async fn rest(&mut self, head: usize) -> anyhow::Result<Answer<'_>> {
        let (status, length) = {
            let answer = Answer { status: 0, head: &self.buffer[..head], body: &[] };
            let status = std::str::from_utf8(answer.head.get(9..12).unwrap_or_default())?.parse()?;
            let length: usize = answer.header("content-length").unwrap_or("0").parse()?;
            (status, length)
        };
        if length > ANSWER_BYTES_MAX {
            bail!("an answer of {length} bytes");
        }
        while self.buffer.len() < head + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed before the answer was complete");
            }
        }
        Ok(Answer { status, head: &self.buffer[..head], body: &self.buffer[head..head + length] })
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
