//! `/v1/flags`: feature flags, the tenant's own or, without a tenant, the platform's.

use std::sync::Arc;

use poem::http::{HeaderValue, header};
use poem::{IntoResponse, Response};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::registry::{MetaResponses, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::authorize::Ask;
use super::body::{Strict, present, present_objects};
use super::document::Tag;
use super::problem::{Code, FieldProblem, Problem};
use super::reply::Reply;
use super::view::{JsonObject, instant, page_limit};
use crate::domain::flag::change::{Expected, NotMade, Refusal};
use crate::domain::flag::condition::Condition;
use crate::domain::flag::draft::{ConditionDraft, Draft, RuleDraft, ShareDraft};
use crate::domain::flag::{Flag, FlagSet, Rule, Serve, Split, is_name};
use crate::domain::request::Answer;
use crate::domain::time::Timestamp;
use crate::json::{object, objects};

pub(super) struct Flags;

#[OpenApi(tag = "Tag::Features")]
impl Flags {
    /// List feature flags
    ///
    /// The tenant's own; without a tenant, for an administrator of the platform, the platform's.
    #[oai(path = "/v1/flags", method = "get", operation_id = "listFlags")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant: Query<Option<String>>,
    ) -> Result<Reply<FlagPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| Some(text.to_owned()))?;
        let flags = own(&ask).await?;
        let rest = flags.iter().filter(|flag| after.as_ref().is_none_or(|after| flag.key > *after));
        let found: Vec<&Arc<Flag>> = rest.take(limit + 1).collect();
        let next_cursor = (found.len() > limit).then(|| ask.seal(&found[limit - 1].key));
        let items = found.into_iter().take(limit).map(|flag| FlagView::of(flag)).collect();
        Ok(Reply::new(FlagPage { items, next_cursor }))
    }

    /// Read a feature flag
    ///
    /// The answer's ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/flags/:key", method = "get", operation_id = "getFlag")]
    async fn get(
        &self,
        ask: Ask,
        /// The flag's key.
        key: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant: Query<Option<String>>,
    ) -> Result<Tagged, Problem> {
        let flags = own(&ask).await?;
        flags.get(&key).map(|flag| Tagged::of(flag)).ok_or_else(|| Problem::new(Code::FlagNotFound))
    }

    /// How often each variant was served
    ///
    /// To this tenant, of a flag of its own or of the platform's, by `GET /v1/features` and by OFREP. Counts arrive within
    /// ten seconds; those of the last ten are lost when the process is killed. Without a tenant there are none.
    #[oai(path = "/v1/flags/:key/exposures", method = "get", operation_id = "getFlagExposures")]
    async fn exposures(
        &self,
        ask: Ask,
        /// The flag's key.
        key: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant: Query<Option<String>>,
    ) -> Result<Reply<ExposureList>, Problem> {
        let platform = ask.api.flags.flags();
        let books = match ask.admitted.tenant {
            Some(_) => Some(ask.handle().await?.flags()?),
            None => None,
        };
        let is_own = books.as_ref().is_some_and(|books| books.flags.get(&key).is_some());
        if !is_own && platform.get(&key).is_none() {
            return Err(Problem::new(Code::FlagNotFound));
        }
        let counted = books.iter().flat_map(|books| books.exposures_of(&key));
        let variants = counted.map(|(variant, exposure)| ExposureView {
            variant: variant.to_owned(),
            count: exposure.count,
            first_at: instant(exposure.first_at),
            last_at: instant(exposure.last_at),
        });
        Ok(Reply::new(ExposureList { key: key.0.clone(), variants: variants.collect() }))
    }

    /// Create or replace a feature flag
    ///
    /// A flag that exists is replaced only with `If-Match`, so that nobody undoes what they have not seen.
    #[oai(path = "/v1/flags/:key", method = "put", operation_id = "putFlag")]
    async fn put(
        &self,
        ask: Ask,
        /// The flag's key: 1 to 128 letters, digits, dots, hyphens or underscores.
        key: Path<String>,
        /// The ETag of the version that is replaced, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant: Query<Option<String>>,
        body: Strict<FlagBody>,
    ) -> Result<Tagged, Problem> {
        let expected = expected(&ask)?;
        let flag = body.0.checked(&key, ask.api.clock.now())?;
        let written = match ask.admitted.tenant {
            Some(_) => {
                let home = ask.handle().await?;
                home.put_flag(flag, expected, ask.api.flags.flags(), ask.change(), render).await??
            }
            None => {
                check_kept_here(&ask)?;
                ask.api.directory.put_flag(flag, expected, ask.change(), render).await?
            }
        };
        Ok(Tagged::answer(written))
    }

    /// Delete a feature flag
    ///
    /// With what was counted of it. Answers what it was.
    #[oai(path = "/v1/flags/:key", method = "delete", operation_id = "deleteFlag")]
    async fn delete(
        &self,
        ask: Ask,
        /// The flag's key.
        key: Path<String>,
        /// The ETag of the version that is deleted, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant: Query<Option<String>>,
    ) -> Result<Tagged, Problem> {
        let (expected, key) = (expected(&ask)?, key.0.clone());
        let deleted = match ask.admitted.tenant {
            Some(_) => ask.handle().await?.delete_flag(key, expected, ask.change(), render).await??,
            None => {
                check_kept_here(&ask)?;
                ask.api.directory.delete_flag(key, expected, ask.change(), render).await?
            }
        };
        Ok(Tagged::answer(deleted))
    }
}

