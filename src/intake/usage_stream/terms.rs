//! What we ask of the usage stream and of our consumer.
//!
//! The consumer is a reading head that we make anew for each session, where the checkpoint says: it acknowledges
//! everything up to a message, which costs the server half of what single acknowledgements do, and nobody else may read
//! with it. Its name stays, so that its lag can be watched; its description says who made it ([`super::turn`]).

use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{self, ConsumerErrorKind, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use uuid::Uuid;

use super::Ended;
use crate::config;

/// How long a stream we make keeps messages: what a restored database can catch up with.
const STREAM_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What our consumers are described by, before the id of the reader.
const DESCRIPTION: &str = "platform-api: usage events, for reader ";

/// What we ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) stream: String,
    pub(super) consumer: String,
    /// Who we are, among the readers of this stream.
    pub(super) reader: Uuid,
    subject: String,
    ack_wait: Duration,
    ack_pending_max: i64,
}

impl Terms {
    pub(super) fn of(nats: &config::Nats, reader: Uuid) -> Terms {
        Terms {
            stream: nats.stream.clone(),
            consumer: nats.consumer.clone(),
            reader,
            subject: nats.subject.clone(),
            ack_wait: config::millis(nats.ack_wait_ms),
            ack_pending_max: i64::try_from(nats.ack_pending_max).unwrap_or(i64::MAX),
        }
    }

    fn tenants_subject(&self) -> String {
        format!("{}.*", self.subject)
    }

    fn stream_config(&self) -> stream::Config {
        stream::Config {
            name: self.stream.clone(),
            subjects: vec![self.subject.clone(), self.tenants_subject()],
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            max_age: STREAM_AGE_MAX,
            allow_direct: true,
            ..stream::Config::default()
        }
    }

    /// Why a stream with this configuration cannot be read safely.
    fn objection_to_stream(&self, found: &stream::Config) -> Option<String> {
        let name = &self.stream;
        if found.retention != RetentionPolicy::Limits {
            return Some(format!(
                "stream {name} has {:?} retention, which deletes what was acknowledged; make it anew with limits \
                 retention, or name another one in nats.stream",
                found.retention
            ));
        }
        let (own, tenants) = (&self.subject, self.tenants_subject());
        let deeper = format!("{own}.>");
        let foreign = found.subjects.iter().find(|subject| ![own, &tenants, &deeper].contains(subject));
        if let Some(foreign) = foreign {
            return Some(format!(
                "stream {name} also holds {foreign}; a consumer of NATS 2.9 cannot leave that out, so usage events \
                 need a stream with the subjects {own} and {tenants} alone"
            ));
        }
        if !found.subjects.contains(own)
            || !found.subjects.iter().any(|subject| *subject == tenants || *subject == deeper)
        {
            return Some(format!("stream {name} must hold both {own} and {tenants}"));
        }
        None
    }

    fn consumer_config(&self, deliver_policy: DeliverPolicy) -> pull::Config {
        pull::Config {
            durable_name: Some(self.consumer.clone()),
            description: Some(format!("{DESCRIPTION}{}", self.reader)),
            deliver_policy,
            ack_policy: AckPolicy::All,
            ack_wait: self.ack_wait,
            // Never given up by the server: our own quarantine decides.
            max_deliver: -1,
            max_ack_pending: self.ack_pending_max,
            ..pull::Config::default()
        }
    }
}

/// Who reads with a consumer, if it is one of ours.
pub(super) fn reader_of(consumer: &consumer::Config) -> Option<Uuid> {
    consumer.description.as_ref()?.strip_prefix(DESCRIPTION)?.parse().ok()
}

/// The stream: made when it is absent, checked when it is there.
pub(super) async fn agree(context: &Context, terms: &Terms) -> Result<Stream, Ended> {
    let stream = match context.get_stream(&terms.stream).await {
        Ok(stream) => stream,
        Err(error) if is_missing(error.kind()) => {
            let made = context.create_stream(terms.stream_config()).await;
            let made =
                made.map_err(|error| Ended::Refused(format!("stream {} cannot be made: {error}", terms.stream)))?;
            tracing::info!(stream = terms.stream, "made the usage stream");
            made
        }
        Err(error) => return Err(Ended::Broken(error.to_string())),
    };
    let found = &stream.cached_info().config;
    if let Some(objection) = terms.objection_to_stream(found) {
        return Err(Ended::Refused(objection));
    }
    if found.storage != StorageType::File {
        tracing::warn!(stream = terms.stream, "the usage stream is kept in memory; a restart of NATS empties it");
    }
    Ok(stream)
}

fn is_missing(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The consumer, made anew.
pub(super) async fn make_consumer(
    stream: &Stream,
    terms: &Terms,
    deliver_policy: DeliverPolicy,
) -> Result<PullConsumer, Ended> {
    match stream.delete_consumer(&terms.consumer).await {
        Ok(_) => {}
        Err(error) if is_absent(error.kind()) => {}
        Err(error) => return Err(Ended::Broken(format!("deleting the consumer: {error}"))),
    }
    let made = stream.create_consumer(terms.consumer_config(deliver_policy)).await;
    made.map_err(|error| {
        let problem = format!("consumer {} cannot be made: {error}", terms.consumer);
        match error.kind() {
            ConsumerErrorKind::JetStream(_) => Ended::Refused(problem),
            _ => Ended::Broken(problem),
        }
    })
}

fn is_absent(kind: ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms::of(&config::Nats::default(), Uuid::nil())
    }

    #[test]
    fn a_stream_is_refused_for_what_would_lose_events() {
        let own = terms().stream_config();
        assert_eq!(terms().objection_to_stream(&own), None);
        let with = |subjects: &[&str]| stream::Config {
            subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
            ..own.clone()
        };
        let queue = stream::Config { retention: RetentionPolicy::WorkQueue, ..own.clone() };
        for (config, objection) in [
            (queue, Some("WorkQueue retention")),
            (with(&["quota.updated"]), Some("must hold both")),
            (with(&["quota.updated.*"]), Some("must hold both")),
            (with(&["quota.>"]), Some("also holds quota.>")),
            (with(&["quota.updated", "quota.updated.*", "orders"]), Some("also holds orders")),
            (with(&["quota.updated.>", "quota.updated"]), None),
        ] {
            let found = terms().objection_to_stream(&config);
            match objection {
                None => assert_eq!(found, None),
                Some(part) => assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{found:?}"),
            }
        }
    }
}
