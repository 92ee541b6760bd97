//! What a tenant's own books say of a caller: whether it is still one of theirs, and which roles it was given.
//!
//! Answered from the books that were last published, in the caller's own task: a deactivation holds from the next request
//! on. A tenant that rests is opened to know, and who asks meanwhile is told to come back; not knowing is never a pass.

use crate::directory;
use crate::directory::handle::Absent;
use crate::domain::ids::{TenantId, UserId};
use crate::domain::organization::Organization;
use crate::domain::organization::role::Holder;
use crate::domain::tenant::Role;

/// Who has logged in with a password that is kept here: its subject is a user's id. No configured issuer is called so.
pub(super) const LOCAL_ISSUER: &str = "urn:platform-api:local";

/// A caller in the books of its tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// The books know it, and it was deactivated.
    pub(super) is_deactivated: bool,
    /// Given to it, directly or through groups.
    pub(super) roles: Vec<Role>,
    /// What it would have besides if no group were deactivated.
    pub(super) withheld: Vec<Role>,
    /// Who it is in the books.
    pub(super) person: Option<UserId>,
}

impl Standing {
    /// Of whom a token speaks. Somebody the books do not know has no standing, and is what its token says.
    pub(super) fn of_subject(organization: &Organization, issuer: &str, subject: &str) -> Standing {
        let user = match issuer == LOCAL_ISSUER {
            true => subject.parse().ok().and_then(|id| organization.user(id)),
            false => organization.user_of_subject(issuer, subject),
        };
        let Some(user) = user else {
            // Who has logged in with a password of ours and is gone is nobody.
            return Standing { is_deactivated: issuer == LOCAL_ISSUER, ..Standing::default() };
        };
        if !user.profile.active {
            return Standing { is_deactivated: true, ..Standing::default() };
        }
        let roles = known(organization.roles_of_user(user.id));
        let mut withheld = known(organization.roles_of_user_regardless(user.id));
        withheld.retain(|role| !roles.contains(role));
        Standing { is_deactivated: false, roles, withheld, person: Some(user.id) }
    }

    /// Of an API key.
    pub(super) fn of_key(organization: &Organization, id: &str) -> Standing {
        let holder = Holder::ApiKey(id.to_owned());
        let roles = known(organization.roles_of(&holder).map(|(role, _)| role));
        Standing { roles, ..Standing::default() }
    }
}

/// Roles that mean something here. The platform's is never a tenant's to give.
fn known<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Role> {
    names.into_iter().filter_map(Role::from_name).filter(|role| *role != Role::PlatformAdmin).collect()
}

/// A tenant's people, for a question about one of them.
///
/// # Errors
/// [`Absent`].
pub(super) async fn people_of(
    directory: &directory::handle::Handle,
    tenant: TenantId,
) -> Result<std::sync::Arc<Organization>, Absent> {
    let handle = directory.find(tenant).await?;
    handle.organization().map_err(|_| Absent::ComeBack { after_ms: 1_000 })
}
