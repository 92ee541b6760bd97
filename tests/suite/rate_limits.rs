//! How often is too often: limits of our own API by credential, of tenants' traffic in decisions, and shared by nodes.

use std::time::Duration;

use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::servers::Server;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both, services};

/// A tier of a few requests an hour: what is used up stays used up while a test runs.
const TIERS: &str = "
[rate_limits.tiers.tight]
read = { quota = 60, window_seconds = 3600, burst = 3 }
ingest = { quota = 60, window_seconds = 3600, burst = 1 }
lookup = { quota = 60, window_seconds = 3600, burst = 2 }

[rate_limits.tiers.brisk]
read = { quota = 60, window_seconds = 60, burst = 1 }

[rate_limits.tiers.metered]
tenant_traffic = { quota = 60, window_seconds = 3600, burst = 4 }
api_key_traffic = { quota = 60, window_seconds = 3600, burst = 2 }

[rate_limits.tiers.shared]
read = { quota = 60, window_seconds = 3600, burst = 10 }
";

fn setup(engine: Engine) -> Setup {
    Setup::on(engine).with_section(TIERS)
}

async fn onboard(daemon: &Daemon, tier: &str) -> Tenant {
    daemon.onboard_as(json!({"tier": tier}), &format!("Acme {tier}")).await
}

/// `"name";a=1;b=2` of the two headers: the name, and both numbers of each.
#[track_caller]
fn told(answer: &Answer) -> (String, [u64; 2], [u64; 2]) {
    let read = |header: &str, names: [&str; 2]| {
        let text = answer.header(header);
        let mut parts = text.split(';');
        let name = parts.next().and_then(|name| name.strip_prefix('"')?.strip_suffix('"')).map(str::to_owned);
        let numbers = names.map(|name| {
            let number = parts.next().and_then(|part| part.strip_prefix(name)?.strip_prefix('='));
            number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{header}: {text:?}"))
        });
        assert_eq!(parts.next(), None, "{header}: {text}");
        (name.unwrap_or_else(|| panic!("{header}: {text:?}")), numbers)
    };
    let (policy, limit) = read("ratelimit-policy", ["q", "w"]);
    let (name, standing) = read("ratelimit", ["r", "t"]);
    assert_eq!(policy, name);
    (name, limit, standing)
}

async fn read(api: &Api, tenant: &Tenant) -> Answer {
    api.get(&format!("/v1/tenants/{}", tenant.id)).await
}

