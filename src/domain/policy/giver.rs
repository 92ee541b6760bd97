//! What a change hands out, and whether whoever makes it may hand that out.
//!
//! Nobody raises himself or others: a membership, a role, a policy or a key gives at most what the credential at work may
//! do itself, by its roles and policies and within its scopes. Taking a denial away gives what it denied. Only who may
//! [`GRANT`] gives whatever a tenant may give: the built-in administrator, and its API keys with scopes where those name it.
//!
//! What cannot be known without a request counts against the giver: a condition never makes it mightier, and a denial under
//! a condition always makes it less so. What a group passes on counts whether or not the group is active, for it may
//! become so.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::books::PolicyBooks;
use super::ceiling::{BuiltIn, is_kept};
use super::condition::Condition;
use super::statement::{Effect, PolicyTerms, Subject};
use crate::domain::api_key::Terms;
use crate::domain::ids::{GroupId, UserId};
use crate::domain::organization::Organization;
use crate::domain::organization::group::Member;
use crate::domain::organization::role::Holder;
use crate::domain::organization::user::Profile;
use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;

/// The permission to give what one does not have, as object and action. An object of its own, so that no wildcard over the
/// actions of groups, roles or policies has it.
pub const GRANT: (&str, &str) = ("permissions", "grant");

/// A tenant's people and policies, as a change finds them.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    pub people: &'a Organization,
    pub policies: &'a PolicyBooks,
}

impl World<'_> {
    /// Policies in force with this effect that are about one of these.
    fn about(&self, effect: Effect, is_about: impl Fn(&Subject) -> bool) -> impl Iterator<Item = &PolicyTerms> {
        let terms = self.policies.policies().map(|policy| &policy.terms);
        terms.filter(move |terms| terms.enabled && terms.effect == effect && terms.subjects.iter().any(&is_about))
    }

    /// Permissions of those that have a condition such as this.
    fn under(
        &self,
        effect: Effect,
        is_about: impl Fn(&Subject) -> bool,
        looks: impl Fn(&Condition) -> bool,
    ) -> impl Iterator<Item = Pattern> {
        let found = self.about(effect, is_about).filter(move |terms| terms.condition.as_ref().is_some_and(&looks));
        found.flat_map(|terms| terms.permissions.iter().cloned())
    }

    /// The roles that a group gives, itself and by those above it; and these groups.
    fn above(&self, group: GroupId) -> (BTreeSet<&str>, BTreeSet<GroupId>) {
        let mut groups = self.people.groups_over(Member::Group(group));
        groups.insert(group);
        (groups.iter().flat_map(|group| self.people.roles_given_to(&Holder::Group(*group))).collect(), groups)
    }

    /// Whom policies about a user are about.
    fn is_user(&self, id: UserId) -> impl Fn(&Subject) -> bool {
        let groups = self.people.groups_over(Member::User(id));
        let roles = self.people.roles_of_user_regardless(id);
        let roles: BTreeSet<String> = roles.into_iter().map(str::to_owned).collect();
        move |subject| match subject {
            Subject::Everybody => true,
            Subject::Role(name) => roles.contains(name),
            Subject::User(user) => *user == id,
            Subject::Group(group) => groups.contains(group),
            Subject::ApiKey(_) => false,
        }
    }
}

/// What a change hands out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gift {
    /// All that these built-in roles may do.
    built_in: BTreeSet<Role>,
    /// What roles of the tenant's own and policies allow.
    allowed: BTreeSet<Pattern>,
    /// What was denied until now.
    lifted: BTreeSet<Pattern>,
    /// Only what one of these covers; empty: everything.
    within: Vec<Pattern>,
}

impl Gift {
    /// Of a role that is given.
    #[must_use]
    pub fn of_role(world: World<'_>, name: &str) -> Gift {
        let mut gift = Gift::default();
        gift.gives_role(world, name);
        gift.turns(world, looks_at_roles);
        gift
    }

    /// Of a role that is taken back: it may be denied something, or be what a condition looks for.
    #[must_use]
    pub fn of_role_taken(world: World<'_>, name: &str) -> Gift {
        let mut gift = Gift::default();
        gift.lifts(world, |subject| *subject == Subject::Role(name.to_owned()));
        gift.turns(world, looks_at_roles);
        gift
    }

    /// Of becoming a member of a group, or of its coming back.
    #[must_use]
    pub fn of_entering(world: World<'_>, group: GroupId) -> Gift {
        let mut gift = Gift::default();
        let (roles, groups) = world.above(group);
        if !roles.is_empty() {
            gift.turns(world, looks_at_roles);
        }
        roles.into_iter().for_each(|role| gift.gives_role(world, role));
        gift.allows(world, |subject| matches!(subject, Subject::Group(id) if groups.contains(id)));
        gift
    }

