//! Changes to a tenant's providers, on both engines: what memory says, the rows say again, and no row says a secret.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use ractor::concurrency::oneshot;
use uuid::Uuid;

use super::*;
use crate::domain::books::Books;
use crate::domain::ids::{LeaseId, ProviderId, SecretId};
use crate::domain::organization::Expected;
use crate::domain::provider::policy::{Cause, Failover, Policy};
use crate::domain::provider::{Lease, Profile, ProviderKind, Refusal};
use crate::domain::request::{Answer, Idempotency};
use crate::domain::secret::{Sealed, Shown, StoredSecret, WrappedKey};
use crate::store::database::Connection;
use crate::store::load;
use crate::store::tests::harness::{House, NOW, opening};
use crate::tenant::guess::Guess;
use crate::tenant::task::{Change, Declined, Task, Told};
use crate::tenant::work::{Reply, Unit, Work};
use crate::tenant::writer;

crate::store::tests::conformance!(
    providers_are_read_again_as_they_were_left,
    a_refused_change_leaves_no_row_and_no_record,
    a_rotation_stopped_anywhere_leaves_what_can_be_read,
    whoever_leaves_leaves_no_key_behind,
    whoever_left_has_left_for_whoever_opens_it_next,
    a_lease_is_recorded_once_per_key,
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

    /// What is stored is what is in memory.
    async fn reads_the_same(&mut self) {
        let stored = load::read_books(&mut self.connection, self.books.tenant).await.unwrap();
        assert_eq!(stored.providers, self.books.providers);
    }

    /// As whoever opens the tenant next finds it.
    async fn reopen(&mut self) {
        let opening = opening(self.books.tenant, self.books.head);
        self.books = Arc::new(load::take_over(&mut self.connection, opening).await.unwrap());
    }

    async fn provider(&mut self, name: &str) -> ProviderId {
        let id = ProviderId(crate::clock::new_id());
        self.done(CreateProvider { id, profile: profile(name) }).await;
        id
    }

    async fn put(&mut self, provider: ProviderId, version: i64, data_key: i64) -> StoredSecret {
        let secret = secret(provider, version, data_key);
        let expected = Expected::Any;
        self.done(PutSecret { provider, secret: secret.clone(), expected }).await;
        secret
    }

    async fn count(&mut self, sql: &'static str) -> i64 {
        self.connection.fetch(sql, &[]).await.unwrap()[0].int(0).unwrap()
    }
}

fn profile(name: &str) -> Profile {
    Profile {
        name: name.into(),
        kind: ProviderKind::AzureOpenAi,
        base_url: Some("https://acme.openai.azure.com".into()),
        region: None,
        api_version: Some("2024-10-21".into()),
        active: true,
    }
}

fn key(version: i64) -> WrappedKey {
    WrappedKey { version, kek: "local:1".into(), wrapped: vec![version as u8; 61], created_at: NOW }
}

fn secret(provider: ProviderId, version: i64, data_key: i64) -> StoredSecret {
    let sealed = Sealed { data_key, nonce: [data_key as u8; 12], ciphertext: vec![version as u8, data_key as u8] };
    let shown = Shown { last_four: "cdef".into(), fingerprint: format!("f{version}") };
    // Derived, so that each value of a provider's has the same id.
    StoredSecret { id: SecretId(provider.0), version, sealed, shown, set_at: NOW }
}

