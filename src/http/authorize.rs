//! Who is calling, and may they: every operation that is not open passes here, and what no rule allows is denied.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use poem::http::{HeaderMap, Method};
use poem::{FromRequest, Request, RequestBody};
use serde_json::json;

use super::Api;
use super::auth;
use super::door::Passage;
use super::gateway;
use super::operation::{Operation, Scope};
use super::people::home;
use super::problem::{Code, Problem};
use super::rate_limits;
use crate::access::login::Cookie;
use crate::access::{
    Caller, Credentials, FAILURES_WINDOW, Judged, SessionCookie, Unauthenticated, Wish, count_revoked,
};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::TenantId;
use crate::domain::organization::Revoked;
use crate::domain::policy::giver::{Credential, GRANT, Giver};
use crate::domain::request::{self, Idempotency};
use crate::domain::tenant::{Role, Tenant};
use crate::tenant;
use crate::tenant::grant::{Given, Gives, Withheld};
use crate::tenant::task::{Declined, Render, Told};

/// How long a denied caller waits for the record of its denial.
const AUDIT_PATIENCE: Duration = Duration::from_secs(2);

/// A caller who may do what it asks for. `None` for an open operation.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    pub(super) caller: Option<Caller>,
    /// The tenant in question; `None` for the platform's own matters.
    pub(super) tenant: Option<TenantId>,
}

/// What a handler knows of its request.
#[derive(Clone)]
pub(super) struct Ask(Arc<Asked>);

pub(super) struct Asked {
    pub(super) api: Arc<Api>,
    pub(super) operation: &'static Operation,
    pub(super) admitted: Admitted,
    pub(super) request_id: String,
    pub(super) headers: HeaderMap,
    pub(super) query: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// Where the request came from.
    pub(super) source: Option<IpAddr>,
    idempotency: Option<Idempotency>,
}

/// Decides whether the passage may go on, and about which tenant it is.
///
/// # Errors
/// 401, 403, 404 or 429; a denial of a caller who is known is in the audit chain when this returns.
pub(super) async fn admit(api: &Api, passage: &Passage) -> Result<Admitted, Problem> {
    if passage.operation.scope == Scope::Open {
        return Ok(Admitted { caller: None, tenant: None });
    }
    if passage.operation.id == gateway::LOGS
        && let Some(caller) = api.kong.admit(&api.gate, passage.request.headers(), source(api, passage))?
    {
        tracing::Span::current().record("actor", caller.actor.as_str());
        return Ok(Admitted { caller: Some(caller), tenant: None });
    }
    let mut caller = authenticate(api, passage).await?;
    rate_limits::admit(api, passage, &caller)?;
    if let Some(user) = passage.said.user.as_ref().filter(|_| caller.service) {
        caller.actor = format!("{} for user:{user}", caller.actor);
        caller.user = Some(user.clone());
    }
    let span = tracing::Span::current();
    span.record("actor", caller.actor.as_str());
    let (object, action) = (passage.operation.object, passage.operation.action);
    // Whose it is comes first: of another tenant's, and by a suspended one, nothing is asked.
    let (mut judged, mut denied_by) = (judge(&caller, passage, |_| true), None);
    if judged.is_ok() {
        let wish = Wish { object, action, id: passage.resource_id(), source: source(api, passage) };
        let verdict = match api.gate.judge(&mut caller, &wish).await {
            Ok(verdict) => verdict,
            // What these senders report is lost when it is refused, and waits in quarantine for a tenant that is away.
            Err(_) if passage.operation.class().is_none() => {
                Judged { allowed: api.gate.allows(&caller, object, action), denied_by: None }
            }
            Err(away) => return Err(unauthenticated(&away)),
        };
        judged = judge(&caller, passage, |_| verdict.allowed);
        denied_by = verdict.denied_by;
    }
    match judged {
        Ok(tenant) => {
            if let Some(tenant) = tenant {
                span.record("tenant", tracing::field::display(tenant));
            }
            Ok(Admitted { caller: Some(caller), tenant })
        }
        Err(problem) => {
            match problem.code {
                Code::TenantSuspended => count_revoked(Revoked::Tenant),
                Code::Forbidden if api.gate.is_withheld(&caller, object, action) => count_revoked(Revoked::Group),
                _ => {}
            }
            let denied = Denied {
                operation: passage.operation,
                request_id: &passage.identity.request_id,
                code: problem.code,
                policy: denied_by,
                permission: None,
            };
            Box::pin(record_denial(api, &caller, denied, passage.request.uri().path())).await;
            Err(problem)
        }
    }
}

