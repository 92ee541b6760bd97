//! What a tenant lays down itself: roles and policies as data, decisions for its own door and over AuthZEN, and why.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::issuer::Issuer;
use crate::harness::{Engine, Setup, Tenant, on_both};

async fn made(api: &Api, path: &str, body: Value) -> Value {
    let answer = api.patiently(Method::POST, path, Some(&body)).await;
    assert_eq!(answer.status, 201, "{path} {body}: {}", answer.text);
    answer.body
}

fn id_of(body: &Value) -> String {
    body["id"].as_str().unwrap_or_else(|| panic!("no id in {body}")).to_owned()
}

async fn change(api: &Api, method: Method, path: &str, tag: &str, body: Option<Value>) -> Answer {
    let headers = [("content-type", "application/json"), ("if-match", tag)];
    let bytes = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    api.raw(method, path, &headers, bytes).await
}

fn policy(name: &str, effect: &str, subject: Value, permission: &str) -> Value {
    json!({"name": name, "effect": effect, "subjects": [subject], "permissions": [permission]})
}

fn question(kind: &str, id: &str, action: &str, object: &str, resource: &str) -> Value {
    json!({
        "subject": {"type": kind, "id": id}, "action": {"name": action}, "resource": {"type": object, "id": resource}
    })
}

