//! Every fault, at random, for as long as one likes. `tests/soak` starts it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fault, World, clocks, damage, disk, inputs, limits, neighbours, postgres, process, stream};
use crate::harness::Engine;
use crate::harness::process::Holdings;
use crate::harness::tmpfs::Tmpfs;

/// Room for an hour's books.
const DISK_MEBIBYTES: usize = 512;
/// New tenants after this many faults: each check reads everything that a tenant was ever sent.
const FAULTS_PER_TENANTS: usize = 8;
/// What a daemon may hold when it rests, however long it has lived. Built for tests it is several times as large as it
/// will be.
const RESIDENT_KIB_MAX: u64 = 400 * 1_024;
const FILES_MAX: usize = 400;
const THREADS_MAX: u64 = 80;

/// What can go wrong on either engine.
const ANYWHERE: &[(&str, Fault)] = &[
    ("2a C1-C11: killed at a named point", |world| Box::pin(process::dies(world))),
    ("2a C11: asked to leave", |world| Box::pin(process::leaves(world))),
    ("2e: frozen for a while", |world| Box::pin(process::freezes(world))),
    ("2b: poison", |world| Box::pin(inputs::poisoned(world))),
    ("2b: flood of one tenant", |world| Box::pin(limits::flood(world))),
    ("2c F-N1: NATS killed", |world| Box::pin(stream::killed(world))),
    ("2c F-N1: NATS hangs", |world| Box::pin(stream::hangs(world))),
    ("2c F-N4: stream made anew", |world| Box::pin(stream::made_anew(world))),
    ("2c F-N3: NATS purged", |world| Box::pin(stream::purged(world))),
    ("2c F-N4: NATS restored to an earlier state", |world| Box::pin(stream::truncated(world))),
    ("2c F-N5: consumer deleted", |world| Box::pin(stream::consumer_deleted(world))),
    ("2e: Redis killed", |world| Box::pin(neighbours::redis_killed(world))),
    ("2e: Redis flushed", |world| Box::pin(neighbours::redis_flushed(world))),
    ("2e: Redis hangs", |world| Box::pin(neighbours::redis_hangs(world))),
    ("2e: receiver hangs", |world| Box::pin(neighbours::receiver_hangs(world))),
    ("2e: receiver accepts and closes", |world| Box::pin(neighbours::receiver_closes(world))),
    ("2e: receiver answers 429, 500, redirects", |world| Box::pin(neighbours::receiver_refuses(world))),
    ("2e: no file descriptors", |world| Box::pin(limits::out_of_files(world))),
];

const ON_POSTGRES: &[(&str, Fault)] = &[
    ("2a C3: connection cut around COMMIT", |world| Box::pin(postgres::cut_around_commit(world))),
    ("2d: SIGKILL of the postmaster", |world| Box::pin(postgres::killed(world))),
    ("2d: restart of the server", |world| Box::pin(postgres::restarted(world))),
    ("2d: connections terminated", |world| Box::pin(postgres::terminated(world))),
    ("2d: foreign lock", |world| Box::pin(postgres::locked(world))),
    ("2d: errors that roll back", |world| Box::pin(postgres::rolled_back(world))),
    ("2d: read-only server", |world| Box::pin(postgres::read_only(world))),
    ("2d: silent connection", |world| Box::pin(postgres::silent(world))),
    ("2d: frozen backend", |world| Box::pin(postgres::frozen_backend(world))),
    ("2e: frozen, taken over, and awake again", |world| Box::pin(process::is_taken_over(world))),
];

const ON_SQLITE: &[(&str, Fault)] = &[
    ("2d: foreign BEGIN IMMEDIATE", |world| Box::pin(disk::locked(world))),
    ("2d: file taken away while in use", |world| Box::pin(damage::taken_away(world))),
    ("2d: two files swapped while in use", |world| Box::pin(damage::swapped_in_use(world))),
];

const ON_A_DISK_OF_ITS_OWN: &[(&str, Fault)] = &[
    ("2d: disk full", |world| Box::pin(disk::full(world))),
    ("2d: disk full, and a restart", |world| Box::pin(disk::full_at_start(world))),
];