async fn authenticate(api: &Api, passage: &Passage) -> Result<Caller, Problem> {
    let headers = passage.request.headers();
    let unreadable = || Problem::new(Code::MalformedCredentials);
    let text = |name: &str| -> Result<Vec<&str>, Problem> {
        headers.get_all(name).iter().map(|value| value.to_str().map_err(|_| unreadable())).collect()
    };
    let authorization = text("authorization")?;
    let keys = text("x-api-key")?;
    if keys.len() > 1 {
        return Err(unreadable());
    }
    let cookie = api.gate.cookie(Cookie::Session, auth::cookie_lines(headers));
    let changes = !matches!(*passage.request.method(), Method::GET | Method::HEAD);
    let session = cookie.map(|cookie| SessionCookie { cookie, changes, said: auth::provenance(headers) });
    let credentials =
        Credentials { authorization, api_key: keys.first().copied(), source: source(api, passage), session };
    api.gate.authenticate(credentials).await.map_err(|reason| unauthenticated(&reason))
}

pub(super) fn unauthenticated(reason: &Unauthenticated) -> Problem {
    match reason {
        Unauthenticated::Missing => Problem::new(Code::AuthenticationRequired),
        Unauthenticated::Malformed => Problem::new(Code::MalformedCredentials),
        Unauthenticated::Invalid => Problem::new(Code::InvalidCredentials),
        Unauthenticated::TooOften => too_many_failures(),
        Unauthenticated::KeysUnavailable => Problem::new(Code::KeysUnavailable),
        Unauthenticated::Unproven => Problem::new(Code::NotProven),
        Unauthenticated::SessionsAway => Problem::new(Code::StoreUnavailable),
        Unauthenticated::TenantAway(absent) => Problem::from(*absent),
    }
}

/// Where the request came from.
fn source(api: &Api, passage: &Passage) -> Option<IpAddr> {
    api.proxies.client(&passage.request)
}

pub(super) fn too_many_failures() -> Problem {
    Problem::new(Code::TooManyFailures).after_ms(u64::try_from(FAILURES_WINDOW.as_millis()).unwrap_or(u64::MAX))
}

/// The tenant in question, or why the caller may not.
fn judge(caller: &Caller, passage: &Passage, allows: impl Fn(&Caller) -> bool) -> Result<Option<TenantId>, Problem> {
    if caller.suspended {
        return Err(Problem::new(Code::TenantSuspended));
    }
    let tenant = subject(caller, passage)?;
    if passage.operation.scope == Scope::Caller {
        return Ok(tenant);
    }
    let holds = match passage.operation.scope {
        Scope::Platform => is_platform(caller),
        // Without a tenant and without the platform's role, a caller has no books to look into.
        _ => is_platform(caller) || (caller.tenant.is_some() && caller.tenant == tenant),
    };
    if holds && allows(caller) { Ok(tenant) } else { Err(Problem::new(Code::Forbidden)) }
}

/// Platform rights need the role and no tenant: a role within a tenant's own token never reaches beyond it.
fn is_platform(caller: &Caller) -> bool {
    caller.tenant.is_none() && caller.roles.contains(&Role::PlatformAdmin)
}

/// Which tenant it is about. Another tenant's is answered as one that does not exist.
pub(super) fn subject(caller: &Caller, passage: &Passage) -> Result<Option<TenantId>, Problem> {
    let unknown = || Problem::new(Code::TenantNotFound);
    let own = |named: TenantId| match caller.tenant {
        Some(tenant) if tenant != named => Err(unknown()),
        _ => Ok(Some(named)),
    };
    let said = passage.said.tenant;
    match passage.operation.scope {
        Scope::Open => Ok(None),
        Scope::Platform | Scope::Caller => Ok(caller.tenant),
        Scope::TenantInPath => {
            let segment = passage.segments[0].as_deref().unwrap_or_default();
            let named: TenantId = segment.parse().map_err(|_| unknown())?;
            if said.is_some_and(|tenant| tenant != named) {
                return Err(Problem::new(Code::TenantMismatch));
            }
            own(named)
        }
        Scope::TenantOfCredential => {
            let asked = passage.query.iter().find(|(name, _)| name == "tenantId");
            let asked: Option<TenantId> = match asked {
                Some((_, text)) => Some(text.parse().map_err(|_| unknown())?),
                None => None,
            };
            if asked.is_some() && said.is_some() && asked != said {
                return Err(Problem::new(Code::TenantMismatch));
            }
            asked.or(said).map_or(Ok(caller.tenant), own)
        }
    }
}

/// What was denied, and why.
struct Denied<'a> {
    operation: &'static Operation,
    request_id: &'a str,
    code: Code,
    /// The id of the tenant's policy that denies it.
    policy: Option<String>,
    /// What the change would have handed out.
    permission: Option<String>,
}

