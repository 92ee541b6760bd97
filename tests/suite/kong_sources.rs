//! Kong's counts through the real binary: two nodes that are scraped, a limiter's Redis that is polled, the log; a Kong that
//! hangs; and whoever tries a token that is not Kong's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use platform_api::intake::kong::limiter_key::{LimiterKey, Period};
use poem::listener::{Listener, TcpListener};
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::Answer;
use crate::harness::daemon::project;
use crate::harness::database::Database;
use crate::harness::events::now;
use crate::harness::servers::Server;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both, services};

const LOGS: &str = "/v1/gateway/kong/logs";
const TOKEN: &str = "kong-ingest-token-0123456789";
const JSON: (&str, &str) = ("content-type", "application/json");
const ACME: &str = "11111111-1111-4111-8111-111111111111";
const GLOBEX: &str = "22222222-2222-4222-8222-222222222222";
const INITECH: &str = "33333333-3333-4333-8333-333333333333";
/// The node of the captured exposition, and the one that took its place.
const NODE_ID: &str = "c2dd420e-004d-432a-9204-34e2a68ef0b5";
/// A meter that moves is told when a window ends.
const WINDOW: &str = "RECONCILE__WINDOW_MS";
const METERED: &str = "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM gateway_meter WHERE source = 'metrics'";

fn fixture(name: &str) -> String {
    let path = project().join("tests/fixtures/kong").join(name);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A node of Kong, as far as its Status API goes: what it says can be changed, and it can hang.
#[derive(Clone)]
struct Node {
    port: u16,
    says: Arc<Mutex<Option<String>>>,
    asked: Arc<Mutex<usize>>,
}

impl Node {
    async fn start(says: String) -> Node {
        let node = Node { port: services::free_port(), says: Arc::new(Mutex::new(Some(says))), asked: Arc::default() };
        let ours = node.clone();
        let endpoint = poem::endpoint::make(move |_request: poem::Request| {
            let node = ours.clone();
            async move {
                *node.asked.lock().unwrap() += 1;
                let says = node.says.lock().unwrap().clone();
                match says {
                    Some(text) => Ok::<_, poem::Error>(text),
                    None => std::future::pending().await,
                }
            }
        });
        let acceptor = TcpListener::bind(("127.0.0.1", node.port)).into_acceptor().await.expect("a free port");
        tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(endpoint));
        node
    }

    fn says(&self, text: String) {
        *self.says.lock().unwrap() = Some(text);
    }

    fn hangs(&self) {
        *self.says.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }

    fn section(&self, name: &str) -> String {
        format!("[[gateway.kong.metrics.nodes]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:{}/metrics\"\n", self.port)
    }
}

/// The captured exposition of a node with this id, in which Acme made so many more calls.
fn captured(node_id: &str, more: i64) -> String {
    let route = "route=\"ai-chat\",code=\"200\",source=\"service\",workspace=\"default\",consumer=\"tenant-acme\"} ";
    let text = fixture("metrics-3.9.1.prom").replace(NODE_ID, node_id);
    assert!(text.contains(&format!("{route}3\n")), "the capture has changed");
    text.replace(&format!("{route}3\n"), &format!("{route}{}\n", 3 + more))
}

async fn acme(daemon: &Daemon) -> Tenant {
    daemon
        .onboard_as(json!({"externalIds": [{"source": "kong", "kind": "username", "id": "tenant-acme"}]}), "Acme")
        .await
}

