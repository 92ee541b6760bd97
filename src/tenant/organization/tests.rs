//! Changes to a tenant's people, on both engines: what memory says, the rows say again.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::sync::Arc;

use ractor::concurrency::oneshot;

use super::*;
use crate::domain::books::Books;
use crate::domain::ids::{GroupId, RoleAssignmentId, UserId};
use crate::domain::organization::group::{self, Member};
use crate::domain::organization::role::Holder;
use crate::domain::organization::user::{self, Email, IssuedSubject};
use crate::domain::organization::{Expected, Limits, Refusal};
use crate::domain::request::{Answer, Idempotency};
use crate::store::database::Connection;
use crate::store::load;
use crate::store::tests::harness::{House, NOW};
use crate::tenant::guess::Guess;
use crate::tenant::task::{Change, Declined, Task, Told};
use crate::tenant::work::{Reply, Unit, Work};
use crate::tenant::writer;

crate::store::tests::conformance!(
    people_are_read_again_as_they_were_left,
    a_change_meant_for_another_version_is_not_made,
    a_refused_change_leaves_no_row_and_no_record,
    whoever_goes_leaves_nothing_behind,
    a_person_is_made_once_per_key,
    a_group_is_shaped_in_one_change,
    what_is_recorded_names_no_value
);

const LIMITS: Limits = Limits { users: 5, groups: 5, members: 5, role_assignments: 5 };

struct Home {
    connection: Connection,
    books: Arc<Books>,
}

fn rendered<T: std::fmt::Debug>(done: &T) -> String {
    format!("{done:?}")
}

impl Home {
    async fn new(house: &House) -> Home {
        let (_, connection, books) = house.owner().await;
        Home { connection, books: Arc::new(books) }
    }

    async fn told<C: Change>(&mut self, change: C, key: Option<&str>) -> Told<C> {
        let idempotency = key.map(|key| Idempotency { key: key.into(), body_hash: [1; 32] });
        let request = Request { actor: "apiKey:k".into(), request_id: "r".into(), idempotency };
        let (reply, told) = oneshot();
        let task = Task::new(change, request, rendered, NOW, reply.into());
        let unit = Unit { books: self.books.clone(), work: vec![Work::Task(task)] };
        let written = writer::write(&mut self.connection, &mut Guess::default(), unit).await.unwrap();
        self.books = written.books;
        written.answers.into_iter().for_each(Reply::send);
        told.await.unwrap()
    }

    async fn done<C: Change>(&mut self, change: C) -> C::Done {
        match self.told(change, None).await {
            Ok(Answer::Fresh(done)) => done,
            other => panic!("{other:?}"),
        }
    }

