//! A receiver for tests: a real TCP listener that speaks just enough HTTP, and keeps what it was sent.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) line: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

pub(super) struct Receiver {
    port: u16,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
enum Manner {
    /// Answers in turn; the last one again and again.
    Answers(Vec<String>),
    /// Answers 200 and never stops talking.
    Endless,
    /// Reads, and never answers.
    Silent,
}

impl Receiver {
    pub(super) async fn start<'a>(answers: impl IntoIterator<Item = &'a str>) -> Receiver {
        Receiver::with(Manner::Answers(answers.into_iter().map(str::to_owned).collect())).await
    }

    pub(super) async fn endless() -> Receiver {
        Receiver::with(Manner::Endless).await
    }

    pub(super) async fn silent() -> Receiver {
        Receiver::with(Manner::Silent).await
    }

    async fn with(manner: Manner) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        let manner = Arc::new(Mutex::new(manner));
        let shared = Arc::clone(&manner);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared), Arc::clone(&kept)));
            }
        });
        Receiver { port, manner, requests, task }
    }

    /// Answers so from the next request on, whatever it did before.
    pub(super) fn will_answer(&self, answer: &str) {
        *self.manner.lock().unwrap() = Manner::Answers(vec![answer.to_owned()]);
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, manner: Arc<Mutex<Manner>>, kept: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let at = {
            let mut kept = kept.lock().unwrap();
            kept.push(request);
            kept.len() - 1
        };
        let manner = manner.lock().unwrap().clone();
        match &manner {
            Manner::Answers(answers) => {
                let answer = answers.get(at).or(answers.last()).unwrap();
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nno");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
            Manner::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
                return;
            }
            Manner::Silent => std::future::pending().await,
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let line = lines.remove(0);
    let headers: Vec<(String, String)> = lines
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line, headers, body: String::from_utf8(body).unwrap() })
}
