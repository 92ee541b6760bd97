//! One table of everything that can go wrong at this door, and the one envelope it is told in.

use std::borrow::Cow;

use poem::http::{HeaderValue, StatusCode, header};
use poem::{Body, Response};
use poem_openapi::{ApiResponse, registry};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::directory::handle::{Absent, Refused};
use crate::directory::platform_admin;
use crate::directory::task::Declined as PlatformDeclined;
use crate::domain::api_key;
use crate::domain::organization::{Flaw, Refusal};
use crate::domain::policy;
use crate::tenant::acknowledge::NotAcknowledged;
use crate::tenant::handle::Unavailable;
use crate::tenant::message::{ChangeRefused, ReadFailure};
use crate::tenant::task::Declined;

macro_rules! codes {
    ($($variant:ident $name:literal $status:literal $title:literal;)*) => {
        /// A stable code; clients may compare it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $title] $variant),* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The word in the envelope.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name),* }
            }

            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status),* }
            }

            /// What it means, for people; the default message.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),* }
            }
        }
    };
}

codes! {
    BadRequest "BAD_REQUEST" 400 "The request cannot be read.";
    MalformedJson "MALFORMED_JSON" 400 "The body is not one JSON document in UTF-8 with unique keys.";
    InvalidParameter "INVALID_PARAMETER" 400 "A query parameter is missing, cannot be read, is unknown or is given twice.";
    InvalidHeader "INVALID_HEADER" 400 "A header cannot be read.";
    InvalidCursor "INVALID_CURSOR" 400 "The cursor was not issued for this list.";
    InvalidFilter "INVALID_FILTER" 400 "The filter cannot be read.";
    InvalidPath "INVALID_PATH" 400 "A path of a patch cannot be read, or does not fit its attribute.";
    InvalidValue "INVALID_VALUE" 400 "A value is missing, or does not fit its attribute.";
    NoTarget "NO_TARGET" 400 "A patch is about something that there is not.";
    ReadOnlyAttribute "READ_ONLY_ATTRIBUTE" 400 "The attribute is not the client's to change.";
    MalformedCredentials "MALFORMED_CREDENTIALS" 400 "The credentials are not of a known form, or there are several.";
    LoginFailed "LOGIN_FAILED" 400 "The login cannot be finished: it was not begun by this browser, took too long, was finished before, or was refused; begin again.";
    LogoutTokenRefused "LOGOUT_TOKEN_REFUSED" 400 "The logout token is not one, is not for us, or came before.";
    AuthenticationRequired "AUTHENTICATION_REQUIRED" 401 "The request carries no credentials.";
    InvalidCredentials "INVALID_CREDENTIALS" 401 "The credentials are unknown, expired or revoked.";
    Forbidden "FORBIDDEN" 403 "The credentials do not allow this.";
    PermissionNotHeld "PERMISSION_NOT_HELD" 403 "The change would hand out a permission that the credentials do not have themselves; details.permission names it.";
    LoginDenied "LOGIN_DENIED" 403 "The identity provider vouches for somebody who may not come in here.";
    NotProven "CSRF_REFUSED" 403 "The request came with a session's cookie and does not prove that a page of ours sent it; send X-CSRF-Token.";
    TenantMismatch "TENANT_MISMATCH" 403 "X-Tenant-Id and the path name different tenants.";
    TenantSuspended "TENANT_SUSPENDED" 403 "The tenant is suspended; its credentials are refused.";
    NotFound "NOT_FOUND" 404 "There is nothing at this address.";
    TenantNotFound "TENANT_NOT_FOUND" 404 "There is no such tenant.";
    LoginOff "LOGIN_OFF" 404 "There is no such way to log in.";
    ApiKeyNotFound "API_KEY_NOT_FOUND" 404 "There is no such API key.";
    QuarantinedNotFound "QUARANTINED_NOT_FOUND" 404 "There is no such event in quarantine.";
    ChannelNotFound "CHANNEL_NOT_FOUND" 404 "There is no such notification channel.";
    AlertNotFound "ALERT_NOT_FOUND" 404 "There is no such alert.";
    FindingNotFound "FINDING_NOT_FOUND" 404 "There is no such finding.";
    UserNotFound "USER_NOT_FOUND" 404 "There is no such user.";
    GroupNotFound "GROUP_NOT_FOUND" 404 "There is no such group.";
    MemberNotFound "MEMBER_NOT_FOUND" 404 "The group has no such member of its own.";
    RoleAssignmentNotFound "ROLE_ASSIGNMENT_NOT_FOUND" 404 "There is no such role assignment.";
    RoleNotFound "ROLE_NOT_FOUND" 404 "There is no such role.";
    PolicyNotFound "POLICY_NOT_FOUND" 404 "There is no such policy.";
    PlatformAdminNotFound "PLATFORM_ADMIN_NOT_FOUND" 404 "There is no such administrator of the platform.";
    FlagNotFound "FLAG_NOT_FOUND" 404 "There is no such feature flag.";
    ProviderNotFound "PROVIDER_NOT_FOUND" 404 "There is no such provider.";
    ProviderSecretNotFound "PROVIDER_SECRET_NOT_FOUND" 404 "The provider has no secret.";
    JobNotFound "JOB_NOT_FOUND" 404 "There is no such job.";
    MethodNotAllowed "METHOD_NOT_ALLOWED" 405 "The address does not know this method; see the Allow header.";
    NotAcceptable "NOT_ACCEPTABLE" 406 "The answer is JSON, which the Accept header excludes.";
    RequestTimeout "REQUEST_TIMEOUT" 408 "The request did not arrive in time.";
    SlugTaken "SLUG_TAKEN" 409 "Another tenant has this slug.";
    ExternalIdTaken "EXTERNAL_ID_TAKEN" 409 "Another tenant has this external id.";
    IllegalMove "ILLEGAL_TRANSITION" 409 "The tenant's lifecycle does not allow this.";
    TooManyApiKeys "TOO_MANY_API_KEYS" 409 "The tenant has as many API keys as it may have; revoke one first.";
    ApiKeyEnded "API_KEY_ENDED" 409 "The API key is revoked or has expired; one that has expired may be given more time.";
    RotationUnderWay "ROTATION_UNDER_WAY" 409 "Two secrets open the API key until details.previousUntil; rotate it then, or with overlapSeconds 0 to end both.";
    AlreadyReplayed "ALREADY_REPLAYED" 409 "The quarantined event was counted on an earlier try.";
    FindingClosed "FINDING_CLOSED" 409 "The finding has been dealt with, or has resolved itself; details.status says how.";
    TooManyFlags "TOO_MANY_FLAGS" 409 "There are as many feature flags as there may be; delete one first.";
    FlagNotOverridable "FLAG_NOT_OVERRIDABLE" 409 "The platform has a feature flag of this key that tenants may not override.";
    FlagsKeptElsewhere "FLAGS_KEPT_ELSEWHERE" 409 "The platform's feature flags are kept in another service; change them there.";
    JobFinished "JOB_FINISHED" 409 "The job has ended already; details.state says how.";
    JobNotCancelable "JOB_NOT_CANCELABLE" 409 "The job finishes a change that was made; it cannot be canceled.";
    TooManyJobs "TOO_MANY_JOBS" 409 "There are as many unfinished jobs as there may be; wait until some have ended.";
    VaultOff "VAULT_OFF" 409 "This platform has no vault, so no providers; an operator can configure one.";
    TooManyProviders "TOO_MANY_PROVIDERS" 409 "The tenant has as many providers as it may have; delete one first.";
    ProviderInactive "PROVIDER_INACTIVE" 409 "The provider is not active.";
    EgressRefused "EGRESS_REFUSED" 409 "The provider's host is neither one of its kind's own nor one of the policy's egressHosts.";
    ModelNotAllowed "MODEL_NOT_ALLOWED" 409 "The tenant's policy does not have the model.";
    SecretMadeHere "SECRET_MADE_HERE" 409 "The platform makes the secret of a provider of this kind itself.";
    AlertOver "ALERT_OVER" 409 "What the alert tells is over; details.resolvedAt says since when.";
    IdentityTaken "IDENTITY_TAKEN" 409 "Another one has this name, external id or subject; details.pointer says which.";
    MembershipRefused "MEMBERSHIP_REFUSED" 409 "A group would be a member of itself, or groups would be nested more than 8 deep; details.reason says which.";
    RoleAlreadyAssigned "ROLE_ALREADY_ASSIGNED" 409 "The holder has this role already.";
    RoleBuiltIn "ROLE_BUILT_IN" 409 "It is, or would be called as, one of the roles that every tenant has and nobody changes.";
    RoleInUse "ROLE_IN_USE" 409 "The role is given to somebody, or a policy speaks of it; take it back first.";
    OrganizationFull "ORGANIZATION_FULL" 409 "There are as many as there may be; details says of what, and how many.";
    PreconditionFailed "PRECONDITION_FAILED" 412 "It has changed since the version in If-Match; read it again.";
    PayloadTooLarge "PAYLOAD_TOO_LARGE" 413 "The body is longer than this address takes.";
    TooManyEvents "TOO_MANY_EVENTS" 413 "The batch has more events than this address takes; split it.";
    UriTooLong "URI_TOO_LONG" 414 "The address is longer than 8 KiB.";
    UnsupportedMediaType "UNSUPPORTED_MEDIA_TYPE" 415 "The Content-Type or Content-Encoding is not one this address reads.";
    ValidationFailed "VALIDATION_FAILED" 422 "The body or a parameter is well-formed and wrong; details.fields has a JSON pointer per problem.";
    IdempotencyKeyReused "IDEMPOTENCY_KEY_REUSED" 422 "The Idempotency-Key was used before with another body.";
    AdjustmentRefused "ADJUSTMENT_REFUSED" 422 "The adjusting entry cannot be counted; details.reason says why.";
    AdjustmentBelowZero "ADJUSTMENT_BELOW_ZERO" 422 "A sum of the tenant's, or of one of its quotas, would fall below zero.";
    ReportTooLarge "REPORT_TOO_LARGE" 422 "The report has too many rows: ask for a shorter time, a coarser granularity or fewer dimensions.";
    NothingAccepted "NO_EVENT_ACCEPTED" 422 "No event of the batch could be counted; details.rejected says why.";
    StillRefused "STILL_REFUSED" 422 "The quarantined event can still not be counted.";
    TestedTooOften "TESTED_TOO_OFTEN" 429 "The channel was tested just now; try again after Retry-After.";
    PreconditionRequired "PRECONDITION_REQUIRED" 428 "If-Match is required: the ETag that was read, or * for whichever version there is.";
    TooManyFailures "TOO_MANY_FAILURES" 429 "The credentials are not valid, and too many were tried; try again after Retry-After.";
    RateLimited "RATE_LIMITED" 429 "These credentials have asked too often; try again after Retry-After.";
    HeadersTooLarge "HEADERS_TOO_LARGE" 431 "The request's line and headers together are longer than 32 KiB.";
    Internal "INTERNAL_ERROR" 500 "Something went wrong on our side; the request id finds it in our logs.";
    TenantStarting "TENANT_STARTING" 503 "The tenant is starting; try again after Retry-After.";
    TenantFrozen "TENANT_FROZEN" 503 "The tenant's database needs a person's attention; other tenants are not affected.";
    TenantSaturated "TENANT_SATURATED" 503 "As many events of the tenant are waiting as may wait; try again after Retry-After.";
    Timeout "TIMEOUT" 503 "Our own deadline passed. Whether a change was made is unknown; repeating it with its Idempotency-Key is safe.";
    StoreUnavailable "STORE_UNAVAILABLE" 503 "The database could not be reached; repeating the request is safe.";
    KeysUnavailable "IDENTITY_PROVIDER_UNAVAILABLE" 503 "The identity provider's keys could not be fetched; the token could not be judged.";
    VaultUnavailable "VAULT_UNAVAILABLE" 503 "The vault's key cannot be used now, or a secret cannot be read with it.";
    NotReady "NOT_READY" 503 "A dependency that this service needs is not available, or it is shutting down.";
}

