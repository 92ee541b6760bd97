//! A tenant's books, and the posting that moves them from one commit to the next.
//!
//! [`Books`] is what the keeper holds in memory: quotas, counters, firing alerts, the chain's head. A [`Posting`] starts
//! from committed books, takes one change after another, and ends as new books plus every row that has to be written
//! with them. The writer commits those rows in one transaction; only then does the keeper adopt the new books. A counter
//! always equals the sum over the ledger (invariant L1): what is not in memory is read, and what was never counted is
//! recounted, before it is used.

mod alerts;
mod burn;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest;
use jiff::tz::TimeZone;

use super::burn::{Recent, horizon};
use super::chain::{self, Entry, EntryOutcome, Head, Record};
use super::flag::ledger::FlagBooks;
use super::grouping::{ByScope, Windows, group, starts_and_subjects};
use super::ids::{AlertId, QuotaId, TenantId};
use super::ledger_proof;
use super::notice::{Alert, AlertSubject, Attempt, Delivery, Event, Firing};
use super::organization::Organization;
use super::period::{self, PeriodKind, Window};
use super::policy::books::PolicyBooks;
use super::provider::ProviderBooks;
use super::quota::{self, Decision, Quota, Standing};
use super::reconcile::progress::{Comparison, GatewayRows};
use super::routing::{Reached, Routing, Told};
use super::time::{CLOCK_STEP_MICROS, MICROS_PER_MINUTE, Timestamp};
use super::usage::{Amounts, BodyHash, EventKey, FUTURE_TOLERANCE_MICROS, Kind, Refusal, Subject, Totals, UsageEvent};

/// How long a counter stays in memory after its period ended, for events that come a little late.
const COUNTER_KEPT_MICROS: i64 = 10 * MICROS_PER_MINUTE;

/// More windows of one quota than can be unfinished at once: senders' clocks run five minutes ahead, ours may have been set
/// back by an hour, and no calendar cuts these into so many pieces. A calendar that stood still must not take all memory.
const UNFINISHED_MAX: usize = 80;

/// One quota's usage in one period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    pub window: Window,
    /// In the metric's unit.
    pub used: i64,
    /// Thresholds that have an alert, in percent.
    pub fired: Vec<u16>,
    /// What of it was used lately; empty when the period is a minute.
    pub recent: Recent,
}

/// Names a counter: one quota, one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterKey {
    pub quota: QuotaId,
    pub period_start: Timestamp,
}

/// One hour's quarter of one subject's usage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollupKey {
    pub start: Timestamp,
    pub subject: Subject,
}

/// Where a stream has been read to, for this tenant: the newest message whose event is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub stream: String,
    pub sequence: i64,
}

/// A tenant's committed state.
#[derive(Debug, Clone)]
pub struct Books {
    pub tenant: TenantId,
    /// Whose writes this database accepts; grows with each owner (see `store/posting`).
    pub epoch: i64,
    /// Commits since these books began to be kept; what a decision's ETag is made of, together with the epoch.
    pub version: i64,
    pub time_zone: TimeZone,
    /// Events that occurred longer ago than this are refused.
    pub retention_micros: i64,
    /// Which channels an alert is owed to.
    pub routing: Arc<Routing>,
    pub quotas: Vec<Quota>,
    pub counters: HashMap<CounterKey, Counter>,
    /// In periods that end after this stretch begins and begin before it ends, a quota without a counter has used nothing.
    /// In others a counter that is not in memory is unknown: it was forgotten, or never read.
    pub known: Window,
    /// Alerts that have not been resolved.
    pub firing: Vec<Alert>,
    /// Of each of those, the channels it was owed to.
    pub told: HashMap<AlertId, Vec<Told>>,
    /// Sums over the whole ledger.
    pub lifetime: Totals,
    /// No event of the ledger occurred later.
    pub latest_event_at: Timestamp,
    /// The ledger position the next event gets.
    pub next_position: i64,
    pub head: Head,
    /// How far these books are compared with a gateway's.
    pub comparison: Comparison,
    /// Who the tenant's people are.
    pub organization: Arc<Organization>,
    /// The tenant's own feature flags, and how often what was served.
    pub flags: Arc<FlagBooks>,
    /// The tenant's own roles and policies.
    pub policies: Arc<PolicyBooks>,
    /// Its LLM providers, with their sealed secrets.
    pub providers: Arc<ProviderBooks>,
}

