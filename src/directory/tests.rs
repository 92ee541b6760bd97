//! The directory and the tenants' actors on real databases.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handle::{Amendment, Handle, NewKey, NewTenant, Onboarded, Refused, record};
use super::jobs::JobRefused;
use super::registrar::{Begun, Change, Message, What};
use super::workflow::{Finish, Plan};
use super::{Settings, open, task};
use crate::clock::{self, Clock};
use crate::config;
use crate::domain::api_key::{self, ApiKey, Edit, Patch, Terms, hour_of};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{QuotaId, TenantId};
use crate::domain::job::State;
use crate::domain::notice::{Attempt, AttemptResult, Delivery};
use crate::domain::organization::Expected;
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Enforcement, Metric, Quota, Scope, Verdict};
use crate::domain::report::ChainQuery;
use crate::domain::request::{Answer, Idempotency, Request};
use crate::domain::routing::Routing;
use crate::domain::stream::Checkpoint;
use crate::domain::tenant::{ExternalId, Lifecycle, Role, Tenant};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, Flags, Kind, Outcome, Refusal, Status, Subject, UsageEvent};
use crate::jobs::kinds::Tools;
use crate::jobs::runner::Runner;
use crate::store::database::{Connection, Store};
use crate::tenant::handle::{Origin, Unavailable};
use crate::tenant::message::QuotaDraft;

const PATIENCE: Duration = Duration::from_secs(90);

/// A node on a database of its own; what it made is dropped with it.
struct Node {
    settings: config::Store,
    _directory: tempfile::TempDir,
}

impl Node {
    fn sqlite() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let url = SecretString::from(format!("sqlite:{}", directory.path().join("data").display()));
        Node { settings: config::Store { url, ..config::Store::default() }, _directory: directory }
    }

    async fn open(&self) -> Handle {
        self.open_with(config::Tenants { idle_ms: 600_000, ..config::Tenants::default() }).await
    }

    async fn open_with(&self, tenants: config::Tenants) -> Handle {
        self.open_at(tenants, Clock::system()).await
    }

    async fn open_at(&self, tenants: config::Tenants, clock: Clock) -> Handle {
        self.open_on(Store::open(&self.settings).await.unwrap(), tenants, clock).await
    }

    /// As a second node does, on databases that are open already.
    async fn open_on(&self, store: Store, tenants: config::Tenants, clock: Clock) -> Handle {
        let settings = Settings {
            tenants,
            retention_micros: 400 * crate::domain::time::MICROS_PER_DAY,
            routing: Arc::new(Routing::all(vec!["test".into()])),
            reconcile: crate::domain::reconcile::Terms::default(),
            lease_micros: 1_000_000,
        };
        let (hints, mut committed) = mpsc::channel(16);
        tokio::spawn(async move { while committed.recv().await.is_some() {} });
        open(store, settings, clock, hints).await.unwrap()
    }
}

fn new_tenant(name: &str) -> NewTenant {
    NewTenant {
        name: name.into(),
        slug: None,
        tier: "standard".into(),
        time_zone: "Europe/Berlin".into(),
        external_ids: vec![ExternalId { source: "litellm".into(), kind: "team".into(), id: format!("team-{name}") }],
        settings: "{}".into(),
    }
}

fn new_key(id: &str) -> NewKey {
    NewKey { id: id.into(), hash: [7; 32], name: "admin".into(), role: Role::Admin }
}

fn request(key: Option<&str>) -> Request {
    let idempotency = key.map(|key| Idempotency { key: key.into(), body_hash: [1; 32] });
    Request { actor: "platform".into(), request_id: "r-1".into(), idempotency }
}

fn render(onboarded: &Onboarded) -> String {
    onboarded.tenant.slug.clone()
}

pub(super) async fn onboard(handle: &Handle, name: &str) -> TenantId {
    let answer = handle.onboard(new_tenant(name), new_key(&format!("key-{name}")), request(None), render).await;
    match answer.unwrap() {
        Answer::Fresh(onboarded) => onboarded.tenant.id,
        Answer::Replayed(answer) => panic!("replayed {answer}"),
    }
}

fn event(id: &str, tokens: i64) -> UsageEvent {
    UsageEvent {
        source: "test".into(),
        event_id: id.into(),
        occurred_at: Clock::system().now(),
        kind: Kind::Delta,
        status: Status::Success,
        subject: Subject { user: "ada".into(), model: "gpt-4o".into(), ..Subject::default() },
        call_type: "acompletion".into(),
        amounts: Amounts { requests: 1, prompt_tokens: tokens, ..Amounts::default() },
        flags: Flags::default(),
        details: String::new(),
    }
}

