//! For tests: a transit engine on this machine that encrypts as the real one does, and a small HTTP server under it.
//!
//! Of the real engine's behaviour it has what we meet: tokens, versions, `associated_data` that must be the same again,
//! `min_decryption_version`, sealing, and the words of its errors.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{KEY_BYTES, open, seal_in_place};
use crate::clock;

pub(crate) const TOKEN: &str = "s.canary-token-of-the-transit-engine";

/// A request as the server has read it.
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
}

/// Serves `answer` on a free port, one request a connection; answers the address. Stops with its runtime.
pub(crate) async fn serve(answer: impl Fn(Asked) -> (u16, Value) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move { converse(stream, &*answer).await });
        }
    });
    address
}

async fn converse(mut stream: TcpStream, answer: &(impl Fn(Asked) -> (u16, Value) + ?Sized)) -> Option<()> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    };
    let text = String::from_utf8(bytes[..head].to_vec()).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers: HashMap<String, String> = lines.filter_map(pair).collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < head + 4 + length {
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    }
    let body = serde_json::from_slice(&bytes[head + 4..]).unwrap_or(Value::Null);
    let (status, body) = answer(Asked { method, path, headers, body });
    let body = body.to_string();
    let length = body.len();
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

#[derive(Default)]
struct Engine {
    /// Version 1 first.
    versions: Vec<[u8; KEY_BYTES]>,
    min_decryption_version: usize,
    sealed: bool,
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TransitPeer {
    pub(crate) url: String,
    engine: Arc<Mutex<Engine>>,
}

impl TransitPeer {
    pub(crate) async fn start() -> TransitPeer {
        let engine: Arc<Mutex<Engine>> = Arc::default();
        engine.lock().unwrap().versions.push(clock::random_bytes());
        let asked = engine.clone();
        let url = serve(move |request| asked.lock().unwrap().answer(&request)).await;
        TransitPeer { url, engine }
    }

    pub(crate) fn rotate(&self) {
        self.engine.lock().unwrap().versions.push(clock::random_bytes());
    }

    pub(crate) fn give_up_below(&self, version: usize) {
        self.engine.lock().unwrap().min_decryption_version = version;
    }

    pub(crate) fn seal(&self, sealed: bool) {
        self.engine.lock().unwrap().sealed = sealed;
    }
}

fn errors(status: u16, text: &str) -> (u16, Value) {
    (status, json!({ "errors": [text] }))
}

impl Engine {
    fn answer(&self, request: &Asked) -> (u16, Value) {
        if self.sealed {
            return errors(503, "Vault is sealed");
        }
        if request.headers.get("x-vault-token").map(String::as_str) != Some(TOKEN) {
            return errors(403, "permission denied");
        }
        let text = |name: &str| STANDARD.decode(request.body[name].as_str().unwrap_or_default()).unwrap_or_default();
        let context = text("associated_data");
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/v1/transit/keys/platform-api") => {
                (200, json!({ "data": { "latest_version": self.versions.len() } }))
            }
            ("POST", "/v1/transit/encrypt/platform-api") => {
                let mut bytes = text("plaintext");
                let nonce = seal_in_place(self.versions.last().unwrap(), &context, &mut bytes).unwrap();
                let whole = STANDARD.encode([nonce.as_slice(), &bytes].concat());
                let version = self.versions.len();
                let ciphertext = format!("vault:v{version}:{whole}");
                (200, json!({ "data": { "ciphertext": ciphertext, "key_version": version } }))
            }
            ("POST", "/v1/transit/decrypt/platform-api") => {
                let ciphertext = request.body["ciphertext"].as_str().unwrap_or_default();
                let read = ciphertext.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
                let Some((version, whole)) = read else { return errors(400, "invalid ciphertext: no prefix") };
                let version: usize = version.parse().unwrap_or(0);
                if version < self.min_decryption_version {
                    return errors(400, "ciphertext or signature version is disallowed by policy (too old)");
                }
                let bytes = STANDARD.decode(whole).unwrap_or_default();
                let key = version.checked_sub(1).and_then(|at| self.versions.get(at));
                let plain =
                    bytes.split_first_chunk::<12>().and_then(|(nonce, rest)| open(key?, &context, *nonce, rest));
                match plain {
                    Some(plain) => (200, json!({ "data": { "plaintext": STANDARD.encode(&*plain) } })),
                    None => errors(400, "cipher: message authentication failed"),
                }
            }
            _ => errors(404, "no handler for route"),
        }
    }
}
