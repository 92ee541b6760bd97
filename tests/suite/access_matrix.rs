//! Every operation, called by everybody: who may, who may not, and that nobody learns of what is not theirs.

use std::collections::BTreeSet;

use platform_api::domain::time::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::events::now;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both};

/// Whose tenant an operation is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum About {
    Nobody,
    /// Whoever has a browser's session, which nobody here has.
    Session,
    Platform,
    PathTenant,
    OwnTenant,
}

/// One operation, and the roles of a tenant that may use it. Written by hand, apart from the policy it checks.
struct Row {
    operation: &'static str,
    about: About,
    roles: &'static [&'static str],
    body: fn() -> Option<Value>,
}

const fn row(
    operation: &'static str,
    about: About,
    roles: &'static [&'static str],
    body: fn() -> Option<Value>,
) -> Row {
    Row { operation, about, roles, body }
}

const NOBODY: &[&str] = &[];
const ADMIN: &[&str] = &["admin"];
const READERS: &[&str] = &["admin", "reader"];
const REPORTERS: &[&str] = &["admin", "reporter"];
const REPORTER: &[&str] = &["reporter"];
const FIGURES: &[&str] = &["admin", "reader", "developer", "analyst"];
const PROOFS: &[&str] = &["admin", "reader", "analyst"];
const GATEWAYS: &[&str] = &["admin", "reporter", "reader", "developer"];
const ASKERS: &[&str] = &["admin", "reporter", "developer"];
const ALL: &[&str] = &["admin", "reporter", "reader", "developer", "analyst"];

fn nothing() -> Option<Value> {
    None
}

/// Well-formed and refused by its content, so that whoever may call changes nothing.
fn empty() -> Option<Value> {
    Some(json!({"unknown": true}))
}

