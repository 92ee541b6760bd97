//! The registrar: owns the control database's write connection, and is the only writer of the catalogue.
//!
//! Nothing here is in a request's hot path, so its handlers await the database. Doubt is a reload: after an error whose
//! outcome is unknown the connection is dropped, and the next message opens it again and reads the catalogue anew.

use std::collections::HashMap;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use uuid::Uuid;

use super::handle::{OnItsWay, Refused};
use super::index::Index;
use super::platform_chain::{Beside, link};
use super::quarantine::Shares;
use super::task::Task;
use super::workflow::{self, Finish, Plan};
use crate::clock::{self, Clock};
use crate::domain::api_key::{self, ApiKey};
use crate::domain::chain::{Entry, EntryOutcome, Head};
use crate::domain::ids::{JobId, NodeId, TenantId};
use crate::domain::job::{Ending, Job};
use crate::domain::organization::Expected;
use crate::domain::report::{Fate, Quarantined, Retried, Share};
use crate::domain::request::{Idempotency, Request};
use crate::domain::stream::Checkpoint;
use crate::domain::tenant::{Lifecycle, Tenant};
use crate::domain::time::Timestamp;
use crate::fault;
use crate::store::catalogue::{self, Note};
use crate::store::database::{Connection, Store};
use crate::store::node::{self, Held};
use crate::store::{self, StoreError, flag, job, news, platform_admin, quarantine, request};

pub(super) struct Birth {
    pub(super) node: NodeId,
    pub(super) store: Store,
    pub(super) index: Arc<Index>,
    pub(super) clock: Clock,
    /// How long whoever makes a change may fall silent before another node goes on with it.
    pub(super) lease_micros: i64,
}

