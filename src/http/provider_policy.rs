//! `/v1/provider-policy`: where a tenant may go with its providers.

use std::sync::Arc;

use poem_openapi::param::{Header, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::people::home;
use super::precondition;
use super::problem::Problem;
use super::providers::{ask_for_sync, vault};
use super::reply::Reply;
use super::view::instant;
use crate::domain::ids::ProviderId;
use crate::domain::organization::Flaw;
use crate::domain::provider::policy::{Cause, Failover, HostRule, Policy};
use crate::domain::request::Answer;
use crate::domain::time::Timestamp;
use crate::tenant::provider::ReplacePolicy;

pub(super) struct ProviderPolicies;

#[OpenApi(tag = "Tag::Providers")]
impl ProviderPolicies {
    /// Read the policy
    ///
    /// Its ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/provider-policy", method = "get", operation_id = "getProviderPolicy")]
    async fn get(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<PolicyView>, Problem> {
        vault(&ask)?;
        let books = home(&ask).await?.providers()?;
        Ok(Reply::new(PolicyView::of(&books.policy)).tagged(books.policy.version))
    }

    /// Replace the policy
    ///
    /// Holds for what is asked from then on: a provider whose host is not allowed any more is lent and tried no more.
    #[oai(path = "/v1/provider-policy", method = "put", operation_id = "replaceProviderPolicy")]
    async fn replace(
        &self,
        ask: Ask,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<PolicyInput>,
    ) -> Result<Reply<PolicyView>, Problem> {
        vault(&ask)?;
        let expected = precondition::required(&ask)?;
        let home = home(&ask).await?;
        let change = ReplacePolicy { policy: body.0.policy()?, expected };
        let answer: Answer<Arc<Policy>> = home.change(change, ask.change(), |done| render(done)).await??;
        let version = match &answer {
            Answer::Fresh(policy) => Some(policy.version),
            Answer::Replayed(_) => None,
        };
        let reply = Reply::of(answer, |policy| PolicyView::of(&policy));
        let Some(version) = version else { return Ok(reply) };
        ask_for_sync(&ask, home.tenant(), &format!("policy:{version}")).await;
        Ok(reply.tagged(version))
    }
}

fn render(policy: &Policy) -> String {
    serde_json::to_string(&PolicyView::of(policy)).unwrap_or_default()
}

/// Who steps in for whom; kept for gateways.
#[derive(Debug, Default, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ProviderFailover", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FailoverView {
    /// Ids of providers, in this order.
    providers: Vec<String>,
    /// What makes the next one step in: `timeout`, `unreachable`, `rateLimited`, `serverError`.
    on: Vec<String>,
    /// Tries of one request, over all providers: at most 10; 0 without fail-over.
    attempts_max: u32,
}

/// A policy to be.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ProviderPolicyInput", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct PolicyInput {
    /// Hosts that keys may be sent to besides those of each provider's kind: `llm.example.com`, `*.example.com`, with `:port`
    /// unless it is 443. At most 100.
    egress_hosts: Vec<String>,
    /// Models that may be used, `claude-*` for all that begin so; every model when empty. At most 100. A gateway's decision
    /// about another one is `deny` with the reason `MODEL_NOT_ALLOWED`, from the next question on.
    models: Vec<String>,
    failover: FailoverView,
}

impl PolicyInput {
    /// Every problem of every field at once, but for those that need the tenant's providers.
    fn policy(self) -> Result<Policy, Problem> {
        let mut flaws = Vec::new();
        let mut egress = Vec::new();
        for (index, text) in self.egress_hosts.iter().enumerate() {
            match text.parse::<HostRule>() {
                Ok(rule) => egress.push(rule),
                Err(error) => flaws.push(Flaw::new(format!("/egressHosts/{index}"), error.to_string())),
            }
        }
        let mut providers = Vec::new();
        for (index, text) in self.failover.providers.iter().enumerate() {
            match text.parse::<ProviderId>() {
                Ok(id) => providers.push(id),
                Err(_) => {
                    flaws.push(Flaw::new(format!("/failover/providers/{index}"), "the tenant has no such provider"));
                }
            }
        }
        let mut on = Vec::new();
        for (index, text) in self.failover.on.iter().enumerate() {
            match Cause::from_name(text) {
                Some(cause) if !on.contains(&cause) => on.push(cause),
                Some(_) => flaws.push(Flaw::new(format!("/failover/on/{index}"), "is there twice")),
                None => {
                    let names = Cause::ALL.map(Cause::name).join(", ");
                    flaws.push(Flaw::new(format!("/failover/on/{index}"), format!("must be one of {names}")));
                }
            }
        }
        if !flaws.is_empty() {
            return Err(Problem::flaws(flaws));
        }
        let failover = Failover { providers, on, attempts_max: self.failover.attempts_max };
        Ok(Policy { egress, models: self.models.into(), failover, ..Policy::default() })
    }
}

/// Where a tenant may go with its providers.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ProviderPolicy", rename_all = "camelCase", example)]
pub(super) struct PolicyView {
    egress_hosts: Vec<String>,
    models: Vec<String>,
    failover: FailoverView,
    /// Its ETag, between quotation marks; 0 while nobody has written one.
    version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    updated_at: Option<String>,
}

impl PolicyView {
    fn of(policy: &Policy) -> PolicyView {
        let Failover { providers, on, attempts_max } = &policy.failover;
        PolicyView {
            egress_hosts: policy.egress.iter().map(HostRule::to_string).collect(),
            models: policy.models.to_vec(),
            failover: FailoverView {
                providers: providers.iter().map(ProviderId::to_string).collect(),
                on: on.iter().map(|cause| cause.name().to_owned()).collect(),
                attempts_max: *attempts_max,
            },
            version: policy.version,
            updated_at: (policy.updated_at > Timestamp(0)).then(|| instant(policy.updated_at)),
        }
    }
}

impl Example for PolicyInput {
    fn example() -> PolicyInput {
        PolicyInput {
            egress_hosts: vec!["llm.example.com".into()],
            models: vec!["gpt-4o".into(), "claude-*".into()],
            failover: FailoverView {
                providers: vec!["0199a8b2-5c00-7abc-8def-0123456789ab".into()],
                on: vec!["timeout".into(), "rateLimited".into()],
                attempts_max: 2,
            },
        }
    }
}

impl Example for PolicyView {
    fn example() -> PolicyView {
        let PolicyInput { egress_hosts, models, failover } = PolicyInput::example();
        let updated_at = Some("2026-11-20T15:37:12.345Z".into());
        PolicyView { egress_hosts, models, failover, version: 1, updated_at }
    }
}
