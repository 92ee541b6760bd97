//! API keys as they are written down: what a caller says of one, and what it is shown. No view has the key itself but
//! the one that is shown once.

use poem_openapi::Object;
use poem_openapi::types::Example;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::body::{nullable, present, present_objects};
use super::problem::{FieldProblem, Problem};
use super::view::instant;
use crate::domain::api_key::{
    ApiKey, NAME_CHARACTERS_MAX, OVERLAP_MICROS, OVERLAP_MICROS_MAX, Patch, SCOPES_MAX, Terms,
};
use crate::domain::permission::Pattern;
use crate::domain::rate_limit::{Class, NoPolicy, Policy};
use crate::domain::tenant::Role;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// Every problem of every field at once.
#[derive(Default)]
struct Problems(Vec<FieldProblem>);

impl Problems {
    fn wrong(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldProblem { pointer: pointer.into(), message: message.into() });
    }

    fn name(&mut self, name: &str) {
        let clean = name.trim() == name && !name.chars().any(char::is_control);
        if !clean || !(1..=NAME_CHARACTERS_MAX).contains(&name.chars().count()) {
            let message = "must be 1 to 100 characters, none of them a control character, without space at the ends";
            self.wrong("/name", message);
        }
    }

    fn scopes(&mut self, given: &[String]) -> Vec<Pattern> {
        let mut scopes = Vec::new();
        if given.len() > SCOPES_MAX {
            self.wrong("/scopes", format!("must be at most {SCOPES_MAX}"));
        }
        for (index, text) in given.iter().take(SCOPES_MAX).enumerate() {
            match text.parse::<Pattern>() {
                Ok(scope) if scopes.contains(&scope) => self.wrong(format!("/scopes/{index}"), "is there twice"),
                Ok(scope) => scopes.push(scope),
                Err(error) => self.wrong(format!("/scopes/{index}"), error.to_string()),
            }
        }
        scopes
    }

    fn expires_at(&mut self, text: &str, now: Timestamp) -> Option<Timestamp> {
        match text.parse::<Timestamp>() {
            Ok(at) if at > now && at <= Timestamp::MAX => Some(at),
            Ok(_) => {
                self.wrong("/expiresAt", "must be in the future");
                None
            }
            Err(error) => {
                self.wrong("/expiresAt", error.to_string());
                None
            }
        }
    }

    fn limits(&mut self, given: &[KeyLimit]) -> Vec<(Class, Policy)> {
        let mut limits: Vec<(Class, Policy)> = Vec::new();
        for (index, limit) in given.iter().take(Class::OF_A_PRINCIPAL.len() + 1).enumerate() {
            let at = |field: &str| format!("/rateLimits/{index}/{field}");
            let class = Class::from_name(&limit.class).filter(|class| Class::OF_A_PRINCIPAL.contains(class));
            match (class, limit.policy()) {
                (None, _) => self.wrong(at("class"), "must be read, write, admin, ingest or lookup"),
                (Some(class), _) if limits.iter().any(|(known, _)| *known == class) => {
                    self.wrong(at("class"), "is there twice");
                }
                (Some(class), Ok(policy)) => limits.push((class, policy)),
                (_, Err(error)) => {
                    let field = match error {
                        NoPolicy::Quota => "quota",
                        NoPolicy::Window => "windowSeconds",
                        NoPolicy::Burst => "burst",
                    };
                    self.wrong(at(field), error.to_string().replace("window_seconds", "windowSeconds"));
                }
            }
        }
        limits
    }

    fn none(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::fields(self.0)) }
    }
}

/// A key to be.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct CreateApiKey {
    /// What it is for: 1 to 100 characters.
    name: String,
    /// `admin`, `developer`, `analyst`, `reporter` or `reader`.
    role: String,
    /// Only what one of these covers, of what the role allows: `object:action`, `*` on either side for every name. At most
    /// 50; everything when absent or empty.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    scopes: Option<Vec<String>>,
    /// It opens nothing from this instant on; until it is revoked when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    expires_at: Option<String>,
    /// Limits of this key besides those of the tenant's tier, one at most of each class. They only narrow.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    rate_limits: Option<Vec<KeyLimit>>,
}

