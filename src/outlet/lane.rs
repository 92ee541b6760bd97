//! One channel's own task: its queue, its sends under way, its circuit. Nothing that happens here delays another lane.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::State;
use super::breaker::Breaker;
use super::channel::Channel;
use super::egress::Failure;
use super::parcel::Parcel;
use super::schedule;
use crate::clock::Clock;
use crate::domain::ids::TenantId;
use crate::domain::notice::{Alert, Attempt, AttemptResult};
use crate::domain::time::Timestamp;
use crate::fault;

/// Work that may wait for one channel; the rest stays in the outbox.
pub(super) const QUEUE_MAX: usize = 64;

/// What a lane can be asked to do.
#[derive(Debug, Clone)]
pub(super) enum Work {
    Deliver(Box<Parcel>),
    /// Tell the channel again what fires. Nothing is recorded about it.
    Repeat(Arc<Vec<(TenantId, Alert)>>),
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) tenant: TenantId,
    pub(super) attempt: Attempt,
}

/// How a channel has done since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// It is left alone for a while: it did not answer several times in a row.
    pub circuit_open: bool,
    pub delivered: u64,
    /// Attempts that failed and will be repeated.
    pub retried: u64,
    /// Messages that it will never take.
    pub gave_up: u64,
    pub last_success_at: Option<Timestamp>,
    pub last_failure_at: Option<Timestamp>,
    /// In our words.
    pub last_failure: Option<String>,
}

/// The dispatcher's end of a lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) queue: mpsc::Sender<Work>,
    pub(super) repeat: Option<Duration>,
    pub(super) record: watch::Receiver<Record>,
    pub(super) channel: Arc<Channel>,
}

/// The lane itself, ready to run.
pub(super) struct Driver {
    channel: Arc<Channel>,
    queue: mpsc::Receiver<Work>,
    settled: mpsc::Sender<Settled>,
    clock: Clock,
    stopping: CancellationToken,
    health: watch::Sender<State>,
    record: watch::Sender<Record>,
    breaker: Breaker,
    sends: JoinSet<Result<(), Failure>>,
    under_way: HashMap<Id, (Work, Instant)>,
}

pub(super) fn build(
    channel: Channel,
    settled: mpsc::Sender<Settled>,
    clock: Clock,
    stopping: CancellationToken,
) -> (Lane, Driver, watch::Receiver<State>) {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let (health, state) = watch::channel(State::Unknown);
    let (keeping, record) = watch::channel(Record::default());
    let channel = Arc::new(channel);
    let lane = Lane {
        name: channel.name.clone(),
        queue: sender,
        repeat: channel.repeat,
        record,
        channel: Arc::clone(&channel),
    };
    let driver = Driver {
        channel,
        queue,
        settled,
        clock,
        stopping,
        health,
        record: keeping,
        breaker: Breaker::default(),
        sends: JoinSet::new(),
        under_way: HashMap::new(),
    };
    (lane, driver, state)
}

