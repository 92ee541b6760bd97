//! The chain: everything that happened, in order, and tamper-evident.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::events::token_quota;
use crate::harness::{Daemon, Engine, Setup, Tenant, on_both};

fn actions(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["record"]["action"].as_str().unwrap()).collect()
}

async fn some_history(tenant: &Tenant) {
    tenant.put_quotas(json!([token_quota(10, "month")])).await;
    tenant.post_events(&[tenant.event()]).await;
    tenant.issue_key("reader").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_denial_and_batch_is_one_link_and_the_chain_holds() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        some_history(&tenant).await;
        let (key_id, reader) = tenant.issue_key("reader").await;
        tenant.api.delete(&format!("/v1/tenants/{}/api-keys/{key_id}", tenant.id)).await.ok();
        let (_, reporter) = tenant.issue_key("reporter").await;
        reporter.get("/v1/audit").await.refused(403, "FORBIDDEN");
        reader.get("/v1/audit").await.refused(401, "INVALID_CREDENTIALS");

        let records = tenant.audit().await;
        let seen = actions(&records);
        for action in
            ["quotas.replaced", "usage.committed", "alert.fired", "apiKey.created", "apiKey.revoked", "access.denied"]
        {
            assert!(seen.contains(&action), "{action} is not in {seen:?}");
        }
        let numbers: Vec<i64> = records.iter().map(|record| record["seq"].as_i64().unwrap()).collect();
        assert_eq!(numbers, (1..=records.len() as i64).collect::<Vec<_>>(), "no gap, oldest first");
        for pair in records.windows(2) {
            assert_eq!(pair[1]["record"]["prev"], pair[0]["hash"], "{} follows {}", pair[1], pair[0]);
        }
        let denied = records.iter().find(|record| record["record"]["action"] == "access.denied").unwrap();
        assert_eq!(denied["record"]["outcome"], "denied");
        let changed = records.iter().find(|record| record["record"]["action"] == "quotas.replaced").unwrap();
        assert_eq!(changed["record"]["actor"], json!(format!("apiKey:{}", tenant.key_id)));
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_record_carry_the_same_id() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let tenant = daemon.onboard("Acme").await;
    let headers = [("content-type", "application/json"), ("x-request-id", "the-request-0815")];
    let body = json!({"quotas": [token_quota(10, "day")]}).to_string().into_bytes();
    let answer = tenant.api.raw(Method::PUT, &format!("/v1/quotas/{}", tenant.id), &headers, body).await;
    assert_eq!(answer.header("x-request-id"), "the-request-0815");
    let records = tenant.audit().await;
    let record = records.iter().find(|record| record["record"]["action"] == "quotas.replaced").unwrap();
    assert_eq!(record["record"]["requestId"], "the-request-0815");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_refuses_to_change_what_was_written() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        some_history(&tenant).await;
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        for sql in [
            "UPDATE usage_ledger SET prompt_tokens = 0",
            "DELETE FROM usage_ledger",
            "UPDATE audit_record SET action = 'nothing.happened'",
            "UPDATE audit_record SET bytes = hash",
            "DELETE FROM audit_record",
        ] {
            assert!(database.execute(sql).await.is_err(), "L4: {sql}");
        }
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_ledger WHERE prompt_tokens = 10").await, 1);
    })
    .await;
}

/// Somebody with all rights on the database changes one record of the past: both verifiers name it.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_is_named_by_the_api_and_by_the_command() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (tenant, neighbour) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        some_history(&tenant).await;
        daemon.terminate().await;
        assert!(daemon.verify_offline().await.status.success());

        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let drops: &[&str] = match engine {
            Engine::Sqlite => &["DROP TRIGGER audit_record_keeps_rows"],
            Engine::Postgres => &["ALTER TABLE audit_record DISABLE TRIGGER ALL"],
        };
        for sql in drops {
            database.execute(sql).await.unwrap();
        }
        let forged =
            database.execute("UPDATE audit_record SET payload = '{\"events\":0}' WHERE seq = 2").await.unwrap();
        assert_eq!(forged, 1);
        drop(database);

        let verdict = daemon.verify_offline().await;
        let told = String::from_utf8_lossy(&verdict.stdout).into_owned();
        assert!(!verdict.status.success(), "{told}");
        assert!(told.contains(&format!("{}: BROKEN at record 2", tenant.id)), "{told}");
        assert!(told.contains(&format!("{}: ok", neighbour.id)), "{told}");

        daemon.restart().await;
        let verdict = tenant.verify().await;
        assert_eq!(verdict["firstBroken"]["seq"], 2, "{verdict}");
        Tenant::holds(&neighbour.verify().await);
    })
    .await;
}