/// One record in the caller's own chain, or the platform's. A chain that cannot take it does not hide the denial.
async fn record_denial(api: &Api, caller: &Caller, denied: Denied<'_>, path: &str) {
    let Denied { operation, request_id, code, policy, permission } = denied;
    metrics::counter!("platform_api_http_denials_total", "code" => code.name()).increment(1);
    let mut payload = json!({ "code": code.name(), "path": path });
    if let Some(policy) = policy {
        payload["policy"] = json!(policy);
    }
    if let Some(permission) = permission {
        payload["permission"] = json!(permission);
    }
    let entry = Entry {
        actor: caller.actor.clone(),
        action: "access.denied".into(),
        target: format!("operation:{}", operation.id),
        outcome: EntryOutcome::Denied,
        request_id: request_id.to_owned(),
        payload: payload.to_string(),
    };
    let recorded = tokio::time::timeout(AUDIT_PATIENCE, async {
        match caller.tenant {
            Some(tenant) => match api.directory.find(tenant).await {
                Ok(handle) => handle.append(entry, None).await.map_err(|error| error.to_string()),
                Err(absent) => Err(absent.to_string()),
            },
            None => api.directory.append_platform(entry).await.map_err(|error| error.to_string()),
        }
    });
    match recorded.await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => tracing::error!(reason, "a denial could not be recorded"),
        Err(_) => tracing::error!("a denial could not be recorded in time"),
    }
}

impl Ask {
    /// Everything a handler needs, once body and caller are known; and what the framework needs to find the handler.
    pub(super) fn new(api: Arc<Api>, passage: Passage, admitted: Admitted, body: Bytes) -> (Ask, Request) {
        let Passage { mut request, operation, identity, said, query, .. } = passage;
        let actor = admitted.caller.as_ref().map_or("", |caller| caller.actor.as_str());
        let idempotency = said.idempotency_key.map(|key| Idempotency {
            key: idempotency_key(admitted.tenant, actor, request.method(), request.uri().path(), &key),
            body_hash: sha256(&body),
        });
        let request_id = identity.request_id;
        let source = api.proxies.client(&request);
        let headers = std::mem::take(request.headers_mut());
        let ask = Asked { api, operation, admitted, request_id, headers, query, body, source, idempotency };
        (Ask(Arc::new(ask)), request)
    }

    /// The ask that the stack has put into the request.
    pub(super) fn of(request: &Request) -> Result<&Ask, Problem> {
        request.data::<Ask>().ok_or_else(|| Problem::new(Code::Internal))
    }

    /// The tenant in question.
    pub(super) fn tenant(&self) -> Result<TenantId, Problem> {
        self.admitted.tenant.ok_or_else(|| Problem::new(Code::TenantNotFound))
    }

    /// The tenant's row in the catalogue.
    pub(super) fn row(&self) -> Result<Tenant, Problem> {
        self.api.directory.tenant(self.tenant()?).ok_or_else(|| Problem::new(Code::TenantNotFound))
    }

    /// The tenant's doorbell.
    pub(super) async fn handle(&self) -> Result<tenant::handle::Handle, Problem> {
        Ok(self.api.directory.find(self.tenant()?).await?)
    }

    pub(super) fn is_platform(&self) -> bool {
        self.admitted.caller.as_ref().is_some_and(is_platform)
    }

    /// Denies what only the body or the thing itself shows that the caller may not; in the chain when this returns.
    pub(super) async fn deny(&self, message: &'static str) -> Problem {
        self.record_denial(Code::Forbidden, None).await;
        Problem::new(Code::Forbidden).saying(message)
    }

    /// What whoever asks may hand out.
    pub(super) fn giver(&self) -> Giver {
        let bound = self.admitted.caller.as_ref().filter(|caller| {
            let (object, action) = GRANT;
            caller.tenant.is_some() && !self.api.gate.allows(caller, object, action)
        });
        bound.map_or(Giver::Free, |caller| {
            Giver::Bound(Credential {
                built_in: self.api.gate.authorizer().built_in().clone(),
                roles: caller.roles.clone(),
                scopes: caller.terms.scopes.clone(),
                person: caller.person,
                api_key: caller.api_key.clone(),
            })
        })
    }

