//! `/v1/tenants`: onboarding, reading, amending, and the moves of a tenant's life.

use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, present, present_objects};
use super::document::Tag;
use super::problem::{FieldProblem, Problem};
use super::providers::ask_for_sync;
use super::reply::Reply;
use super::view::{JsonObject, instant, page_limit};
use crate::access::api_key;
use crate::directory::handle::{Amendment, NewKey, NewTenant, Onboarded};
use crate::domain::ids::TenantId;
use crate::domain::period;
use crate::domain::tenant::{ExternalId, Lifecycle, Role, Tenant};

/// Longest name, in characters.
const NAME_CHARACTERS_MAX: usize = 200;
const SLUG_BYTES_MAX: usize = 63;
const TIER_BYTES_MAX: usize = 64;
const EXTERNAL_IDS_MAX: usize = 100;
const EXTERNAL_ID_BYTES_MAX: usize = 256;
/// Longest settings document, in bytes of JSON.
const SETTINGS_BYTES_MAX: usize = 16 * 1024;
const DEFAULT_TIER: &str = "standard";
const DEFAULT_TIME_ZONE: &str = "UTC";
const EXTERNAL_KINDS: [(&str, &[&str]); 3] = [
    ("litellm", &["team", "organization", "project", "keyHash", "keyAlias"]),
    ("kong", &["consumer", "customId", "username"]),
    ("openmeter", &["subject"]),
];

pub(super) struct Tenants;

#[OpenApi(tag = "Tag::Tenants")]
impl Tenants {
    /// Onboard a tenant
    ///
    /// Provisions the tenant's own database, its default roles and its first administrator key, which is shown in this
    /// answer and never again. An answer repeated under the same Idempotency-Key does not show it.
    #[oai(path = "/v1/tenants", method = "post", operation_id = "createTenant")]
    async fn create(&self, ask: Ask, body: Strict<CreateTenant>) -> Result<Reply<TenantCreated, 201>, Problem> {
        let new = body.0.checked()?;
        let minted = api_key::mint(ask.api.gate.pepper(), super::api_keys::KEY_ENVIRONMENT);
        let key = NewKey { id: minted.id, hash: minted.hash, name: "first administrator".into(), role: Role::Admin };
        let answer = ask.api.directory.onboard(new, key, ask.change(), render_without_key).await?;
        Ok(Reply::of(answer, |onboarded: Onboarded| TenantCreated::of(&onboarded, Some(&minted.secret))))
    }

    /// List tenants
    #[oai(path = "/v1/tenants", method = "get", operation_id = "listTenants")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<TenantPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse::<TenantId>().ok())?;
        let page = ask.api.directory.tenants(after, limit);
        Ok(Reply::new(TenantPage {
            items: page.items.iter().map(TenantView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&next.to_string())),
        }))
    }

    /// Read a tenant
    #[oai(path = "/v1/tenants/:id", method = "get", operation_id = "getTenant")]
    async fn get(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
    ) -> Result<Reply<TenantView>, Problem> {
        Ok(Reply::new(TenantView::of(&ask.row()?)))
    }

    /// Amend a tenant
    ///
    /// Fields that are absent stay as they are; `externalIds` and `settings` are replaced whole.
    #[oai(path = "/v1/tenants/:id", method = "patch", operation_id = "amendTenant")]
    async fn amend(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        body: Strict<AmendTenant>,
    ) -> Result<Reply<TenantView>, Problem> {
        let amendment = body.0.checked()?;
        let tenant = ask.api.directory.amend(ask.tenant()?, amendment, ask.change()).await?;
        Ok(Reply::new(TenantView::of(&tenant)))
    }

    /// Suspend a tenant
    ///
    /// Its usage is still counted, gateways are told to deny, its credentials are refused.
    #[oai(path = "/v1/tenants/:id/suspend", method = "post", operation_id = "suspendTenant")]
    async fn suspend(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
    ) -> Result<Reply<TenantView>, Problem> {
        shift(&ask, Lifecycle::Suspended).await
    }

    /// Reactivate a suspended tenant
    #[oai(path = "/v1/tenants/:id/reactivate", method = "post", operation_id = "reactivateTenant")]
    async fn reactivate(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
    ) -> Result<Reply<TenantView>, Problem> {
        shift(&ask, Lifecycle::Active).await
    }

    /// Archive a suspended tenant
    ///
    /// Kept for its books and its audit chain; no longer served. Its providers' secrets, and the keys they are encrypted under,
    /// are destroyed. There is no way back.
    #[oai(path = "/v1/tenants/:id/archive", method = "post", operation_id = "archiveTenant")]
    async fn archive(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
    ) -> Result<Reply<TenantView>, Problem> {
        shift(&ask, Lifecycle::Archived).await
    }
}

