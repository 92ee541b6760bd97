//! The socket: HTTP/2 with prior knowledge, under a cap on connections, streams, bytes and time.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;

use super::wire::METHOD;
use super::{MESSAGE_BYTES_MAX, Service};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a new connection may take to say it.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions of one connection at once.
const STREAMS_MAX: u32 = 1_000;
/// Headers of one question.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// A connection that is silent for this long is asked whether it lives, and closed when it does not say so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting pauses when the system refuses, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is cancelled, and then for as long as running questions take, at most `drain`. Connections are
/// dealt out to the runtimes of `answering`.
pub async fn serve(
    service: Service,
    listener: TcpListener,
    answering: &[Handle],
    stop: CancellationToken,
    drain: Duration,
) {
    let connections = TaskTracker::new();
    let accepting = accept(&service, &listener, answering, &stop, &connections);
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        tracing::warn!("questions of Envoy were not answered in time");
    }
}

async fn accept(
    service: &Service,
    listener: &TcpListener,
    answering: &[Handle],
    stop: &CancellationToken,
    connections: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(service.0.settings.connections_max.min(Semaphore::MAX_PERMITS)));
    for runtime in answering.iter().cycle() {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = next(listener).await;
        let (service, stopped) = (service.clone(), stop.clone());
        let connection = async move {
            metrics::gauge!("platform_api_envoy_connections_open").increment(1.0);
            if let Err(error) = Box::pin(speak(stream, service, stopped)).await {
                tracing::debug!(%error, "a connection of Envoy ended");
            }
            metrics::gauge!("platform_api_envoy_connections_open").decrement(1.0);
            drop(place);
        };
        connections.spawn_on(connection, runtime);
    }
}

/// The next connection, which belongs to no runtime yet.
async fn next(listener: &TcpListener) -> std::net::TcpStream {
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                // Fails only on a socket that is gone already, which the first read will tell.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "accepting connections of Envoy pauses");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, until its peer or we have had enough.
async fn speak(
    stream: std::net::TcpStream,
    service: Service,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut read, write) = TcpStream::from_std(stream)?.into_split();
    let mut preface = [0; PREFACE.len()];
    let said = stop.run_until_cancelled(tokio::time::timeout(PREFACE_TIMEOUT, read.read_exact(&mut preface)));
    let Some(said) = said.await else { return Ok(()) };
    said.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if preface != *PREFACE {
        return Err(io::Error::other("it does not speak HTTP/2").into());
    }
    let stream = TokioIo::new(join(Cursor::new(preface).chain(read), write));
    let answer = service_fn(move |request| answer(service.clone(), request));
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .serve_connection(stream, answer)
    );
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn answer(service: Service, request: hyper::Request<Incoming>) -> Result<hyper::Response<Body>, Infallible> {
    if request.uri().path() != METHOD {
        return Ok(Status::unimplemented("only ShouldRateLimit is answered here").into_http());
    }
    // A message that never ends holds a stream no longer than a question may take.
    let deadline = service.0.deadline;
    let mut grpc = Grpc::new(ProstCodec::default())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let answered = tokio::time::timeout(deadline * 2, grpc.unary(service, request)).await;
    Ok(answered.unwrap_or_else(|_| Status::deadline_exceeded("no answer in time").into_http()))
}
