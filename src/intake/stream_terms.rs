//! What we ask of the usage stream and of our consumer, and how we notice that the stream went backwards.
//!
//! NATS 2.9 acknowledges a publish before it is on disk, so a stream can lose its tail, or be made anew, and a durable
//! consumer then waits for sequences that have been used already: new events would be skipped in silence. Counting
//! never depends on sequences, so the cure is to read everything again.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode};

use super::usage_stream::Ended;
use crate::config;

/// How long a stream we make keeps messages: what a restored database can catch up with.
const STREAM_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What we ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) stream: String,
    pub(super) consumer: String,
    subject: String,
    ack_wait: Duration,
    ack_pending_max: i64,
}

/// What is remembered of the stream from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Watch {
    last: Option<Seen>,
}

/// A look at the stream and its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// When the stream was made; another moment is another stream.
    created_nanos: i128,
    last_sequence: u64,
    /// The highest sequence the consumer believes to have been delivered or acknowledged.
    consumed: u64,
}

impl Terms {
    pub(super) fn of(nats: &config::Nats) -> Terms {
        Terms {
            stream: nats.stream.clone(),
            consumer: nats.consumer.clone(),
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

    fn consumer_config(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.consumer.clone()),
            description: Some("platform-api: usage events".to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            // Never given up by the server: our own quarantine decides.
            max_deliver: -1,
            max_ack_pending: self.ack_pending_max,
            ..pull::Config::default()
        }
    }

    fn objection_to_consumer(&self, found: &consumer::Config) -> Option<String> {
        let name = &self.consumer;
        if found.deliver_subject.is_some() {
            return Some(format!("consumer {name} pushes; delete it, or name another one in nats.consumer"));
        }
        if found.ack_policy != AckPolicy::Explicit {
            return Some(format!("consumer {name} does not acknowledge each message; delete it"));
        }
        if !found.filter_subject.is_empty() || found.headers_only {
            return Some(format!("consumer {name} leaves a part of the stream out; delete it"));
        }
        None
    }

    /// The consumer's configuration with what we may change, or `None` when it is as it should be.
    fn amended(&self, found: &pull::Config) -> Option<pull::Config> {
        let amended = pull::Config {
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: self.ack_pending_max,
            ..found.clone()
        };
        let same = |read: fn(&pull::Config) -> (Duration, i64, i64)| read(&amended) == read(found);
        (!same(|config| (config.ack_wait, config.max_deliver, config.max_ack_pending))).then_some(amended)
    }
}

impl Watch {
    /// Why the stream cannot be the one that was read so far.
    fn anomaly(&mut self, seen: Seen) -> Option<&'static str> {
        let before = self.last.replace(seen);
        if seen.consumed > seen.last_sequence {
            return Some("the consumer is ahead of the stream's end: the stream has lost its tail");
        }
        match before {
            Some(before) if before.created_nanos != seen.created_nanos => Some("the stream was made anew"),
            Some(before) if before.last_sequence > seen.last_sequence => Some("the stream's end went backwards"),
            _ => None,
        }
    }
}

/// The stream and our consumer: made when they are absent, checked when they are there.
pub(super) async fn agree(context: &Context, terms: &Terms) -> Result<(Stream, PullConsumer), Ended> {
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
    let consumer = agree_on_consumer(&stream, terms).await?;
    Ok((stream, consumer))
}

