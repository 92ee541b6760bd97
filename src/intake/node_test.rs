//! From bytes to the ledger and the quarantine, with a real directory and real tenants.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use secrecy::SecretString;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::mpsc;

use super::record::{BodyShape, ItemOutcome, RecordError, Recorder, ReplayError, ReplayOutcome, Reporter};
use crate::clock::{self, Clock};
use crate::config;
use crate::directory::handle::{Amendment, Handle, NewKey, NewTenant};
use crate::directory::{self, Settings};
use crate::domain::ids::TenantId;
use crate::domain::report::{ChainQuery, Quarantined};
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::{ExternalId, Lifecycle, Role};
use crate::domain::time::MICROS_PER_DAY;
use crate::domain::usage::{Refusal, Totals};
use crate::store::StoreError;
use crate::store::database::Store;

/// A day after the captured payloads.
pub(super) const NOW: &str = "2026-11-22T00:00:00Z";

/// A node on an embedded database, with acme (LiteLLM's `team-acme-eng`) and globex.
pub(super) struct Node {
    pub(super) directory: Handle,
    pub(super) recorder: Recorder,
    pub(super) clock: Clock,
    pub(super) acme: TenantId,
    pub(super) globex: TenantId,
    data: tempfile::TempDir,
}

impl Node {
    pub(super) async fn open() -> Node {
        let data = tempfile::tempdir().unwrap();
        let clock = Clock::held_at(NOW.parse().unwrap());
        let directory = directory_in(data.path(), &clock).await;
        let acme = onboard(&directory, "acme", &["team-acme-eng"]).await;
        let globex = onboard(&directory, "globex", &[]).await;
        let recorder = Recorder::new(directory.clone(), clock.clone(), config::Intake::default());
        Node { directory, recorder, clock, acme, globex, data }
    }

    /// Ends everything, does `between` to the closed files, and begins anew with them.
    pub(super) async fn reopened(self, between: impl FnOnce(&Node)) -> Node {
        self.directory.drain(super::stream_test::PATIENCE).await;
        between(&self);
        let Node { directory, recorder, clock, acme, globex, data } = self;
        drop((directory, recorder));
        let directory = directory_in(data.path(), &clock).await;
        let recorder = Recorder::new(directory.clone(), clock.clone(), config::Intake::default());
        Node { directory, recorder, clock, acme, globex, data }
    }

    /// The file of a tenant's database.
    pub(super) fn file_of(&self, tenant: TenantId) -> PathBuf {
        self.data.path().join("data/tenants").join(format!("{tenant}.db"))
    }

    /// What the platform's chain says with this action, oldest first.
    pub(super) async fn records(&self, action: &str) -> Vec<serde_json::Value> {
        let page = self.directory.platform_audit_page(ChainQuery { after: 0, limit: 1_000 }).await.unwrap();
        let of_action = |bytes: &[u8]| {
            let record: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            record["action"] == action
        };
        let records = page.items.into_iter().filter(|record| of_action(&record.link.bytes));
        records.map(|record| serde_json::from_str(&record.link.payload.unwrap()).unwrap()).collect()
    }

    pub(super) async fn totals(&self, tenant: TenantId) -> Totals {
        self.directory.find(tenant).await.unwrap().describe().await.unwrap().books.lifetime
    }

    pub(super) async fn quarantined(&self, tenant: Option<TenantId>) -> Vec<Quarantined> {
        self.directory.quarantined(tenant, None, None, 100).await.unwrap().items
    }

    pub(super) async fn record(
        &self,
        body: impl Into<Bytes>,
        reporter: Reporter,
    ) -> Result<Vec<ItemOutcome>, RecordError> {
        let shape = BodyShape::Events { content_type: "application/json".into(), ce_headers: Vec::new() };
        self.recorder.record_body(body.into(), shape, reporter, "r-1").await
    }
}

pub(super) fn external_ids(teams: &[&str]) -> Vec<ExternalId> {
    let id = |team: &&str| ExternalId { source: "litellm".into(), kind: "team".into(), id: (*team).into() };
    teams.iter().map(id).collect()
}

