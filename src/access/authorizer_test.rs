//! What a tenant lays down, before the whole gate on the embedded database.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::authorizer::Inquiry;
use super::engine::Reason;
use super::gate_test::House;
use super::openfga_peer::{Mood, OpenFgaPeer, STORE, TOKEN};
use super::*;
use crate::domain::ids::{PolicyId, RoleAssignmentId};
use crate::domain::organization::Limits;
use crate::domain::organization::attributes::Attributes;
use crate::domain::organization::user::{IssuedSubject, Profile};
use crate::domain::policy::Expected;
use crate::domain::policy::role::RoleTerms;
use crate::domain::policy::statement::{Effect, PolicyTerms, Subject as About};
use crate::domain::request::Request;
use crate::tenant::handle::Handle;
use crate::tenant::organization::{AssignRole, CreateUser};
use crate::tenant::policy::{CreatePolicy, CreateRole, DeletePolicy, ReplaceRole};
use crate::tenant::task::untold;

const LIMITS: Limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };

fn wish<'a>(object: &'a str, action: &'a str) -> Wish<'a> {
    Wish { object, action, id: None, source: Some("10.0.0.7".parse().unwrap()) }
}

impl House {
    async fn home(&self) -> Handle {
        self.directory.find(self.tenant).await.unwrap()
    }

    async fn may(&self, key: &SecretString, object: &str, action: &str) -> bool {
        let mut caller = self.bearer(key.expose_secret()).await.unwrap();
        self.gate.judge(&mut caller, &wish(object, action)).await.unwrap().allowed
    }

    async fn lays_down(&self, effect: Effect, about: About, permission: &str, condition: Value) -> PolicyId {
        let id = PolicyId(crate::clock::new_id());
        let terms = PolicyTerms {
            name: id.to_string(),
            description: String::new(),
            effect,
            subjects: vec![about],
            permissions: vec![permission.parse().unwrap()],
            resources: Vec::new(),
            condition: (!condition.is_null()).then(|| serde_json::from_value(condition).unwrap()),
            enabled: true,
        };
        let built_in = self.gate.authorizer().built_in().clone();
        let change = CreatePolicy { id, terms, built_in };
        self.home().await.change(change, Request::system(), untold).await.unwrap().unwrap();
        id
    }

    async fn takes_back(&self, id: PolicyId) {
        let change = DeletePolicy { id, expected: Expected::Any };
        self.home().await.change(change, Request::system(), untold).await.unwrap().unwrap();
    }

    /// Asks as a gateway would.
    async fn decided(&self, kind: &str, id: &str, action: &str, object: &str) -> (bool, Reason) {
        let inquiry = Inquiry {
            subject_type: kind.into(),
            subject_id: id.into(),
            action: action.into(),
            resource_type: object.into(),
            resource_id: Some("1".into()),
            said: Said::default(),
        };
        let authority = self.gate.authorizer().of(self.tenant).await.unwrap();
        let decided = self.gate.authorizer().decide(&authority, &inquiry).await;
        (decided.allowed, decided.reason)
    }
}

