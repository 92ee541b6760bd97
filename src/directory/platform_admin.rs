//! Changes to who administers the platform.

use std::sync::Arc;

use serde_json::json;

use super::handle::Handle;
use super::index::Index;
use super::task::{Change, Declined, Halt};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::PlatformAdminId;
use crate::domain::platform_admin::PlatformAdmin;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::platform_admin;

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

/// Who administers the platform, answered from memory, and changes to it.
impl Handle {
    /// Does this subject of this issuer administer the platform?
    #[must_use]
    pub fn is_platform_admin(&self, issuer: &str, subject: &str) -> bool {
        self.index().platform_admin_of(issuer, subject).is_some()
    }

    #[must_use]
    pub fn platform_admin(&self, id: PlatformAdminId) -> Option<PlatformAdmin> {
        self.index().platform_admin(id)
    }

    /// In the order of their ids, after `after`.
    #[must_use]
    pub fn platform_admins(&self, after: Option<PlatformAdminId>, limit: usize) -> Vec<PlatformAdmin> {
        self.index().platform_admins(after, limit)
    }

    /// Lets somebody administer the platform, from the next request on.
    ///
    /// # Errors
    /// Why not, or that nothing is known of it.
    pub async fn appoint_platform_admin(
        &self,
        issuer: String,
        subject: String,
        name: String,
        request: Request,
        render: fn(&PlatformAdmin) -> String,
    ) -> Result<Answer<PlatformAdmin>, Declined<Refusal>> {
        let id = PlatformAdminId(crate::clock::new_id());
        let appoint = Appoint { index: self.index().clone(), id, issuer, subject, name };
        self.change(appoint, request, render).await
    }

    /// Lets somebody administer the platform no longer, from the next request on.
    ///
    /// # Errors
    /// Why not, or that nothing is known of it.
    pub async fn dismiss_platform_admin(
        &self,
        id: PlatformAdminId,
        request: Request,
        render: fn(&PlatformAdmin) -> String,
    ) -> Result<Answer<PlatformAdmin>, Declined<Refusal>> {
        self.change(Dismiss { index: self.index().clone(), id }, request, render).await
    }
}

#[derive(Debug)]
struct Appoint {
    index: Arc<Index>,
    id: PlatformAdminId,
    issuer: String,
    subject: String,
    name: String,
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
    ) -> Result<PlatformAdmin, Halt<Refusal>> {
        if self.index.platform_admin_of(&self.issuer, &self.subject).is_some() {
            return Err(Halt::Refused(Refusal::IsOne));
        }
        if self.index.platform_admin_count() >= PLATFORM_ADMINS_MAX {
            return Err(Halt::Refused(Refusal::TooMany));
        }
        let (issuer, subject, name) = (self.issuer.clone(), self.subject.clone(), self.name.clone());
        let admin = PlatformAdmin { id: self.id, issuer, subject, name, created_at: now };
        platform_admin::insert(connection, &admin).await?;
        entries.push(entry(request, "platformAdmin.appointed", self.id));
        Ok(admin)
    }

    fn publish(&self, done: &PlatformAdmin) {
        self.index.put_platform_admin(done.clone());
    }
}

#[derive(Debug)]
struct Dismiss {
    index: Arc<Index>,
    id: PlatformAdminId,
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
    ) -> Result<PlatformAdmin, Halt<Refusal>> {
        let Some(admin) = self.index.platform_admin(self.id) else { return Err(Halt::Refused(Refusal::Unknown)) };
        platform_admin::delete(connection, self.id).await?;
        entries.push(entry(request, "platformAdmin.dismissed", self.id));
        Ok(admin)
    }

    fn publish(&self, done: &PlatformAdmin) {
        self.index.remove_platform_admin(done.id);
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
