//! Roles and policies as the books judge them, and what applies to whom.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::books::{Judge, PolicyBooks};
use super::ceiling::BuiltIn;
use super::question::{Question, Relations, Said, Subject as Who, Surroundings, Texts, Tuple};
use super::role::RoleTerms;
use super::set::{Outcome, PolicySet, RuleName};
use super::statement::{Effect, PolicyTerms, Subject};
use super::{ENTRIES_TOTAL_MAX, Expected, Refusal};
use crate::domain::ids::{GroupId, PolicyId, RoleAssignmentId, UserId};
use crate::domain::organization::group::{self, Group, Member};
use crate::domain::organization::role::{Holder, RoleAssignment};
use crate::domain::organization::user::{Profile, User};
use crate::domain::organization::{Limits, Organization};
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

const NOW: Timestamp = Timestamp(1_763_650_000_000_000);
const LIMITS: Limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };

fn built_in() -> BuiltIn {
    BuiltIn::of([
        (Role::PlatformAdmin, "tenants", "create"),
        (Role::Admin, "usage", "read"),
        (Role::Admin, "policies", "change"),
        (Role::Developer, "usage", "read"),
        (Role::Reporter, "usage", "report"),
    ])
}

fn user_id(number: u128) -> UserId {
    UserId(uuid::Uuid::from_u128(number))
}

fn policy_id(number: u128) -> PolicyId {
    PolicyId(uuid::Uuid::from_u128(number))
}

/// Ada, active and of the finance department, is in group 9; Bob is inactive.
fn people() -> Organization {
    let mut people = Organization::default();
    for (number, name, active) in [(1, "ada", true), (2, "bob", false)] {
        let department = json!({ "department": "finance" });
        let attributes = crate::domain::organization::attributes::Attributes::read(department.as_object().unwrap());
        let profile = Profile { active, attributes: attributes.unwrap(), ..Profile::named(name) };
        let user = User { id: user_id(number), profile, version: 1, created_at: NOW, updated_at: NOW };
        people.put_user(user, &LIMITS).unwrap();
    }
    let id = GroupId(uuid::Uuid::from_u128(9));
    let profile = group::Profile {
        display_name: "team".into(),
        external_id: None,
        description: None,
        attributes: crate::domain::organization::attributes::Attributes::default(),
        active: true,
    };
    people.put_group(Group { id, profile, version: 1, created_at: NOW, updated_at: NOW }, &LIMITS).unwrap();
    people.join(id, &[Member::User(user_id(1))], &LIMITS).unwrap();
    people
}

fn gives(people: &mut Organization, role: &str, holder: Holder) {
    let id = RoleAssignmentId(uuid::Uuid::from_u128(77));
    people.assign(RoleAssignment { id, role: role.into(), holder, created_at: NOW }, &LIMITS).unwrap();
}

fn terms(effect: Effect, subjects: &[Subject], permissions: &[&str]) -> PolicyTerms {
    PolicyTerms {
        name: format!("{permissions:?} {}", effect.name()),
        description: String::new(),
        effect,
        subjects: subjects.to_vec(),
        permissions: permissions.iter().map(|text| text.parse().unwrap()).collect(),
        resources: Vec::new(),
        condition: None,
        enabled: true,
    }
}

fn role_terms(permissions: &[&str]) -> RoleTerms {
    let permissions = permissions.iter().map(|text| text.parse().unwrap()).collect();
    RoleTerms { description: String::new(), permissions }
}

