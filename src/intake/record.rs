//! The one path from items to answers, shared by HTTP, NATS and replays.
//!
//! Items are attributed, grouped by tenant, and handed over: all tenants at once, one call each. What could not be
//! read, attributed or counted is quarantined, all of it in one write. Only then is anybody answered. HTTP and replays
//! do all of that here; the stream takes the same steps one by one, because each tenant's part settles by itself there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

pub use super::arrival::Reporter;
use super::arrival::{self, Arrival, Format, Item, Limits, Parsed, Unreadable};
use super::attribution::{attribute, name_user};
pub use super::body::{BodyShape, RecordError};
use super::parking::{Parked, Parking, Room};
use super::tally::{Tally, is_from_litellm};
use super::{quarantine, text};
use crate::clock::Clock;
use crate::config;
use crate::directory::handle::{Absent, Handle as Directory, Refused};
use crate::domain::ids::TenantId;
use crate::domain::report::{Fate, Quarantined, Retried};
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Flags, Outcome, Refusal, UsageEvent};
use crate::fault;
use crate::tenant::handle::{Origin, Unavailable};

/// When a saturated or restarting tenant may be asked again.
const COME_BACK: Duration = Duration::from_secs(1);
/// When a frozen tenant may be asked again: it waits for a person.
const COME_BACK_FROZEN: Duration = Duration::from_secs(30);

/// Counts items. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    directory: Directory,
    clock: Clock,
    intake: Arc<config::Intake>,
    /// Told when something was kept that is to be brought back.
    parked: Arc<Notify>,
    parking: Arc<Parking>,
}

/// What became of one item; durable when it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemOutcome {
    Accepted,
    /// It was known, with the same body.
    Duplicate,
    /// It was known with another body: the first stays, this one is kept as a conflict.
    Conflict,
    /// It is in quarantine.
    Rejected {
        code: &'static str,
        message: String,
    },
    /// It is in quarantine until its tenant can take it, and counted by itself then.
    Parked {
        code: &'static str,
        message: String,
    },
}

/// The events cannot be taken now. Sending all of them again is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the events cannot be taken now: {why}")]
pub struct NotNow {
    pub after: Duration,
    pub why: Cause,
}

/// Why events cannot be taken now; the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("a tenant is starting")]
    Starting,
    #[error("a tenant is saturated")]
    Saturated,
    #[error("a tenant is frozen")]
    Frozen,
    #[error("a tenant did not answer in time")]
    TimedOut,
    #[error("the quarantine could not be written")]
    Quarantine,
}

impl Cause {
    /// The bounded label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::Starting => "starting",
            Cause::Saturated => "saturated",
            Cause::Frozen => "frozen",
            Cause::TimedOut => "timed_out",
            Cause::Quarantine => "quarantine",
        }
    }
}

/// How another try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// Counted now; the row is marked.
    Counted,
    /// Counted already, or kept as a conflict; the row is marked.
    AlreadyKnown,
    /// It stays in quarantine.
    StillRefused { code: &'static str, message: String },
}

/// Why a replay could not be tried, or not be marked; trying again is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("no such row in quarantine")]
    Unknown,
    #[error("the row has been replayed before")]
    AlreadyReplayed,
    #[error("the row cannot be replayed now")]
    Unavailable { retry_after_ms: u64 },
}

