//! For tests: OpenFGA's check, as its HTTP API answers it, with as many relations as it was told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(super) const STORE: &str = "01HVMMBCMGZNT3SED4Z17ECXCA";
pub(super) const TOKEN: &str = "fga-t0ken";

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Fine,
    /// 500 with its own form of an error.
    Broken,
    /// Takes the question and says nothing.
    Silent,
    /// 200 with something else.
    Babbling,
}

struct Kept {
    mood: Mood,
    tuples: BTreeSet<(String, String, String)>,
    asked: Vec<Value>,
}

#[derive(Clone)]
pub(super) struct OpenFgaPeer {
    pub(super) url: String,
    kept: Arc<Mutex<Kept>>,
}

impl OpenFgaPeer {
    pub(super) async fn start() -> OpenFgaPeer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kept = Kept { mood: Mood::Fine, tuples: BTreeSet::new(), asked: Vec::new() };
        let peer = OpenFgaPeer { url, kept: Arc::new(Mutex::new(kept)) };
        let serving = peer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let peer = serving.clone();
                tokio::spawn(async move { peer.serve(stream).await });
            }
        });
        peer
    }

    pub(super) fn knows(&self, user: &str, relation: &str, object: &str) {
        self.kept.lock().unwrap().tuples.insert((user.into(), relation.into(), object.into()));
    }

    pub(super) fn is(&self, mood: Mood) {
        self.kept.lock().unwrap().mood = mood;
    }

    /// Every body that it was sent.
    pub(super) fn asked(&self) -> Vec<Value> {
        self.kept.lock().unwrap().asked.clone()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        loop {
            let mut chunk = [0; 4_096];
            let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
            bytes.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&bytes).to_string();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if body.len() < length.unwrap_or(0) {
                continue;
            }
            let Some((status, answer)) = self.answer(&head, body) else {
                tokio::time::sleep(Duration::from_secs(600)).await;
                return;
            };
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            bytes.clear();
        }
    }

    /// Status and body; nothing when it is silent.
    fn answer(&self, head: &str, body: &str) -> Option<(u16, String)> {
        let error = |status, code: &str| Some((status, json!({ "code": code, "message": "" }).to_string()));
        let mut kept = self.kept.lock().unwrap();
        let path = format!("post /stores/{} ", format!("{STORE}/check").to_ascii_lowercase());
        if !head.starts_with(&path) {
            return error(404, "undefined_endpoint");
        }
        if !head.contains(&format!("authorization: bearer {TOKEN}")) {
            return error(401, "bearer_token_missing");
        }
        let Ok(asked) = serde_json::from_str::<Value>(body) else { return error(400, "validation_error") };
        kept.asked.push(asked.clone());
        match kept.mood {
            Mood::Fine => {}
            Mood::Broken => return error(500, "internal_error"),
            Mood::Silent => return None,
            Mood::Babbling => return Some((200, "{\"allowed\":\"yes\"}".into())),
        }
        let text = |name: &str| asked["tuple_key"][name].as_str().map(str::to_owned);
        let (Some(user), Some(relation), Some(object)) = (text("user"), text("relation"), text("object")) else {
            return error(400, "validation_error");
        };
        let allowed = kept.tuples.contains(&(user, relation, object));
        Some((200, json!({ "allowed": allowed, "resolution": "" }).to_string()))
    }
}