const ROWS: &[Row] = &[
    row("getHealth", About::Nobody, ALL, nothing),
    row("getLiveness", About::Nobody, ALL, nothing),
    row("getReadiness", About::Nobody, ALL, nothing),
    row("getMetrics", About::Nobody, ALL, nothing),
    row("getDocument", About::Nobody, ALL, nothing),
    row("getDocumentation", About::Nobody, ALL, nothing),
    row("listLoginProviders", About::Nobody, ALL, nothing),
    row("beginLogin", About::Nobody, ALL, nothing),
    row("finishLogin", About::Nobody, ALL, nothing),
    row("loginLocally", About::Nobody, ALL, nothing),
    row("refreshSession", About::Session, NOBODY, nothing),
    row("logOut", About::Nobody, ALL, nothing),
    row("backChannelLogout", About::Nobody, ALL, nothing),
    row("changeOwnPassword", About::OwnTenant, ALL, empty),
    row("getMe", About::OwnTenant, ALL, nothing),
    row("createTenant", About::Platform, NOBODY, empty),
    row("listTenants", About::Platform, NOBODY, nothing),
    row("getTenant", About::PathTenant, ADMIN, nothing),
    row("amendTenant", About::PathTenant, NOBODY, empty),
    row("suspendTenant", About::PathTenant, NOBODY, nothing),
    row("reactivateTenant", About::PathTenant, NOBODY, nothing),
    row("archiveTenant", About::PathTenant, NOBODY, nothing),
    row("createApiKey", About::PathTenant, ADMIN, empty),
    row("listApiKeys", About::PathTenant, ADMIN, nothing),
    row("getApiKey", About::PathTenant, ADMIN, nothing),
    row("patchApiKey", About::PathTenant, ADMIN, empty),
    row("rotateApiKey", About::PathTenant, ADMIN, empty),
    row("revokeApiKey", About::PathTenant, ADMIN, nothing),
    row("reportUsage", About::PathTenant, FIGURES, nothing),
    row("listUsageEvents", About::PathTenant, FIGURES, nothing),
    row("getQuotas", About::PathTenant, ALL, nothing),
    row("replaceQuotas", About::PathTenant, ADMIN, empty),
    row("listAlerts", About::PathTenant, FIGURES, nothing),
    row("acknowledgeAlert", About::PathTenant, ADMIN, nothing),
    row("listDeliveries", About::PathTenant, FIGURES, nothing),
    row("decide", About::PathTenant, GATEWAYS, nothing),
    row("recordUsageEvents", About::OwnTenant, REPORTERS, empty),
    row("recordLiteLlmUsage", About::OwnTenant, REPORTERS, empty),
    row("ingestOpenMeterEvents", About::OwnTenant, REPORTERS, empty),
    row("recordKongLogs", About::OwnTenant, REPORTER, empty),
    row("listNotificationChannels", About::Platform, NOBODY, nothing),
    row("testNotificationChannel", About::Platform, NOBODY, nothing),
    row("getReconciliation", About::PathTenant, PROOFS, nothing),
    row("listComparedWindows", About::PathTenant, PROOFS, nothing),
    row("listFindings", About::PathTenant, PROOFS, nothing),
    row("getFinding", About::PathTenant, PROOFS, nothing),
    row("acknowledgeFinding", About::PathTenant, ADMIN, empty),
    row("explainFinding", About::PathTenant, NOBODY, empty),
    row("settleFinding", About::PathTenant, NOBODY, empty),
    row("listAuditRecords", About::OwnTenant, READERS, nothing),
    row("verifyAuditChain", About::OwnTenant, READERS, nothing),
    row("listQuarantine", About::OwnTenant, ADMIN, nothing),
    row("replayQuarantined", About::OwnTenant, NOBODY, nothing),
    row("createUser", About::OwnTenant, ADMIN, empty),
    row("listUsers", About::OwnTenant, ADMIN, nothing),
    row("getUser", About::OwnTenant, ADMIN, nothing),
    row("replaceUser", About::OwnTenant, ADMIN, empty),
    row("patchUser", About::OwnTenant, ADMIN, empty),
    row("deleteUser", About::OwnTenant, ADMIN, nothing),
    row("setPassword", About::OwnTenant, ADMIN, empty),
    row("removePassword", About::OwnTenant, ADMIN, nothing),
    row("createGroup", About::OwnTenant, ADMIN, empty),
    row("listGroups", About::OwnTenant, READERS, nothing),
    row("getGroup", About::OwnTenant, READERS, nothing),
    row("replaceGroup", About::OwnTenant, ADMIN, empty),
    row("patchGroup", About::OwnTenant, ADMIN, empty),
    row("deleteGroup", About::OwnTenant, ADMIN, nothing),
    row("listGroupMembers", About::OwnTenant, READERS, nothing),
    row("addGroupMembers", About::OwnTenant, ADMIN, empty),
    row("removeGroupMember", About::OwnTenant, ADMIN, nothing),
    row("createRoleAssignment", About::OwnTenant, ADMIN, empty),
    row("listRoleAssignments", About::OwnTenant, READERS, nothing),
    row("getRoleAssignment", About::OwnTenant, READERS, nothing),
    row("deleteRoleAssignment", About::OwnTenant, ADMIN, nothing),
    row("createRole", About::OwnTenant, ADMIN, empty),
    row("listRoles", About::OwnTenant, READERS, nothing),
    row("getRole", About::OwnTenant, READERS, nothing),
    row("replaceRole", About::OwnTenant, ADMIN, empty),
    row("deleteRole", About::OwnTenant, ADMIN, nothing),
    row("createPolicy", About::OwnTenant, ADMIN, empty),
    row("listPolicies", About::OwnTenant, READERS, nothing),
    row("dryRunPolicies", About::OwnTenant, ADMIN, empty),
    row("getPolicy", About::OwnTenant, READERS, nothing),
    row("replacePolicy", About::OwnTenant, ADMIN, empty),
    row("deletePolicy", About::OwnTenant, ADMIN, nothing),
    row("explainAccess", About::OwnTenant, ADMIN, empty),
    row("evaluateAccess", About::OwnTenant, ASKERS, empty),
    row("evaluateAccesses", About::OwnTenant, ASKERS, empty),
    row("searchSubjects", About::OwnTenant, REPORTERS, empty),
    row("searchResources", About::OwnTenant, REPORTERS, empty),
    row("searchActions", About::OwnTenant, REPORTERS, empty),
    row("getAuthzenConfiguration", About::Nobody, ALL, nothing),
    row("createPlatformAdmin", About::Platform, NOBODY, empty),
    row("listPlatformAdmins", About::Platform, NOBODY, nothing),
    row("getPlatformAdmin", About::Platform, NOBODY, nothing),
    row("deletePlatformAdmin", About::Platform, NOBODY, nothing),
    row("getFeatures", About::OwnTenant, ALL, nothing),
    row("evaluateFlag", About::OwnTenant, ALL, empty),
    row("evaluateFlags", About::OwnTenant, ALL, empty),
    row("listFlags", About::OwnTenant, READERS, nothing),
    row("getFlag", About::OwnTenant, READERS, nothing),
    row("getFlagExposures", About::OwnTenant, READERS, nothing),
    row("putFlag", About::OwnTenant, ADMIN, empty),
    row("deleteFlag", About::OwnTenant, ADMIN, nothing),
    row("submitJob", About::OwnTenant, ADMIN, empty),
    row("listJobs", About::OwnTenant, ADMIN, nothing),
    row("getJob", About::OwnTenant, ADMIN, nothing),
    row("cancelJob", About::OwnTenant, ADMIN, nothing),
    row("createProvider", About::OwnTenant, ADMIN, empty),
    row("listProviders", About::OwnTenant, READERS, nothing),
    row("getProvider", About::OwnTenant, READERS, nothing),
    row("replaceProvider", About::OwnTenant, ADMIN, empty),
    row("deleteProvider", About::OwnTenant, ADMIN, nothing),
    row("putProviderSecret", About::OwnTenant, ADMIN, empty),
    row("deleteProviderSecret", About::OwnTenant, ADMIN, nothing),
    row("leaseProviderSecret", About::OwnTenant, REPORTER, empty),
    row("testProvider", About::OwnTenant, ADMIN, nothing),
    row("getProviderPolicy", About::OwnTenant, &["admin", "reporter", "reader"], nothing),
    row("replaceProviderPolicy", About::OwnTenant, ADMIN, empty),
    row("getRateLimits", About::OwnTenant, GATEWAYS, nothing),
    row("getKongSync", About::Platform, NOBODY, nothing),
    row("scimGetServiceProviderConfig", About::OwnTenant, ADMIN, nothing),
    row("scimListResourceTypes", About::OwnTenant, ADMIN, nothing),
    row("scimGetResourceType", About::OwnTenant, ADMIN, nothing),
    row("scimListSchemas", About::OwnTenant, ADMIN, nothing),
    row("scimGetSchema", About::OwnTenant, ADMIN, nothing),
    row("scimSearch", About::OwnTenant, ADMIN, empty),
    row("scimListUsers", About::OwnTenant, ADMIN, nothing),
    row("scimCreateUser", About::OwnTenant, ADMIN, empty),
    row("scimGetUser", About::OwnTenant, ADMIN, nothing),
    row("scimReplaceUser", About::OwnTenant, ADMIN, empty),
    row("scimPatchUser", About::OwnTenant, ADMIN, empty),
    row("scimDeleteUser", About::OwnTenant, ADMIN, nothing),
    row("scimListGroups", About::OwnTenant, READERS, nothing),
    row("scimCreateGroup", About::OwnTenant, ADMIN, empty),
    row("scimGetGroup", About::OwnTenant, READERS, nothing),
    row("scimReplaceGroup", About::OwnTenant, ADMIN, empty),
    row("scimPatchGroup", About::OwnTenant, ADMIN, empty),
    row("scimDeleteGroup", About::OwnTenant, ADMIN, nothing),
];

