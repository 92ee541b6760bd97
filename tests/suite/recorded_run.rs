//! A recorded run of a real Kong, replayed through the real receivers into real tenants' books, at the instants at which
//! it was recorded: its documented findings, and no others. See `tests/fixtures/kong/recon/README.md`.

use std::collections::BTreeMap;

use platform_api::domain::amount::NanoUsd;
use platform_api::domain::ids::TenantId;
use platform_api::domain::reconcile::finding::{Cause, Status};
use platform_api::domain::reconcile::reading::InterruptionReason;
use platform_api::domain::reconcile::{Proof, Terms, Verdict};
use platform_api::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use platform_api::domain::usage::{self, Amounts, Kind, Subject, UsageEvent};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::daemon::project;
use crate::harness::stage::{Key, Stage};
use crate::harness::{Engine, Setup, eventually, on_both};

const TOKEN: &str = "kong-ingest-token-0123456789";

/// Names of the consumers, and their `custom_id`s: what the client writes into `X-Tenant-Id`.
const CONSUMERS: [(&str, &str); 3] = [
    ("tenant-acme", "11111111-1111-4111-8111-111111111111"),
    ("tenant-globex", "22222222-2222-4222-8222-222222222222"),
    ("tenant-initech", "33333333-3333-4333-8333-333333333333"),
];
const FIRST: i64 = 1_795_220_880;
const OUTAGE: i64 = 1_795_221_000;
const RESTART: i64 = 1_795_221_060;
const REDIS_KILLED: i64 = 1_795_221_012;
const REDIS_BACK: i64 = 1_795_221_020;

/// What happens at an instant.
enum Act {
    Log(Vec<Value>),
    Call(usize, Box<UsageEvent>),
    Scrape(Option<String>),
    Poll(Vec<Key>),
    PollInVain,
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(project().join("tests/fixtures/kong/recon").join(name)).unwrap()
}

/// Seconds with a fraction, as written in the recording.
fn instant(seconds: &str) -> Timestamp {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let micros: i64 = format!("{fraction:0<6}")[..6].parse().unwrap();
    Timestamp(whole.parse::<i64>().unwrap() * MICROS_PER_SECOND + micros)
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect())
}

fn number_of(custom_id: &str) -> usize {
    CONSUMERS.iter().position(|(_, id)| *id == custom_id).unwrap()
}

/// A row of the recording as http-log posts it.
fn record(row: &[&str]) -> Value {
    let limits =
        [("x-ratelimit-limit-minute", 15), ("x-ratelimit-remaining-minute", 16), ("x-ratelimit-remaining-day", 17)];
    let named = [("x-litellm-call-id", 13), ("x-cache-status", 14)].into_iter().chain(limits);
    let headers: BTreeMap<&str, &str> =
        named.map(|(name, at)| (name, row[at])).filter(|(_, value)| !value.is_empty()).collect();
    let mut record = json!({
        "request": {"id": row[2], "method": "POST", "headers": {"x-tenant-id": row[8], "apikey": "REDACTED"}},
        "response": {"status": row[9].parse::<i64>().unwrap(), "headers": headers},
        "latencies": {"request": row[4].parse::<i64>().unwrap()},
        "route": {"name": row[5], "id": row[6]},
        "service": {"name": "litellm"},
        "started_at": row[3].parse::<i64>().unwrap(),
        "source": row[10],
    });
    if !row[7].is_empty() {
        let (username, custom_id) = CONSUMERS[number_of(row[7])];
        record["consumer"] = json!({"username": username, "custom_id": custom_id});
    }
    if !row[11].is_empty() {
        record["upstream_status"] = json!(row[11]);
    }
    record
}

/// A hit of the cache, before the recording begins.
fn early_record(username: &str, custom_id: &str, at: i64) -> Value {
    json!({
        "request": {"id": format!("early-{username}"), "headers": {"x-tenant-id": custom_id}},
        "response": {"status": 200, "headers": {}},
        "consumer": {"username": username, "custom_id": custom_id},
        "started_at": at,
        "source": "kong",
    })
}

fn call(row: &Value) -> UsageEvent {
    let success = row["status"] == 200;
    let tokens = |name: &str| row["usage"][name].as_i64().unwrap_or(0);
    let details = json!({"callId": row["call_id"], "correlationId": row["kong_request_id"]});
    UsageEvent {
        source: "litellm".into(),
        event_id: row["kong_request_id"].as_str().unwrap().into(),
        occurred_at: instant(&row["received_at"].to_string()),
        kind: Kind::Delta,
        status: if success { usage::Status::Success } else { usage::Status::Failure },
        subject: Subject { user: "ada".into(), model: "gpt-5".into(), ..Subject::default() },
        call_type: "acompletion".into(),
        amounts: Amounts {
            requests: i64::from(success),
            prompt_tokens: tokens("prompt_tokens"),
            completion_tokens: tokens("completion_tokens"),
            cost: NanoUsd(1_000),
            ..Amounts::default()
        },
        flags: usage::Flags::default(),
        details: details.to_string(),
    }
}

