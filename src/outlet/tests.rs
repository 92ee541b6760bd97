//! The whole way: a tenant of a real directory crosses a threshold, and what is owed leaves.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::receiver::{Receiver, Request as Received};
use super::{Outlets, State};
use crate::clock::{self, Clock};
use crate::config::{self, Channel, Config};
use crate::directory::handle::{Handle as Directory, NewKey, NewTenant};
use crate::directory::{self, Settings};
use crate::domain::ids::{QuotaId, TenantId};
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Enforcement, Metric, Quota, Scope};
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::Role;
use crate::domain::time::MICROS_PER_MINUTE;
use crate::domain::usage::{Amounts, Flags, Kind, Outcome, Status, Subject, UsageEvent};
use crate::store::database::Store;
use crate::tenant::handle::Origin;
use crate::tenant::message::QuotaDraft;

const PATIENCE: Duration = Duration::from_secs(90);

struct House {
    config: Config,
    clock: Clock,
    store: Store,
    directory: Directory,
    outlets: Outlets,
}

impl House {
    async fn open(config: &Config) -> House {
        House::at(config, Clock::system()).await
    }

    /// With a clock of its own.
    async fn at(config: &Config, clock: Clock) -> House {
        House::by(config, Store::open(&config.store).await.unwrap(), clock).await
    }

    async fn over(config: &Config, store: Store) -> House {
        House::by(config, store, Clock::system()).await
    }

    async fn by(config: &Config, store: Store, clock: Clock) -> House {
        let settings = Settings {
            tenants: config.tenants.clone(),
            retention_micros: config.retention_micros(),
            routing: Arc::new(config.notify.routing()),
            reconcile: config.reconcile.terms(),
            lease_micros: config::Jobs::default().lease_micros(),
        };
        let (hints, committed) = mpsc::channel(64);
        let directory = directory::open(store.clone(), settings, clock.clone(), hints).await.unwrap();
        let outlets = Outlets::start(config, directory.clone(), clock.clone(), committed).unwrap();
        House { config: config.clone(), clock, store, directory, outlets }
    }

    async fn close(self) -> (Config, Store) {
        self.outlets.stop(Duration::from_secs(10)).await;
        self.directory.drain(Duration::from_secs(10)).await;
        (self.config, self.store)
    }

    /// Everybody leaves, and comes back to the same databases.
    async fn restart(self) -> House {
        let (config, store) = self.close().await;
        House::over(&config, store).await
    }

    async fn onboard(&self) -> TenantId {
        let new = NewTenant {
            name: "Acme".into(),
            slug: None,
            tier: "standard".into(),
            time_zone: "UTC".into(),
            external_ids: Vec::new(),
            settings: "{}".into(),
        };
        let key = NewKey { id: "key-1".into(), hash: clock::random_bytes(), name: "first".into(), role: Role::Admin };
        let answer = self.directory.onboard(new, key, Request::system(), |_| String::new()).await.unwrap();
        match answer {
            Answer::Fresh(onboarded) => onboarded.tenant.id,
            Answer::Replayed(_) => panic!("nobody has asked before"),
        }
    }

    /// A monthly quota of requests with a threshold at 80 percent.
    async fn limit(&self, tenant: TenantId, limit: i64) {
        let quota = Quota {
            id: QuotaId(clock::new_id()),
            scope: Scope::Tenant,
            metric: Metric::Requests,
            period: PeriodKind::Total,
            limit,
            thresholds: vec![80],
            enforcement: Enforcement::Alert,
        };
        let drafts = vec![QuotaDraft { quota, named: false }];
        let handle = self.directory.find(tenant).await.unwrap();
        handle.replace_quotas(drafts, Request::system(), |_| String::new()).await.unwrap().unwrap();
    }

    async fn use_up(&self, tenant: TenantId, requests: i64) {
        let event = UsageEvent {
            source: "test".into(),
            event_id: clock::new_id().to_string(),
            occurred_at: self.clock.now(),
            kind: Kind::Delta,
            status: Status::Success,
            subject: Subject::default(),
            call_type: String::new(),
            amounts: Amounts { requests, ..Amounts::default() },
            flags: Flags::default(),
            details: String::new(),
        };
        let handle = self.directory.find(tenant).await.unwrap();
        let outcomes = handle.record(vec![event], Origin::default(), PATIENCE).await.unwrap();
        assert_eq!(outcomes, [Outcome::Accepted]);
    }
}

fn config(folder: &tempfile::TempDir, channels: Vec<Channel>) -> Config {
    let url = format!("sqlite:{}", folder.path().display());
    Config {
        store: config::Store { url: url.into(), ..config::Store::default() },
        notify: config::Notify { channels, ..config::Notify::default() },
        ..Config::default()
    }
}

