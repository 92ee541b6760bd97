//! Adjusting entries: what a person books because the reconciliation found it missing, or booked too often.

use super::books::{CounterKey, Posting};
use super::ids::FindingId;
use super::period;
use super::time::Timestamp;
use super::usage::{Amounts, Flags, Kind, OWN_SOURCE, Status, Subject, UsageEvent};

/// Longest reason that a person may give, in bytes.
pub const REASON_BYTES_MAX: usize = 2_000;

/// An adjusting entry as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    /// May be negative; no sum may fall below zero by it.
    pub amounts: Amounts,
    /// In whose period it counts.
    pub occurred_at: Timestamp,
    pub subject: Subject,
}

impl Adjustment {
    /// The ledger's row. `position` makes each entry for the same finding another one.
    #[must_use]
    pub fn event(&self, finding: FindingId, position: i64, author: &str, reason: &str) -> UsageEvent {
        let details = serde_json::json!({ "author": author, "findingId": finding, "reason": reason });
        UsageEvent {
            source: OWN_SOURCE.into(),
            event_id: format!("adjustment:{finding}:{position}"),
            occurred_at: self.occurred_at,
            kind: Kind::Adjustment,
            status: Status::Success,
            subject: self.subject.clone(),
            call_type: String::new(),
            amounts: self.amounts,
            flags: Flags::default(),
            details: details.to_string(),
        }
    }
}

impl Posting {
    /// Would a sum fall below zero by this entry: the tenant's own, or a quota's? Its counters have been supplied.
    #[must_use]
    pub fn sinks_below_zero(&self, event: &UsageEvent) -> bool {
        let sums = self.books.lifetime.amounts.to_array();
        let lifetime = sums.iter().zip(event.amounts.to_array()).any(|(sum, more)| sum.saturating_add(more) < 0);
        let covering = self.books.quotas.iter().filter(|quota| quota.scope.covers(&event.subject));
        let counters = covering.map(|quota| {
            let window = period::window(quota.period, event.occurred_at, &self.books.time_zone);
            let key = CounterKey { quota: quota.id, period_start: window.start };
            let used = self.books.counters.get(&key).map_or(0, |counter| counter.used);
            used.saturating_add(quota.metric.of(&event.amounts))
        });
        lifetime || counters.into_iter().any(|used| used < 0)
    }
}
