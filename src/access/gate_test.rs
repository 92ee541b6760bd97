//! The whole gate, before a real directory on the embedded database.

use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::issuer_peer::{IssuerPeer, Signer, settings};
use super::*;
use crate::directory::handle::{Handle, NewKey, NewTenant};
use crate::domain::api_key::{Edit, Patch};
use crate::domain::organization::Expected;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Store;
use crate::tenant::task::untold;

pub(super) struct House {
    pub(super) gate: Gate,
    pub(super) directory: Handle,
    pub(super) tenant: TenantId,
    pub(super) admin_key: SecretString,
    pub(super) signer: Signer,
    pub(super) issuer: IssuerPeer,
    _data: TempDir,
}

impl House {
    pub(super) async fn new() -> House {
        House::with(Clock::system(), |_| {}).await
    }

    /// With another configuration: its one issuer is the house's.
    pub(super) async fn with(clock: Clock, configure: impl FnOnce(&mut config::Config)) -> House {
        let data = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", data.path().display());
        let store = config::Store { url: SecretString::from(url), ..config::Store::default() };
        let signer = Signer::ed25519("d");
        let issuer = IssuerPeer::start(&[&signer]).await;
        let auth = config::Auth {
            bootstrap_key: Some(SecretString::from("bootstrap.key.with-24-characters")),
            issuers: vec![settings(&issuer.url)],
            ..config::Auth::default()
        };
        let pepper = Pepper::open(&auth, &store).unwrap();
        let rules = crate::directory::Settings {
            tenants: config::Tenants::default(),
            retention_micros: config::Config::default().retention_micros(),
            routing: std::sync::Arc::default(),
            reconcile: crate::domain::reconcile::Terms::default(),
            lease_micros: crate::config::Jobs::default().lease_micros(),
        };
        let (hints, _) = mpsc::channel(1);
        let directory =
            crate::directory::open(Store::open(&store).await.unwrap(), rules, clock.clone(), hints).await.unwrap();

        let (admin_key, key) = new_key(&pepper, Role::Admin);
        let new = NewTenant {
            name: "Acme".into(),
            slug: None,
            tier: "standard".into(),
            time_zone: "UTC".into(),
            external_ids: Vec::new(),
            settings: "{}".into(),
        };
        let answer = directory.onboard(new, key, Request::system(), |_| String::new()).await.unwrap();
        let Answer::Fresh(onboarded) = answer else { panic!("nothing was onboarded before") };
        let mut config = config::Config { auth, store, ..config::Config::default() };
        configure(&mut config);
        let gate = Gate::new(&config, pepper, directory.clone(), clock).unwrap();
        House { gate, directory, tenant: onboarded.tenant.id, admin_key, signer, issuer, _data: data }
    }

    pub(super) async fn key(&self, role: Role) -> (SecretString, String) {
        self.key_under(role, Terms::default()).await
    }

    pub(super) async fn key_under(&self, role: Role, terms: Terms) -> (SecretString, String) {
        let (secret, key) = new_key(self.gate.pepper(), role);
        let id = key.id.clone();
        self.directory.issue_key(self.tenant, key, terms, Request::system(), |_| String::new()).await.unwrap();
        (secret, id)
    }

    async fn edit(&self, id: &str, edit: Edit) {
        let (request, any) = (Request::system(), Expected::Any);
        self.directory.edit_key(self.tenant, id, edit, any, request, |_| String::new()).await.unwrap();
    }

    /// Another secret for a key; the old one goes on for so many microseconds.
    async fn rotate(&self, id: &str, overlap_micros: i64) -> SecretString {
        let minted = api_key::mint_again(self.gate.pepper(), api_key::LIVE, id);
        self.edit(id, Edit::Rotate { hash: minted.hash, overlap_micros }).await;
        minted.secret
    }

    pub(super) fn token(&self, tenant: &str, roles: &[&str]) -> String {
        let now = Clock::system().now().micros() / 1_000_000;
        let claims = json!({"iss": self.issuer.url, "aud": super::issuer_peer::AUDIENCE, "sub": "jane",
            "exp": now + 600, "tenant": tenant, "roles": roles});
        self.signer.sign(&self.signer.header(), &claims)
    }

    pub(super) async fn bearer(&self, text: &str) -> Result<Caller, Unauthenticated> {
        let line = format!("Bearer {text}");
        self.gate.authenticate(Credentials { authorization: vec![&line], ..Credentials::default() }).await
    }

    async fn header(&self, text: &str) -> Result<Caller, Unauthenticated> {
        self.gate.authenticate(Credentials { api_key: Some(text), ..Credentials::default() }).await
    }
}

