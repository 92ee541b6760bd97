//! Sessions of browsers: one winner of a race for the next secret, and an end that takes every secret along.

use uuid::Uuid;

use super::harness::{House, NOW};
use crate::domain::ids::{SessionId, TenantId, UserId};
use crate::domain::session::{Session, Whose};
use crate::domain::time::Timestamp;
use crate::store::session;

super::conformance!(
    a_session_is_found_by_every_secret_it_had,
    one_of_two_that_replace_it_wins,
    sessions_end_together,
    what_was_used_is_used,
    a_password_belongs_to_one_person_of_one_tenant,
);

fn begun(number: u128) -> Session {
    let mut secret = [0; 32];
    secret[..16].copy_from_slice(&number.to_be_bytes());
    Session {
        id: SessionId(Uuid::from_u128(number)),
        issuer: "https://id.example.com".into(),
        subject: "jane".into(),
        provider_session: "sid-1".into(),
        secret,
        previous: [0; 32],
        rotated_at: NOW,
        rotations: 0,
        created_at: NOW,
        idle_until: NOW.plus_micros(10),
        ends_at: NOW.plus_micros(100),
        document: "{}".into(),
    }
}

async fn a_session_is_found_by_every_secret_it_had(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let first = begun(1);
    session::insert(&mut connection, &first).await.unwrap();
    assert_eq!(session::find(&mut connection, &first.secret).await.unwrap(), Some(first.clone()));
    assert_eq!(session::find(&mut connection, &[9; 32]).await.unwrap(), None);
    let second = first.rotated([9; 32], NOW, 20).unwrap();
    assert!(session::update(&mut connection, &first.secret, &second).await.unwrap());
    for secret in [first.secret, [9; 32]] {
        assert_eq!(session::find(&mut connection, &secret).await.unwrap(), Some(second.clone()));
    }
}

async fn one_of_two_that_replace_it_wins(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let first = begun(1);
    session::insert(&mut connection, &first).await.unwrap();
    let (one, other) = (first.rotated([8; 32], NOW, 20).unwrap(), first.rotated([9; 32], NOW, 20).unwrap());
    assert!(session::update(&mut connection, &first.secret, &one).await.unwrap());
    assert!(!session::update(&mut connection, &first.secret, &other).await.unwrap());
    assert_eq!(session::find(&mut connection, &[9; 32]).await.unwrap(), None);
}

async fn sessions_end_together(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let issuer = "https://id.example.com".to_owned();
    let others = Session { subject: "john".into(), provider_session: "sid-2".into(), ..begun(4) };
    let late = Session { subject: "ada".into(), provider_session: String::new(), ends_at: NOW, ..begun(5) };
    for session in [&begun(1), &begun(2), &begun(3), &others, &late] {
        session::insert(&mut connection, session).await.unwrap();
    }
    assert_eq!(session::end(&mut connection, &Whose::One(begun(1).id)).await.unwrap(), 1);
    assert_eq!(session::end(&mut connection, &Whose::One(begun(1).id)).await.unwrap(), 0);
    assert_eq!(session::find(&mut connection, &begun(1).secret).await.unwrap(), None);
    let of = |sid: &str, subject: Option<&str>| Whose::Provider {
        issuer: issuer.clone(),
        provider_session: sid.into(),
        subject: subject.map(str::to_owned),
    };
    assert_eq!(session::end(&mut connection, &of("sid-1", Some("john"))).await.unwrap(), 0);
    assert_eq!(session::end(&mut connection, &of("sid-2", None)).await.unwrap(), 1);
    let whose = Whose::Subject { issuer, subject: "jane".into() };
    assert_eq!(session::end(&mut connection, &whose).await.unwrap(), 2);
    session::forget(&mut connection, NOW, 10).await.unwrap();
    let left = connection.fetch("SELECT secret FROM session_secret", &[]).await.unwrap();
    assert!(left.is_empty(), "no secret outlives its session");
}

async fn what_was_used_is_used(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    assert!(!session::is_used(&mut connection, "state").await.unwrap());
    assert!(session::use_once(&mut connection, "state", NOW).await.unwrap());
    assert!(session::is_used(&mut connection, "state").await.unwrap());
    assert!(!session::use_once(&mut connection, "state", NOW).await.unwrap());
    session::forget_used(&mut connection, Timestamp(NOW.0 - 1), 10).await.unwrap();
    assert!(!session::use_once(&mut connection, "state", NOW).await.unwrap());
    assert!(session::use_once(&mut connection, "older", Timestamp(NOW.0 - 1)).await.unwrap());
    session::forget_used(&mut connection, NOW, 1).await.unwrap();
    assert!(!session::is_used(&mut connection, "older").await.unwrap(), "the oldest first");
    assert!(session::is_used(&mut connection, "state").await.unwrap(), "a piece at a time");
    session::forget_used(&mut connection, NOW, 1).await.unwrap();
    assert!(session::use_once(&mut connection, "state", NOW).await.unwrap());
}

async fn a_password_belongs_to_one_person_of_one_tenant(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let (tenant, other) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
    let user = UserId(Uuid::from_u128(3));
    session::put_password(&mut connection, tenant, user, "old", NOW).await.unwrap();
    session::put_password(&mut connection, tenant, user, "new", NOW).await.unwrap();
    assert_eq!(session::password(&mut connection, tenant, user).await.unwrap().as_deref(), Some("new"));
    assert_eq!(session::password(&mut connection, other, user).await.unwrap(), None);
    for (home, before, rows) in [(other, "new", 0), (tenant, "old", 0), (tenant, "new", 1)] {
        let rehashed = session::rehash_password(&mut connection, home, user, (before, "newer")).await;
        assert_eq!(rehashed.unwrap(), rows, "{before}");
    }
    assert_eq!(session::password(&mut connection, tenant, user).await.unwrap().as_deref(), Some("newer"));
    assert_eq!(session::delete_password(&mut connection, other, user).await.unwrap(), 0);
    assert_eq!(session::delete_password(&mut connection, tenant, user).await.unwrap(), 1);
}
