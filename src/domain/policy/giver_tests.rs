//! What changes hand out, and who may hand it out.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::books::{Judge, PolicyBooks};
use super::ceiling::BuiltIn;
use super::condition::Condition;
use super::giver::{Credential, Gift, Giver, World};
use super::role::RoleTerms;
use super::statement::{Effect, PolicyTerms, Subject};
use crate::domain::api_key::Terms;
use crate::domain::ids::{GroupId, PolicyId, RoleAssignmentId, UserId};
use crate::domain::organization::group::{self, Group, Member};
use crate::domain::organization::role::{Holder, RoleAssignment};
use crate::domain::organization::user::{Email, IssuedSubject, Profile, User};
use crate::domain::organization::{Limits, Organization};
use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

const NOW: Timestamp = Timestamp(1_763_650_000_000_000);
const LIMITS: Limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };

fn built_in() -> Arc<BuiltIn> {
    Arc::new(BuiltIn::of([
        (Role::PlatformAdmin, "tenants", "create"),
        (Role::Admin, "groups", "change"),
        (Role::Admin, "permissions", "grant"),
        (Role::Admin, "policies", "change"),
        (Role::Admin, "quotas", "replace"),
        (Role::Admin, "usage", "read"),
        (Role::Analyst, "usage", "read"),
        (Role::Reporter, "usage", "report"),
    ]))
}

fn user(number: u128) -> UserId {
    UserId(Uuid::from_u128(number))
}

fn group(number: u128) -> GroupId {
    GroupId(Uuid::from_u128(0x9000 + number))
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Ada is in group 1, which is in group 2, which is in group 3, which is not active.
struct Books {
    people: Organization,
    policies: PolicyBooks,
    ids: u128,
}

impl Books {
    fn new() -> Books {
        let mut people = Organization::default();
        let stamp = |profile| User { id: user(1), profile, version: 1, created_at: NOW, updated_at: NOW };
        people.put_user(stamp(Profile::named("ada")), &LIMITS).unwrap();
        for number in 1..=3 {
            let profile = group::Profile { active: number != 3, ..group::Profile::named(&format!("group-{number}")) };
            let group = Group { id: group(number), profile, version: 1, created_at: NOW, updated_at: NOW };
            people.put_group(group, &LIMITS).unwrap();
        }
        people.join(group(1), &[Member::User(user(1))], &LIMITS).unwrap();
        people.join(group(2), &[Member::Group(group(1))], &LIMITS).unwrap();
        people.join(group(3), &[Member::Group(group(2))], &LIMITS).unwrap();
        Books { people, policies: PolicyBooks::default(), ids: 0 }
    }

    fn world(&self) -> World<'_> {
        World { people: &self.people, policies: &self.policies }
    }

    fn fresh_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn gives(mut self, role: &str, holder: Holder) -> Books {
        let id = RoleAssignmentId(self.fresh_id());
        let assignment = RoleAssignment { id, role: role.into(), holder, created_at: NOW };
        self.people.assign(assignment, &LIMITS).unwrap();
        self
    }

    fn role(mut self, name: &str, permissions: &[&str]) -> Books {
        let terms = RoleTerms { description: String::new(), permissions: patterns(permissions) };
        self.policies.create_role(name, terms, &built_in(), NOW).unwrap();
        self
    }

    fn policy(mut self, terms: PolicyTerms) -> Books {
        let id = PolicyId(self.fresh_id());
        let judge = Judge { built_in: &built_in(), people: &self.people };
        self.policies.create_policy(id, terms, &judge, NOW).unwrap();
        self
    }
}

fn policy(effect: Effect, subject: Subject, permissions: &[&str]) -> PolicyTerms {
    PolicyTerms {
        name: format!("{effect:?} {subject:?} {permissions:?}"),
        description: String::new(),
        effect,
        subjects: vec![subject],
        permissions: patterns(permissions),
        resources: Vec::new(),
        condition: None,
        enabled: true,
    }
}

fn of_finance() -> Option<Condition> {
    let condition = json!({"attribute": "subject.department", "operator": "equals", "values": ["finance"]});
    Condition::read(&condition, "", &mut Vec::new())
}