/// An operation as the document describes it.
struct Operation {
    id: String,
    method: Method,
    path: String,
}

async fn operations(daemon: &Daemon) -> Vec<Operation> {
    let document = daemon.platform.anonymous().get("/openapi.json").await.ok();
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let Some(id) = operation["operationId"].as_str() else { continue };
            found.push(Operation { id: id.to_owned(), method, path: path.clone() });
        }
    }
    found
}

impl Operation {
    async fn call(&self, api: &Api, tenant: &str, body: Option<Value>) -> Answer {
        const NOTHING: &str = "0199a8b2-5c00-7abc-8def-0123456789ab";
        let id = if self.path.contains("/quarantine/") { NOTHING } else { tenant };
        let named = [
            ("{id}", id),
            ("{tenantId}", tenant),
            ("{keyId}", "nosuchkey0"),
            ("{key}", "nosuchflag"),
            ("{name}", "nosuchrole"),
            ("{channel}", "nosuchchannel"),
            ("{memberId}", NOTHING),
            ("{findingId}", NOTHING),
            ("{jobId}", NOTHING),
            ("{alertId}", NOTHING),
        ];
        let path = named.iter().fold(self.path.clone(), |path, (parameter, value)| path.replace(parameter, value));
        api.patiently(self.method.clone(), &path, body.as_ref()).await
    }
}

