//! Something that was done outside, for the platform's chain and for whoever asks again under the same key.

use super::task::{Change, Halt};
use crate::domain::chain::Entry;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;

/// What to record and to answer; or only the question whether there was an answer under this key.
#[derive(Debug)]
pub struct Noted(Option<(Entry, String)>);

/// Nothing was answered under this key yet.
#[derive(Debug)]
pub struct NotYet;

impl Noted {
    /// Records `entry`, and keeps `answer` with the idempotency key.
    #[must_use]
    pub fn new(entry: Entry, answer: String) -> Noted {
        Noted(Some((entry, answer)))
    }

    /// Changes nothing.
    #[must_use]
    pub fn sought() -> Noted {
        Noted(None)
    }
}

impl Change for Noted {
    type Done = String;
    type Refused = NotYet;

    async fn apply(
        &self,
        _: &mut Connection,
        entries: &mut Vec<Entry>,
        _: &Request,
        _: Timestamp,
    ) -> Result<String, Halt<NotYet>> {
        let Some((entry, answer)) = &self.0 else { return Err(Halt::Refused(NotYet)) };
        entries.push(entry.clone());
        Ok(answer.clone())
    }
}
