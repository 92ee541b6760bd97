//! A webhook in Standard Webhooks form: `webhook-id`, `webhook-timestamp`, and a `webhook-signature` of both and the body.
//!
//! The id is the same in every attempt, so a receiver can drop what it has seen. The body is
//! `{"type": "quota.alert.fired" | "quota.alert.acknowledged" | "quota.alert.resolved", "timestamp", "data": {alertId, tenantId, quota, …}}`.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::egress::{self, Failure};
use super::parcel::{Data, Parcel};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::fault;

const SECRET_PREFIX: &str = "whsec_";
/// What Standard Webhooks asks of a signing key, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// One receiver.
pub(super) struct Webhook {
    client: reqwest::Client,
    url: String,
    key: hmac::Key,
}

/// What is sent.
#[derive(Serialize)]
struct Body {
    r#type: String,
    timestamp: Timestamp,
    data: Data,
}

/// What is wrong with a signing secret, if anything.
pub(super) fn secret_problem(secret: &SecretString) -> Option<String> {
    key(secret).err()
}

impl Webhook {
    pub(super) fn open(url: &str, secret: &SecretString, allow_private: bool) -> Result<Webhook, String> {
        Ok(Webhook { client: egress::client(allow_private)?, url: url.into(), key: key(secret)? })
    }

    pub(super) async fn send(&self, parcel: &Parcel, now: Timestamp) -> Result<(), Failure> {
        let body = Body { r#type: parcel.kind(), timestamp: parcel.occurred_at(), data: parcel.data() };
        let body = serde_json::to_string(&body).map_err(|_| Failure::passing("the message has no JSON form"))?;
        let mut id = parcel.delivery.id();
        if fault::is_planted("alert-without-key") {
            id = format!("{id}-{}", now.micros());
        }
        let sent_at = now.micros().div_euclid(MICROS_PER_SECOND);
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", sent_at)
            .header("webhook-signature", signature(&self.key, &id, sent_at, &body))
            .body(body);
        egress::send(request).await
    }
}

fn key(secret: &SecretString) -> Result<hmac::Key, String> {
    let encoded = secret.expose_secret().strip_prefix(SECRET_PREFIX).ok_or("must begin with whsec_")?;
    let bytes = STANDARD.decode(encoded).map_err(|_| "must be base64 after whsec_")?;
    let bytes = zeroize::Zeroizing::new(bytes);
    if !KEY_BYTES.contains(&bytes.len()) {
        return Err("must hold 24 to 64 bytes after whsec_".into());
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn signature(key: &hmac::Key, id: &str, sent_at: i64, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{sent_at}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::notice::Event;
    use crate::domain::quota::Metric;
    use crate::outlet::parcel::samples;
    use crate::outlet::receiver::Receiver;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn signs_as_the_standard_does() {
        // The test vector of the Standard Webhooks reference libraries.
        let key = key(&SecretString::from(SECRET)).unwrap();
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_poor_secret_is_refused_without_being_shown() {
        for secret in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%"] {
            let problem = secret_problem(&SecretString::from(secret)).unwrap();
            assert!(!problem.contains("MfKQ") && !problem.contains("c2hvcnQ"), "{problem}");
        }
        assert_eq!(secret_problem(&SecretString::from(SECRET)), None);
    }

    #[tokio::test]
    async fn a_receiver_gets_a_signed_message_with_a_stable_id() {
        let receiver = Receiver::start(["500 Oops", "200 OK"]).await;
        let webhook = Webhook::open(&receiver.url("/hook?team=1"), &SecretString::from(SECRET), true).unwrap();
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let parcel = samples::parcel("hook", Event::Fired, Metric::Cost, at);
        let now = Clock::system().now();
        assert_eq!(webhook.send(&parcel, now).await, Err(Failure::passing("answered 500")));
        assert_eq!(webhook.send(&parcel, now).await, Ok(()));

        let requests = receiver.requests();
        assert_eq!(requests.len(), 2);
        for request in &requests {
            assert_eq!(request.line, "POST /hook?team=1 HTTP/1.1");
            assert_eq!(request.header("webhook-id"), parcel.delivery.id());
            let sent_at: i64 = request.header("webhook-timestamp").parse().unwrap();
            let expected = signature(&webhook.key, &parcel.delivery.id(), sent_at, &request.body);
            assert_eq!(request.header("webhook-signature"), expected);
            let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
            assert_eq!(body["type"], "quota.alert.fired");
            assert_eq!(body["timestamp"], "2026-11-20T10:00:00.000Z");
            assert_eq!(body["data"]["tenantId"], parcel.tenant.to_string());
            assert_eq!(body["data"]["used"], "0.000812");
        }
    }

    #[tokio::test]
    async fn redirects_long_answers_and_silence_are_survived() {
        let trap = Receiver::start(["200 OK"]).await;
        let location = format!("307 Temporary Redirect\r\nlocation: {}", trap.url("/"));
        let receiver = Receiver::start([location.as_str(), "429 Slow\r\nretry-after: 7", "410 Gone"]).await;
        let webhook = Webhook::open(&receiver.url("/"), &SecretString::from(SECRET), true).unwrap();
        let parcel = samples::parcel("hook", Event::Resolved, Metric::Tokens, Timestamp(0));
        let send = || webhook.send(&parcel, Timestamp(0));
        let refused = Failure::passing("answered 307; redirects are not followed");
        assert_eq!(send().await, Err(refused));
        let slow = Failure::Passing { reason: "answered 429".into(), after: std::time::Duration::from_secs(7) };
        assert_eq!(send().await, Err(slow));
        assert!(matches!(send().await, Err(Failure::Final { .. })));
        assert!(trap.requests().is_empty());

        let endless = Receiver::endless().await;
        let webhook = Webhook::open(&endless.url("/"), &SecretString::from(SECRET), true).unwrap();
        assert_eq!(webhook.send(&parcel, Timestamp(0)).await, Ok(()), "an endless answer is cut off");
        let silent = Receiver::silent().await;
        let webhook = Webhook::open(&silent.url("/"), &SecretString::from(SECRET), true).unwrap();
        assert_eq!(webhook.send(&parcel, Timestamp(0)).await, Err(Failure::passing("timed out")));
        drop(silent);
        let closed = Webhook::open("http://127.0.0.1:1/", &SecretString::from(SECRET), true).unwrap();
        assert_eq!(closed.send(&parcel, Timestamp(0)).await, Err(Failure::passing("could not connect")));
    }
}
