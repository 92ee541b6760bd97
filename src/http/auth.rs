//! `/v1/auth`: how browsers log in, stay and leave. The cookies and what they prove are [`crate::access::login`]'s.

use poem::http::{HeaderMap, HeaderValue, StatusCode, header};
use poem::{IntoResponse, RequestBody, Response};
use poem_openapi::param::Query;
use poem_openapi::registry::{
    MetaHeader, MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, Object, OpenApi};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::operation::BodyKind;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::instant;
use crate::access::form;
use crate::access::login::{Cookie, Entered, LocalAttempt, LoginAnswer, LoginRefused, Provenance, SessionView};
use crate::domain::ids::TenantId;

/// Where issuers send browsers back to. They add what they like to the query.
pub(super) const CALLBACK_ID: &str = "finishLogin";

pub(super) struct Auth;

#[OpenApi(tag = "Tag::Login")]
impl Auth {
    /// Where to log in
    ///
    /// Names for `provider` of the login; `local` when accounts with a password are kept here.
    #[oai(path = "/v1/auth/providers", method = "get", operation_id = "listLoginProviders")]
    async fn providers(&self, ask: Ask) -> Reply<ProvidersView> {
        let names = ask.api.gate.login_providers().into_iter().map(str::to_owned).collect();
        Reply::new(ProvidersView { providers: names })
    }

    /// Log in at a provider
    ///
    /// For a browser to be sent to: an OpenID Connect authorization code flow with PKCE, state and nonce begins, and ends at
    /// `/v1/auth/callback`. Sets a cookie that this browser must bring back within ten minutes.
    #[oai(path = "/v1/auth/login", method = "get", operation_id = "beginLogin")]
    async fn begin(
        &self,
        ask: Ask,
        /// One of `/v1/auth/providers`; the only one when absent.
        provider: Query<Option<String>>,
        /// Where to go on: a path, or an address of an origin in `auth.login.origins`; `auth.login.return_to` when absent.
        #[oai(name = "returnTo")]
        return_to: Query<Option<String>>,
    ) -> Result<Sent, Problem> {
        let begun = ask.api.gate.begin_login(provider.0.as_deref(), return_to.0.as_deref()).await?;
        Ok(Sent { location: begun.location, cookies: vec![begun.cookie], page: None })
    }

    /// Finish a login
    ///
    /// Where the provider sends the browser back to. Sets the session's cookies and sends the browser on. A login that
    /// cannot be finished ends at `auth.login.error_url` with `?error=<code>`, or on a plain page with the code's status.
    /// Parameters that are not listed are ignored.
    #[oai(path = "/v1/auth/callback", method = "get", operation_id = "finishLogin")]
    async fn finish(
        &self,
        ask: Ask,
        code: Query<Option<String>>,
        state: Query<Option<String>>,
        /// RFC 9207.
        iss: Query<Option<String>>,
        /// What the provider says went wrong.
        error: Query<Option<String>>,
    ) -> Sent {
        let gate = &ask.api.gate;
        let answer = LoginAnswer {
            code: code.0.as_deref(),
            state: state.0.as_deref(),
            issuer: iss.0.as_deref(),
            error: error.0.as_deref(),
        };
        let flow = cookie(&ask, Cookie::Login);
        let finished = gate.finish_login(answer, flow, cookie(&ask, Cookie::Session), &ask.request_id).await;
        match finished {
            Ok(Entered { mut cookies, return_to, .. }) => {
                cookies.push(gate.clear_cookie(Cookie::Login));
                Sent { location: return_to, cookies, page: None }
            }
            // The cookie stays: anybody can send a browser here in the middle of a login of its own.
            Err(refused) => failed(gate.login_error_url(), Problem::from(refused).code),
        }
    }

    /// Log in with a password
    ///
    /// For accounts that are kept here (`auth.local`), on the embedded database by default. Who fails often is answered ever
    /// more slowly, by address and account together; nobody is locked out. Answers with the session's cookies.
    #[oai(path = "/v1/auth/local", method = "post", operation_id = "loginLocally")]
    async fn local(&self, ask: Ask, body: Strict<LocalLogin>) -> Result<WithCookies<SessionBody>, Problem> {
        let LocalLogin { tenant_id, user_name, password } = body.0;
        let tenant = match tenant_id {
            None => None,
            Some(text) => Some(text.parse::<TenantId>().map_err(|_| Problem::field("/tenantId", "not a UUID"))?),
        };
        let attempt = LocalAttempt { tenant, user_name, password: Zeroizing::new(password), source: ask.source };
        let (said, old) = (provenance(&ask.headers), cookie(&ask, Cookie::Session));
        Ok(WithCookies::of(ask.api.gate.local_login(attempt, said, old, &ask.request_id).await?))
    }

