//! `POST /v1/access/explain` and `POST /v1/policies/dry-run`: why something is decided as it is, and what a change would
//! decide otherwise. Neither changes anything.

use poem_openapi::param::Query;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::authorize::Ask;
use super::body::{Strict, present, present_objects};
use super::document::Tag;
use super::people::home;
use super::policies::{PolicyBody, unknown_keys};
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::roles::CreateRoleBody;
use super::view::JsonObject;
use crate::access::authorizer::{Authority, Explained, Inquiry};
use crate::access::engine::{Decided, Reason};
use crate::clock;
use crate::domain::ids::PolicyId;
use crate::domain::organization::{Expected, Flaw};
use crate::domain::policy::Refusal;
use crate::domain::policy::books::{Judge, PolicyBooks};
use crate::domain::policy::condition::Truth;
use crate::domain::policy::question::Said;
use crate::domain::policy::set::{Outcome, RuleName};
use crate::domain::policy::statement::Effect;
use crate::json::{object, objects};

/// Questions of one dry run.
const QUESTIONS_MAX: usize = 100;
/// Bytes of a type, a name or an id in a question.
pub(super) const NAME_BYTES_MAX: usize = 256;

pub(super) struct Explain;

#[OpenApi(tag = "Tag::Access")]
impl Explain {
    /// Why is this decided as it is?
    ///
    /// The decision, with what each rule made of it that is about the subject and speaks of the action: whether it applies,
    /// and if not, what is missing. A question is what `POST /access/v1/evaluation` takes; a user is known by id, user name
    /// or external id.
    #[oai(path = "/v1/access/explain", method = "post", operation_id = "explainAccess")]
    async fn explain(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<QuestionBody>,
    ) -> Result<Reply<ExplanationView>, Problem> {
        let mut flaws = Vec::new();
        let inquiry = body.0.inquiry("", &mut flaws);
        let inquiry = inquiry.filter(|_| flaws.is_empty()).ok_or_else(|| Problem::flaws(flaws))?;
        let authorizer = ask.api.gate.authorizer();
        let authority = authorizer.of(home(&ask).await?.tenant()).await?;
        Ok(Reply::new(ExplanationView::of(&authorizer.explain(&authority, &inquiry).await)))
    }

    /// What would other roles and policies decide?
    ///
    /// Answers each question by what is in force and by what is proposed. Roles and policies are written as they would be:
    /// a role over the one that has its name, a policy over the one that has its id, or as a new one.
    #[oai(path = "/v1/policies/dry-run", method = "post", operation_id = "dryRunPolicies")]
    async fn dry_run(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<DryRunBody>,
    ) -> Result<Reply<DryRunView>, Problem> {
        let authorizer = ask.api.gate.authorizer();
        let authority = authorizer.of(home(&ask).await?.tenant()).await?;
        let DryRunBody { questions, proposal } = body.0;
        let mut flaws = Vec::new();
        if questions.is_empty() || questions.len() > QUESTIONS_MAX {
            flaws.push(Flaw::new("/questions", format!("must be 1 to {QUESTIONS_MAX}")));
        }
        let read = |(at, question): (usize, QuestionBody)| question.inquiry(&format!("/questions/{at}"), &mut flaws);
        let inquiries: Vec<Option<Inquiry>> = questions.into_iter().take(QUESTIONS_MAX).enumerate().map(read).collect();
        if !flaws.is_empty() {
            return Err(Problem::flaws(flaws));
        }
        let books = proposal.applied_to(&ask, &authority)?;
        let proposed = authorizer.proposed(&authority, books).map_err(|error| {
            tracing::error!(%error, "proposed policies cannot be tried");
            Problem::new(Code::Internal)
        })?;
        let mut results = Vec::new();
        for inquiry in inquiries.into_iter().flatten() {
            // Each may cost a while; others have their turn between them.
            tokio::task::yield_now().await;
            let before = authorizer.explain(&authority, &inquiry).await.decided;
            let after = authorizer.explain(&proposed, &inquiry).await.decided;
            let changed = before.allowed != after.allowed;
            results.push(DryRunResult { before: DecisionView::of(&before), after: DecisionView::of(&after), changed });
        }
        let changed = i64::try_from(results.iter().filter(|result| result.changed).count()).unwrap_or(i64::MAX);
        Ok(Reply::new(DryRunView { policy_version: authority.policies.version, changed, results }))
    }
}