/// What has to be read before [`Posting::usage`] or [`Posting::replace_quotas`] may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub quota: Quota,
    pub window: Window,
    /// The quota's scope, metric, period or calendar is new: a stored counter, if any, counts something else.
    pub recount: bool,
}

impl Missing {
    #[must_use]
    pub fn key(&self) -> CounterKey {
        CounterKey { quota: self.quota.id, period_start: self.window.start }
    }
}

impl Books {
    /// The books of a tenant whose database is empty.
    #[must_use]
    pub fn new(tenant: TenantId, time_zone: TimeZone, retention_micros: i64) -> Books {
        Books {
            tenant,
            epoch: 0,
            version: 0,
            time_zone,
            retention_micros,
            routing: Arc::default(),
            quotas: Vec::new(),
            counters: HashMap::new(),
            known: Window::NEVER,
            firing: Vec::new(),
            told: HashMap::new(),
            lifetime: Totals::default(),
            latest_event_at: Timestamp(0),
            next_position: 1,
            head: Head::EMPTY,
            comparison: Comparison::default(),
            organization: Arc::default(),
            flags: Arc::default(),
            policies: Arc::default(),
            providers: Arc::default(),
        }
    }

    /// May this event be counted at `now`?
    ///
    /// # Errors
    /// [`Refusal::TooOld`], [`Refusal::FromTheFuture`], or [`Refusal::AmountOverflow`] given what is already `pending`
    /// in the same batch.
    pub fn admit(&self, event: &UsageEvent, pending: &Totals, now: Timestamp) -> Result<Totals, Refusal> {
        if event.occurred_at.0 < now.0.saturating_sub(self.retention_micros) {
            return Err(Refusal::TooOld);
        }
        if event.occurred_at.0 > now.0.saturating_add(FUTURE_TOLERANCE_MICROS) {
            return Err(Refusal::FromTheFuture);
        }
        let with_it = pending.checked_add(&Totals::of(event)).ok_or(Refusal::AmountOverflow)?;
        self.lifetime.checked_add(&with_it).ok_or(Refusal::AmountOverflow)?;
        Ok(with_it)
    }

    /// How every quota stands at `now`, in the order the tenant gave them. True when the books
    /// [know what runs](Books::knows_running) then.
    #[must_use]
    pub fn standings(&self, now: Timestamp) -> Vec<Standing> {
        let foreseen = |quota| Standing { exhausts_at: self.exhausts_at(quota, now), ..self.standing(quota, now) };
        self.quotas.iter().map(foreseen).collect()
    }

    /// What a gateway should do with a request attributed to `subject`. True when the books
    /// [know what runs](Books::knows_running) at `now`.
    #[must_use]
    pub fn decide(&self, subject: &Subject, now: Timestamp) -> Decision {
        let matching = self.quotas.iter().filter(|quota| quota.scope.covers(subject));
        quota::judge(matching.map(|quota| self.standing(quota, now)).collect(), self.version)
    }

    /// May `subject` use the model that it names, if it names one? What the quotas say is another question.
    #[must_use]
    pub fn allows_model(&self, subject: &Subject) -> bool {
        subject.model.is_empty() || self.providers.policy.allows_model(&subject.model)
    }

    fn standing(&self, quota: &Quota, now: Timestamp) -> Standing {
        let window = period::window(quota.period, now, &self.time_zone);
        let key = CounterKey { quota: quota.id, period_start: window.start };
        let used = self.counters.get(&key).map_or(0, |counter| counter.used);
        Standing {
            quota: quota.clone(),
            used,
            remaining: (quota.limit - used).max(0),
            level: quota::level(quota, used),
            period_start: window.start,
            reset_at: window.reset_at(),
            exhausts_at: None,
        }
    }