    async fn refused<C: Change<Refused = Refusal>>(&mut self, change: C) -> Refusal {
        let before = (self.books.version, self.books.head);
        let refusal = match self.told(change, None).await {
            Err(Declined::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        };
        assert_eq!((self.books.version, self.books.head), before, "a refusal was recorded");
        self.reads_the_same().await;
        refusal
    }

    /// What is stored is what is in memory, field by field.
    async fn reads_the_same(&mut self) {
        let stored = load::read_books(&mut self.connection, self.books.tenant).await.unwrap();
        let all = |organization: &Organization| {
            let groups: Vec<_> = organization.groups_after(None).cloned().collect();
            let members_of = |group: &Arc<group::Group>| organization.members_of(group.id, None).collect::<Vec<_>>();
            let members: Vec<Vec<Member>> = groups.iter().map(members_of).collect();
            let users: Vec<_> = organization.users_after(None).cloned().collect();
            (users, groups, members, organization.assignments_after(None).cloned().collect::<Vec<_>>())
        };
        assert_eq!(all(&stored.organization), all(&self.books.organization));
    }

    async fn user(&mut self, name: &str) -> UserId {
        self.done(create(full(name))).await.id
    }

    async fn group(&mut self, name: &str) -> GroupId {
        let id = GroupId(crate::clock::new_id());
        let profile = group::Profile {
            description: Some(format!("all of {name}")),
            external_id: Some(format!("external {name}")),
            ..group::Profile::named(name)
        };
        self.done(CreateGroup { id, profile, limits: LIMITS }).await;
        id
    }

    async fn joins(&mut self, group: GroupId, members: &[Member]) {
        let (members, expected) = (members.to_vec(), Expected::Any);
        self.done(AddMembers { group, members, expected, limits: LIMITS }).await;
    }
}

/// A profile with something in every field.
fn full(name: &str) -> user::Profile {
    let attributes = serde_json::json!({"level": 3, "sites": ["Köln", "Graz"], "cleared": true});
    let email = |value: String, primary| Email { value, kind: Some("work".into()), primary };
    let subject = |issuer: &str| IssuedSubject { issuer: issuer.into(), subject: format!("subject of {name}").into() };
    user::Profile {
        user_name: name.into(),
        display_name: format!("{name} the First"),
        given_name: Some(name.into()),
        family_name: None,
        emails: vec![email(format!("{name}@example.com"), false), email(format!("{name}@home.example"), true)],
        external_id: Some(format!("external {name}")),
        subjects: vec![subject("https://b.example"), subject("https://a.example")],
        attributes: crate::domain::organization::attributes::Attributes::read(attributes.as_object().unwrap()).unwrap(),
        active: true,
    }
}

fn create(profile: user::Profile) -> CreateUser {
    CreateUser { id: UserId(crate::clock::new_id()), profile, limits: LIMITS }
}

fn patch(id: UserId, expected: Expected, patch: user::ProfilePatch) -> EditUser {
    EditUser { id, edit: UserEdit::Patch(patch), expected, limits: LIMITS }
}

fn delete(id: UserId, expected: Expected) -> DeleteUser {
    DeleteUser { id, expected }
}

fn dissolve(id: GroupId, expected: Expected) -> DeleteGroup {
    DeleteGroup { id, expected }
}

fn remove(group: GroupId, user: UserId, expected: Expected) -> RemoveMember {
    RemoveMember { group, member: Member::User(user), expected, limits: LIMITS }
}

fn assign(role: &str, holder: Holder) -> AssignRole {
    let id = RoleAssignmentId(crate::clock::new_id());
    AssignRole { id, role: role.into(), holder, limits: LIMITS }
}

async fn people_are_read_again_as_they_were_left(house: &House) {
    let mut home = Home::new(house).await;
    home.reads_the_same().await;
    let (ada, bob) = (home.user("Ada").await, home.user("Bob").await);
    let (inner, outer) = (home.group("Inner").await, home.group("Outer").await);
    home.joins(inner, &[Member::User(ada), Member::User(bob)]).await;
    home.joins(outer, &[Member::Group(inner)]).await;
    home.done(assign("analyst", Holder::Group(outer))).await;
    home.done(assign("reader", Holder::User(ada))).await;
    home.done(assign("developer", Holder::ApiKey("KEY".into()))).await;
    home.reads_the_same().await;
    assert_eq!(home.books.organization.roles_of_user(ada), BTreeSet::from(["analyst", "reader"]));

    let replaced = EditUser {
        id: ada,
        edit: UserEdit::Replace(user::Profile { subjects: Vec::new(), ..user::Profile::named("ADA") }),
        expected: Expected::OneOf(vec![1]),
        limits: LIMITS,
    };
    assert_eq!(home.done(replaced).await.version, 2);
    // The subjects that Ada gave up are free for Bob.
    let taken_over = user::ProfilePatch { subjects: Some(full("Ada").subjects), ..user::ProfilePatch::default() };
    home.done(patch(bob, Expected::Any, taken_over)).await;
    let edit = GroupEdit::Patch(group::ProfilePatch { active: Some(false), ..group::ProfilePatch::default() });
    home.done(EditGroup { id: outer, edit, expected: Expected::OneOf(vec![1, 2]), limits: LIMITS }).await;
    home.done(remove(inner, bob, Expected::Any)).await;
    home.reads_the_same().await;
    assert_eq!(home.books.organization.roles_of_user(ada), BTreeSet::from(["reader"]));
    assert_eq!(home.books.organization.group(inner).unwrap().version, 3);
}

async fn a_change_meant_for_another_version_is_not_made(house: &House) {
    let mut home = Home::new(house).await;
    let ada = home.user("Ada").await;
    let named =
        |name: &str| user::ProfilePatch { given_name: Some(Some(name.into())), ..user::ProfilePatch::default() };
    home.done(patch(ada, Expected::OneOf(vec![1]), named("A"))).await;
    assert_eq!(home.refused(patch(ada, Expected::OneOf(vec![1]), named("B"))).await, Refusal::Stale);
    assert_eq!(home.refused(delete(ada, Expected::OneOf(vec![1]))).await, Refusal::Stale);
    // What changes nothing is no new version.
    let head = home.books.head;
    assert_eq!(home.done(patch(ada, Expected::OneOf(vec![2]), named("A"))).await.version, 2);
    assert_eq!(home.books.head, head);
    let group = home.group("G").await;
    home.joins(group, &[Member::User(ada)]).await;
    let expected = Expected::OneOf(vec![1]);
    assert_eq!(home.refused(dissolve(group, expected.clone())).await, Refusal::Stale);
    assert_eq!(home.refused(remove(group, ada, expected)).await, Refusal::Stale);
}

async fn a_refused_change_leaves_no_row_and_no_record(house: &House) {
    let mut home = Home::new(house).await;
    let (ada, nobody) = (home.user("Ada").await, UserId(crate::clock::new_id()));
    let (one, two) = (home.group("One").await, home.group("Two").await);
    home.joins(one, &[Member::Group(two)]).await;
    home.done(assign("reader", Holder::User(ada))).await;

    let twin = user::Profile { external_id: None, subjects: Vec::new(), ..full("ADA") };
    assert_eq!(home.refused(create(twin)).await, Refusal::Taken { pointer: "/userName".into() });
    assert!(matches!(home.refused(create(user::Profile::named(""))).await, Refusal::Flawed(_)));
    assert_eq!(home.refused(delete(nobody, Expected::Any)).await, Refusal::UnknownUser);
    let circle = AddMembers {
        group: two,
        members: vec![Member::User(ada), Member::Group(one)],
        expected: Expected::Any,
        limits: LIMITS,
    };
    assert_eq!(home.refused(circle).await, Refusal::Cycle { index: 1 });
    assert_eq!(home.refused(assign("reader", Holder::User(ada))).await, Refusal::AlreadyAssigned);
    assert_eq!(home.refused(assign("reader", Holder::User(nobody))).await, Refusal::UnknownUser);
    for number in 0..4 {
        home.done(create(user::Profile::named(&format!("user {number}")))).await;
    }
    let more = home.refused(create(user::Profile::named("one more"))).await;
    assert_eq!(more, Refusal::Full { what: "users", most: 5 });
}

async fn a_group_is_shaped_in_one_change(house: &House) {
    let mut home = Home::new(house).await;
    let (ada, bob) = (home.user("Ada").await, home.user("Bob").await);
    let other = home.group("Other").await;
    let id = GroupId(crate::clock::new_id());
    let shape = |name: &str, members: &[Member], expected: Option<Expected>| ShapeGroup {
        id,
        profile: group::Profile::named(name),
        members: members.iter().copied().collect(),
        expected,
        limits: LIMITS,
    };
    let (ada, bob, inner) = (Member::User(ada), Member::User(bob), Member::Group(other));
    assert_eq!(home.done(shape("Team", &[ada, inner], None)).await.version, 1);
    home.reads_the_same().await;
    let head = home.books.head;
    assert_eq!(home.done(shape("Team", &[inner, ada], Some(Expected::OneOf(vec![1])))).await.version, 1);
    assert_eq!(home.books.head, head, "it is so already");
    assert_eq!(home.done(shape("Crew", &[ada, bob], Some(Expected::Any))).await.version, 2);
    home.reads_the_same().await;
    assert_eq!(home.books.organization.members_of(id, None).collect::<BTreeSet<_>>(), BTreeSet::from([ada, bob]));
    // What is refused leaves everybody where they were, also whoever was to go first.
    let stale = home.refused(shape("Crew", &[], Some(Expected::OneOf(vec![1])))).await;
    assert_eq!(stale, Refusal::Stale);
    let circle = home.refused(shape("Crew", &[Member::Group(id)], Some(Expected::Any))).await;
    assert_eq!(circle, Refusal::Cycle { index: 0 });
    let taken = home.refused(shape("OTHER", &[], Some(Expected::Any))).await;
    assert_eq!(taken, Refusal::Taken { pointer: "/displayName".into() });
    assert_eq!(home.books.organization.members_of(id, None).count(), 2);
}

async fn whoever_goes_leaves_nothing_behind(house: &House) {
    let mut home = Home::new(house).await;
    let (ada, bob) = (home.user("Ada").await, home.user("Bob").await);
    let (inner, outer) = (home.group("Inner").await, home.group("Outer").await);
    home.joins(inner, &[Member::User(ada), Member::User(bob)]).await;
    home.joins(outer, &[Member::Group(inner), Member::User(ada)]).await;
    home.done(assign("reader", Holder::User(ada))).await;
    home.done(assign("analyst", Holder::Group(inner))).await;
    home.done(delete(ada, Expected::Any)).await;
    home.done(dissolve(inner, Expected::Any)).await;
    home.reads_the_same().await;
    let organization = &home.books.organization;
    assert_eq!((organization.member_count(), organization.assignments_after(None).count()), (0, 0));
    for table in [
        "SELECT COUNT(*) FROM organization_member",
        "SELECT COUNT(*) FROM role_assignment",
        "SELECT COUNT(*) FROM organization_subject WHERE subject = 'subject of Ada'",
    ] {
        assert_eq!(home.connection.fetch(table, &[]).await.unwrap()[0].int(0).unwrap(), 0, "{table}");
    }
    // Everything of hers is free again.
    home.user("Ada").await;
    home.group("Inner").await;
}

async fn a_person_is_made_once_per_key(house: &House) {
    let mut home = Home::new(house).await;
    let first = match home.told(create(full("Ada")), Some("key")).await {
        Ok(Answer::Fresh(done)) => done.id,
        other => panic!("{other:?}"),
    };
    let again = home.told(create(full("Ada")), Some("key")).await;
    assert!(matches!(again, Ok(Answer::Replayed(answer)) if answer.contains(&first.to_string())));
    assert_eq!(home.books.organization.user_count(), 1);
}

async fn what_is_recorded_names_no_value(house: &House) {
    let mut home = Home::new(house).await;
    let canary = "c4n4ry";
    let ada = home.done(create(full(canary))).await.id;
    let group = home.group(canary).await;
    home.joins(group, &[Member::User(ada)]).await;
    let other = user::ProfilePatch { active: Some(false), ..user::ProfilePatch::default() };
    let named = user::ProfilePatch { display_name: Some(Some(format!("{canary} 2"))), ..other.clone() };
    home.done(patch(ada, Expected::Any, named)).await;
    home.done(delete(ada, Expected::Any)).await;
    let rows =
        home.connection.fetch("SELECT action, bytes, payload FROM audit_record ORDER BY seq", &[]).await.unwrap();
    let mut actions = Vec::new();
    for row in rows {
        actions.push(row.text(0).unwrap());
        let said = format!("{} {}", String::from_utf8(row.bytes(1).unwrap()).unwrap(), row.text(2).unwrap());
        assert!(!said.contains(canary), "{said}");
    }
    let expected = ["user.created", "group.created", "group.membersAdded", "user.deactivated", "user.deleted"];
    assert!(actions.ends_with(&expected.map(str::to_owned)), "{actions:?}");
}

/// Prints what people cost in memory, and what one change among many costs:
/// `cargo test --release --lib -- --ignored --nocapture cost_of_people`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "a measurement")]
fn cost_of_people() {
    const USERS: usize = 100_000;
    let limits = Limits { users: USERS, groups: USERS, members: USERS, role_assignments: USERS };
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
    };
    let user = |number: usize| user::User {
        id: UserId(crate::clock::new_id()),
        profile: full(&format!("person-{number:06}")),
        version: 1,
        created_at: NOW,
        updated_at: NOW,
    };
    let (mut organization, before) = (Organization::default(), resident());
    for number in 0..USERS {
        organization.put_user(user(number), &limits).unwrap();
    }
    println!("{} bytes a user, with a profile that is full", (resident() - before) / USERS);
    let one = organization.user_named("person-050000").unwrap().as_ref().clone();
    let (rounds, began) = (1_000, std::time::Instant::now());
    for version in 0..rounds {
        let mut copy = organization.clone();
        copy.put_user(user::User { version, ..one.clone() }, &limits).unwrap();
    }
    println!("{:.1} µs for a copy with one user changed", began.elapsed().as_secs_f64() * 1e6 / rounds as f64);
    let began = std::time::Instant::now();
    for _ in 0..rounds {
        let found = organization.user_of_subject("https://a.example", "subject of person-077777");
        assert!(std::hint::black_box(found).is_some());
        assert!(organization.revoked("person-077777", "no group").is_none());
    }
    println!("{:.2} µs to know a caller and to judge a label", began.elapsed().as_secs_f64() * 1e6 / rounds as f64);
}
