//! The people of a tenant, against a model that is slow and plain.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::time::Timestamp;

const LIMITS: Limits = Limits { users: 1_000, groups: 1_000, members: 10_000, role_assignments: 1_000 };

fn user_id(number: u128) -> UserId {
    UserId(Uuid::from_u128(number))
}

fn group_id(number: u128) -> GroupId {
    GroupId(Uuid::from_u128(0x9000 + number))
}

fn user(number: u128, profile: user::Profile) -> User {
    User { id: user_id(number), profile, version: 1, created_at: Timestamp(0), updated_at: Timestamp(0) }
}

fn group(number: u128, profile: group::Profile) -> Group {
    Group { id: group_id(number), profile, version: 1, created_at: Timestamp(0), updated_at: Timestamp(0) }
}

fn people(users: u128, groups: u128) -> Organization {
    let mut organization = Organization::default();
    for number in 0..users {
        organization.put_user(user(number, user::Profile::named(&format!("user-{number}"))), &LIMITS).unwrap();
    }
    for number in 0..groups {
        organization.put_group(group(number, group::Profile::named(&format!("group-{number}"))), &LIMITS).unwrap();
    }
    organization
}

fn gives(organization: &mut Organization, number: u128, role: &str, holder: Holder) {
    let assignment = RoleAssignment {
        id: RoleAssignmentId(Uuid::from_u128(number)),
        role: role.into(),
        holder,
        created_at: Timestamp(0),
    };
    organization.assign(assignment, &LIMITS).unwrap();
}

fn subject(issuer: &str, subject: &str) -> IssuedSubject {
    IssuedSubject { issuer: issuer.into(), subject: subject.into() }
}

#[test]
fn a_name_belongs_to_one_user_in_whatever_case() {
    let mut organization = people(2, 0);
    let taken = |pointer: &str| Err(Refusal::Taken { pointer: pointer.into() });
    let named = |name: &str| user::Profile::named(name);
    assert_eq!(organization.put_user(user(7, named("USER-1")), &LIMITS), taken("/userName"));
    assert_eq!(organization.put_user(user(7, named("Ümit")), &LIMITS).unwrap().id, user_id(7));
    assert_eq!(organization.put_user(user(8, named("üMIT")), &LIMITS), taken("/userName"));
    assert_eq!(organization.user_named("ÜMIT").unwrap().id, user_id(7));
    // Its own name is not taken, and the one it gives up is free.
    assert!(organization.put_user(user(1, named("User-1")), &LIMITS).is_ok());
    assert!(organization.put_user(user(1, named("someone")), &LIMITS).is_ok());
    assert!(organization.put_user(user(8, named("user-1")), &LIMITS).is_ok());

    let external = user::Profile { external_id: Some("e-1".into()), ..named("a") };
    organization.put_user(user(20, external.clone()), &LIMITS).unwrap();
    assert_eq!(organization.user_of_external_id("e-1").unwrap().id, user_id(20));
    assert!(organization.user_of_external_id("E-1").is_none(), "an identity provider's id is taken by the letter");
    let twin = user::Profile { user_name: "b".into(), ..external };
    assert_eq!(organization.put_user(user(21, twin), &LIMITS), taken("/externalId"));
    organization.remove_user(user_id(20)).unwrap();
    assert!(organization.user_of_external_id("e-1").is_none() && organization.user_named("a").is_none());
}

#[test]
fn a_subject_belongs_to_one_user_at_each_issuer() {
    let mut organization = people(0, 0);
    let profile = |name: &str, subjects: &[IssuedSubject]| user::Profile {
        subjects: subjects.to_vec(),
        ..user::Profile::named(name)
    };
    organization.put_user(user(1, profile("a", &[subject("i", "s"), subject("j", "s")])), &LIMITS).unwrap();
    organization.put_user(user(2, profile("b", &[subject("k", "s")])), &LIMITS).unwrap();
    let taken = organization.put_user(user(3, profile("c", &[subject("k", "t"), subject("j", "s")])), &LIMITS);
    assert_eq!(taken, Err(Refusal::Taken { pointer: "/subjects/1".into() }));
    for (issuer, expected) in [("i", Some(1)), ("j", Some(1)), ("k", Some(2)), ("l", None)] {
        let found = organization.user_of_subject(issuer, "s").map(|user| user.id);
        assert_eq!(found, expected.map(user_id), "{issuer}");
    }
    organization.put_user(user(1, profile("a", &[subject("i", "s")])), &LIMITS).unwrap();
    assert!(organization.user_of_subject("j", "s").is_none());
}