async fn health_of(daemon: &Daemon, source: &str, standing: &str) -> String {
    eventually(&format!("{source} to be {standing}"), || async {
        let health = daemon.platform.anonymous().get("/health").await;
        let found = &health.body["dependencies"][source];
        (found["status"] == standing).then(|| found["detail"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

/// Waits until the tenant's books say so.
async fn becomes(daemon: &Daemon, tenant: &Tenant, sql: &'static str, expected: &[Vec<i64>]) {
    let mut database = Database::of_tenant(daemon, &tenant.id).await;
    let mut last = Vec::new();
    for _ in 0..2_400 {
        last = database.numbers(sql).await;
        if last == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{sql}: {last:?}, and not {expected:?}");
}

async fn metered(daemon: &Daemon, tenant: &Tenant) -> i64 {
    Database::of_tenant(daemon, &tenant.id).await.number(METERED).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_are_scraped_and_each_counts_by_itself() {
    on_both(|engine| async move {
        let (one, two) = (Node::start(captured(NODE_ID, 0)).await, Node::start(captured("node-two", 0)).await);
        let nodes = [one.section("one"), two.section("two")].concat();
        let setup = Setup::on(engine)
            .with_section(&nodes)
            .with("GATEWAY__KONG__METRICS__SCRAPE_MS", 1_000)
            .with(WINDOW, 60_000);
        let daemon = setup.start().await;
        let (acme, stranger) = (acme(&daemon).await, daemon.onboard("Stranger").await);
        let series = "SELECT value FROM gateway_series WHERE source = 'metrics' ORDER BY series";
        // Nine calls in each, before anybody looked: where a meter stands, and nothing that it has counted.
        becomes(&daemon, &acme, series, &[vec![9], vec![9]]).await;
        becomes(&daemon, &acme, METERED, &[vec![0]]).await;
        one.says(captured(NODE_ID, 4));
        two.says(captured("node-two", 2));
        becomes(&daemon, &acme, series, &[vec![13], vec![11]]).await;
        becomes(&daemon, &acme, METERED, &[vec![6]]).await;
        // One is started again, as it was captured, and then counts anew.
        one.says(fixture("metrics-3.9.1-after-restart.prom"));
        let restarted = "SELECT COUNT(*) FROM gateway_interruption WHERE source = 'metrics' \
                         AND reason = 'gatewayRestarted'";
        becomes(&daemon, &acme, restarted, &[vec![1]]).await;
        one.says(captured("fc48322f-d236-4714-9e8c-454f62d0829f", 1));
        becomes(&daemon, &acme, METERED, &[vec![16]]).await;

        let detail = health_of(&daemon, "kong-metrics", "up").await;
        assert_eq!(detail, "proof: cumulative");
        let mut others = Database::of_tenant(&daemon, &stranger.id).await;
        assert_eq!(others.number("SELECT COUNT(*) FROM gateway_series").await, 0);
    })
    .await;
}

/// Each is named with the proof that it would make available, and with what is missing for it.
#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_not_configured_say_which_setting_is_missing() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let health = daemon.platform.anonymous().get("/health").await;
        assert_eq!(health.body["status"], "up", "{}", health.text);
        let log = daemon.log();
        for (source, proof, setting) in [
            ("kong-limiter", "attempts", "gateway.kong.redis.url"),
            ("kong-metrics", "cumulative", "gateway.kong.metrics.nodes"),
            ("kong-log", "requests", "gateway.kong.access_log.token"),
        ] {
            let found = &health.body["dependencies"][source];
            let detail = found["detail"].as_str().unwrap_or_default();
            assert_eq!(found["status"], "off", "{source}: {}", health.text);
            assert!(detail.contains(proof) && detail.contains(setting), "{source}: {detail}");
            assert!(log.contains(source) && log.contains(setting), "{source} at the start: {log}");
        }
    })
    .await;
}

/// Nothing waits for it: not the events of its tenants, not the questions of gateways, not the other node.
#[tokio::test(flavor = "multi_thread")]
async fn a_kong_that_hangs_slows_nothing() {
    on_both(|engine| async move {
        let (one, two) = (Node::start(captured(NODE_ID, 0)).await, Node::start(captured("node-two", 0)).await);
        let mut redis = Server::redis().await;
        let nodes = [one.section("one"), two.section("two")].concat();
        let setup = Setup::on(engine)
            .with_section(&nodes)
            .with("GATEWAY__KONG__METRICS__SCRAPE_MS", 1_000)
            .with(WINDOW, 60_000);
        let setup =
            setup.with("GATEWAY__KONG__REDIS__URL", redis.url("redis")).with("GATEWAY__KONG__REDIS__POLL_MS", 1_000);
        let daemon = setup.start().await;
        let acme = acme(&daemon).await;
        health_of(&daemon, "kong-metrics", "up").await;
        redis.freeze().await;
        two.hangs();
        let before = two.asked();
        eventually("somebody to hang on it", || async { (two.asked() > before).then_some(()) }).await;
        // While it is being waited for, everything else happens.
        for round in 1..=20 {
            assert_eq!(acme.post_events(&[acme.event()]).await.accepted, 1);
            assert_eq!(acme.decision("").await["decision"], "allow");
            one.says(captured(NODE_ID, round));
        }
        becomes(&daemon, &acme, METERED, &[vec![20]]).await;
        let detail = health_of(&daemon, "kong-metrics", "degraded").await;
        assert!(detail.contains("two: it does not answer in time"), "{detail}");
        health_of(&daemon, "kong-limiter", "down").await;
        eventually("it to be ready", || async {
            (daemon.platform.anonymous().get("/health/ready").await.status == 200).then_some(())
        })
        .await;
        // It comes back, and the time in between is a gap; what comes after it is counted.
        redis.thaw().await;
        two.says(captured("node-two", 5));
        let series = "SELECT value FROM gateway_series WHERE source = 'metrics' AND series LIKE 'two/%'";
        becomes(&daemon, &acme, series, &[vec![14]]).await;
        // At least once; the windows that end meanwhile are marked, too.
        let gap = "SELECT CAST(CASE WHEN COUNT(*) > 0 THEN 1 ELSE 0 END AS BIGINT) FROM gateway_interruption \
                   WHERE source = 'metrics' AND reason = 'gap'";
        becomes(&daemon, &acme, gap, &[vec![1]]).await;
        let before = metered(&daemon, &acme).await;
        two.says(captured("node-two", 6));
        becomes(&daemon, &acme, METERED, &[vec![before + 1]]).await;
        redis.kill().await;
    })
    .await;
}

async fn connected(redis: &Server) -> MultiplexedConnection {
    services::redis_at(&redis.url("redis")).await
}

/// The captured name, in the period that is now.
fn current(name: &str) -> (String, i64) {
    let key = LimiterKey::parse(name).unwrap_or_else(|| panic!("{name}"));
    let kept = key.period.kept_micros();
    let start = now().0 / kept * kept / 1_000;
    let LimiterKey { route, service, identifier, period, .. } = key;
    (format!("ratelimit:{route}:{service}:{identifier}:{start}:{}", period.name()), kept / 1_000)
}

/// The names of the last captured poll that count by days.
fn captured_days() -> Vec<String> {
    let table = fixture("redis-ratelimit-windows.tsv");
    let names = table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split('\t').nth(1));
    let days = names.filter(|name| LimiterKey::parse(name).is_some_and(|key| key.period == Period::Day));
    let mut days: Vec<String> = days.map(str::to_owned).collect();
    days.sort();
    days.dedup();
    days
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limiter_s_counters_are_read_and_never_written() {
    on_both(|engine| async move {
        let redis = Server::redis().await;
        let mut connection = connected(&redis).await;
        let setup = Setup::on(engine).with("GATEWAY__KONG__REDIS__URL", redis.url("redis"));
        let daemon = setup.with("GATEWAY__KONG__REDIS__POLL_MS", 1_000).with(WINDOW, 60_000).start().await;
        let id = |id: &str| json!({"externalIds": [{"source": "kong", "kind": "customId", "id": id}]});
        let initech = daemon.onboard_as(id(INITECH), "Initech").await;
        let stranger = daemon.onboard("Stranger").await;
        // A pass must have seen that there is nothing before what appears counts from zero.
        let detail = health_of(&daemon, "kong-limiter", "degraded").await;
        assert!(detail.contains("proof: attempts"), "{detail}");
        let names = captured_days();
        assert!(names.iter().any(|name| name.contains(INITECH)), "{names:?}");
        let (name, kept_ms) = current(names.iter().find(|name| name.contains(INITECH)).unwrap());
        let put = async |connection: &mut MultiplexedConnection, value: i64, ttl_ms: i64| {
            let mut set = redis::cmd("SET");
            set.arg(&name).arg(value).arg("PX").arg(ttl_ms).query_async::<()>(connection).await.unwrap();
        };
        put(&mut connection, 3, kept_ms).await;
        let series = "SELECT value FROM gateway_series WHERE source = 'limiter'";
        becomes(&daemon, &initech, series, &[vec![3]]).await;
        put(&mut connection, 8, kept_ms).await;
        becomes(&daemon, &initech, series, &[vec![8]]).await;
        let metered = "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM gateway_meter WHERE source = 'limiter'";
        becomes(&daemon, &initech, metered, &[vec![8]]).await;
        // It falls: somebody has emptied it.
        put(&mut connection, 1, kept_ms).await;
        let reset = "SELECT CAST(CASE WHEN COUNT(*) > 0 THEN 1 ELSE 0 END AS BIGINT) FROM gateway_interruption \
                     WHERE source = 'limiter' AND reason = 'limiterReset'";
        becomes(&daemon, &initech, reset, &[vec![1]]).await;
        let mut others = Database::of_tenant(&daemon, &stranger.id).await;
        assert_eq!(others.number("SELECT COUNT(*) FROM gateway_series").await, 0);

        let said: String = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
        let ours =
            ["scan", "mget", "pttl", "info", "client|setinfo", "client|setname", "hello", "ping", "set", "select"];
        for line in said.lines().filter_map(|line| line.strip_prefix("cmdstat_")) {
            let command = line.split(':').next().unwrap_or_default();
            assert!(ours.contains(&command), "{line}");
            // The test's own three.
            assert!(command != "set" || line.contains("calls=3,"), "{line}");
        }
    })
    .await;
}

async fn posted(daemon: &Daemon, token: &str, body: Vec<u8>) -> Answer {
    daemon.platform.anonymous().raw(Method::POST, LOGS, &[JSON, ("x-ingest-token", token)], body).await
}

async fn the_captured_tenants(daemon: &Daemon) -> (Tenant, Tenant) {
    let id = |id: &str| json!({"externalIds": [{"source": "kong", "kind": "customId", "id": id}]});
    (daemon.onboard_as(id(ACME), "Acme").await, daemon.onboard_as(id(GLOBEX), "Globex").await)
}

/// A consumer that names another tenant in its header: both are told, and the named one only that there was a request.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_claims_another_tenant_stands_in_both_books() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        for accepted in [1, 0] {
            let answer = posted(&daemon, TOKEN, fixture("http-log-single.json").into_bytes()).await.ok();
            assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(accepted), &json!(1 - accepted)));
        }
        // Flags: claimed 1, by the gateway 2, authenticated 4, limited 8, claims another 16.
        let columns = "SELECT flags, duration, status, started_at FROM gateway_request";
        for (tenant, flags) in [(&acme, 4 + 8 + 16), (&globex, 1)] {
            let mut database = Database::of_tenant(&daemon, &tenant.id).await;
            let row = vec![flags, 3_000, 200, 1_795_221_352_994_000];
            assert_eq!(database.numbers(columns).await, [row], "{}", tenant.id);
        }
        let mut database = Database::of_tenant(&daemon, &globex.id).await;
        assert_eq!(database.words("SELECT route FROM gateway_request").await, [[""]]);
    })
    .await;
}

