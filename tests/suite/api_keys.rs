//! API keys: what narrows them, that they end by themselves, that a secret is exchanged without a gap, and shown once.

use platform_api::domain::time::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::events::now;
use crate::harness::{Setup, Tenant, eventually, on_both};

fn keys(tenant: &Tenant) -> String {
    format!("/v1/tenants/{}/api-keys", tenant.id)
}

/// The key's id, its secret, and the answer.
async fn issue(api: &Api, tenant: &Tenant, body: Value) -> (String, String, Value) {
    let answer = api.patiently(Method::POST, &keys(tenant), Some(&body)).await;
    assert_eq!(answer.status, 201, "{body}: {}", answer.text);
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned();
    (text(&answer.body["apiKey"]["id"]), text(&answer.body["key"]), answer.body["apiKey"].clone())
}

async fn patch(api: &Api, path: &str, tag: &str, body: Value) -> Answer {
    let mut headers = vec![("content-type", "application/merge-patch+json"), ("if-match", tag)];
    headers.retain(|(_, value)| !value.is_empty());
    api.raw(Method::PATCH, path, &headers, body.to_string().into_bytes()).await
}

async fn rotate(api: &Api, path: &str, once: &str, overlap_seconds: i64) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", once)];
    let body = json!({"overlapSeconds": overlap_seconds}).to_string().into_bytes();
    api.raw(Method::POST, &format!("{path}/rotate"), &headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_narrowed_rotated_and_ends_and_no_list_ever_shows_a_secret() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let (quotas, users) = (format!("/v1/quotas/{}", acme.id), "/v1/users");
        let body = json!({"name": "narrow", "role": "admin", "scopes": ["quotas:read", "apiKeys:*"]});
        let (id, secret, view) = issue(&acme.api, &acme, body).await;
        assert_eq!((&view["scopes"], &view["version"]), (&json!(["quotas:read", "apiKeys:*"]), &json!(1)));
        assert!(view["lastUsedAt"].is_null());
        let (narrow, path) = (daemon.platform.with(&secret), format!("{}/{id}", keys(&acme)));

        // Scopes narrow, and nobody lends out more than it has.
        assert_eq!(narrow.get(&quotas).await.status, 200);
        narrow.get(users).await.refused(403, "FORBIDDEN");
        narrow.put(&quotas, &json!({"quotas": []})).await.refused(403, "FORBIDDEN");
        for wider in [json!([]), json!(["*:*"]), json!(["users:read"])] {
            let body = json!({"name": "wider", "role": "admin", "scopes": wider});
            narrow.post(&keys(&acme), &body).await.refused(403, "FORBIDDEN");
            patch(&narrow, &path, "*", json!({"scopes": wider})).await.refused(403, "FORBIDDEN");
        }
        rotate(&narrow, &format!("{}/{}", keys(&acme), acme.key_id), "theirs", 0).await.refused(403, "FORBIDDEN");
        // Nor does it become somebody who has more.
        let body = json!({"name": "people", "role": "admin", "scopes": ["users:*", "roleAssignments:*"]});
        let (_, of_people, _) = issue(&acme.api, &acme, body).await;
        let of_people = daemon.platform.with(&of_people);
        let jane = of_people.post(users, &json!({"userName": "jane"})).await.ok();
        let jane = format!("{users}/{}", jane["id"].as_str().unwrap());
        let subjects = json!([{"issuer": "https://id.example.com", "subject": "mine"}]);
        let john = json!({"userName": "john", "subjects": subjects});
        of_people.post(users, &john).await.refused(403, "FORBIDDEN");
        patch(&of_people, &jane, "*", json!({"subjects": subjects})).await.refused(403, "FORBIDDEN");
        patch(&of_people, &jane, "*", json!({"displayName": "Jane"})).await.ok();
        let role = json!({"role": "admin", "holder": {"type": "apiKey", "id": acme.key_id}});
        of_people.post("/v1/role-assignments", &role).await.refused(403, "PERMISSION_NOT_HELD");
        let password = json!({"password": "correct horse battery staple"});
        of_people.put(&format!("{jane}/password"), &password).await.refused(403, "FORBIDDEN");
        of_people.delete(&format!("{jane}/password")).await.refused(403, "FORBIDDEN");
        let body = json!({"name": "child", "role": "admin", "scopes": ["quotas:read"],
            "rateLimits": [{"class": "read", "quota": 60, "windowSeconds": 3_600, "burst": 1}]});
        let (child, child_secret, _) = issue(&narrow, &acme, body).await;
        let child_api = daemon.platform.with(&child_secret);
        // Its own limit, beside its tier's.
        assert_eq!(child_api.get(&quotas).await.status, 200);
        let limited = child_api.get(&quotas).await;
        limited.refused(429, "RATE_LIMITED");
        assert_eq!(limited.header("ratelimit-policy"), "\"read\";q=60;w=3600");
        assert_eq!(acme.api.get(&quotas).await.status, 200);

        // Another secret: both are good, the answer that is repeated has none, and a third one must wait.
        let first = rotate(&acme.api, &path, "once", 3_600).await;
        assert_eq!(first.status, 200, "{}", first.text);
        let second_secret = first.body["key"].as_str().expect("shown once").to_owned();
        assert!(!first.body["apiKey"]["previousSecretUntil"].is_null());
        let again = rotate(&acme.api, &path, "once", 3_600).await;
        assert_eq!((again.status, &again.body["key"]), (200, &Value::Null));
        let new = daemon.platform.with(&second_secret);
        for api in [&narrow, &new] {
            api.get(users).await.refused(403, "FORBIDDEN");
        }
        rotate(&acme.api, &path, "early", 3_600).await.refused(409, "ROTATION_UNDER_WAY");
        let last = rotate(&acme.api, &path, "leaked", 0).await.ok();
        let third = daemon.platform.with(last["key"].as_str().unwrap());
        for api in [&narrow, &new] {
            api.get(users).await.refused(401, "INVALID_CREDENTIALS");
        }
        third.get(users).await.refused(403, "FORBIDDEN");

        // Changes name a version.
        let tag = acme.api.get(&path).await.header("etag").to_owned();
        patch(&acme.api, &path, "", json!({"name": "n"})).await.refused(428, "PRECONDITION_REQUIRED");
        patch(&acme.api, &path, "\"1\"", json!({"name": "n"})).await.refused(412, "PRECONDITION_FAILED");
        let wrong = json!({"scopes": ["usage"], "expiresAt": "2001-01-01T00:00:00Z"});
        patch(&acme.api, &path, &tag, wrong).await.refused(422, "VALIDATION_FAILED");
        let wide = patch(&acme.api, &path, &tag, json!({"scopes": [], "rateLimits": [], "name": "wide"})).await.ok();
        assert_eq!((&wide["name"], &wide["scopes"]), (&json!("wide"), &json!([])));
        assert_eq!(third.get(users).await.status, 200);

        // One that ends lends no time that it has not itself, and keeps its own limits.
        let ahead = |seconds: i64| Timestamp(now().0 + seconds * 1_000_000).to_string();
        let (end, later) = (ahead(600), ahead(900));
        let body = json!({"name": "ending", "role": "admin", "expiresAt": end});
        let (ending, ending_secret, _) = issue(&acme.api, &acme, body).await;
        let (ending_api, ending) = (daemon.platform.with(&ending_secret), format!("{}/{ending}", keys(&acme)));
        for expiry in [Value::Null, json!(later)] {
            let mut body = json!({"name": "longer", "role": "reader"});
            if !expiry.is_null() {
                body["expiresAt"] = expiry.clone();
            }
            ending_api.post(&keys(&acme), &body).await.refused(403, "FORBIDDEN");
            patch(&ending_api, &ending, "*", json!({"expiresAt": expiry})).await.refused(403, "FORBIDDEN");
        }
        rotate(&ending_api, &path, "longer", 0).await.refused(403, "FORBIDDEN");
        let limits = json!({"rateLimits": [{"class": "read", "quota": 6_000}]});
        patch(&ending_api, &ending, "*", limits).await.refused(403, "FORBIDDEN");
        patch(&ending_api, &ending, "*", json!({"name": "renamed"})).await.ok();
        issue(&ending_api, &acme, json!({"name": "as long", "role": "reader", "expiresAt": end})).await;

        // Nor does one that is limited make one that is limited less.
        let limit =
            |quota: u32, burst: u32| json!([{"class": "write", "quota": quota, "windowSeconds": 60, "burst": burst}]);
        let body = json!({"name": "limited", "role": "admin", "rateLimits": limit(600, 600)});
        let (limited, limited_secret, _) = issue(&acme.api, &acme, body).await;
        let (limited_api, limited) = (daemon.platform.with(&limited_secret), format!("{}/{limited}", keys(&acme)));
        for limits in [json!([]), limit(601, 600), json!([{"class": "read", "quota": 1}])] {
            let body = json!({"name": "freer", "role": "reader", "rateLimits": limits});
            limited_api.post(&keys(&acme), &body).await.refused(403, "FORBIDDEN");
            patch(&limited_api, &limited, "*", json!({"rateLimits": limits})).await.refused(403, "FORBIDDEN");
        }
        rotate(&limited_api, &ending, "freer", 0).await.refused(403, "FORBIDDEN");
        patch(&limited_api, &ending, "*", json!({"rateLimits": limit(1, 1)})).await.refused(403, "FORBIDDEN");
        let body = json!({"name": "as limited", "role": "reader", "rateLimits": limit(60, 6)});
        let (as_limited, _, _) = issue(&limited_api, &acme, body).await;
        rotate(&limited_api, &format!("{}/{as_limited}", keys(&acme)), "own", 0).await.ok();
        rotate(&limited_api, &limited, "itself", 3_600).await.ok();

        // Another tenant's administrator finds nothing, at its own address or at ours.
        for theirs in [path.clone(), path.replace(&acme.id, &globex.id)] {
            let code = if theirs == path { "TENANT_NOT_FOUND" } else { "API_KEY_NOT_FOUND" };
            globex.api.get(&theirs).await.refused(404, code);
            patch(&globex.api, &theirs, "*", json!({"name": "n"})).await.refused(404, code);
            rotate(&globex.api, &theirs, code, 0).await.refused(404, code);
        }

        // It ends by itself, and gateways are told.
        let soon = Timestamp(now().0 + 6_000_000).to_string();
        patch(&acme.api, &format!("{}/{child}", keys(&acme)), "*", json!({"expiresAt": soon})).await.ok();
        patch(&acme.api, &path, "*", json!({"expiresAt": soon})).await.ok();
        eventually("its end", || async { (third.get(users).await.status == 401).then_some(()) }).await;
        let decision = acme.decision(&format!("?apiKeyId={id}")).await;
        assert_eq!(
            (&decision["decision"], &decision["reasons"][0]["code"]),
            (&json!("deny"), &json!("API_KEY_EXPIRED"))
        );
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        assert!(metrics.contains("platform_api_refused_after_revocation_total{kind=\"api_key_expired\"}"), "{metrics}");
        rotate(&acme.api, &path, "late", 0).await.refused(409, "API_KEY_ENDED");
        patch(&acme.api, &path, "*", json!({"expiresAt": null})).await.ok();
        assert_eq!(third.get(users).await.status, 200, "it was given time");

        // When it was last used is still known after a restart; no list, no record and no answer has a secret.
        daemon.terminate().await;
        daemon.restart().await;
        let listed = acme.api.pages(&keys(&acme), 2).await;
        let shown = listed.iter().find(|key| key["id"] == *id).expect("listed");
        let used: Timestamp = shown["lastUsedAt"].as_str().expect("used").parse().unwrap();
        assert!(used <= now() && used.0 % 3_600_000_000 == 0, "{used}");
        let records = acme.audit().await;
        let everything = format!("{listed:?} {records:?} {}", acme.api.get(&path).await.text);
        for secret in [secret.as_str(), &second_secret, &child_secret, third.credential(), acme.api.credential()] {
            let hidden = secret.rsplit('_').next().unwrap();
            assert!(!everything.contains(hidden), "a secret is shown");
        }
        assert!(listed.iter().flat_map(|key| key.as_object().unwrap().keys()).all(|field| !field.contains("ash")));
        for action in ["apiKey.rotated", "apiKey.changed", "access.denied"] {
            assert!(records.iter().any(|record| record["record"]["action"] == action), "{action}");
        }
        Tenant::holds(&acme.verify().await);
    })
    .await;
}

/// A quota of scope `apiKey` counts what is attributed to the key, whichever secret it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_one_key_holds_for_that_key_alone() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let (id, _, _) = issue(&acme.api, &acme, json!({"name": "app", "role": "reporter"})).await;
        let quota = json!({"scope": {"type": "apiKey", "id": id}, "metric": "tokens", "period": "total",
            "limit": 100, "enforcement": "block"});
        acme.put_quotas(json!([quota])).await;
        let report = async |key: &str| {
            let mut event = acme.event().tokens(100, 0).json();
            event["actor"]["apiKeyId"] = json!(key);
            acme.api.post("/v1/usage/events", &json!([event])).await.ok();
        };
        report("another").await;
        assert_eq!(acme.decision(&format!("?apiKeyId={id}")).await["decision"], "allow");
        rotate(&acme.api, &format!("{}/{id}", keys(&acme)), "once", 60).await.ok();
        report(&id).await;
        assert_eq!(acme.decision(&format!("?apiKeyId={id}")).await["decision"], "deny");
        assert_eq!(acme.decision("?apiKeyId=another").await["decision"], "allow");
        assert_eq!(acme.quotas().await[0]["standing"], "exceeded");
    })
    .await;
}
