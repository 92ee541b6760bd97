//! A tenant's people: who they are, what they may do, and that whoever is shut out is out at once.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::issuer::Issuer;
use crate::harness::{Daemon, Engine, Setup, Tenant, on_both};

async fn add(tenant: &Tenant, path: &str, body: Value) -> Value {
    let answer = tenant.api.patiently(Method::POST, path, Some(&body)).await;
    assert_eq!(answer.status, 201, "{path} {body}: {}", answer.text);
    answer.body
}

async fn user(tenant: &Tenant, name: &str) -> String {
    id_of(&add(tenant, "/v1/users", json!({"userName": name})).await)
}

async fn group(tenant: &Tenant, name: &str) -> String {
    id_of(&add(tenant, "/v1/groups", json!({"displayName": name})).await)
}

async fn joins(tenant: &Tenant, group: &str, kind: &str, id: &str) -> Answer {
    let body = json!({"members": [{"type": kind, "id": id}]});
    tenant.api.post(&format!("/v1/groups/{group}/members"), &body).await
}

async fn gives(tenant: &Tenant, role: &str, kind: &str, id: &str) -> String {
    id_of(&add(tenant, "/v1/role-assignments", json!({"role": role, "holder": {"type": kind, "id": id}})).await)
}

fn id_of(body: &Value) -> String {
    body["id"].as_str().unwrap_or_else(|| panic!("no id in {body}")).to_owned()
}

/// A change for a version, or for whichever there is.
async fn change(api: &Api, method: Method, path: &str, tag: &str, body: Value) -> Answer {
    let headers = [("content-type", "application/merge-patch+json"), ("if-match", tag)];
    let json = [("content-type", "application/json"), ("if-match", tag)];
    let headers = if method == Method::PATCH { headers } else { json };
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    api.raw(method, path, &headers, bytes).await
}

async fn patch(api: &Api, path: &str, body: Value) -> Value {
    change(api, Method::PATCH, path, "*", body).await.ok()
}

/// Of `platform_api_refused_after_revocation_total`.
async fn refused_after_revocation(daemon: &Daemon, kind: &str) -> u64 {
    let text = daemon.platform.anonymous().get("/metrics").await.text;
    let name = format!("platform_api_refused_after_revocation_total{{kind=\"{kind}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_kept_across_a_restart_and_are_nobody_else_s() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let body = json!({
            "userName": "Jane@example.com", "displayName": "Jane Doe", "givenName": "Jane",
            "emails": [{"value": "jane@example.com", "type": "work", "primary": true}],
            "externalId": "e-1", "subjects": [{"issuer": "https://id.example.com", "subject": "s-1"}],
            "attributes": {"clearance": 3, "sites": ["Köln"], "remote": true},
        });
        let jane = add(&acme, "/v1/users", body.clone()).await;
        for (field, value) in body.as_object().unwrap() {
            assert_eq!(jane[field], *value, "{field}");
        }
        assert_eq!((&jane["active"], &jane["version"]), (&json!(true), &json!(1)));
        let (team, all) = (group(&acme, "Team").await, group(&acme, "All").await);
        joins(&acme, &team, "user", &id_of(&jane)).await.ok();
        joins(&acme, &all, "group", &team).await.ok();
        let role = gives(&acme, "analyst", "group", &all).await;
        // The same names are free elsewhere, and nobody there sees these.
        add(&globex, "/v1/users", body).await;
        for path in [
            format!("/v1/users/{}", id_of(&jane)),
            format!("/v1/groups/{team}"),
            format!("/v1/groups/{team}/members"),
            format!("/v1/role-assignments/{role}"),
        ] {
            let (theirs, nowhere) =
                (globex.api.get(&path).await, path.replace(path.split('/').nth(3).unwrap(), &acme.id));
            assert_eq!(theirs.status, 404, "{path}");
            assert_eq!(theirs.code(), globex.api.get(&nowhere).await.code(), "{path}");
            assert_eq!(acme.api.get(&path).await.status, 200, "{path}");
            globex.api.get(&format!("{path}?tenantId={}", acme.id)).await.refused(404, "TENANT_NOT_FOUND");
            let chosen = daemon.platform.get(&format!("{path}?tenantId={}", acme.id)).await;
            assert_eq!(chosen.status, 200, "{path}");
        }
        daemon.platform.get("/v1/users").await.refused(400, "INVALID_PARAMETER");
        assert_eq!(globex.api.pages("/v1/groups", 10).await.len(), 0);
        let before = everything(&acme).await;
        daemon.terminate().await;
        daemon.restart().await;
        assert_eq!(everything(&acme).await, before);
        Tenant::holds(&acme.verify().await);
    })
    .await;
}

