//! Matrix 2c for `tests/soak`: NATS dies, hangs, or loses what it knew. The suite tells the protocol's own stories elsewhere.

use std::time::Duration;

use tokio::time::sleep;

use super::World;
use crate::harness::eventually;

pub async fn killed(world: &mut World) {
    world.nats.kill().await;
    for target in &world.targets {
        target.is_served().await;
    }
    world.nats.start().await;
}

pub async fn hangs(world: &mut World) {
    world.nats.freeze().await;
    for target in &world.targets {
        target.is_served().await;
    }
    sleep(Duration::from_secs(4)).await;
    world.nats.thaw().await;
}

/// Deleted when it holds nothing that is not counted: what was acknowledged by a stream that is gone is gone with it.
pub async fn made_anew(world: &mut World) {
    world.load().holds_the_stream(true).await;
    world.daemon.drained(&world.bus).await;
    world.bus.jetstream.delete_stream(&world.bus.stream).await.expect("it was there");
    eventually("another stream", || async { world.bus.jetstream.get_stream(&world.bus.stream).await.ok().map(drop) })
        .await;
    world.load().holds_the_stream(false).await;
}

pub async fn consumer_deleted(world: &mut World) {
    let deleted = world.bus.jetstream.delete_consumer_from_stream(&world.bus.consumer, &world.bus.stream).await;
    deleted.expect("it was there");
    eventually("another consumer", || async {
        let stream = world.bus.jetstream.get_stream(&world.bus.stream).await.ok()?;
        stream.consumer_info(&world.bus.consumer).await.ok().map(drop)
    })
    .await;
}
