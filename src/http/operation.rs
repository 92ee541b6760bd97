//! The table of operations: every address of this door, who may reach it, and how it can end.
//!
//! The table is the router, the policy's left-hand side and the source of the document's error responses. An address
//! without a row does not exist; a row without a rule in the policy is denied.

use poem::http::Method;

use super::problem::{Code, Form};
use crate::domain::rate_limit::Class;

/// Whose tenant an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nobody's: no credentials are asked for.
    Open,
    /// The platform's: needs a platform administrator.
    Platform,
    /// The caller's own: needs credentials, and nothing more.
    Caller,
    /// The first parameter of the path names the tenant.
    TenantInPath,
    /// The credential names the tenant; a platform administrator may choose one.
    TenantOfCredential,
}

/// What body an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    None,
    Json,
    /// An RFC 7396 merge patch.
    Patch,
    Events,
    LiteLlm,
    KongLog,
    /// A question, read as the standard that describes it has it: the context of feature flags.
    Evaluation,
    /// The same of AuthZEN, which knows 400 alone for whatever is wrong with one.
    Authzen,
    /// A form, as OpenID providers post it.
    Form,
    /// Its errors are told in OpenMeter's form, around ours.
    OpenMeter,
    /// A resource, or a patch of one.
    Scim,
}

/// One row.
#[derive(Debug)]
pub struct Operation {
    pub id: &'static str,
    pub method: Method,
    /// With `{name}` for a parameter, as the document writes it.
    pub path: &'static str,
    pub scope: Scope,
    /// What the policy calls the thing, and what is done to it.
    pub object: &'static str,
    pub action: &'static str,
    pub body: BodyKind,
    /// Query parameters; any other is refused.
    pub query: &'static [&'static str],
    /// How it may end besides what its scope and body imply.
    pub codes: &'static [Code],
}

/// Where everything is SCIM's.
const SCIM: &str = "/scim/v2/";

/// How an error is written at an address where there is nothing.
pub(super) fn form_beside(path: &str) -> Form {
    if path.starts_with(SCIM) { Form::Scim } else { Form::Envelope }
}

/// Parameters of a path, in order.
pub(super) type Segments<'a> = [Option<&'a str>; 2];

/// An address that is not there.
#[derive(Debug, PartialEq, Eq)]
pub enum Missed {
    NotFound,
    /// It is there with these methods, as the `Allow` header lists them.
    Method {
        allow: String,
    },
}

/// The row for a request. HEAD is answered as GET.
///
/// # Errors
/// [`Missed`].
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Result<(&'static Operation, Segments<'a>), Missed> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let mut allow: Vec<&str> = Vec::new();
    for operation in OPERATIONS {
        let Some(segments) = matches(operation.path, path) else { continue };
        if operation.method == *method {
            return Ok((operation, segments));
        }
        allow.push(operation.method.as_str());
        if operation.method == Method::GET {
            allow.push("HEAD");
        }
    }
    if allow.is_empty() { Err(Missed::NotFound) } else { Err(Missed::Method { allow: allow.join(", ") }) }
}

fn matches<'a>(pattern: &str, path: &'a str) -> Option<Segments<'a>> {
    let mut segments: Segments<'a> = [None; 2];
    let mut found = 0;
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(segments),
            (Some(want), Some(have)) if want.starts_with('{') => {
                if have.is_empty() {
                    return None;
                }
                *segments.get_mut(found)? = Some(have);
                found += 1;
            }
            (Some(want), Some(have)) if want == have => {}
            _ => return None,
        }
    }
}

impl Operation {
    /// What its requests are limited as, by principal. `None` for what is open, and for senders that lose what is refused:
    /// LiteLLM's callback and Kong's log.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match (self.scope, self.body, self.object) {
            (Scope::Open, ..) | (_, BodyKind::LiteLlm | BodyKind::KongLog, _) => None,
            (_, BodyKind::Events | BodyKind::OpenMeter, _) => Some(Class::Ingest),
            (.., "access" | "decision" | "features") => Some(Class::Lookup),
            _ if self.method == Method::GET => Some(Class::Read),
            (.., "tenants" | "apiKeys") => Some(Class::Admin),
            _ => Some(Class::Write),
        }
    }

    /// How its errors are written.
    pub(super) fn problem_form(&self) -> Form {
        match self.body {
            BodyKind::OpenMeter => Form::Rfc9457,
            _ if self.path.starts_with(SCIM) => Form::Scim,
            _ => Form::Envelope,
        }
    }

    /// Every code this operation may end with, ascending by status.
    #[must_use]
    pub fn all_codes(&self) -> Vec<Code> {
        let mut codes: Vec<Code> = vec![Code::InvalidParameter, Code::Internal, Code::Timeout];
        if self.scope != Scope::Open {
            codes.extend([
                Code::InvalidHeader,
                Code::NotAcceptable,
                Code::MalformedCredentials,
                Code::AuthenticationRequired,
                Code::InvalidCredentials,
                Code::TooManyFailures,
                Code::Forbidden,
                Code::NotProven,
                Code::StoreUnavailable,
                Code::TenantSuspended,
                Code::KeysUnavailable,
                // Whether the books of its tenant still know the caller.
                Code::TenantStarting,
                Code::TenantFrozen,
            ]);
        }
        codes.extend(self.class().map(|_| Code::RateLimited));
        if self.scope == Scope::TenantInPath {
            codes.extend([Code::TenantMismatch, Code::TenantNotFound]);
        }
        if self.body != BodyKind::None {
            codes.extend([Code::BadRequest, Code::MalformedJson, Code::RequestTimeout, Code::PayloadTooLarge]);
            codes.extend((self.body != BodyKind::Authzen).then_some(Code::UnsupportedMediaType));
        }
        codes.extend(HANDING_OUT.contains(&self.id).then_some(Code::PermissionNotHeld));
        codes.extend(self.codes);
        codes.sort_by_key(|code| (code.status(), *code));
        codes.dedup();
        codes
    }
}

