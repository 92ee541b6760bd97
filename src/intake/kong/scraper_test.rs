//! The scraper against texts that Kong has written, and against nodes that are asked.

use super::super::readings::tests::{Listeners, cadence};
use super::*;
use crate::domain::ids::TenantId;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const BEFORE: &str = include_str!("../../../tests/fixtures/kong/metrics-3.9.1.prom");
const AFTER: &str = include_str!("../../../tests/fixtures/kong/metrics-3.9.1-after-restart.prom");
const RECON: &str = include_str!("../../../tests/fixtures/kong/recon/metrics-scrapes.jsonl");
const ACME: TenantId = TenantId(Uuid::from_u128(1));
const GLOBEX: TenantId = TenantId(Uuid::from_u128(2));

fn listeners() -> Listeners {
    Listeners {
        names: vec![(USERNAME, "tenant-acme", ACME), (USERNAME, "tenant-globex", GLOBEX)],
        ..Listeners::default()
    }
}

fn text(node: &str, rows: &[(&str, &str, i64)]) -> Exposition {
    let mut text = format!("kong_node_info{{node_id=\"{node}\",version=\"3.9.1\"}} 1\n");
    for (consumer, route, count) in rows {
        text.push_str(&format!(
            "kong_http_requests_total{{service=\"s\",route=\"{route}\",code=\"200\",source=\"service\",consumer=\"{consumer}\"}} {count}\n"
        ));
    }
    exposition::read(&text)
}

fn second(second: i64) -> Timestamp {
    Timestamp(second * MICROS_PER_SECOND)
}

/// Looks at `expositions`, ten seconds apart; `None` is a look that failed.
async fn looked(expositions: &[Option<Exposition>]) -> Listeners {
    let listeners = listeners();
    let (mut watch, mut owed) = (Watch::new("a", second(0)), Owed::new(listeners.clone()));
    for (at, exposition) in (0..).zip(expositions) {
        match exposition {
            Some(exposition) => watch.look(exposition, second(at * 10), false, &cadence(), &mut owed),
            None => watch.miss(second(at * 10), &cadence(), &mut owed),
        }
        owed.settle().await;
    }
    watch.hand_over(&mut owed);
    owed.settle().await;
    listeners
}

fn values(listeners: &Listeners, tenant: TenantId) -> Vec<(i64, i64, bool)> {
    let heard = listeners.heard_by(tenant).readings;
    heard.iter().map(|reading| (reading.at.0 / MICROS_PER_SECOND, reading.value, reading.from_zero)).collect()
}

#[tokio::test]
async fn only_what_moved_is_told_and_what_appears_was_zero_before() {
    let one = |count| Some(text("n", &[("tenant-acme", "r", count), ("stranger", "r", 9)]));
    let both = Some(text("n", &[("tenant-acme", "r", 7), ("tenant-globex", "r", 2), ("tenant-globex", "q", 1)]));
    let listeners = looked(&[one(5), one(5), one(7), both]).await;
    // As it was last seen.
    assert_eq!(values(&listeners, ACME), [(0, 5, false), (30, 7, true)]);
    assert_eq!(values(&listeners, GLOBEX), [(30, 3, true)]);
    assert!(listeners.heard_by(ACME).interruptions.is_empty());
}

#[tokio::test]
async fn what_was_counted_before_it_was_anybody_s_is_not_new() {
    let one = |count| text("n", &[("tenant-late", "r", count)]);
    let mut listeners = listeners();
    let (mut watch, mut owed) = (Watch::new("a", second(0)), Owed::new(listeners.clone()));
    watch.look(&text("n", &[]), second(0), false, &cadence(), &mut owed);
    watch.look(&one(5), second(10), false, &cadence(), &mut owed);
    listeners.names.push((USERNAME, "tenant-late", ACME));
    let mut owed = Owed::new(listeners.clone());
    watch.look(&one(6), second(20), false, &cadence(), &mut owed);
    watch.look(&one(8), second(30), false, &cadence(), &mut owed);
    watch.hand_over(&mut owed);
    owed.settle().await;
    assert_eq!(values(&listeners, ACME), [(20, 6, false), (30, 8, true)]);
}