#[test]
fn a_role_is_made_changed_and_taken_away_by_the_version_that_was_seen() {
    let (built_in, mut books, mut people) = (built_in(), PolicyBooks::default(), people());
    let made = books.create_role("Auditor", role_terms(&["usage:read"]), &built_in, NOW).unwrap();
    assert_eq!((made.version, books.version, books.knows_role("Auditor")), (1, 1, true));
    for (name, refusal) in [
        ("auditor", Refusal::Taken { pointer: "/name".into() }),
        ("admin", Refusal::BuiltIn),
        ("Service", Refusal::BuiltIn),
        ("platformadmin", Refusal::BuiltIn),
    ] {
        assert_eq!(books.create_role(name, role_terms(&["usage:read"]), &built_in, NOW), Err(refusal), "{name}");
    }
    for (name, permissions, pointer) in [
        ("9lives", vec!["usage:read"], "/name"),
        ("a b", vec!["usage:read"], "/name"),
        ("b", vec![], "/permissions"),
        ("b", vec!["usage:read", "tenants:create"], "/permissions/1"),
        ("b", vec!["policies:change"], "/permissions/0"),
    ] {
        let Err(Refusal::Flawed(flaws)) = books.create_role(name, role_terms(&permissions), &built_in, NOW) else {
            panic!("{name} {permissions:?}");
        };
        assert_eq!(flaws[0].pointer, pointer);
    }
    let stale = Expected::OneOf(vec![7]);
    let other = || role_terms(&["usage:*"]);
    assert_eq!(books.replace_role("Auditor", other(), &stale, &built_in, NOW), Err(Refusal::Stale));
    assert_eq!(books.replace_role("Nobody", other(), &Expected::Any, &built_in, NOW), Err(Refusal::UnknownRole));
    assert_eq!(books.replace_role("reader", other(), &Expected::Any, &built_in, NOW), Err(Refusal::BuiltIn));
    assert_eq!(books.replace_role("Auditor", other(), &Expected::OneOf(vec![1]), &built_in, NOW).unwrap().version, 2);
    assert_eq!(books.replace_role("Auditor", other(), &Expected::Any, &built_in, NOW).unwrap().version, 2, "the same");
    assert_eq!(books.version, 2);

    gives(&mut people, "Auditor", Holder::User(user_id(1)));
    assert_eq!(books.remove_role("Auditor", &Expected::Any, &people), Err(Refusal::InUse));
    people.unassign(RoleAssignmentId(uuid::Uuid::from_u128(77))).unwrap();
    let judge = Judge { built_in: &built_in, people: &people };
    let about = terms(Effect::Deny, &[Subject::Role("Auditor".into())], &["usage:read"]);
    books.create_policy(policy_id(1), about, &judge, NOW).unwrap();
    assert_eq!(books.remove_role("Auditor", &Expected::Any, &people), Err(Refusal::InUse));
    books.remove_policy(policy_id(1), &Expected::Any).unwrap();
    books.remove_role("Auditor", &Expected::OneOf(vec![2]), &people).unwrap();
    assert!(books.is_empty() && books.version == 5);
}

#[test]
fn a_policy_speaks_of_whom_there_is_and_gives_what_a_tenant_may() {
    let (built_in, mut books, people) = (built_in(), PolicyBooks::default(), people());
    let judge = Judge { built_in: &built_in, people: &people };
    let good = terms(Effect::Allow, &[Subject::User(user_id(1)), Subject::Everybody], &["model:use"]);
    assert_eq!(books.create_policy(policy_id(1), good.clone(), &judge, NOW).unwrap().version, 1);
    let renamed = |name: &str, terms: PolicyTerms| PolicyTerms { name: name.into(), ..terms };
    for (terms, pointer) in [
        (terms(Effect::Allow, &[Subject::User(user_id(3))], &["model:use"]), "/subjects/0/id"),
        (terms(Effect::Allow, &[Subject::Group(GroupId(uuid::Uuid::nil()))], &["model:use"]), "/subjects/0/id"),
        (terms(Effect::Allow, &[Subject::Role("nobody".into())], &["model:use"]), "/subjects/0/id"),
        (terms(Effect::Allow, &[Subject::Role("platformAdmin".into())], &["model:use"]), "/subjects/0/id"),
        (terms(Effect::Allow, &[], &["model:use"]), "/subjects"),
        (terms(Effect::Allow, &[Subject::Everybody], &["tenants:create"]), "/permissions/0"),
        (terms(Effect::Allow, &[Subject::Everybody], &["policies:change"]), "/permissions/0"),
        (terms(Effect::Deny, &[Subject::Everybody], &[]), "/permissions"),
        (renamed(" ", good.clone()), "/name"),
    ] {
        let Err(Refusal::Flawed(flaws)) = books.create_policy(policy_id(2), terms.clone(), &judge, NOW) else {
            panic!("{terms:?}");
        };
        assert_eq!(flaws[0].pointer, pointer, "{terms:?}");
    }
    let taken = renamed(&good.name.to_uppercase(), good.clone());
    let refused = books.create_policy(policy_id(2), taken, &judge, NOW);
    assert_eq!(refused, Err(Refusal::Taken { pointer: "/name".into() }));
    // What is denied may be anything, and a name stays its own policy's.
    let denies = renamed(&good.name, terms(Effect::Deny, &[Subject::Everybody], &["tenants:create", "policies:*"]));
    let replaced = books.replace_policy(policy_id(1), denies, &Expected::OneOf(vec![1]), &judge, NOW).unwrap();
    assert_eq!((replaced.version, books.version), (2, 2));
    assert_eq!(books.replace_policy(policy_id(5), good, &Expected::Any, &judge, NOW), Err(Refusal::UnknownPolicy));
    assert_eq!(books.remove_policy(policy_id(1), &Expected::OneOf(vec![1])), Err(Refusal::Stale));
    // What is stored reads as it was written.
    let stored = serde_json::to_string(replaced.as_ref()).unwrap();
    assert_eq!(&serde_json::from_str::<super::statement::Policy>(&stored).unwrap(), replaced.as_ref());
}

