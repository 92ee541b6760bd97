//! `/v1/roles`: the roles of a tenant, the built-in ones and its own.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::people::{home, page};
use super::precondition;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::domain::organization::Flaw;
use crate::domain::permission::Pattern;
use crate::domain::policy::books::PolicyBooks;
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::role::{RoleTerms, TenantRole};
use crate::domain::request::Answer;
use crate::domain::tenant::Role;
use crate::tenant::policy::{CreateRole, DeleteRole, ReplaceRole};

pub(super) struct Roles;

#[OpenApi(tag = "Tag::Access")]
impl Roles {
    /// Define a role
    ///
    /// A named set of permissions, for role assignments to give and for policies to speak of. A tenant gives what its
    /// built-in roles may do, and what is no object of ours; never what makes others mightier (changing roles, policies,
    /// role assignments, API keys, users or groups), which is the built-in administrator's alone. Whoever may not
    /// `permissions:grant` gives a role only what it may do itself.
    #[oai(path = "/v1/roles", method = "post", operation_id = "createRole")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<CreateRoleBody>,
    ) -> Result<Reply<RoleView, 201>, Problem> {
        let (name, terms) = body.0.parts();
        let terms = terms.terms()?;
        let change = CreateRole { name, terms, built_in: ask.api.gate.authorizer().built_in().clone() };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Page through the roles
    ///
    /// The built-in ones first, then the tenant's own in the order of their names.
    #[oai(path = "/v1/roles", method = "get", operation_id = "listRoles")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RolePage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after: Option<(bool, String)> = ask.open(cursor.0.as_deref(), position)?;
        let (_, books) = home(&ask).await?.policies()?;
        let all = all(ask.api.gate.authorizer().built_in(), &books);
        let later = all.into_iter().filter(|(place, _)| after.as_ref().is_none_or(|after| place > after));
        let (found, more) = page(later, limit);
        let next = found.last().filter(|_| more).map(|((own, name), _)| ask.seal(&format!("{own} {name}")));
        Ok(Reply::new(RolePage { items: found.into_iter().map(|(_, view)| view).collect(), next_cursor: next }))
    }

    /// Read a role
    ///
    /// The answer's ETag is what `If-Match` of a change takes. `service` and `tenantAdmin` are other names of `reporter`
    /// and `admin`.
    #[oai(path = "/v1/roles/:name", method = "get", operation_id = "getRole")]
    async fn get(
        &self,
        ask: Ask,
        /// The role's name.
        name: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RoleView>, Problem> {
        let (_, books) = home(&ask).await?.policies()?;
        if let Some(role) = books.role(&name) {
            return Ok(Reply::new(RoleView::of(role)).tagged(role.version));
        }
        let mut built_in = ask.api.gate.authorizer().built_in().rights();
        let alias = Role::from_alias(&name);
        let found = built_in.find(|(role, _)| Some(*role) == alias);
        let (role, rights) = found.ok_or_else(|| Problem::new(Code::RoleNotFound))?;
        Ok(Reply::new(RoleView::built_in(role, rights)).tagged(0))
    }

    /// Replace a role's terms
    ///
    /// From the next request on. The built-in roles are nobody's to change.
    #[oai(path = "/v1/roles/:name", method = "put", operation_id = "replaceRole")]
    async fn replace(
        &self,
        ask: Ask,
        /// The role's name.
        name: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<RoleTermsBody>,
    ) -> Result<Reply<RoleView>, Problem> {
        let expected = precondition::required(&ask)?;
        let terms = body.0.terms()?;
        let built_in = ask.api.gate.authorizer().built_in().clone();
        let change = ReplaceRole { name: name.0, terms, expected, built_in };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Delete a role
    ///
    /// One that is given to nobody and that no policy speaks of. Answers the role as it was.
    #[oai(path = "/v1/roles/:name", method = "delete", operation_id = "deleteRole")]
    async fn delete(
        &self,
        ask: Ask,
        /// The role's name.
        name: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RoleView>, Problem> {
        let change = DeleteRole { name: name.0, expected: precondition::required(&ask)? };
        let answer = home(&ask).await?.change(change, ask.change(), |done| render(done)).await??;
        Ok(Reply::of(answer, |done| RoleView::of(&done)))
    }
}

/// Permissions as they are written.
pub(super) fn patterns(texts: &[String], flaws: &mut Vec<Flaw>) -> Vec<Pattern> {
    let read = |(at, text): (usize, &String)| {
        let read = text.parse::<Pattern>();
        read.map_err(|error| flaws.push(Flaw::new(format!("/permissions/{at}"), error.to_string()))).ok()
    };
    texts.iter().enumerate().filter_map(read).collect()
}

fn reply<const STATUS: u16>(answer: Answer<Arc<TenantRole>>) -> Reply<RoleView, STATUS> {
    let version = match &answer {
        Answer::Fresh(done) => Some(done.version),
        Answer::Replayed(_) => None,
    };
    let reply = Reply::of(answer, |done| RoleView::of(&done));
    match version {
        Some(version) => reply.tagged(version),
        None => reply,
    }
}

fn render(role: &TenantRole) -> String {
    serde_json::to_string(&RoleView::of(role)).unwrap_or_default()
}

/// Every role with its place in the list: whether it is the tenant's own, and its name.
fn all(built_in: &BuiltIn, books: &PolicyBooks) -> Vec<((bool, String), RoleView)> {
    let mut all: Vec<((bool, String), RoleView)> = built_in
        .rights()
        .map(|(role, rights)| ((false, role.name().to_owned()), RoleView::built_in(role, rights)))
        .chain(books.roles().map(|role| ((true, role.name.clone()), RoleView::of(role))))
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn position(text: &str) -> Option<(bool, String)> {
    let (own, name) = text.split_once(' ')?;
    Some((own.parse().ok()?, name.to_owned()))
}

/// A role to be made.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "CreateRole", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct CreateRoleBody {
    /// 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter; unique in the tenant in whatever case.
    name: String,
    /// At most 1024 bytes.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    /// 1 to 200, each `object:action`; `*` on either side stands for every name.
    permissions: Vec<String>,
}

/// What a role is to be from now on.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "RoleTerms", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RoleTermsBody {
    /// At most 1024 bytes; empty when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    /// 1 to 200, each `object:action`; `*` on either side stands for every name.
    permissions: Vec<String>,
}

impl CreateRoleBody {
    /// The name, and the rest.
    pub(super) fn parts(self) -> (String, RoleTermsBody) {
        let CreateRoleBody { name, description, permissions } = self;
        (name, RoleTermsBody { description, permissions })
    }
}

impl RoleTermsBody {
    /// What a role is to be.
    ///
    /// # Errors
    /// 422 with a pointer for each permission that is none.
    pub(super) fn terms(self) -> Result<RoleTerms, Problem> {
        let mut flaws = Vec::new();
        let permissions = patterns(&self.permissions, &mut flaws);
        if !flaws.is_empty() {
            return Err(Problem::flaws(flaws));
        }
        Ok(RoleTerms { description: self.description.unwrap_or_default(), permissions })
    }
}

/// A role.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Role", rename_all = "camelCase", example)]
pub(super) struct RoleView {
    name: String,
    description: String,
    permissions: Vec<String>,
    /// Every tenant has it, and nobody changes it.
    built_in: bool,
    /// Other names of it that role assignments and policies take.
    aliases: Vec<String>,
    /// Counts the changes; 0 of a built-in role.
    version: i64,
    /// Absent from a built-in role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    created_at: Option<String>,
    /// Absent from a built-in role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    updated_at: Option<String>,
}

impl RoleView {
    fn of(role: &TenantRole) -> RoleView {
        RoleView {
            name: role.name.clone(),
            description: role.terms.description.clone(),
            permissions: role.terms.permissions.iter().map(ToString::to_string).collect(),
            built_in: false,
            aliases: Vec::new(),
            version: role.version,
            created_at: Some(instant(role.created_at)),
            updated_at: Some(instant(role.updated_at)),
        }
    }

    fn built_in(role: Role, rights: &[(String, String)]) -> RoleView {
        let described = Role::OF_A_TENANT.iter().find(|(known, _)| *known == role).map_or("", |(_, text)| text);
        let aliases = Role::ALIASES.iter().filter(|(_, known)| *known == role);
        let mut permissions: Vec<String> = rights.iter().map(|(object, action)| format!("{object}:{action}")).collect();
        permissions.sort_unstable();
        RoleView {
            name: role.name().to_owned(),
            description: described.to_owned(),
            permissions,
            built_in: true,
            aliases: aliases.map(|(alias, _)| (*alias).to_owned()).collect(),
            version: 0,
            created_at: None,
            updated_at: None,
        }
    }
}

/// A page of roles.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct RolePage {
    items: Vec<RoleView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for CreateRoleBody {
    fn example() -> CreateRoleBody {
        CreateRoleBody {
            name: "billing".into(),
            description: Some("Looks at figures and models".into()),
            permissions: vec!["usage:read".into(), "quotas:*".into(), "model:use".into()],
        }
    }
}

impl Example for RoleView {
    fn example() -> RoleView {
        let CreateRoleBody { name, description, permissions } = CreateRoleBody::example();
        RoleView {
            name,
            description: description.unwrap_or_default(),
            permissions,
            built_in: false,
            aliases: Vec::new(),
            version: 1,
            created_at: Some("2026-11-20T15:37:12.345Z".into()),
            updated_at: Some("2026-11-20T15:37:12.345Z".into()),
        }
    }
}
