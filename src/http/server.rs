//! The socket: an acceptor of our own for poem.
//!
//! The framework's sets no TCP_NODELAY, spins when accepting fails, and waits for ever for a request's headers; see
//! DESIGN 8. Ours also holds a cap on open connections: further ones wait in the kernel's queue. What cannot be read, or
//! can be read in two ways (see [`super::framing`]), is answered in the one envelope and ends its connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use poem::http::uri::Scheme;
use poem::listener::Acceptor;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::framing::{Flaw, Framing, Place};
use super::problem::{Code, Problem};
use crate::clock;
use crate::config::{self, millis};

/// How long accepting pauses when the system refuses, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections under a cap.
pub(super) struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    header_timeout: Duration,
    idle_timeout: Duration,
}

impl Door {
    #[must_use]
    pub(super) fn new(listener: TcpListener, limits: &config::Http) -> Door {
        Door {
            listener,
            places: Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS))),
            header_timeout: millis(limits.header_timeout_ms),
            idle_timeout: millis(limits.idle_timeout_ms),
        }
    }
}

impl Acceptor for Door {
    type Io = Connection;

    fn local_addr(&self) -> Vec<LocalAddr> {
        self.listener.local_addr().map(|address| LocalAddr(address.into())).into_iter().collect()
    }

