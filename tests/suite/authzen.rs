//! AuthZEN's Authorization API 1.0, asked as its certification scenario asks: the same subjects, records and rules, and the
//! requests of every level, word for word.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::Api;
use crate::harness::{Daemon, Engine, Setup, Tenant};

const EVALUATION: &str = "/access/v1/evaluation";
const EVALUATIONS: &str = "/access/v1/evaluations";
const SUBJECTS: &str = "/access/v1/search/subject";
const RESOURCES: &str = "/access/v1/search/resource";
const ACTIONS: &str = "/access/v1/search/action";

/// A tenant with the scenario's people, records and rules; and the credential of who asks.
async fn certified(daemon: &Daemon) -> (Tenant, Api) {
    let tenant = daemon.onboard("Acme").await;
    let admin = &tenant.api;
    let alice = made(admin, "/v1/users", json!({"userName": "alice"})).await;
    let bob = json!({"userName": "bob", "attributes": {"role": "admin"}});
    let bob = made(admin, "/v1/users", bob).await;
    let is = |attribute: &str, value: Value| json!({"attribute": attribute, "operator": "equals", "values": [value]});
    let status =
        |operator: &str, values: Value| json!({"attribute": "resource.status", "operator": operator, "values": values});
    for (name, user, permission, resources, condition) in [
        ("Alice reads", &alice, "record:read", json!(["record/record-1", "record/record-2"]), None),
        ("Bob reads", &bob, "record:read", json!(["record/*"]), None),
        (
            "Alice writes what is not archived",
            &alice,
            "record:write",
            json!(["record/record-1"]),
            Some(json!({"any": [
                {"attribute": "resource.status", "operator": "notExists"}, status("notEquals", json!(["archived"])),
            ]})),
        ),
        ("Alice deletes softly", &alice, "record:delete", json!([]), Some(is("action.soft", json!(true)))),
        (
            "Administrators write the archived one",
            &bob,
            "record:write",
            json!(["record/record-2"]),
            Some(is("subject.role", json!("admin"))),
        ),
    ] {
        let mut policy = json!({
            "name": name, "effect": "allow", "subjects": [{"type": "user", "id": user}], "permissions": [permission],
            "resources": resources,
        });
        if let Some(condition) = condition {
            policy["condition"] = condition;
        }
        made(admin, "/v1/policies", policy).await;
    }
    let (_, gateway) = tenant.issue_key("reporter").await;
    (tenant, gateway)
}

async fn made(api: &Api, path: &str, body: Value) -> String {
    let answer = api.patiently(Method::POST, path, Some(&body)).await;
    assert_eq!(answer.status, 201, "{path} {body}: {}", answer.text);
    answer.body["id"].as_str().unwrap_or_default().to_owned()
}

async fn start() -> Daemon {
    Setup::on(Engine::Sqlite)
        .with_section("[authorization]\npublic_url = \"https://pdp.example.com\"\nsubject_ids = \"userName\"\n")
        .start()
        .await
}

fn ask(subject: &str, action: &str, record: &str) -> Value {
    json!({
        "subject": {"type": "user", "id": subject}, "action": {"name": action},
        "resource": {"type": "record", "id": record},
    })
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[key] = value;
    body
}

fn without(mut body: Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    body
}

fn decisions(answer: &Value) -> Vec<bool> {
    let all = answer["evaluations"].as_array().unwrap_or_else(|| panic!("{answer}"));
    all.iter().map(|one| one["decision"].as_bool().unwrap()).collect()
}

