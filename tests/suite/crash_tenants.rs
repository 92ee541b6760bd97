//! The real binary, killed between any two steps of a change to a tenant. Asked again, the change is made once, whole,
//! and recorded once.

use reqwest::Method;
use serde_json::json;

use crate::harness::database::Database;
use crate::harness::tenant::Receipt;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually};

/// The steps of provisioning a tenant, in their order.
const CREATING: [&str; 7] = [
    "change.before",
    "change.begun",
    "database.created",
    "database.migrated",
    "change.database",
    "change.recorded",
    "change.finished",
];
/// The steps of every other change.
const CHANGING: [&str; 4] = ["change.before", "change.begun", "change.recorded", "change.finished"];
/// A life: what is asked, what the tenant then is, and the record of it.
const SHIFTS: [(&str, &str, &str); 4] = [
    ("suspend", "suspended", "tenant.suspended"),
    ("reactivate", "active", "tenant.reactivated"),
    ("suspend", "suspended", "tenant.suspended"),
    ("archive", "archived", "tenant.archived"),
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_change_on_sqlite_the_change_is_made_once() {
    Box::pin(killed_at_any_step(Engine::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_change_on_postgres_the_change_is_made_once() {
    Box::pin(killed_at_any_step(Engine::Postgres)).await;
}

/// What was interrupted is taken up soon; where a database has one owner, however long the lease is.
fn quick(engine: Engine) -> Setup {
    let lease_ms = if engine == Engine::Sqlite { 3_600_000 } else { 1_000 };
    Setup::on(engine).with("JOBS__LEASE_MS", lease_ms)
}

async fn killed_at_any_step(engine: Engine) {
    let mut daemon = Daemon::prepare(quick(engine)).await;
    let mut kills = 0;
    for (round, point) in CREATING.into_iter().enumerate() {
        let tenant = created(&mut daemon, round, point).await;
        kills += 1;
        for (at, (shift, status, action)) in SHIFTS.into_iter().enumerate() {
            // Over the rounds every change meets every point.
            let point = CHANGING[(round + at) % CHANGING.len()];
            shifted(&mut daemon, &tenant, shift, status, point).await;
            let times = SHIFTS[..=at].iter().filter(|(_, _, known)| *known == action).count() as i64;
            recorded(&daemon, &tenant.id, action, times).await;
            kills += 1;
        }
    }
    let listed = daemon.platform.pages("/v1/tenants", 50).await;
    assert_eq!(listed.len(), CREATING.len(), "each tenant once: {listed:?}");
    daemon.terminate().await;
    let verdict = daemon.verify_offline().await;
    assert!(verdict.status.success(), "A1: {}", String::from_utf8_lossy(&verdict.stdout));
    println!("{engine}: {kills} kills between the steps of changes, 0 violations");
}

/// Provisions a tenant, dying at `point`; asked again under the same key, the daemon answers with the one it made.
async fn created(daemon: &mut Daemon, round: usize, point: &str) -> Tenant {
    let body = json!({"name": format!("Tenant {round}"), "slug": format!("tenant-{round}")}).to_string();
    let (key, api) = (format!("onboarding-{round}"), daemon.platform.clone());
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    let ask = || api.try_raw(Method::POST, "/v1/tenants", &headers, body.clone().into_bytes());
    respawn(daemon, point).await;
    let (asked, ()) = tokio::join!(ask(), daemon.dies_at(point));
    assert!(asked.is_err(), "{point}: answered {asked:?}");
    daemon.restart().await;
    let answer = eventually("the tenant that was begun", || async {
        let answer = ask().await.ok()?;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 201, "{point}: {}", answer.text);
    let id = answer.body["tenant"]["id"].as_str().expect("an id").to_owned();
    daemon.remember(&id);
    let keys = format!("/v1/tenants/{id}/api-keys");
    let issued = daemon.platform.patiently(Method::POST, &keys, Some(&json!({"name": "new", "role": "admin"}))).await;
    let secret = issued.body["key"].as_str().unwrap_or_else(|| panic!("{point}: {}", issued.text)).to_owned();
    let tenant = Tenant {
        id,
        key_id: String::new(),
        api: daemon.platform.with(&secret),
        document: answer.body["tenant"].clone(),
    };
    assert_eq!(tenant.post_events(&[tenant.event()]).await, Receipt::accepted(1), "{point}");
    Tenant::holds(&tenant.verify().await);
    recorded(daemon, &tenant.id, "tenant.created", 1).await;
    let mut database = Database::of_tenant(daemon, &tenant.id).await;
    assert_eq!(database.number("SELECT COUNT(*) FROM role").await, 5, "{point}");
    tenant
}

/// Asks for a change, dying at `point`, and again until it is made.
async fn shifted(daemon: &mut Daemon, tenant: &Tenant, shift: &str, status: &str, point: &str) {
    let (api, path) = (daemon.platform.clone(), format!("/v1/tenants/{}", tenant.id));
    let change = format!("{path}/{shift}");
    let ask = || api.try_raw(Method::POST, &change, &[], Vec::new());
    respawn(daemon, point).await;
    let (asked, ()) = tokio::join!(ask(), daemon.dies_at(point));
    assert!(asked.is_err(), "{shift}, {point}: answered {asked:?}");
    daemon.restart().await;
    eventually(shift, || async {
        let answer = ask().await.ok()?;
        // Refused when it was made before we died.
        matches!(answer.status, 200 | 409).then_some(())
    })
    .await;
    assert_eq!(api.get(&path).await.ok()["status"], status, "{shift}, {point}");
}

/// Starts the daemon anew, to die at `point`.
async fn respawn(daemon: &mut Daemon, point: &str) {
    if daemon.is_running() {
        daemon.kill().await;
    }
    daemon.spawn_armed(&format!("{point}=return(KILL)"));
    daemon.ready().await;
}

/// A3: exactly so many records of this action, once what was interrupted is finished.
async fn recorded(daemon: &Daemon, tenant: &str, action: &'static str, times: i64) {
    eventually("nothing that is unfinished", || async {
        let mut control = Database::of_control(daemon).await;
        (control.number("SELECT COUNT(*) FROM job WHERE kind = 'tenant.finishChange' AND finished_at = 0").await == 0)
            .then_some(())
    })
    .await;
    let mut database = Database::of_tenant(daemon, tenant).await;
    let rows = database.words("SELECT action FROM audit_record").await;
    let count = rows.iter().filter(|row| row[0] == action).count() as i64;
    assert_eq!(count, times, "A3: {action} is recorded once for each time");
}

/// Two nodes on the same databases: the one that began a change is dead, the other, which has never heard of the tenant,
/// finishes it; the first one's next life finds it finished.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_node_was_killed_is_finished_once_by_the_other() {
    let mut first = Daemon::prepare(quick(Engine::Postgres)).await;
    let mut second = first.peer();
    second.spawn();
    second.ready().await;
    for (round, point) in ["change.begun", "change.database", "change.recorded"].into_iter().enumerate() {
        let slug = format!("tenant-{round}");
        let body = json!({"name": "Tenant", "slug": slug}).to_string().into_bytes();
        let key = format!("onboarding-{round}");
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        respawn(&mut first, point).await;
        let api = first.platform.clone();
        let ask = api.try_raw(Method::POST, "/v1/tenants", &headers, body.clone());
        let (asked, ()) = tokio::join!(ask, first.dies_at(point));
        assert!(asked.is_err(), "{point}: answered {asked:?}");
        // Asked for the same, the other node begins nothing anew, and answers once the change is finished.
        let answer = eventually("the tenant that was begun", || async {
            let answer = second.platform.try_raw(Method::POST, "/v1/tenants", &headers, body.clone()).await.ok()?;
            (answer.status != 503).then_some(answer)
        })
        .await;
        assert_eq!(answer.status, 201, "{point}: {}", answer.text);
        let id = answer.body["tenant"]["id"].as_str().expect("an id").to_owned();
        first.remember(&id);
        assert_eq!(answer.body["tenant"]["slug"], slug.as_str(), "{point}");
        assert_eq!(second.platform.get(&format!("/v1/tenants/{id}")).await.ok()["status"], "active", "{point}");
        for action in ["tenant.created", "apiKey.created"] {
            recorded(&second, &id, action, 1).await;
        }
        let jobs = second.platform.pages(&format!("/v1/jobs?tenantId={id}"), 10).await;
        assert_eq!(jobs.len(), 1, "{point}: {jobs:?}");
        // A database that is slow to open costs another try.
        let attempts = jobs[0]["attempts"].as_i64();
        assert!(jobs[0]["state"] == "succeeded" && attempts >= Some(2), "{point}: {jobs:?}");
        first.restart().await;
        assert_eq!(first.platform.get(&format!("/v1/tenants/{id}")).await.ok()["status"], "active", "{point}");
    }
    second.kill().await;
    first.terminate().await;
    let verdict = first.verify_offline().await;
    assert!(verdict.status.success(), "A1: {}", String::from_utf8_lossy(&verdict.stdout));
}