/// What a client should wait when nobody knows better.
const RETRY_AFTER_SECONDS: u64 = 1;
/// What a client should wait for a tenant that a person must look at.
const FROZEN_RETRY_AFTER_SECONDS: u64 = 60;

/// An answer that is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    pub message: Cow<'static, str>,
    /// A JSON object.
    pub details: Map<String, Value>,
    pub retry_after_seconds: Option<u64>,
    /// The methods that the address knows, for 405.
    pub allow: Option<String>,
}

/// How an error is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"error": {…}}`.
    Envelope,
    /// RFC 9457, around the envelope.
    Rfc9457,
    /// RFC 7644, 3.12, which knows no other members: the code stands before the message.
    Scim,
}

impl Form {
    pub(super) fn media(self) -> &'static str {
        match self {
            Form::Envelope => "application/json",
            Form::Rfc9457 => "application/problem+json",
            Form::Scim => "application/scim+json",
        }
    }

    /// Its name in the document.
    pub(super) fn schema(self) -> &'static str {
        match self {
            Form::Envelope => "Error",
            Form::Rfc9457 => "Problem",
            Form::Scim => "ScimError",
        }
    }
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FieldProblem {
    /// RFC 6901; a query parameter is named as `?name`.
    pub pointer: String,
    pub message: String,
}