/// The tenant's own flags, or the platform's.
async fn own(ask: &Ask) -> Result<Arc<FlagSet>, Problem> {
    match ask.admitted.tenant {
        Some(_) => Ok(Arc::new(ask.handle().await?.flags()?.flags.clone())),
        None => Ok(ask.api.flags.flags()),
    }
}

fn check_kept_here(ask: &Ask) -> Result<(), Problem> {
    match ask.api.flags.name() {
        "store" => Ok(()),
        source => Err(Problem::new(Code::FlagsKeptElsewhere).with("source", json!(source))),
    }
}

/// What `If-Match` says. An ETag that was never ours matches nothing.
fn expected(ask: &Ask) -> Result<Expected, Problem> {
    let unreadable =
        || Problem::new(Code::InvalidHeader).saying("if-match: must be * or a list of ETags such as \"3\"");
    let mut lines = Vec::new();
    for line in ask.headers.get_all(header::IF_MATCH) {
        lines.push(line.to_str().map_err(|_| unreadable())?);
    }
    match lines.join(",").trim() {
        "" if lines.is_empty() => Some(Expected::Unnamed),
        "*" => Some(Expected::Any),
        tags => tags.split(',').map(|tag| version(tag.trim())).collect::<Option<Vec<i64>>>().map(Expected::OneOf),
    }
    .ok_or_else(unreadable)
}

/// The version in an ETag; none that any flag has, if it is not ours.
fn version(tag: &str) -> Option<i64> {
    let inner = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
    let is_weak = tag.starts_with("W/");
    (!inner.contains('"')).then(|| inner.parse().ok().filter(|_| !is_weak).unwrap_or(-1))
}

fn render(flag: &Flag) -> String {
    serde_json::to_string(&FlagView::of(flag)).unwrap_or_default()
}

/// A flag with its version as the ETag.
pub(super) struct Tagged {
    reply: Reply<FlagView>,
    version: Option<i64>,
}

impl Tagged {
    fn of(flag: &Flag) -> Tagged {
        Tagged { reply: Reply::new(FlagView::of(flag)), version: Some(flag.version) }
    }

