//! A Slack incoming webhook. Its URL is its only secret.
//!
//! Slack has no key by which it would drop a repetition: a message whose answer was lost is sent again.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::egress::{self, Failure};
use super::parcel::{Parcel, facts, summary};
use crate::domain::notice::{Event, Severity};

/// One channel of one workspace.
pub(super) struct Slack {
    client: reqwest::Client,
    url: SecretString,
    public_url: Option<String>,
}

impl Slack {
    pub(super) fn open(url: &SecretString, allow_private: bool, public_url: Option<String>) -> Result<Slack, String> {
        Ok(Slack { client: egress::client(allow_private)?, url: url.clone(), public_url })
    }

    pub(super) async fn send(&self, parcel: &Parcel) -> Result<(), Failure> {
        let request = self.client.post(self.url.expose_secret()).json(&message(parcel, self.public_url.as_deref()));
        egress::send_strictly(request).await
    }
}

/// A headline with usage, limit and reset under it. `text` is what a notification shows.
fn message(parcel: &Parcel, public_url: Option<&str>) -> Value {
    let alert = &parcel.delivery.alert;
    let headline = match (parcel.delivery.event, alert.severity()) {
        (Event::Resolved, _) => format!(":white_check_mark: Resolved: {}", summary(parcel.tenant, alert)),
        (Event::Acknowledged, _) => format!(":eyes: Acknowledged: {}", summary(parcel.tenant, alert)),
        (Event::Fired, Severity::Critical) => format!(":rotating_light: {}", summary(parcel.tenant, alert)),
        (Event::Fired, Severity::Warning) => format!(":warning: {}", summary(parcel.tenant, alert)),
    };
    let fields: Vec<Value> = facts(alert)
        .iter()
        .map(|(name, fact)| json!({"type": "mrkdwn", "text": format!("*{name}*\n{}", escaped(fact))}))
        .collect();
    let headline = escaped(&headline);
    let mut blocks = vec![
        json!({"type": "section", "text": {"type": "mrkdwn", "text": headline}}),
        json!({"type": "section", "fields": fields}),
    ];
    if let Some(base) = public_url {
        let link = format!("<{}/v1/quotas/{}/alerts|Alerts of this tenant>", base.trim_end_matches('/'), parcel.tenant);
        blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": link}]}));
    }
    json!({"text": headline, "blocks": blocks})
}

/// The three characters that Slack's markup gives a meaning: a user's or group's id may hold them.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quota::{Metric, Scope};
    use crate::domain::time::Timestamp;
    use crate::outlet::parcel::{amount_text, samples};
    use crate::outlet::receiver::Receiver;

    #[test]
    fn a_message_tells_usage_limit_reset_and_where_to_look() {
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let mut parcel = samples::parcel("chat", Event::Fired, Metric::Cost, at);
        samples::reached(&mut parcel.delivery.alert).quota.scope = Scope::User("<!channel>&co".into());
        let message = message(&parcel, Some("https://platform.example.com"));
        let text = message.to_string();
        let reached = parcel.delivery.alert.reached().unwrap();
        for fact in [
            amount_text(&reached.quota, reached.used),
            amount_text(&reached.quota, reached.quota.limit),
            "user:&lt;!channel&gt;&amp;co".into(),
            format!("https://platform.example.com/v1/quotas/{}/alerts", parcel.tenant),
        ] {
            assert!(text.contains(&fact), "{fact} in {text}");
        }
        assert!(!text.contains("<!channel>"), "a name must not call a whole channel: {text}");
        parcel.delivery.event = Event::Resolved;
        assert!(super::message(&parcel, None)["text"].as_str().unwrap().contains("Resolved"));
    }

    #[tokio::test]
    async fn the_url_is_secret_and_a_revoked_one_is_given_up() {
        let receiver = Receiver::start(["503 Busy", "200 OK", "404 Not Found"]).await;
        let url = SecretString::from(receiver.url("/services/T000/B000/secret"));
        let slack = Slack::open(&url, true, None).unwrap();
        let parcel = samples::parcel("chat", Event::Fired, Metric::Requests, Timestamp(0));
        assert_eq!(slack.send(&parcel).await, Err(Failure::passing("answered 503")));
        assert_eq!(slack.send(&parcel).await, Ok(()));
        let Err(Failure::Final { reason }) = slack.send(&parcel).await else { panic!("a revoked webhook is final") };
        assert!(!reason.contains("secret"), "{reason}");
        assert_eq!(receiver.requests()[0].line, "POST /services/T000/B000/secret HTTP/1.1");
    }
}