impl From<NotNow> for ReplayError {
    fn from(not_now: NotNow) -> ReplayError {
        ReplayError::Unavailable { retry_after_ms: u64::try_from(not_now.after.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl Recorder {
    #[must_use]
    pub fn new(directory: Directory, clock: Clock, intake: config::Intake) -> Recorder {
        let parking = Arc::new(Parking::new(intake.parked_events_max));
        Recorder { directory, clock, intake: Arc::new(intake), parked: Arc::new(Notify::new()), parking }
    }

    /// What one body may hold.
    #[must_use]
    pub fn limits(&self, format: Format) -> Limits {
        Limits::of(format, &self.intake)
    }

    /// How long a saturated tenant is waited for over HTTP.
    #[must_use]
    pub fn patience(&self, format: Format) -> Duration {
        config::millis(match format {
            Format::Events | Format::OpenMeter => self.intake.patience_ms,
            Format::Litellm => self.intake.litellm_patience_ms,
        })
    }

    /// Counts `items` that `reporter` brought: one outcome per item, in order, each of them durable. What a tenant cannot
    /// take is parked, as far as there is room, when its sender would not come back with it.
    ///
    /// # Errors
    /// [`NotNow`] when any tenant or the quarantine cannot take its part; other parts may have been committed, and
    /// bringing everything again is safe.
    pub async fn record(
        &self,
        items: Vec<Item>,
        reporter: Reporter,
        arrival: &Arrival,
    ) -> Result<Vec<ItemOutcome>, NotNow> {
        let (raws, readings): (Vec<Bytes>, Vec<_>) = items.into_iter().map(|item| (item.raw, item.reading)).unzip();
        let from_litellm: Vec<bool> = readings.iter().map(is_litellm).collect();
        let now = self.clock.now();
        let readings = readings.into_iter().map(|reading| Arrived { reading, reporter, at: now }).collect();
        let comes_back = arrival.format != Format::Litellm;
        let limit = (!comes_back).then_some(arrival.patience);
        let mut verdicts = self.verdicts(readings, &arrival.request_id, arrival.patience, limit).await;
        // Held until what is parked is durable.
        let _room = if comes_back { None } else { self.park(&mut verdicts).await };
        let row = |(raw, verdict): (&Bytes, &Verdict)| match verdict {
            Verdict::Refused(rejection) => {
                Some(quarantine::row(&arrival.origin, arrival.format, reporter, raw, rejection, now))
            }
            _ => None,
        };
        let rows = raws.iter().zip(&verdicts).filter_map(row).collect();
        let kept = self.keep(rows).await;
        let mut tally = Tally::default();
        let mut outcomes = Ok(Vec::with_capacity(verdicts.len()));
        for (verdict, from_litellm) in verdicts.into_iter().zip(from_litellm) {
            let settled = match (verdict, &kept) {
                (Verdict::Refused(_), Err(not_now)) => Err(*not_now),
                (verdict, _) => verdict.settled(),
            };
            match settled {
                Ok(outcome) => {
                    tally.item(&outcome, from_litellm);
                    if let Ok(outcomes) = &mut outcomes {
                        outcomes.push(outcome);
                    }
                }
                Err(not_now) => {
                    tally.unavailable += 1;
                    // The first reason is told.
                    outcomes = outcomes.and(Err(not_now));
                }
            }
        }
        tally.tell("http");
        outcomes
    }

    /// Turns what tenants cannot take into what waits for them, as far as there is room.
    async fn park(&self, verdicts: &mut [Verdict]) -> Option<Room<'_>> {
        let away = |verdict: &&mut Verdict| matches!(verdict, Verdict::Later { tenant: Some(_), .. });
        let asked = verdicts.iter_mut().filter(away).count();
        if asked == 0 {
            return None;
        }
        let room = self.room_to_park(asked).await;
        for verdict in verdicts.iter_mut().filter(away).take(room.events) {
            if let Verdict::Later { tenant: Some(tenant), not_now } = *verdict {
                let frozen = not_now.why == Cause::Frozen;
                let reason = if frozen { Refusal::TenantFrozen } else { Refusal::TenantUnavailable };
                *verdict = Verdict::Refused(Rejection::of(reason, tenant));
            }
        }
        let (parked, turned_away) = (room.events, asked - room.events);
        tracing::warn!(parked, turned_away, "tenants cannot take events whose sender does not come back with them");
        Some(room)
    }

    /// Gives a quarantined row another try, read and attributed as things are now.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(&self, id: Uuid, request: Request) -> Result<ReplayOutcome, ReplayError> {
        let unavailable = |error: Refused| {
            tracing::warn!(%error, %id, "a quarantined row could not be read or marked");
            ReplayError::from(NotNow { after: COME_BACK, why: Cause::Quarantine })
        };
        let row = self.directory.quarantined_one(id).await.map_err(unavailable)?.ok_or(ReplayError::Unknown)?;
        if row.replayed_at.is_some() {
            return Err(ReplayError::AlreadyReplayed);
        }
        if row.left_out_bytes > 0 {
            return Ok(ReplayOutcome::StillRefused { code: row.reason.code(), message: row.detail });
        }
        let mut outcomes = Vec::new();
        for verdict in self.again(vec![row], &request.request_id).await.into_iter().flatten() {
            match verdict {
                Verdict::Refused(Rejection { problem, .. }) => {
                    return Ok(ReplayOutcome::StillRefused { code: problem.reason.code(), message: problem.detail });
                }
                verdict => outcomes.push(verdict.settled()?),
            }
        }
        self.directory.mark_replayed(id, request).await.map_err(unavailable)?;
        let counted = outcomes.contains(&ItemOutcome::Accepted);
        Ok(if counted { ReplayOutcome::Counted } else { ReplayOutcome::AlreadyKnown })
    }

    /// Gives rows another try; answers those of which something new is known, and whether the rest has to wait.
    pub(super) async fn retry(&self, rows: Vec<Quarantined>) -> (Vec<Retried>, Option<NotNow>) {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let mut retried = Vec::with_capacity(ids.len());
        let mut later = None;
        for (id, verdicts) in ids.into_iter().zip(self.again(rows, "").await) {
            match fate(verdicts) {
                Ok(fate) => retried.push(Retried { id, fate }),
                Err(not_now) => later = Some(not_now),
            }
        }
        (retried, later)
    }

    /// The events of rows, counted: verdicts row by row. Nothing is quarantined anew.
    async fn again(&self, rows: Vec<Quarantined>, request_id: &str) -> Vec<Vec<Verdict>> {
        let mut readings = Vec::with_capacity(rows.len());
        let mut lengths = Vec::with_capacity(rows.len());
        for row in rows {
            let before = readings.len();
            readings.extend(self.read_again(row).await);
            lengths.push(readings.len() - before);
        }
        let from_litellm: Vec<bool> = readings.iter().map(|arrived| is_litellm(&arrived.reading)).collect();
        let verdicts = self.verdicts(readings, request_id, self.patience(Format::Litellm), None).await;
        let mut tally = Tally::default();
        for (verdict, from_litellm) in verdicts.iter().zip(from_litellm) {
            match verdict {
                Verdict::Counted(outcome) => tally.item(outcome, from_litellm),
                Verdict::Refused(_) => tally.refused += 1,
                Verdict::Later { .. } => tally.unavailable += 1,
            }
        }
        tally.tell("replay");
        let mut verdicts = verdicts.into_iter();
        lengths.into_iter().map(|length| verdicts.by_ref().take(length).collect()).collect()
    }

    /// What a row holds; at least one reading.
    async fn read_again(&self, row: Quarantined) -> Vec<Arrived> {
        let at = row.received_at;
        let Some((format, reporter)) = quarantine::read_tag(&row.format) else {
            let reading = Err(text::malformed("nobody knows how to read this row"));
            return vec![Arrived { reading, reporter: Reporter::Platform, at }];
        };
        let nothing = |problem| vec![Arrived { reading: Err(problem), reporter, at }];
        match arrival::read_body(Bytes::from(row.body), format, self.limits(format)).await {
            Ok(reading) if reading.items.is_empty() => nothing(text::malformed("there is no event in this row")),
            Ok(reading) => {
                reading.items.into_iter().map(|item| Arrived { reading: item.reading, reporter, at }).collect()
            }
            Err(too_many) => nothing(text::unreadable(Refusal::Oversized, too_many.to_string())),
        }
    }

    /// One verdict per reading, in order; nothing is quarantined yet. Past `limit` no tenant is waited for: what it commits all
    /// the same is a duplicate when it comes again.
    async fn verdicts(
        &self,
        readings: Vec<Arrived>,
        request_id: &str,
        patience: Duration,
        limit: Option<Duration>,
    ) -> Vec<Verdict> {
        if readings.iter().any(|arrived| self.is_unowned(arrived)) {
            self.directory.catch_up().await;
        }
        let mut verdicts: Vec<Option<Verdict>> = vec![None; readings.len()];
        let mut groups: HashMap<TenantId, (Vec<usize>, Vec<UsageEvent>), ahash::RandomState> = HashMap::default();
        for (at, arrived) in readings.into_iter().enumerate() {
            match self.attributed(arrived) {
                Ok((tenant, event)) => {
                    let (places, events) = groups.entry(tenant).or_default();
                    places.push(at);
                    events.push(event);
                }
                Err(rejection) => verdicts[at] = Some(Verdict::Refused(rejection)),
            }
        }
        let counting = groups.into_iter().map(|(tenant, (places, events))| async move {
            let origin = Origin { cursor: None, request_id: request_id.to_owned() };
            let counting = self.count(tenant, events, origin, patience);
            let counted = match limit {
                None => counting.await,
                Some(limit) => {
                    let answer = tokio::time::timeout(limit, counting).await;
                    answer.unwrap_or(Counted::Later(NotNow::unanswered()))
                }
            };
            (tenant, places, counted)
        });
        for (tenant, places, counted) in join_all(counting).await {
            for (index, at) in places.into_iter().enumerate() {
                verdicts[at] = Some(counted.verdict(index, tenant));
            }
        }
        // Every place is filled: by a rejection, or by its group's answer.
        let unanswered = || Verdict::Later { tenant: None, not_now: NotNow::unanswered() };
        verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(unanswered)).collect()
    }

    /// Whose event a reading is, and the event.
    ///
    /// # Errors
    /// [`Rejection`].
    pub(super) fn attributed(&self, arrived: Arrived) -> Result<(TenantId, UsageEvent), Rejection> {
        let Arrived { reading, reporter, at } = arrived;
        let parsed = reading.map_err(|problem| Rejection { problem, tenant: self.existing(reporter) })?;
        let tenant = attribute(&parsed.claim, reporter, |ids| self.directory.attribute(ids))
            .map_err(|problem| Rejection { problem, tenant: None })?;
        let mut event = parsed.event;
        name_user(&mut event, &parsed.claim, tenant);
        if event.flags.has(Flags::UNDATED) {
            event.occurred_at = at;
        }
        Ok((tenant, event))
    }

    /// Is it an event that nobody owns, as far as is known here?
    fn is_unowned(&self, arrived: &Arrived) -> bool {
        let Ok(parsed) = &arrived.reading else { return false };
        let owner = attribute(&parsed.claim, arrived.reporter, |ids| self.directory.attribute(ids));
        owner.is_err_and(|problem| problem.reason == Refusal::UnknownTenant)
    }

    /// The tenant a reporter speaks for, if there is such a tenant.
    fn existing(&self, reporter: Reporter) -> Option<TenantId> {
        match reporter {
            Reporter::Tenant(tenant) => self.directory.tenant(tenant).map(|found| found.id),
            Reporter::Platform => None,
        }
    }

    /// Hands events to their tenant, and waits until they are committed.
    pub(super) async fn count(
        &self,
        tenant: TenantId,
        events: Vec<UsageEvent>,
        origin: Origin,
        patience: Duration,
    ) -> Counted {
        fault::point("intake.received");
        let later = |after, why| Counted::Later(NotNow { after, why });
        let mut found = self.directory.find(tenant).await;
        if matches!(found, Err(Absent::Unknown)) && self.directory.catch_up().await {
            found = self.directory.find(tenant).await;
        }
        let handle = match found {
            Ok(handle) => handle,
            Err(Absent::Unknown) => return Counted::UnknownTenant,
            Err(Absent::Frozen) => return Counted::Frozen,
            Err(Absent::ComeBack { after_ms } | Absent::Elsewhere { after_ms }) => {
                return later(config::millis(after_ms), Cause::Starting);
            }
        };
        match handle.record(events, origin, patience).await {
            Ok(outcomes) => Counted::Outcomes(outcomes),
            Err(Unavailable::ComeBack) => later(COME_BACK, Cause::Starting),
            Err(Unavailable::Saturated) => later(COME_BACK, Cause::Saturated),
            Err(Unavailable::TimedOut) => later(COME_BACK, Cause::TimedOut),
        }
    }

    /// Puts rows into quarantine; they are durable when this returns.
    ///
    /// # Errors
    /// [`NotNow`] when the control database cannot take them; some may be durable.
    async fn keep(&self, rows: Vec<Quarantined>) -> Result<(), NotNow> {
        for write in quarantine::writes(rows) {
            self.keep_these(write).await?;
        }
        Ok(())
    }

    /// Puts the rows of one write into quarantine.
    ///
    /// # Errors
    /// [`NotNow`] when the control database cannot take them.
    pub(super) async fn keep_these(&self, rows: Arc<[Quarantined]>) -> Result<(), NotNow> {
        let mut reasons: HashMap<Refusal, u64> = HashMap::new();
        for row in rows.iter() {
            *reasons.entry(row.reason).or_default() += 1;
        }
        let events = rows.len();
        match self.directory.quarantine(rows, self.intake.quarantine_share()).await {
            Ok(()) => {
                if Refusal::WAITING.iter().any(|reason| reasons.contains_key(reason)) {
                    self.parked.notify_one();
                }
                for (reason, events) in reasons {
                    metrics::counter!("platform_api_quarantined_total", "reason" => reason.code()).increment(events);
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, events, "the quarantine could not be written");
                Err(NotNow { after: COME_BACK, why: Cause::Quarantine })
            }
        }
    }

    /// Waits until something was kept that is to be brought back.
    pub(super) async fn parked(&self) {
        self.parked.notified().await;
    }

    /// How much is parked, of how much may be.
    #[must_use]
    pub fn parked_events(&self) -> watch::Receiver<Parked> {
        self.parking.follow()
    }

    /// May anything be parked now?
    pub(super) fn may_park(&self) -> bool {
        !self.parking.is_full()
    }

    /// Room to park as many of `asked` events as may be; held until they are durable.
    pub(super) async fn room_to_park(&self, asked: usize) -> Room<'_> {
        if !self.parking.is_counted()
            && let Err(error) = self.count_parked().await
        {
            tracing::debug!(%error, "parked events could not be counted");
        }
        self.parking.room(asked)
    }

