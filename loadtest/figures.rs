//! Numbers for people: percentiles, CPU time, the table.

use std::collections::HashMap;
use std::time::Duration;

/// Ticks of the kernel's CPU clock in a second; Linux has shown 100 to programs for decades.
const TICKS_PER_SECOND: f64 = 100.0;

/// A table of names and values, printed when a run is over.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<(String, String)>);

impl Table {
    pub(crate) fn row(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    pub(crate) fn print(&self) {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &self.0 {
            println!("{name:width$}  {value}");
        }
    }
}

pub(crate) fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(1e-9)
}

/// Latencies in microseconds, sorted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    pub(crate) fn of(mut micros: Vec<u32>) -> Latencies {
        micros.sort_unstable();
        Latencies(micros)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// In microseconds; `share` of them were at most this long.
    pub(crate) fn at(&self, share: f64) -> u32 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(0)
    }

    pub(crate) fn text(&self) -> String {
        let [p50, p99, p999, most] = [0.5, 0.99, 0.999, 1.0].map(|share| self.at(share));
        format!("p50 {p50} µs, p99 {p99} µs, p99.9 {p999} µs, max {most} µs")
    }
}

/// CPU time of processes, from one moment to another.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    groups: Vec<(&'static str, Group)>,
    before: HashMap<(u32, usize), f64>,
}

/// Which processes belong together.
#[derive(Debug, Clone)]
pub(crate) enum Group {
    Process(u32),
    /// Those whose command line holds one of these words.
    Named(Vec<String>),
}

impl Cpu {
    pub(crate) fn start(groups: Vec<(&'static str, Group)>) -> Cpu {
        let mut cpu = Cpu { groups, before: HashMap::new() };
        cpu.before = cpu.read();
        cpu
    }

    fn read(&self) -> HashMap<(u32, usize), f64> {
        let mut seconds = HashMap::new();
        let Ok(processes) = std::fs::read_dir("/proc") else { return seconds };
        for id in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            for (at, (_, group)) in self.groups.iter().enumerate() {
                let belongs = match group {
                    Group::Process(own) => *own == id,
                    Group::Named(words) => words.iter().any(|word| line.contains(word.as_str())),
                };
                if belongs {
                    seconds.insert((id, at), seconds_of(id));
                }
            }
        }
        seconds
    }

    /// Seconds each group has used since the start.
    pub(crate) fn used(&self) -> Vec<(&'static str, f64)> {
        let now = self.read();
        let of = |group: usize| -> f64 {
            let theirs = now.iter().filter(|((_, at), _)| *at == group);
            theirs.map(|(key, seconds)| seconds - self.before.get(key).copied().unwrap_or(0.0)).sum()
        };
        self.groups.iter().enumerate().map(|(at, (name, _))| (*name, of(at))).collect()
    }

    /// As a text, in microseconds for each of `count`.
    pub(crate) fn text(&self, count: u64) -> String {
        let each = |(name, seconds): (&str, f64)| format!("{name} {:.1}", seconds * 1e6 / count.max(1) as f64);
        let parts: Vec<String> = self.used().into_iter().map(each).collect();
        format!("µs each: {}", parts.join(", "))
    }
}

fn seconds_of(id: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The command's name stands in parentheses and may hold anything; user and system time are fields 14 and 15.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