    /// Makes a change in the name of whoever asks, if that has what the change hands out.
    ///
    /// # Errors
    /// As [`home`], and 403, in the chain when this returns, for what it does not have.
    pub(super) async fn gives<C: Gives>(&self, change: C, render: Render<C>) -> Result<Told<C>, Problem> {
        let given = Given { change, giver: self.giver() };
        match home(self).await?.change(given, self.change(), render).await? {
            Ok(answer) => Ok(Ok(answer)),
            Err(Declined::Refused(Withheld::Refused(refused))) => Ok(Err(Declined::Refused(refused))),
            Err(Declined::Refused(Withheld::NotHeld(permission))) => Err(self.does_not_hold(permission).await),
            Err(Declined::IdempotencyMismatch) => Ok(Err(Declined::IdempotencyMismatch)),
            Err(Declined::RolledBack) => Ok(Err(Declined::RolledBack)),
        }
    }

    /// Denies to hand out a permission that whoever asks does not have; in the chain when this returns.
    pub(super) async fn does_not_hold(&self, permission: String) -> Problem {
        let code = Code::PermissionNotHeld;
        self.record_denial(code, Some(permission.clone())).await;
        Problem::new(code).with("permission", json!(permission))
    }

    async fn record_denial(&self, code: Code, permission: Option<String>) {
        if let Some(caller) = &self.admitted.caller {
            let (operation, request_id) = (self.operation, self.request_id.as_str());
            let denied = Denied { operation, request_id, code, policy: None, permission };
            Box::pin(record_denial(&self.api, caller, denied, self.operation.path)).await;
        }
    }

    /// Refuses a caller whose key has scopes: with a password, a role or a token's subject it would give itself what its
    /// scopes take away.
    ///
    /// # Errors
    /// 403, in the chain when this returns.
    pub(super) async fn without_scopes(&self, message: &'static str) -> Result<(), Problem> {
        match &self.admitted.caller {
            Some(caller) if !caller.terms.scopes.is_empty() => Err(self.deny(message).await),
            _ => Ok(()),
        }
    }

    /// Who asks for a change, for its record and its idempotency.
    pub(super) fn change(&self) -> request::Request {
        request::Request {
            actor: self.admitted.caller.as_ref().map_or_else(String::new, |caller| caller.actor.clone()),
            request_id: self.request_id.clone(),
            idempotency: self.idempotency.clone(),
        }
    }

    /// Whose list a cursor belongs to.
    fn owner(&self) -> String {
        self.admitted.tenant.map_or_else(|| "platform".into(), |tenant| tenant.to_string())
    }

    pub(super) fn seal(&self, position: &str) -> String {
        self.api.sealer.seal(self.operation.id, &self.owner(), position)
    }

    /// The position in `cursor`, read by `parse`.
    pub(super) fn open<T>(
        &self,
        cursor: Option<&str>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(cursor) = cursor else { return Ok(None) };
        let position = self.api.sealer.open(self.operation.id, &self.owner(), cursor)?;
        parse(&position).map(Some).ok_or_else(|| Problem::new(Code::InvalidCursor))
    }
}

impl std::ops::Deref for Ask {
    type Target = Asked;

    fn deref(&self) -> &Asked {
        &self.0
    }
}

impl<'a> FromRequest<'a> for Ask {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Ask> {
        Ok(Ask::of(request)?.clone())
    }
}