fn new_key(pepper: &Pepper, role: Role) -> (SecretString, NewKey) {
    let minted = api_key::mint(pepper, api_key::LIVE);
    let key = NewKey { id: minted.id, hash: minted.hash, name: format!("{} key", role.name()), role };
    (minted.secret, key)
}

#[tokio::test]
async fn every_credential_becomes_its_caller() {
    let house = House::new().await;
    let platform = house.bearer("bootstrap.key.with-24-characters").await.unwrap();
    assert_eq!(platform, house.header("bootstrap.key.with-24-characters").await.unwrap());
    assert_eq!((platform.actor.as_str(), platform.tenant, platform.service), ("platform", None, true));
    assert!(house.gate.allows(&platform, "tenants", "create"));

    let admin = house.bearer(house.admin_key.expose_secret()).await.unwrap();
    assert_eq!(admin, house.header(house.admin_key.expose_secret()).await.unwrap());
    assert_eq!((admin.tenant, admin.roles.as_slice()), (Some(house.tenant), [Role::Admin].as_slice()));
    assert!(admin.actor.starts_with("apiKey:") && admin.service && admin.user.is_none());
    assert!(house.gate.allows(&admin, "quotas", "replace"));
    assert!(!house.gate.allows(&admin, "tenants", "create"));

    let (reporter, id) = house.key(Role::Reporter).await;
    let reporter = house.bearer(reporter.expose_secret()).await.unwrap();
    assert_eq!(reporter.actor, format!("apiKey:{id}"));
    assert!(house.gate.allows(&reporter, "usage", "report"));
    assert!(!house.gate.allows(&reporter, "usage", "read"));

    let jane = house.bearer(&house.token(&house.tenant.to_string(), &["reader"])).await.unwrap();
    assert_eq!(jane.actor, "user:jane");
    assert_eq!((jane.tenant, jane.user.as_deref(), jane.service), (Some(house.tenant), Some("jane"), false));
    assert!(house.gate.allows(&jane, "usage", "read"));
    assert!(!house.gate.allows(&jane, "quotas", "replace"));

    let nobody = house.bearer(&house.token(&house.tenant.to_string(), &["owner"])).await.unwrap();
    for rule in house.gate.policy_rows() {
        assert!(!house.gate.allows(&nobody, &rule.object, &rule.action), "{rule:?}");
    }
}

#[tokio::test]
async fn what_is_not_valid_is_refused_and_all_refusals_look_the_same() {
    let house = House::new().await;
    let stranger = api_key::mint(house.gate.pepper(), api_key::LIVE).secret;
    let elsewhere = api_key::mint(&Pepper::from_bytes(&[0; 32]), api_key::LIVE).secret;
    let token = house.token(&house.tenant.to_string(), &["admin"]);
    let no_tenant = house.token("018f3a5e-0000-7000-8000-00000000000a", &["admin"]);
    let mut typo = house.admin_key.expose_secret().to_owned();
    typo.replace_range(30..31, if &typo[30..31] == "A" { "B" } else { "A" });
    let right = house.admin_key.expose_secret();
    // The right id with another secret and its right checksum.
    let mixed = mixed(right, stranger.expose_secret());
    assert_eq!(api_key::parse(&mixed).unwrap().id, api_key::parse(right).unwrap().id);

    let invalid = [
        "bootstrap.key.with-24-characterz",
        "bootstrap.key.with-24-character",
        stranger.expose_secret(),
        elsewhere.expose_secret(),
        &typo,
        &mixed,
        &no_tenant,
        &token[..token.len() - 2],
        "pak_live_x",
        "opaque",
    ];
    for text in invalid {
        assert_eq!(house.bearer(text).await, Err(Unauthenticated::Invalid), "{text}");
    }
    assert_eq!(house.header(&token).await, Err(Unauthenticated::Invalid), "a token is no API key");
    assert_eq!(house.gate.authenticate(Credentials::default()).await, Err(Unauthenticated::Missing));
    let twice = Credentials { authorization: vec!["Bearer a", "Bearer a"], ..Credentials::default() };
    assert_eq!(house.gate.authenticate(twice).await, Err(Unauthenticated::Malformed));
    house.issuer.behave(|issuer| issuer.status = 500);
    assert_eq!(house.bearer(&token).await.map(|caller| caller.actor), Ok("user:jane".into()));
}

fn mixed(id_of: &str, secret_of: &str) -> String {
    let body = format!("{}{}", &id_of[..22], &secret_of[22..52]);
    let candidates = crc32fast::hash(body.as_bytes());
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digit = |power: u32| char::from(DIGITS[(candidates as u64 / 62_u64.pow(power) % 62) as usize]);
    let checksum = (0..6).rev().map(digit).collect::<String>();
    format!("{body}{checksum}")
}

