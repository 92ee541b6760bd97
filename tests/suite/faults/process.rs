//! Matrix 2a for `tests/soak`: the daemon itself dies, leaves, or stands still. The suite does this in `crash.rs`.

use std::time::Duration;

use tokio::time::sleep;

use super::World;
use crate::crash::{DEATHS, die};
use crate::harness::load::{Target, between, post_until_counted};
use crate::harness::{Daemon, process};

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

/// Another node takes every tenant over from one that is frozen; the frozen one wakes up and goes on, the other leaves.
pub async fn is_taken_over(world: &mut World) {
    let mut heir = world.daemon.peer();
    world.daemon.signal("STOP").await;
    heir.restart().await;
    are_counted_at(&heir, &world.targets).await;
    world.daemon.signal("CONT").await;
    // Each takes over what the other has while both are asked; the load asks the one that woke up.
    are_counted_at(&heir, &world.targets).await;
    are_counted_at(&world.daemon, &world.targets).await;
    heir.terminate().await;
}

/// A new event of every tenant, at this node.
async fn are_counted_at(node: &Daemon, targets: &[Target]) {
    for target in targets {
        let events = [target.tenant.event()];
        target.oracle.sends(&events[0]);
        post_until_counted(&target.tenant.at(node).api, &events).await;
        target.oracle.acknowledged(&events);
    }
}

/// SIGSTOP for longer than the stream waits for acknowledgements.
pub async fn freezes(world: &mut World) {
    process::signal(world.daemon.process(), "STOP").await;
    sleep(Duration::from_secs(4)).await;
    process::signal(world.daemon.process(), "CONT").await;
}