async fn metric(daemon: &Daemon, line: &str) -> Option<f64> {
    let text = daemon.platform.anonymous().get("/metrics").await.text;
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_asks_too_often_is_told_when_to_come_back() {
    on_both(|engine| async move {
        let daemon = setup(engine).start().await;
        let tight = onboard(&daemon, "tight").await;
        let (_, colleague) = tight.issue_key("admin").await;
        let other = onboard(&daemon, "tight").await;
        for remaining in [2, 1] {
            let answer = read(&tight.api, &tight).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let (name, limit, [left, _]) = told(&answer);
            assert_eq!((name.as_str(), limit, left), ("read", [60, 3_600], remaining));
        }
        // An answer that is an error counts, and tells, as well.
        let missing = read(&tight.api, &other).await;
        assert_eq!((missing.status, told(&missing).2[0]), (404, 0));

        let refused = read(&tight.api, &tight).await;
        refused.refused(429, "RATE_LIMITED");
        let (_, _, [left, wait]) = told(&refused);
        assert_eq!((left, wait.to_string().as_str()), (0, refused.header("retry-after")));
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(metric(&daemon, "platform_api_rate_limited_total{class=\"read\"}").await, Some(1.0));

        // Nobody else is held up: another credential, another tenant, another class, the platform.
        for (api, tenant) in [(&colleague, &tight), (&other.api, &other), (&daemon.platform, &tight)] {
            assert_eq!(read(api, tenant).await.status, 200);
        }
        assert_eq!(tight.issue_key("reader").await.1.get("/v1/audit").await.status, 200);
        // A credential that does not hold is the affair of the failure limit.
        let wrong = read(&tight.api.with("pak_live_0123456789ab_wrong"), &tight).await;
        wrong.refused(401, "INVALID_CREDENTIALS");
        assert_eq!(wrong.header("ratelimit"), "");
        // Another tier, from this moment on.
        daemon.platform.patch(&format!("/v1/tenants/{}", tight.id), &json!({"tier": "standard"})).await.ok();
        assert_eq!(read(&tight.api, &tight).await.status, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_as_long_as_told_is_let_in() {
    let daemon = setup(Engine::Sqlite).start().await;
    let brisk = onboard(&daemon, "brisk").await;
    assert_eq!(read(&brisk.api, &brisk).await.status, 200);
    // A slow machine may have filled the bucket between two requests.
    let refused = eventually("a refusal", || async {
        let answer = read(&brisk.api, &brisk).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(read(&brisk.api, &brisk).await.status, 200, "told to come back after {wait} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_that_lose_what_is_refused_are_not_limited() {
    let daemon = setup(Engine::Sqlite).start().await;
    let tight = onboard(&daemon, "tight").await;
    let body = json!([tight.event().json()]);
    assert_eq!(told(&tight.api.post("/v1/usage/events", &body).await).0, "ingest");
    tight.api.post("/v1/usage/events", &body).await.refused(429, "RATE_LIMITED");
    let (_, reporter) = tight.issue_key("reporter").await;
    for _ in 0..5 {
        for path in ["/v1/usage/litellm", "/v1/gateway/kong/logs"] {
            let answer = reporter.post(path, &json!([])).await;
            assert!(answer.status != 429 && answer.header("ratelimit").is_empty(), "{path}: {}", answer.text);
        }
    }
    let lookup = format!("/v1/quotas/{}/decision", tight.id);
    let statuses = [reporter.get(&lookup).await, reporter.get(&lookup).await, reporter.get(&lookup).await];
    assert_eq!(statuses.map(|answer| answer.status), [200, 200, 429]);
    // The platform's own credential has a bucket for each tenant.
    assert_eq!(daemon.platform.get(&lookup).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_traffic_is_limited_in_the_decision() {
    on_both(|engine| async move {
        let daemon = setup(engine).start().await;
        let (acme, globex) = (onboard(&daemon, "metered").await, onboard(&daemon, "metered").await);
        let path = |tenant: &Tenant, key: &str| format!("/v1/quotas/{}/decision?apiKeyId={key}", tenant.id);
        let ask = async |tenant: &Tenant, key: &str| {
            let answer = tenant.api.get(&path(tenant, key)).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let reason = answer.body["reasons"][0]["rateLimit"]["class"].as_str().unwrap_or("none").to_owned();
            (answer.body["decision"].as_str().unwrap().to_owned(), reason, answer)
        };
        let (first, reason, answer) = ask(&acme, "k1").await;
        assert_eq!((first.as_str(), reason.as_str()), ("allow", "none"));
        assert_eq!(answer.header("cache-control"), "private, max-age=0", "an answer for one request is not kept");
        let etag = answer.header("etag").to_owned();
        // Asked again with its tag it is the same answer, and takes a token all the same.
        let again =
            acme.api.raw(reqwest::Method::GET, &path(&acme, "k1"), &[("if-none-match", &etag)], Vec::new()).await;
        assert_eq!(again.status, 304);
        let (denied, reason, answer) = ask(&acme, "k1").await;
        assert_eq!((denied.as_str(), reason.as_str()), ("deny", "apiKeyTraffic"));
        let reset = &answer.body["resetAt"];
        assert_eq!((reset, reset), (&answer.body["validUntil"], &answer.body["reasons"][0]["rateLimit"]["resetAt"]));
        let denied =
            acme.api.raw(reqwest::Method::GET, &path(&acme, "k1"), &[("if-none-match", &etag)], Vec::new()).await;
        assert_eq!((denied.status, &denied.body["decision"]), (200, &json!("deny")));
        // What was refused has cost the tenant nothing: two more pass.
        for key in ["k2", "k3"] {
            assert_eq!(ask(&acme, key).await.0, "allow", "{key}");
        }
        let (denied, reason, _) = ask(&acme, "k4").await;
        assert_eq!((denied.as_str(), reason.as_str()), ("deny", "tenantTraffic"));
        assert_eq!(ask(&globex, "k1").await.0, "allow", "another tenant");
        let free = onboard(&daemon, "standard").await;
        assert_eq!(ask(&free, "k1").await.2.header("cache-control"), "private, max-age=1");
        // What quotas deny takes no token.
        let quota = json!({"scope": {"type": "user", "id": "ada"}, "metric": "requests", "period": "total",
            "limit": 1, "enforcement": "block"});
        globex.put_quotas(json!([quota])).await;
        globex.post_events(&[globex.event()]).await;
        for _ in 0..6 {
            assert_eq!(globex.decision("?userId=ada").await["reasons"][0]["code"], "LIMIT_REACHED");
        }
        for _ in 0..3 {
            assert_eq!(globex.decision("").await["decision"], "allow");
        }
        assert_eq!(globex.decision("").await["reasons"][0]["code"], "RATE_LIMITED");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_in_force_can_be_read() {
    let daemon = setup(Engine::Sqlite).start().await;
    let (metered, standard) = (onboard(&daemon, "metered").await, onboard(&daemon, "standard").await);
    let limit = |view: &Value, class: &str| {
        let limits = view["limits"].as_array().unwrap().iter();
        limits.filter(|limit| limit["class"] == class).map(|limit| limit["quota"].clone()).next()
    };
    let own = metered.api.get("/v1/rate-limits").await.ok();
    assert_eq!((&own["enabled"], &own["sharing"]), (&json!(true), &json!("local")));
    let [tier] = &own["tiers"].as_array().unwrap()[..] else { panic!("{own}") };
    assert_eq!(tier["tier"], "metered");
    assert_eq!((limit(tier, "tenantTraffic"), limit(tier, "read")), (Some(json!(60)), Some(json!(12_000))));
    assert_eq!(limit(tier, "lookup"), None, "not limited");
    let asked = daemon.platform.get(&format!("/v1/rate-limits?tenantId={}", standard.id)).await.ok();
    assert_eq!((&asked["tiers"][0]["tier"], limit(&asked["tiers"][0], "tenantTraffic")), (&json!("standard"), None));
    let all = daemon.platform.get("/v1/rate-limits").await.ok();
    let names: Vec<&Value> = all["tiers"].as_array().unwrap().iter().map(|tier| &tier["tier"]).collect();
    assert_eq!(names, [&Value::Null, &json!("brisk"), &json!("metered"), &json!("shared"), &json!("tight")]);

    let off = Setup::on(Engine::Sqlite).with_section(TIERS).with("RATE_LIMITS__ENABLED", false).start().await;
    let tight = onboard(&off, "tight").await;
    for _ in 0..5 {
        let answer = read(&tight.api, &tight).await;
        assert_eq!((answer.status, answer.header("ratelimit")), (200, ""));
    }
    assert_eq!(tight.api.get("/v1/rate-limits").await.ok()["enabled"], false);
}

/// Two nodes on one database and one Redis of their own.
struct Pair {
    nodes: [Daemon; 2],
    redis: Server,
    prefix: String,
}

impl Pair {
    async fn start() -> (Pair, Vec<Tenant>) {
        let redis = Server::redis().await;
        let prefix = format!("suite:{}:", services::unique());
        let setup = setup(Engine::Postgres).with_redis_at(redis.url("redis"));
        let setup = setup.with("RATE_LIMITS__KEY_PREFIX", &prefix).with("RATE_LIMITS__SETTLE_MS", 10);
        let one = setup.start().await;
        let mut tenants = Vec::new();
        for _ in 0..4 {
            tenants.push(onboard(&one, "shared").await);
        }
        let mut other = one.peer();
        other.restart().await;
        let pair = Pair { nodes: [one, other], redis, prefix };
        pair.all_are("up").await;
        (pair, tenants)
    }

    async fn all_are(&self, state: &str) {
        for node in &self.nodes {
            eventually(state, || async {
                let health = node.platform.anonymous().get("/health").await.body;
                (health["dependencies"]["rate-limits"]["status"] == state).then_some(())
            })
            .await;
        }
    }

    /// When the tenant's shared bucket is full again, in seconds of Redis's clock.
    async fn arrival(&self, tenant: &Tenant) -> Option<f64> {
        let mut connection = services::redis_at(&self.redis.url("redis")).await;
        let pattern = format!("{}read:{}:*", self.prefix, tenant.id);
        let keys: Vec<String> = connection.keys(pattern).await.unwrap();
        let [key] = &keys[..] else { return None };
        let arrival: Option<f64> = connection.get(key).await.unwrap();
        arrival.map(|micros| micros / 1e6)
    }

    /// How many requests pass at a node before one is refused.
    async fn passes(&self, node: usize, tenant: &Tenant, pause: Duration) -> usize {
        let tenant = tenant.at(&self.nodes[node]);
        for passed in 0..100 {
            match read(&tenant.api, &tenant).await.status {
                200 => tokio::time::sleep(pause).await,
                429 => return passed,
                status => panic!("{status}"),
            }
        }
        panic!("never refused");
    }

    /// What one node has admitted the other one knows as soon as it has told Redis something itself.
    async fn share(&self, tenant: &Tenant) {
        assert_eq!(self.passes(0, tenant, Duration::ZERO).await, 10, "the burst");
        let first = eventually("the first node's word in Redis", || async {
            let arrival = self.arrival(tenant).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            (self.arrival(tenant).await == Some(arrival)).then_some(arrival)
        })
        .await;
        let other = tenant.at(&self.nodes[1]);
        assert_eq!(read(&other.api, &other).await.status, 200, "it has not asked yet");
        eventually("the second node's word in Redis", || async {
            self.arrival(tenant).await.filter(|arrival| *arrival > first + 30.0)
        })
        .await;
        let more = self.passes(1, tenant, Duration::from_millis(300)).await;
        assert!(more < 9, "{more} more passed at the second node, as many as if it were alone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share_a_limit_through_redis_and_go_on_without_it() {
    let (mut pair, tenants) = Pair::start().await;
    pair.share(&tenants[0]).await;

    // Redis forgets the script, and is told it again.
    let mut connection = services::redis_at(&pair.redis.url("redis")).await;
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
    pair.share(&tenants[1]).await;

    // Frozen or dead, Redis holds up no request: each node limits for itself.
    pair.redis.freeze().await;
    pair.all_are("down").await;
    pair.redis.thaw().await;
    pair.all_are("up").await;
    pair.redis.kill().await;
    pair.all_are("down").await;
    for node in 0..2 {
        assert_eq!(pair.passes(node, &tenants[2], Duration::ZERO).await, 10, "node {node}");
        assert_eq!(metric(&pair.nodes[node], "platform_api_rate_limit_fallback").await, Some(1.0));
        // A Redis that has no time for a moment is another outage.
        let told = pair.nodes[node].log().matches("each node limits rates for itself").count();
        assert!((2..8).contains(&told), "{told} lines, and not one for each of two outages");
    }
    let sharing = tenants[2].at(&pair.nodes[0]).issue_key("reader").await.1.get("/v1/rate-limits").await.ok();
    assert_eq!(sharing["sharing"], "fallback");

    // Back, and empty: they count together again by themselves.
    pair.redis.start().await;
    pair.all_are("up").await;
    eventually("the end of the fallback", || async {
        metric(&pair.nodes[0], "platform_api_rate_limit_fallback").await.filter(|fallback| *fallback == 0.0)
    })
    .await;
    pair.share(&tenants[3]).await;
}