/// Ids, or names, of what a search found.
fn found(answer: &Value) -> Vec<&str> {
    let all = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    all.iter().map(|one| one["id"].as_str().or(one["name"].as_str()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certification_scenario_of_single_and_several_evaluations() {
    let daemon = start().await;
    let (_, pdp) = certified(&daemon).await;
    let archived = json!({"status": "archived"});
    let archived_record = with(ask("alice", "write", "record-2"), "/resource/properties", archived.clone());
    let bob_is_admin = with(
        archived_record.clone(),
        "/subject",
        json!({
            "type": "user", "id": "bob", "properties": {"role": "admin"},
        }),
    );
    let deletes = |soft: bool| with(ask("alice", "delete", "record-1"), "/action/properties", json!({"soft": soft}));
    let context = json!({"time": "2025-06-27T18:03-07:00", "ip": "192.168.1.1"});
    let more = json!({
        "subject": {"type": "user", "id": "alice", "properties": {"department": "Sales", "role": "manager"}},
        "action": {"name": "read", "properties": {"method": "GET"}},
        "resource": {"type": "record", "id": "record-1", "properties": {"status": "active", "owner": "bob"}},
    });
    for (request, expected) in [
        (ask("alice", "read", "record-1"), true),
        (ask("alice", "write", "record-1"), true),
        (ask("bob", "read", "record-1"), true),
        (ask("bob", "write", "record-1"), false),
        (with(ask("alice", "read", "record-1"), "/context", context.clone()), true),
        (archived_record, false),
        (bob_is_admin, true),
        (deletes(true), true),
        (deletes(false), false),
        (more, true),
        (with(ask("alice", "read", "record-1"), "/futureField", json!({"nested": true})), true),
    ] {
        for _ in 0..2 {
            let answer = pdp.post(EVALUATION, &request).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
            assert_eq!(answer.body["decision"], expected, "{request}");
            assert!(answer.body["context"].is_object());
        }
    }

    // What is wrong with one is 400.
    let whole = || ask("alice", "read", "record-1");
    for part in [
        "/subject",
        "/action",
        "/resource",
        "/subject/type",
        "/subject/id",
        "/action/name",
        "/resource/type",
        "/resource/id",
    ] {
        pdp.post(EVALUATION, &without(whole(), part)).await.refused(400, "BAD_REQUEST");
    }
    for wrong in
        [with(whole(), "/subject", json!("alice")), with(whole(), "/action/name", json!(123)), json!([whole()])]
    {
        pdp.post(EVALUATION, &wrong).await.refused(400, "BAD_REQUEST");
    }
    let bytes = whole().to_string().into_bytes();
    let (json_type, text_type) = ([("content-type", "application/json")], [("content-type", "text/plain")]);
    for path in [EVALUATION, EVALUATIONS, SUBJECTS, RESOURCES, ACTIONS] {
        pdp.raw(Method::POST, path, &text_type, bytes.clone()).await.refused(400, "BAD_REQUEST");
        pdp.raw(Method::POST, path, &[], bytes.clone()).await.refused(400, "BAD_REQUEST");
        pdp.raw(Method::POST, path, &json_type, b"{\"subject\":".to_vec()).await.refused(400, "MALFORMED_JSON");
        pdp.raw(Method::POST, path, &json_type, Vec::new()).await.refused(400, "MALFORMED_JSON");
    }
    let id = "bfe9eb29-ab87-4ca3-be83-a1d5d8305716 try 2";
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    assert_eq!(pdp.raw(Method::POST, EVALUATION, &headers, bytes).await.header("x-request-id"), id);

    // Several.
    let record = |id: &str, status: &str| json!({"type": "record", "id": id, "properties": {"status": status}});
    let alice = json!({"type": "user", "id": "alice"});
    let admin = json!({"type": "user", "id": "bob", "properties": {"role": "admin"}});
    let plain = |id: &str| json!({"resource": {"type": "record", "id": id}});
    for (request, expected) in [
        (
            json!({"subject": alice, "action": {"name": "read"}, "evaluations": [plain("record-1"), plain("record-2")]}),
            vec![true, true],
        ),
        (
            json!({
                "subject": {"type": "user", "id": "bob"}, "resource": {"type": "record", "id": "record-1"},
                "evaluations": [{"action": {"name": "read"}}, {"action": {"name": "write"}}],
            }),
            vec![true, false],
        ),
        (
            json!({
                "subject": alice, "action": {"name": "write"},
                "evaluations": [{"resource": record("record-1", "active")}, {"resource": record("record-2", "archived")}],
            }),
            vec![true, false],
        ),
        (
            json!({
                "action": {"name": "write"}, "resource": record("record-2", "archived"),
                "evaluations": [{"subject": alice}, {"subject": admin}],
            }),
            vec![false, true],
        ),
        (
            json!({"evaluations": [ask("alice", "read", "record-1"), ask("bob", "write", "record-1")]}),
            vec![true, false],
        ),
        (
            json!({
                "subject": alice, "action": {"name": "read"}, "context": {"time": "2025-06-27T18:03-07:00"},
                "evaluations": [plain("record-1"), with(plain("record-2"), "/context", context.clone())],
            }),
            vec![true, true],
        ),
        (
            json!({
                "subject": alice, "action": {"name": "write"}, "resource": record("record-1", "active"),
                "evaluations": [{}, {"resource": record("record-2", "archived")}],
            }),
            vec![true, false],
        ),
        (
            json!({
                "subject": alice, "action": {"name": "read"}, "options": {"evaluations_semantic": "execute_all"},
                "evaluations": [plain("record-1"), {}],
            }),
            vec![true, false],
        ),
    ] {
        let answer = pdp.post(EVALUATIONS, &request).await.ok();
        assert_eq!(decisions(&answer), expected, "{request}");
        assert!(answer.get("decision").is_none());
    }
    for single in [whole(), with(whole(), "/evaluations", json!([]))] {
        assert_eq!(pdp.post(EVALUATIONS, &single).await.ok()["decision"], true, "{single}");
    }
    let two = json!([plain("record-1"), plain("record-2")]);
    let several = with(json!({"subject": alice, "action": {"name": "read"}}), "/evaluations", two);
    for (part, wrong) in [("/subject", json!("alice")), ("/options", json!(1)), ("/evaluations", json!({}))] {
        pdp.post(EVALUATIONS, &with(several.clone(), part, wrong)).await.refused(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certification_scenario_of_searches_and_of_what_is_offered() {
    let daemon = start().await;
    let (_, pdp) = certified(&daemon).await;
    let context = json!({"time": "2025-06-27T18:03-07:00", "ip": "192.168.1.1"});
    let admin = json!({"type": "user", "id": "bob", "properties": {"role": "admin"}});
    let archived = json!({"type": "record", "id": "record-2", "properties": {"status": "archived"}});

    let subjects = without(ask("alice", "read", "record-1"), "/subject/id");
    let resources = without(ask("alice", "read", "record-1"), "/resource/id");
    let actions = without(ask("alice", "read", "record-1"), "/action");
    for (path, request, expected) in [
        (SUBJECTS, subjects.clone(), vec!["alice", "bob"]),
        (SUBJECTS, with(subjects.clone(), "/context", context.clone()), vec!["alice", "bob"]),
        (SUBJECTS, ask("alice", "read", "record-1"), vec!["alice", "bob"]),
        (
            SUBJECTS,
            json!({"subject": {"type": "user"}, "action": {"name": "write"}, "resource": archived}),
            vec!["bob"],
        ),
        (RESOURCES, resources.clone(), vec!["record-1", "record-2"]),
        (RESOURCES, with(resources.clone(), "/context", context.clone()), vec!["record-1", "record-2"]),
        (RESOURCES, ask("alice", "read", "record-1"), vec!["record-1", "record-2"]),
        (
            RESOURCES,
            json!({"subject": admin, "action": {"name": "write"}, "resource": {"type": "record"}}),
            vec!["record-2"],
        ),
        (ACTIONS, actions.clone(), vec!["read", "write"]),
        (ACTIONS, with(actions.clone(), "/context", context), vec!["read", "write"]),
        (ACTIONS, json!({"subject": admin, "resource": archived}), vec!["read", "write"]),
        // Nobody and nothing of that name or type: an empty answer, and no error.
        (ACTIONS, with(actions.clone(), "/subject/id", json!("nonexistent-user")), vec![]),
        (ACTIONS, with(actions.clone(), "/resource/type", json!("spaceship")), vec![]),
        (SUBJECTS, with(subjects.clone(), "/subject/type", json!("spaceship")), vec![]),
        (SUBJECTS, with(subjects.clone(), "/resource/id", json!("record-9")), vec!["bob"]),
        (RESOURCES, with(resources.clone(), "/resource/type", json!("spaceship")), vec![]),
        (RESOURCES, with(resources.clone(), "/subject/id", json!("nonexistent-user")), vec![]),
    ] {
        let answer = pdp.post(path, &request).await.ok();
        assert_eq!(found(&answer), expected, "{path} {request}");
        assert_eq!(answer["page"], json!({"count": expected.len(), "next_token": ""}), "{path} {request}");
    }

    // Page by page, with the limit said again or not; a token is of one question and one limit.
    for (path, request, all) in [
        (SUBJECTS, &subjects, ["alice", "bob"]),
        (RESOURCES, &resources, ["record-1", "record-2"]),
        (ACTIONS, &actions, ["read", "write"]),
    ] {
        let first = pdp.post(path, &with(request.clone(), "/page", json!({"limit": 1}))).await;
        assert!(first.text.starts_with("{\"page\":"), "the page comes first: {}", first.text);
        let first = first.ok();
        let token = &first["page"]["next_token"];
        assert_eq!((found(&first), &first["page"]["count"]), (vec![all[0]], &json!(1)), "{path}");
        for page in [json!({"token": token}), json!({"token": token, "limit": 1})] {
            let second = pdp.post(path, &with(request.clone(), "/page", page)).await.ok();
            assert_eq!(found(&second), [all[1]], "{path}");
        }
        let nothing = pdp.post(path, &with(request.clone(), "/page", json!({"limit": 0}))).await.ok();
        assert!(found(&nothing).is_empty() && nothing["page"]["next_token"] != "", "{nothing}");
        let most = pdp.post(path, &with(request.clone(), "/page", json!({"limit": 4_000_000_000_u64}))).await.ok();
        assert_eq!(found(&most), all);
        let other = with(request.clone(), "/context", json!({"other": true}));
        for wrong in [
            with(other, "/page", json!({"token": token})),
            with(request.clone(), "/page", json!({"token": token, "limit": 2})),
            with(request.clone(), "/page", json!({"limit": -1})),
            with(request.clone(), "/page", json!({"token": 1})),
            with(request.clone(), "/page", json!([])),
        ] {
            pdp.post(path, &wrong).await.refused(400, "BAD_REQUEST");
        }
        let made_up = with(request.clone(), "/page", json!({"token": "a3M9NDU2O3N6PTI="}));
        pdp.post(path, &made_up).await.refused(400, "INVALID_CURSOR");
    }

    for (path, wrong) in [
        (SUBJECTS, without(subjects.clone(), "/action")),
        (RESOURCES, without(resources.clone(), "/subject")),
        (ACTIONS, without(actions.clone(), "/resource")),
        (SUBJECTS, without(subjects, "/resource/id")),
        (RESOURCES, without(resources, "/subject/id")),
        (ACTIONS, without(actions, "/subject/id")),
    ] {
        pdp.post(path, &wrong).await.refused(400, "BAD_REQUEST");
    }

    let configuration = daemon.platform.anonymous().get("/.well-known/authzen-configuration").await;
    assert_eq!((configuration.status, configuration.header("content-type")), (200, "application/json"));
    let base = "https://pdp.example.com";
    let expected = json!({
        "policy_decision_point": base,
        "access_evaluation_endpoint": format!("{base}{EVALUATION}"),
        "access_evaluations_endpoint": format!("{base}{EVALUATIONS}"),
        "search_subject_endpoint": format!("{base}{SUBJECTS}"),
        "search_resource_endpoint": format!("{base}{RESOURCES}"),
        "search_action_endpoint": format!("{base}{ACTIONS}"),
    });
    assert_eq!(configuration.body, expected);
    assert_eq!(configuration.header("cache-control"), "public, max-age=300");
}

#[tokio::test(flavor = "multi_thread")]
async fn things_of_ours_are_found_by_whoever_may_for_their_own_tenant_alone() {
    let daemon = start().await;
    let (tenant, pdp) = certified(&daemon).await;
    let other = daemon.onboard("Globex").await;
    made(&other.api, "/v1/groups", json!({"displayName": "Theirs"})).await;
    let mut groups = Vec::new();
    for name in ["One", "Two", "Three"] {
        groups.push(made(&tenant.api, "/v1/groups", json!({"displayName": name})).await);
    }
    let hidden = json!({
        "name": "Two is hidden", "effect": "deny", "subjects": [{"type": "everybody"}], "permissions": ["groups:read"],
        "resources": [format!("groups/{}", groups[1])],
    });
    let hidden = made(&tenant.api, "/v1/policies", hidden).await;
    let (key, _) = tenant.issue_key("reader").await;
    let asks = |action: &str, kind: &str| json!({"subject": {"type": "apiKey", "id": key}, "action": {"name": action}, "resource": {"type": kind}});

    // What is found is what the door gives.
    let answer = pdp.post(RESOURCES, &asks("read", "groups")).await.ok();
    assert_eq!(found(&answer), [groups[0].as_str(), groups[2].as_str()]);
    let mut paged = asks("read", "groups");
    paged["page"] = json!({"limit": 1});
    let first = pdp.post(RESOURCES, &paged).await.ok();
    paged["page"] = json!({"token": first["page"]["next_token"]});
    let second = pdp.post(RESOURCES, &paged).await.ok();
    assert_eq!((found(&first), found(&second)), (vec![groups[0].as_str()], vec![groups[2].as_str()]));
    assert_eq!(second["page"]["next_token"], "");
    for (kind, expected) in
        [("users", 0), ("apiKeys", 0), ("policies", 6), ("providers", 0), ("flags", 0), ("roleAssignments", 0)]
    {
        let answer = pdp.post(RESOURCES, &asks("read", kind)).await.ok();
        assert_eq!(found(&answer).len(), expected, "{kind}: {answer}");
    }
    assert!(found(&pdp.post(RESOURCES, &asks("read", "policies")).await.ok()).contains(&hidden.as_str()));
    let roles = pdp.post(RESOURCES, &asks("read", "roles")).await.ok();
    assert_eq!(found(&roles), ["admin", "analyst", "developer", "reader", "reporter"]);
    assert!(found(&pdp.post(RESOURCES, &asks("delete", "groups")).await.ok()).is_empty());
    let theirs = with(asks("read", "groups"), "/subject/id", json!(other.key_id));
    assert!(found(&pdp.post(RESOURCES, &theirs).await.ok()).is_empty(), "a key of another tenant is nobody");

    let (_, reader) = tenant.issue_key("reader").await;
    reader.post(RESOURCES, &asks("read", "groups")).await.refused(403, "FORBIDDEN");
}
