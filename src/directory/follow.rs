//! What other nodes have changed in the catalogue: read by the registrar, between two of its own changes, and shown in the
//! index as its own are.
//!
//! It asks every `store.catalogue_poll_ms` for what came after the last version that it has seen, and before each change of
//! its own makes sure that nothing has: so no node overwrites what another has changed. No request waits for any of it.
//! While it cannot be read, it is asked for less often.

use std::time::Duration;

use super::handle::Refused;
use super::index::Index;
use super::registrar::{State, unavailable};
use crate::clock;
use crate::domain::backoff::Backoff;
use crate::store::database::Connection;
use crate::store::news::{self, Kind, NEWS_MAX, News};
use crate::store::{StoreError, api_key, audit, catalogue, flag, platform_admin};

/// How often a change is tried while other nodes change the catalogue.
const CLAIMS_MAX: usize = 10;
/// The longest pause between two looks that fail, but for a quarter more.
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl State {
    /// Looks what other nodes have changed. What cannot be read now is read at a later look: until then the index shows
    /// what was known. One line when that begins, and one when it is over; the metric says it all the time.
    pub(super) async fn follow(&mut self) {
        match self.look().await {
            Ok(()) => {
                metrics::gauge!("platform_api_catalogue_read_at_seconds").set(self.birth.clock.now().0 as f64 / 1e6);
                if self.failed_looks > 0 {
                    tracing::info!(
                        failures = self.failed_looks,
                        "what other nodes change in the catalogue is read again"
                    );
                }
                self.failed_looks = 0;
            }
            Err(reason) => {
                metrics::counter!("platform_api_catalogue_poll_failures_total").increment(1);
                if self.failed_looks == 0 {
                    tracing::warn!(%reason, "what other nodes change in the catalogue cannot be read; going by what is known");
                }
                self.failed_looks += 1;
            }
        }
    }

    pub(super) async fn look(&mut self) -> Result<(), Refused> {
        self.connection().await?;
        let Some(connection) = self.connection.as_mut() else {
            return Err(Refused::Unavailable("no connection".into()));
        };
        match catch_up(connection, &self.birth.index, self.version).await {
            Ok(version) => {
                self.version = version;
                Ok(())
            }
            Err(error) => {
                self.connection = None;
                Err(unavailable(&error))
            }
        }
    }

    /// How long until the next look; `None` where there are no other nodes.
    pub(super) fn pause_of_looks(&self) -> Option<Duration> {
        let every = self.birth.store.followed_every()?;
        let [salt] = clock::random_bytes();
        Some(pause(every, self.failed_looks, salt))
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

fn pause(every: Duration, failed_looks: i64, salt: u8) -> Duration {
    if failed_looks == 0 {
        return every;
    }
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    let backoff = Backoff { first_micros: micros(every), longest_micros: micros(PAUSE_MAX.max(every)) };
    Duration::from_micros(u64::try_from(backoff.micros(failed_looks, salt)).unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_fail_become_rarer_and_never_stop() {
        let millis = |failed, salt| pause(Duration::from_millis(250), failed, salt).as_millis();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, i64::MAX].map(|failed| millis(failed, 0)),
            [250, 250, 500, 1_000, 2_000, 2_000, 2_000]
        );
        assert_eq!(millis(0, u8::MAX), 250, "nothing has failed");
        assert_eq!(millis(i64::MAX, u8::MAX), 2_498, "nodes that failed together do not come back together");
        assert_eq!(pause(PAUSE_MAX * 2, 5, 0), PAUSE_MAX * 2, "never more often than without failures");
    }
}
