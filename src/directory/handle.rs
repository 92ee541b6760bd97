//! The directory's doorbell: who is home, what the catalogue knows, and changes to it.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use super::api_key::NewKey;
use super::api_key::key_record;
use super::crowd::Caller;
use super::heartbeat::Pacemaker;
use super::index::Index;
use super::registrar::{self, Change, Edit, What, Written};
use super::supervisor::{self, Homes};
use super::task::{self, Task};
use super::workflow::{self, Plan, PlannedRecord};
use crate::clock::Clock;
use crate::domain::api_key::{self, ApiKey};
use crate::domain::chain::Entry;
use crate::domain::ids::TenantId;
use crate::domain::period;
use crate::domain::report::{ChainQuery, ChainReport, Page, Quarantined, Retried, Share};
use crate::domain::request::{Answer, Request};
use crate::domain::stream::Checkpoint;
use crate::domain::tenant::{ExternalId, Lifecycle, Tenant};
use crate::domain::usage::Refusal;
use crate::store::audit::StoredRecord;
use crate::store::database::{Reader, Store};
use crate::store::{StoreError, audit, catalogue, quarantine, stream};
use crate::tenant;

/// Longest slug we derive, leaving room for a number.
const SLUG_DERIVED_MAX: usize = 48;
/// How long what other nodes have changed is waited for.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a look-up waits for a resting tenant to open before the caller is told to come back.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the registrar may take for one message.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of events that may be on their way to the quarantine, and what an event weighs beside its body.
pub(super) const QUARANTINE_BYTES_MAX: usize = 64 * 1024 * 1024;
const ROW_BYTES: usize = 1_024;
/// How long such an event waits for room before its bringer is told to come back.
const QUARANTINE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a tenant cannot be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// No such tenant, or one that is not served (pending, archived). Indistinguishable on purpose.
    #[error("no such tenant")]
    Unknown,
    /// It is starting, restarting after a failure, or all places are taken: ask again after this long.
    #[error("the tenant is starting")]
    ComeBack { after_ms: u64 },
    /// Another node has taken it over. Asked for again after this long, it is taken back.
    #[error("the tenant is served by another node")]
    Elsewhere { after_ms: u64 },
    /// Its database is missing, swapped, corrupt or behind. It stays so until a person has looked.
    #[error("the tenant is frozen")]
    Frozen,
}

/// Why a change to the catalogue was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no such tenant")]
    UnknownTenant,
    #[error("no such API key")]
    UnknownKey,
    #[error("the slug is taken")]
    SlugTaken,
    /// The external id at this index belongs to another tenant.
    #[error("the external id belongs to another tenant")]
    ExternalIdTaken { index: usize },
    #[error("a tenant that is {} cannot become {}", from.name(), to.name())]
    IllegalMove { from: Lifecycle, to: Lifecycle },
    #[error("not an IANA time zone")]
    UnknownTimeZone,
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The tenant has as many live keys as it may have.
    #[error("too many API keys")]
    TooManyKeys,
    #[error("the API key is not changed: {0:?}")]
    Key(api_key::Refusal),
    /// The catalogue or the tenant could not be reached; whether the change was made is unknown, asking again is safe.
    #[error("the change could not be completed: {0}")]
    Unavailable(String),
}

/// A tenant to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTenant {
    pub name: String,
    /// Derived from the name when absent.
    pub slug: Option<String>,
    pub tier: String,
    pub time_zone: String,
    pub external_ids: Vec<ExternalId>,
    /// A JSON object as text.
    pub settings: String,
}

/// What to change; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amendment {
    pub name: Option<String>,
    pub tier: Option<String>,
    pub time_zone: Option<String>,
    pub external_ids: Option<Vec<ExternalId>>,
    pub settings: Option<String>,
}

/// A finished onboarding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onboarded {
    pub tenant: Tenant,
    pub admin_key: ApiKey,
}

/// The directory's doorbell. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Parts>);

pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) index: Arc<Index>,
    pub(super) homes: Arc<Homes>,
    pub(super) registrar: ActorRef<registrar::Message>,
    pub(super) supervisor: ActorRef<supervisor::Message>,
    pub(super) clock: Clock,
    pub(super) exposures: super::flag::Exposures,
    /// Rings when there may be background work.
    pub(super) job_bell: Notify,
    /// What workers of this process hold.
    pub(super) held: Arc<super::jobs::Held>,
    /// Changes that are being made.
    pub(super) changes: workflow::Changes,
    /// In bytes: what is on its way to the quarantine, also what nobody waits for any more.
    pub(super) quarantine_room: Arc<Semaphore>,
    pub(super) pacemaker: Pacemaker,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("directory::Handle")
    }
}

impl Handle {
    pub(super) fn new(parts: Parts) -> Handle {
        let parts = Arc::new(parts);
        super::flag::keep_flushing(Arc::downgrade(&parts));
        super::key_use::keep_writing(Arc::downgrade(&parts));
        Handle(parts)
    }

    pub(super) fn of(parts: Arc<Parts>) -> Handle {
        Handle(parts)
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.0
    }

    // ---- who is home: memory only ----

    /// The tenant's doorbell; opens it if it rests.
    ///
    /// # Errors
    /// [`Absent`].
    pub async fn find(&self, tenant: TenantId) -> Result<tenant::handle::Handle, Absent> {
        match self.lifecycle(tenant) {
            Some(lifecycle) if registrar::is_served(lifecycle) => self.open(tenant).await,
            _ => Err(Absent::Unknown),
        }
    }

    /// As [`find`](Handle::find), for a tenant that need not be served: workflows open pending and archived ones.
    pub(super) async fn open(&self, tenant: TenantId) -> Result<tenant::handle::Handle, Absent> {
        self.visit(tenant, Caller::guest).await
    }

    /// As [`find`](Handle::find), for what this node has to do there by itself: what another node holds is left to that.
    ///
    /// # Errors
    /// [`Absent`].
    pub async fn return_to(&self, tenant: TenantId) -> Result<tenant::handle::Handle, Absent> {
        match self.lifecycle(tenant) {
            _ if self.is_elsewhere(tenant) => Err(Absent::Elsewhere { after_ms: 0 }),
            Some(lifecycle) if registrar::is_served(lifecycle) => self.visit(tenant, Caller::resident).await,
            _ => Err(Absent::Unknown),
        }
    }

    async fn visit(
        &self,
        tenant: TenantId,
        caller: fn(RpcReplyPort<Result<tenant::handle::Handle, Absent>>) -> Caller,
    ) -> Result<tenant::handle::Handle, Absent> {
        if let Some(home) = self.0.homes.get(tenant) {
            return Ok(home);
        }
        let (sender, receiver) = ractor::concurrency::oneshot();
        let gone = Absent::ComeBack { after_ms: 1_000 };
        if self.0.supervisor.cast(supervisor::Message::Find { tenant, caller: caller(sender.into()) }).is_err() {
            return Err(gone);
        }
        match tokio::time::timeout(FIND_TIMEOUT, receiver).await {
            Ok(Ok(answer)) => answer,
            _ => Err(gone),
        }
    }

    /// Every tenant that is open now.
    #[must_use]
    pub fn open_tenants(&self) -> Vec<tenant::handle::Handle> {
        self.0.homes.all()
    }

    /// Has another node a tenant, as far as was noticed here? It is that node's to tell about.
    #[must_use]
    pub fn is_elsewhere(&self, tenant: TenantId) -> bool {
        self.0.homes.is_elsewhere(tenant)
    }

    /// The catalogue's row.
    #[must_use]
    pub fn tenant(&self, tenant: TenantId) -> Option<Tenant> {
        self.0.index.tenant(tenant)
    }

    /// Where the tenant is in its life, without the rest of its row.
    #[must_use]
    pub fn lifecycle(&self, tenant: TenantId) -> Option<Lifecycle> {
        self.0.index.lifecycle(tenant)
    }

    /// What `read` makes of the tenant's tier, without the rest of its row.
    #[must_use]
    pub fn tier<T>(&self, tenant: TenantId, read: impl FnOnce(&str) -> T) -> Option<T> {
        self.0.index.tier(tenant, read)
    }

