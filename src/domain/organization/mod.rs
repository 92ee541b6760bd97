//! The people of a tenant: users, groups, who is in which, and who has which role.
//!
//! An [`Organization`] is a part of the tenant's books. It is judged and changed here, purely; every question about it is
//! answered from the books that were last published, so nobody waits for a database to learn that somebody has left.
//! Groups are nested up to [`NESTING_DEPTH_MAX`] deep and never in a circle; what a group has, its members have, and what
//! is inactive gives nothing.

pub mod attributes;
pub mod group;
mod membership;
pub mod role;
pub mod shelf;
#[cfg(test)]
mod tests;
pub mod user;

use std::sync::Arc;

use group::{Group, Member};
use role::{Holder, RoleAssignment};
use shelf::Shelf;
use user::{IssuedSubject, User};

use super::ids::{GroupId, RoleAssignmentId, UserId};

/// Groups on the longest way from a group that is in no other to one that has no other in it.
pub const NESTING_DEPTH_MAX: usize = 8;
/// Bytes of a name and of an external id.
pub const NAME_BYTES_MAX: usize = 256;

/// What one tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub users: usize,
    pub groups: usize,
    /// Of all groups together.
    pub members: usize,
    pub role_assignments: usize,
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// RFC 6901, within the document.
    pub pointer: String,
    pub message: String,
}

impl Flaw {
    #[must_use]
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Flaw {
        Flaw { pointer: pointer.into(), message: message.into() }
    }
}

/// Which version a change is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Whichever it is.
    Any,
    /// One of these.
    OneOf(Vec<i64>),
}

impl Expected {
    #[must_use]
    pub fn is(&self, version: i64) -> bool {
        match self {
            Expected::Any => true,
            Expected::OneOf(versions) => versions.contains(&version),
        }
    }
}

/// Why a change is not made. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    UnknownUser,
    UnknownGroup,
    UnknownMember,
    UnknownAssignment,
    /// It has changed since the caller saw it.
    Stale,
    Flawed(Vec<Flaw>),
    /// Another one has this name, external id or subject.
    Taken {
        pointer: String,
    },
    /// There are as many as there may be.
    Full {
        what: &'static str,
        most: usize,
    },
    /// The group would be a member of itself.
    Cycle {
        index: usize,
    },
    /// Groups would be nested deeper than [`NESTING_DEPTH_MAX`].
    TooDeep {
        index: usize,
    },
    AlreadyAssigned,
    /// The tenant has no role of this name.
    UnknownRole,
}

/// Who or what was known and is no longer admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Revoked {
    User,
    Group,
    ApiKey,
    /// Of an API key, the time or that of the secret it came with is over.
    ApiKeyExpired,
    Tenant,
}

impl Revoked {
    /// The word for it in a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Revoked::User => "user",
            Revoked::Group => "group",
            Revoked::ApiKey => "api_key",
            Revoked::ApiKeyExpired => "api_key_expired",
            Revoked::Tenant => "tenant",
        }
    }

    /// What a gateway is told of it: the code of a reason.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Revoked::User => "USER_DEACTIVATED",
            Revoked::Group => "GROUP_DEACTIVATED",
            Revoked::ApiKey => "API_KEY_REVOKED",
            Revoked::ApiKeyExpired => "API_KEY_EXPIRED",
            Revoked::Tenant => "TENANT_SUSPENDED",
        }
    }
}

/// The people of one tenant. A copy shares what it does not change.
#[derive(Debug, Clone, Default)]
pub struct Organization {
    users: Shelf<UserId, Arc<User>>,
    user_names: Shelf<Box<str>, UserId>,
    user_external_ids: Shelf<Box<str>, UserId>,
    subjects: Shelf<IssuedSubject, UserId>,
    groups: Shelf<GroupId, Arc<Group>>,
    group_names: Shelf<Box<str>, GroupId>,
    group_external_ids: Shelf<Box<str>, GroupId>,
    members: Shelf<(GroupId, Member), ()>,
    parents: Shelf<(Member, GroupId), ()>,
    assignments: Shelf<RoleAssignmentId, Arc<RoleAssignment>>,
    roles: Shelf<(Holder, String), RoleAssignmentId>,
}

/// A name as it is compared: in whatever case.
#[must_use]
pub fn folded(name: &str) -> Box<str> {
    name.to_lowercase().into_boxed_str()
}

impl Organization {
    // ---- users ----

    #[must_use]
    pub fn user(&self, id: UserId) -> Option<&Arc<User>> {
        self.users.get(&id)
    }

