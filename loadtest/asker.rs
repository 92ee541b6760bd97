//! Questions on kept-alive connections, a thread for each: as many as there can be, or at their due moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::cpu;
use crate::figures::Latencies;
use crate::link::Wire;
use crate::pace::{Pace, micros_since};

/// What all connections ask, and how.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) address: String,
    pub(crate) request: Arc<Vec<u8>>,
    pub(crate) connections: u32,
    /// A second, all together; `None` asks again as soon as it was answered.
    pub(crate) rate: Option<f64>,
    pub(crate) took: Duration,
}

pub(crate) struct Answered {
    pub(crate) latencies: Latencies,
    pub(crate) took: Duration,
    /// CPU seconds of the asking threads.
    pub(crate) cpu: f64,
}

impl Question {
    /// Asks; returns when the time is over and the last answer has come. Blocks its thread.
    pub(crate) fn ask(&self) -> anyhow::Result<Answered> {
        let began = Instant::now();
        let asking: Vec<_> = (0..self.connections)
            .map(|at| {
                let question = self.clone();
                std::thread::spawn(move || question.connection(at, began))
            })
            .collect();
        let (mut micros, mut cpu) = (Vec::new(), 0.0);
        for thread in asking {
            let (theirs, seconds) = thread.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??;
            micros.extend(theirs);
            cpu += seconds;
        }
        Ok(Answered { latencies: Latencies::of(micros), took: began.elapsed(), cpu })
    }

    /// Latencies in microseconds, from the moment a question was due, and the thread's CPU time.
    fn connection(&self, at: u32, began: Instant) -> anyhow::Result<(Vec<u32>, f64)> {
        let mut wire = Wire::to(&self.address)?;
        let mut micros = Vec::with_capacity(64 * 1024);
        let mut asked = |due: Instant| {
            let answer = wire.send(&self.request)?;
            ensure!(matches!(answer.status, 200 | 304), "answered {}", answer.status);
            micros.push(micros_since(due));
            Ok(())
        };
        match self.rate {
            Some(rate) => {
                Pace::share(rate, self.connections, at, began, self.took).moments().try_for_each(&mut asked)?;
            }
            None => {
                while began.elapsed() < self.took {
                    asked(Instant::now())?;
                }
            }
        }
        Ok((micros, cpu::of_this_thread()))
    }
}
