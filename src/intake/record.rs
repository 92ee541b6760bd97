//! The one path from items to answers, shared by HTTP, NATS and replays.
//!
//! Items are attributed, grouped by tenant, and handed over: all tenants at once, one call each. What could not be
//! read, attributed or counted is quarantined, all of it in one write. Only then is anybody answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use uuid::Uuid;

pub use super::arrival::Reporter;
use super::arrival::{self, Arrival, Format, Item, Limits, Unreadable};
use super::attribution::attribute;
pub use super::body::{BodyShape, RecordError};
use super::{litellm, quarantine, text};
use crate::clock::{self, Clock};
use crate::config;
use crate::directory::handle::{Absent, Handle as Directory, Refused};
use crate::domain::books::Cursor;
use crate::domain::ids::TenantId;
use crate::domain::report::Quarantined;
use crate::domain::request::Request;
use crate::domain::usage::{Outcome, Refusal, UsageEvent};
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
}

/// What became of one item, or why that is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Done(ItemOutcome),
    /// Nothing is known; bring it again. Never counted twice.
    Later(NotNow),
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

/// The items of one body or message, with where they came from.
#[derive(Debug, Clone)]
pub struct Consignment {
    pub items: Vec<Item>,
    pub reporter: Reporter,
    pub arrival: Arc<Arrival>,
    /// The stream position of the message; `None` over HTTP.
    pub cursor: Option<Cursor>,
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
        Recorder { directory, clock, intake: Arc::new(intake) }
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
            Format::Events => self.intake.patience_ms,
            Format::Litellm => self.intake.litellm_patience_ms,
        })
    }

    /// Counts `items` that `reporter` brought: one outcome per item, in order, each of them durable.
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
        let consignment = Consignment { items, reporter, arrival: Arc::new(arrival.clone()), cursor: None };
        let settled = self.settle(vec![consignment]).await;
        settled.into_iter().flatten().map(Settled::into_result).collect()
    }

    /// Counts consignments with origins of their own; answers per item, so that a tenant that is away holds up
    /// nobody else.
    pub async fn settle(&self, consignments: Vec<Consignment>) -> Vec<Vec<Settled>> {
        fault::point("intake.received");
        let mut verdicts = self.count(&consignments).await;
        let failed = self.quarantine(&consignments, &verdicts).await.err();
        let mut settled = Vec::with_capacity(consignments.len());
        for (consignment, verdicts) in consignments.iter().zip(verdicts.drain(..)) {
            let door = door(&consignment.arrival.origin);
            let settle = |(item, verdict): (&Item, Verdict)| {
                let settled = match verdict {
                    Verdict::Refused { .. } if failed.is_some() => {
                        Settled::Later(NotNow { after: COME_BACK, why: Cause::Quarantine })
                    }
                    verdict => verdict.settled(),
                };
                tally(&settled, item, door);
                settled
            };
            settled.push(consignment.items.iter().zip(verdicts).map(settle).collect());
        }
        settled
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
        let outcomes = match self.count_again(row, &request).await? {
            Ok(outcomes) => outcomes,
            Err(problem) => {
                return Ok(ReplayOutcome::StillRefused { code: problem.reason.code(), message: problem.detail });
            }
        };
        self.directory.mark_replayed(id, request).await.map_err(unavailable)?;
        let counted = outcomes.contains(&ItemOutcome::Accepted);
        Ok(if counted { ReplayOutcome::Counted } else { ReplayOutcome::AlreadyKnown })
    }

    /// A row's events, counted: all of them, or the first reason why not. Nothing is quarantined anew.
    async fn count_again(
        &self,
        row: Quarantined,
        request: &Request,
    ) -> Result<Result<Vec<ItemOutcome>, Unreadable>, NotNow> {
        let Some((format, reporter)) = quarantine::read_tag(&row.format) else {
            return Ok(Err(text::malformed("nobody knows how to read this row")));
        };
        let reading = match arrival::read_body(Bytes::from(row.body), format, self.limits(format)).await {
            Ok(reading) => reading,
            Err(too_many) => return Ok(Err(text::unreadable(Refusal::Oversized, too_many.to_string()))),
        };
        if reading.items.is_empty() {
            return Ok(Err(text::malformed("there is no event in this row")));
        }
        let arrival = Arrival {
            origin: row.origin,
            format,
            request_id: request.request_id.clone(),
            patience: self.patience(format),
        };
        let consignment = Consignment { items: reading.items, reporter, arrival: Arc::new(arrival), cursor: None };
        let mut outcomes = Vec::with_capacity(consignment.items.len());
        for verdict in self.count(std::slice::from_ref(&consignment)).await.into_iter().flatten() {
            match verdict {
                Verdict::Refused { problem, .. } => return Ok(Err(problem)),
                verdict => outcomes.push(verdict.settled().into_result()?),
            }
        }
        for (item, outcome) in consignment.items.iter().zip(&outcomes) {
            tally(&Settled::Done(outcome.clone()), item, "replay");
        }
        Ok(Ok(outcomes))
    }

    /// One verdict per item; nothing is quarantined yet.
    async fn count(&self, consignments: &[Consignment]) -> Vec<Vec<Verdict>> {
        let mut verdicts: Vec<Vec<Option<Verdict>>> =
            consignments.iter().map(|consignment| vec![None; consignment.items.len()]).collect();
        let mut groups: BTreeMap<TenantId, Group> = BTreeMap::new();
        for (at, consignment) in consignments.iter().enumerate() {
            for (within, item) in consignment.items.iter().enumerate() {
                match self.attributed(item, consignment.reporter) {
                    Ok((tenant, event)) => {
                        groups.entry(tenant).or_default().add((at, within), event, consignment);
                    }
                    Err(refused) => verdicts[at][within] = Some(refused),
                }
            }
        }
        let counting = groups.into_iter().map(|(tenant, group)| self.count_group(tenant, group));
        for (places, results) in join_all(counting).await {
            for ((at, within), verdict) in places.into_iter().zip(results) {
                verdicts[at][within] = Some(verdict);
            }
        }
        // A tenant that answered fewer outcomes than events would leave gaps; a gap is no answer.
        let gap = || Verdict::Later(NotNow { after: COME_BACK, why: Cause::TimedOut });
        verdicts.into_iter().map(|of| of.into_iter().map(|verdict| verdict.unwrap_or_else(gap)).collect()).collect()
    }

    fn attributed(&self, item: &Item, reporter: Reporter) -> Result<(TenantId, UsageEvent), Verdict> {
        let parsed = item
            .reading
            .as_ref()
            .map_err(|problem| Verdict::Refused { problem: problem.clone(), tenant: self.existing(reporter) })?;
        let tenant = attribute(&parsed.claim, reporter, |ids| self.directory.attribute(ids))
            .map_err(|problem| Verdict::Refused { problem, tenant: None })?;
        Ok((tenant, parsed.event.clone()))
    }

    /// The tenant a reporter speaks for, if there is such a tenant.
    fn existing(&self, reporter: Reporter) -> Option<TenantId> {
        match reporter {
            Reporter::Tenant(tenant) => self.directory.tenant(tenant).map(|found| found.id),
            Reporter::Platform => None,
        }
    }

    async fn count_group(&self, tenant: TenantId, group: Group) -> (Vec<Place>, Vec<Verdict>) {
        let Group { places, events, cursor, request_id, patience } = group;
        let all = |verdict: Verdict| vec![verdict; places.len()];
        let later = |after, why| all(Verdict::Later(NotNow { after, why }));
        let handle = match self.directory.find(tenant).await {
            Ok(handle) => handle,
            Err(Absent::Unknown) => {
                let problem = text::unreadable(Refusal::UnknownTenant, format!("{tenant}: no such tenant"));
                let verdicts = all(Verdict::Refused { problem, tenant: None });
                return (places, verdicts);
            }
            Err(Absent::ComeBack { after_ms }) => {
                let verdicts = later(config::millis(after_ms), Cause::Starting);
                return (places, verdicts);
            }
            // Messages that are given back count against the stream's limit: those of one frozen tenant would in the end
            // hold up everybody's. So they are kept aside, and are replayed once a person has looked.
            Err(Absent::Frozen) if cursor.is_some() => {
                let problem = text::unreadable(Refusal::TenantFrozen, explanation(Refusal::TenantFrozen));
                let verdicts = all(Verdict::Refused { problem, tenant: Some(tenant) });
                return (places, verdicts);
            }
            Err(Absent::Frozen) => {
                let verdicts = later(COME_BACK_FROZEN, Cause::Frozen);
                return (places, verdicts);
            }
        };
        let verdicts = match handle.record(events, Origin { cursor, request_id }, patience).await {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| Verdict::of(outcome, tenant)).collect(),
            Err(Unavailable::ComeBack) => later(COME_BACK, Cause::Starting),
            Err(Unavailable::Saturated) => later(COME_BACK, Cause::Saturated),
            Err(Unavailable::TimedOut) => later(COME_BACK, Cause::TimedOut),
        };
        (places, verdicts)
    }

    async fn quarantine(&self, consignments: &[Consignment], verdicts: &[Vec<Verdict>]) -> Result<(), Refused> {
        let now = self.clock.now();
        let mut rows = Vec::new();
        for (consignment, verdicts) in consignments.iter().zip(verdicts) {
            for (item, verdict) in consignment.items.iter().zip(verdicts) {
                if let Verdict::Refused { problem, tenant } = verdict {
                    let arrival = &consignment.arrival;
                    rows.push(quarantine::row(
                        clock::new_id(),
                        arrival,
                        consignment.reporter,
                        &item.raw,
                        problem,
                        *tenant,
                        now,
                    ));
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let reasons: Vec<&'static str> = rows.iter().map(|row| row.reason.code()).collect();
        match self.directory.quarantine(rows).await {
            Ok(()) => {
                for reason in reasons {
                    metrics::counter!("platform_api_quarantined_total", "reason" => reason).increment(1);
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, events = reasons.len(), "the quarantine could not be written");
                Err(error)
            }
        }
    }
}

/// Where an item stands: which consignment, and which of its items.
type Place = (usize, usize);

/// The events of one tenant, with what their tenant is told about where they come from.
#[derive(Default)]
struct Group {
    places: Vec<Place>,
    events: Vec<UsageEvent>,
    cursor: Option<Cursor>,
    request_id: String,
    patience: Duration,
}

impl Group {
    fn add(&mut self, place: Place, event: UsageEvent, consignment: &Consignment) {
        self.places.push(place);
        self.events.push(event);
        let sequence = |cursor: &Option<Cursor>| cursor.as_ref().map(|cursor| cursor.sequence);
        if sequence(&consignment.cursor) > sequence(&self.cursor) {
            self.cursor = consignment.cursor.clone();
        }
        if self.request_id.is_empty() {
            self.request_id = consignment.arrival.request_id.clone();
        }
        self.patience = self.patience.max(consignment.arrival.patience);
    }
}

/// What is known of an item before the quarantine is written.
#[derive(Debug, Clone)]
enum Verdict {
    Counted(ItemOutcome),
    /// Belongs in quarantine; `tenant` is known beyond doubt.
    Refused {
        problem: Unreadable,
        tenant: Option<TenantId>,
    },
    Later(NotNow),
}

impl Verdict {
    fn of(outcome: Outcome, tenant: TenantId) -> Verdict {
        match outcome {
            Outcome::Accepted => Verdict::Counted(ItemOutcome::Accepted),
            Outcome::Duplicate => Verdict::Counted(ItemOutcome::Duplicate),
            Outcome::Conflict => Verdict::Counted(ItemOutcome::Conflict),
            Outcome::Refused(reason) => {
                Verdict::Refused { problem: text::unreadable(reason, explanation(reason)), tenant: Some(tenant) }
            }
        }
    }

    fn settled(self) -> Settled {
        match self {
            Verdict::Counted(outcome) => Settled::Done(outcome),
            Verdict::Refused { problem, .. } => {
                Settled::Done(ItemOutcome::Rejected { code: problem.reason.code(), message: problem.detail })
            }
            Verdict::Later(not_now) => Settled::Later(not_now),
        }
    }
}

impl Settled {
    fn into_result(self) -> Result<ItemOutcome, NotNow> {
        match self {
            Settled::Done(outcome) => Ok(outcome),
            Settled::Later(not_now) => Err(not_now),
        }
    }
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
        Refusal::TenantFrozen => "its tenant's database needs a person; replay it after that",
    }
}

/// The bounded label of a door: `http`, `nats`.
fn door(origin: &str) -> &'static str {
    if origin.starts_with("nats:") { "nats" } else { "http" }
}

fn tally(settled: &Settled, item: &Item, door: &'static str) {
    let outcome = match settled {
        Settled::Done(ItemOutcome::Accepted) => "accepted",
        Settled::Done(ItemOutcome::Duplicate) => "duplicate",
        Settled::Done(ItemOutcome::Conflict) => "conflict",
        Settled::Done(ItemOutcome::Rejected { .. }) => "refused",
        Settled::Later(_) => "unavailable",
    };
    metrics::counter!("platform_api_usage_events_total", "outcome" => outcome, "door" => door).increment(1);
    let from_litellm = item.reading.as_ref().is_ok_and(|parsed| parsed.event.source == litellm::SOURCE);
    if from_litellm && matches!(settled, Settled::Done(ItemOutcome::Duplicate)) {
        metrics::counter!("platform_api_litellm_surplus_copies_total").increment(1);
    }
}
