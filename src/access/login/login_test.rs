//! Logging in, end to end but for HTTP: before a real directory, with sessions in the database and in a real Redis, and an
//! issuer that can be made to misbehave.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::*;
use crate::access::gate_test::House;
use crate::access::{Caller, Credentials, SessionCookie, Unauthenticated};
use crate::domain::organization::user::ProfilePatch;
use crate::domain::organization::{Expected, Organization};
use crate::domain::time::MICROS_PER_SECOND;
use crate::tenant::organization::{CreateGroup, EditUser, UserEdit};
use crate::tenant::task::untold;

const PUBLIC: &str = "https://platform.example.com";
const CLIENT: &str = "platform-console";

/// Where sessions are kept.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Database,
    Redis,
}

/// A gate, and what a browser remembers.
struct Stage {
    house: House,
    clock: Clock,
}

struct Browser {
    flow: String,
    state: String,
    nonce: String,
    challenge: String,
}

/// Cookies of a session.
#[derive(Clone)]
struct Jar {
    session: String,
    csrf: String,
}

impl Jar {
    fn of(entered: &Entered) -> Jar {
        let value = |name: &str| {
            let line = entered.cookies.iter().find(|line| line.starts_with(name)).unwrap();
            line.split(['=', ';']).nth(1).unwrap().to_owned()
        };
        Jar { session: value("__Host-platform-session="), csrf: value("__Host-platform-csrf=") }
    }

    fn said(&self) -> Provenance<'_> {
        Provenance { origin: Some(PUBLIC), fetch_site: None, token: Some(&self.csrf) }
    }
}

impl Stage {
    async fn new(place: Where) -> Stage {
        Stage::with(place, |_| {}).await
    }

    async fn with(place: Where, configure: impl FnOnce(&mut config::Config)) -> Stage {
        // Redis has a clock of its own, and forgets what is over by it.
        let clock = Clock::held_at(Clock::system().now());
        let house = House::with(clock.clone(), |config| {
            config.auth.login.public_url = Some(PUBLIC.into());
            // What is remembered is found out by a test of its own.
            config.auth.login.stale_ms = 0;
            config.auth.local = config::Local { memory_kib: 64, passes: 1, ..config::Local::default() };
            let issuer = &mut config.auth.issuers[0];
            issuer.name = Some("test".into());
            let login = json!({"client_id": CLIENT, "client_secret": "secret", "scopes": ["openid"]});
            issuer.login = Some(serde_json::from_value(login).unwrap());
            if place == Where::Redis {
                let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
                config.redis.url = Some(url.into());
                config.auth.login.key_prefix = format!("login-test-{}:", crate::clock::new_id());
            }
            configure(config);
        })
        .await;
        house.issuer.behave(|issuer| {
            let own = issuer.own.clone();
            issuer.offers = json!({
                "authorization_endpoint": format!("{own}/authorize"), "token_endpoint": format!("{own}/token"),
                "end_session_endpoint": format!("{own}/end"), "userinfo_endpoint": format!("{own}/userinfo"),
            });
        });
        Stage { house, clock }
    }

    fn gate(&self) -> &Gate {
        &self.house.gate
    }

    async fn begin(&self) -> Browser {
        let begun = self.gate().begin_login(None, Some("/console")).await.unwrap();
        let url = reqwest::Url::parse(&begun.location).unwrap();
        let said = |name: &str| url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
        assert_eq!(said("redirect_uri"), format!("{PUBLIC}{CALLBACK}"));
        assert_eq!((said("response_type").as_str(), said("code_challenge_method").as_str()), ("code", "S256"));
        let flow = begun.cookie.split(['=', ';']).nth(1).unwrap().to_owned();
        Browser { flow, state: said("state"), nonce: said("nonce"), challenge: said("code_challenge") }
    }

    fn id_claims(&self, nonce: &str) -> Value {
        let now = self.clock.now().0 / MICROS_PER_SECOND;
        json!({"iss": self.house.issuer.url, "aud": CLIENT, "sub": "00u1", "exp": now + 300, "iat": now, "nonce": nonce,
            "sid": "sid-1", "tenant": self.house.tenant.to_string(), "roles": ["reader"], "name": "Jane Doe"})
    }

    /// The issuer gives this for whatever it is asked.
    fn gives(&self, claims: &Value, refresh_token: Option<&str>) {
        let signer = &self.house.signer;
        let header = json!({"alg": signer.algorithm(), "kid": signer.id});
        let mut answer =
            json!({"access_token": "at", "token_type": "Bearer", "id_token": signer.sign(&header, claims)});
        if let Some(token) = refresh_token {
            answer["refresh_token"] = json!(token);
        }
        self.house.issuer.answers("/token", 200, answer);
    }

    async fn finish(&self, browser: &Browser, old: Option<&str>) -> Result<Entered, LoginRefused> {
        let answer = LoginAnswer { code: Some("code"), state: Some(&browser.state), ..LoginAnswer::default() };
        self.gate().finish_login(answer, Some(&browser.flow), old, "r").await
    }

    async fn log_in(&self) -> Jar {
        let browser = self.begin().await;
        self.gives(&self.id_claims(&browser.nonce), Some("rt-1"));
        Jar::of(&self.finish(&browser, None).await.unwrap())
    }

    async fn call(&self, jar: &Jar, changes: bool, said: Provenance<'_>) -> Result<Caller, Unauthenticated> {
        let session = Some(SessionCookie { cookie: &jar.session, changes, said });
        self.gate().authenticate(Credentials { session, ..Credentials::default() }).await
    }