#[test]
fn all_policies_together_and_all_roles_together_have_a_limit() {
    let (built_in, mut books, people) = (built_in(), PolicyBooks::default(), people());
    let judge = Judge { built_in: &built_in, people: &people };
    let full = |refused| matches!(refused, Err(Refusal::Full { most: ENTRIES_TOTAL_MAX, .. }));
    let sized = |entries: usize| {
        let permissions: Vec<String> = (1..entries).map(|at| format!("model:use{at}")).collect();
        let permissions: Vec<&str> = permissions.iter().map(String::as_str).collect();
        (terms(Effect::Deny, &[Subject::Everybody], &permissions), role_terms(&permissions))
    };
    let named = |at: usize, terms: PolicyTerms| PolicyTerms { name: format!("policy {at}"), ..terms };
    for at in 0..100 {
        let id = policy_id(u128::try_from(at).unwrap());
        books.create_policy(id, named(at, sized(200).0), &judge, NOW).unwrap();
    }
    assert!(full(books.create_policy(policy_id(100), named(100, sized(2).0), &judge, NOW).map(drop)));
    let mut replace =
        |entries| books.replace_policy(policy_id(7), named(7, sized(entries).0), &Expected::Any, &judge, NOW);
    assert!(full(replace(201).map(drop)));
    replace(190).unwrap();
    replace(200).unwrap();
    // Roles are counted by themselves, and a role that grows is refused as a new one is.
    for at in 0..100 {
        books.create_role(&format!("role{at}"), sized(200).1, &built_in, NOW).unwrap();
    }
    let left = ENTRIES_TOTAL_MAX - 100 * 199;
    books.create_role("last", sized(left + 1).1, &built_in, NOW).unwrap();
    assert!(full(books.create_role("more", sized(2).1, &built_in, NOW).map(drop)));
    assert!(full(books.replace_role("role1", sized(201).1, &Expected::Any, &built_in, NOW).map(drop)));
    books.replace_role("role1", sized(100).1, &Expected::Any, &built_in, NOW).unwrap();
}

#[test]
fn who_is_named_twice_is_a_candidate_once() {
    let (built_in, mut books, people) = (built_in(), PolicyBooks::default(), people());
    let judge = Judge { built_in: &built_in, people: &people };
    let twice = [Subject::Everybody, Subject::ApiKey("k".into()), Subject::ApiKey("k".into()), Subject::Everybody];
    books.create_policy(policy_id(1), terms(Effect::Allow, &twice, &["widget:turn"]), &judge, NOW).unwrap();
    let set = PolicySet::new(&books, Arc::new(built_in));
    assert_eq!(set.candidates("widget", "turn").len(), 2);
}

struct Nothing;

impl Relations for Nothing {
    fn holds(&self, _: &Tuple) -> Option<bool> {
        None
    }
}