impl CreateApiKey {
    pub(super) fn checked(self, now: Timestamp) -> Result<(String, Role, Terms), Problem> {
        let mut problems = Problems::default();
        problems.name(&self.name);
        let role = Role::from_name(&self.role).filter(|role| *role != Role::PlatformAdmin);
        if role.is_none() {
            problems.wrong("/role", "must be admin, developer, analyst, reporter or reader");
        }
        let terms = Terms {
            scopes: problems.scopes(&self.scopes.unwrap_or_default()),
            expires_at: self.expires_at.and_then(|text| problems.expires_at(&text, now)),
            limits: problems.limits(&self.rate_limits.unwrap_or_default()),
        };
        problems.none()?;
        Ok((self.name, role.unwrap_or(Role::Reader), terms))
    }
}

/// What to change of a key: absent fields stay.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct ApiKeyPatch {
    /// What it is for: 1 to 100 characters.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    name: Option<String>,
    /// As of a new key; an empty list: everything that the role allows.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    scopes: Option<Vec<String>>,
    /// In the future. `null`: until it is revoked.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    expires_at: Option<Option<String>>,
    /// As of a new key; an empty list: those of the tier alone.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    rate_limits: Option<Vec<KeyLimit>>,
}

impl ApiKeyPatch {
    pub(super) fn checked(self, now: Timestamp) -> Result<Patch, Problem> {
        let mut problems = Problems::default();
        if let Some(name) = &self.name {
            problems.name(name);
        }
        let patch = Patch {
            name: self.name,
            scopes: self.scopes.map(|scopes| problems.scopes(&scopes)),
            expires_at: self.expires_at.map(|at| at.and_then(|text| problems.expires_at(&text, now))),
            limits: self.rate_limits.map(|limits| problems.limits(&limits)),
        };
        problems.none()?;
        Ok(patch)
    }
}

/// How a secret is exchanged.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct RotateApiKey {
    /// How long the old secret goes on opening the key: 0 to 604800 (seven days); 86400 when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    overlap_seconds: Option<i64>,
}

impl RotateApiKey {
    /// The overlap in microseconds.
    pub(super) fn checked(&self) -> Result<i64, Problem> {
        let most = OVERLAP_MICROS_MAX / MICROS_PER_SECOND;
        match self.overlap_seconds {
            None => Ok(OVERLAP_MICROS),
            Some(seconds) if (0..=most).contains(&seconds) => Ok(seconds * MICROS_PER_SECOND),
            Some(_) => Err(Problem::field("/overlapSeconds", format!("must be from 0 to {most}"))),
        }
    }
}

/// A token bucket of one key's.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ApiKeyRateLimit", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KeyLimit {
    /// `read`, `write`, `admin`, `ingest` or `lookup`.
    class: String,
    /// Requests in a window.
    quota: u32,
    /// 60 when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    window_seconds: Option<u32>,
    /// Requests at once; the quota when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    burst: Option<u32>,
}

impl KeyLimit {
    fn policy(&self) -> Result<Policy, NoPolicy> {
        Policy::new(self.quota, self.window_seconds.unwrap_or(60), self.burst.unwrap_or(self.quota))
    }

    fn of((class, policy): &(Class, Policy)) -> KeyLimit {
        KeyLimit {
            class: class.name().into(),
            quota: policy.quota(),
            window_seconds: Some(policy.window_seconds()),
            burst: Some(policy.burst()),
        }
    }
}

