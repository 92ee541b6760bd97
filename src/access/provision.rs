//! Adds people to their tenant when they first come, where their issuer is configured so, and keeps their membership in mapped
//! groups as the issuer says.
//!
//! Nobody is linked to somebody who is there already: a user name is no proof. Who cannot be added comes as whom the token
//! says, as anybody does whom the books do not know; it is tried again after a while.

use std::sync::Arc;
use std::time::Duration;

use super::claims::{Identity, Person};
use super::standing::people_of;
use crate::clock;
use crate::directory;
use crate::domain::ids::{TenantId, UserId};
use crate::domain::organization::group::Member;
use crate::domain::organization::user::{ProfilePatch, User};
use crate::domain::organization::{Expected, Limits, Organization};
use crate::domain::request::Request;
use crate::tenant::handle::Handle as Home;
use crate::tenant::organization::{AddMembers, CreateUser, EditUser, RemoveMember, UserEdit};
use crate::tenant::task::untold;

/// How long somebody who could not be added is left alone.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const REFUSED_MAX: u64 = 10_000;

/// When somebody comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// With a token, as any number of times.
    WithToken,
    /// By logging in or refreshing a session: what the issuer says now is taken over.
    ByLogin,
}

pub(super) struct Provisioner {
    directory: directory::handle::Handle,
    limits: Limits,
    refused: moka::sync::Cache<(TenantId, String, String), ()>,
}

impl Provisioner {
    pub(super) fn new(directory: directory::handle::Handle, limits: Limits) -> Provisioner {
        let refused = moka::sync::Cache::builder().max_capacity(REFUSED_MAX).time_to_live(REFUSED_FOR).build();
        Provisioner { directory, limits, refused }
    }

    /// Brings the tenant's books to what `person` is, if that is needed; answers the people as they are then.
    pub(super) async fn arrange(
        &self,
        tenant: TenantId,
        people: Arc<Organization>,
        identity: &Identity,
        person: &Person,
        coming: Coming,
    ) -> Arc<Organization> {
        let known = people.user_of_subject(&identity.issuer, &identity.subject).cloned();
        let name = (tenant, identity.issuer.clone(), identity.subject.clone());
        let is_settled = known.as_ref().is_some_and(|user| coming == Coming::WithToken || !user.profile.active);
        if is_settled || (known.is_none() && self.refused.contains_key(&name)) {
            return people;
        }
        let Ok(home) = self.directory.find(tenant).await else { return people };
        let request =
            Request { actor: format!("user:{}", identity.subject), request_id: String::new(), idempotency: None };
        let user = match known {
            Some(user) => self.update(&home, &user, person, &request).await,
            None => self.add(&home, person, &request).await,
        };
        let outcome = if user.is_some() { "ok" } else { "refused" };
        metrics::counter!("platform_api_users_provisioned_total", "outcome" => outcome).increment(1);
        match user {
            Some(id) => self.join(&home, id, person, &request).await,
            None => self.refused.insert(name, ()),
        }
        people_of(&self.directory, tenant).await.unwrap_or(people)
    }

    async fn add(&self, home: &Home, person: &Person, request: &Request) -> Option<UserId> {
        let id = UserId(clock::new_id());
        let change = CreateUser { id, profile: person.profile.clone(), limits: self.limits };
        match home.change(change, request.clone(), untold).await {
            Ok(Ok(_)) => Some(id),
            Ok(Err(reason)) => {
                tracing::warn!(?reason, "somebody could not be added to the users");
                None
            }
            Err(_) => None,
        }
    }

    /// Names and attributes as the issuer has them now, without those it maps and says no more; attributes of other origin
    /// stay.
    async fn update(&self, home: &Home, user: &User, person: &Person, request: &Request) -> Option<UserId> {
        use crate::domain::organization::attributes::AttributesPatch;
        let fresh = &person.profile;
        let attributes = AttributesPatch::read(&fresh.attributes.object()).ok().map(|mut patch| {
            for name in &person.mapped_attributes {
                patch.0.entry(name.clone()).or_insert(None);
            }
            patch
        });
        let patch = ProfilePatch {
            display_name: Some(Some(fresh.display_name.clone())),
            emails: (!fresh.emails.is_empty() && user.profile.emails.len() <= 1).then(|| fresh.emails.clone()),
            attributes: attributes.filter(|patch| !patch.0.is_empty()).map(Some),
            ..ProfilePatch::default()
        };
        if user.profile.patched(&patch) != user.profile {
            let edit = UserEdit::Patch(patch);
            let change = EditUser { id: user.id, edit, expected: Expected::Any, limits: self.limits };
            let _ = home.change(change, request.clone(), untold).await;
        }
        Some(user.id)
    }

    /// Membership in the groups that the configuration maps to; other groups are nobody's business here.
    async fn join(&self, home: &Home, id: UserId, person: &Person, request: &Request) {
        let (Some(wanted), Ok(people)) = (&person.groups, home.organization()) else { return };
        let member = Member::User(id);
        for name in &person.mapped {
            let Some(group) = people.group_named(name).map(|group| group.id) else { continue };
            let (is_in, belongs) = (people.is_member(group, member), wanted.contains(name));
            let (limits, expected) = (self.limits, Expected::Any);
            let done = match (is_in, belongs) {
                (false, true) => {
                    let change = AddMembers { group, members: vec![member], expected, limits };
                    home.change(change, request.clone(), untold).await.is_ok_and(|done| done.is_ok())
                }
                (true, false) => {
                    let change = RemoveMember { group, member, expected, limits };
                    home.change(change, request.clone(), untold).await.is_ok_and(|done| done.is_ok())
                }
                _ => true,
            };
            if !done {
                tracing::warn!(%group, "a membership could not be brought to what the issuer says");
            }
        }
    }
}
