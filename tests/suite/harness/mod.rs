//! What every test is told with: a daemon that can be killed, tenants that can be spoken to, neighbours that listen.

pub mod api;
pub mod browser;
pub mod bus;
pub mod canary;
pub mod cluster;
pub mod daemon;
pub mod database;
pub mod disk;
pub mod echo;
pub mod events;
pub mod fire;
pub mod issuer;
pub mod kong;
pub mod lab;
pub mod load;
pub mod oracle;
pub mod postbox;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod servers;
pub mod services;
pub mod stage;
pub mod tenant;
pub mod tmpfs;

use std::fmt;
use std::future::Future;
use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

pub use daemon::{Daemon, Setup};
pub use tenant::Tenant;

/// How long anything may take that is awaited.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where the daemon keeps its books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Engine::Sqlite => "sqlite",
            Engine::Postgres => "postgres",
        })
    }
}

/// Runs a story on both engines, at the same time.
pub async fn on_both<Story, Told>(story: Story)
where
    Story: Fn(Engine) -> Told,
    Told: Future<Output = ()>,
{
    tokio::join!(Box::pin(story(Engine::Sqlite)), Box::pin(story(Engine::Postgres)));
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// After [`PATIENCE`], naming what was awaited.
pub async fn eventually<T, Asked>(awaited: &str, mut ask: impl FnMut() -> Asked) -> T
where
    Asked: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {awaited}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Says what a test did not do, past the capture of the tests' output: it must be seen.
pub fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: SKIPPED: SKIPPED: {what}");
}
