//! The power goes while NATS and HTTP feed the daemon. Whatever was acknowledged before is there when the power is back:
//! in the books of SQLite files, and in those of a Postgres server that is on the same disk.
//!
//! `POWER_CUTS=1000` sets how often on each engine. The rig is proved by databases that only pretend to write through.

use std::time::Duration;

use tokio::time::sleep;

use crate::harness::cluster::Cluster;
use crate::harness::disk::Disk;
use crate::harness::fire::{self, Fire, between};
use crate::harness::receiver::Receiver;
use crate::harness::{Engine, Setup, eventually};
use crate::planted::invariant_broken_by;

const DISK_MEBIBYTES: u64 = 512;
/// Between the lights coming on and going off again, in milliseconds.
const LIGHT_MS: (u64, u64) = (300, 1_500);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_on_sqlite_survives_a_power_cut() {
    Box::pin(cut_sqlite(Setup::on(Engine::Sqlite), cuts(3))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_on_postgres_survives_a_power_cut() {
    Box::pin(cut_postgres(true, cuts(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rig_loses_what_a_sqlite_that_does_not_write_through_acknowledged() {
    if Disk::insert(64).is_some() {
        let setup = Setup::on(Engine::Sqlite).planting("sqlite-not-synced");
        assert_eq!(invariant_broken_by("sqlite-not-synced", cut_sqlite(setup, 1)).await, "L3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rig_loses_what_a_postgres_that_does_not_write_through_acknowledged() {
    if Disk::insert(64).is_some() {
        assert_eq!(invariant_broken_by("fsync=off", cut_postgres(false, 1)).await, "L3");
    }
}

fn cuts(usual: usize) -> usize {
    std::env::var("POWER_CUTS").map_or(usual, |cuts| cuts.parse().expect("a number"))
}

/// For a while, and until something was acknowledged that a cut could lose.
async fn light(fire: &Fire) {
    let before = fire.acknowledged();
    sleep(Duration::from_millis(between(LIGHT_MS.0, LIGHT_MS.1))).await;
    eventually("something to lose", || async { (fire.acknowledged() > before).then_some(()) }).await;
}

async fn cut_sqlite(setup: Setup, cuts: usize) {
    let Some(mut disk) = Disk::insert(DISK_MEBIBYTES) else { return };
    let pager = Receiver::start().await;
    let setup = fire::setup(setup, &pager).with_data(&disk.path().join("data"));
    let mut daemon = setup.start().await;
    let mut fire = Fire::on(&daemon, &pager, &["Acme", "Globex"]).await;
    disk.flush();
    for _ in 0..cuts {
        light(&fire).await;
        daemon.signal("STOP").await;
        disk.power_off();
        daemon.kill().await;
        disk.power_on();
        fire.check_remains(&daemon).await;
        daemon.restart().await;
    }
    fire.quench(&daemon).await;
    daemon.terminate().await;
    println!("sqlite: {cuts} power cuts, {:?} events, 0 violations", fire.events());
}

async fn cut_postgres(fsync: bool, cuts: usize) {
    let Some(mut disk) = Disk::insert(DISK_MEBIBYTES) else { return };
    let mut cluster = Cluster::make(&disk.path(), fsync).await;
    let pager = Receiver::start().await;
    let setup = Setup::on(Engine::Postgres).on_server(&cluster.url(), &cluster.url());
    let mut daemon = fire::setup(setup, &pager).start().await;
    let mut fire = Fire::on(&daemon, &pager, &["Acme", "Globex"]).await;
    cluster.checkpoint().await;
    disk.flush();
    for _ in 0..cuts {
        light(&fire).await;
        daemon.signal("STOP").await;
        disk.power_off();
        daemon.kill().await;
        cluster.crash();
        disk.power_on();
        cluster.start().await;
        fire.check_remains(&daemon).await;
        daemon.restart().await;
    }
    fire.quench(&daemon).await;
    daemon.terminate().await;
    println!("postgres: {cuts} power cuts, {:?} events, 0 violations", fire.events());
}