/// An API key, without the key.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ApiKey", rename_all = "camelCase", example)]
pub(super) struct ApiKeyView {
    /// The public part, which names the key in logs and rules.
    id: String,
    name: String,
    role: String,
    /// Only what one of these covers; empty: everything that the role allows.
    scopes: Vec<String>,
    /// Limits besides those of the tenant's tier.
    rate_limits: Vec<KeyLimit>,
    /// Absent for a key that holds until it is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    expires_at: Option<String>,
    /// Until when the secret before this one opens the key, or did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    previous_secret_until: Option<String>,
    /// The hour in which it was last used; absent when it never was. A killed process may forget the last hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_used_at: Option<String>,
    /// Its ETag, between quotation marks.
    version: i64,
    created_at: String,
    /// Absent while the key is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    revoked_at: Option<String>,
}

/// A page of API keys.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct ApiKeyPage {
    pub(super) items: Vec<ApiKeyView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub(super) next_cursor: Option<String>,
}

/// A new API key, or one with a new secret.
#[derive(Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct ApiKeyCreated {
    api_key: ApiKeyView,
    /// Shown once: absent when the answer is a repeated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    key: Option<String>,
}

impl ApiKeyCreated {
    pub(super) fn of(key: &ApiKey, last_used: Option<Timestamp>, secret: Option<&SecretString>) -> ApiKeyCreated {
        let key_shown = secret.map(|secret| secret.expose_secret().to_owned());
        ApiKeyCreated { api_key: ApiKeyView::of(key, last_used), key: key_shown }
    }
}

impl ApiKeyView {
    pub(super) fn of(key: &ApiKey, last_used: Option<Timestamp>) -> ApiKeyView {
        ApiKeyView {
            id: key.id.clone(),
            name: key.name.clone(),
            role: key.role.name().to_owned(),
            scopes: key.terms.scopes.iter().map(ToString::to_string).collect(),
            rate_limits: key.terms.limits.iter().map(KeyLimit::of).collect(),
            expires_at: key.terms.expires_at.map(instant),
            previous_secret_until: key.previous.map(|previous| instant(previous.until)),
            last_used_at: last_used.map(instant),
            version: key.version,
            created_at: instant(key.created_at),
            revoked_at: key.revoked_at.map(instant),
        }
    }
}

impl Example for CreateApiKey {
    fn example() -> CreateApiKey {
        CreateApiKey {
            name: "kong production".into(),
            role: "reporter".into(),
            scopes: Some(vec!["usage:report".into(), "decision:read".into()]),
            expires_at: Some("2099-12-31T00:00:00.000Z".into()),
            rate_limits: Some(vec![limit_example()]),
        }
    }
}

impl Example for ApiKeyPatch {
    fn example() -> ApiKeyPatch {
        ApiKeyPatch { scopes: Some(vec!["usage:report".into()]), ..ApiKeyPatch::default() }
    }
}

impl Example for RotateApiKey {
    fn example() -> RotateApiKey {
        RotateApiKey { overlap_seconds: Some(3_600) }
    }
}

impl Example for ApiKeyView {
    fn example() -> ApiKeyView {
        ApiKeyView {
            id: "7Q2MXK4T".into(),
            name: "kong production".into(),
            role: "reporter".into(),
            scopes: vec!["usage:report".into(), "decision:read".into()],
            rate_limits: vec![limit_example()],
            expires_at: Some("2099-12-31T00:00:00.000Z".into()),
            previous_secret_until: None,
            last_used_at: Some("2026-11-27T09:00:00.000Z".into()),
            version: 2,
            created_at: "2026-11-20T15:37:12.345Z".into(),
            revoked_at: None,
        }
    }
}

impl Example for ApiKeyCreated {
    fn example() -> ApiKeyCreated {
        ApiKeyCreated { api_key: Example::example(), key: Some("shown here once".into()) }
    }
}

