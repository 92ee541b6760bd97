//! Changes to who administers the platform.

use std::sync::Arc;

use serde_json::json;

use super::index::Index;
use super::task::Change;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::PlatformAdminId;
use crate::domain::platform_admin::PlatformAdmin;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, platform_admin};

/// People who may administer the platform at once.
pub const PLATFORM_ADMINS_MAX: usize = 1_000;

/// Why nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Unknown,
    /// The same subject of the same issuer is one already.
    IsOne,
    TooMany,
}

#[derive(Debug)]
pub(super) struct Appoint {
    pub(super) index: Arc<Index>,
    pub(super) id: PlatformAdminId,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) name: String,
    pub(super) render: fn(&PlatformAdmin) -> String,
}

impl Change for Appoint {
    type Done = PlatformAdmin;
    type Refused = Refusal;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Result<PlatformAdmin, Refusal>, StoreError> {
        if self.index.platform_admin_of(&self.issuer, &self.subject).is_some() {
            return Ok(Err(Refusal::IsOne));
        }
        if self.index.platform_admin_count() >= PLATFORM_ADMINS_MAX {
            return Ok(Err(Refusal::TooMany));
        }
        let (issuer, subject, name) = (self.issuer.clone(), self.subject.clone(), self.name.clone());
        let admin = PlatformAdmin { id: self.id, issuer, subject, name, created_at: now };
        platform_admin::insert(connection, &admin).await?;
        entries.push(entry(request, "platformAdmin.appointed", self.id));
        Ok(Ok(admin))
    }

    fn publish(&self, done: &PlatformAdmin) {
        self.index.put_platform_admin(done.clone());
    }

    fn render(&self, done: &PlatformAdmin) -> String {
        (self.render)(done)
    }
}

#[derive(Debug)]
pub(super) struct Dismiss {
    pub(super) index: Arc<Index>,
    pub(super) id: PlatformAdminId,
    pub(super) render: fn(&PlatformAdmin) -> String,
}

impl Change for Dismiss {
    type Done = PlatformAdmin;
    type Refused = Refusal;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        _now: Timestamp,
    ) -> Result<Result<PlatformAdmin, Refusal>, StoreError> {
        let Some(admin) = self.index.platform_admin(self.id) else { return Ok(Err(Refusal::Unknown)) };
        platform_admin::delete(connection, self.id).await?;
        entries.push(entry(request, "platformAdmin.dismissed", self.id));
        Ok(Ok(admin))
    }

    fn publish(&self, done: &PlatformAdmin) {
        self.index.remove_platform_admin(done.id);
    }

    fn render(&self, done: &PlatformAdmin) -> String {
        (self.render)(done)
    }
}

/// The record names the row, not the person: that stands in the table alone, where it can be erased.
fn entry(request: &Request, action: &str, id: PlatformAdminId) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: action.into(),
        target: format!("platformAdmin:{id}"),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: json!({}).to_string(),
    }
}
