//! Changes that hand out permissions: made only if whoever asks for them has what they hand out.
//!
//! Judged within the transaction, by the books that the change itself finds: nothing comes between the question and the
//! change.

use super::organization::{
    AddMembers, AssignRole, CreateUser, DeleteGroup, DeleteUser, EditGroup, EditUser, RemoveMember, ShapeGroup,
    UnassignRole,
};
use super::policy::{CreatePolicy, CreateRole, DeletePolicy, ReplacePolicy, ReplaceRole};
use super::task::{Change, Halt};
use crate::domain::books::Posting;
use crate::domain::organization::group::Member;
use crate::domain::policy::giver::{Gift, Giver, World};
use crate::domain::request::Request;
use crate::store::database::Connection;

/// A change that may hand something out.
pub trait Gives: Change {
    /// What it hands out, by the books that it finds.
    fn gift(&self, world: World<'_>) -> Gift;
}

/// A change, with whoever makes it.
#[derive(Debug)]
pub struct Given<C> {
    pub change: C,
    pub giver: Giver,
}

/// Why nothing was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Withheld<R> {
    /// It hands out this permission, which whoever makes it does not have.
    NotHeld(String),
    /// As the change itself says.
    Refused(R),
}

impl<C: Gives> Change for Given<C> {
    type Done = C::Done;
    type Refused = Withheld<C::Refused>;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<C::Done, Halt<Withheld<C::Refused>>> {
        if let Giver::Bound(_) = &self.giver {
            let world = World { people: &posting.books.organization, policies: &posting.books.policies };
            if let Some(permission) = self.giver.lacks(&self.change.gift(world), world) {
                return Err(Halt::Refused(Withheld::NotHeld(permission)));
            }
        }
        self.change.apply(database, posting, request).await.map_err(|halt| match halt {
            Halt::Refused(refused) => Halt::Refused(Withheld::Refused(refused)),
            Halt::Store(error) => Halt::Store(error),
        })
    }
}

impl Gives for AddMembers {
    fn gift(&self, world: World<'_>) -> Gift {
        let comes = self.members.iter().any(|member| !world.people.is_member(self.group, *member));
        if comes { Gift::of_entering(world, self.group) } else { Gift::default() }
    }
}

impl Gives for RemoveMember {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_leaving(world, self.group)
    }
}

impl Gives for EditGroup {
    fn gift(&self, world: World<'_>) -> Gift {
        let before = world.people.group(self.id).map(|group| &group.profile);
        let turn = before.map(|before| (before.active, self.edit.of(before).active));
        match turn {
            Some((false, true)) => Gift::of_entering(world, self.id),
            Some((true, false)) => Gift::of_leaving(world, self.id),
            _ => Gift::default(),
        }
    }
}

impl Gives for DeleteGroup {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_leaving(world, self.id)
    }
}

impl Gives for ShapeGroup {
    fn gift(&self, world: World<'_>) -> Gift {
        let before = world.people.group(self.id).map(|group| group.profile.active);
        let present: std::collections::BTreeSet<Member> = world.people.members_of(self.id, None).collect();
        let (is_back, is_over) =
            (before == Some(false) && self.profile.active, before == Some(true) && !self.profile.active);
        let mut gift = Gift::default();
        if is_back || self.members.difference(&present).next().is_some() {
            gift = gift.and(Gift::of_entering(world, self.id));
        }
        if is_over || present.difference(&self.members).next().is_some() {
            gift = gift.and(Gift::of_leaving(world, self.id));
        }
        gift
    }
}

impl Gives for AssignRole {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_role(world, &self.role)
    }
}

impl Gives for UnassignRole {
    fn gift(&self, world: World<'_>) -> Gift {
        let assignment = world.people.assignment(self.id);
        assignment.map(|given| Gift::of_role_taken(world, &given.role)).unwrap_or_default()
    }
}

impl Gives for CreateUser {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_profile(world, self.id, None, &self.profile)
    }
}

impl Gives for EditUser {
    fn gift(&self, world: World<'_>) -> Gift {
        let Some(before) = world.people.user(self.id).map(|user| &user.profile) else { return Gift::default() };
        Gift::of_edit(world, self.id, before, &self.edit.of(before))
    }
}

impl Gives for DeleteUser {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_forgetting(world, self.id)
    }
}

impl Gives for CreateRole {
    fn gift(&self, _: World<'_>) -> Gift {
        Gift::of_terms(&[], &self.terms.permissions)
    }
}

impl Gives for ReplaceRole {
    fn gift(&self, world: World<'_>) -> Gift {
        let before = world.policies.role(&self.name).map(|role| role.terms.permissions.as_slice());
        Gift::of_terms(before.unwrap_or_default(), &self.terms.permissions)
    }
}

impl Gives for CreatePolicy {
    fn gift(&self, _: World<'_>) -> Gift {
        Gift::of_policy(None, Some(&self.terms))
    }
}

impl Gives for ReplacePolicy {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_policy(world.policies.policy(self.id).map(|policy| &policy.terms), Some(&self.terms))
    }
}

impl Gives for DeletePolicy {
    fn gift(&self, world: World<'_>) -> Gift {
        Gift::of_policy(world.policies.policy(self.id).map(|policy| &policy.terms), None)
    }
}
