//! What a stretch of work has cost each party, and which of the machine's resources was the limit.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use sqlx::{Connection, PgConnection};

use crate::cpu::{Cpu, Group};
use crate::plant::{Plant, StoreKind};
use crate::truth::Metrics;

/// CPU is the limit from this share of all cores on.
const BUSY: f64 = 0.85;

/// From its start to its end.
pub(crate) struct Profile {
    cpu: Cpu,
    before: Marks,
    strace: Option<Strace>,
}

struct Marks {
    commits: f64,
    events: f64,
    commit_seconds: f64,
    wal_bytes: f64,
    written_bytes: f64,
}

/// What it came to.
pub(crate) struct Spent {
    pub(crate) cpu: Vec<(&'static str, f64)>,
    pub(crate) commits: f64,
    pub(crate) events: f64,
    pub(crate) commit_ms: f64,
    /// Of the write-ahead log on Postgres; written by the daemon itself on SQLite.
    pub(crate) written_bytes: f64,
    pub(crate) syscalls: Option<Syscalls>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Syscalls {
    pub(crate) all: u64,
    pub(crate) fsyncs: u64,
}

impl Profile {
    /// With `deep`, the daemon's system calls are counted too, which slows it down.
    pub(crate) async fn start(plant: &Plant, deep: bool) -> anyhow::Result<Profile> {
        let strace = if deep { Some(Strace::start(plant)?) } else { None };
        let before = Marks::read(plant).await?;
        let cpu = Cpu::start(vec![
            ("daemon", plant.daemon()),
            ("postgres", plant.backends()),
            ("nats", Group::Named(vec!["nats-server".into()])),
            ("sender", Group::Process(std::process::id())),
        ]);
        Ok(Profile { cpu, before, strace })
    }

    pub(crate) async fn end(self, plant: &Plant) -> anyhow::Result<Spent> {
        let cpu = self.cpu.used();
        let after = Marks::read(plant).await?;
        let commits = after.commits - self.before.commits;
        let written_bytes = match plant.store {
            StoreKind::Postgres => after.wal_bytes - self.before.wal_bytes,
            StoreKind::Sqlite => after.written_bytes - self.before.written_bytes,
        };
        Ok(Spent {
            cpu,
            commits,
            events: after.events - self.before.events,
            commit_ms: (after.commit_seconds - self.before.commit_seconds) * 1e3 / commits.max(1.0),
            written_bytes,
            syscalls: self.strace.map(Strace::end).transpose()?,
        })
    }
}

impl Spent {
    /// Microseconds of CPU for each of `events`, by party.
    pub(crate) fn cpu_each(&self, events: u64) -> String {
        let each = |(name, seconds): &(&str, f64)| format!("{name} {:.1}", seconds * 1e6 / events.max(1) as f64);
        let used = self.cpu.iter().filter(|(_, seconds)| *seconds > 0.0);
        used.map(each).collect::<Vec<_>>().join(", ")
    }

    /// Which resource was the limit, as far as this shows it.
    pub(crate) fn limit(&self, took: Duration) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let all: f64 = self.cpu.iter().map(|(_, seconds)| seconds).sum();
        let share = all / (took.as_secs_f64() * cores);
        let greediest = self.cpu.iter().max_by(|one, other| one.1.total_cmp(&other.1)).map_or("", |(name, _)| name);
        let writing = self.commits * self.commit_ms / 1e3 / took.as_secs_f64();
        if share >= BUSY {
            format!("CPU {:.0} % ({greediest})", share * 100.0)
        } else if writing >= BUSY {
            format!("commits {:.1} at a time", writing)
        } else {
            format!("waiting (CPU {:.0} %)", share * 100.0)
        }
    }
}

impl Marks {
    async fn read(plant: &Plant) -> anyhow::Result<Marks> {
        let metrics = Metrics::of(plant).await?;
        let wal_bytes = match plant.store {
            StoreKind::Postgres => {
                let mut server = PgConnection::connect(&plant.surroundings.postgres).await?;
                let sql = "SELECT CAST(pg_current_wal_lsn() - '0/0' AS DOUBLE PRECISION)";
                sqlx::query_scalar(sql).fetch_one(&mut server).await?
            }
            StoreKind::Sqlite => 0.0,
        };
        Ok(Marks {
            commits: metrics.sum("platform_api_commit_seconds_count"),
            events: metrics.sum("platform_api_commit_events_sum"),
            commit_seconds: metrics.sum("platform_api_commit_seconds_sum"),
            wal_bytes,
            written_bytes: written(plant),
        })
    }
}

/// Bytes that the daemon has caused to be written to disk.
fn written(plant: &Plant) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", plant.process())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0.0)
}

/// Counts system calls.
struct Strace {
    child: Child,
    report: std::path::PathBuf,
}

impl Strace {
    fn start(plant: &Plant) -> anyhow::Result<Strace> {
        let report = plant.folder().join("strace");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-p", &plant.process().to_string(), "-o"]).arg(&report);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("starting strace")?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(Strace { child, report })
    }

    fn end(mut self) -> anyhow::Result<Syscalls> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        self.child.wait()?;
        let mut counted = Syscalls::default();
        for line in std::fs::read_to_string(&self.report)?.lines() {
            // % time, seconds, usecs/call, calls, [errors,] syscall
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(calls), Some(name)) = (words.get(3).and_then(|word| word.parse::<u64>().ok()), words.last())
            else {
                continue;
            };
            match *name {
                "total" => counted.all = calls,
                "fsync" | "fdatasync" => counted.fsyncs += calls,
                _ => {}
            }
        }
        Ok(counted)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
