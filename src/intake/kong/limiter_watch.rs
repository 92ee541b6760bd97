//! What is known of the rate limiter's counters from one pass over them to the next: which of them are a meter, what is told
//! of it, and when somebody has begun anew.

use std::collections::HashMap;

use super::limiter_key::{LimiterKey, NOBODY, Period};
use super::readings::{Cadence, LastTold, Owed, Readings};
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{
    EVERY_ROUTE, Interruption, InterruptionReason, MeterReading, READING_TEXT_BYTES_MAX, Source,
};
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_SECOND, Timestamp};
use crate::intake::text;

/// Counters that are kept in mind; a limiter with more has tenants that are not watched, and the health report says so.
const COUNTERS_MAX: usize = 500_000;
/// A time to live that grew by less is a matter of clocks.
const TTL_ROSE_MICROS: i64 = 2 * MICROS_PER_SECOND;
/// A meter that was not seen for so long is forgotten, and with it which of its periods was the longest.
const FORGOTTEN_MICROS: i64 = 2 * MICROS_PER_DAY;

/// What is known of the counters.
pub(super) struct Watch {
    run_id: String,
    since: Timestamp,
    /// Complete passes under this run of Redis.
    passes: u64,
    completed_at: Option<Timestamp>,
    /// When the pass that runs began.
    began_at: Timestamp,
    /// The last poll that failed, since the last complete pass.
    missed_at: Option<Timestamp>,
    cadence: Cadence,
    counters: HashMap<String, Counter, ahash::RandomState>,
    meters: HashMap<String, Meter, ahash::RandomState>,
    /// Names of this pass that are no tenant's, and such that live longer than Kong lets them.
    pub(super) strange: usize,
    immortal: usize,
    /// Counters of this pass that there was no room for.
    surplus: usize,
}

/// One counter, of one period.
struct Counter {
    meter: String,
    period: Period,
    epoch: String,
    end: Timestamp,
    value: i64,
    expires: i64,
    seen_at: Timestamp,
    seen_in: u64,
    from_zero: bool,
}

/// What one plugin counts for one identifier, by the best of its periods.
struct Meter {
    tenant: TenantId,
    period: Period,
    since_pass: u64,
    seen_at: Timestamp,
    told: LastTold,
}

impl Watch {
    pub(super) fn new(since: Timestamp, cadence: Cadence) -> Watch {
        Watch {
            run_id: String::new(),
            since,
            passes: 0,
            completed_at: None,
            began_at: since,
            missed_at: None,
            cadence,
            counters: HashMap::default(),
            meters: HashMap::default(),
            strange: 0,
            immortal: 0,
            surplus: 0,
        }
    }

    /// A poll begins, at a Redis with this run.
    pub(super) fn begin<R: Readings>(&mut self, run_id: &str, now: Timestamp, owed: &mut Owed<R>) {
        self.began_at = now;
        if self.run_id != run_id {
            if !self.run_id.is_empty() {
                self.interrupt(now, InterruptionReason::LimiterReset, owed);
                // What of its counters is left is seen by the pass that begins: it may have kept them.
                self.missed_at = None;
            }
            run_id.clone_into(&mut self.run_id);
        }
    }

    /// A poll that failed. No window is judged in the belief that nothing was counted in it: each is marked before it ends.
    pub(super) fn miss<R: Readings>(&mut self, at: Timestamp, owed: &mut Owed<R>) {
        let before = self.missed_at.replace(at).or(self.completed_at);
        let cadence = self.cadence;
        if cadence.is_last(at) || before.is_none_or(|before| cadence.window(before) != cadence.window(at)) {
            self.interrupt(at, InterruptionReason::Gap, owed);
        }
    }

    /// Marks the time since the last complete pass, for everybody who is watched or may be compared.
    fn interrupt<R: Readings>(&self, until: Timestamp, reason: InterruptionReason, owed: &mut Owed<R>) {
        let from = self.completed_at.unwrap_or_else(|| self.cadence.not_judged_at(self.since));
        let watched = self.meters.values().map(|meter| meter.tenant);
        owed.interrupt(watched, Interruption { source: Source::Limiter, from, until, reason });
    }

