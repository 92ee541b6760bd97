//! A connection to a simulated database: what the real writer calls instead of the store. Each call gives way once before
//! it does anything, so that another node's transaction, a crash or a freeze may come between any two statements.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use platform_api::domain::books::{Books, Counter, Missing, Posting};
use platform_api::domain::burn::Recent;
use platform_api::domain::chain::{Entry, EntryOutcome, Head};
use platform_api::domain::period;
use platform_api::domain::routing::Routing;
use platform_api::domain::sorting::Inserted;
use platform_api::domain::time::{MICROS_PER_SECOND, Timestamp};
use platform_api::domain::usage::{Identity, UsageEvent};
use platform_api::store::StoreError;
use platform_api::store::database::Connection;
use platform_api::store::posting::Expecting;
use platform_api::tenant::ledger::Ledger;

use super::checks;
use super::database::{Row, Transaction, lost};
use super::ground::{Ground, Shared, lock};
use super::plan::Fault;
use super::planted::Planted;
use super::sender::{RETENTION_MICROS, UNWRITABLE};
use super::vault::Vault;

/// One session. Dropping it is the end of the connection: what is open is rolled back.
pub struct Session {
    vault: Shared<Vault>,
    ground: Shared<Ground>,
    id: u64,
    /// The server's life it was made in.
    life: u64,
    /// A commit is done, and nobody has heard of it yet.
    unheard: bool,
    /// Planted: the last commit was done and is about to be tried again.
    blind: bool,
    /// Planted: written outside the transaction, later.
    late: Option<Posting>,
}