    async fn reads(&self, jar: &Jar) -> Result<Caller, Unauthenticated> {
        self.call(jar, false, Provenance::default()).await
    }

    async fn refresh(&self, jar: &Jar) -> Result<Jar, LoginRefused> {
        self.gate().refresh_session(&jar.session, jar.said()).await.map(|entered| Jar::of(&entered))
    }

    fn pass(&self, seconds: i64) {
        self.clock.set(self.clock.now().plus_micros(seconds * MICROS_PER_SECOND));
    }

    async fn people(&self) -> std::sync::Arc<Organization> {
        people_of(&self.house.directory, self.house.tenant).await.unwrap()
    }

    async fn deactivate(&self, user: &User) {
        let edit = UserEdit::Patch(ProfilePatch { active: Some(false), ..ProfilePatch::default() });
        let limits = config::Organization::default().limits();
        let change = EditUser { id: user.id, edit, expected: Expected::Any, limits };
        let home = self.house.directory.find(self.house.tenant).await.unwrap();
        home.change(change, Request::system(), untold).await.unwrap().unwrap();
    }

    async fn logout_token(&self, change: impl FnOnce(&mut Value)) -> Result<(), LoginRefused> {
        let now = self.clock.now().0 / MICROS_PER_SECOND;
        let mut claims = json!({"iss": self.house.issuer.url, "aud": CLIENT, "iat": now, "exp": now + 60, "jti": "j-1",
            "sub": "00u1", "sid": "sid-1", "events": {"http://schemas.openid.net/event/backchannel-logout": {}}});
        change(&mut claims);
        let signer = &self.house.signer;
        let header = json!({"alg": signer.algorithm(), "kid": signer.id, "typ": "logout+jwt"});
        self.gate().back_channel_logout(&signer.sign(&header, &claims)).await
    }
}

/// Each story with sessions in the database and in Redis.
macro_rules! in_both {
    ($($story:ident),+ $(,)?) => {
        mod in_the_database {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Where::Database).await;
            })+
        }
        mod in_redis {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Where::Redis).await;
            })+
        }
    };
}

in_both!(
    a_login_makes_a_session_that_speaks_for_the_person,
    a_login_is_finished_once_and_by_its_own_browser,
    a_session_that_the_browser_came_with_ends,
    a_refresh_changes_the_secret_and_an_old_one_ends_the_session,
    two_that_refresh_at_once_get_the_same_secret,
    a_session_ends_when_it_is_left_alone_and_in_any_case,
    an_issuer_ends_sessions_behind_the_browser_s_back,
    leaving_ends_the_session,
);

async fn a_login_makes_a_session_that_speaks_for_the_person(place: Where) {
    let stage = Stage::new(place).await;
    let browser = stage.begin().await;
    stage.gives(&stage.id_claims(&browser.nonce), Some("rt-1"));
    let entered = stage.finish(&browser, None).await.unwrap();
    assert_eq!(entered.return_to, "/console");
    assert_eq!((entered.view.name.as_str(), entered.view.provider.as_str()), ("Jane Doe", "test"));
    let asked = stage.house.issuer.last("/token");
    let verifier = asked.split("code_verifier=").nth(1).unwrap().split('&').next().unwrap();
    assert_eq!(
        Flow { verifier: verifier.into(), ..Flow::new("", String::new(), Timestamp(0)) }.challenge(),
        browser.challenge
    );

    let jar = Jar::of(&entered);
    let caller = stage.reads(&jar).await.unwrap();
    assert_eq!((caller.actor.as_str(), caller.tenant), ("user:00u1", Some(stage.house.tenant)));
    assert_eq!((caller.roles.as_slice(), caller.service), ([crate::domain::tenant::Role::Reader].as_slice(), false));
    // To change something, a cookie is not enough.
    assert_eq!(stage.call(&jar, true, Provenance::default()).await, Err(Unauthenticated::Unproven));
    let foreign = Provenance { origin: Some("https://evil.example.com"), ..jar.said() };
    assert_eq!(stage.call(&jar, true, foreign).await, Err(Unauthenticated::Unproven));
    assert!(stage.call(&jar, true, jar.said()).await.is_ok());
    // Another credential goes first, and is not made up for by a cookie.
    let session = Some(SessionCookie { cookie: &jar.session, changes: false, said: jar.said() });
    let both = Credentials { authorization: vec!["Bearer nonsense"], session, ..Credentials::default() };
    assert_eq!(stage.gate().authenticate(both).await, Err(Unauthenticated::Invalid));
    for forged in ["", "x", &jar.csrf, &"A".repeat(64)] {
        let forged = Jar { session: forged.to_owned(), csrf: jar.csrf.clone() };
        assert_eq!(stage.reads(&forged).await, Err(Unauthenticated::Invalid));
    }
}