#[tokio::test]
async fn a_revoked_key_and_a_tenant_that_is_not_served_are_refused_at_once() {
    let house = House::new().await;
    let (reader, id) = house.key(Role::Reader).await;
    let token = house.token(&house.tenant.to_string(), &["reader"]);
    assert!(house.bearer(reader.expose_secret()).await.is_ok());
    house.directory.revoke_key(house.tenant, &id, Request::system()).await.unwrap();
    assert_eq!(house.bearer(reader.expose_secret()).await, Err(Unauthenticated::Invalid));
    assert!(!house.bearer(&token).await.unwrap().suspended);

    house.directory.shift(house.tenant, Lifecycle::Suspended, Request::system()).await.unwrap();
    assert!(house.bearer(house.admin_key.expose_secret()).await.unwrap().suspended);
    assert!(house.bearer(&token).await.unwrap().suspended, "although the token is remembered");

    house.directory.shift(house.tenant, Lifecycle::Archived, Request::system()).await.unwrap();
    assert_eq!(house.bearer(house.admin_key.expose_secret()).await, Err(Unauthenticated::Invalid));
    assert_eq!(house.bearer(&token).await, Err(Unauthenticated::Invalid));
}

#[tokio::test]
async fn scopes_narrow_every_role_of_a_key_also_those_it_was_given() {
    use crate::domain::ids::RoleAssignmentId;
    use crate::domain::organization::Limits;
    use crate::domain::organization::role::Holder;
    use crate::tenant::organization::AssignRole;

    let house = House::new().await;
    let scopes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let terms = Terms { scopes: scopes(&["usage:read", "quotas:*"]), ..Terms::default() };
    let (secret, id) = house.key_under(Role::Reader, terms).await;
    let mut caller = house.bearer(secret.expose_secret()).await.unwrap();
    let allowed = |caller: &Caller| {
        [("usage", "read"), ("quotas", "read"), ("quotas", "replace"), ("alerts", "read"), ("users", "read")]
            .map(|(object, action)| house.gate.allows(caller, object, action))
    };
    assert_eq!(allowed(&caller), [true, true, false, false, false], "neither more than the role nor than the scopes");
    // An admin's role, given besides, is narrowed as well.
    let limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };
    let (assignment, holder) = (RoleAssignmentId(crate::clock::new_id()), Holder::ApiKey(id.clone()));
    let assign = AssignRole { id: assignment, role: "admin".into(), holder, limits };
    let home = house.directory.find(house.tenant).await.unwrap();
    home.change(assign, Request::system(), untold).await.unwrap().unwrap();
    let wish = Wish { object: "usage", action: "read", id: None, source: None };
    assert!(house.gate.judge(&mut caller, &wish).await.unwrap().allowed);
    assert_eq!(allowed(&caller), [true, true, true, false, false]);
    // Changed, they hold from the next request on.
    house.edit(&id, Edit::Patch(Patch { scopes: Some(scopes(&["alerts:read"])), ..Patch::default() })).await;
    let caller = house.bearer(secret.expose_secret()).await.unwrap();
    assert_eq!(allowed(&caller), [false, false, false, true, false]);
}

#[tokio::test]
async fn a_key_ends_by_itself_and_so_does_a_secret_that_was_exchanged() {
    let house = House::new().await;
    let far = Clock::system().now().plus_micros(3_600_000_000);
    let (secret, id) = house.key_under(Role::Reader, Terms { expires_at: Some(far), ..Terms::default() }).await;
    assert!(house.bearer(secret.expose_secret()).await.is_ok());
    assert_eq!(house.directory.key_ended(house.tenant, &id), None);
    let (expired, expired_id) =
        house.key_under(Role::Reader, Terms { expires_at: Some(Timestamp(1)), ..Terms::default() }).await;
    assert_eq!(house.bearer(expired.expose_secret()).await, Err(Unauthenticated::Invalid));
    assert_eq!(house.gate.shared.by_key(expired.expose_secret()), Err(Refusal::KeyExpired));
    assert_eq!(house.directory.key_ended(house.tenant, &expired_id), Some(Revoked::ApiKeyExpired));
    house.edit(&expired_id, Edit::Patch(Patch { expires_at: Some(None), ..Patch::default() })).await;
    assert!(house.bearer(expired.expose_secret()).await.is_ok(), "it was given time");

    let second = house.rotate(&id, 3_600_000_000).await;
    for (secret, caller) in [(&secret, "the old one"), (&second, "the new one")] {
        let found = house.bearer(secret.expose_secret()).await.unwrap();
        assert_eq!(found.actor, format!("apiKey:{id}"), "{caller}");
    }
    let third = house.rotate(&id, 0).await;
    for old in [&secret, &second] {
        assert_eq!(house.bearer(old.expose_secret()).await, Err(Unauthenticated::Invalid));
    }
    assert_eq!(house.gate.shared.by_key(second.expose_secret()), Err(Refusal::KeySuperseded));
    assert!(house.bearer(third.expose_secret()).await.is_ok());
    house.directory.revoke_key(house.tenant, &id, Request::system()).await.unwrap();
    assert_eq!(house.bearer(third.expose_secret()).await, Err(Unauthenticated::Invalid));
    assert_eq!(house.directory.key_ended(house.tenant, &id), Some(Revoked::ApiKey));
}