#[test]
fn groups_are_nested_to_a_depth_and_no_further() {
    let mut organization = people(0, 20);
    let deepest = NESTING_DEPTH_MAX as u128;
    for number in 1..deepest {
        organization.join(group_id(number - 1), &[Member::Group(group_id(number))], &LIMITS).unwrap();
    }
    let deeper = [Member::Group(group_id(deepest))];
    assert_eq!(organization.join(group_id(deepest - 1), &deeper, &LIMITS), Err(Refusal::TooDeep { index: 0 }));
    // Nor above, nor by joining two that are fine by themselves.
    let above = [Member::Group(group_id(0))];
    assert_eq!(organization.join(group_id(deepest), &above, &LIMITS), Err(Refusal::TooDeep { index: 0 }));
    organization.join(group_id(10), &[Member::Group(group_id(11))], &LIMITS).unwrap();
    let two = [Member::Group(group_id(10))];
    assert_eq!(organization.join(group_id(deepest - 2), &two, &LIMITS), Err(Refusal::TooDeep { index: 0 }));
    assert!(organization.join(group_id(deepest - 3), &two, &LIMITS).is_ok());
}

#[test]
fn whoever_cannot_all_join_do_not_join_at_all() {
    let mut organization = people(2, 3);
    let nobody = Member::User(user_id(99));
    let refused = organization.join(group_id(0), &[Member::User(user_id(0)), nobody], &LIMITS);
    assert!(matches!(refused, Err(Refusal::Flawed(flaws)) if flaws[0].pointer == "/members/1/id"));
    assert_eq!(organization.member_count(), 0);
    organization.join(group_id(1), &[Member::Group(group_id(0))], &LIMITS).unwrap();
    organization.join(group_id(2), &[Member::Group(group_id(1))], &LIMITS).unwrap();
    for inner in [0, 1, 2] {
        let circle = [Member::User(user_id(0)), Member::Group(group_id(2))];
        assert_eq!(organization.join(group_id(inner), &circle, &LIMITS), Err(Refusal::Cycle { index: 1 }), "{inner}");
    }
    assert_eq!(organization.member_count(), 2);
}

#[test]
fn every_limit_holds() {
    let mut organization = people(2, 2);
    let limits = Limits { users: 2, groups: 2, members: 1, role_assignments: 1 };
    let full = |what, most| Refusal::Full { what, most };
    let more = organization.put_user(user(9, user::Profile::named("x")), &limits);
    assert_eq!(more.unwrap_err(), full("users", 2));
    assert!(organization.put_user(user(1, user::Profile::named("x")), &limits).is_ok(), "a change is no more");
    let more = organization.put_group(group(9, group::Profile::named("x")), &limits);
    assert_eq!(more.unwrap_err(), full("groups", 2));
    let both = [Member::User(user_id(0)), Member::User(user_id(1))];
    assert_eq!(organization.join(group_id(0), &both, &limits), Err(full("members", 1)));
    assert!(organization.join(group_id(0), &both[..1], &limits).is_ok());
    gives(&mut organization, 1, "reader", Holder::ApiKey("k".into()));
    let second = RoleAssignment {
        id: RoleAssignmentId(Uuid::from_u128(2)),
        role: "admin".into(),
        holder: Holder::ApiKey("k".into()),
        created_at: Timestamp(0),
    };
    assert_eq!(organization.assign(second, &limits).unwrap_err(), full("role assignments", 1));
}