    /// The tenant that owns the first of these external ids that anybody owns.
    #[must_use]
    pub fn attribute(&self, candidates: &[ExternalId]) -> Option<TenantId> {
        self.0.index.attribute(candidates)
    }

    /// Tenants in the order of their ids (which is the order of their making), after `after`.
    #[must_use]
    pub fn tenants(&self, after: Option<TenantId>, limit: usize) -> Page<Tenant, TenantId> {
        self.0.index.page(after, limit)
    }

    /// As [`tenants`](Handle::tenants), read from the control database: also those that another process has made, which
    /// this one need not know.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn stored_tenants(
        &self,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Vec<(TenantId, Lifecycle)>, Refused> {
        let mut reader = self.control_reader().await?;
        catalogue::lifecycles(&mut reader, after, limit).await.map_err(unavailable)
    }

    /// Learns what other nodes have changed in the catalogue until now, if there can be any; true when that was learnt. Who is
    /// unknown here may have been made there a moment ago.
    pub async fn catch_up(&self) -> bool {
        if self.0.store.followed_every().is_none() {
            return false;
        }
        let asked = self.register(|reply| registrar::Message::CatchUp { reply });
        matches!(tokio::time::timeout(CATCH_UP_TIMEOUT, asked).await, Ok(Ok(())))
    }

    /// How many tenants are in which state; a moment old.
    #[must_use]
    pub fn census(&self) -> Census {
        self.0.homes.census()
    }

    // ---- changes to the catalogue ----

