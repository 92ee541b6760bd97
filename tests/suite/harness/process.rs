//! Processes seen from outside: signals, and what they hold.

use std::path::PathBuf;

use tokio::process::Command;

/// Sends a signal by its name without SIG: `KILL`, `STOP`, `CONT`.
pub async fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().await;
    assert!(sent.expect("kill is there").success(), "no process {process} to send {name} to");
}

/// What a process holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    pub resident_kib: u64,
    pub files: usize,
    pub threads: u64,
}

impl Holdings {
    pub fn of(process: u32) -> Holdings {
        let folder = PathBuf::from(format!("/proc/{process}"));
        let status = std::fs::read_to_string(folder.join("status")).expect("the process runs");
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
        };
        let files = std::fs::read_dir(folder.join("fd")).expect("a process of ours").count();
        Holdings { resident_kib: number("VmRSS:"), files, threads: number("Threads:") }
    }
}