async fn decided(api: &Api, question: &Value) -> bool {
    let said = api.post("/access/v1/evaluation", question).await.ok();
    said["decision"].as_bool().unwrap_or_else(|| panic!("no decision in {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_policies_hold_from_the_next_request_on_across_a_restart_and_for_nobody_else() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let (key, analyst) = acme.issue_key("analyst").await;
        let admin = &acme.api;
        let flags = "/v1/flags";
        analyst.get(flags).await.refused(403, "FORBIDDEN");

        // A role of its own, given and narrowed.
        let body = json!({"name": "operator", "permissions": ["flags:*", "model:use"], "description": "Runs it"});
        made(admin, "/v1/roles", body).await;
        let given = json!({"role": "operator", "holder": {"type": "apiKey", "id": key}});
        made(admin, "/v1/role-assignments", given).await;
        assert_eq!(analyst.get(flags).await.status, 200);
        let operator = admin.get("/v1/roles/operator").await;
        assert_eq!((operator.status, operator.header("etag")), (200, "\"1\""));
        admin
            .call(Method::PUT, "/v1/roles/operator", Some(&json!({"permissions": ["model:use"]})))
            .await
            .refused(428, "PRECONDITION_REQUIRED");
        let narrowed =
            change(admin, Method::PUT, "/v1/roles/operator", "\"1\"", Some(json!({"permissions": ["model:use"]})))
                .await;
        assert_eq!((narrowed.status, narrowed.header("etag")), (200, "\"2\""), "{}", narrowed.text);
        analyst.get(flags).await.refused(403, "FORBIDDEN");
        change(admin, Method::PUT, "/v1/roles/operator", "\"1\"", Some(json!({"permissions": ["a:b"]})))
            .await
            .refused(412, "PRECONDITION_FAILED");
        change(admin, Method::DELETE, "/v1/roles/operator", "*", None).await.refused(409, "ROLE_IN_USE");
        for name in ["admin", "reader", "service"] {
            change(admin, Method::DELETE, &format!("/v1/roles/{name}"), "*", None).await.refused(409, "ROLE_BUILT_IN");
        }
        let service = admin.get("/v1/roles/service").await.ok();
        assert_eq!((&service["name"], &service["builtIn"]), (&json!("reporter"), &json!(true)));
        let names: Vec<Value> =
            admin.pages("/v1/roles", 2).await.into_iter().map(|role| role["name"].clone()).collect();
        assert_eq!(names, ["admin", "analyst", "developer", "reader", "reporter", "operator"]);

        // A denial goes before whatever allows; the administrator keeps what undoes it; the platform is not bound.
        let usage = format!("/v1/tenants/{}/usage/events", acme.id);
        assert_eq!(analyst.get(&usage).await.status, 200);
        let denial =
            made(admin, "/v1/policies", policy("Nothing at all", "deny", json!({"type": "everybody"}), "*:*")).await;
        analyst.get(&usage).await.refused(403, "FORBIDDEN");
        admin.get(&usage).await.refused(403, "FORBIDDEN");
        assert_eq!(admin.get("/v1/policies").await.ok()["policyVersion"], 3);
        assert_eq!(daemon.platform.get(&usage).await.status, 200);
        assert_eq!(globex.api.get(&format!("/v1/tenants/{}/usage/events", globex.id)).await.status, 200);
        let path = format!("/v1/policies/{}", id_of(&denial));
        globex.api.get(&path).await.refused(404, "POLICY_NOT_FOUND");
        globex.api.get("/v1/roles/operator").await.refused(404, "ROLE_NOT_FOUND");
        change(&globex.api, Method::DELETE, &path, "*", None).await.refused(404, "POLICY_NOT_FOUND");

        daemon.terminate().await;
        daemon.restart().await;
        assert_eq!(acme.api.patiently(Method::GET, &usage, None).await.status, 403, "laid down for good");
        let kept = admin.get(&path).await.ok();
        assert_eq!(kept, denial);
        assert_eq!(change(admin, Method::DELETE, &path, "\"1\"", None).await.status, 200);
        assert_eq!(analyst.get(&usage).await.status, 200);
        Tenant::holds(&acme.verify().await);
        let records = acme.api.pages("/v1/audit", 100).await;
        let denied = |record: &Value| {
            record["record"]["action"] == "access.denied" && record["payload"]["policy"] == denial["id"]
        };
        assert!(records.iter().any(denied), "the denial names the policy");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_raises_himself_and_what_is_wrong_is_told() {
    let issuer = Issuer::start().await;
    let daemon = Setup::on(Engine::Sqlite).with_section(&issuer.section()).start().await;
    let acme = daemon.onboard("Acme").await;
    let admin = &acme.api;
    made(admin, "/v1/roles", json!({"name": "everything", "permissions": ["*:*"]})).await;
    let jane =
        json!({"userName": "jane", "subjects": [{"issuer": issuer.url, "subject": "s-1"}], "attributes": {"level": 3}});
    let jane_id = id_of(&made(admin, "/v1/users", jane).await);
    made(admin, "/v1/role-assignments", json!({"role": "everything", "holder": {"type": "user", "id": jane_id}})).await;
    made(admin, "/v1/policies", policy("All", "allow", json!({"type": "user", "id": jane_id}), "*:*")).await;
    let jane = daemon.platform.with(&issuer.token("s-1", json!({"tenant": acme.id})));
    assert_eq!(jane.get("/v1/users").await.status, 200, "as far as looking goes");
    let raises = json!({"role": "admin", "holder": {"type": "user", "id": jane_id}});
    for (path, body) in [
        ("/v1/role-assignments", raises),
        ("/v1/roles", json!({"name": "more", "permissions": ["*:*"]})),
        ("/v1/policies", policy("More", "allow", json!({"type": "everybody"}), "*:*")),
        ("/v1/users", json!({"userName": "other"})),
        ("/v1/groups", json!({"displayName": "other"})),
        ("/v1/platform-admins", json!({"issuer": issuer.url, "subject": "s-1", "name": "Jane"})),
        ("/v1/tenants", json!({"name": "Other"})),
    ] {
        jane.post(path, &body).await.refused(403, "FORBIDDEN");
    }
    jane.post(&format!("/v1/tenants/{}/api-keys", acme.id), &json!({"name": "k", "role": "admin"}))
        .await
        .refused(403, "FORBIDDEN");
    change(&jane, Method::PUT, "/v1/roles/everything", "*", Some(json!({"permissions": ["a:b"]})))
        .await
        .refused(403, "FORBIDDEN");
    jane.get("/v1/gateway/kong/sync").await.refused(403, "FORBIDDEN");

    // What is wrong with a role or a policy, by its pointer.
    let pointer = |answer: &Answer| answer.body["error"]["details"]["fields"][0]["pointer"].clone();
    for (permissions, expected) in [
        (json!(["tenants:create"]), "/permissions/0"),
        (json!(["usage:read", "roles:change"]), "/permissions/1"),
        (json!(["usage"]), "/permissions/0"),
        (json!([]), "/permissions"),
    ] {
        let answer = admin.post("/v1/roles", &json!({"name": "r", "permissions": permissions})).await;
        answer.refused(422, "VALIDATION_FAILED");
        assert_eq!(pointer(&answer), expected);
    }
    admin
        .post("/v1/roles", &json!({"name": "Service", "permissions": ["usage:read"]}))
        .await
        .refused(409, "ROLE_BUILT_IN");
    admin
        .post("/v1/roles", &json!({"name": "EVERYTHING", "permissions": ["a:b"]}))
        .await
        .refused(409, "IDENTITY_TAKEN");
    let good = policy("P", "allow", json!({"type": "everybody"}), "model:use");
    for (field, wrong, expected) in [
        ("effect", json!("maybe"), "/effect"),
        ("subjects", json!([{"type": "user", "id": acme.id}]), "/subjects/0/id"),
        ("subjects", json!([{"type": "apiKey", "id": "nosuchkey0"}]), "/subjects/0/id"),
        ("subjects", json!([{"type": "robot"}]), "/subjects/0/type"),
        ("resources", json!(["model"]), "/resources/0"),
        ("condition", json!({"rule": "loop {}"}), "/condition"),
        (
            "condition",
            json!({"all": [{"attribute": "subject.a", "operator": "matches", "values": [".*"]}]}),
            "/condition/all/0/operator",
        ),
        ("more", json!(1), "/more"),
    ] {
        let mut body = good.clone();
        body[field] = wrong;
        let answer = admin.post("/v1/policies", &body).await;
        answer.refused(422, "VALIDATION_FAILED");
        assert_eq!(pointer(&answer), expected, "{body}");
    }
    let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
    let once = || admin.raw(Method::POST, "/v1/policies", &headers, good.to_string().into_bytes());
    assert_eq!(id_of(&once().await.body), id_of(&once().await.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_are_told_over_authzen_what_explain_explains_and_a_dry_run_foretells() {
    let daemon = Setup::on(Engine::Sqlite)
        .with_section("[authorization]\npublic_url = \"https://pdp.example.com/\"\n")
        .start()
        .await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let admin = &acme.api;
    let (_, gateway) = acme.issue_key("reporter").await;
    let jane = json!({"userName": "jane@example.com", "attributes": {"department": "finance"}});
    let jane = id_of(&made(admin, "/v1/users", jane).await);
    let bob = id_of(&made(admin, "/v1/users", json!({"userName": "bob"})).await);
    let mut allow = policy("Finance uses models", "allow", json!({"type": "everybody"}), "model:use");
    allow["resources"] = json!(["model/gpt-*"]);
    allow["condition"] = json!({"all": [
        {"attribute": "subject.department", "operator": "equals", "values": ["finance"]},
        {"attribute": "context.ip", "operator": "inNetwork", "values": ["10.0.0.0/8"]},
    ]});
    let allow = id_of(&made(admin, "/v1/policies", allow).await);

    // One question.
    let mut asked = question("user", "jane@example.com", "use", "model", "gpt-4.1");
    asked["context"] = json!({"ip": "10.1.2.3"});
    let headers = [("content-type", "application/json"), ("x-request-id", "bfe9eb29")];
    let answer = gateway.raw(Method::POST, "/access/v1/evaluation", &headers, asked.to_string().into_bytes()).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "bfe9eb29"));
    assert_eq!(answer.body, json!({"decision": true, "context": {"reason": "allowed", "policyVersion": 1}}));
    for (pointer, other) in [
        ("/subject/id", json!("bob")),
        ("/resource/id", json!("o3")),
        ("/context/ip", json!("11.0.0.1")),
        ("/action/name", json!("train")),
    ] {
        let mut asked = asked.clone();
        *asked.pointer_mut(pointer).unwrap() = other;
        assert!(!decided(&gateway, &asked).await, "{asked}");
    }
    // Whom the tenant does not have, and whom another has, are denied in the same words as who may not.
    let said = |id: &str| {
        let (gateway, asked) = (gateway.clone(), question("user", id, "use", "model", "gpt-4.1"));
        async move { gateway.post("/access/v1/evaluation", &asked).await.text }
    };
    let stranger = id_of(&made(&globex.api, "/v1/users", json!({"userName": "eve"})).await);
    let may_not = said("bob").await;
    for id in ["eve", stranger.as_str(), "nobody at all"] {
        assert_eq!(said(id).await, may_not, "{id}");
    }
    gateway.post("/access/v1/evaluation", &json!({"subject": {"type": "user"}})).await.refused(400, "BAD_REQUEST");
    let body = asked.to_string().into_bytes();
    let theirs = [("content-type", "application/json"), ("x-tenant-id", globex.id.as_str())];
    gateway.raw(Method::POST, "/access/v1/evaluation", &theirs, body).await.refused(404, "TENANT_NOT_FOUND");
    let (_, reader) = acme.issue_key("reader").await;
    reader.post("/access/v1/evaluation", &asked).await.refused(403, "FORBIDDEN");

    // Several at once, and what ends them.
    let resources = ["gpt-4.1", "o3", "gpt-5"].map(|id| json!({"resource": {"type": "model", "id": id}}));
    let mut several = asked.clone();
    several["evaluations"] = json!(resources);
    let decisions = |answer: &Value| -> Vec<bool> {
        answer["evaluations"].as_array().unwrap().iter().map(|one| one["decision"].as_bool().unwrap()).collect()
    };
    for (semantic, expected) in [
        ("execute_all", vec![true, false, true]),
        ("deny_on_first_deny", vec![true, false]),
        ("permit_on_first_permit", vec![true]),
    ] {
        several["options"] = json!({"evaluations_semantic": semantic});
        let answer = gateway.post("/access/v1/evaluations", &several).await.ok();
        assert_eq!(decisions(&answer), expected, "{semantic}");
    }
    several["options"] = json!({});
    several["evaluations"][1] = json!({"resource": {"id": "x"}});
    let answer = gateway.post("/access/v1/evaluations", &several).await.ok();
    assert_eq!(
        (&answer["evaluations"][1]["decision"], &answer["evaluations"][1]["context"]["error"]["status"]),
        (&json!(false), &json!(400))
    );
    assert_eq!(gateway.post("/access/v1/evaluations", &asked).await.ok()["decision"], true, "one, without a list");

    // Who may, and what.
    let mut whom = asked.clone();
    whom["subject"] = json!({"type": "user"});
    let found = gateway.post("/access/v1/search/subject", &whom).await.ok();
    assert_eq!(found, json!({"results": [{"type": "user", "id": jane}], "page": {"next_token": "", "count": 1}}));
    let mut what = asked.clone();
    what["action"] = json!(null);
    assert_eq!(gateway.post("/access/v1/search/action", &what).await.ok()["results"], json!([{"name": "use"}]));
    let configuration = daemon.platform.anonymous().get("/.well-known/authzen-configuration").await.ok();
    assert_eq!(configuration["policy_decision_point"], "https://pdp.example.com");
    assert_eq!(configuration["access_evaluation_endpoint"], "https://pdp.example.com/access/v1/evaluation");

    // Why.
    let explained = admin.post("/v1/access/explain", &asked).await.ok();
    assert_eq!((&explained["decision"], &explained["by"]), (&json!(true), &json!({"type": "policy", "id": allow})));
    let bob_asks = question("user", &bob, "use", "model", "gpt-4.1");
    let explained = admin.post("/v1/access/explain", &bob_asks).await.ok();
    assert_eq!((&explained["decision"], &explained["reason"]), (&json!(false), &json!("nothingApplies")));
    let rule = &explained["rules"][0];
    assert_eq!((&rule["outcome"], &rule["condition"]), (&json!("attributeAbsent"), &json!("/condition/all/0")));
    gateway.post("/v1/access/explain", &asked).await.refused(403, "FORBIDDEN");

    // What would be otherwise, and that nothing is.
    let denial = policy("No models", "deny", json!({"type": "role", "id": "developer"}), "model:*");
    let bob_may = policy("Bob may", "allow", json!({"type": "user", "id": bob}), "model:use");
    let proposal = json!({"policies": [{"policy": denial}, {"policy": bob_may}], "deletedPolicies": [allow]});
    let trial =
        json!({"proposal": proposal, "questions": [asked, bob_asks, question("user", "eve", "use", "model", "x")]});
    let foretold = admin.post("/v1/policies/dry-run", &trial).await.ok();
    let changed: Vec<&Value> =
        foretold["results"].as_array().unwrap().iter().map(|result| &result["changed"]).collect();
    assert_eq!((changed, &foretold["changed"]), (vec![&json!(true), &json!(true), &json!(false)], &json!(2)));
    assert!(decided(&gateway, &asked).await, "nothing has changed");
    assert_eq!(admin.get("/v1/policies").await.ok()["policyVersion"], 1);
    let wrong = json!({"proposal": {"policies": [{"policy": policy("x", "allow", json!({"type": "everybody"}), "tenants:create")}]}, "questions": [asked]});
    let refused = admin.post("/v1/policies/dry-run", &wrong).await;
    refused.refused(422, "VALIDATION_FAILED");
    assert_eq!(refused.body["error"]["details"]["fields"][0]["pointer"], "/proposal/policies/0/policy/permissions/0");
}
