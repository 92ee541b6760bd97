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
        let unseen = match by_nature {
            false => interruption(known.at, restarted),
            // Nobody saw how far the counters of the periods between had come.
            true if reading.value > 0 && !is_of_one_window(known.at, reading.at, terms) => {
                interruption(seen_until(known.at, terms), InterruptionReason::Gap)
            }
            true => None,
        };
        return (now, amount, unseen);
    }
    if reading.value < known.value {
        return (now, increase(reading.value), interruption(known.at, restarted));
    }
    let gap = reading.value > known.value && !is_of_one_window(known.at, reading.at, terms);
    let amount = increase(reading.value.saturating_sub(known.value));
    // What was counted since is known, but not in which of several windows.
    let from = seen_until(known.at, terms);
    (now, amount, if gap { interruption(from, InterruptionReason::Gap) } else { None })
}

/// Until when a look at `at` says what was counted: to the end of its window, but for what two polls may move over it.
fn seen_until(at: Timestamp, terms: &Terms) -> Timestamp {
    let end = window_start(at, terms).plus_micros(terms.window_micros);
    if end.0.saturating_sub(at.0) <= terms.poll_micros.saturating_mul(2) { end } else { at }
}

/// Does what was counted between two looks belong to the window of the second, but for what two polls may move over its
/// edge?
fn is_of_one_window(known: Timestamp, at: Timestamp, terms: &Terms) -> bool {
    let start = window_start(at, terms);
    known >= start || seen_until(known, terms) >= start
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
    let width = terms.window_micros.max(1);
    Timestamp(at.0.div_euclid(width).saturating_mul(width))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::properties_tests::config;
    use crate::domain::time::MICROS_PER_SECOND;

    fn at(second: i64) -> Timestamp {
        let noon: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        noon.plus_micros(second * MICROS_PER_SECOND)
    }

    fn reading(epoch: &str, value: i64, second: i64) -> MeterReading {
        MeterReading {
            source: Source::Metrics,
            series: "node/consumer/chat".to_owned(),
            epoch: epoch.to_owned(),
            value,
            at: at(second),
            from_zero: false,
            lower_bound: false,
        }
    }

    fn counter(period: i64, value: i64, second: i64) -> MeterReading {
        MeterReading {
            source: Source::Limiter,
            from_zero: true,
            lower_bound: true,
            ..reading(&at(period).0.to_string(), value, second)
        }
    }

    /// What the readings add up to, and when nothing could be known, in seconds.
    fn read(readings: &[MeterReading]) -> (i64, Vec<(i64, i64, InterruptionReason)>) {
        let (mut series, mut sum, mut interruptions) = (None, 0, Vec::new());
        for reading in readings {
            let (now, increase, interruption) = advance(series.as_ref(), reading, &Terms::default());
            sum += increase.map_or(0, |increase| increase.amount);
            let seconds = |to: Timestamp| (to.0 - at(0).0).div_euclid(MICROS_PER_SECOND);
            interruptions.extend(interruption.map(|one| (seconds(one.from), seconds(one.until), one.reason)));
            series = Some(now);
        }
        (sum, interruptions)
    }

    #[test]
    fn a_meter_counts_from_the_second_look_on() {
        use InterruptionReason::Gap;
        assert_eq!(read(&[reading("n", 500, 20)]), (0, vec![(0, 20, Gap)]));
        assert_eq!(read(&[reading("n", 500, 20), reading("n", 507, 35)]), (7, vec![(0, 20, Gap)]));
        let from_zero = MeterReading { from_zero: true, ..reading("n", 5, 20) };
        assert_eq!(read(&[from_zero, reading("n", 507, 35)]), (507, vec![]));
    }

    #[test]
    fn an_increase_belongs_to_the_window_in_which_it_was_read() {
        let known = advance(None, &reading("n", 5, 299), &Terms::default()).0;
        let (series, increase, _) = advance(Some(&known), &reading("n", 8, 314), &Terms::default());
        let increase = increase.unwrap();
        assert_eq!((increase.window_start, increase.amount, increase.lower_bound), (at(300), 3, false));
        assert_eq!((series.value, series.at), (8, at(314)));
        assert_eq!(advance(Some(&series), &reading("n", 8, 329), &Terms::default()).1, None);
        assert_eq!(window_start(Timestamp(-1), &Terms::default()).0, -Terms::default().window_micros);
    }

    #[test]
    fn a_meter_that_begins_anew_is_counted_from_zero_and_says_so() {
        use InterruptionReason::{Gap, GatewayRestarted, LimiterReset};
        let first = reading("n", 5, 10);
        let told = |reason| (5 + 3, vec![(0, 10, Gap), (10, 25, reason)]);
        for (other, value) in [("m", 8), ("m", 2), ("n", 3)] {
            let value_then = if other == "n" { 3 } else { value };
            let (sum, interruptions) = read(&[first.clone(), reading(other, value_then, 25)]);
            assert_eq!((sum, interruptions), (value_then, told(GatewayRestarted).1));
        }
        // Also where the first series of the new life is only seen later: the old life's end was not.
        let later = MeterReading { from_zero: true, ..reading("m", 2, 250) };
        assert_eq!(read(&[first.clone(), later]).1, [(0, 10, Gap), (10, 250, GatewayRestarted)]);
        let limiter = |value, second| MeterReading { source: Source::Limiter, ..reading("n", value, second) };
        assert_eq!(read(&[limiter(5, 10), limiter(3, 25)]), (3, vec![(0, 10, Gap), (10, 25, LimiterReset)]));
    }

    #[test]
    fn a_counter_that_dies_with_its_period_begins_anew_by_nature() {
        assert_eq!(
            read(&[counter(0, 5, 30), counter(0, 9, 59), counter(60, 2, 62), counter(120, 1, 125)]),
            (12, vec![])
        );
        // A period that began while nobody looked says nothing about the one before it.
        assert_eq!(read(&[counter(0, 5, 30), counter(600, 2, 610)]).1, [(30, 610, InterruptionReason::Gap)]);
        // The old period's counter outlives it and is read beside its successor, again and again.
        let side_by_side = [
            counter(0, 5, 30),
            counter(0, 7, 59),
            counter(60, 1, 61),
            counter(0, 7, 59),
            counter(0, 7, 66),
            counter(60, 4, 66),
        ];
        assert_eq!(read(&side_by_side), (11, vec![]));
        // Two of one instant: the successor counts, whichever comes first.
        assert_eq!(read(&[counter(0, 5, 60), counter(60, 1, 60)]), (6, vec![]));
        assert_eq!(read(&[counter(60, 1, 60), counter(0, 5, 60)]), (1, vec![]));
        let lower = advance(None, &counter(0, 5, 30), &Terms::default()).1.unwrap();
        assert!(lower.lower_bound);
        // Digits are compared as numbers, whatever their length.
        let named = |epoch: &str, second| MeterReading { epoch: epoch.to_owned(), ..counter(0, 5, second) };
        assert_eq!(read(&[named("999", 10), named("1000", 25), named("999", 40)]).0, 10);
    }

    #[test]
    fn what_was_counted_in_one_of_several_windows_has_no_window() {
        use InterruptionReason::Gap;
        let width = Terms::default().window_micros / MICROS_PER_SECOND;
        let first = (0, 10, Gap);
        let from = |second| MeterReading { from_zero: true, ..reading("n", 5, second) };
        // Told once in each window, with its last look.
        assert_eq!(read(&[from(290), reading("n", 6, 290 + width)]), (6, vec![]));
        assert_eq!(read(&[from(10), reading("n", 6, 290)]), (6, vec![]));
        // Two polls before the edge may be counted behind it, and no more.
        assert_eq!(read(&[from(270), reading("n", 6, 310)]), (6, vec![]));
        assert_eq!(read(&[from(269), reading("n", 6, 310)]), (6, vec![(269, 310, Gap)]));
        // The window at whose end there was a look is not in doubt.
        assert_eq!(read(&[from(280), reading("n", 6, 610)]), (6, vec![(300, 610, Gap)]));
        let late = reading("n", 6, 11 + width);
        assert_eq!(read(&[reading("n", 5, 10), late]), (1, vec![first, (10, 11 + width, Gap)]));
        // Nothing was counted: nothing is in doubt.
        assert_eq!(read(&[reading("n", 5, 10), reading("n", 5, 10 * width)]), (0, vec![first]));
    }

    /// A meter with several lives, seen at random instants: epochs and what they showed, in order.
    fn lives(periodic: bool) -> impl Strategy<Value = Vec<MeterReading>> {
        let life = prop::collection::vec((0_i64..20, 1_i64..30), 1..8);
        prop::collection::vec(life, 1..5).prop_map(move |lives| {
            let mut second = 0;
            let mut readings = Vec::new();
            for (number, life) in lives.into_iter().enumerate() {
                let mut value = 0;
                for (increase, wait) in life {
                    (value, second) = (value + increase, second + wait);
                    let epoch = if periodic { (1_000 + number).to_string() } else { format!("node-{number}") };
                    let source = if periodic { Source::Limiter } else { Source::Metrics };
                    readings.push(MeterReading { source, from_zero: true, ..reading(&epoch, value, second) });
                }
            }
            readings
        })
    }

    proptest! {
        #![proptest_config(config(256))]

        /// However often a meter is read, what it adds is its last value, life by life.
        #[test]
        fn any_split_of_readings_adds_up_to_the_last_value_of_each_life(
            (readings, kept) in (prop_oneof![lives(false), lives(true)], prop::collection::vec(any::<bool>(), 40)),
        ) {
            let kept: Vec<MeterReading> =
                readings.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(reading, _)| reading).collect();
            let last: BTreeMap<&str, i64> = kept.iter().map(|one| (one.epoch.as_str(), one.value)).collect();
            prop_assert_eq!(read(&kept).0, last.values().sum::<i64>());
        }

        /// In whatever order and how often readings come, nothing is counted twice.
        #[test]
        fn nothing_is_counted_twice(
            (readings, order) in (prop_oneof![lives(false), lives(true)], prop::collection::vec(0_usize..40, 0..80)),
        ) {
            let come: Vec<MeterReading> = order.into_iter().filter_map(|at| readings.get(at).cloned()).collect();
            let mut most: BTreeMap<&str, i64> = BTreeMap::new();
            for one in &come {
                let most = most.entry(one.epoch.as_str()).or_default();
                *most = one.value.max(*most);
            }
            prop_assert!(read(&come).0 <= most.values().sum::<i64>());
            // Told twice each, nothing changes.
            let twice: Vec<MeterReading> = come.iter().flat_map(|one| [one.clone(), one.clone()]).collect();
            prop_assert_eq!(read(&twice).0, read(&come).0);
        }
    }
}
