//! How a batch of events is taken apart before it is counted: by quarter of an hour and subject, by window, by scope.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::tz::TimeZone;

use super::books::RollupKey;
use super::period::{self, PeriodKind, Window};
use super::quota::Quota;
use super::time::Timestamp;
use super::usage::{Subject, Totals, UsageEvent};

/// The quarters of an hour and subjects of events, each once, in no order.
pub(super) fn starts_and_subjects<'a>(
    events: &[&'a UsageEvent],
) -> HashSet<(Timestamp, &'a Subject), ahash::RandomState> {
    let mut found = HashSet::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4));
    found.extend(events.iter().map(|event| (period::rollup_start(event.occurred_at), &event.subject)));
    found
}

/// Sums of events that share a quarter of an hour and a subject. Most batches have few such groups, and quotas and
/// rollups cost by the group, not by the event.
pub(super) fn group(events: &[&UsageEvent]) -> BTreeMap<RollupKey, Totals> {
    let mut groups: HashMap<(Timestamp, &Subject), Totals, ahash::RandomState> =
        HashMap::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4));
    for event in events {
        groups.entry((period::rollup_start(event.occurred_at), &event.subject)).or_default().add(&Totals::of(event));
    }
    groups
        .into_iter()
        .map(|((start, subject), totals)| (RollupKey { start, subject: subject.clone() }, totals))
        .collect()
}

/// Remembers the last window of each period: events come in runs, and a calendar look-up costs more than a comparison.
pub(super) struct Windows<'a> {
    zone: &'a TimeZone,
    last: HashMap<PeriodKind, Window>,
}

impl<'a> Windows<'a> {
    pub(super) fn new(zone: &'a TimeZone) -> Windows<'a> {
        Windows { zone, last: HashMap::new() }
    }

    pub(super) fn of(&mut self, kind: PeriodKind, at: Timestamp) -> Window {
        match self.last.get(&kind) {
            Some(window) if window.contains(at) => *window,
            _ => {
                let window = period::window(kind, at, self.zone);
                self.last.insert(kind, window);
                window
            }
        }
    }
}

/// Quotas by the scope they count, so that a subject finds its own in six look-ups however many there are.
pub(super) struct ByScope<'a>(HashMap<(&'static str, &'a str), Vec<&'a Quota>>);

impl<'a> ByScope<'a> {
    pub(super) fn new(quotas: &'a [Quota]) -> ByScope<'a> {
        let mut index: HashMap<_, Vec<&Quota>> = HashMap::new();
        for quota in quotas {
            index.entry((quota.scope.kind(), quota.scope.id())).or_default().push(quota);
        }
        ByScope(index)
    }

    pub(super) fn covering<'b>(&'b self, subject: &'b Subject) -> impl Iterator<Item = &'a Quota> + 'b {
        let words = [
            ("tenant", ""),
            ("group", subject.group.as_str()),
            ("user", subject.user.as_str()),
            ("apiKey", subject.api_key.as_str()),
            ("model", subject.model.as_str()),
            ("provider", subject.provider.as_str()),
        ];
        words.into_iter().filter_map(|word| self.0.get(&word)).flatten().copied()
    }
}
