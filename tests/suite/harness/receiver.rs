//! A webhook receiver on this machine that remembers everything and answers as told.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use poem::http::{HeaderMap, StatusCode};
use poem::listener::TcpListener;
use poem::web::Data;
use poem::{Endpoint, EndpointExt, IntoResponse, Route, Server, handler};
use serde_json::Value;

use super::services;

/// Base64 of `the-suite-signs-with-this-secret`.
pub const SECRET: &str = "whsec_dGhlLXN1aXRlLXNpZ25zLXdpdGgtdGhpcy1zZWNyZXQ=";

/// Of a service of PagerDuty's.
pub const ROUTING_KEY: &str = "0123456789abcdef0123456789abcdef";

#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    pub body: Value,
    /// What we answered.
    pub status: u16,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Memory {
    received: Vec<Received>,
    /// Answers to the next deliveries; then 200.
    script: VecDeque<u16>,
    /// Requests at the address that redirects lead to.
    strayed: usize,
}

/// Cheap to clone; the listener lives as long as the test's runtime.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub port: u16,
    memory: Arc<Mutex<Memory>>,
}

impl Receiver {
    pub async fn start() -> Receiver {
        Receiver::start_at(services::free_port()).await
    }

    pub async fn start_at(port: u16) -> Receiver {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let route =
            Route::new().at("/hook", remember).at("/v2/enqueue", remember).at("/elsewhere", stray).data(memory.clone());
        let (ready, listening) = tokio::sync::oneshot::channel();
        tokio::spawn(serve(port, route, ready));
        listening.await.expect("the receiver listens");
        Receiver { port, memory }
    }

    /// What the next deliveries are answered.
    pub fn will_answer(&self, statuses: &[u16]) {
        self.memory.lock().unwrap().script.extend(statuses);
    }

    pub fn received(&self) -> Vec<Received> {
        self.memory.lock().unwrap().received.clone()
    }

    /// From now on every delivery is taken.
    pub fn is_well(&self) {
        self.memory.lock().unwrap().script.clear();
    }

    /// What it was told, whether it took it or not. A sender that waited in vain for an answer tells the same again under
    /// the same id, as it does on a machine that stands still for a while.
    pub fn ids(&self) -> BTreeSet<String> {
        self.received().iter().map(|one| one.header("webhook-id").to_owned()).collect()
    }

    /// What it has taken, that is, answered with 2xx.
    pub fn taken(&self) -> Vec<Received> {
        self.received().into_iter().filter(|one| (200..300).contains(&one.status)).collect()
    }

    /// How often somebody followed a redirect of ours.
    pub fn strayed(&self) -> usize {
        self.memory.lock().unwrap().strayed
    }

    /// A PagerDuty channel of this receiver, for the configuration.
    pub fn pagerduty(&self, name: &str) -> String {
        pagerduty_at(name, self.port)
    }

    /// A channel of this receiver, for the configuration.
    pub fn channel(&self, name: &str) -> String {
        channel_at(name, self.port)
    }
}

/// A channel of a receiver, or of a proxy before it, at this port.
pub fn channel_at(name: &str, port: u16) -> String {
    format!(
        "[[notify.channels]]\ntype = \"webhook\"\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}/hook\"\n\
         secret = \"{SECRET}\"\nallow_private_addresses = true\n"
    )
}

/// A PagerDuty channel of a receiver at this port.
pub fn pagerduty_at(name: &str, port: u16) -> String {
    format!(
        "[[notify.channels]]\ntype = \"pagerduty\"\nname = \"{name}\"\nurl = \"http://127.0.0.1:{port}\"\n\
         routing_key = \"{ROUTING_KEY}\"\nallow_private_addresses = true\n"
    )
}

/// What PagerDuty was told, and about which incident. What was taken and not yet noted when the daemon died may be told
/// again at once, under the same key.
pub fn actions(receiver: &Receiver) -> Vec<(String, String)> {
    let text = |one: &Received, name: &str| one.body[name].as_str().unwrap_or_default().to_owned();
    let mut told: Vec<_> =
        receiver.taken().iter().map(|one| (text(one, "event_action"), text(one, "dedup_key"))).collect();
    told.dedup();
    told
}

async fn serve(port: u16, route: impl Endpoint + 'static, ready: tokio::sync::oneshot::Sender<()>) {
    use poem::listener::Listener;
    let acceptor = TcpListener::bind(("127.0.0.1", port)).into_acceptor().await.expect("a free port");
    let _ = ready.send(());
    Server::new_with_acceptor(acceptor).run(route).await.expect("serves until the test ends");
}

#[handler]
fn remember(headers: &HeaderMap, bytes: Vec<u8>, Data(memory): Data<&Arc<Mutex<Memory>>>) -> impl IntoResponse {
    let mut memory = memory.lock().unwrap();
    let status = memory.script.pop_front().unwrap_or(200);
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    memory.received.push(Received { headers: headers.clone(), bytes, body, status });
    let status = StatusCode::from_u16(status).unwrap();
    if status.is_redirection() { status.with_header("location", "/elsewhere").into_response() } else { status.into() }
}

#[handler]
fn stray(Data(memory): Data<&Arc<Mutex<Memory>>>) {
    memory.lock().unwrap().strayed += 1;
}