/// Something that is asked about.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "AccessEntity", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EntityBody {
    /// Of a subject `user`, `apiKey`, or whatever the asker calls its own; of a resource the object of a permission.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    /// Required of a subject; of a resource absent for a list, or something new.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    id: Option<String>,
    /// Attributes that we do not know ourselves.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    properties: Option<JsonObject>,
}

/// What is done.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "AccessAction", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ActionBody {
    name: String,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    properties: Option<JsonObject>,
}

/// May this subject do this to that?
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "AccessQuestion", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct QuestionBody {
    #[serde(deserialize_with = "object")]
    subject: EntityBody,
    #[serde(deserialize_with = "object")]
    action: ActionBody,
    #[serde(deserialize_with = "object")]
    resource: EntityBody,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    context: Option<JsonObject>,
}

/// Is this a name that can be asked about?
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

impl QuestionBody {
    /// The question; flaws have pointers below `pointer`.
    fn inquiry(self, pointer: &str, flaws: &mut Vec<Flaw>) -> Option<Inquiry> {
        let QuestionBody { subject, action, resource, context } = self;
        let mut check = |field: &str, holds: bool| {
            if !holds {
                let message = format!("must be 1 to {NAME_BYTES_MAX} bytes without control characters");
                flaws.push(Flaw::new(format!("{pointer}/{field}"), message));
            }
            holds
        };
        let names = [
            check("subject/type", is_name(&subject.kind)),
            check("subject/id", subject.id.as_deref().is_some_and(is_name)),
            check("action/name", is_name(&action.name)),
            check("resource/type", is_name(&resource.kind)),
            check("resource/id", resource.id.as_deref().is_none_or(is_name)),
        ];
        let properties = |given: Option<JsonObject>| given.unwrap_or_default().0;
        let said = Said {
            subject: properties(subject.properties),
            action: properties(action.properties),
            resource: properties(resource.properties),
            context: properties(context),
        };
        names.iter().all(|holds| *holds).then_some(())?;
        Some(Inquiry {
            subject_type: subject.kind,
            subject_id: subject.id?,
            action: action.name,
            resource_type: resource.kind,
            resource_id: resource.id,
            said,
        })
    }
}

/// A policy as it would be.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ProposedPolicy", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ProposedPolicy {
    /// Of the policy that it would replace; a new one when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    id: Option<String>,
    #[serde(deserialize_with = "object")]
    policy: PolicyBody,
}

/// What would change.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "PolicyProposal", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Proposal {
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    roles: Option<Vec<CreateRoleBody>>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    policies: Option<Vec<ProposedPolicy>>,
    /// Ids of policies that would be deleted.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    deleted_policies: Option<Vec<String>>,
    /// Names of roles that would be deleted.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    deleted_roles: Option<Vec<String>>,
}

impl Proposal {
    /// The books as they would be.
    fn applied_to(self, ask: &Ask, authority: &Authority) -> Result<PolicyBooks, Problem> {
        let built_in = ask.api.gate.authorizer().built_in();
        let (now, people) = (ask.api.clock.now(), &authority.people);
        let judge = Judge { built_in, people };
        let mut books = authority.policies.as_ref().clone();
        for (at, role) in self.roles.into_iter().flatten().enumerate() {
            let pointer = format!("/proposal/roles/{at}");
            let (name, terms) = role.parts();
            let terms = terms.terms().map_err(|problem| below(problem, &pointer))?;
            let done = match books.role(&name) {
                Some(_) => books.replace_role(&name, terms, &Expected::Any, built_in, now),
                None => books.create_role(&name, terms, built_in, now),
            };
            done.map_err(|refusal| refused(refusal, &pointer))?;
        }
        for (at, ProposedPolicy { id, policy }) in self.policies.into_iter().flatten().enumerate() {
            let pointer = format!("/proposal/policies/{at}");
            let within = format!("{pointer}/policy");
            let mut flaws = Vec::new();
            let terms = policy.terms(&within, &mut flaws);
            flaws.extend(terms.iter().flat_map(|terms| unknown_keys(ask, authority.tenant, &within, terms)));
            let terms = terms.filter(|_| flaws.is_empty()).ok_or_else(|| Problem::flaws(flaws))?;
            let done = match id {
                Some(id) => {
                    let id = id.parse().map_err(|_| Problem::field(format!("{pointer}/id"), UNKNOWN_POLICY))?;
                    books.replace_policy(id, terms, &Expected::Any, &judge, now)
                }
                None => books.create_policy(PolicyId(clock::new_id()), terms, &judge, now),
            };
            done.map_err(|refusal| match refusal {
                Refusal::UnknownPolicy => Problem::field(format!("{pointer}/id"), UNKNOWN_POLICY),
                other => refused(other, &within),
            })?;
        }
        for (at, id) in self.deleted_policies.into_iter().flatten().enumerate() {
            let unknown = || Problem::field(format!("/proposal/deletedPolicies/{at}"), UNKNOWN_POLICY);
            let id = id.parse().map_err(|_| unknown())?;
            books.remove_policy(id, &Expected::Any).map_err(|_| unknown())?;
        }
        for (at, name) in self.deleted_roles.into_iter().flatten().enumerate() {
            let done = books.remove_role(&name, &Expected::Any, people);
            done.map_err(|refusal| match refusal {
                Refusal::UnknownRole => {
                    Problem::field(format!("/proposal/deletedRoles/{at}"), "the tenant has no role of this name")
                }
                other => other.into(),
            })?;
        }
        Ok(books)
    }
}