async fn a_login_is_finished_once_and_by_its_own_browser(place: Where) {
    let stage = Stage::new(place).await;
    let (ours, theirs) = (stage.begin().await, stage.begin().await);
    stage.gives(&stage.id_claims(&ours.nonce), None);
    let answer = LoginAnswer { code: Some("code"), state: Some(&ours.state), ..LoginAnswer::default() };
    let finish = async |answer, flow: Option<&str>| stage.gate().finish_login(answer, flow, None, "r").await.err();
    let failed = Some(LoginRefused::Failed);
    assert_eq!(finish(answer, None).await, failed, "no login was begun here");
    assert_eq!(finish(answer, Some(&theirs.flow)).await, failed, "another browser's");
    assert_eq!(finish(LoginAnswer { state: None, ..answer }, Some(&ours.flow)).await, failed);
    let another = LoginAnswer { issuer: Some("https://evil.example.com"), ..answer };
    let (mixed, early) = (stage.begin().await, stage.begin().await);
    let another = LoginAnswer { state: Some(&mixed.state), ..another };
    assert_eq!(finish(another, Some(&mixed.flow)).await, failed, "another issuer's answer");
    assert_eq!(stage.house.issuer.asked("/token"), 0, "no code was shown to anybody");
    assert!(finish(answer, Some(&ours.flow)).await.is_none());
    assert_eq!(finish(answer, Some(&ours.flow)).await, failed, "a second time");
    stage.pass(600);
    assert_eq!(stage.finish(&early, None).await.err(), failed, "too late");
}

async fn a_session_that_the_browser_came_with_ends(place: Where) {
    let stage = Stage::new(place).await;
    let planted = stage.log_in().await;
    let browser = stage.begin().await;
    stage.gives(&stage.id_claims(&browser.nonce), None);
    let jar = Jar::of(&stage.finish(&browser, Some(&planted.session)).await.unwrap());
    assert!(jar.session != planted.session && jar.csrf != planted.csrf);
    assert_eq!(stage.reads(&planted).await, Err(Unauthenticated::Invalid), "whoever planted it has nothing");
    assert!(stage.reads(&jar).await.is_ok());
    assert_eq!(stage.call(&jar, true, planted.said()).await, Err(Unauthenticated::Unproven));
}

async fn a_refresh_changes_the_secret_and_an_old_one_ends_the_session(place: Where) {
    let stage = Stage::new(place).await;
    let first = stage.log_in().await;
    assert_eq!(
        stage.gate().refresh_session(&first.session, Provenance::default()).await.err(),
        Some(LoginRefused::Unproven)
    );
    let mut claims = stage.id_claims("");
    (claims["roles"], claims["name"]) = (json!(["admin"]), json!("Jane Roe"));
    stage.gives(&claims, Some("rt-2"));
    let second = stage.refresh(&first).await.unwrap();
    assert!(second.session != first.session && second.csrf == first.csrf);
    assert!(stage.house.issuer.last("/token").contains("refresh_token=rt-1"));
    let caller = stage.reads(&second).await.unwrap();
    assert_eq!(caller.roles, [crate::domain::tenant::Role::Admin], "as the issuer says now");
    assert!(stage.reads(&first).await.is_ok(), "a request that was under way");
    stage.pass(11);
    let third = stage.refresh(&second).await.unwrap();
    assert!(stage.house.issuer.last("/token").contains("refresh_token=rt-2"));
    assert_eq!(stage.reads(&first).await, Err(Unauthenticated::Invalid), "a copy");
    for jar in [&second, &third] {
        assert_eq!(stage.reads(jar).await, Err(Unauthenticated::Invalid), "for everybody who has it");
        assert_eq!(stage.refresh(jar).await.err(), Some(LoginRefused::Session));
    }
}

async fn two_that_refresh_at_once_get_the_same_secret(place: Where) {
    let stage = Stage::new(place).await;
    let first = stage.log_in().await;
    stage.gives(&stage.id_claims(""), Some("rt-2"));
    let asked = stage.house.issuer.asked("/token");
    let (one, other) = tokio::join!(stage.refresh(&first), stage.refresh(&first));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.session, other.session);
    assert_eq!(stage.house.issuer.asked("/token"), asked + 1, "the refresh token is used once");
    assert_eq!(stage.refresh(&first).await.unwrap().session, one.session, "an answer that got lost comes again");
    assert!(stage.reads(&one).await.is_ok());
    // Who has the new one and refreshes again at once keeps it: the first may still be under way.
    assert_eq!(stage.refresh(&one).await.unwrap().session, one.session);
    assert!(stage.reads(&first).await.is_ok());
    assert_eq!(stage.house.issuer.asked("/token"), asked + 1);
    stage.pass(11);
    assert_ne!(stage.refresh(&one).await.unwrap().session, one.session);
}

async fn a_session_ends_when_it_is_left_alone_and_in_any_case(place: Where) {
    let hours = |hours: u64| hours * 3_600_000;
    let lasting = |config: &mut config::Config| {
        (config.auth.login.idle_ms, config.auth.login.session_ms) = (hours(1), hours(2));
    };
    let stage = Stage::with(place, lasting).await;
    let (left_alone, mut kept) = (stage.log_in().await, stage.log_in().await);
    for _ in 0..2 {
        stage.pass(3_599);
        stage.gives(&stage.id_claims(""), None);
        kept = stage.refresh(&kept).await.unwrap();
    }
    assert_eq!(stage.reads(&left_alone).await, Err(Unauthenticated::Invalid));
    assert!(stage.reads(&kept).await.is_ok());
    stage.pass(2);
    assert_eq!(stage.reads(&kept).await, Err(Unauthenticated::Invalid));
    assert_eq!(stage.refresh(&kept).await.err(), Some(LoginRefused::Session));
}

