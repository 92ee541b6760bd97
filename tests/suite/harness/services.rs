//! The neighbours that the tests need, and names nobody else uses.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

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
/// daemon is killed and started again.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = (std::process::id() as u16).wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + offset % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
