//! What an issuer tells behind the browser's back: a session of its own is over (OpenID Connect Back-Channel Logout 1.0).

use serde_json::{Map, Value};

use crate::access::token::{Kind, Refusal, Trusted, Wanted};
use crate::domain::session::Whose;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// The event that a logout token is about.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// A token that was made longer ago is not looked at: it is meant for now.
const AGE_SECONDS_MAX: i64 = 600;
const ID_BYTES_MAX: usize = 256;

/// A logout token's say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) whose: Whose,
    /// `jti`: it says so once.
    pub(super) id: String,
    /// Until then it could be said again.
    pub(super) until: Timestamp,
}

/// Reads a logout token for the client that this daemon is at the issuer.
pub(super) async fn read(trusted: &Trusted, client: &str, token: &str, now: Timestamp) -> Result<Notice, Refusal> {
    let kinds = &[Kind::LogoutToken, Kind::Jwt, Kind::Untyped];
    let wanted = Wanted { kinds, audience: client, claims: &["exp", "iss", "aud"] };
    let claims = trusted.claims(token, &wanted, now).await?;
    judge(&claims, &trusted.settings.issuer, now)
}

fn judge(claims: &Map<String, Value>, issuer: &str, now: Timestamp) -> Result<Notice, Refusal> {
    let text = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if (1..=ID_BYTES_MAX).contains(&text.len()) => Ok(Some(text.clone())),
        Some(_) => Err(Refusal::Claims),
    };
    let is_about_logout = claims.get("events").and_then(|events| events.get(EVENT)).is_some_and(Value::is_object);
    // A nonce would make it pass for an ID token.
    if !is_about_logout || claims.contains_key("nonce") {
        return Err(Refusal::Claims);
    }
    let now_seconds = now.0.div_euclid(MICROS_PER_SECOND);
    let issued = claims.get("iat").and_then(Value::as_i64).ok_or(Refusal::Claims)?;
    if issued.saturating_add(AGE_SECONDS_MAX) < now_seconds {
        return Err(Refusal::Expired);
    }
    if issued > now_seconds + 60 {
        return Err(Refusal::NotYetValid);
    }
    let issuer = issuer.to_owned();
    let whose = match (text("sid")?, text("sub")?) {
        (Some(provider_session), subject) => Whose::Provider { issuer, provider_session, subject },
        (None, Some(subject)) => Whose::Subject { issuer, subject },
        (None, None) => return Err(Refusal::Claims),
    };
    let id = text("jti")?.ok_or(Refusal::Claims)?;
    Ok(Notice { whose, id, until: now.plus_micros((AGE_SECONDS_MAX + 120) * MICROS_PER_SECOND) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp(1_790_000_000_000_000);
    const ISSUER: &str = "https://id.example.com";

    fn claims() -> Value {
        json!({"iat": 1_790_000_000, "jti": "j-1", "sub": "jane", "sid": "s-1", "events": {EVENT: {}}})
    }

    fn judged(claims: &Value) -> Result<Notice, Refusal> {
        judge(claims.as_object().unwrap(), ISSUER, NOW)
    }

    #[test]
    fn a_logout_token_ends_a_session_or_everything_of_a_person() {
        let notice = judged(&claims()).unwrap();
        let (issuer, provider_session) = (ISSUER.to_owned(), "s-1".to_owned());
        let subject = Some("jane".to_owned());
        assert_eq!(notice.whose, Whose::Provider { issuer: issuer.clone(), provider_session, subject });
        let mut of_a_person = claims();
        of_a_person.as_object_mut().unwrap().remove("sid");
        assert_eq!(judged(&of_a_person).unwrap().whose, Whose::Subject { issuer, subject: "jane".into() });
    }

    #[test]
    fn what_is_no_logout_token_ends_nothing() {
        for (name, value, refusal) in [
            ("events", json!({}), Refusal::Claims),
            ("events", json!({EVENT: true}), Refusal::Claims),
            ("events", json!([EVENT]), Refusal::Claims),
            ("nonce", json!("n"), Refusal::Claims),
            ("nonce", Value::Null, Refusal::Claims),
            ("jti", json!(""), Refusal::Claims),
            ("jti", Value::Null, Refusal::Claims),
            ("sid", json!(7), Refusal::Claims),
            ("sub", json!("x".repeat(257)), Refusal::Claims),
            ("iat", json!("now"), Refusal::Claims),
            ("iat", json!(1_789_999_399), Refusal::Expired),
            ("iat", json!(1_790_000_061), Refusal::NotYetValid),
        ] {
            let mut bad = claims();
            bad[name] = value.clone();
            assert_eq!(judged(&bad), Err(refusal), "{name}: {value}");
        }
        for missing in ["events", "jti", "iat"] {
            let mut bad = claims();
            bad.as_object_mut().unwrap().remove(missing);
            assert_eq!(judged(&bad), Err(Refusal::Claims), "{missing}");
        }
        let mut of_nobody = claims();
        of_nobody.as_object_mut().unwrap().retain(|name, _| name != "sid" && name != "sub");
        assert_eq!(judged(&of_nobody), Err(Refusal::Claims));
    }
}
