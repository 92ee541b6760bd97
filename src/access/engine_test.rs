//! The engine says what Casbin says, however often it is asked.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::engine::{Engine, Reason};
use crate::domain::ids::{PolicyId, UserId};
use crate::domain::organization::attributes::Attributes;
use crate::domain::organization::user::{Profile, User};
use crate::domain::organization::{Limits, Organization};
use crate::domain::policy::books::{Judge, PolicyBooks};
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::question::{Question, Relations, Said, Subject as Who, Texts, Tuple};
use crate::domain::policy::role::RoleTerms;
use crate::domain::policy::set::{PolicySet, RuleName};
use crate::domain::policy::statement::{Effect, PolicyTerms, Subject};
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

const NOW: Timestamp = Timestamp(1_763_650_000_000_000);
const LIMITS: Limits = Limits { users: 9, groups: 9, members: 9, role_assignments: 9 };

struct Nothing;

impl Relations for Nothing {
    fn holds(&self, _: &Tuple) -> Option<bool> {
        None
    }
}

fn built_in() -> BuiltIn {
    BuiltIn::of([
        (Role::PlatformAdmin, "tenants", "create"),
        (Role::Admin, "usage", "read"),
        (Role::Admin, "usage", "write"),
        (Role::Admin, "policies", "read"),
        (Role::Reader, "usage", "read"),
    ])
}

fn user(number: u128) -> UserId {
    UserId(uuid::Uuid::from_u128(number))
}

fn people() -> Organization {
    let mut people = Organization::default();
    for number in 1..=2_u32 {
        let attributes = Attributes::read(json!({ "level": number }).as_object().unwrap()).unwrap();
        let profile = Profile { attributes, ..Profile::named(&format!("u{number}")) };
        let user = User { id: user(number.into()), profile, version: 1, created_at: NOW, updated_at: NOW };
        people.put_user(user, &LIMITS).unwrap();
    }
    people
}

fn engine(policies: Vec<PolicyTerms>) -> Engine {
    let (built_in, people, mut books) = (built_in(), people(), PolicyBooks::default());
    let permissions = vec!["usage:*".parse().unwrap(), "*:read".parse().unwrap()];
    let terms = RoleTerms { description: String::new(), permissions };
    books.create_role("auditor", terms, &built_in, NOW).unwrap();
    let judge = Judge { built_in: &built_in, people: &people };
    for (number, terms) in (1_u128..).zip(policies) {
        let terms = PolicyTerms { name: number.to_string(), ..terms };
        books.create_policy(PolicyId(uuid::Uuid::from_u128(number)), terms, &judge, NOW).unwrap();
    }
    Engine::new(PolicySet::new(&books, Arc::new(built_in))).unwrap()
}

fn terms(effect: Effect, subjects: Vec<Subject>, permission: &str) -> PolicyTerms {
    PolicyTerms {
        name: String::new(),
        description: String::new(),
        effect,
        subjects,
        permissions: vec![permission.parse().unwrap()],
        resources: Vec::new(),
        condition: None,
        enabled: true,
    }
}

fn policies() -> impl Strategy<Value = PolicyTerms> {
    let subject = prop_oneof![
        Just(Subject::Everybody),
        prop_oneof![Just("auditor"), Just("reader"), Just("admin")].prop_map(|name| Subject::Role(name.into())),
        (1..=2_u128).prop_map(|number| Subject::User(user(number))),
    ];
    let permission = (prop_oneof!["usage", "file", "[*]"], prop_oneof!["read", "write", "[*]"])
        .prop_map(|(object, action)| format!("{object}:{action}"));
    let resource = prop_oneof![Just("*/*"), Just("file/a*"), Just("file/b"), Just("usage/*")];
    let condition = prop_oneof![
        Just(json!({"attribute": "subject.level", "operator": "greaterThan", "values": [1]})),
        Just(json!({"attribute": "context.flag", "operator": "equals", "values": [true]})),
        Just(json!({"not": {"attribute": "context.flag", "operator": "equals", "values": [true]}})),
        Just(json!({"relation": "viewer"})),
    ];
    let parts = (
        any::<bool>(),
        prop::collection::vec(subject, 1..3),
        permission,
        prop::collection::vec(resource, 0..2),
        prop::option::of(condition),
    );
    parts.prop_map(|(denies, subjects, permission, resources, condition)| {
        let effect = if denies { Effect::Deny } else { Effect::Allow };
        PolicyTerms {
            resources: resources.iter().map(|text| text.parse().unwrap()).collect(),
            condition: condition.map(|value| serde_json::from_value(value).unwrap()),
            ..terms(effect, subjects, &permission)
        }
    })
}

