//! Matrix 2e: the daemon's clock jumps by hours, both ways, while it works. Its timers are of another clock; periods come
//! from the events.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::World;
use super::neighbours::is_told_once;
use crate::harness::events::{now, token_quota};
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, skipped};

const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// How long libfaketime goes by what it has read last, and a little more.
const UNTIL_READ_AGAIN: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_jumps_by_hours_and_nothing_is_counted_in_another_period_or_told_twice() {
    let Some(library) = library() else { return };
    let mut world = World::on(Engine::Sqlite, |setup| with_a_clock_of_its_own(setup, &library)).await;
    world.suffers("2e: clock jumps +-1 h", |world| Box::pin(jumps(world))).await;
}

/// `None`, and a loud word, where libfaketime is not installed.
pub fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").expect("a system of files");
    let candidates = folders.flatten().map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = candidates.into_iter().find(|path| path.exists());
    if found.is_none() {
        skipped("no clock jumped: libfaketime is not installed");
    }
    found
}

/// The daemon reads its wall clock through the library, and the library an offset in its working folder.
pub fn with_a_clock_of_its_own(setup: Setup, library: &std::path::Path) -> Setup {
    let setup = setup.with_variable("LD_PRELOAD", library.to_str().expect("a plain path"));
    let setup = setup.with_variable("FAKETIME_TIMESTAMP_FILE", "clock").with_variable("FAKETIME_CACHE_DURATION", "1");
    setup.with_variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

async fn set(daemon: &Daemon, offset: &str) {
    std::fs::write(daemon.folder.path().join("clock"), offset).expect("a folder of ours");
    sleep(UNTIL_READ_AGAIN).await;
}

/// Ahead, back, further ahead, back: never behind the senders, whose events would then be of the future.
pub async fn jumps(world: &mut World) {
    let used = world.daemon.onboard("Used").await;
    used.put_quotas(json!([token_quota(100, "hour"), token_quota(100, "month")])).await;
    let hour = || now().0 / MICROS_PER_HOUR;
    let begun = hour();
    used.post_events(&[used.event().tokens(90, 0)]).await;
    assert!(hourly(&used).await == "warning" || hour() != begun);
    let mut alerted = Vec::new();
    for offset in ["+2h", "+1h", "+3h"] {
        set(&world.daemon, offset).await;
        world.load().progresses(4).await;
        eventually("the next hour", || async { (hourly(&used).await == "ok").then_some(()) }).await;
        alerted.push(alerts(world).await);
    }
    // What the first receiver could not be told three hours from now is not put off until then.
    world.pager_proxy.refuse();
    let late = alerts(world).await;
    is_told_once(&world.second_pager, &late).await;
    set(&world.daemon, "+0").await;
    world.pager_proxy.forward();
    alerted.push(late);
    let is_not_over = || async { (hourly(&used).await == "warning" || hour() != begun).then_some(()) };
    eventually("the hour that is not over", is_not_over).await;
    for tenant in &alerted {
        is_told_once(&world.pager, tenant).await;
        is_told_once(&world.second_pager, tenant).await;
    }
}

/// How the quota of the hour stands.
async fn hourly(tenant: &Tenant) -> String {
    tenant.quotas().await[0]["standing"].as_str().expect("a word").to_owned()
}

/// A new tenant that crosses every threshold of its month.
async fn alerts(world: &World) -> Tenant {
    let tenant = world.daemon.onboard("Alerted").await;
    tenant.put_quotas(json!([token_quota(100, "total")])).await;
    tenant.post_events(&[tenant.event().tokens(150, 0)]).await;
    tenant
}