/// An administrator's key with these scopes.
fn scoped(scopes: &[&str]) -> Giver {
    Giver::Bound(Credential {
        built_in: built_in(),
        roles: vec![Role::Admin],
        scopes: patterns(scopes),
        person: None,
        api_key: Some("k".into()),
    })
}

#[track_caller]
fn lacks(books: &Books, giver: &Giver, gift: &Gift, missing: Option<&str>) {
    assert_eq!(giver.lacks(gift, books.world()).as_deref(), missing, "{gift:?}");
    assert_eq!(Giver::Free.lacks(gift, books.world()), None);
}

#[test]
fn a_group_gives_what_it_and_those_above_it_give_also_the_sleeping_ones() {
    let key = scoped(&["groups:*", "usage:read"]);
    let books = Books::new();
    lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), None);
    for above in 1..=3 {
        let books = Books::new().gives("analyst", Holder::Group(group(above)));
        lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), None);
        let books = Books::new().gives("admin", Holder::Group(group(above)));
        lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), Some("permissions:grant"));
        let books = Books::new().gives("reporter", Holder::Group(group(above)));
        lacks(
            &books,
            &scoped(&["groups:*", "usage:*"]),
            &Gift::of_entering(books.world(), group(1)),
            Some("usage:report"),
        );
    }
    let books = Books::new().gives("admin", Holder::Group(group(1)));
    lacks(&books, &key, &Gift::of_entering(books.world(), group(2)), None);
}

#[test]
fn roles_of_the_tenant_s_own_and_policies_count_as_well() {
    let key = scoped(&["groups:*", "usage:read"]);
    let books = Books::new().role("clerk", &["quotas:replace"]).gives("clerk", Holder::Group(group(2)));
    lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), Some("quotas:replace"));
    lacks(&books, &key, &Gift::of_role(books.world(), "clerk"), Some("quotas:replace"));
    let books = Books::new().role("cashier", &["invoice:pay"]).gives("cashier", Holder::Group(group(2)));
    lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), Some("invoice:pay"));
    for subject in [Subject::Group(group(2)), Subject::Role("analyst".into())] {
        let books = Books::new().policy(policy(Effect::Allow, subject, &["quotas:*"]));
        let books = books.gives("analyst", Holder::Group(group(2)));
        lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), Some("quotas:replace"));
    }
    // A wildcard gives what may be given, and no more is asked for than that.
    let books = Books::new();
    let everything = Gift::of_terms(&[], &patterns(&["*:*"]));
    lacks(&books, &scoped(&["usage:*", "quotas:*"]), &everything, Some("usage:report"));
    lacks(&books, &key, &Gift::of_terms(&patterns(&["usage:*"]), &patterns(&["usage:read"])), None);
}

#[test]
fn taking_a_denial_away_gives_what_it_denied() {
    let key = scoped(&["groups:*", "policies:*", "usage:read"]);
    let denial = |subject, permission| policy(Effect::Deny, subject, &[permission]);
    let books = Books::new().policy(denial(Subject::Group(group(2)), "quotas:replace"));
    lacks(&books, &key, &Gift::of_leaving(books.world(), group(1)), Some("quotas:replace"));
    lacks(&books, &key, &Gift::of_forgetting(books.world(), user(1)), Some("quotas:replace"));
    lacks(&books, &key, &Gift::of_entering(books.world(), group(1)), None);
    let books = Books::new().policy(denial(Subject::Role("analyst".into()), "quotas:replace"));
    lacks(&books, &key, &Gift::of_role_taken(books.world(), "analyst"), Some("quotas:replace"));
    lacks(&books, &key, &Gift::of_role_taken(books.world(), "reporter"), None);
    // One that denies the key itself, whatever its condition.
    let conditional = PolicyTerms { condition: of_finance(), ..denial(Subject::ApiKey("k".into()), "usage:read") };
    for own in [denial(Subject::Everybody, "usage:*"), conditional] {
        let gift = Gift::of_policy(Some(&own), None);
        let books = Books::new().policy(own);
        lacks(&books, &key, &gift, Some("usage:read"));
        lacks(&books, &key, &Gift::of_terms(&[], &patterns(&["usage:read"])), Some("usage:read"));
    }
}