    /// How many rows wait for whom; what is known of the parking is corrected.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub(super) async fn count_parked(&self) -> Result<Vec<(TenantId, i64)>, Refused> {
        let before = self.parking.before();
        let census = self.directory.waiting_census().await?;
        let waiting: i64 = census.iter().map(|(_, rows)| *rows).sum();
        self.parking.counted(before, u64::try_from(waiting).unwrap_or(0));
        Ok(census)
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }
}

impl NotNow {
    /// A tenant that answered fewer outcomes than it was given events has not answered.
    fn unanswered() -> NotNow {
        NotNow { after: COME_BACK, why: Cause::TimedOut }
    }
}

/// A reading, who brought it, and when that was: the time of an event that has none of its own.
pub(super) struct Arrived {
    pub(super) reading: Result<Parsed, Unreadable>,
    pub(super) reporter: Reporter,
    pub(super) at: Timestamp,
}

/// Why an item belongs in quarantine.
#[derive(Debug, Clone)]
pub(super) struct Rejection {
    pub(super) problem: Unreadable,
    /// Whom it was meant for, when that is known beyond doubt.
    pub(super) tenant: Option<TenantId>,
}

impl Rejection {
    /// Does it wait for nothing but its tenant?
    pub(super) fn is_parked(&self) -> bool {
        Refusal::WAITING.contains(&self.problem.reason)
    }