const UNKNOWN_POLICY: &str = "the tenant has no policy with this id";

/// What is wrong with a part of a document, by pointers into the whole.
fn refused(refusal: Refusal, pointer: &str) -> Problem {
    match refusal {
        Refusal::Flawed(flaws) => {
            let within = |flaw: Flaw| Flaw { pointer: format!("{pointer}{}", flaw.pointer), ..flaw };
            Problem::flaws(flaws.into_iter().map(within).collect())
        }
        Refusal::Taken { pointer: field } => Refusal::Taken { pointer: format!("{pointer}{field}") }.into(),
        other => other.into(),
    }
}

/// The same for a problem that tells of fields already.
fn below(mut problem: Problem, pointer: &str) -> Problem {
    for field in problem.details.get_mut("fields").and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        if let Some(own) = field["pointer"].as_str().map(|own| format!("{pointer}{own}")) {
            field["pointer"] = json!(own);
        }
    }
    problem
}

/// What is to be tried.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "PolicyDryRun", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct DryRunBody {
    #[serde(deserialize_with = "object")]
    proposal: Proposal,
    /// 1 to 100.
    #[serde(deserialize_with = "objects")]
    questions: Vec<QuestionBody>,
}

/// What decided.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "AccessRule", rename_all = "camelCase")]
pub(super) struct RuleView {
    /// `role` or `policy`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    /// The role's name, or the policy's id.
    id: String,
}

impl RuleView {
    fn of(name: &RuleName) -> RuleView {
        RuleView { kind: name.kind().to_owned(), id: name.id() }
    }
}

/// A decision.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "AccessDecision", rename_all = "camelCase")]
pub(super) struct DecisionView {
    decision: bool,
    /// `allowed`, `deniedByPolicy`, `nothingApplies` or `failed`.
    reason: String,
    /// The rule that decided; absent when none applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    by: Option<RuleView>,
}

impl DecisionView {
    fn of(decided: &Decided) -> DecisionView {
        let by = match &decided.reason {
            Reason::AllowedBy(name) | Reason::DeniedBy(name) => Some(RuleView::of(name)),
            Reason::NothingApplies | Reason::Failed => None,
        };
        DecisionView { decision: decided.allowed, reason: decided.reason.name().to_owned(), by }
    }
}

/// One question, decided twice.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct DryRunResult {
    /// By what is in force.
    before: DecisionView,
    /// By what is proposed.
    after: DecisionView,
    changed: bool,
}

/// What would be decided.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "PolicyDryRunResult", rename_all = "camelCase")]
pub(super) struct DryRunView {
    /// Of what is in force.
    policy_version: i64,
    /// How many questions would be decided otherwise.
    changed: i64,
    /// In the order of the questions.
    results: Vec<DryRunResult>,
}