async fn providers_are_read_again_as_they_were_left(house: &House) {
    let mut home = Home::new(house).await;
    home.reads_the_same().await;
    let (one, two) = (home.provider("one").await, home.provider("two").await);
    home.done(AddDataKey(key(1))).await;
    home.put(one, 1, 1).await;
    home.put(one, 2, 1).await;
    home.put(two, 1, 1).await;
    home.reads_the_same().await;
    let failover = Failover { providers: vec![two, one], on: vec![Cause::Timeout], attempts_max: 2 };
    let policy = Policy {
        egress: vec!["*.example.com:8443".parse().unwrap()],
        models: vec!["gpt-4o".into(), "claude-*".into()].into(),
        failover,
        ..Policy::default()
    };
    let change = ReplacePolicy { policy, expected: Expected::OneOf(vec![0]) };
    assert_eq!(home.done(change).await.version, 1);
    home.reads_the_same().await;
    let renamed = Profile { name: "uno".into(), active: false, ..profile("one") };
    let change = ReplaceProvider { id: one, profile: renamed, expected: Expected::Any };
    assert!(home.done(change).await.secret.is_some());
    let elsewhere = Profile { base_url: Some("https://other.openai.azure.com".into()), ..profile("two") };
    let change = ReplaceProvider { id: two, profile: elsewhere, expected: Expected::Any };
    assert!(home.done(change).await.secret.is_none());
    home.reads_the_same().await;
    assert_eq!(home.count("SELECT COUNT(*) FROM provider_secret").await, 1);
    home.done(DeleteSecret { provider: one, expected: Expected::Any }).await;
    home.done(DeleteProvider { id: two, expected: Expected::Any }).await;
    home.reads_the_same().await;
    assert_eq!(home.books.providers.policy.failover.providers, [one]);
    // A value that was taken away leaves its number behind.
    assert_eq!(home.books.providers.get(one).unwrap().secret_versions, 2);
}

async fn a_refused_change_leaves_no_row_and_no_record(house: &House) {
    let mut home = Home::new(house).await;
    let one = home.provider("one").await;
    let expected = Expected::Any;
    let again = CreateProvider { id: ProviderId(Uuid::from_u128(7)), profile: profile("one") };
    assert_eq!(home.refused(again).await, Refusal::NameTaken);
    let without_key = PutSecret { provider: one, secret: secret(one, 1, 1), expected: expected.clone() };
    assert_eq!(home.refused(without_key).await, Refusal::KeyChanged);
    home.done(AddDataKey(key(1))).await;
    assert_eq!(home.refused(AddDataKey(key(1))).await, Refusal::KeyChanged);
    let (old, stale) = (home.put(one, 1, 1).await, Expected::OneOf(vec![1]));
    assert_eq!(home.refused(DeleteProvider { id: one, expected: stale.clone() }).await, Refusal::Stale);
    assert_eq!(home.refused(DeleteSecret { provider: one, expected: stale }).await, Refusal::Stale);
    let replayed = PutSecret { provider: one, secret: old.clone(), expected: expected.clone() };
    assert_eq!(home.refused(replayed).await, Refusal::KeyChanged);
    let other = StoredSecret { version: 9, ..old.clone() };
    assert_eq!(home.refused(Reseal { provider: one, old: other, new: old }).await, Refusal::KeyChanged);
    assert_eq!(home.refused(RewrapDataKey { old: key(2), new: key(2) }).await, Refusal::KeyChanged);
    let unknown = Failover { providers: vec![ProviderId(Uuid::from_u128(7))], ..Failover::default() };
    let policy = Policy { failover: unknown, ..Policy::default() };
    let refusal = home.refused(ReplacePolicy { policy, expected }).await;
    assert!(matches!(refusal, Refusal::Flawed(flaws) if flaws[0].pointer == "/failover/providers/0"));
}