async fn an_issuer_ends_sessions_behind_the_browser_s_back(place: Where) {
    let stage = Stage::new(place).await;
    let jar = stage.log_in().await;
    stage.logout_token(|claims| claims["aud"] = json!("another")).await.unwrap_err();
    stage.logout_token(|claims| claims["sub"] = json!("00u2")).await.unwrap();
    stage.logout_token(|claims| (claims["sid"], claims["jti"]) = (json!("sid-2"), json!("j-2"))).await.unwrap();
    assert!(stage.reads(&jar).await.is_ok(), "not hers");
    assert_eq!(stage.logout_token(|_| ()).await, Err(LoginRefused::LogoutToken), "the same id again");
    stage.logout_token(|claims| claims["jti"] = json!("j-3")).await.unwrap();
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));

    let again = stage.log_in().await;
    let by_person = |claims: &mut Value| {
        claims["jti"] = json!("j-4");
        claims.as_object_mut().unwrap().remove("sid");
    };
    stage.logout_token(by_person).await.unwrap();
    assert_eq!(stage.reads(&again).await, Err(Unauthenticated::Invalid));
    // An ID token is no logout token, whoever signed it.
    let id_token = stage.house.signer.sign(&stage.house.signer.header(), &stage.id_claims("n"));
    assert_eq!(stage.gate().back_channel_logout(&id_token).await, Err(LoginRefused::LogoutToken));
}

#[tokio::test]
async fn an_issuer_s_word_that_could_not_be_followed_is_followed_when_it_comes_again() {
    let stage = Stage::new(Where::Redis).await;
    let jar = stage.log_in().await;
    let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
    let mut connection = ::redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let prefix = &stage.gate().shared.login.settings.key_prefix;
    let mut keys = ::redis::cmd("KEYS");
    let keys: Vec<String> = keys.arg(format!("{prefix}i:*")).query_async(&mut connection).await.unwrap();
    let [set] = keys.as_slice() else { panic!("one session of the issuer's: {keys:?}") };
    let kept = format!("{prefix}kept");
    // What is no set cannot be read as one.
    let rename = async |from: &str, to: &str, connection: &mut ::redis::aio::MultiplexedConnection| {
        ::redis::cmd("RENAME").arg(from).arg(to).query_async::<()>(connection).await.unwrap();
    };
    rename(set, &kept, &mut connection).await;
    ::redis::cmd("SET").arg(set).arg("x").query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(stage.logout_token(|_| ()).await, Err(LoginRefused::SessionsAway));
    rename(&kept, set, &mut connection).await;
    assert!(stage.reads(&jar).await.is_ok());
    stage.logout_token(|_| ()).await.unwrap();
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));
    assert_eq!(stage.logout_token(|_| ()).await, Err(LoginRefused::LogoutToken), "and only then it was said");
}

async fn leaving_ends_the_session(place: Where) {
    let stage = Stage::new(place).await;
    let jar = stage.log_in().await;
    let leave = async |jar: &Jar, said| stage.gate().end_session(Some(&jar.session), said, "r").await;
    let foreign = Provenance { origin: Some("https://evil.example.com"), ..Provenance::default() };
    let by_a_form = stage.gate().end_session(None, foreign, "r").await;
    assert_eq!(by_a_form, Err(LoginRefused::Unproven), "its answer would take the cookie away");
    assert_eq!(leave(&jar, Provenance::default()).await, Err(LoginRefused::Unproven));
    let url = leave(&jar, jar.said()).await.unwrap().unwrap();
    let expected = format!("{}/end?client_id={CLIENT}&post_logout_redirect_uri=", stage.house.issuer.url);
    assert!(url.starts_with(&expected), "{url}");
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));
    assert_eq!(leave(&jar, jar.said()).await, Ok(None), "again");
}

#[tokio::test]
async fn an_id_token_that_is_not_this_login_s_makes_no_session() {
    let stage = Stage::new(Where::Database).await;
    let now = stage.clock.now().0 / MICROS_PER_SECOND;
    for (name, value) in [
        ("nonce", json!("another")),
        ("nonce", Value::Null),
        ("aud", json!("another-client")),
        // For several, and not made for us.
        ("aud", json!([CLIENT, "another-client"])),
        ("azp", json!("another-client")),
        ("iss", json!("https://evil.example.com")),
        ("exp", json!(now - 61)),
        ("iat", json!(now + 61)),
        ("iat", json!("now")),
        ("nbf", json!(now + 61)),
        ("sub", json!("")),
        ("events", json!({})),
        ("typ", json!("Bearer")),
        ("token_use", json!("access")),
        ("tenant", json!("not-an-id")),
    ] {
        let browser = stage.begin().await;
        let mut claims = stage.id_claims(&browser.nonce);
        claims[name] = value.clone();
        stage.gives(&claims, None);
        assert_eq!(stage.finish(&browser, None).await.err(), Some(LoginRefused::Failed), "{name}: {value}");
    }
    // Signed by nobody, by a stranger, or with an access token's type.
    let (signer, stranger) = (&stage.house.signer, crate::access::issuer_peer::Signer::ed25519("d"));
    let none = |claims: &Value| format!("{}.", crate::access::issuer_peer::message(&json!({"alg": "none"}), claims));
    let typed = json!({"alg": signer.algorithm(), "kid": signer.id, "typ": "at+jwt"});
    let plain = json!({"alg": signer.algorithm(), "kid": signer.id});
    let inside = json!({"alg": signer.algorithm(), "kid": signer.id, "jwk": stranger.jwk()});
    let makers: [&dyn Fn(&Value) -> String; 4] =
        [&none, &|claims| signer.sign(&typed, claims), &|claims| stranger.sign(&plain, claims), &|claims| {
            stranger.sign(&inside, claims)
        }];
    for (at, made) in makers.into_iter().enumerate() {
        let browser = stage.begin().await;
        let answer = json!({"id_token": made(&stage.id_claims(&browser.nonce)), "token_type": "Bearer"});
        stage.house.issuer.answers("/token", 200, answer);
        assert_eq!(stage.finish(&browser, None).await.err(), Some(LoginRefused::Failed), "{at}");
    }
    for (status, refused) in
        [(400, LoginRefused::Failed), (401, LoginRefused::IssuerAway), (500, LoginRefused::IssuerAway)]
    {
        let browser = stage.begin().await;
        stage.house.issuer.answers("/token", status, json!({"error": "invalid_grant"}));
        assert_eq!(stage.finish(&browser, None).await.err(), Some(refused), "{status}");
    }
}

