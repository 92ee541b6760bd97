//! JetStream: alerts as messages on `nats.alert_subject`, kept by the stream `nats.alert_stream`.
//!
//! The message is the platform envelope: `{"eventId", "occurredAt", "tenantId", "payload": {"type", …}}`. `Nats-Msg-Id`
//! is the event id, the same in every attempt; the stream drops a repeat within its window, a receiver any other one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::ServerAddr;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, stream};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::sync::OnceCell;

use super::egress::{Failure, SEND_TIMEOUT};
use super::parcel::{Data, Parcel};
use crate::config;
use crate::domain::time::Timestamp;

/// How long the stream keeps an alert.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long the stream drops repeats of a message; longer than the longest delay between two attempts.
const DEDUPE: Duration = Duration::from_secs(20 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The stream alerts go to.
pub(super) struct Nats {
    url: SecretString,
    subject: String,
    stream: String,
    context: OnceCell<jetstream::Context>,
    /// The stream was there when we last looked, and nothing has failed since.
    stream_seen: AtomicBool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    event_id: String,
    occurred_at: Timestamp,
    tenant_id: String,
    payload: Payload,
}

#[derive(Serialize)]
struct Payload {
    r#type: String,
    #[serde(flatten)]
    data: Data,
}

/// What is wrong with the server's URL, if anything.
pub(super) fn problem(nats: &config::Nats) -> Option<String> {
    let url = nats.url.as_ref()?;
    servers(url).err().map(|_| "not a NATS URL".into())
}

/// One server, or several separated by commas.
fn servers(url: &SecretString) -> Result<Vec<ServerAddr>, std::io::Error> {
    url.expose_secret().split(',').map(|one| one.trim().parse()).collect()
}

impl Nats {
    pub(super) fn open(nats: &config::Nats) -> Result<Nats, String> {
        let url = nats.url.clone().ok_or("a channel of type nats needs nats.url")?;
        Ok(Nats {
            url,
            subject: nats.alert_subject.clone(),
            stream: nats.alert_stream.clone(),
            context: OnceCell::new(),
            stream_seen: AtomicBool::new(false),
        })
    }

    pub(super) async fn send(&self, parcel: &Parcel) -> Result<(), Failure> {
        let id = parcel.delivery.id();
        let envelope = Envelope {
            event_id: id.clone(),
            occurred_at: parcel.occurred_at(),
            tenant_id: parcel.tenant.to_string(),
            payload: Payload { r#type: parcel.kind(), data: parcel.data() },
        };
        let bytes = serde_json::to_vec(&envelope).map_err(|_| Failure::passing("the message has no JSON form"))?;
        let message = PublishMessage::build().payload(bytes.into()).message_id(id).expected_stream(&self.stream);
        let publish = async {
            let context = self.context.get_or_try_init(|| self.connect()).await?;
            if !self.stream_seen.load(Ordering::Relaxed) {
                self.provide_stream(context).await?;
                self.stream_seen.store(true, Ordering::Relaxed);
            }
            let sent = context.send_publish(self.subject.clone(), message).await;
            let acknowledged = sent.map_err(|error| Failure::passing(format!("not published: {:?}", error.kind())))?;
            acknowledged.await.map_err(|error| Failure::passing(format!("not acknowledged: {:?}", error.kind())))?;
            Ok(())
        };
        let result =
            tokio::time::timeout(SEND_TIMEOUT, publish).await.unwrap_or_else(|_| Err(Failure::passing("timed out")));
        if result.is_err() {
            self.stream_seen.store(false, Ordering::Relaxed);
        }
        result
    }

    async fn connect(&self) -> Result<jetstream::Context, Failure> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = match config::nats_login(&self.url) {
            Some((user, Some(password))) => async_nats::ConnectOptions::with_user_and_password(user, password),
            Some((token, None)) => async_nats::ConnectOptions::with_token(token),
            None => async_nats::ConnectOptions::new(),
        };
        let client = options
            .name("platform-api outlet")
            .connection_timeout(CONNECT_TIMEOUT)
            .connect(servers(&self.url).map_err(|_| Failure::passing("not a NATS URL"))?)
            .await
            .map_err(|error| Failure::passing(format!("could not connect: {:?}", error.kind())))?;
        Ok(ContextBuilder::new().timeout(SEND_TIMEOUT).build(client))
    }

    /// Creates the stream unless it is there; one that is there is used as it is.
    async fn provide_stream(&self, context: &jetstream::Context) -> Result<(), Failure> {
        let wanted = stream::Config {
            name: self.stream.clone(),
            subjects: vec![self.subject.clone()],
            retention: stream::RetentionPolicy::Limits,
            storage: stream::StorageType::File,
            max_age: KEPT,
            duplicate_window: DEDUPE,
            ..stream::Config::default()
        };
        let present = context.get_or_create_stream(wanted).await;
        present.map(|_| ()).map_err(|error| Failure::passing(format!("no stream for alerts: {:?}", error.kind())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::notice::Event;
    use crate::domain::quota::Metric;
    use crate::outlet::parcel::samples;

    fn settings(url: &str) -> config::Nats {
        let unique = crate::clock::new_id().simple().to_string();
        config::Nats {
            url: Some(url.into()),
            alert_subject: format!("test.{unique}.alert"),
            alert_stream: format!("TEST_{unique}"),
            ..config::Nats::default()
        }
    }

    #[tokio::test]
    async fn an_alert_is_in_the_stream_once_however_often_it_is_sent() {
        let url = std::env::var("TEST_NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into());
        let settings = settings(&url);
        let nats = Nats::open(&settings).unwrap();
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let parcel = samples::parcel("stream", Event::Fired, Metric::Tokens, at);
        nats.send(&parcel).await.unwrap();
        nats.send(&parcel).await.unwrap();

        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        let stream = context.get_stream(&settings.alert_stream).await.unwrap();
        let info = stream.get_info().await.unwrap();
        let message = stream.get_raw_message(1).await.unwrap();
        // Someone deletes the stream: it is made again.
        context.delete_stream(&settings.alert_stream).await.unwrap();
        assert!(nats.send(&parcel).await.is_err());
        let healed = nats.send(&parcel).await;
        context.delete_stream(&settings.alert_stream).await.unwrap();

        assert_eq!(info.state.messages, 1);
        assert_eq!(info.config.max_age, KEPT);
        let id = message.headers.get("Nats-Msg-Id").unwrap().as_str();
        assert_eq!(id, parcel.delivery.id());
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!((&body["eventId"], &body["payload"]["type"]), (&id.into(), &"quota.alert.fired".into()));
        assert_eq!(body["payload"]["alertId"], parcel.delivery.alert.id.to_string());
        assert_eq!(healed, Ok(()));
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_a_passing_failure_without_its_password() {
        let nats = Nats::open(&settings("nats://user:secret@127.0.0.1:1")).unwrap();
        let parcel = samples::parcel("stream", Event::Fired, Metric::Tokens, Timestamp(0));
        let failure = nats.send(&parcel).await.unwrap_err();
        assert!(matches!(&failure, Failure::Passing { reason, .. } if !reason.contains("secret")), "{failure:?}");
        assert!(problem(&settings("not a url")).is_some());
    }
}
