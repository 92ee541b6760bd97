//! Keys are rotated by the real runner, on a real control database and real tenants, and interrupted.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::data_keys::Rewrapping;
use super::kinds::{Errand, Failure, Tools, Work};
use super::runner::Runner;
use crate::clock::{self, Clock};
use crate::config;
use crate::directory::errand::Desk;
use crate::directory::handle::{Handle as Directory, NewKey, NewTenant};
use crate::directory::{self, Settings};
use crate::domain::ids::{JobId, ProviderId, TenantId};
use crate::domain::job::{Draft, Job, Kind, State};
use crate::domain::organization::Expected;
use crate::domain::provider::{Profile, ProviderKind, Refusal};
use crate::domain::request::{Answer, Request};
use crate::domain::routing::Routing;
use crate::domain::tenant::{Lifecycle, Role, Tenant};
use crate::store::catalogue;
use crate::store::database::Store;
use crate::tenant::handle::Handle as Home;
use crate::tenant::provider::{CreateProvider, DestroyKeys};
use crate::tenant::task::{Declined, untold};
use crate::vault::desk::{self, DeskError};
use crate::vault::{DataKey, KekError, KeyEncryption, Vault, Wrapped};

const PATIENCE: Duration = Duration::from_secs(60);

/// A KEK that can be rotated, and that breaks when it is told to.
#[derive(Clone, Default)]
pub(super) struct Kek(Arc<KekState>);

#[derive(Default)]
struct KekState {
    version: AtomicUsize,
    broken: AtomicBool,
    /// Wraps and unwraps that still succeed, once it is broken.
    left: AtomicUsize,
}

impl Kek {
    fn rotate(&self) {
        self.0.version.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn break_after(&self, uses: usize) {
        self.0.left.store(uses, Ordering::SeqCst);
        self.0.broken.store(true, Ordering::SeqCst);
    }

    fn mend(&self) {
        self.0.broken.store(false, Ordering::SeqCst);
    }

    fn name(&self) -> String {
        format!("kek-{}", self.0.version.load(Ordering::SeqCst))
    }

    fn used(&self) -> Result<(), KekError> {
        let one_less = |left: usize| left.checked_sub(1);
        let broken = self.0.broken.load(Ordering::SeqCst);
        if broken && self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
            return Err(KekError::Unavailable("as it was told".into()));
        }
        Ok(())
    }
}

impl KeyEncryption for Kek {
    fn current(&self) -> BoxFuture<'_, Result<String, KekError>> {
        std::future::ready(Ok(self.name())).boxed()
    }

    /// Not a cipher: the suite over the real ones is `vault/tests.rs`.
    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a [u8]) -> BoxFuture<'a, Result<Wrapped, KekError>> {
        let bytes = [self.name().as_bytes(), b"|", key.bytes().as_slice(), context].concat();
        std::future::ready(self.used().map(|()| Wrapped { kek: self.name(), bytes })).boxed()
    }

    fn unwrap<'a>(&'a self, wrapped: &'a Wrapped, context: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KekError>> {
        let unwrapped = self.used().and_then(|()| {
            let bytes = wrapped.bytes.strip_prefix(format!("{}|", wrapped.kek).as_bytes());
            let key = bytes.and_then(|bytes| bytes.strip_suffix(context)).map(|key| key.to_vec().into());
            key.and_then(DataKey::of).ok_or(KekError::Refused)
        });
        std::future::ready(unwrapped).boxed()
    }
}

pub(super) struct Node {
    pub(super) directory: Directory,
    pub(super) vault: Vault,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Node {
    pub(super) async fn open(kek: Box<dyn KeyEncryption>) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let url = SecretString::from(format!("sqlite:{}", folder.path().join("data").display()));
        let store = Store::open(&config::Store { url, ..config::Store::default() }).await.unwrap();
        let directory = Node::directory(&store).await;
        Node { directory, vault: Vault::with(kek, [7; 32]), store, _folder: folder }
    }

    async fn directory(store: &Store) -> Directory {
        let settings = Settings {
            tenants: config::Tenants::default(),
            retention_micros: crate::domain::time::MICROS_PER_DAY,
            routing: Arc::new(Routing::all(Vec::new())),
            reconcile: crate::domain::reconcile::Terms::default(),
            lease_micros: config::Jobs::default().lease_micros(),
        };
        directory::open(store.clone(), settings, Clock::system(), mpsc::channel(1).0).await.unwrap()
    }

    /// Every tenant's actor is another one from now on.
    async fn reopen(&mut self) {
        self.directory.drain(PATIENCE).await;
        self.directory = Node::directory(&self.store).await;
    }