pub(super) fn request() -> Request {
    Request { actor: "platform".into(), request_id: "r-1".into(), idempotency: None }
}

/// The directory of a node whose data lies in `folder`.
async fn directory_in(folder: &Path, clock: &Clock) -> Handle {
    let url = SecretString::from(format!("sqlite:{}", folder.join("data").display()));
    let terms = config::Store { url, ..config::Store::default() };
    let began = tokio::time::Instant::now();
    // A task of the node before may hold its store a moment longer than the node.
    let store = loop {
        match Store::open(&terms).await {
            Err(StoreError::Retryable(_)) if began.elapsed() < super::stream_test::PATIENCE => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            opened => break opened.unwrap(),
        }
    };
    let settings = Settings {
        tenants: config::Tenants { idle_ms: 600_000, ..config::Tenants::default() },
        retention_micros: 400 * MICROS_PER_DAY,
        routing: std::sync::Arc::default(),
        reconcile: crate::domain::reconcile::Terms::default(),
        lease_micros: config::Jobs::default().lease_micros(),
    };
    let (hints, mut committed) = mpsc::channel(16);
    tokio::spawn(async move { while committed.recv().await.is_some() {} });
    directory::open(store, settings, clock.clone(), hints).await.unwrap()
}

async fn onboard(directory: &Handle, name: &str, teams: &[&str]) -> TenantId {
    let tenant = NewTenant {
        name: name.into(),
        slug: None,
        tier: "standard".into(),
        time_zone: "UTC".into(),
        external_ids: external_ids(teams),
        settings: "{}".into(),
    };
    let key = NewKey { id: format!("key-{name}"), hash: [7; 32], name: "admin".into(), role: Role::Admin };
    match directory.onboard(tenant, key, request(), |_| String::new()).await.unwrap() {
        Answer::Fresh(onboarded) => onboarded.tenant.id,
        Answer::Replayed(answer) => panic!("replayed {answer}"),
    }
}

pub(super) fn fixture(name: &str) -> Bytes {
    Bytes::from(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/litellm").join(name)).unwrap())
}

pub(super) fn event(id: &str, tenant: Option<TenantId>, tokens: i64) -> String {
    let tenant = tenant.map(|tenant| format!("\"tenantId\":\"{tenant}\",")).unwrap_or_default();
    format!(
        r#"{{"eventId":"{id}","occurredAt":"2026-11-21T10:00:00Z",{tenant}"payload":{{"usage":{{"tokens":{tokens}}}}}}}"#
    )
}

fn code(outcome: &ItemOutcome) -> &'static str {
    match outcome {
        ItemOutcome::Accepted => "accepted",
        ItemOutcome::Duplicate => "duplicate",
        ItemOutcome::Conflict => "conflict",
        ItemOutcome::Rejected { code, .. } | ItemOutcome::Parked { code, .. } => code,
    }
}