fn draft(limit: i64, enforcement: Enforcement) -> QuotaDraft {
    let quota = Quota {
        id: QuotaId(clock::new_id()),
        scope: Scope::User("ada".into()),
        metric: Metric::Tokens,
        period: PeriodKind::Total,
        limit,
        thresholds: vec![50, 100],
        enforcement,
    };
    QuotaDraft { quota, named: false }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_lives_through_usage_alerts_a_restart_and_a_suspension() {
    let node = Node::sqlite();
    let handle = node.open().await;
    let id = onboard(&handle, "acme").await;
    assert_eq!(handle.lifecycle(id), Some(Lifecycle::Active));
    assert_eq!(handle.attribute(&new_tenant("acme").external_ids), Some(id));
    let tenant = handle.find(id).await.unwrap();

    let standings = tenant.replace_quotas(vec![draft(100, Enforcement::Block)], request(None), |_| String::new()).await;
    let Answer::Fresh(standings) = standings.unwrap().unwrap() else { panic!("replayed") };
    let quota = standings[0].quota.id;

    let first = event("1", 40);
    let mut changed = first.clone();
    changed.amounts.prompt_tokens = 41;
    let mut old = event("old", 1);
    old.occurred_at = Timestamp(1);
    let events = vec![first.clone(), first.clone(), changed.clone(), event("2", 20), old];
    let outcomes = tenant.record(events, Origin::default(), PATIENCE).await.unwrap();
    let expected = [
        Outcome::Accepted,
        Outcome::Duplicate,
        Outcome::Conflict,
        Outcome::Accepted,
        Outcome::Refused(Refusal::TooOld),
    ];
    assert_eq!(outcomes, expected);
    let again = tenant.record(vec![first, changed], Origin::default(), PATIENCE).await.unwrap();
    assert_eq!(again, [Outcome::Duplicate, Outcome::Conflict]);
    assert_eq!(tenant.standings().unwrap()[0].used, 60);
    assert_eq!(tenant.firing().await.unwrap().len(), 1);
    assert_eq!(tenant.due(10).await.unwrap().unwrap().len(), 1);

    // Editing keeps the usage and the id; the alert resolves because the threshold is far again.
    let standings =
        tenant.replace_quotas(vec![draft(1_000, Enforcement::Block)], request(None), |_| String::new()).await;
    let Answer::Fresh(standings) = standings.unwrap().unwrap() else { panic!("replayed") };
    assert_eq!((standings[0].quota.id, standings[0].used), (quota, 60));
    assert!(tenant.firing().await.unwrap().is_empty());
    tenant.record(vec![event("3", 940)], Origin::default(), PATIENCE).await.unwrap();
    let subject = Subject { user: "ada".into(), ..Subject::default() };
    assert_eq!(tenant.decide(&subject).unwrap().decision.verdict, Verdict::Deny);
    assert_eq!(tenant.decide(&Subject::default()).unwrap().decision.verdict, Verdict::Allow);

    handle.drain(PATIENCE).await;
    drop((handle, tenant));
    let handle = node.open().await;
    let tenant = handle.find(id).await.unwrap();
    assert_eq!(tenant.standings().unwrap()[0].used, 1_000);
    assert_eq!(tenant.decide(&subject).unwrap().decision.verdict, Verdict::Deny);
    let again = tenant.record(vec![event("3", 940)], Origin::default(), PATIENCE).await.unwrap();
    assert_eq!(again, [Outcome::Conflict], "the same id at another time is a conflict, not a second charge");
    assert_eq!(tenant.audit_verify(PATIENCE).await.unwrap().unwrap().broken, None);

    let suspended = handle.shift(id, Lifecycle::Suspended, request(None)).await.unwrap();
    assert_eq!(suspended.lifecycle, Lifecycle::Suspended);
    let refused = handle.shift(id, Lifecycle::Suspended, request(None)).await;
    assert_eq!(refused, Err(Refused::IllegalMove { from: Lifecycle::Suspended, to: Lifecycle::Suspended }));
    let chain = tenant.audit_page(ChainQuery { after: 0, limit: 100 }).await.unwrap().unwrap();
    let text: String =
        chain.items.iter().map(|record| String::from_utf8_lossy(&record.link.bytes).into_owned()).collect();
    for action in [
        "tenant.created",
        "apiKey.created",
        "quotas.replaced",
        "usage.committed",
        "alert.fired",
        "alert.resolved",
        "owner.changed",
        "tenant.suspended",
    ] {
        assert!(text.contains(action), "{action} is missing");
    }
    handle.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn onboarding_is_idempotent_and_guards_what_is_taken() {
    let node = Node::sqlite();
    let handle = node.open().await;
    let first = handle.onboard(new_tenant("acme"), new_key("k1"), request(Some("once")), render).await.unwrap();
    assert!(matches!(first, Answer::Fresh(_)));
    let again = handle.onboard(new_tenant("acme"), new_key("k2"), request(Some("once")), render).await.unwrap();
    assert_eq!(again, Answer::Replayed("acme".into()));
    let mut other = request(Some("once"));
    other.idempotency = other.idempotency.map(|known| Idempotency { body_hash: [2; 32], ..known });
    let mismatch = handle.onboard(new_tenant("acme"), new_key("k3"), other, render).await;
    assert_eq!(mismatch, Err(Refused::IdempotencyMismatch));
    let taken = handle.onboard(new_tenant("acme"), new_key("k4"), request(None), render).await;
    assert_eq!(taken, Err(Refused::ExternalIdTaken { index: 0 }));
    let mut named = new_tenant("other");
    named.slug = Some("acme".into());
    assert_eq!(handle.onboard(named, new_key("k5"), request(None), render).await, Err(Refused::SlugTaken));

    let id = handle.tenants(None, 10).items[0].id;
    let key = handle.revoke_key(id, "k1", request(None)).await.unwrap();
    assert!(key.revoked_at.is_some() && handle.api_key("k1").unwrap().revoked_at.is_some());
    let amendment = Amendment { time_zone: Some("Asia/Kathmandu".into()), ..Amendment::default() };
    handle.amend(id, amendment, request(None)).await.unwrap();
    handle.drain(PATIENCE).await;
    drop(handle);

    let handle = node.open().await;
    assert_eq!(handle.tenant(id).unwrap().time_zone, "Asia/Kathmandu");
    let tenant = handle.find(id).await.unwrap();
    assert_eq!(tenant.describe().await.unwrap().books.time_zone.iana_name(), Some("Asia/Kathmandu"));
    handle.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_changed_and_used_across_a_restart() {
    let node = Node::sqlite();
    let handle = node.open().await;
    let (acme, globex) = (onboard(&handle, "acme").await, onboard(&handle, "globex").await);
    let show = |key: &ApiKey| format!("version {}", key.version);
    let rotate = |hash, overlap_micros| Edit::Rotate { hash: [hash; 32], overlap_micros };
    let edit = async |tenant, id: &str, edit: Edit, expected: Expected, once: Option<&str>| {
        handle.edit_key(tenant, id, edit, expected, request(once), show).await
    };
    let any = || Expected::Any;
    let first = edit(acme, "key-acme", rotate(1, 60_000_000), any(), Some("once")).await.unwrap();
    let Answer::Fresh(rotated) = first else { panic!("nothing was asked before") };
    assert_eq!((rotated.hash, rotated.previous.unwrap().hash, rotated.version), ([1; 32], [7; 32], 2));
    let again = edit(acme, "key-acme", rotate(2, 60_000_000), any(), Some("once")).await;
    assert_eq!(again, Ok(Answer::Replayed("version 2".into())), "the secret is another one, and is not taken");
    assert_eq!(handle.api_key("key-acme").unwrap().hash, [1; 32]);
    let early = edit(acme, "key-acme", rotate(2, 60_000_000), any(), None).await;
    assert!(matches!(early, Err(Refused::Key(api_key::Refusal::Overlapping { .. }))), "{early:?}");
    let stale = edit(acme, "key-acme", rotate(2, 0), Expected::OneOf(vec![1]), None).await;
    assert_eq!(stale, Err(Refused::Key(api_key::Refusal::Stale)));
    for (tenant, id) in [(globex, "key-acme"), (acme, "nobody")] {
        assert_eq!(edit(tenant, id, rotate(2, 0), any(), None).await, Err(Refused::UnknownKey), "{id}");
    }
    let patch = Patch { scopes: Some(vec!["usage:*".parse().unwrap()]), ..Patch::default() };
    edit(acme, "key-acme", Edit::Patch(patch), Expected::OneOf(vec![2]), None).await.unwrap();
    // A place of an expired key is free.
    for number in 0..super::api_key::API_KEYS_MAX {
        let terms = Terms { expires_at: Some(Timestamp(1)), ..Terms::default() };
        let key = new_key(&format!("{number}"));
        handle.issue_key(globex, key, terms, request(None), |_| String::new()).await.unwrap();
    }
    handle.issue_key(globex, new_key("k"), Terms::default(), request(None), |_| String::new()).await.unwrap();
    // One that is given time takes a place again, as long as there is one.
    let prolong = || Edit::Patch(Patch { expires_at: Some(None), ..Patch::default() });
    let ids: Vec<String> = (0..super::api_key::API_KEYS_MAX).map(|number| new_key(&format!("{number}")).id).collect();
    let (fitting, over) = ids.split_at(super::api_key::API_KEYS_MAX - 2);
    for id in fitting {
        edit(globex, id, prolong(), any(), None).await.unwrap();
    }
    assert_eq!(edit(globex, &over[0], prolong(), any(), None).await, Err(Refused::TooManyKeys));
    // A live one is changed as before.
    edit(globex, &fitting[0], prolong(), any(), None).await.unwrap();
    handle.note_key_use("key-acme");
    let (kept, used) = (handle.api_key("key-acme"), handle.key_last_used("key-acme").unwrap());
    assert_eq!(used, hour_of(used));
    let chain =
        handle.find(acme).await.unwrap().audit_page(ChainQuery { after: 0, limit: 100 }).await.unwrap().unwrap();
    let text: String =
        chain.items.iter().map(|record| String::from_utf8_lossy(&record.link.bytes).into_owned()).collect();
    assert_eq!(["apiKey.rotated", "apiKey.changed"].map(|action| text.matches(action).count()), [1, 1], "{text}");
    handle.drain(PATIENCE).await;
    drop(handle);

    let handle = node.open().await;
    assert_eq!((handle.api_key("key-acme"), handle.key_last_used("key-acme")), (kept, Some(used)));
    assert_eq!(handle.key_last_used("key-globex"), None);
    handle.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_tenants_rest_and_make_room() {
    let node = Node::sqlite();
    let handle = node.open_with(config::Tenants { open_max: 2, idle_ms: 600_000, ..config::Tenants::default() }).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(onboard(&handle, name).await);
    }
    for round in 0..2 {
        for id in &ids {
            let outcome = loop {
                let Ok(tenant) = handle.find(*id).await else { continue };
                if let Ok(outcomes) = tenant.record(vec![event("1", 5)], Origin::default(), PATIENCE).await {
                    break outcomes[0];
                }
            };
            assert_eq!(outcome == Outcome::Accepted, round == 0, "{outcome:?}");
        }
    }
    assert!(handle.open_tenants().len() <= 2);
    handle.drain(PATIENCE).await;
    assert!(handle.open_tenants().is_empty());
}

/// Two tenants that never fall silent have both places, and a third one is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_are_busy_nobody_is_kept_out_for_ever() {
    let node = Node::sqlite();
    let handle = node.open_with(config::Tenants { open_max: 2, idle_ms: 600_000, ..config::Tenants::default() }).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(onboard(&handle, name).await);
    }
    let counted = |id: TenantId| {
        let handle = handle.clone();
        async move {
            for number in 0.. {
                let event = event(&number.to_string(), 1);
                let mut is_counted = false;
                while !is_counted {
                    if let Ok(tenant) = handle.find(id).await {
                        is_counted = tenant.record(vec![event.clone()], Origin::default(), PATIENCE).await.is_ok();
                    }
                }
            }
        }
    };
    let busy = [tokio::spawn(counted(ids[0])), tokio::spawn(counted(ids[1]))];
    for _ in 0..3 {
        let third = async { while handle.find(ids[2]).await.is_err() {} };
        tokio::time::timeout(PATIENCE, third).await.expect("a place before long");
        let back = async { while handle.find(ids[0]).await.is_err() || handle.find(ids[1]).await.is_err() {} };
        tokio::time::timeout(PATIENCE, back).await.expect("and they come back");
    }
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    handle.drain(PATIENCE).await;
    assert!(handle.open_tenants().is_empty());
}

/// Nobody asks for a tenant that rests, and its alert is over all the same when its time is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_time_alone_ends_is_ended_though_its_tenant_rests() {
    let node = Node::sqlite();
    let noon: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let clock = Clock::held_at(noon);
    let handle = node.open_at(config::Tenants { idle_ms: 1_000, ..config::Tenants::default() }, clock.clone()).await;
    let id = onboard(&handle, "acme").await;
    let tenant = handle.find(id).await.unwrap();
    let mut quota = draft(100, Enforcement::Block);
    quota.quota.period = PeriodKind::Hour;
    tenant.replace_quotas(vec![quota], request(None), |_| String::new()).await.unwrap().unwrap();
    let mut used = event("1", 100);
    used.occurred_at = noon;
    tenant.record(vec![used], Origin::default(), PATIENCE).await.unwrap();
    assert!(!tenant.pulse().books().firing.is_empty());
    let delivered = |one: Delivery| Attempt {
        alert: one.alert.id,
        event: one.event,
        channel: one.channel,
        at: noon,
        result: AttemptResult::Delivered,
    };
    tenant.settle(tenant.due(10).await.unwrap().unwrap().into_iter().map(delivered).collect()).await.unwrap();
    drop(tenant);

    clock.set(noon.plus_micros(crate::domain::time::MICROS_PER_MINUTE));
    eventually("the tenant to rest", || handle.open_tenants().is_empty()).await;
    clock.set(noon.plus_micros(crate::domain::time::MICROS_PER_HOUR));
    eventually("the alert to be over", || {
        handle.open_tenants().first().is_some_and(|tenant| tenant.pulse().books().firing.is_empty())
    })
    .await;
    handle.drain(PATIENCE).await;
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain for {what}");
}