/// A record that no store takes is named, and keeps none of its neighbours away.
#[tokio::test(flavor = "multi_thread")]
async fn no_record_makes_kong_come_back_for_ever() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).start().await;
        let (acme, _globex) = the_captured_tenants(&daemon).await;
        let single: Value = serde_json::from_str(&fixture("http-log-single.json")).unwrap();
        let with = |id: &str, change: &dyn Fn(&mut Value)| {
            let mut record = single.clone();
            record["request"]["id"] = json!(id);
            change(&mut record);
            record.to_string()
        };
        let (long, nul) = ("é\n".repeat(5_000), "a\0b");
        let kept = [
            with("kept-1", &|record| record["route"]["name"] = json!(nul)),
            with("kept-2", &|record| record["route"]["name"] = json!(long)),
            with("kept-3", &|record| record["response"]["headers"]["x-litellm-call-id"] = json!([nul, nul])),
            with("kept-4", &|record| record["response"]["headers"]["x-litellm-call-id"] = json!(long)),
            with("kept-5", &|record| record["request"]["headers"]["x-tenant-id"] = json!(nul)),
            with("kept-6", &|record| record["latencies"]["request"] = json!(1e300)),
            with("kept-7", &|record| record["route"]["name"] = json!("HALF")).replace("HALF", "\\ud800"),
            with("kept-8", &|record| {
                record["ai"] = json!({"proxy": {"usage": {"prompt_tokens": i64::MAX, "cost": 1e300}}})
            }),
            with("kept-9", &|record| record["started_at"] = json!(0)),
            with("kept-10", &|record| record["started_at"] = json!(253_402_300_799_999_i64)),
        ];
        let rejected = [
            with(nul, &|_| {}),
            with("line\nbreak", &|_| {}),
            with(&"x".repeat(257), &|_| {}),
            with("status", &|record| record["response"]["status"] = json!(1_000_000)),
            with("early", &|record| record["started_at"] = json!(-1)),
            with("late", &|record| record["started_at"] = json!(i64::MAX)),
        ];
        let all = [kept.as_slice(), &rejected].concat();
        let body = format!("[{}]", all.join(","));
        let answer = posted(&daemon, TOKEN, body.clone().into_bytes()).await.ok();
        let named: Vec<usize> = (answer["rejected"].as_array().unwrap().iter())
            .map(|one| usize::try_from(one["index"].as_u64().unwrap()).unwrap())
            .collect();
        assert_eq!(named, (kept.len()..all.len()).collect::<Vec<_>>(), "{answer}");
        assert_eq!(answer["accepted"], kept.len(), "{answer}");
        let again = posted(&daemon, TOKEN, body.into_bytes()).await.ok();
        assert_eq!((&again["accepted"], &again["duplicates"]), (&json!(0), &json!(kept.len())));
        let mut database = Database::of_tenant(&daemon, &acme.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM gateway_request").await, kept.len() as i64);
        // The tenant is well: it counts, and answers.
        assert_eq!(acme.post_events(&[acme.event()]).await.accepted, 1);
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        let counted = "platform_api_kong_log_records_total{outcome=\"rejected\"} 12";
        assert!(metrics.contains(counted), "each of them is counted");
    })
    .await;
}