/// What an answer is kept under. The control database keeps those of all tenants, and one of the platform's people may ask
/// the same of several by a header alone: each tenant's are its own.
fn idempotency_key(tenant: Option<TenantId>, actor: &str, method: &Method, path: &str, key: &str) -> String {
    let owner = tenant.map_or_else(|| "platform".into(), |tenant| tenant.to_string());
    format!("{owner} {actor} {method} {path} {key}")
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::super::operation;
    use super::super::request::{Identity, Said};
    use super::*;
    use poem::http::Method;

    const OURS: &str = "0199a8b2-5c00-7abc-8def-0123456789ab";
    const THEIRS: &str = "0199a8b2-5c00-7abc-8def-0123456789ac";

    fn caller(tenant: Option<&str>, role: Role) -> Caller {
        Caller {
            actor: "apiKey:k".into(),
            roles: vec![role],
            tenant: tenant.map(|id| id.parse().unwrap()),
            user: None,
            service: false,
            suspended: false,
            api_key: None,
            withheld: Vec::new(),
            person: None,
            terms: crate::domain::api_key::Terms::default(),
        }
    }

    fn passage(method: Method, uri: &str, header: Option<&str>) -> Passage {
        let request = Request::builder().method(method.clone()).uri(uri.parse().unwrap()).finish();
        let (operation, segments) = operation::find(&method, request.uri().path()).unwrap();
        let segments = segments.map(|segment| segment.map(str::to_owned));
        let query = request.params().unwrap();
        let said = Said { tenant: header.map(|id| id.parse().unwrap()), ..Said::default() };
        Passage {
            operation,
            segments,
            identity: Identity { request_id: "r".into(), trace: None },
            said,
            query,
            told: rate_limits::Told::default(),
            request,
        }
    }

    fn judged(caller: &Caller, passage: &Passage) -> Result<Option<String>, &'static str> {
        let judged = judge(caller, passage, |_| true);
        judged.map(|tenant| tenant.map(|id| id.to_string())).map_err(|problem| problem.code.name())
    }

    #[test]
    fn another_tenant_s_name_is_answered_as_one_that_does_not_exist() {
        let (admin, platform) = (caller(Some(OURS), Role::Admin), caller(None, Role::PlatformAdmin));
        let ours = Ok(Some(OURS.to_owned()));
        let quotas = |id: &str| format!("/v1/quotas/{id}");
        for (who, uri, header, expected) in [
            (&admin, quotas(OURS), None, ours.clone()),
            (&admin, quotas(&OURS.to_uppercase()), Some(OURS), ours.clone()),
            (&admin, quotas(THEIRS), None, Err("TENANT_NOT_FOUND")),
            (&admin, quotas("not-an-id"), None, Err("TENANT_NOT_FOUND")),
            (&admin, quotas(OURS), Some(THEIRS), Err("TENANT_MISMATCH")),
            (&admin, quotas(THEIRS), Some(OURS), Err("TENANT_MISMATCH")),
            (&platform, quotas(OURS), None, ours.clone()),
            (&platform, quotas(OURS), Some(THEIRS), Err("TENANT_MISMATCH")),
            (&admin, "/v1/audit".into(), None, ours.clone()),
            (&admin, "/v1/audit".into(), Some(THEIRS), Err("TENANT_NOT_FOUND")),
            (&admin, format!("/v1/audit?tenantId={THEIRS}"), None, Err("TENANT_NOT_FOUND")),
            (&admin, format!("/v1/audit?tenantId={OURS}"), None, ours.clone()),
            (&platform, "/v1/audit".into(), None, Ok(None)),
            (&platform, "/v1/audit".into(), Some(OURS), ours.clone()),
            (&platform, format!("/v1/audit?tenantId={OURS}"), None, ours.clone()),
            (&platform, format!("/v1/audit?tenantId={OURS}"), Some(THEIRS), Err("TENANT_MISMATCH")),
            (&platform, "/v1/audit?tenantId=x".into(), None, Err("TENANT_NOT_FOUND")),
        ] {
            assert_eq!(judged(who, &passage(Method::GET, &uri, header)), expected, "{uri} {header:?}");
        }
    }

    #[test]
    fn an_answer_is_kept_for_one_tenant() {
        let kept = |tenant: Option<&str>| {
            let tenant = tenant.map(|id| id.parse().unwrap());
            idempotency_key(tenant, "user:root", &Method::POST, "/v1/jobs", "k")
        };
        assert_eq!(kept(Some(OURS)), format!("{OURS} user:root POST /v1/jobs k"));
        assert_eq!(kept(None), "platform user:root POST /v1/jobs k");
        assert_ne!(kept(Some(OURS)), kept(Some(THEIRS)));
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let list = passage(Method::GET, "/v1/tenants", None);
        assert_eq!(judged(&caller(None, Role::PlatformAdmin), &list), Ok(None));
        // The platform's role inside a tenant, and a role without a tenant, reach nothing of the platform's.
        assert_eq!(judged(&caller(Some(OURS), Role::PlatformAdmin), &list), Err("FORBIDDEN"));
        assert_eq!(judged(&caller(None, Role::Admin), &list), Err("FORBIDDEN"));
        let quotas = passage(Method::GET, &format!("/v1/quotas/{OURS}"), None);
        assert_eq!(judged(&caller(None, Role::Admin), &quotas), Err("FORBIDDEN"));
        assert_eq!(judged(&caller(None, Role::Reader), &passage(Method::GET, "/v1/audit", None)), Err("FORBIDDEN"));
        let denied = judge(&caller(Some(OURS), Role::Admin), &quotas, |_| false).unwrap_err();
        assert_eq!(denied.code, Code::Forbidden);
    }

    #[test]
    fn a_suspended_tenant_s_credential_opens_nothing() {
        let suspended = Caller { suspended: true, ..caller(Some(OURS), Role::Admin) };
        for uri in [format!("/v1/quotas/{OURS}"), format!("/v1/quotas/{THEIRS}/decision"), "/v1/audit".into()] {
            assert_eq!(judged(&suspended, &passage(Method::GET, &uri, None)), Err("TENANT_SUSPENDED"), "{uri}");
        }
    }
}
