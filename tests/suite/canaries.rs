//! Secrets come in by every way there is, and afterwards are nowhere: in no database, stream, Redis, file, log, metric,
//! trace, notification, and in no answer but the one that is meant to show them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::browser::{Browser, Provider};
use crate::harness::canary::{self, Canaries, Kept};
use crate::harness::daemon::{BOOTSTRAP_KEY, PEPPER, project};
use crate::harness::database::Database;
use crate::harness::echo::Echo;
use crate::harness::events::token_quota;
use crate::harness::postbox::Postbox;
use crate::harness::receiver::{ROUTING_KEY, Receiver, SECRET};
use crate::harness::servers::Server;
use crate::harness::{Daemon, Engine, PATIENCE, Setup, Tenant, eventually, on_both, services};

/// How long a daemon may run that was started with a setting that cannot work: long enough to say so.
const UNTIL_KILLED: Duration = Duration::from_secs(3);
const JSON: (&str, &str) = ("content-type", "application/json");
const NATS_PASSWORD: &str = "nats-canary-5e8a2046c7";
const REDIS_PASSWORD: &str = "redis-canary/+%5e8a2046";
const KONG_REDIS_PASSWORD: &str = "kong-redis-canary/+5e8a2046";
const POSTGRES_PASSWORD: &str = "postgres-canary/+%5e8a2046";
/// 32 bytes: a key of AES-256.
const KEK: &str = "kek-canary-5e8a2046-0123456789ab";
const CLIENT_SECRET: &str = "client-canary-5e8a2046-0123456789";
const KONG_LOG_TOKEN: &str = "kong-log-canary-5e8a2046-0123456789";
const ENVOY_TOKEN: &str = "envoy-canary-5e8a2046-0123456789";
const SLACK_PATH: &str = "T0CANARY5/B0CANARY5/5e8a2046c7f3b9c1";
const MAIL_PASSWORD: &str = "mail-canary\\\"/5e8a2046";
const PROVIDER_SECRET: &str = "sk-canary+/=\\\"-5e8a2046-x7Qk";
const SECOND_PROVIDER_SECRET: &str = "sk-second-canary-9c1d5e8a2046";
const PASSWORD: &str = "correct c\u{e4}nary \\\"battery\" 5e8a2046";

/// What the configuration brings in besides, by its key.
const CONFIGURED: [(&str, &str); 5] = [
    ("GATEWAY__KONG__ADMIN__TOKEN", "kong-admin-canary-5e8a2046-0123456789"),
    ("FLAGSMITH__ENVIRONMENT_KEY", "ser.flagsmith-canary-5e8a2046"),
    ("AUTHORIZATION__OPENFGA__TOKEN", "openfga-canary-5e8a2046-0123456789"),
    ("LITELLM__MASTER_KEY", "sk-master-canary-5e8a2046-0123456789"),
    ("VAULT__TRANSIT_TOKEN", "hvs.transit-canary-5e8a2046-0123456789"),
];

/// A daemon with every neighbour it can have, and all that it was told.
struct House {
    daemon: Daemon,
    base: String,
    provider: Provider,
    echo: Echo,
    hook: Receiver,
    mail: Postbox,
    nats_url: String,
    redis_url: String,
    _servers: (Server, Server),
    canaries: Canaries,
    told: Vec<Kept>,
}

fn in_url(secret: &str) -> String {
    utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string()
}

/// The same server, with a password that it does not ask for.
fn with_password(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    if url.password().is_none() {
        url.set_password(Some(POSTGRES_PASSWORD)).expect("a URL with a host");
    }
    url.to_string()
}