/// Everything that was recorded, in the order in which it came.
fn recorded() -> Vec<(Timestamp, Act)> {
    let mut acts: Vec<(Timestamp, Act)> = Vec::new();
    let log = fixture("http-log.tsv");
    let mut bodies: BTreeMap<Timestamp, Vec<Value>> = BTreeMap::new();
    for row in rows(&log) {
        bodies.entry(instant(row[0])).or_default().push(record(&row));
    }
    acts.extend(bodies.into_iter().map(|(at, body)| (at, Act::Log(body))));
    for row in fixture("upstream-ledger.jsonl").lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        // As it comes after the call has ended.
        let at = instant(&row["received_at"].to_string()).plus_micros(MICROS_PER_SECOND);
        acts.push((at, Act::Call(number_of(row["tenant"].as_str().unwrap()), Box::new(call(&row)))));
    }
    for line in fixture("metrics-scrapes.jsonl").lines() {
        let scrape: Value = serde_json::from_str(line).unwrap();
        let lines = scrape["lines"].as_array();
        let body = lines.map(|lines| lines.iter().map(|line| format!("{}\n", line.as_str().unwrap())).collect());
        acts.push((instant(&scrape["scrape_at"].to_string()), Act::Scrape(body)));
    }
    let polls = fixture("redis-polls.tsv");
    let mut keys: BTreeMap<Timestamp, Option<Vec<Key>>> = BTreeMap::new();
    for row in rows(&polls) {
        let seen = keys.entry(instant(row[0])).or_insert_with(|| Some(Vec::new()));
        match row[1] {
            "ERROR" => *seen = None,
            "EMPTY" => {}
            name => seen.as_mut().unwrap().push(Key {
                name: name.into(),
                value: row[2].parse().unwrap(),
                // One that was about to die must live until it is read: by less than a clock may be wrong.
                ttl_ms: row[3].parse::<i64>().unwrap().max(1_500),
            }),
        }
    }
    acts.extend(keys.into_iter().map(|(at, keys)| (at, keys.map_or(Act::PollInVain, Act::Poll))));
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// The recorded run, and time enough for all of it to settle.
async fn replayed(engine: Engine, terms: Terms) -> (Stage, Vec<TenantId>) {
    let acts = recorded();
    let (begin, end) = (acts[0].0, acts[acts.len() - 1].0);
    let mut stage = Stage::open(engine, terms, begin, |_| {}).await;
    let mut tenants = Vec::new();
    for (username, custom_id) in CONSUMERS {
        tenants.push(stage.onboard(username, &[("username", username), ("customId", custom_id)]).await);
    }
    // The window in which a gateway begins to speak is not compared: it spoke before.
    for (username, custom_id) in CONSUMERS {
        let early = (FIRST - 30) * 1_000;
        stage.log(&[early_record(username, custom_id, early)]).await;
    }
    let (mut kept, mut again, mut is_down) = (0, 0, false);
    for (at, act) in acts {
        stage.pass(at).await;
        let second = at.0 / MICROS_PER_SECOND;
        if !is_down && (REDIS_KILLED..REDIS_BACK).contains(&second) {
            stage.kill_redis().await;
            is_down = true;
        } else if is_down && second >= REDIS_BACK {
            stage.start_redis().await;
            is_down = false;
        }
        match act {
            Act::Log(records) => {
                let received = stage.log(&records).await;
                kept += received.accepted + received.unattributed;
                // Kong sends again what it believes to be lost.
                let received = stage.log(&records[..1]).await;
                again += received.accepted;
            }
            Act::Call(number, event) => stage.count(tenants[number], vec![*event]).await,
            Act::Scrape(body) => stage.scrape(body, Some(at)).await,
            Act::Poll(keys) => stage.poll(&keys).await,
            Act::PollInVain => stage.poll_in_vain().await,
        }
    }
    assert_eq!((kept, again), (1_580, 0));
    // A day later nothing is looked at again.
    stage.pass(end.plus_micros(26 * 60 * MICROS_PER_MINUTE)).await;
    (stage, tenants)
}