#[test]
fn a_role_comes_directly_or_through_groups_that_are_active() {
    let mut organization = people(2, 3);
    organization.join(group_id(0), &[Member::User(user_id(0))], &LIMITS).unwrap();
    organization.join(group_id(1), &[Member::Group(group_id(0))], &LIMITS).unwrap();
    gives(&mut organization, 1, "reader", Holder::User(user_id(0)));
    gives(&mut organization, 2, "analyst", Holder::Group(group_id(0)));
    gives(&mut organization, 3, "admin", Holder::Group(group_id(1)));
    gives(&mut organization, 4, "developer", Holder::Group(group_id(2)));
    let roles = |organization: &Organization| {
        organization.roles_of_user(user_id(0)).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(roles(&organization), ["admin", "analyst", "reader"]);
    assert!(organization.roles_of_user(user_id(1)).is_empty());
    // What is inactive gives nothing, and passes nothing on.
    let asleep = group::Profile { active: false, ..group::Profile::named("group-0") };
    organization.put_group(group(0, asleep), &LIMITS).unwrap();
    assert_eq!(roles(&organization), ["reader"]);
    let regardless = organization.roles_of_user_regardless(user_id(0));
    assert_eq!(regardless.into_iter().collect::<Vec<_>>(), ["admin", "analyst", "reader"]);
    let gone = user::Profile { active: false, ..user::Profile::named("user-0") };
    organization.put_user(user(0, gone), &LIMITS).unwrap();
    assert!(roles(&organization).is_empty());
    // A group that is taken away leaves nothing behind.
    organization.remove_group(group_id(1)).unwrap();
    assert!(organization.assignment(RoleAssignmentId(Uuid::from_u128(3))).is_none());
    assert_eq!(organization.member_count(), 1);
}

#[test]
fn a_gateway_s_name_for_somebody_who_left_is_recognised() {
    let mut organization = people(1, 1);
    let gone = user::Profile {
        external_id: Some("e-9".into()),
        subjects: vec![subject("https://issuer", "s-9")],
        active: false,
        ..user::Profile::named("Gone@example.com")
    };
    organization.put_user(user(9, gone), &LIMITS).unwrap();
    let shut = group::Profile { active: false, ..group::Profile::named("Shut") };
    organization.put_group(group(9, shut), &LIMITS).unwrap();
    for label in [&user_id(9).to_string(), "gone@EXAMPLE.com", "e-9", "s-9"] {
        assert_eq!(organization.revoked(label, ""), Some(Revoked::User), "{label}");
    }
    for label in ["", "user-0", "somebody", "E-9", "s-", "s-99"] {
        assert_eq!(organization.revoked(label, ""), None, "{label}");
    }
    for (label, expected) in [("shut", Some(Revoked::Group)), ("group-0", None), ("", None), ("other", None)] {
        assert_eq!(organization.revoked("user-0", label), expected, "{label}");
    }
}

#[test]
fn a_profile_is_judged_field_by_field() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let email = |value: &str, primary: bool| user::Email { value: value.into(), kind: None, primary };
    let named = || user::Profile::named("jane");
    for (profile, pointers) in [
        (named(), vec![]),
        (user::Profile::named(""), vec!["/userName", "/displayName"]),
        (user::Profile::named(" x"), vec!["/userName", "/displayName"]),
        (user::Profile { given_name: Some(long), ..named() }, vec!["/givenName"]),
        (user::Profile { family_name: Some("a\nb".into()), ..named() }, vec!["/familyName"]),
        (user::Profile { external_id: Some(String::new()), ..named() }, vec!["/externalId"]),
        (user::Profile { emails: vec![email("a@b", true), email("c@d", false)], ..named() }, vec![]),
        (user::Profile { emails: vec![email("a@b", true), email("c@d", true)], ..named() }, vec!["/emails"]),
        (
            user::Profile { emails: vec![email("ab", false), email("@b", false)], ..named() },
            vec!["/emails/0/value", "/emails/1/value"],
        ),
        (user::Profile { emails: vec![email("a@b", false); 11], ..named() }, vec!["/emails"]),
        (user::Profile { subjects: vec![subject("i", "s"); 2], ..named() }, vec!["/subjects/1"]),
        (
            user::Profile { subjects: vec![subject("", "")], ..named() },
            vec!["/subjects/0/issuer", "/subjects/0/subject"],
        ),
    ] {
        let found: Vec<String> = profile.flaws().into_iter().map(|flaw| flaw.pointer).collect();
        assert_eq!(found, pointers, "{profile:?}");
    }
}

#[test]
fn names_are_found_by_how_they_begin() {
    let mut organization = people(0, 0);
    for (number, name) in [(1, "Anna"), (2, "anton"), (3, "Bert"), (4, "ANNETTE"), (5, "an")] {
        organization.put_user(user(number, user::Profile::named(name)), &LIMITS).unwrap();
    }
    for (prefix, expected) in [("AN", vec![1, 2, 4, 5]), ("ann", vec![1, 4]), ("x", vec![]), ("", vec![1, 2, 3, 4, 5])]
    {
        let expected: Vec<UserId> = expected.into_iter().map(user_id).collect();
        assert_eq!(organization.users_with_prefix(prefix), expected, "{prefix}");
    }
}

/// Groups by number, and who is directly in which.
type Edges = BTreeMap<u128, BTreeSet<u128>>;

/// Is there a way down from one to the other?
fn reaches(edges: &Edges, from: u128, to: u128) -> bool {
    from == to || edges.get(&from).is_some_and(|inner| inner.iter().any(|next| reaches(edges, *next, to)))
}

/// Groups on the longest way down.
fn height(edges: &Edges, from: u128) -> usize {
    1 + edges.get(&from).map_or(0, |inner| inner.iter().map(|next| height(edges, *next)).max().unwrap_or(0))
}

