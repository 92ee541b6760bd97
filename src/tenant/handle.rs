//! The typed doorbell of a tenant: permits before the send, a time-out on every call, one mapping of errors.
//!
//! ractor's mailboxes are unbounded, so the bound is here: a batch takes permits counted in events and in bytes before
//! it is sent; they travel in the message and drop after the commit.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, ActorStatus, MessagingErr, RpcReplyPort};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::message::{
    Audit, Batch, ChangeRefused, Decided, Description, Gateway, GatewayBatch, GatewayReadings, Life, Message, Notice,
    Permits, QuotaDraft, QuotaMessage, ReadFailure, Reconciliation, ReplaceQuotas, TreatFinding, Usage,
};
use super::pulse::Pulse;
use super::task::{Change, Render, Task, Told};
use crate::clock::Clock;
use crate::domain::adjustment::Adjustment;
use crate::domain::books::{Books, Cursor};
use crate::domain::chain::Entry;
use crate::domain::flag::ledger::FlagBooks;
use crate::domain::ids::{FindingId, TenantId};
use crate::domain::notice::{Attempt, Delivery, Firing};
use crate::domain::organization::Organization;
use crate::domain::policy::books::PolicyBooks;
use crate::domain::quota::Standing;
use crate::domain::reconcile::finding::Finding;
use crate::domain::reconcile::pass::Treatment;
use crate::domain::reconcile::reading::{GatewayRequest, Interruption, MeterReading};
use crate::domain::reconcile::report::{FindingPage, FindingQuery, Overview, WindowPage, WindowQuery};
use crate::domain::report::{
    AlertPage, AlertQuery, ChainQuery, ChainReport, LedgerQuery, LedgerRow, MessagePage, MessageQuery, Page,
    UsageQuery, UsageRow,
};
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, Outcome, Subject, UsageEvent};
use crate::store::audit::StoredRecord;

/// How long a question to memory may take before the caller is told to come back.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a change or a slow read may take. The outcome of a change that times out is unknown to the caller.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(25);

/// Requests of a gateway in one message; a longer batch is sent in parts.
pub const GATEWAY_REQUESTS_MAX: usize = 1_000;
/// Readings of a gateway's meters, and interruptions, in one message; a longer batch is sent in parts.
pub const GATEWAY_READINGS_MAX: usize = 1_000;

/// Events whose identities are made in one poll: some tenths of a millisecond.
const IDENTITIES_A_POLL: usize = 500;

/// How long readings wait for room.
const READINGS_PATIENCE: Duration = Duration::from_secs(5);

/// Why a tenant gave no answer. Never a verdict about the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// It is starting, restarting or leaving: ask again soon.
    #[error("the tenant is starting")]
    ComeBack,
    /// As many events are waiting as it may have.
    #[error("the tenant is saturated")]
    Saturated,
    /// It did not answer in time; whether a change was made is unknown.
    #[error("the tenant did not answer in time")]
    TimedOut,
}

/// Where a batch of events comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The stream position that is read once these are committed; `None` over HTTP.
    pub cursor: Option<Cursor>,
    /// `X-Request-Id` of the request, or empty.
    pub request_id: String,
}

/// How many events and bytes may wait in one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub events: usize,
    pub kibibytes: usize,
    /// Events of one message; a longer batch is sent in parts.
    pub message_events: usize,
}

/// A tenant's doorbell. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    tenant: TenantId,
    actor: ActorRef<Message>,
    clock: Clock,
    bounds: Bounds,
    pulse: Arc<Pulse>,
    events: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

impl Handle {
    pub(crate) fn new(
        tenant: TenantId,
        actor: ActorRef<Message>,
        clock: Clock,
        bounds: Bounds,
        pulse: Arc<Pulse>,
    ) -> Handle {
        Handle {
            tenant,
            actor,
            clock,
            bounds,
            pulse,
            events: Arc::new(Semaphore::new(bounds.events)),
            kibibytes: Arc::new(Semaphore::new(bounds.kibibytes)),
        }
    }

    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Permits that are free, in events: what a metric shows.
    #[must_use]
    pub fn free_events(&self) -> usize {
        self.events.available_permits()
    }

    /// What the tenant shows without being asked.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The present, noted as a sign that somebody uses this tenant.
    fn heard(&self) -> Timestamp {
        let now = self.clock.now();
        self.pulse.hear(now);
        now
    }

    pub(crate) fn actor(&self) -> &ActorRef<Message> {
        &self.actor
    }

