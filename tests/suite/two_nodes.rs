//! Two nodes on one control database: what one changes in the catalogue the other goes by, without a restart, and neither
//! overwrites what it has not seen.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::issuer::Issuer;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually};

async fn put_flag(api: &Api, if_match: &str, enabled: bool) -> Answer {
    let flag = json!({"kind": "boolean", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "offVariant": "off", "enabled": enabled});
    let headers = [("content-type", "application/json"), ("if-match", if_match)];
    let headers = if if_match.is_empty() { &headers[..1] } else { &headers[..] };
    api.raw(Method::PUT, "/v1/flags/new-checkout", headers, flag.to_string().into_bytes()).await
}

/// The answer at another node, once it is the expected one.
async fn comes_to(api: &Api, path: &str, status: u16, holds: impl Fn(&Value) -> bool) {
    eventually(path, || async {
        let answer = api.get(path).await;
        (answer.status == status && holds(&answer.body)).then_some(())
    })
    .await;
}

/// Suspends a tenant or brings it back, by a node that may first have to take it over: asked again, it is so already.
async fn shift(api: &Api, tenant: &Tenant, to: &str) {
    let path = format!("/v1/tenants/{}/{to}", tenant.id);
    eventually(&path, || async {
        let answer = api.call(Method::POST, &path, None).await;
        matches!(answer.status, 200 | 409).then_some(())
    })
    .await;
}

async fn two_nodes(setup: Setup) -> (Daemon, Daemon) {
    let one = setup.start().await;
    let mut other = one.peer();
    other.restart().await;
    (one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_changes_in_the_catalogue_the_other_goes_by() {
    let issuer = Issuer::start().await;
    let (one, other) = two_nodes(Setup::on(Engine::Postgres).with_section(&issuer.section())).await;
    let anything = |_: &Value| true;

    // A tenant that was made there, its key, and that the key is revoked.
    let acme = one.onboard("Acme").await;
    let row = format!("/v1/tenants/{}", acme.id);
    comes_to(&other.platform, &row, 200, |row| row["name"] == "Acme").await;
    let (key, reader) = acme.issue_key("reader").await;
    let there = other.platform.with(reader.credential());
    comes_to(&there, "/v1/flags", 200, anything).await;
    let revoked = acme.api.patiently(Method::DELETE, &format!("{row}/api-keys/{key}"), None).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text);
    comes_to(&there, "/v1/flags", 401, anything).await;

    // A flag of the platform's: made, changed, deleted.
    let flag = "/v1/flags/new-checkout";
    other.platform.get(flag).await.refused(404, "FLAG_NOT_FOUND");
    assert!(put_flag(&one.platform, "", true).await.status < 300);
    comes_to(&other.platform, flag, 200, |flag| flag["enabled"] == true).await;
    assert!(put_flag(&one.platform, "\"1\"", false).await.status < 300);
    comes_to(&other.platform, flag, 200, |flag| flag["enabled"] == false).await;
    one.platform.raw(Method::DELETE, flag, &[("if-match", "\"2\"")], Vec::new()).await.ok();
    comes_to(&other.platform, flag, 404, anything).await;

    // Somebody who administers the platform no longer.
    let body = json!({"issuer": issuer.url, "subject": "root-1", "name": "Ada"});
    let appointed = one.platform.post("/v1/platform-admins", &body).await;
    assert_eq!(appointed.status, 201, "{}", appointed.text);
    let root = other.platform.with(&issuer.token("root-1", json!({})));
    comes_to(&root, "/v1/tenants", 200, anything).await;
    let path = format!("/v1/platform-admins/{}", appointed.body["id"].as_str().unwrap());
    one.platform.delete(&path).await.ok();
    comes_to(&root, "/v1/tenants", 401, anything).await;

    // A tenant that is suspended.
    let admin_there = acme.at(&other).api;
    comes_to(&admin_there, "/v1/flags", 200, anything).await;
    shift(&one.platform, &acme, "suspend").await;
    comes_to(&admin_there, "/v1/flags", 403, |body| body["error"]["code"] == "TENANT_SUSPENDED").await;
    shift(&one.platform, &acme, "reactivate").await;
    comes_to(&admin_there, "/v1/flags", 200, anything).await;
    let metrics = other.platform.anonymous().get("/metrics").await.text;
    for kind in ["tenant", "apiKey", "platformAdmin", "flag"] {
        let counted = format!("platform_api_catalogue_news_total{{kind=\"{kind}\"}} ");
        assert!(metrics.lines().any(|line| line.starts_with(&counted)), "{kind}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_node_overwrites_what_it_has_not_seen() {
    // So seldom that nothing but the change itself makes them look.
    let setup = Setup::on(Engine::Postgres).with("STORE__CATALOGUE_POLL_MS", 1000);
    let (one, other) = two_nodes(setup).await;
    assert!(put_flag(&one.platform, "", true).await.status < 300);
    for version in 1..8 {
        let node = if version % 2 == 1 { &other } else { &one };
        let written = put_flag(&node.platform, &format!("\"{version}\""), version % 3 == 0).await;
        assert_eq!(written.status, 200, "version {version}: {}", written.text);
        let stale = put_flag(&node.platform, &format!("\"{version}\""), true).await;
        stale.refused(412, "PRECONDITION_FAILED");
    }
    // A name that is taken there is taken here, at once.
    let body = json!({"issuer": "https://issuer.example", "subject": "root-1", "name": "Ada"});
    assert_eq!(one.platform.post("/v1/platform-admins", &body).await.status, 201);
    other.platform.post("/v1/platform-admins", &body).await.refused(409, "IDENTITY_TAKEN");
    // The platform's own chain has taken every record of both.
    Tenant::holds(&one.platform.get("/v1/audit/verify").await.ok());
}