const WITH_A_CLOCK_OF_ITS_OWN: &[(&str, Fault)] = &[("2e: clock jumps", |world| Box::pin(clocks::jumps(world)))];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs for minutes or hours: tests/soak"]
async fn every_fault_again_and_again() {
    let soak = Soak::from_environment();
    let in_vain = Farewell(&soak);
    let mut world = soak.world().await;
    let faults = soak.faults(&world);
    let mut order = Order(soak.seed);
    let (began, mut bag, mut counts) = (Instant::now(), Vec::new(), BTreeMap::<&str, usize>::new());
    let (mut events, mut most) = (0, Holdings { resident_kib: 0, files: 0, threads: 0 });
    let mut done = 0;
    while began.elapsed() < soak.time {
        if bag.is_empty() {
            bag = faults.clone();
            order.shuffle(&mut bag);
        }
        let Some((name, fault)) = bag.pop() else { break };
        let next = Instant::now() + soak.every;
        world.suffers(name, fault).await;
        *counts.entry(name).or_default() += 1;
        done += 1;
        most = most.and(holdings(&world));
        if done % FAULTS_PER_TENANTS == 0 {
            events += world.events();
            world.moves_in().await;
        }
        sleep(next.saturating_duration_since(Instant::now())).await;
    }
    events += world.events();
    std::mem::forget(in_vain);
    println!("{counts:#?}");
    println!(
        "soak: {} seed {}: {done} faults of {} kinds in {} s, {events} events, 0 violations; at most {} KiB resident, \
         {} files, {} threads; again: {}",
        soak.engine,
        soak.seed,
        counts.len(),
        began.elapsed().as_secs(),
        most.resident_kib,
        most.files,
        most.threads,
        soak.command(),
    );
}

/// What the daemon holds when nobody wants anything of it.
fn holdings(world: &World) -> Holdings {
    let holdings = Holdings::of(world.daemon.process());
    assert!(holdings.resident_kib < RESIDENT_KIB_MAX, "{holdings:?}");
    assert!(holdings.files < FILES_MAX, "{holdings:?}");
    assert!(holdings.threads < THREADS_MAX, "{holdings:?}");
    holdings
}

/// What was asked for.
struct Soak {
    engine: Engine,
    time: Duration,
    /// From one fault to the next, at least.
    every: Duration,
    /// Of the order of the faults; what the senders send is random each time.
    seed: u64,
}

impl Soak {
    fn from_environment() -> Soak {
        let number = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}")))
        };
        let engine = match std::env::var("SOAK_STORE").as_deref() {
            Ok("postgres") => Engine::Postgres,
            Ok("sqlite") | Err(_) => Engine::Sqlite,
            Ok(other) => panic!("SOAK_STORE: {other}"),
        };
        Soak {
            engine,
            time: Duration::from_secs(60 * number("SOAK_MINUTES", 60)),
            every: Duration::from_secs(number("SOAK_EVERY", 60)),
            seed: number("SOAK_SEED", u64::from_le_bytes(platform_api::clock::random_bytes())),
        }
    }

    fn command(&self) -> String {
        let (minutes, every) = (self.time.as_secs() / 60, self.every.as_secs());
        format!("tests/soak --minutes {minutes} --every {every} --seed {} --store {}", self.seed, self.engine)
    }

    async fn world(&self) -> World {
        let (disk, library) = (Tmpfs::mount(DISK_MEBIBYTES), clocks::library());
        let folder = disk.as_ref().map(|disk| disk.folder("data"));
        let settings = |mut setup: crate::harness::Setup| {
            if let Some(library) = &library {
                setup = clocks::with_a_clock_of_its_own(setup, library);
            }
            if let (Engine::Sqlite, Some(folder)) = (self.engine, &folder) {
                setup = setup.with_data(folder);
            }
            postgres::with_short_patience(setup).with("REDIS__TTL_MS", 2_000).with("TENANTS__IDLE_MS", 1_000)
        };
        let mut world = World::on(self.engine, settings).await;
        match (self.engine, disk) {
            (Engine::Postgres, Some(disk)) => world.move_first_tenant_to(disk).await,
            (_, disk) => world.disk = disk,
        }
        world
    }

    fn faults(&self, world: &World) -> Vec<(&'static str, Fault)> {
        let mut faults = ANYWHERE.to_vec();
        faults.extend(if self.engine == Engine::Postgres { ON_POSTGRES } else { ON_SQLITE });
        if world.disk.is_some() {
            faults.extend(ON_A_DISK_OF_ITS_OWN);
        }
        if clocks::library().is_some() {
            faults.extend(WITH_A_CLOCK_OF_ITS_OWN);
        }
        faults
    }
}

/// Says how to do it again when it ends otherwise than well.
struct Farewell<'a>(&'a Soak);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        println!("soak: a violation; again: {}", self.0.command());
    }
}

/// The same seed, the same order (SplitMix64).
struct Order(u64);

impl Order {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }
}
