//! The channels, behind one door.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::alertmanager::Alertmanager;
use super::egress::{self, Failure};
use super::email::{self, Email, Relay};
use super::nats::Nats;
use super::pagerduty::{self, PagerDuty};
use super::parcel::Parcel;
use super::slack::Slack;
use super::webhook::{self, Webhook};
use crate::config::{self, Config, millis};
use crate::domain::ids::{AlertId, TenantId};
use crate::domain::notice::{Alert, Delivery, Event};
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};

/// Sends one channel may have under way.
const SENDS_MAX: usize = 8;
/// How long a test shows where alerts are shown.
const TEST_MICROS: i64 = MICROS_PER_MINUTE;

/// One place alerts go to.
pub(super) struct Channel {
    pub(super) name: String,
    /// How often firing alerts are repeated, for a channel that forgets.
    pub(super) repeat: Option<Duration>,
    pub(super) sends_max: usize,
    sender: Sender,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Channel").field("name", &self.name).finish_non_exhaustive()
    }
}

enum Sender {
    Alertmanager(Alertmanager),
    Webhook(Box<Webhook>),
    Nats(Box<Nats>),
    PagerDuty(Box<PagerDuty>),
    Slack(Box<Slack>),
    Email(Box<Email>),
}

/// What is wrong with a configured channel, as `<key>: <problem>`.
pub(super) fn problem(channel: &config::Channel) -> Option<String> {
    match channel {
        config::Channel::Alertmanager { url, repeat_ms, allow_private_addresses, .. } => {
            let url = egress::problem(url, *allow_private_addresses).map(|problem| format!("url: {problem}"));
            url.or_else(|| (*repeat_ms < 1_000).then(|| "repeat_ms: must be at least 1000".into()))
        }
        config::Channel::Webhook { url, secret, allow_private_addresses, .. } => {
            let url = egress::problem(url, *allow_private_addresses).map(|problem| format!("url: {problem}"));
            url.or_else(|| webhook::secret_problem(secret).map(|problem| format!("secret: {problem}")))
        }
        config::Channel::Nats { .. } => None,
        config::Channel::PagerDuty { url, routing_key, allow_private_addresses, .. } => {
            let url = url.as_deref().and_then(|url| egress::problem(url, *allow_private_addresses));
            let url = url.map(|problem| format!("url: {problem}"));
            url.or_else(|| pagerduty::routing_key_problem(routing_key).map(|problem| format!("routing_key: {problem}")))
        }
        config::Channel::Email { from, to, .. } => relay(channel).and_then(|relay| email::problem(&relay, from, to)),
        config::Channel::Slack { url, allow_private_addresses, .. } => {
            egress::problem(url.expose_secret(), *allow_private_addresses).map(|problem| format!("url: {problem}"))
        }
    }
}

/// How a channel's mail relay is reached, if it has one.
fn relay(channel: &config::Channel) -> Option<Relay<'_>> {
    let config::Channel::Email { host, port, tls, ca_file, allow_private_addresses, user, password, .. } = channel
    else {
        return None;
    };
    Some(Relay {
        host,
        port: *port,
        tls: *tls,
        ca_file: ca_file.as_deref(),
        allow_private: *allow_private_addresses,
        user: user.as_deref(),
        password: password.as_ref(),
    })
}