fn is_missing(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn agree_on_consumer(stream: &Stream, terms: &Terms) -> Result<PullConsumer, Ended> {
    let broken = |error: async_nats::Error| Ended::Broken(error.to_string());
    match stream.consumer_info(&terms.consumer).await {
        Ok(info) => {
            if let Some(objection) = terms.objection_to_consumer(&info.config) {
                return Err(Ended::Refused(objection));
            }
        }
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return make_consumer(stream, terms).await,
        Err(error) => return Err(Ended::Broken(error.to_string())),
    }
    let consumer: PullConsumer = stream.get_consumer(&terms.consumer).await.map_err(broken)?;
    let config = config_of(&consumer)?;
    match terms.amended(&config) {
        None => Ok(consumer),
        Some(amended) => create(stream, amended, terms).await,
    }
}

fn config_of(consumer: &PullConsumer) -> Result<pull::Config, Ended> {
    let config = consumer.cached_info().config.clone();
    <pull::Config as consumer::FromConsumer>::try_from_consumer_config(config)
        .map_err(|error| Ended::Refused(error.to_string()))
}

async fn make_consumer(stream: &Stream, terms: &Terms) -> Result<PullConsumer, Ended> {
    let made = create(stream, terms.consumer_config(), terms).await?;
    tracing::info!(stream = terms.stream, consumer = terms.consumer, "made the consumer of the usage stream");
    Ok(made)
}

/// Creates or changes: one request serves both.
async fn create(stream: &Stream, config: pull::Config, terms: &Terms) -> Result<PullConsumer, Ended> {
    stream
        .create_consumer(config)
        .await
        .map_err(|error| Ended::Refused(format!("consumer {} cannot be made: {error}", terms.consumer)))
}

/// Looks at the stream; when it went backwards, deletes the consumer, so that the next session reads everything again.
///
/// # Errors
/// [`Ended::WentBackwards`], or whatever kept us from looking.
pub(super) async fn check(stream: &Stream, terms: &Terms, watch: &mut Watch) -> Result<(), Ended> {
    let broken = |what: &str, error: &dyn std::fmt::Display| Ended::Broken(format!("{what}: {error}"));
    // The consumer first: what arrives between the two questions must not make it look ahead of the stream.
    let consumer =
        stream.consumer_info(&terms.consumer).await.map_err(|error| broken("the consumer's state", &error))?;
    let info = stream.get_info().await.map_err(|error| broken("the stream's state", &error))?;
    metrics::gauge!("platform_api_stream_pending_messages").set(consumer.num_pending as f64);
    metrics::gauge!("platform_api_stream_ack_pending_messages").set(consumer.num_ack_pending as f64);
    let consumed = consumer.ack_floor.stream_sequence.max(consumer.delivered.stream_sequence);
    let seen =
        Seen { created_nanos: info.created.unix_timestamp_nanos(), last_sequence: info.state.last_sequence, consumed };
    let Some(anomaly) = watch.anomaly(seen) else { return Ok(()) };
    metrics::counter!("platform_api_stream_anomalies_total").increment(1);
    tracing::error!(
        stream = terms.stream,
        last_sequence = seen.last_sequence,
        consumed = seen.consumed,
        anomaly,
        "the usage stream is not what it was; everything in it is read again"
    );
    stream.delete_consumer(&terms.consumer).await.map_err(|error| broken("deleting the consumer", &error))?;
    Err(Ended::WentBackwards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms::of(&config::Nats::default())
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

    #[test]
    fn only_what_differs_is_amended() {
        let own = terms().consumer_config();
        assert_eq!(terms().amended(&own).map(|config| config.max_deliver), None);
        let foreign = pull::Config { max_deliver: 3, ..own };
        assert_eq!(terms().amended(&foreign).map(|config| config.max_deliver), Some(-1));
    }

    #[test]
    fn a_stream_that_went_backwards_is_noticed() {
        let seen = |created_nanos, last_sequence, consumed| Seen { created_nanos, last_sequence, consumed };
        let mut watch = Watch::default();
        assert_eq!(watch.anomaly(seen(1, 1_000, 1_000)), None);
        assert_eq!(watch.anomaly(seen(1, 1_301, 1_000)), None);
        assert!(watch.anomaly(seen(1, 601, 601)).is_some());
        assert_eq!(watch.anomaly(seen(1, 700, 0)), None);
        assert!(watch.anomaly(seen(2, 900, 0)).is_some());
        assert_eq!(watch.anomaly(seen(2, 900, 900)), None);
        // A daemon that starts after the loss remembers nothing, and the consumer still tells.
        assert!(Watch::default().anomaly(seen(1, 601, 1_000)).is_some());
    }
}
