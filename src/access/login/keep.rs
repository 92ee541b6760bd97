//! Where sessions are kept: in Redis when there is one, in the control database otherwise.
//!
//! What was read is remembered for a moment, so that a page with many requests asks once; a session that is ended elsewhere is
//! refused here when that moment is over, one that is ended here at once.

use std::sync::Arc;

use super::redis::{Redis, digest_of};
use crate::directory;
use crate::domain::session::{SecretHash, Session, Whose};
use crate::domain::time::Timestamp;

const REMEMBERED_MAX: u64 = 50_000;

/// Whoever keeps the sessions does not answer: nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sessions are out of reach")]
pub(super) struct Away;

pub(super) enum Place {
    Database(directory::handle::Handle),
    Redis(Redis),
}

pub(super) struct Keep {
    place: Place,
    remembered: moka::sync::Cache<SecretHash, Option<Arc<Session>>>,
}

impl Keep {
    /// What is known of a session is at most `stale` old; zero remembers nothing.
    pub(super) fn new(place: Place, stale: std::time::Duration) -> Keep {
        let capacity = if stale.is_zero() { 0 } else { REMEMBERED_MAX };
        let remembered = moka::sync::Cache::builder().max_capacity(capacity).time_to_live(stale).build();
        Keep { place, remembered }
    }

    pub(super) async fn open(&self, session: Session) -> Result<(), Away> {
        match &self.place {
            Place::Database(directory) => directory.open_session(session).await.map_err(away),
            Place::Redis(redis) => redis.open(&session).await,
        }
    }

    /// The session that this secret is or was of; a moment old at most.
    pub(super) async fn find(&self, secret: &SecretHash) -> Result<Option<Arc<Session>>, Away> {
        if let Some(known) = self.remembered.get(secret) {
            return Ok(known);
        }
        let found = self.find_now(secret).await?.map(Arc::new);
        self.remembered.insert(*secret, found.clone());
        Ok(found)
    }

    /// The same as of now.
    pub(super) async fn find_now(&self, secret: &SecretHash) -> Result<Option<Session>, Away> {
        match &self.place {
            Place::Database(directory) => directory.session(secret).await.map_err(away),
            Place::Redis(redis) => redis.find(secret).await,
        }
    }

    /// Keeps `session` in the place of `before`; false when another was faster.
    pub(super) async fn replace(&self, before: &Session, session: Session) -> Result<bool, Away> {
        let (old, new) = (before.secret, session.secret);
        let replaced = match &self.place {
            Place::Database(directory) => directory.replace_session(old, session).await.map_err(away),
            Place::Redis(redis) => redis.replace(before, &session).await,
        };
        self.remembered.invalidate(&old);
        self.remembered.invalidate(&before.previous);
        self.remembered.invalidate(&new);
        replaced
    }

    /// Ends sessions; answers how many.
    pub(super) async fn end(&self, whose: Whose) -> Result<u64, Away> {
        let ended = match &self.place {
            Place::Database(directory) => directory.end_sessions(whose).await.map_err(away),
            Place::Redis(redis) => redis.end(&whose).await,
        };
        self.remembered.invalidate_all();
        ended
    }

    /// Was the name used?
    pub(super) async fn is_used(&self, name: &str) -> Result<bool, Away> {
        match &self.place {
            Place::Database(directory) => directory.is_used(&digest_of(&[name])).await.map_err(away),
            Place::Redis(redis) => redis.is_used(name).await,
        }
    }

    /// Is this the first use of the name?
    pub(super) async fn use_once(&self, name: &str, until: Timestamp) -> Result<bool, Away> {
        match &self.place {
            // The name may be part of what a browser was sent away with.
            Place::Database(directory) => directory.use_once(digest_of(&[name]), until).await.map_err(away),
            Place::Redis(redis) => redis.use_once(name, until).await,
        }
    }
}

fn away(refused: directory::handle::Refused) -> Away {
    tracing::warn!(reason = %refused, "the sessions are out of reach");
    Away
}
