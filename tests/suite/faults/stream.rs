//! Matrix 2c for `tests/soak`: NATS dies, hangs, or loses what it knew. The suite tells the protocol's own stories elsewhere.

use std::time::Duration;

use tokio::time::sleep;

use super::{SIGN_OF_LIFE, World};
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

/// Emptied when it holds nothing that is not counted: what is purged before it is read is gone, and audited as gone.
pub async fn purged(world: &mut World) {
    world.load().holds_the_stream(true).await;
    world.daemon.drained(&world.bus).await;
    let stream = world.bus.jetstream.get_stream(&world.bus.stream).await.expect("it is there");
    stream.purge().await.expect("it can be emptied");
    world.load().holds_the_stream(false).await;
}

/// NATS comes back as it was some time ago: what it has forgotten is counted, and its numbers are used again.
pub async fn truncated(world: &mut World) {
    world.load().holds_the_stream(true).await;
    world.nats.kill().await;
    world.nats.back_up();
    world.nats.start().await;
    world.load().holds_the_stream(false).await;
    world.load().progresses(SIGN_OF_LIFE).await;
    world.load().holds_the_stream(true).await;
    world.daemon.drained(&world.bus).await;
    world.nats.kill().await;
    world.nats.restore();
    world.nats.start().await;
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
