//! The calls of a window in which there are too many to be joined: what counts need of them, in a few bytes each.

use std::collections::HashSet;

use super::join::consumed;
use super::window::LedgerCall;
use crate::domain::time::Timestamp;
use crate::domain::usage::Status;

/// Calls, one after the other. Each is kept in about thirty bytes.
#[derive(Debug, Default)]
pub struct Tally {
    calls: usize,
    ids: ahash::RandomState,
    successes_at: Vec<Timestamp>,
    /// The hashes of their ids. Two of 64 bits that are alike among millions would leave out one call of a window.
    succeeded: HashSet<u64, ahash::RandomState>,
    /// Failures that consumed something: the hash of the id, if there is one.
    broken: Vec<(Option<u64>, Timestamp)>,
}

impl Tally {
    pub fn add(&mut self, call: &LedgerCall) {
        self.calls += 1;
        let id = (!call.call_id.is_empty()).then(|| self.ids.hash_one(&call.call_id));
        match call.status {
            Status::Success => {
                self.succeeded.extend(id);
                self.successes_at.push(call.occurred_at);
            }
            Status::Failure if consumed(call) => self.broken.push((id, call.occurred_at)),
            Status::Failure => {}
        }
    }

    /// How many were added.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// When the calls occurred that must each have been one request that was passed on with success: successes, and
    /// failures that consumed something and were not tried again. In no order.
    #[must_use]
    pub fn counted(self) -> Vec<Timestamp> {
        let Tally { mut successes_at, succeeded, broken, .. } = self;
        let was_tried_again = |id: &Option<u64>| id.is_some_and(|id| succeeded.contains(&id));
        successes_at.extend(broken.iter().filter(|(id, _)| !was_tried_again(id)).map(|(_, at)| *at));
        successes_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::usage::{Amounts, Flags};

    fn call(id: &str, status: Status, requests: i64, at: i64) -> LedgerCall {
        LedgerCall {
            position: at,
            call_id: id.to_owned(),
            request_id: String::new(),
            occurred_at: Timestamp(at),
            status,
            flags: Flags::default(),
            amounts: Amounts { requests, ..Amounts::default() },
        }
    }

    #[test]
    fn failures_count_that_consumed_something_and_were_not_tried_again() {
        let mut tally = Tally::default();
        let calls = [
            call("tried again", Status::Failure, 1, 1),
            call("tried again", Status::Success, 1, 2),
            call("broken", Status::Failure, 1, 3),
            call("refused", Status::Failure, 0, 4),
            // Without an id nothing says that these are one.
            call("", Status::Failure, 1, 5),
            call("", Status::Success, 1, 6),
        ];
        calls.iter().for_each(|call| tally.add(call));
        assert_eq!(tally.calls(), 6);
        let mut counted = tally.counted();
        counted.sort_unstable();
        assert_eq!(counted, [2, 3, 5, 6].map(Timestamp));
    }
}
