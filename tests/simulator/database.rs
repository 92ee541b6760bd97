//! One tenant's database: tables, and transactions that see what is committed and change nothing until they commit.
//!
//! A transaction is a list of what it will do. Rows that two transactions both want are locks: the second one is told to
//! try again, or, when the first has been silent for long, the first one's session is ended, as Postgres does with
//! `idle_in_transaction_session_timeout`. On SQLite the second one is told so when it begins.

use std::collections::BTreeMap;

use platform_api::domain::books::{Books, Counter, CounterKey, Missing, Posting, RollupKey};
use platform_api::domain::burn::Recent;
use platform_api::domain::chain::{Hash, Head, Stored};
use platform_api::domain::ids::{AlertId, TenantId};
use platform_api::domain::notice::{Alert, Attempt, AttemptResult, Delivery, Event, RETRY_DELAY_MICROS_MAX};
use platform_api::domain::period::{self, PeriodKind, Window};
use platform_api::domain::quota::Quota;
use platform_api::domain::routing::{Reached, Told};
use platform_api::domain::time::{MICROS_PER_SECOND, Timestamp};
use platform_api::domain::usage::{BodyHash, EventKey, Totals, UsageEvent};
use platform_api::store::StoreError;

/// How long a transaction may hold a lock in silence.
const IDLE_MICROS: i64 = 5 * MICROS_PER_SECOND;

/// One row of the ledger.
#[derive(Debug, Clone)]
pub struct Row {
    pub key: EventKey,
    pub body: BodyHash,
    pub event: UsageEvent,
    pub recorded_at: Timestamp,
    /// Who wrote it.
    pub epoch: i64,
}

/// One row of the outbox.
#[derive(Debug, Clone)]
pub struct Owed {
    pub created_at: Timestamp,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
    pub settled: Option<Settled>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Delivered,
    GaveUp,
}