    /// Keep a session going
    ///
    /// Gives the session its next secret and asks its provider whether the person is still who it was. The secret before is
    /// good for a moment longer; whoever comes with an older one ends the session. Needs `X-CSRF-Token`.
    #[oai(path = "/v1/auth/refresh", method = "post", operation_id = "refreshSession")]
    async fn refresh(&self, ask: Ask) -> Result<WithCookies<SessionBody>, Problem> {
        let cookie = cookie(&ask, Cookie::Session).ok_or_else(|| Problem::new(Code::AuthenticationRequired))?;
        Ok(WithCookies::of(ask.api.gate.refresh_session(cookie, provenance(&ask.headers)).await?))
    }

    /// Log out
    ///
    /// Ends the session here, and takes its cookies away; without a session it does nothing. `logoutUrl` is where the browser
    /// may also end the provider's own session. Needs `X-CSRF-Token` while there is a session.
    #[oai(path = "/v1/auth/logout", method = "post", operation_id = "logOut")]
    async fn log_out(&self, ask: Ask) -> Result<WithCookies<LoggedOut>, Problem> {
        let gate = &ask.api.gate;
        let (session, said) = (cookie(&ask, Cookie::Session), provenance(&ask.headers));
        let logout_url = gate.end_session(session, said, &ask.request_id).await?;
        let cookies = [Cookie::Session, Cookie::Csrf].map(|cookie| gate.clear_cookie(cookie)).to_vec();
        Ok(WithCookies { view: LoggedOut { logout_url }, cookies })
    }

    /// End sessions for a provider
    ///
    /// OpenID Connect Back-Channel Logout 1.0: a provider posts a logout token that it has signed. Each is taken once.
    #[oai(path = "/v1/auth/backchannel-logout", method = "post", operation_id = "backChannelLogout")]
    async fn back_channel(&self, ask: Ask, _body: LogoutForm) -> Result<Reply<LoggedOut>, Problem> {
        let refused = || Problem::new(Code::LogoutTokenRefused);
        let pairs = form(&ask.body).ok_or_else(refused)?;
        let token = pairs.iter().find(|(name, _)| name == "logout_token").ok_or_else(refused)?;
        ask.api.gate.back_channel_logout(&token.1).await?;
        Ok(Reply::new(LoggedOut { logout_url: None }))
    }

    /// Who am I
    ///
    /// Whoever comes with whatever credentials; of a session also until when, and the token for `X-CSRF-Token`.
    #[oai(path = "/v1/auth/me", method = "get", operation_id = "getMe")]
    async fn me(&self, ask: Ask) -> Result<Reply<Me>, Problem> {
        let caller = ask.admitted.caller.as_ref().ok_or_else(|| Problem::new(Code::AuthenticationRequired))?;
        let has_other = ["authorization", "x-api-key"].iter().any(|name| ask.headers.contains_key(*name));
        let session = match cookie(&ask, Cookie::Session).filter(|_| !has_other) {
            Some(cookie) => Some(SessionBody::of(ask.api.gate.session_view(cookie).await?)),
            None => None,
        };
        Ok(Reply::new(Me {
            actor: caller.actor.clone(),
            tenant_id: caller.tenant.map(|tenant| tenant.to_string()),
            user_id: caller.user.clone(),
            roles: caller.roles.iter().map(|role| role.name().to_owned()).collect(),
            session,
        }))
    }
}

pub(super) fn cookie(ask: &Ask, cookie: Cookie) -> Option<&str> {
    ask.api.gate.cookie(cookie, cookie_lines(&ask.headers))
}

pub(super) fn cookie_lines(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok())
}

/// What a browser says of where a request comes from. What it says twice it does not say in our favour.
pub(super) fn provenance(headers: &HeaderMap) -> Provenance<'_> {
    let said = |name: &str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(value.to_str().unwrap_or("")),
            _ => Some(""),
        }
    };
    Provenance { origin: said("origin"), fetch_site: said("sec-fetch-site"), token: said("x-csrf-token") }
}

