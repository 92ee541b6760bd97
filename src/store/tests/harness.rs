use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use futures_util::FutureExt;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::config;
use crate::domain::amount::NanoUsd;
use crate::domain::api_key::ApiKey;
use crate::domain::books::{BatchCounts, Books, Posting};
use crate::domain::chain::Head;
use crate::domain::ids::{QuotaId, TenantId};
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Enforcement, Metric, Quota, Scope};
use crate::domain::reconcile::Terms;
use crate::domain::routing::Routing;
use crate::domain::sorting::Inserted;
use crate::domain::tenant::{Role, Tenant};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::domain::usage::{Amounts, Flags, Identity, Kind, Status, Subject, UsageEvent};
use crate::store::database::{Connection, Store};
use crate::store::load::{self, Opening};
use crate::store::posting::{self, Expecting};
use crate::store::{StoreError, api_key, quota};

/// 2026-11-20T15:37:12Z.
pub(crate) const NOW: Timestamp = Timestamp(1_795_189_032_000_000);
pub(super) const RETENTION: i64 = 400 * MICROS_PER_DAY;

/// Where one test lives: its own databases, on one engine.
pub(crate) struct House {
    pub(super) settings: config::Store,
    pub(super) directory: Option<TempDir>,
    control: String,
    tenants: Mutex<Vec<TenantId>>,
}

fn server() -> String {
    std::env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".into())
}

fn server_with(database: &str) -> String {
    let url = server();
    let (base, _) = url.rsplit_once('/').unwrap();
    format!("{base}/{database}")
}

impl House {
    pub(crate) fn on_sqlite() -> House {
        let directory = TempDir::new().unwrap();
        let url = format!("sqlite:{}", directory.path().join("data").display());
        House::at(url, Some(directory), String::new())
    }

    pub(crate) fn on_postgres() -> House {
        let control = format!("test_store_{}", crate::clock::new_id().simple());
        House::at(server_with(&control), None, control)
    }

    fn at(url: String, directory: Option<TempDir>, control: String) -> House {
        let settings = config::Store { url: SecretString::from(url), ..config::Store::default() };
        House { settings, directory, control, tenants: Mutex::new(Vec::new()) }
    }

