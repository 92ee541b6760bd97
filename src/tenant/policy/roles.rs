//! Roles of the tenant's own.

use std::sync::Arc;

use super::{books, record};
use crate::domain::books::Posting;
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::role::{RoleTerms, TenantRole};
use crate::domain::policy::{Expected, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::policy as rows;
use crate::tenant::task::{Change, Halt};

/// A new role.
#[derive(Debug)]
pub struct CreateRole {
    pub name: String,
    pub terms: RoleTerms,
    pub built_in: Arc<BuiltIn>,
}

impl Change for CreateRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<TenantRole>, Halt<Refusal>> {
        let now = posting.now();
        let role =
            books(posting).create_role(&self.name, self.terms.clone(), &self.built_in, now).map_err(Halt::Refused)?;
        rows::put_role(database, &role, posting.books.policies.version).await?;
        record(posting, request, "role.created", format!("role:{}", role.name), &role);
        Ok(role)
    }
}

/// A role with other terms. One that stays as it was is left alone.
#[derive(Debug)]
pub struct ReplaceRole {
    pub name: String,
    pub terms: RoleTerms,
    pub expected: Expected,
    pub built_in: Arc<BuiltIn>,
}

impl Change for ReplaceRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<TenantRole>, Halt<Refusal>> {
        let (now, before) = (posting.now(), posting.books.policies.version);
        let terms = self.terms.clone();
        let role = books(posting)
            .replace_role(&self.name, terms, &self.expected, &self.built_in, now)
            .map_err(Halt::Refused)?;
        if posting.books.policies.version != before {
            rows::put_role(database, &role, posting.books.policies.version).await?;
            record(posting, request, "role.replaced", format!("role:{}", role.name), &role);
        }
        Ok(role)
    }
}

/// A role less.
#[derive(Debug)]
pub struct DeleteRole {
    pub name: String,
    pub expected: Expected,
}

impl Change for DeleteRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<TenantRole>, Halt<Refusal>> {
        let people = posting.books.organization.clone();
        let role = books(posting).remove_role(&self.name, &self.expected, &people).map_err(Halt::Refused)?;
        rows::delete_role(database, &role.name, posting.books.policies.version).await?;
        record(posting, request, "role.deleted", format!("role:{}", role.name), &role);
        Ok(role)
    }
}
