//! Running it: health, metrics, logs, configuration, stopping.

use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::api::Api;
use crate::harness::bus::Bus;
use crate::harness::daemon::{BOOTSTRAP_KEY, PEPPER, clean_environment, project};
use crate::harness::database::Database;
use crate::harness::events::{Envelope, token_quota};
use crate::harness::receiver::{Receiver, SECRET};
use crate::harness::tenant::Receipt;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both, services};

#[tokio::test(flavor = "multi_thread")]
async fn health_names_every_dependency() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with_nats().with_redis().start().await;
        let api = daemon.platform.anonymous();
        let health = eventually("everything to be up", || async {
            let health = api.get("/health").await;
            (health.body["status"] == "up").then_some(health.body)
        })
        .await;
        for (name, dependency) in health["dependencies"].as_object().unwrap() {
            assert!(["up", "off"].contains(&dependency["status"].as_str().unwrap()), "{name}: {dependency}");
        }
        for name in ["nats", "redis"] {
            assert_eq!(health["dependencies"][name]["status"], "up", "{health}");
        }
        assert_eq!(api.get("/health/live").await.status, 200);
        eventually("it to be ready", || async { (api.get("/health/ready").await.status == 200).then_some(()) }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_the_rest_goes_on() {
    let nobody = format!("nats://127.0.0.1:{}", services::free_port());
    let daemon = Setup::on(Engine::Sqlite).with("NATS__URL", nobody).start().await;
    let tenant = daemon.onboard("Acme").await;
    assert_eq!(tenant.post_events(&[tenant.event()]).await, Receipt::accepted(1));
    let health = eventually("health to notice", || async {
        let health = daemon.platform.anonymous().get("/health").await.body;
        (health["dependencies"]["nats"]["status"] == "down").then_some(health)
    })
    .await;
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(daemon.platform.anonymous().get("/health/live").await.status, 200);
}

/// Everything that happens is in the metrics, in a form that Prometheus' own checker likes.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_please_promtool_and_tell_what_happened() {
    let receiver = Receiver::start().await;
    let daemon =
        Setup::on(Engine::Sqlite).with_nats().with_redis().with_section(&receiver.channel("pager")).start().await;
    let bus = daemon.bus().await;
    let tenant = daemon.onboard("Acme").await;
    tenant.put_quotas(json!([token_quota(10, "month")])).await;
    tenant.post_events(&[tenant.event(), tenant.event()]).await;
    bus.publish(&tenant.event().json()).await;
    bus.publish_bytes(&bus.subject, b"poison".to_vec()).await;
    daemon.drained(&bus).await;
    tenant.decision("").await;
    daemon.platform.anonymous().get(&format!("/v1/quotas/{}", tenant.id)).await;
    eventually("the alerts", || async { (receiver.received().len() >= 3).then_some(()) }).await;

    let metrics = daemon.platform.anonymous().get("/metrics").await;
    assert_eq!(metrics.status, 200);
    let text = metrics.text;
    for name in ["platform_api_commits_total", "platform_api_commit_seconds", "platform_api_audit_records_total"] {
        assert!(text.contains(name), "{name} is missing");
    }
    assert!(!text.contains(tenant.api.credential()), "a key is in the metrics");
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(line.starts_with("platform_api_"), "{line}");
    }
    promtool(&text).await;
}

async fn promtool(text: &str) {
    let mut command = Command::new(services::binary("TEST_PROMTOOL_BIN", "promtool"));
    let command =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is installed: tests/run installs it");
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && told.is_empty(), "{}", String::from_utf8_lossy(&told));
}

/// SIGTERM in the middle of work: what was answered is there, what was not is sent again, and nothing is redelivered.
#[tokio::test(flavor = "multi_thread")]
async fn asked_to_stop_it_finishes_what_it_began_and_loses_nothing() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).with_nats().start().await;
        let bus = daemon.bus().await;
        let tenant = daemon.onboard("Acme").await;
        for round in 0..3 {
            let publisher = tokio::spawn(publish_on_and_on(bus.clone(), tenant.clone()));
            let senders: Vec<_> = (0..4).map(|_| tokio::spawn(post_until_refused(tenant.clone()))).collect();
            tokio::time::sleep(std::time::Duration::from_millis(60 + 90 * round)).await;
            daemon.terminate().await;
            let mut answered = Vec::new();
            for sender in senders {
                answered.extend(sender.await.unwrap());
            }
            let mut database = Database::of_tenant(&daemon, &tenant.id).await;
            let known = database.words("SELECT event_id FROM usage_ledger").await.concat();
            let lost: Vec<&String> = answered.iter().filter(|id| !known.contains(id)).collect();
            assert!(lost.is_empty(), "answered with 200 and not in the ledger: {lost:?}");
            drop(database);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            publisher.abort();
            daemon.restart().await;
            daemon.drained(&bus).await;
            nothing_came_again(&daemon, &bus).await;
        }
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}