    pub(super) fn see<R: Readings>(
        &mut self,
        name: &str,
        tenant: TenantId,
        value: i64,
        ttl_ms: i64,
        at: Timestamp,
        owed: &mut Owed<R>,
    ) {
        let Some(key) = LimiterKey::parse(name) else { return };
        // Gone since (-2), or without an end (-1).
        if ttl_ms == -2 {
            return;
        }
        let kept_micros = key.period.kept_micros();
        let is_immortal = ttl_ms < 0 || ttl_ms / 1_000 > 2 * (kept_micros / MICROS_PER_SECOND);
        self.immortal += usize::from(is_immortal);
        let expires = at.0.saturating_add(ttl_ms.clamp(0, 2 * kept_micros / 1_000).saturating_mul(1_000));
        let (passes, began_at) = (self.passes, self.began_at);
        let meter_name = match (key.route, key.service) {
            (NOBODY, NOBODY) => format!("{EVERY_ROUTE}/{}", text::shortened(key.identifier, 128)),
            (route, service) => format!("{route}/{service}/{}", text::shortened(key.identifier, 128)),
        };
        if let Some(known) = self.counters.get_mut(name) {
            let rose = !is_immortal && expires > known.expires.saturating_add(TTL_ROSE_MICROS);
            // Where there is a longer period, a minute that begins anew loses nothing.
            let counts = self.meters.get(&known.meter).is_none_or(|meter| meter.period == known.period);
            if counts && (value < known.value || rose) {
                let (from, reason) = (known.seen_at, InterruptionReason::LimiterReset);
                owed.interruption(tenant, Interruption { source: Source::Limiter, from, until: at, reason });
            }
            (known.value, known.expires, known.seen_at, known.seen_in) = (value, expires, at, passes);
        } else if self.counters.len() < COUNTERS_MAX {
            let counter = Counter {
                meter: meter_name.clone(),
                period: key.period,
                epoch: key.epoch(),
                end: key.end(),
                value,
                expires,
                seen_at: at,
                seen_in: passes,
                // A whole pass had not found it, or its period began while we were watching.
                from_zero: passes > 0 || key.start >= self.since,
            };
            self.counters.insert(name.to_owned(), counter);
        } else {
            self.surplus += 1;
            return;
        }
        let meter = self.meters.entry(meter_name).or_insert_with(|| Meter {
            tenant,
            period: key.period,
            since_pass: passes,
            seen_at: began_at,
            told: LastTold::default(),
        });
        if meter.tenant != tenant {
            (meter.tenant, meter.told) = (tenant, LastTold::default());
        }
        meter.seen_at = at;
        if key.period.worth() > meter.period.worth() {
            (meter.period, meter.told) = (key.period, LastTold::default());
        }
    }

    /// A pass is complete: what moved is told.
    ///
    /// Kong counts each period with a command of its own, so a minute may be seen before its day: a meter without a longer
    /// period is told from the second pass on.
    pub(super) fn complete<R: Readings>(&mut self, now: Timestamp, owed: &mut Owed<R>) {
        if self.missed_at.take().is_some() {
            self.interrupt(now, InterruptionReason::Gap, owed);
        }
        let mut moved: Vec<&Counter> = (self.counters.values())
            .filter(|counter| counter.seen_in == self.passes)
            .filter(|counter| {
                let meter = self.meters.get(&counter.meter);
                meter.is_some_and(|meter| {
                    let is_known = meter.since_pass < self.passes || !meter.period.is_lower_bound();
                    meter.period == counter.period && is_known
                })
            })
            .collect();
        moved.sort_unstable_by(|one, other| (&one.meter, one.end).cmp(&(&other.meter, other.end)));
        // Of two periods that are read together the older one is told first, and then not again.
        for counter in moved {
            let Some(meter) = self.meters.get_mut(&counter.meter) else { continue };
            let last = Timestamp(counter.end.0.saturating_sub(1));
            let reading = MeterReading {
                source: Source::Limiter,
                series: {
                    let series = format!("{}/{}", counter.meter, counter.period.name());
                    text::shortened(&series, READING_TEXT_BYTES_MAX).into_owned()
                },
                epoch: counter.epoch.clone(),
                value: counter.value,
                at: counter.seen_at.min(last),
                from_zero: counter.from_zero,
                lower_bound: counter.period.is_lower_bound(),
            };
            if meter.told.is_past(&reading, now) {
                continue;
            }
            let tenant = meter.tenant;
            let (looked_at, cadence) = (self.completed_at, self.cadence);
            meter.told.tell(reading, now, looked_at, &cadence, |reading| owed.reading(tenant, reading));
        }
        self.lose(now, owed);
        for meter in self.meters.values_mut() {
            let tenant = meter.tenant;
            meter.told.tell_due(now, &self.cadence, |reading| owed.reading(tenant, reading));
        }
        let passes = self.passes;
        self.counters.retain(|_, counter| counter.seen_in == passes || counter.end > now);
        let forgotten = Timestamp(now.0.saturating_sub(FORGOTTEN_MICROS));
        self.meters.retain(|_, meter| meter.seen_at > forgotten);
        self.completed_at = Some(now);
        self.passes += 1;
    }

