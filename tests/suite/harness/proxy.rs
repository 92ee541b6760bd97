//! A proxy on this machine between a daemon and a server: it forwards, falls silent, refuses, or cuts at a byte.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::services;

/// What Postgres is told to commit with.
const COMMIT: &[u8] = b"COMMIT";
/// How often a silent connection looks whether it may speak again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Where a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never hears COMMIT.
    BeforeCommit,
    /// The server has committed and the client never hears of it.
    BeforeReply,
    /// The client hears the first byte of the answer.
    WithinReply,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mood {
    Forwarding,
    /// Connections stay and nothing moves.
    Silent,
    /// Connections are accepted and closed.
    Refusing,
    Cutting(Cut),
}

#[derive(Debug)]
struct Plan {
    mood: Mood,
    /// Concerns only connections that said this at first; all when empty.
    whom: String,
    cuts: usize,
}

/// Ends with the test.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    plan: Arc<Mutex<Plan>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of a port of this machine.
    pub async fn to(server: u16) -> Proxy {
        let port = services::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let plan = Arc::new(Mutex::new(Plan { mood: Mood::Forwarding, whom: String::new(), cuts: 0 }));
        let accepting = tokio::spawn(accept(listener, server, plan.clone()));
        Proxy { port, plan, accepting }
    }

    pub fn forward(&self) {
        self.plan("", Mood::Forwarding);
    }

    /// Holds back what goes to and from those whose first words contain `whom`.
    pub fn fall_silent(&self, whom: &str) {
        self.plan(whom, Mood::Silent);
    }

    pub fn refuse(&self) {
        self.plan("", Mood::Refusing);
    }

    /// Cuts the next connection of `whom` that commits, then forwards again.
    pub fn cut(&self, whom: &str, where_to: Cut) {
        self.plan(whom, Mood::Cutting(where_to));
    }

    /// How many connections were cut at their byte.
    pub fn cuts(&self) -> usize {
        self.plan.lock().unwrap().cuts
    }

    fn plan(&self, whom: &str, mood: Mood) {
        let mut plan = self.plan.lock().unwrap();
        (plan.whom, plan.mood) = (whom.to_owned(), mood);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection's view of the plan.
#[derive(Clone)]
struct Wire {
    plan: Arc<Mutex<Plan>>,
    /// What the client said first: Postgres names its database there.
    greeting: Arc<Mutex<Vec<u8>>>,
    /// The client's COMMIT is on its way, and the answer to it is to be cut.
    committing: Arc<Mutex<Option<Cut>>>,
}

impl Wire {
    fn mood(&self) -> Mood {
        let plan = self.plan.lock().unwrap();
        let greeting = self.greeting.lock().unwrap();
        let concerned = plan.whom.is_empty() || find(&greeting, plan.whom.as_bytes()).is_some();
        if concerned { plan.mood.clone() } else { Mood::Forwarding }
    }

    /// Takes the order to cut, so that no other connection is cut as well.
    fn take_cut(&self) -> Option<Cut> {
        let Mood::Cutting(cut) = self.mood() else { return None };
        let mut plan = self.plan.lock().unwrap();
        if plan.mood != Mood::Cutting(cut) {
            return None;
        }
        plan.mood = Mood::Forwarding;
        plan.cuts += 1;
        Some(cut)
    }

    async fn until_it_may_speak(&self) {
        while self.mood() == Mood::Silent {
            sleep(LOOK_EVERY).await;
        }
    }
}

async fn accept(listener: TcpListener, server: u16, plan: Arc<Mutex<Plan>>) {
    while let Ok((client, _)) = listener.accept().await {
        let wire = Wire { plan: plan.clone(), greeting: Arc::default(), committing: Arc::default() };
        tokio::spawn(serve(client, server, wire));
    }
}

async fn serve(client: TcpStream, server: u16, wire: Wire) {
    if wire.mood() == Mood::Refusing {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whichever way ends first ends both.
    tokio::select! {
        () = upstream(from_client, to_server, &wire) => {}
        () = downstream(from_server, to_client, &wire) => {}
    }
}

async fn upstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: &Wire) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let bytes = &buffer[..count];
        {
            let mut greeting = wire.greeting.lock().unwrap();
            if greeting.len() < 512 {
                greeting.extend_from_slice(bytes);
            }
        }
        wire.until_it_may_speak().await;
        if wire.mood() == Mood::Refusing {
            return;
        }
        // The driver sends COMMIT by itself, so no COMMIT is split between two reads.
        if let Some(at) = find(bytes, COMMIT)
            && let Some(cut) = wire.take_cut()
        {
            if cut == Cut::BeforeCommit {
                let _ = to.write_all(&bytes[..at]).await;
                return;
            }
            *wire.committing.lock().unwrap() = Some(cut);
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn downstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: &Wire) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        wire.until_it_may_speak().await;
        let cut = *wire.committing.lock().unwrap();
        match cut {
            Some(Cut::WithinReply) => {
                let _ = to.write_all(&buffer[..1]).await;
                return;
            }
            Some(_) => return,
            None => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}