impl Driver {
    /// Works until asked to stop, then finishes the sends that are under way. What is still queued remains owed.
    pub(super) async fn run(mut self) {
        self.show();
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                Some(ended) = self.sends.join_next_with_id() => self.finish(ended).await,
                work = self.queue.recv(), if self.sends.len() < self.channel.sends_max => match work {
                    Some(work) => self.begin(work).await,
                    None => break,
                },
            }
        }
        while let Some(ended) = self.sends.join_next_with_id().await {
            self.finish(ended).await;
        }
    }

    async fn begin(&mut self, work: Work) {
        if let Err(wait) = self.breaker.admit(Instant::now()) {
            let failure = Failure::Passing { reason: "the channel is not answering".into(), after: wait };
            return self.settle(work, Err(failure)).await;
        }
        fault::point("outbox.before");
        let (channel, task, now) = (Arc::clone(&self.channel), work.clone(), self.clock.now());
        let send = self.sends.spawn(async move {
            match task {
                Work::Deliver(parcel) => channel.send(&parcel, now).await,
                Work::Repeat(firing) => channel.repeat(&firing, now).await,
            }
        });
        self.under_way.insert(send.id(), (work, Instant::now()));
    }

    async fn finish(&mut self, ended: Result<(Id, Result<(), Failure>), JoinError>) {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(error) => (error.id(), Err(Failure::passing("the send ended unexpectedly"))),
        };
        let Some((work, began)) = self.under_way.remove(&id) else { return };
        metrics::histogram!("platform_api_delivery_seconds", "channel" => self.channel.name.clone())
            .record(began.elapsed().as_secs_f64());
        // A final refusal is an answer: the channel works.
        match &result {
            Ok(()) | Err(Failure::Final { .. }) => self.breaker.succeeded(),
            Err(Failure::Passing { .. }) => self.breaker.failed(Instant::now()),
        }
        fault::point("outbox.accepted");
        self.report(&result);
        self.settle(work, result).await;
    }

    async fn settle(&mut self, work: Work, result: Result<(), Failure>) {
        let Work::Deliver(parcel) = work else { return };
        let now = self.clock.now();
        let result = match result {
            Ok(()) => AttemptResult::Delivered,
            Err(Failure::Final { reason }) => AttemptResult::GaveUp { reason },
            Err(Failure::Passing { reason, after }) => schedule::after_failure(&parcel, now, reason, after),
        };
        self.note(&parcel, &result);
        let delivery = parcel.delivery;
        let attempt =
            Attempt { alert: delivery.alert.id, event: delivery.event, channel: delivery.channel, at: now, result };
        // The dispatcher listens until the last lane has ended.
        let _ = self.settled.send(Settled { tenant: parcel.tenant, attempt }).await;
    }

    fn note(&self, parcel: &Parcel, result: &AttemptResult) {
        let (word, reason) = match result {
            AttemptResult::Delivered => ("delivered", ""),
            AttemptResult::Retry { reason, .. } => ("retry", reason.as_str()),
            AttemptResult::GaveUp { reason } => ("gave_up", reason.as_str()),
            AttemptResult::Withdrawn => ("withdrawn", ""),
        };
        let (tenant, channel, delivery) = (parcel.tenant, &self.channel.name, parcel.delivery.id());
        self.record.send_modify(|record| match result {
            AttemptResult::Delivered => record.delivered += 1,
            AttemptResult::Retry { .. } => record.retried += 1,
            AttemptResult::GaveUp { .. } => record.gave_up += 1,
            AttemptResult::Withdrawn => {}
        });
        metrics::counter!("platform_api_deliveries_total", "channel" => channel.clone(), "result" => word).increment(1);
        match result {
            AttemptResult::Delivered | AttemptResult::Withdrawn => {
                tracing::debug!(%tenant, channel, delivery, word);
            }
            AttemptResult::Retry { at, .. } => {
                tracing::debug!(%tenant, channel, delivery, reason, next_attempt_at = %at, "not delivered yet");
            }
            AttemptResult::GaveUp { .. } => tracing::error!(%tenant, channel, delivery, reason, "delivery given up"),
        }
    }

    /// Publishes a change of the channel's state, and logs it once.
    fn report(&self, result: &Result<(), Failure>) {
        let state = match result {
            Ok(()) | Err(Failure::Final { .. }) => State::Up,
            Err(Failure::Passing { reason, .. }) => State::Down { reason: reason.clone() },
        };
        let now = self.clock.now();
        self.record.send_modify(|record| match result {
            Ok(()) => record.last_success_at = Some(now),
            Err(Failure::Final { reason } | Failure::Passing { reason, .. }) => {
                record.last_failure_at = Some(now);
                record.last_failure = Some(reason.clone());
            }
        });
        let was_up = !matches!(*self.health.borrow(), State::Down { .. });
        match &state {
            State::Down { reason } if was_up => tracing::warn!(channel = self.channel.name, reason, "channel is down"),
            State::Up if !was_up => tracing::info!(channel = self.channel.name, "channel is up again"),
            _ => {}
        }
        self.health.send_replace(state);
        self.show();
    }

    fn show(&self) {
        let is_open = self.breaker.is_open();
        self.record.send_modify(|record| record.circuit_open = is_open);
        let open = if is_open { 1.0 } else { 0.0 };
        metrics::gauge!("platform_api_channel_open", "channel" => self.channel.name.clone()).set(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};
    use crate::domain::notice::Event;
    use crate::domain::quota::Metric;
    use crate::outlet::breaker::FAILURES_MAX;
    use crate::outlet::parcel::samples;
    use crate::outlet::receiver::Receiver;

    struct Running {
        lane: Lane,
        settled: mpsc::Receiver<Settled>,
        state: watch::Receiver<State>,
        stopping: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn run(url: String) -> Running {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into();
        let webhook = config::Channel::Webhook { name: "hook".into(), url, secret, allow_private_addresses: true };
        let channel = Channel::open(&webhook, &Config::default()).unwrap();
        let (sender, settled) = mpsc::channel(QUEUE_MAX);
        let stopping = CancellationToken::new();
        let (lane, driver, state) = build(channel, sender, Clock::system(), stopping.clone());
        Running { lane, settled, state, stopping, task: tokio::spawn(driver.run()) }
    }

    fn parcel() -> Parcel {
        samples::parcel("hook", Event::Fired, Metric::Tokens, Clock::system().now())
    }

    #[tokio::test]
    async fn a_failing_receiver_is_left_alone_after_some_failures() {
        let receiver = Receiver::start(["500 Oops"]).await;
        let mut running = run(receiver.url("/"));
        let offered = FAILURES_MAX + 5;
        for _ in 0..offered {
            running.lane.queue.send(Work::Deliver(Box::new(parcel()))).await.unwrap();
            let settled = running.settled.recv().await.unwrap();
            assert!(matches!(settled.attempt.result, AttemptResult::Retry { .. }));
        }
        assert_eq!(receiver.requests().len(), FAILURES_MAX as usize);
        assert_eq!(*running.state.borrow(), State::Down { reason: "answered 500".into() });
        running.stopping.cancel();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn stopping_finishes_what_is_under_way_and_leaves_the_rest_owed() {
        let receiver = Receiver::silent().await;
        let mut running = run(receiver.url("/"));
        for _ in 0..20 {
            running.lane.queue.send(Work::Deliver(Box::new(parcel()))).await.unwrap();
        }
        while receiver.requests().len() < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.stopping.cancel();
        let mut settled = 0;
        while let Some(one) = running.settled.recv().await {
            let timed_out = matches!(&one.attempt.result, AttemptResult::Retry { reason, .. } if reason == "timed out");
            assert!(timed_out, "{one:?}");
            settled += 1;
        }
        running.task.await.unwrap();
        assert_eq!((settled, receiver.requests().len()), (8, 8), "as many at once as a channel may have");
    }

    #[tokio::test]
    async fn a_receiver_that_works_again_is_reported_up() {
        let receiver = Receiver::start(["503 Later", "200 OK"]).await;
        let mut running = run(receiver.url("/"));
        let mut results = Vec::new();
        for _ in 0..2 {
            running.lane.queue.send(Work::Deliver(Box::new(parcel()))).await.unwrap();
            results.push(running.settled.recv().await.unwrap().attempt.result);
        }
        assert!(matches!(&results[0], AttemptResult::Retry { reason, .. } if reason == "answered 503"));
        assert_eq!(results[1], AttemptResult::Delivered);
        assert_eq!(*running.state.borrow(), State::Up);
        running.stopping.cancel();
        running.task.await.unwrap();
    }
}