#[tokio::test]
async fn an_issuer_that_could_name_itself_must() {
    let stage = Stage::new(Where::Database).await;
    stage.house.issuer.behave(|issuer| issuer.offers["authorization_response_iss_parameter_supported"] = json!(true));
    let browser = stage.begin().await;
    stage.gives(&stage.id_claims(&browser.nonce), None);
    assert_eq!(stage.finish(&browser, None).await.err(), Some(LoginRefused::Failed));
    let browser = stage.begin().await;
    stage.gives(&stage.id_claims(&browser.nonce), None);
    let issuer = stage.house.issuer.url.clone();
    let answer = LoginAnswer { code: Some("c"), state: Some(&browser.state), issuer: Some(&issuer), error: None };
    assert!(stage.gate().finish_login(answer, Some(&browser.flow), None, "r").await.is_ok());
}

#[tokio::test]
async fn what_an_issuer_says_at_a_refresh_is_what_holds() {
    let stage = Stage::new(Where::Database).await;
    // It does not answer: the session goes on.
    let jar = stage.log_in().await;
    stage.house.issuer.answers("/token", 503, json!({}));
    let jar = stage.refresh(&jar).await.unwrap();
    assert!(stage.reads(&jar).await.is_ok());
    stage.pass(11);
    // It vouches for somebody else.
    let mut other = stage.id_claims("");
    other["sub"] = json!("00u2");
    stage.gives(&other, None);
    assert_eq!(stage.refresh(&jar).await.err(), Some(LoginRefused::Session));
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));
    // It says that this is over.
    let jar = stage.log_in().await;
    stage.house.issuer.answers("/token", 400, json!({"error": "invalid_grant"}));
    assert_eq!(stage.refresh(&jar).await.err(), Some(LoginRefused::Session));
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));
}

#[tokio::test]
async fn people_are_added_when_they_first_come_and_follow_their_issuer() {
    let stage = Stage::with(Where::Database, |config| {
        let issuer = &mut config.auth.issuers[0];
        issuer.provision = true;
        issuer.groups = [("eng".to_owned(), "Engineers".to_owned()), ("ops".to_owned(), "Operators".to_owned())].into();
        issuer.attributes = [("department".to_owned(), "department".to_owned())].into();
    })
    .await;
    let home = stage.house.directory.find(stage.house.tenant).await.unwrap();
    let limits = config::Organization::default().limits();
    for name in ["Engineers", "Operators"] {
        let profile = crate::domain::organization::group::Profile::named(name);
        let id = crate::domain::ids::GroupId(crate::clock::new_id());
        let change = CreateGroup { id, profile, limits };
        home.change(change, Request::system(), untold).await.unwrap().unwrap();
    }
    let claims = |groups: Value, nonce: &str| {
        let mut claims = stage.id_claims(nonce);
        (claims["preferred_username"], claims["groups"]) = (json!("jane"), groups);
        claims["department"] = json!("sales");
        claims
    };
    let groups_of = async |name: &str| {
        let people = stage.people().await;
        let id = people.user_named(name).unwrap().id;
        let member = crate::domain::organization::group::Member::User(id);
        let names = people.groups_of(member).map(|id| people.group(id).unwrap().profile.display_name.clone());
        names.collect::<Vec<_>>()
    };
    let browser = stage.begin().await;
    stage.gives(&claims(json!(["eng", "unknown"]), &browser.nonce), Some("rt"));
    let jar = Jar::of(&stage.finish(&browser, None).await.unwrap());
    let people = stage.people().await;
    let jane = people.user_named("jane").unwrap().clone();
    assert_eq!(Value::Object(jane.profile.attributes.object()), json!({"department": "sales"}));
    assert_eq!(groups_of("jane").await, ["Engineers"]);
    // At the next refresh she has changed her team, and has no department any more; what was written here stays.
    let own = [("desk".to_owned(), json!("7"))].into_iter().collect();
    let own = crate::domain::organization::attributes::AttributesPatch::read(&own).ok();
    let edit = UserEdit::Patch(ProfilePatch { attributes: own.map(Some), ..ProfilePatch::default() });
    let change = EditUser { id: jane.id, edit, expected: Expected::Any, limits };
    home.change(change, Request::system(), untold).await.unwrap().unwrap();
    let mut without = claims(json!(["ops"]), "");
    without.as_object_mut().unwrap().remove("department");
    stage.gives(&without, None);
    let jar = stage.refresh(&jar).await.unwrap();
    let attributes = stage.people().await.user(jane.id).unwrap().profile.attributes.object();
    assert_eq!(Value::Object(attributes), json!({"desk": "7"}));
    assert_eq!((groups_of("jane").await, stage.people().await.user_count()), (vec!["Operators".to_owned()], 1));
    // With a token, somebody else.
    let now = stage.clock.now().0 / MICROS_PER_SECOND;
    let token = json!({"iss": stage.house.issuer.url, "aud": crate::access::issuer_peer::AUDIENCE, "sub": "00u2",
        "exp": now + 600, "tenant": stage.house.tenant.to_string(), "preferred_username": "john"});
    let token = stage.house.signer.sign(&stage.house.signer.header(), &token);
    stage.house.bearer(&token).await.unwrap();
    assert!(stage.people().await.user_of_subject(&stage.house.issuer.url, "00u2").is_some());
    // A name that somebody has is no proof of being her.
    let taken = json!({"iss": stage.house.issuer.url, "aud": crate::access::issuer_peer::AUDIENCE, "sub": "00u3",
        "exp": now + 600, "tenant": stage.house.tenant.to_string(), "preferred_username": "JANE"});
    let taken = stage.house.signer.sign(&stage.house.signer.header(), &taken);
    assert_eq!(stage.house.bearer(&taken).await.unwrap().roles, []);
    assert_eq!(stage.people().await.user_count(), 2);
    assert_eq!(stage.people().await.user_named("jane").unwrap().profile.subjects.len(), 1);

    stage.deactivate(&jane).await;
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid), "from the next request on");
    assert_eq!(stage.refresh(&jar).await.err(), Some(LoginRefused::Session));
    let browser = stage.begin().await;
    stage.gives(&claims(json!([]), &browser.nonce), None);
    assert_eq!(stage.finish(&browser, None).await.err(), Some(LoginRefused::Nobody), "and never by logging in");
}

