//! Questions about the past, and their answers.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use super::ids::{AlertId, TenantId};
use super::notice::{Alert, Event, Message, Outcome};
use super::period::{self, PeriodKind, Window};
use super::time::Timestamp;
use super::usage::{Subject, Totals, UsageEvent};

/// Most rows one usage report may have.
pub const REPORT_ROWS_MAX: usize = 10_000;

/// A dimension that usage can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    User,
    Group,
    ApiKey,
    Model,
    Provider,
}

impl Dimension {
    pub const ALL: [Dimension; 5] =
        [Dimension::User, Dimension::Group, Dimension::ApiKey, Dimension::Model, Dimension::Provider];

    /// The word used in `groupBy` and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Dimension::User => "user",
            Dimension::Group => "group",
            Dimension::ApiKey => "apiKey",
            Dimension::Model => "model",
            Dimension::Provider => "provider",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Dimension> {
        Dimension::ALL.into_iter().find(|dimension| dimension.name() == name)
    }

    #[must_use]
    pub fn of(self, subject: &Subject) -> &str {
        match self {
            Dimension::User => &subject.user,
            Dimension::Group => &subject.group,
            Dimension::ApiKey => &subject.api_key,
            Dimension::Model => &subject.model,
            Dimension::Provider => &subject.provider,
        }
    }
}

/// A question about usage: sums by calendar period and by dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// Quarter hours that begin in here are summed.
    pub window: Window,
    /// Hour, day or month, by the tenant's calendar.
    pub granularity: PeriodKind,
    pub group_by: Vec<Dimension>,
}

/// One row of a usage report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    pub window: Window,
    /// Dimensions that were not asked for are empty.
    pub subject: Subject,
    pub totals: Totals,
}

/// More rows than [`REPORT_ROWS_MAX`]: ask for a shorter time, a coarser granularity or fewer dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the report has more than {REPORT_ROWS_MAX} rows")]
pub struct TooManyRows;

/// Folds rollups (already reduced to the dimensions asked for) into the calendar of `zone`.
///
/// # Errors
/// [`TooManyRows`].
pub fn fold(
    rollups: impl IntoIterator<Item = (Timestamp, Subject, Totals)>,
    granularity: PeriodKind,
    zone: &TimeZone,
) -> Result<Vec<UsageRow>, TooManyRows> {
    let mut rows: BTreeMap<(Window, Subject), Totals> = BTreeMap::new();
    let mut window: Option<Window> = None;
    for (start, subject, totals) in rollups {
        let here = match window {
            Some(known) if known.contains(start) => known,
            _ => period::window(granularity, start, zone),
        };
        window = Some(here);
        rows.entry((here, subject)).or_default().add(&totals);
        if rows.len() > REPORT_ROWS_MAX {
            return Err(TooManyRows);
        }
    }
    Ok(rows.into_iter().map(|((window, subject), totals)| UsageRow { window, subject, totals }).collect())
}

/// One row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    pub position: i64,
    pub recorded_at: Timestamp,
    pub event: UsageEvent,
}

/// Which rows of the ledger, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerQuery {
    /// Rows before this position; `None` for the newest.
    pub before: Option<i64>,
    pub limit: usize,
    /// Only events that occurred in here.
    pub window: Option<Window>,
    /// Only events of this user, model, …; an empty field filters nothing.
    pub subject: Subject,
}

/// A page, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T, C = i64> {
    pub items: Vec<T>,
    pub next: Option<C>,
}

/// Which alerts, newest first: those before (fired at, alert id), at most `limit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertQuery {
    pub before: Option<(Timestamp, uuid::Uuid)>,
    pub limit: usize,
}

/// Which rows of the outbox's history, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageQuery {
    /// When they became owed.
    pub window: Window,
    pub channel: Option<String>,
    pub outcome: Option<Outcome>,
    pub before: Option<MessagePosition>,
    pub limit: usize,
}

/// A row's place in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagePosition {
    pub at: Timestamp,
    pub alert: AlertId,
    pub event: Event,
    pub channel: String,
}

/// A page of the outbox's history.
pub type MessagePage = Page<Message, MessagePosition>;

/// A page of alerts.
pub type AlertPage = Page<Alert, (Timestamp, uuid::Uuid)>;

