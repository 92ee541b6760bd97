//! Policies.

use std::sync::Arc;

use super::{books, record};
use crate::domain::books::Posting;
use crate::domain::ids::PolicyId;
use crate::domain::policy::books::Judge;
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::statement::{Policy, PolicyTerms};
use crate::domain::policy::{Expected, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::policy as rows;
use crate::tenant::task::{Change, Halt};

/// A new policy. Whether there is such an API key is known at the door.
#[derive(Debug)]
pub struct CreatePolicy {
    pub id: PolicyId,
    pub terms: PolicyTerms,
    pub built_in: Arc<BuiltIn>,
}

impl Change for CreatePolicy {
    type Done = Arc<Policy>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Policy>, Halt<Refusal>> {
        let (now, people) = (posting.now(), posting.books.organization.clone());
        let judge = Judge { built_in: &self.built_in, people: &people };
        let policy = books(posting).create_policy(self.id, self.terms.clone(), &judge, now).map_err(Halt::Refused)?;
        rows::put_policy(database, &policy, posting.books.policies.version).await?;
        record(posting, request, "policy.created", format!("policy:{}", policy.id), &policy);
        Ok(policy)
    }
}

/// A policy with other terms. One that stays as it was is left alone.
#[derive(Debug)]
pub struct ReplacePolicy {
    pub id: PolicyId,
    pub terms: PolicyTerms,
    pub expected: Expected,
    pub built_in: Arc<BuiltIn>,
}

impl Change for ReplacePolicy {
    type Done = Arc<Policy>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Policy>, Halt<Refusal>> {
        let (now, before) = (posting.now(), posting.books.policies.version);
        let people = posting.books.organization.clone();
        let judge = Judge { built_in: &self.built_in, people: &people };
        let replaced = books(posting).replace_policy(self.id, self.terms.clone(), &self.expected, &judge, now);
        let policy = replaced.map_err(Halt::Refused)?;
        if posting.books.policies.version != before {
            rows::put_policy(database, &policy, posting.books.policies.version).await?;
            record(posting, request, "policy.replaced", format!("policy:{}", policy.id), &policy);
        }
        Ok(policy)
    }
}

/// A policy less.
#[derive(Debug)]
pub struct DeletePolicy {
    pub id: PolicyId,
    pub expected: Expected,
}

impl Change for DeletePolicy {
    type Done = Arc<Policy>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Policy>, Halt<Refusal>> {
        let policy = books(posting).remove_policy(self.id, &self.expected).map_err(Halt::Refused)?;
        rows::delete_policy(database, self.id, posting.books.policies.version).await?;
        record(posting, request, "policy.deleted", format!("policy:{}", policy.id), &policy);
        Ok(policy)
    }
}