    /// The next instant at which time alone changes these books: the end of a firing alert's period, or of the time that
    /// the first channel has, or a rate that has fallen.
    #[must_use]
    pub fn next_roll(&self) -> Option<Timestamp> {
        let ends = self.firing.iter().filter_map(Alert::period_end);
        ends.chain(self.burns_over()).chain(self.escalations().map(|(_, _, at)| at)).min()
    }

    /// The channels that firing alerts are to be escalated to, and when.
    fn escalations(&self) -> impl Iterator<Item = (&Alert, &str, Timestamp)> {
        let firing = if self.routing.escalates() { self.firing.as_slice() } else { &[] };
        firing.iter().flat_map(|alert| {
            let next = self.routing.escalations(self.tenant, alert, self.told_of(alert));
            next.into_iter().map(move |(channel, at)| (alert, channel, at))
        })
    }

    fn told_of(&self, alert: &Alert) -> &[Told] {
        self.told.get(&alert.id).map_or(&[], Vec::as_slice)
    }

    /// Alerts that fire, and who was told of each.
    #[must_use]
    pub fn firing_and_told(&self) -> Vec<Firing> {
        let with_told = |alert: &Alert| Firing { alert: alert.clone(), told: self.told_of(alert).to_vec() };
        self.firing.iter().map(with_told).collect()
    }

    /// Is there something to write or to read at `now` though nobody brings anything: an alert whose period is over, or a
    /// counter of a period that runs again because the clock was set back?
    #[must_use]
    pub fn needs_roll(&self, now: Timestamp) -> bool {
        self.next_roll().is_some_and(|at| at <= now) || !self.knows_running(now)
    }

    /// Is the counter of every period that runs at `now` in memory, or surely zero? If not, [learn](Books::learn) before
    /// answering: an unknown counter must not pass for an unused quota.
    #[must_use]
    pub fn knows_running(&self, now: Timestamp) -> bool {
        let is_known = |quota: &Quota| {
            let window = period::window(quota.period, now, &self.time_zone);
            let is_within = self.known.start < window.end && window.start < self.known.end;
            is_within || self.knows(quota.id, &window)
        };
        self.known.contains(now) || self.quotas.iter().all(is_known)
    }

    /// Takes in the counters that [`missing_now`](Books::missing_now) asked for at `now`.
    pub fn learn(&mut self, counters: Vec<(CounterKey, Counter)>, now: Timestamp) {
        self.counters.extend(counters);
        self.known = self.known_from(now);
    }

    /// What is known once the unfinished periods of every quota are in memory.
    fn known_from(&self, now: Timestamp) -> Window {
        // Periods in which the ledger has events may follow the last one that was asked for.
        let end_of = |quota| {
            let last = self.unfinished(quota, now, &self.time_zone).pop();
            last.map(|window| window.end).filter(|end| *end <= self.latest_event_at)
        };
        let end = self.quotas.iter().filter_map(end_of).min();
        Window { start: now, end: end.unwrap_or(Timestamp::MAX) }
    }

    /// The counters of the running periods, and of those that senders' clocks have begun already, that are not in
    /// memory. After loading, and when time alone has made a period run that is not known, read and
    /// [learn](Books::learn) them all.
    #[must_use]
    pub fn missing_now(&self, now: Timestamp) -> Vec<Missing> {
        let unfinished = |quota| {
            let windows = self.unfinished(quota, now, &self.time_zone);
            windows.into_iter().map(|window| Missing { quota: quota.clone(), window, recount: false })
        };
        let unknown = |missing: &Missing| !self.knows(missing.quota.id, &missing.window);
        self.quotas.iter().flat_map(unfinished).filter(unknown).collect()
    }