impl Problem {
    #[must_use]
    pub fn new(code: Code) -> Problem {
        let retry_after_seconds = (code.status() == 503).then_some(RETRY_AFTER_SECONDS);
        Problem { code, message: Cow::Borrowed(code.title()), details: Map::new(), retry_after_seconds, allow: None }
    }

    #[must_use]
    pub fn saying(self, message: impl Into<Cow<'static, str>>) -> Problem {
        Problem { message: message.into(), ..self }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Problem {
        self.details.insert(key.to_owned(), value);
        self
    }

    #[must_use]
    pub fn after_ms(self, milliseconds: u64) -> Problem {
        Problem { retry_after_seconds: Some(milliseconds.div_ceil(1_000).max(1)), ..self }
    }

    /// Every problem of every field at once.
    #[must_use]
    pub fn fields(problems: Vec<FieldProblem>) -> Problem {
        Problem::new(Code::ValidationFailed).with("fields", json!(problems))
    }

    /// One problem of one field.
    #[must_use]
    pub fn field(pointer: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::fields(vec![FieldProblem { pointer: pointer.into(), message: message.into() }])
    }

    /// What the domain finds wrong with a document.
    #[must_use]
    pub fn flaws(flaws: Vec<Flaw>) -> Problem {
        let field = |Flaw { pointer, message }| FieldProblem { pointer, message };
        Problem::fields(flaws.into_iter().map(field).collect())
    }

    #[must_use]
    pub fn parameter(name: &str, message: &str) -> Problem {
        Problem::new(Code::InvalidParameter).saying(format!("{name}: {message}"))
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What is told, written in `form`.
    pub(super) fn body<'a>(&'a self, request_id: &'a str, form: Form) -> impl Serialize + 'a {
        if form == Form::Scim {
            return Told::Scim(ScimError {
                schemas: ["urn:ietf:params:scim:api:messages:2.0:Error"],
                status: self.code.status().to_string(),
                scim_type: scim_type(self.code),
                detail: format!("{}: {}", self.code.name(), self.message),
            });
        }
        let error = Inner { code: self.code.name(), message: &self.message, details: &self.details, request_id };
        let standard = (form == Form::Rfc9457).then(|| Standard {
            kind: "about:blank",
            title: self.status().canonical_reason().unwrap_or_default(),
            status: self.code.status(),
            detail: &self.message,
        });
        Told::Envelope(Envelope { standard, error })
    }

    fn written(&self, request_id: &str, form: Form) -> Vec<u8> {
        // Structs of strings and a JSON object always serialize.
        serde_json::to_vec(&self.body(request_id, form)).unwrap_or_default()
    }

    /// The whole answer as bytes, the last of its connection: for what never became a request.
    #[must_use]
    pub(super) fn on_the_wire(&self, request_id: &str) -> Vec<u8> {
        let (status, body) = (self.status(), self.written(request_id, Form::Envelope));
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {request_id}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len(),
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        answer
    }

    /// The whole answer.
    #[must_use]
    pub(super) fn respond(&self, request_id: &str, form: Form) -> Response {
        let (status, bytes) = (self.status(), self.written(request_id, form));
        let mut response = Response::builder().status(status).content_type(form.media()).body(Body::from_vec(bytes));
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, challenge(self.code));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The rest of such a body stays unread: a next request on this connection would meet its end.
        if matches!(self.code, Code::PayloadTooLarge | Code::RequestTimeout) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|methods| HeaderValue::from_str(methods).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }

    /// What the framework meant by an error of its own, told in our words.
    #[must_use]
    pub fn of_framework(status: StatusCode) -> Problem {
        Problem::new(match status.as_u16() {
            // Parameters are texts that the handlers read; the framework refuses only those that are not there.
            400 => Code::InvalidParameter,
            401 => Code::InvalidCredentials,
            403 => Code::Forbidden,
            404 => Code::NotFound,
            405 => Code::MethodNotAllowed,
            406 => Code::NotAcceptable,
            413 => Code::PayloadTooLarge,
            414 => Code::UriTooLong,
            415 => Code::UnsupportedMediaType,
            422 => Code::ValidationFailed,
            503 => Code::NotReady,
            402..=499 => Code::BadRequest,
            _ => Code::Internal,
        })
    }
}

fn challenge(code: Code) -> HeaderValue {
    match code {
        Code::AuthenticationRequired => HeaderValue::from_static("Bearer realm=\"platform-api\""),
        _ => HeaderValue::from_static("Bearer realm=\"platform-api\", error=\"invalid_token\""),
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Told<'a> {
    Envelope(Envelope<'a>),
    Scim(ScimError),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScimError {
    schemas: [&'static str; 1],
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scim_type: Option<&'static str>,
    detail: String,
}

/// The protocol's own word for it, where it has one.
fn scim_type(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::InvalidFilter => "invalidFilter",
        Code::InvalidPath => "invalidPath",
        Code::InvalidValue => "invalidValue",
        Code::MalformedJson => "invalidSyntax",
        Code::NoTarget => "noTarget",
        Code::ReadOnlyAttribute => "mutability",
        Code::IdentityTaken => "uniqueness",
        _ => return None,
    })
}

#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(flatten)]
    standard: Option<Standard<'a>>,
    error: Inner<'a>,
}

/// The members that RFC 9457 names.
#[derive(Serialize)]
struct Standard<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inner<'a> {
    code: &'static str,
    message: &'a str,
    details: &'a Map<String, Value>,
    request_id: &'a str,
}

/// Carries the problem through the framework; [`super::door`] renders it with the request's id.
impl From<Problem> for poem::Error {
    fn from(problem: Problem) -> poem::Error {
        let mut error = poem::Error::from_status(problem.status());
        error.set_data(problem);
        error
    }
}

/// The document's error responses are written from the operation table; see `document`.
impl ApiResponse for Problem {
    fn meta() -> registry::MetaResponses {
        registry::MetaResponses { responses: Vec::new() }
    }

