//! Matrix 2a for `tests/soak`: the daemon itself dies, leaves, or stands still. The suite does this in `crash.rs`.

use std::time::Duration;

use tokio::time::sleep;

use super::World;
use crate::crash::{DEATHS, die};
use crate::harness::load::between;
use crate::harness::process;

/// Lives that end one way or another, one after the other.
const LIVES: usize = 3;

pub async fn dies(world: &mut World) {
    world.daemon.kill().await;
    for _ in 0..LIVES {
        let death = DEATHS[between(0, DEATHS.len() as u64) as usize];
        die(&mut world.daemon, death).await;
    }
    world.daemon.restart().await;
}

pub async fn leaves(world: &mut World) {
    world.daemon.terminate().await;
    world.daemon.restart().await;
}

/// SIGSTOP for longer than the stream waits for acknowledgements.
pub async fn freezes(world: &mut World) {
    process::signal(world.daemon.process(), "STOP").await;
    sleep(Duration::from_secs(4)).await;
    process::signal(world.daemon.process(), "CONT").await;
}
