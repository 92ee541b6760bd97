//! The deterministic simulator: the real core and the real writer, in worlds where everything else is simulated.
//!
//! One **seed** makes one world: databases, a stream, clocks, HTTP clients, receivers of notices, one or two nodes, and
//! the faults that befall them. Everything runs in one thread, chance comes from the seed alone, and time is a number; so
//! the same seed gives the same story, line by line, and a failure is reproduced by its seed.
//!
//! ```text
//! cargo test --test simulator                                                 the suite's seeds, and the planted bugs
//! SIM_SEED=17 cargo test --test simulator seeds -- --nocapture                one seed, with its story
//! SIM_SEEDS=1000000 cargo test --release --test simulator seeds -- --nocapture   offline, with progress
//! SIM_FROM=5000000 SIM_SEEDS=…                                                other seeds than last time
//! ```
//!
//! **What is real**: the parsers and the attribution; permits; the keeper's queue; the writer, whose async code is polled
//! one database call at a time, so that a crash, a freeze or another owner's commit may come between any two statements;
//! sorting, posting, books, decisions, the chain; slots and their backoff; the outlets' desk, schedule and circuits.
//! **What is simulated**: what these call or are called by ([`session`] is the store's stand-in, [`database`] the tables
//! below it; [`stream`], [`courier`], [`world`] are the neighbours), and the few lines that tie them together
//! ([`home`], [`node`], [`consignment`]), which elsewhere are actors, tasks and timers.
//!
//! **Who judges**: [`checks`] looks at every commit, acknowledgement and answer, and at everything once the storm is over
//! and the backlog has drained (V1). Its [`oracle`] knows what was sent, and adds it up in a way of its own.
//!
//! **Who judges the judge**: [`planted`] bugs, each of which must be caught; [`coverage`], by which every fault and every
//! outcome must really have happened in the suite's seeds; and seeds that are run twice and must tell the same story.
//!
//! What it cannot find: what lies in SQL, in the drivers, in actors' mailboxes and tasks, and in real time. The suite's
//! crash and fault tests are for that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]
#![allow(unreachable_pub, reason = "one binary: pub means for the other parts")]

mod change;
mod checks;
mod consignment;
mod courier;
mod coverage;
mod database;
mod dice;
mod ground;
mod home;
mod node;
mod oracle;
mod plan;
mod planted;
mod sender;
mod session;
mod stream;
mod town;
mod trace;
mod vault;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use coverage::Coverage;
use planted::Planted;

/// Seeds of the suite.
const SEEDS: u64 = 2_000;
/// Seeds by which every planted bug has to be caught.
const PLANTED_SEEDS: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Runs seeds on all cores until one fails; the coverage, and the failures found by then.
fn run_many(from: u64, seeds: u64) -> (Coverage, Vec<(u64, String)>, u64) {
    let next = AtomicU64::new(from);
    let events = AtomicU64::new(0);
    let found = Mutex::new((Coverage::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || !found.lock().unwrap().1.is_empty() {
                        break;
                    }
                    let report = world::run(seed, None, false);
                    coverage.add(&report.coverage);
                    let sum = events.fetch_add(report.events as u64, Ordering::Relaxed);
                    if (seed - from).is_multiple_of(10_000) && seed > from {
                        println!("{:>9} of {seeds} seeds, {sum} events, no violation", seed - from);
                    }
                    if let Some(broken) = report.broken {
                        found.lock().unwrap().1.push((seed, broken));
                    }
                }
                found.lock().unwrap().0.merge(&coverage);
            });
        }
    });
    let (coverage, failures) = found.into_inner().unwrap();
    (coverage, failures, events.into_inner())
}

fn command(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test --test simulator seeds -- --nocapture")
}

/// Every invariant, in every world; and every fault and outcome in some.
#[test]
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let report = world::run(seed, None, true);
        report.lines.iter().for_each(|line| println!("{line}"));
        assert_eq!(report.broken, None, "seed {seed}");
        return;
    }
    let (from, seeds) = (number("SIM_FROM").unwrap_or(0), number("SIM_SEEDS").unwrap_or(SEEDS));
    let (coverage, failures, events) = run_many(from, seeds);
    if let Some((seed, broken)) = failures.iter().min() {
        panic!("{broken}\n    {}", command(*seed));
    }
    println!("{seeds} seeds, {events} events, no violation; met in so many seeds:");
    coverage.table().iter().for_each(|(what, seeds)| println!("{seeds:>9}  {what}"));
    assert_eq!(coverage.unlisted(), Vec::<&str>::new(), "words that are in no list");
    let never: Vec<_> = coverage.table().into_iter().filter(|(_, seeds)| *seeds == 0).map(|(what, _)| what).collect();
    assert!(never.is_empty() || seeds < SEEDS, "never happened in {seeds} seeds: {never:?}");
}

/// The same seed gives the same story.
#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..50 {
        let [first, second] = [(); 2].map(|()| world::run(seed, None, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
    }
}

/// The judge is not blind: each planted bug is caught.
#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for planted in Planted::ALL {
        let caught = (0..PLANTED_SEEDS).find_map(|seed| Some((seed, world::run(seed, Some(planted), false).broken?)));
        match caught {
            Some((seed, broken)) => println!("{planted:?}: caught after {} seeds: {broken}", seed + 1),
            None => missed.push(planted),
        }
    }
    assert!(missed.is_empty(), "not caught within {PLANTED_SEEDS} seeds: {missed:?}");
}
