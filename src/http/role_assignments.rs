//! `/v1/role-assignments`: who has which role in a tenant.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::people::{home, id, id_parameter, page, people, text_parameter};
use super::problem::{Code, FieldProblem, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::clock;
use crate::domain::ids::{GroupId, RoleAssignmentId, UserId};
use crate::domain::organization::role::{Holder, RoleAssignment};
use crate::domain::organization::{Organization, Refusal};
use crate::domain::policy::role;
use crate::domain::tenant::Role;
use crate::json::object;
use crate::tenant::organization::{AssignRole, UnassignRole};
use crate::tenant::task::Declined;

pub(super) struct RoleAssignments;

#[OpenApi(tag = "Tag::Organization")]
impl RoleAssignments {
    /// Give a role
    ///
    /// To a user, to a group (its members have it, and those of groups in it), or to an API key besides its own. It holds
    /// from the next request on. What the role gives the caller must be allowed itself, unless it may `permissions:grant`.
    #[oai(path = "/v1/role-assignments", method = "post", operation_id = "createRoleAssignment")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<AssignRoleBody>,
    ) -> Result<Reply<RoleAssignmentView, 201>, Problem> {
        let handle = home(&ask).await?;
        let (role, holder) = body.0.checked()?;
        let unknown = || Problem::field("/holder/id", "the tenant has nobody with this id");
        if let Holder::ApiKey(key) = &holder {
            let tenant = handle.tenant();
            ask.api.directory.api_key(key).filter(|key| key.tenant == tenant).ok_or_else(unknown)?;
        }
        let id = RoleAssignmentId(clock::new_id());
        let change = AssignRole { id, role, holder, limits: ask.api.people };
        match ask.gives(change, |done| render(done)).await? {
            Ok(answer) => Ok(Reply::of(answer, |done| RoleAssignmentView::of(&done))),
            Err(Declined::Refused(Refusal::UnknownUser | Refusal::UnknownGroup)) => Err(unknown()),
            Err(declined) => Err(declined.into()),
        }
    }

    /// Page through the roles that were given, oldest first
    ///
    /// Those that were given directly; filters apply all at once.
    #[oai(path = "/v1/role-assignments", method = "get", operation_id = "listRoleAssignments")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn list(
        &self,
        ask: Ask,
        /// Only this role.
        role: Query<Option<String>>,
        /// Only this user's.
        #[oai(name = "userId")]
        user: Query<Option<String>>,
        /// Only this group's.
        #[oai(name = "groupId")]
        group: Query<Option<String>>,
        /// Only this API key's.
        #[oai(name = "apiKeyId")]
        api_key: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RoleAssignmentPage>, Problem> {
        let filter = Filter {
            role: text_parameter("role", role.0.as_deref())?,
            holders: [
                id_parameter::<UserId>("userId", user.0.as_deref())?.map(Holder::User),
                id_parameter::<GroupId>("groupId", group.0.as_deref())?.map(Holder::Group),
                text_parameter("apiKeyId", api_key.0.as_deref())?.map(|id| Holder::ApiKey(id.to_owned())),
            ],
        };
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let people = people(&ask).await?;
        let (found, more) = filter.page(&people, after, limit);
        let next = found.last().filter(|_| more).map(|one| ask.seal(&one.id));
        Ok(Reply::new(RoleAssignmentPage { items: found, next_cursor: next }))
    }

    /// Read an assignment of a role
    #[oai(path = "/v1/role-assignments/:id", method = "get", operation_id = "getRoleAssignment")]
    async fn get(
        &self,
        ask: Ask,
        /// The assignment's id.
        #[oai(name = "id")]
        assignment: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RoleAssignmentView>, Problem> {
        let people = people(&ask).await?;
        let found = people.assignment(id(&assignment, Code::RoleAssignmentNotFound)?);
        let found = found.ok_or_else(|| Problem::new(Code::RoleAssignmentNotFound))?;
        Ok(Reply::new(RoleAssignmentView::of(found)))
    }

    /// Take a role back
    ///
    /// From the next request on. Answers the assignment as it was.
    #[oai(path = "/v1/role-assignments/:id", method = "delete", operation_id = "deleteRoleAssignment")]
    async fn delete(
        &self,
        ask: Ask,
        /// The assignment's id.
        #[oai(name = "id")]
        assignment: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RoleAssignmentView>, Problem> {
        let change = UnassignRole { id: id(&assignment, Code::RoleAssignmentNotFound)? };
        let answer = ask.gives(change, |done| render(done)).await??;
        Ok(Reply::of(answer, |done| RoleAssignmentView::of(&done)))
    }
}

fn render(assignment: &RoleAssignment) -> String {
    serde_json::to_string(&RoleAssignmentView::of(assignment)).unwrap_or_default()
}

struct Filter<'a> {
    role: Option<&'a str>,
    /// Whose, each that is asked for.
    holders: [Option<Holder>; 3],
}

impl Filter<'_> {
    fn page(
        &self,
        people: &Organization,
        after: Option<RoleAssignmentId>,
        limit: usize,
    ) -> (Vec<RoleAssignmentView>, bool) {
        let passes = |one: &&std::sync::Arc<RoleAssignment>| {
            self.role.is_none_or(|role| one.role == role)
                && self.holders.iter().flatten().all(|holder| one.holder == *holder)
        };
        let view = |one: &std::sync::Arc<RoleAssignment>| RoleAssignmentView::of(one);
        match self.holders.iter().flatten().next() {
            Some(holder) => {
                let mut ids: Vec<RoleAssignmentId> = people.roles_of(holder).map(|(_, id)| id).collect();
                ids.sort_unstable();
                let later = ids.into_iter().filter(|id| after.is_none_or(|after| *id > after));
                page(later.filter_map(|id| people.assignment(id)).filter(passes).map(view), limit)
            }
            None => page(people.assignments_after(after).filter(passes).map(view), limit),
        }
    }
}