    #[must_use]
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    /// The one with this name, in whatever case.
    #[must_use]
    pub fn user_named(&self, name: &str) -> Option<&Arc<User>> {
        self.user(*self.user_names.get(&folded(name))?)
    }

    #[must_use]
    pub fn user_of_external_id(&self, id: &str) -> Option<&Arc<User>> {
        self.user(*self.user_external_ids.find(|known| known.as_ref().cmp(id))?)
    }

    /// The one that an issuer's tokens call `subject`.
    #[must_use]
    pub fn user_of_subject(&self, issuer: &str, subject: &str) -> Option<&Arc<User>> {
        let order = |known: &IssuedSubject| (known.subject.as_ref(), known.issuer.as_ref()).cmp(&(subject, issuer));
        self.user(*self.subjects.find(order)?)
    }

    /// Whom somebody else calls so: by id, user name or external id, the first that there is.
    #[must_use]
    pub fn user_called(&self, name: &str) -> Option<&Arc<User>> {
        let by_id = name.parse().ok().and_then(|id| self.user(id));
        by_id.or_else(|| self.user_named(name)).or_else(|| self.user_of_external_id(name))
    }

    /// Users after `after`, in the order of their ids, which is that of their making.
    pub fn users_after(&self, after: Option<UserId>) -> impl Iterator<Item = &Arc<User>> {
        self.users.from(move |id| after.is_some_and(|after| *id <= after)).map(|(_, user)| user)
    }

    /// Ids of users whose name begins like this, in whatever case, in the order of their ids.
    #[must_use]
    pub fn users_with_prefix(&self, prefix: &str) -> Vec<UserId> {
        let prefix = folded(prefix);
        let from = self.user_names.from(|name| name < &prefix);
        let mut found: Vec<UserId> =
            from.take_while(|(name, _)| name.starts_with(prefix.as_ref())).map(|(_, id)| *id).collect();
        found.sort_unstable();
        found
    }

    /// Adds a user, or replaces the one with its id.
    ///
    /// # Errors
    /// [`Refusal::Flawed`], [`Refusal::Taken`] or [`Refusal::Full`].
    pub fn put_user(&mut self, user: User, limits: &Limits) -> Result<Arc<User>, Refusal> {
        let flaws = user.profile.flaws();
        if !flaws.is_empty() {
            return Err(Refusal::Flawed(flaws));
        }
        let before = self.users.get(&user.id).cloned();
        if before.is_none() && self.users.len() >= limits.users {
            return Err(Refusal::Full { what: "users", most: limits.users });
        }
        self.check_user_is_unique(&user)?;
        if let Some(before) = before {
            self.forget_names_of(&before);
        }
        let user = Arc::new(user);
        self.learn_names_of(&user);
        self.users.insert(user.id, user.clone());
        Ok(user)
    }

    fn check_user_is_unique(&self, user: &User) -> Result<(), Refusal> {
        let profile = &user.profile;
        let taken = |owner: Option<&UserId>| owner.is_some_and(|owner| *owner != user.id);
        let refused = |pointer: String| Err(Refusal::Taken { pointer });
        if taken(self.user_names.get(&folded(&profile.user_name))) {
            return refused("/userName".into());
        }
        if profile.external_id.as_ref().is_some_and(|id| taken(self.user_external_ids.get(&id.as_str().into()))) {
            return refused("/externalId".into());
        }
        match profile.subjects.iter().position(|subject| taken(self.subjects.get(subject))) {
            Some(at) => refused(format!("/subjects/{at}")),
            None => Ok(()),
        }
    }

    fn learn_names_of(&mut self, user: &User) {
        let Profiled { name, external_id, subjects } = Profiled::of(user);
        self.user_names.insert(name, user.id);
        if let Some(id) = external_id {
            self.user_external_ids.insert(id, user.id);
        }
        for subject in subjects {
            self.subjects.insert(subject.clone(), user.id);
        }
    }

    fn forget_names_of(&mut self, user: &User) {
        let Profiled { name, external_id, subjects } = Profiled::of(user);
        self.user_names.remove(&name);
        if let Some(id) = external_id {
            self.user_external_ids.remove(&id);
        }
        for subject in subjects {
            self.subjects.remove(subject);
        }
    }

    /// Takes a user away, with its memberships and its roles.
    ///
    /// # Errors
    /// [`Refusal::UnknownUser`].
    pub fn remove_user(&mut self, id: UserId) -> Result<Arc<User>, Refusal> {
        let user = self.users.remove(&id).ok_or(Refusal::UnknownUser)?;
        self.forget_names_of(&user);
        self.leave_all(Member::User(id));
        self.unassign_all(&Holder::User(id));
        Ok(user)
    }