#[derive(Debug, Clone)]
struct Asked {
    who: &'static str,
    roles: Vec<&'static str>,
    object: &'static str,
    action: &'static str,
    id: Option<&'static str>,
    flag: Option<bool>,
}

fn questions() -> impl Strategy<Value = Asked> {
    (
        prop_oneof![Just("u1"), Just("u2"), Just("nobody")],
        prop::sample::subsequence(vec!["auditor", "reader", "admin"], 0..=3),
        prop_oneof![Just("usage"), Just("file"), Just("policies"), Just("tenants")],
        prop_oneof![Just("read"), Just("write"), Just("create")],
        prop::option::of(prop_oneof![Just("a1"), Just("b")]),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(who, roles, object, action, id, flag)| Asked { who, roles, object, action, id, flag })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// With everything kept and an index, with neither, and by the rule itself written down a third time.
    #[test]
    fn a_kept_decision_is_what_plain_casbin_decides(
        policies in prop::collection::vec(policies(), 0..8),
        questions in prop::collection::vec(questions(), 1..12),
    ) {
        let (engine, people, texts) = (engine(policies), people(), Texts::default());
        for asked in &questions {
            let context = asked.flag.map(|flag| ("flag".to_owned(), json!(flag))).into_iter().collect();
            let said = Said { context, ..Said::default() };
            let mut subject = Who::called(&people, "user", asked.who);
            if subject.is_known {
                subject.roles.extend(asked.roles.iter().copied());
            }
            let (object, action) = (asked.object, asked.action);
            let question =
                Question { subject, object, action, resource_id: asked.id, said: &said, surroundings: &texts };
            let plain = engine.decide_plainly(&question, &Nothing);
            let holding = engine.set().holding(&question, &Nothing);
            let effects: Vec<Effect> = holding
                .iter()
                .filter_map(|number| engine.set().rule(*number))
                .filter(|rule| rule.permissions.iter().any(|pattern| pattern.covers(object, action)))
                .map(|rule| rule.effect)
                .collect();
            let ruled = effects.contains(&Effect::Allow) && !effects.contains(&Effect::Deny);
            prop_assert_eq!(plain, ruled, "Casbin against the rule: {:?}", asked);
            for _ in 0..2 {
                prop_assert_eq!(engine.decide(&question, &Nothing).allowed, plain, "{:?}", asked);
            }
        }
    }
}

#[test]
fn what_denies_goes_before_what_allows_and_nothing_is_never_a_permission() {
    let one = || vec![Subject::User(user(1))];
    let engine = engine(vec![
        terms(Effect::Allow, one(), "file:*"),
        terms(Effect::Deny, vec![Subject::Everybody], "file:write"),
    ]);
    let (people, said, texts) = (people(), Said::default(), Texts::default());
    let decided = |who: &'static str, object: &str, action: &str| {
        let subject = Who::called(&people, "user", who);
        let question = Question { subject, object, action, resource_id: None, said: &said, surroundings: &texts };
        let decided = engine.decide(&question, &Nothing);
        assert_eq!(decided.version, 3);
        (decided.allowed, decided.reason)
    };
    let policy = |number| RuleName::Policy(PolicyId(uuid::Uuid::from_u128(number)));
    assert_eq!(decided("u1", "file", "read"), (true, Reason::AllowedBy(policy(1))));
    assert_eq!(decided("u1", "file", "write"), (false, Reason::DeniedBy(policy(2))));
    assert_eq!(decided("u2", "file", "write"), (false, Reason::DeniedBy(policy(2))));
    assert_eq!(decided("u2", "file", "read"), (false, Reason::NothingApplies));
    assert_eq!(decided("", "file", "write"), (false, Reason::NothingApplies), "of nobody nothing is said");
    // Texts of whoever asks are values to Casbin and nothing else.
    for object in ["*", "file\", \"x", "r.object", "/(", "模型", ""] {
        assert_eq!(decided("u1", object, "*"), (false, Reason::NothingApplies), "{object}");
    }
}

#[test]
fn what_a_gateway_asks_for_does_not_pile_up() {
    let engine = engine(vec![terms(Effect::Allow, vec![Subject::Everybody], "*:use")]);
    let (people, said, texts) = (people(), Said::default(), Texts::default());
    for number in 0..3_000 {
        let object = format!("object{number}");
        let subject = Who::called(&people, "user", "u1");
        let question =
            Question { subject, object: &object, action: "use", resource_id: None, said: &said, surroundings: &texts };
        assert!(engine.decide(&question, &Nothing).allowed, "{object}");
    }
    assert!(engine.pairs_kept() <= 128, "{}", engine.pairs_kept());
}
