//! Tenants as Kong's consumers, through its Admin API.
//!
//! Every active or suspended tenant has one consumer, tagged `platform-api`, whose `custom_id` is the tenant's id; a
//! suspended one is in the group `suspended`, which Kong's `acl` plugin denies; an archived one is removed. A change of a
//! tenant is written as soon as it is committed, and everything is compared on an interval. Credentials are not written:
//! we keep hashes of keys, and Kong needs the keys. What the operator gives a consumer stays with it.
//!
//! A Kong without a database takes no entities, only one document: the operator's own ([`config::KongAdmin::base_file`]) with
//! the tenants added. Without that file nothing is loaded, for it would take every route away. Each of its [`nodes`] is loaded
//! by itself; a change has reached Kong when it has reached all of them. Nodes with a database share it: one of them is written,
//! and the next one when it fails.
//!
//! [`admin`] speaks, [`plan`] and [`document`] decide, [`check`] tells what in a Kong makes our guarantees void. A Kong that
//! is down is an entry in the health report, and nobody waits for it.

pub mod admin;
pub mod check;
mod document;
mod nodes;
mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::future::select_ok;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::State;
use crate::clock::Clock;
use crate::config::{self, KongMode, millis};
use crate::directory::handle::Handle as Directory;
use crate::domain::ids::TenantId;
use crate::domain::sync::{Change, Reached, SyncStatus};
use crate::domain::tenant::{Lifecycle, Tenant};
use crate::domain::time::Timestamp;
use admin::{Admin, AdminError};
use nodes::{Nodes, Report};
use plan::{Act, Consumer, Step, TAG};

/// Objects of one page.
const PAGE: usize = 1_000;
/// Tenants read from the catalogue at once.
const TENANTS_AT_ONCE: usize = 1_000;
/// Changed tenants that are written one by one; more of them are one comparison of everything.
const ONE_BY_ONE_MAX: usize = 50;
/// How long Kong is left alone after a failure; doubles up to the interval.
const PAUSE: Duration = Duration::from_secs(1);
/// Conflicts that are named.
const CONFLICTS_TOLD: usize = 20;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("gateway.kong.admin.base_file {0}")]
    Base(String),
}

/// Keeps Kong's consumers what our tenants are.
pub(super) struct Sync {
    /// The Admin API of each node that is configured.
    admins: Vec<Admin>,
    /// The one that is written, of those that share a database.
    at: usize,
    nodes: Nodes,
    reports: Option<mpsc::Receiver<Report>>,
    directory: Directory,
    clock: Clock,
    settings: config::KongAdmin,
    health: watch::Sender<State>,
    status: watch::Sender<SyncStatus>,
    /// What Kong has been told of whom, so that a commit which changes no tenant costs a look.
    told: HashMap<TenantId, Lifecycle>,
    changed: HashSet<TenantId>,
    /// What a document tells that some node does not have yet.
    under_way: BTreeMap<TenantId, UnderWay>,
    /// Consumers, and suspended ones, of the newest document.
    published: (usize, usize),
}

/// A change on its way to every node.
struct UnderWay {
    edition: u64,
    change: Change,
    since: Timestamp,
}

impl Sync {
    /// `None` when no Admin API is configured.
    pub(super) fn open(
        settings: &config::KongAdmin,
        directory: Directory,
        clock: Clock,
    ) -> Result<Option<Sync>, String> {
        let admins = Admin::open(settings).map_err(|problem| format!("gateway.kong.admin.urls: {problem}"))?;
        if admins.is_empty() {
            return Ok(None);
        }
        let (nodes, reports) = Nodes::new(admins.clone());
        Ok(Some(Sync {
            admins,
            at: 0,
            nodes,
            reports: Some(reports),
            directory,
            clock,
            settings: settings.clone(),
            health: watch::channel(State::Unknown).0,
            status: watch::channel(SyncStatus::default()).0,
            told: HashMap::new(),
            changed: HashSet::new(),
            under_way: BTreeMap::new(),
            published: (0, 0),
        }))
    }