    /// Provisions a tenant, all steps. `render` makes the answer that is kept for the idempotency key; it has no secret
    /// to put there.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn onboard(
        &self,
        new: NewTenant,
        admin_key: NewKey,
        request: Request,
        render: fn(&Onboarded) -> String,
    ) -> Result<Answer<Onboarded>, Refused> {
        if period::time_zone(&new.time_zone).is_none() {
            return Err(Refused::UnknownTimeZone);
        }
        let now = self.0.clock.now();
        let id = TenantId(crate::clock::new_id());
        let slug_is_derived = new.slug.is_none();
        let tenant = Tenant {
            id,
            slug: new.slug.unwrap_or_else(|| derive_slug(&new.name)),
            name: new.name,
            tier: new.tier,
            time_zone: new.time_zone,
            lifecycle: Lifecycle::Pending,
            external_ids: new.external_ids,
            settings: new.settings,
            created_at: now,
            updated_at: now,
        };
        let key = admin_key.into_key(id, api_key::Terms::default(), now);
        let what = What::Reserve { tenant, key, slug_is_derived };
        let idempotency = request.idempotency.clone();
        let plan = Box::new(move |written: &Written| {
            let mut records =
                vec![record(&request, "tenant.created", format!("tenant:{id}"), tenant_payload(&written.tenant))];
            records.extend(written.key.iter().map(|key| key_record(&request, "apiKey.created", key)));
            let plan = Plan { create: Some(written.tenant.time_zone.clone()), records, ..Plan::default() };
            match Onboarded::of(written.clone()) {
                Some(onboarded) => plan.answering(request.idempotency.as_ref(), || render(&onboarded)),
                None => plan,
            }
        });
        match workflow::run(self, Change { what, plan, idempotency }).await? {
            Answer::Replayed(answer) => Ok(Answer::Replayed(answer)),
            Answer::Fresh(written) => Onboarded::of(written)
                .map(Answer::Fresh)
                .ok_or_else(|| Refused::Unavailable("the first key was not written".into())),
        }
    }

    /// Changes what a tenant is called and how its calendar runs.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn amend(&self, tenant: TenantId, amendment: Amendment, request: Request) -> Result<Tenant, Refused> {
        if amendment.time_zone.as_deref().is_some_and(|name| period::time_zone(name).is_none()) {
            return Err(Refused::UnknownTimeZone);
        }
        let time_zone = amendment.time_zone.clone();
        self.edit(tenant, Edit::Amend(amendment), "tenant.amended", time_zone, request).await
    }

    /// Suspends, reactivates or archives a tenant.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::IllegalMove`] when the tenant cannot go there from where it is.
    pub async fn shift(&self, tenant: TenantId, to: Lifecycle, request: Request) -> Result<Tenant, Refused> {
        let action = match to {
            Lifecycle::Active => "tenant.reactivated",
            Lifecycle::Suspended => "tenant.suspended",
            Lifecycle::Archived => "tenant.archived",
            Lifecycle::Pending => "tenant.pending",
        };
        self.edit(tenant, Edit::Shift(to), action, None, request).await
    }

    async fn edit(
        &self,
        tenant: TenantId,
        edit: Edit,
        action: &'static str,
        time_zone: Option<String>,
        request: Request,
    ) -> Result<Tenant, Refused> {
        let destroy_keys = matches!(edit, Edit::Shift(Lifecycle::Archived));
        let plan = Box::new(move |written: &Written| {
            let payload = tenant_payload(&written.tenant);
            let records = vec![record(&request, action, format!("tenant:{tenant}"), payload)];
            Plan { time_zone, records, destroy_keys, ..Plan::default() }
        });
        let change = Change { what: What::Edit { tenant, edit }, plan, idempotency: None };
        match workflow::run(self, change).await? {
            Answer::Fresh(written) => Ok(written.tenant),
            Answer::Replayed(_) => Err(Refused::UnknownTenant),
        }
    }

    /// The catalogue in memory, for the resources that bring their changes whole.
    pub(super) fn index(&self) -> &Arc<Index> {
        &self.0.index
    }

    /// Makes a change of the platform's own; answers after the commit.
    ///
    /// # Errors
    /// Why the change was not made, or that nothing is known of it.
    pub async fn change<C: task::Change>(&self, change: C, request: Request, render: task::Render<C>) -> task::Told<C> {
        self.register(|reply| registrar::Message::Task(Task::new(change, request, render, reply))).await?
    }

    // ---- quarantine ----

    /// Keeps what could not be counted; durable when this returns. The same digest again is the same row. What is on its way
    /// is bounded: while the control database is silent, callers wait, and are told to come again. Beyond its owner's share
    /// an event is only counted.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn quarantine(&self, rows: Arc<[Quarantined]>, share: Share) -> Result<(), Refused> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes: usize = rows.iter().map(|row| row.body.len() + ROW_BYTES).sum();
        let bytes = u32::try_from(bytes.min(QUARANTINE_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.0.quarantine_room.clone().acquire_many_owned(bytes);
        let Ok(Ok(room)) = tokio::time::timeout(QUARANTINE_PATIENCE, room).await else {
            return Err(Refused::Unavailable("too much is on its way to the quarantine".to_owned()));
        };
        let room = OnItsWay::of(room);
        self.register(|reply| registrar::Message::Quarantine { rows, share, room, reply }).await
    }

    /// Newest first, before `before`. Without a tenant it lists all; `reason` filters.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn quarantined(
        &self,
        tenant: Option<TenantId>,
        reason: Option<Refusal>,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Page<Quarantined, Uuid>, Refused> {
        let mut reader = self.control_reader().await?;
        quarantine::page(&mut reader, tenant, reason, before, limit).await.map_err(unavailable)
    }

    /// One row of the quarantine.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn quarantined_one(&self, id: Uuid) -> Result<Option<Quarantined>, Refused> {
        let mut reader = self.control_reader().await?;
        quarantine::one(&mut reader, id).await.map_err(unavailable)
    }

    /// The row was counted on another try; recorded in the platform's chain.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn mark_replayed(&self, id: Uuid, request: Request) -> Result<(), Refused> {
        self.register(|reply| registrar::Message::MarkReplayed { id, request, reply }).await
    }

    /// How many quarantined rows wait for which tenant to be back.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn waiting_census(&self) -> Result<Vec<(TenantId, i64)>, Refused> {
        let mut reader = self.control_reader().await?;
        quarantine::waiting_census(&mut reader).await.map_err(unavailable)
    }

    /// The oldest rows that wait for a tenant to be back: at most `limit`, and no more than `bytes_max`, but one at least.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn waiting(&self, tenant: TenantId, limit: usize, bytes_max: i64) -> Result<Vec<Quarantined>, Refused> {
        let mut reader = self.control_reader().await?;
        quarantine::waiting(&mut reader, tenant, limit, bytes_max).await.map_err(unavailable)
    }

    /// Rows of one tenant were tried again by the daemon itself; one record in the platform's chain for all of them.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn retried(&self, tenant: TenantId, rows: Vec<Retried>) -> Result<(), Refused> {
        self.register(|reply| registrar::Message::Retried { tenant, rows, reply }).await
    }

    // ---- streams ----

    /// Where a stream has been read to.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn checkpoint(&self, name: &str) -> Result<Option<Checkpoint>, Refused> {
        let mut reader = self.control_reader().await?;
        stream::checkpoint(&mut reader, name).await.map_err(unavailable)
    }

    /// Keeps where a stream has been read to, in one transaction with records of what was noticed on the way.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn keep_checkpoint(&self, checkpoint: Checkpoint, entries: Vec<Entry>) -> Result<(), Refused> {
        self.register(|reply| registrar::Message::KeepCheckpoint { checkpoint, entries, reply }).await
    }

    // ---- the platform's chain ----

    /// Appends what no tenant's chain should hold to the platform's chain.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn append_platform(&self, entry: Entry) -> Result<(), Refused> {
        self.register(|reply| registrar::Message::AppendPlatform { entry, reply }).await
    }

    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn platform_audit_page(&self, query: ChainQuery) -> Result<Page<StoredRecord>, Refused> {
        let mut reader = self.control_reader().await?;
        audit::page(&mut reader, query).await.map_err(unavailable)
    }

    /// Recomputes the platform's chain.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn platform_audit_verify(&self) -> Result<ChainReport, Refused> {
        let mut reader = self.control_reader().await?;
        audit::verify(&mut reader, audit::PLATFORM_CHAIN).await.map_err(unavailable)
    }

    /// Recomputes a tenant's chain, and proves what it says was counted, without opening the tenant: its head is compared with
    /// what an open one has published, or with what the catalogue remembers. Ends early when `stop` says so.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn audit_verify_unopened(
        &self,
        tenant: TenantId,
        stop: &CancellationToken,
    ) -> Result<ChainReport, Refused> {
        let open = self.0.homes.get(tenant).map(|home| home.pulse().books().head);
        let witness = open.unwrap_or_else(|| self.0.index.head(tenant));
        let mut reader = self.0.store.reader(tenant).await.map_err(unavailable)?;
        audit::verify_books(&mut reader, audit::Books { tenant, witness, stop }).await.map_err(unavailable)
    }

    // ---- for the daemon ----

    /// Does the control database answer? The text is for people.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn probe(&self) -> Result<(), String> {
        self.register(|reply| registrar::Message::Probe { reply }).await.map_err(|error| error.to_string())
    }

    /// Every tenant commits what is waiting and leaves; nobody is opened any more. Then the registrar leaves.
    pub async fn drain(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.flush_exposures()).await.is_err() {
            tracing::warn!("not every count of what was served of feature flags was brought home in time");
        }
        if tokio::time::timeout(patience, self.write_key_uses()).await.is_err() {
            tracing::warn!("when API keys were last used was not written down in time");
        }
        if tokio::time::timeout(patience, self.0.changes.drain()).await.is_err() {
            tracing::warn!("not every change was finished in time; another node goes on with it, or the next start");
        }
        let (sender, receiver) = ractor::concurrency::oneshot();
        if self.0.supervisor.cast(supervisor::Message::Drain { reply: sender.into() }).is_ok()
            && !matches!(tokio::time::timeout(patience, receiver).await, Ok(Ok(())))
        {
            tracing::warn!("not every tenant has left in time; what was not committed comes back");
        }
        // What the tenants' ends left to remember is in the registrar's mailbox; a drain works it off.
        let _ = self.0.registrar.drain_and_wait(Some(REGISTER_TIMEOUT)).await;
        // And with what it has noted, the others know what is left.
        self.0.pacemaker.leave().await;
        let _ = self.0.supervisor.stop_and_wait(None, Some(REGISTER_TIMEOUT)).await;
    }

    pub(super) async fn create_database(&self, tenant: TenantId, time_zone: &str) -> Result<(), StoreError> {
        self.0.store.create_tenant(tenant, time_zone, self.0.clock.now()).await
    }

    /// Rings when there may be background work to look for. A hint: whoever waits for it looks now and then anyway.
    #[must_use]
    pub fn job_bell(&self) -> &Notify {
        &self.0.job_bell
    }

    /// A connection to read the control database with.
    pub(super) async fn control_reader(&self) -> Result<Reader, Refused> {
        self.0.store.control_reader().await.map_err(unavailable)
    }

    pub(super) async fn register<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<Result<T, Refused>>) -> registrar::Message,
    ) -> Result<T, Refused> {
        let (sender, receiver) = ractor::concurrency::oneshot();
        let silent = |why: &str| Refused::Unavailable(why.to_owned());
        self.0.registrar.cast(message(sender.into())).map_err(|_| silent("the registrar has left"))?;
        match tokio::time::timeout(REGISTER_TIMEOUT, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(silent("the registrar ended before it answered")),
            Err(_) => Err(silent("the control database did not answer in time")),
        }
    }
}