    fn register(_registry: &mut registry::Registry) {}
}

impl From<Absent> for Problem {
    fn from(absent: Absent) -> Problem {
        match absent {
            Absent::Unknown => Problem::new(Code::TenantNotFound),
            Absent::ComeBack { after_ms } | Absent::Elsewhere { after_ms } => {
                Problem::new(Code::TenantStarting).after_ms(after_ms)
            }
            Absent::Frozen => {
                Problem { retry_after_seconds: Some(FROZEN_RETRY_AFTER_SECONDS), ..Problem::new(Code::TenantFrozen) }
            }
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Problem {
        Problem::new(match unavailable {
            Unavailable::ComeBack => Code::TenantStarting,
            Unavailable::Saturated => Code::TenantSaturated,
            Unavailable::TimedOut => Code::Timeout,
        })
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        match refused {
            Refused::UnknownTenant => Problem::new(Code::TenantNotFound),
            Refused::UnknownKey => Problem::new(Code::ApiKeyNotFound),
            Refused::SlugTaken => Problem::new(Code::SlugTaken),
            Refused::ExternalIdTaken { index } => {
                Problem::new(Code::ExternalIdTaken).with("pointer", json!(format!("/externalIds/{index}")))
            }
            Refused::IllegalMove { from, to } => Problem::new(Code::IllegalMove)
                .saying(format!("A tenant that is {} cannot become {}.", from.name(), to.name()))
                .with("from", json!(from.name()))
                .with("to", json!(to.name())),
            Refused::UnknownTimeZone => Problem::field("/timeZone", "not an IANA time zone, such as Europe/Berlin"),
            Refused::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            Refused::TooManyKeys => Problem::new(Code::TooManyApiKeys),
            Refused::Key(api_key::Refusal::Stale) => Problem::new(Code::PreconditionFailed),
            Refused::Key(api_key::Refusal::Ended) => Problem::new(Code::ApiKeyEnded),
            Refused::Key(api_key::Refusal::Overlapping { until }) => {
                Problem::new(Code::RotationUnderWay).with("previousUntil", json!(until.to_string()))
            }
            Refused::Unavailable(reason) => {
                tracing::warn!(reason, "the catalogue could not be reached");
                Problem::new(Code::StoreUnavailable)
            }
        }
    }
}

impl From<ChangeRefused> for Problem {
    fn from(refused: ChangeRefused) -> Problem {
        match refused {
            ChangeRefused::UnknownQuota { index } => {
                Problem::field(format!("/quotas/{index}/id"), "the tenant has no quota with this id")
            }
            ChangeRefused::SameQuotaTwice { index } => {
                Problem::field(format!("/quotas/{index}"), "another quota has the same scope, metric and period")
            }
            ChangeRefused::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            ChangeRefused::UnknownTimeZone => {
                Problem::field("/timeZone", "not an IANA time zone, such as Europe/Berlin")
            }
            ChangeRefused::UnknownFinding => Problem::new(Code::FindingNotFound),
            ChangeRefused::FindingClosed { status } => {
                Problem::new(Code::FindingClosed).with("status", json!(status.name()))
            }
            ChangeRefused::AdjustmentRefused(refusal) => {
                Problem::new(Code::AdjustmentRefused).with("reason", json!(refusal.code()))
            }
            ChangeRefused::BelowZero => Problem::new(Code::AdjustmentBelowZero),
            ChangeRefused::RolledBack => Problem::new(Code::StoreUnavailable),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let membership = |reason: &str, index: usize| {
            let pointer = json!(format!("/members/{index}"));
            Problem::new(Code::MembershipRefused).with("reason", json!(reason)).with("pointer", pointer)
        };
        match refusal {
            Refusal::UnknownUser => Problem::new(Code::UserNotFound),
            Refusal::UnknownGroup => Problem::new(Code::GroupNotFound),
            Refusal::UnknownMember => Problem::new(Code::MemberNotFound),
            Refusal::UnknownAssignment => Problem::new(Code::RoleAssignmentNotFound),
            Refusal::Stale => Problem::new(Code::PreconditionFailed),
            Refusal::Flawed(flaws) => Problem::flaws(flaws),
            Refusal::Taken { pointer } => Problem::new(Code::IdentityTaken).with("pointer", json!(pointer)),
            Refusal::Full { what, most } => {
                Problem::new(Code::OrganizationFull).with("of", json!(what)).with("most", json!(most))
            }
            Refusal::Cycle { index } => membership("cycle", index),
            Refusal::TooDeep { index } => membership("depth", index),
            Refusal::AlreadyAssigned => Problem::new(Code::RoleAlreadyAssigned),
            Refusal::UnknownRole => Problem::field("/role", "the tenant has no role of this name"),
        }
    }
}

impl From<policy::Refusal> for Problem {
    fn from(refusal: policy::Refusal) -> Problem {
        match refusal {
            policy::Refusal::UnknownRole => Problem::new(Code::RoleNotFound),
            policy::Refusal::UnknownPolicy => Problem::new(Code::PolicyNotFound),
            policy::Refusal::Stale => Refusal::Stale.into(),
            policy::Refusal::Flawed(flaws) => Problem::flaws(flaws),
            policy::Refusal::Taken { pointer } => Refusal::Taken { pointer }.into(),
            policy::Refusal::Full { what, most } => Refusal::Full { what, most }.into(),
            policy::Refusal::BuiltIn => Problem::new(Code::RoleBuiltIn),
            policy::Refusal::InUse => Problem::new(Code::RoleInUse),
        }
    }
}

impl From<platform_admin::Refusal> for Problem {
    fn from(refusal: platform_admin::Refusal) -> Problem {
        match refusal {
            platform_admin::Refusal::Unknown => Problem::new(Code::PlatformAdminNotFound),
            platform_admin::Refusal::IsOne => Problem::new(Code::IdentityTaken).with("pointer", json!("/subject")),
            platform_admin::Refusal::TooMany => Problem::new(Code::OrganizationFull)
                .with("of", json!("platform administrators"))
                .with("most", json!(platform_admin::PLATFORM_ADMINS_MAX)),
        }
    }
}

impl<R: Into<Problem>> From<Declined<R>> for Problem {
    fn from(declined: Declined<R>) -> Problem {
        match declined {
            Declined::Refused(refused) => refused.into(),
            Declined::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            Declined::RolledBack => Problem::new(Code::StoreUnavailable),
        }
    }
}

impl<R: Into<Problem>> From<PlatformDeclined<R>> for Problem {
    fn from(declined: PlatformDeclined<R>) -> Problem {
        match declined {
            PlatformDeclined::Refused(refused) => refused.into(),
            PlatformDeclined::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            PlatformDeclined::Unavailable(reason) => Problem::from(Refused::Unavailable(reason)),
        }
    }
}

impl From<NotAcknowledged> for Problem {
    fn from(refused: NotAcknowledged) -> Problem {
        match refused {
            NotAcknowledged::Unknown => Problem::new(Code::AlertNotFound),
            NotAcknowledged::Over { at } => Problem::new(Code::AlertOver).with("resolvedAt", json!(at)),
        }
    }
}

impl From<ReadFailure> for Problem {
    fn from(failure: ReadFailure) -> Problem {
        match failure {
            ReadFailure::TooManyRows(_) => Problem::new(Code::ReportTooLarge),
            ReadFailure::Store(error) => {
                tracing::warn!(%error, "a read failed");
                Problem::new(Code::StoreUnavailable)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    async fn told(problem: Problem) -> (Response, Value) {
        let mut response = problem.respond("req-1", Form::Envelope);
        let bytes = response.take_body().into_vec().await.unwrap();
        (response, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn each_code_is_told_in_the_same_envelope_with_the_headers_of_its_status() {
        let mut names = BTreeSet::new();
        for code in Code::ALL {
            assert!(names.insert(code.name()), "{} is there twice", code.name());
            let (response, body) = told(Problem::new(*code)).await;
            assert_eq!(response.status().as_u16(), code.status());
            assert_eq!(response.content_type(), Some("application/json"));
            assert_eq!(response.header("cache-control"), Some("no-store"));
            let expected = json!({"error": {
                "code": code.name(), "message": code.title(), "details": {}, "requestId": "req-1"
            }});
            assert_eq!(body, expected);
            assert_eq!(response.header("www-authenticate").is_some(), code.status() == 401, "{}", code.name());
            assert_eq!(response.header("retry-after").is_some(), code.status() == 503, "{}", code.name());
        }
    }

    #[tokio::test]
    async fn the_standard_s_form_is_put_around_the_envelope() {
        let mut response = Problem::new(Code::NothingAccepted).saying("why").respond("req-1", Form::Rfc9457);
        assert_eq!(response.content_type(), Some("application/problem+json"));
        let body: Value = serde_json::from_slice(&response.take_body().into_vec().await.unwrap()).unwrap();
        let error = json!({"code": "NO_EVENT_ACCEPTED", "message": "why", "details": {}, "requestId": "req-1"});
        let (kind, title) = ("about:blank", "Unprocessable Entity");
        assert_eq!(body, json!({"type": kind, "title": title, "status": 422, "detail": "why", "error": error}));
    }

    #[tokio::test]
    async fn a_wrong_method_names_the_right_ones() {
        let problem = Problem { allow: Some("GET, PUT".into()), ..Problem::new(Code::MethodNotAllowed) };
        let (response, _) = told(problem).await;
        assert_eq!(response.header("allow"), Some("GET, PUT"));
    }

    #[test]
    fn waiting_is_rounded_up_to_whole_seconds() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (60_000, 60)] {
            let problem = Problem::from(Absent::ComeBack { after_ms: milliseconds });
            assert_eq!(problem.retry_after_seconds, Some(seconds), "{milliseconds}");
        }
        assert_eq!(Problem::from(Absent::Frozen).retry_after_seconds, Some(60));
    }

    #[tokio::test]
    async fn the_store_s_own_words_never_leave() {
        for problem in [
            Problem::from(Refused::Unavailable("password authentication failed for user x".into())),
            Problem::from(ReadFailure::Store(crate::store::StoreError::Wrong("SELECT secret".into()))),
        ] {
            let (_, body) = told(problem).await;
            let text = body.to_string();
            assert!(!text.contains("password") && !text.contains("SELECT"), "{text}");
        }
    }
}
