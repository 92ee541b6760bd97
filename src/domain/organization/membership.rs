//! Who is in which group, directly and through others.

use std::collections::BTreeSet;

use super::group::Member;
use super::role::Holder;
use super::{Limits, NESTING_DEPTH_MAX, Organization, Refusal};
use crate::domain::ids::{GroupId, UserId};

impl Organization {
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    #[must_use]
    pub fn is_member(&self, group: GroupId, member: Member) -> bool {
        self.members.get(&(group, member)).is_some()
    }

    /// Who is in a group itself, after `after`: users first, each kind in the order of their ids.
    pub fn members_of(&self, group: GroupId, after: Option<Member>) -> impl Iterator<Item = Member> + '_ {
        let is_before = move |key: &(GroupId, Member)| match after {
            Some(after) => *key <= (group, after),
            None => key.0 < group,
        };
        self.members.from(is_before).take_while(move |((of, _), ())| *of == group).map(|((_, member), ())| *member)
    }

    /// The groups that somebody is in itself.
    pub fn groups_of(&self, member: Member) -> impl Iterator<Item = GroupId> + '_ {
        let from = self.parents.from(move |(known, _)| *known < member);
        from.take_while(move |((known, _), ())| *known == member).map(|((_, group), ())| *group)
    }

    /// Puts members into a group; those who are in it already stay. Answers who is new.
    ///
    /// # Errors
    /// [`Refusal::UnknownGroup`], [`Refusal::Flawed`] for a member that there is not, [`Refusal::Cycle`],
    /// [`Refusal::TooDeep`] or [`Refusal::Full`]. Nobody was put in then.
    pub fn join(&mut self, group: GroupId, members: &[Member], limits: &Limits) -> Result<Vec<Member>, Refusal> {
        if self.group(group).is_none() {
            return Err(Refusal::UnknownGroup);
        }
        let mut joined = Vec::new();
        for (index, member) in members.iter().enumerate() {
            if self.is_member(group, *member) {
                continue;
            }
            if let Err(refusal) = self.check_joins(group, *member, index, limits) {
                joined.into_iter().for_each(|member| self.leave(group, member));
                return Err(refusal);
            }
            self.members.insert((group, *member), ());
            self.parents.insert((*member, group), ());
            joined.push(*member);
        }
        Ok(joined)
    }

    fn check_joins(&self, group: GroupId, member: Member, index: usize, limits: &Limits) -> Result<(), Refusal> {
        let unknown = || {
            let message = format!("the tenant has no {} with this id", member.kind());
            Refusal::Flawed(vec![super::Flaw::new(format!("/members/{index}/id"), message)])
        };
        match member {
            Member::User(id) => {
                self.user(id).ok_or_else(unknown)?;
            }
            Member::Group(id) => {
                self.group(id).ok_or_else(unknown)?;
                if id == group || self.groups_within(id).contains(&group) {
                    return Err(Refusal::Cycle { index });
                }
                if self.levels_above(group) + self.levels_below(id) > NESTING_DEPTH_MAX {
                    return Err(Refusal::TooDeep { index });
                }
            }
        }
        if self.members.len() >= limits.members {
            return Err(Refusal::Full { what: "members", most: limits.members });
        }
        Ok(())
    }

    /// Takes a member out of a group.
    ///
    /// # Errors
    /// [`Refusal::UnknownGroup`] or [`Refusal::UnknownMember`].
    pub fn expel(&mut self, group: GroupId, member: Member) -> Result<(), Refusal> {
        if self.group(group).is_none() {
            return Err(Refusal::UnknownGroup);
        }
        if !self.is_member(group, member) {
            return Err(Refusal::UnknownMember);
        }
        self.leave(group, member);
        Ok(())
    }

    pub(super) fn leave(&mut self, group: GroupId, member: Member) {
        self.members.remove(&(group, member));
        self.parents.remove(&(member, group));
    }

    pub(super) fn leave_all(&mut self, member: Member) {
        let groups: Vec<GroupId> = self.groups_of(member).collect();
        for group in groups {
            self.leave(group, member);
        }
    }

    /// Every group in a group, however deep; not itself.
    fn groups_within(&self, group: GroupId) -> BTreeSet<GroupId> {
        let mut within = BTreeSet::new();
        let mut open = vec![group];
        while let Some(next) = open.pop() {
            open.extend(self.groups_in(next).filter(|inner| within.insert(*inner)));
        }
        within
    }

    fn groups_in(&self, group: GroupId) -> impl Iterator<Item = GroupId> + '_ {
        self.members_of(group, None).filter_map(|member| match member {
            Member::Group(id) => Some(id),
            Member::User(_) => None,
        })
    }

    /// Groups on the longest way up from this one, itself included.
    fn levels_above(&self, group: GroupId) -> usize {
        levels(group, |group| self.groups_of(Member::Group(group)))
    }

    /// Groups on the longest way down from this one, itself included.
    fn levels_below(&self, group: GroupId) -> usize {
        levels(group, |group| self.groups_in(group))
    }

    /// Every group that somebody is in, directly or through others, as far as active groups pass it on.
    #[must_use]
    pub fn all_groups_of(&self, member: Member) -> BTreeSet<GroupId> {
        self.climb(member, |organization, group| organization.group(group).is_some_and(|group| group.profile.active))
    }

    /// The same, whether or not they are active.
    #[must_use]
    pub fn groups_over(&self, member: Member) -> BTreeSet<GroupId> {
        self.climb(member, |_, _| true)
    }

    fn climb(&self, member: Member, passes_on: impl Fn(&Organization, GroupId) -> bool) -> BTreeSet<GroupId> {
        let mut found = BTreeSet::new();
        let mut open = vec![member];
        while let Some(next) = open.pop() {
            for group in self.groups_of(next).filter(|group| passes_on(self, *group)) {
                if found.insert(group) {
                    open.push(Member::Group(group));
                }
            }
        }
        found
    }

    /// The roles a user has: its own, and those of every group it is in. An inactive user has none.
    #[must_use]
    pub fn roles_of_user(&self, id: UserId) -> BTreeSet<&str> {
        if !self.user(id).is_some_and(|user| user.profile.active) {
            return BTreeSet::new();
        }
        self.roles_through(id, &self.all_groups_of(Member::User(id)))
    }

    /// The roles a user would have if no group were inactive: what a deactivation has taken is what these are more.
    #[must_use]
    pub fn roles_of_user_regardless(&self, id: UserId) -> BTreeSet<&str> {
        self.roles_through(id, &self.climb(Member::User(id), |_, _| true))
    }

    fn roles_through(&self, id: UserId, groups: &BTreeSet<GroupId>) -> BTreeSet<&str> {
        let holders = std::iter::once(Holder::User(id)).chain(groups.iter().map(|group| Holder::Group(*group)));
        let mut roles = BTreeSet::new();
        for holder in holders {
            let from = self.roles.from(|(known, _)| *known < holder);
            roles.extend(from.take_while(|((known, _), _)| *known == holder).map(|((_, role), _)| role.as_str()));
        }
        roles
    }
}

/// How many steps there are, level by level. What is nested is bounded and without circles, so this ends.
fn levels<I: Iterator<Item = GroupId>>(start: GroupId, next: impl Fn(GroupId) -> I) -> usize {
    let mut level = BTreeSet::from([start]);
    let mut count = 0;
    while !level.is_empty() && count <= NESTING_DEPTH_MAX {
        count += 1;
        level = level.into_iter().flat_map(&next).collect();
    }
    count
}