/// Room that rows take on their way to the quarantine.
#[derive(Debug)]
pub(super) struct OnItsWay(OwnedSemaphorePermit);

impl OnItsWay {
    fn of(permit: OwnedSemaphorePermit) -> OnItsWay {
        metrics::gauge!("platform_api_quarantine_waiting_bytes").increment(permit.num_permits() as f64);
        OnItsWay(permit)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        metrics::gauge!("platform_api_quarantine_waiting_bytes").decrement(self.0.num_permits() as f64);
    }
}

impl Onboarded {
    /// The tenant as it will be once its onboarding is finished.
    fn of(written: Written) -> Option<Onboarded> {
        let tenant = Tenant { lifecycle: Lifecycle::Active, ..written.tenant };
        written.key.map(|admin_key| Onboarded { tenant, admin_key })
    }
}

pub(super) fn unavailable(error: StoreError) -> Refused {
    Refused::Unavailable(error.to_string())
}

/// Lower-case letters and digits of the name, the rest as single hyphens; `tenant` when nothing is left.
fn derive_slug(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' })
        .collect();
    let words: Vec<&str> = plain.split('-').filter(|word| !word.is_empty()).collect();
    let slug: String = words.join("-").chars().take(SLUG_DERIVED_MAX).collect();
    match slug.trim_end_matches('-') {
        "" => "tenant".to_owned(),
        slug => slug.to_owned(),
    }
}