    /// Counts `events`; answers one outcome per event, in order, after the commit. Waits up to `patience` for room.
    ///
    /// # Errors
    /// [`Unavailable`]; the outcome is then unknown, and sending the same events again is safe.
    pub async fn record(
        &self,
        events: Vec<UsageEvent>,
        origin: Origin,
        patience: Duration,
    ) -> Result<Vec<Outcome>, Unavailable> {
        let mut outcomes = Vec::with_capacity(events.len());
        let mut rest = events;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(self.bounds.message_events));
            let bytes = rest.iter().map(|event| event.memory_bytes() + size_of::<Identity>()).sum();
            let permits = self.permits(rest.len(), bytes, patience).await?;
            let batch = Batch {
                identities: identities(&rest).await,
                events: rest,
                cursor: origin.cursor.clone().filter(|_| later.is_empty()),
                request_id: origin.request_id.clone(),
                now: self.heard(),
                permits,
                span: tracing::Span::current(),
            };
            outcomes.extend(self.ask(WORK_TIMEOUT, |reply| Message::Usage(Usage::Record { batch, reply })).await?);
            rest = later;
        }
        Ok(outcomes)
    }

    async fn permits(&self, events: usize, bytes: usize, patience: Duration) -> Result<Permits, Unavailable> {
        let wanted = |amount: usize, most: usize| u32::try_from(amount.clamp(1, most)).unwrap_or(u32::MAX);
        let kibibytes = wanted(bytes.div_ceil(1024), self.bounds.kibibytes);
        let events = wanted(events, self.bounds.events);
        let both = async {
            let events = self.events.clone().acquire_many_owned(events).await;
            let kibibytes = self.kibibytes.clone().acquire_many_owned(kibibytes).await;
            (events, kibibytes)
        };
        match tokio::time::timeout(patience, both).await {
            Ok((Ok(events), Ok(kibibytes))) => Ok(Permits { _events: events, _kibibytes: kibibytes }),
            // The semaphores are never closed; a closed one would mean that the tenant is gone.
            Ok(_) => Err(Unavailable::ComeBack),
            Err(_) => Err(Unavailable::Saturated),
        }
    }

    /// Keeps a gateway's requests; answers for each, in order, after the commit, whether it is new. Waits up to `patience`
    /// for room, which requests share with events. No text may hold a NUL or be longer than
    /// [`READING_TEXT_BYTES_MAX`](crate::domain::reconcile::reading::READING_TEXT_BYTES_MAX).
    ///
    /// # Errors
    /// [`Unavailable`]; the outcome is then unknown, and sending the same requests again is safe.
    pub async fn gateway_requests(
        &self,
        requests: Vec<GatewayRequest>,
        request_id: String,
        patience: Duration,
    ) -> Result<Vec<bool>, Unavailable> {
        let mut new = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(GATEWAY_REQUESTS_MAX));
            let bytes = rest.iter().map(GatewayRequest::memory_bytes).sum();
            let permits = self.permits(rest.len(), bytes, patience).await?;
            let batch = GatewayBatch { requests: rest, request_id: request_id.clone(), now: self.heard(), permits };
            new.extend(self.ask(WORK_TIMEOUT, |reply| Message::Gateway(Gateway::Requests { batch, reply })).await?);
            rest = later;
        }
        Ok(new)
    }

    /// Reads a gateway's meters. They are looked at whether or not anybody uses the tenant, so this is no sign that
    /// somebody does: a tenant that only this is heard of may rest.
    ///
    /// # Errors
    /// [`Unavailable`]; the outcome is then unknown, and sending the same readings again is safe: a meter that shows what
    /// it showed adds nothing.
    pub async fn gateway_readings(
        &self,
        readings: Vec<MeterReading>,
        interruptions: Vec<Interruption>,
    ) -> Result<(), Unavailable> {
        let (mut readings, mut interruptions) = (readings, interruptions);
        while !readings.is_empty() || !interruptions.is_empty() {
            let later = readings.split_off(readings.len().min(GATEWAY_READINGS_MAX));
            let later_too = interruptions.split_off(interruptions.len().min(GATEWAY_READINGS_MAX));
            let count = readings.len() + interruptions.len();
            let bytes = count * size_of::<MeterReading>();
            let permits = self.permits(count, bytes, READINGS_PATIENCE).await?;
            let readings_now = GatewayReadings { readings, interruptions, now: self.clock.now(), permits };
            let message = |reply| Message::Gateway(Gateway::Readings { readings: readings_now, reply });
            self.ask(WORK_TIMEOUT, message).await?;
            (readings, interruptions) = (later, later_too);
        }
        Ok(())
    }

    /// How every quota stands now.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn standings(&self) -> Result<Vec<Standing>, Unavailable> {
        let now = self.heard();
        Ok(self.committed(now)?.standings(now))
    }

    /// What a gateway should do with a request attributed to `subject`. Asked in a gateway's own request path, so it is
    /// judged here, by the books that the keeper published with its last commit, and waits for no mailbox.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn decide(&self, subject: &Subject) -> Result<Decided, Unavailable> {
        let now = self.heard();
        let books = self.committed(now)?;
        let revoked = books.organization.revoked(&subject.user, &subject.group);
        let model_is_allowed = books.allows_model(subject);
        Ok(Decided { decision: books.decide(subject, now), revoked, model_is_allowed, epoch: books.epoch })
    }

    /// The tenant's people, as of the last commit. Answered here, as [`decide`](Handle::decide) is.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn organization(&self) -> Result<Arc<Organization>, Unavailable> {
        self.heard();
        Ok(self.published()?.organization.clone())
    }

    /// The tenant's people with its own roles and policies, of the same commit. Answered here, as
    /// [`decide`](Handle::decide) is.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn policies(&self) -> Result<(Arc<Organization>, Arc<PolicyBooks>), Unavailable> {
        self.heard();
        let books = self.published()?;
        Ok((books.organization.clone(), books.policies.clone()))
    }

    /// The tenant's feature flags, and how often what was served, as of the last commit. Waits for nobody.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn flags(&self) -> Result<Arc<FlagBooks>, Unavailable> {
        self.heard();
        Ok(self.published()?.flags.clone())
    }

    /// The books of the last commit, while there is a keeper who vouches for them. One that is still starting does: it was
    /// born with the books it has published. When the clock was set back into a period that they do not know, nobody is
    /// told that nothing was used there: a sweep is about to have it read.
    fn committed(&self, now: Timestamp) -> Result<Arc<Books>, Unavailable> {
        let books = self.published()?;
        if books.knows_running(now) { Ok(books) } else { Err(Unavailable::ComeBack) }
    }

    /// What was committed last, for somebody who uses the tenant. Waits for nobody.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub(super) fn books_in_use(&self) -> Result<Arc<Books>, Unavailable> {
        self.heard();
        self.published()
    }

    /// What was committed last, while there is a keeper who vouches for it.
    fn published(&self) -> Result<Arc<Books>, Unavailable> {
        if let ActorStatus::Draining | ActorStatus::Stopping | ActorStatus::Stopped = self.actor.get_status() {
            return Err(Unavailable::ComeBack);
        }
        Ok(self.pulse.books())
    }

    /// Replaces the set of quotas; answers how the new ones stand.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ChangeRefused`].
    pub async fn replace_quotas(
        &self,
        quotas: Vec<QuotaDraft>,
        request: Request,
        render: fn(&[Standing]) -> String,
    ) -> Result<Result<Answer<Vec<Standing>>, ChangeRefused>, Unavailable> {
        let change = ReplaceQuotas { quotas, request, now: self.heard(), render };
        self.ask(WORK_TIMEOUT, |reply| Message::Quota(QuotaMessage::Replace { change, reply })).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn usage_report(&self, query: UsageQuery) -> Result<Result<Vec<UsageRow>, ReadFailure>, Unavailable> {
        self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Usage(Usage::Report { query, reply })).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn ledger(&self, query: LedgerQuery) -> Result<Result<Page<LedgerRow>, ReadFailure>, Unavailable> {
        self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Usage(Usage::Page { query, reply })).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn alerts(&self, query: AlertQuery) -> Result<Result<AlertPage, ReadFailure>, Unavailable> {
        self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Notice(Notice::Alerts { query, reply })).await
    }

    /// What was owed to the channels, and what became of it.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn messages(&self, query: MessageQuery) -> Result<Result<MessagePage, ReadFailure>, Unavailable> {
        self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Notice(Notice::Messages { query, reply })).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn audit_page(&self, query: ChainQuery) -> Result<Result<Page<StoredRecord>, ReadFailure>, Unavailable> {
        self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Audit(Audit::Page { query, reply })).await
    }

    /// Recomputes the whole chain and what it says was counted. Whoever stops waiting ends it.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn audit_verify(&self, within: Duration) -> Result<Result<ChainReport, ReadFailure>, Unavailable> {
        self.heard();
        let stop = CancellationToken::new();
        let _stops = stop.clone().drop_guard();
        self.ask(within, |reply| Message::Audit(Audit::Verify { stop, reply })).await
    }

    /// How the books compare with what gateways say.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn reconciliation(&self) -> Result<Result<Overview, ReadFailure>, Unavailable> {
        let now = self.heard();
        let message = |reply| Message::Reconciliation(Reconciliation::Overview { now, reply });
        self.ask(WORK_TIMEOUT, message).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn findings(&self, query: FindingQuery) -> Result<Result<FindingPage, ReadFailure>, Unavailable> {
        self.heard();
        let message = |reply| Message::Reconciliation(Reconciliation::Findings { query, reply });
        self.ask(WORK_TIMEOUT, message).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn finding(&self, id: FindingId) -> Result<Result<Option<Finding>, ReadFailure>, Unavailable> {
        self.heard();
        let message = |reply| Message::Reconciliation(Reconciliation::Finding { id, reply });
        self.ask(WORK_TIMEOUT, message).await
    }

    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn compared_windows(&self, query: WindowQuery) -> Result<Result<WindowPage, ReadFailure>, Unavailable> {
        self.heard();
        let message = |reply| Message::Reconciliation(Reconciliation::Windows { query, reply });
        self.ask(WORK_TIMEOUT, message).await
    }

    /// Does with a finding what a person asks for; answers the finding as it stands then.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ChangeRefused`].
    pub async fn treat_finding(
        &self,
        finding: FindingId,
        treatment: Treatment,
        reason: String,
        adjustment: Option<Adjustment>,
        request: Request,
        render: fn(&Finding) -> String,
    ) -> Result<Result<Answer<Finding>, ChangeRefused>, Unavailable> {
        let change = TreatFinding { finding, treatment, reason, adjustment, request, now: self.heard(), render };
        let change = Box::new(change);
        let message = |reply| Message::Reconciliation(Reconciliation::Treat { change, reply });
        self.ask(WORK_TIMEOUT, message).await
    }

    /// Makes a resource's change; answers after the commit.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it why the change was not made.
    pub async fn change<C: Change>(
        &self,
        change: C,
        request: Request,
        render: Render<C>,
    ) -> Result<Told<C>, Unavailable> {
        let now = self.heard();
        self.ask(WORK_TIMEOUT, |reply| Message::Change(Task::new(change, request, render, now, reply))).await
    }

    /// Appends a record to the chain; with a `once` key, at most one is ever appended for that key.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn append(&self, entry: Entry, once: Option<String>) -> Result<(), Unavailable> {
        let now = self.clock.now();
        self.ask(WORK_TIMEOUT, |reply| Message::Audit(Audit::Append { entry, once, now, reply })).await
    }

    /// Deliveries that are due, oldest first.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ReadFailure`].
    pub async fn due(&self, limit: usize) -> Result<Result<Vec<Delivery>, ReadFailure>, Unavailable> {
        let now = self.clock.now();
        self.ask(WORK_TIMEOUT, |reply| Message::Notice(Notice::Due { now, limit, reply })).await
    }

    /// Alerts that fire now, and who was told of them.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn firing(&self) -> Result<Vec<Firing>, Unavailable> {
        self.ask(LOOKUP_TIMEOUT, |reply| Message::Notice(Notice::Firing { reply })).await
    }

    /// Records how attempts to deliver ended.
    ///
    /// # Errors
    /// [`Unavailable`]; the attempts may then be made again, and receivers deduplicate by the delivery's id.
    pub async fn settle(&self, attempts: Vec<Attempt>) -> Result<(), Unavailable> {
        let now = self.clock.now();
        self.ask(WORK_TIMEOUT, |reply| Message::Notice(Notice::Settle { attempts, now, reply })).await
    }

    /// # Errors
    /// [`Unavailable`].
    pub async fn describe(&self) -> Result<Description, Unavailable> {
        let now = self.clock.now();
        self.ask(LOOKUP_TIMEOUT, |reply| Message::Life(Life::Describe { now, reply })).await
    }

    /// Moves the tenant to another calendar, with its record in the chain; once per `once` key.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`ChangeRefused`].
    pub async fn change_time_zone(
        &self,
        name: String,
        entry: Entry,
        once: String,
    ) -> Result<Result<(), ChangeRefused>, Unavailable> {
        let now = self.clock.now();
        self.ask(WORK_TIMEOUT, |reply| Message::Life(Life::ChangeTimeZone { name, entry, once, now, reply })).await
    }

    /// Asks and maps the three ways of getting no answer, once for all.
    pub(crate) async fn ask<T>(
        &self,
        timeout: Duration,
        message: impl FnOnce(RpcReplyPort<T>) -> Message,
    ) -> Result<T, Unavailable>
    where
        T: Send + 'static,
    {
        let (sender, receiver) = ractor::concurrency::oneshot();
        match self.actor.cast(message(sender.into())) {
            Ok(()) => {}
            Err(MessagingErr::SendErr(_) | MessagingErr::ChannelClosed | MessagingErr::InvalidActorType) => {
                return Err(Unavailable::ComeBack);
            }
        }
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            // The actor ended with our message in its mailbox or its hands: doubt is a restart.
            Ok(Err(_)) => Err(Unavailable::ComeBack),
            Err(_) => Err(Unavailable::TimedOut),
        }
    }
}

/// Who the events are, while the writer is still busy with those before; other tasks get their turns in between.
async fn identities(events: &[UsageEvent]) -> Vec<Identity> {
    let mut identities = Vec::with_capacity(events.len());
    for some in events.chunks(IDENTITIES_A_POLL) {
        identities.extend(some.iter().map(UsageEvent::identity));
        tokio::task::yield_now().await;
    }
    identities
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}
