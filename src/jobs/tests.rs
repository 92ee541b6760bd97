//! The runner on a real control database, with work that the tests hold in their hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::kinds::{Errand, Failure, Work};
use super::runner::Runner;
use crate::clock::Clock;
use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::directory::workflow::FinishChange;
use crate::directory::{self, Settings};
use crate::domain::ids::JobId;
use crate::domain::job::{Draft, Job, JobFilter, Kind, State};
use crate::domain::request::{Answer, Request};
use crate::domain::routing::Routing;
use crate::domain::time::MICROS_PER_DAY;
use crate::store::database::Store;

const PATIENCE: Duration = Duration::from_secs(60);
const STEPS: i64 = 5;

/// A daemon's control database.
struct Node {
    directory: Directory,
    clock: Clock,
    _folder: tempfile::TempDir,
}

impl Node {
    async fn open() -> Node {
        Node::open_at(Clock::system()).await
    }

    async fn open_at(clock: Clock) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let url = SecretString::from(format!("sqlite:{}", folder.path().join("data").display()));
        let store = Store::open(&config::Store { url, ..config::Store::default() }).await.unwrap();
        let settings = Settings {
            tenants: config::Tenants::default(),
            retention_micros: crate::domain::time::MICROS_PER_DAY,
            routing: Arc::new(Routing::all(Vec::new())),
            reconcile: crate::domain::reconcile::Terms::default(),
            lease_micros: config::Jobs::default().lease_micros(),
        };
        let directory = directory::open(store, settings, clock.clone(), mpsc::channel(1).0).await.unwrap();
        Node { directory, clock, _folder: folder }
    }

    /// A runner of its own, with this work alone.
    fn run(&self, work: Arc<Steps>) -> (CancellationToken, JoinHandle<()>) {
        let settings = config::Jobs { lease_ms: 1_000, ..config::Jobs::default() };
        let runner = Runner::with(self.directory.clone(), self.clock.clone(), settings, vec![work]);
        let stop = CancellationToken::new();
        (stop.clone(), tokio::spawn(runner.run(stop)))
    }

    async fn submit(&self, attempts_max: i64) -> JobId {
        self.submit_of(Kind::AuditVerification, attempts_max).await
    }

    async fn submit_of(&self, kind: Kind, attempts_max: i64) -> JobId {
        let draft = Draft {
            kind: kind.name().into(),
            tenant: None,
            key: None,
            arguments: "{}".into(),
            run_at: self.clock.now(),
            every_micros: 0,
            attempts_max,
            actor: "platform".into(),
            request_id: "r".into(),
        };
        match self.directory.submit_job(draft, Request::system(), |_| String::new()).await.unwrap() {
            Answer::Fresh(job) => job.id,
            Answer::Replayed(_) => panic!("nothing was asked before"),
        }
    }

    async fn job(&self, id: JobId) -> Job {
        self.directory.job(id).await.unwrap().unwrap()
    }

    async fn until(&self, id: JobId, what: impl Fn(&Job) -> bool) -> Job {
        let waiting = async {
            loop {
                let job = self.job(id).await;
                if what(&job) {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it never came to that")
    }
}

/// Work of five steps, each done by whoever holds the job; it can be told to hang or to fail before a step.
#[derive(Default)]
struct Steps {
    done: AtomicI64,
    hang_before: Option<i64>,
    fail: Option<Failure>,
    panics: bool,
    deaf: bool,
}

impl Work for Steps {
    fn kind(&self) -> Kind {
        Kind::AuditVerification
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            assert!(!self.panics, "as it was told");
            if let Some(failure) = &self.fail {
                return Err(failure.clone());
            }
            for step in errand.checkpoint::<i64>().unwrap_or(0)..STEPS {
                if self.hang_before == Some(step) {
                    while self.deaf || !errand.stop.is_cancelled() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    return Err(Failure::Stopped);
                }
                self.done.fetch_add(1, Ordering::SeqCst);
                errand.progress(step + 1, Some(STEPS), "steps", Some(&json!(step + 1)));
            }
            Ok(json!({ "steps": STEPS }))
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_job_is_done_and_tells_what_came_of_it() {
    let node = Node::open().await;
    let work = Arc::new(Steps::default());
    let (_, _running) = node.run(work.clone());
    let id = node.submit(3).await;
    let job = node.until(id, |job| job.state.is_finished()).await;
    assert_eq!((job.state, job.result.as_str(), job.attempts), (State::Succeeded, "{\"steps\":5}", 1));
    assert_eq!(work.done.load(Ordering::SeqCst), STEPS);
    let listed =
        node.directory.jobs(JobFilter { state: Some(State::Succeeded), ..JobFilter::default() }, None, 10).await;
    assert_eq!(listed.unwrap().items, [job]);
}

#[tokio::test]
async fn another_worker_goes_on_where_a_killed_one_had_come_to() {
    let node = Node::open().await;
    let stuck = Arc::new(Steps { hang_before: Some(3), ..Steps::default() });
    let (_, running) = node.run(stuck.clone());
    let id = node.submit(3).await;
    node.until(id, |job| job.checkpoint == "3").await;
    running.abort();
    let healthy = Arc::new(Steps::default());
    let (_, _running) = node.run(healthy.clone());
    let job = node.until(id, |job| job.state.is_finished()).await;
    assert_eq!((job.state, job.attempts, job.progress.done), (State::Succeeded, 2, STEPS));
    assert_eq!([&stuck, &healthy].map(|work| work.done.load(Ordering::SeqCst)), [3, 2]);
}

/// A leap makes every lease look over, also that of a worker next door; a step back leaves one in the future.
#[tokio::test]
async fn whatever_the_clock_does_a_job_is_begun_once() {
    let now = Clock::system().now();
    let node = Node::open_at(Clock::held_at(now)).await;
    let (_, _running) = node.run(Arc::new(Steps { hang_before: Some(3), ..Steps::default() }));
    let id = node.submit(3).await;
    node.until(id, |job| job.checkpoint == "3").await;
    for days in [1, 0, 2] {
        let then = now.plus_micros(days * MICROS_PER_DAY);
        node.clock.set(then);
        // Looked for at once, before its worker has given another sign of life.
        node.directory.job_bell().notify_one();
        let renewed = node.until(id, |job| job.lease_until == then.plus_micros(1_000_000)).await;
        assert_eq!((renewed.attempts, renewed.lease, renewed.state), (1, 1, State::Running));
    }
}

#[tokio::test]
async fn a_series_that_waits_follows_its_setting() {
    let node = Node::open().await;
    for every_ms in [3_600_000, 60_000, 7_200_000] {
        let settings = config::Jobs { housekeeping_every_ms: every_ms, ..config::Jobs::default() };
        let runner = Runner::with(node.directory.clone(), node.clock.clone(), settings, Vec::new());
        let running = tokio::spawn(runner.run(CancellationToken::new()));
        let housekeeping = || JobFilter { kind: Some(Kind::Housekeeping.name().into()), ..JobFilter::default() };
        let follows = async {
            loop {
                let series = node.directory.jobs(housekeeping(), None, 10).await.unwrap().items;
                if let [one] = series.as_slice()
                    && one.draft.every_micros == i64::try_from(every_ms).unwrap() * 1_000
                {
                    break assert!(one.draft.run_at.0 - node.clock.now().0 <= one.draft.every_micros);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, follows).await.expect("it follows");
        running.abort();
    }
}

#[tokio::test]
async fn a_daemon_that_leaves_gives_back_what_it_holds() {
    let node = Node::open().await;
    let (stop, running) = node.run(Arc::new(Steps { hang_before: Some(2), ..Steps::default() }));
    let id = node.submit(1).await;
    node.until(id, |job| job.state == State::Running).await;
    stop.cancel();
    running.await.unwrap();
    let job = node.job(id).await;
    assert_eq!((job.state, job.attempts, job.checkpoint.as_str()), (State::Waiting, 0, "2"));
}

#[tokio::test]
async fn a_canceled_job_stops_even_when_its_work_does_not_listen() {
    let node = Node::open().await;
    for deaf in [false, true] {
        let (_, running) = node.run(Arc::new(Steps { hang_before: Some(0), deaf, ..Steps::default() }));
        let id = node.submit(3).await;
        node.until(id, |job| job.state == State::Running).await;
        node.directory.cancel_job(id, Request::system(), |_| String::new()).await.unwrap();
        let job = node.until(id, |job| job.state.is_finished()).await;
        assert_eq!((job.state, job.attempts), (State::Canceled, 1));
        running.abort();
    }
}

#[tokio::test]
async fn what_fails_is_tried_again_and_what_is_hopeless_or_unknown_is_not() {
    let node = Node::open().await;
    for (work, attempts_max, expected) in [
        (Steps { fail: Some(Failure::Retryable("not now".into())), ..Steps::default() }, 2, (2, "not now")),
        (Steps { fail: Some(Failure::Hopeless("never".into())), ..Steps::default() }, 2, (1, "never")),
        (Steps { panics: true, ..Steps::default() }, 1, (1, "the work panicked")),
    ] {
        let (_, running) = node.run(Arc::new(work));
        let id = node.submit(attempts_max).await;
        let job = node.until(id, |job| job.state.is_finished()).await;
        assert_eq!((job.state, job.attempts, job.error.as_str()), (State::Failed, expected.0, expected.1));
        running.abort();
    }
    // A program without this kind.
    let runner = Runner::with(node.directory.clone(), Clock::system(), config::Jobs::default(), Vec::new());
    tokio::spawn(runner.run(CancellationToken::new()));
    let id = node.submit(3).await;
    let job = node.until(id, |job| job.state.is_finished()).await;
    assert_eq!((job.state, job.attempts), (State::Failed, 1));
}

#[tokio::test]
async fn of_a_key_there_is_one_unfinished_job() {
    let node = Node::open().await;
    let (_, running) = node.run(Arc::new(Steps::default()));
    let housekeeping = || JobFilter { kind: Some(Kind::Housekeeping.name().into()), ..JobFilter::default() };
    let first = async || node.directory.jobs(housekeeping(), None, 10).await.unwrap().items;
    while first().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.abort();
    // The next daemon wants the same series, and finds it.
    let (_, _running) = node.run(Arc::new(Steps::default()));
    let id = node.submit(1).await;
    node.until(id, |job| job.state.is_finished()).await;
    assert_eq!(first().await.len(), 1);
}

/// A change that cannot be finished is tried until it can, is seen, and waits behind nothing else.
#[tokio::test]
async fn the_rest_of_a_change_has_a_hand_of_its_own_and_is_never_given_up() {
    let node = Node::open().await;
    let settings = config::Jobs { lease_ms: 1_000, at_once: 1, ..config::Jobs::default() };
    let hanging: Arc<dyn Work> = Arc::new(Steps { hang_before: Some(0), ..Steps::default() });
    let kinds: Vec<Arc<dyn Work>> = vec![hanging, Arc::new(FinishChange)];
    let runner = Runner::with(node.directory.clone(), Clock::system(), settings, kinds);
    let mut load = runner.load();
    tokio::spawn(runner.run(CancellationToken::new()));
    let taken = node.submit(1).await;
    node.until(taken, |job| job.state == State::Running).await;
    let id = node.submit_of(Kind::FinishChange, 0).await;
    let job = node.until(id, |job| job.attempts >= 3 && job.state == State::Waiting).await;
    assert_eq!(job.error, "what is left to do cannot be read by this program");
    let seen = load.wait_for(|load| load.unfinished_changes == 1 && load.running == 1);
    tokio::time::timeout(PATIENCE, seen).await.expect("it is seen").unwrap();
    assert_eq!(node.job(taken).await.state, State::Running);
}