type OwedKey = (AlertId, &'static str, String);

/// What is committed.
#[derive(Debug, Clone)]
pub struct Tables {
    pub tenant: TenantId,
    pub epoch: i64,
    pub version: i64,
    pub time_zone: String,
    pub next_position: i64,
    pub latest_event_at: Timestamp,
    pub head: Head,
    pub lifetime: Totals,
    pub ledger: BTreeMap<i64, Row>,
    pub keys: BTreeMap<EventKey, i64>,
    pub conflicts: BTreeMap<(EventKey, [u8; 16]), UsageEvent>,
    pub rollups: BTreeMap<RollupKey, Totals>,
    pub quotas: Vec<Quota>,
    pub counters: BTreeMap<CounterKey, (Window, i64)>,
    pub alerts: BTreeMap<AlertId, Alert>,
    pub outbox: BTreeMap<OwedKey, Owed>,
    pub records: Vec<Stored>,
    pub cursors: BTreeMap<String, i64>,
    pub requests: BTreeMap<String, ([u8; 32], String)>,
}

/// What an open transaction will do.
#[derive(Debug, Default)]
pub struct Transaction {
    pub rows: Vec<(i64, Row)>,
    pub conflicts: Vec<(EventKey, BodyHash, UsageEvent)>,
    pub requests: Vec<(String, [u8; 32], String)>,
    pub postings: Vec<Posting>,
    /// Takes the books over.
    pub next_epoch: bool,
    /// Holds the lock on the row of the books.
    pub owns_books: bool,
    /// When its session last said something.
    heard_at: i64,
    /// Ended by the server: everything it does from now on fails.
    pub ended: bool,
}

/// One tenant's database with its sessions.
#[derive(Debug)]
pub struct Database {
    pub tables: Tables,
    pub open: BTreeMap<u64, Transaction>,
    next_session: u64,
    /// Grows with every start of the server; sessions do not survive it.
    pub life: u64,
    pub full_until: i64,
    /// An earlier state, as a backup has it.
    pub backup: Option<Box<Tables>>,
}

impl Database {
    pub fn new(tenant: TenantId, time_zone: &str) -> Database {
        let tables = Tables {
            tenant,
            epoch: 0,
            version: 0,
            time_zone: time_zone.to_owned(),
            next_position: 1,
            latest_event_at: Timestamp(0),
            head: Head::EMPTY,
            lifetime: Totals::default(),
            ledger: BTreeMap::new(),
            keys: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            rollups: BTreeMap::new(),
            quotas: Vec::new(),
            counters: BTreeMap::new(),
            alerts: BTreeMap::new(),
            outbox: BTreeMap::new(),
            records: Vec::new(),
            cursors: BTreeMap::new(),
            requests: BTreeMap::new(),
        };
        Database { tables, open: BTreeMap::new(), next_session: 0, life: 0, full_until: 0, backup: None }
    }

    /// A session, and the life it belongs to.
    pub fn connect(&mut self) -> (u64, u64) {
        self.next_session += 1;
        (self.next_session, self.life)
    }

    /// The server ends: what is committed stays, what is open is gone, and its sessions with it.
    pub fn crash(&mut self) {
        self.life += 1;

        for transaction in self.open.values_mut() {
            transaction.ended = true;
        }
    }

    pub fn begin(&mut self, session: u64, now: i64, locks_early: bool) -> Result<(), StoreError> {
        if locks_early {
            self.lock(session, now, |_| true)?;
        }
        self.open.insert(session, Transaction { heard_at: now, ..Transaction::default() });
        Ok(())
    }

    pub fn transaction(&mut self, session: u64, now: i64) -> Result<&mut Transaction, StoreError> {
        let transaction = self.open.get_mut(&session).ok_or_else(|| lost("there is no transaction"))?;
        transaction.heard_at = now;
        if transaction.ended { Err(lost("the server ended the session")) } else { Ok(transaction) }
    }

    /// Waits for no one: whoever holds what is wanted is either fast, then we try again, or silent, then it is ended.
    pub fn lock(&mut self, session: u64, now: i64, wants: impl Fn(&Transaction) -> bool) -> Result<(), StoreError> {
        for (other, holder) in &mut self.open {
            if *other != session && !holder.ended && wants(holder) {
                if now - holder.heard_at < IDLE_MICROS {
                    return Err(StoreError::Retryable("another transaction holds the lock".into()));
                }
                holder.ended = true;
            }
        }
        Ok(())
    }

    /// Applies a transaction; `None` when its session was ended.
    pub fn commit(&mut self, session: u64) -> Option<Transaction> {
        let transaction = self.open.remove(&session).filter(|transaction| !transaction.ended)?;
        self.tables.apply(&transaction);
        Some(transaction)
    }
}

pub fn lost(text: &str) -> StoreError {
    StoreError::Unknown(text.to_owned())
}

impl Tables {
    fn apply(&mut self, transaction: &Transaction) {
        for (position, row) in &transaction.rows {
            self.ledger.insert(*position, row.clone());
            self.keys.insert(row.key, *position);
        }
        for (key, body, event) in &transaction.conflicts {
            self.conflicts.entry((*key, body.0)).or_insert_with(|| event.clone());
        }
        for (key, body, answer) in &transaction.requests {
            self.requests.insert(key.clone(), (*body, answer.clone()));
        }
        self.epoch += i64::from(transaction.next_epoch);
        for posting in &transaction.postings {
            self.post(posting);
        }
    }

    fn post(&mut self, posting: &Posting) {
        let books = &posting.books;
        (self.version, self.next_position) = (books.version, books.next_position);
        (self.latest_event_at, self.head, self.lifetime) = (books.latest_event_at, books.head, books.lifetime);
        if let Some(zone) = &posting.time_zone {
            self.time_zone.clone_from(zone);
        }
        self.write_counters(posting);
        for (key, totals) in &posting.rollups {
            self.rollups.entry(key.clone()).or_default().add(totals);
        }
        if let Some(quotas) = &posting.quotas {
            self.quotas.clone_from(quotas);
        }
        for alert in posting.fired.iter().chain(&posting.acknowledged).chain(&posting.resolved) {
            self.alerts.insert(alert.id, alert.clone());
        }
        self.owe(posting);
        for attempt in &posting.attempts {
            self.note(attempt);
        }
        self.records.extend(posting.records.iter().map(|record| Stored {
            seq: record.seq,
            bytes: record.bytes.clone(),
            hash: record.hash.0,
            payload: Some(record.payload.clone()),
            salt: Some(record.salt.to_vec()),
        }));
        self.advance(&posting.cursors);
    }

    pub fn write_counters(&mut self, posting: &Posting) {
        self.counters.retain(|key, _| !posting.void_counters.contains(&key.quota));
        for (key, counter) in &posting.counters {
            self.counters.insert(*key, (counter.window, counter.used));
        }
    }

    pub fn owe(&mut self, posting: &Posting) {
        for delivery in &posting.owed {
            let owed = Owed {
                created_at: posting.now(),
                attempts: delivery.attempts,
                next_attempt_at: delivery.next_attempt_at,
                settled: None,
            };
            self.outbox.insert(owed_key(delivery.alert.id, delivery.event, &delivery.channel), owed);
        }
    }

    /// What is settled stays so, whatever a late attempt says.
    fn note(&mut self, attempt: &Attempt) {
        let key = owed_key(attempt.alert, attempt.event, &attempt.channel);
        let Some(owed) = self.outbox.get_mut(&key).filter(|owed| owed.settled.is_none()) else { return };
        owed.attempts += 1;
        match attempt.result {
            AttemptResult::Delivered => owed.settled = Some(Settled::Delivered),
            AttemptResult::GaveUp { .. } | AttemptResult::Withdrawn => owed.settled = Some(Settled::GaveUp),
            AttemptResult::Retry { at, .. } => owed.next_attempt_at = at,
        }
    }

    /// How many deliveries are owed, and settled by these attempts.
    pub fn settles(&self, attempts: &[Attempt]) -> i64 {
        let owed = |attempt: &&Attempt| {
            let key = owed_key(attempt.alert, attempt.event, &attempt.channel);
            let retry = matches!(attempt.result, AttemptResult::Retry { .. });
            !retry && self.outbox.get(&key).is_some_and(|owed| owed.settled.is_none())
        };
        attempts.iter().filter(owed).count() as i64
    }

    pub fn advance(&mut self, cursors: &BTreeMap<String, i64>) {
        for (stream, sequence) in cursors {
            let newest = self.cursors.entry(stream.clone()).or_insert(*sequence);
            *newest = (*newest).max(*sequence);
        }
    }

    /// The rows of a posting that the tables' keys refuse.
    pub fn objection(&self, posting: &Posting) -> Option<&'static str> {
        let same = |one: &Alert, other: &Alert| one.mark() == other.mark();
        let taken = |(at, new): (usize, &Alert)| {
            let before = &posting.fired[..at];
            self.alerts.values().chain(before).any(|alert| same(alert, new))
        };
        if posting.fired.iter().enumerate().any(taken) {
            return Some("alert: its quota, period and threshold have one");
        }
        let known = |delivery: &Delivery| {
            self.outbox.contains_key(&owed_key(delivery.alert.id, delivery.event, &delivery.channel))
        };
        if posting.owed.iter().any(known) {
            return Some("outbox: the channel is owed this already");
        }
        let first = posting.records.first().map(|record| record.seq);
        (first.is_some_and(|seq| seq <= self.records.len() as i64)).then_some("audit_record: the number is taken")
    }

    // ---- questions ----

    /// A counter that is not in memory: the stored one if it counts this very period, otherwise recounted.
    pub fn counter(&self, missing: &Missing, before_position: i64) -> Counter {
        let stored = self.counters.get(&missing.key()).filter(|(window, _)| *window == missing.window);
        let used = match stored {
            Some((_, used)) if !missing.recount => *used,
            _ => self.recount(missing, before_position),
        };
        let recent = self.recent(&missing.quota, missing.window);
        Counter { window: missing.window, used, fired: self.fired(&missing.key()), recent }
    }

    fn recent(&self, quota: &Quota, window: Window) -> Recent {
        let mut recent = Recent::default();
        let longer =
            self.rollups.iter().filter(|(key, _)| quota.period != PeriodKind::Minute && window.contains(key.start));
        for (key, totals) in longer.filter(|(key, _)| quota.scope.covers(&key.subject)) {
            recent.add(key.start, quota.metric.of(&totals.amounts));
        }
        recent.forget(self.latest_event_at);
        recent
    }

    /// From the rollups, or from the ledger for what is shorter than they are.
    fn recount(&self, missing: &Missing, before_position: i64) -> i64 {
        let Missing { quota, window, .. } = missing;
        if quota.period == PeriodKind::Minute {
            let rows = self.ledger.range(..before_position).map(|(_, row)| &row.event);
            let counted = rows.filter(|event| window.contains(event.occurred_at) && quota.scope.covers(&event.subject));
            return counted.map(|event| quota.metric.of(&event.amounts)).sum();
        }
        let rollups = self.rollups.iter().filter(|(key, _)| window.contains(key.start));
        rollups
            .filter(|(key, _)| quota.scope.covers(&key.subject))
            .map(|(_, totals)| quota.metric.of(&totals.amounts))
            .sum()
    }

    fn fired(&self, key: &CounterKey) -> Vec<u16> {
        let alerts = self.alerts.values();
        let mut fired: Vec<u16> = alerts
            .filter_map(Alert::mark)
            .filter(|(quota, start, _)| (*quota, *start) == (key.quota, key.period_start))
            .map(|(_, _, mark)| mark)
            .collect();
        fired.sort_unstable();
        fired
    }

    /// The books as a new owner reads them, or why they cannot be trusted.
    pub fn read_books(&self, now: Timestamp, witnessed: Head) -> Result<Books, StoreError> {
        let untrusted = |text: &str| Err(StoreError::Untrusted(text.to_owned()));
        let hash_at = |seq: i64| match seq {
            0 => Some(Hash::NONE),
            seq => self.records.get(seq as usize - 1).map(|record| Hash(record.hash)),
        };
        if self.head.seq != self.records.len() as i64 || hash_at(self.head.seq) != Some(self.head.hash) {
            return untrusted("another chain: its last record is not the books' head");
        }
        if self.ledger.last_key_value().is_some_and(|(last, _)| self.next_position <= *last) {
            return untrusted("the ledger goes on past the books");
        }
        if self.head.seq < witnessed.seq || hash_at(witnessed.seq) != Some(witnessed.hash) {
            return untrusted("behind, or another chain: the witnessed record is not there");
        }
        let Some(zone) = period::time_zone(&self.time_zone) else { return untrusted("no such zone") };
        let mut books = Books::new(self.tenant, zone, i64::MAX);
        (books.epoch, books.version, books.next_position) = (self.epoch, self.version, self.next_position);
        (books.latest_event_at, books.head, books.lifetime) = (self.latest_event_at, self.head, self.lifetime);
        books.quotas.clone_from(&self.quotas);
        let running = self.counters.iter().filter(|(_, (window, _))| window.end > now);
        books.counters = running
            .map(|(key, (window, used))| {
                let recent = self.quotas.iter().find(|quota| quota.id == key.quota);
                let recent = recent.map(|quota| self.recent(quota, *window)).unwrap_or_default();
                (*key, Counter { window: *window, used: *used, fired: self.fired(key), recent })
            })
            .collect();
        books.firing = self.alerts.values().filter(|alert| alert.resolved_at.is_none()).cloned().collect();
        books.firing.sort_by_key(|alert| (alert.fired_at, alert.id));
        for ((alert, event, channel), owed) in &self.outbox {
            if *event == Event::Fired.name() && books.firing.iter().any(|firing| firing.id == *alert) {
                let reached = match owed.settled {
                    None => Reached::NotYet,
                    Some(Settled::Delivered) => Reached::Delivered,
                    Some(Settled::GaveUp) => Reached::GivenUp,
                };
                let told = Told { reached, ..Told::new(channel, Timestamp(0)) };
                books.told.entry(*alert).or_default().push(told);
            }
        }
        Ok(books)
    }

    pub fn owed_count(&self) -> i64 {
        self.outbox.values().filter(|owed| owed.settled.is_none()).count() as i64
    }

    /// Deliveries that are due: that an alert is over is told only after it is settled that it fired.
    pub fn due(&self, now: Timestamp, limit: usize) -> Vec<Delivery> {
        let held_back = |(alert, event, channel): &OwedKey| {
            *event == Event::Resolved.name()
                && self
                    .outbox
                    .get(&owed_key(*alert, Event::Fired, channel))
                    .is_some_and(|earlier| earlier.settled.is_none())
        };
        // Put off for longer than there is a delay: the clock has been set back since.
        let beyond = now.plus_micros(RETRY_DELAY_MICROS_MAX);
        let waits = |owed: &Owed| owed.next_attempt_at > now && owed.next_attempt_at <= beyond;
        let open = self.outbox.iter().filter(|(_, owed)| owed.settled.is_none() && !waits(owed));
        let mut due: Vec<_> = open.filter(|(key, _)| !held_back(key)).collect();
        due.sort_by_key(|(key, owed)| (owed.next_attempt_at, owed.created_at, key.0, key.2.clone()));
        due.into_iter()
            .take(limit)
            .filter_map(|((alert, event, channel), owed)| {
                Some(Delivery {
                    alert: self.alerts.get(alert)?.clone(),
                    event: Event::from_name(event)?,
                    channel: channel.clone(),
                    attempts: owed.attempts,
                    next_attempt_at: owed.next_attempt_at,
                })
            })
            .collect()
    }
}

pub fn owed_key(alert: AlertId, event: Event, channel: &str) -> OwedKey {
    (alert, event.name(), channel.to_owned())
}
