//! What other nodes have changed in the catalogue: read by the registrar, between two of its own changes, and shown in the
//! index as its own are.
//!
//! It asks every `store.catalogue_poll_ms` for what came after the last version that it has seen, and before each change of
//! its own makes sure that nothing has: so no node overwrites what another has changed. No request waits for any of it.

use super::handle::Refused;
use super::index::Index;
use super::registrar::State;
use crate::store::database::Connection;
use crate::store::news::{self, Kind, NEWS_MAX, News};
use crate::store::{StoreError, api_key, audit, catalogue, flag, platform_admin};

/// How often a change is tried while other nodes change the catalogue.
const CLAIMS_MAX: usize = 10;

impl State {
    /// Looks what other nodes have changed. What cannot be read now is read at the next look: until then the index shows
    /// what was known.
    pub(super) async fn follow(&mut self) {
        if self.connection().await.is_err() {
            metrics::counter!("platform_api_catalogue_poll_failures_total").increment(1);
            return;
        }
        let Some(connection) = self.connection.as_mut() else { return };
        match catch_up(connection, &self.birth.index, self.version).await {
            Ok(version) => {
                self.version = version;
                metrics::gauge!("platform_api_catalogue_read_at_seconds").set(self.birth.clock.now().0 as f64 / 1e6);
            }
            Err(error) => {
                metrics::counter!("platform_api_catalogue_poll_failures_total").increment(1);
                self.doubt(&error);
            }
        }
    }

    /// Begins a transaction for a change that is judged by the index: it shows what every node has changed, and until the
    /// end of the transaction no other changes anything.
    pub(super) async fn begin_alone(&mut self) -> Result<(), Refused> {
        self.connection().await?;
        match self.claim().await {
            Ok(()) => Ok(()),
            // Another node has it for longer than one waits: nothing is known to be wrong.
            Err(StoreError::Retryable(reason)) => {
                tracing::warn!(reason, "the catalogue cannot be changed now, callers must come back");
                self.give_up().await;
                Err(Refused::Unavailable(reason))
            }
            Err(error) => Err(self.doubt(&error)),
        }
    }

    async fn claim(&mut self) -> Result<(), StoreError> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        if self.birth.store.followed_every().is_none() {
            return connection.begin().await;
        }
        for _ in 0..CLAIMS_MAX {
            connection.begin().await?;
            if news::claim(connection, self.version).await? {
                self.platform_head = audit::head_after(connection, self.platform_head).await?;
                return Ok(());
            }
            connection.rollback().await?;
            self.version = catch_up(connection, &self.birth.index, self.version).await?;
        }
        Err(StoreError::Retryable("other nodes change the catalogue all the time".into()))
    }

    /// Commits what was begun alone. What it changed need not be read again.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Retryable("no connection".into()));
        };
        let version = news::version(connection).await?;
        connection.commit().await?;
        self.version = version;
        Ok(())
    }

    /// Nothing is changed, and others may change something again.
    pub(super) async fn refuse<T>(&mut self, refused: Refused) -> Result<T, Refused> {
        self.give_up().await;
        Err(refused)
    }

    /// Ends a transaction that changes nothing.
    pub(super) async fn give_up(&mut self) {
        if let Some(connection) = self.connection.as_mut()
            && let Err(error) = connection.rollback().await
        {
            self.doubt(&error);
        }
    }
}

/// Reads what has changed after `version`; answers the version that it has come to.
async fn catch_up(connection: &mut Connection, index: &Index, version: i64) -> Result<i64, StoreError> {
    let mut version = version;
    loop {
        let news = news::since(connection, version).await?;
        for one in &news {
            read(connection, index, one).await?;
            version = one.version;
            metrics::counter!("platform_api_catalogue_news_total", "kind" => one.kind.name()).increment(1);
        }
        // However many flags have changed, they are read together: they are few.
        if news.iter().any(|one| one.kind == Kind::Flag) {
            index.put_flags(flag::all(connection).await?);
        }
        if news.len() < NEWS_MAX {
            return Ok(version);
        }
    }
}

async fn read(connection: &mut Connection, index: &Index, news: &News) -> Result<(), StoreError> {
    match news.kind {
        Kind::Tenant => {
            if let Some(row) = catalogue::one(connection, &news.id).await? {
                if index.tenant(row.tenant.id).is_none() {
                    index.put_head(row.tenant.id, row.head);
                }
                index.put(row.tenant);
            }
        }
        Kind::ApiKey => {
            if let Some(key) = api_key::one(connection, &news.id).await? {
                index.put_key(key);
            }
        }
        Kind::PlatformAdmin => match platform_admin::one(connection, &news.id).await? {
            Some(admin) => index.put_platform_admin(admin),
            None => {
                if let Ok(id) = news.id.parse() {
                    index.remove_platform_admin(id);
                }
            }
        },
        Kind::Flag => {}
    }
    Ok(())
}