    /// Runs a story, and removes its databases however it ends.
    pub(crate) async fn run<F: Future<Output = ()>>(self, story: impl FnOnce(&'static House) -> F) {
        let house: &'static House = Box::leak(Box::new(self));
        let ended = AssertUnwindSafe(story(house)).catch_unwind().await;
        house.remove().await;
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    async fn remove(&self) {
        if let Some(directory) = &self.directory {
            std::fs::remove_dir_all(directory.path()).unwrap();
            return;
        }
        let mut names: Vec<String> =
            self.tenants.lock().unwrap().iter().map(|tenant| format!("tenant_{tenant}")).collect();
        names.push(self.control.clone());
        let mut connection = PgConnection::connect(&server()).await.unwrap();
        for name in names {
            let sql = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
            connection.execute(AssertSqlSafe(sql)).await.unwrap();
        }
    }

    /// Postgres throws everybody out of the control database, and lets nobody in, until it is told to.
    pub(crate) async fn admit(&self, yes: bool) {
        let mut connection = PgConnection::connect(&server()).await.unwrap();
        let name = &self.control;
        let admit = format!("ALTER DATABASE \"{name}\" ALLOW_CONNECTIONS {yes}");
        connection.execute(AssertSqlSafe(admit)).await.unwrap();
        if !yes {
            let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
            connection.execute(AssertSqlSafe(end)).await.unwrap();
        }
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.directory.is_some()
    }

    pub(crate) async fn store(&self) -> Store {
        let store = Store::open(&self.settings).await.unwrap();
        store.control().await.unwrap().close().await;
        store
    }

    /// A new id whose database will be removed.
    pub(super) fn tenant_id(&self) -> TenantId {
        let id = TenantId(crate::clock::new_id());
        self.tenants.lock().unwrap().push(id);
        id
    }

    pub(super) async fn tenant(&self, store: &Store) -> TenantId {
        let id = self.tenant_id();
        store.create_tenant(id, "Europe/Berlin", NOW).await.unwrap();
        id
    }

    /// Gives a tenant so many keys, and one more that nobody uses, which are all the same but for their ids; answers those.
    pub(crate) async fn keys(&self, connection: &mut Connection, tenant: &Tenant, count: i64) -> Vec<String> {
        let key = ApiKey {
            id: "unused".into(),
            tenant: tenant.id,
            name: "many".into(),
            role: Role::Reporter,
            hash: [5; 32],
            terms: crate::domain::api_key::Terms::default(),
            previous: None,
            version: 1,
            created_at: NOW,
            revoked_at: None,
        };
        api_key::insert(connection, &key).await.unwrap();
        let copies =
            "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < $1)
            INSERT INTO api_key (id, tenant_id, name, role, hash, created_at, revoked_at)
            SELECT 'key-' || number, tenant_id, name, role, hash, created_at, revoked_at FROM api_key, numbers
            WHERE id = 'unused'";
        connection.execute(copies, &[count.into()]).await.unwrap();
        (1..=count).map(|number| format!("key-{number}")).collect()
    }

    /// A store with one tenant, taken over.
    pub(crate) async fn owner(&self) -> (Store, Connection, Books) {
        let store = self.store().await;
        let tenant = self.tenant(&store).await;
        let mut connection = store.open_tenant(tenant).await.unwrap();
        let books = load::take_over(&mut connection, opening(tenant, Head::EMPTY)).await.unwrap();
        (store, connection, books)
    }

    /// Runs any statement on a tenant's database, behind the back of everything.
    pub(crate) async fn tamper(&self, tenant: TenantId, sql: &str) {
        if let Some(directory) = &self.directory {
            let path = directory.path().join("data/tenants").join(format!("{tenant}.db"));
            let url = format!("sqlite:{}", path.display());
            let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
            connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
            connection.close().await.unwrap();
        } else {
            let url = server_with(&format!("tenant_{tenant}"));
            let mut connection = PgConnection::connect(&url).await.unwrap();
            connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
            connection.close().await.unwrap();
        }
    }

    /// What makes the append-only tables changeable, for tests that forge.
    pub(super) async fn unlock(&self, tenant: TenantId) {
        for table in ["audit_record", "usage_ledger"] {
            let on = if self.is_sqlite() { String::new() } else { format!(" ON {table}") };
            self.tamper(tenant, &format!("DROP TRIGGER IF EXISTS {table}_keeps_rows{on}")).await;
            self.tamper(tenant, &format!("DROP TRIGGER IF EXISTS {table}_keeps_all{on}")).await;
        }
    }
}

pub(crate) fn opening(tenant: TenantId, witnessed: Head) -> Opening {
    Opening {
        tenant,
        retention_micros: RETENTION,
        routing: std::sync::Arc::new(Routing::all(vec!["pager".into(), "mail".into()])),
        reconcile: Terms::default(),
        now: NOW,
        salt_seed: [7; 32],
        witnessed,
    }
}

pub(crate) fn event(id: &str, user: &str, at: Timestamp, tokens: i64) -> UsageEvent {
    UsageEvent {
        source: "litellm".into(),
        event_id: id.into(),
        occurred_at: at,
        kind: Kind::Delta,
        status: if tokens == 0 { Status::Failure } else { Status::Success },
        subject: Subject {
            user: user.into(),
            group: "research".into(),
            api_key: "key-1".into(),
            model: if tokens % 2 == 0 { "gpt-5".into() } else { "claude-5".into() },
            provider: "openai".into(),
        },
        call_type: "acompletion".into(),
        amounts: Amounts {
            requests: 1,
            prompt_tokens: tokens,
            cache_read_tokens: tokens / 4,
            cache_write_tokens: tokens / 5,
            completion_tokens: tokens * 2,
            reasoning_tokens: tokens / 3,
            unclassified_tokens: tokens / 7,
            cost: NanoUsd(tokens * 1_500),
        },
        flags: Flags::UNPRICED,
        details: "{\"note\":\"Grüße, 世界\"}".into(),
    }
}

pub(crate) fn quota_of(scope: Scope, metric: Metric, period: PeriodKind, limit: i64) -> Quota {
    Quota {
        id: QuotaId(crate::clock::new_id()),
        scope,
        metric,
        period,
        limit,
        thresholds: vec![50, 80, 100],
        enforcement: Enforcement::Block,
    }
}

pub(super) fn keys_of(events: &[&UsageEvent]) -> Vec<Identity> {
    events.iter().map(|event| event.identity()).collect()
}

/// One commit as a writer makes it; answers the new books and what became of each event.
pub(super) async fn commit(
    connection: &mut Connection,
    books: &Books,
    events: &[UsageEvent],
    now: Timestamp,
) -> Result<(Books, Vec<Inserted>), StoreError> {
    commit_expecting(connection, books, events, now, Expecting::Any).await
}

/// As [`commit`], with a guess about the events.
pub(super) async fn commit_expecting(
    connection: &mut Connection,
    books: &Books,
    events: &[UsageEvent],
    now: Timestamp,
    expecting: Expecting,
) -> Result<(Books, Vec<Inserted>), StoreError> {
    let events: Vec<&UsageEvent> = events.iter().collect();
    let keys = keys_of(&events);
    connection.begin().await?;
    let outcomes = posting::insert_events(connection, books.next_position, now, &events, &keys, expecting).await?;
    let with = |wanted: Inserted| (0..events.len()).filter(|at| outcomes[*at] == wanted).collect::<Vec<_>>();
    let conflicts: Vec<_> = with(Inserted::Conflict).into_iter().map(|at| (events[at], keys[at])).collect();
    posting::keep_conflicts(connection, now, &conflicts).await?;
    let new: Vec<&UsageEvent> = with(Inserted::New).into_iter().map(|at| events[at]).collect();
    let new_keys: Vec<_> = with(Inserted::New).into_iter().map(|at| keys[at]).collect();
    let mut posting = Posting::open(books, now, [3; 32]);
    for missing in posting.missing_for_usage(&new) {
        let counter = quota::counter(connection, books, &missing, books.next_position).await?;
        posting.supply(missing.key(), counter);
    }
    let counts = BatchCounts {
        attempted: events.len() as i64,
        duplicates: with(Inserted::Duplicate).len() as i64,
        conflicts: conflicts.len() as i64,
    };
    posting.usage(&new, &new_keys, counts, "request-1");
    posting.close();
    posting::write(connection, books, &posting).await?;
    connection.commit().await?;
    Ok((posting.books, outcomes))
}

/// Commits a posting that `change` fills.
pub(super) async fn post(
    connection: &mut Connection,
    books: &Books,
    now: Timestamp,
    change: impl FnOnce(&mut Posting),
) -> Result<Books, StoreError> {
    let mut posting = Posting::open(books, now, [9; 32]);
    change(&mut posting);
    posting.close();
    connection.begin().await?;
    posting::write(connection, books, &posting).await?;
    connection.commit().await?;
    Ok(posting.books)
}

/// Sets quotas, recounting what the change needs.
pub(crate) async fn set_quotas(
    connection: &mut Connection,
    books: &Books,
    quotas: Vec<Quota>,
    now: Timestamp,
) -> Books {
    let mut recounted = Vec::new();
    for missing in Posting::open(books, now, [0; 32]).missing_for_quotas(&quotas) {
        let counter = quota::counter(connection, books, &missing, books.next_position).await.unwrap();
        recounted.push((missing.key(), counter));
    }
    post(connection, books, now, |posting| posting.replace_quotas(quotas, recounted, entry("quota.replaced")))
        .await
        .unwrap()
}

pub(super) fn entry(action: &str) -> crate::domain::chain::Entry {
    crate::domain::chain::Entry {
        actor: "platform".into(),
        action: action.into(),
        target: "tenant:x".into(),
        outcome: crate::domain::chain::EntryOutcome::Success,
        request_id: "request-2".into(),
        payload: "{}".into(),
    }
}

/// Everything that is stored is what the posting said it would be.
pub(super) fn assert_same(stored: &Books, posted: &Books) {
    assert_eq!(stored.tenant, posted.tenant);
    assert_eq!((stored.epoch, stored.version), (posted.epoch, posted.version));
    assert_eq!(stored.time_zone, posted.time_zone);
    assert_eq!(stored.quotas, posted.quotas);
    // In memory they stand in the order of quotas, in the table by age.
    let sorted = |books: &Books| {
        let mut firing = books.firing.clone();
        firing.sort_by_key(|alert| alert.id);
        firing
    };
    assert_eq!(sorted(stored), sorted(posted));
    let told = |books: &Books| {
        let mut told: Vec<_> = books.told.iter().map(|(alert, told)| (*alert, told.clone())).collect();
        told.sort_by_key(|(alert, _)| *alert);
        told.iter_mut().for_each(|(_, told)| told.sort_by(|one, other| one.channel.cmp(&other.channel)));
        told
    };
    assert_eq!(told(stored), told(posted));
    assert_eq!(stored.lifetime, posted.lifetime);
    assert_eq!(stored.latest_event_at, posted.latest_event_at);
    assert_eq!(stored.next_position, posted.next_position);
    assert_eq!(stored.head, posted.head);
    assert_eq!(stored.comparison.progress, posted.comparison.progress);
    for (key, counter) in &posted.counters {
        match stored.counters.get(key) {
            Some(found) => {
                let mut fired = counter.fired.clone();
                fired.sort_unstable();
                assert_eq!((found.window, found.used, &found.fired), (counter.window, counter.used, &fired));
                assert_eq!(found.recent, counter.recent, "{key:?}");
            }
            None => assert_eq!(counter.used, 0, "{key:?} is not stored"),
        }
    }
}