    /// The running window of a quota, and the later ones in which an event may have occurred: senders' clocks may run
    /// ahead of ours, ours may have been set back, and what was counted there must be known when that window becomes the
    /// running one.
    fn unfinished(&self, quota: &Quota, now: Timestamp, zone: &TimeZone) -> Vec<Window> {
        let ahead = FUTURE_TOLERANCE_MICROS + CLOCK_STEP_MICROS;
        let latest = self.latest_event_at.min(now.plus_micros(ahead));
        let running = period::window(quota.period, now, zone);
        let next = |window: &Window| (window.end <= latest).then(|| period::window(quota.period, window.end, zone));
        std::iter::successors(Some(running), next).take(UNFINISHED_MAX).collect()
    }

    /// Is the counter in memory, or surely zero because nothing in the ledger is that young?
    fn knows(&self, quota: QuotaId, window: &Window) -> bool {
        let key = CounterKey { quota, period_start: window.start };
        self.counters.contains_key(&key) || window.start > self.latest_event_at
    }
}

/// What a usage batch came to, for its record in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchCounts {
    /// Ledger positions the batch was offered; those of duplicates and conflicts stay empty.
    pub attempted: i64,
    pub duplicates: i64,
    pub conflicts: i64,
}

/// Books in the making, and the rows that go with them.
#[derive(Debug, Clone)]
pub struct Posting {
    /// The books as they will be after the commit.
    pub books: Books,
    /// Counters to write, whole.
    pub counters: BTreeMap<CounterKey, Counter>,
    /// Quotas whose stored counters count something else now; delete their counters first.
    pub void_counters: Vec<QuotaId>,
    /// Rollups to add to.
    pub rollups: BTreeMap<RollupKey, Totals>,
    /// Alerts to insert.
    pub fired: Vec<Alert>,
    /// Alerts to mark as resolved.
    pub resolved: Vec<Alert>,
    /// Alerts to mark as acknowledged.
    pub acknowledged: Vec<Alert>,
    /// Outbox rows to insert.
    pub owed: Vec<Delivery>,
    /// Attempts to record in the outbox.
    pub attempts: Vec<Attempt>,
    /// The whole set of quotas, when it changed.
    pub quotas: Option<Vec<Quota>>,
    /// The IANA name of the tenant's calendar, when it changed.
    pub time_zone: Option<String>,
    /// Links to append to the chain.
    pub records: Vec<Record>,
    /// Stream positions to store.
    pub cursors: BTreeMap<String, i64>,
    /// What a gateway has said.
    pub gateway: GatewayRows,
    /// A resource has written rows that nothing here stands for.
    pub has_other_rows: bool,
    /// A sum of it has left its range: it must not be written.
    pub overflows: bool,
    now: Timestamp,
    /// Fresh random bytes, from which each payload's salt is derived.
    salt_seed: [u8; 32],
}

impl Posting {
    /// Starts from committed books. `salt_seed` is 32 random bytes that no other posting had.
    #[must_use]
    pub fn open(books: &Books, now: Timestamp, salt_seed: [u8; 32]) -> Posting {
        Posting {
            books: books.clone(),
            counters: BTreeMap::new(),
            void_counters: Vec::new(),
            rollups: BTreeMap::new(),
            fired: Vec::new(),
            resolved: Vec::new(),
            acknowledged: Vec::new(),
            owed: Vec::new(),
            attempts: Vec::new(),
            quotas: None,
            time_zone: None,
            records: Vec::new(),
            cursors: BTreeMap::new(),
            gateway: GatewayRows::default(),
            has_other_rows: false,
            overflows: false,
            now,
            salt_seed,
        }
    }

