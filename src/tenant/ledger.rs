//! What the writer asks of the world: one tenant's database, and, because a simulated day has neither, patience and
//! randomness. A trait because there are two worlds: the one with a [`Connection`], and the simulator's.

use std::future::Future;
use std::time::Duration;

use crate::clock;
use crate::domain::books::{Books, Counter, Missing, Posting};
use crate::domain::sorting::Inserted;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, UsageEvent};
use crate::store::database::Connection;
use crate::store::posting::{self, Expecting};
use crate::store::{StoreError, quota, request};

/// One tenant's database, as its writer uses it. Every error says what the writer can do about it.
pub trait Ledger: Send {
    fn begin(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    fn commit(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    fn rollback(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// See [`posting::insert_events`].
    fn insert_events(
        &mut self,
        first_position: i64,
        recorded_at: Timestamp,
        events: &[&UsageEvent],
        keys: &[Identity],
        expecting: Expecting,
    ) -> impl Future<Output = Result<Vec<Inserted>, StoreError>> + Send;

    /// See [`posting::keep_conflicts`].
    fn keep_conflicts(
        &mut self,
        recorded_at: Timestamp,
        conflicts: &[(&UsageEvent, Identity)],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// See [`quota::counter`].
    fn counter(
        &mut self,
        books: &Books,
        missing: &Missing,
        before_position: i64,
    ) -> impl Future<Output = Result<Counter, StoreError>> + Send;

    /// See [`request::find`].
    fn find_request(
        &mut self,
        key: &str,
    ) -> impl Future<Output = Result<Option<([u8; 32], String)>, StoreError>> + Send;

    /// See [`request::keep`].
    fn keep_request(
        &mut self,
        key: &str,
        body_hash: &[u8; 32],
        answer: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The database itself, for what the simulated day has not: gateways, and how the books compare with theirs.
    fn database(&mut self) -> Option<&mut Connection>;

    /// See [`posting::write`].
    fn write(&mut self, before: &Books, posting: &Posting) -> impl Future<Output = Result<i64, StoreError>> + Send;

    /// See [`posting::check_owner`].
    fn check_owner(&mut self, before: &Books) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Waits before another try.
    fn pause(&mut self, delay: Duration) -> impl Future<Output = ()> + Send;

    /// 32 bytes that no other posting had.
    fn salt_seed(&mut self) -> [u8; 32];
}

impl Ledger for Connection {
    async fn begin(&mut self) -> Result<(), StoreError> {
        Connection::begin(self).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        Connection::commit(self).await
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        Connection::rollback(self).await
    }

    async fn insert_events(
        &mut self,
        first_position: i64,
        recorded_at: Timestamp,
        events: &[&UsageEvent],
        keys: &[Identity],
        expecting: Expecting,
    ) -> Result<Vec<Inserted>, StoreError> {
        posting::insert_events(self, first_position, recorded_at, events, keys, expecting).await
    }

    async fn keep_conflicts(
        &mut self,
        recorded_at: Timestamp,
        conflicts: &[(&UsageEvent, Identity)],
    ) -> Result<(), StoreError> {
        posting::keep_conflicts(self, recorded_at, conflicts).await
    }

    async fn counter(&mut self, books: &Books, missing: &Missing, before_position: i64) -> Result<Counter, StoreError> {
        quota::counter(self, books, missing, before_position).await
    }

    async fn find_request(&mut self, key: &str) -> Result<Option<([u8; 32], String)>, StoreError> {
        request::find(self, key).await
    }

    async fn keep_request(
        &mut self,
        key: &str,
        body_hash: &[u8; 32],
        answer: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        request::keep(self, key, body_hash, answer, now).await
    }

    fn database(&mut self) -> Option<&mut Connection> {
        Some(self)
    }

    async fn check_owner(&mut self, before: &Books) -> Result<(), StoreError> {
        posting::check_owner(self, before).await
    }

    async fn write(&mut self, before: &Books, posting: &Posting) -> Result<i64, StoreError> {
        posting::write(self, before, posting).await
    }

    async fn pause(&mut self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }

    fn salt_seed(&mut self) -> [u8; 32] {
        clock::random_bytes()
    }
}
