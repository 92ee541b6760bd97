//! Tenants as Kong's consumers, against an Admin API that answers as a real one was heard to.

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::harness::daemon::project;
use crate::harness::kong::{Kong, SECRET};
use crate::harness::{Daemon, Engine, Setup, eventually, on_both, services};

fn fixture(name: &str) -> String {
    std::fs::read_to_string(project().join("tests/fixtures/kong").join(name)).expect("a captured file")
}

async fn status(daemon: &Daemon) -> Value {
    daemon.platform.get("/v1/gateway/kong/sync").await.ok()
}

fn following(kong: &Kong, engine: Engine) -> Setup {
    Setup::on(engine)
        .with("GATEWAY__KONG__ADMIN__URLS", &kong.url)
        .with("GATEWAY__KONG__ADMIN__SYNC_INTERVAL_MS", 1_000)
}

async fn shift(daemon: &Daemon, tenant: &str, to: &str) {
    daemon.platform.post(&format!("/v1/tenants/{tenant}/{to}"), &json!({})).await.ok();
}

/// What the tests lean on answers as Kong 3.9.1 did: each captured request about consumers and groups, sent again.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_of_the_tests_answers_as_the_captured_one() {
    let kong = Kong::with_database().await;
    let transcript = fixture("admin-transcript.txt");
    let mut compared = 0;
    for exchange in transcript.split("\n### ").skip(1) {
        let (asked, answered) = exchange.split_once('\n').unwrap();
        let (body, code) = answered.split_once("\n-> HTTP ").unwrap();
        let (method, rest) = match asked.strip_prefix("-X") {
            Some(rest) => rest.split_once(' ').unwrap(),
            None => ("GET", asked),
        };
        let (target, data) = match rest.split_once(" -H content-type: application/json -d ") {
            Some((target, data)) => (target, serde_json::from_str(data).unwrap()),
            None => (rest, Value::Null),
        };
        let path = target.strip_prefix("$ADMIN").unwrap();
        if ["key-auth", "jwt", "plugins"].iter().any(|other| path.contains(other)) {
            continue;
        }
        let method: Method = method.parse().unwrap();
        let answer = Client::new().request(method, format!("{}{path}", kong.url)).json(&data).send().await.unwrap();
        assert_eq!(answer.status().as_u16().to_string(), code.trim(), "{asked}");
        let said: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default();
        let captured: Value = serde_json::from_str(body.trim()).unwrap_or_default();
        for field in ["username", "custom_id", "tags", "group", "code", "name", "next"] {
            assert_eq!(said[field], captured[field], "{asked}: {field}");
        }
        compared += 1;
    }
    assert!(compared >= 15, "{compared} exchanges");
    let refused = Client::new().put(format!("{}/consumers/x", Kong::without_database().await.url)).json(&json!({}));
    let refused = refused.send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.json::<Value>().await.unwrap()["code"].clone()), (405, json!(12)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_reaches_kong_and_says_how_long_it_took() {
    on_both(|engine| async move {
        let kong = Kong::with_database().await;
        for page in ["admin-consumers-page-first.json", "admin-consumers-page-last.json"] {
            kong.remember(&serde_json::from_str(&fixture(page)).unwrap());
        }
        let strangers = kong.consumers();
        let daemon = following(&kong, engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let consumer = eventually("Acme in Kong", || async { kong.consumer(&acme.id) }).await;
        assert_eq!((&consumer["custom_id"], &consumer["username"]), (&json!(acme.id), &acme.document["slug"]));
        assert_eq!(consumer["tags"], json!(["platform-api"]));
        eventually("Globex in Kong", || async { kong.consumer(&globex.id) }).await;

        shift(&daemon, &acme.id, "suspend").await;
        let told = eventually("the suspension in Kong", || async {
            let told = status(&daemon).await;
            (told["lastChange"]["change"] == "suspended").then_some(told)
        })
        .await;
        assert_eq!(kong.groups(&acme.id), ["suspended"]);
        assert_eq!(told["lastChange"]["tenantId"], json!(acme.id));
        assert!(told["lastChange"]["lagMs"].as_i64().is_some_and(|lag| lag >= 0), "{told}");
        assert_eq!(kong.groups(&globex.id), Vec::<String>::new());

        shift(&daemon, &acme.id, "reactivate").await;
        eventually("Acme again", || async { kong.groups(&acme.id).is_empty().then_some(()) }).await;
        shift(&daemon, &acme.id, "suspend").await;
        shift(&daemon, &acme.id, "archive").await;
        eventually("Acme gone", || async { kong.consumer(&acme.id).is_none().then_some(()) }).await;

        let told = eventually("a comparison of everything", || async {
            let told = status(&daemon).await;
            (told["consumers"] == 1).then_some(told)
        })
        .await;
        assert_eq!((&told["strangers"], &told["mode"]), (&json!(strangers), &json!("database")), "{told}");
        assert_eq!((&told["error"], &told["suspended"]), (&Value::Null, &json!(0)));
        assert_eq!(kong.consumers(), strangers + 1, "consumers of nobody we know stay");
        // What is as it should be is not written again.
        let (puts, lists) = (kong.asked("PUT"), kong.asked("GET /acls"));
        eventually("two more comparisons", || async { (kong.asked("GET /acls") > lists + 1).then_some(()) }).await;
        assert_eq!(kong.asked("PUT"), puts);
        assert!(kong.asked("GET /consumers?offset=") > 0, "pages were followed");
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        assert!(metrics.contains("platform_api_kong_sync_lag_seconds_count"), "{metrics}");
        assert!(daemon.log().contains("a change of a tenant has reached Kong"));
        assert!(!daemon.log().contains(SECRET), "an answer of Kong is in the log");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_made_is_kept_and_what_is_in_the_way_is_told() {
    let kong = Kong::with_database().await;
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let away = daemon.onboard("Initech").await;
    let client = Client::new();
    let put = async |path: String, body: Value| {
        assert!(client.put(format!("{}{path}", kong.url)).json(&body).send().await.unwrap().status().is_success());
    };
    // Acme's consumer was there first, tagged by the operator, who suspended it too; Globex's name is somebody else's.
    put("/consumers/tenant-acme".into(), json!({"custom_id": acme.id, "tags": ["platform-api", "gold"]})).await;
    put("/consumers/tenant-acme/acls/suspended".into(), json!({})).await;
    put(format!("/consumers/{}", globex.document["slug"].as_str().unwrap()), json!({"tags": ["theirs"]})).await;
    shift(&daemon, &acme.id, "suspend").await;
    let daemon = restarted_with(daemon, &kong).await;
    let told = eventually("a comparison", || async {
        let told = status(&daemon).await;
        told["conflicts"].as_array().is_some_and(|conflicts| !conflicts.is_empty()).then_some(told)
    })
    .await;
    assert_eq!((&told["conflicts"], &told["error"]), (&json!([globex.id]), &Value::Null), "{told}");
    eventually("who stands behind it", || async { kong.consumer(&away.id) }).await;
    let adopted = client.get(format!("{}/consumers/tenant-acme", kong.url)).send().await.unwrap();
    let adopted: Value = adopted.json().await.unwrap();
    assert_eq!(adopted["tags"], json!(["platform-api", "gold"]), "as it was");
    assert!(kong.consumer(&acme.id).is_none(), "one consumer is enough");
    assert_eq!((&told["suspended"], &told["lastChange"]), (&json!(1), &Value::Null), "nothing was changed: {told}");
    // The operator suspended it, and the operator alone takes that back.
    shift(&daemon, &acme.id, "reactivate").await;
    let lists = kong.asked("GET /acls");
    eventually("two more comparisons", || async { (kong.asked("GET /acls") > lists + 1).then_some(()) }).await;
    assert_eq!(kong.groups(adopted["id"].as_str().unwrap()), ["suspended"]);
}

/// The same daemon, which knows of Kong from now on.
async fn restarted_with(mut daemon: Daemon, kong: &Kong) -> Daemon {
    daemon.terminate().await;
    let file = daemon.config_file();
    let mut toml = std::fs::read_to_string(&file).unwrap();
    toml.push_str(&format!("[gateway.kong.admin]\nurls = \"{}\"\nsync_interval_ms = 1000\n", kong.url));
    std::fs::write(&file, toml).unwrap();
    daemon.restart().await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kong_without_a_database_is_given_one_document() {
    let kong = Kong::without_database().await;
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("kong.json");
    let ours = json!({"services": [{"name": "litellm", "url": "http://litellm:4000"}]});
    std::fs::write(&base, ours.to_string()).unwrap();
    let daemon = following(&kong, Engine::Sqlite).with("GATEWAY__KONG__ADMIN__BASE_FILE", base.display()).start().await;
    let acme = daemon.onboard("Acme").await;
    let of_acme = || {
        let document = kong.document();
        document["consumers"].as_array()?.iter().find(|consumer| consumer["custom_id"] == acme.id.as_str()).cloned()
    };
    eventually("Acme in the document", || async { of_acme() }).await;
    assert_eq!(kong.document()["services"], ours["services"]);
    shift(&daemon, &acme.id, "suspend").await;
    eventually("the suspension", || async { of_acme().filter(|consumer| consumer["acls"][0]["group"] == "suspended") })
        .await;
    let told = eventually("the lag", || async {
        let told = status(&daemon).await;
        (told["lastChange"]["change"] == "suspended").then_some(told)
    })
    .await;
    assert_eq!(told["mode"], "declarative");
    let (loads, asked) = (kong.loads(), kong.asked("POST /config"));
    eventually("more rounds", || async { (kong.asked("POST /config") > asked + 1).then_some(()) }).await;
    assert_eq!(kong.loads(), loads, "the same document is not loaded again");
    let config = daemon.config_file();
    let rendered = daemon.run(&["kong", "render", "--config", config.to_str().unwrap()]).await;
    let rendered: Value = serde_json::from_slice(&rendered.stdout).unwrap();
    assert_eq!(rendered, kong.document());
    assert!(!daemon.log().contains(SECRET), "an answer of Kong is in the log");
    // A node that was started again went back to its file: it is found, and given the document.
    kong.forget();
    eventually("the document again", || async { of_acme() }).await;
    // Without the operator's document there is nothing that could be loaded and would not take the routes away.
    let bare = following(&kong, Engine::Sqlite).start().await;
    let told = eventually("the refusal", || async {
        let told = status(&bare).await;
        told["error"].is_string().then_some(told)
    })
    .await;
    assert!(told["error"].as_str().unwrap().contains("gateway.kong.admin.base_file"), "{told}");
    assert_eq!(kong.document()["services"], ours["services"]);
}

/// Three nodes: one takes everything, one hangs, one is not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn each_node_without_a_database_is_loaded_whatever_the_others_do() {
    let (well, late) = (Kong::without_database().await, services::free_port());
    let hanging = tokio::net::TcpListener::bind(("127.0.0.1", services::free_port())).await.unwrap();
    let urls = [
        format!("http://127.0.0.1:{}", hanging.local_addr().unwrap().port()),
        format!("http://127.0.0.1:{late}"),
        well.url.clone(),
    ];
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("kong.json");
    std::fs::write(&base, json!({"services": []}).to_string()).unwrap();
    let setup = following(&well, Engine::Sqlite).with("GATEWAY__KONG__ADMIN__URLS", urls.join(","));
    let daemon = setup.with("GATEWAY__KONG__ADMIN__BASE_FILE", base.display()).start().await;
    let acme = daemon.onboard("Acme").await;
    let denied = |kong: &Kong| {
        let document = kong.document();
        let consumers = document["consumers"].as_array().cloned().unwrap_or_default();
        let groups = |consumer: &Value| consumer["custom_id"] == acme.id.as_str() && consumer["acls"].is_array();
        consumers.iter().any(groups)
    };
    let knows = |kong: &Kong| kong.document().to_string().contains(&acme.id);
    eventually("Acme in the node that is well", || async { knows(&well).then_some(()) }).await;
    shift(&daemon, &acme.id, "suspend").await;
    eventually("the suspension in the node that is well", || async { denied(&well).then_some(()) }).await;
    let told = eventually("what each node says", || async {
        let told = status(&daemon).await;
        let (away, up) = (&told["nodes"][1], &told["nodes"][2]);
        (away["error"].is_string() && up["configurationHash"].is_string()).then_some(told)
    })
    .await;
    let nodes = told["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().map(|node| node["url"].as_str().unwrap()).collect::<Vec<_>>(), urls, "{told}");
    assert_eq!((&nodes[0]["lastSuccessAt"], &nodes[1]["lastSuccessAt"]), (&Value::Null, &Value::Null), "{told}");
    assert!(nodes[2]["error"].is_null() && nodes[2]["lastSuccessAt"].is_string(), "{told}");
    assert!(told["error"].as_str().unwrap().contains(" of 3 nodes"), "{told}");
    assert_eq!((&told["lastChange"], &told["lastSuccessAt"]), (&Value::Null, &Value::Null), "not everywhere: {told}");
    let metrics = daemon.platform.anonymous().get("/metrics").await.text;
    for (url, up) in [(&urls[1], 0), (&urls[2], 1)] {
        assert!(metrics.contains(&format!("platform_api_kong_sync_node_up{{node=\"{url}\"}} {up}")), "{metrics}");
    }
    let health = daemon.platform.anonymous().get("/health").await.body;
    assert_eq!(health["dependencies"]["kong"]["status"], "down", "{health}");
    // What is there at last gets what it missed; so does the place of what hung.
    let late = Kong::start(late, false).await;
    eventually("the suspension in the late node", || async { denied(&late).then_some(()) }).await;
    let port = hanging.local_addr().unwrap().port();
    drop(hanging);
    let third = Kong::start(port, false).await;
    let told = eventually("the suspension everywhere", || async {
        let told = status(&daemon).await;
        (told["lastChange"]["change"] == "suspended" && told["error"].is_null()).then_some(told)
    })
    .await;
    assert!(denied(&third), "{told}");
    let hashes: Vec<&Value> = told["nodes"].as_array().unwrap().iter().map(|node| &node["configurationHash"]).collect();
    assert!(hashes[0].is_string() && hashes.iter().all(|hash| *hash == hashes[0]), "{told}");
    assert!(!daemon.log().contains(SECRET), "an answer of Kong is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kong_that_is_down_holds_up_nobody_and_is_caught_up_with() {
    let port = services::free_port();
    // Two nodes of one database, of which only the second will ever answer.
    let urls = format!("http://127.0.0.1:{},http://127.0.0.1:{port}", services::free_port());
    let setup = Setup::on(Engine::Sqlite).with("GATEWAY__KONG__ADMIN__URLS", urls);
    let setup = setup.with("GATEWAY__KONG__ADMIN__MODE", "database");
    let daemon = setup.with("GATEWAY__KONG__ADMIN__SYNC_INTERVAL_MS", 1_000).start().await;
    let acme = daemon.onboard("Acme").await;
    shift(&daemon, &acme.id, "suspend").await;
    let health = eventually("health to notice", || async {
        let health = daemon.platform.anonymous().get("/health").await;
        (health.body["dependencies"]["kong"]["status"] == "down").then_some(health)
    })
    .await;
    assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{}", health.text);
    let kong = Kong::start(port, true).await;
    eventually("the suspension", || async { (kong.groups(&acme.id) == ["suspended"]).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_says_by_its_status_whether_the_guarantees_hold() {
    let kong = Kong::with_database().await;
    let daemon = Daemon::prepare(Setup::on(Engine::Sqlite)).await;
    let check = async |url: &str| daemon.run(&["kong", "check", "--admin-url", url, "--json"]).await;
    let bare = check(&kong.url).await;
    let said: Value = serde_json::from_slice(&bare.stdout).unwrap();
    let said = &said["nodes"][0];
    assert_eq!((bare.status.code(), &said["version"]), (Some(1), &json!("3.9.1")), "{said}");
    assert!(
        said["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == "NO_AUTHENTICATION"),
        "{said}"
    );
    kong.install(vec![
        json!({"name": "key-auth", "config": {}}),
        json!({"name": "acl", "config": {"deny": ["suspended"]}}),
        json!({"name": "rate-limiting", "config": {"policy": "redis", "sync_rate": -1, "limit_by": "consumer",
            "day": 1_000_000_000, "fault_tolerant": true, "hide_client_headers": false}}),
        json!({"name": "http-log", "config": {"http_endpoint": "http://platform-api:8082/v1/gateway/kong/logs"}}),
        json!({"name": "prometheus", "config": {"per_consumer": true, "status_code_metrics": true}}),
    ]);
    let good = check(&kong.url).await;
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stdout));
    let nobody = format!("http://127.0.0.1:{}", services::free_port());
    assert_eq!(check(&nobody).await.status.code(), Some(2));
    // Each node that is configured: one that is well does not speak for one that is not.
    let (bare, both) = (Kong::with_database().await, |other: &str| format!("{},{other}", kong.url));
    for (other, status) in [(&bare.url, 1), (&nobody, 2)] {
        let setup = Setup::on(Engine::Sqlite).with("GATEWAY__KONG__ADMIN__URLS", both(other));
        let told = Daemon::prepare(setup).await.run(&["kong", "check"]).await;
        let said = String::from_utf8_lossy(&told.stdout);
        assert_eq!(told.status.code(), Some(status), "{said}");
        assert!(said.contains(&format!("{}: Kong 3.9.1", kong.url)), "{said}");
    }
}