/// 52 requests went past the limiter while its Redis was away. What its counters lost is unproven, and told until they
/// count again.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_run_yields_its_documented_findings_and_no_others() {
    on_both(|engine| async move {
        let terms = Terms { window_micros: MICROS_PER_MINUTE, ..Terms::default() };
        let (stage, tenants) = replayed(engine, terms).await;
        let (mut requests, mut calls) = (0, 0);
        for (tenant, past_the_limiter) in tenants.iter().copied().zip([39, 8, 5]) {
            let told = stage.told(tenant).await;
            let [fail_open, reset] = told[..] else { panic!("{told:?}") };
            assert_eq!(fail_open, (OUTAGE, Cause::FailOpen, past_the_limiter, Status::Open));
            assert_eq!((reset.0, reset.1, reset.3), (OUTAGE, Cause::LimiterReset, Status::Resolved));

            // Every success has its call, by its own id.
            let judged = stage.judged(tenant, Proof::Requests).await;
            assert!(judged.iter().all(|one| one.verdict == Verdict::Matched), "{judged:?}");
            requests += judged.iter().map(|one| one.gateway).sum::<i64>();
            calls += judged.iter().map(|one| one.ledger).sum::<i64>();

            // What Kong counted is proven until it was started again, and unproven, not a drift, where that hid something.
            let judged = stage.judged(tenant, Proof::Cumulative).await;
            let is = |one: &platform_api::domain::reconcile::window::Judged| one.window.start.0 / MICROS_PER_SECOND;
            let before: Vec<_> = judged.iter().filter(|one| is(one) < RESTART).collect();
            assert!(before.iter().all(|one| one.verdict == Verdict::Matched) && before.len() >= 2, "{judged:?}");
            let restart = judged.iter().find(|one| is(one) == RESTART).unwrap();
            assert_eq!(restart.verdict, Verdict::Unproven, "{judged:?}");
            assert!(restart.reasons.contains(&InterruptionReason::GatewayRestarted), "{restart:?}");
            assert!(judged.iter().all(|one| one.verdict != Verdict::Drift), "{judged:?}");

            // Attempts were enough wherever they could be read to the end.
            for one in stage.judged(tenant, Proof::Attempts).await {
                let expected = if is(&one) == OUTAGE { Verdict::Unproven } else { Verdict::Matched };
                let bound = one.reasons == [InterruptionReason::LowerBound];
                assert!(one.verdict == expected || (bound && one.verdict == Verdict::Unproven), "{one:?}");
                assert!(is(&one) >= FIRST, "{one:?}");
            }
            assert!(stage.home(tenant).await.pulse().books().firing.is_empty());
        }
        assert_eq!((requests, calls), (562, 562));
        epochs_are_starts_of_periods(&stage, tenants[0]).await;
        stage.close().await;
    })
    .await;
}

/// With windows as wide as they are by default, the whole run is in two of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_run_is_the_same_in_wide_windows() {
    let (stage, tenants) = replayed(Engine::Sqlite, Terms::default()).await;
    for (tenant, past_the_limiter) in tenants.iter().copied().zip([39, 8, 5]) {
        let told = stage.told(tenant).await;
        let fail_open: Vec<_> = told.iter().filter(|one| one.1 == Cause::FailOpen).map(|one| one.2).collect();
        assert_eq!(fail_open, [past_the_limiter], "{told:?}");
        assert!(told.iter().all(|one| [Cause::FailOpen, Cause::LimiterReset].contains(&one.1)), "{told:?}");
        for proof in Proof::ALL {
            let verdicts = stage.verdicts(tenant, proof).await;
            assert!(!verdicts.contains(&Verdict::Drift), "{proof:?}: {verdicts:?}");
        }
    }
    stage.close().await;
}