#[tokio::test]
async fn only_what_opens_something_is_a_use() {
    let house = House::new().await;
    let (secret, id) = house.key(Role::Reader).await;
    let (expired, expired_id) =
        house.key_under(Role::Reader, Terms { expires_at: Some(Timestamp(1)), ..Terms::default() }).await;
    let mixed = mixed(secret.expose_secret(), expired.expose_secret());
    for refused in [expired.expose_secret(), &mixed] {
        assert!(house.bearer(refused).await.is_err());
    }
    assert_eq!([&id, &expired_id].map(|id| house.directory.key_last_used(id)), [None, None]);
    house.bearer(secret.expose_secret()).await.unwrap();
    let used = house.directory.key_last_used(&id).unwrap();
    assert!(used <= Clock::system().now() && used.0 % 3_600_000_000 == 0, "by the hour: {used}");
}

#[tokio::test]
async fn a_person_has_the_roles_of_its_token_and_those_its_tenant_gave_it() {
    use crate::domain::ids::{RoleAssignmentId, UserId};
    use crate::domain::organization::role::Holder;
    use crate::domain::organization::user::{IssuedSubject, Profile, ProfilePatch};
    use crate::domain::organization::{Expected, Limits};
    use crate::tenant::organization::{AssignRole, CreateUser, EditUser, UserEdit};

    let house = House::new().await;
    let limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };
    let tenant = house.directory.find(house.tenant).await.unwrap();
    let id = UserId(crate::clock::new_id());
    // The same subject of another issuer is somebody else.
    for (id, issuer) in [(id, house.issuer.url.as_str()), (UserId(crate::clock::new_id()), "https://elsewhere")] {
        let subjects = vec![IssuedSubject { issuer: issuer.into(), subject: "jane".into() }];
        let profile = Profile { subjects, ..Profile::named(issuer) };
        let create = CreateUser { id, profile, limits };
        tenant.change(create, Request::system(), untold).await.unwrap().unwrap();
    }
    let token = house.token(&house.tenant.to_string(), &["reader"]);
    assert_eq!(house.bearer(&token).await.unwrap().roles, [Role::Reader]);
    for role in ["developer", "platformAdmin", "one that nobody knows"] {
        let (assignment, holder) = (RoleAssignmentId(crate::clock::new_id()), Holder::User(id));
        let assign = AssignRole { id: assignment, role: role.into(), holder, limits };
        let given = tenant.change(assign, Request::system(), untold).await.unwrap();
        assert_eq!(given.is_ok(), role == "developer", "{role}");
    }
    let jane = house.bearer(&token).await.unwrap();
    assert_eq!((jane.roles, jane.tenant), (vec![Role::Reader, Role::Developer], Some(house.tenant)));

    let edit = UserEdit::Patch(ProfilePatch { active: Some(false), ..ProfilePatch::default() });
    let shut_out = EditUser { id, edit, expected: Expected::Any, limits };
    tenant.change(shut_out, Request::system(), untold).await.unwrap().unwrap();
    assert_eq!(house.bearer(&token).await, Err(Unauthenticated::Invalid), "although the token is remembered");
}

/// Prints what a caller costs; `cargo test --lib -- --ignored --nocapture cost_of_a_caller`.
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn cost_of_a_caller() {
    const ROUNDS: u32 = 20_000;
    let house = House::new().await;
    let token = house.token(&house.tenant.to_string(), &["reader"]);
    let unknown = api_key::mint(house.gate.pepper(), api_key::LIVE).secret;
    let key = house.admin_key.expose_secret();
    for (what, text) in
        [("remembered token", token.as_str()), ("API key", key), ("unknown key", unknown.expose_secret())]
    {
        let _ = house.bearer(text).await;
        let started = Instant::now();
        for _ in 0..ROUNDS {
            let _ = std::hint::black_box(house.bearer(text).await);
        }
        println!("{what}: {:.2} µs", started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    }
    let caller = house.bearer(key).await.unwrap();
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let _ = std::hint::black_box(house.gate.allows(&caller, "usage", "report"));
    }
    println!("decision: {:.2} µs", started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}