#[test]
fn a_policy_gives_when_it_allows_more_or_denies_less() {
    let (books, key) = (Books::new(), scoped(&["policies:*", "usage:read"]));
    let allow = policy(Effect::Allow, Subject::Everybody, &["quotas:replace"]);
    let deny = PolicyTerms { effect: Effect::Deny, ..allow.clone() };
    let off = |terms: &PolicyTerms| PolicyTerms { enabled: false, ..terms.clone() };
    let renamed = |terms: &PolicyTerms| PolicyTerms { name: "other".into(), ..terms.clone() };
    for (before, after, gives) in [
        (None, Some(allow.clone()), true),
        (None, Some(off(&allow)), false),
        (None, Some(deny.clone()), false),
        (Some(allow.clone()), Some(renamed(&allow)), false),
        (Some(off(&allow)), Some(allow.clone()), true),
        (Some(allow.clone()), Some(off(&allow)), false),
        (Some(allow.clone()), None, false),
        (Some(deny.clone()), None, true),
        (Some(deny.clone()), Some(off(&deny)), true),
        (Some(deny.clone()), Some(renamed(&deny)), false),
        (Some(off(&deny)), None, false),
    ] {
        let gift = Gift::of_policy(before.as_ref(), after.as_ref());
        lacks(&books, &key, &gift, gives.then_some("quotas:replace"));
    }
}

#[test]
fn an_attribute_that_a_policy_looks_at_is_not_for_everybody_to_set() {
    let key = scoped(&["users:*", "usage:read"]);
    let by_department =
        |effect| PolicyTerms { condition: of_finance(), ..policy(effect, Subject::Everybody, &["quotas:*"]) };
    let before = Profile::named("ada");
    let department = |name: &str| {
        let given = json!({ name: "finance" });
        let attributes = crate::domain::organization::attributes::Attributes::read(given.as_object().unwrap()).unwrap();
        Profile { attributes, ..Profile::named("ada") }
    };
    for effect in [Effect::Allow, Effect::Deny] {
        let books = Books::new().policy(by_department(effect));
        let of = |after: &Profile| Gift::of_profile(books.world(), user(1), Some(&before), after);
        lacks(&books, &key, &of(&department("department")), Some("quotas:replace"));
        lacks(&books, &key, &of(&department("floor")), None);
        lacks(&books, &key, &of(&before), None);
    }
}

#[test]
fn whoever_comes_back_is_given_what_it_had() {
    let key = scoped(&["users:*", "usage:read"]);
    let books = Books::new();
    lacks(&books, &key, &Gift::of_return(books.world(), user(1)), None);
    for holder in [Holder::User(user(1)), Holder::Group(group(3))] {
        let books = Books::new().gives("admin", holder);
        lacks(&books, &key, &Gift::of_return(books.world(), user(1)), Some("groups:change"));
    }
}

#[test]
fn a_key_gives_what_its_role_does_within_its_scopes() {
    let key = scoped(&["apiKeys:*", "usage:read"]);
    let within = |scopes: &[&str]| Terms { scopes: patterns(scopes), ..Terms::default() };
    let books = Books::new();
    lacks(&books, &key, &Gift::of_key(books.world(), None, Role::Reporter, &within(&["usage:read"])), None);
    let wider = scoped(&["apiKeys:*", "usage:*"]);
    lacks(&books, &wider, &Gift::of_key(books.world(), None, Role::Analyst, &within(&["usage:*"])), None);
    // The administrator does not report itself.
    let reporter = Gift::of_key(books.world(), None, Role::Reporter, &within(&["usage:*"]));
    lacks(&books, &wider, &reporter, Some("usage:report"));
    // One that is there has what it was given besides.
    let books = Books::new().gives("reporter", Holder::ApiKey("other".into()));
    let other = Gift::of_key(books.world(), Some("other"), Role::Analyst, &within(&["usage:*"]));
    lacks(&books, &wider, &other, Some("usage:report"));
    let allowed = policy(Effect::Allow, Subject::ApiKey("other".into()), &["invoice:*"]);
    let books = Books::new().policy(allowed);
    let other = |scopes: &[&str]| Gift::of_key(books.world(), Some("other"), Role::Analyst, &within(scopes));
    lacks(&books, &scoped(&["*:read"]), &other(&["*:read"]), Some("invoice:read"));
    lacks(&books, &key, &other(&["usage:read"]), None);
}