    // ---- groups ----

    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&Arc<Group>> {
        self.groups.get(&id)
    }

    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The one with this name, in whatever case.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&Arc<Group>> {
        self.group(*self.group_names.get(&folded(name))?)
    }

    #[must_use]
    pub fn group_of_external_id(&self, id: &str) -> Option<&Arc<Group>> {
        self.group(*self.group_external_ids.find(|known| known.as_ref().cmp(id))?)
    }

    /// Groups after `after`, in the order of their ids, which is that of their making.
    pub fn groups_after(&self, after: Option<GroupId>) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.from(move |id| after.is_some_and(|after| *id <= after)).map(|(_, group)| group)
    }

    /// Ids of groups whose name begins like this, in whatever case, in the order of their ids.
    #[must_use]
    pub fn groups_with_prefix(&self, prefix: &str) -> Vec<GroupId> {
        let prefix = folded(prefix);
        let from = self.group_names.from(|name| name < &prefix);
        let mut found: Vec<GroupId> =
            from.take_while(|(name, _)| name.starts_with(prefix.as_ref())).map(|(_, id)| *id).collect();
        found.sort_unstable();
        found
    }

    /// Adds a group, or replaces the one with its id.
    ///
    /// # Errors
    /// [`Refusal::Flawed`], [`Refusal::Taken`] or [`Refusal::Full`].
    pub fn put_group(&mut self, group: Group, limits: &Limits) -> Result<Arc<Group>, Refusal> {
        let flaws = group.profile.flaws();
        if !flaws.is_empty() {
            return Err(Refusal::Flawed(flaws));
        }
        let before = self.groups.get(&group.id).cloned();
        if before.is_none() && self.groups.len() >= limits.groups {
            return Err(Refusal::Full { what: "groups", most: limits.groups });
        }
        let taken = |owner: Option<&GroupId>| owner.is_some_and(|owner| *owner != group.id);
        let (name, external_id) = (folded(&group.profile.display_name), group.profile.external_id.as_deref());
        if taken(self.group_names.get(&name)) {
            return Err(Refusal::Taken { pointer: "/displayName".into() });
        }
        if external_id.is_some_and(|id| taken(self.group_external_ids.get(&id.into()))) {
            return Err(Refusal::Taken { pointer: "/externalId".into() });
        }
        if let Some(before) = before {
            self.forget_names_of_group(&before);
        }
        self.group_names.insert(name, group.id);
        if let Some(id) = external_id {
            self.group_external_ids.insert(id.into(), group.id);
        }
        let group = Arc::new(group);
        self.groups.insert(group.id, group.clone());
        Ok(group)
    }

    fn forget_names_of_group(&mut self, group: &Group) {
        self.group_names.remove(&folded(&group.profile.display_name));
        if let Some(id) = &group.profile.external_id {
            self.group_external_ids.remove(&id.as_str().into());
        }
    }

    /// Takes a group away, with all that it is in, all that is in it, and its roles. Its members stay.
    ///
    /// # Errors
    /// [`Refusal::UnknownGroup`].
    pub fn remove_group(&mut self, id: GroupId) -> Result<Arc<Group>, Refusal> {
        let group = self.groups.remove(&id).ok_or(Refusal::UnknownGroup)?;
        self.forget_names_of_group(&group);
        self.leave_all(Member::Group(id));
        let members: Vec<Member> = self.members_of(id, None).collect();
        for member in members {
            self.leave(id, member);
        }
        self.unassign_all(&Holder::Group(id));
        Ok(group)
    }

    // ---- roles ----

    #[must_use]
    pub fn assignment(&self, id: RoleAssignmentId) -> Option<&Arc<RoleAssignment>> {
        self.assignments.get(&id)
    }

    /// Assignments after `after`, in the order of their ids, which is that of their making.
    pub fn assignments_after(&self, after: Option<RoleAssignmentId>) -> impl Iterator<Item = &Arc<RoleAssignment>> {
        self.assignments.from(move |id| after.is_some_and(|after| *id <= after)).map(|(_, one)| one)
    }

    /// The roles that were given to this very holder.
    pub fn roles_of<'a>(&'a self, holder: &'a Holder) -> impl Iterator<Item = (&'a str, RoleAssignmentId)> + 'a {
        let from = self.roles.from(move |(known, _)| known < holder);
        let own = from.take_while(move |((known, _), _)| known == holder);
        own.map(|((_, role), id)| (role.as_str(), *id))
    }

    /// Their names.
    pub fn roles_given_to<'a>(&'a self, holder: &Holder) -> impl Iterator<Item = &'a str> + use<'a> {
        let (first, holder) = (holder.clone(), holder.clone());
        let from = self.roles.from(move |(known, _)| *known < first);
        from.take_while(move |((known, _), _)| *known == holder).map(|((_, role), _)| role.as_str())
    }

    /// Gives a role.
    ///
    /// # Errors
    /// [`Refusal::UnknownUser`], [`Refusal::UnknownGroup`], [`Refusal::AlreadyAssigned`] or [`Refusal::Full`].
    pub fn assign(&mut self, assignment: RoleAssignment, limits: &Limits) -> Result<Arc<RoleAssignment>, Refusal> {
        match &assignment.holder {
            Holder::User(id) if self.user(*id).is_none() => return Err(Refusal::UnknownUser),
            Holder::Group(id) if self.group(*id).is_none() => return Err(Refusal::UnknownGroup),
            _ => {}
        }
        let key = (assignment.holder.clone(), assignment.role.clone());
        if self.roles.get(&key).is_some() {
            return Err(Refusal::AlreadyAssigned);
        }
        if self.assignments.len() >= limits.role_assignments {
            return Err(Refusal::Full { what: "role assignments", most: limits.role_assignments });
        }
        let assignment = Arc::new(assignment);
        self.roles.insert(key, assignment.id);
        self.assignments.insert(assignment.id, assignment.clone());
        Ok(assignment)
    }

    /// Takes a role back.
    ///
    /// # Errors
    /// [`Refusal::UnknownAssignment`].
    pub fn unassign(&mut self, id: RoleAssignmentId) -> Result<Arc<RoleAssignment>, Refusal> {
        let assignment = self.assignments.remove(&id).ok_or(Refusal::UnknownAssignment)?;
        self.roles.remove(&(assignment.holder.clone(), assignment.role.clone()));
        Ok(assignment)
    }

    fn unassign_all(&mut self, holder: &Holder) {
        let given: Vec<RoleAssignmentId> = self.roles_of(holder).map(|(_, id)| id).collect();
        for id in given {
            // Just found, so it is there.
            let _ = self.unassign(id);
        }
    }

    // ---- who is no longer admitted ----

    /// What a gateway calls a user: its id, its external id, its name, or a token's subject. Several may be meant.
    fn called<'a>(&'a self, label: &'a str) -> impl Iterator<Item = &'a Arc<User>> + 'a {
        let by_id = label.parse().ok().and_then(|id| self.user(id));
        let from = self.subjects.from(move |known| known.subject.as_ref() < label);
        let by_subject =
            from.take_while(move |(known, _)| known.subject.as_ref() == label).filter_map(|(_, id)| self.user(*id));
        let by_name = [by_id, self.user_of_external_id(label), self.user_named(label)];
        by_name.into_iter().flatten().chain(by_subject)
    }

    /// Whether usage by this user and for this group is to be refused, whatever the quotas say. Empty labels name nobody.
    #[must_use]
    pub fn revoked(&self, user: &str, group: &str) -> Option<Revoked> {
        let is_gone = |user: &str| !user.is_empty() && self.called(user).any(|user| !user.profile.active);
        if !self.users.is_empty() && is_gone(user) {
            return Some(Revoked::User);
        }
        if group.is_empty() || self.groups.is_empty() {
            return None;
        }
        let by_id = group.parse().ok().and_then(|id| self.group(id));
        let mut called = [by_id, self.group_of_external_id(group), self.group_named(group)].into_iter().flatten();
        called.any(|group| !group.profile.active).then_some(Revoked::Group)
    }
}

/// What a user is found by.
struct Profiled<'a> {
    name: Box<str>,
    external_id: Option<Box<str>>,
    subjects: &'a [IssuedSubject],
}

impl Profiled<'_> {
    fn of(user: &User) -> Profiled<'_> {
        let profile = &user.profile;
        Profiled {
            name: folded(&profile.user_name),
            external_id: profile.external_id.as_deref().map(Into::into),
            subjects: &profile.subjects,
        }
    }
}

/// A name must be something, and show no more than itself.
fn name_flaw(pointer: &str, name: &str) -> Option<Flaw> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let clean = name.trim() == name && !name.chars().any(char::is_control);
    let message = format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters or space at the ends");
    (!fits || !clean).then(|| Flaw::new(pointer, message))
}
