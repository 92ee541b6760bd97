//! How far a run is: one line on a terminal, and a line now and then in a file.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 30;
/// How often it is told.
const ON_A_TERMINAL: Duration = Duration::from_millis(100);
const IN_A_FILE: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    what: String,
    whole: u64,
    began: Instant,
    told: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn of(what: impl Into<String>, whole: u64) -> Progress {
        let progress = Progress {
            what: what.into(),
            whole,
            began: Instant::now(),
            told: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        };
        progress.draw(0);
        progress
    }

    /// Tells how much is done, if it has not been told a moment ago.
    pub(crate) fn at(&mut self, done: u64) {
        let pause = if self.terminal { ON_A_TERMINAL } else { IN_A_FILE };
        if self.told.elapsed() >= pause {
            self.told = Instant::now();
            self.draw(done);
        }
    }

    fn draw(&self, done: u64) {
        let share = (done as f64 / self.whole.max(1) as f64).min(1.0);
        let full = (share * WIDTH as f64) as usize;
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
        let rate = done as f64 / self.began.elapsed().as_secs_f64().max(1e-3);
        let line = format!("{} [{bar}] {done} of {} ({rate:.0}/s)", self.what, self.whole);
        // Progress that cannot be told is no reason to stop.
        let _ = match (self.terminal, done) {
            (true, _) => write!(std::io::stderr(), "\r{line}\x1b[K"),
            (false, 0) => writeln!(std::io::stderr(), "{}", self.what),
            (false, _) => writeln!(std::io::stderr(), "{line}"),
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