pub(super) fn record(request: &Request, action: &str, target: String, payload: String) -> PlannedRecord {
    PlannedRecord {
        actor: request.actor.clone(),
        action: action.to_owned(),
        target,
        request_id: request.request_id.clone(),
        payload,
    }
}

fn tenant_payload(tenant: &Tenant) -> String {
    let external_ids: Vec<serde_json::Value> = tenant
        .external_ids
        .iter()
        .map(|external| serde_json::json!({ "source": external.source, "kind": external.kind, "id": external.id }))
        .collect();
    serde_json::json!({
        "name": tenant.name,
        "slug": tenant.slug,
        "tier": tenant.tier,
        "timeZone": tenant.time_zone,
        "status": tenant.lifecycle.name(),
        "externalIds": external_ids,
    })
    .to_string()
}

/// How many tenants are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub registered: usize,
    pub open: usize,
    pub starting: usize,
    pub backing_off: usize,
    pub frozen: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_derived_from_names() {
        for (name, slug) in [("Acme Corp.", "acme-corp"), ("  --  ", "tenant"), ("Zoë & Söhne", "zo-s-hne"), ("A", "a")]
        {
            assert_eq!(derive_slug(name), slug, "{name:?}");
        }
        assert!(derive_slug(&"long name ".repeat(40)).len() <= SLUG_DERIVED_MAX);
    }
}
