//! What waits for the writer, and which of it makes the next unit. Pure: the keeper puts its messages in, and hands on
//! what comes out.
//!
//! At most one unit is at the writer. Meanwhile the next one gathers, so commits are small when idle and large under
//! load, without a timer.

use std::collections::VecDeque;

use super::work::Work;
use crate::domain::time::Timestamp;

/// A tenant's work, in the order it was asked for.
#[derive(Debug)]
pub struct Queue {
    open: VecDeque<Work>,
    open_events: usize,
    /// Most usage events of one unit that holds more than one piece.
    unit_events_max: usize,
    in_flight: bool,
    leaving: bool,
}

impl Queue {
    #[must_use]
    pub fn new(unit_events_max: usize) -> Queue {
        Queue { open: VecDeque::new(), open_events: 0, unit_events_max, in_flight: false, leaving: false }
    }

    /// Queues work for the next unit. A tenant that is leaving drops it, which tells the caller to come back.
    pub fn push(&mut self, work: Work) {
        if !self.leaving {
            self.open_events += work.events();
            self.open.push_back(work);
        }
    }

    /// Queues a look at what time has changed; one is enough.
    pub fn roll(&mut self, now: Timestamp) {
        if !self.open.iter().any(|work| matches!(work, Work::Roll { .. })) {
            self.push(Work::Roll { now });
        }
    }

    /// The next unit for an idle writer: the oldest work, up to the most events of one commit, and at least one piece.
    /// The writer counts as busy until [`returned`](Queue::returned).
    pub fn next_unit(&mut self) -> Option<Vec<Work>> {
        if self.in_flight || self.open.is_empty() {
            return None;
        }
        let mut unit = Vec::new();
        let mut events = 0;
        while let Some(next) = self.open.front() {
            let alone = next.is_alone();
            if !unit.is_empty() && (alone || events + next.events() > self.unit_events_max) {
                break;
            }
            events += next.events();
            unit.extend(self.open.pop_front());
            if alone {
                break;
            }
        }
        self.open_events -= events;
        self.in_flight = true;
        Some(unit)
    }

    /// Does a pass wait to be taken into the books?
    #[must_use]
    pub fn holds_pass(&self) -> bool {
        self.open.iter().any(Work::is_pass)
    }

    /// The writer has ended its unit.
    pub fn returned(&mut self) {
        self.in_flight = false;
    }

    /// Takes nothing new from now on; what is queued is still handed out.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Nothing waits, and nothing is at the writer.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && !self.in_flight
    }

    /// Usage events that wait.
    #[must_use]
    pub fn events(&self) -> usize {
        self.open_events
    }

    /// When the oldest work that waits was asked for.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        self.open.front().map(Work::now)
    }

    /// Is a unit at the writer?
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }
}