    /// Of leaving a group, or of its end.
    #[must_use]
    pub fn of_leaving(world: World<'_>, group: GroupId) -> Gift {
        let mut gift = Gift::default();
        let (roles, groups) = world.above(group);
        if !roles.is_empty() {
            gift.turns(world, looks_at_roles);
        }
        gift.lifts(world, |subject| match subject {
            Subject::Role(name) => roles.contains(name.as_str()),
            Subject::Group(id) => groups.contains(id),
            _ => false,
        });
        gift
    }

    /// Of a user who comes back. Until then it is denied everything, so that no denial ends; whatever allows it something
    /// counts, also what looks at its roles.
    #[must_use]
    pub fn of_return(world: World<'_>, user: UserId) -> Gift {
        let mut gift = Gift::default();
        let roles = world.people.roles_of_user_regardless(user);
        roles.into_iter().for_each(|role| gift.gives_role(world, role));
        gift.allows(world, world.is_user(user));
        gift
    }

    /// Of a user whom the books forget, or whose tokens they no longer know: those are judged by what they claim.
    #[must_use]
    pub fn of_forgetting(world: World<'_>, user: UserId) -> Gift {
        let mut gift = Gift::default();
        // What everybody is denied, whoever is unknown is denied as well, unless it depends on who that is.
        let is_user = world.is_user(user);
        gift.lifts(world, |subject| *subject != Subject::Everybody && is_user(subject));
        let is_everybody = |subject: &Subject| *subject == Subject::Everybody;
        gift.lifted.extend(world.under(Effect::Deny, is_everybody, Condition::depends_on_subject));
        if let Some(user) = world.people.user(user).filter(|user| !user.profile.subjects.is_empty()) {
            gift.allowed.extend(world.under(Effect::Allow, is_everybody, Condition::depends_on_subject));
            // Whoever is shut out would be back, with all that its tokens claim.
            if !user.profile.active {
                gift.lifted.extend(format!("{}:{}", GRANT.0, GRANT.1).parse::<Pattern>());
            }
        }
        gift
    }

    /// Of another profile: what policies allow or deny by an attribute that differs.
    #[must_use]
    pub fn of_profile(world: World<'_>, user: UserId, before: Option<&Profile>, after: &Profile) -> Gift {
        let mut gift = Gift::default();
        let changed = seen_changes(before, after);
        let is_user = world.is_user(user);
        let looks = |condition: &Condition| condition.looks_at_subject(&|name| changed.contains(name));
        gift.allowed.extend(world.under(Effect::Allow, &is_user, looks));
        gift.lifted.extend(world.under(Effect::Deny, &is_user, looks));
        gift
    }

    /// Of another profile of a user who is there: what its attributes do, its return, and tokens that no longer mean it.
    #[must_use]
    pub fn of_edit(world: World<'_>, user: UserId, before: &Profile, after: &Profile) -> Gift {
        let mut gift = Gift::of_profile(world, user, Some(before), after);
        if before.subjects.iter().any(|subject| !after.subjects.contains(subject)) {
            gift = gift.and(Gift::of_forgetting(world, user));
        }
        if after.active && !before.active { gift.and(Gift::of_return(world, user)) } else { gift }
    }

    /// Of a role's other terms; of a new one's, what it is going to give.
    #[must_use]
    pub fn of_terms(before: &[Pattern], after: &[Pattern]) -> Gift {
        let is_new = |pattern: &&Pattern| !before.iter().any(|had| had.contains(pattern));
        Gift { allowed: after.iter().filter(is_new).cloned().collect(), ..Gift::default() }
    }

    /// Of a policy that comes, changes or goes.
    #[must_use]
    pub fn of_policy(before: Option<&PolicyTerms>, after: Option<&PolicyTerms>) -> Gift {
        let mut gift = Gift::default();
        let decides =
            |one: &PolicyTerms| PolicyTerms { name: String::new(), description: String::new(), ..one.clone() };
        if before.map(decides) == after.map(decides) {
            return gift;
        }
        if let Some(terms) = before.filter(|terms| terms.enabled && terms.effect == Effect::Deny) {
            gift.lifted.extend(terms.permissions.iter().cloned());
        }
        if let Some(terms) = after.filter(|terms| terms.enabled && terms.effect == Effect::Allow) {
            gift.allowed.extend(terms.permissions.iter().cloned());
        }
        gift
    }