    /// Refused by, or for the sake of, a known tenant.
    pub(super) fn of(reason: Refusal, tenant: TenantId) -> Rejection {
        Rejection { problem: text::unreadable(reason, explanation(reason)), tenant: Some(tenant) }
    }

    pub(super) fn unknown(tenant: TenantId) -> Rejection {
        let problem = text::unreadable(Refusal::UnknownTenant, format!("{tenant}: no such tenant"));
        Rejection { problem, tenant: None }
    }
}

/// What became of events that were handed to their tenant.
pub(super) enum Counted {
    /// One for each event, in order.
    Outcomes(Vec<Outcome>),
    UnknownTenant,
    Frozen,
    /// Nothing is known; handing them over again is safe.
    Later(NotNow),
}

impl Counted {
    /// What is to be said of the event at `index`, to somebody who is there to come back.
    fn verdict(&self, index: usize, tenant: TenantId) -> Verdict {
        let later = |not_now| Verdict::Later { tenant: Some(tenant), not_now };
        match self {
            Counted::UnknownTenant => Verdict::Refused(Rejection::unknown(tenant)),
            Counted::Frozen => later(NotNow { after: COME_BACK_FROZEN, why: Cause::Frozen }),
            Counted::Later(not_now) => later(*not_now),
            Counted::Outcomes(outcomes) => match outcomes.get(index) {
                Some(Outcome::Accepted) => Verdict::Counted(ItemOutcome::Accepted),
                Some(Outcome::Duplicate) => Verdict::Counted(ItemOutcome::Duplicate),
                Some(Outcome::Conflict) => Verdict::Counted(ItemOutcome::Conflict),
                Some(Outcome::Refused(reason)) => Verdict::Refused(Rejection::of(*reason, tenant)),
                None => later(NotNow::unanswered()),
            },
        }
    }
}

