//! Users.

use std::sync::Arc;

use serde_json::json;

use super::{action_of, organization, record};
use crate::domain::books::Posting;
use crate::domain::ids::UserId;
use crate::domain::organization::user::{Profile, ProfilePatch, User};
use crate::domain::organization::{Expected, Limits, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::organization as rows;
use crate::tenant::task::{Change, Halt};

/// A new user.
#[derive(Debug)]
pub struct CreateUser {
    pub id: UserId,
    pub profile: Profile,
    pub limits: Limits,
}

impl Change for CreateUser {
    type Done = Arc<User>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<User>, Halt<Refusal>> {
        let now = posting.now();
        let user = User { id: self.id, profile: self.profile.clone(), version: 1, created_at: now, updated_at: now };
        let user = organization(posting).put_user(user, &self.limits).map_err(Halt::Refused)?;
        rows::insert_user(database, &user).await?;
        record(posting, request, "user.created", format!("user:{}", user.id), json!({ "active": user.profile.active }));
        Ok(user)
    }
}

/// What is to become of a user's profile.
#[derive(Debug, Clone)]
pub enum UserEdit {
    Replace(Profile),
    Patch(ProfilePatch),
}

impl UserEdit {
    /// The profile as it will be.
    pub(in crate::tenant) fn of(&self, profile: &Profile) -> Profile {
        match self {
            UserEdit::Replace(new) => new.clone(),
            UserEdit::Patch(patch) => profile.patched(patch),
        }
    }
}

/// A user with another profile. One that stays as it was is left alone.
#[derive(Debug)]
pub struct EditUser {
    pub id: UserId,
    pub edit: UserEdit,
    pub expected: Expected,
    pub limits: Limits,
}

impl Change for EditUser {
    type Done = Arc<User>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<User>, Halt<Refusal>> {
        let Some(before) = posting.books.organization.user(self.id).cloned() else {
            return Err(Halt::Refused(Refusal::UnknownUser));
        };
        if !self.expected.is(before.version) {
            return Err(Halt::Refused(Refusal::Stale));
        }
        let profile = self.edit.of(&before.profile);
        let changed = before.profile.changed(&profile);
        if changed.is_empty() {
            return Ok(before);
        }
        let user = User { profile, version: before.version + 1, updated_at: posting.now(), ..before.as_ref().clone() };
        let user = organization(posting).put_user(user, &self.limits).map_err(Halt::Refused)?;
        rows::update_user(database, &user).await?;
        let action = action_of(&changed, user.profile.active, "user");
        let payload = json!({ "fields": changed, "version": user.version });
        record(posting, request, &action, format!("user:{}", user.id), payload);
        Ok(user)
    }
}

/// A user less, with its memberships and roles.
#[derive(Debug)]
pub struct DeleteUser {
    pub id: UserId,
    pub expected: Expected,
}

impl Change for DeleteUser {
    type Done = Arc<User>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<User>, Halt<Refusal>> {
        match posting.books.organization.user(self.id) {
            Some(user) if !self.expected.is(user.version) => return Err(Halt::Refused(Refusal::Stale)),
            _ => {}
        }
        let user = organization(posting).remove_user(self.id).map_err(Halt::Refused)?;
        rows::delete_user(database, self.id).await?;
        record(posting, request, "user.deleted", format!("user:{}", self.id), json!({ "version": user.version }));
        Ok(user)
    }
}
