//! A circuit breaker: after some failures in a row, a channel is left alone, then tried with a single message.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open the circuit.
pub const FAILURES_MAX: u32 = 5;
/// How long it stays open at first; doubles with each probe that fails.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// One message is on its way to find out.
    Probing {
        pause: Duration,
    },
}

/// One channel's circuit.
#[derive(Debug, Clone)]
pub struct Breaker {
    circuit: Circuit,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { circuit: Circuit::Closed { failures: 0 } }
    }
}

impl Breaker {
    /// May a message be sent now?
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.circuit {
            Circuit::Closed { .. } => Ok(()),
            Circuit::Open { until, pause } if now >= until => {
                self.circuit = Circuit::Probing { pause };
                Ok(())
            }
            Circuit::Open { until, .. } => Err(until - now),
            Circuit::Probing { pause } => Err(pause),
        }
    }

    /// The channel has answered.
    pub fn succeeded(&mut self) {
        self.circuit = Circuit::Closed { failures: 0 };
    }

    /// The channel has not answered, or has asked for time.
    pub fn failed(&mut self, now: Instant) {
        self.circuit = match self.circuit {
            Circuit::Closed { failures } if failures + 1 < FAILURES_MAX => Circuit::Closed { failures: failures + 1 },
            Circuit::Closed { .. } => Circuit::Open { until: now + PAUSE, pause: PAUSE },
            Circuit::Probing { pause } => {
                let pause = (pause * 2).min(PAUSE_MAX);
                Circuit::Open { until: now + pause, pause }
            }
            // A send that began before the circuit opened.
            open @ Circuit::Open { .. } => open,
        };
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.circuit, Circuit::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_closes_with_one_probe() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX - 1 {
            breaker.failed(start);
        }
        breaker.succeeded();
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.admit(start), Ok(()));
            breaker.failed(start);
        }
        assert_eq!(breaker.admit(start), Err(PAUSE));
        let later = start + PAUSE;
        assert_eq!(breaker.admit(later), Ok(()), "one probe");
        assert_eq!(breaker.admit(later), Err(PAUSE), "and no second one beside it");
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Err(PAUSE * 2), "a failed probe doubles the pause");
        assert_eq!(breaker.admit(later + PAUSE * 2), Ok(()));
        breaker.succeeded();
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_pause_has_an_end() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            now += PAUSE_MAX;
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.failed(now);
        }
        assert_eq!(breaker.admit(now), Err(PAUSE_MAX));
    }
}