/// Which records of the chain, oldest first: those after `after`, at most `limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainQuery {
    pub after: i64,
    pub limit: usize,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainReport {
    /// The last record that holds.
    pub head: super::chain::Head,
    pub broken: Option<super::chain::Broken>,
}

/// An event, or what was meant to be one, that could not be counted; kept with its bytes, its reason, and another try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub id: uuid::Uuid,
    /// The tenant it was meant for, when that is known beyond doubt.
    pub tenant: Option<TenantId>,
    pub reason: super::usage::Refusal,
    /// For a person: what exactly was wrong.
    pub detail: String,
    /// Where it arrived: `nats:<subject>`, `http:/v1/usage/events`, `http:/v1/usage/litellm`.
    pub origin: String,
    /// How the bytes are to be read again; see `intake/quarantine`.
    pub format: String,
    /// SHA-256 of origin, format and body: the same poison arriving again is the same row.
    pub digest: [u8; 32],
    pub body: Vec<u8>,
    pub received_at: Timestamp,
    pub replayed_at: Option<Timestamp>,
    /// How often it came.
    pub arrivals: i64,
    /// Bytes of bodies that were not kept: above zero in a row that only counts what its owner's share had no room for.
    pub left_out_bytes: i64,
}

/// How much of the quarantine may be one tenant's, and how much may be of no tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub events_max: u64,
    pub bytes_max: u64,
}

/// How a quarantined row fared when it was tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    pub id: uuid::Uuid,
    pub fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Counted, now or before.
    Counted,
    /// It stays, for this reason.
    Refused { reason: super::usage::Refusal, detail: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::properties_tests::{a_subject, some_amounts};
    use crate::domain::time::MICROS_PER_HOUR;
    use proptest::prelude::*;

    #[test]
    fn a_dimension_is_a_word_and_a_part_of_the_subject() {
        let subject = Subject {
            user: "user".into(),
            group: "group".into(),
            api_key: "apiKey".into(),
            model: "model".into(),
            provider: "provider".into(),
        };
        for dimension in Dimension::ALL {
            assert_eq!(dimension.of(&subject), dimension.name());
            assert_eq!(Dimension::from_name(dimension.name()), Some(dimension));
        }
        assert_eq!(Dimension::from_name("tenant"), None);
    }

    fn rollup(hour: usize) -> (Timestamp, Subject, Totals) {
        let events = Totals { events: 1, ..Totals::default() };
        (Timestamp(hour as i64 * MICROS_PER_HOUR), Subject::default(), events)
    }

    #[test]
    fn a_report_may_have_so_many_rows_and_not_one_more() {
        let rows = |count: usize| fold((0..count).map(rollup), PeriodKind::Hour, &TimeZone::UTC);
        assert_eq!(rows(REPORT_ROWS_MAX).map(|rows| rows.len()), Ok(REPORT_ROWS_MAX));
        assert_eq!(rows(REPORT_ROWS_MAX + 1), Err(TooManyRows));
        // Rows are counted, not rollups.
        let same = (0..=REPORT_ROWS_MAX).map(|_| rollup(0));
        assert_eq!(fold(same, PeriodKind::Hour, &TimeZone::UTC).map(|rows| rows.len()), Ok(1));
    }

    proptest! {
        /// The order in which a database returns rollups leaves no trace, and rows come out in order of time.
        #[test]
        fn a_report_is_sorted_whatever_the_order_of_rollups(
            rollups in prop::collection::vec((0_i64..200, a_subject(), some_amounts()), 0..40).prop_shuffle(),
        ) {
            let rollups: Vec<_> = rollups
                .into_iter()
                .map(|(quarter, subject, amounts)| {
                    let totals = Totals { events: 1, failures: 0, amounts };
                    (Timestamp(quarter * period::ROLLUP_MICROS), subject, totals)
                })
                .collect();
            let rows = fold(rollups.clone(), PeriodKind::Hour, &TimeZone::UTC).unwrap();
            let key = |row: &UsageRow| (row.window, row.subject.clone());
            let sorted = rows.windows(2).all(|pair| key(&pair[0]) < key(&pair[1]));
            prop_assert!(sorted);
            let turned = rollups.into_iter().rev();
            prop_assert_eq!(fold(turned, PeriodKind::Hour, &TimeZone::UTC).unwrap(), rows);
        }
    }
}