/// What the registrar is asked.
#[derive(Debug)]
pub(super) enum Message {
    /// Write a change and the job that finishes it, in one transaction.
    Begin {
        change: Box<Change>,
        reply: RpcReplyPort<Result<Begun, Refused>>,
    },
    /// Settle the job, and make the last of the change with it; false when it is another worker's by now.
    Finish {
        finish: Box<Finish>,
        reply: RpcReplyPort<Result<bool, Refused>>,
    },
    /// Read the catalogue anew: another node has written it.
    Reload {
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    Quarantine {
        rows: Arc<[Quarantined]>,
        share: Share,
        /// Given back with the message.
        room: OnItsWay,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    MarkReplayed {
        id: Uuid,
        request: Request,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    AppendPlatform {
        entry: Entry,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    /// How a stream has been read on, together with what was noticed on the way.
    KeepCheckpoint {
        checkpoint: Checkpoint,
        entries: Vec<Entry>,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    /// How quarantined rows of one tenant fared when they were tried again.
    Retried {
        tenant: TenantId,
        rows: Vec<Retried>,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    /// Remember how long a tenant's chain is, and whether the tenant is open.
    Remember {
        tenant: TenantId,
        note: Note,
    },
    /// Remember that a tenant is about to be opened here; answers the longest head of its chain that any node has noted. `None`
    /// when another node holds it, unless somebody `asked` this one for it.
    Hold {
        tenant: TenantId,
        asked: bool,
        reply: RpcReplyPort<Result<Option<Head>, Refused>>,
    },
    /// Which of these tenants have a longer chain than this, as another node has noted.
    Longer {
        heads: Vec<(TenantId, i64)>,
        reply: RpcReplyPort<Vec<(TenantId, i64)>>,
    },
    /// When API keys were last used.
    NoteKeyUses {
        uses: Vec<(String, Timestamp)>,
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    /// What a resource of the platform's brings whole; see [`super::task`].
    Task(Task),
    /// Look what other nodes have changed.
    Follow,
    /// The same, for somebody who waits for it.
    CatchUp {
        reply: RpcReplyPort<Result<(), Refused>>,
    },
    Probe {
        reply: RpcReplyPort<Result<(), Refused>>,
    },
}

/// A change to the catalogue, checked by the registrar against what is there when it is its turn.
pub(super) struct Change {
    pub(super) what: What,
    /// Plans what is left to do, from what was written.
    pub(super) plan: Box<dyn FnOnce(&Written) -> Plan + Send>,
    pub(super) idempotency: Option<Idempotency>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Change").field("what", &self.what).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// A new tenant, pending, and its first key.
    Reserve {
        tenant: Tenant,
        key: ApiKey,
        slug_is_derived: bool,
    },
    /// A tenant's row, changed by `edit`.
    Edit {
        tenant: TenantId,
        edit: Edit,
    },
    IssueKey {
        key: ApiKey,
    },
    RevokeKey {
        tenant: TenantId,
        id: String,
    },
    EditKey {
        tenant: TenantId,
        id: String,
        edit: api_key::Edit,
        expected: Expected,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Edit {
    Amend(super::handle::Amendment),
    Shift(Lifecycle),
}

/// What was written.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) tenant: Tenant,
    pub(super) key: Option<ApiKey>,
}

#[derive(Debug, Clone)]
pub(super) enum Begun {
    Now {
        written: Box<Written>,
        /// What is left to do, held by this node.
        job: Box<Job>,
    },
    /// The idempotency key was used before, for the same body: the stored answer.
    Before(String),
}

pub(super) struct Registrar;

pub(super) struct State {
    pub(super) birth: Birth,
    pub(super) connection: Option<Connection>,
    pub(super) platform_head: Head,
    /// The last change of the catalogue that the index shows.
    pub(super) version: i64,
    /// Looks at what other nodes have changed that have failed in a row.
    pub(super) failed_looks: i64,
    pub(super) told_of_tampering: bool,
    /// What could not be remembered of tenants, yet.
    pub(super) unremembered: HashMap<TenantId, Note>,
    shares: Shares,
}

/// Opens the control database and fills the index; answers the tenants that owed something when the last daemon ended,
/// if none but the last owner can have held them. Nor does anybody wait then for the lease of its jobs to be over.
pub(super) async fn load(birth: &Birth) -> Result<Vec<Held>, StoreError> {
    let mut connection = birth.store.control().await?;
    if birth.store.has_one_owner() {
        let left = job::let_go(&mut connection).await?;
        if left > 0 {
            tracing::info!(jobs = left, "what the last process was doing is gone on with at once");
        }
    }
    let (rows, keys) = catalogue::load(&mut connection).await?;
    let admins = platform_admin::all(&mut connection).await?;
    birth.index.uses.load(store::api_key::uses(&mut connection).await?);
    birth.index.put_flags(flag::all(&mut connection).await?);
    let was_ours = |row: &&catalogue::Row| birth.store.has_one_owner() && row.awake && is_served(row.tenant.lifecycle);
    let held = |row: &catalogue::Row| Held { tenant: row.tenant.id, head_seq: row.head.seq, is_orphan: true };
    let awake = rows.iter().filter(was_ours).map(held).collect();
    birth.index.load(rows.into_iter().map(|row| (row.tenant, row.head)).collect(), keys, admins);
    Ok(awake)
}

/// Does a tenant in this state have actors?
pub(super) fn is_served(lifecycle: Lifecycle) -> bool {
    matches!(lifecycle, Lifecycle::Active | Lifecycle::Suspended)
}

impl Actor for Registrar {
    type Msg = Message;
    type State = State;
    type Arguments = Birth;

    async fn pre_start(&self, myself: ActorRef<Message>, birth: Birth) -> Result<State, ActorProcessingErr> {
        if birth.store.followed_every().is_some() {
            let _ = myself.cast(Message::Follow);
        }
        Ok(State {
            birth,
            connection: None,
            platform_head: Head::EMPTY,
            version: 0,
            failed_looks: 0,
            told_of_tampering: false,
            unremembered: HashMap::new(),
            shares: Shares::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Begin { change, reply } => answer(reply, Box::pin(state.begin(*change)).await),
            Message::Finish { finish, reply } => answer(reply, Box::pin(state.finish(*finish)).await),
            Message::Reload { reply } => answer(reply, state.reload().await),
            // Whoever does not wait any more still has what it brought, and brings it again.
            Message::Quarantine { reply, .. } if reply.is_closed() => {}
            Message::Quarantine { rows, share, room, reply } => {
                answer(reply, state.quarantine(&rows, share).await);
                drop((rows, room));
            }
            Message::MarkReplayed { id, request, reply } => answer(reply, state.mark_replayed(id, &request).await),
            Message::AppendPlatform { entry, reply } => answer(reply, state.append(vec![entry], Beside::Nothing).await),
            // Who gave up sends it again, with what is recorded beside it.
            Message::KeepCheckpoint { reply, .. } if reply.is_closed() => {}
            Message::KeepCheckpoint { checkpoint, entries, reply } => {
                answer(reply, state.append(entries, Beside::Checkpoint(checkpoint)).await);
            }
            Message::Retried { tenant, rows, reply } => answer(reply, state.retried(tenant, rows).await),
            Message::Remember { tenant, note } => state.remember(tenant, note).await,
            // It is open by now, or about to be asked for again.
            Message::Hold { reply, .. } if reply.is_closed() => {}
            Message::Hold { tenant, asked, reply } => answer(reply, state.hold(tenant, asked).await),
            Message::Longer { heads, reply } => {
                let _ = reply.send(state.longer(&heads).await);
            }
            Message::NoteKeyUses { uses, reply } => answer(reply, state.note_key_uses(&uses).await),
            Message::Task(task) => Box::pin(state.task(task)).await,
            Message::Follow => {
                state.follow().await;
                if let Some(pause) = state.pause_of_looks() {
                    myself.send_after(pause, || Message::Follow);
                }
            }
            Message::CatchUp { reply } if reply.is_closed() => {}
            Message::CatchUp { reply } => answer(reply, state.look().await),
            Message::Probe { reply } => answer(reply, state.probe().await),
        }
        Ok(())
    }
}

fn answer<T>(reply: RpcReplyPort<Result<T, Refused>>, result: Result<T, Refused>) {
    let _ = reply.send(result);
}

pub(super) fn unavailable(error: &StoreError) -> Refused {
    Refused::Unavailable(error.to_string())
}

impl State {
    /// The connection, opened and with the catalogue read anew if the last one was dropped in doubt.
    pub(super) async fn connection(&mut self) -> Result<&mut Connection, Refused> {
        if self.connection.is_none() {
            let mut connection = self.birth.store.control_again().await.map_err(|error| unavailable(&error))?;
            // Others may have taken us to be gone meanwhile.
            if self.birth.store.followed_every().is_some() {
                let back = node::come_back(&mut connection, self.birth.node).await;
                back.map_err(|error| unavailable(&error))?;
            }
            // Before anything is read: what is changed meanwhile is read twice, and nothing is missed.
            self.version = news::version(&mut connection).await.map_err(|error| unavailable(&error))?;
            let (rows, keys) = catalogue::load(&mut connection).await.map_err(|error| unavailable(&error))?;
            let admins = platform_admin::all(&mut connection).await.map_err(|error| unavailable(&error))?;
            let flags = flag::all(&mut connection).await.map_err(|error| unavailable(&error))?;
            self.birth.index.put_flags(flags);
            self.platform_head = self.head_in(&mut connection).await.map_err(|error| unavailable(&error))?;
            self.birth.index.load(rows.into_iter().map(|row| (row.tenant, row.head)).collect(), keys, admins);
            self.connection = Some(connection);
        }
        // Just filled; an absent one here would be a slip of ours, told as what it is to the caller.
        self.connection.as_mut().ok_or_else(|| Refused::Unavailable("no connection to the control database".into()))
    }

    /// An error after `begin` leaves the connection, and what we believe the catalogue holds, in doubt.
    pub(super) fn doubt(&mut self, error: &StoreError) -> Refused {
        tracing::error!(%error, "the control database failed; its connection is opened anew");
        self.connection = None;
        unavailable(error)
    }

    async fn begin(&mut self, change: Change) -> Result<Begun, Refused> {
        self.begin_alone().await?;
        if let Some(idempotency) = &change.idempotency {
            // Alone, so that no other node finishes it between the question and the answer. Also one that a crash has interrupted, or that another node has. Looked for first: once it is finished, its
            // answer is there.
            if self.is_under_way(idempotency).await? {
                let running = "the first request with this idempotency key is still running";
                return self.refuse(Refused::Unavailable(running.into())).await;
            }
            match self.stored(idempotency).await {
                Ok(None) => {}
                Ok(Some(stored)) => {
                    self.give_up().await;
                    return Ok(Begun::Before(stored));
                }
                Err(refused) => return self.refuse(refused).await,
            }
        }
        let written = match self.check(&change.what) {
            Ok(written) => written,
            Err(refused) => return self.refuse(refused).await,
        };
        let plan = (change.plan)(&written);
        let (tenant, now, lease_micros) = (written.tenant.id, self.birth.clock.now(), self.birth.lease_micros);
        let job = plan.into_job(JobId(clock::new_id()), tenant, change.idempotency.as_ref(), now, lease_micros);
        if let Err(error) = self.write_change(&change.what, &written, &job).await {
            return Err(self.doubt(&error));
        }
        fault::point("change.begun");
        self.birth.index.put(written.tenant.clone());
        if let Some(key) = &written.key {
            self.birth.index.put_key(key.clone());
        }
        Ok(Begun::Now { written: Box::new(written), job: Box::new(job) })
    }

    async fn is_under_way(&mut self, idempotency: &Idempotency) -> Result<bool, Refused> {
        let connection = self.connection().await?;
        let found = job::by_key(connection, &workflow::job_key(&idempotency.key)).await;
        found.map(|job| job.is_some()).map_err(|error| self.doubt(&error))
    }

    async fn stored(&mut self, idempotency: &Idempotency) -> Result<Option<String>, Refused> {
        let connection = self.connection().await?;
        match request::find(connection, &idempotency.key).await {
            Ok(None) => Ok(None),
            Ok(Some((hash, answer))) if hash == idempotency.body_hash => Ok(Some(answer)),
            Ok(Some(_)) => Err(Refused::IdempotencyMismatch),
            Err(error) => Err(self.doubt(&error)),
        }
    }

    /// Checks a change against the catalogue as it is now; answers what would be written.
    fn check(&self, what: &What) -> Result<Written, Refused> {
        let index = &self.birth.index;
        let now = self.birth.clock.now();
        // Its records would have no chain to stand in: a tenant that is not made yet has no database.
        let made = |id| match known(index, id)? {
            tenant if tenant.lifecycle == Lifecycle::Pending => {
                Err(Refused::Unavailable("the tenant is still being made".into()))
            }
            tenant => Ok(tenant),
        };
        match what {
            What::Reserve { tenant, key, slug_is_derived } => {
                let mut tenant = tenant.clone();
                if index.slug_owner(&tenant.slug).is_some() {
                    if !slug_is_derived {
                        return Err(Refused::SlugTaken);
                    }
                    tenant.slug = self.free_slug(&tenant.slug);
                }
                self.check_external_ids(&tenant)?;
                Ok(Written { tenant, key: Some(key.clone()) })
            }
            What::Edit { tenant, edit } => {
                let mut tenant = known(index, *tenant)?;
                apply(&mut tenant, edit)?;
                tenant.updated_at = now;
                self.check_external_ids(&tenant)?;
                Ok(Written { tenant, key: None })
            }
            What::IssueKey { key } => {
                let tenant = made(key.tenant)?;
                self.place_for_key(key.tenant)?;
                Ok(Written { tenant, key: Some(key.clone()) })
            }
            What::RevokeKey { tenant, id } => {
                let tenant = made(*tenant)?;
                let mut key = index.key(id).filter(|key| key.tenant == tenant.id).ok_or(Refused::UnknownKey)?;
                key.revoked_at.get_or_insert(now);
                Ok(Written { tenant, key: Some(key) })
            }
            What::EditKey { tenant, id, edit, expected } => {
                let tenant = made(*tenant)?;
                let key = index.key(id).filter(|key| key.tenant == tenant.id).ok_or(Refused::UnknownKey)?;
                let edited = key.edited(edit, expected, now).map_err(Refused::Key)?;
                if key.ended(now).is_some() {
                    // It comes back to life, and takes a place again.
                    self.place_for_key(tenant.id)?;
                }
                Ok(Written { tenant, key: Some(edited) })
            }
        }
    }

    /// May another key of the tenant's live?
    fn place_for_key(&self, tenant: TenantId) -> Result<(), Refused> {
        let now = self.birth.clock.now();
        let live = self.birth.index.keys_of(tenant).iter().filter(|known| known.ended(now).is_none()).count();
        if live < super::api_key::API_KEYS_MAX { Ok(()) } else { Err(Refused::TooManyKeys) }
    }

    fn free_slug(&self, slug: &str) -> String {
        let numbered = (2..).map(|number| format!("{slug}-{number}"));
        numbered.into_iter().find(|slug| self.birth.index.slug_owner(slug).is_none()).unwrap_or_default()
    }

    fn check_external_ids(&self, tenant: &Tenant) -> Result<(), Refused> {
        let taken = tenant
            .external_ids
            .iter()
            .position(|id| self.birth.index.external_id_owner(id).is_some_and(|owner| owner != tenant.id));
        taken.map_or(Ok(()), |index| Err(Refused::ExternalIdTaken { index }))
    }

    async fn write_change(&mut self, what: &What, written: &Written, rest: &Job) -> Result<(), StoreError> {
        let now = self.birth.clock.now();
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        match (what, &written.key) {
            (What::Reserve { .. }, Some(key)) => {
                catalogue::insert_tenant(connection, &written.tenant).await?;
                store::api_key::insert(connection, key).await?;
            }
            (What::IssueKey { .. }, Some(key)) => store::api_key::insert(connection, key).await?,
            (What::RevokeKey { .. }, Some(key)) => {
                store::api_key::revoke(connection, &key.id, key.revoked_at.unwrap_or(now)).await?
            }
            (What::EditKey { .. }, Some(key)) => store::api_key::update(connection, key).await?,
            (_, _) => catalogue::update_tenant(connection, &written.tenant).await?,
        }
        job::insert(connection, rest).await?;
        fault::point("change.before");
        self.commit().await
    }

    async fn finish(&mut self, finish: Finish) -> Result<bool, Refused> {
        self.begin_alone().await?;
        let tenant = match finish.activate.map(|id| known(&self.birth.index, id)).transpose() {
            Ok(tenant) => tenant.map(|tenant| Tenant { lifecycle: Lifecycle::Active, ..tenant }),
            Err(refused) => return self.refuse(refused).await,
        };
        match self.write_finish(&finish, tenant.as_ref()).await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => return Err(self.doubt(&error)),
        }
        fault::point("change.finished");
        if let Some(tenant) = tenant {
            self.birth.index.put(tenant);
        }
        Ok(true)
    }

    async fn write_finish(&mut self, finish: &Finish, tenant: Option<&Tenant>) -> Result<bool, StoreError> {
        let now = self.birth.clock.now();
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        let held = &finish.job;
        let mut done = held.clone();
        let is_held = done.settle(held.lease, Ending::Succeeded(finish.result.clone()), now).is_ok();
        // What the records say may have to be erased one day, and the answer is forgotten by its own age.
        "{}".clone_into(&mut done.draft.arguments);
        // Only if it is still held as it was when this try began.
        if !is_held || !job::update(connection, held, &done).await? {
            connection.rollback().await?;
            return Ok(false);
        }
        if let Some(tenant) = tenant {
            catalogue::update_tenant(connection, tenant).await?;
        }
        if let Some((idempotency, answer)) = &finish.answer {
            request::keep_first(connection, &idempotency.key, &idempotency.body_hash, answer, now).await?;
        }
        self.commit().await?;
        Ok(true)
    }

    async fn reload(&mut self) -> Result<(), Refused> {
        self.connection = None;
        self.connection().await.map(|_| ())
    }

    async fn quarantine(&mut self, rows: &[Quarantined], share: Share) -> Result<(), Refused> {
        self.learn_shares(rows, share).await?;
        let kept = self.write_quarantined(rows, share).await;
        kept.map_err(|error| {
            self.shares.doubt();
            self.doubt(&error)
        })
    }

    /// Reads what the owners of `rows` have. What cannot be read keeps nothing out; a connection that failed is opened anew,
    /// unless the server has only ended the question.
    async fn learn_shares(&mut self, rows: &[Quarantined], share: Share) -> Result<(), Refused> {
        let now = self.birth.clock.now();
        for owner in self.shares.unknown(rows, share, now) {
            match quarantine::kept(self.connection().await?, owner).await {
                Ok(kept) => self.shares.learn(owner, kept, share, now),
                Err(error) => {
                    tracing::warn!(%error, "a share of the quarantine could not be read: what comes is kept");
                    self.shares.guess(owner, now);
                    if !matches!(error, StoreError::Retryable(_)) {
                        self.connection = None;
                    }
                }
            }
        }
        self.connection().await.map(|_| ())
    }

    async fn write_quarantined(&mut self, rows: &[Quarantined], share: Share) -> Result<(), StoreError> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        let rows = self.shares.admit(rows, share);
        connection.begin().await?;
        quarantine::insert(connection, &rows).await?;
        connection.commit().await?;
        for row in rows.iter().filter(|row| row.left_out_bytes > 0) {
            metrics::counter!("platform_api_quarantine_left_out_total", "reason" => row.reason.code()).increment(1);
        }
        Ok(())
    }

    async fn mark_replayed(&mut self, id: Uuid, request: &Request) -> Result<(), Refused> {
        let entry = Entry {
            actor: request.actor.clone(),
            action: "quarantine.replayed".into(),
            target: format!("quarantine:{id}"),
            outcome: EntryOutcome::Success,
            request_id: request.request_id.clone(),
            payload: "{}".into(),
        };
        self.append(vec![entry], Beside::Retried(vec![Retried { id, fate: Fate::Counted }])).await
    }

    /// One record for all rows that were counted; what is refused for another reason is no news.
    async fn retried(&mut self, tenant: TenantId, rows: Vec<Retried>) -> Result<(), Refused> {
        let counted = rows.iter().filter(|row| row.fate == Fate::Counted).count();
        let entry = Entry {
            actor: "system".into(),
            action: "quarantine.replayed".into(),
            target: format!("tenant:{tenant}"),
            outcome: EntryOutcome::Success,
            request_id: String::new(),
            payload: format!("{{\"rows\":{counted}}}"),
        };
        let entries = if counted > 0 { vec![entry] } else { Vec::new() };
        self.append(entries, Beside::Retried(rows)).await
    }

    /// One transaction for a resource's change and its records.
    async fn task(&mut self, mut task: Task) {
        match self.write_task(&mut task).await {
            Ok(head) => {
                self.platform_head = head;
                task.answer();
            }
            Err(refused) => task.fail(refused),
        }
    }

    async fn write_task(&mut self, task: &mut Task) -> Result<Head, Refused> {
        self.begin_alone().await?;
        self.run_task(task).await.map_err(|error| self.doubt(&error))
    }

    async fn run_task(&mut self, task: &mut Task) -> Result<Head, StoreError> {
        let now = self.birth.clock.now();
        let head = self.platform_head;
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        let mut entries = Vec::new();
        if !task.run(connection, &mut entries, now).await? {
            connection.rollback().await?;
            return Ok(head);
        }
        let head = link(connection, head, entries, now).await?;
        self.commit().await?;
        Ok(head)
    }

    async fn probe(&mut self) -> Result<(), Refused> {
        let connection = self.connection().await?;
        connection.fetch("SELECT 1", &[]).await.map(|_| ()).map_err(|error| self.doubt(&error))?;
        self.remember_all().await
    }
}

fn known(index: &Index, tenant: TenantId) -> Result<Tenant, Refused> {
    index.tenant(tenant).ok_or(Refused::UnknownTenant)
}

fn apply(tenant: &mut Tenant, edit: &Edit) -> Result<(), Refused> {
    match edit {
        Edit::Shift(to) => {
            if !tenant.lifecycle.may_become(*to) {
                return Err(Refused::IllegalMove { from: tenant.lifecycle, to: *to });
            }
            tenant.lifecycle = *to;
        }
        Edit::Amend(amendment) => {
            if matches!(tenant.lifecycle, Lifecycle::Pending | Lifecycle::Archived) {
                return Err(Refused::IllegalMove { from: tenant.lifecycle, to: tenant.lifecycle });
            }
            let amendment = amendment.clone();
            tenant.name = amendment.name.unwrap_or_else(|| tenant.name.clone());
            tenant.tier = amendment.tier.unwrap_or_else(|| tenant.tier.clone());
            tenant.time_zone = amendment.time_zone.unwrap_or_else(|| tenant.time_zone.clone());
            tenant.external_ids = amendment.external_ids.unwrap_or_else(|| tenant.external_ids.clone());
            tenant.settings = amendment.settings.unwrap_or_else(|| tenant.settings.clone());
        }
    }
    Ok(())
}