async fn shift(ask: &Ask, to: Lifecycle) -> Result<Reply<TenantView>, Problem> {
    let tenant = ask.api.directory.shift(ask.tenant()?, to, ask.change()).await?;
    ask_for_sync(ask, tenant.id, &format!("lifecycle:{}", tenant.updated_at.0)).await;
    Ok(Reply::new(TenantView::of(&tenant)))
}

/// What is stored with an idempotency key: everything but the secret.
fn render_without_key(onboarded: &Onboarded) -> String {
    serde_json::to_string(&TenantCreated::of(onboarded, None)).unwrap_or_default()
}

/// A tenant's id in another system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ExternalId", rename_all = "camelCase")]
pub(super) struct ExternalIdView {
    /// `litellm`, `kong` or `openmeter`.
    source: String,
    /// `team`, `organization`, `project`, `keyHash` or `keyAlias` of LiteLLM; `consumer`, `customId` or `username` of Kong's
    /// consumer; `subject` of OpenMeter's events.
    kind: String,
    id: String,
}

/// A tenant to be.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct CreateTenant {
    /// 1 to 200 characters.
    name: String,
    /// Unique: up to 63 lower-case letters, digits and hyphens; derived from the name when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    slug: Option<String>,
    /// `standard` when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tier: Option<String>,
    /// IANA name; `UTC` when absent. The calendar of quotas and reports.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    time_zone: Option<String>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_ids: Option<Vec<ExternalIdView>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    settings: Option<JsonObject>,
}

/// What to change.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct AmendTenant {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    name: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tier: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    time_zone: Option<String>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_ids: Option<Vec<ExternalIdView>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    settings: Option<JsonObject>,
}

/// A tenant.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Tenant", rename_all = "camelCase", example)]
pub(super) struct TenantView {
    id: String,
    name: String,
    slug: String,
    /// `pending`, `active`, `suspended` or `archived`.
    status: String,
    tier: String,
    time_zone: String,
    external_ids: Vec<ExternalIdView>,
    settings: JsonObject,
    created_at: String,
    updated_at: String,
}

/// A page of tenants.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct TenantPage {
    items: Vec<TenantView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// A new tenant and its first key.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct TenantCreated {
    tenant: TenantView,
    admin_api_key: FirstKey,
}

/// The first administrator key.
#[derive(Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct FirstKey {
    id: String,
    /// Shown once: absent when the answer is a repeated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    key: Option<String>,
}

impl std::fmt::Debug for FirstKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FirstKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TenantCreated {
    fn of(onboarded: &Onboarded, secret: Option<&SecretString>) -> TenantCreated {
        let key = secret.map(|secret| secret.expose_secret().to_owned());
        TenantCreated {
            tenant: TenantView::of(&onboarded.tenant),
            admin_api_key: FirstKey { id: onboarded.admin_key.id.clone(), key },
        }
    }
}

impl TenantView {
    fn of(tenant: &Tenant) -> TenantView {
        let external =
            |id: &ExternalId| ExternalIdView { source: id.source.clone(), kind: id.kind.clone(), id: id.id.clone() };
        TenantView {
            id: tenant.id.to_string(),
            name: tenant.name.clone(),
            slug: tenant.slug.clone(),
            status: tenant.lifecycle.name().to_owned(),
            tier: tenant.tier.clone(),
            time_zone: tenant.time_zone.clone(),
            external_ids: tenant.external_ids.iter().map(external).collect(),
            settings: JsonObject::stored(&tenant.settings),
            created_at: instant(tenant.created_at),
            updated_at: instant(tenant.updated_at),
        }
    }
}

