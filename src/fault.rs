//! Named points at which the tests end or stop this process, and mistakes that they plant in it to prove that they notice.
//!
//! The tests are built with the feature `failpoints` of the crate `fail` (a development dependency turns it on), and arm
//! points through the environment: `FAILPOINTS="commit.before=3*off->return(KILL)"` ends the process with SIGKILL when
//! it is there for the fourth time. In every other build, [`point`] and [`is_planted`] compile to nothing; a test reads
//! the dependencies of a release to prove it. What stands at a point: a signal's name (`KILL`, `STOP`), or
//! `KILL soon`, which lets the process run on until the signal has arrived.

use std::process::{Command, Stdio};

/// Reads what is armed from the environment, for as long as the process lives.
pub fn arm() {
    if fail::has_failpoints() {
        // Dropping it would disarm everything.
        std::mem::forget(fail::FailScenario::setup());
    }
}

/// A place where a process may die, named `<what>.<when>`.
pub fn point(name: &str) {
    if fail::has_failpoints()
        && let Some(Some(order)) = fail::eval(name, |order| order)
    {
        obey(&order);
    }
}

/// Is this mistake to be made now?
#[must_use]
pub fn is_planted(mistake: &str) -> bool {
    fail::has_failpoints() && fail::eval(mistake, |_| ()).is_some()
}

/// The signal comes from outside, as it does from a kernel or an operator: no destructor runs and nothing is flushed.
fn obey(order: &str) {
    let (signal, soon) = order.split_once(' ').map_or((order, false), |(signal, _)| (signal, true));
    let (signal, process) = (format!("-{signal}"), std::process::id().to_string());
    let sent = Command::new("kill").args([signal, process]).stdin(Stdio::null()).spawn();
    if let (Ok(mut kill), false) = (sent, soon) {
        let _ = kill.wait();
    }
}