fn limit_example() -> KeyLimit {
    KeyLimit { class: "ingest".into(), quota: 600, window_seconds: Some(60), burst: Some(100) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    fn pointers<T>(checked: Result<T, Problem>) -> Vec<String> {
        let Err(problem) = checked else { return Vec::new() };
        let fields = problem.details["fields"].as_array().unwrap();
        fields.iter().map(|field| field["pointer"].as_str().unwrap().to_owned()).collect()
    }

    fn create(body: Value) -> Result<(String, Role, Terms), Problem> {
        serde_json::from_value::<CreateApiKey>(body).unwrap().checked(NOW)
    }

    #[test]
    fn no_tenant_s_key_has_the_platform_s_role() {
        for (name, role, problems) in
            [("kong", "reporter", 0), ("kong", "platformAdmin", 1), ("kong", "", 1), (" ", "root", 2), ("", "admin", 1)]
        {
            let found = pointers(create(json!({"name": name, "role": role}))).len();
            assert_eq!(found, problems, "{name:?} {role:?}");
        }
    }

    #[test]
    fn terms_are_read_and_every_flaw_has_its_pointer() {
        let limit = json!({"class": "read", "quota": 10});
        let body = json!({"name": "k", "role": "reader", "scopes": ["usage:*"], "expiresAt": "2099-01-01T00:00:00Z",
            "rateLimits": [limit]});
        let (_, _, terms) = create(body).unwrap();
        assert!(terms.leave("usage", "read") && !terms.leave("quotas", "read") && terms.expires_at > Some(NOW));
        assert_eq!(terms.limit(Class::Read), Some(Policy::new(10, 60, 10).unwrap()));
        let body = json!({"name": "k", "role": "reader", "scopes": ["usage:*", "usage", "usage:*"],
            "expiresAt": "2001-01-01T00:00:00Z",
            "rateLimits": [{"class": "tenantTraffic", "quota": 1}, {"class": "read", "quota": 0}, limit, limit,
                {"class": "write", "quota": 1, "burst": 2}, {"class": "lookup", "quota": 1, "windowSeconds": 0}]});
        let expected = [
            "/scopes/1",
            "/scopes/2",
            "/expiresAt",
            "/rateLimits/0/class",
            "/rateLimits/1/quota",
            "/rateLimits/3/class",
            "/rateLimits/4/burst",
            "/rateLimits/5/windowSeconds",
        ];
        assert_eq!(pointers(create(body)), expected);
        let many: Vec<String> = (0..=SCOPES_MAX).map(|number| format!("o{number}:read")).collect();
        assert_eq!(pointers(create(json!({"name": "k", "role": "reader", "scopes": many}))), ["/scopes"]);
        assert_eq!(pointers(create(json!({"name": "k", "role": "reader", "expiresAt": "soon"}))), ["/expiresAt"]);
    }

    #[test]
    fn a_patch_tells_absent_from_taken_away() {
        let patch = |body| serde_json::from_value::<ApiKeyPatch>(body).unwrap().checked(NOW);
        assert_eq!(patch(json!({})).unwrap(), Patch::default());
        let taken = patch(json!({"expiresAt": null, "scopes": [], "rateLimits": []})).unwrap();
        let expected =
            Patch { expires_at: Some(None), scopes: Some(Vec::new()), limits: Some(Vec::new()), ..Patch::default() };
        assert_eq!(taken, expected);
        assert_eq!(pointers(patch(json!({"name": "", "expiresAt": "2001-01-01T00:00:00Z"}))), ["/name", "/expiresAt"]);
    }

    #[test]
    fn an_overlap_is_bounded() {
        let overlap = |seconds| RotateApiKey { overlap_seconds: seconds }.checked();
        assert_eq!(overlap(None), Ok(OVERLAP_MICROS));
        assert_eq!(overlap(Some(0)), Ok(0));
        assert_eq!(overlap(Some(604_800)), Ok(OVERLAP_MICROS_MAX));
        for seconds in [-1, 604_801, i64::MAX] {
            assert_eq!(pointers(overlap(Some(seconds))), ["/overlapSeconds"], "{seconds}");
        }
    }
}