    fn answer(answer: Answer<Flag>) -> Tagged {
        match answer {
            Answer::Fresh(written) => Tagged::of(&written),
            Answer::Replayed(json) => {
                Tagged { reply: Reply::of(Answer::<Flag>::Replayed(json), |flag| FlagView::of(&flag)), version: None }
            }
        }
    }
}

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let mut response = self.reply.into_response();
        let tag = self.version.and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok());
        if let Some(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

impl ApiResponse for Tagged {
    fn meta() -> MetaResponses {
        Reply::<FlagView>::meta()
    }

    fn register(registry: &mut Registry) {
        FlagView::register(registry);
    }
}

impl From<NotMade> for Problem {
    fn from(not_made: NotMade) -> Problem {
        match not_made {
            NotMade::Refused(Refusal::Unknown) => Problem::new(Code::FlagNotFound),
            NotMade::Refused(Refusal::TooMany) => Problem::new(Code::TooManyFlags),
            NotMade::Refused(Refusal::Changed) => Problem::new(Code::PreconditionFailed),
            NotMade::Refused(Refusal::VersionRequired) => Problem::new(Code::PreconditionRequired),
            NotMade::Refused(Refusal::NotOverridable) => Problem::new(Code::FlagNotOverridable),
            NotMade::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            NotMade::Unavailable(reason) => {
                tracing::warn!(reason, "a feature flag could not be changed");
                Problem::new(Code::StoreUnavailable)
            }
        }
    }
}

/// A feature flag to be.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "FlagDefinition", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct FlagBody {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    /// `boolean`, `string`, `number` or `object`: what every variant's value is.
    kind: String,
    /// 1 to 20 values by name.
    variants: JsonObject,
    /// Served when no rule holds.
    default_variant: String,
    /// Served while the flag is off.
    off_variant: String,
    enabled: bool,
    /// At most 50; the first that holds decides.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    rules: Option<Vec<RuleView>>,
    /// How everybody is split for whom no rule holds.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    split: Option<Vec<ShareView>>,
    #[serde(default, deserialize_with = "present_object", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    schedule: Option<ScheduleView>,
    /// Another salt deals every subject out anew.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    salt: Option<String>,
    /// Of a flag of the platform's: may a tenant have one of its own with this key? `false` when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    overridable: Option<bool>,
}

fn present_object<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// Whom something is served to: every condition holds. It has either `variant` or `split`.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "FlagRule", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuleView {
    /// At most 20.
    #[serde(deserialize_with = "objects")]
    conditions: Vec<ConditionView>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    variant: Option<String>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    split: Option<Vec<ShareView>>,
}

/// One attribute of the context compared with values.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "FlagCondition", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConditionView {
    /// A name in the context, `targetingKey`, or what we know ourselves: `tenantId`, `tenantTier`.
    attribute: String,
    /// `equals`, `notEquals`, `in`, `notIn`, `contains`, `startsWith`, `endsWith`, `greaterThan`, `greaterOrEqual`,
    /// `lessThan`, `lessOrEqual`, `semverEquals`, `semverGreaterThan`, `semverGreaterOrEqual`, `semverLessThan`,
    /// `semverLessOrEqual`, `exists` or `notExists`. Of an attribute that is absent only `notExists` holds.
    operator: String,
    /// One; of `in` and `notIn` up to 1000; of `exists` and `notExists` none.
    values: Vec<Value>,
}

/// A share of subjects.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "FlagShare", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ShareView {
    variant: String,
    /// Hundredths of a percent. Shares come to 10000 at most; who falls into none gets the default variant.
    basis_points: i64,
}

/// When a flag is on.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "FlagSchedule", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ScheduleView {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    from: Option<String>,
    /// No longer on at this instant.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    until: Option<String>,
}

/// A feature flag.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Flag", rename_all = "camelCase", example)]
pub(super) struct FlagView {
    key: String,
    description: String,
    kind: String,
    variants: JsonObject,
    default_variant: String,
    off_variant: String,
    enabled: bool,
    rules: Vec<RuleView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    split: Option<Vec<ShareView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    schedule: Option<ScheduleView>,
    salt: String,
    overridable: bool,
    /// Counts the changes.
    version: i64,
    updated_at: String,
}

/// A page of feature flags.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct FlagPage {
    items: Vec<FlagView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// How often each variant was served.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "FlagExposures", rename_all = "camelCase")]
pub(super) struct ExposureList {
    key: String,
    variants: Vec<ExposureView>,
}

#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "FlagExposure", rename_all = "camelCase")]
struct ExposureView {
    variant: String,
    count: i64,
    first_at: String,
    last_at: String,
}

impl FlagBody {
    fn checked(self, key: &str, now: Timestamp) -> Result<Flag, Problem> {
        if !is_name(key) {
            return Err(Problem::field("", "the key must be 1 to 128 letters, digits, dots, hyphens or underscores"));
        }
        let schedule = self.schedule.unwrap_or(ScheduleView { from: None, until: None });
        let draft = Draft {
            key: key.to_owned(),
            description: self.description.unwrap_or_default(),
            kind: self.kind,
            variants: self.variants.0.into_iter().collect(),
            default_variant: self.default_variant,
            off_variant: self.off_variant,
            enabled: self.enabled,
            rules: self.rules.unwrap_or_default().into_iter().map(RuleView::draft).collect(),
            split: self.split.map(drafts),
            from: schedule.from,
            until: schedule.until,
            salt: self.salt.unwrap_or_default(),
            overridable: self.overridable.unwrap_or_default(),
        };
        draft.checked(now).map_err(|flaws| {
            let field =
                |flaw: crate::domain::flag::draft::Flaw| FieldProblem { pointer: flaw.pointer, message: flaw.message };
            Problem::fields(flaws.into_iter().map(field).collect())
        })
    }
}