#[test]
fn what_a_credential_has_itself_it_may_give_and_a_condition_is_no_more_than_nothing() {
    let pay = Gift::of_terms(&[], &patterns(&["invoice:pay"]));
    let key = scoped(&["invoice:*", "policies:*"]);
    lacks(&Books::new(), &key, &pay, Some("invoice:pay"));
    let allowed = policy(Effect::Allow, Subject::ApiKey("k".into()), &["invoice:*"]);
    lacks(&Books::new().policy(allowed.clone()), &key, &pay, None);
    lacks(&Books::new().policy(allowed.clone()), &scoped(&["policies:*"]), &pay, Some("invoice:pay"));
    let conditional = PolicyTerms { condition: of_finance(), ..allowed.clone() };
    lacks(&Books::new().policy(conditional), &key, &pay, Some("invoice:pay"));
    let denied = policy(Effect::Deny, Subject::Everybody, &["*:pay"]);
    lacks(&Books::new().policy(allowed).policy(denied), &key, &pay, Some("invoice:pay"));
    let books = Books::new().role("cashier", &["invoice:pay"]).gives("cashier", Holder::ApiKey("k".into()));
    lacks(&books, &key, &pay, None);
    // What nobody takes from the administrator it has.
    let books = Books::new().policy(policy(Effect::Deny, Subject::Everybody, &["policies:*"]));
    let gift = Gift::of_policy(Some(&policy(Effect::Deny, Subject::Everybody, &["policies:*"])), None);
    lacks(&books, &key, &gift, None);
}

/// Whoever has this role, or has it not.
fn by_role(effect: Effect, role: &str) -> PolicyTerms {
    let condition = json!({"not": {"attribute": "subject.roles", "operator": "contains", "values": [role]}});
    let condition = Condition::read(&condition, "", &mut Vec::new());
    assert!(condition.is_some());
    PolicyTerms { condition, ..policy(effect, Subject::Everybody, &["quotas:replace"]) }
}

#[test]
fn a_role_that_a_condition_looks_at_gives_what_the_condition_does() {
    let key = scoped(&["groups:*", "usage:*"]);
    for effect in [Effect::Allow, Effect::Deny] {
        let books = Books::new().policy(by_role(effect, "analyst"));
        let world = books.world();
        for gift in [Gift::of_role(world, "analyst"), Gift::of_role_taken(world, "analyst")] {
            lacks(&books, &key, &gift, Some("quotas:replace"));
        }
        // A group that gives no role changes nobody's.
        for gift in [Gift::of_entering(world, group(1)), Gift::of_leaving(world, group(1))] {
            assert_eq!(gift, Gift::default());
        }
        let books = books.gives("analyst", Holder::Group(group(2)));
        let world = books.world();
        for gift in [Gift::of_entering(world, group(1)), Gift::of_leaving(world, group(1))] {
            lacks(&books, &key, &gift, Some("quotas:replace"));
        }
        let missing = (effect == Effect::Allow).then_some("quotas:replace");
        lacks(&books, &scoped(&["usage:*"]), &Gift::of_return(world, user(1)), missing);
        let off = Books::new().policy(PolicyTerms { enabled: false, ..by_role(effect, "analyst") });
        lacks(&off, &scoped(&["usage:*"]), &Gift::of_role_taken(off.world(), "analyst"), None);
    }
}

fn linked(active: bool) -> Profile {
    let subjects = vec![IssuedSubject { subject: "00u1".into(), issuer: "https://id.example.com".into() }];
    Profile { subjects, active, ..Profile::named("ada") }
}

impl Books {
    fn with(mut self, profile: Profile) -> Books {
        let ada = User { id: user(1), profile, version: 2, created_at: NOW, updated_at: NOW };
        self.people.put_user(ada, &LIMITS).unwrap();
        self
    }
}

