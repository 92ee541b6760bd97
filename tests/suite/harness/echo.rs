//! A neighbour that says again whatever it is told: with an error, then as a success, and so on by turns. Lists of LiteLLM's
//! are empty at once.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub body: Vec<u8>,
    /// The request as it came, headers and all.
    pub whole: Vec<u8>,
}

/// Cheap to clone; the listener lives as long as the test's runtime.
#[derive(Debug, Clone)]
pub struct Echo {
    pub port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Echo {
    pub async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of this machine");
        let port = listener.local_addr().expect("it listens").port();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let kept = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone()));
            }
        });
        Echo { port, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What came to paths that begin so.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|one| one.path.starts_with(path)).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, kept: Arc<Mutex<Vec<Asked>>>) -> Option<()> {
    let mut whole = Vec::new();
    let head = loop {
        if stream.read_buf(&mut whole).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = memchr::memmem::find(&whole, b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&whole[..head]).into_owned();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while whole.len() < head + length.unwrap_or(0) {
        if stream.read_buf(&mut whole).await.ok()? == 0 {
            return None;
        }
    }
    let path = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let turn = {
        let mut kept = kept.lock().unwrap();
        let turn = kept.iter().filter(|one| one.path == path).count();
        kept.push(Asked { path, body: whole[head..].to_vec(), whole: whole.clone() });
        turn
    };
    let said = String::from_utf8_lossy(&whole).into_owned();
    let (status, kind, body) = if turn % 2 == 0 && !said.starts_with("GET /litellm/") {
        ("500 Refused", "text/plain", said)
    } else {
        let body = serde_json::json!({"error": said, "credentials": [], "aliases": [], "total_pages": 1});
        ("200 OK", "application/json", body.to_string())
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.ok()
}