    /// A vault that has unwrapped nothing yet.
    fn fresh(kek: &Kek) -> Vault {
        Vault::with(Box::new(kek.clone()), [7; 32])
    }

    pub(super) fn run(&self, tools: &Tools) -> (CancellationToken, JoinHandle<()>) {
        let settings = config::Jobs { lease_ms: 1_000, ..config::Jobs::default() };
        let runner = Runner::new(self.directory.clone(), Clock::system(), settings, tools);
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(runner.run(stop)))
    }

    fn tools(&self) -> Tools {
        Tools { vault: Some(self.vault.clone()), litellm: None }
    }

    pub(super) async fn tenant(&self, name: &str) -> TenantId {
        let tenant = NewTenant {
            name: name.into(),
            slug: Some(name.into()),
            tier: "standard".into(),
            time_zone: "UTC".into(),
            external_ids: Vec::new(),
            settings: "{}".into(),
        };
        let key =
            NewKey { id: format!("KEY{name}"), hash: [name.as_bytes()[0]; 32], name: "k".into(), role: Role::Admin };
        match self.directory.onboard(tenant, key, Request::system(), |_| String::new()).await.unwrap() {
            Answer::Fresh(onboarded) => onboarded.tenant.id,
            Answer::Replayed(_) => panic!("nothing was asked before"),
        }
    }

    pub(super) async fn home(&self, tenant: TenantId) -> Home {
        self.directory.find(tenant).await.unwrap()
    }

    pub(super) async fn provider(&self, tenant: TenantId, name: &str, kind: ProviderKind) -> ProviderId {
        let id = ProviderId(clock::new_id());
        let profile =
            Profile { name: name.into(), kind, base_url: None, region: None, api_version: None, active: true };
        let create = CreateProvider { id, profile };
        self.home(tenant).await.change(create, Request::system(), untold).await.unwrap().unwrap();
        id
    }

    pub(super) async fn keep(&self, tenant: TenantId, provider: ProviderId, secret: &str) {
        let (home, secret) = (self.home(tenant).await, SecretString::from(secret));
        desk::keep(&self.vault, &home, (provider, &secret), &Expected::Any, &Request::system(), untold).await.unwrap();
    }

    /// The provider's secret, as a vault reads it.
    pub(super) async fn reveal(&self, vault: &Vault, tenant: TenantId, provider: ProviderId) -> String {
        let books = self.home(tenant).await.providers().unwrap();
        let provider = books.get(provider).unwrap();
        desk::reveal(vault, tenant, &books, provider).await.unwrap().0.expose_secret().to_owned()
    }

    pub(super) async fn submit(&self, kind: Kind, tenant: Option<TenantId>) -> JobId {
        let draft = Draft {
            kind: kind.name().into(),
            tenant,
            key: None,
            arguments: "{}".into(),
            run_at: Clock::system().now(),
            every_micros: 0,
            attempts_max: 9,
            actor: "platform".into(),
            request_id: "r".into(),
        };
        match self.directory.submit_job(draft, Request::system(), |_| String::new()).await.unwrap() {
            Answer::Fresh(job) => job.id,
            Answer::Replayed(_) => panic!("nothing was asked before"),
        }
    }

    pub(super) async fn until(&self, id: JobId, what: impl Fn(&Job) -> bool) -> Job {
        let waiting = async {
            loop {
                let job = self.directory.job(id).await.unwrap().unwrap();
                if what(&job) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it never came to that")
    }

    pub(super) async fn succeeded(&self, id: JobId) -> serde_json::Value {
        let job = self.until(id, |job| job.state.is_finished()).await;
        assert_eq!(job.state, State::Succeeded, "{job:?}");
        serde_json::from_str(&job.result).unwrap()
    }
}

#[tokio::test]
async fn a_data_key_is_rotated_while_every_secret_stays_readable() {
    let kek = Kek::default();
    let node = Node::open(Box::new(kek.clone())).await;
    let acme = node.tenant("acme").await;
    let mut providers = Vec::new();
    for number in 0..4 {
        let provider = node.provider(acme, &format!("p{number}"), ProviderKind::OpenAi).await;
        node.keep(acme, provider, &format!("sk-canary-0123456789-{number}")).await;
        providers.push(provider);
    }
    // The first two steps of the first try succeed: the new key, and unwrapping it.
    kek.break_after(2);
    let broken = Tools { vault: Some(Node::fresh(&kek)), litellm: None };
    let job = node.submit(Kind::RotateDataKey, Some(acme)).await;
    let (stop, runner) = node.run(&broken);
    node.until(job, |job| job.attempts >= 1 && !job.error.is_empty()).await;
    stop.cancel();
    runner.await.unwrap();
    kek.mend();
    let all_readable = async || {
        let vault = Node::fresh(&kek);
        for (number, provider) in providers.iter().enumerate() {
            let found = node.reveal(&vault, acme, *provider).await;
            assert_eq!(found, format!("sk-canary-0123456789-{number}"));
        }
    };
    all_readable().await;
    assert_eq!(node.home(acme).await.providers().unwrap().keys().len(), 2, "the old key is still needed");
    let (stop, runner) = node.run(&node.tools());
    node.succeeded(job).await;
    all_readable().await;
    let books = node.home(acme).await.providers().unwrap();
    assert_eq!(books.keys().iter().map(|key| key.version).collect::<Vec<_>>(), [2], "made once, over two tries");
    // Another rotation is another key.
    let again = node.submit(Kind::RotateDataKey, Some(acme)).await;
    assert_eq!(node.succeeded(again).await["secrets"], 4);
    all_readable().await;
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn every_tenant_s_data_keys_are_wrapped_by_the_key_of_now() {
    let kek = Kek::default();
    let node = Node::open(Box::new(kek.clone())).await;
    let tenants = [node.tenant("acme").await, node.tenant("beta").await, node.tenant("corp").await];
    let mut providers = Vec::new();
    for tenant in tenants {
        let provider = node.provider(tenant, "p", ProviderKind::OpenAi).await;
        node.keep(tenant, provider, &format!("sk-canary-{tenant}")).await;
        providers.push((tenant, provider));
    }
    kek.rotate();
    let keks = async || {
        let mut names = Vec::new();
        for tenant in tenants {
            names.push(node.home(tenant).await.providers().unwrap().newest_key().unwrap().kek.clone());
        }
        names
    };
    // One tenant is done, the second one's key is unwrapped and not wrapped.
    kek.break_after(3);
    let job = node.submit(Kind::Rewrap, None).await;
    let (stop, runner) = node.run(&node.tools());
    node.until(job, |job| !job.error.is_empty()).await;
    let halfway = keks().await;
    assert!(halfway.contains(&"kek-0".to_owned()) && halfway.contains(&"kek-1".to_owned()), "{halfway:?}");
    kek.mend();
    let vault = Node::fresh(&kek);
    for (tenant, provider) in &providers {
        assert_eq!(node.reveal(&vault, *tenant, *provider).await, format!("sk-canary-{tenant}"));
    }
    node.succeeded(job).await;
    assert_eq!(keks().await, ["kek-1", "kek-1", "kek-1"]);
    let vault = Node::fresh(&kek);
    for (tenant, provider) in &providers {
        assert_eq!(node.reveal(&vault, *tenant, *provider).await, format!("sk-canary-{tenant}"));
    }
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn a_rewrap_that_is_interrupted_does_not_forget_a_tenant_that_it_missed() {
    let kek = Kek::default();
    let node = Node::open(Box::new(kek.clone())).await;
    let acme = node.tenant("acme").await;
    let provider = node.provider(acme, "p", ProviderKind::OpenAi).await;
    node.keep(acme, provider, "sk-canary-0123456789").await;
    node.tenant("beta").await;
    kek.rotate();
    let job = node.submit(Kind::Rewrap, None).await;
    let errand = async |checkpoint: Option<String>, stop: CancellationToken| {
        let mut job = node.directory.job(job).await.unwrap().unwrap();
        job.checkpoint = checkpoint.unwrap_or(job.checkpoint);
        Errand { job, directory: node.directory.clone(), stop, desk: Arc::new(Desk::default()) }
    };
    // It misses the first tenant, and is stopped after it.
    kek.break_after(0);
    let stop = CancellationToken::new();
    stop.cancel();
    let first = errand(None, stop).await;
    let work = Rewrapping(Some(Node::fresh(&kek)));
    assert_eq!(work.run(&first).await, Err(Failure::Stopped));
    kek.mend();
    let second = errand(first.desk.checkpoint(), CancellationToken::new()).await;
    work.run(&second).await.unwrap();
    assert_eq!(node.home(acme).await.providers().unwrap().newest_key().unwrap().kek, "kek-1");
}

#[tokio::test]
async fn a_rewrap_does_not_succeed_without_a_tenant_that_another_process_has_made() {
    let kek = Kek::default();
    let node = Node::open(Box::new(kek.clone())).await;
    let acme = node.directory.tenant(node.tenant("acme").await).unwrap();
    let job = node.submit(Kind::Rewrap, None).await;
    let job = node.directory.job(job).await.unwrap().unwrap();
    let stop = CancellationToken::new();
    let errand = Errand { job, directory: node.directory.clone(), stop, desk: Arc::new(Desk::default()) };
    let work = Rewrapping(Some(Node::fresh(&kek)));
    let mut control = node.store.control_again().await.unwrap();
    for (slug, lifecycle, succeeds) in [("gone", Lifecycle::Archived, true), ("new", Lifecycle::Active, false)] {
        let id = TenantId(clock::new_id());
        let tenant = Tenant { id, slug: slug.into(), lifecycle, external_ids: Vec::new(), ..acme.clone() };
        control.begin().await.unwrap();
        catalogue::insert_tenant(&mut control, &tenant).await.unwrap();
        control.commit().await.unwrap();
        let told = work.run(&errand).await;
        assert_eq!(told.is_ok(), succeeds, "{slug}: {told:?}");
        assert!(succeeds || matches!(told, Err(Failure::Retryable(_))), "{slug}: {told:?}");
    }
}

#[tokio::test]
async fn without_a_vault_the_work_says_so() {
    let node = Node::open(Box::new(Kek::default())).await;
    let acme = node.tenant("acme").await;
    let (stop, runner) = node.run(&Tools::default());
    for (kind, tenant) in [(Kind::RotateDataKey, Some(acme)), (Kind::Rewrap, None), (Kind::LiteLlmSync, None)] {
        let job = node.submit(kind, tenant).await;
        let job = node.until(job, |job| job.state.is_finished()).await;
        assert_eq!((job.state, job.error.as_str()), (State::Failed, "there is no vault"));
    }
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn whoever_is_archived_can_be_read_by_nobody() {
    let node = Node::open(Box::new(Kek::default())).await;
    let acme = node.tenant("acme").await;
    let provider = node.provider(acme, "p", ProviderKind::OpenAi).await;
    node.keep(acme, provider, "sk-canary-0123456789").await;
    let shift = async |to| node.directory.shift(acme, to, Request::system()).await.unwrap();
    shift(Lifecycle::Suspended).await;
    assert_eq!(
        node.reveal(&node.vault, acme, provider).await,
        "sk-canary-0123456789",
        "a suspended tenant may come back"
    );
    shift(Lifecycle::Archived).await;
    let mut reader = node.store.reader(acme).await.unwrap();
    let rows =
        "SELECT (SELECT COUNT(*) FROM data_key) + (SELECT COUNT(*) FROM provider_secret), COUNT(*) FROM provider";
    let row = reader.fetch_one_optional(rows, &[]).await.unwrap().unwrap();
    assert_eq!((row.int(0).unwrap(), row.int(1).unwrap()), (0, 1));
    let recorded = "SELECT COUNT(*) FROM audit_record WHERE action = 'dataKey.destroyed'";
    let row = reader.fetch_one_optional(recorded, &[]).await.unwrap().unwrap();
    assert_eq!(row.int(0).unwrap(), 1);
}

#[tokio::test]
async fn what_was_let_in_before_keeps_nothing_though_the_actor_is_another() {
    let mut node = Node::open(Box::new(Kek::default())).await;
    let (acme, beta) = (node.tenant("acme").await, node.tenant("beta").await);
    let mut providers = Vec::new();
    for tenant in [acme, beta] {
        providers.push((tenant, node.provider(tenant, "p", ProviderKind::OpenAi).await));
    }
    node.keep(acme, providers[0].1, "sk-canary-0123456789").await;
    // Archiving stops between its last step but one, and the catalogue: the tenants are still served.
    for tenant in [acme, beta] {
        node.home(tenant).await.change(DestroyKeys, Request::system(), untold).await.unwrap().unwrap();
    }
    let secret = SecretString::from("sk-canary-9876543210");
    let refused = Err(DeskError::Declined(Declined::Refused(Refusal::Unknown)));
    for round in ["the same actor", "another one"] {
        for (tenant, provider) in &providers {
            let home = node.home(*tenant).await;
            let asked = (*provider, &secret);
            let told = desk::keep(&node.vault, &home, asked, &Expected::Any, &Request::system(), untold).await;
            assert_eq!(told, refused, "{round}");
            let books = home.providers().unwrap();
            assert!(books.keys().is_empty() && books.get(*provider).unwrap().secret.is_none(), "{round}");
        }
        node.reopen().await;
    }
}