async fn a_rotation_stopped_anywhere_leaves_what_can_be_read(house: &House) {
    let mut home = Home::new(house).await;
    let (one, two) = (home.provider("one").await, home.provider("two").await);
    home.done(AddDataKey(key(1))).await;
    let (first, second) = (home.put(one, 1, 1).await, home.put(two, 1, 1).await);
    let mut steps = 0;
    let readable = async |home: &mut Home| {
        home.reads_the_same().await;
        for provider in [one, two] {
            let data_key = home.books.providers.get(provider).unwrap().secret.as_ref().unwrap().sealed.data_key;
            assert!(home.books.providers.key(data_key).is_some());
        }
        // Nothing is given up before its time, whenever it is asked for.
        home.done(RetireDataKeys).await;
        home.reads_the_same().await;
    };
    home.done(AddDataKey(key(2))).await;
    readable(&mut home).await;
    for (provider, old) in [(one, first), (two, second)] {
        assert_eq!(home.books.providers.keys().len(), 2, "{steps}");
        home.done(Reseal { provider, old, new: secret(provider, 1, 2) }).await;
        readable(&mut home).await;
        steps += 1;
    }
    assert_eq!(home.books.providers.keys().iter().map(|key| key.version).collect::<Vec<_>>(), [2]);
    assert_eq!(home.count("SELECT COUNT(*) FROM data_key").await, 1);
    let rewrapped = WrappedKey { kek: "local:2".into(), wrapped: vec![9], ..key(2) };
    home.done(RewrapDataKey { old: key(2), new: rewrapped }).await;
    home.reads_the_same().await;
}

async fn whoever_leaves_leaves_no_key_behind(house: &House) {
    let mut home = Home::new(house).await;
    let one = home.provider("one").await;
    home.done(AddDataKey(key(1))).await;
    home.put(one, 1, 1).await;
    home.done(DestroyKeys).await;
    home.reads_the_same().await;
    for sql in ["SELECT COUNT(*) FROM data_key", "SELECT COUNT(*) FROM provider_secret"] {
        assert_eq!(home.count(sql).await, 0, "{sql}");
    }
    let head = home.books.head;
    assert_eq!(home.refused(AddDataKey(key(1))).await, Refusal::Unknown, "whoever was let in before keeps nothing");
    home.done(DestroyKeys).await;
    assert_eq!(home.books.head, head, "a second time there is nothing to say");
}

async fn whoever_left_has_left_for_whoever_opens_it_next(house: &House) {
    // With a secret that was kept before, and without any.
    for had_one in [true, false] {
        let mut home = Home::new(house).await;
        let one = home.provider("one").await;
        if had_one {
            home.done(AddDataKey(key(1))).await;
            home.put(one, 1, 1).await;
        }
        home.done(DestroyKeys).await;
        home.reopen().await;
        assert!(home.books.providers.is_destroyed(), "{had_one}");
        home.reads_the_same().await;
        assert_eq!(home.refused(AddDataKey(key(1))).await, Refusal::Unknown, "{had_one}");
        let expected = Expected::Any;
        let put = PutSecret { provider: one, secret: secret(one, 2, 1), expected };
        assert_eq!(home.refused(put).await, Refusal::Unknown, "{had_one}");
        let head = home.books.head;
        home.done(DestroyKeys).await;
        home.reopen().await;
        assert!(home.books.providers.is_destroyed() && home.books.providers.keys().is_empty(), "{had_one}");
        assert_eq!(home.books.head.seq, head.seq + 1, "the new owner's own record and no other");
    }
}

async fn a_lease_is_recorded_once_per_key(house: &House) {
    let mut home = Home::new(house).await;
    let one = home.provider("one").await;
    home.done(AddDataKey(key(1))).await;
    home.put(one, 1, 1).await;
    let lease = |secret_version| Lease {
        id: LeaseId(crate::clock::new_id()),
        provider: one,
        secret_version,
        actor: "apiKey:k".into(),
        purpose: "inference".into(),
        model: Some("gpt-4o".into()),
        granted_at: NOW,
        expires_at: NOW.plus_micros(1),
    };
    let grant = |lease| GrantLease { lease };
    assert_eq!(home.refused(grant(lease(2))).await, Refusal::KeyChanged);
    let first = lease(1);
    assert_eq!(home.told(grant(first.clone()), Some("k")).await.unwrap(), Answer::Fresh(first.clone()));
    let seq = home.books.head.seq;
    assert_eq!(home.told(grant(lease(1)), Some("k")).await.unwrap(), Answer::Replayed(rendered(&first)));
    assert_eq!((home.books.head.seq, home.count("SELECT COUNT(*) FROM provider_lease").await), (seq, 1));
}
