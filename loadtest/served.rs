//! A small HTTP server for what the daemon asks of others: an issuer's keys, a webhook's receiver.

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest request that is read.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Answers every request with what `answer` makes of its body, until the runtime ends. Returns its address.
pub(crate) async fn each(answer: impl Fn(&str) -> String + Clone + Send + 'static) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            // Whoever breaks off is not answered.
            tokio::spawn(async move { converse(stream, answer).await.ok() });
        }
    });
    Ok(address)
}

async fn converse(mut stream: TcpStream, answer: impl Fn(&str) -> String) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = complete(&bytes) {
                break end;
            }
            let read = stream.read_buf(&mut bytes).await?;
            anyhow::ensure!(read > 0 && bytes.len() <= REQUEST_BYTES_MAX, "broken off");
        };
        let request = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let body = answer(request.split_once("\r\n\r\n").context("a body")?.1);
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        bytes.drain(..end);
    }
}

/// Where the first request ends, once it is there.
fn complete(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    Some(head + length.unwrap_or(0)).filter(|end| *end <= bytes.len())
}