/// What applies when somebody asks, by the rules' names.
fn applied(
    set: &PolicySet,
    who: Who<'_>,
    object: &str,
    action: &str,
    id: Option<&str>,
    context: Value,
) -> Vec<RuleName> {
    let said = Said { context: context.as_object().cloned().unwrap_or_default(), ..Said::default() };
    let texts = Texts::from(Surroundings { time: NOW.to_string(), ..Surroundings::default() });
    let (object, action) = (object, action);
    let question = Question { subject: who, object, action, resource_id: id, said: &said, surroundings: &texts };
    let numbers = set.applied(&set.candidates(object, action), &question, &Nothing);
    let holding = set.holding(&question, &Nothing);
    let covering =
        |number: &u32| set.rule(*number).unwrap().permissions.iter().any(|pattern| pattern.covers(object, action));
    assert_eq!(numbers, holding.into_iter().filter(covering).collect::<Vec<_>>(), "with the index and without");
    numbers.iter().map(|number| set.rule(*number).unwrap().name.clone()).collect()
}

#[test]
fn rules_apply_by_subject_resource_and_condition() {
    let (built_in, mut books, mut people) = (built_in(), PolicyBooks::default(), people());
    books.create_role("auditor", role_terms(&["usage:*", "*:inspect"]), &built_in, NOW).unwrap();
    gives(&mut people, "auditor", Holder::Group(GroupId(uuid::Uuid::from_u128(9))));
    let judge = Judge { built_in: &built_in, people: &people };
    let condition = |value: Value| Some(serde_json::from_value(value).unwrap());
    let finance = json!({"attribute": "subject.department", "operator": "equals", "values": ["finance"]});
    let office = json!({"attribute": "context.ip", "operator": "inNetwork", "values": ["10.0.0.0/8"]});
    let everybody = [Subject::Everybody];
    for (number, terms) in [
        (
            1,
            PolicyTerms {
                resources: vec!["model/gpt*".parse().unwrap()],
                condition: condition(json!({ "all": [finance, office] })),
                ..terms(Effect::Allow, &[Subject::User(user_id(1))], &["model:use"])
            },
        ),
        (2, PolicyTerms { enabled: false, ..terms(Effect::Deny, &everybody, &["*:*"]) }),
        (3, terms(Effect::Deny, &[Subject::Role("developer".into())], &["usage:read", "policies:change"])),
        (
            4,
            PolicyTerms {
                condition: condition(json!({"not": {"relation": "viewer"}})),
                ..terms(Effect::Deny, &everybody, &["file:open"])
            },
        ),
        (
            5,
            PolicyTerms {
                condition: condition(json!({"relation": "viewer"})),
                ..terms(Effect::Allow, &everybody, &["file:open"])
            },
        ),
        (6, terms(Effect::Allow, &[Subject::ApiKey("k".into())], &["*:*"])),
    ] {
        books.create_policy(policy_id(number), terms, &judge, NOW).unwrap();
    }
    let set = PolicySet::new(&books, Arc::new(built_in.clone()));
    assert!(set.has_relations());
    let ada = || Who::called(&people, "user", "ADA");
    let policy = |number| RuleName::Policy(policy_id(number));
    let (auditor, office) = (RuleName::Role("auditor".into()), json!({"ip": "10.1.1.1"}));
    assert_eq!(applied(&set, ada(), "model", "use", Some("gpt-4.1"), office.clone()), [policy(1)]);
    for (id, context) in [
        (Some("o3"), office.clone()),
        (None, office.clone()),
        (Some("gpt-4.1"), json!({"ip": "11.1.1.1"})),
        (Some("gpt-4.1"), json!({})),
    ] {
        assert_eq!(applied(&set, ada(), "model", "use", id, context), []);
    }
    assert_eq!(applied(&set, ada(), "usage", "read", None, json!({})), std::slice::from_ref(&auditor));
    assert_eq!(applied(&set, ada(), "invoice", "inspect", Some("1"), json!({})), [auditor]);
    assert_eq!(
        applied(&set, ada(), "tenants", "create", None, json!({})),
        [],
        "no tenant gives what is the platform's"
    );
    // Who is not known, and who was deactivated.
    for id in ["bob", "eve", "0199a8b2-5c00-7abc-8def-0123456789ab"] {
        assert_eq!(applied(&set, Who::called(&people, "user", id), "file", "open", Some("1"), json!({})), []);
    }
    // A relation that cannot be asked for allows nothing, and denies.
    assert_eq!(applied(&set, ada(), "file", "open", Some("1"), json!({})), [policy(4)]);
    let holder = Holder::ApiKey("k".into());
    let key = |role| Who::of_key(&people, "k", &holder, Some(role));
    let of = |role| RuleName::BuiltIn(role);
    assert_eq!(
        applied(&set, key(Role::Developer), "usage", "read", None, json!({})),
        [of(Role::Developer), policy(3), policy(6)]
    );
    assert_eq!(applied(&set, key(Role::Developer), "policies", "change", None, json!({})), [policy(3)]);
    // Whoever administers keeps the policies, whatever else he is.
    let mut both = key(Role::Admin);
    both.roles.push("developer");
    assert_eq!(applied(&set, both.clone(), "policies", "change", None, json!({})), [of(Role::Admin)]);
    assert!(applied(&set, both, "usage", "read", None, json!({})).contains(&policy(3)), "and nothing else");
    assert_eq!(set.actions_on("model"), ["inspect", "use"]);
    assert_eq!(set.actions_on("usage"), ["inspect", "read", "report"]);
}