fn webhook(name: &str, receiver: &Receiver) -> Channel {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into();
    Channel::Webhook { name: name.into(), url: receiver.url("/hook"), secret, allow_private_addresses: true }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn kinds(requests: &[Received]) -> Vec<String> {
    let kind = |request: &Received| {
        let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        body["type"].as_str().unwrap().to_owned()
    };
    requests.iter().map(kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_received_once_and_before_its_end_however_the_receiver_feels() {
    let folder = tempfile::tempdir().unwrap();
    let (moody, well) = (Receiver::start(["500 No", "500 No", "200 OK"]).await, Receiver::start(["200 OK"]).await);
    let hung = Receiver::silent().await;
    let channels = vec![webhook("hung", &hung), webhook("moody", &moody), webhook("well", &well)];
    let house = House::open(&config(&folder, channels)).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 8).await;
    eventually("the one that is well hears at once", || well.requests().len() == 1).await;
    // The limit is raised while the moody one still does not know that it was reached.
    house.limit(tenant, 1_000).await;
    eventually("the moody one hears both", || moody.requests().len() == 4).await;
    let fired = "quota.alert.fired";
    assert_eq!(kinds(&moody.requests()), [fired, fired, fired, "quota.alert.resolved"]);
    assert_eq!(kinds(&well.requests()), [fired, "quota.alert.resolved"]);
    let ids: Vec<String> = moody.requests().iter().map(|request| request.header("webhook-id")).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");

    // Two rounds later nothing has come twice, and the one that hangs holds up nobody.
    sleep(super::dispatcher::ROUND + Duration::from_secs(1)).await;
    assert_eq!((moody.requests().len(), well.requests().len()), (4, 2));
    let states: Vec<State> = house.outlets.health.iter().map(|known| known.state.borrow().clone()).collect();
    assert_eq!(states, [State::Down { reason: "timed out".into() }, State::Up, State::Up]);
    house.close().await;
}

/// An hour by the clock that the outbox goes by, in which one hangs, one redirects, one asks for time, and one fails.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_hour_of_every_failure_each_receiver_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let trap = Receiver::start(["200 OK"]).await;
    let location = format!("307 Temporary Redirect\r\nlocation: {}", trap.url("/"));
    let hung = Receiver::silent().await;
    let redirecting = Receiver::start([location.as_str()]).await;
    let busy = Receiver::start(["429 Slow\r\nretry-after: 600"]).await;
    let failing = Receiver::start(["500 No"]).await;
    let pager = Channel::PagerDuty {
        name: "failing".into(),
        routing_key: "0123456789abcdef0123456789abcdef".into(),
        url: Some(failing.url("")),
        allow_private_addresses: true,
    };
    let channels = vec![webhook("hung", &hung), webhook("redirecting", &redirecting), webhook("busy", &busy), pager];
    let (start, receivers) = (Clock::system().now(), [&hung, &redirecting, &busy, &failing]);
    let house = House::at(&config(&folder, channels), Clock::held_at(start)).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 8).await;
    let asked = || receivers.map(|receiver| receiver.requests().len());
    let settled = async |expected: [usize; 4]| {
        eventually(&format!("{expected:?} requests"), || asked() == expected).await;
        // The one that hangs is waited for as long as a send may take, and a round passes.
        sleep(super::dispatcher::ROUND + Duration::from_secs(1)).await;
        assert_eq!(asked(), expected);
    };
    settled([1, 1, 1, 1]).await;
    house.clock.set(start.plus_micros(5 * MICROS_PER_MINUTE));
    // Who asked for ten minutes gets them.
    settled([2, 2, 1, 2]).await;
    house.clock.set(start.plus_micros(60 * MICROS_PER_MINUTE));
    settled([3, 3, 2, 3]).await;
    receivers.iter().for_each(|receiver| receiver.will_answer("202 Accepted"));
    house.clock.set(start.plus_micros(80 * MICROS_PER_MINUTE));
    settled([4, 4, 3, 4]).await;
    house.clock.set(start.plus_micros(200 * MICROS_PER_MINUTE));
    settled([4, 4, 3, 4]).await;

    assert!(trap.requests().is_empty(), "nobody follows a redirect");
    for receiver in [&hung, &redirecting, &busy] {
        let ids: HashSet<String> = receiver.requests().iter().map(|request| request.header("webhook-id")).collect();
        assert_eq!(ids.len(), 1, "one id in every attempt: {ids:?}");
    }
    let key = |request: &Received| {
        let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        body["dedup_key"].as_str().unwrap().to_owned()
    };
    let keys: HashSet<String> = failing.requests().iter().map(key).collect();
    assert_eq!(keys.len(), 1, "one incident: {keys:?}");
    let states: Vec<State> = house.outlets.health.iter().map(|known| known.state.borrow().clone()).collect();
    assert_eq!(states, [State::Up, State::Up, State::Up, State::Up]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_channel_does_not_take_in_its_time_the_second_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Receiver::start(["500 No"]).await, Receiver::start(["200 OK"]).await);
    let mut config = config(&folder, vec![webhook("first", &first), webhook("second", &second)]);
    config.notify.routes = vec![config::Route {
        channels: vec!["first".into()],
        escalate_to: Some("second".into()),
        escalate_after_ms: 60_000,
        ..config::Route::default()
    }];
    let start = Clock::system().now();
    let house = House::at(&config, Clock::held_at(start)).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 8).await;
    eventually("a first attempt", || first.requests().len() == 1).await;
    assert!(second.requests().is_empty());
    house.clock.set(start.plus_micros(MICROS_PER_MINUTE));
    eventually("the second channel is told", || second.requests().len() == 1).await;
    first.will_answer("200 OK");
    house.clock.set(start.plus_micros(30 * MICROS_PER_MINUTE));
    eventually("the first takes it at last", || first.requests().len() >= 2).await;
    house.limit(tenant, 1_000).await;
    eventually("both hear the end", || {
        second.requests().len() == 2 && kinds(&first.requests()).ends_with(&["quota.alert.resolved".into()])
    })
    .await;
    assert_eq!(kinds(&second.requests()), ["quota.alert.fired", "quota.alert.resolved"]);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_when_we_stop_is_delivered_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(["503 Closed", "200 OK"]).await;
    let house = House::open(&config(&folder, vec![webhook("hook", &receiver)])).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 10).await;
    eventually("a first attempt", || receiver.requests().len() == 1).await;
    let (config, store) = house.close().await;
    assert_eq!(receiver.requests().len(), 1);

    let house = House::over(&config, store).await;
    eventually("a second attempt", || receiver.requests().len() == 2).await;
    let house = house.restart().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(receiver.requests().len(), 2, "it was noted that the second attempt succeeded");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_forgets_is_told_again_while_an_alert_fires_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Arc::new(Receiver::start(["200 OK"]).await);
    let alertmanager = Channel::Alertmanager {
        name: "on-call".into(),
        url: receiver.url(""),
        repeat_ms: 1_000,
        allow_private_addresses: true,
    };
    let house = House::open(&config(&folder, vec![alertmanager])).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 10).await;
    eventually("repetitions", || receiver.requests().len() >= 3).await;
    // Nobody asks for the tenant after this start but the outlets.
    let house = house.restart().await;
    let before = receiver.requests().len();
    eventually("repetitions after a restart", || receiver.requests().len() >= before + 2).await;
    house.limit(tenant, 1_000).await;
    let ends_at = |request: &Received| {
        let body: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        body[0]["endsAt"].as_str().unwrap().parse::<crate::domain::time::Timestamp>().unwrap()
    };
    let ended = || receiver.requests().last().is_some_and(|last| ends_at(last) <= Clock::system().now());
    eventually("the end", ended).await;
    let after = receiver.requests().len();
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(receiver.requests().len(), after, "what is over is not repeated");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_follows_the_books() {
    let folder = tempfile::tempdir().unwrap();
    let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
    let mut config = config(&folder, Vec::new());
    config.redis = config::Redis {
        url: Some(url.as_str().into()),
        key_prefix: format!("outlet-test-{}:", clock::new_id()),
        ttl_ms: 60_000,
    };
    let house = House::open(&config).await;
    let tenant = house.onboard().await;
    house.limit(tenant, 10).await;
    house.use_up(tenant, 8).await;
    let key = format!("{}{tenant}", config.redis.key_prefix);
    let mut reader = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let until = Instant::now() + PATIENCE;
    let document = loop {
        let text: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut reader).await.unwrap();
        let document: serde_json::Value = serde_json::from_str(&text.unwrap_or("{}".into())).unwrap();
        if document["quotas"][0]["used"] == 8 {
            break document;
        }
        assert!(Instant::now() < until, "{document}");
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(document["decision"], "warn");
    assert_eq!(*house.outlets.health[0].state.borrow(), State::Up);
    house.close().await;
    let _: () = redis::cmd("DEL").arg(&key).query_async(&mut reader).await.unwrap();
}