/// Somebody holds the row that every commit of the tenant needs.
#[tokio::test(flavor = "multi_thread")]
async fn kong_is_asked_to_come_back_to_a_tenant_that_starts_or_is_saturated() {
    let setup =
        Setup::on(Engine::Postgres).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).with("INTAKE__PATIENCE_MS", 50);
    let setup = setup.with("TENANTS__PERMITS_EVENTS", 1).with("TENANTS__COMMIT_EVENTS_MAX", 1);
    let mut daemon = setup.start().await;
    let (acme, globex) = the_captured_tenants(&daemon).await;
    let single: Value = serde_json::from_str(&fixture("http-log-single.json")).unwrap();
    let record = |id: &str| {
        let mut record = single.clone();
        record["request"]["id"] = json!(id);
        record["request"]["headers"]["x-tenant-id"] = json!(ACME);
        record.to_string().into_bytes()
    };
    posted(&daemon, TOKEN, record("first")).await.ok();
    daemon.kill().await;
    let mut holder = Database::of_tenant(&daemon, &acme.id).await;
    holder.script("BEGIN; SELECT 1 FROM books FOR UPDATE".into()).await.expect("the lock");
    daemon.restart().await;
    let asked_back = |answer: &Answer, code: &str| {
        answer.refused(503, code);
        assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{}", answer.text);
    };
    let headers = [JSON, ("x-ingest-token", TOKEN)];
    let second = daemon.platform.anonymous().once(Method::POST, LOGS, &headers, record("second")).await;
    asked_back(&second, "TENANT_STARTING");
    // Nobody else waits for it.
    assert_eq!(globex.post_events(&[globex.event()]).await.accepted, 1);
    holder.script("ROLLBACK".into()).await.expect("the lock is ours");
    let taken = async |id: &'static str| {
        eventually("the record to be taken", || async {
            let answer = posted(&daemon, TOKEN, record(id)).await;
            (answer.status == 200).then_some(answer)
        })
        .await
    };
    taken("second").await;

    holder.script("BEGIN; SELECT 1 FROM books FOR UPDATE".into()).await.expect("the lock");
    // Whichever takes the only place waits for the lock; the other is refused.
    let until_refused = async |id: &'static str| {
        eventually("a tenant that is saturated", || async {
            let answer = posted(&daemon, TOKEN, record(id)).await;
            (answer.code() == "TENANT_SATURATED").then_some(answer)
        })
        .await
    };
    let refused = tokio::select! {
        refused = until_refused("third") => refused,
        refused = until_refused("fourth") => refused,
    };
    holder.script("ROLLBACK".into()).await.expect("the lock is ours");
    asked_back(&refused, "TENANT_SATURATED");
    taken("third").await;
    taken("fourth").await;
    let mut database = Database::of_tenant(&daemon, &acme.id).await;
    assert_eq!(database.number("SELECT COUNT(*) FROM gateway_request").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_kong_s_token_are_slowed_down_and_kong_is_not() {
    on_both(|engine| async move {
        let setup = Setup::on(engine).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN);
        let daemon = setup.with("AUTH__FAILURES_PER_SOURCE_MAX", 3).start().await;
        let (acme, _) = the_captured_tenants(&daemon).await;
        let body = || fixture("http-log-single.json").into_bytes();
        for guess in 0..3 {
            posted(&daemon, &format!("guess-{guess}"), body()).await.refused(401, "INVALID_CREDENTIALS");
        }
        let slowed = posted(&daemon, "guess-3", body()).await;
        slowed.refused(429, "TOO_MANY_FAILURES");
        assert!(!slowed.header("retry-after").is_empty());
        // Other wrong credentials from there count with them.
        let wrong = acme.api.with("pak_live_nobody").get(&format!("/v1/quotas/{}", acme.id)).await;
        wrong.refused(429, "TOO_MANY_FAILURES");
        // Kong's own token, from the same address, is taken as ever.
        posted(&daemon, TOKEN, body()).await.ok();
        assert!(!daemon.log().contains("guess-"), "a guess may be a secret with a typo");
    })
    .await;
}
