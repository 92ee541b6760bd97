//! The issuer's side of a login: where to send the browser, and what its code and its refresh tokens are worth.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::flow::Flow;
use crate::access::claims::{self, Identity};
use crate::access::keyring::FetchError;
use crate::access::provider::{Client, Provider};
use crate::access::token::{Kind, Refusal, Trusted, Wanted};
use crate::config;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// How far an issuer's clock may be from ours.
const LEEWAY_SECONDS: i64 = 60;

/// An issuer at which browsers log in.
pub(super) struct LoginProvider {
    pub(super) name: String,
    pub(super) settings: config::Issuer,
    pub(super) client: config::LoginClient,
    pub(super) provider: Provider,
}

/// Why an issuer's answer makes no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It says no: the code or the refresh token is not, or no longer, good.
    Refused,
    /// What it says is not to be believed.
    Unsound(Refusal),
    /// It could not be asked.
    Away,
}

/// What an issuer gives for a code or a refresh token.
#[derive(Deserialize)]
struct TokenAnswer {
    id_token: Option<String>,
    access_token: Option<SecretString>,
    refresh_token: Option<SecretString>,
}

/// Whom an issuer has vouched for.
pub(super) struct Vouched {
    pub(super) identity: Identity,
    /// For people.
    pub(super) name: String,
    /// What the issuer calls its session.
    pub(super) provider_session: Option<String>,
}

/// What a refresh has brought.
pub(super) struct Refreshed {
    /// `None` when the issuer said nothing new about the person.
    pub(super) vouched: Option<Vouched>,
    /// `None`: the old one goes on.
    pub(super) refresh_token: Option<SecretString>,
}

impl LoginProvider {
    pub(super) fn new(settings: &config::Issuer, client: &reqwest::Client) -> Option<LoginProvider> {
        let (name, login) = (settings.name.clone()?, settings.login.clone()?);
        let provider = Provider::new(&settings.issuer, client.clone());
        Some(LoginProvider { name, settings: settings.clone(), client: login, provider })
    }