pub(super) fn codes(outcomes: &[ItemOutcome]) -> Vec<&'static str> {
    outcomes.iter().map(code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_answered_item_by_item_after_the_commit() {
    let node = Node::open().await;
    let (acme, globex) = (node.acme, node.globex);
    let body = [
        event("1", Some(acme), 5),
        event("1", Some(acme), 5),
        event("1", Some(acme), 6),
        event("1", Some(globex), 7),
        event("2", None, 1),
        event("3", Some(TenantId(uuid::Uuid::from_u128(9))), 1),
        event("4", Some(acme), -1),
        event("old", Some(acme), 1).replace("2026-11-21", "2020-01-01"),
        event("new", Some(acme), 1).replace("2026-11-21", "2027-01-01"),
        "7".to_owned(),
    ];
    let outcomes = node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
    let expected = [
        "accepted",
        "duplicate",
        "conflict",
        "accepted",
        "UNKNOWN_TENANT",
        "UNKNOWN_TENANT",
        "MALFORMED_EVENT",
        "EVENT_TOO_OLD",
        "EVENT_FROM_THE_FUTURE",
        "MALFORMED_EVENT",
    ];
    assert_eq!(codes(&outcomes), expected);
    assert_eq!(node.totals(acme).await.amounts.unclassified_tokens, 5);
    assert_eq!(node.totals(globex).await.amounts.unclassified_tokens, 7);
    let kept = node.quarantined(None).await;
    assert_eq!(kept.len(), 6);
    assert!(kept.iter().all(|row| row.origin == "http:/v1/usage/events" && row.format == "events"));
    // What is the tenant's beyond doubt is the tenant's to see, and nothing else is.
    let mut reasons: Vec<Refusal> = node.quarantined(Some(acme)).await.into_iter().map(|row| row.reason).collect();
    reasons.sort_by_key(|reason| reason.code());
    assert_eq!(reasons, [Refusal::FromTheFuture, Refusal::TooOld]);
    assert!(node.quarantined(Some(globex)).await.is_empty());

    // The same body again changes nothing, the quarantine included.
    let again = node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
    assert_eq!(codes(&again)[..4], ["duplicate", "duplicate", "conflict", "duplicate"]);
    assert_eq!(node.quarantined(None).await.len(), 6);
    assert_eq!(node.totals(acme).await.events, 1);

    assert!(matches!(node.record("tokens=5", Reporter::Platform).await, Err(RecordError::NotJson(_))));
    let many = format!("[{}0]", "0,".repeat(5_000));
    assert_eq!(node.record(many, Reporter::Platform).await, Err(RecordError::TooManyItems { limit: 5_000 }));
    assert_eq!(node.record("[]", Reporter::Platform).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_credential_reports_for_itself_alone_even_when_replayed() {
    let node = Node::open().await;
    let (acme, globex) = (node.acme, node.globex);
    let reporter = Reporter::Tenant(globex);
    let body = format!("[{},{}]", event("1", None, 5), event("2", Some(acme), 5));
    let outcomes = node.record(body, reporter).await.unwrap();
    assert_eq!(codes(&outcomes), ["accepted", "TENANT_MISMATCH"]);
    let payload = fixture("chat_openai_nonstream_minimal.json");
    let outcomes = node.recorder.record_body(payload, BodyShape::LiteLlm, reporter, "").await.unwrap();
    assert_eq!(codes(&outcomes), ["TENANT_MISMATCH"]);
    for row in node.quarantined(None).await {
        let replayed = node.recorder.replay(row.id, request()).await.unwrap();
        assert!(matches!(replayed, ReplayOutcome::StillRefused { code: "TENANT_MISMATCH", .. }), "{replayed:?}");
    }
    assert_eq!(node.totals(acme).await.events, 0);
    assert_eq!(node.totals(globex).await.events, 1);
}

/// Whoever sends what cannot be counted fills its own share, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_tenant_fills_the_quarantine_with_is_bounded_and_forgotten() {
    let mut node = Node::open().await;
    let intake = config::Intake { quarantine_events_max: 3, ..config::Intake::default() };
    node.recorder = Recorder::new(node.directory.clone(), node.clock.clone(), intake);
    let old = |id: u32, tenant| event(&format!("old-{id}"), Some(tenant), 1).replace("2026-11-21", "2020-01-01");
    for round in 0..3 {
        let body: Vec<String> = (0..4).map(|number| old(round * 4 + number, node.acme)).collect();
        let outcomes = node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
        assert_eq!(codes(&outcomes), ["EVENT_TOO_OLD"; 4]);
    }
    node.record(old(0, node.globex), Reporter::Platform).await.unwrap();
    let kept = node.quarantined(Some(node.acme)).await;
    let (counted, whole): (Vec<_>, Vec<_>) = kept.into_iter().partition(|row| row.left_out_bytes > 0);
    assert!(whole.len() == 3 && whole.iter().all(|row| !row.body.is_empty()), "{whole:?}");
    assert_eq!((counted.len(), counted[0].arrivals, counted[0].body.len()), (1, 9, 0));
    assert_eq!(counted[0].reason, Refusal::TooOld);
    assert!(node.quarantined(Some(node.globex)).await[0].left_out_bytes == 0);
    let again = node.recorder.replay(counted[0].id, request()).await;
    assert!(matches!(again, Ok(ReplayOutcome::StillRefused { code: "EVENT_TOO_OLD", .. })), "{again:?}");

    let now = node.clock.now();
    assert_eq!(node.directory.forget_quarantined(now).await.unwrap(), 0);
    assert_eq!(node.directory.forget_quarantined(now.plus_micros(1)).await.unwrap(), 5);
    assert!(node.quarantined(None).await.is_empty());
    assert_eq!(node.records("quarantine.forgotten").await[0]["rows"], 5);
    // What was forgotten leaves room, and that is noticed.
    node.clock.set(now.plus_micros(MICROS_PER_DAY / 24));
    node.record(old(99, node.acme), Reporter::Platform).await.unwrap();
    assert_eq!(node.quarantined(Some(node.acme)).await[0].left_out_bytes, 0);
}

/// What cannot be summed is no reason to lose what cannot be counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_cannot_be_read_keeps_nothing_out_of_the_quarantine() {
    let mut node = Node::open().await;
    let intake = config::Intake { quarantine_events_max: 3, ..config::Intake::default() };
    node.recorder = Recorder::new(node.directory.clone(), node.clock.clone(), intake);
    let old = |id: u32| event(&format!("old-{id}"), Some(node.acme), 1).replace("2026-11-21", "2020-01-01");
    let body: Vec<String> = (0..4).map(old).collect();
    node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
    let url = format!("sqlite:{}", node.data.path().join("data/control.db").display());
    let mut beside = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let too_much = format!("UPDATE quarantine SET body_bytes = {}", i64::MAX);
    beside.execute(sqlx::AssertSqlSafe(too_much)).await.unwrap();
    beside.close().await.unwrap();

    node.clock.set(node.clock.now().plus_micros(MICROS_PER_DAY / 24));
    for id in 4..9 {
        let outcomes = node.record(old(id), Reporter::Platform).await.unwrap();
        assert_eq!(codes(&outcomes), ["EVENT_TOO_OLD"]);
    }
    // Whole, but for no more than another share until it is tried again.
    let kept = node.quarantined(Some(node.acme)).await;
    assert_eq!(kept.iter().filter(|row| row.left_out_bytes == 0).count(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantined_event_is_counted_once_its_tenant_is_known() {
    let node = Node::open().await;
    let payload = fixture("chat_second_tenant_globex.json");
    let record = || node.recorder.record_body(payload.clone(), BodyShape::LiteLlm, Reporter::Platform, "");
    assert_eq!(codes(&record().await.unwrap()), ["UNKNOWN_TENANT"]);
    let row = node.quarantined(None).await.remove(0);
    assert_eq!(row.format, "litellm");
    assert!(row.body == payload.trim_ascii(), "the bytes are kept as they came");

    let amendment = Amendment { external_ids: Some(external_ids(&["team-globex"])), ..Amendment::default() };
    node.directory.amend(node.globex, amendment, request()).await.unwrap();
    assert_eq!(node.recorder.replay(row.id, request()).await, Ok(ReplayOutcome::Counted));
    assert_eq!(node.recorder.replay(row.id, request()).await, Err(ReplayError::AlreadyReplayed));
    assert_eq!(node.recorder.replay(clock::new_id(), request()).await, Err(ReplayError::Unknown));
    // A suspended tenant's usage is still counted, and so still recognised.
    node.directory.shift(node.globex, Lifecycle::Suspended, request()).await.unwrap();
    assert_eq!(codes(&record().await.unwrap()), ["duplicate"]);
    let totals = node.totals(node.globex).await;
    assert_eq!((totals.events, totals.amounts.prompt_tokens, totals.amounts.cost.0), (1, 57, 312_500));
}