    /// A counter that a complete pass did not find although it had time to live: the store was emptied, or has dropped it.
    /// It stands at zero, so that what it counts from now on is known to be new.
    fn lose<R: Readings>(&mut self, now: Timestamp, owed: &mut Owed<R>) {
        let (passes, cadence, looked_at) = (self.passes, self.cadence, self.completed_at);
        let is_lost = |counter: &Counter| {
            counter.seen_in != passes && counter.expires > now.0.saturating_add(TTL_ROSE_MICROS) && counter.end > now
        };
        let lost: Vec<Counter> = self.counters.extract_if(|_, counter| is_lost(counter)).map(|(_, one)| one).collect();
        for counter in lost {
            let known = self.meters.get_mut(&counter.meter);
            let Some(meter) = known.filter(|meter| meter.period == counter.period) else { continue };
            let tenant = meter.tenant;
            let (source, from, reason) = (Source::Limiter, counter.seen_at, InterruptionReason::LimiterReset);
            owed.interruption(tenant, Interruption { source, from, until: now, reason });
            if let Some(last) = meter.told.newest().filter(|last| last.epoch == counter.epoch).cloned() {
                let nothing = MeterReading { value: 0, at: now.min(Timestamp(counter.end.0 - 1)), ..last };
                meter.told.tell(nothing, now, looked_at, &cadence, |reading| owed.reading(tenant, reading));
            }
        }
    }

    /// Tells what is still held, because nobody will look again.
    pub(super) fn hand_over<R: Readings>(&mut self, owed: &mut Owed<R>) {
        for meter in self.meters.values_mut() {
            let tenant = meter.tenant;
            meter.told.hand_over(|reading| owed.reading(tenant, reading));
        }
    }