    /// Of an API key's secret; `id` names one that has been there before.
    #[must_use]
    pub fn of_key(world: World<'_>, id: Option<&str>, role: Role, terms: &Terms) -> Gift {
        let mut gift = Gift::default();
        gift.gives_role(world, role.name());
        let mut roles = BTreeSet::from([role.name().to_owned()]);
        if let Some(id) = id {
            let holder = Holder::ApiKey(id.to_owned());
            roles.extend(world.people.roles_given_to(&holder).map(str::to_owned));
            roles.iter().for_each(|role| gift.gives_role(world, role));
        }
        gift.allows(world, |subject| match subject {
            Subject::Everybody => true,
            Subject::Role(name) => roles.contains(name),
            Subject::ApiKey(key) => id == Some(key.as_str()),
            Subject::User(_) | Subject::Group(_) => false,
        });
        gift.within.clone_from(&terms.scopes);
        gift
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: Gift) -> Gift {
        self.built_in.extend(other.built_in);
        self.allowed.extend(other.allowed);
        self.lifted.extend(other.lifted);
        self
    }

    fn gives_role(&mut self, world: World<'_>, name: &str) {
        match Role::from_name(name) {
            // A key belongs to a tenant, whatever its row says.
            Some(Role::PlatformAdmin) => return,
            Some(role) => {
                self.built_in.insert(role);
            }
            None => self
                .allowed
                .extend(world.policies.role(name).into_iter().flat_map(|role| role.terms.permissions.clone())),
        }
        self.allows(world, |subject| *subject == Subject::Role(name.to_owned()));
    }

    /// What conditions such as these may allow from now on, or no longer deny, whomever their policies are about.
    fn turns(&mut self, world: World<'_>, looks: impl Fn(&Condition) -> bool) {
        self.allowed.extend(world.under(Effect::Allow, |_| true, &looks));
        self.lifted.extend(world.under(Effect::Deny, |_| true, &looks));
    }

    fn allows(&mut self, world: World<'_>, is_about: impl Fn(&Subject) -> bool) {
        self.allowed.extend(world.about(Effect::Allow, is_about).flat_map(|terms| terms.permissions.clone()));
    }

    fn lifts(&mut self, world: World<'_>, is_about: impl Fn(&Subject) -> bool) {
        self.lifted.extend(world.about(Effect::Deny, is_about).flat_map(|terms| terms.permissions.clone()));
    }

    /// Does it hand this out, of what our own API knows?
    fn has(&self, built_in: &BuiltIn, object: &str, action: &str) -> bool {
        let covers = |patterns: &BTreeSet<Pattern>| patterns.iter().any(|pattern| pattern.covers(object, action));
        let is_within = self.within.is_empty() || self.within.iter().any(|scope| scope.covers(object, action));
        let by_role = self.built_in.iter().any(|role| built_in.may(*role, object, action));
        is_within && (by_role || covers(&self.lifted) || (built_in.is_givable(object, action) && covers(&self.allowed)))
    }

    /// What it hands out of what is no object of ours.
    fn foreign(&self, built_in: &BuiltIn) -> BTreeSet<Pattern> {
        let patterns = self.allowed.iter().chain(&self.lifted);
        let foreign = patterns.filter(|pattern| pattern.object().is_none_or(|object| !built_in.knows(object)));
        if self.within.is_empty() {
            return foreign.cloned().collect();
        }
        let met = foreign.flat_map(|pattern| self.within.iter().filter_map(|scope| scope.meet(pattern)));
        met.filter(|pattern| pattern.object().is_none_or(|object| !built_in.knows(object))).collect()
    }
}

fn looks_at_roles(condition: &Condition) -> bool {
    condition.looks_at_subject(&|name| name == "roles")
}