impl From<LoginRefused> for Problem {
    fn from(refused: LoginRefused) -> Problem {
        match refused {
            LoginRefused::Off => Problem::new(Code::LoginOff),
            LoginRefused::ReturnTo => {
                Problem::parameter("returnTo", "must be a path, or an address of an origin that is allowed")
            }
            LoginRefused::Failed => Problem::new(Code::LoginFailed),
            LoginRefused::Nobody => Problem::new(Code::LoginDenied),
            LoginRefused::Credentials => {
                Problem::new(Code::InvalidCredentials).saying("The user name or the password is wrong.")
            }
            LoginRefused::TooMany => Problem::new(Code::TooManyFailures)
                .saying("Too many attempts to log in are under way; try again after Retry-After.")
                .after_ms(1_000),
            LoginRefused::Unproven => Problem::new(Code::NotProven),
            LoginRefused::Session => Problem::new(Code::InvalidCredentials).saying("There is no such session."),
            LoginRefused::LogoutToken => Problem::new(Code::LogoutTokenRefused),
            LoginRefused::IssuerAway => {
                Problem::new(Code::KeysUnavailable).saying("The identity provider does not answer.")
            }
            LoginRefused::SessionsAway => Problem::new(Code::StoreUnavailable),
            LoginRefused::TenantAway(absent) => Problem::from(absent),
        }
    }
}

/// A browser that is sent on, or told that it cannot be.
pub(super) struct Sent {
    location: String,
    cookies: Vec<String>,
    page: Option<Code>,
}

/// An answer with an error's status that is written for people: the door leaves it as it is.
#[derive(Clone)]
pub(super) struct ForPeople;

/// Nothing of what the browser came with is in the answer.
fn failed(error_url: Option<&str>, code: Code) -> Sent {
    match error_url {
        Some(url) => {
            let separator = if url.contains('?') { '&' } else { '?' };
            let location = format!("{url}{separator}error={}", code.name());
            Sent { location, cookies: Vec::new(), page: None }
        }
        None => Sent { location: String::new(), cookies: Vec::new(), page: Some(code) },
    }
}

impl IntoResponse for Sent {
    fn into_response(self) -> Response {
        let mut response = match self.page {
            None => match HeaderValue::from_str(&self.location) {
                Ok(location) => {
                    let mut response = Response::builder().status(StatusCode::SEE_OTHER).body(());
                    response.headers_mut().insert(header::LOCATION, location);
                    response
                }
                Err(_) => poem::Error::from(Problem::new(Code::Internal)).into_response(),
            },
            Some(code) => page(code),
        };
        // The address that the browser comes from may hold a code.
        response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        set_cookies(response.headers_mut(), &self.cookies);
        response
    }
}

fn page(code: Code) -> Response {
    let (title, name) = (code.title(), code.name());
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Login</title>\
         <h1>You are not logged in</h1><p>{title}</p><p><code>{name}</code></p></html>\n"
    );
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = Response::builder().status(status).content_type("text/html; charset=utf-8").body(text);
    let policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response.set_data(ForPeople);
    response
}

fn set_cookies(headers: &mut HeaderMap, cookies: &[String]) {
    for line in cookies {
        if let Ok(mut value) = HeaderValue::from_str(line) {
            value.set_sensitive(true);
            headers.append(header::SET_COOKIE, value);
        }
    }
}