/// Operations by which somebody comes to a permission, or loses a denial.
const HANDING_OUT: &[&str] = &[
    "createApiKey",
    "patchApiKey",
    "rotateApiKey",
    "createUser",
    "replaceUser",
    "patchUser",
    "deleteUser",
    "replaceGroup",
    "patchGroup",
    "deleteGroup",
    "addGroupMembers",
    "removeGroupMember",
    "createRoleAssignment",
    "deleteRoleAssignment",
    "createRole",
    "replaceRole",
    "createPolicy",
    "replacePolicy",
    "deletePolicy",
    "scimCreateUser",
    "scimReplaceUser",
    "scimPatchUser",
    "scimDeleteUser",
    "scimCreateGroup",
    "scimReplaceGroup",
    "scimPatchGroup",
    "scimDeleteGroup",
];

const PAGE: &[&str] = &["limit", "cursor"];

use BodyKind::{
    Authzen, Evaluation, Events, Form as FormBody, Json, KongLog, LiteLlm, None as NoBody, OpenMeter, Patch, Scim,
};
use Code::{
    AdjustmentBelowZero, AdjustmentRefused, AlertNotFound, AlertOver, AlreadyReplayed, ApiKeyEnded, ApiKeyNotFound,
    AuthenticationRequired, ChannelNotFound, EgressRefused, ExternalIdTaken, FindingClosed, FindingNotFound,
    FlagNotFound, FlagNotOverridable, FlagsKeptElsewhere, GroupNotFound, IdempotencyKeyReused, IdentityTaken,
    IllegalMove, InvalidCredentials, InvalidCursor, InvalidFilter, InvalidPath, InvalidValue, JobFinished,
    JobNotCancelable, JobNotFound, KeysUnavailable, LoginDenied, LoginFailed, LoginOff, LogoutTokenRefused,
    MemberNotFound, MembershipRefused, ModelNotAllowed, NoTarget, NotFound, NotProven, NotReady, NothingAccepted,
    OrganizationFull, PlatformAdminNotFound, PolicyNotFound, PreconditionFailed, PreconditionRequired,
    ProviderInactive, ProviderNotFound, ProviderSecretNotFound, QuarantinedNotFound, ReadOnlyAttribute, ReportTooLarge,
    RoleAlreadyAssigned, RoleAssignmentNotFound, RoleBuiltIn, RoleInUse, RoleNotFound, RotationUnderWay,
    SecretMadeHere, SlugTaken, StillRefused, StoreUnavailable, TenantFrozen, TenantMismatch, TenantNotFound,
    TenantSaturated, TenantStarting, TestedTooOften, TooManyApiKeys, TooManyEvents, TooManyFailures, TooManyFlags,
    TooManyJobs, TooManyProviders, UserNotFound, ValidationFailed, VaultOff, VaultUnavailable,
};
use Scope::{Caller, Open, Platform, TenantInPath, TenantOfCredential};