/// Nobody takes what is owed, and there are more that owe than places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_owe_make_room_and_take_turns() {
    let node = Node::sqlite();
    let began = Clock::system().now();
    let clock = Clock::held_at(began);
    let tenants = config::Tenants { open_max: 2, idle_ms: 600_000_000, ..config::Tenants::default() };
    let handle = node.open_at(tenants, clock.clone()).await;
    let pass = |micros: i64| clock.set(clock.now().plus_micros(micros));
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        ids.push(onboard(&handle, name).await);
        pass(200_000);
    }
    let find = async |id: TenantId| {
        let asked = tokio::time::Instant::now();
        loop {
            // Long enough to be asked to make room, and too short to come back for what is owed.
            pass(200_000);
            match handle.find(id).await {
                Ok(tenant) => return tenant,
                Err(_) => assert!(asked.elapsed() < Duration::from_secs(20), "there is no room for {id}"),
            }
        }
    };
    for id in &ids {
        let quota = draft(10, Enforcement::Alert);
        while find(*id).await.replace_quotas(vec![quota.clone()], request(None), |_| String::new()).await.is_err() {}
        while find(*id).await.record(vec![event("1", 20)], Origin::default(), PATIENCE).await.is_err() {}
    }
    assert!(handle.open_tenants().len() <= 2);
    // Each can be opened although all owe, and still owes.
    for id in &ids {
        let due = loop {
            if let Ok(Ok(due)) = find(*id).await.due(10).await {
                break due;
            }
        };
        assert_eq!(due.len(), 2, "half of it and all of it");
    }
    // Time goes on and nobody asks: they come by themselves, one after the other.
    let mut seen = std::collections::BTreeSet::new();
    let waited = tokio::time::Instant::now();
    while seen.len() < ids.len() {
        assert!(waited.elapsed() < Duration::from_secs(60), "only {seen:?} came back");
        pass(5_000_000);
        seen.extend(handle.open_tenants().iter().map(crate::tenant::handle::Handle::tenant));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(handle.open_tenants().len() <= 2);
    handle.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reporters_share_commits_and_lose_nothing() {
    let node = Node::sqlite();
    let handle = node.open().await;
    let id = onboard(&handle, "acme").await;
    let tenant = handle.find(id).await.unwrap();
    let tenant = Arc::new(tenant);
    let reporters = (0..32).map(|reporter| {
        let tenant = tenant.clone();
        tokio::spawn(async move {
            for number in 0..20 {
                let events = vec![event(&format!("{reporter}-{number}"), 1), event(&format!("shared-{number}"), 1)];
                tenant.record(events, Origin::default(), PATIENCE).await.unwrap();
            }
        })
    });
    for reporter in reporters.collect::<Vec<_>>() {
        reporter.await.unwrap();
    }
    let books = tenant.describe().await.unwrap().books;
    assert_eq!(books.lifetime.events, 32 * 20 + 20);
    assert!(books.version < 32 * 20, "{} commits were not shared", books.version);
    assert_eq!(tenant.audit_verify(PATIENCE).await.unwrap().unwrap().broken, None);
    handle.drain(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_ahead_and_back_does_not_reset_a_running_quota() {
    let node = Node::sqlite();
    let now = Clock::system().now();
    let clock = Clock::held_at(now);
    let handle =
        node.open_at(config::Tenants { idle_ms: 600_000_000, ..config::Tenants::default() }, clock.clone()).await;
    let id = onboard(&handle, "acme").await;
    let tenant = handle.find(id).await.unwrap();
    let mut quota = draft(100, Enforcement::Block);
    quota.quota.period = PeriodKind::Day;
    tenant.replace_quotas(vec![quota], request(None), |_| String::new()).await.unwrap().unwrap();
    tenant.record(vec![event("1", 100)], Origin::default(), PATIENCE).await.unwrap();

    let used = async || match handle.find(id).await {
        Ok(tenant) => tenant.describe().await.map(|found| found.books.standings(clock.now())[0].used).ok(),
        Err(_) => None,
    };
    clock.set(now.plus_micros(3 * crate::domain::time::MICROS_PER_DAY));
    tokio::time::sleep(Duration::from_millis(600)).await;
    // A commit made in the wrong future forgets the counter.
    let mut ahead = event("2", 1);
    ahead.occurred_at = clock.now();
    tenant.record(vec![ahead], Origin::default(), PATIENCE).await.unwrap();
    assert_eq!(used().await, Some(1));
    clock.set(now);
    for _ in 0..1_800 {
        if used().await == Some(100) {
            handle.drain(PATIENCE).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the day's usage is {:?}, and not 100", used().await);
}

/// Counts one event at a node; asks again while the tenant is on its way.
async fn counted(node: &Handle, tenant: TenantId, event: &UsageEvent) -> Outcome {
    let began = tokio::time::Instant::now();
    loop {
        if let Ok(home) = node.find(tenant).await
            && let Ok(outcomes) = home.record(vec![event.clone()], Origin::default(), PATIENCE).await
        {
            return outcomes[0];
        }
        assert!(began.elapsed() < PATIENCE, "{} is not counted", event.event_id);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A tenant leaves while the catalogue cannot be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_catalogue_cannot_remember_is_remembered_later() {
    let node = Node::sqlite();
    let store = Store::open(&node.settings).await.unwrap();
    let tenants = config::Tenants { open_max: 1, idle_ms: 600_000, ..config::Tenants::default() };
    let handle = node.open_on(store.clone(), tenants, Clock::system()).await;
    let (acme, globex, initech) =
        (onboard(&handle, "acme").await, onboard(&handle, "globex").await, onboard(&handle, "initech").await);
    let mut control = store.control().await.unwrap();
    counted(&handle, acme, &event("1", 1)).await;
    control.execute("ALTER TABLE tenant RENAME TO elsewhere", &[]).await.unwrap();
    counted(&handle, acme, &event("2", 1)).await;
    let head = handle.find(acme).await.unwrap().describe().await.unwrap().books.head;
    counted(&handle, globex, &event("1", 1)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    control.execute("ALTER TABLE elsewhere RENAME TO tenant", &[]).await.unwrap();
    counted(&handle, initech, &event("1", 1)).await;
    let began = tokio::time::Instant::now();
    let remembered = "SELECT head_seq, awake FROM tenant WHERE id = $1";
    loop {
        let rows = control.fetch(remembered, &[acme.to_string().into()]).await.unwrap();
        let noted = (rows[0].int(0).unwrap(), rows[0].int(1).unwrap());
        if noted == (head.seq, 0) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{noted:?} is remembered, and not {}", head.seq);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    handle.drain(PATIENCE).await;
}

/// What the deposed node had in its hands stood where its heir had written meanwhile; it was taken for unwritable, and
/// the tenant for one that needs a person.
#[tokio::test]
async fn a_tenant_that_another_node_took_over_is_yielded_and_comes_back_when_it_is_asked_for() {
    let node = Node::sqlite();
    let store = Store::open(&node.settings).await.unwrap();
    let tenants = || config::Tenants { restart_backoff_ms: 50, ..config::Tenants::default() };
    let first = node.open_on(store.clone(), tenants(), Clock::system()).await;
    let tenant = onboard(&first, "acme").await;
    let known = event("e-1", 1);
    assert_eq!(counted(&first, tenant, &known).await, Outcome::Accepted);
    let second = node.open_on(store, tenants(), Clock::system()).await;
    assert_eq!(counted(&second, tenant, &event("e-2", 1)).await, Outcome::Accepted);

    let late = first.find(tenant).await.unwrap().record(vec![event("e-3", 1)], Origin::default(), PATIENCE).await;
    assert_eq!(late, Err(Unavailable::ComeBack), "the events of a deposed owner are not judged");
    assert_eq!(counted(&first, tenant, &event("e-3", 1)).await, Outcome::Accepted);
    assert_eq!(counted(&second, tenant, &event("e-4", 1)).await, Outcome::Accepted);
    assert_eq!(counted(&second, tenant, &known).await, Outcome::Duplicate);
}

/// Begins a change as a node does that is killed the moment after.
pub(super) async fn begun_and_gone(handle: &Handle, slug: &str) -> (TenantId, crate::domain::job::Job) {
    let id = TenantId(clock::new_id());
    let now = Clock::system().now();
    let tenant = Tenant {
        id,
        name: slug.into(),
        slug: slug.into(),
        tier: "standard".into(),
        time_zone: "UTC".into(),
        lifecycle: Lifecycle::Pending,
        external_ids: Vec::new(),
        settings: "{}".into(),
        created_at: now,
        updated_at: now,
    };
    let key = new_key(slug).into_key(id, Terms::default(), now);
    let once = request(Some("once"));
    let idempotency = once.idempotency.clone();
    let plan = Box::new(move |_: &_| {
        let records = vec![record(&once, "tenant.created", format!("tenant:{id}"), "{}".into())];
        let plan = Plan { create: Some("UTC".into()), records, ..Plan::default() };
        plan.answering(once.idempotency.as_ref(), || "made".into())
    });
    let change = Change { what: What::Reserve { tenant, key, slug_is_derived: false }, plan, idempotency };
    match handle.register(|reply| Message::Begin { change: Box::new(change), reply }).await.unwrap() {
        Begun::Now { job, .. } => (id, *job),
        Begun::Before(answer) => panic!("replayed {answer}"),
    }
}

#[tokio::test]
async fn a_change_whose_node_is_gone_is_finished_once_by_another_that_never_knew_the_tenant() {
    let node = Node::sqlite();
    let store = Store::open(&node.settings).await.unwrap();
    let first = node.open_on(store.clone(), config::Tenants::default(), Clock::system()).await;
    let second = node.open_on(store, config::Tenants::default(), Clock::system()).await;
    let (tenant, held) = begun_and_gone(&first, "acme").await;
    assert_eq!((second.lifecycle(tenant), held.state, held.attempts), (None, State::Running, 1));
    for node in [&first, &second] {
        let again = node.onboard(new_tenant("acme"), new_key("k2"), request(Some("once")), render).await;
        assert!(matches!(again, Err(Refused::Unavailable(_))), "it is under way, on every node: {again:?}");
        let canceled = node.cancel_job(held.id, Request::system(), |_| String::new()).await;
        assert_eq!(canceled, Err(task::Declined::Refused(JobRefused::NotCancelable)));
    }

    // Two that look for work at once.
    for _ in 0..2 {
        let settings = config::Jobs { lease_ms: 1_000, ..config::Jobs::default() };
        let runner = Runner::new(second.clone(), Clock::system(), settings, &Tools::default());
        tokio::spawn(runner.run(CancellationToken::new()));
    }
    let waiting = async {
        while second.lifecycle(tenant) != Some(Lifecycle::Active) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(4 * PATIENCE, waiting).await.expect("the other node takes it up");
    let job = second.job(held.id).await.unwrap().unwrap();
    assert_eq!((job.state, job.attempts, job.error.as_str()), (State::Succeeded, 2, ""));
    assert_eq!(
        (job.result.as_str(), job.draft.arguments.as_str()),
        ("{\"records\":1}", "{}"),
        "nothing to erase is kept"
    );

    // The first one wakes up and goes on with what it held.
    let finish = Finish { job: held, result: "{}".into(), activate: None, answer: None };
    let late = first.register(|reply| Message::Finish { finish: Box::new(finish), reply }).await;
    assert_eq!(late, Ok(false));
    for node in [&first, &second] {
        let again = node.onboard(new_tenant("acme"), new_key("k2"), request(Some("once")), render).await;
        assert_eq!(again, Ok(Answer::Replayed("made".into())));
    }
    let chain =
        second.find(tenant).await.unwrap().audit_page(ChainQuery { after: 0, limit: 100 }).await.unwrap().unwrap();
    let made =
        chain.items.iter().filter(|record| String::from_utf8_lossy(&record.link.bytes).contains("tenant.created"));
    assert_eq!(made.count(), 1);
}

/// Says a word into the platform's chain.
#[derive(Debug)]
struct Say(&'static str, Arc<std::sync::Mutex<Vec<String>>>);

impl task::Change for Say {
    type Done = String;
    type Refused = &'static str;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        _now: Timestamp,
    ) -> Result<String, task::Halt<&'static str>> {
        connection.fetch("SELECT head_seq FROM platform", &[]).await?;
        if self.0.is_empty() {
            return Err(task::Halt::Refused("nothing to say"));
        }
        entries.push(Entry {
            actor: request.actor.clone(),
            action: "word.said".into(),
            target: "word".into(),
            outcome: EntryOutcome::Success,
            request_id: request.request_id.clone(),
            payload: "{}".into(),
        });
        Ok(self.0.to_owned())
    }

    fn publish(&self, done: &String) {
        self.1.lock().unwrap().push(done.clone());
    }
}

#[tokio::test]
async fn a_change_of_the_platform_s_is_made_once_per_key_and_shown_after_its_commit() {
    let node = Node::sqlite();
    let directory = node.open().await;
    let shown = Arc::new(std::sync::Mutex::new(Vec::new()));
    let said = async || {
        let page = directory.platform_audit_page(ChainQuery { after: 0, limit: 100 }).await.unwrap();
        page.items.iter().filter(|record| String::from_utf8_lossy(&record.link.bytes).contains("word.said")).count()
    };
    let request = |key: &str, body: u8| Request {
        idempotency: Some(Idempotency { key: key.into(), body_hash: [body; 32] }),
        ..Request::system()
    };
    let say = async |word: &'static str, request: Request| {
        directory.change(Say(word, shown.clone()), request, |said| format!("said {said}")).await
    };
    assert_eq!(say("", request("key", 1)).await, Err(task::Declined::Refused("nothing to say")));
    assert_eq!((said().await, shown.lock().unwrap().len()), (0, 0));
    assert_eq!(say("yes", request("key", 1)).await, Ok(Answer::Fresh("yes".into())));
    assert_eq!(say("yes", request("key", 1)).await, Ok(Answer::Replayed("said yes".into())));
    assert_eq!(say("no", request("key", 2)).await, Err(task::Declined::IdempotencyMismatch));
    assert_eq!((said().await, shown.lock().unwrap().clone()), (1, vec!["yes".to_owned()]));
    assert_eq!(say("again", Request::system()).await, Ok(Answer::Fresh("again".into())));
    assert_eq!((said().await, shown.lock().unwrap().len()), (2, 2));
    assert!(directory.platform_audit_verify().await.unwrap().broken.is_none());
}

#[tokio::test]
async fn what_was_used_is_forgotten_with_what_is_used_later() {
    let node = Node::sqlite();
    let start = Timestamp(1_790_000_000_000_000);
    let clock = Clock::held_at(start);
    let directory = node.open_at(config::Tenants::default(), clock.clone()).await;
    let minutes = |minutes: i64| start.plus_micros(minutes * 60_000_000);
    assert!(directory.use_once("first".into(), minutes(1)).await.unwrap());
    clock.set(minutes(1));
    assert!(!directory.use_once("first".into(), minutes(2)).await.unwrap(), "whoever uses it has an older clock");
    clock.set(minutes(3));
    assert!(directory.use_once("second".into(), minutes(4)).await.unwrap());
    assert!(!directory.is_used("first").await.unwrap(), "though nobody has logged in");
    assert!(directory.is_used("second").await.unwrap());
}

/// Whoever gave up sends it again, with the gaps that are recorded beside it: both would be in the chain.
#[tokio::test]
async fn a_checkpoint_that_nobody_waits_for_is_not_kept() {
    let node = Node::sqlite();
    let handle = node.open().await;
    let checkpoint = Checkpoint { stream: "S".into(), created_nanos: 1, sequence: 5, at_nanos: 2, hash: None };
    let (reply, gone) = ractor::concurrency::oneshot();
    drop(gone);
    let entries = Vec::new();
    let message = Message::KeepCheckpoint { checkpoint: checkpoint.clone(), entries, reply: reply.into() };
    handle.parts().registrar.cast(message).unwrap();
    handle.probe().await.unwrap();
    assert_eq!(handle.checkpoint("S").await.unwrap(), None);
    handle.keep_checkpoint(checkpoint.clone(), Vec::new()).await.unwrap();
    assert_eq!(handle.checkpoint("S").await.unwrap(), Some(checkpoint));
}