impl ApiResponse for Sent {
    fn meta() -> MetaResponses {
        let text = |name: &str, description: &str| MetaHeader {
            name: name.to_owned(),
            description: Some(description.to_owned()),
            required: false,
            deprecated: false,
            schema: String::schema_ref(),
        };
        let headers = vec![text("Location", "Where to go on."), text("Set-Cookie", "One line for each cookie.")];
        let response = MetaResponse {
            description: "Go on there.",
            status: Some(303),
            status_range: None,
            content: Vec::new(),
            headers,
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(_: &mut Registry) {}
}

/// An answer that sets cookies.
pub(super) struct WithCookies<T> {
    view: T,
    cookies: Vec<String>,
}

impl WithCookies<SessionBody> {
    pub(super) fn of(entered: Entered) -> WithCookies<SessionBody> {
        WithCookies { view: SessionBody::of(entered.view), cookies: entered.cookies }
    }
}

impl<T: Serialize + Send> IntoResponse for WithCookies<T> {
    fn into_response(self) -> Response {
        let mut response = Reply::<T>::new(self.view).into_response();
        set_cookies(response.headers_mut(), &self.cookies);
        response
    }
}

impl<T: Type> ApiResponse for WithCookies<T> {
    fn meta() -> MetaResponses {
        Reply::<T>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// The body of `POST /v1/auth/backchannel-logout`, for the document.
pub(super) struct LogoutForm;

impl<'a> ApiExtractor<'a> for LogoutForm {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(_: &mut Registry) {}

    fn request_meta() -> Option<MetaRequest> {
        let token = MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some("A JWT that the provider has signed."),
            ..MetaSchema::new("string")
        }));
        let schema = MetaSchemaRef::Inline(Box::new(MetaSchema {
            properties: vec![("logout_token", token)],
            required: vec!["logout_token"],
            ..MetaSchema::new("object")
        }));
        let content = vec![MetaMediaType { content_type: "application/x-www-form-urlencoded", schema }];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(
        request: &'a poem::Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        // The stack has read the body by the operation's kind.
        debug_assert!(Ask::of(request).is_ok_and(|ask| ask.operation.body == BodyKind::Form));
        Ok(Self)
    }
}

/// Where to log in.
#[derive(Debug, Serialize, Deserialize, Object)]
#[oai(rename = "LoginProviders")]
pub(super) struct ProvidersView {
    providers: Vec<String>,
}

/// Who says that they know the password. Not printable.
#[derive(Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct LocalLogin {
    /// Whose user; the only tenant there is when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<String>,
    /// In whatever case.
    user_name: String,
    password: String,
}

/// A session, as its owner sees it.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Session", rename_all = "camelCase", example)]
pub(super) struct SessionBody {
    /// Of the person, for people.
    name: String,
    /// Where the person logged in.
    provider: String,
    /// To be sent as `X-CSRF-Token` with every request that changes something.
    csrf_token: String,
    /// The session ends then unless it is refreshed.
    refresh_by: String,
    /// The session ends then in any case.
    ends_at: String,
}

impl SessionBody {
    fn of(view: SessionView) -> SessionBody {
        SessionBody {
            name: view.name,
            provider: view.provider,
            csrf_token: view.csrf_token,
            refresh_by: instant(view.refresh_by),
            ends_at: instant(view.ends_at),
        }
    }
}

/// A session that is over.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct LoggedOut {
    /// Where the browser may also end the provider's own session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    logout_url: Option<String>,
}

/// Who somebody is here.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct Me {
    /// As the audit chain calls it.
    actor: String,
    /// Absent for the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<String>,
    /// The person, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<String>,
    roles: Vec<String>,
    /// Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    session: Option<SessionBody>,
}

impl Example for LocalLogin {
    fn example() -> LocalLogin {
        LocalLogin {
            tenant_id: Some("0199a8b2-5c00-7abc-8def-0123456789ab".into()),
            user_name: "jane@example.com".into(),
            password: "correct horse battery staple".into(),
        }
    }
}

impl Example for SessionBody {
    fn example() -> SessionBody {
        SessionBody {
            name: "Jane Doe".into(),
            provider: "keycloak".into(),
            csrf_token: "pZ0nT1Yq0Q6Yw0kq0b6y3Qk7Jm0mZ2d3Wl8v5r9s1tU".into(),
            refresh_by: "2026-11-20T16:07:12.345Z".into(),
            ends_at: "2026-11-21T03:37:12.345Z".into(),
        }
    }
}

impl Example for Me {
    fn example() -> Me {
        Me {
            actor: "user:00u1a2b3".into(),
            tenant_id: Some("0199a8b2-5c00-7abc-8def-0123456789ab".into()),
            user_id: Some("00u1a2b3".into()),
            roles: vec!["reader".into()],
            session: Some(SessionBody::example()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_that_failed_shows_nothing_of_what_came() {
        let sent = failed(Some("https://console.example.com/failed?a=b"), Code::LoginFailed);
        let response = sent.into_response();
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        assert_eq!(response.header("location"), Some("https://console.example.com/failed?a=b&error=LOGIN_FAILED"));
        let mut response = failed(None, Code::LoginFailed).into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert!(response.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(response.header("set-cookie"), None);
        assert!(response.take_body().into_string().await.unwrap().contains("LOGIN_FAILED"));
    }

    #[test]
    fn what_a_browser_says_twice_it_does_not_say() {
        let mut headers = HeaderMap::new();
        assert_eq!(provenance(&headers), Provenance::default());
        headers.append("origin", HeaderValue::from_static("https://platform.example.com"));
        assert_eq!(provenance(&headers).origin, Some("https://platform.example.com"));
        headers.append("origin", HeaderValue::from_static("https://platform.example.com"));
        headers.append("x-csrf-token", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!((provenance(&headers).origin, provenance(&headers).token), (Some(""), Some("")));
    }
}
