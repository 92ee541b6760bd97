//! From a running meter to what it counted in each window.

use super::Terms;
use super::reading::{Interruption, InterruptionReason, MeterReading, Source};
use crate::domain::time::Timestamp;

/// A meter as it was last seen; a row of the tenant's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    pub source: Source,
    pub series: String,
    pub epoch: String,
    pub value: i64,
    pub at: Timestamp,
}

/// What one reading adds: to the window in which it was read, because a meter counts until it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increase {
    pub source: Source,
    pub window_start: Timestamp,
    pub amount: i64,
    /// At least so much; more may have been counted before the meter died.
    pub lower_bound: bool,
}

/// What a reading means, given the meter as it was last seen: the meter as it is now, what it adds, and what cannot be
/// known.
#[must_use]
pub fn advance(
    known: Option<&Series>,
    reading: &MeterReading,
    terms: &Terms,
) -> (Series, Option<Increase>, Option<Interruption>) {
    let now = Series {
        source: reading.source,
        series: reading.series.clone(),
        epoch: reading.epoch.clone(),
        value: reading.value,
        at: reading.at,
    };
    let increase = |amount: i64| {
        (amount > 0).then(|| Increase {
            source: reading.source,
            window_start: window_start(reading.at, terms),
            amount,
            lower_bound: reading.lower_bound,
        })
    };
    let interruption =
        |from: Timestamp, reason| Some(Interruption { source: reading.source, from, until: reading.at, reason });
    let Some(known) = known else {
        // The first look at a meter that may have been counting for long says nothing about a window.
        return match reading.from_zero {
            true => (now, increase(reading.value), None),
            false => {
                let from = window_start(reading.at, terms);
                (now, None, interruption(from, InterruptionReason::Gap))
            }
        };
    };
    if is_old(known, reading) {
        // It comes late or again; what it says has been counted.
        return (known.clone(), None, None);
    }
    let restarted = match reading.source {
        Source::Limiter => InterruptionReason::LimiterReset,
        Source::Metrics | Source::AccessLog => InterruptionReason::GatewayRestarted,
    };
    if reading.epoch != known.epoch {
        // A limiter's counter dies with its period by nature; a count of the gateway only with the gateway.
        let by_nature = reading.from_zero && reading.source == Source::Limiter;
        let amount = increase(reading.value);
        return (now, amount, if by_nature { None } else { interruption(known.at, restarted) });
    }
    if reading.value < known.value {
        return (now, increase(reading.value), interruption(known.at, restarted));
    }
    let gap = reading.at.0.saturating_sub(known.at.0) > terms.window_micros && reading.value > known.value;
    let amount = increase(reading.value - known.value);
    // What was counted since is known, but not in which of several windows.
    (now, amount, if gap { interruption(known.at, InterruptionReason::Gap) } else { None })
}

/// Does the reading say nothing that `known` does not say already?
///
/// A meter that dies with its period may still be read for a while beside its successor. Its epochs are the starts of its
/// periods, so that the older one is known by its epoch; epochs of another kind have no order, and one instant has one.
fn is_old(known: &Series, reading: &MeterReading) -> bool {
    if reading.at < known.at {
        return true;
    }
    match (period_start(&known.epoch), period_start(&reading.epoch)) {
        _ if reading.epoch == known.epoch => reading.at == known.at && reading.value <= known.value,
        (Some(known), Some(reading)) => reading < known,
        _ => reading.at == known.at,
    }
}

/// The start of a period, if the epoch is one.
fn period_start(epoch: &str) -> Option<u64> {
    epoch.bytes().all(|byte| byte.is_ascii_digit()).then(|| epoch.parse().ok())?
}

/// Start of the window that `at` falls in.
#[must_use]
pub fn window_start(at: Timestamp, terms: &Terms) -> Timestamp {
    Timestamp(at.0.div_euclid(terms.window_micros) * terms.window_micros)
}
