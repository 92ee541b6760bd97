//! CPU time of processes and threads, from one moment to another: it moves far less than the clock does when others use
//! the machine.

use std::collections::HashMap;

/// Ticks of the kernel's CPU clock in a second; Linux has shown 100 to programs for decades.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time since a moment.
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
                    seconds.insert((id, at), seconds_of(&id.to_string()));
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
}

/// User and system time of the thread that asks, in seconds.
pub(crate) fn of_this_thread() -> f64 {
    seconds_of("thread-self")
}

fn seconds_of(id: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The command's name stands in parentheses and may hold anything; user and system time are fields 14 and 15.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
