//! A group as it is to be, with everybody in it: one change for what an identity provider says in one request.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::groups::named;
use super::{action_of, organization, record};
use crate::domain::books::Posting;
use crate::domain::ids::GroupId;
use crate::domain::organization::group::{Group, Member, Profile};
use crate::domain::organization::{Expected, Limits, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::organization as rows;
use crate::tenant::task::{Change, Halt};

/// A group with this profile and exactly these members. One that is so already is left alone.
#[derive(Debug)]
pub struct ShapeGroup {
    pub id: GroupId,
    pub profile: Profile,
    pub members: BTreeSet<Member>,
    /// Which version it takes the place of; `None` for a new group.
    pub expected: Option<Expected>,
    pub limits: Limits,
}

impl ShapeGroup {
    /// The group with its new profile, in memory alone; and the members that are to come and to go.
    fn judge(&self, posting: &mut Posting) -> Result<Judged, Refusal> {
        let now = posting.now();
        let people = organization(posting);
        let before = match &self.expected {
            None => None,
            Some(expected) => {
                let before = people.group(self.id).ok_or(Refusal::UnknownGroup)?.clone();
                if !expected.is(before.version) {
                    return Err(Refusal::Stale);
                }
                Some(before)
            }
        };
        let present: BTreeSet<Member> = people.members_of(self.id, None).collect();
        let gone: Vec<Member> = present.difference(&self.members).copied().collect();
        let come: Vec<Member> = self.members.difference(&present).copied().collect();
        let changed = before.as_ref().map(|before| before.profile.changed(&self.profile)).unwrap_or_default();
        let group = match before {
            Some(before) if changed.is_empty() && gone.is_empty() && come.is_empty() => {
                return Ok(Judged { group: before, is_new: false, changed, gone, joined: come });
            }
            Some(before) => {
                let version = before.version + 1;
                Group { profile: self.profile.clone(), version, updated_at: now, ..Group::clone(&before) }
            }
            None => Group { id: self.id, profile: self.profile.clone(), version: 1, created_at: now, updated_at: now },
        };
        let is_new = self.expected.is_none();
        let group = people.put_group(group, &self.limits)?;
        for member in &gone {
            people.expel(self.id, *member)?;
        }
        let joined = people.join(self.id, &come, &self.limits)?;
        Ok(Judged { group, is_new, changed, gone, joined })
    }
}

struct Judged {
    group: Arc<Group>,
    is_new: bool,
    changed: Vec<&'static str>,
    gone: Vec<Member>,
    joined: Vec<Member>,
}

impl Change for ShapeGroup {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        // A refusal may come after memory was changed: it is changed in a copy, which takes its place at the end.
        let kept = posting.books.organization.clone();
        let Judged { group, is_new, changed, gone, joined } = match self.judge(posting) {
            Ok(judged) => judged,
            Err(refusal) => {
                posting.books.organization = kept;
                return Err(Halt::Refused(refusal));
            }
        };
        let target = || format!("group:{}", group.id);
        if is_new {
            rows::insert_group(database, &group).await?;
            record(posting, request, "group.created", target(), json!({ "active": group.profile.active }));
        } else if changed.is_empty() && gone.is_empty() && joined.is_empty() {
            return Ok(group);
        } else {
            rows::update_group(database, &group).await?;
        }
        if !changed.is_empty() {
            let action = action_of(&changed, group.profile.active, "group");
            record(posting, request, &action, target(), json!({ "fields": changed, "version": group.version }));
        }
        for member in &gone {
            rows::delete_member(database, group.id, *member).await?;
        }
        if !joined.is_empty() {
            rows::insert_members(database, group.id, &joined, posting.now()).await?;
        }
        for (action, members) in [("group.memberRemoved", &gone), ("group.membersAdded", &joined)] {
            if !members.is_empty() {
                let payload = json!({ "members": members.iter().map(named).collect::<Vec<_>>() });
                record(posting, request, action, target(), payload);
            }
        }
        Ok(group)
    }
}