/// Pending once.
struct GiveWay(bool);

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Session {
    pub fn connect(vault: &Shared<Vault>, ground: &Shared<Ground>) -> Session {
        let (id, life) = lock(vault).database.connect();
        let (vault, ground) = (vault.clone(), ground.clone());
        Session { vault, ground, id, life, unheard: false, blind: false, late: None }
    }

    /// Gives way, then runs one statement of the open transaction, unless a fault is faster.
    async fn statement<T>(
        &mut self,
        run: impl FnOnce(&mut Vault, &mut Ground, u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        GiveWay(false).await;
        let (mut vault, mut ground) = (lock(&self.vault), lock(&self.ground));
        let now = ground.now;
        vault.database.transaction(self.id, now)?;
        if ground.strikes(Fault::ConnectionLost) {
            vault.database.open.remove(&self.id);
            ground.coverage.saw("crash: in the middle of a transaction");
            return Err(lost("the connection was lost"));
        }
        if ground.strikes(Fault::Serialization) {
            return Err(StoreError::Retryable("40001 could not serialize access".into()));
        }
        run(&mut vault, &mut ground, self.id)
    }

    /// Makes the caller the owner, as `store::load::take_over` does; the books, and how much is owed.
    pub async fn take_over(
        &mut self,
        channels: Vec<String>,
        now: Timestamp,
        witnessed: Head,
    ) -> Result<(Books, i64), StoreError> {
        self.begin().await?;
        self.next_epoch().await?;
        let mut books = self.statement(|vault, _, _| vault.database.tables.read_books(now, witnessed)).await?;
        // Its own transaction sees what it has written.
        books.epoch += 1;
        books.retention_micros = RETENTION_MICROS;
        let burn_span_micros = lock(&self.ground).plan.burn_span_micros;
        books.routing = std::sync::Arc::new(Routing { burn_span_micros, ..Routing::all(channels) });
        if lock(&self.ground).plants(Planted::RateForgotten) {
            books.counters.values_mut().for_each(|counter| counter.recent = Recent::default());
        }
        if lock(&self.ground).plants(Planted::AlertWithoutKey) {
            books.counters.values_mut().for_each(|counter| counter.fired.clear());
        }
        let mut counters = Vec::new();
        for missing in books.missing_now(now) {
            let counter = self.counter(&books, &missing, books.next_position).await?;
            counters.push((missing.key(), counter));
        }
        books.learn(counters, now);
        let mut posting = Posting::open(&books, now, self.salt_seed());
        posting.records_entry(Entry {
            actor: "system".into(),
            action: "owner.changed".into(),
            target: format!("tenant:{}", books.tenant),
            outcome: EntryOutcome::Success,
            request_id: String::new(),
            payload: format!("{{\"epoch\":{}}}", books.epoch),
        });
        posting.close();
        self.write(&books, &posting).await?;
        self.commit().await?;
        let owed = lock(&self.vault).database.tables.owed_count();
        Ok((posting.books, owed))
    }

    async fn next_epoch(&mut self) -> Result<(), StoreError> {
        self.statement(|vault, ground, id| {
            let old_one_is_writing = vault.database.open.len() > 1;
            vault.database.lock(id, ground.now, |other| other.owns_books)?;
            if old_one_is_writing {
                ground.coverage.saw("owner: taken over while a transaction of the old one was open");
            }
            let transaction = vault.database.transaction(id, ground.now)?;
            (transaction.next_epoch, transaction.owns_books) = (true, true);
            Ok(())
        })
        .await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.unheard {
            lock(&self.ground).coverage.saw("crash: between the commit and the answer");
        }

        if lock(&self.vault).database.open.remove(&self.id).is_some() {
            lock(&self.ground).coverage.saw("crash: in the middle of a transaction");
        }
    }
}

impl Ledger for Session {
    async fn begin(&mut self) -> Result<(), StoreError> {
        GiveWay(false).await;
        let (mut vault, mut ground) = (lock(&self.vault), lock(&self.ground));
        if ground.plants(Planted::OutboxOutside)
            && let Some(late) = self.late.take()
        {
            vault.database.tables.owe(&late);
        }
        if ground.strikes(Fault::DiskFull) {
            vault.database.full_until = ground.now + 20 * MICROS_PER_SECOND;
        }
        if vault.database.life != self.life {
            return Err(lost("the server was started anew"));
        }
        let (now, locks_early) = (ground.now, ground.plan.locks_early);
        vault.database.begin(self.id, now, locks_early)
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        GiveWay(false).await;
        let answer = {
            let (mut vault, mut ground) = (lock(&self.vault), lock(&self.ground));
            if ground.strikes(Fault::CommitLost) {
                vault.database.open.remove(&self.id);
                return Err(lost("the commit was not confirmed"));
            }
            let epoch = vault.database.tables.epoch;
            let Some(done) = vault.database.commit(self.id) else { return Err(lost("the session was ended")) };
            if ground.plants(Planted::OutboxOutside) {
                self.late = done.postings.last().cloned();
            }
            checks::after_commit(&mut ground, &mut vault, &done, epoch);
            match ground.strikes(Fault::CommitReplyLost) {
                true if ground.plants(Planted::RetriedBlindly) => {
                    self.blind = true;
                    Err(StoreError::Retryable("surely rolled back".into()))
                }
                true => Err(lost("the commit was not confirmed")),
                false => Ok(()),
            }
        };
        // A crash may come between the commit and whoever waits for it.
        self.unheard = answer.is_ok();
        GiveWay(false).await;
        self.unheard = false;
        answer
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        GiveWay(false).await;
        match lock(&self.vault).database.open.remove(&self.id) {
            Some(transaction) if !transaction.ended => Ok(()),
            _ => Err(lost("the connection was lost")),
        }
    }

    async fn insert_events(
        &mut self,
        first_position: i64,
        recorded_at: Timestamp,
        events: &[&UsageEvent],
        keys: &[Identity],
        expecting: Expecting,
    ) -> Result<Vec<Inserted>, StoreError> {
        let blind = self.blind;
        self.statement(|vault, ground, id| {
            vault.writable(ground.now)?;
            if events.iter().any(|event| event.call_type == UNWRITABLE) {
                ground.coverage.saw("writer: took a unit apart");
                return Err(StoreError::Unwritable("22P05 unsupported Unicode escape sequence".into()));
            }
            let wanted = |other: &Transaction| {
                other.rows.iter().any(|(at, row)| *at >= first_position || keys.iter().any(|(key, _)| *key == row.key))
            };
            vault.database.lock(id, ground.now, wanted)?;
            let tables = &vault.database.tables;
            // Postgres copies what is taken for new, and refuses it whole when it is not.
            let copies = expecting == Expecting::New && !ground.plan.locks_early;
            if copies && !blind && keys.iter().any(|(key, _)| tables.keys.contains_key(key)) {
                ground.coverage.saw("writer: guessed that known events were new");
                return Err(StoreError::Known);
            }
            let (mut outcomes, mut rows) = (Vec::with_capacity(events.len()), Vec::new());
            for (offset, (event, (key, body))) in events.iter().zip(keys).enumerate() {
                let known = tables.keys.get(key).and_then(|position| tables.ledger.get(position));
                outcomes.push(match known {
                    Some(_) if blind => Inserted::New,
                    Some(row) if row.body == *body => Inserted::Duplicate,
                    Some(_) if ground.plants(Planted::ConflictCounted) => Inserted::New,
                    Some(_) => Inserted::Conflict,
                    None => Inserted::New,
                });
                if known.is_none() || blind {
                    let position = first_position + offset as i64;
                    let epoch = tables.epoch;
                    rows.push((position, Row { key: *key, body: *body, event: (*event).clone(), recorded_at, epoch }));
                }
            }
            if !blind && rows.iter().any(|(position, _)| tables.ledger.contains_key(position)) {
                return Err(StoreError::Unwritable("23505 the position is taken".into()));
            }
            vault.database.transaction(id, ground.now)?.rows.extend(rows);
            Ok(outcomes)
        })
        .await
    }

    async fn keep_conflicts(&mut self, _: Timestamp, conflicts: &[(&UsageEvent, Identity)]) -> Result<(), StoreError> {
        if conflicts.is_empty() {
            return Ok(());
        }
        self.statement(|vault, ground, id| {
            let kept = conflicts.iter().map(|(event, (key, body))| (*key, *body, (*event).clone()));
            vault.database.transaction(id, ground.now)?.conflicts.extend(kept);
            Ok(())
        })
        .await
    }

    async fn counter(&mut self, _: &Books, missing: &Missing, before_position: i64) -> Result<Counter, StoreError> {
        self.statement(|vault, ground, _| {
            let mut counter = vault.database.tables.counter(missing, before_position);
            if ground.plants(Planted::AlertWithoutKey) {
                counter.fired.clear();
            }
            Ok(counter)
        })
        .await
    }

    async fn find_request(&mut self, key: &str) -> Result<Option<([u8; 32], String)>, StoreError> {
        self.statement(|vault, ground, id| {
            let own = vault.database.transaction(id, ground.now)?.requests.iter().find(|(known, _, _)| known == key);
            let own = own.map(|(_, body, answer)| (*body, answer.clone()));
            Ok(own.or_else(|| vault.database.tables.requests.get(key).cloned()))
        })
        .await
    }

    async fn keep_request(
        &mut self,
        key: &str,
        body_hash: &[u8; 32],
        answer: &str,
        _: Timestamp,
    ) -> Result<(), StoreError> {
        self.statement(|vault, ground, id| {
            vault.writable(ground.now)?;
            let kept = (key.to_owned(), *body_hash, answer.to_owned());
            vault.database.transaction(id, ground.now)?.requests.push(kept);
            Ok(())
        })
        .await
    }

    async fn write(&mut self, before: &Books, posting: &Posting) -> Result<i64, StoreError> {
        let blind = std::mem::take(&mut self.blind);
        self.statement(|vault, ground, id| {
            vault.writable(ground.now)?;
            vault.database.lock(id, ground.now, |other| other.owns_books)?;
            let taking_over = vault.database.transaction(id, ground.now)?.next_epoch;
            let epoch = vault.database.tables.epoch + i64::from(taking_over);
            if epoch != before.epoch && !ground.plants(Planted::MissingEpochCheck) {
                ground.coverage.saw("writer: fenced");
                return Err(StoreError::Fenced);
            }
            let keyless = [Planted::AlertWithoutKey, Planted::MissingEpochCheck].iter().any(|bug| ground.plants(*bug));
            if let Some(objection) = vault.database.tables.objection(posting)
                && !(blind || keyless)
            {
                return Err(StoreError::Unwritable(format!("23505 {objection}")));
            }
            if ground.plants(Planted::CounterOutside) {
                vault.database.tables.write_counters(posting);
            }
            if ground.plants(Planted::CursorOutside) {
                vault.database.tables.advance(&posting.cursors);
                checks::cursors(ground, vault, posting);
            }
            let transaction = vault.database.transaction(id, ground.now)?;
            transaction.owns_books = true;
            transaction.postings.push(planted(ground, posting));
            if ground.plants(Planted::AdoptedBeforeCommit) {
                ground.leaked.insert(vault.tenant, posting.books.clone());
            }
            Ok(vault.database.tables.settles(&posting.attempts))
        })
        .await
    }

    /// No gateway speaks in the simulated day.
    fn database(&mut self) -> Option<&mut Connection> {
        None
    }

    async fn check_owner(&mut self, before: &Books) -> Result<(), StoreError> {
        GiveWay(false).await;
        match lock(&self.vault).database.tables.epoch == before.epoch {
            true => Ok(()),
            false => Err(StoreError::Fenced),
        }
    }

    async fn pause(&mut self, delay: Duration) {
        // The delay doubles from ten milliseconds.
        let last = delay >= Duration::from_millis(80);
        lock(&self.ground).coverage.saw(if last { "writer: tried for the last time" } else { "writer: tried again" });
        GiveWay(false).await;
        GiveWay(false).await;
    }

    fn salt_seed(&mut self) -> [u8; 32] {
        lock(&self.ground).dice.bytes()
    }
}

/// The posting as it is written: itself, unless a bug is planted.
fn planted(ground: &Ground, posting: &Posting) -> Posting {
    let mut posting = posting.clone();
    if ground.plants(Planted::PeriodOfArrival) {
        let now = period::rollup_start(posting.now());
        for (mut key, totals) in std::mem::take(&mut posting.rollups) {
            key.start = now;
            posting.rollups.entry(key).or_default().add(&totals);
        }
    }
    if ground.plants(Planted::OutboxOutside) {
        posting.owed.clear();
    }
    posting
}