/// The whole log and the whole second book over HTTP, into the real binary, moved so that the run has just ended. Without
/// the limiter's counters nobody knows when it was away, so that of what went past it only what was let through is told.
#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_log_is_matched_by_the_real_binary() {
    on_both(|engine| async move {
        let settings = [("WINDOW_MS", 60_000), ("SETTLE_MS", 1_000), ("SLACK_MS", 10_000)];
        let setup = settings
            .into_iter()
            .fold(Setup::on(engine), |setup, (name, value)| setup.with(&format!("RECONCILE__{name}"), value));
        let daemon = setup.with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).start().await;
        let (now, end) = (crate::harness::events::now(), (FIRST + 5 * 60) * MICROS_PER_SECOND);
        let moved = (now.0 - end).div_euclid(MICROS_PER_MINUTE) * MICROS_PER_MINUTE;
        let mut tenants = Vec::new();
        for (username, custom_id) in CONSUMERS {
            let ids = [("username", username), ("customId", custom_id)];
            let ids = ids.map(|(kind, id)| json!({"source": "kong", "kind": kind, "id": id}));
            tenants.push(daemon.onboard_as(json!({"externalIds": ids}), username).await);
        }
        for (number, tenant) in tenants.iter().enumerate() {
            let rows = fixture("upstream-ledger.jsonl");
            let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let of_tenant = rows.filter(|row| row["tenant"] == CONSUMERS[number].1);
            let events: Vec<Value> = of_tenant.map(|row| envelope(&row, &tenant.id, moved)).collect();
            let answer = tenant.api.post("/v1/usage/events", &json!(events)).await.ok();
            assert_eq!(answer["accepted"], events.len(), "{answer}");
        }
        let log = fixture("http-log.tsv");
        let early = CONSUMERS.map(|(username, id)| early_record(username, id, (FIRST - 30) * 1_000));
        let mut records: Vec<Value> = early.into_iter().chain(rows(&log).map(|row| record(&row))).collect();
        for record in &mut records {
            record["started_at"] = json!(record["started_at"].as_i64().unwrap() + moved / 1_000);
        }
        let headers = [("content-type", "application/json"), ("x-ingest-token", TOKEN)];
        let post = async || {
            let body = serde_json::to_vec(&records).unwrap();
            daemon.platform.anonymous().raw(Method::POST, "/v1/gateway/kong/logs", &headers, body).await.ok()
        };
        let (first, again) = (post().await, post().await);
        let of = |answer: &Value, name: &str| answer[name].as_u64().unwrap();
        assert_eq!(of(&first, "accepted") + of(&first, "unattributed"), 1_583, "{first}");
        assert_eq!((of(&again, "accepted"), of(&again, "duplicates")), (0, of(&first, "accepted")), "{again}");

        let (mut matched, until) = ([0, 0], Timestamp(end + moved));
        for (number, tenant) in tenants.iter().enumerate() {
            let path = format!("/v1/reconciliation/{}", tenant.id);
            eventually("the run to be compared", || async {
                let overview = tenant.api.patiently(Method::GET, &path, None).await.ok();
                let settled: Option<Timestamp> = overview["settledUntil"].as_str().map(|at| at.parse().unwrap());
                let drifts = tenant.api.pages(&format!("{path}/windows?verdict=drift"), 50).await;
                settled.filter(|at| *at >= until && drifts.is_empty())
            })
            .await;
            for window in tenant.api.pages(&format!("{path}/windows"), 50).await {
                assert_eq!((&window["proof"], &window["verdict"]), (&json!("requests"), &json!("matched")), "{window}");
                matched[0] += window["gateway"].as_i64().unwrap();
                matched[1] += window["ledger"].as_i64().unwrap();
            }
            let found = tenant.api.pages(&format!("{path}/findings"), 50).await;
            // So many records of one tenant are kept in parts, between which a pass may have looked.
            let open = found.iter().filter(|one| one["status"] == "open");
            let told: Vec<_> = open.map(|one| (one["cause"].as_str().unwrap(), one["count"].as_u64())).collect();
            let let_through = rows(&log).filter(|row| row[7] == CONSUMERS[number].1 && row[16].is_empty());
            let let_through = let_through.filter(|row| row[10] == "upstream" || row[9].starts_with('2')).count() as u64;
            let expected: Vec<_> = [("failOpen", Some(let_through))].into_iter().filter(|_| let_through > 0).collect();
            assert_eq!(told, expected, "{found:?}");
        }
        assert_eq!(matched, [562, 562]);
    })
    .await;
}

fn envelope(row: &Value, tenant: &str, moved: i64) -> Value {
    let at = Timestamp(instant(&row["received_at"].to_string()).0 + moved);
    let status = if row["status"] == 200 { "success" } else { "failure" };
    let tokens = |name: &str| row["usage"][name].as_i64().unwrap_or(0);
    json!({"eventId": row["kong_request_id"], "occurredAt": at.to_string(), "tenantId": tenant,
        "correlationId": row["kong_request_id"], "actor": {"userId": "ada"},
        "payload": {"source": "test", "requestId": row["call_id"], "status": status,
            "usage": {"promptTokens": tokens("prompt_tokens"), "completionTokens": tokens("completion_tokens"),
                "requests": i64::from(status == "success")}, "costUsd": "0.001"}})
}

/// The limiter's meters are kept with the start of their period, in digits alone, as their epoch; Kong's with its node id.
async fn epochs_are_starts_of_periods(stage: &Stage, tenant: TenantId) {
    let mut database = stage.database(tenant).await;
    let series = database.words("SELECT source, series, epoch FROM gateway_series ORDER BY source, series").await;
    assert!(series.iter().any(|row| row[0] == "limiter") && series.iter().any(|row| row[0] == "metrics"), "{series:?}");
    for row in series {
        let digits = row[2].bytes().all(|letter| letter.is_ascii_digit());
        assert_eq!(digits, row[0] == "limiter", "{row:?}");
    }
}