#[tokio::test]
async fn nobody_is_added_where_that_is_off() {
    let stage = Stage::new(Where::Database).await;
    let jar = stage.log_in().await;
    assert!(stage.reads(&jar).await.is_ok());
    assert_eq!(stage.people().await.user_count(), 0);
}

#[tokio::test]
async fn claims_that_the_id_token_lacks_are_asked_for_of_the_same_person() {
    let with_userinfo = |config: &mut config::Config| {
        config.auth.issuers[0].login.as_mut().unwrap().userinfo = true;
    };
    let stage = Stage::with(Where::Database, with_userinfo).await;
    let bare = |nonce: &str| {
        let mut claims = stage.id_claims(nonce);
        claims.as_object_mut().unwrap().retain(|name, _| name != "tenant" && name != "roles");
        claims
    };
    let told = json!({"sub": "00u1", "tenant": stage.house.tenant.to_string(), "roles": ["admin"], "nonce": "x"});
    for (sub, expected) in [("00u1", None), ("00u2", Some(LoginRefused::Failed))] {
        let mut told = told.clone();
        told["sub"] = json!(sub);
        stage.house.issuer.answers("/userinfo", 200, told);
        let browser = stage.begin().await;
        stage.gives(&bare(&browser.nonce), None);
        let finished = stage.finish(&browser, None).await;
        if let Ok(entered) = &finished {
            assert_eq!(stage.reads(&Jar::of(entered)).await.unwrap().roles, [crate::domain::tenant::Role::Admin]);
        }
        assert_eq!(finished.err(), expected);
    }
    assert!(stage.house.issuer.last("/userinfo").contains("Bearer at"));
}

#[tokio::test]
async fn a_password_lets_in_whom_it_belongs_to_and_the_old_one_nobody() {
    let stage = Stage::new(Where::Database).await;
    let home = stage.house.directory.find(stage.house.tenant).await.unwrap();
    let limits = config::Organization::default().limits();
    let id = UserId(crate::clock::new_id());
    let profile = crate::domain::organization::user::Profile::named("jane");
    let change = crate::tenant::organization::CreateUser { id, profile, limits };
    home.change(change, Request::system(), untold).await.unwrap().unwrap();
    let word = |text: &str| Zeroizing::new(text.to_owned());
    let set = async |text: &str| {
        stage.gate().set_password(stage.house.tenant, id, word(text), Request::system()).await.unwrap();
    };
    set("correct horse battery").await;
    let enter = async |name: &str, password: &str, said: Provenance<'static>| {
        let attempt = LocalAttempt { tenant: None, user_name: name.into(), password: word(password), source: None };
        stage.gate().local_login(attempt, said, None, "r").await
    };
    let here = Provenance::default();
    for (name, password) in [("jane", "correct horse"), ("john", "correct horse battery"), ("", "")] {
        assert_eq!(enter(name, password, here).await.err(), Some(LoginRefused::Credentials), "{name}");
    }
    let foreign = Provenance { origin: Some("https://evil.example.com"), ..here };
    let refused = enter("jane", "correct horse battery", foreign).await.err();
    assert_eq!(refused, Some(LoginRefused::Unproven), "nobody is logged in by another page");
    let jar = Jar::of(&enter("JANE", "correct horse battery", here).await.unwrap());
    let caller = stage.reads(&jar).await.unwrap();
    assert_eq!((caller.tenant, caller.user.as_deref()), (Some(stage.house.tenant), Some("jane")));
    let jar = stage.refresh(&jar).await.unwrap();

    set("another horse battery").await;
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid), "it was begun with the old one");
    assert_eq!(enter("jane", "correct horse battery", here).await.err(), Some(LoginRefused::Credentials));
    let jar = Jar::of(&enter("jane", "another horse battery", here).await.unwrap());
    let jane = stage.people().await.user(id).unwrap().clone();
    stage.deactivate(&jane).await;
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::Invalid));
    assert_eq!(enter("jane", "another horse battery", here).await.err(), Some(LoginRefused::Credentials));
    assert_eq!(stage.gate().drop_password(stage.house.tenant, id, Request::system()).await, Ok(true));
    assert_eq!(stage.gate().drop_password(stage.house.tenant, id, Request::system()).await, Ok(false));
}