/// Somebody with all rights on the database makes a month cheaper, and everything that is shown fits it: no record was
/// touched, and both verifiers name the one that counted what was changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_event_is_named_by_the_api_and_by_the_command() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (tenant, neighbour) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        some_history(&tenant).await;
        let records = tenant.audit().await;
        let counted = records.iter().find(|record| record["record"]["action"] == "usage.committed").unwrap();
        let counted = counted["seq"].as_i64().unwrap();
        let swept = swept(&daemon).await;
        assert_eq!((&swept["state"], &swept["result"]), (&json!("succeeded"), &json!({"whole": 3, "unread": 0})));
        daemon.terminate().await;
        assert!(daemon.verify_offline().await.status.success());

        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let unlock = match engine {
            Engine::Sqlite => "DROP TRIGGER usage_ledger_keeps_rows",
            Engine::Postgres => "ALTER TABLE usage_ledger DISABLE TRIGGER ALL",
        };
        database.execute(unlock).await.unwrap();
        for forgery in [
            "UPDATE usage_ledger SET prompt_tokens = 0",
            "UPDATE usage_rollup SET prompt_tokens = 0",
            "UPDATE books SET prompt_tokens = 0",
        ] {
            database.execute(forgery).await.unwrap();
        }
        drop(database);

        let verdict = daemon.verify_offline().await;
        let told = String::from_utf8_lossy(&verdict.stdout).into_owned();
        assert!(!verdict.status.success(), "{told}");
        assert!(told.contains(&format!("{}: BROKEN at record {counted}: an event", tenant.id)), "{told}");
        assert!(told.contains(&format!("{}: ok", neighbour.id)), "{told}");

        daemon.restart().await;
        let verdict = tenant.verify().await;
        assert_eq!(verdict["firstBroken"]["seq"], counted, "{verdict}");
        Tenant::holds(&neighbour.verify().await);
        // Who looks after all of them by themselves finds it as well, and goes on with the others.
        let swept = self::swept(&daemon).await;
        let error = "broken chains: 1; whole: 2; not read: 0";
        assert_eq!((&swept["state"], &swept["error"]), (&json!("failed"), &json!(error)));
        assert!(daemon.log().contains("the audit chain is broken"));
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        let line = "platform_api_audit_verifications_total{result=\"broken\"} 1";
        assert!(metrics.lines().any(|told| told == line), "{metrics}");
    })
    .await;
}

/// A verification of every chain, once it has ended.
async fn swept(daemon: &Daemon) -> Value {
    let asked = daemon.platform.post("/v1/jobs", &json!({"kind": "auditSweep"})).await;
    assert_eq!(asked.status, 201, "{}", asked.text);
    crate::jobs::finished(&daemon.platform, asked.body["id"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_database_is_gone_is_closed_and_its_neighbours_are_not() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (lost, neighbour) = (daemon.onboard("Lost").await, daemon.onboard("Globex").await);
        lost.post_events(&[lost.event()]).await;
        daemon.terminate().await;
        match engine {
            Engine::Sqlite => {
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(daemon.data().join("tenants").join(format!("{}.db{suffix}", lost.id)));
                }
            }
            Engine::Postgres => {
                crate::harness::database::drop_all(daemon.admin_url(), &format!("tenant_{}", lost.id), &[]).await;
            }
        }
        daemon.restart().await;
        let answer = crate::harness::eventually("the tenant to be frozen", || async {
            let answer = lost.api.get(&format!("/v1/quotas/{}", lost.id)).await;
            (answer.code() == "TENANT_FROZEN").then_some(answer)
        })
        .await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(!answer.header("retry-after").is_empty());
        neighbour.post_events(&[neighbour.event()]).await;
        assert_eq!(neighbour.ledger().await.len(), 1);
        // Nobody made an empty one in its place.
        if engine == Engine::Sqlite {
            assert!(!daemon.data().join("tenants").join(format!("{}.db", lost.id)).exists());
        }
    })
    .await;
}