proptest! {
    /// Whatever is tried, groups are never nested in a circle or too deep, what is allowed is done, and who is in what
    /// through others is what a walk over every way finds.
    #[test]
    fn nesting_holds_whatever_is_tried(tries in proptest::collection::vec((0_u128..14, 0_u128..14, any::<bool>()), 0..120)) {
        let mut organization = people(1, 14);
        let mut edges = Edges::new();
        for (outer, inner, joins) in tries {
            let member = Member::Group(group_id(inner));
            if !joins {
                let left = organization.expel(group_id(outer), member).is_ok();
                let was = edges.get_mut(&outer).is_some_and(|within| within.remove(&inner));
                prop_assert_eq!(left, was);
                continue;
            }
            let mut with = edges.clone();
            with.entry(outer).or_default().insert(inner);
            let is_circle = reaches(&edges, inner, outer);
            let is_deep = !is_circle && (0..14).any(|top| height(&with, top) > NESTING_DEPTH_MAX);
            let expected = match (is_circle, is_deep) {
                (true, _) => Err(Refusal::Cycle { index: 0 }),
                (_, true) => Err(Refusal::TooDeep { index: 0 }),
                _ => Ok(()),
            };
            prop_assert_eq!(organization.join(group_id(outer), &[member], &LIMITS).map(drop), expected.clone());
            if expected.is_ok() {
                edges = with;
            }
        }
        for inner in 0..14 {
            let expected: BTreeSet<GroupId> =
                (0..14).filter(|top| *top != inner && reaches(&edges, *top, inner)).map(group_id).collect();
            prop_assert_eq!(organization.all_groups_of(Member::Group(group_id(inner))), expected);
        }
        // A user in one of them has the roles of all that this one is in, and of no other.
        organization.join(group_id(3), &[Member::User(user_id(0))], &LIMITS).unwrap();
        for number in 0..14 {
            gives(&mut organization, number, &format!("role-{number:02}"), Holder::Group(group_id(number)));
        }
        let expected: Vec<String> =
            (0..14).filter(|top| reaches(&edges, *top, 3)).map(|top| format!("role-{top:02}")).collect();
        let found: Vec<String> = organization.roles_of_user(user_id(0)).into_iter().map(str::to_owned).collect();
        prop_assert_eq!(found, expected);
    }

    /// Whatever is put and removed, every name, external id and subject leads to exactly the user that has it.
    #[test]
    fn an_index_says_what_the_users_say(tries in proptest::collection::vec((0_u128..6, 0_u8..5, 0_u8..5, any::<bool>()), 0..80)) {
        let mut organization = Organization::default();
        let mut model: BTreeMap<u128, user::Profile> = BTreeMap::new();
        for (number, name, other, puts) in tries {
            if !puts {
                prop_assert_eq!(organization.remove_user(user_id(number)).is_ok(), model.remove(&number).is_some());
                continue;
            }
            let profile = user::Profile {
                external_id: (other > 0).then(|| format!("e{other}")),
                subjects: vec![subject("i", &format!("s{other}"))],
                ..user::Profile::named(&format!("N{name}"))
            };
            let clashes = |profile: &user::Profile| {
                model.iter().any(|(owner, known)| {
                    let same_id = known.external_id.is_some() && known.external_id == profile.external_id;
                    *owner != number && (known.user_name == profile.user_name || same_id || known.subjects == profile.subjects)
                })
            };
            let refused = clashes(&profile);
            prop_assert_eq!(organization.put_user(user(number, profile.clone()), &LIMITS).is_err(), refused);
            if !refused {
                model.insert(number, profile);
            }
        }
        prop_assert_eq!(organization.user_count(), model.len());
        for label in 0_u8..5 {
            let by = |has: &dyn Fn(&user::Profile) -> bool| {
                model.iter().find(|(_, profile)| has(profile)).map(|(number, _)| user_id(*number))
            };
            let id = |found: Option<&Arc<User>>| found.map(|user| user.id);
            let (name, external, of) = (format!("N{label}"), format!("e{label}"), format!("s{label}"));
            prop_assert_eq!(id(organization.user_named(&name.to_lowercase())), by(&|profile| profile.user_name == name));
            let known = by(&|profile| profile.external_id.as_deref() == Some(&external));
            prop_assert_eq!(id(organization.user_of_external_id(&external)), known);
            prop_assert_eq!(id(organization.user_of_subject("i", &of)), by(&|profile| *profile.subjects[0].subject == *of));
        }
    }
}