/// The table.
#[rustfmt::skip]
pub static OPERATIONS: &[Operation] = &[
    // The hot path first: rows are tried in order.
    Operation { id: "decide", method: Method::GET, path: "/v1/quotas/{tenantId}/decision", scope: TenantInPath, object: "decision", action: "read", body: NoBody,
        query: &["userId", "groupId", "apiKeyId", "model", "provider"], codes: &[ValidationFailed, TenantStarting, TenantFrozen] },
    Operation { id: "recordUsageEvents", method: Method::POST, path: "/v1/usage/events", scope: TenantOfCredential, object: "usage", action: "report", body: Events,
        query: &[], codes: &[TenantNotFound, TooManyEvents, NothingAccepted, TenantSaturated] },
    Operation { id: "recordLiteLlmUsage", method: Method::POST, path: "/v1/usage/litellm", scope: TenantOfCredential, object: "usage", action: "report", body: LiteLlm,
        query: &[], codes: &[TenantNotFound, TooManyEvents, NothingAccepted, TenantSaturated] },
    Operation { id: "ingestOpenMeterEvents", method: Method::POST, path: "/api/v1/events", scope: TenantOfCredential, object: "usage", action: "report", body: OpenMeter,
        query: &[], codes: &[TenantNotFound, TooManyEvents, NothingAccepted, TenantSaturated] },
    Operation { id: "recordKongLogs", method: Method::POST, path: "/v1/gateway/kong/logs", scope: TenantOfCredential, object: "gatewayLog", action: "report", body: KongLog,
        query: &[], codes: &[TenantNotFound, TooManyEvents, TenantStarting, TenantSaturated, TenantFrozen] },

    Operation { id: "getHealth", method: Method::GET, path: "/health", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },
    Operation { id: "getLiveness", method: Method::GET, path: "/health/live", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },
    Operation { id: "getReadiness", method: Method::GET, path: "/health/ready", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[NotReady] },
    Operation { id: "getMetrics", method: Method::GET, path: "/metrics", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },
    Operation { id: "getDocument", method: Method::GET, path: "/openapi.json", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },
    Operation { id: "getDocumentation", method: Method::GET, path: "/docs", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },

    Operation { id: "listLoginProviders", method: Method::GET, path: "/v1/auth/providers", scope: Open, object: "", action: "", body: NoBody, query: &[], codes: &[] },
    Operation { id: "beginLogin", method: Method::GET, path: "/v1/auth/login", scope: Open, object: "", action: "", body: NoBody,
        query: &["provider", "returnTo"], codes: &[LoginOff, KeysUnavailable] },
    Operation { id: "finishLogin", method: Method::GET, path: "/v1/auth/callback", scope: Open, object: "", action: "", body: NoBody,
        query: &["code", "state", "iss", "error"], codes: &[LoginFailed, LoginDenied, TooManyFailures, KeysUnavailable, StoreUnavailable, TenantStarting, TenantFrozen] },
    Operation { id: "loginLocally", method: Method::POST, path: "/v1/auth/local", scope: Open, object: "", action: "", body: Json,
        query: &[], codes: &[LoginOff, InvalidCredentials, LoginDenied, NotProven, TooManyFailures, ValidationFailed, StoreUnavailable, TenantStarting, TenantFrozen] },
    Operation { id: "refreshSession", method: Method::POST, path: "/v1/auth/refresh", scope: Open, object: "", action: "", body: NoBody,
        query: &[], codes: &[AuthenticationRequired, InvalidCredentials, NotProven, StoreUnavailable, TenantStarting, TenantFrozen] },
    Operation { id: "logOut", method: Method::POST, path: "/v1/auth/logout", scope: Open, object: "", action: "", body: NoBody,
        query: &[], codes: &[NotProven, StoreUnavailable] },
    Operation { id: "backChannelLogout", method: Method::POST, path: "/v1/auth/backchannel-logout", scope: Open, object: "", action: "", body: FormBody,
        query: &[], codes: &[LogoutTokenRefused, KeysUnavailable, StoreUnavailable] },
    Operation { id: "changeOwnPassword", method: Method::PUT, path: "/v1/auth/password", scope: Caller, object: "", action: "", body: Json,
        query: &[], codes: &[LoginOff, LoginDenied, ValidationFailed, StoreUnavailable] },
    Operation { id: "getMe", method: Method::GET, path: "/v1/auth/me", scope: Caller, object: "", action: "", body: NoBody, query: &[], codes: &[StoreUnavailable] },

    Operation { id: "createTenant", method: Method::POST, path: "/v1/tenants", scope: Platform, object: "tenants", action: "create", body: Json,
        query: &[], codes: &[SlugTaken, ExternalIdTaken, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listTenants", method: Method::GET, path: "/v1/tenants", scope: Platform, object: "tenants", action: "list", body: NoBody,
        query: PAGE, codes: &[InvalidCursor] },
    Operation { id: "getTenant", method: Method::GET, path: "/v1/tenants/{id}", scope: TenantInPath, object: "tenants", action: "read", body: NoBody,
        query: &[], codes: &[] },
    Operation { id: "amendTenant", method: Method::PATCH, path: "/v1/tenants/{id}", scope: TenantInPath, object: "tenants", action: "amend", body: Json,
        query: &[], codes: &[ExternalIdTaken, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "suspendTenant", method: Method::POST, path: "/v1/tenants/{id}/suspend", scope: TenantInPath, object: "tenants", action: "suspend", body: NoBody,
        query: &[], codes: &[IllegalMove, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "reactivateTenant", method: Method::POST, path: "/v1/tenants/{id}/reactivate", scope: TenantInPath, object: "tenants", action: "reactivate", body: NoBody,
        query: &[], codes: &[IllegalMove, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "archiveTenant", method: Method::POST, path: "/v1/tenants/{id}/archive", scope: TenantInPath, object: "tenants", action: "archive", body: NoBody,
        query: &[], codes: &[IllegalMove, IdempotencyKeyReused, StoreUnavailable] },

    Operation { id: "createApiKey", method: Method::POST, path: "/v1/tenants/{id}/api-keys", scope: TenantInPath, object: "apiKeys", action: "create", body: Json,
        query: &[], codes: &[TooManyApiKeys, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listApiKeys", method: Method::GET, path: "/v1/tenants/{id}/api-keys", scope: TenantInPath, object: "apiKeys", action: "list", body: NoBody,
        query: PAGE, codes: &[InvalidCursor] },
    Operation { id: "revokeApiKey", method: Method::DELETE, path: "/v1/tenants/{id}/api-keys/{keyId}", scope: TenantInPath, object: "apiKeys", action: "revoke", body: NoBody,
        query: &[], codes: &[ApiKeyNotFound, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "getApiKey", method: Method::GET, path: "/v1/tenants/{id}/api-keys/{keyId}", scope: TenantInPath, object: "apiKeys", action: "read", body: NoBody,
        query: &[], codes: &[ApiKeyNotFound] },
    Operation { id: "patchApiKey", method: Method::PATCH, path: "/v1/tenants/{id}/api-keys/{keyId}", scope: TenantInPath, object: "apiKeys", action: "change", body: Patch,
        query: &[], codes: &[ApiKeyNotFound, ApiKeyEnded, TooManyApiKeys, PreconditionRequired, PreconditionFailed, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "rotateApiKey", method: Method::POST, path: "/v1/tenants/{id}/api-keys/{keyId}/rotate", scope: TenantInPath, object: "apiKeys", action: "rotate", body: Json,
        query: &[], codes: &[ApiKeyNotFound, ApiKeyEnded, RotationUnderWay, PreconditionFailed, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },

    Operation { id: "reportUsage", method: Method::GET, path: "/v1/tenants/{id}/usage", scope: TenantInPath, object: "usage", action: "read", body: NoBody,
        query: &["from", "to", "granularity", "groupBy"], codes: &[ValidationFailed, ReportTooLarge, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listUsageEvents", method: Method::GET, path: "/v1/tenants/{id}/usage/events", scope: TenantInPath, object: "usage", action: "read", body: NoBody,
        query: &["limit", "cursor", "from", "to", "userId", "groupId", "apiKeyId", "model", "provider"], codes: &[InvalidCursor, ValidationFailed, TenantStarting, TenantFrozen, StoreUnavailable] },

    Operation { id: "getQuotas", method: Method::GET, path: "/v1/quotas/{tenantId}", scope: TenantInPath, object: "quotas", action: "read", body: NoBody,
        query: &[], codes: &[TenantStarting, TenantFrozen] },
    Operation { id: "replaceQuotas", method: Method::PUT, path: "/v1/quotas/{tenantId}", scope: TenantInPath, object: "quotas", action: "replace", body: Json,
        query: &[], codes: &[ValidationFailed, IdempotencyKeyReused, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listAlerts", method: Method::GET, path: "/v1/quotas/{tenantId}/alerts", scope: TenantInPath, object: "alerts", action: "read", body: NoBody,
        query: PAGE, codes: &[InvalidCursor, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "acknowledgeAlert", method: Method::POST, path: "/v1/quotas/{tenantId}/alerts/{alertId}/acknowledge", scope: TenantInPath, object: "alerts", action: "acknowledge", body: NoBody,
        query: &[], codes: &[AlertNotFound, AlertOver, IdempotencyKeyReused, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listDeliveries", method: Method::GET, path: "/v1/quotas/{tenantId}/deliveries", scope: TenantInPath, object: "alerts", action: "read", body: NoBody,
        query: &["from", "to", "channel", "outcome", "limit", "cursor"], codes: &[InvalidCursor, ValidationFailed, TenantStarting, TenantFrozen, StoreUnavailable] },

    Operation { id: "getReconciliation", method: Method::GET, path: "/v1/reconciliation/{tenantId}", scope: TenantInPath, object: "reconciliation", action: "read", body: NoBody,
        query: &[], codes: &[TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listComparedWindows", method: Method::GET, path: "/v1/reconciliation/{tenantId}/windows", scope: TenantInPath, object: "reconciliation", action: "read", body: NoBody,
        query: &["from", "to", "proof", "verdict", "limit", "cursor"], codes: &[InvalidCursor, ValidationFailed, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listFindings", method: Method::GET, path: "/v1/reconciliation/{tenantId}/findings", scope: TenantInPath, object: "reconciliation", action: "read", body: NoBody,
        query: &["status", "cause", "limit", "cursor"], codes: &[InvalidCursor, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "getFinding", method: Method::GET, path: "/v1/reconciliation/{tenantId}/findings/{findingId}", scope: TenantInPath, object: "reconciliation", action: "read", body: NoBody,
        query: &[], codes: &[FindingNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "acknowledgeFinding", method: Method::POST, path: "/v1/reconciliation/{tenantId}/findings/{findingId}/acknowledge", scope: TenantInPath, object: "findings", action: "acknowledge", body: Json,
        query: &[], codes: &[FindingNotFound, FindingClosed, ValidationFailed, IdempotencyKeyReused, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "explainFinding", method: Method::POST, path: "/v1/reconciliation/{tenantId}/findings/{findingId}/explain", scope: TenantInPath, object: "findings", action: "explain", body: Json,
        query: &[], codes: &[FindingNotFound, FindingClosed, ValidationFailed, IdempotencyKeyReused, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "settleFinding", method: Method::POST, path: "/v1/reconciliation/{tenantId}/findings/{findingId}/settle", scope: TenantInPath, object: "findings", action: "settle", body: Json,
        query: &[], codes: &[FindingNotFound, FindingClosed, ValidationFailed, AdjustmentRefused, AdjustmentBelowZero, IdempotencyKeyReused, TenantStarting, TenantFrozen, StoreUnavailable] },

    Operation { id: "createUser", method: Method::POST, path: "/v1/users", scope: TenantOfCredential, object: "users", action: "create", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, IdentityTaken, OrganizationFull, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listUsers", method: Method::GET, path: "/v1/users", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId", "userName", "externalId", "active", "group", "prefix"], codes: &[TenantMismatch, TenantNotFound, InvalidCursor] },
    Operation { id: "getUser", method: Method::GET, path: "/v1/users/{id}", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, UserNotFound] },
    Operation { id: "replaceUser", method: Method::PUT, path: "/v1/users/{id}", scope: TenantOfCredential, object: "users", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, UserNotFound, IdentityTaken, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "patchUser", method: Method::PATCH, path: "/v1/users/{id}", scope: TenantOfCredential, object: "users", action: "change", body: Patch,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, UserNotFound, IdentityTaken, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "deleteUser", method: Method::DELETE, path: "/v1/users/{id}", scope: TenantOfCredential, object: "users", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, UserNotFound, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "setPassword", method: Method::PUT, path: "/v1/users/{id}/password", scope: TenantOfCredential, object: "users", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, LoginOff, UserNotFound, ValidationFailed, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "removePassword", method: Method::DELETE, path: "/v1/users/{id}/password", scope: TenantOfCredential, object: "users", action: "change", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, UserNotFound, StoreUnavailable] },
    Operation { id: "createGroup", method: Method::POST, path: "/v1/groups", scope: TenantOfCredential, object: "groups", action: "create", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, IdentityTaken, OrganizationFull, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listGroups", method: Method::GET, path: "/v1/groups", scope: TenantOfCredential, object: "groups", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId", "displayName", "externalId", "active", "user", "prefix"], codes: &[TenantMismatch, TenantNotFound, InvalidCursor] },
    Operation { id: "getGroup", method: Method::GET, path: "/v1/groups/{id}", scope: TenantOfCredential, object: "groups", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound] },
    Operation { id: "replaceGroup", method: Method::PUT, path: "/v1/groups/{id}", scope: TenantOfCredential, object: "groups", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, IdentityTaken, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "patchGroup", method: Method::PATCH, path: "/v1/groups/{id}", scope: TenantOfCredential, object: "groups", action: "change", body: Patch,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, IdentityTaken, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "deleteGroup", method: Method::DELETE, path: "/v1/groups/{id}", scope: TenantOfCredential, object: "groups", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listGroupMembers", method: Method::GET, path: "/v1/groups/{id}/members", scope: TenantOfCredential, object: "groups", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, InvalidCursor] },
    Operation { id: "addGroupMembers", method: Method::POST, path: "/v1/groups/{id}/members", scope: TenantOfCredential, object: "groups", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, MembershipRefused, OrganizationFull, PreconditionFailed, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "removeGroupMember", method: Method::DELETE, path: "/v1/groups/{id}/members/{memberId}", scope: TenantOfCredential, object: "groups", action: "change", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, GroupNotFound, MemberNotFound, PreconditionFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "createRoleAssignment", method: Method::POST, path: "/v1/role-assignments", scope: TenantOfCredential, object: "roleAssignments", action: "create", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleAlreadyAssigned, OrganizationFull, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listRoleAssignments", method: Method::GET, path: "/v1/role-assignments", scope: TenantOfCredential, object: "roleAssignments", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId", "role", "userId", "groupId", "apiKeyId"], codes: &[TenantMismatch, TenantNotFound, InvalidCursor] },
    Operation { id: "getRoleAssignment", method: Method::GET, path: "/v1/role-assignments/{id}", scope: TenantOfCredential, object: "roleAssignments", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleAssignmentNotFound] },
    Operation { id: "deleteRoleAssignment", method: Method::DELETE, path: "/v1/role-assignments/{id}", scope: TenantOfCredential, object: "roleAssignments", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleAssignmentNotFound, IdempotencyKeyReused, StoreUnavailable] },

    Operation { id: "createRole", method: Method::POST, path: "/v1/roles", scope: TenantOfCredential, object: "roles", action: "create", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, IdentityTaken, OrganizationFull, RoleBuiltIn, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listRoles", method: Method::GET, path: "/v1/roles", scope: TenantOfCredential, object: "roles", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[TenantMismatch, TenantNotFound, InvalidCursor] },
    Operation { id: "getRole", method: Method::GET, path: "/v1/roles/{name}", scope: TenantOfCredential, object: "roles", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleNotFound] },
    Operation { id: "replaceRole", method: Method::PUT, path: "/v1/roles/{name}", scope: TenantOfCredential, object: "roles", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleNotFound, RoleBuiltIn, OrganizationFull, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "deleteRole", method: Method::DELETE, path: "/v1/roles/{name}", scope: TenantOfCredential, object: "roles", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, RoleNotFound, RoleBuiltIn, RoleInUse, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "createPolicy", method: Method::POST, path: "/v1/policies", scope: TenantOfCredential, object: "policies", action: "create", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, IdentityTaken, OrganizationFull, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listPolicies", method: Method::GET, path: "/v1/policies", scope: TenantOfCredential, object: "policies", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[TenantMismatch, TenantNotFound, InvalidCursor] },
    Operation { id: "dryRunPolicies", method: Method::POST, path: "/v1/policies/dry-run", scope: TenantOfCredential, object: "policies", action: "try", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, IdentityTaken, OrganizationFull, RoleBuiltIn, RoleInUse, ValidationFailed] },
    Operation { id: "getPolicy", method: Method::GET, path: "/v1/policies/{id}", scope: TenantOfCredential, object: "policies", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, PolicyNotFound] },
    Operation { id: "replacePolicy", method: Method::PUT, path: "/v1/policies/{id}", scope: TenantOfCredential, object: "policies", action: "change", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, PolicyNotFound, IdentityTaken, OrganizationFull, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "deletePolicy", method: Method::DELETE, path: "/v1/policies/{id}", scope: TenantOfCredential, object: "policies", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, PolicyNotFound, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "explainAccess", method: Method::POST, path: "/v1/access/explain", scope: TenantOfCredential, object: "access", action: "explain", body: Json,
        query: &["tenantId"], codes: &[TenantMismatch, TenantNotFound, ValidationFailed] },
    Operation { id: "evaluateAccess", method: Method::POST, path: "/access/v1/evaluation", scope: TenantOfCredential, object: "access", action: "evaluate", body: Authzen,
        query: &[], codes: &[TenantNotFound] },
    Operation { id: "evaluateAccesses", method: Method::POST, path: "/access/v1/evaluations", scope: TenantOfCredential, object: "access", action: "evaluate", body: Authzen,
        query: &[], codes: &[TenantNotFound] },
    Operation { id: "searchSubjects", method: Method::POST, path: "/access/v1/search/subject", scope: TenantOfCredential, object: "access", action: "search", body: Authzen,
        query: &[], codes: &[InvalidCursor, TenantNotFound] },
    Operation { id: "searchResources", method: Method::POST, path: "/access/v1/search/resource", scope: TenantOfCredential, object: "access", action: "search", body: Authzen,
        query: &[], codes: &[InvalidCursor, TenantNotFound] },
    Operation { id: "searchActions", method: Method::POST, path: "/access/v1/search/action", scope: TenantOfCredential, object: "access", action: "search", body: Authzen,
        query: &[], codes: &[InvalidCursor, TenantNotFound] },
    Operation { id: "getAuthzenConfiguration", method: Method::GET, path: "/.well-known/authzen-configuration", scope: Open, object: "", action: "", body: NoBody,
        query: &[], codes: &[NotFound] },

    Operation { id: "createPlatformAdmin", method: Method::POST, path: "/v1/platform-admins", scope: Platform, object: "platformAdmins", action: "create", body: Json,
        query: &[], codes: &[IdentityTaken, OrganizationFull, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listPlatformAdmins", method: Method::GET, path: "/v1/platform-admins", scope: Platform, object: "platformAdmins", action: "read", body: NoBody,
        query: &["limit", "cursor"], codes: &[InvalidCursor] },
    Operation { id: "getPlatformAdmin", method: Method::GET, path: "/v1/platform-admins/{id}", scope: Platform, object: "platformAdmins", action: "read", body: NoBody,
        query: &[], codes: &[PlatformAdminNotFound] },
    Operation { id: "deletePlatformAdmin", method: Method::DELETE, path: "/v1/platform-admins/{id}", scope: Platform, object: "platformAdmins", action: "delete", body: NoBody,
        query: &[], codes: &[PlatformAdminNotFound, IdempotencyKeyReused, StoreUnavailable] },

    Operation { id: "listAuditRecords", method: Method::GET, path: "/v1/audit", scope: TenantOfCredential, object: "audit", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[InvalidCursor, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "verifyAuditChain", method: Method::GET, path: "/v1/audit/verify", scope: TenantOfCredential, object: "audit", action: "verify", body: NoBody,
        query: &["tenantId"], codes: &[TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },

    Operation { id: "listQuarantine", method: Method::GET, path: "/v1/quarantine", scope: TenantOfCredential, object: "quarantine", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId", "reason"], codes: &[InvalidCursor, TenantNotFound, StoreUnavailable] },
    Operation { id: "replayQuarantined", method: Method::POST, path: "/v1/quarantine/{id}/replay", scope: TenantOfCredential, object: "quarantine", action: "replay", body: NoBody,
        query: &[], codes: &[QuarantinedNotFound, TenantNotFound, AlreadyReplayed, StillRefused, StoreUnavailable] },

    Operation { id: "getFeatures", method: Method::GET, path: "/v1/features", scope: TenantOfCredential, object: "features", action: "evaluate", body: NoBody,
        query: &[], codes: &[TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "evaluateFlag", method: Method::POST, path: "/ofrep/v1/evaluate/flags/{key}", scope: TenantOfCredential, object: "features", action: "evaluate", body: Evaluation,
        query: &[], codes: &[FlagNotFound, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "evaluateFlags", method: Method::POST, path: "/ofrep/v1/evaluate/flags", scope: TenantOfCredential, object: "features", action: "evaluate", body: Evaluation,
        query: &["flagConfigEtag", "flagConfigLastModified"], codes: &[TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "listFlags", method: Method::GET, path: "/v1/flags", scope: TenantOfCredential, object: "flags", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[InvalidCursor, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "getFlag", method: Method::GET, path: "/v1/flags/{key}", scope: TenantOfCredential, object: "flags", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[FlagNotFound, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "getFlagExposures", method: Method::GET, path: "/v1/flags/{key}/exposures", scope: TenantOfCredential, object: "flags", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[FlagNotFound, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "putFlag", method: Method::PUT, path: "/v1/flags/{key}", scope: TenantOfCredential, object: "flags", action: "put", body: Json,
        query: &["tenantId"], codes: &[FlagNotOverridable, FlagsKeptElsewhere, TooManyFlags, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "deleteFlag", method: Method::DELETE, path: "/v1/flags/{key}", scope: TenantOfCredential, object: "flags", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[FlagNotFound, FlagsKeptElsewhere, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "submitJob", method: Method::POST, path: "/v1/jobs", scope: TenantOfCredential, object: "jobs", action: "submit", body: Json,
        query: &["tenantId"], codes: &[TenantNotFound, TooManyJobs, ValidationFailed, IdempotencyKeyReused, StoreUnavailable] },
    Operation { id: "listJobs", method: Method::GET, path: "/v1/jobs", scope: TenantOfCredential, object: "jobs", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId", "state", "kind"], codes: &[InvalidCursor, TenantNotFound, StoreUnavailable] },
    Operation { id: "getJob", method: Method::GET, path: "/v1/jobs/{jobId}", scope: TenantOfCredential, object: "jobs", action: "read", body: NoBody,
        query: &[], codes: &[JobNotFound, TenantNotFound, StoreUnavailable] },
    Operation { id: "cancelJob", method: Method::POST, path: "/v1/jobs/{jobId}/cancel", scope: TenantOfCredential, object: "jobs", action: "cancel", body: NoBody,
        query: &[], codes: &[JobNotFound, JobFinished, JobNotCancelable, TenantNotFound, IdempotencyKeyReused, StoreUnavailable] },

    Operation { id: "createProvider", method: Method::POST, path: "/v1/providers", scope: TenantOfCredential, object: "providers", action: "create", body: Json,
        query: &["tenantId"], codes: &[VaultOff, IdentityTaken, TooManyProviders, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "listProviders", method: Method::GET, path: "/v1/providers", scope: TenantOfCredential, object: "providers", action: "read", body: NoBody,
        query: &["limit", "cursor", "tenantId"], codes: &[VaultOff, InvalidCursor, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "getProvider", method: Method::GET, path: "/v1/providers/{id}", scope: TenantOfCredential, object: "providers", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[VaultOff, ProviderNotFound, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "replaceProvider", method: Method::PUT, path: "/v1/providers/{id}", scope: TenantOfCredential, object: "providers", action: "change", body: Json,
        query: &["tenantId"], codes: &[VaultOff, ProviderNotFound, IdentityTaken, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "deleteProvider", method: Method::DELETE, path: "/v1/providers/{id}", scope: TenantOfCredential, object: "providers", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[VaultOff, ProviderNotFound, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "putProviderSecret", method: Method::PUT, path: "/v1/providers/{id}/secret", scope: TenantOfCredential, object: "providerSecrets", action: "put", body: Json,
        query: &["tenantId"], codes: &[VaultOff, VaultUnavailable, SecretMadeHere, ProviderNotFound, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "deleteProviderSecret", method: Method::DELETE, path: "/v1/providers/{id}/secret", scope: TenantOfCredential, object: "providerSecrets", action: "delete", body: NoBody,
        query: &["tenantId"], codes: &[VaultOff, ProviderNotFound, ProviderSecretNotFound, PreconditionFailed, PreconditionRequired, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "leaseProviderSecret", method: Method::POST, path: "/v1/providers/{id}/leases", scope: TenantOfCredential, object: "providerSecrets", action: "lease", body: Json,
        query: &["tenantId"], codes: &[VaultOff, VaultUnavailable, ProviderNotFound, ProviderSecretNotFound, ProviderInactive, EgressRefused, ModelNotAllowed, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "testProvider", method: Method::POST, path: "/v1/providers/{id}/test", scope: TenantOfCredential, object: "providers", action: "test", body: NoBody,
        query: &["tenantId"], codes: &[VaultOff, VaultUnavailable, ProviderNotFound, ProviderSecretNotFound, EgressRefused, TestedTooOften, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },
    Operation { id: "getProviderPolicy", method: Method::GET, path: "/v1/provider-policy", scope: TenantOfCredential, object: "providerPolicy", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[VaultOff, TenantNotFound, TenantStarting, TenantFrozen] },
    Operation { id: "replaceProviderPolicy", method: Method::PUT, path: "/v1/provider-policy", scope: TenantOfCredential, object: "providerPolicy", action: "replace", body: Json,
        query: &["tenantId"], codes: &[VaultOff, PreconditionFailed, PreconditionRequired, ValidationFailed, IdempotencyKeyReused, TenantNotFound, TenantStarting, TenantFrozen, StoreUnavailable] },

    Operation { id: "getRateLimits", method: Method::GET, path: "/v1/rate-limits", scope: TenantOfCredential, object: "rateLimits", action: "read", body: NoBody,
        query: &["tenantId"], codes: &[TenantNotFound] },
    Operation { id: "listNotificationChannels", method: Method::GET, path: "/v1/notification-channels", scope: Platform, object: "channels", action: "read", body: NoBody,
        query: &[], codes: &[] },
    Operation { id: "testNotificationChannel", method: Method::POST, path: "/v1/notification-channels/{channel}/test", scope: Platform, object: "channels", action: "test", body: NoBody,
        query: &[], codes: &[ChannelNotFound, TestedTooOften, IdempotencyKeyReused, StoreUnavailable] },

    // Identity providers; the objects are those of /v1/users and /v1/groups.
    Operation { id: "scimGetServiceProviderConfig", method: Method::GET, path: "/scim/v2/ServiceProviderConfig", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &[], codes: &[TenantNotFound] },
    Operation { id: "scimListResourceTypes", method: Method::GET, path: "/scim/v2/ResourceTypes", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &[], codes: &[TenantNotFound] },
    Operation { id: "scimListSchemas", method: Method::GET, path: "/scim/v2/Schemas", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &[], codes: &[TenantNotFound] },
    Operation { id: "scimGetResourceType", method: Method::GET, path: "/scim/v2/ResourceTypes/{id}", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &[], codes: &[TenantNotFound, NotFound] },
    Operation { id: "scimGetSchema", method: Method::GET, path: "/scim/v2/Schemas/{id}", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &[], codes: &[TenantNotFound, NotFound] },
    Operation { id: "scimSearch", method: Method::POST, path: "/scim/v2/.search", scope: TenantOfCredential, object: "users", action: "read", body: Scim,
        query: &[], codes: &[TenantNotFound, InvalidFilter, InvalidValue] },
    Operation { id: "scimListUsers", method: Method::GET, path: "/scim/v2/Users", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &["filter", "startIndex", "count", "sortBy", "sortOrder", "attributes", "excludedAttributes"], codes: &[TenantNotFound, InvalidFilter] },
    Operation { id: "scimCreateUser", method: Method::POST, path: "/scim/v2/Users", scope: TenantOfCredential, object: "users", action: "create", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, InvalidValue, IdentityTaken, OrganizationFull, UserNotFound] },
    Operation { id: "scimGetUser", method: Method::GET, path: "/scim/v2/Users/{id}", scope: TenantOfCredential, object: "users", action: "read", body: NoBody,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, UserNotFound] },
    Operation { id: "scimReplaceUser", method: Method::PUT, path: "/scim/v2/Users/{id}", scope: TenantOfCredential, object: "users", action: "change", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, UserNotFound, InvalidValue, IdentityTaken, PreconditionFailed] },
    Operation { id: "scimPatchUser", method: Method::PATCH, path: "/scim/v2/Users/{id}", scope: TenantOfCredential, object: "users", action: "change", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, UserNotFound, InvalidValue, InvalidPath, NoTarget, ReadOnlyAttribute, IdentityTaken, PreconditionFailed] },
    Operation { id: "scimDeleteUser", method: Method::DELETE, path: "/scim/v2/Users/{id}", scope: TenantOfCredential, object: "users", action: "delete", body: NoBody,
        query: &[], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, UserNotFound, PreconditionFailed] },
    Operation { id: "scimListGroups", method: Method::GET, path: "/scim/v2/Groups", scope: TenantOfCredential, object: "groups", action: "read", body: NoBody,
        query: &["filter", "startIndex", "count", "sortBy", "sortOrder", "attributes", "excludedAttributes"], codes: &[TenantNotFound, InvalidFilter] },
    Operation { id: "scimCreateGroup", method: Method::POST, path: "/scim/v2/Groups", scope: TenantOfCredential, object: "groups", action: "create", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, InvalidValue, IdentityTaken, OrganizationFull, MembershipRefused, GroupNotFound] },
    Operation { id: "scimGetGroup", method: Method::GET, path: "/scim/v2/Groups/{id}", scope: TenantOfCredential, object: "groups", action: "read", body: NoBody,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, GroupNotFound] },
    Operation { id: "scimReplaceGroup", method: Method::PUT, path: "/scim/v2/Groups/{id}", scope: TenantOfCredential, object: "groups", action: "change", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, GroupNotFound, InvalidValue, IdentityTaken, PreconditionFailed, OrganizationFull, MembershipRefused] },
    Operation { id: "scimPatchGroup", method: Method::PATCH, path: "/scim/v2/Groups/{id}", scope: TenantOfCredential, object: "groups", action: "change", body: Scim,
        query: &["attributes", "excludedAttributes"], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, GroupNotFound, InvalidValue, InvalidPath, NoTarget, ReadOnlyAttribute, IdentityTaken, PreconditionFailed, OrganizationFull, MembershipRefused] },
    Operation { id: "scimDeleteGroup", method: Method::DELETE, path: "/scim/v2/Groups/{id}", scope: TenantOfCredential, object: "groups", action: "delete", body: NoBody,
        query: &[], codes: &[TenantNotFound, IdempotencyKeyReused, StoreUnavailable, GroupNotFound, PreconditionFailed] },

    Operation { id: "getKongSync", method: Method::GET, path: "/v1/gateway/kong/sync", scope: Platform, object: "kongSync", action: "read", body: NoBody, query: &[], codes: &[] },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_their_rows() {
        for (method, path, id) in [
            (Method::GET, "/health", "getHealth"),
            (Method::HEAD, "/health/live", "getLiveness"),
            (Method::POST, "/v1/tenants", "createTenant"),
            (Method::GET, "/v1/tenants/7", "getTenant"),
            (Method::DELETE, "/v1/tenants/7/api-keys/k", "revokeApiKey"),
            (Method::GET, "/v1/quotas/7/decision", "decide"),
            (Method::GET, "/v1/audit/verify", "verifyAuditChain"),
        ] {
            assert_eq!(find(&method, path).unwrap().0.id, id, "{method} {path}");
        }
        let (_, segments) = find(&Method::DELETE, "/v1/tenants/7/api-keys/k").unwrap();
        assert_eq!(segments, [Some("7"), Some("k")]);
    }

    #[test]
    fn everything_else_is_not_there() {
        for path in ["", "/", "//", "/v1", "/v1/tenants/", "/v2/tenants", "/v1/tenants/7/", "/V1/tenants", "/health/x"]
        {
            assert_eq!(find(&Method::GET, path).unwrap_err(), Missed::NotFound, "{path}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        for (method, path, allow) in [
            (Method::DELETE, "/v1/tenants", "POST, GET, HEAD"),
            (Method::TRACE, "/health", "GET, HEAD"),
            (Method::OPTIONS, "/v1/usage/events", "POST"),
            (Method::POST, "/v1/quotas/7", "GET, HEAD, PUT"),
        ] {
            let missed = find(&method, path).unwrap_err();
            assert_eq!(missed, Missed::Method { allow: allow.into() }, "{method} {path}");
        }
    }

    #[test]
    fn each_operation_is_limited_as_what_it_does() {
        let class = |id: &str| OPERATIONS.iter().find(|operation| operation.id == id).unwrap().class();
        for (id, expected) in [
            ("getHealth", None),
            ("recordLiteLlmUsage", None),
            ("recordKongLogs", None),
            ("recordUsageEvents", Some(Class::Ingest)),
            ("decide", Some(Class::Lookup)),
            ("evaluateFlag", Some(Class::Lookup)),
            ("putFlag", Some(Class::Write)),
            ("getQuotas", Some(Class::Read)),
            ("listTenants", Some(Class::Read)),
            ("getKongSync", Some(Class::Read)),
            ("replaceQuotas", Some(Class::Write)),
            ("replayQuarantined", Some(Class::Write)),
            ("createTenant", Some(Class::Admin)),
            ("revokeApiKey", Some(Class::Admin)),
        ] {
            assert_eq!(class(id), expected, "{id}");
        }
        let limited = OPERATIONS.iter().filter(|operation| operation.all_codes().contains(&Code::RateLimited));
        assert!(limited.clone().all(|operation| operation.class().is_some()) && limited.count() > 20);
    }

    #[test]
    fn every_closed_row_names_an_object_and_an_action() {
        for operation in OPERATIONS {
            let named = !operation.object.is_empty() && !operation.action.is_empty();
            assert_eq!(named, !matches!(operation.scope, Scope::Open | Scope::Caller), "{}", operation.id);
            let in_path = operation.path.contains("{id}") || operation.path.contains("{tenantId}");
            assert!(operation.scope != Scope::TenantInPath || in_path, "{}", operation.id);
        }
    }
}