/// C11: what was in its hands was committed and acknowledged before it left, so that nothing was delivered or counted
/// twice. It may run out of time on a machine that has none, and says so.
async fn nothing_came_again(daemon: &Daemon, bus: &Bus) {
    let ran_out_of_time = ["it comes again", "some messages may come again", "some messages are read again"];
    if ran_out_of_time.iter().any(|words| daemon.log().contains(words)) {
        return;
    }
    let stream = bus.jetstream.get_stream(&bus.stream).await.expect("the stream is there");
    let consumer = stream.consumer_info(&bus.consumer).await.expect("its consumer is there");
    assert_eq!((consumer.num_redelivered, consumer.num_ack_pending), (0, 0));
    let metrics = daemon.platform.anonymous().get("/metrics").await.text;
    let of_nats = |outcome: &str| -> u64 {
        let counters = metrics.lines().filter(|line| line.starts_with("platform_api_usage_events_total{"));
        let labels = [format!("outcome=\"{outcome}\""), "door=\"nats\"".to_owned()];
        let counters = counters.filter(|line| labels.iter().all(|label| line.contains(label)));
        counters
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(_, count)| count.parse::<u64>().expect("a number"))
            .sum()
    };
    assert!(of_nats("accepted") > 0, "what was published while nobody listened");
    assert_eq!(of_nats("duplicate"), 0);
}

/// Events that flow whether or not anybody listens.
async fn publish_on_and_on(bus: Bus, tenant: Tenant) {
    loop {
        bus.publish(&tenant.event().json()).await;
    }
}

