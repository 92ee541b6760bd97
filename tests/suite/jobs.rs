//! Background work: asked for, watched, canceled, and finished after its daemon was killed.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::Api;
use crate::harness::database::Database;
use crate::harness::{Engine, Setup, eventually, on_both};

const HOUR_AHEAD: &str = "2999-01-01T00:00:00Z";

pub async fn finished(api: &Api, id: &str) -> Value {
    eventually("the job is finished", async || {
        let job = api.get(&format!("/v1/jobs/{id}")).await.ok();
        job["finishedAt"].is_string().then_some(job)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_chain_is_verified_in_the_background() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        acme.post_events(&[acme.event(), acme.event()]).await;
        let asked = acme.api.post("/v1/jobs", &json!({"kind": "auditVerification"})).await;
        assert_eq!(asked.status, 201, "{}", asked.text);
        assert_eq!((&asked.body["tenantId"], &asked.body["state"]), (&json!(acme.id), &json!("waiting")));
        let id = asked.body["id"].as_str().unwrap();
        let job = finished(&acme.api, id).await;
        assert_eq!((&job["state"], &job["attempts"]), (&json!("succeeded"), &json!(1)), "{job}");
        assert!(job["result"]["records"].as_i64().unwrap() > 0, "{job}");

        // Another tenant knows nothing of it; a reader may not see jobs at all.
        for method in [Method::GET, Method::POST] {
            let path = format!("/v1/jobs/{id}{}", if method == Method::POST { "/cancel" } else { "" });
            globex.api.raw(method, &path, &[], Vec::new()).await.refused(404, "JOB_NOT_FOUND");
        }
        let own = globex.api.pages("/v1/jobs", 10).await;
        assert!(
            own.iter().all(|job| job["tenantId"] == globex.id.as_str() && job["kind"] != "auditVerification"),
            "{own:?}"
        );
        acme.issue_key("reader").await.1.get("/v1/jobs").await.refused(403, "FORBIDDEN");
        // The platform sees it, and what it does itself.
        let all = daemon.platform.pages("/v1/jobs", 1).await;
        let kinds: Vec<&str> = all.iter().map(|job| job["kind"].as_str().unwrap()).collect();
        assert!(kinds.contains(&"auditVerification") && kinds.contains(&"housekeeping"), "{kinds:?}");
        let own = daemon
            .platform
            .get(&format!("/v1/jobs?tenantId={}&state=succeeded&kind=auditVerification", acme.id))
            .await
            .ok();
        assert_eq!(own["items"].as_array().unwrap().len(), 1, "{own}");
        // Each step is in the platform's chain.
        let records = daemon.platform.pages("/v1/audit", 100).await;
        let told = |action: &str| {
            let target = format!("job:{id}");
            records
                .iter()
                .filter(|record| record["record"]["action"] == action && record["record"]["target"] == target.as_str())
                .count()
        };
        assert_eq!([told("job.submitted"), told("job.succeeded")], [1, 1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_is_canceled_once_and_a_key_asks_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let body = json!({"kind": "auditVerification", "runAt": HOUR_AHEAD});
        let keyed = async || {
            let text = serde_json::to_vec(&body).unwrap();
            let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
            daemon.platform.raw(Method::POST, "/v1/jobs", &headers, text).await
        };
        let (first, second) = (keyed().await, keyed().await);
        assert_eq!((first.status, second.status, &first.body), (201, 201, &second.body));
        let id = first.body["id"].as_str().unwrap();
        let cancel = format!("/v1/jobs/{id}/cancel");
        let canceled = daemon.platform.raw(Method::POST, &cancel, &[], Vec::new()).await.ok();
        assert_eq!(canceled["state"], "canceled");
        let again = daemon.platform.raw(Method::POST, &cancel, &[], Vec::new()).await;
        again.refused(409, "JOB_FINISHED");
        assert_eq!(again.body["error"]["details"]["state"], "canceled");

        let acme = daemon.onboard("Acme").await;
        for (api, body, pointer) in [
            (&daemon.platform, json!({"kind": "everything"}), "/kind"),
            (&daemon.platform, json!({"kind": "tenant.finishChange"}), "/kind"),
            (&acme.api, json!({"kind": "tenant.finishChange"}), "/kind"),
            (&acme.api, json!({"kind": "housekeeping"}), "/kind"),
            (&daemon.platform, json!({"kind": "housekeeping", "runAt": "soon"}), "/runAt"),
        ] {
            let answer = api.post("/v1/jobs", &body).await;
            answer.refused(422, "VALIDATION_FAILED");
            assert_eq!(answer.body["error"]["details"]["fields"][0]["pointer"], pointer);
        }
        daemon.platform.get("/v1/jobs?state=done").await.refused(400, "INVALID_PARAMETER");
        daemon.platform.get("/v1/jobs/0199a8b2-5c00-7abc-8def-0123456789ab").await.refused(404, "JOB_NOT_FOUND");
        daemon.platform.get("/v1/jobs/1").await.refused(404, "JOB_NOT_FOUND");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_daemon_was_killed_is_done_by_the_next_one() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).with("JOBS__LEASE_MS", 1_000).start().await;
        daemon.stop().await;
        daemon.spawn_armed("job.begun=return(KILL)");
        daemon.ready().await;
        let body = serde_json::to_vec(&json!({"kind": "auditVerification"})).unwrap();
        let headers = [("content-type", "application/json")];
        // The daemon may be gone before it answers.
        let _ = daemon.platform.try_raw(Method::POST, "/v1/jobs", &headers, body).await;
        daemon.dies_at("job.begun").await;
        daemon.spawn();
        daemon.ready().await;
        let listed = daemon.platform.get("/v1/jobs?kind=auditVerification").await.ok();
        let id = listed["items"][0]["id"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
        let job = finished(&daemon.platform, &id).await;
        // A machine that stands still for longer than the lease makes for one more.
        assert!(job["state"] == "succeeded" && job["attempts"].as_i64().is_some_and(|tries| tries >= 2), "{job}");
    })
    .await;
}

/// What a change has left to do is a job like any other, but that nobody asks for it and nobody cancels it; what it is to
/// write is not shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_finished_by_a_job_that_is_shown_and_not_canceled() {
    on_both(|engine| async move {
        // A folder has one owner, and its next start waits for no lease.
        let lease_ms = if engine == Engine::Sqlite { 3_600_000 } else { 15_000 };
        let mut daemon = Setup::on(engine).with("JOBS__LEASE_MS", lease_ms).start().await;
        let acme = daemon.onboard("Acme").await;
        acme.issue_key("reader").await;
        let list = "/v1/jobs?kind=tenant.finishChange";
        let jobs = acme.api.pages(list, 1).await;
        assert_eq!(jobs.len(), 2, "onboarding, and a key: {jobs:?}");
        for job in &jobs {
            // A database that is slow to open costs another try.
            assert_eq!((&job["state"], &job["attemptsMax"]), (&json!("succeeded"), &json!(0)), "{job}");
            assert!(job["attempts"].as_i64() >= Some(1), "{job}");
            assert_eq!((&job["tenantId"], &job["result"]["records"].is_i64()), (&json!(acme.id), &true), "{job}");
            assert!(job.get("arguments").is_none() && !job.to_string().contains("Acme"), "{job}");
        }
        let mut control = Database::of_control(&daemon).await;
        assert_eq!(control.number("SELECT COUNT(*) FROM job WHERE tenant_id <> '' AND arguments <> '{}'").await, 0);
        drop(control);
        let cancel = |id: &Value| format!("/v1/jobs/{}/cancel", id.as_str().unwrap());
        let path = cancel(&jobs[0]["id"]);
        daemon.platform.raw(Method::POST, &path, &[], Vec::new()).await.refused(409, "JOB_FINISHED");
        // The change itself is on record; that its job has succeeded is no news.
        let records = daemon.platform.pages("/v1/audit", 100).await;
        let target = format!("job:{}", jobs[0]["id"].as_str().unwrap());
        assert!(records.iter().all(|record| record["record"]["target"] != target.as_str()));

        // One whose daemon was killed is under way until another goes on with it.
        daemon.stop().await;
        daemon.spawn_armed("change.recorded=return(KILL)");
        daemon.ready().await;
        let suspend = format!("/v1/tenants/{}/suspend", acme.id);
        let _ = daemon.platform.try_raw(Method::POST, &suspend, &[], Vec::new()).await;
        daemon.dies_at("change.recorded").await;
        daemon.spawn();
        daemon.ready().await;
        let listed = daemon.platform.get(list).await.ok();
        let running = &listed["items"][0];
        if engine == Engine::Postgres {
            assert_eq!(running["state"], "running", "nobody knows that it is dead");
            let canceled = daemon.platform.raw(Method::POST, &cancel(&running["id"]), &[], Vec::new()).await;
            canceled.refused(409, "JOB_NOT_CANCELABLE");
        }
        let job = finished(&daemon.platform, running["id"].as_str().unwrap()).await;
        assert!(job["state"] == "succeeded" && job["attempts"].as_i64() >= Some(2), "{job}");
        assert_eq!(job["cancelRequested"], false, "{job}");
    })
    .await;
}
