//! Changes to a tenant's roles and policies, on both engines: what memory says, the rows say again.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use ractor::concurrency::oneshot;
use serde_json::json;

use super::*;
use crate::domain::books::Books;
use crate::domain::ids::{PolicyId, RoleAssignmentId};
use crate::domain::organization::role::Holder;
use crate::domain::organization::{self, Limits};
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::role::RoleTerms;
use crate::domain::policy::statement::{Effect, PolicyTerms, Subject};
use crate::domain::policy::{Expected, Refusal};
use crate::domain::request::{Answer, Idempotency};
use crate::domain::tenant::Role;
use crate::store::database::Connection;
use crate::store::load;
use crate::store::tests::harness::{House, NOW};
use crate::tenant::guess::Guess;
use crate::tenant::organization::AssignRole;
use crate::tenant::task::{Change, Declined, Task, Told};
use crate::tenant::work::{Reply, Unit, Work};
use crate::tenant::writer;

crate::store::tests::conformance!(
    roles_and_policies_are_read_again_as_they_were_left,
    a_refused_change_leaves_no_row_and_no_record,
    a_policy_is_made_once_per_key
);

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

    async fn refused<C: Change>(&mut self, change: C) -> C::Refused {
        let before = (self.books.version, self.books.head, self.books.policies.clone());
        let refusal = match self.told(change, None).await {
            Err(Declined::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        };
        assert_eq!(before, (self.books.version, self.books.head, self.books.policies.clone()));
        refusal
    }

    async fn reads_the_same(&mut self) {
        let read = load::read_books(&mut self.connection, self.books.tenant).await.unwrap();
        assert_eq!(read.policies, self.books.policies);
    }
}

fn built_in() -> Arc<BuiltIn> {
    Arc::new(BuiltIn::of([(Role::Admin, "usage", "read"), (Role::PlatformAdmin, "tenants", "create")]))
}

fn role(name: &str, permissions: &[&str]) -> CreateRole {
    CreateRole { name: name.into(), terms: role_terms(permissions), built_in: built_in() }
}

fn role_terms(permissions: &[&str]) -> RoleTerms {
    let permissions = permissions.iter().map(|text| text.parse().unwrap()).collect();
    RoleTerms { description: "Prüft".into(), permissions }
}

fn terms(name: &str, subject: Subject) -> PolicyTerms {
    let condition = json!({"all": [
        {"attribute": "context.time", "operator": "before", "values": ["2027-01-01T00:00:00Z"]},
        {"not": {"any": [{"relation": "blocked", "object": "site:1"}]}},
    ]});
    PolicyTerms {
        name: name.into(),
        description: "Grüße".into(),
        effect: Effect::Allow,
        subjects: vec![subject, Subject::Everybody],
        permissions: vec!["model:use".parse().unwrap(), "usage:*".parse().unwrap()],
        resources: vec!["model/gpt*".parse().unwrap()],
        condition: Some(serde_json::from_value(condition).unwrap()),
        enabled: true,
    }
}

fn policy(id: u128, terms: PolicyTerms) -> CreatePolicy {
    let id = PolicyId(uuid::Uuid::from_u128(id));
    CreatePolicy { id, terms, built_in: built_in() }
}

