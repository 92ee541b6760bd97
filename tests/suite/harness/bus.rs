//! The tests' own connection to NATS.

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use serde_json::Value;

use super::{eventually, services};

#[derive(Debug, Clone)]
pub struct Bus {
    pub jetstream: Context,
    /// `quota.updated` of the daemon under test.
    pub subject: String,
    pub stream: String,
    pub consumer: String,
    pub alert_stream: String,
}

impl Bus {
    /// Connects, and waits until the daemon has made what it reads from: it is ready without NATS.
    pub async fn of(names: &Names) -> Bus {
        let client = connect(&names.url).await.expect("NATS runs");
        let jetstream = jetstream::new(client.clone());
        eventually("the stream and its consumer", || async {
            let stream = jetstream.get_stream(&names.stream).await.ok()?;
            stream.consumer_info(&names.consumer).await.ok().map(|_| ())
        })
        .await;
        let Names { subject, stream, consumer, alert_stream, .. } = names.clone();
        let mut jetstream = jetstream::new(client);
        // A server that has much to do may take its time; one that was killed is found out soon enough.
        jetstream.set_timeout(Duration::from_secs(15));
        Bus { jetstream, subject, stream, consumer, alert_stream }
    }

    /// Publishes to the shared subject; returns once the stream has it.
    pub async fn publish(&self, event: &Value) -> u64 {
        self.publish_bytes(&self.subject, event.to_string().into_bytes()).await
    }

    /// Publishes to a tenant's own subject.
    pub async fn publish_for(&self, tenant: &str, event: &Value) -> u64 {
        self.publish_bytes(&format!("{}.{tenant}", self.subject), event.to_string().into_bytes()).await
    }

    pub async fn publish_bytes(&self, subject: &str, bytes: Vec<u8>) -> u64 {
        self.try_publish(subject, bytes).await.expect("the stream takes it")
    }

    /// The same, for a server that may be dead. Without an answer the stream may have it all the same.
    pub async fn try_publish(&self, subject: &str, bytes: Vec<u8>) -> Option<u64> {
        let sent = self.jetstream.publish(subject.to_owned(), bytes.into()).await.ok()?;
        sent.await.ok().map(|taken| taken.sequence)
    }

    /// Messages that the daemon has not acknowledged: waiting and in flight. Unknown while its consumer is made anew,
    /// as it is with each session.
    pub async fn backlog(&self) -> u64 {
        let stream = self.jetstream.get_stream(&self.stream).await.expect("the stream is there");
        let info = stream.consumer_info(&self.consumer).await;
        info.map_or(u64::MAX, |info| info.num_pending + info.num_ack_pending as u64)
    }

    /// How the consumer stands, for a person.
    pub async fn standing(&self) -> String {
        let stream = self.jetstream.get_stream(&self.stream).await.expect("the stream is there");
        let info = stream.consumer_info(&self.consumer).await;
        let told = info.map(|info| {
            let (delivered, floor, waiting) = (info.delivered, info.ack_floor, info.num_waiting);
            let (pending, unacknowledged) = (info.num_pending, info.num_ack_pending);
            format!("{delivered:?}, acknowledged {floor:?}, {pending} to come, {unacknowledged} out, {waiting} pulls")
        });
        told.unwrap_or_else(|error| error.to_string())
    }

    /// Up to which message of the stream everything is acknowledged. Nothing, when a node died while it made its consumer.
    pub async fn acked(&self) -> u64 {
        let stream = self.jetstream.get_stream(&self.stream).await.expect("the stream is there");
        stream.consumer_info(&self.consumer).await.map_or(0, |info| info.ack_floor.stream_sequence)
    }

    /// The payloads of the alert stream, oldest first.
    pub async fn alerts(&self) -> Vec<(Option<String>, Value)> {
        let Ok(mut stream) = self.jetstream.get_stream(&self.alert_stream).await else { return Vec::new() };
        let state = stream.info().await.expect("stream information").state.clone();
        let mut alerts = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            let id = message.headers.get("Nats-Msg-Id").map(|id| id.as_str().to_owned());
            alerts.push((id, serde_json::from_slice(&message.payload).expect("alerts are JSON")));
        }
        alerts
    }
}

/// Streams and subjects of one daemon under test.
#[derive(Debug, Clone)]
pub struct Names {
    /// Of the server; empty without one.
    pub url: String,
    pub subject: String,
    pub stream: String,
    pub consumer: String,
    pub alert_subject: String,
    pub alert_stream: String,
}

impl Names {
    pub fn unique(url: &str) -> Names {
        let word = services::unique();
        Names {
            url: url.to_owned(),
            subject: format!("suite.{word}.quota.updated"),
            stream: format!("SUITE_{word}_USAGE"),
            consumer: format!("suite-{word}"),
            alert_subject: format!("suite.{word}.quota.alert"),
            alert_stream: format!("SUITE_{word}_ALERTS"),
        }
    }

    pub async fn delete(&self) {
        let Ok(client) = connect(&self.url).await else { return };
        let jetstream = jetstream::new(client);
        let _ = jetstream.delete_stream(&self.stream).await;
        let _ = jetstream.delete_stream(&self.alert_stream).await;
    }
}

/// Connects as whom the URL says, which the library does not read.
pub async fn connect(url: &str) -> Result<async_nats::Client, async_nats::ConnectError> {
    let read = reqwest::Url::parse(url).ok();
    let login = read.as_ref().and_then(|url| Some((url.username(), url.password()?)));
    let options = login.map_or_else(async_nats::ConnectOptions::new, |(user, password)| {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
    });
    options.connect(url).await
}