/// Of an edit of the user who is there.
fn of_edit(books: &Books, edit: impl Fn(&mut Profile)) -> Gift {
    let before = &books.people.user(user(1)).unwrap().profile;
    let mut after = before.clone();
    edit(&mut after);
    Gift::of_edit(books.world(), user(1), before, &after)
}

#[test]
fn whose_tokens_are_no_longer_known_is_as_if_forgotten() {
    let key = scoped(&["users:*", "usage:read"]);
    let unlinked = |books: &Books| of_edit(books, |profile| profile.subjects.clear());
    let renamed = |books: &Books| of_edit(books, |profile| profile.display_name = "Ada".into());
    // Nobody is denied anything.
    let books = Books::new().with(linked(true));
    lacks(&books, &key, &unlinked(&books), None);
    let denial = policy(Effect::Deny, Subject::User(user(1)), &["quotas:replace"]);
    let books = Books::new().with(linked(true)).policy(denial);
    lacks(&books, &key, &unlinked(&books), Some("quotas:replace"));
    lacks(&books, &key, &renamed(&books), None);
    // Whoever is shut out is not let in again.
    let books = Books::new().with(linked(false));
    lacks(&books, &key, &unlinked(&books), Some("permissions:grant"));
    lacks(&books, &key, &Gift::of_forgetting(books.world(), user(1)), Some("permissions:grant"));
    lacks(&books, &key, &renamed(&books), None);
    // Nobody's tokens mean this one.
    let books = Books::new().with(Profile { active: false, ..Profile::named("ada") });
    lacks(&books, &key, &Gift::of_forgetting(books.world(), user(1)), None);
}

#[test]
fn what_everybody_is_denied_by_who_he_is_ends_when_he_is_forgotten() {
    let key = scoped(&["users:*", "usage:read"]);
    let denial = policy(Effect::Deny, Subject::Everybody, &["quotas:replace"]);
    let by_ip = json!({"attribute": "context.ip", "operator": "equals", "values": ["192.0.2.1"]});
    let by_ip = Condition::read(&by_ip, "", &mut Vec::new());
    let by_relation = Condition::read(&json!({"relation": "viewer", "object": "doc:1"}), "", &mut Vec::new());
    assert!(by_ip.is_some() && by_relation.is_some());
    for (condition, ends) in [(None, false), (by_ip, false), (of_finance(), true), (by_relation, true)] {
        let books = Books::new().policy(PolicyTerms { condition, ..denial.clone() });
        let gift = Gift::of_forgetting(books.world(), user(1));
        lacks(&books, &key, &gift, ends.then_some("quotas:replace"));
    }
    // What is allowed to whoever is somebody, only if somebody's tokens are left over.
    let allowed = PolicyTerms { effect: Effect::Allow, ..by_role(Effect::Allow, "analyst") };
    for (profile, missing) in [(Profile::named("ada"), None), (linked(true), Some("quotas:replace"))] {
        let books = Books::new().policy(allowed.clone()).with(profile);
        lacks(&books, &key, &Gift::of_forgetting(books.world(), user(1)), missing);
    }
}

#[test]
fn an_attribute_that_a_new_user_does_not_have_is_not_set() {
    let key = scoped(&["users:*", "usage:read"]);
    for name in ["externalId", "email"] {
        let condition = json!({"attribute": format!("subject.{name}"), "operator": "exists"});
        let condition = Condition::read(&condition, "", &mut Vec::new());
        assert!(condition.is_some());
        let terms = PolicyTerms { condition, ..policy(Effect::Allow, Subject::Everybody, &["quotas:replace"]) };
        let books = Books::new().policy(terms);
        let of = |profile: &Profile| Gift::of_profile(books.world(), user(2), None, profile);
        lacks(&books, &key, &of(&Profile::named("bob")), None);
        let email = Email { value: "bob@example.com".into(), kind: None, primary: true };
        let whole = Profile { external_id: Some("e".into()), emails: vec![email], ..Profile::named("bob") };
        lacks(&books, &key, &of(&whole), Some("quotas:replace"));
    }
}