/// The ids of every event whose 200 arrived before the daemon was gone.
async fn post_until_refused(tenant: Tenant) -> Vec<String> {
    let mut answered = Vec::new();
    loop {
        let events: Vec<Envelope> = (0..20).map(|_| tenant.event()).collect();
        let body = Value::Array(events.iter().map(Envelope::json).collect()).to_string().into_bytes();
        let headers = [("content-type", "application/json")];
        match tenant.api.try_raw(Method::POST, "/v1/usage/events", &headers, body).await {
            Ok(answer) if answer.status == 200 => answered.extend(events.into_iter().map(|event| event.event_id)),
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.text);
                return answered;
            }
            Err(_) => return answered,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_configuration_is_told_at_once_and_no_secret_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    let toml = "[http]\nlisten = \"nowhere\"\n[store]\nurl = \"oracle://scott:tiger-secret@db/x\"\n\
                [auth]\nbootstrap_key = \"short-secret\"\n[telemetry]\nlog_format = \"xml\"\n\
                [[notify.channels]]\ntype = \"webhook\"\nname = \"a b\"\nurl = \"ftp://x\"\nsecret = \"whsec_hidden-secret\"\n";
    std::fs::write(&file, toml).unwrap();
    for command in ["check-config", "serve"] {
        let mut binary = Command::new(crate::harness::daemon::BINARY);
        clean_environment(&mut binary);
        let output = binary
            .current_dir(folder.path())
            .args([command, "--config", file.to_str().unwrap()])
            .output()
            .await
            .unwrap();
        assert!(!output.status.success(), "{command}");
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        for fault in ["http.listen", "store.url", "auth.bootstrap_key", "telemetry.log_format", "notify.channels[0]"] {
            assert!(told.contains(fault), "{command}: {fault} is not in {told}");
        }
        for secret in ["tiger-secret", "short-secret", "hidden-secret"] {
            assert!(!told.contains(secret), "{command} tells a secret: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_configuration_is_good_and_an_unknown_key_is_not() {
    let daemon = Daemon::prepare(Setup::on(Engine::Sqlite)).await;
    let config = daemon.config_file();
    let config = config.to_str().unwrap();
    let good = daemon.run(&["check-config", "--config", config]).await;
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let shown = String::from_utf8_lossy(&[good.stdout, good.stderr].concat()).into_owned();
    assert!(!shown.contains(BOOTSTRAP_KEY) && !shown.contains(PEPPER), "{shown}");
    let mut text = std::fs::read_to_string(config).unwrap();
    text.push_str("[tenants_]\nopen_max = 3\n");
    std::fs::write(config, text).unwrap();
    let bad = daemon.run(&["check-config", "--config", config]).await;
    assert!(!bad.status.success());
    assert!(String::from_utf8_lossy(&[bad.stdout, bad.stderr].concat()).contains("tenants_"));
}

/// S1: after everything has been used, and some of it wrongly, no secret is in a log, a file or an answer.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_log_metric_or_database() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        receiver.will_answer(&[500, 500]);
        let mut daemon = Setup::on(engine).with_nats().with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        let (_, reader) = tenant.issue_key("reader").await;
        reader.put(&format!("/v1/quotas/{}", tenant.id), &json!({})).await;
        let mistyped = format!("{}x", tenant.api.credential());
        daemon.platform.with(&mistyped).get("/v1/audit").await;
        daemon.platform.with("eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.").get("/v1/audit").await;
        tenant.put_quotas(json!([token_quota(10, "month")])).await;
        tenant.post_events(&[tenant.event()]).await;
        daemon.kill().await;
        daemon.restart().await;
        eventually("the alerts", || async { (receiver.received().len() >= 5).then_some(()) }).await;
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        daemon.terminate().await;

        let secrets = [
            tenant.api.credential(),
            reader.credential(),
            BOOTSTRAP_KEY,
            PEPPER,
            SECRET,
            SECRET.trim_start_matches("whsec_"),
            "eyJzdWIiOiJjYW5hcnkifQ",
        ];
        let log = daemon.log();
        assert!(log.lines().count() > 5);
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} is in the log");
            assert!(!metrics.contains(secret), "{secret} is in the metrics");
        }
        for line in log.lines() {
            let entry: Result<Value, _> = serde_json::from_str(line);
            assert!(entry.is_ok_and(|entry| entry["level"].is_string()), "not a JSON line: {line}");
        }
        if engine == Engine::Sqlite {
            for file in files(&daemon.data()) {
                let bytes = std::fs::read(&file).unwrap();
                for secret in secrets {
                    let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                    assert!(!found, "{secret} is in {}", file.display());
                }
            }
        }
    })
    .await;
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_data_is_refused() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let other = format!("127.0.0.1:{}", services::free_port());
    let config = daemon.config_file();
    let mut command = daemon.command(&["serve", "--config", config.to_str().unwrap()]);
    command.env("PLATFORM_API__HTTP__LISTEN", other);
    let output = tokio::time::timeout(crate::harness::PATIENCE, command.output()).await.expect("it gives up").unwrap();
    assert!(!output.status.success());
    // The first one has not noticed.
    let tenant = daemon.onboard("Acme").await;
    assert_eq!(tenant.post_events(&[tenant.event()]).await, Receipt::accepted(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_prepares_what_serve_then_uses() {
    on_both(|engine| async move {
        let mut daemon = Daemon::prepare(Setup::on(engine)).await;
        let config = daemon.config_file();
        for _ in 0..2 {
            let output = daemon.run(&["migrate", "--config", config.to_str().unwrap()]).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        daemon.restart().await;
        let tenant = daemon.onboard("Acme").await;
        tenant.post_events(&[tenant.event()]).await;
        daemon.terminate().await;
        let output = daemon.run(&["migrate", "--config", config.to_str().unwrap()]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&tenant.id));
    })
    .await;
}

/// Tenants that nobody speaks to give their places to others, and come back when they are spoken to.
#[tokio::test(flavor = "multi_thread")]
async fn more_tenants_than_places_are_all_served() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("TENANTS__OPEN_MAX", 3).with("TENANTS__IDLE_MS", 200).start().await;
        let mut tenants = Vec::new();
        for number in 0..7 {
            tenants.push(daemon.onboard(&format!("Tenant {number}")).await);
        }
        for _ in 0..2 {
            for tenant in &tenants {
                assert_eq!(tenant.post_events(&[tenant.event()]).await, Receipt::accepted(1));
            }
        }
        for tenant in &tenants {
            assert_eq!(tenant.ledger().await.len(), 2);
            Tenant::holds(&tenant.verify().await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_needs_no_internet() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let api: Api = daemon.platform.anonymous();
    let docs = api.get("/docs").await;
    assert_eq!(docs.status, 200);
    for attribute in ["src=\"http", "href=\"http", "src='http", "@import url(http"] {
        assert!(!docs.text.contains(attribute), "{attribute}");
    }
    let document = api.get("/openapi.json").await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["paths"].as_object().unwrap().len() > 15);
}

/// One command, a fresh machine: everything the product does, to see.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_runs_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(crate::harness::daemon::BINARY);
    clean_environment(&mut command);
    command.current_dir(folder.path()).args(["demo", "--exit"]).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), command.output());
    let output = output.await.expect("it ends").unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(project().join("README.md").exists());
    for word in ["alert", "deny", "chain"] {
        assert!(told.to_lowercase().contains(word), "{word} is not in {told}");
    }
}