async fn open(engine: Engine) -> House {
    let (echo, hook, mail) = (Echo::start().await, Receiver::start().await, Postbox::start().await);
    let nats = Server::nats_with(&["--user", "canary", "--pass", NATS_PASSWORD]).await;
    let redis = Server::redis_with(&["--requirepass", REDIS_PASSWORD]).await;
    let nats_url = format!("nats://canary:{NATS_PASSWORD}@127.0.0.1:{}", nats.port);
    let redis_url = format!("redis://:{}@127.0.0.1:{}/", in_url(REDIS_PASSWORD), redis.port);
    let kong_redis = format!("redis://:{}@127.0.0.1:{}/", in_url(KONG_REDIS_PASSWORD), redis.port);
    let mail_channel = mail.channel("mail").replace("\"none\"", "\"starttls\"");
    let channels = format!(
        "{}{}{mail_channel}user = \"platform\"\npassword = {}\n[[notify.channels]]\ntype = \"slack\"\nname = \"chat\"\n\
         url = \"{}/{SLACK_PATH}\"\nallow_private_addresses = true\n{}[[notify.channels]]\ntype = \"nats\"\n\
         name = \"bus\"\n",
        hook.channel("hook"),
        hook.pagerduty("pager"),
        Value::from(MAIL_PASSWORD),
        echo.url("/slack/services"),
        mail.channel("open-mail"),
    );
    let setup = Setup::on(engine).with_nats_at(nats_url.clone()).with_section(&channels);
    let setup = CONFIGURED.iter().fold(setup, |setup, (name, secret)| setup.with(name, secret));
    let setup = setup
        .with("TELEMETRY__OTLP_ENDPOINT", echo.url("/otlp"))
        .with("LITELLM__URL", echo.url("/litellm"))
        .with("FLAGSMITH__URL", echo.url("/flagsmith"))
        .with("FLAGSMITH__POLL_MS", 1_000)
        .with("AUTHORIZATION__OPENFGA__API_URL", echo.url("/openfga"))
        .with("AUTHORIZATION__OPENFGA__STORE_ID", "store")
        .with("GATEWAY__KONG__ADMIN__SYNC_INTERVAL_MS", 1_000)
        .with("GATEWAY__KONG__REDIS__URL", kong_redis)
        .with("GATEWAY__KONG__ACCESS_LOG__TOKEN", KONG_LOG_TOKEN)
        .with("ENVOY__LISTEN", format!("127.0.0.1:{}", services::free_port()))
        .with("ENVOY__TOKEN", ENVOY_TOKEN)
        .with("VAULT__ALLOW_PRIVATE_ADDRESSES", true)
        .with("AUTH__LOCAL__ENABLED", true);
    // One keeps sessions in Redis and its KEK in the environment, the other has both at home.
    let setup = match engine {
        Engine::Postgres => setup
            .on_server(&services::postgres_url(), &with_password(&services::postgres_url()))
            .with_redis_at(redis_url.clone())
            .with("VAULT__KEK", "environment")
            .with("VAULT__KEYS", STANDARD.encode(KEK)),
        Engine::Sqlite => setup,
    };
    let mut daemon = Daemon::prepare(setup).await;
    let base = daemon.platform.base().to_owned();
    let clients = json!([
        {"id": "console", "secret": CLIENT_SECRET, "redirectUris": [format!("{base}/v1/auth/callback")],
            "backChannelLogoutUri": format!("{base}/v1/auth/backchannel-logout")},
        {"id": "batch", "secret": CLIENT_SECRET, "opaque": true},
    ]);
    let provider = Provider::start(&clients).await;
    let settings = format!(
        "[gateway.kong.admin]\nurls = [\"{}\"]\n[auth.login]\npublic_url = \"{base}\"\nkey_prefix = \"{}sessions:\"\ngrace_ms = 0\n\
         [[auth.issuers]]\nissuer = \"{}\"\naudience = \"urn:platform-api\"\nname = \"real\"\nprovision = true\n\
         introspection = {{ client_id = \"batch\", client_secret = \"{CLIENT_SECRET}\" }}\n\
         login = {{ client_id = \"console\", client_secret = \"{CLIENT_SECRET}\", scopes = [\"openid\", \"offline_access\"] }}\n",
        echo.url("/kong"),
        daemon.redis_prefix,
        provider.issuer,
    );
    let mut file = std::fs::File::options().append(true).open(daemon.config_file()).expect("the folder is ours");
    file.write_all(settings.as_bytes()).expect("the folder is ours");
    daemon.restart().await;

    let mut canaries = Canaries::default();
    for (what, secret) in CONFIGURED {
        canaries.add(what, secret);
    }
    for (what, secret) in [
        ("the bootstrap key", BOOTSTRAP_KEY),
        ("the pepper", PEPPER),
        ("NATS's password", NATS_PASSWORD),
        ("Redis's password", REDIS_PASSWORD),
        ("the password of Kong's Redis", KONG_REDIS_PASSWORD),
        ("Postgres's password", POSTGRES_PASSWORD),
        ("the KEK", KEK),
        ("the client's secret", CLIENT_SECRET),
        ("the token of Kong's log", KONG_LOG_TOKEN),
        ("Envoy's token", ENVOY_TOKEN),
        ("Slack's address", SLACK_PATH),
        ("the relay's password", MAIL_PASSWORD),
        ("PagerDuty's key", ROUTING_KEY),
        ("the webhook's secret", SECRET.trim_start_matches("whsec_")),
        ("the webhook's key", "the-suite-signs-with-this-secret"),
    ] {
        canaries.add(what, secret);
    }
    let _servers = (nats, redis);
    House { daemon, base, provider, echo, hook, mail, nats_url, redis_url, _servers, canaries, told: Vec::new() }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

impl House {
    /// An answer that is not meant to show any secret.
    fn hears(&mut self, what: &str, answer: &Answer) {
        self.told.push(Kept::new(format!("answer to {what}"), format!("{:?}\n{}", answer.headers, answer.text)));
    }

    async fn call(&mut self, api: &Api, method: Method, path: &str, more: &[(&str, &str)], body: Value) -> Answer {
        let headers = [&[JSON, ("if-match", "*")], more].concat();
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        api.raw(method, path, &headers, bytes).await
    }

    /// The same, for an answer without secrets.
    async fn quietly(&mut self, api: &Api, method: Method, path: &str, more: &[(&str, &str)], body: Value) -> Answer {
        let what = format!("{method} {}", path.split('?').next().unwrap_or_default());
        let answer = self.call(api, method, path, more, body).await;
        self.hears(&what, &answer);
        answer
    }

    /// Keys of the platform and of its tenants: made, used, shown once, rotated, revoked, guessed, and put where they do
    /// not belong.
    async fn keys(&mut self) -> (Tenant, Tenant) {
        let platform = self.daemon.platform.clone();
        let acme = self.daemon.onboard("Acme").await;
        self.canaries.add("a tenant's first key", acme.api.credential());
        let once = [("idempotency-key", "house")];
        let made = self.call(&platform, Method::POST, "/v1/tenants", &once, json!({"name": "Globex"})).await;
        let globex = Tenant::of(&platform, &made.body);
        self.daemon.remember(&globex.id);
        self.canaries.add("another tenant's first key", globex.api.credential());
        let again = self.quietly(&platform, Method::POST, "/v1/tenants", &once, json!({"name": "Globex"})).await;
        assert_eq!(again.status, 201, "{}", again.text);

        let path = format!("/v1/tenants/{}/api-keys", acme.id);
        let body = json!({"name": "reporter", "role": "reporter"});
        let made = self.call(&acme.api, Method::POST, &path, &once, body.clone()).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let key = text(&made.body["key"]);
        self.canaries.add("a key", &key);
        self.quietly(&acme.api, Method::POST, &path, &once, body).await;
        let path = format!("{path}/{}", text(&made.body["apiKey"]["id"]));
        let rotated = format!("{path}/rotate");
        let body = json!({"overlapSeconds": 3_600});
        let made = self.call(&acme.api, Method::POST, &rotated, &once, body.clone()).await;
        let second = text(&made.body["key"]);
        self.canaries.add("a key after its rotation", &second);
        self.quietly(&acme.api, Method::POST, &rotated, &once, body).await;

        let anonymous = platform.anonymous();
        let guess = format!("{}{}", &key[..key.len() - 6], "canary");
        self.canaries.add("a key that was guessed", &guess);
        for used in [&key, &second, &guess] {
            let me = "/v1/auth/me";
            self.quietly(&anonymous, Method::GET, me, &[("x-api-key", used)], Value::Null).await;
            self.quietly(&anonymous.with(used), Method::GET, me, &[], Value::Null).await;
            let asked = format!("/v1/tenants?api_key={used}");
            self.quietly(&anonymous, Method::GET, &asked, &[], Value::Null).await.refused(400, "INVALID_PARAMETER");
            self.quietly(&platform, Method::GET, me, &[("authorization", used)], Value::Null).await;
        }
        self.quietly(&acme.api, Method::DELETE, &path, &[], Value::Null).await.ok();
        let revoked = self.quietly(&anonymous.with(&key), Method::GET, "/v1/auth/me", &[], Value::Null).await;
        revoked.refused(401, "INVALID_CREDENTIALS");
        (acme, globex)
    }

    /// What a browser holds by now.
    fn notes(&mut self, browser: &Browser) {
        for (name, what) in [
            ("platform-session", "a session"),
            ("platform-csrf", "a CSRF token"),
            ("platform-login", "a login under way"),
        ] {
            let cookie = browser.cookie(&self.base, name);
            if cookie.is_empty() {
                continue;
            }
            self.canaries.add(&format!("the cookie of {what}"), &cookie);
            if let Ok(bytes) = URL_SAFE_NO_PAD.decode(&cookie) {
                self.canaries.add_bytes(&format!("the secret of {what}"), &bytes[..bytes.len().min(32)]);
            }
        }
    }

    /// People who log in at the issuer: the state, the code, the tokens and the cookies.
    async fn people(&mut self, acme: &Tenant) {
        let (base, issuer) = (self.base.clone(), self.provider.issuer.clone());
        let jane = json!({"tenant": acme.id, "roles": ["admin"], "name": "Jane Doe", "preferred_username": "jane"});
        let users = json!({"jane": jane, "batch": {"tenant": acme.id, "roles": ["reader"]}});
        let mut browser = Browser::new();
        browser.send(Method::POST, &format!("{issuer}/users"), &[], users.to_string()).await;
        for is_last in [false, true] {
            let way_back = browser.way_back(&base).await;
            self.notes(&browser);
            for (name, value) in Url::parse(&way_back).expect("a URL").query_pairs() {
                if ["code", "state"].contains(&name.as_ref()) {
                    self.canaries.add(&format!("the {name} of a login"), &value);
                }
            }
            let back = browser.get(&way_back).await;
            assert_eq!((back.status, back.header("location")), (303, "/console"), "{}", back.text);
            self.notes(&browser);
            // The same code again, and a page of somebody else's.
            let again = browser.get(&way_back).await;
            assert!((400..500).contains(&again.status), "{}", again.text);
            self.hears("a callback that comes twice", &again);
            let headers = [JSON, ("x-csrf-token", "canary"), ("origin", base.as_str())];
            let group = json!({"displayName": "Engineers"}).to_string();
            let refused = browser.send(Method::POST, &format!("{base}/v1/groups"), &headers, group).await;
            refused.refused(403, "CSRF_REFUSED");
            self.hears("a change without a token", &refused);
            browser.change(&base, Method::POST, "/v1/auth/refresh", &json!({})).await.ok();
            self.notes(&browser);
            if !is_last {
                browser.change(&base, Method::POST, "/v1/auth/logout", &json!({})).await.ok();
            }
        }

        let http = reqwest::Client::builder().no_proxy().build().expect("a plain client");
        let request = http.post(format!("{issuer}/token")).basic_auth("batch", Some(CLIENT_SECRET));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body("grant_type=client_credentials").send().await.expect("it answers");
        let issued = browser.get(&format!("{issuer}/issued")).await.ok();
        let (mut names, anonymous) = (BTreeSet::new(), self.daemon.platform.anonymous());
        for (name, value) in issued.as_array().expect("a list").iter().flat_map(|one| one.as_object().expect("tokens"))
        {
            if !name.ends_with("_token") {
                continue;
            }
            let token = text(value);
            self.canaries.add(&format!("an {name}"), &token);
            if let Some((_, signature)) = token.rsplit_once('.') {
                self.canaries.add(&format!("the signature of an {name}"), signature);
            }
            names.insert(name.clone());
            self.quietly(&anonymous.with(&token), Method::GET, "/v1/auth/me", &[], Value::Null).await;
            let spoiled = format!("{}canary", &token[..token.len() - 6]);
            self.canaries.add(&format!("a spoiled {name}"), &spoiled);
            self.quietly(&anonymous.with(&spoiled), Method::GET, "/v1/auth/me", &[], Value::Null).await;
        }
        assert_eq!(names, ["access_token", "id_token", "refresh_token"].map(String::from).into());
    }

    /// Passwords that are kept here, right and wrong, and in a form that has none.
    async fn passwords(&mut self, acme: &Tenant) {
        let wrong = format!("wr\u{f6}ng {PASSWORD}");
        for (what, password) in [("a password", PASSWORD), ("a wrong password", wrong.as_str())] {
            self.canaries.add(what, password);
        }
        let admin = acme.api.clone();
        let john = self.quietly(&admin, Method::POST, "/v1/users", &[], json!({"userName": "john"})).await;
        let path = format!("/v1/users/{}/password", text(&john.body["id"]));
        let put = self.quietly(&admin, Method::PUT, &path, &[], json!({"password": PASSWORD})).await;
        put.ok();
        self.quietly(&admin, Method::PUT, &path, &[], json!({"password": [PASSWORD]})).await;
        self.quietly(&admin, Method::PUT, &path, &[], json!({"pass": PASSWORD})).await;
        let base = self.base.clone();
        for (name, password) in [("john", PASSWORD), ("john", wrong.as_str()), (PASSWORD, "correct horse")] {
            let mut browser = Browser::new();
            let body = json!({"userName": name, "password": password});
            let answer = browser.change(&base, Method::POST, "/v1/auth/local", &body).await;
            match answer.status {
                200 => self.notes(&browser),
                _ => self.hears("a login that fails", &answer),
            }
        }
        let user = json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "june",
            "password": PASSWORD});
        self.quietly(&admin, Method::POST, "/scim/v2/Users", &[], user).await;
    }

    /// Keys of tenants' providers: given, lent, tried, synchronized, replaced, rotated, and not fit to be any.
    async fn providers(&mut self, acme: &Tenant) {
        self.canaries.add("a provider's key", PROVIDER_SECRET);
        self.canaries.add("a provider's second key", SECOND_PROVIDER_SECRET);
        let (admin, service) = (acme.api.clone(), acme.issue_key("reporter").await.1);
        let hosts = [format!("127.0.0.1:{}", self.echo.port)];
        let failover = json!({"providers": [], "on": [], "attemptsMax": 0});
        let policy = json!({"egressHosts": hosts, "models": [], "failover": failover});
        assert_eq!(self.quietly(&admin, Method::PUT, "/v1/provider-policy", &[], policy).await.status, 200);
        let body = json!({"name": "own", "kind": "openaiCompatible", "baseUrl": self.echo.url("/llm")});
        let made = self.quietly(&admin, Method::POST, "/v1/providers", &[], body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let path = format!("/v1/providers/{}", text(&made.body["id"]));
        let (kept, leases) = (format!("{path}/secret"), format!("{path}/leases"));
        for (number, secret) in [PROVIDER_SECRET, SECOND_PROVIDER_SECRET].into_iter().enumerate() {
            let (once, lent_once) = (format!("put-{number}"), format!("lend-{number}"));
            let (once, lent_once) = ([("idempotency-key", once.as_str())], [("idempotency-key", lent_once.as_str())]);
            let body = json!({"secret": secret});
            let given = self.quietly(&admin, Method::PUT, &kept, &once, body.clone()).await;
            assert_eq!(given.status, 200, "{}", given.text);
            self.quietly(&admin, Method::PUT, &kept, &once, body).await;
            let asked = json!({"purpose": "inference", "ttlSeconds": 60});
            let lent = self.call(&service, Method::POST, &leases, &lent_once, asked.clone()).await;
            assert_eq!(lent.body["secret"], secret, "{}", lent.text);
            self.quietly(&service, Method::POST, &leases, &lent_once, asked).await;
            self.quietly(&admin, Method::POST, &format!("{path}/test"), &[], Value::Null).await;
        }
        for wrong in [
            json!({"secret": format!("{PROVIDER_SECRET} ")}),
            json!({"secret": [PROVIDER_SECRET]}),
            json!({"secret": {"value": PROVIDER_SECRET}}),
            json!({PROVIDER_SECRET: "secret"}),
            json!(PROVIDER_SECRET),
        ] {
            let refused = self.quietly(&admin, Method::PUT, &kept, &[], wrong).await;
            assert!((400..500).contains(&refused.status), "{}", refused.text);
        }
        let with_secret = json!({"name": "n", "kind": "openai", "secret": PROVIDER_SECRET});
        self.quietly(&admin, Method::POST, "/v1/providers", &[], with_secret).await.refused(422, "VALIDATION_FAILED");
        for (api, kind) in [(&admin, "vault.rotateDataKey"), (&self.daemon.platform.clone(), "vault.rewrap")] {
            let job = self.quietly(api, Method::POST, "/v1/jobs", &[], json!({"kind": kind})).await;
            let path = format!("/v1/jobs/{}", text(&job.body["id"]));
            eventually(kind, async || (api.get(&path).await.body["state"] == "succeeded").then_some(())).await;
        }
        let (echo, holds) = (self.echo.clone(), |bytes: &[u8]| memchr::memmem::find(bytes, b"canary").is_some());
        assert!(echo.asked("/llm").iter().any(|one| holds(&one.whole)), "the provider was not asked");
        eventually("the provider's key at LiteLLM", async || {
            echo.asked("/litellm/credentials").iter().any(|one| holds(&one.body)).then_some(())
        })
        .await;
    }

    /// What gateways say, with what their callers sent them.
    async fn gateways(&mut self, acme: &Tenant) {
        let anonymous = self.daemon.platform.anonymous();
        let caller = "caller-canary-5e8a2046-0123456789";
        let wrong = format!("{KONG_LOG_TOKEN}x");
        self.canaries.add("the key of a gateway's caller", caller);
        let single =
            std::fs::read(project().join("tests/fixtures/kong/http-log-single.json")).expect("a captured file");
        let mut record: Value = serde_json::from_slice(&single).expect("JSON");
        record["consumer"]["username"] = json!(acme.id);
        record["request"]["headers"]["authorization"] = json!(format!("Bearer {caller}"));
        record["request"]["headers"]["apikey"] = json!(caller);
        record["request"]["headers"]["cookie"] = json!(format!("session={caller}"));
        record["request"]["querystring"] = json!({"key": caller});
        record["request"]["uri"] = json!(format!("/v1/llm?key={caller}"));
        record["request"]["url"] = json!(format!("http://kong/v1/llm?key={caller}"));
        let mut broken = record.clone();
        broken["started_at"] = json!(caller);
        for token in [KONG_LOG_TOKEN, wrong.as_str()] {
            for body in [json!([record]), json!([broken]), json!([record, {"request": {}}, 7])] {
                let headers = [("x-ingest-token", token)];
                self.quietly(&anonymous, Method::POST, "/v1/gateway/kong/logs", &headers, body).await;
            }
        }
        // Decisions for which OpenFGA is asked.
        let policy = json!({"name": "viewers", "effect": "allow", "subjects": [{"type": "everybody"}],
            "permissions": ["document:open"], "condition": {"relation": "viewer"}});
        self.quietly(&acme.api, Method::POST, "/v1/policies", &[], policy).await;
        let question = json!({"subject": {"type": "user", "id": "john"}, "action": {"name": "open"},
            "resource": {"type": "document", "id": "7"}});
        for _ in 0..2 {
            self.quietly(&acme.api, Method::POST, "/access/v1/evaluation", &[], question.clone()).await;
        }
    }

    /// Usage and alerts, by way of everybody who is told of them.
    async fn alerts(&mut self, acme: &Tenant) {
        let platform = self.daemon.platform.clone();
        acme.put_quotas(json!([token_quota(100, "month")])).await;
        let bus = self.daemon.bus().await;
        bus.publish(&acme.event().tokens(500, 0).json()).await;
        bus.publish(&json!({"eventId": "malformed", "tenantId": acme.id})).await;
        self.daemon.drained(&bus).await;
        eventually("the alerts", async || (acme.alerts().await.len() == 3).then_some(())).await;
        let hook = self.hook.clone();
        eventually("the receiver to be told", async || (hook.taken().len() >= 6).then_some(())).await;
        for channel in ["hook", "pager", "mail", "open-mail", "chat", "bus"] {
            let path = format!("/v1/notification-channels/{channel}/test");
            self.quietly(&platform, Method::POST, &path, &[], Value::Null).await;
        }
        let mail = self.mail.clone();
        eventually("a mail", async || (!mail.mails().is_empty()).then_some(())).await;
        eventually("Slack to be told", async || (self.echo.asked("/slack").len() > 1).then_some(())).await;
    }

    /// Everything that can be read.
    async fn lists(&mut self, acme: &Tenant) {
        let platform = self.daemon.platform.clone();
        let document = platform.anonymous().get("/openapi.json").await.ok();
        let mut read = 0;
        for (path, methods) in document["paths"].as_object().expect("paths") {
            if methods["get"].is_null() || path.ends_with("/auth/me") {
                continue;
            }
            let named = path.replace("{tenantId}", &acme.id);
            let named = if path.starts_with("/v1/tenants/{id}") { named.replace("{id}", &acme.id) } else { named };
            if named.contains('{') {
                continue;
            }
            self.quietly(&acme.api, Method::GET, &named, &[], Value::Null).await;
            for more in ["", "?limit=200"] {
                self.quietly(&platform, Method::GET, &format!("{named}{more}"), &[], Value::Null).await;
            }
            read += 1;
        }
        assert!(read > 20, "{read} lists");
        for api in [&acme.api, &platform] {
            let records = api.pages("/v1/audit", 200).await;
            self.told.push(Kept::new("the audit", Value::from(records).to_string()));
        }
    }

    /// Commands with settings that are right, and with ones that cannot be.
    async fn commands(&mut self) {
        let secret = "broken-canary-5e8a2046";
        self.canaries.add("a secret of a broken setting", secret);
        let config = self.daemon.config_file();
        let config = config.to_str().expect("a plain path");
        let broken = [
            ("STORE__URL", format!("postgres://user:{secret}@127.0.0.1:port/db")),
            ("STORE__URL", format!("postgres://user:{secret}@127.0.0.1:1/db")),
            ("STORE__URL", secret.to_owned()),
            ("NATS__URL", format!("nats://user:{secret}@:x")),
            ("REDIS__URL", format!("redis://:{secret}@[127.0.0.1/")),
            ("GATEWAY__KONG__REDIS__URL", format!("http://:{secret}@127.0.0.1/")),
            ("VAULT__KEYS", secret.to_owned()),
            ("FLAGSMITH__ENVIRONMENT_KEY", format!("{secret} \u{e4}")),
            ("LITELLM__URL", format!("http://user:{secret}@127.0.0.1/")),
            ("AUTH__BOOTSTRAP_KEY", secret.to_owned()),
            ("AUTH__KEY_PEPPER", secret.to_owned()),
        ];
        for (number, (name, value)) in broken.iter().enumerate() {
            for (word, patience) in [("check-config", PATIENCE), ("serve", UNTIL_KILLED)] {
                // What it says is found among the files.
                let said = self.daemon.folder.path().join(format!("said-{number}-{word}"));
                let said = std::fs::File::create(said).expect("a folder of ours");
                let mut command = self.daemon.command(&[word, "--config", config]);
                command.env(format!("PLATFORM_API__{name}"), value);
                command.stdout(said.try_clone().expect("a second handle")).stderr(said);
                let mut child = command.spawn().expect("the binary runs");
                if tokio::time::timeout(patience, child.wait()).await.is_err() {
                    child.kill().await.expect("a process of ours");
                }
            }
        }
        for arguments in [["check-config", "--config", config], ["migrate", "--config", config]] {
            let output = self.daemon.run(&arguments).await;
            self.told.push(Kept::new(format!("the command {}", arguments[0]), [output.stdout, output.stderr].concat()));
        }
        let verified = self.daemon.verify_offline().await;
        self.told.push(Kept::new("the command audit verify", [verified.stdout, verified.stderr].concat()));
    }

    /// All that was said and kept by now.
    async fn everything(&self, tenants: &[&Tenant]) -> Vec<Kept> {
        let mut control = Database::of_control(&self.daemon).await;
        let mut all = canary::database("the control database", &mut control).await;
        for tenant in tenants {
            let mut books = Database::of_tenant(&self.daemon, &tenant.id).await;
            all.extend(canary::database("a tenant's database", &mut books).await);
        }
        all.extend(canary::streams(&self.nats_url).await);
        all.extend(canary::redis(&self.redis_url).await);
        // The settings are the secrets' own place, and so is the file of the KEK.
        all.extend(canary::files(self.daemon.folder.path(), &["platform-api.toml", "kek"]));
        all.extend(self.echo.asked("/otlp").into_iter().map(|one| Kept::new("a trace", one.body)));
        let told = self.hook.received().into_iter().filter(|one| !one.header("webhook-id").is_empty());
        all.extend(told.map(|one| Kept::new("a notification", one.bytes)));
        all.extend(self.mail.mails().into_iter().map(|mail| Kept::new("a mail", mail)));
        all.extend(self.told.iter().map(|one| Kept::new(&one.place, one.bytes.clone())));
        all
    }

    /// One secret in each place, and how the place is called.
    async fn plant(&mut self, acme: &Tenant, secret: &str) -> Vec<&'static str> {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let encoded = STANDARD.encode(format!("x:{secret}"));
        for mut database in
            [Database::of_control(&self.daemon).await, Database::of_tenant(&self.daemon, &acme.id).await]
        {
            let blob = match self.daemon.engine {
                Engine::Sqlite => {
                    format!("CREATE TABLE planted (t TEXT, b BLOB); INSERT INTO planted VALUES ('{encoded}', x'{hex}')")
                }
                Engine::Postgres => format!(
                    "CREATE TABLE planted (t TEXT, b BYTEA); INSERT INTO planted VALUES ('{encoded}', decode('{hex}', 'hex'))"
                ),
            };
            database.script(blob).await.expect("a table of ours");
        }
        let bus = self.daemon.bus().await;
        bus.publish_bytes(&bus.subject, json!({"planted": secret}).to_string().into_bytes()).await;
        let mut connection = services::redis_at(&self.redis_url).await;
        let mut planted = redis::pipe();
        planted.cmd("HSET").arg("planted-hash").arg("field").arg(in_url(secret)).ignore();
        planted.cmd("SADD").arg("planted-set").arg(secret).ignore();
        planted.cmd("RPUSH").arg("planted-list").arg(secret).ignore();
        planted.cmd("ZADD").arg("planted-sorted").arg(1).arg(secret).ignore();
        planted.cmd("XADD").arg("planted-stream").arg("*").arg("field").arg(&hex).ignore();
        planted.cmd("SET").arg("planted-text").arg(secret).ignore();
        planted.query_async::<()>(&mut connection).await.expect("Redis takes it");
        let folder = self.daemon.folder.path().join("planted");
        std::fs::create_dir(&folder).expect("a folder of ours");
        std::fs::write(folder.join("planted-file"), format!("{secret:?}")).expect("a folder of ours");
        let log = std::fs::File::options().append(true).open(self.daemon.folder.path().join("log"));
        writeln!(log.expect("it was begun"), "{}", json!({"message": format!("refused: {secret}")})).expect("a line");
        self.told.push(Kept::new("planted answer", json!({"error": secret}).to_string()));
        vec![
            "the control database planted.t",
            "the control database planted.b",
            "a tenant's database planted.t",
            "a tenant's database planted.b",
            "message of ",
            "Redis planted-hash",
            "Redis planted-set",
            "Redis planted-list",
            "Redis planted-sorted",
            "Redis planted-stream",
            "Redis planted-text",
            "file planted-file",
            "file log",
            "planted answer",
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_anywhere_but_where_it_belongs() {
    on_both(|engine| async move {
        let mut house = open(engine).await;
        let (acme, globex) = house.keys().await;
        house.people(&acme).await;
        house.passwords(&acme).await;
        house.providers(&acme).await;
        house.gateways(&acme).await;
        house.alerts(&acme).await;
        house.lists(&acme).await;
        if engine == Engine::Sqlite {
            let kek = std::fs::read_to_string(house.daemon.folder.path().join("kek")).expect("it was made");
            for word in kek.split_whitespace().filter(|word| word.len() >= 32) {
                house.canaries.add("the KEK in its file", word);
                house.canaries.add_bytes("the bytes of the KEK", &STANDARD.decode(word).expect("base64"));
            }
        }
        let echo = house.echo.clone();
        eventually("traces", async || (!echo.asked("/otlp").is_empty()).then_some(())).await;
        let metrics = house.daemon.platform.anonymous().get("/metrics").await;
        house.hears("the metrics", &metrics);
        // What the last sessions and the farewell say is in the log, too.
        house.daemon.terminate().await;
        house.commands().await;

        let all = house.everything(&[&acme, &globex]).await;
        let places: BTreeSet<&str> = all.iter().map(|one| one.place.split(' ').next().unwrap_or_default()).collect();
        for kind in ["the", "a", "stream", "message", "file", "answer"] {
            assert!(places.contains(kind), "nothing was looked at: {kind} of {places:?}");
        }
        assert!(house.canaries.count() > 50, "{}", house.canaries.count());
        assert_eq!(house.canaries.found_in(&all), BTreeSet::new(), "on {engine}");

        // The same search, by the same ways, finds what is there.
        house.daemon.restart().await;
        let planted = "planted/+canary=\"5e8a2046";
        let mut canaries = Canaries::default();
        canaries.add("planted", planted);
        let places = house.plant(&acme, planted).await;
        let found = canaries.found_in(&house.everything(&[&acme, &globex]).await);
        for place in places {
            assert!(found.iter().any(|one| one.starts_with(place)), "not found: {place} in {found:#?}");
        }
    })
    .await;
}
