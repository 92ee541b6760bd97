//! Matrix 2e: Redis and the receivers of alerts are down, slow or strange. The books do not notice; what is owed is
//! delivered once they are back, and nobody waits for them.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::World;
use crate::harness::events::token_quota;
use crate::harness::load::Target;
use crate::harness::receiver::{Received, Receiver};
use crate::harness::services;
use crate::harness::{Engine, Tenant, eventually};

/// Longer than an attempt to deliver may take.
const PAST_A_SEND: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn redis_comes_and_goes_and_the_books_do_not_notice() {
    let mut world = World::on(Engine::Sqlite, |setup| setup.with("REDIS__TTL_MS", 2_000)).await;
    world.suffers("2e: Redis killed", |world| Box::pin(redis_killed(world))).await;
    world.suffers("2e: Redis flushed", |world| Box::pin(redis_flushed(world))).await;
    world.suffers("2e: Redis hangs", |world| Box::pin(redis_hangs(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_in_trouble_is_told_once_when_it_is_well_and_the_others_at_once() {
    let mut world = World::on(Engine::Sqlite, |setup| setup).await;
    world.suffers("2e: receiver hangs", |world| Box::pin(receiver_hangs(world))).await;
    world.suffers("2e: receiver accepts and closes", |world| Box::pin(receiver_closes(world))).await;
    world.suffers("2e: receiver answers 429, 500, redirects", |world| Box::pin(receiver_refuses(world))).await;
}

pub async fn redis_killed(world: &mut World) {
    world.redis.kill().await;
    goes_on_without(world).await;
    world.redis.start().await;
    is_mirrored(world, &world.targets[0]).await;
}

pub async fn redis_flushed(world: &mut World) {
    let mut connection = services::redis_at(&world.redis.url("redis")).await;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.expect("a server of ours");
    is_mirrored(world, &world.targets[0]).await;
}

pub async fn redis_hangs(world: &mut World) {
    world.redis.freeze().await;
    goes_on_without(world).await;
    world.redis.thaw().await;
    is_mirrored(world, &world.targets[0]).await;
}

/// Longer than any time-out towards Redis.
async fn goes_on_without(world: &World) {
    for _ in 0..4 {
        world.load().progresses(2).await;
        world.targets[0].is_served().await;
        sleep(Duration::from_millis(800)).await;
    }
}

/// What Redis says is a state of the books that was committed after this was asked.
async fn is_mirrored(world: &World, target: &Target) {
    let version = mirrored_version(world, target).await.unwrap_or(0);
    eventually("a newer standing in Redis", || async {
        mirrored_version(world, target).await.filter(|newer| *newer > version)
    })
    .await;
}

async fn mirrored_version(world: &World, target: &Target) -> Option<i64> {
    let client = redis::Client::open(world.redis.url("redis")).ok()?;
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let key = format!("{}{}", world.daemon.redis_prefix, target.tenant.id);
    let text: Option<String> = connection.get(key).await.ok()?;
    serde_json::from_str::<Value>(&text?).ok()?["version"].as_i64()
}

/// The address answers nothing, and connections stay.
pub async fn receiver_hangs(world: &mut World) {
    world.pager_proxy.fall_silent("");
    let alerted = alerted_while_one_is_down(world).await;
    sleep(PAST_A_SEND).await;
    world.pager_proxy.forward();
    is_told_once(&world.pager, &alerted).await;
}

pub async fn receiver_closes(world: &mut World) {
    world.pager_proxy.refuse();
    let alerted = alerted_while_one_is_down(world).await;
    world.pager_proxy.forward();
    is_told_once(&world.pager, &alerted).await;
}

/// Statuses that promise nothing. A redirect is an answer like any other: it is not followed.
pub async fn receiver_refuses(world: &mut World) {
    world.pager.will_answer(&[500, 429, 307, 302, 503]);
    let alerted = alerted_while_one_is_down(world).await;
    is_told_once(&world.pager, &alerted).await;
    assert_eq!(world.pager.strayed(), 0, "a redirect was followed");
}

/// A new tenant crosses every threshold; the channel that is well is told of it meanwhile.
async fn alerted_while_one_is_down(world: &World) -> Tenant {
    let tenant = world.daemon.onboard("Alerted").await;
    tenant.put_quotas(json!([token_quota(100, "month")])).await;
    tenant.post_events(&[tenant.event().tokens(150, 0)]).await;
    is_told_once(&world.second_pager, &tenant).await;
    world.load().progresses(2).await;
    tenant
}

/// Each of the three thresholds was taken by the receiver, under one id. It is told again, under the same id, when its answer
/// does not arrive in time.
pub async fn is_told_once(receiver: &Receiver, tenant: &Tenant) {
    let about = |one: &Received| one.body["data"]["tenantId"] == tenant.id.as_str();
    let ids = eventually("the receiver to be told", || async {
        let taken = receiver.taken().into_iter().filter(about);
        let ids: BTreeSet<String> = taken.map(|one| one.header("webhook-id").to_owned()).collect();
        (ids.len() >= 3).then_some(ids)
    })
    .await;
    assert_eq!(ids.len(), 3, "{ids:?}");
}