/// What is known of an item before the quarantine is written.
#[derive(Debug, Clone)]
enum Verdict {
    Counted(ItemOutcome),
    Refused(Rejection),
    /// Not now; of this tenant, if it is known.
    Later {
        tenant: Option<TenantId>,
        not_now: NotNow,
    },
}

impl Verdict {
    fn settled(self) -> Result<ItemOutcome, NotNow> {
        match self {
            Verdict::Counted(outcome) => Ok(outcome),
            Verdict::Refused(rejection) => {
                let is_parked = rejection.is_parked();
                let (code, message) = (rejection.problem.reason.code(), rejection.problem.detail);
                Ok(if is_parked {
                    ItemOutcome::Parked { code, message }
                } else {
                    ItemOutcome::Rejected { code, message }
                })
            }
            Verdict::Later { not_now, .. } => Err(not_now),
        }
    }
}

/// A row is counted when all its events are.
fn fate(verdicts: Vec<Verdict>) -> Result<Fate, NotNow> {
    for verdict in verdicts {
        match verdict {
            Verdict::Counted(_) => {}
            Verdict::Refused(Rejection { problem: Unreadable { reason, detail }, .. }) => {
                return Ok(Fate::Refused { reason, detail });
            }
            Verdict::Later { not_now, .. } => return Err(not_now),
        }
    }
    Ok(Fate::Counted)
}

fn is_litellm(reading: &Result<Parsed, Unreadable>) -> bool {
    reading.as_ref().is_ok_and(|parsed| is_from_litellm(&parsed.event))
}

/// What a tenant's refusal means, for a person.
fn explanation(reason: Refusal) -> &'static str {
    match reason {
        Refusal::TooOld => "it occurred before the retention horizon",
        Refusal::FromTheFuture => "it claims to occur more than five minutes from now",
        Refusal::AmountOverflow => "counting it would overflow the tenant's lifetime sum",
        Refusal::Malformed => "it is no event",
        Refusal::UnknownTenant => "no such tenant",
        Refusal::TenantMismatch => "it names another tenant",
        Refusal::Oversized => "it is longer than an event may be",
        Refusal::TenantFrozen => "its tenant's database needs a person; it is counted once that is well",
        Refusal::TenantUnavailable => "its tenant could not take it for too long; it is counted once that can",
    }
}