/// Who has a role.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "RoleHolder", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HolderView {
    /// `user`, `group` or `apiKey`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    id: String,
}

/// A role to be given.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "AssignRole", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct AssignRoleBody {
    /// A built-in role (`admin`, `developer`, `analyst`, `reporter`, also called `service`, or `reader`), or one of the
    /// tenant's own.
    role: String,
    #[serde(deserialize_with = "object")]
    holder: HolderView,
}

impl AssignRoleBody {
    fn checked(self) -> Result<(String, Holder), Problem> {
        let mut problems = Vec::new();
        let mut wrong = |pointer: &str, message: &str| {
            problems.push(FieldProblem { pointer: pointer.into(), message: message.into() });
        };
        // Whether there is such a role of the tenant's own is known to its books.
        let role = match Role::from_alias(&self.role) {
            Some(Role::PlatformAdmin) => None,
            Some(role) => Some(role.name().to_owned()),
            None => role::name_flaw(&self.role).is_none().then_some(self.role),
        };
        if role.is_none() {
            wrong("/role", "must be admin, developer, analyst, reporter, reader or a role of the tenant's own");
        }
        let holder = Holder::from_parts(&self.holder.kind, &self.holder.id);
        if holder.is_none() {
            match self.holder.kind.as_str() {
                "user" | "group" => wrong("/holder/id", "not a UUID in its hyphenated form"),
                _ => wrong("/holder/type", "must be user, group or apiKey"),
            }
        }
        match (role, holder) {
            (Some(role), Some(holder)) => Ok((role, holder)),
            _ => Err(Problem::fields(problems)),
        }
    }
}

/// A role, given.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "RoleAssignment", rename_all = "camelCase", example)]
pub(super) struct RoleAssignmentView {
    id: String,
    role: String,
    holder: HolderView,
    created_at: String,
}

impl RoleAssignmentView {
    fn of(assignment: &RoleAssignment) -> RoleAssignmentView {
        let RoleAssignment { id, role, holder, created_at } = assignment;
        RoleAssignmentView {
            id: id.to_string(),
            role: role.clone(),
            holder: HolderView { kind: holder.kind().to_owned(), id: holder.id() },
            created_at: instant(*created_at),
        }
    }
}

/// A page of role assignments.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct RoleAssignmentPage {
    items: Vec<RoleAssignmentView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for AssignRoleBody {
    fn example() -> AssignRoleBody {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ac".into();
        AssignRoleBody { role: "analyst".into(), holder: HolderView { kind: "group".into(), id } }
    }
}

impl Example for RoleAssignmentView {
    fn example() -> RoleAssignmentView {
        let AssignRoleBody { role, holder } = AssignRoleBody::example();
        let id = "0199a8b2-5c00-7abc-8def-0123456789ad".into();
        RoleAssignmentView { id, role, holder, created_at: "2026-11-20T15:37:12.345Z".into() }
    }
}