    /// Settings without which the counters do not say what is needed; of the pass that is complete.
    pub(super) fn missing(&mut self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let strange = std::mem::take(&mut self.strange);
        if self.meters.is_empty() {
            missing.push(match strange {
                0 => "rate-limiting with policy redis (there are no counters)",
                _ => "limit_by a tenant's header or consumer (no counter is a tenant's)",
            });
        }
        if self.meters.values().any(|meter| meter.period.is_lower_bound()) {
            missing.push("a high day limit beside the minute, as a meter (a minute is only a lower bound)");
        }
        if std::mem::take(&mut self.immortal) > 0 {
            missing.push("sync_rate -1 (some counters live longer than their period)");
        }
        if std::mem::take(&mut self.surplus) > 0 {
            missing.push("fewer counters (not all are watched)");
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::super::readings::USERNAME;
    use super::super::readings::tests::{Listeners, cadence};
    use super::*;
    use uuid::Uuid;

    const RECON: &str = include_str!("../../../tests/fixtures/kong/recon/redis-polls.tsv");
    const ACME: TenantId = TenantId(Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111));
    const GLOBEX: TenantId = TenantId(Uuid::from_u128(0x2222_2222_2222_4222_8222_2222_2222_2222));
    const DAY: &str = "ratelimit:r:s:11111111-1111-4111-8111-111111111111:1795219200000:day";
    const MINUTE: &str = "ratelimit:r:s:11111111-1111-4111-8111-111111111111:1795220880000:minute";
    const BEGIN: i64 = 1_795_220_890;

    fn listeners() -> Listeners {
        let names = vec![(USERNAME, "tenant-acme", ACME), (USERNAME, "tenant-globex", GLOBEX)];
        Listeners { names, ..Listeners::default() }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp(second * MICROS_PER_SECOND)
    }

    /// A run of the store, and its counters: name, value, time to live in seconds.
    type Pass<'a> = (&'a str, &'a [(&'a str, i64, i64)]);

    /// Passes five seconds apart.
    async fn passed(passes: &[Pass<'_>]) -> Listeners {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(BEGIN), cadence()), Owed::new(listeners.clone()));
        for (at, (run, counters)) in (0..).zip(passes) {
            let now = second(BEGIN + at * 5);
            watch.begin(run, now, &mut owed);
            for (name, value, ttl) in *counters {
                watch.see(name, ACME, *value, ttl * 1_000, now, &mut owed);
            }
            watch.complete(now, &mut owed);
        }
        watch.hand_over(&mut owed);
        owed.settle().await;
        listeners
    }

    fn told(listeners: &Listeners) -> Vec<(i64, i64, bool, bool)> {
        let heard = listeners.heard_by(ACME).readings;
        let row =
            |one: &MeterReading| (one.at.0 / MICROS_PER_SECOND - BEGIN, one.value, one.from_zero, one.lower_bound);
        heard.iter().map(row).collect()
    }

    #[tokio::test]
    async fn the_day_is_the_meter_where_there_is_one_and_a_minute_is_a_lower_bound() {
        let both: &[_] = &[(DAY, 5, 80_000), (MINUTE, 5, 40)];
        let later: &[_] = &[(DAY, 7, 79_990), (MINUTE, 7, 30)];
        let day = passed(&[("a", both), ("a", both), ("a", later)]).await;
        assert_eq!(told(&day), [(0, 5, false, false), (10, 7, false, false)]);
        assert_eq!(day.heard_by(ACME).readings[0].epoch, "1795219200000");
        // The minute was seen first.
        let minute = passed(&[("a", &[]), ("a", &both[1..]), ("a", both), ("a", later)]).await;
        assert_eq!(told(&minute), [(10, 5, true, false), (15, 7, true, false)]);
        let alone = passed(&[("a", &[]), ("a", &both[1..]), ("a", &[(MINUTE, 5, 35)])]).await;
        assert_eq!(told(&alone), [(10, 5, true, true)]);
    }

    /// A minute's counter dies, and what was seen of it last is told with its window all the same.
    #[tokio::test]
    async fn a_counter_that_is_gone_is_told_when_its_window_ends() {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(BEGIN), cadence()), Owed::new(listeners.clone()));
        let mut told_by = Vec::new();
        for at in (0..60).map(|look| look * 5) {
            let now = second(BEGIN + at);
            watch.begin("a", now, &mut owed);
            // Of minute 1795220880, which ends ten seconds before the window does.
            if (10..50).contains(&at) {
                watch.see(MINUTE, ACME, at, (50 - at) * 1_000, now, &mut owed);
            }
            watch.complete(now, &mut owed);
            owed.settle().await;
            told_by.push((at, told(&listeners).last().map(|one| one.1)));
        }
        // Told at once when it is first told, then with the last look of the window in which it was seen.
        let last = told_by.iter().find(|(_, value)| *value == Some(45)).map(|(at, _)| *at);
        let ends = (second(BEGIN).0 / MICROS_PER_SECOND / 300 + 1) * 300 - BEGIN;
        assert!(last.is_some_and(|at| ends - 15 <= at && at < ends), "{last:?} of {ends}: {told_by:?}");
    }

    #[tokio::test]
    async fn a_fall_a_rising_time_to_live_and_another_run_are_resets() {
        let reset = |listeners: &Listeners| {
            let heard = listeners.heard_by(ACME).interruptions;
            let row = |one: &Interruption| {
                assert_eq!((one.source, one.reason), (Source::Limiter, InterruptionReason::LimiterReset));
                ((one.from.0 / MICROS_PER_SECOND) - BEGIN, (one.until.0 / MICROS_PER_SECOND) - BEGIN)
            };
            heard.iter().map(row).collect::<Vec<_>>()
        };
        let steady: &[_] = &[(DAY, 5, 80_000)];
        let grown: &[_] = &[(DAY, 9, 79_995)];
        assert_eq!(reset(&passed(&[("a", steady), ("a", grown)]).await), []);
        assert_eq!(reset(&passed(&[("a", grown), ("a", &[(DAY, 5, 79_990)])]).await), [(0, 5)]);
        assert_eq!(reset(&passed(&[("a", steady), ("a", &[(DAY, 9, 86_399)])]).await), [(0, 5)]);
        // It is gone before its time: that is when it was lost, whenever it comes back.
        let gone = passed(&[("a", steady), ("a", &[]), ("a", &[(DAY, 1, 86_399)])]).await;
        assert_eq!(reset(&gone), [(0, 5)]);
        assert_eq!(told(&gone).iter().map(|one| one.1).collect::<Vec<_>>(), [5, 0, 1]);
        // One that dies in its time is none that was lost.
        assert_eq!(reset(&passed(&[("a", &[(MINUTE, 5, 4)]), ("a", &[]), ("a", &[])]).await), []);
        assert_eq!(reset(&passed(&[("a", steady), ("b", grown)]).await), [(0, 5)]);
    }

    /// Who looks for the first time knows of nobody; what nobody could hear is not nothing.
    #[tokio::test]
    async fn a_redis_that_was_silent_from_our_start_on_is_marked_for_who_is_awake() {
        let listeners = listeners();
        *listeners.awake.lock().unwrap() = vec![(GLOBEX, Vec::new())];
        let begin = second(1_795_219_200);
        let (mut watch, mut owed) = (Watch::new(begin, cadence()), Owed::new(listeners.clone()));
        watch.miss(begin, &mut owed);
        watch.begin("first", begin.plus_micros(5_000_000), &mut owed);
        watch.complete(begin.plus_micros(5_000_000), &mut owed);
        owed.settle().await;
        let told = listeners.heard_by(GLOBEX).interruptions;
        let seconds = |one: &Interruption| [one.from, one.until].map(|at| (at.0 - begin.0) / MICROS_PER_SECOND);
        assert_eq!(told.iter().map(seconds).collect::<Vec<_>>(), [[-300, 0], [-300, 5]]);
        assert!(told.iter().all(|one| (one.source, one.reason) == (Source::Limiter, InterruptionReason::Gap)));
    }

    /// Each epoch's last value in the captured run is told, in order, and the loss of Redis is marked.
    #[tokio::test]
    async fn the_captured_run_is_told_with_its_reset() {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(1_795_220_880), cadence()), Owed::new(listeners.clone()));
        let mut last: HashMap<String, (i64, i64)> = HashMap::new();
        let mut polls: Vec<(f64, Vec<Vec<&str>>)> = Vec::new();
        for line in RECON.lines().filter(|line| !line.starts_with('#')) {
            let cells: Vec<&str> = line.split('\t').collect();
            let at: f64 = cells[0].split(' ').next().unwrap().parse().unwrap();
            if polls.last().is_none_or(|(poll, _)| (poll - at).abs() > 0.1) {
                polls.push((at, Vec::new()));
            }
            polls.last_mut().unwrap().1.push(cells);
        }
        for (at, rows) in polls {
            let now = Timestamp((at * 1e6) as i64);
            if rows.iter().any(|row| row.join(" ").contains("ERROR")) {
                watch.miss(now, &mut owed);
                continue;
            }
            let run = if at < 1_795_221_012.0 { "first" } else { "second" };
            watch.begin(run, now, &mut owed);
            for row in rows.iter().filter(|row| row.len() == 4 && row[1].contains(&ACME.to_string())) {
                let (value, ttl) = (row[2].parse().unwrap(), row[3].parse().unwrap());
                watch.see(row[1], ACME, value, ttl, now, &mut owed);
                let key = LimiterKey::parse(row[1]).unwrap();
                if run == "second" && key.period == Period::Day {
                    last.insert(key.epoch(), (value, 0));
                }
            }
            watch.complete(now, &mut owed);
        }
        watch.hand_over(&mut owed);
        owed.settle().await;
        let told = listeners.heard_by(ACME);
        assert!(told.interruptions.iter().any(|one| one.reason == InterruptionReason::LimiterReset));
        for (epoch, (value, _)) in last {
            let days = told.readings.iter().filter(|reading| reading.epoch == epoch && !reading.lower_bound);
            assert_eq!(days.max_by_key(|reading| reading.at).map(|reading| reading.value), Some(value), "{epoch}");
        }
        let mut at = HashMap::new();
        for reading in &told.readings {
            let before = at.insert(reading.series.clone(), reading.at);
            assert!(before.is_none_or(|before| before <= reading.at), "{reading:?}");
        }
    }
}