impl CreateTenant {
    /// Every problem at once.
    pub(super) fn checked(self) -> Result<NewTenant, Problem> {
        let mut checks = Checks::default();
        checks.name(&self.name);
        if let Some(slug) = &self.slug {
            checks.slug(slug);
        }
        let tier = self.tier.unwrap_or_else(|| DEFAULT_TIER.into());
        checks.tier(&tier);
        let time_zone = self.time_zone.unwrap_or_else(|| DEFAULT_TIME_ZONE.into());
        checks.time_zone(&time_zone);
        let external_ids = checks.external_ids(self.external_ids.unwrap_or_default());
        let settings = checks.settings(&self.settings.unwrap_or_default());
        checks.end()?;
        Ok(NewTenant { name: self.name, slug: self.slug, tier, time_zone, external_ids, settings })
    }
}

impl AmendTenant {
    /// Every problem at once.
    fn checked(self) -> Result<Amendment, Problem> {
        let mut checks = Checks::default();
        if let Some(name) = &self.name {
            checks.name(name);
        }
        if let Some(tier) = &self.tier {
            checks.tier(tier);
        }
        if let Some(time_zone) = &self.time_zone {
            checks.time_zone(time_zone);
        }
        let external_ids = self.external_ids.map(|ids| checks.external_ids(ids));
        let settings = self.settings.map(|settings| checks.settings(&settings));
        checks.end()?;
        let amendment =
            Amendment { name: self.name, tier: self.tier, time_zone: self.time_zone, external_ids, settings };
        if amendment == Amendment::default() {
            Err(Problem::field("", "names nothing to change"))
        } else {
            Ok(amendment)
        }
    }
}

/// Gathers what is wrong with the fields of a tenant.
#[derive(Default)]
struct Checks(Vec<FieldProblem>);

impl Checks {
    fn check(&mut self, holds: bool, pointer: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.0.push(FieldProblem { pointer: pointer.into(), message: message.into() });
        }
    }

    fn name(&mut self, name: &str) {
        let length = name.chars().count();
        let clean = name.trim() == name && !name.chars().any(char::is_control);
        let message = "must be 1 to 200 characters, none of them a control character, without space at the ends";
        self.check((1..=NAME_CHARACTERS_MAX).contains(&length) && clean, "/name", message);
    }

    fn slug(&mut self, slug: &str) {
        let plain = slug.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let framed = !slug.starts_with('-') && !slug.ends_with('-');
        let fits = (1..=SLUG_BYTES_MAX).contains(&slug.len());
        let message = "must be 1 to 63 lower-case letters, digits and inner hyphens";
        self.check(plain && framed && fits, "/slug", message);
    }

    fn tier(&mut self, tier: &str) {
        let plain = tier.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let message = "must be 1 to 64 letters, digits, - or _";
        self.check(plain && (1..=TIER_BYTES_MAX).contains(&tier.len()), "/tier", message);
    }

    fn time_zone(&mut self, name: &str) {
        self.check(period::time_zone(name).is_some(), "/timeZone", "not an IANA time zone, such as Europe/Berlin");
    }

    fn external_ids(&mut self, ids: Vec<ExternalIdView>) -> Vec<ExternalId> {
        self.check(ids.len() <= EXTERNAL_IDS_MAX, "/externalIds", "must be at most 100");
        for (at, id) in ids.iter().enumerate() {
            let pointer = |field: &str| format!("/externalIds/{at}{field}");
            let kinds = EXTERNAL_KINDS.iter().find(|(source, _)| *source == id.source).map(|(_, kinds)| *kinds);
            self.check(kinds.is_some(), pointer("/source"), "must be litellm, kong or openmeter");
            let message = format!("must be {}", kinds.unwrap_or_default().join(" or "));
            self.check(kinds.is_none_or(|kinds| kinds.contains(&id.kind.as_str())), pointer("/kind"), &message);
            let fits = (1..=EXTERNAL_ID_BYTES_MAX).contains(&id.id.len());
            self.check(fits, pointer("/id"), "must be 1 to 256 bytes");
            self.check(!ids[..at].contains(id), pointer(""), "is there twice");
        }
        ids.into_iter().map(|id| ExternalId { source: id.source, kind: id.kind, id: id.id }).collect()
    }

    fn settings(&mut self, settings: &JsonObject) -> String {
        let text = serde_json::to_string(settings).unwrap_or_default();
        self.check(text.len() <= SETTINGS_BYTES_MAX, "/settings", "must be at most 16 KiB of JSON");
        text
    }

    fn end(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::fields(self.0)) }
    }
}