#[tokio::test]
async fn a_meter_that_stood_still_is_told_as_it_was_last_seen_before_it_moves() {
    let one = |count| Some(text("n", &[("tenant-acme", "r", count)]));
    let listeners = looked(&[one(5), one(5), one(5), one(5), one(5), one(6)]).await;
    assert_eq!(values(&listeners, ACME), [(0, 5, false), (40, 5, false), (50, 6, true)]);
}

#[tokio::test]
async fn another_node_id_is_another_epoch_even_for_those_who_did_not_call_since() {
    let before = Some(text("n", &[("tenant-acme", "r", 5), ("tenant-globex", "r", 4)]));
    let after = Some(text("m", &[("tenant-acme", "r", 6)]));
    let listeners = looked(&[before, after]).await;
    let heard = listeners.heard_by(ACME).readings;
    assert_eq!(heard.iter().map(|reading| reading.epoch.as_str()).collect::<Vec<_>>(), ["n", "m"]);
    assert_eq!(values(&listeners, ACME), [(0, 5, false), (10, 6, true)]);
    assert_eq!(values(&listeners, GLOBEX), [(0, 4, false), (10, 0, true)]);
}

#[tokio::test]
async fn a_lost_interval_a_fall_and_a_series_that_is_gone_are_marked() {
    let one = |count| Some(text("n", &[("tenant-acme", "r", count), ("tenant-acme", "q", 1)]));
    let gone = Some(text("n", &[("tenant-acme", "r", 9)]));
    let listeners = looked(&[one(5), None, None, one(6), one(2), gone]).await;
    let told = listeners.heard_by(ACME);
    let epochs: Vec<&str> = told.readings.iter().map(|reading| reading.epoch.as_str()).collect();
    assert_eq!(epochs, ["n", "n", "n/1", "n/1"]);
    assert_eq!(told.readings.last().map(|reading| reading.value), Some(10));
    let marked = |from, until| Interruption {
        source: Source::Metrics,
        from: second(from),
        until: second(until),
        reason: InterruptionReason::Gap,
    };
    assert_eq!(told.interruptions, [marked(0, 30), marked(40, 50)]);
}

#[tokio::test]
async fn a_node_that_is_away_is_marked_before_each_window_ends() {
    let one = |count| Some(text("n", &[("tenant-acme", "r", count)]));
    let mut looks = vec![one(5)];
    looks.extend((0..70).map(|_| None));
    looks.push(one(9));
    let told = looked(&looks).await.heard_by(ACME).interruptions;
    let seconds = |one: &Interruption| (one.from.0 / MICROS_PER_SECOND, one.until.0 / MICROS_PER_SECOND);
    let expected = [(0, 290), (0, 300), (0, 590), (0, 600), (0, 710)];
    assert_eq!(told.iter().map(seconds).collect::<Vec<_>>(), expected);
    assert!(told.iter().all(|one| (one.source, one.reason) == (Source::Metrics, InterruptionReason::Gap)));
}

/// Who looks for the first time knows of nobody; what nobody could hear is not nothing.
#[tokio::test]
async fn a_node_that_was_silent_from_our_start_on_is_marked_for_who_is_awake() {
    let listeners = listeners();
    *listeners.awake.lock().unwrap() = vec![(ACME, Vec::new())];
    let begin = second(3_600);
    let (mut watch, mut owed) = (Watch::new("a", begin), Owed::new(listeners.clone()));
    watch.miss(begin, &cadence(), &mut owed);
    watch.before = Before::Read(Some(Seen { node: [1; 32], at: second(3_000) }));
    watch.miss(second(3_890), &cadence(), &mut owed);
    watch.look(&text("n", &[("tenant-acme", "r", 5)]), second(3_910), false, &cadence(), &mut owed);
    owed.settle().await;
    let told = listeners.heard_by(ACME).interruptions;
    let gaps: Vec<(i64, i64)> = (told.iter().filter(|one| one.reason == InterruptionReason::Gap))
        .map(|one| (one.from.0 / MICROS_PER_SECOND, one.until.0 / MICROS_PER_SECOND))
        .collect();
    // Three minutes before our start nobody had judged that window yet; then somebody had seen it.
    assert_eq!(gaps, [(3_300, 3_600), (3_000, 3_890), (3_000, 3_910)]);
    assert!(listeners.heard_by(GLOBEX).interruptions.is_empty());
}