async fn roles_and_policies_are_read_again_as_they_were_left(house: &House) {
    let mut home = Home::new(house).await;
    assert_eq!(home.books.policies.version, 0);
    home.done(role("auditor", &["usage:read", "*:inspect"])).await;
    home.done(role("spare", &["usage:*"])).await;
    let about = || Subject::Role("auditor".into());
    home.done(policy(1, terms("first", about()))).await;
    home.done(policy(2, terms("second", Subject::ApiKey("k".into())))).await;
    home.reads_the_same().await;

    let terms_of = |permissions: &[&str]| role_terms(permissions);
    let replace = |permissions| ReplaceRole {
        name: "auditor".into(),
        terms: terms_of(permissions),
        expected: Expected::OneOf(vec![1]),
        built_in: built_in(),
    };
    assert_eq!(home.done(replace(&["usage:read"])).await.version, 2);
    let id = PolicyId(uuid::Uuid::from_u128(1));
    let off = PolicyTerms { enabled: false, condition: None, ..terms("first", about()) };
    let replace = |expected, terms| ReplacePolicy { id, terms, expected, built_in: built_in() };
    assert_eq!(home.done(replace(Expected::OneOf(vec![1]), off.clone())).await.version, 2);
    let head = home.books.head;
    assert_eq!(home.done(replace(Expected::Any, off)).await.version, 2, "the same again");
    assert_eq!(home.books.head, head);
    home.done(DeletePolicy { id, expected: Expected::OneOf(vec![2]) }).await;
    home.done(DeleteRole { name: "spare".into(), expected: Expected::Any }).await;
    home.reads_the_same().await;
    let books = &home.books.policies;
    assert_eq!((books.version, books.roles().count(), books.policies().count()), (8, 1, 1));

    // The chain is the history: each record holds what was in force.
    let rows = home.connection.fetch("SELECT action, payload FROM audit_record ORDER BY seq", &[]).await.unwrap();
    let told: Vec<(String, String)> = rows.iter().map(|row| (row.text(0).unwrap(), row.text(1).unwrap())).collect();
    let actions: Vec<&str> = told.iter().map(|(action, _)| action.as_str()).collect();
    let expected = [
        "role.created",
        "role.created",
        "policy.created",
        "policy.created",
        "role.replaced",
        "policy.replaced",
        "policy.deleted",
        "role.deleted",
    ];
    assert!(actions.ends_with(&expected), "{actions:?}");
    assert!(told.iter().any(|(_, payload)| payload.contains("inNetwork") || payload.contains("blocked")), "{told:?}");
}

async fn a_refused_change_leaves_no_row_and_no_record(house: &House) {
    let mut home = Home::new(house).await;
    home.done(role("auditor", &["usage:read"])).await;
    let limits = Limits { users: 5, groups: 5, members: 5, role_assignments: 5 };
    let assign = |name: &str| AssignRole {
        id: RoleAssignmentId(uuid::Uuid::from_u128(7)),
        role: name.into(),
        holder: Holder::ApiKey("k".into()),
        limits,
    };
    for name in ["nobody", "platformAdmin", "Auditor"] {
        assert_eq!(home.refused(assign(name)).await, organization::Refusal::UnknownRole, "{name}");
    }
    home.done(assign("auditor")).await;
    let delete = |name: &str| DeleteRole { name: name.into(), expected: Expected::Any };
    assert_eq!(home.refused(delete("auditor")).await, Refusal::InUse);
    assert_eq!(home.refused(delete("admin")).await, Refusal::BuiltIn);
    assert_eq!(home.refused(role("AUDITOR", &["usage:read"])).await, Refusal::Taken { pointer: "/name".into() });
    assert!(matches!(home.refused(role("b", &["tenants:create"])).await, Refusal::Flawed(_)));
    let stranger = terms("stranger", Subject::User(crate::domain::ids::UserId(uuid::Uuid::from_u128(3))));
    assert!(matches!(home.refused(policy(1, stranger)).await, Refusal::Flawed(_)));
    let nowhere = PolicyId(uuid::Uuid::from_u128(9));
    let gone = DeletePolicy { id: nowhere, expected: Expected::Any };
    assert_eq!(home.refused(gone).await, Refusal::UnknownPolicy);
    home.reads_the_same().await;
}

async fn a_policy_is_made_once_per_key(house: &House) {
    let mut home = Home::new(house).await;
    let create = || policy(1, terms("first", Subject::Everybody));
    let Ok(Answer::Fresh(first)) = home.told(create(), Some("key")).await else { panic!("not made") };
    let again = home.told(create(), Some("key")).await;
    assert!(matches!(again, Ok(Answer::Replayed(answer)) if answer == rendered(&first)));
    assert_eq!(home.books.policies.policies().count(), 1);
}