fn example_external_ids() -> Vec<ExternalIdView> {
    vec![ExternalIdView { source: "litellm".into(), kind: "team".into(), id: "team-acme".into() }]
}

impl poem_openapi::types::Example for CreateTenant {
    fn example() -> CreateTenant {
        CreateTenant {
            name: "Acme GmbH".into(),
            slug: Some("acme".into()),
            tier: Some("standard".into()),
            time_zone: Some("Europe/Berlin".into()),
            external_ids: Some(example_external_ids()),
            settings: None,
        }
    }
}

impl poem_openapi::types::Example for AmendTenant {
    fn example() -> AmendTenant {
        AmendTenant {
            tier: Some("enterprise".into()),
            time_zone: Some("Europe/Zurich".into()),
            ..AmendTenant::default()
        }
    }
}

impl poem_openapi::types::Example for TenantView {
    fn example() -> TenantView {
        TenantView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            name: "Acme GmbH".into(),
            slug: "acme".into(),
            status: "active".into(),
            tier: "standard".into(),
            time_zone: "Europe/Berlin".into(),
            external_ids: example_external_ids(),
            settings: JsonObject::default(),
            created_at: "2026-11-20T15:37:12.345Z".into(),
            updated_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}

impl poem_openapi::types::Example for TenantCreated {
    fn example() -> TenantCreated {
        let key = FirstKey { id: "7Q2MXK4T".into(), key: Some("shown here once".into()) };
        TenantCreated { tenant: poem_openapi::types::Example::example(), admin_api_key: key }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pointers(problem: &Problem) -> Vec<String> {
        let fields = problem.details["fields"].as_array().unwrap();
        fields.iter().map(|field| field["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_wrong_field_of_a_new_tenant_is_named_at_once() {
        let body: CreateTenant = serde_json::from_value(json!({
            "name": " padded", "slug": "-Acme", "tier": "", "timeZone": "Mars/Olympus",
            "externalIds": [
                {"source": "litellm", "kind": "team", "id": "a"},
                {"source": "litellm", "kind": "team", "id": "a"},
                {"source": "carrier", "kind": "crew", "id": ""},
                {"source": "kong", "kind": "crew", "id": "b"},
            ],
            "settings": {"x": "y".repeat(SETTINGS_BYTES_MAX)},
        }))
        .unwrap();
        let expected = [
            "/name",
            "/slug",
            "/tier",
            "/timeZone",
            "/externalIds/1",
            "/externalIds/2/source",
            "/externalIds/2/id",
            "/externalIds/3/kind",
            "/settings",
        ];
        assert_eq!(pointers(&body.checked().unwrap_err()), expected);
    }

    #[test]
    fn what_is_absent_has_its_default_and_what_is_amended_is_named() {
        let body: CreateTenant = serde_json::from_value(json!({"name": "Acme"})).unwrap();
        let new = body.checked().unwrap();
        assert_eq!((new.tier.as_str(), new.time_zone.as_str(), new.settings.as_str()), ("standard", "UTC", "{}"));
        let body: AmendTenant = serde_json::from_value(json!({"timeZone": "UTC"})).unwrap();
        let expected = Amendment { time_zone: Some("UTC".into()), ..Amendment::default() };
        assert_eq!(body.checked().unwrap(), expected);
        assert!(AmendTenant::default().checked().is_err());
    }

    #[test]
    fn the_stored_answer_never_has_the_key() {
        let mut created = <TenantCreated as poem_openapi::types::Example>::example();
        created.admin_api_key.key = None;
        let stored = serde_json::to_value(&created).unwrap();
        assert_eq!(stored["adminApiKey"], json!({"id": "7Q2MXK4T"}));
    }
}