#[tokio::test]
async fn every_tenant_that_is_awake_hears_of_a_restart_and_of_no_request_of_its_own() {
    let listeners = listeners();
    let (mut watch, mut owed) = (Watch::new("a", second(0)), Owed::new(listeners.clone()));
    let is_awake = |names: &[(TenantId, &str)]| {
        let named = names.iter().map(|(tenant, name)| (*tenant, Vec::from([(*name).to_owned()])));
        *listeners.awake.lock().unwrap() = named.collect();
    };
    let one = |node| text(node, &[("tenant-acme", "r", 5)]);
    is_awake(&[(GLOBEX, "tenant-globex")]);
    watch.look(&text("n", &[]), second(0), false, &cadence(), &mut owed);
    owed.settle().await;
    assert!(values(&listeners, GLOBEX).is_empty(), "as long as no consumer is named");
    watch.look(&one("n"), second(10), false, &cadence(), &mut owed);
    watch.look(&one("m"), second(20), false, &cadence(), &mut owed);
    owed.settle().await;
    assert_eq!(values(&listeners, GLOBEX), [(10, 0, true), (20, 0, true)]);
    let restarts = |tenant| {
        let heard = listeners.heard_by(tenant).interruptions;
        heard.iter().filter(|one| one.reason == InterruptionReason::GatewayRestarted).count()
    };
    assert_eq!((restarts(GLOBEX), restarts(ACME)), (1, 0));
    // One that wakes later is told, once; one that wakes much later is not.
    is_awake(&[(GLOBEX, "tenant-globex"), (ACME, "tenant-acme")]);
    for at in [30, 40] {
        watch.look(&one("m"), second(at), false, &cadence(), &mut owed);
        owed.settle().await;
    }
    assert_eq!((restarts(GLOBEX), restarts(ACME)), (1, 1));
    let late = TenantId(Uuid::from_u128(3));
    is_awake(&[(late, "nobody")]);
    watch.look(&one("m"), second(4_000), false, &cadence(), &mut owed);
    owed.settle().await;
    assert_eq!(restarts(late), 0);
}

/// A node that was started again while we were away: whoever is awake hears of that time, though none of its own counts says so.
#[tokio::test]
async fn a_restart_during_our_own_absence_is_told_once_to_whoever_is_awake() {
    let listeners = listeners();
    *listeners.awake.lock().unwrap() = vec![(GLOBEX, Vec::new())];
    let restarts = || {
        let heard = listeners.heard_by(GLOBEX).interruptions;
        heard.iter().filter(|one| one.reason == InterruptionReason::GatewayRestarted).count()
    };
    // Each round is a process of ours: it looks twice, and ends.
    for (round, (node, told)) in [("n", 0), ("n", 0), ("m", 1), ("m", 1)].into_iter().enumerate() {
        let body = format!("kong_node_info{{node_id=\"{node}\",version=\"3.9.1\"}} 1\n");
        let url = serve(vec![("200 OK", body.clone()), ("200 OK", body)]).await;
        let mut kong = config::Kong::default();
        kong.metrics.nodes = vec![config::KongNode { name: "one".into(), url }];
        let reconcile = config::Reconcile::default();
        let mut scraper = Scraper::new(&kong, &reconcile, Clock::system(), listeners.clone()).unwrap();
        if round == 2 {
            // What cannot be read at first is compared when it can be.
            *listeners.forgets.lock().unwrap() = true;
            scraper.look().await;
            assert_eq!(restarts(), 0);
            *listeners.forgets.lock().unwrap() = false;
        } else {
            scraper.look().await;
        }
        scraper.look().await;
        assert_eq!(restarts(), told, "round {round}");
    }
    let heard = listeners.heard_by(GLOBEX).interruptions;
    assert!(heard[0].source == Source::Metrics && heard[0].from < heard[0].until, "{heard:?}");
}

