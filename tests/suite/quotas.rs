//! Quotas: every scope, metric and period; thresholds; editing; calendars.

use platform_api::domain::period::{self, PeriodKind};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::events::{money, now, token_quota};
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both};

async fn a_tenant(engine: Engine) -> (Daemon, Tenant) {
    let daemon = Setup::on(engine).start().await;
    let tenant = daemon.onboard("Acme").await;
    (daemon, tenant)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_metric_and_period_counts_its_own() {
    on_both(|engine| async move {
        let (_daemon, tenant) = a_tenant(engine).await;
        let scopes = [
            (json!({"type": "tenant"}), 3_i64),
            (json!({"type": "user", "id": "ada"}), 2),
            (json!({"type": "group", "id": "research"}), 2),
            (json!({"type": "model", "id": "gpt-4.1"}), 1),
            (json!({"type": "provider", "id": "openai"}), 3),
            (json!({"type": "apiKey", "id": "nobody"}), 0),
        ];
        // What one event adds: 10 prompt tokens, 5 completion tokens, 0.0015 dollars.
        let metrics =
            [("tokens", 15_i64), ("promptTokens", 10), ("completionTokens", 5), ("cost", 1_500_000), ("requests", 1)];
        let mut quotas = Vec::new();
        for (scope, _) in &scopes {
            for (metric, _) in metrics {
                for period in PeriodKind::ALL {
                    let limit = if metric == "cost" { json!("1000") } else { json!(1_000_000) };
                    quotas.push(json!({"scope": scope, "metric": metric, "period": period.name(), "limit": limit,
                        "thresholds": [90], "enforcement": "alert"}));
                }
            }
        }
        tenant.put_quotas(Value::Array(quotas)).await;
        // In the middle of a minute, so that all three are in one period of each kind.
        while now().0 / 1_000_000 % 60 > 35 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let mut events = vec![tenant.event(), tenant.event(), tenant.event()];
        events[1].user = "grace".into();
        events[1].model = "o3".into();
        events[2].group = "sales".into();
        events[2].model = "o3".into();
        tenant.post_events(&events).await;

        let standings = tenant.quotas().await;
        assert_eq!(standings.len(), scopes.len() * metrics.len() * 6);
        for standing in standings {
            let scope = scopes.iter().find(|(scope, _)| *scope == standing["scope"]);
            let (_, times) = scope.unwrap_or_else(|| panic!("{standing}"));
            let (metric, each) = metrics.iter().find(|(name, _)| standing["metric"] == *name).expect("one of ours");
            let used = if *metric == "cost" { json!(money(times * each)) } else { json!(times * each) };
            assert_eq!(standing["used"], used, "{standing}");
            assert_eq!(standing["standing"], "ok", "{standing}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_warns_then_denies_and_the_tightest_decides() {
    on_both(|engine| async move {
        let (_daemon, tenant) = a_tenant(engine).await;
        tenant
            .put_quotas(json!([
                token_quota(100, "month"),
                {"scope": {"type": "user", "id": "ada"}, "metric": "requests", "period": "month", "limit": 2,
                 "thresholds": [100], "enforcement": "alert"},
            ]))
            .await;
        let step = async |prompt: i64, decision: &str, standing: &str| {
            tenant.post_events(&[tenant.event().tokens(prompt, 0)]).await;
            let told = tenant.decision("?userId=ada").await;
            assert_eq!(told["decision"], decision, "{told}");
            assert_eq!(tenant.quotas().await[0]["standing"], standing);
        };
        assert_eq!(tenant.decision("").await["decision"], "allow");
        step(49, "allow", "ok").await;
        // The soft limit on requests is reached, and half of the tokens: nobody is denied.
        step(1, "warn", "warning").await;
        step(49, "warn", "warning").await;
        step(1, "deny", "exceeded").await;
        let quota = &tenant.quotas().await[0];
        assert_eq!((&quota["used"], &quota["remaining"]), (&json!(100), &json!(0)));
        let told = tenant.decision("").await;
        assert_eq!(told["decision"], "deny");
        assert!(!told["reasons"].as_array().unwrap().is_empty(), "{told}");
        // 50, 80 and 100 percent of one, 100 percent of the other: once each.
        let alerts = tenant.alerts().await;
        let mut thresholds: Vec<i64> = alerts.iter().map(|alert| alert["threshold"].as_i64().unwrap()).collect();
        thresholds.sort_unstable();
        assert_eq!(thresholds, [50, 80, 100, 100]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn editing_a_quota_keeps_what_was_used() {
    on_both(|engine| async move {
        let (_daemon, tenant) = a_tenant(engine).await;
        let first = tenant.put_quotas(json!([token_quota(1_000, "month")])).await;
        tenant.post_events(&[tenant.event().tokens(400, 200)]).await;
        let id = first[0]["id"].clone();
        // A lower limit: exceeded at once, and the thresholds that are now reached have their alerts.
        let edited = tenant.put_quotas(json!([token_quota(500, "month")])).await;
        assert_eq!(edited[0]["id"], id, "the same scope, metric and period is the same quota");
        assert_eq!((&edited[0]["used"], &edited[0]["standing"]), (&json!(600), &json!("exceeded")));
        assert_eq!(tenant.alerts().await.len(), 3);
        // A higher one: no alert is taken back from history, and none comes twice.
        let edited = tenant.put_quotas(json!([token_quota(10_000, "month")])).await;
        assert_eq!((&edited[0]["used"], &edited[0]["standing"]), (&json!(600), &json!("ok")));
        let alerts = tenant.alerts().await;
        assert_eq!(alerts.len(), 3);
        assert!(alerts.iter().all(|alert| alert["resolvedAt"].is_string()), "{alerts:?}");
        tenant.put_quotas(json!([token_quota(500, "month")])).await;
        assert_eq!(tenant.alerts().await.len(), 3, "one alert per quota, period and threshold, ever");
        // Another metric under the same id is recounted from the ledger.
        let mut other = token_quota(1_000, "month");
        (other["id"], other["metric"]) = (id, json!("completionTokens"));
        assert_eq!(tenant.put_quotas(json!([other])).await[0]["used"], 200);
        assert_eq!(tenant.put_quotas(json!([token_quota(1_000, "total")])).await[0]["used"], 600);
        assert!(tenant.put_quotas(json!([])).await.is_empty());
        assert_eq!(tenant.decision("").await["decision"], "allow");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_outlive_the_daemon() {
    on_both(|engine| async move {
        let (mut daemon, tenant) = a_tenant(engine).await;
        tenant.put_quotas(json!([token_quota(100, "total"), token_quota(1_000, "month")])).await;
        tenant.post_events(&[tenant.event().tokens(60, 25)]).await;
        // But for the estimate, which is made anew for each answer.
        let known = async || {
            let mut quotas = tenant.quotas().await;
            for quota in &mut quotas {
                assert!(quota.as_object_mut().unwrap().remove("exhaustsAt").is_some(), "{quota}");
            }
            quotas
        };
        let before = known().await;
        daemon.kill().await;
        daemon.restart().await;
        assert_eq!(known().await, before);
        assert_eq!(before[0]["used"], 85);
        tenant.post_events(&[tenant.event().tokens(15, 0)]).await;
        assert_eq!(tenant.decision("").await["decision"], "deny");
        assert_eq!(tenant.alerts().await.len(), 3);
    })
    .await;
}

/// The calendar is the tenant's: days begin at its midnight, also where the clocks were changed.
#[tokio::test(flavor = "multi_thread")]
async fn late_events_count_in_the_day_of_the_tenant_s_calendar_in_which_they_occurred() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        for zone in ["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"] {
            let tenant = daemon.onboard_as(json!({"timeZone": zone}), &format!("In {zone}")).await;
            let mut quota = token_quota(1_000_000, "day");
            quota["thresholds"] = json!([1]);
            tenant.put_quotas(json!([quota])).await;
            // The last change of clocks before now, if the zone has one within the year.
            let zone = period::time_zone(zone).unwrap();
            let instant = now().to_jiff().unwrap();
            let change =
                zone.preceding(instant).next().map_or(now().plus_micros(-86_400_000_000), |at| at.timestamp().into());
            let age = now().0 - change.0;
            let change = if age < 300 * 86_400_000_000 { change } else { now().plus_micros(-86_400_000_000) };
            let day = period::window(PeriodKind::Day, change, &zone);
            // The first and the last millisecond of that day, and their neighbours outside.
            let inside = [day.start, day.end.plus_micros(-1_000), change];
            let outside = [day.start.plus_micros(-1_000), day.end];
            let events: Vec<_> =
                inside.iter().chain(&outside).map(|at| tenant.event().tokens(100, 0).at(*at)).collect();
            tenant.post_events(&events).await;
            let mut database = crate::harness::database::Database::of_tenant(&daemon, &tenant.id).await;
            let counters = database.numbers("SELECT period_start, period_end, used FROM counter").await;
            let of_day = counters.iter().find(|row| row[0] == day.start.0).unwrap_or_else(|| panic!("{counters:?}"));
            assert_eq!((of_day[1], of_day[2]), (day.end.0, 300), "{day:?}");
            let from = tenant.report(&format!("?from={}&to={}&granularity=day", day.start, day.end)).await;
            assert_eq!(from.len(), 1, "{from:?}");
            assert_eq!(from[0]["amounts"]["totalTokens"], 300);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_calendar_recounts_the_running_period() {
    on_both(|engine| async move {
        let (daemon, tenant) = a_tenant(engine).await;
        tenant.put_quotas(json!([token_quota(1_000_000, "day")])).await;
        // One event each hour of the last day and a half.
        let events: Vec<_> =
            (0..36).map(|hour| tenant.event().tokens(1, 0).at(now().plus_micros(-hour * 3_600_000_000))).collect();
        tenant.post_events(&events).await;
        for zone in ["Pacific/Kiritimati", "America/Adak", "Asia/Kathmandu", "UTC"] {
            let path = format!("/v1/tenants/{}", tenant.id);
            daemon.platform.patch(&path, &json!({"timeZone": zone})).await.ok();
            let rules = period::time_zone(zone).unwrap();
            eventually("the new calendar", || async {
                let day = period::window(PeriodKind::Day, now(), &rules);
                let expected = events.iter().filter(|event| day.contains(event.occurred_at)).count();
                (tenant.quotas().await[0]["used"] == expected).then_some(())
            })
            .await;
        }
    })
    .await;
}

/// A gateway that keeps the last answer must not be told that nothing has changed when a period has begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_denial_ends_with_its_period_also_for_a_gateway_that_asks_with_an_etag() {
    let (_daemon, tenant) = a_tenant(Engine::Sqlite).await;
    tenant.put_quotas(json!([token_quota(10, "minute")])).await;
    let path = format!("/v1/quotas/{}/decision", tenant.id);
    let (denied, minute) = eventually("a minute that does not end while it is looked at", || async {
        let minute = now().0 / 60_000_000;
        tenant.post_events(&[tenant.event().tokens(10, 0)]).await;
        let denied = tenant.api.get(&path).await;
        (now().0 / 60_000_000 == minute).then_some((denied, minute))
    })
    .await;
    assert_eq!(denied.body["decision"], "deny", "{}", denied.text);
    let etag = denied.header("etag").to_owned();
    assert!(!etag.is_empty());
    let ask = async || tenant.api.raw(Method::GET, &path, &[("if-none-match", etag.as_str())], Vec::new()).await;
    let again = ask().await;
    assert!(again.status == 304 || now().0 / 60_000_000 != minute, "{} {}", again.status, again.text);
    let left = 60_000_000 - now().0 % 60_000_000;
    tokio::time::sleep(std::time::Duration::from_micros(left as u64 + 300_000)).await;
    let allowed = ask().await;
    assert_eq!(allowed.status, 200, "a new period has begun");
    assert_eq!(allowed.body["decision"], "allow", "{}", allowed.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_says_how_long_it_may_be_used() {
    let (_daemon, tenant) = a_tenant(Engine::Sqlite).await;
    tenant.put_quotas(json!([token_quota(1_000, "day")])).await;
    let path = format!("/v1/quotas/{}/decision?userId=ada&model=gpt-4.1", tenant.id);
    let first = tenant.api.get(&path).await;
    for field in ["decision", "reasons", "remaining", "resetAt", "refreshAfter", "validUntil"] {
        assert!(first.body.get(field).is_some(), "{field} is missing in {}", first.text);
    }
    assert!(first.header("cache-control").contains("private"), "{:?}", first.headers);
    let etag = first.header("etag").to_owned();
    let again = tenant.api.raw(Method::GET, &path, &[("if-none-match", &etag)], Vec::new()).await;
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    tenant.post_events(&[tenant.event()]).await;
    let changed = tenant.api.raw(Method::GET, &path, &[("if-none-match", &etag)], Vec::new()).await;
    assert_eq!(changed.status, 200);
    assert_ne!(changed.header("etag"), etag);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_quota_is_refused_with_a_pointer_to_every_fault() {
    let (_daemon, tenant) = a_tenant(Engine::Sqlite).await;
    let good = token_quota(10, "day");
    let with = |field: &str, value: Value| {
        let mut quota = good.clone();
        quota[field] = value;
        quota
    };
    for (quota, pointer) in [
        (with("limit", json!(0)), "/quotas/0/limit"),
        (with("limit", json!(-1)), "/quotas/0/limit"),
        (with("limit", json!(1.5)), "/quotas/0/limit"),
        (with("limit", json!("10")), "/quotas/0/limit"),
        (with("period", json!("fortnight")), "/quotas/0/period"),
        (with("metric", json!("joules")), "/quotas/0/metric"),
        (with("enforcement", json!("hope")), "/quotas/0/enforcement"),
        (with("scope", json!({"type": "user"})), "/quotas/0/scope"),
        (with("scope", json!({"type": "galaxy", "id": "x"})), "/quotas/0/scope"),
        (with("thresholds", json!([0])), "/quotas/0/thresholds"),
        (with("thresholds", json!([50, 50])), "/quotas/0/thresholds"),
        (with("id", json!("0199a8b2-5c00-7abc-8def-0123456789ab")), "/quotas/0/id"),
        (with("extra", json!(1)), "/quotas/0/extra"),
    ] {
        let answer = tenant.try_put_quotas(json!([quota])).await;
        answer.refused(422, "VALIDATION_FAILED");
        let fields = answer.body["error"]["details"]["fields"].as_array().expect("pointers").clone();
        let pointed = fields.iter().any(|field| field["pointer"].as_str().unwrap().starts_with(pointer));
        assert!(pointed, "{pointer} in {}", answer.text);
    }
    let twice = tenant.try_put_quotas(json!([good, good])).await;
    twice.refused(422, "VALIDATION_FAILED");
    let both = tenant.try_put_quotas(json!([with("limit", json!(0)), with("period", json!("x"))])).await;
    assert_eq!(both.body["error"]["details"]["fields"].as_array().unwrap().len(), 2, "every fault at once");
    assert!(tenant.quotas().await.is_empty(), "nothing was changed");
}
