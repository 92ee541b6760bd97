//! `/v1/policies`: who a tenant allows or denies what, under which condition.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::people::{home, id, page};
use super::precondition;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::roles::patterns;
use super::view::{JsonObject, instant, page_limit};
use crate::clock;
use crate::domain::ids::{PolicyId, TenantId};
use crate::domain::organization::Flaw;
use crate::domain::policy::condition::Condition;
use crate::domain::policy::statement::{Effect, Policy, PolicyTerms, ResourcePattern, Subject};
use crate::domain::request::Answer;
use crate::json::objects;
use crate::tenant::policy::{CreatePolicy, DeletePolicy, ReplacePolicy};

pub(super) struct Policies;

#[OpenApi(tag = "Tag::Access")]
impl Policies {
    /// Lay down a policy
    ///
    /// It allows or denies subjects what its permissions say, on resources, under a condition. What one policy denies no
    /// other allows, and no role either; nobody takes `policies` and `roles` from the built-in administrator. An allowing
    /// policy gives what a role of the tenant's own could give. It holds from the next request on. Whoever may not
    /// `permissions:grant` allows only what it may do itself, and takes away only denials of that.
    #[oai(path = "/v1/policies", method = "post", operation_id = "createPolicy")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<PolicyBody>,
    ) -> Result<Reply<PolicyView, 201>, Problem> {
        let handle = home(&ask).await?;
        let terms = checked(&ask, handle.tenant(), body.0)?;
        let built_in = ask.api.gate.authorizer().built_in().clone();
        let change = CreatePolicy { id: PolicyId(clock::new_id()), terms, built_in };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Page through the policies, oldest first
    #[oai(path = "/v1/policies", method = "get", operation_id = "listPolicies")]
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
    ) -> Result<Reply<PolicyPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after: Option<PolicyId> = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let (_, books) = home(&ask).await?.policies()?;
        let later = books.policies().filter(|policy| after.is_none_or(|after| policy.id > after));
        let (found, more) = page(later, limit);
        let next = found.last().filter(|_| more).map(|policy| ask.seal(&policy.id.to_string()));
        let items = found.into_iter().map(|policy| PolicyView::of(policy)).collect();
        Ok(Reply::new(PolicyPage { items, policy_version: books.version, next_cursor: next }))
    }

    /// Read a policy
    ///
    /// The answer's ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/policies/:id", method = "get", operation_id = "getPolicy")]
    async fn get(
        &self,
        ask: Ask,
        /// The policy's id.
        #[oai(name = "id")]
        policy: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<PolicyView>, Problem> {
        let (_, books) = home(&ask).await?.policies()?;
        let policy = books.policy(id(&policy, Code::PolicyNotFound)?);
        let policy = policy.ok_or_else(|| Problem::new(Code::PolicyNotFound))?;
        Ok(Reply::new(PolicyView::of(policy)).tagged(policy.version))
    }

    /// Replace a policy
    #[oai(path = "/v1/policies/:id", method = "put", operation_id = "replacePolicy")]
    async fn replace(
        &self,
        ask: Ask,
        /// The policy's id.
        #[oai(name = "id")]
        policy: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<PolicyBody>,
    ) -> Result<Reply<PolicyView>, Problem> {
        let expected = precondition::required(&ask)?;
        let handle = home(&ask).await?;
        let terms = checked(&ask, handle.tenant(), body.0)?;
        let built_in = ask.api.gate.authorizer().built_in().clone();
        let id = id(&policy, Code::PolicyNotFound)?;
        let change = ReplacePolicy { id, terms, expected, built_in };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Delete a policy
    ///
    /// Answers the policy as it was.
    #[oai(path = "/v1/policies/:id", method = "delete", operation_id = "deletePolicy")]
    async fn delete(
        &self,
        ask: Ask,
        /// The policy's id.
        #[oai(name = "id")]
        policy: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<PolicyView>, Problem> {
        let expected = precondition::required(&ask)?;
        let change = DeletePolicy { id: id(&policy, Code::PolicyNotFound)?, expected };
        let answer = ask.gives(change, |done| render(done)).await??;
        Ok(Reply::of(answer, |done| PolicyView::of(&done)))
    }
}

fn reply<const STATUS: u16>(answer: Answer<Arc<Policy>>) -> Reply<PolicyView, STATUS> {
    let version = match &answer {
        Answer::Fresh(done) => Some(done.version),
        Answer::Replayed(_) => None,
    };
    let reply = Reply::of(answer, |done| PolicyView::of(&done));
    match version {
        Some(version) => reply.tagged(version),
        None => reply,
    }
}

fn render(policy: &Policy) -> String {
    serde_json::to_string(&PolicyView::of(policy)).unwrap_or_default()
}

/// The terms that a body asks for, with API keys that the tenant has.
fn checked(ask: &Ask, tenant: TenantId, body: PolicyBody) -> Result<PolicyTerms, Problem> {
    let mut flaws = Vec::new();
    let terms = body.terms("", &mut flaws);
    if let Some(terms) = &terms {
        flaws.extend(unknown_keys(ask, tenant, "", terms));
    }
    match terms {
        Some(terms) if flaws.is_empty() => Ok(terms),
        _ => Err(Problem::flaws(flaws)),
    }
}

/// Subjects that name a key which is not this tenant's.
pub(super) fn unknown_keys(ask: &Ask, tenant: TenantId, pointer: &str, terms: &PolicyTerms) -> Vec<Flaw> {
    let is_known = |id: &str| ask.api.directory.api_key(id).is_some_and(|key| key.tenant == tenant);
    let unknown = terms.subjects.iter().enumerate().filter(|(_, subject)| match subject {
        Subject::ApiKey(id) => !is_known(id),
        _ => false,
    });
    let flaw = |at: usize| Flaw::new(format!("{pointer}/subjects/{at}/id"), "the tenant has no apiKey with this id");
    unknown.map(|(at, _)| flaw(at)).collect()
}

/// Whom a policy is about.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "PolicySubject", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SubjectView {
    /// `everybody`, `role`, `user`, `group` or `apiKey`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    /// A role's name or an id; absent for everybody.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    id: Option<String>,
}

/// Everything about a policy that may be set.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "PolicyTerms", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct PolicyBody {
    /// Unique in the tenant, in whatever case: 1 to 256 bytes.
    name: String,
    /// At most 1024 bytes.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    /// `allow` or `deny`.
    effect: String,
    /// 1 to 100.
    #[serde(deserialize_with = "objects")]
    subjects: Vec<SubjectView>,
    /// 1 to 200, each `object:action`; `*` on either side stands for every name. AuthZEN's resource type is the object.
    permissions: Vec<String>,
    /// At most 100, each `type/id`; `*` stands for every type, for every id, or at its end for every ending. Every resource
    /// when absent. What has no id (a list, something new) is covered by `type/*` alone.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    resources: Option<Vec<String>>,
    /// Exactly one of: `{"all": […]}`, `{"any": […]}`, `{"not": …}`, a comparison `{"attribute", "operator", "values"}` or
    /// a relation `{"relation", "object"?}` that OpenFGA keeps; at most 5 deep, at most 50 parts. Attributes are
    /// `subject.…`, `resource.…`, `action.…` and `context.…`; operators `equals`, `notEquals`, `in`, `notIn`, `contains`,
    /// `startsWith`, `endsWith`, `greaterThan`, `greaterOrEqual`, `lessThan`, `lessOrEqual`, `before`, `after`,
    /// `inNetwork`, `notInNetwork`, `exists`, `notExists`. Of an absent attribute only `notExists` holds. A relation that
    /// cannot be asked for allows nothing, and denies.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    condition: Option<JsonObject>,
    /// `true` when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    enabled: Option<bool>,
}