#[tokio::test]
async fn a_login_that_a_new_password_overtakes_leaves_no_session() {
    let stage = Stage::new(Where::Database).await;
    let (tenant, directory) = (stage.house.tenant, &stage.house.directory);
    let home = directory.find(tenant).await.unwrap();
    let limits = config::Organization::default().limits();
    let id = UserId(crate::clock::new_id());
    let profile = crate::domain::organization::user::Profile::named("jane");
    let change = crate::tenant::organization::CreateUser { id, profile, limits };
    home.change(change, Request::system(), untold).await.unwrap().unwrap();
    let set = async |text: &str| {
        let word = Zeroizing::new(text.to_owned());
        stage.gate().set_password(tenant, id, word, Request::system()).await.unwrap();
    };
    set("correct horse battery").await;
    let jane = stage.people().await.user(id).unwrap().clone();
    // The old password was right when it was looked at; then it is changed.
    let old = directory.password(tenant, id).await.unwrap();
    set("another horse battery").await;
    let (old_word, word) = (said("correct horse battery"), said("another horse battery"));
    let entered = stage.gate().enter_known((tenant, &jane), (old, &old_word), None, "r").await;
    assert_eq!(entered.err(), Some(LoginRefused::Credentials));
    let whose = Whose::Subject { issuer: LOCAL_ISSUER.to_owned(), subject: id.to_string() };
    assert_eq!(directory.end_sessions(whose).await.unwrap(), 0, "none is left");
    let now = directory.password(tenant, id).await.unwrap();
    assert!(stage.gate().enter_known((tenant, &jane), (now, &word), None, "r").await.is_ok());
    // Another hash of the same password overtakes nobody.
    assert!(stage.gate().enter_known((tenant, &jane), (Some("other".into()), &word), None, "r").await.is_ok());
}

/// Whether the password has changed meanwhile cannot be told, because too many are being looked at: whoever has just come in
/// goes again, and nobody else does.
#[tokio::test]
async fn a_login_that_nobody_has_time_to_look_at_again_ends_its_own_session_alone() {
    let stage = Stage::new(Where::Database).await;
    let (tenant, directory) = (stage.house.tenant, &stage.house.directory);
    let password = "correct horse battery";
    let id = with_password(&stage, password).await;
    let jane = stage.people().await.user(id).unwrap().clone();
    let elsewhere = enters(&stage, password).await.unwrap();
    let passwords = stage.gate().shared.login.passwords.as_ref().unwrap();
    // Hashed anew by another node, say, so the hash alone does not tell.
    let (other, word) = (Some("other".to_owned()), said(password));
    let crowd = passwords.crowd_out();
    let entered = stage.gate().enter_known((tenant, &jane), (other.clone(), &word), None, "r").await;
    assert_eq!(entered.err(), Some(LoginRefused::TooMany));
    assert!(stage.reads(&elsewhere).await.is_ok(), "the session of another browser stays");
    // Nothing is looked at where the hash is the one that was read.
    let same = directory.password(tenant, id).await.unwrap();
    assert!(stage.gate().enter_known((tenant, &jane), (same, &word), None, "r").await.is_ok());
    drop(crowd);
    assert!(stage.gate().enter_known((tenant, &jane), (other, &word), None, "r").await.is_ok());
    let whose = Whose::Subject { issuer: LOCAL_ISSUER.to_owned(), subject: id.to_string() };
    assert_eq!(directory.end_sessions(whose).await.unwrap(), 3, "all but the one that nobody had time for");
}