async fn everything(tenant: &Tenant) -> Vec<Vec<Value>> {
    let mut all = vec![
        tenant.api.pages("/v1/users", 2).await,
        tenant.api.pages("/v1/groups", 1).await,
        tenant.api.pages("/v1/role-assignments", 2).await,
    ];
    for group in all[1].clone() {
        all.push(tenant.api.pages(&format!("/v1/groups/{}/members", id_of(&group)), 1).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_names_the_version_that_its_caller_has_seen() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let (jane, team) = (user(&acme, "jane").await, group(&acme, "Team").await);
        for (path, replacement) in [
            (format!("/v1/users/{jane}"), json!({"userName": "jane", "active": true, "displayName": "J"})),
            (format!("/v1/groups/{team}"), json!({"displayName": "Team", "active": true, "description": "all of us"})),
        ] {
            let api = &acme.api;
            assert_eq!(api.get(&path).await.header("etag"), "\"1\"");
            for (method, body) in [
                (Method::PATCH, json!({"externalId": "e"})),
                (Method::PUT, replacement.clone()),
                (Method::DELETE, Value::Null),
            ] {
                let body = (!body.is_null()).then_some(&body);
                api.call(method, &path, body).await.refused(428, "PRECONDITION_REQUIRED");
            }
            let patched = change(api, Method::PATCH, &path, "\"1\"", json!({"externalId": "e"})).await;
            assert_eq!((patched.status, patched.header("etag")), (200, "\"2\""), "{}", patched.text);
            for tag in ["\"1\"", "W/\"2\"", "\"x\""] {
                change(api, Method::PUT, &path, tag, replacement.clone()).await.refused(412, "PRECONDITION_FAILED");
                change(api, Method::DELETE, &path, tag, Value::Null).await.refused(412, "PRECONDITION_FAILED");
            }
            change(api, Method::PUT, &path, "2", replacement.clone()).await.refused(400, "INVALID_HEADER");
            let replaced = change(api, Method::PUT, &path, "\"7\", \"2\"", replacement).await.ok();
            assert_eq!((&replaced["version"], &replaced["externalId"]), (&json!(3), &Value::Null));

            // Of those who have seen the same version, one is in time.
            let race =
                (0..8).map(|at| {
                    let (api, path) = (acme.api.clone(), path.clone());
                    async move {
                        change(&api, Method::PATCH, &path, "\"3\"", json!({"attributes": {"by": at}})).await.status
                    }
                });
            let statuses = futures_util::future::join_all(race).await;
            let count = |status: u16| statuses.iter().filter(|one| **one == status).count();
            assert_eq!((count(200), count(412)), (1, 7), "{statuses:?}");
            assert_eq!(change(api, Method::DELETE, &path, "*", Value::Null).await.ok()["version"], 4);
            assert_eq!(api.get(&path).await.status, 404);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_repeated_with_its_key_adds_nobody_twice() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let post = async |path: &str, key: &str, body: Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        acme.api.raw(Method::POST, path, &headers, body.to_string().into_bytes()).await
    };
    let jane = post("/v1/users", "k", json!({"userName": "jane"})).await;
    assert_eq!((jane.status, jane.header("etag")), (201, "\"1\""), "{}", jane.text);
    let again = post("/v1/users", "k", json!({"userName": "jane"})).await;
    assert_eq!((again.status, again.header("idempotent-replayed"), &again.body), (201, "true", &jane.body));
    post("/v1/users", "k", json!({"userName": "joe"})).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    post("/v1/users", "l", json!({"userName": "JANE"})).await.refused(409, "IDENTITY_TAKEN");
    assert_eq!(acme.api.pages("/v1/users", 10).await.len(), 1);

    let team = group(&acme, "Team").await;
    let members = json!({"members": [{"type": "user", "id": id_of(&jane.body)}]});
    let path = format!("/v1/groups/{team}/members");
    assert_eq!(post(&path, "m", members.clone()).await.ok()["version"], 2);
    assert_eq!(post(&path, "m", members.clone()).await.header("idempotent-replayed"), "true");
    assert_eq!(post(&path, "n", members).await.ok()["version"], 2, "who is in it stays in it");
    let role = json!({"role": "reader", "holder": {"type": "group", "id": team}});
    let given = post("/v1/role-assignments", "r", role.clone()).await;
    assert_eq!(post("/v1/role-assignments", "r", role.clone()).await.body, given.body);
    post("/v1/role-assignments", "s", role).await.refused(409, "ROLE_ALREADY_ASSIGNED");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused_by_its_field() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let (jane, team, other) = (user(&acme, "jane").await, group(&acme, "Team").await, group(&acme, "Other").await);
    let nobody = "0199a8b2-5c00-7abc-8def-0123456789ab";
    let member = |kind: &str, id: &str| json!({"members": [{"type": kind, "id": id}]});
    let holder = |role: &str, kind: &str, id: &str| json!({"role": role, "holder": {"type": kind, "id": id}});
    let members = format!("/v1/groups/{team}/members");
    for (path, body, pointer) in [
        ("/v1/users", json!({}), "/userName"),
        ("/v1/users", json!({"userName": ""}), "/userName"),
        ("/v1/users", json!({"userName": "x", "id": nobody}), "/id"),
        ("/v1/users", json!({"userName": "x", "version": 7}), "/version"),
        ("/v1/users", json!({"userName": "x", "active": null}), "/active"),
        ("/v1/users", json!({"userName": "x", "active": "yes"}), "/active"),
        ("/v1/users", json!({"userName": "x", "emails": [{"value": "no address"}]}), "/emails/0/value"),
        ("/v1/users", json!({"userName": "x", "emails": [{"value": "a@b", "verified": true}]}), "/emails/0/verified"),
        ("/v1/users", json!({"userName": "x", "attributes": {"a": {"b": 1}}}), "/attributes/a"),
        ("/v1/users", json!({"userName": "x", "attributes": []}), "/attributes"),
        ("/v1/groups", json!({"displayName": " x"}), "/displayName"),
        ("/v1/groups", json!({"displayName": "x", "members": []}), "/members"),
        (members.as_str(), json!({"members": []}), "/members"),
        (members.as_str(), member("key", nobody), "/members/0/type"),
        (members.as_str(), member("user", "jane"), "/members/0/id"),
        (members.as_str(), member("user", nobody), "/members/0/id"),
        (members.as_str(), member("user", &team), "/members/0/id"),
        ("/v1/role-assignments", holder("platformAdmin", "user", &jane), "/role"),
        ("/v1/role-assignments", holder("root", "user", &jane), "/role"),
        ("/v1/role-assignments", holder("reader", "user", nobody), "/holder/id"),
        ("/v1/role-assignments", holder("reader", "apiKey", "nosuchkey0"), "/holder/id"),
        ("/v1/role-assignments", holder("reader", "tenant", nobody), "/holder/type"),
    ] {
        let answer = acme.api.post(path, &body).await;
        answer.refused(422, "VALIDATION_FAILED");
        assert_eq!(answer.body["error"]["details"]["fields"][0]["pointer"], pointer, "{path} {body}: {}", answer.text);
    }
    let path = format!("/v1/users/{jane}");
    change(&acme.api, Method::PUT, &path, "*", json!({"userName": "jane"})).await.refused(422, "VALIDATION_FAILED");
    change(&acme.api, Method::PATCH, &path, "*", json!({"userName": null})).await.refused(422, "VALIDATION_FAILED");
    change(&acme.api, Method::PATCH, &path, "*", json!({"userName": ""})).await.refused(422, "VALIDATION_FAILED");
    for query in ["limit=0", "active=1", "group=x", "userName=", "prefix=", "other=1", "cursor=x"] {
        assert_eq!(acme.api.get(&format!("/v1/users?{query}")).await.status, 400, "{query}");
    }
    joins(&acme, &team, "group", &other).await.ok();
    let circle = joins(&acme, &other, "group", &team).await;
    circle.refused(409, "MEMBERSHIP_REFUSED");
    assert_eq!(circle.body["error"]["details"]["reason"], "cycle", "{}", circle.text);
    acme.api.delete(&format!("/v1/groups/{team}/members/{jane}")).await.refused(404, "MEMBER_NOT_FOUND");
    let left = acme.api.delete(&format!("/v1/groups/{team}/members/{other}")).await.ok();
    assert_eq!(left["version"], 3);
    let (_, foreign) = daemon.onboard("Globex").await.issue_key("reader").await;
    foreign.get("/v1/users").await.refused(403, "FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let mut ids = Vec::new();
    for name in ["anna", "Anton", "bert", "ANNETTE", "carl"] {
        let body = json!({"userName": name, "externalId": format!("e-{name}"), "active": name != "carl"});
        ids.push(id_of(&add(&acme, "/v1/users", body).await));
    }
    let team = group(&acme, "Team").await;
    for at in [2, 0, 4] {
        joins(&acme, &team, "user", &ids[at]).await.ok();
    }
    for (query, expected) in [
        (String::new(), vec![0, 1, 2, 3, 4]),
        ("?userName=ANNA".into(), vec![0]),
        ("?userName=ann".into(), vec![]),
        ("?externalId=e-bert".into(), vec![2]),
        ("?active=false".into(), vec![4]),
        ("?prefix=an".into(), vec![0, 1, 3]),
        ("?prefix=AN&active=true&externalId=e-Anton".into(), vec![1]),
        (format!("?group={team}"), vec![0, 2, 4]),
        (format!("?group={team}&active=true"), vec![0, 2]),
        (format!("?group={team}&prefix=c"), vec![4]),
    ] {
        for limit in [1, 2, 500] {
            let found: Vec<String> =
                acme.api.pages(&format!("/v1/users{query}"), limit).await.iter().map(id_of).collect();
            let expected: Vec<String> = expected.iter().map(|at: &usize| ids[*at].clone()).collect();
            assert_eq!(found, expected, "{query} by {limit}");
        }
    }
    let of_bert = acme.api.pages(&format!("/v1/groups?user={}", ids[2]), 5).await;
    assert_eq!(of_bert.iter().map(id_of).collect::<Vec<_>>(), std::slice::from_ref(&team));
    let role = gives(&acme, "reader", "user", &ids[0]).await;
    gives(&acme, "analyst", "group", &team).await;
    let of_anna = acme.api.pages(&format!("/v1/role-assignments?userId={}", ids[0]), 5).await;
    assert_eq!(of_anna.iter().map(id_of).collect::<Vec<_>>(), [role]);
    assert_eq!(acme.api.pages("/v1/role-assignments?role=analyst", 5).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_deactivated_is_out_from_the_next_request_on() {
    let issuer = Issuer::start().await;
    on_both(|engine| {
        let issuer = &issuer;
        async move {
            let mut daemon = Setup::on(engine).with_section(&issuer.section()).start().await;
            let acme = daemon.onboard("Acme").await;
            let token = issuer.token("s-1", json!({"tenant": acme.id, "roles": ["reader"]}));
            let jane = daemon.platform.with(&token);
            let quotas = format!("/v1/quotas/{}", acme.id);
            assert_eq!(jane.get(&quotas).await.status, 200, "a token that nobody knows more of is what it says");
            let body = json!({"userName": "jane", "subjects": [{"issuer": issuer.url, "subject": "s-1"}]});
            let path = format!("/v1/users/{}", id_of(&add(&acme, "/v1/users", body).await));
            assert_eq!(jane.get(&quotas).await.status, 200);
            assert_eq!(acme.decision("?userId=jane").await["decision"], "allow");

            patch(&acme.api, &path, json!({"active": false})).await;
            jane.get(&quotas).await.refused(401, "INVALID_CREDENTIALS");
            jane.get("/v1/audit").await.refused(401, "INVALID_CREDENTIALS");
            for label in ["jane", "JANE", "s-1"] {
                let decision = acme.decision(&format!("?userId={label}")).await;
                let reasons = &decision["reasons"];
                assert_eq!((&decision["decision"], &reasons[0]["code"]), (&json!("deny"), &json!("USER_DEACTIVATED")));
            }
            assert!(refused_after_revocation(&daemon, "user").await >= 5);
            // A daemon that starts anew opens the books before it lets anybody pass.
            daemon.terminate().await;
            daemon.restart().await;
            let first = jane.patiently(Method::GET, &quotas, None).await;
            first.refused(401, "INVALID_CREDENTIALS");
            let again = acme.api.patiently(Method::GET, &path, None).await;
            assert_eq!(again.ok()["active"], false);
            patch(&acme.api, &path, json!({"active": true})).await;
            assert_eq!(jane.get(&quotas).await.status, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_revocation_is_counted() {
    let issuer = Issuer::start().await;
    let daemon = Setup::on(Engine::Sqlite).with_section(&issuer.section()).start().await;
    let acme = daemon.onboard("Acme").await;
    let (key_id, key) = acme.issue_key("reader").await;
    acme.api.delete(&format!("/v1/tenants/{}/api-keys/{key_id}", acme.id)).await.ok();
    key.get("/v1/audit").await.refused(401, "INVALID_CREDENTIALS");
    assert_eq!(refused_after_revocation(&daemon, "api_key").await, 1);
    let decision = acme.decision(&format!("?apiKeyId={key_id}")).await;
    assert_eq!(decision["reasons"][0]["code"], "API_KEY_REVOKED", "{decision}");
    assert_eq!(refused_after_revocation(&daemon, "api_key").await, 2);

    // A role that comes through a group goes with it.
    let body = json!({"userName": "jane", "subjects": [{"issuer": issuer.url, "subject": "s-1"}]});
    let jane = id_of(&add(&acme, "/v1/users", body).await);
    let (inner, outer) = (group(&acme, "Inner").await, group(&acme, "Outer").await);
    joins(&acme, &inner, "user", &jane).await.ok();
    joins(&acme, &outer, "group", &inner).await.ok();
    let quotas = format!("/v1/quotas/{}", acme.id);
    let caller = daemon.platform.with(&issuer.token("s-1", json!({"tenant": acme.id})));
    caller.get(&quotas).await.refused(403, "FORBIDDEN");
    gives(&acme, "analyst", "group", &outer).await;
    assert_eq!(caller.get(&quotas).await.status, 200);
    caller.get("/v1/users").await.refused(403, "FORBIDDEN");
    assert_eq!(refused_after_revocation(&daemon, "group").await, 0);
    patch(&acme.api, &format!("/v1/groups/{inner}"), json!({"active": false})).await;
    caller.get(&quotas).await.refused(403, "FORBIDDEN");
    assert_eq!(refused_after_revocation(&daemon, "group").await, 1);
    let decision = acme.decision("?userId=jane&groupId=inner").await;
    assert_eq!(decision["reasons"][0]["code"], "GROUP_DEACTIVATED", "{decision}");
    assert_eq!(refused_after_revocation(&daemon, "group").await, 2);

    daemon.platform.post(&format!("/v1/tenants/{}/suspend", acme.id), &json!({})).await.ok();
    acme.api.get("/v1/users").await.refused(403, "TENANT_SUSPENDED");
    caller.get(&quotas).await.refused(403, "TENANT_SUSPENDED");
    assert_eq!(refused_after_revocation(&daemon, "tenant").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_do_more_when_its_tenant_says_so() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let (id, reporter) = acme.issue_key("reporter").await;
    reporter.get("/v1/audit").await.refused(403, "FORBIDDEN");
    let role = gives(&acme, "reader", "apiKey", &id).await;
    assert_eq!(reporter.get("/v1/audit").await.status, 200);
    reporter.get("/v1/users").await.refused(403, "FORBIDDEN");
    acme.api.delete(&format!("/v1/role-assignments/{role}")).await.ok();
    reporter.get("/v1/audit").await.refused(403, "FORBIDDEN");
    // Another tenant's key is nobody here.
    let body = json!({"role": "reader", "holder": {"type": "apiKey", "id": id}});
    globex.api.post("/v1/role-assignments", &body).await.refused(422, "VALIDATION_FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_who_administer_the_platform_come_and_go() {
    let issuer = Issuer::start().await;
    on_both(|engine| {
        let issuer = &issuer;
        async move {
            let mut daemon = Setup::on(engine).with_section(&issuer.section()).start().await;
            let acme = daemon.onboard("Acme").await;
            let root = daemon.platform.with(&issuer.token("root", json!({"roles": ["admin"]})));
            root.get("/v1/tenants").await.refused(401, "INVALID_CREDENTIALS");
            let body = json!({"issuer": issuer.url, "subject": "root", "name": "Ruth"});
            acme.api.post("/v1/platform-admins", &body).await.refused(403, "FORBIDDEN");
            let appointed = daemon.platform.post("/v1/platform-admins", &body).await;
            assert_eq!(appointed.status, 201, "{}", appointed.text);
            assert_eq!(root.get("/v1/tenants").await.status, 200);
            daemon.platform.post("/v1/platform-admins", &body).await.refused(409, "IDENTITY_TAKEN");
            let malformed = json!({"issuer": "", "subject": "x", "role": "y"});
            daemon.platform.post("/v1/platform-admins", &malformed).await.refused(422, "VALIDATION_FAILED");
            // A token that names a tenant is confined to it, whoever it speaks of.
            let confined = issuer.token("root", json!({"tenant": acme.id, "roles": ["reader"]}));
            daemon.platform.with(&confined).get("/v1/tenants").await.refused(403, "FORBIDDEN");

            daemon.terminate().await;
            daemon.restart().await;
            assert_eq!(root.get("/v1/tenants").await.status, 200);
            let listed = root.pages("/v1/platform-admins", 1).await;
            assert_eq!(listed, std::slice::from_ref(&appointed.body));
            let path = format!("/v1/platform-admins/{}", id_of(&appointed.body));
            assert_eq!(root.get(&path).await.ok(), appointed.body);
            root.delete(&path).await.ok();
            root.get("/v1/tenants").await.refused(401, "INVALID_CREDENTIALS");
            daemon.platform.delete(&path).await.refused(404, "PLATFORM_ADMIN_NOT_FOUND");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_holds_as_many_as_the_operator_says() {
    let settings = ["USERS", "GROUPS", "MEMBERS", "ROLE_ASSIGNMENTS"];
    let setup = settings
        .iter()
        .fold(Setup::on(Engine::Sqlite), |setup, what| setup.with(&format!("ORGANIZATION__{what}_MAX"), 2));
    let daemon = setup.start().await;
    let acme = daemon.onboard("Acme").await;
    let (jane, joe) = (user(&acme, "jane").await, user(&acme, "joe").await);
    let (team, all) = (group(&acme, "Team").await, group(&acme, "All").await);
    for id in [&jane, &joe] {
        joins(&acme, &team, "user", id).await.ok();
        gives(&acme, "reader", "user", id).await;
    }
    for (path, body, of) in [
        ("/v1/users".to_owned(), json!({"userName": "one more"}), "users"),
        ("/v1/groups".to_owned(), json!({"displayName": "one more"}), "groups"),
        (format!("/v1/groups/{all}/members"), json!({"members": [{"type": "group", "id": team}]}), "members"),
        (
            "/v1/role-assignments".to_owned(),
            json!({"role": "admin", "holder": {"type": "user", "id": jane}}),
            "role assignments",
        ),
    ] {
        let answer = acme.api.post(&path, &body).await;
        answer.refused(409, "ORGANIZATION_FULL");
        assert_eq!(answer.body["error"]["details"], json!({"most": 2, "of": of}), "{path}");
    }
    // Whoever goes makes room.
    change(&acme.api, Method::DELETE, &format!("/v1/users/{joe}"), "*", Value::Null).await.ok();
    user(&acme, "one more").await;
    assert_eq!(joins(&acme, &all, "group", &team).await.ok()["version"], 2);
}

/// Nobody raises himself or others: a key with scopes hands out what it has itself, by whichever way.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_scopes_hands_out_no_more_than_it_has() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let (jane, bob) = (user(&acme, "jane").await, user(&acme, "bob").await);
        let (admins, inner) = (group(&acme, "Admins").await, group(&acme, "Inner").await);
        let (analysts, plain) = (group(&acme, "Analysts").await, group(&acme, "Plain").await);
        joins(&acme, &admins, "group", &inner).await.ok();
        gives(&acme, "admin", "group", &admins).await;
        gives(&acme, "analyst", "group", &analysts).await;
        let key = async |scopes: &[&str]| {
            let body = json!({"name": scopes.join(" "), "role": "admin", "scopes": scopes});
            let issued = add(&acme, &format!("/v1/tenants/{}/api-keys", acme.id), body).await;
            let id = issued["apiKey"]["id"].as_str().unwrap().to_owned();
            (daemon.platform.with(issued["key"].as_str().unwrap()), id)
        };
        let member = |kind: &str, id: &str| json!({"members": [{"type": kind, "id": id}]});
        let members = |group: &str| format!("/v1/groups/{group}/members");
        let held = |answer: Answer, permission: &str| {
            answer.refused(403, "PERMISSION_NOT_HELD");
            assert_eq!(answer.body["error"]["details"]["permission"], permission, "{}", answer.text);
        };
        let (reads, everything) =
            (["usage:read", "quotas:read", "alerts:read", "reconciliation:read"], "access:evaluate");

        // Members, users and groups, into a group that has roles itself or by one above it.
        let (of_groups, _) = key(&["groups:*"]).await;
        for group in [&admins, &inner] {
            held(of_groups.post(&members(group), &member("user", &jane)).await, everything);
            held(of_groups.post(&members(group), &member("group", &plain)).await, everything);
        }
        of_groups.post(&members(&plain), &member("user", &jane)).await.ok();
        held(of_groups.post(&members(&analysts), &member("user", &jane)).await, "alerts:read");
        let (of_readers, _) = key(&[&reads[..], &["groups:*", "features:evaluate"]].concat()).await;
        of_readers.post(&members(&analysts), &member("user", &jane)).await.ok();
        held(of_readers.post(&members(&admins), &member("group", &analysts)).await, everything);
        // A group that sleeps is not woken either.
        patch(&acme.api, &format!("/v1/groups/{admins}"), json!({"active": false})).await;
        held(
            change(&of_groups, Method::PATCH, &format!("/v1/groups/{admins}"), "*", json!({"active": true})).await,
            everything,
        );
        held(of_groups.post(&members(&inner), &member("user", &jane)).await, everything);
        patch(&acme.api, &format!("/v1/groups/{admins}"), json!({"active": true})).await;
        // As an identity provider pushes them, whole and in patches; with the permission to grant it may.
        let scim = [("content-type", "application/scim+json")];
        let pushed = json!({"displayName": "Admins", "members": [{"value": jane}, {"value": inner}]}).to_string();
        let added = json!({"Operations": [{"op": "add", "path": "members", "value": [{"value": bob}]}]}).to_string();
        let address = format!("/scim/v2/Groups/{admins}");
        let (pusher, _) = key(&["users:*", "groups:*"]).await;
        for (method, body) in [(Method::PUT, &pushed), (Method::PATCH, &added)] {
            let refused = pusher.raw(method, &address, &scim, body.clone().into_bytes()).await;
            assert_eq!(refused.status, 403, "{}", refused.text);
            assert!(refused.body["detail"].as_str().unwrap().starts_with("PERMISSION_NOT_HELD"), "{}", refused.text);
        }
        let (granting, _) = key(&["users:*", "groups:*", "permissions:grant"]).await;
        for (method, body) in [(Method::PUT, &pushed), (Method::PATCH, &added)] {
            let done = granting.raw(method, &address, &scim, body.clone().into_bytes()).await;
            assert_eq!(done.status, 200, "{}", done.text);
        }
        // To grant is not to do: other operations stay shut.
        let role = json!({"role": "admin", "holder": {"type": "user", "id": jane}});
        granting.post("/v1/role-assignments", &role).await.refused(403, "FORBIDDEN");
        // Users who come back.
        let path = format!("/v1/users/{bob}");
        patch(&acme.api, &path, json!({"active": false})).await;
        held(change(&pusher, Method::PATCH, &path, "*", json!({"active": true})).await, everything);
        change(&granting, Method::PATCH, &path, "*", json!({"active": true})).await.ok();
        // Nor does anybody come back by being unlinked from its tokens, or deleted.
        let subjects = json!([{"issuer": "https://id.example.com", "subject": "00u7"}]);
        patch(&acme.api, &path, json!({"subjects": subjects, "active": false})).await;
        held(change(&pusher, Method::PATCH, &path, "*", json!({"subjects": []})).await, "permissions:grant");
        let whole = json!({"userName": "bob", "active": false});
        held(change(&pusher, Method::PUT, &path, "*", whole).await, "permissions:grant");
        held(change(&pusher, Method::DELETE, &path, "*", Value::Null).await, "permissions:grant");
        patch(&acme.api, &path, json!({"subjects": [], "active": true})).await;

        // Roles: given, laid down and widened.
        let (of_roles, of_roles_id) = key(&["roleAssignments:*", "roles:*", "policies:*", "usage:read"]).await;
        for (kind, id) in [("user", &jane), ("group", &plain), ("apiKey", &of_roles_id)] {
            let role = |name: &str| json!({"role": name, "holder": {"type": kind, "id": id}});
            held(of_roles.post("/v1/role-assignments", &role("admin")).await, everything);
        }
        let terms = |permissions: &[&str]| json!({"permissions": permissions});
        let laid_down = |permissions: &[&str]| json!({"name": "lookers", "permissions": permissions});
        held(of_roles.post("/v1/roles", &laid_down(&["usage:read", "quotas:read"])).await, "quotas:read");
        assert_eq!(of_roles.post("/v1/roles", &laid_down(&["usage:read"])).await.status, 201);
        let own = json!({"role": "lookers", "holder": {"type": "apiKey", "id": of_roles_id}});
        let given = of_roles.post("/v1/role-assignments", &own).await;
        assert_eq!(given.status, 201, "{}", given.text);
        held(change(&of_roles, Method::PUT, "/v1/roles/lookers", "*", terms(&["*:read"])).await, "alerts:read");
        change(&of_roles, Method::PUT, "/v1/roles/lookers", "*", terms(&["usage:read"])).await.ok();

        // Policies: what they allow, and what is no longer denied.
        let policy = |effect: &str, permission: &str| {
            json!({"name": permission, "effect": effect, "permissions": [permission],
                "subjects": [{"type": "apiKey", "id": of_roles_id}]})
        };
        held(of_roles.post("/v1/policies", &policy("allow", "quotas:read")).await, "quotas:read");
        let denial = id_of(&add(&acme, "/v1/policies", policy("deny", "usage:read")).await);
        let denial = format!("/v1/policies/{denial}");
        held(change(&of_roles, Method::DELETE, &denial, "*", Value::Null).await, "usage:read");
        held(change(&of_roles, Method::PUT, &denial, "*", policy("deny", "usage:report")).await, "usage:read");
        change(&acme.api, Method::DELETE, &denial, "*", Value::Null).await.ok();

        // Keys: a role that its owner has not.
        let (of_keys, _) = key(&["apiKeys:*", "providerSecrets:*"]).await;
        let body = json!({"name": "lender", "role": "reporter", "scopes": ["providerSecrets:lease"]});
        held(of_keys.post(&format!("/v1/tenants/{}/api-keys", acme.id), &body).await, "providerSecrets:lease");
        // What is denied to it under some condition keeps it neither from another secret nor from another name.
        let condition = json!({"attribute": "context.ip", "operator": "inNetwork", "values": ["192.0.2.0/24"]});
        let denial = json!({"name": "abroad", "effect": "deny", "permissions": ["apiKeys:create"],
            "subjects": [{"type": "everybody"}], "condition": condition});
        let denial = format!("/v1/policies/{}", id_of(&add(&acme, "/v1/policies", denial).await));
        let (renewing, renewing_id) = key(&["apiKeys:*", "usage:read"]).await;
        let path = format!("/v1/tenants/{}/api-keys/{renewing_id}", acme.id);
        change(&renewing, Method::PATCH, &path, "*", json!({"name": "renamed"})).await.ok();
        held(change(&renewing, Method::PATCH, &path, "*", json!({"scopes": ["apiKeys:*"]})).await, "apiKeys:create");
        renewing.post(&format!("{path}/rotate"), &json!({})).await.ok();
        change(&acme.api, Method::DELETE, &denial, "*", Value::Null).await.ok();

        let records = acme.audit().await;
        let denied = records.iter().filter(|record| record["payload"]["permission"] == everything).count();
        assert!(denied >= 10, "{denied} of {records:?}");
        Tenant::holds(&acme.verify().await);
    })
    .await;
}
