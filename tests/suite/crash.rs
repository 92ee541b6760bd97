//! The real binary, killed without warning while NATS and HTTP feed it: at every point that has a name (`src/fault.rs`),
//! and at any moment. Afterwards every invariant holds against an oracle that knows what was sent.
//!
//! `CRASH_KILLS=50000` sets how many kills there are on each engine, at least one at each point.

use std::time::Duration;

use tokio::time::sleep;

use crate::harness::fire::{self, Fire, between, chance};
use crate::harness::receiver::Receiver;
use crate::harness::{Daemon, Engine, Setup};

/// Kills on each engine, without those of other stories.
const KILLS: usize = 144;
/// Kills between two looks at everything, when nothing is on its way.
const KILLS_BETWEEN_CHECKS: usize = 48;
/// How long a daemon lives before it is killed anywhere, in milliseconds: from its first breath to the middle of its work.
const LIFE_MS: (u64, u64) = (40, 700);

const TENANTS: [&str; 2] = ["Acme", "Globex"];

/// How one life ends.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    /// At a point, when the process is there for the first, second, … time.
    At(&'static str),
    /// At a point that a process passes once for each tenant it opens.
    Opening(&'static str),
    /// A little later than at the point, wherever that may be.
    SoonAfter(&'static str),
    /// When the answer to a COMMIT was lost and the tenant has been opened anew.
    AfterDoubt,
    /// At a point on the way out, after SIGTERM.
    Leaving(&'static str),
    /// Anywhere.
    AtRandom,
}

const DEATHS: &[Death] = &[
    // C1: received, nothing begun. C2: written, not committed.
    Death::At("intake.received"),
    Death::At("commit.filled"),
    Death::At("audit.appended"),
    Death::At("commit.before"),
    // C3: COMMIT is on its way, or its answer is lost.
    Death::SoonAfter("commit.before"),
    Death::AfterDoubt,
    // C4, C6: committed, nobody knows.
    Death::At("commit.after"),
    Death::At("books.before"),
    Death::At("books.after"),
    Death::At("answer.before"),
    Death::At("ack.before"),
    // C5: acknowledged.
    Death::At("ack.after"),
    // C7, C8: the alert is owed; told; told and noted.
    Death::At("outbox.before"),
    Death::At("outbox.accepted"),
    Death::At("outbox.marked"),
    // C10: while a tenant is taken over.
    Death::Opening("owner.before"),
    Death::Opening("owner.after"),
    // C11: while leaving.
    Death::Leaving("drain.begun"),
    Death::Leaving("drain.stream"),
    Death::Leaving("drain.doors"),
    Death::Leaving("drain.outlets"),
    Death::Leaving("drain.tenants"),
    Death::AtRandom,
    Death::AtRandom,
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_on_sqlite_nothing_is_lost_or_counted_twice() {
    killed_anywhere(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_on_postgres_nothing_is_lost_or_counted_twice() {
    killed_anywhere(Engine::Postgres).await;
}

/// C11: who is asked to leave finishes what it was given, and takes nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_under_load_leaves_nothing_to_be_delivered_again() {
    let pager = Receiver::start().await;
    let mut daemon = fire::setup(Setup::on(Engine::Sqlite), &pager).start().await;
    let mut fire = Fire::on(&daemon, &pager, &["Acme"]).await;
    for _ in 0..8 {
        sleep(Duration::from_millis(between(50, 300))).await;
        daemon.terminate().await;
        assert_eq!(fire.bus.unacknowledged().await, 0, "C11: delivered, and left for another time");
        daemon.restart().await;
    }
    fire.quench(&daemon).await;
}

async fn killed_anywhere(engine: Engine) {
    let kills = std::env::var("CRASH_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let pager = Receiver::start().await;
    let mut daemon = fire::setup(Setup::on(engine), &pager).start().await;
    let mut fire = Fire::on(&daemon, &pager, &TENANTS).await;
    daemon.kill().await;
    let mut killed = 0;
    while killed < kills.max(DEATHS.len()) {
        die(&mut daemon, DEATHS[killed % DEATHS.len()]).await;
        fire.check_remains(&daemon).await;
        killed += 1;
        if killed % KILLS_BETWEEN_CHECKS == 0 {
            daemon.restart().await;
            fire.quench(&daemon).await;
            fire.light();
            daemon.kill().await;
        }
    }
    daemon.restart().await;
    fire.quench(&daemon).await;
    daemon.terminate().await;
    let verdict = daemon.verify_offline().await;
    assert!(verdict.status.success(), "A1: {}", String::from_utf8_lossy(&verdict.stdout));
    println!("{engine}: {killed} kills, {} ways to die, {:?} events, 0 violations", DEATHS.len(), fire.events());
}

/// One life: from the start of the process to its end.
pub async fn die(daemon: &mut Daemon, death: Death) {
    let passed = between(0, 6);
    match death {
        Death::At(point) => {
            daemon.spawn_armed(&format!("{point}={passed}*off->return(KILL)"));
            daemon.dies_at(point).await;
        }
        Death::Opening(point) => {
            daemon.spawn_armed(&format!("{point}={}*off->return(KILL)", passed % TENANTS.len() as u64));
            daemon.dies_at(point).await;
        }
        Death::SoonAfter(point) => {
            daemon.spawn_armed(&format!("{point}={passed}*off->return(KILL soon)"));
            daemon.dies_at(point).await;
        }
        Death::AfterDoubt => {
            // Both tenants are opened once; a third time is the one in doubt, opened anew.
            let opened = TENANTS.len();
            daemon.spawn_armed(&format!("commit.reply-lost=2*off->1*return;owner.after={opened}*off->return(KILL)"));
            daemon.dies_at("owner.after").await;
        }
        Death::Leaving(point) => {
            daemon.spawn_armed(&format!("{point}=return(KILL)"));
            daemon.ready().await;
            sleep(Duration::from_millis(between(50, 250))).await;
            daemon.signal("TERM").await;
            daemon.dies_at(point).await;
        }
        Death::AtRandom => {
            daemon.spawn();
            // Killed while it starts, too.
            if chance(3) {
                daemon.ready().await;
            }
            sleep(Duration::from_millis(between(LIFE_MS.0, LIFE_MS.1))).await;
            daemon.kill().await;
        }
    }
}