#[test]
fn each_rule_says_how_far_it_got() {
    let (built_in, mut books, people) = (built_in(), PolicyBooks::default(), people());
    let judge = Judge { built_in: &built_in, people: &people };
    let condition = json!({"all": [{"attribute": "context.ip", "operator": "exists"}, {"relation": "viewer"}]});
    for (number, terms) in [
        (
            1,
            PolicyTerms {
                resources: vec!["file/a*".parse().unwrap()],
                ..terms(Effect::Allow, &[Subject::Everybody], &["file:open"])
            },
        ),
        (
            2,
            PolicyTerms {
                condition: Some(serde_json::from_value(condition).unwrap()),
                ..terms(Effect::Allow, &[Subject::User(user_id(1))], &["file:*"])
            },
        ),
        (3, terms(Effect::Allow, &[Subject::Everybody], &["*:open"])),
    ] {
        books.create_policy(policy_id(number), terms, &judge, NOW).unwrap();
    }
    let set = PolicySet::new(&books, Arc::new(built_in.clone()));
    let texts = Texts::default();
    let traced = |context: Map<String, Value>| {
        let said = Said { context, ..Said::default() };
        let subject = Who::called(&people, "user", "ada");
        let question = Question {
            subject,
            object: "file",
            action: "open",
            resource_id: Some("b"),
            said: &said,
            surroundings: &texts,
        };
        set.traced(&question, &Nothing).into_iter().map(|trace| trace.outcome).collect::<Vec<_>>()
    };
    use super::condition::Truth;
    let fails = |pointer: &str, truth| Outcome::ConditionFails { pointer: pointer.into(), truth };
    let first = traced(Map::new());
    assert_eq!(first, [Outcome::OtherResource, fails("/all/0", Truth::False), Outcome::Applies]);
    let second = traced([("ip".to_owned(), json!("10.0.0.1"))].into_iter().collect());
    assert_eq!(second[1], fails("/all/1", Truth::Unavailable));
}

proptest::proptest! {
    /// Whatever anybody writes is refused or read, and looked at, without a fall.
    #[test]
    fn no_text_is_too_odd(text in "\\PC{0,40}", number in proptest::prelude::any::<i64>()) {
        let _ = text.parse::<super::network::Network>();
        let _ = text.parse::<super::statement::ResourcePattern>();
        let _ = super::role::name_flaw(&text);
        for operator in super::condition::Operator::ALL {
            let said = json!({
                "attribute": format!("context.{text}"), "operator": operator.1, "values": [text, number],
            });
            let mut flaws = Vec::new();
            let _ = super::condition::Condition::read(&said, "", &mut flaws);
            let said = json!({"not": {"attribute": "context.a", "operator": operator.1, "values": [text]}});
            let Some(condition) = super::condition::Condition::read(&said, "", &mut flaws) else { continue };
            let (people, texts) = (Organization::default(), Texts::default());
            let said = Said { context: json!({ "a": [text, number] }).as_object().unwrap().clone(), ..Said::default() };
            let subject = Who::called(&people, "user", &text);
            let question = Question {
                subject, object: &text, action: &text, resource_id: Some(&text), said: &said, surroundings: &texts,
            };
            let _ = condition.truth(&super::question::Asked { question: &question, relations: &Nothing });
            assert_eq!(serde_json::from_value::<super::condition::Condition>(Value::from(condition.clone())).unwrap(), condition);
        }
    }
}
