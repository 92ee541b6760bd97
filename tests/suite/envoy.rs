//! Envoy's rate limit service, asked by a gRPC client with messages of its own.

use prost::Message;
use serde_json::json;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::harness::events::token_quota;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both, services};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Ask {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Told {
    #[prost(int32, tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Standing>,
    #[prost(message, repeated, tag = "3")]
    headers: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Standing {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    limit: Option<Limit>,
    #[prost(uint32, tag = "3")]
    remaining: u32,
    #[prost(message, optional, tag = "4")]
    until_reset: Option<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Limit {
    #[prost(uint32, tag = "1")]
    amount: u32,
    #[prost(int32, tag = "2")]
    unit: i32,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

impl Told {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|header| header.key == name).map_or("", |header| header.value.as_str())
    }
}

/// A daemon with the door open, and a client.
async fn open(setup: Setup) -> (Daemon, Envoy) {
    let address = format!("127.0.0.1:{}", services::free_port());
    let daemon = setup.with("ENVOY__LISTEN", &address).with("ENVOY__REQUEST_TIMEOUT_MS", 60_000).start().await;
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    (daemon, Envoy { channel, token: None })
}

#[derive(Clone)]
struct Envoy {
    channel: Channel,
    token: Option<String>,
}

impl Envoy {
    async fn send(&self, path: &'static str, ask: Ask) -> Result<Told, Status> {
        let mut request = Request::new(ask);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let codec = ProstCodec::<Ask, Told>::default();
        grpc.unary(request, path.parse().unwrap(), codec).await.map(Response::into_inner)
    }

    /// One descriptor for each list of pairs.
    async fn ask(&self, descriptors: &[&[(&str, &str)]]) -> Result<Told, Status> {
        let pair = |(key, value): &(&str, &str)| Pair { key: (*key).to_owned(), value: (*value).to_owned() };
        let descriptors =
            descriptors.iter().map(|entries| Descriptor { entries: entries.iter().map(pair).collect() }).collect();
        self.send(METHOD, Ask { domain: "llm".into(), descriptors, hits_addend: 7 }).await
    }

    async fn about(&self, tenant: &Tenant) -> Told {
        let entries = [("tenant_id", tenant.id.as_str())];
        eventually("an answer to Envoy", || async {
            match self.ask(&[&entries]).await {
                // It is being opened.
                Err(status) if status.code() == Code::Unavailable => None,
                answer => Some(answer.expect("an answer")),
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_request_of_the_tenant_s_traffic() {
    let tier = "[rate_limits.tiers.metered]\ntenant_traffic = { quota = 60, window_seconds = 3600, burst = 2 }\n";
    let (daemon, envoy) = open(Setup::on(Engine::Sqlite).with_section(tier)).await;
    let metered = daemon.onboard_as(json!({"tier": "metered"}), "Metered").await;
    let free = daemon.onboard("Free").await;
    let two = [("tenant_id", metered.id.as_str()), ("user_id", "ada")];
    for _ in 0..2 {
        let told = envoy.ask(&[&two[..1], &two]).await.expect("an answer");
        assert_eq!(told.overall_code, OK, "two descriptors are one request: {told:?}");
    }
    let told = envoy.about(&metered).await;
    assert_eq!((told.overall_code, told.header("x-platform-api-decision")), (OVER_LIMIT, "deny"));
    let limit = told.statuses[0].limit.as_ref().expect("a limit");
    assert_eq!((limit.amount, limit.unit, limit.name.as_str()), (60, 3, "tenantTraffic"));
    let wait: i64 = told.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{told:?}");
    assert_eq!(envoy.about(&free).await.overall_code, OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_hears_what_the_books_say() {
    on_both(|engine| async move {
        let (mut daemon, envoy) = open(Setup::on(engine)).await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        acme.put_quotas(
            json!([token_quota(100, "month"), {"scope": {"type": "user", "id": "ada"}, "metric": "requests",
            "period": "day", "limit": 1, "enforcement": "block"}]),
        )
        .await;
        let told = envoy.about(&acme).await;
        assert_eq!((told.overall_code, told.header("x-platform-api-decision")), (OK, "allow"), "{told:?}");
        let limit = told.statuses[0].limit.as_ref().expect("a limit");
        assert_eq!((limit.amount, limit.unit, limit.name.as_str()), (100, 5, "tenant tokens month"));
        assert_eq!(told.statuses[0].remaining, 100, "asking counts nothing");
        assert!(told.statuses[0].until_reset.as_ref().is_some_and(|span| span.seconds > 0));

        let mut event = acme.event().tokens(60, 20);
        event.user = "ada".into();
        acme.post_events(&[event]).await;
        let told = envoy.about(&acme).await;
        assert_eq!((told.overall_code, told.header("x-platform-api-decision")), (OK, "warn"), "{told:?}");
        assert_eq!((told.statuses[0].remaining, told.header("retry-after")), (20, ""));
        // Ada has had her one request; of several descriptors the strongest decides.
        let [tenant, ada] = [&[("tenant_id", acme.id.as_str())][..], &[("tenant_id", &acme.id), ("user_id", "ada")]];
        let told = envoy.ask(&[tenant, ada]).await.unwrap();
        let codes: Vec<i32> = told.statuses.iter().map(|status| status.code).collect();
        assert_eq!((told.overall_code, codes), (OVER_LIMIT, vec![OK, OVER_LIMIT]), "{told:?}");
        assert_eq!(told.header("x-platform-api-decision"), "deny");
        assert!(told.header("retry-after").parse::<i64>().is_ok_and(|seconds| seconds > 0), "{told:?}");

        assert_eq!(envoy.about(&globex).await.overall_code, OK);
        daemon.platform.post(&format!("/v1/tenants/{}/suspend", globex.id), &json!({})).await.ok();
        let told = envoy.about(&globex).await;
        assert_eq!((told.overall_code, told.header("x-platform-api-decision")), (OVER_LIMIT, "deny"), "suspended");
        daemon.terminate().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_deactivated_is_denied_whatever_the_quotas_say() {
    let (daemon, envoy) = open(Setup::on(Engine::Sqlite)).await;
    let acme = daemon.onboard("Acme").await;
    for (path, body) in [
        ("/v1/users", json!({"userName": "ada", "active": false})),
        ("/v1/users", json!({"userName": "bob"})),
        ("/v1/groups", json!({"displayName": "shut", "active": false})),
    ] {
        assert_eq!(acme.api.post(path, &body).await.status, 201, "{body}");
    }
    let (key, _) = acme.issue_key("reporter").await;
    let decision = async |name: &str, value: &str| {
        let told = envoy.ask(&[&[("tenant_id", &acme.id), (name, value)]]).await.expect("an answer");
        told.header("x-platform-api-decision").to_owned()
    };
    assert_eq!(decision("api_key_id", &key).await, "allow");
    acme.api.delete(&format!("/v1/tenants/{}/api-keys/{key}", acme.id)).await.ok();
    for (name, value, expected) in [
        ("user_id", "Ada", "deny"),
        ("user_id", "bob", "allow"),
        ("user_id", "nobody we know", "allow"),
        ("group_id", "shut", "deny"),
        ("api_key_id", key.as_str(), "deny"),
    ] {
        assert_eq!(decision(name, value).await, expected, "{name} {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_the_policy_does_not_have_is_denied_however_it_is_named() {
    let (daemon, envoy) = open(Setup::on(Engine::Sqlite)).await;
    let acme = daemon.onboard("Acme").await;
    let long = "x".repeat(300);
    let tenant = ("tenant_id", acme.id.as_str());
    let reason = async |entries: &[(&str, &str)]| {
        let told = envoy.ask(&[&[&[tenant], entries].concat()]).await.expect("an answer");
        assert_eq!(told.overall_code == OVER_LIMIT, told.header("x-platform-api-decision") == "deny", "{told:?}");
        assert_eq!(told.header("retry-after"), "", "nothing ends by itself: {told:?}");
        told.header("x-platform-api-reason").to_owned()
    };
    assert_eq!(reason(&[("model", "gpt-5")]).await, "");
    let body =
        json!({"egressHosts": [], "models": ["gpt-4*"], "failover": {"providers": [], "on": [], "attemptsMax": 0}});
    let headers = [("content-type", "application/json"), ("if-match", "*")];
    acme.api.raw(reqwest::Method::PUT, "/v1/provider-policy", &headers, body.to_string().into_bytes()).await.ok();
    for (entries, code) in [
        (&[("model", "gpt-4o")][..], ""),
        (&[("user_id", "ada")], ""),
        (&[("model", "gpt-4o"), ("model", "gpt-4.1")], ""),
        (&[("model", "gpt-5")], "MODEL_NOT_ALLOWED"),
        (&[("model", "gpt-4o"), ("model", "gpt-5")], "MODEL_NOT_ALLOWED"),
        (&[("model", long.as_str())], "MODEL_NOT_ALLOWED"),
    ] {
        assert_eq!(reason(entries).await, code, "{entries:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_not_ours_is_answered_as_the_operator_wants() {
    for (setting, code) in [("allow", OK), ("deny", OVER_LIMIT)] {
        let (_daemon, envoy) = open(Setup::on(Engine::Sqlite).with("ENVOY__ON_UNKNOWN", setting)).await;
        for entries in [&[("tenant_id", "0199a8b2-5c00-7abc-8def-0123456789ab")][..], &[("tenant_id", "x")], &[]] {
            let told = envoy.ask(&[entries]).await.unwrap();
            assert_eq!((told.overall_code, told.header("x-platform-api-decision")), (code, "unknown"), "{entries:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_cannot_answer_leaves_it_to_envoy() {
    let (mut daemon, envoy) = open(Setup::on(Engine::Sqlite)).await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    daemon.terminate().await;
    std::fs::rename(daemon.tenant_file(&acme.id), daemon.folder.path().join("away.db")).unwrap();
    daemon.restart().await;
    let ours = [("tenant_id", acme.id.as_str())];
    let refused = eventually("the door", || async { envoy.ask(&[&ours]).await.err() }).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(envoy.about(&globex).await.overall_code, OK, "the neighbour");
    // Somebody else denies already: there is nothing left for Envoy to decide.
    daemon.platform.post(&format!("/v1/tenants/{}/suspend", globex.id), &json!({})).await.ok();
    let told = envoy.ask(&[&ours, &[("tenant_id", &globex.id)]]).await.unwrap();
    assert_eq!((told.overall_code, told.statuses[0].code), (OVER_LIMIT, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_knows_the_token_is_answered_and_only_about_what_is_asked_rightly() {
    let setup = Setup::on(Engine::Sqlite).with("ENVOY__TOKEN", "a-token-of-envoy-0123").with("ENVOY__DOMAIN", "llm");
    let (daemon, mut envoy) = open(setup).await;
    let acme = daemon.onboard("Acme").await;
    let entries = [("tenant_id", acme.id.as_str())];
    for token in [None, Some("Bearer a-token-of-envoy-0124"), Some("a-token-of-envoy-0123"), Some("Bearer ")] {
        envoy.token = token.map(str::to_owned);
        assert_eq!(envoy.ask(&[&entries]).await.unwrap_err().code(), Code::Unauthenticated, "{token:?}");
    }
    envoy.token = Some("Bearer a-token-of-envoy-0123".into());
    assert_eq!(envoy.about(&acme).await.overall_code, OK);
    assert_eq!(envoy.ask(&[]).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(envoy.ask(&[&entries[..]; 65]).await.unwrap_err().code(), Code::InvalidArgument);
    let elsewhere = Ask { domain: "other".into(), descriptors: vec![Descriptor::default()], hits_addend: 0 };
    assert_eq!(envoy.send(METHOD, elsewhere).await.unwrap_err().code(), Code::InvalidArgument);
    let huge = "x".repeat(65 * 1024);
    assert_eq!(envoy.ask(&[&[("path", &huge)]]).await.unwrap_err().code(), Code::OutOfRange);
    let other = "/envoy.service.ratelimit.v3.RateLimitService/Other";
    assert_eq!(envoy.send(other, Ask::default()).await.unwrap_err().code(), Code::Unimplemented);
    assert!(!daemon.log().contains("a-token-of-envoy"), "the token is in the log");
    let metrics = daemon.platform.anonymous().get("/metrics").await.text;
    assert!(metrics.contains("platform_api_envoy_requests_total{result=\"unauthenticated\"} 4"), "{metrics}");
}
