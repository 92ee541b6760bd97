//! The fault matrix: what can go wrong around a daemon at work, and that every event is counted once all the same.
//!
//! Each fault is a function of a [`World`]: tenants under load, and the neighbours that can be hurt. The suite inflicts
//! each once; `tests/soak` inflicts all of them, at random and for hours. [`matrix.md`](matrix.md) says which test shows
//! which row.

mod clocks;
mod damage;
mod disk;
mod inputs;
mod limits;
mod neighbours;
mod postgres;
mod process;
mod soak;
mod stream;

use std::pin::Pin;

use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use crate::harness::bus::Bus;
use crate::harness::events::Envelope;
use crate::harness::load::{Load, Target};
use crate::harness::proxy::Proxy;
use crate::harness::receiver::{Receiver, channel_at};
use crate::harness::servers::{Postgres, Server};
use crate::harness::tmpfs::Tmpfs;
use crate::harness::{Daemon, Engine, Setup, eventually};

/// Something that goes wrong, and is right again when the future ends.
pub type Fault = for<'a> fn(&'a mut World) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// How many batches show that the daemon works again.
const SIGN_OF_LIFE: usize = 4;

/// A daemon at work among neighbours of its own.
pub struct World {
    pub daemon: Daemon,
    pub bus: Bus,
    pub targets: Vec<Target>,
    pub pager: Receiver,
    /// Through which the first receiver of alerts is reached.
    pub pager_proxy: Proxy,
    pub second_pager: Receiver,
    pub nats: Server,
    pub redis: Server,
    /// Where some of the books are, if it can be filled.
    pub disk: Option<Tmpfs>,
    postgres: Option<Hurtable>,
    load: Option<Load>,
}

/// A Postgres cluster, and the proxy through which the daemon reaches it.
struct Hurtable {
    cluster: Postgres,
    proxy: Proxy,
}

impl World {
    /// Two tenants under load on this engine, with settings of the test's own.
    pub async fn on(engine: Engine, settings: impl FnOnce(Setup) -> Setup) -> World {
        let (pager, nats, redis) = (Receiver::start().await, Server::nats().await, Server::redis().await);
        let mut setup = Setup::on(engine).with_nats_at(nats.url("nats")).with_redis_at(redis.url("redis"));
        let (pager_proxy, second_pager) = (Proxy::to(pager.port).await, Receiver::start().await);
        setup =
            setup.with_section(&channel_at("pager", pager_proxy.port)).with_section(&second_pager.channel("second"));
        setup = setup.with("NATS__ACK_WAIT_MS", 3_000);
        let mut postgres = None;
        if engine == Engine::Postgres {
            let cluster = Postgres::start().await;
            let proxy = Proxy::to(cluster.port()).await;
            setup = setup.on_server(&cluster.url(), &Postgres::url_at(proxy.port));
            postgres = Some(Hurtable { cluster, proxy });
        }
        let daemon = settings(setup).start().await;
        let bus = daemon.bus().await;
        let targets = vec![Target::onboard(&daemon, "Acme").await, Target::onboard(&daemon, "Globex").await];
        World { daemon, bus, targets, pager, pager_proxy, second_pager, nats, redis, disk: None, postgres, load: None }
    }

    pub fn cluster(&mut self) -> &mut Postgres {
        &mut self.postgres.as_mut().expect("a world on Postgres").cluster
    }

    pub fn proxy(&self) -> &Proxy {
        &self.postgres.as_ref().expect("a world on Postgres").proxy
    }

    pub fn load(&self) -> &Load {
        self.load.as_ref().expect("the world is under load")
    }

    /// Inflicts a fault under load. Afterwards everything drains without help (V1), and the books are exact.
    pub async fn suffers(&mut self, name: &str, fault: Fault) {
        let began = Instant::now();
        self.load = Some(Load::on(&self.targets, Some(&self.bus)));
        self.load().progresses(SIGN_OF_LIFE).await;
        fault(self).await;
        let healed = Instant::now();
        self.load().progresses(SIGN_OF_LIFE).await;
        let recovered_ms = healed.elapsed().as_millis();
        self.rest().await;
        println!(
            "{} {name}: works again after {recovered_ms} ms, {} ms in all",
            self.daemon.engine,
            began.elapsed().as_millis()
        );
    }

    /// How many events the tenants of now were sent.
    pub fn events(&self) -> usize {
        self.targets.iter().map(|target| target.oracle.count()).sum()
    }

    /// New tenants take the place of those that have seen much; on a disk of its own the first one stays.
    pub async fn moves_in(&mut self) {
        let stays = usize::from(self.postgres.is_some() && self.disk.is_some());
        for target in self.targets.iter_mut().skip(stays) {
            *target = Target::onboard(&self.daemon, "Initech").await;
        }
    }

    /// Ends the load and checks everything.
    async fn rest(&mut self) {
        self.load.take().expect("the world is under load").stop().await;
        self.daemon.drained(&self.bus).await;
        for target in &self.targets {
            target.check(&self.daemon, Some(&self.pager)).await;
        }
    }
}

/// What is asked of a tenant in trouble, or of its neighbour.
impl Target {
    /// It has got a place among the open tenants.
    async fn is_opened(&self) {
        self.tenant.quotas().await;
    }

    /// Decisions are made from memory, whatever happens to the database.
    async fn is_judged(&self) {
        let answer = self.tenant.api.get(&format!("/v1/quotas/{}/decision", self.tenant.id)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    /// Its books can be read.
    async fn is_read(&self) {
        let answer = self.tenant.api.get(&format!("/v1/tenants/{}/usage/events?limit=1", self.tenant.id)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    /// It is judged, read, and its events are counted as ever.
    async fn is_served(&self) {
        self.is_judged().await;
        self.is_read().await;
        let event = self.tenant.event();
        self.oracle.sends(&event);
        let answer = self.tenant.api.post("/v1/usage/events", &Value::Array(vec![event.json()])).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    /// Sends a new event once; what it was answered first.
    async fn posts_one(&self) -> (u16, Envelope) {
        let event = self.tenant.event();
        self.oracle.sends(&event);
        let body = Value::Array(vec![event.json()]).to_string().into_bytes();
        let headers = [("content-type", "application/json")];
        let answer = self.tenant.api.once(Method::POST, "/v1/usage/events", &headers, body).await;
        (answer.status, event)
    }

    /// A new event is not taken now, and whoever sent it is told so; the event, to be sent again when this is over.
    async fn is_closed(&self) -> Envelope {
        eventually("a refusal", || async {
            let (status, event) = self.posts_one().await;
            if status == 503 {
                return Some(event);
            }
            assert_eq!(status, 200);
            None
        })
        .await
    }
}
