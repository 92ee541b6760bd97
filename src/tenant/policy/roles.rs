//! Roles of the tenant's own.

use std::sync::Arc;

use super::{books, record};
use crate::domain::books::Posting;
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::role::{RoleTerms, TenantRole};
use crate::domain::policy::{Expected, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::{StoreError, policy as rows};
use crate::tenant::task::Change;

/// A new role.
#[derive(Debug)]
pub struct CreateRole {
    pub name: String,
    pub terms: RoleTerms,
    pub built_in: Arc<BuiltIn>,
    pub render: fn(&TenantRole) -> String,
}

impl Change for CreateRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Arc<TenantRole>, Refusal>, StoreError> {
        let now = posting.now();
        let role = match books(posting).create_role(&self.name, self.terms.clone(), &self.built_in, now) {
            Ok(role) => role,
            Err(refusal) => return Ok(Err(refusal)),
        };
        rows::put_role(database, &role, posting.books.policies.version).await?;
        record(posting, request, "role.created", format!("role:{}", role.name), &role);
        Ok(Ok(role))
    }

    fn render(&self, done: &Arc<TenantRole>) -> String {
        (self.render)(done)
    }
}

/// A role with other terms. One that stays as it was is left alone.
#[derive(Debug)]
pub struct ReplaceRole {
    pub name: String,
    pub terms: RoleTerms,
    pub expected: Expected,
    pub built_in: Arc<BuiltIn>,
    pub render: fn(&TenantRole) -> String,
}

impl Change for ReplaceRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Arc<TenantRole>, Refusal>, StoreError> {
        let (now, before) = (posting.now(), posting.books.policies.version);
        let terms = self.terms.clone();
        let role = match books(posting).replace_role(&self.name, terms, &self.expected, &self.built_in, now) {
            Ok(role) => role,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if posting.books.policies.version != before {
            rows::put_role(database, &role, posting.books.policies.version).await?;
            record(posting, request, "role.replaced", format!("role:{}", role.name), &role);
        }
        Ok(Ok(role))
    }

    fn render(&self, done: &Arc<TenantRole>) -> String {
        (self.render)(done)
    }
}

/// A role less.
#[derive(Debug)]
pub struct DeleteRole {
    pub name: String,
    pub expected: Expected,
    pub render: fn(&TenantRole) -> String,
}

impl Change for DeleteRole {
    type Done = Arc<TenantRole>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Result<Arc<TenantRole>, Refusal>, StoreError> {
        let people = posting.books.organization.clone();
        let role = match books(posting).remove_role(&self.name, &self.expected, &people) {
            Ok(role) => role,
            Err(refusal) => return Ok(Err(refusal)),
        };
        rows::delete_role(database, &role.name, posting.books.policies.version).await?;
        record(posting, request, "role.deleted", format!("role:{}", role.name), &role);
        Ok(Ok(role))
    }

    fn render(&self, done: &Arc<TenantRole>) -> String {
        (self.render)(done)
    }
}