/// Names of a subject's attributes, as conditions call them, that differ. One that is not there is as one that is null.
fn seen_changes(before: Option<&Profile>, after: &Profile) -> BTreeSet<String> {
    let seen = |profile: &Profile| {
        let primary = profile.emails.iter().find(|email| email.primary).or(profile.emails.first());
        let mut seen = profile.attributes.object();
        seen.insert("userName".into(), profile.user_name.clone().into());
        seen.insert("displayName".into(), profile.display_name.clone().into());
        seen.insert("externalId".into(), profile.external_id.clone().into());
        seen.insert("email".into(), primary.map(|email| email.value.clone()).into());
        seen.retain(|_, value| !value.is_null());
        seen
    };
    let (before, after) = (before.map(seen).unwrap_or_default(), seen(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

/// Whoever makes a change, by what it may hand out.
#[derive(Debug, Clone)]
pub enum Giver {
    /// Whatever a tenant may give: the platform, and who may [`GRANT`].
    Free,
    /// What the credential may do itself.
    Bound(Credential),
}

/// A credential that gives what it has.
#[derive(Debug, Clone)]
pub struct Credential {
    pub built_in: Arc<BuiltIn>,
    /// Those that it brings; what the books give besides is looked up.
    pub roles: Vec<Role>,
    pub scopes: Vec<Pattern>,
    pub person: Option<UserId>,
    pub api_key: Option<String>,
}

impl Giver {
    /// A permission that a gift hands out and the giver does not have.
    #[must_use]
    pub fn lacks(&self, gift: &Gift, world: World<'_>) -> Option<String> {
        match self {
            Giver::Free => None,
            Giver::Bound(credential) => credential.lacks(gift, world),
        }
    }
}

impl Credential {
    fn lacks(&self, gift: &Gift, world: World<'_>) -> Option<String> {
        let own = Own::of(self, world);
        let pairs = self.built_in.pairs().filter(|(object, action)| gift.has(&self.built_in, object, action));
        let mut missing = pairs.filter(|(object, action)| !own.may(object, action));
        if let Some((object, action)) = missing.next() {
            return Some(format!("{object}:{action}"));
        }
        let foreign = gift.foreign(&self.built_in);
        foreign.iter().find(|pattern| !own.may_all_of(pattern)).map(ToString::to_string)
    }
}

/// What a credential may do itself.
struct Own<'a> {
    credential: &'a Credential,
    is_administrator: bool,
    roles: BTreeSet<Role>,
    allowed: BTreeSet<&'a Pattern>,
    denied: BTreeSet<&'a Pattern>,
}

impl<'a> Own<'a> {
    fn of(credential: &'a Credential, world: World<'a>) -> Own<'a> {
        let (key, person) = (credential.api_key.as_deref(), credential.person);
        let mut names: BTreeSet<&str> = credential.roles.iter().map(|role| role.name()).collect();
        names.extend(person.into_iter().flat_map(|id| world.people.roles_of_user(id)));
        let holder = key.map(|id| Holder::ApiKey(id.to_owned()));
        names.extend(holder.iter().flat_map(|holder| world.people.roles_given_to(holder)));
        let groups = person.map(|id| world.people.all_groups_of(Member::User(id))).unwrap_or_default();
        let is_about = |subject: &Subject| match subject {
            Subject::Everybody => true,
            Subject::Role(name) => names.contains(name.as_str()),
            Subject::User(id) => person == Some(*id),
            Subject::Group(id) => groups.contains(id),
            Subject::ApiKey(id) => key == Some(id.as_str()),
        };
        let always = |terms: &&PolicyTerms| terms.condition.is_none() && terms.resources.is_empty();
        let of_roles =
            names.iter().filter_map(|name| world.policies.role(name)).flat_map(|role| &role.terms.permissions);
        let of_policies = world.policies.policies().map(|policy| &policy.terms).filter(|terms| terms.enabled);
        let (allows, denies): (Vec<_>, Vec<_>) = of_policies
            .filter(|terms| terms.subjects.iter().any(is_about))
            .partition(|terms| terms.effect == Effect::Allow);
        Own {
            credential,
            is_administrator: names.contains(Role::Admin.name()),
            roles: names.iter().filter_map(|name| Role::from_name(name)).collect(),
            allowed: of_roles.chain(allows.into_iter().filter(always).flat_map(|terms| &terms.permissions)).collect(),
            denied: denies.into_iter().flat_map(|terms| &terms.permissions).collect(),
        }
    }

    fn may(&self, object: &str, action: &str) -> bool {
        let Credential { built_in, scopes, .. } = self.credential;
        let covers = |patterns: &BTreeSet<&Pattern>| patterns.iter().any(|pattern| pattern.covers(object, action));
        let is_left = scopes.is_empty() || scopes.iter().any(|scope| scope.covers(object, action));
        let by_role = self.roles.iter().any(|role| built_in.may(*role, object, action));
        let is_denied = covers(&self.denied) && !(self.is_administrator && is_kept(object));
        is_left && !is_denied && (by_role || (built_in.is_givable(object, action) && covers(&self.allowed)))
    }

    /// Of what is no object of ours.
    fn may_all_of(&self, pattern: &Pattern) -> bool {
        let scopes = &self.credential.scopes;
        let is_left = scopes.is_empty() || scopes.iter().any(|scope| scope.contains(pattern));
        let is_denied = self.denied.iter().any(|denied| denied.meet(pattern).is_some());
        is_left && !is_denied && self.allowed.iter().any(|allowed| allowed.contains(pattern))
    }
}
