//! The neighbours that the tests need, and names nobody else uses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use super::PATIENCE;

/// Where ports for the tests are.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

fn from_environment(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// An administrator's URL of a Postgres server.
pub fn postgres_url() -> String {
    from_environment("TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres")
}

/// The same server, another database.
pub fn database_url(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the URL names a database");
    format!("{server}/{name}")
}

pub fn nats_url() -> String {
    from_environment("TEST_NATS_URL", "nats://127.0.0.1:4222")
}

pub fn redis_url() -> String {
    from_environment("TEST_REDIS_URL", "redis://127.0.0.1:6379/")
}

/// A connection that waits as long as tests do: the library's own half a second is little beside other builds.
pub async fn redis_at(url: &str) -> redis::aio::MultiplexedConnection {
    let patient =
        redis::AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let client = redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection_with_config(&patient).await.expect("Redis runs")
}

/// `None` where no Alertmanager runs: `tests/run` starts one.
pub fn alertmanager_url() -> Option<String> {
    std::env::var("TEST_ALERTMANAGER_URL").ok()
}

pub fn binary(variable: &str, name: &str) -> String {
    from_environment(variable, name)
}

/// A word that no other test of this or any other run uses: lower-case letters and digits.
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{:x}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A fresh id, as a server draws it.
pub fn uuid() -> String {
    platform_api::clock::new_id().to_string()
}

/// A port nobody listens on, below the range the system gives to outgoing connections, so that it stays free while a
/// daemon is killed and started again. No other process that asks gets it as long as this one runs.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..PORTS {
        let offset = (std::process::id() as u16).wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST_PORT + offset % PORTS;
        if is_reserved(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("all of {PORTS} ports are in use");
}

/// Takes the port for this process: a socket with its name, which the system gives to one process at a time, and takes back
/// when that ends, however it does.
fn is_reserved(port: u16) -> bool {
    static HELD: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("platform-api-test-port-{port}")).expect("a short name");
    let taken = UnixListener::bind_addr(&name);
    taken.map(|socket| HELD.lock().unwrap().push(socket)).is_ok()
}

#[test]
fn a_port_is_given_once() {
    let ports: BTreeSet<u16> = (0..100).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 100);
    assert!(ports.iter().all(|port| (FIRST_PORT..FIRST_PORT + PORTS).contains(port) && !is_reserved(*port)));
}