/// A configured channel's kind, and where it leads: never more than the host, for paths may be secret.
pub(super) fn described(channel: &config::Channel) -> (&'static str, String) {
    let origin = |url: &str| {
        let parsed = reqwest::Url::parse(url).ok();
        parsed.map(|url| url.origin().ascii_serialization()).unwrap_or_default()
    };
    match channel {
        config::Channel::Alertmanager { url, .. } => ("alertmanager", origin(url)),
        config::Channel::Webhook { url, .. } => ("webhook", origin(url)),
        config::Channel::Nats { .. } => ("nats", "nats.alert_subject".into()),
        config::Channel::PagerDuty { url, .. } => {
            ("pagerduty", origin(url.as_deref().unwrap_or(pagerduty::DEFAULT_URL)))
        }
        config::Channel::Email { host, port, .. } => {
            ("email", port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
        }
        config::Channel::Slack { url, .. } => ("slack", origin(url.expose_secret())),
    }
}

impl Channel {
    pub(super) fn open(channel: &config::Channel, config: &Config) -> Result<Channel, String> {
        let name = channel.name().to_owned();
        Ok(match channel {
            config::Channel::Alertmanager { url, repeat_ms, allow_private_addresses, .. } => {
                let public_url = config.notify.public_url.clone();
                let sender = Alertmanager::open(url, *repeat_ms, *allow_private_addresses, public_url)?;
                // One at a time: a repetition that overtakes a resolution would make the alert fire again.
                Channel { name, repeat: Some(millis(*repeat_ms)), sends_max: 1, sender: Sender::Alertmanager(sender) }
            }
            config::Channel::Webhook { url, secret, allow_private_addresses, .. } => {
                let sender = Webhook::open(url, secret, *allow_private_addresses)?;
                Channel { name, repeat: None, sends_max: SENDS_MAX, sender: Sender::Webhook(Box::new(sender)) }
            }
            config::Channel::Nats { .. } => {
                let sender = Nats::open(&config.nats)?;
                Channel { name, repeat: None, sends_max: SENDS_MAX, sender: Sender::Nats(Box::new(sender)) }
            }
            config::Channel::PagerDuty { url, routing_key, allow_private_addresses, .. } => {
                let url = url.as_deref().unwrap_or(pagerduty::DEFAULT_URL);
                let public_url = config.notify.public_url.clone();
                let sender = PagerDuty::open(url, routing_key, *allow_private_addresses, public_url)?;
                Channel { name, repeat: None, sends_max: SENDS_MAX, sender: Sender::PagerDuty(Box::new(sender)) }
            }
            config::Channel::Email { from, to, .. } => {
                let relay = relay(channel).ok_or("not a mail relay")?;
                let sender = Email::open(&relay, from, to, config.notify.public_url.clone())?;
                // Each mail is a connection of its own, and a relay counts them.
                Channel { name, repeat: None, sends_max: 1, sender: Sender::Email(Box::new(sender)) }
            }
            config::Channel::Slack { url, allow_private_addresses, .. } => {
                let sender = Slack::open(url, *allow_private_addresses, config.notify.public_url.clone())?;
                // Slack takes about one message a second.
                Channel { name, repeat: None, sends_max: 1, sender: Sender::Slack(Box::new(sender)) }
            }
        })
    }

    pub(super) async fn send(&self, parcel: &Parcel, now: Timestamp) -> Result<(), Failure> {
        match &self.sender {
            Sender::Alertmanager(alertmanager) => alertmanager.send(parcel, now).await,
            Sender::Webhook(webhook) => webhook.send(parcel, now).await,
            Sender::Nats(nats) => nats.send(parcel).await,
            Sender::PagerDuty(pager) => pager.send(parcel).await,
            Sender::Slack(slack) => slack.send(parcel).await,
            Sender::Email(email) => email.send(parcel).await,
        }
    }

    /// Sends a message that is marked as a test, and leaves nothing open: what PagerDuty opens is closed at once, what
    /// Alertmanager shows ends by itself.
    pub(super) async fn test(&self, id: AlertId, now: Timestamp) -> Result<(), Failure> {
        let alert = Alert::test(id, &self.name, now, now.plus_micros(TEST_MICROS));
        let channel = self.name.clone();
        let delivery = Delivery { alert, event: Event::Fired, channel, attempts: 0, next_attempt_at: now };
        let mut parcel = Parcel { tenant: TenantId(uuid::Uuid::nil()), delivery };
        self.send(&parcel, now).await?;
        if matches!(self.sender, Sender::PagerDuty(_)) {
            parcel.delivery.event = Event::Resolved;
            self.send(&parcel, now).await?;
        }
        Ok(())
    }

    /// Tells a channel that forgets which alerts still fire.
    pub(super) async fn repeat(&self, firing: &[(TenantId, Alert)], now: Timestamp) -> Result<(), Failure> {
        match &self.sender {
            Sender::Alertmanager(alertmanager) => alertmanager.repeat(firing, now).await,
            Sender::Webhook(_) | Sender::Nats(_) | Sender::PagerDuty(_) | Sender::Slack(_) | Sender::Email(_) => Ok(()),
        }
    }
}