    async fn accept(&mut self) -> io::Result<(Connection, LocalAddr, RemoteAddr, Scheme)> {
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
        loop {
            match self.listener.accept().await {
                Ok((stream, remote)) => {
                    // Fails only on a socket that is gone already, which the first read will tell.
                    let _ = stream.set_nodelay(true);
                    let local = stream.local_addr().or_else(|_| self.listener.local_addr())?;
                    let connection = Connection::new(stream, place, self.header_timeout, self.idle_timeout);
                    return Ok((connection, LocalAddr(local.into()), RemoteAddr(remote.into()), Scheme::HTTP));
                }
                Err(error) if is_the_peer_s(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "accepting connections pauses");
                    metrics::counter!("platform_api_http_accept_errors_total").increment(1);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The connection broke before it was accepted; the next one has nothing to do with it.
fn is_the_peer_s(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first byte of the first request, or the rest of a request's headers.
    Head,
    /// Our answer, or the rest of a body; the request's own deadline watches.
    Busy,
    /// The next request.
    Idle,
    /// HTTP/2, whose frames say nothing about requests from out here.
    Multiplexed,
}

/// A connection with deadlines: for the headers of a request, and for any progress at all.
pub(super) struct Connection {
    stream: TcpStream,
    phase: Phase,
    framing: Framing,
    /// What is left of an answer of ours that takes the place of the library's.
    telling: Bytes,
    header_timeout: Duration,
    idle_timeout: Duration,
    head_since: Instant,
    progress_at: Instant,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, header: Duration, idle: Duration) -> Connection {
        metrics::gauge!("platform_api_http_connections_open").increment(1.0);
        let now = Instant::now();
        Connection {
            stream,
            phase: Phase::Head,
            framing: Framing::default(),
            telling: Bytes::new(),
            header_timeout: header,
            idle_timeout: idle,
            head_since: now,
            progress_at: now,
            timer: Box::pin(tokio::time::sleep(header.min(idle))),
            _place: place,
        }
    }

    fn deadline(&self) -> Instant {
        let idle = self.progress_at + self.idle_timeout;
        if self.phase == Phase::Head { idle.min(self.head_since + self.header_timeout) } else { idle }
    }

    /// Fails once the deadline has passed; otherwise wakes the task when it will.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => {
                let phase = if self.phase == Phase::Head { "head" } else { "idle" };
                metrics::counter!("platform_api_http_connection_timeouts_total", "phase" => phase).increment(1);
                if self.phase == Phase::Head && self.framing.place() == Place::Head {
                    self.tell(Code::RequestTimeout);
                }
                Poll::Ready(io::ErrorKind::TimedOut.into())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// # Errors
    /// [`Flaw`]: what was read must not be read by anybody else.
    fn has_read(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        self.progress_at = Instant::now();
        let heads = self.framing.heads();
        self.framing.feed(bytes)?;
        self.phase = match (self.phase, self.framing.place()) {
            (_, Place::Multiplexed) => Phase::Multiplexed,
            (Phase::Head | Phase::Idle, _) if self.framing.heads() > heads => Phase::Busy,
            (Phase::Idle, Place::Head) => {
                self.head_since = self.progress_at;
                Phase::Head
            }
            (phase, _) => phase,
        };
        Ok(())
    }

    fn refuse(&mut self, flaw: Flaw) -> io::Error {
        // While an answer is under way, a second one would only spoil it.
        if self.phase != Phase::Busy {
            self.tell(match flaw {
                Flaw::Malformed => Code::BadRequest,
                Flaw::TooLarge => Code::HeadersTooLarge,
            });
        }
        io::ErrorKind::InvalidData.into()
    }

    /// Writes an answer as far as that goes without waiting; the connection ends behind it.
    fn tell(&mut self, code: Code) {
        let _ = self.stream.try_write(&refusal(code));
    }

    fn has_written(&mut self) {
        self.progress_at = Instant::now();
        if self.phase == Phase::Busy {
            self.phase = Phase::Idle;
        }
    }
}

/// The code for an answer that the library gives by itself, to what it cannot read: a status and no word.
fn wordless(bytes: &[u8]) -> Option<Code> {
    let status = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    let code = match status {
        b"400" => Code::BadRequest,
        b"414" => Code::UriTooLong,
        b"431" => Code::HeadersTooLarge,
        _ => return None,
    };
    // Every answer of ours carries the request's id.
    memchr::memmem::find(bytes, b"x-request-id").is_none().then_some(code)
}

fn refusal(code: Code) -> Bytes {
    let status = code.status().to_string();
    metrics::counter!("platform_api_http_requests_total", "operation" => "none", "status" => status).increment(1);
    Problem::new(code).on_the_wire(&clock::new_id().to_string()).into()
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("platform_api_http_connections_open").decrement(1.0);
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(this.has_read(&buffer.filled()[before..]).map_err(|flaw| {
                buffer.set_filled(before);
                this.refuse(flaw)
            })),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_deadline(context).map(Err),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.telling.is_empty()
            && let Some(code) = wordless(bytes)
        {
            this.telling = refusal(code);
        }
        while !this.telling.is_empty() {
            match Pin::new(&mut this.stream).poll_write(context, &this.telling) {
                Poll::Ready(Ok(count)) => this.telling.advance(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return this.poll_deadline(context).map(Err),
            }
            if this.telling.is_empty() {
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        match Pin::new(&mut this.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(count)) => {
                this.has_written();
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_deadline(context).map(Err),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    /// A server that answers `ok`, and slowly on `/slow`.
    async fn serving(limits: config::Http) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ended = CancellationToken::new();
        let endpoint = poem::endpoint::make(|request: poem::Request| async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            "ok"
        });
        let server = poem::Server::new_with_acceptor(Door::new(listener, &limits));
        let signal = ended.clone().cancelled_owned();
        let serving = server.run_with_graceful_shutdown(endpoint, signal, Some(Duration::from_secs(2)));
        (address, ended, tokio::spawn(serving))
    }

    fn limits() -> config::Http {
        config::Http { header_timeout_ms: 150, idle_timeout_ms: 600, connections_max: 2, ..config::Http::default() }
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn answered(stream: &mut TcpStream) -> bool {
        let mut buffer = [0; 512];
        matches!(stream.read(&mut buffer).await, Ok(count) if buffer[..count].starts_with(b"HTTP/1.1 200"))
    }

    /// How long it takes until the server closes.
    async fn closed_after(stream: &mut TcpStream) -> Duration {
        let started = Instant::now();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut rest)).await;
        started.elapsed()
    }

    #[tokio::test]
    async fn a_silent_and_a_dripping_client_are_cut_off_and_a_kept_connection_lives_longer() {
        let (address, _ended, _server) = serving(limits()).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(closed_after(&mut silent).await < Duration::from_millis(450));

        let mut dripping = TcpStream::connect(address).await.unwrap();
        let started = Instant::now();
        for byte in REQUEST.iter().cycle() {
            if dripping.write_all(&[if byte.is_ascii_control() { b'x' } else { *byte }]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(started.elapsed() < Duration::from_secs(2), "a dripping client holds its connection");
        }

        let mut kept = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            kept.write_all(REQUEST).await.unwrap();
            assert!(answered(&mut kept).await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(closed_after(&mut kept).await > Duration::from_millis(150));
    }

    #[tokio::test]
    async fn connections_above_the_cap_wait_for_a_place() {
        let (address, _ended, _server) = serving(config::Http { header_timeout_ms: 5_000, ..limits() }).await;
        let first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(REQUEST).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), answered(&mut third)).await;
        assert!(early.is_err(), "the third connection was served above a cap of two");
        drop(first);
        assert!(answered(&mut third).await);
    }

    #[tokio::test]
    async fn closing_lets_running_requests_end_and_cuts_idle_ones() {
        let (address, ended, server) = serving(limits()).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(REQUEST).await.unwrap();
        assert!(answered(&mut idle).await);
        let mut running = TcpStream::connect(address).await.unwrap();
        running.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        ended.cancel();
        assert!(answered(&mut running).await);
        assert!(closed_after(&mut idle).await < Duration::from_millis(100));
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_does_not_keep_the_door_open() {
        let (address, ended, server) = serving(limits()).await;
        let mut sending = TcpStream::connect(address).await.unwrap();
        sending.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n").await.unwrap();
        let (mut reading, mut writing) = sending.into_split();
        let upload = tokio::spawn(async move { while writing.write_all(&[b'x'; 65_536]).await.is_ok() {} });
        let mut answer = [0; 15];
        reading.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(reading);
        upload.await.unwrap();
        ended.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(1), server).await;
        assert!(stopped.is_ok(), "the server waits for a connection that is gone");
    }
}