    pub(super) fn health(&self) -> watch::Receiver<State> {
        self.health.subscribe()
    }

    pub(super) fn status(&self) -> watch::Receiver<SyncStatus> {
        self.status.subscribe()
    }

    /// Works until asked to stop. What is not written then is found by the next start.
    pub(super) async fn run(mut self, mut hints: mpsc::Receiver<TenantId>, stopping: CancellationToken) {
        let Some(mut reports) = self.reports.take() else { return };
        let interval = millis(self.settings.sync_interval_ms);
        let mut round = tokio::time::interval(interval);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = PAUSE;
        let mut not_before = Instant::now();
        let (mut everything, mut hinting) = (true, true);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                hint = hints.recv(), if hinting => match hint {
                    Some(tenant) => self.notice(tenant),
                    None => hinting = false,
                },
                _ = round.tick() => everything = true,
                Some(report) = reports.recv() => self.heard(&report),
                () = tokio::time::sleep_until(not_before), if everything || !self.changed.is_empty() => {
                    everything |= self.changed.len() > ONE_BY_ONE_MAX;
                    let Some(done) = stopping.run_until_cancelled(self.work(everything, &stopping)).await else { return };
                    if done {
                        (everything, pause) = (false, PAUSE);
                    } else {
                        not_before = Instant::now() + pause;
                        pause = (pause * 2).min(interval);
                    }
                }
            }
        }
    }

    /// Somebody has committed something: was it a change of the tenant?
    fn notice(&mut self, tenant: TenantId) {
        let lifecycle = self.directory.lifecycle(tenant);
        let known = self.told.get(&tenant).copied();
        if lifecycle.is_some_and(|lifecycle| lifecycle != Lifecycle::Pending) && lifecycle != known {
            self.changed.insert(tenant);
        }
    }

    /// Writes what changed, or compares everything; false when it has to be tried again.
    async fn work(&mut self, everything: bool, stopping: &CancellationToken) -> bool {
        let began = Instant::now();
        let changed: Vec<TenantId> = self.changed.iter().copied().collect();
        let done = self.try_work(everything, &changed, stopping).await;
        let is_published = matches!(done, Ok(KongMode::Declarative));
        if !is_published {
            count(done.is_ok(), began.elapsed());
            self.ended(done.as_ref().err().map(ToString::to_string));
        }
        if let Err(Failure::Admin(error)) = &done {
            self.at = (self.at + 1) % self.admins.len().max(1);
            if error.is_without_database() {
                // It had a database, and has none now: it is asked again.
                self.status.send_modify(|status| status.mode = None);
            }
        }
        if done.is_ok() {
            for tenant in changed {
                self.changed.remove(&tenant);
            }
        }
        done.is_ok()
    }

    /// What everybody is told of how it went.
    fn ended(&self, error: Option<String>) {
        let now = self.clock.now();
        let was_up = !matches!(*self.health.borrow(), State::Down { .. });
        match &error {
            None if !was_up => tracing::info!("Kong is written again"),
            Some(reason) if was_up => tracing::warn!(reason, "Kong does not take the tenants; it is tried again"),
            _ => {}
        }
        self.health.send_replace(error.clone().map_or(State::Up, |reason| State::Down { reason }));
        self.status.send_modify(|status| {
            status.last_run_at = Some(now);
            if error.is_none() {
                status.last_success_at = Some(now);
            }
            status.error = error;
        });
    }

    /// Answers where Kong keeps what was done.
    async fn try_work(
        &mut self,
        everything: bool,
        changed: &[TenantId],
        stopping: &CancellationToken,
    ) -> Result<KongMode, Failure> {
        let mode = self.mode().await?;
        match mode {
            KongMode::Declarative => self.publish(stopping).await?,
            _ if everything => self.compare().await?,
            _ => {
                for tenant in changed {
                    self.follow(*tenant).await?;
                }
            }
        }
        Ok(mode)
    }

    /// Where Kong keeps its configuration; asked for again while nobody knows. The first node that answers is believed.
    async fn mode(&mut self) -> Result<KongMode, AdminError> {
        let mode = match (self.settings.mode, self.status.borrow().mode) {
            (KongMode::Auto, Some("declarative")) => KongMode::Declarative,
            (KongMode::Auto, Some(_)) => KongMode::Database,
            (configured, _) => configured,
        };
        let mode = match mode {
            KongMode::Auto => {
                let ask = |(at, admin): (usize, &Admin)| {
                    let admin = admin.clone();
                    Box::pin(async move { Ok((at, admin.get("/").await?.ok_or(AdminError::Unreadable)?)) })
                };
                let asked: Vec<_> = self.admins.iter().enumerate().map(ask).collect();
                let ((at, root), _): ((usize, Value), _) = select_ok(asked).await?;
                self.at = at;
                let off = root["configuration"]["database"] == "off";
                if off { KongMode::Declarative } else { KongMode::Database }
            }
            known => known,
        };
        let word = if mode == KongMode::Declarative { "declarative" } else { "database" };
        self.status.send_modify(|status| status.mode = Some(word));
        Ok(mode)
    }

    /// The Admin API that is written, of a Kong with a database.
    fn admin(&self) -> Result<Admin, AdminError> {
        self.admins.get(self.at).cloned().ok_or(AdminError::Unreadable)
    }

    fn tenants(&self) -> Vec<Tenant> {
        let mut tenants = Vec::new();
        let mut after = None;
        loop {
            let page = self.directory.tenants(after, TENANTS_AT_ONCE);
            tenants.extend(page.items);
            after = page.next;
            if after.is_none() {
                return tenants;
            }
        }
    }

    /// Everything, for a Kong with a database.
    async fn compare(&mut self) -> Result<(), Failure> {
        let admin = self.admin()?;
        let consumers = admin.list(&format!("/consumers?size={PAGE}&tags={TAG}")).await?;
        let consumers: Vec<Consumer> = consumers.iter().filter_map(Consumer::read).collect();
        let memberships = admin.list(&format!("/acls?size={PAGE}&tags={TAG}")).await?;
        let suspended: BTreeSet<String> = memberships.iter().filter_map(plan::suspended).collect();
        let tenants = self.tenants();
        let directory = self.directory.clone();
        let plan = plan::plan(&tenants, &consumers, &suspended, |tenant| directory.lifecycle(tenant).is_some());
        let conflicts = self.take(plan.steps, &tenants).await?;
        self.told = tenants.iter().map(|tenant| (tenant.id, tenant.lifecycle)).collect();
        self.tell(standing(&tenants, &conflicts), &conflicts, plan.strangers);
        Ok(())
    }

    /// One tenant, for a Kong with a database.
    async fn follow(&mut self, tenant: TenantId) -> Result<(), Failure> {
        let Some(tenant) = self.directory.tenant(tenant) else { return Ok(()) };
        let admin = self.admin()?;
        let consumers = admin.list(&format!("/consumers?custom_id={}", tenant.id)).await?;
        let consumers: Vec<Consumer> = consumers.iter().filter_map(Consumer::read).collect();
        let mut suspended = BTreeSet::new();
        for consumer in &consumers {
            let memberships = admin.list(&format!("/consumers/{}/acls", consumer.id)).await?;
            suspended.extend(memberships.iter().filter_map(plan::suspended));
        }
        let plan = plan::plan(std::slice::from_ref(&tenant), &consumers, &suspended, |id| id == tenant.id);
        self.take(plan.steps, std::slice::from_ref(&tenant)).await?;
        // What stands in its way is tried again when everything is compared, not with each of its commits.
        self.told.insert(tenant.id, tenant.lifecycle);
        Ok(())
    }

    /// Takes the steps; answers the tenants that somebody else's object stands in the way of.
    async fn take(&mut self, steps: Vec<Step>, tenants: &[Tenant]) -> Result<BTreeSet<TenantId>, Failure> {
        let changed_at: HashMap<TenantId, Timestamp> =
            tenants.iter().map(|tenant| (tenant.id, tenant.updated_at)).collect();
        let mut conflicts = BTreeSet::new();
        for step in steps {
            if conflicts.contains(&step.tenant) {
                continue;
            }
            match self.step(&step).await {
                Ok(change) => {
                    if let (Some(change), Some(since)) = (change, changed_at.get(&step.tenant)) {
                        self.reached(step.tenant, change, *since);
                    }
                }
                Err(error) if error.is_conflict() => {
                    tracing::warn!(tenant = %step.tenant, "somebody else's consumer in Kong stands in a tenant's way");
                    conflicts.insert(step.tenant);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(conflicts)
    }

    async fn step(&self, step: &Step) -> Result<Option<Change>, AdminError> {
        let admin = self.admin()?;
        let path = format!("/consumers/{}", step.consumer);
        let group = format!("{path}/acls/{}", plan::SUSPENDED_GROUP);
        let (kind, change) = match &step.act {
            Act::Create(body) => {
                if admin.get(&path).await?.is_some() {
                    return Err(AdminError::Refused { action: "create".into(), status: 409, code: 0 });
                }
                admin.put(&path, body).await?;
                ("create", None)
            }
            Act::Correct(body) => {
                admin.put(&path, body).await?;
                ("correct", None)
            }
            Act::Suspend => {
                // The operator may have put it there, and would not want us to take it away.
                let memberships = admin.list(&format!("{path}/acls")).await?;
                if memberships.iter().any(|membership| membership["group"] == plan::SUSPENDED_GROUP) {
                    return Ok(None);
                }
                admin.put(&group, &json!({ "tags": [TAG] })).await?;
                ("suspend", Some(Change::Suspended))
            }
            Act::Reinstate => {
                admin.delete(&group).await?;
                ("reinstate", Some(Change::Reinstated))
            }
            Act::Remove => {
                admin.delete(&path).await?;
                ("remove", Some(Change::Removed))
            }
        };
        metrics::counter!("platform_api_kong_sync_writes_total", "kind" => kind).increment(1);
        Ok(change)
    }

    /// Everything, for a Kong without a database: its nodes are given the document, and say themselves when they have it.
    async fn publish(&mut self, stopping: &CancellationToken) -> Result<(), Failure> {
        let base = base(&self.settings).await?.ok_or_else(|| {
            Failure::Base("is needed: what is loaded into a Kong without a database replaces all it has".into())
        })?;
        let tenants = self.tenants();
        let document = render(&base, &tenants)?;
        let edition = self.nodes.publish(document, millis(self.settings.sync_interval_ms), stopping);
        for tenant in &tenants {
            let change = match (self.told.get(&tenant.id), tenant.lifecycle) {
                (Some(Lifecycle::Active), Lifecycle::Suspended) => Change::Suspended,
                (Some(Lifecycle::Suspended), Lifecycle::Active) => Change::Reinstated,
                (Some(Lifecycle::Suspended), Lifecycle::Archived) => Change::Removed,
                _ => continue,
            };
            self.under_way.insert(tenant.id, UnderWay { edition, change, since: tenant.updated_at });
        }
        self.told = tenants.iter().map(|tenant| (tenant.id, tenant.lifecycle)).collect();
        self.published = standing(&tenants, &BTreeSet::new());
        self.status.send_modify(|status| status.nodes = self.nodes.statuses());
        Ok(())
    }

    /// A node has said how its load went.
    fn heard(&mut self, report: &Report) {
        count(report.result.is_ok(), report.took);
        if matches!(report.result, Ok(true)) {
            metrics::counter!("platform_api_kong_sync_writes_total", "kind" => "load").increment(1);
        }
        self.nodes.heard(report, self.clock.now());
        let everywhere = self.nodes.everywhere();
        let (arrived, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.under_way).into_iter().partition(|(_, change)| change.edition <= everywhere);
        self.under_way = left;
        for (tenant, UnderWay { change, since, .. }) in arrived {
            self.reached(tenant, change, since);
        }
        self.status.send_modify(|status| status.nodes = self.nodes.statuses());
        let problem = self.nodes.problem();
        if problem.is_some() || everywhere == self.nodes.newest() {
            if problem.is_none() {
                self.tell(self.published, &BTreeSet::new(), 0);
            }
            self.ended(problem);
        }
    }

    /// How long it took until Kong had it.
    fn reached(&self, tenant: TenantId, change: Change, since: Timestamp) {
        let at = self.clock.now();
        let lag_micros = u64::try_from(at.0 - since.0).unwrap_or_default();
        metrics::histogram!("platform_api_kong_sync_lag_seconds")
            .record(Duration::from_micros(lag_micros).as_secs_f64());
        let lag_ms = i64::try_from(lag_micros / 1_000).unwrap_or(i64::MAX);
        tracing::info!(%tenant, change = change.name(), lag_ms, "a change of a tenant has reached Kong");
        self.status.send_modify(|status| status.last_change = Some(Reached { tenant, change, at, lag_ms }));
    }

    /// What Kong has now, after everything was compared: so many consumers, and suspended ones.
    fn tell(&self, (consumers, suspended): (usize, usize), conflicts: &BTreeSet<TenantId>, strangers: usize) {
        for (kind, number) in [("consumers", consumers), ("suspended", suspended)] {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            metrics::gauge!("platform_api_kong_sync_objects", "kind" => kind).set(f64::from(number));
        }
        self.status.send_modify(|status| {
            (status.consumers, status.suspended, status.strangers) = (consumers, suspended, strangers);
            status.conflicts = conflicts.iter().take(CONFLICTS_TOLD).copied().collect();
        });
    }
}

/// How many consumers tenants have, and how many of them are suspended, where nothing stands in their way.
fn standing(tenants: &[Tenant], conflicts: &BTreeSet<TenantId>) -> (usize, usize) {
    let count = |wanted: &[Lifecycle]| {
        let there = |tenant: &&Tenant| wanted.contains(&tenant.lifecycle) && !conflicts.contains(&tenant.id);
        tenants.iter().filter(there).count()
    };
    (count(&[Lifecycle::Active, Lifecycle::Suspended]), count(&[Lifecycle::Suspended]))
}

/// One comparison, or one load of a node.
fn count(is_ok: bool, took: Duration) {
    metrics::histogram!("platform_api_kong_sync_seconds").record(took.as_secs_f64());
    let result = if is_ok { "ok" } else { "failed" };
    metrics::counter!("platform_api_kong_sync_runs_total", "result" => result).increment(1);
}

/// The operator's document, if there is one.
async fn base(settings: &config::KongAdmin) -> Result<Option<String>, Failure> {
    let Some(path) = &settings.base_file else { return Ok(None) };
    let read = tokio::fs::read_to_string(path).await;
    read.map(Some).map_err(|error| Failure::Base(format!("cannot be read: {}", error.kind())))
}

fn render(base: &str, tenants: &[Tenant]) -> Result<String, Failure> {
    document::render(base, tenants).map_err(|problem| Failure::Base(problem.into()))
}

/// The document that a Kong without a database would be given; without a base file, the consumers alone.
///
/// # Errors
/// When the base file cannot be used.
pub async fn rendered(settings: &config::KongAdmin, tenants: &[Tenant]) -> anyhow::Result<String> {
    let base = base(settings).await?.unwrap_or_default();
    Ok(render(&base, tenants)?)
}

/// What a Kong has, as far as [`check`] looks at it.
///
/// # Errors
/// [`AdminError`].
pub async fn observe(admin: &Admin) -> Result<check::Observed, AdminError> {
    let root = admin.get("/").await?.ok_or(AdminError::Unreadable)?;
    let size = format!("?size={PAGE}");
    let plugins = admin.list(&format!("/plugins{size}")).await?;
    let routes = admin.list(&format!("/routes{size}")).await?;
    let consumers = admin.list(&format!("/consumers{size}")).await?.len();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&root["version"]);
    Ok(check::Observed { version, database: text(&root["configuration"]["database"]), plugins, routes, consumers })
}
