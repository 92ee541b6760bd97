//! Tenants: provisioned completely or not at all, found, changed, suspended, brought back.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::tenant::Receipt;
use crate::harness::{Engine, Setup, eventually, on_both};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_onboarded_with_its_own_database_roles_key_and_first_records() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let body = json!({"name": "Acme Corp.", "tier": "gold", "timeZone": "Europe/Berlin",
            "externalIds": [{"source": "litellm", "kind": "team", "id": "team-acme"}], "settings": {"note": "first"}});
        let answer = daemon.platform.post("/v1/tenants", &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let tenant = crate::harness::Tenant::of(&daemon.platform, &answer.body);
        daemon.remember(&tenant.id);
        assert_eq!(tenant.document["status"], "active");
        assert_eq!(tenant.document["slug"], "acme-corp");
        assert_eq!(tenant.document["timeZone"], "Europe/Berlin");

        let found = daemon.platform.get(&format!("/v1/tenants/{}", tenant.id)).await.ok();
        assert_eq!(found["name"], "Acme Corp.");
        assert_eq!(found["externalIds"], body["externalIds"]);
        assert_eq!(found["settings"], body["settings"]);

        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let roles = database.words("SELECT name FROM role ORDER BY name").await;
        assert_eq!(roles, [["admin"], ["analyst"], ["developer"], ["reader"], ["reporter"]]);
        let records = database.words("SELECT action FROM audit_record ORDER BY seq").await;
        assert!(!records.is_empty(), "the first records");
        crate::harness::Tenant::holds(&tenant.verify().await);
        assert_eq!(tenant.post_events(&[tenant.event()]).await, Receipt::accepted(1));
        // The key was shown once, and is nowhere else.
        let log = daemon.log();
        assert!(!log.contains(tenant.api.credential()), "the key is in the log");
        assert!(
            !daemon
                .platform
                .get(&format!("/v1/tenants/{}/api-keys", tenant.id))
                .await
                .text
                .contains(tenant.api.credential())
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_listed_page_by_page_without_gaps() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let mut onboarded = Vec::new();
        for number in 0..5 {
            onboarded.push(daemon.onboard(&format!("Tenant {number}")).await.id);
        }
        onboarded.sort();
        for limit in [1, 2, 5, 50] {
            let listed = daemon.platform.pages("/v1/tenants", limit).await;
            let mut ids: Vec<String> = listed.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
            ids.sort();
            assert_eq!(ids, onboarded, "limit {limit}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_lives_by_its_lifecycle() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        tenant.put_quotas(json!([crate::harness::events::token_quota(1_000_000, "month")])).await;
        let shift = async |to: &str| {
            daemon.platform.raw(Method::POST, &format!("/v1/tenants/{}/{to}", tenant.id), &[], Vec::new()).await
        };
        shift("reactivate").await.refused(409, "ILLEGAL_TRANSITION");
        shift("archive").await.refused(409, "ILLEGAL_TRANSITION");
        assert_eq!(shift("suspend").await.ok()["status"], "suspended");
        shift("suspend").await.refused(409, "ILLEGAL_TRANSITION");
        tenant.api.get(&format!("/v1/quotas/{}", tenant.id)).await.refused(403, "TENANT_SUSPENDED");
        // The gateway is told to deny, and what arrives is still counted.
        let decision = daemon.platform.get(&format!("/v1/quotas/{}/decision", tenant.id)).await.ok();
        assert_eq!(decision["decision"], "deny", "{decision}");
        let events = json!([tenant.event().json()]);
        let receipt = Receipt::read(&daemon.platform.post("/v1/usage/events", &events).await.ok());
        assert_eq!(receipt, Receipt::accepted(1));
        assert_eq!(shift("reactivate").await.ok()["status"], "active");
        assert_eq!(tenant.quotas().await[0]["used"], 15);
        assert_eq!(tenant.decision("").await["decision"], "allow");
        let actions: Vec<String> =
            tenant.audit().await.iter().map(|record| record["record"]["action"].as_str().unwrap().to_owned()).collect();
        for action in ["tenant.suspended", "tenant.reactivated"] {
            assert!(actions.iter().any(|known| known == action), "{action} is not in {actions:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_amended_field_by_field() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let path = format!("/v1/tenants/{}", tenant.id);
        let amended = daemon.platform.patch(&path, &json!({"name": "Acme Ltd", "tier": "silver"})).await.ok();
        assert_eq!((&amended["name"], &amended["tier"]), (&json!("Acme Ltd"), &json!("silver")));
        assert_eq!(amended["timeZone"], tenant.document["timeZone"]);
        assert_eq!(amended["slug"], tenant.document["slug"]);
        daemon.platform.patch(&path, &json!({"timeZone": "Mars/Olympus"})).await.refused(422, "VALIDATION_FAILED");
        daemon.platform.patch(&path, &json!({"id": "x"})).await.refused(422, "VALIDATION_FAILED");
        assert_eq!(daemon.platform.get(&path).await.ok()["name"], "Acme Ltd");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unique_on_the_platform_stays_so() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let ids = json!([{"source": "litellm", "kind": "team", "id": "team-1"}]);
        let first = daemon.onboard_as(json!({"slug": "acme", "externalIds": ids}), "Acme").await;
        let again = daemon.platform.post("/v1/tenants", &json!({"name": "Other", "slug": "acme"})).await;
        again.refused(409, "SLUG_TAKEN");
        let again = daemon.platform.post("/v1/tenants", &json!({"name": "Other", "externalIds": ids})).await;
        again.refused(409, "EXTERNAL_ID_TAKEN");
        let listed = daemon.platform.pages("/v1/tenants", 10).await;
        assert_eq!(listed.len(), 1, "a refused tenant leaves nothing behind");
        assert_eq!(listed[0]["id"], Value::String(first.id));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_onboarding_asked_twice_is_one_tenant() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let headers = [("content-type", "application/json"), ("idempotency-key", "onboard-acme")];
        let post = async |body: Value| {
            let body = body.to_string().into_bytes();
            daemon.platform.raw(Method::POST, "/v1/tenants", &headers, body).await
        };
        let first = post(json!({"name": "Acme"})).await;
        assert_eq!(first.status, 201);
        let second = post(json!({"name": "Acme"})).await;
        assert_eq!(second.status, 201, "{}", second.text);
        assert_eq!(first.body["tenant"], second.body["tenant"]);
        // The secret is shown once, also to whoever repeats the request.
        assert!(!second.text.contains(first.body["adminApiKey"]["key"].as_str().unwrap()));
        post(json!({"name": "Another"})).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(daemon.platform.pages("/v1/tenants", 10).await.len(), 1);
    })
    .await;
}

/// Killed again and again while tenants are being made: each is whole, or is not there, and asking again completes it.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_onboarding_no_half_made_tenant_is_ever_served() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).with("JOBS__LEASE_MS", 1_000).start().await;
        let rounds = if engine == Engine::Sqlite { 12 } else { 8 };
        for round in 0..rounds {
            let platform = daemon.platform.clone();
            let asked = tokio::spawn(async move {
                let headers = [("content-type", "application/json"), ("idempotency-key", &*format!("round-{round}"))];
                let body = json!({"name": format!("Tenant {round}")}).to_string().into_bytes();
                platform.try_raw(Method::POST, "/v1/tenants", &headers, body).await
            });
            // From before the first step to after the last.
            tokio::time::sleep(std::time::Duration::from_millis(round * if engine == Engine::Sqlite { 4 } else { 25 }))
                .await;
            daemon.kill().await;
            let _ = asked.await;
            daemon.restart().await;
            for tenant in daemon.platform.pages("/v1/tenants", 50).await {
                let id = tenant["id"].as_str().unwrap();
                match tenant["status"].as_str().unwrap() {
                    "active" => {
                        let quotas = daemon.platform.patiently(Method::GET, &format!("/v1/quotas/{id}"), None).await;
                        assert_eq!(quotas.status, 200, "{tenant} is listed and not served: {}", quotas.text);
                    }
                    "pending" => {}
                    other => panic!("{other}"),
                }
            }
            // The same request, sent again, ends with one whole tenant.
            let tenant = eventually("the onboarding to be completed", || async {
                let headers = [("content-type", "application/json"), ("idempotency-key", &*format!("round-{round}"))];
                let body = json!({"name": format!("Tenant {round}")}).to_string().into_bytes();
                let answer = daemon.platform.raw(Method::POST, "/v1/tenants", &headers, body).await;
                (answer.status == 201).then_some(answer.body)
            })
            .await;
            let id = tenant["tenant"]["id"].as_str().unwrap().to_owned();
            let event = crate::harness::events::Envelope::new(&id).json();
            let answer = daemon.platform.patiently(Method::POST, "/v1/usage/events", Some(&json!([event]))).await;
            assert_eq!(Receipt::read(&answer.ok()), Receipt::accepted(1));
        }
        // One tenant for each request, and none that is stuck half-way.
        let listed = daemon.platform.pages("/v1/tenants", 50).await;
        assert_eq!(listed.len(), rounds as usize, "{listed:?}");
        assert!(listed.iter().all(|one| one["status"] == "active"), "{listed:?}");
        assert!(!daemon.log().contains("\"level\":\"ERROR\""), "a person would be called");
    })
    .await;
}