impl PolicyBody {
    /// The terms it asks for; flaws have pointers below `pointer`.
    pub(super) fn terms(self, pointer: &str, flaws: &mut Vec<Flaw>) -> Option<PolicyTerms> {
        let before = flaws.len();
        let effect = Effect::from_name(&self.effect);
        if effect.is_none() {
            flaws.push(Flaw::new("/effect", "must be allow or deny"));
        }
        let mut subjects = Vec::new();
        for (at, subject) in self.subjects.iter().enumerate() {
            match Subject::from_parts(&subject.kind, subject.id.as_deref()) {
                Ok(subject) => subjects.push(subject),
                Err((field, message)) => flaws.push(Flaw::new(format!("/subjects/{at}/{field}"), message)),
            }
        }
        let permissions = patterns(&self.permissions, flaws);
        let mut resources = Vec::new();
        for (at, text) in self.resources.iter().flatten().enumerate() {
            match text.parse::<ResourcePattern>() {
                Ok(resource) => resources.push(resource),
                Err(error) => flaws.push(Flaw::new(format!("/resources/{at}"), error.to_string())),
            }
        }
        let read = |JsonObject(given): JsonObject| Condition::read(&Value::Object(given), "/condition", flaws);
        let condition = self.condition.map(read);
        for flaw in &mut flaws[before..] {
            flaw.pointer.insert_str(0, pointer);
        }
        if flaws.len() > before {
            return None;
        }
        Some(PolicyTerms {
            name: self.name,
            description: self.description.unwrap_or_default(),
            effect: effect?,
            subjects,
            permissions,
            resources,
            condition: condition.flatten(),
            enabled: self.enabled.unwrap_or(true),
        })
    }
}

