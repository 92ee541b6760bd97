//! Matrix 2d: a disk without room, and a SQLite file that somebody else holds. Intake stops, serving goes on.

use std::time::Duration;

use tokio::time::sleep;

use super::World;
use crate::harness::database::Database;
use crate::harness::load::post_until_counted;
use crate::harness::tmpfs::Tmpfs;
use crate::harness::{Engine, eventually};

const DISK_MEBIBYTES: usize = 40;
/// On-call is told when it begins, for each of the tenants; on the way to a disk without any room, perhaps twice.
const LINES_MAX: usize = 4;
/// Of as many units as these, none has a line of its own.
const MANY_UNITS: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_sqlite_stops_intake_and_nothing_else() {
    let Some(disk) = Tmpfs::mount(DISK_MEBIBYTES) else { return };
    let folder = disk.folder("data");
    let mut world = World::on(Engine::Sqlite, |setup| setup.with_data(&folder)).await;
    world.disk = Some(disk);
    world.suffers("2d: disk full", |world| Box::pin(full(world))).await;
    world.suffers("2d: disk full, and a restart", |world| Box::pin(full_at_start(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_postgres_stops_intake_and_nothing_else() {
    let Some(disk) = Tmpfs::mount(DISK_MEBIBYTES) else { return };
    let mut world = World::on(Engine::Postgres, |setup| setup).await;
    world.move_first_tenant_to(disk).await;
    world.suffers("2d: disk full (53100)", |world| Box::pin(full(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_lock_on_a_sqlite_file_is_waited_for() {
    let mut world = World::on(Engine::Sqlite, |setup| setup).await;
    world.suffers("2d: foreign BEGIN IMMEDIATE", |world| Box::pin(locked(world))).await;
}

/// No room for one byte more: what was counted can be read and judged, what is new is not acknowledged.
pub async fn full(world: &mut World) {
    let disk = world.disk.as_ref().expect("a disk of its own");
    let target = &world.targets[0];
    let (told, rolled_back) = (lines_for_on_call(world), rolled_back_units(world).await);
    disk.fill();
    let refused = target.is_closed().await;
    eventually("many units that are rolled back", || async {
        (rolled_back_units(world).await >= rolled_back + MANY_UNITS).then_some(())
    })
    .await;
    let told = lines_for_on_call(world) - told;
    assert!((1..=LINES_MAX).contains(&told), "{told} lines for on-call");
    for _ in 0..4 {
        target.is_judged().await;
        target.is_read().await;
        sleep(Duration::from_millis(400)).await;
    }
    if world.daemon.engine == Engine::Postgres {
        world.targets[1].is_served().await;
    }
    disk.make_room();
    post_until_counted(&target.tenant.api, &[refused]).await;
}

/// How often on-call was told that nothing can be written.
fn lines_for_on_call(world: &World) -> usize {
    world.daemon.log().matches("commits are rolled back, callers must come back").count()
}

/// Units that were given up by the daemon of now.
async fn rolled_back_units(world: &World) -> u64 {
    let metrics = world.daemon.platform.anonymous().get("/metrics").await.text;
    let line = metrics.lines().find(|line| line.starts_with("platform_api_commits_total{outcome=\"rolled_back\"}"));
    line.and_then(|line| line.rsplit_once(' ')).map_or(0, |(_, count)| count.parse().expect("a number"))
}

/// A daemon that starts on a full disk says so, serves what needs no room, and works once there is some.
pub async fn full_at_start(world: &mut World) {
    world.disk.as_ref().expect("a disk of its own").fill();
    world.daemon.kill().await;
    world.daemon.spawn();
    sleep(Duration::from_secs(3)).await;
    world.disk.as_ref().expect("a disk of its own").make_room();
    world.daemon.ready().await;
}

/// Somebody else writes into the first tenant's file for longer than we wait for a lock.
pub async fn locked(world: &mut World) {
    let target = &world.targets[0];
    let mut holder = Database::of_tenant(&world.daemon, &target.tenant.id).await;
    holder.script("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE".into()).await.expect("the lock");
    target.is_judged().await;
    target.is_read().await;
    world.targets[1].is_served().await;
    sleep(Duration::from_secs(7)).await;
    target.is_judged().await;
    holder.script("ROLLBACK".into()).await.expect("the lock is ours");
}

impl World {
    /// The first tenant's database, alone, on a disk that can be filled: the server's own log needs another one.
    pub async fn move_first_tenant_to(&mut self, disk: Tmpfs) {
        let folder = disk.folder("space");
        let path = folder.to_str().expect("a plain path").to_owned();
        self.cluster().give_to_server(&folder).await;
        self.daemon.terminate().await;
        let mut admin = Database::at(self.daemon.admin_url()).await;
        admin.script(format!("CREATE TABLESPACE small LOCATION '{path}'")).await.expect("an administrator");
        let name = format!("tenant_{}", self.targets[0].tenant.id);
        admin.script(format!("ALTER DATABASE \"{name}\" SET TABLESPACE small")).await.expect("nobody is connected");
        self.daemon.restart().await;
        self.disk = Some(disk);
    }
}
