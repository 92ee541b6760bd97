//! Usage events from JetStream: pulled, counted, and acknowledged after the commit.
//!
//! One reader for the node. A [`session`] pulls what is there; each pull is read ([`reading`]) and split into its
//! tenants' parts, each part waits in its tenant's lane ([`lanes`]) and is counted with whatever gathered there meanwhile
//! ([`counting`]). A tenant that cannot take its events for too long has them parked in quarantine, from where
//! [`super::replayer`] brings them back. When everything up to a message is settled, that message is acknowledged, and
//! all before it ([`floor`]). So nobody waits for anybody else's tenant.
//!
//! Acknowledgements and stream sequences are hints: the tenants' ledgers decide what was counted. So a lost
//! acknowledgement, a lost connection and a stream that went backwards all end in the same way: the messages come
//! again, and are known. Where reading goes on is decided by our own checkpoint, compared with what the stream holds
//! ([`resume`]). A message that ends each session that comes to it is looked for and put aside ([`poison`]). Of several nodes
//! one reads, the others stand by ([`turn`]).

mod connection;
mod counting;
mod deliveries;
mod floor;
mod lanes;
mod part;
mod poison;
mod reading;
mod resume;
mod room;
mod session;
mod stored;
mod terms;
mod turn;

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::connection::{BACKOFF_MAX, BACKOFF_MIN, connect, jittered};
use self::poison::Standstill;
use self::reading::Reader;
use self::resume::Progress;
use self::session::{Given, Session};
use self::terms::Terms;
use self::turn::{Patience, Turn};
use super::arrival::Format;
use super::record::Recorder;
use crate::clock::{self, Clock};
use crate::config;
use crate::domain::stream::Anomaly;
use crate::domain::time::Timestamp;

#[cfg(test)]
pub(in crate::intake) use self::stored::POISON;

/// How long the last acknowledgement may take when we leave.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the stream is being read; for health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHealth {
    /// This node reads it.
    Connected,
    /// Another node reads it; this one takes over when that one stops.
    StandingBy {
        /// As it names itself in its log, if it does.
        reader: Option<Uuid>,
    },
    Disconnected {
        since: Timestamp,
        /// For a person; without secrets.
        reason: String,
    },
}

/// Reads the usage stream until it is told to stop.
pub struct UsageStream {
    nats: config::Nats,
    terms: Terms,
    turn: Turn,
    clock: Clock,
    reader: Reader,
    health: watch::Sender<StreamHealth>,
}

/// Why a session with the stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("NATS cannot be reached: {0}")]
    Unreachable(String),
    /// A person has to change the stream or our settings.
    #[error("{0}")]
    Refused(String),
    #[error("the connection was lost")]
    Disconnected,
    #[error("the stream could not be read: {0}")]
    Broken(String),
    /// A message did not come, or not as one.
    #[error("the stream could not be read: {0}")]
    Undelivered(String),
    #[error("{}", .0.explanation())]
    NotTheSame(Anomaly),
}

impl UsageStream {
    /// `alone` when no other node can have our databases, so that whoever else reads with our consumer is a stranger.
    #[must_use]
    pub fn new(nats: config::Nats, recorder: Recorder, clock: Clock, alone: bool) -> UsageStream {
        let reason = "not connected yet".to_owned();
        let (health, _) = watch::channel(StreamHealth::Disconnected { since: clock.now(), reason });
        let reader = Reader { limits: recorder.limits(Format::Events), recorder, subject: nats.subject.clone() };
        let terms = Terms::of(&nats, clock::new_id());
        UsageStream { nats, terms, turn: Turn::new(alone, Patience::default()), clock, reader, health }
    }

    /// Follows whether the stream is being read.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<StreamHealth> {
        self.health.subscribe()
    }

    /// Reads until `stop`; then takes nothing new, lets what is in flight commit, acknowledges it and returns. Never
    /// gives up otherwise: whatever goes wrong is tried again with backoff while the health says so.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut progress = Progress::default();
        let mut tasks = JoinSet::new();
        let mut backoff = BACKOFF_MIN;
        let mut standstill = Standstill::default();
        while !stop.is_cancelled() {
            match Box::pin(self.session(&stop, &mut progress, &mut tasks, &mut standstill)).await {
                Ok(()) => break,
                Err(ended) => {
                    if *self.health.borrow() == StreamHealth::Connected {
                        backoff = BACKOFF_MIN;
                        standstill.ended(progress.position.as_ref().map(|position| position.sequence));
                    }
                    self.report(&ended);
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(jittered(backoff)) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        // Who was cut off does not know how far another node has read since.
        if *self.health.borrow() == StreamHealth::Connected {
            progress.keep_last(self.reader.recorder.directory()).await;
        }
        while tasks.join_next().await.is_some() {}
        let reason = "stopped".to_owned();
        self.health.send_replace(StreamHealth::Disconnected { since: self.clock.now(), reason });
    }

    /// One connection, from beginning to end. `Ok` when told to stop.
    async fn session(
        &mut self,
        stop: &CancellationToken,
        progress: &mut Progress,
        tasks: &mut JoinSet<()>,
        standstill: &mut Standstill,
    ) -> Result<(), Ended> {
        let (context, lost) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            connected = connect(&self.nats) => connected?,
        };
        let health = &self.health;
        let stand_by = |reader| {
            stand_by(health, reader);
            // How far the other has read, the control database knows, and not we.
            *progress = Progress::default();
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            waited = self.turn.wait(&context, &self.terms, stand_by) => waited?,
        }
        let directory = self.reader.recorder.directory().clone();
        let (nats, terms, reader) = (&self.nats, &self.terms, self.reader.clone());
        let given = Given { nats, terms, reader, directory, progress, tasks, standstill };
        let session = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            begun = Session::begin(context, given) => begun?,
        };
        self.health.send_replace(StreamHealth::Connected);
        tell_gauges(1.0, 0.0);
        session.run(lost, stop).await
    }

    fn report(&self, ended: &Ended) {
        tell_gauges(0.0, 0.0);
        match ended {
            Ended::Refused(_) => tracing::error!(reason = %ended, "the usage stream cannot be read"),
            _ => tracing::warn!(reason = %ended, "the usage stream is not being read"),
        }
        let reason = ended.to_string();
        let now = self.clock.now();
        self.health.send_if_modified(|health| match health {
            StreamHealth::Disconnected { reason: known, .. } if *known == reason => false,
            // The first moment counts, whatever else goes wrong afterwards.
            StreamHealth::Disconnected { reason: known, .. } => {
                *known = reason;
                true
            }
            StreamHealth::Connected | StreamHealth::StandingBy { .. } => {
                *health = StreamHealth::Disconnected { since: now, reason };
                true
            }
        });
    }
}

/// Another node reads. Said once for each that does.
fn stand_by(health: &watch::Sender<StreamHealth>, reader: Option<Uuid>) {
    let standing = StreamHealth::StandingBy { reader };
    if *health.borrow() == standing {
        return;
    }
    let reader = reader.map(tracing::field::display);
    tracing::info!(reader, "another node reads the usage stream; standing by");
    tell_gauges(0.0, 1.0);
    health.send_replace(standing);
}

fn tell_gauges(connected: f64, standing_by: f64) {
    metrics::gauge!("platform_api_stream_connected").set(connected);
    metrics::gauge!("platform_api_stream_standing_by").set(standing_by);
}