fn drafts(shares: Vec<ShareView>) -> Vec<ShareDraft> {
    shares.into_iter().map(|share| ShareDraft { variant: share.variant, basis_points: share.basis_points }).collect()
}

impl RuleView {
    fn draft(self) -> RuleDraft {
        let condition = |condition: ConditionView| ConditionDraft {
            attribute: condition.attribute,
            operator: condition.operator,
            values: condition.values,
        };
        RuleDraft {
            conditions: self.conditions.into_iter().map(condition).collect(),
            variant: self.variant,
            split: self.split.map(drafts),
        }
    }

    fn of(rule: &Rule) -> RuleView {
        let (variant, split) = match &rule.serve {
            Serve::Variant(variant) => (Some(variant.clone()), None),
            Serve::Split(split) => (None, Some(shares(split))),
        };
        RuleView { conditions: rule.conditions.iter().map(ConditionView::of).collect(), variant, split }
    }
}

impl ConditionView {
    fn of(condition: &Condition) -> ConditionView {
        ConditionView {
            attribute: condition.attribute.clone(),
            operator: condition.operator.name().to_owned(),
            values: condition.values.clone(),
        }
    }
}

fn shares(split: &Split) -> Vec<ShareView> {
    let view = |share: &crate::domain::flag::Share| ShareView {
        variant: share.variant.clone(),
        basis_points: i64::from(share.basis_points),
    };
    split.shares.iter().map(view).collect()
}

impl FlagView {
    pub(super) fn of(flag: &Flag) -> FlagView {
        let scheduled = flag.from.is_some() || flag.until.is_some();
        let schedule = ScheduleView { from: flag.from.map(instant), until: flag.until.map(instant) };
        FlagView {
            key: flag.key.clone(),
            description: flag.description.clone(),
            kind: flag.kind.name().to_owned(),
            variants: JsonObject(flag.variants.clone().into_iter().collect()),
            default_variant: flag.default_variant.clone(),
            off_variant: flag.off_variant.clone(),
            enabled: flag.enabled,
            rules: flag.rules.iter().map(RuleView::of).collect(),
            split: flag.split.as_ref().map(shares),
            schedule: scheduled.then_some(schedule),
            salt: flag.salt.clone(),
            overridable: flag.overridable,
            version: flag.version,
            updated_at: instant(flag.updated_at),
        }
    }
}

impl Example for FlagBody {
    fn example() -> FlagBody {
        let condition = ConditionView {
            attribute: "plan".into(),
            operator: "in".into(),
            values: vec![json!("pro"), json!("team")],
        };
        let on = RuleView { conditions: vec![condition], variant: Some("on".into()), split: None };
        FlagBody {
            description: Some("The new checkout".into()),
            kind: "boolean".into(),
            variants: JsonObject(
                [("off".to_owned(), json!(false)), ("on".to_owned(), json!(true))].into_iter().collect(),
            ),
            default_variant: "off".into(),
            off_variant: "off".into(),
            enabled: true,
            rules: Some(vec![on]),
            split: Some(vec![ShareView { variant: "on".into(), basis_points: 2_500 }]),
            schedule: Some(ScheduleView { from: Some("2026-11-20T00:00:00.000Z".into()), until: None }),
            salt: None,
            overridable: None,
        }
    }
}

impl Example for FlagView {
    fn example() -> FlagView {
        let body = FlagBody::example();
        FlagView {
            key: "new-checkout".into(),
            description: "The new checkout".into(),
            kind: body.kind,
            variants: body.variants,
            default_variant: body.default_variant,
            off_variant: body.off_variant,
            enabled: true,
            rules: body.rules.unwrap_or_default(),
            split: body.split,
            schedule: body.schedule,
            salt: String::new(),
            overridable: false,
            version: 3,
            updated_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}