    /// The instant this posting is made at.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Is there nothing to write?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Posting { records, attempts, cursors, resolved, gateway, has_other_rows, .. } = self;
        !has_other_rows
            && records.is_empty()
            && attempts.is_empty()
            && cursors.is_empty()
            && resolved.is_empty()
            && gateway.is_empty()
    }

    // ---- usage ----

    /// Counters that `events` need and that are not in memory: read or recount each as it was **before** these events,
    /// and [`supply`](Posting::supply) it.
    #[must_use]
    pub fn missing_for_usage(&self, events: &[&UsageEvent]) -> Vec<Missing> {
        let mut windows = Windows::new(&self.books.time_zone);
        let mut missing: BTreeMap<CounterKey, Missing> = BTreeMap::new();
        let (minutes, longer): (Vec<&Quota>, Vec<&Quota>) =
            self.books.quotas.iter().partition(|quota| quota.period == PeriodKind::Minute);
        let mut need = |quota: &Quota, window: Window| {
            // The stored counters of a quota that this very posting changes still count something else.
            let recount = self.void_counters.contains(&quota.id);
            let one = Missing { quota: quota.clone(), window, recount };
            if !self.books.knows(quota.id, &window) {
                missing.insert(one.key(), one);
            }
        };
        if !longer.is_empty() {
            for (start, subject) in starts_and_subjects(events) {
                for quota in longer.iter().filter(|quota| quota.scope.covers(subject)) {
                    need(quota, windows.of(quota.period, start));
                }
            }
        }
        if !minutes.is_empty() {
            for event in events {
                for quota in minutes.iter().filter(|quota| quota.scope.covers(&event.subject)) {
                    need(quota, windows.of(quota.period, event.occurred_at));
                }
            }
        }
        missing.into_values().collect()
    }

    /// Takes in the counters that the [books ask for](Books::missing_now) at this posting's instant, before anything else
    /// is done.
    pub fn learn(&mut self, counters: Vec<(CounterKey, Counter)>) {
        self.books.learn(counters, self.now);
    }

    /// Adds a counter that was read or recounted.
    pub fn supply(&mut self, key: CounterKey, counter: Counter) {
        let counter = self.with_own_fired(key, counter);
        self.books.counters.insert(key, counter);
    }

    /// A counter as it was read, and the thresholds that this very posting has fired: the database does not know them yet.
    fn with_own_fired(&self, key: CounterKey, mut counter: Counter) -> Counter {
        let own = self.fired.iter().filter_map(Alert::mark);
        let own = own.filter(|(quota, start, _)| (*quota, *start) == (key.quota, key.period_start));
        let new: Vec<u16> = own.map(|(_, _, mark)| mark).filter(|one| !counter.fired.contains(one)).collect();
        counter.fired.extend(new);
        counter
    }

    /// Counts events that the ledger took as new, and everything that follows from them: rollups, counters, thresholds,
    /// alerts, what is owed to the channels, the batch's record. `keys` digests the batch for the chain.
    pub fn usage(
        &mut self,
        events: &[&UsageEvent],
        keys: &[(EventKey, BodyHash)],
        counts: BatchCounts,
        request_id: &str,
    ) {
        let within = events.iter().try_fold(self.books.lifetime, |sum, event| sum.checked_add(&Totals::of(event)));
        self.overflows |= within.is_none();
        let groups = group(events);
        let mut sum = Totals::default();
        let mut windows = Windows::new(&self.books.time_zone);
        let mut added: BTreeMap<CounterKey, Counter> = BTreeMap::new();
        let horizon = horizon(self.books.latest_event_at);
        let mut add = |quota: &Quota, window: Window, quarter: Option<Timestamp>, amounts: &Amounts| {
            let key = CounterKey { quota: quota.id, period_start: window.start };
            let slot = added.entry(key).or_insert_with(|| Counter::new(window));
            let amount = quota.metric.of(amounts);
            slot.used = slot.used.saturating_add(amount);
            quarter.filter(|start| *start >= horizon).into_iter().for_each(|start| slot.recent.add(start, amount));
        };
        let by_scope = ByScope::new(&self.books.quotas);
        for (key, totals) in &groups {
            sum.add(totals);
            for quota in by_scope.covering(&key.subject).filter(|quota| quota.period != PeriodKind::Minute) {
                add(quota, windows.of(quota.period, key.start), Some(key.start), &totals.amounts);
            }
        }
        if self.books.quotas.iter().any(|quota| quota.period == PeriodKind::Minute) {
            for event in events {
                for quota in by_scope.covering(&event.subject).filter(|quota| quota.period == PeriodKind::Minute) {
                    add(quota, windows.of(quota.period, event.occurred_at), None, &event.amounts);
                }
            }
        }
        for (key, totals) in groups {
            self.rollups.entry(key).or_default().add(&totals);
        }
        for (key, more) in added {
            self.raise(key, &more);
        }
        self.books.lifetime.add(&sum);
        self.books.next_position += counts.attempted;
        if self.books.comparison.progress.is_some() {
            events
                .iter()
                .filter(|event| event.kind != Kind::Adjustment)
                .for_each(|event| self.disturb(event.occurred_at));
        }
        if let Some(latest) = events.iter().map(|event| event.occurred_at).max() {
            self.books.latest_event_at = self.books.latest_event_at.max(latest);
        }
        self.record_usage(&sum, keys, counts, request_id);
    }

    fn raise(&mut self, key: CounterKey, more: &Counter) {
        let counter = self.books.counters.entry(key).or_insert_with(|| Counter::new(more.window));
        counter.used = counter.used.saturating_add(more.used);
        counter.recent.merge(&more.recent);
        self.counters.insert(key, counter.clone());
        self.fire(key);
        self.judge_burn(key);
    }

    // ---- quotas and calendar ----

    /// Counters of the periods that are not over which a new set of quotas needs recounted.
    #[must_use]
    pub fn missing_for_quotas(&self, quotas: &[Quota]) -> Vec<Missing> {
        let unchanged = |quota: &Quota| {
            self.books.quotas.iter().any(|known| {
                known.id == quota.id
                    && (&known.scope, known.metric, known.period) == (&quota.scope, quota.metric, quota.period)
            })
        };
        self.recounts(quotas.iter().filter(|quota| !unchanged(quota)), &self.books.time_zone)
    }

    /// Counters of the periods that are not over which a new calendar needs recounted: all of them.
    #[must_use]
    pub fn missing_for_time_zone(&self, zone: &TimeZone) -> Vec<Missing> {
        self.recounts(self.books.quotas.iter(), zone)
    }

    fn recounts<'a>(&self, quotas: impl Iterator<Item = &'a Quota>, zone: &TimeZone) -> Vec<Missing> {
        let unfinished = |quota| {
            let windows = self.books.unfinished(quota, self.now, zone);
            windows.into_iter().map(|window| Missing { quota: quota.clone(), window, recount: true })
        };
        quotas.flat_map(unfinished).collect()
    }

    /// Replaces the set of quotas. What each has used in its running period stays; `recounted` holds the counters asked
    /// for by [`missing_for_quotas`](Posting::missing_for_quotas).
    pub fn replace_quotas(&mut self, quotas: Vec<Quota>, recounted: Vec<(CounterKey, Counter)>, entry: Entry) {
        self.records_entry(entry);
        let gone: Vec<QuotaId> = self
            .books
            .quotas
            .iter()
            .map(|quota| quota.id)
            .filter(|id| !quotas.iter().any(|quota| quota.id == *id))
            .collect();
        self.books.quotas = quotas.clone();
        self.quotas = Some(quotas);
        self.recount(gone.into_iter().chain(recounted.iter().map(|(key, _)| key.quota)).collect(), recounted);
    }

    /// Moves the tenant to another calendar; every quota counts the period it is in by the new one.
    pub fn change_time_zone(
        &mut self,
        name: &str,
        zone: TimeZone,
        recounted: Vec<(CounterKey, Counter)>,
        entry: Entry,
    ) {
        self.records_entry(entry);
        self.books.time_zone = zone;
        self.time_zone = Some(name.to_owned());
        self.recount(self.books.quotas.iter().map(|quota| quota.id).collect(), recounted);
    }

    fn recount(&mut self, void: Vec<QuotaId>, recounted: Vec<(CounterKey, Counter)>) {
        self.books.counters.retain(|key, _| !void.contains(&key.quota));
        self.counters.retain(|key, _| !void.contains(&key.quota));
        self.void_counters.extend(void);
        for (key, counter) in recounted {
            let counter = self.with_own_fired(key, counter);
            self.books.counters.insert(key, counter.clone());
            self.counters.insert(key, counter);
        }
        // Of quotas that stay as they are, no more is known than before; of the others, nothing of what is over.
        self.books.known = self.books.known.intersection(&self.books.known_from(self.now));
        let now = self.now;
        // An alert holds while its quota still counts the same period and is still past the threshold.
        self.resolve_where(|books, alert| match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => !alerts::holds(books, reached),
            AlertSubject::BudgetBurn(burn) => books.burn_is_over(burn, now) != Some(false),
            AlertSubject::ReconciliationDrift(_) | AlertSubject::Test(_) => false,
        });
        let mut unfinished: Vec<CounterKey> = self
            .books
            .counters
            .iter()
            .filter(|(_, counter)| counter.window.end > self.now)
            .map(|(key, _)| *key)
            .collect();
        // In a fixed order, so that the same change makes the same chain.
        unfinished.sort_unstable();
        for key in unfinished {
            self.fire(key);
            self.judge_burn(key);
        }
    }

    // ---- the rest ----

    /// Appends a record that stands for itself: a denial, a lifecycle change, a new key.
    pub fn records_entry(&mut self, entry: Entry) {
        let before = self.books.head;
        let record = chain::link(before, &self.books.tenant.to_string(), entry, self.now, self.salt(before.seq));
        self.books.head = Head { seq: record.seq, hash: record.hash };
        self.records.push(record);
    }

    /// Notes how an attempt to deliver ended.
    pub fn attempt(&mut self, attempt: Attempt) {
        let told = self.books.told.get_mut(&attempt.alert).filter(|_| attempt.event == Event::Fired);
        let told = told.and_then(|told| told.iter_mut().find(|one| one.channel == attempt.channel));
        if let (Some(one), Some(reached)) = (told, Reached::by(&attempt.result)) {
            one.reached = reached;
        }
        self.attempts.push(attempt);
    }

    /// Notes how far a stream is committed.
    pub fn advance(&mut self, cursor: Cursor) {
        let newest = self.cursors.entry(cursor.stream).or_insert(cursor.sequence);
        *newest = (*newest).max(cursor.sequence);
    }

    /// Ends the posting: forgets counters of periods long over, and counts the commit.
    pub fn close(&mut self) {
        let horizon = self.now.plus_micros(-COUNTER_KEPT_MICROS);
        self.books.counters.retain(|_, counter| counter.window.end > horizon);
        self.books.counters.values_mut().for_each(|counter| counter.recent.forget(self.books.latest_event_at));
        self.books.known.start = self.books.known.start.max(horizon);
        self.books.version += 1;
    }

    /// The salt of the record that follows number `seq`.
    fn salt(&self, seq: i64) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.salt_seed);
        context.update(&seq.to_be_bytes());
        let mut salt = [0; 32];
        salt.copy_from_slice(context.finish().as_ref());
        salt
    }

    /// One record per committed batch: how many, their sums, and a digest of what was counted, in ledger order.
    fn record_usage(&mut self, sum: &Totals, keys: &[(EventKey, BodyHash)], counts: BatchCounts, request_id: &str) {
        let mut context = digest::Context::new(&digest::SHA256);
        for (key, body) in keys {
            context.update(&key.0);
            context.update(&body.0);
        }
        let payload = serde_json::json!({
            "events": sum.events,
            "failures": sum.failures,
            "duplicates": counts.duplicates,
            "conflicts": counts.conflicts,
            "lastPosition": self.books.next_position - 1,
            "requests": sum.amounts.requests,
            "promptTokens": sum.amounts.prompt_tokens,
            "completionTokens": sum.amounts.completion_tokens,
            "unclassifiedTokens": sum.amounts.unclassified_tokens,
            "costUsd": sum.amounts.cost,
            "digest": hex(context.finish().as_ref()),
        });
        self.records_entry(Entry {
            actor: "system".into(),
            action: ledger_proof::COUNTED.into(),
            target: format!("tenant:{}", self.books.tenant),
            outcome: EntryOutcome::Success,
            request_id: request_id.into(),
            payload: payload.to_string(),
        });
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
