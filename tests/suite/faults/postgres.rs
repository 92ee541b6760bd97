//! Matrix 2d on Postgres: a server that dies, hangs, refuses, or answers half.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use tokio::time::sleep;

use super::World;
use crate::harness::database::Database;
use crate::harness::load::post_until_counted;
use crate::harness::process::Holdings;
use crate::harness::proxy::Cut;
use crate::harness::{Engine, Setup, eventually, process};

/// A statement may take this long; an answer is waited for five seconds more.
const STATEMENT_TIMEOUT_MS: u64 = 3_000;
/// Events that nobody can count: of one round, how many rounds, and by how much a daemon may grow that cannot keep them.
const POISON_BYTES: usize = 7 * 1_024 * 1_024;
const POISON_AT_ONCE: usize = 12;
const POISON_ROUNDS: usize = 4;
const POISON_KIB_MAX: u64 = 160 * 1_024;
const PAST_ALL_PATIENCE: Duration = Duration::from_millis(STATEMENT_TIMEOUT_MS + 5_500);

async fn a_world() -> World {
    World::on(Engine::Postgres, with_short_patience).await
}

pub fn with_short_patience(setup: Setup) -> Setup {
    setup.with("STORE__STATEMENT_TIMEOUT_MS", STATEMENT_TIMEOUT_MS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_or_drops_us_loses_nothing_that_was_committed() {
    let mut world = a_world().await;
    for _ in 0..6 {
        world.suffers("2d: SIGKILL of the postmaster", |world| Box::pin(killed(world))).await;
    }
    world.suffers("2d: connections terminated", |world| Box::pin(terminated(world))).await;
    world.suffers("2d: restart", |world| Box::pin(restarted(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_counts_once_whichever_way() {
    let mut world = a_world().await;
    world.suffers("2a C3: connection cut around COMMIT", |world| Box::pin(cut_around_commit(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_rolls_back_is_tried_again_and_what_it_leaves_open_begins_anew() {
    // More restarts in a minute than a life brings.
    let settings = |setup| with_short_patience(setup).with("TENANTS__RESTART_BACKOFF_MAX_MS", 200);
    let mut world = World::on(Engine::Postgres, settings).await;
    world.suffers("2d: foreign lock", |world| Box::pin(locked(world))).await;
    world.suffers("2d: errors that roll back", |world| Box::pin(rolled_back(world))).await;
    world.suffers("2d: read-only server", |world| Box::pin(read_only(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_for_one_tenant_holds_up_nobody_else() {
    let mut world = a_world().await;
    world.suffers("2d: silent connection", |world| Box::pin(silent(world))).await;
    world.suffers("2d: frozen backend", |world| Box::pin(frozen_backend(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_control_database_cannot_keep_is_not_heaped_up() {
    let mut world = a_world().await;
    world.suffers("2d: silent control database", |world| Box::pin(silent_control(world))).await;
}

pub async fn killed(world: &mut World) {
    world.cluster().kill().await;
    world.cluster().restart().await;
}

pub async fn restarted(world: &mut World) {
    world.cluster().stop().await;
    world.cluster().restart().await;
}

pub async fn terminated(world: &mut World) {
    let mut admin = Database::at(world.daemon.admin_url()).await;
    let mut ended = 0;
    while ended < 8 {
        let rows = admin
            .words("SELECT CAST(pg_terminate_backend(pid) AS TEXT) FROM pg_stat_activity WHERE application_name = 'platform-api'")
            .await;
        ended += rows.len();
        sleep(Duration::from_millis(120)).await;
    }
}

pub async fn cut_around_commit(world: &mut World) {
    for round in 0..3 {
        for cut in [Cut::BeforeCommit, Cut::BeforeReply, Cut::WithinReply] {
            let target = &world.targets[round % world.targets.len()];
            let before = world.proxy().cuts();
            world.proxy().cut(&format!("tenant_{}", target.tenant.id), cut);
            eventually("a connection to be cut", || async { (world.proxy().cuts() > before).then_some(()) }).await;
        }
    }
}

/// 55P03: somebody else holds the row that every commit needs, for longer than we wait for a lock.
pub async fn locked(world: &mut World) {
    let mut holder = Database::at(&world.daemon.database_url(&format!("tenant_{}", world.targets[0].tenant.id))).await;
    holder.script("BEGIN; SELECT 1 FROM books FOR UPDATE".into()).await.expect("the lock");
    world.targets[0].is_judged().await;
    world.targets[1].is_served().await;
    sleep(Duration::from_millis(2_600)).await;
    holder.script("COMMIT".into()).await.expect("the lock is ours");
}

/// Classes of errors that the server reports, raised from within the tenant's own database: each fails some statements,
/// or some commits, and then no more.
pub async fn rolled_back(world: &mut World) {
    let tenant = world.targets[0].tenant.id.clone();
    for code in ["40001", "40P01", "55P03", "57014", "53100", "53200", "57P01", "25006", "08006"] {
        for at_commit in [false, true] {
            Injection { code, at_commit, times: 2 }.suffered_by(world, &tenant).await;
        }
    }
}

/// An SQLSTATE that the database raises at the next inserts into the ledger.
struct Injection {
    code: &'static str,
    /// By a deferred constraint, so that COMMIT fails.
    at_commit: bool,
    times: u32,
}

impl Injection {
    async fn suffered_by(&self, world: &World, tenant: &str) {
        let mut database = Database::at(&world.daemon.database_url(&format!("tenant_{tenant}"))).await;
        database.script(self.planted()).await.expect("a trigger");
        eventually("the error to have been raised", || async {
            let mut database = Database::at(&world.daemon.database_url(&format!("tenant_{tenant}"))).await;
            (database.number("SELECT last_value FROM fault_count").await > i64::from(self.times)).then_some(())
        })
        .await;
        eventually("the trigger to go", || async {
            let mut database = Database::at(&world.daemon.database_url(&format!("tenant_{tenant}"))).await;
            let gone = "SET lock_timeout = 500; DROP FUNCTION fault() CASCADE; DROP SEQUENCE fault_count";
            database.script(gone.into()).await.ok()
        })
        .await;
    }

    fn planted(&self) -> String {
        let Injection { code, times, .. } = self;
        let (kind, when) = if self.at_commit {
            ("CONSTRAINT TRIGGER", "AFTER INSERT ON usage_ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
        } else {
            ("TRIGGER", "AFTER INSERT ON usage_ledger FOR EACH STATEMENT")
        };
        format!(
            "CREATE SEQUENCE fault_count; \
             CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('fault_count') <= {times} THEN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END IF; \
             RETURN NULL; END $$; \
             CREATE {kind} fault {when} EXECUTE FUNCTION fault()"
        )
    }
}

/// 25006: what a standby answers. No write is accepted, and none is pretended.
pub async fn read_only(world: &mut World) {
    let mut admin = Database::at(world.daemon.admin_url()).await;
    let told = |value: &str| format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
    admin.script(told("on")).await.expect("an administrator");
    admin.script("SELECT pg_reload_conf()".into()).await.expect("an administrator");
    let refused = world.targets[0].is_closed().await;
    sleep(Duration::from_secs(2)).await;
    admin.script("SET default_transaction_read_only = off".into()).await.expect("an administrator");
    admin.script(told("off")).await.expect("an administrator");
    admin.script("SELECT pg_reload_conf()".into()).await.expect("an administrator");
    post_until_counted(&world.targets[0].tenant.api, &[refused]).await;
}

/// One tenant's connection falls silent. Its decisions go on from memory, its neighbour from the database.
pub async fn silent(world: &mut World) {
    let (hung, other) = (&world.targets[0], &world.targets[1]);
    world.proxy().fall_silent(&format!("tenant_{}", hung.tenant.id));
    hung.is_judged().await;
    other.is_served().await;
    sleep(PAST_ALL_PATIENCE).await;
    other.is_served().await;
    world.proxy().forward();
}

/// The control database falls silent while much arrives that nobody can count. Its senders are told to come again, and what
/// none of them waits for any more is not held in memory.
pub async fn silent_control(world: &mut World) {
    let process = world.daemon.process();
    let before = Holdings::of(process).resident_kib;
    world.proxy().fall_silent(world.daemon.control_database());
    let headers = [("content-type", "application/json")];
    for _ in 0..POISON_ROUNDS {
        let posts = (0..POISON_AT_ONCE).map(|_| async {
            let poison = format!("{{\"poison\":\"{}\"}}", "x".repeat(POISON_BYTES)).into_bytes();
            world.targets[0].tenant.api.once(Method::POST, "/v1/usage/events", &headers, poison).await.status
        });
        assert_eq!(join_all(posts).await, [503; POISON_AT_ONCE]);
    }
    // On a busy machine the last of them is let go later.
    let mut after = u64::MAX;
    for _ in 0..30 {
        sleep(Duration::from_secs(1)).await;
        after = after.min(Holdings::of(process).resident_kib);
        if after < before + POISON_KIB_MAX {
            break;
        }
    }
    println!("resident {before} KiB before, {after} KiB after {} posts", POISON_ROUNDS * POISON_AT_ONCE);
    world.proxy().forward();
    assert!(after < before + POISON_KIB_MAX, "{before} KiB grew to {after} KiB");
}

/// SIGSTOP to the server process of one tenant's writer.
pub async fn frozen_backend(world: &mut World) {
    let (hung, other) = (&world.targets[0], &world.targets[1]);
    let mut admin = Database::at(world.daemon.admin_url()).await;
    let rows = admin
        .words("SELECT datname, CAST(pid AS TEXT) FROM pg_stat_activity WHERE application_name = 'platform-api' AND datname IS NOT NULL")
        .await;
    let ours = rows.iter().filter(|row| row[0].ends_with(&hung.tenant.id));
    let backends: Vec<u32> = ours.map(|row| row[1].parse().expect("a process")).collect();
    assert!(!backends.is_empty(), "nobody was connected");
    for backend in &backends {
        process::signal(*backend, "STOP").await;
    }
    other.is_served().await;
    sleep(PAST_ALL_PATIENCE).await;
    other.is_served().await;
    for backend in &backends {
        process::signal(*backend, "CONT").await;
    }
}