/// The captured run: everything that was counted up to the last look of each epoch arrives, and nothing else.
#[tokio::test]
async fn the_captured_run_adds_up() {
    let listeners = listeners();
    let (mut watch, mut owed) = (Watch::new("a", second(0)), Owed::new(listeners.clone()));
    let mut last: Vec<(Option<String>, i64)> = Vec::new();
    for line in RECON.lines() {
        let scrape: Value = serde_json::from_str(line).unwrap();
        let at = Timestamp((scrape["scrape_at"].as_f64().unwrap() * 1e6) as i64);
        let Some(lines) = scrape["lines"].as_array() else {
            watch.miss(at, &cadence(), &mut owed);
            continue;
        };
        let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
        let exposition = exposition::read(&lines.join("\n"));
        if exposition.node_id.is_none() {
            watch.miss(at, &cadence(), &mut owed);
            continue;
        }
        let acme: i64 = exposition.proxied.get("tenant-acme").map_or(0, |routes| routes.values().sum());
        match last.last_mut().filter(|(node, _)| *node == exposition.node_id) {
            Some((_, value)) => *value = acme,
            None => last.push((exposition.node_id.clone(), acme)),
        }
        watch.look(&exposition, at, false, &cadence(), &mut owed);
    }
    watch.hand_over(&mut owed);
    owed.settle().await;
    assert_eq!(last.len(), 2, "{last:?}");
    let told = listeners.heard_by(ACME).readings;
    let mut sum = 0;
    let mut known: HashMap<String, i64> = HashMap::new();
    for reading in told.iter().filter(|reading| reading.from_zero) {
        sum += reading.value - known.insert(reading.epoch.clone(), reading.value).unwrap_or(0);
    }
    assert_eq!(sum, last.iter().map(|(_, value)| value).sum::<i64>());
}

/// Answers each connection with the next of `bodies`.
async fn serve(bodies: Vec<(&'static str, String)>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for (head, body) in bodies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let length = body.len();
            let answer = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}/metrics")
}

#[tokio::test]
async fn real_nodes_are_asked_and_say_what_is_missing() {
    let bare = "kong_node_info{node_id=\"b\",version=\"3.9.1\"} 1\n".to_owned();
    let one = serve(vec![("200 OK", BEFORE.into()), ("200 OK", AFTER.into()), ("500 Oh", String::new())]).await;
    let two = serve(vec![("200 OK\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT", bare)]).await;
    let node = |name: &str, url: &str| config::KongNode { name: name.into(), url: url.into() };
    let mut kong = config::Kong::default();
    kong.metrics.nodes = vec![node("one", &one), node("two", &two)];
    let listeners = listeners();
    let mut scraper = Scraper::new(&kong, &config::Reconcile::default(), Clock::system(), listeners.clone()).unwrap();
    scraper.look().await;
    let health = scraper.health().borrow().clone();
    assert_eq!(health.standing, Standing::Degraded);
    for said in ["cumulative", "status_code_metrics", "two: its clock is off by"] {
        assert!(health.detail.contains(said), "{said}: {}", health.detail);
    }
    let first = listeners.heard_by(ACME).readings;
    assert_eq!(first.len(), 1, "{first:?}");
    scraper.look().await;
    let told = listeners.heard_by(ACME).readings;
    assert_eq!(told.last().unwrap().series, "one/tenant-acme");
    assert_ne!(told.last().unwrap().epoch, first[0].epoch);
    scraper.look().await;
    let health = scraper.health().borrow().clone();
    assert_eq!(health.standing, Standing::Down, "{}", health.detail);
}