/// A policy.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Policy", rename_all = "camelCase", example)]
pub(super) struct PolicyView {
    id: String,
    name: String,
    description: String,
    effect: String,
    subjects: Vec<SubjectView>,
    permissions: Vec<String>,
    resources: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    condition: Option<JsonObject>,
    enabled: bool,
    /// Counts the changes.
    version: i64,
    created_at: String,
    updated_at: String,
}

impl PolicyView {
    fn of(policy: &Policy) -> PolicyView {
        let terms = &policy.terms;
        let subject = |subject: &Subject| SubjectView { kind: subject.kind().to_owned(), id: subject.id() };
        let condition = terms.condition.clone().map(Value::from).and_then(|condition| match condition {
            Value::Object(condition) => Some(JsonObject(condition)),
            _ => None,
        });
        PolicyView {
            id: policy.id.to_string(),
            name: terms.name.clone(),
            description: terms.description.clone(),
            effect: terms.effect.name().to_owned(),
            subjects: terms.subjects.iter().map(subject).collect(),
            permissions: terms.permissions.iter().map(ToString::to_string).collect(),
            resources: terms.resources.iter().map(ToString::to_string).collect(),
            condition,
            enabled: terms.enabled,
            version: policy.version,
            created_at: instant(policy.created_at),
            updated_at: instant(policy.updated_at),
        }
    }
}

/// A page of policies.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct PolicyPage {
    items: Vec<PolicyView>,
    /// Of all roles and policies together: it grows with every change of any of them.
    policy_version: i64,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for PolicyBody {
    fn example() -> PolicyBody {
        let condition = json!({"all": [
            {"attribute": "subject.department", "operator": "equals", "values": ["finance"]},
            {"attribute": "context.ip", "operator": "inNetwork", "values": ["10.0.0.0/8"]},
        ]});
        PolicyBody {
            name: "Finance uses large models from the office".into(),
            description: None,
            effect: "allow".into(),
            subjects: vec![SubjectView { kind: "role".into(), id: Some("developer".into()) }],
            permissions: vec!["model:use".into()],
            resources: Some(vec!["model/gpt-*".into()]),
            condition: condition.as_object().cloned().map(JsonObject),
            enabled: Some(true),
        }
    }
}

impl Example for PolicyView {
    fn example() -> PolicyView {
        let body = PolicyBody::example();
        PolicyView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ae".into(),
            name: body.name,
            description: String::new(),
            effect: body.effect,
            subjects: body.subjects,
            permissions: body.permissions,
            resources: body.resources.unwrap_or_default(),
            condition: body.condition,
            enabled: true,
            version: 1,
            created_at: "2026-11-20T15:37:12.345Z".into(),
            updated_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}