/// What one rule made of a question.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "AccessRuleOutcome", rename_all = "camelCase")]
pub(super) struct OutcomeView {
    /// `role` or `policy`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    /// The role's name, or the policy's id.
    id: String,
    name: String,
    /// `allow` or `deny`.
    effect: String,
    /// `applies`, `otherResource`, `conditionFalse`, `attributeAbsent`, `relationUnavailable`, `notGivable` (no tenant may
    /// give this) or `keptForAdministrator` (nobody takes this from the built-in administrator).
    outcome: String,
    /// JSON pointer to the part of the condition that does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    condition: Option<String>,
}

impl OutcomeView {
    fn of(name: &RuleName, title: &str, effect: Effect, outcome: &Outcome) -> OutcomeView {
        let (word, condition) = match outcome {
            Outcome::Applies => ("applies", None),
            Outcome::AboveCeiling => ("notGivable", None),
            Outcome::Kept => ("keptForAdministrator", None),
            Outcome::OtherResource => ("otherResource", None),
            Outcome::ConditionFails { pointer, truth } => {
                let word = match truth {
                    Truth::Absent => "attributeAbsent",
                    Truth::Unavailable => "relationUnavailable",
                    Truth::True | Truth::False => "conditionFalse",
                };
                (word, Some(format!("/condition{pointer}")))
            }
        };
        OutcomeView {
            kind: name.kind().to_owned(),
            id: name.id(),
            name: title.to_owned(),
            effect: effect.name().to_owned(),
            outcome: word.to_owned(),
            condition,
        }
    }
}

/// Why something is decided as it is.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "AccessExplanation", rename_all = "camelCase")]
pub(super) struct ExplanationView {
    decision: bool,
    /// `allowed`, `deniedByPolicy`, `nothingApplies` or `failed`.
    reason: String,
    /// The rule that decided; absent when none applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    by: Option<RuleView>,
    /// For people.
    text: String,
    policy_version: i64,
    /// The tenant's books know the subject, and it is active; or it is of a kind that they do not keep.
    subject_known: bool,
    /// Roles of the subject, through groups as well.
    roles: Vec<String>,
    /// Ids of the groups it is in, directly or through others.
    groups: Vec<String>,
    /// Each rule that is about the subject and speaks of the action.
    rules: Vec<OutcomeView>,
}

impl ExplanationView {
    fn of(explained: &Explained) -> ExplanationView {
        let DecisionView { decision, reason, by } = DecisionView::of(&explained.decided);
        let title = |name: &RuleName| {
            let rule = explained.rules.iter().find(|(known, ..)| known == name);
            rule.map_or_else(|| name.id(), |(_, title, ..)| title.clone())
        };
        let text = match &explained.decided.reason {
            Reason::AllowedBy(name) => format!("Allowed by the {} \"{}\".", name.kind(), title(name)),
            Reason::DeniedBy(name) => format!("Denied by the {} \"{}\".", name.kind(), title(name)),
            Reason::NothingApplies if !explained.is_known => {
                "Denied: the tenant has no such subject, or it is not active.".to_owned()
            }
            Reason::NothingApplies if explained.rules.is_empty() => {
                "Denied: no role of the subject and no policy about it speaks of this action.".to_owned()
            }
            Reason::NothingApplies => "Denied: no rule that speaks of this action applies; see rules.".to_owned(),
            Reason::Failed => "Denied: the decision could not be made.".to_owned(),
        };
        let rules = explained.rules.iter();
        ExplanationView {
            decision,
            reason,
            by,
            text,
            policy_version: explained.decided.version,
            subject_known: explained.is_known,
            roles: explained.roles.clone(),
            groups: explained.groups.clone(),
            rules: rules.map(|(name, title, effect, outcome)| OutcomeView::of(name, title, *effect, outcome)).collect(),
        }
    }
}

impl Example for QuestionBody {
    fn example() -> QuestionBody {
        let entity = |kind: &str, id: &str| EntityBody { kind: kind.into(), id: Some(id.into()), properties: None };
        QuestionBody {
            subject: entity("user", "jane@example.com"),
            action: ActionBody { name: "use".into(), properties: None },
            resource: entity("model", "gpt-4.1"),
            context: json!({ "ip": "10.1.2.3" }).as_object().cloned().map(JsonObject),
        }
    }
}

impl Example for DryRunBody {
    fn example() -> DryRunBody {
        let policy = ProposedPolicy { id: None, policy: PolicyBody::example() };
        let proposal = Proposal { policies: Some(vec![policy]), ..Proposal::default() };
        DryRunBody { proposal, questions: vec![QuestionBody::example()] }
    }
}