    fn client(&self) -> Client<'_> {
        Client { id: &self.client.client_id, secret: self.client.client_secret.as_ref() }
    }

    /// Where to send the browser.
    pub(super) async fn authorization(&self, flow: &Flow, redirect_uri: &str) -> Result<String, Failure> {
        let metadata = self.provider.metadata().await.map_err(away)?;
        let endpoint = metadata.authorization_endpoint.as_deref().ok_or(Failure::Away)?;
        let mut url = reqwest::Url::parse(endpoint).map_err(|_| Failure::Away)?;
        let (scope, challenge) = (self.client.scopes.join(" "), flow.challenge());
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &self.client.client_id),
            ("redirect_uri", redirect_uri),
            ("scope", &scope),
            ("state", &flow.state),
            ("nonce", &flow.nonce),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);
        if let Some(resource) = &self.client.resource {
            url.query_pairs_mut().append_pair("resource", resource);
        }
        if self.client.scopes.iter().any(|scope| scope == "offline_access") {
            // OpenID Connect Core 11: without it the issuer must not give a refresh token for this scope.
            url.query_pairs_mut().append_pair("prompt", "consent");
        }
        Ok(url.to_string())
    }

    /// Does the answer of a login say that it is this issuer's (RFC 9207)? One that could, and does not, is not.
    pub(super) async fn is_from_here(&self, issuer: Option<&str>) -> Result<bool, Failure> {
        match issuer {
            Some(issuer) => Ok(issuer == self.settings.issuer),
            None => {
                let metadata = self.provider.metadata().await.map_err(away)?;
                Ok(!metadata.authorization_response_iss_parameter_supported)
            }
        }
    }

    /// What a code is worth.
    pub(super) async fn redeem(
        &self,
        trusted: &Trusted,
        flow: &Flow,
        code: &str,
        redirect_uri: &str,
        now: Timestamp,
    ) -> Result<(Vouched, Option<SecretString>), Failure> {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", flow.verifier.as_str()),
        ];
        let answer = self.tokens(&form).await?;
        let Some(id_token) = &answer.id_token else { return Err(Failure::Unsound(Refusal::Form)) };
        let claims = self.verified(trusted, id_token, now).await?;
        if claims.get("nonce").and_then(Value::as_str) != Some(&flow.nonce) {
            return Err(Failure::Unsound(Refusal::Claims));
        }
        let vouched = self.vouched(claims, answer.access_token.as_ref()).await?;
        Ok((vouched, answer.refresh_token))
    }

    /// What a refresh token is worth; whoever it is of must be who it was.
    pub(super) async fn refresh(
        &self,
        trusted: &Trusted,
        refresh_token: &SecretString,
        subject: &str,
        now: Timestamp,
    ) -> Result<Refreshed, Failure> {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
        let answer = self.tokens(&form).await?;
        let vouched = match &answer.id_token {
            None => None,
            Some(id_token) => {
                let claims = self.verified(trusted, id_token, now).await?;
                if claims.get("sub").and_then(Value::as_str) != Some(subject) {
                    return Err(Failure::Unsound(Refusal::Claims));
                }
                Some(self.vouched(claims, answer.access_token.as_ref()).await?)
            }
        };
        Ok(Refreshed { vouched, refresh_token: answer.refresh_token })
    }

    /// Where the browser may also end the issuer's session.
    pub(super) async fn end_session(&self, return_to: &str) -> Option<String> {
        let metadata = self.provider.metadata().await.ok()?;
        let mut url = reqwest::Url::parse(metadata.end_session_endpoint.as_deref()?).ok()?;
        url.query_pairs_mut()
            .append_pair("client_id", &self.client.client_id)
            .append_pair("post_logout_redirect_uri", return_to);
        Some(url.to_string())
    }

    async fn tokens(&self, form: &[(&str, &str)]) -> Result<TokenAnswer, Failure> {
        let metadata = self.provider.metadata().await.map_err(away)?;
        let endpoint = metadata.token_endpoint.as_deref().ok_or(Failure::Away)?;
        self.provider.post(endpoint, form, self.client()).await.map_err(|error| match error {
            // RFC 6749, 5.2: 400 but for a client that is not known, which is our own configuration's fault.
            FetchError::Status(400) => Failure::Refused,
            error => away(error),
        })
    }

    /// The claims of an ID token that is this issuer's, for us, and no other kind of token.
    async fn verified(&self, trusted: &Trusted, token: &str, now: Timestamp) -> Result<Map<String, Value>, Failure> {
        let client = self.client.client_id.as_str();
        let kinds = &[Kind::Jwt, Kind::Untyped];
        let wanted = Wanted { kinds, audience: client, claims: &["exp", "iss", "aud", "sub"] };
        let claims = trusted.claims(token, &wanted, now).await.map_err(|refusal| match refusal {
            Refusal::KeysUnavailable => Failure::Away,
            refusal => Failure::Unsound(refusal),
        })?;
        if is_id_token(&claims, client, now) { Ok(claims) } else { Err(Failure::Unsound(Refusal::Claims)) }
    }

    async fn vouched(&self, claims: Map<String, Value>, token: Option<&SecretString>) -> Result<Vouched, Failure> {
        let claims = if self.client.userinfo { self.completed(claims, token).await? } else { claims };
        let identity = claims::identity(&claims, &self.settings).map_err(Failure::Unsound)?;
        let person = claims::person(&claims, &identity.subject, &self.settings);
        let provider_session = claims.get("sid").and_then(Value::as_str).map(str::to_owned);
        Ok(Vouched { identity, name: person.profile.display_name, provider_session })
    }

    /// With what only the issuer's userinfo endpoint says.
    async fn completed(
        &self,
        mut claims: Map<String, Value>,
        token: Option<&SecretString>,
    ) -> Result<Map<String, Value>, Failure> {
        let metadata = self.provider.metadata().await.map_err(away)?;
        let (Some(endpoint), Some(token)) = (&metadata.userinfo_endpoint, token) else {
            return Err(Failure::Unsound(Refusal::Form));
        };
        let told: Map<String, Value> = self.provider.get(endpoint, token.expose_secret()).await.map_err(away)?;
        // OpenID Connect Core 5.3.2: of another subject it is an attack.
        if told.get("sub") != claims.get("sub") {
            return Err(Failure::Unsound(Refusal::Claims));
        }
        for (name, value) in told {
            claims.entry(name).or_insert(value);
        }
        Ok(claims)
    }
}

/// OpenID Connect Core 3.1.3.7, beyond signature, issuer, audience and expiry.
fn is_id_token(claims: &Map<String, Value>, client: &str, now: Timestamp) -> bool {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    let authorized = match claims.get("azp") {
        None => !several,
        Some(azp) => azp.as_str() == Some(client),
    };
    let now_seconds = now.0.div_euclid(MICROS_PER_SECOND);
    let issued = claims.get("iat").and_then(Value::as_f64);
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
    let in_time = issued.is_some_and(|issued| issued <= (now_seconds + LEEWAY_SECONDS) as f64);
    authorized
        && in_time
        && !claims.contains_key("events")
        && text("typ").is_none_or(|typ| typ.eq_ignore_ascii_case("ID"))
        && text("token_use").is_none_or(|token_use| token_use == "id")
}

#[allow(clippy::needless_pass_by_value, reason = "as errors are mapped")]
fn away(error: FetchError) -> Failure {
    tracing::warn!(%error, "an issuer could not be asked for a login");
    Failure::Away
}