#[tokio::test]
async fn a_role_of_a_tenant_s_own_counts_from_the_next_request_on_and_gives_nothing_of_the_platform_s() {
    let house = House::new().await;
    let (key, id) = house.key(Role::Analyst).await;
    let terms = |permissions: &[&str]| RoleTerms {
        description: String::new(),
        permissions: permissions.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let built_in = house.gate.authorizer().built_in().clone();
    let name = "operator".to_owned();
    let everything = terms(&["*:*"]);
    let create = CreateRole { name: name.clone(), terms: everything, built_in: built_in.clone() };
    house.home().await.change(create, Request::system(), untold).await.unwrap().unwrap();
    assert!(!house.may(&key, "quotas", "replace").await);

    let (assignment, holder) = (RoleAssignmentId(crate::clock::new_id()), Holder::ApiKey(id));
    let assign = AssignRole { id: assignment, role: name.clone(), holder, limits: LIMITS };
    house.home().await.change(assign, Request::system(), untold).await.unwrap().unwrap();
    for (object, action, may) in [
        ("quotas", "replace", true),
        ("usage", "read", true),
        ("policies", "read", true),
        ("gatewayLog", "report", true),
        // What makes mightier, and what is the platform's.
        ("policies", "create", false),
        ("roles", "change", false),
        ("roleAssignments", "create", false),
        ("apiKeys", "create", false),
        ("users", "change", false),
        ("groups", "change", false),
        ("tenants", "create", false),
        ("findings", "settle", false),
        ("kongSync", "read", false),
        ("nothing", "ever", true),
    ] {
        assert_eq!(house.may(&key, object, action).await, may, "{object} {action}");
    }
    let less = terms(&["quotas:read"]);
    let replace = ReplaceRole { name, terms: less, expected: Expected::Any, built_in };
    house.home().await.change(replace, Request::system(), untold).await.unwrap().unwrap();
    assert!(!house.may(&key, "quotas", "replace").await && house.may(&key, "quotas", "read").await);
}

#[tokio::test]
async fn what_a_policy_denies_is_denied_at_once_to_all_but_the_platform_and_never_for_good() {
    let house = House::new().await;
    let (reader, _) = house.key(Role::Reader).await;
    assert!(house.may(&reader, "usage", "read").await);
    let all = house.lays_down(Effect::Deny, About::Everybody, "*:*", Value::Null).await;
    assert!(!house.may(&reader, "usage", "read").await);
    let mut caller = house.bearer(reader.expose_secret()).await.unwrap();
    let judged = house.gate.judge(&mut caller, &wish("usage", "read")).await.unwrap();
    assert_eq!(judged, Judged { allowed: false, denied_by: Some(all.to_string()) });
    // The administrator keeps what undoes it, and nothing else.
    for (object, action, may) in
        [("policies", "delete", true), ("roles", "change", true), ("policies", "try", true), ("usage", "read", false)]
    {
        assert_eq!(house.may(&house.admin_key, object, action).await, may, "{object} {action}");
    }
    let mut platform = house.bearer("bootstrap.key.with-24-characters").await.unwrap();
    assert!(house.gate.judge(&mut platform, &wish("usage", "read")).await.unwrap().allowed);
    house.takes_back(all).await;
    assert!(house.may(&reader, "usage", "read").await);

    let elsewhere = json!({"attribute": "context.ip", "operator": "notInNetwork", "values": ["192.168.0.0/16"]});
    house.lays_down(Effect::Deny, About::Role("reader".into()), "usage:*", elsewhere).await;
    assert!(!house.may(&reader, "usage", "read").await && house.may(&reader, "quotas", "read").await);
}

#[tokio::test]
async fn a_person_is_judged_by_what_the_books_know_of_it() {
    let house = House::new().await;
    let attributes = Attributes::read(json!({"department": "finance"}).as_object().unwrap()).unwrap();
    let subjects = vec![IssuedSubject { issuer: house.issuer.url.as_str().into(), subject: "jane".into() }];
    let id = UserId(crate::clock::new_id());
    let profile = Profile { subjects, attributes, ..Profile::named("jane@example.com") };
    let create = CreateUser { id, profile, limits: LIMITS };
    house.home().await.change(create, Request::system(), untold).await.unwrap().unwrap();
    let token = house.token(&house.tenant.to_string(), &["reader"]);
    let mut jane = house.bearer(&token).await.unwrap();
    assert_eq!(jane.person, Some(id));
    assert!(!house.gate.judge(&mut jane, &wish("quotas", "replace")).await.unwrap().allowed);
    let finance = json!({"attribute": "subject.department", "operator": "equals", "values": ["finance"]});
    house.lays_down(Effect::Allow, About::Role("reader".into()), "quotas:*", finance).await;
    assert!(house.gate.judge(&mut jane, &wish("quotas", "replace")).await.unwrap().allowed);
    // A gateway is told the same of the same person, by whichever name, and nothing of a stranger; the role was the token's.
    house.lays_down(Effect::Allow, About::User(id), "model:use", Value::Null).await;
    for name in ["jane@example.com", "JANE@example.com", &id.to_string()] {
        assert!(house.decided("user", name, "use", "model").await.0, "{name}");
        assert!(!house.decided("user", name, "replace", "quotas").await.0, "{name}");
    }
    let nobody = (false, Reason::NothingApplies);
    assert_eq!(house.decided("user", "eve", "use", "model").await, nobody);
    assert_eq!(house.decided("apiKey", "nosuchkey0", "read", "usage").await, nobody);
    let (_, reader) = house.key(Role::Reader).await;
    assert!(house.decided("apiKey", &reader, "read", "usage").await.0);
    let scopes = vec!["quotas:*".parse().unwrap()];
    let (_, narrow) = house.key_under(Role::Reader, Terms { scopes, ..Terms::default() }).await;
    assert!(house.decided("apiKey", &narrow, "read", "quotas").await.0);
    assert_eq!(house.decided("apiKey", &narrow, "read", "usage").await, nobody, "its scopes leave it nothing of that");
    house.directory.revoke_key(house.tenant, &reader, Request::system()).await.unwrap();
    assert_eq!(house.decided("apiKey", &reader, "read", "usage").await, nobody);
}

fn delegating(peer: &OpenFgaPeer, timeout_ms: u64, keep_ms: u64) -> config::Authorization {
    let openfga = config::OpenFga {
        api_url: Some(peer.url.clone()),
        store_id: Some(STORE.into()),
        authorization_model_id: Some("01HVMMBCMGZNT3SED4Z17ECXCB".into()),
        token: Some(SecretString::from(TOKEN)),
        timeout_ms,
        keep_ms,
    };
    config::Authorization { openfga, ..config::Authorization::default() }
}

/// Longer than a loaded machine takes to answer itself.
const PATIENT_MS: u64 = 5_000;

#[tokio::test]
async fn relations_are_openfga_s_and_each_tenant_s_own() {
    let peer = OpenFgaPeer::start().await;
    let house =
        House::with(Clock::system(), |config| config.authorization = delegating(&peer, PATIENT_MS, 60_000)).await;
    house.lays_down(Effect::Allow, About::Everybody, "document:open", json!({"relation": "viewer"})).await;
    let blocked = json!({"relation": "blocked", "object": "site:hq"});
    house.lays_down(Effect::Deny, About::Everybody, "document:open", blocked).await;
    let tenant = house.tenant;
    peer.knows(&format!("robot:{tenant}/r2"), "viewer", &format!("document:{tenant}/1"));
    peer.knows(&format!("robot:{tenant}/c3"), "viewer", &format!("document:{tenant}/1"));
    peer.knows(&format!("robot:{tenant}/c3"), "blocked", &format!("site:{tenant}/hq"));
    // Another tenant's, and everybody's, as nobody here can name them.
    peer.knows("robot:*", "viewer", "document:1");
    assert!(house.decided("robot", "r2", "open", "document").await.0);
    assert!(matches!(house.decided("robot", "c3", "open", "document").await, (false, Reason::DeniedBy(_))));
    assert!(!house.decided("robot", "bb8", "open", "document").await.0);
    let asked = peer.asked();
    assert!(asked.iter().all(|body| body["authorization_model_id"] == "01HVMMBCMGZNT3SED4Z17ECXCB"), "{asked:?}");
    assert_eq!(asked.len(), 6, "{asked:?}");
    // What was answered is kept for a while, and what means something else there is not asked.
    assert!(house.decided("robot", "r2", "open", "document").await.0);
    for name in ["*", "r2#viewer", "r2:x", "r 2"] {
        assert!(!house.decided("robot", name, "open", "document").await.0, "{name}");
    }
    assert_eq!(peer.asked().len(), 6);
    // What no relation decides is decided without asking.
    assert!(!house.decided("robot", "r2", "close", "document").await.0);
    assert_eq!(peer.asked().len(), 6);
}

#[tokio::test]
async fn a_relation_that_cannot_be_asked_for_is_a_denial() {
    let peer = OpenFgaPeer::start().await;
    for mood in [Mood::Broken, Mood::Silent, Mood::Babbling] {
        // Silence is waited for; whatever is answered comes long before the end of a long patience.
        let patience = if mood == Mood::Silent { 50 } else { PATIENT_MS };
        let house = House::with(Clock::system(), |config| config.authorization = delegating(&peer, patience, 0)).await;
        house.lays_down(Effect::Allow, About::Everybody, "document:open", json!({"relation": "viewer"})).await;
        house.lays_down(Effect::Allow, About::Everybody, "document:close", Value::Null).await;
        house.lays_down(Effect::Deny, About::Everybody, "document:close", json!({"relation": "blocked"})).await;
        peer.is(mood);
        assert_eq!(house.decided("robot", "r2", "open", "document").await, (false, Reason::NothingApplies), "{mood:?}");
        let closed = house.decided("robot", "r2", "close", "document").await;
        assert!(matches!(closed, (false, Reason::DeniedBy(_))), "{mood:?}: {closed:?}");
        peer.is(Mood::Fine);
        if mood != Mood::Silent {
            assert!(house.decided("robot", "r2", "close", "document").await.0, "as soon as it answers");
        }
    }
    // Off, nobody is asked, and it is a denial all the same.
    let house = House::new().await;
    house.lays_down(Effect::Allow, About::Everybody, "document:open", json!({"relation": "viewer"})).await;
    let asked = peer.asked().len();
    assert!(!house.decided("robot", "r2", "open", "document").await.0);
    assert_eq!(peer.asked().len(), asked);
}

#[tokio::test]
async fn an_engine_is_made_once_however_many_wait_for_it() {
    let house = House::new().await;
    for number in 0..20 {
        house.lays_down(Effect::Allow, About::Everybody, &format!("model{number}:use"), Value::Null).await;
    }
    let (_, policies) = house.home().await.policies().unwrap();
    let (authorizer, start) = (house.gate.authorizer(), std::sync::Barrier::new(8));
    let engines: Vec<_> = std::thread::scope(|scope| {
        let ask = || {
            start.wait();
            authorizer.engine(house.tenant, &policies).unwrap()
        };
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asks| asks.join().unwrap()).collect()
    });
    assert!(engines.iter().all(|engine| std::sync::Arc::ptr_eq(engine, &engines[0])));
}