/// The operation was reached: whatever it answered, access was not the reason.
#[track_caller]
fn reached(answer: &Answer, what: &str) {
    let closed = matches!(answer.status, 401 | 403) || answer.code() == "TENANT_NOT_FOUND";
    assert!(!closed && answer.status < 500, "{what} was to be reached: {} {}", answer.status, answer.text);
}

#[track_caller]
fn closed(answer: &Answer, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{what}: {}", answer.text);
    answer.in_the_envelope();
    assert_eq!(!answer.header("www-authenticate").is_empty(), status == 401, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_is_open_to_exactly_those_who_may() {
    on_both(|engine| async move {
        // The same wrong credential comes once for each operation, and is meant to be told the same each time.
        let daemon = Setup::on(engine).with("AUTH__FAILURES_PER_CREDENTIAL_MAX", 10_000).start().await;
        let acme = daemon.onboard("Acme").await;
        let globex = daemon.onboard("Globex").await;
        let (sleeping, sleeping_api) = suspended(&daemon).await;
        let (revoked_id, revoked) = acme.issue_key("admin").await;
        acme.api.delete(&format!("/v1/tenants/{}/api-keys/{revoked_id}", acme.id)).await.ok();
        let anonymous = daemon.platform.anonymous();
        let mut keys = vec![("admin", acme.api.clone())];
        for role in ["reporter", "reader", "developer", "analyst"] {
            keys.push((role, acme.issue_key(role).await.1));
        }
        let nowhere = "0199a8b2-5c00-7abc-8def-0123456789ab";

        let operations = operations(&daemon).await;
        for operation in &operations {
            let id = operation.id.as_str();
            let row = ROWS.iter().find(|row| row.operation == id).unwrap_or_else(|| panic!("{id} has no row here"));
            if row.about == About::Nobody {
                reached(&operation.call(&anonymous, "", None).await, id);
                continue;
            }
            if row.about == About::Session {
                for api in [&anonymous, &acme.api, &daemon.platform] {
                    closed(&operation.call(api, &acme.id, None).await, 401, "AUTHENTICATION_REQUIRED", id);
                }
                continue;
            }
            let body = || (row.body)();
            closed(&operation.call(&anonymous, &acme.id, body()).await, 401, "AUTHENTICATION_REQUIRED", id);
            closed(&operation.call(&revoked, &acme.id, body()).await, 401, "INVALID_CREDENTIALS", id);
            for (role, api) in &keys {
                let answer = operation.call(api, &acme.id, body()).await;
                let what = format!("{id} by a {role}");
                match row.roles.contains(role) {
                    true => reached(&answer, &what),
                    false => closed(&answer, 403, "FORBIDDEN", &what),
                }
            }
            closed(&operation.call(&sleeping_api, &sleeping.id, body()).await, 403, "TENANT_SUSPENDED", id);
            if row.about == About::PathTenant {
                // Another tenant's address and one that leads nowhere are the same to its admin, byte by byte.
                let others = operation.call(&globex.api, &acme.id, body()).await;
                let missing = operation.call(&globex.api, nowhere, body()).await;
                closed(&others, 404, "TENANT_NOT_FOUND", id);
                assert_eq!(without_request_id(&others), without_request_id(&missing), "{id}");
            }
        }
        // The administrator of the platform last: some operations change what the others see.
        for operation in &operations {
            let row = ROWS.iter().find(|row| row.operation == operation.id).expect("checked above");
            if row.about == About::Session {
                continue;
            }
            let answer = operation.call(&daemon.platform, &acme.id, (row.body)()).await;
            reached(&answer, &format!("{} by the platform", operation.id));
            if operation.id == "suspendTenant" {
                daemon.platform.post(&format!("/v1/tenants/{}/reactivate", acme.id), &json!({})).await;
            }
        }
        let described: BTreeSet<&str> = operations.iter().map(|operation| operation.id.as_str()).collect();
        let known: BTreeSet<&str> = ROWS.iter().map(|row| row.operation).collect();
        assert_eq!(known, described, "rows here, and operations of the document");
    })
    .await;
}

/// A tenant that was suspended, and its admin's key.
async fn suspended(daemon: &Daemon) -> (Tenant, Api) {
    let tenant = daemon.onboard("Sleeping").await;
    daemon.platform.raw(Method::POST, &format!("/v1/tenants/{}/suspend", tenant.id), &[], Vec::new()).await.ok();
    let api = tenant.api.clone();
    (tenant, api)
}

fn without_request_id(answer: &Answer) -> (u16, Value, Vec<String>) {
    let mut body = answer.body.clone();
    body["error"]["requestId"] = Value::Null;
    let volatile = ["date", "x-request-id"];
    let mut headers: Vec<String> =
        answer.headers.keys().map(|name| name.to_string()).filter(|name| !volatile.contains(&name.as_str())).collect();
    headers.sort();
    (answer.status, body, headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_within_a_second() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let (id, reader) = acme.issue_key("reader").await;
        let path = format!("/v1/quotas/{}", acme.id);
        assert_eq!(reader.get(&path).await.status, 200);
        acme.api.delete(&format!("/v1/tenants/{}/api-keys/{id}", acme.id)).await.ok();
        // What is asked later than a second after that is refused; how long an answer takes is the machine's affair.
        let revoked = tokio::time::Instant::now();
        loop {
            let asked = revoked.elapsed();
            match reader.get(&path).await.status {
                401 => break,
                status => assert!(asked < std::time::Duration::from_secs(1), "{status} after {asked:?}"),
            }
        }
        // And stays refused by a daemon that starts anew.
        let mut daemon = daemon;
        daemon.terminate().await;
        daemon.restart().await;
        reader.get(&path).await.refused(401, "INVALID_CREDENTIALS");
        assert_eq!(acme.api.patiently(Method::GET, &path, None).await.status, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_one_tenant_is_worth_nothing_to_another() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    for tenant in [&acme, &globex] {
        tenant.post_events(&[tenant.event(), tenant.event(), tenant.event()]).await;
    }
    let page = acme.api.get(&format!("/v1/tenants/{}/usage/events?limit=1", acme.id)).await.ok();
    let cursor = page["nextCursor"].as_str().expect("more than one event").to_owned();
    let path =
        |tenant: &Tenant, cursor: &str| format!("/v1/tenants/{}/usage/events?limit=1&cursor={cursor}", tenant.id);
    acme.api.get(&path(&acme, &cursor)).await.ok();
    globex.api.get(&path(&globex, &cursor)).await.refused(400, "INVALID_CURSOR");
    // Another list of the same tenant, and a cursor with one letter changed.
    let alerts = format!("/v1/quotas/{}/alerts?limit=1&cursor={cursor}", acme.id);
    acme.api.get(&alerts).await.refused(400, "INVALID_CURSOR");
    for at in 0..cursor.len() {
        let mut bytes = cursor.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        acme.api.get(&path(&acme, &changed)).await.refused(400, "INVALID_CURSOR");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_one_tenant_shows_in_any_answer_to_another() {
    on_both(|engine| async move {
        let judged_at_once = [("WINDOW_MS", 60_000), ("SETTLE_MS", 1_000), ("SLACK_MS", 10_000)];
        let setup = Setup::on(engine);
        let setup =
            judged_at_once.into_iter().fold(setup, |setup, (name, ms)| setup.with(&format!("RECONCILE__{name}"), ms));
        let daemon = setup.start().await;
        let canary = format!("canary{}", crate::harness::services::unique());
        let consumer =
            json!({"externalIds": [{"source": "kong", "kind": "username", "id": format!("{canary}-consumer")}]});
        let (acme, globex) = (daemon.onboard_as(consumer, "Acme").await, daemon.onboard("Globex").await);
        let mut event = acme.event().tokens(7_919, 104_729);
        (event.user, event.group) = (format!("{canary}-user"), format!("{canary}-group"));
        (event.model, event.provider) = (format!("{canary}-model"), format!("{canary}-provider"));
        acme.post_events(&[event]).await;
        let provider = json!({"name": format!("{canary}-llm"), "kind": "openai"});
        assert_eq!(acme.api.post("/v1/providers", &provider).await.status, 201);
        acme.put_quotas(json!([{"scope": {"type": "user", "id": format!("{canary}-user")}, "metric": "tokens",
            "period": "month", "limit": 1_000, "enforcement": "block"}]))
            .await;
        // Malformed, with the canary in it: it goes to Acme's quarantine.
        let broken = json!([{"eventId": canary, "occurredAt": "never", "payload": {}}]);
        acme.api.post("/v1/usage/events", &broken).await;
        eventually("Acme's alert", || async { (!acme.alerts().await.is_empty()).then_some(()) }).await;
        // Calls that Kong has seen: one of them is in Acme's ledger, one is not, and one claims to be Globex's.
        let minute = |ago: i64| Timestamp((now().0 / 60_000_000 - ago) * 60_000_000 + 30_000_000);
        let (early, in_between, late) = (minute(4), minute(3), minute(2));
        let joined = json!({"eventId": format!("{canary}-event"), "occurredAt": in_between.to_string(),
            "correlationId": format!("{canary}-joined"), "payload": {"source": "suite", "usage": {"tokens": 104_729}}});
        acme.api.post("/v1/usage/events", &joined).await.ok();
        let record = |id: &str, at: Timestamp, claimed: &str| {
            json!({"request": {"id": format!("{canary}-{id}"), "headers": {"x-tenant-id": claimed}},
                "response": {"status": 200, "headers": {"x-litellm-call-id": format!("{canary}-call-{id}")}},
                "route": {"name": format!("{canary}-route")}, "latencies": {"request": 900}, "source": "upstream",
                "consumer": {"username": format!("{canary}-consumer")}, "started_at": at.0 / 1_000})
        };
        let records = json!([
            record("early", early, &acme.id),
            record("joined", in_between, &acme.id),
            record("lost", in_between, &acme.id),
            record("claimed", late, &globex.id)
        ]);
        assert_eq!(daemon.platform.post("/v1/gateway/kong/logs", &records).await.ok()["accepted"], 4);
        let found = format!("/v1/reconciliation/{}/findings", acme.id);
        eventually("Acme's finding", || async {
            acme.api.patiently(Method::GET, &found, None).await.text.contains(&canary).then_some(())
        })
        .await;

        for operation in operations(&daemon).await.iter().filter(|operation| operation.method == Method::GET) {
            for tenant in [&globex.id, &acme.id] {
                let answer = operation.call(&globex.api, tenant, None).await;
                let leaked = answer.text.contains(&canary) || answer.text.contains("104729");
                assert!(!leaked, "{} tells of another tenant: {}", operation.id, answer.text);
                let tells_id = answer.text.contains(&acme.id);
                assert!(!tells_id, "{} names another tenant: {}", operation.id, answer.text);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_cannot_lift_anybody_into_another_tenant() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let path = format!("/v1/quotas/{}", acme.id);
    let headers = |tenant: &str| vec![("x-tenant-id".to_owned(), tenant.to_owned())];
    let call = async |api: &Api, path: &str, headers: &[(String, String)]| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        api.raw(Method::GET, path, &headers, Vec::new()).await
    };
    assert_eq!(call(&acme.api, &path, &headers(&acme.id)).await.status, 200);
    call(&acme.api, &path, &headers(&globex.id)).await.refused(403, "TENANT_MISMATCH");
    call(&daemon.platform, &path, &headers(&globex.id)).await.refused(403, "TENANT_MISMATCH");
    call(&globex.api, &path, &headers(&acme.id)).await.refused(404, "TENANT_NOT_FOUND");
    // The audit chain of the credential's own tenant, whatever is asked for.
    let audit = call(&globex.api, &format!("/v1/audit?tenantId={}", acme.id), &[]).await;
    assert_eq!(audit.status, 404, "{}", audit.text);
    call(&acme.api, &path, &headers("not-a-uuid")).await.refused(400, "INVALID_HEADER");
}