fn said(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

/// Jane, who logs in with a password.
async fn with_password(stage: &Stage, text: &str) -> UserId {
    let home = stage.house.directory.find(stage.house.tenant).await.unwrap();
    let limits = config::Organization::default().limits();
    let id = UserId(crate::clock::new_id());
    let profile = crate::domain::organization::user::Profile::named("jane");
    let change = crate::tenant::organization::CreateUser { id, profile, limits };
    home.change(change, Request::system(), untold).await.unwrap().unwrap();
    let word = Zeroizing::new(text.to_owned());
    stage.gate().set_password(stage.house.tenant, id, word, Request::system()).await.unwrap();
    id
}

async fn enters(stage: &Stage, password: &str) -> Result<Jar, LoginRefused> {
    let password = Zeroizing::new(password.to_owned());
    let attempt = LocalAttempt { tenant: None, user_name: "jane".into(), password, source: None };
    Ok(Jar::of(&stage.gate().local_login(attempt, Provenance::default(), None, "r").await?))
}

#[tokio::test]
async fn whoever_knows_the_password_changes_it_and_is_the_only_one_who_stays() {
    let stage = Stage::new(Where::Database).await;
    let (old, new) = ("correct horse battery", "another horse battery");
    let id = with_password(&stage, old).await;
    let (here, elsewhere) = (enters(&stage, old).await.unwrap(), enters(&stage, old).await.unwrap());
    let change = async |current: &str, new: &str| {
        let [current, new] = [current, new].map(|text| Zeroizing::new(text.to_owned()));
        let (tenant, session) = (stage.house.tenant, here.session.clone());
        let change = PasswordChange { tenant, user: id, current, new, source: None, session };
        stage.gate().change_own_password(change, Request::system()).await.map(|entered| Jar::of(&entered))
    };
    for (current, new, expected) in [
        (old, "short", NotChanged::Flawed("must be 12 characters to 256 bytes")),
        (old, "jane's own horse", NotChanged::Flawed("must not contain the user name")),
        (old, old, NotChanged::Flawed("must not be the current one")),
        ("wrong horse battery", new, NotChanged::Refused(LoginRefused::Credentials)),
    ] {
        assert_eq!(change(current, new).await.err(), Some(expected), "{current} {new}");
    }
    for jar in [&here, &elsewhere] {
        assert!(stage.reads(jar).await.is_ok(), "nothing has changed");
    }
    let after = change(old, new).await.unwrap();
    for jar in [&here, &elsewhere] {
        assert_eq!(stage.reads(jar).await, Err(Unauthenticated::Invalid));
    }
    assert_eq!(stage.reads(&after).await.unwrap().person, Some(id));
    assert_eq!(enters(&stage, old).await.err(), Some(LoginRefused::Credentials));
    assert!(enters(&stage, new).await.is_ok());
    stage.gate().drop_password(stage.house.tenant, id, Request::system()).await.unwrap();
    assert_eq!(change(new, old).await.err(), Some(NotChanged::Refused(LoginRefused::Credentials)));
}

#[tokio::test]
async fn a_hash_that_costs_something_else_is_made_anew_at_the_next_login() {
    let stage = Stage::new(Where::Database).await;
    let id = with_password(&stage, "correct horse battery").await;
    let (tenant, directory) = (stage.house.tenant, &stage.house.directory);
    let now = directory.password(tenant, id).await.unwrap().unwrap();
    assert!(enters(&stage, "correct horse battery").await.is_ok());
    assert_eq!(directory.password(tenant, id).await.unwrap().as_ref(), Some(&now), "it costs what it should");
    // As an older configuration has left it.
    let local = config::Local { memory_kib: 8_192, passes: 5, ..config::Local::default() };
    let older = local::Passwords::new(&local, stage.gate().pepper().derive("password")).unwrap();
    let cheap = older.hash(Zeroizing::new("correct horse battery".into())).await.unwrap();
    directory.put_password(tenant, id, cheap.clone(), Request::system()).await.unwrap();
    assert_eq!(enters(&stage, "wrong horse battery").await.err(), Some(LoginRefused::Credentials));
    assert_eq!(directory.password(tenant, id).await.unwrap().as_ref(), Some(&cheap), "only whoever knows it");
    let jar = enters(&stage, "correct horse battery").await.unwrap();
    let anew = directory.password(tenant, id).await.unwrap().unwrap();
    let cost = |hash: &str| hash.split('$').nth(3).unwrap().to_owned();
    assert_eq!(cost(&anew), cost(&now));
    assert_ne!(anew, now);
    assert!(stage.reads(&jar).await.is_ok());
    assert!(enters(&stage, "correct horse battery").await.is_ok());
    assert_eq!(directory.rehash_password(tenant, id, cheap.clone(), "late".into()).await, Ok(false), "not overtaken");
    let hashes = (cheap, "late".to_owned());
    assert_eq!(directory.change_password(tenant, id, hashes, Request::system()).await, Ok(false), "nor by its owner");
    assert_eq!(directory.password(tenant, id).await.unwrap(), Some(anew));
}

#[tokio::test]
async fn what_is_not_configured_is_not_there() {
    let stage = Stage::with(Where::Database, |config| config.auth.local.enabled = Some(false)).await;
    assert_eq!(stage.gate().login_providers(), ["test"]);
    let attempt = LocalAttempt { tenant: None, user_name: "jane".into(), password: Zeroizing::default(), source: None };
    let refused = stage.gate().local_login(attempt, Provenance::default(), None, "r").await.err();
    assert_eq!(refused, Some(LoginRefused::Off));
    assert_eq!(stage.gate().begin_login(Some("another"), None).await.err(), Some(LoginRefused::Off));
    let elsewhere = stage.gate().begin_login(None, Some("https://evil.example.com")).await.err();
    assert_eq!(elsewhere, Some(LoginRefused::ReturnTo));
}

#[tokio::test]
async fn nobody_is_let_in_while_the_sessions_are_out_of_reach() {
    let stage = Stage::with(Where::Database, |config| {
        config.redis.url = Some(SecretString::from("redis://127.0.0.1:1/"));
    })
    .await;
    let browser = stage.begin().await;
    stage.gives(&stage.id_claims(&browser.nonce), None);
    assert_eq!(stage.finish(&browser, None).await.err(), Some(LoginRefused::SessionsAway));
    let mint = &stage.gate().shared.login.mint;
    let jar = Jar { session: mint.write(&mint.fresh()), csrf: String::new() };
    assert_eq!(stage.reads(&jar).await, Err(Unauthenticated::SessionsAway));
}

#[tokio::test]
async fn a_session_that_was_ended_elsewhere_is_refused_when_the_moment_is_over() {
    let stage = Stage::with(Where::Redis, |config| config.auth.login.stale_ms = 50).await;
    let jar = stage.log_in().await;
    assert!(stage.reads(&jar).await.is_ok());
    // Another node ends it: behind this one's back.
    let login = &stage.gate().shared.login;
    let hash = login.mint.read(&jar.session).unwrap().hash();
    let id = login.keep.find_now(&hash).await.unwrap().unwrap().id;
    let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
    let other = redis::Redis::open_at(&url.into(), &login.settings.key_prefix).unwrap();
    assert_eq!(other.end(&Whose::One(id)).await, Ok(1));
    let refused = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while stage.reads(&jar).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    refused.await.expect("what is remembered is forgotten");
}
