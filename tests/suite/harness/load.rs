//! Tenants under load: senders that never give up, and an oracle that knows what they sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::bus::Bus;
use super::database::Database;
use super::events::Envelope;
pub use super::fire::{Target, between, post_until_counted};
use super::fire::{an_event, chance, every_alert_was_told_once, quotas};
use super::oracle::Oracle;
use super::receiver::Receiver;
use super::{Daemon, eventually};

/// How long a sender goes on before it says that it is in vain. Longer than any fault lasts.
const PERSISTENCE: Duration = Duration::from_secs(180);

impl Target {
    /// Onboards a tenant with several quotas at once, and limits that are crossed on the way.
    pub async fn onboard(daemon: &Daemon, name: &str) -> Target {
        let tenant = daemon.onboard(name).await;
        tenant.put_quotas(quotas()).await;
        Target { tenant, oracle: Arc::new(Oracle::default()) }
    }

    /// Everything that was sent is in the books, once, with all that follows from it, and the pager was told.
    pub async fn check(&self, daemon: &Daemon, pager: Option<&Receiver>) {
        let mut known = -1;
        while known < self.oracle.count() as i64 {
            // As long as they become more, they are on their way.
            known = eventually("every event in the ledger", || async {
                let mut database = Database::of_tenant(daemon, &self.tenant.id).await;
                Some(database.number("SELECT COUNT(*) FROM usage_ledger").await).filter(|counted| *counted > known)
            })
            .await;
        }
        self.oracle.check(daemon, &self.tenant).await;
        if let Some(pager) = pager {
            every_alert_was_told_once(daemon, &self.tenant, pager).await;
        }
    }
}

/// Senders at work.
pub struct Load {
    fire: Arc<AtomicBool>,
    /// Nothing is published meanwhile. Who publishes holds it while he does.
    stream: Arc<RwLock<()>>,
    held: Mutex<Option<OwnedRwLockWriteGuard<()>>>,
    posted: Arc<AtomicUsize>,
    senders: JoinSet<()>,
}

impl Load {
    /// Feeds every target over HTTP, and over NATS if there is a bus.
    pub fn on(targets: &[Target], bus: Option<&Bus>) -> Load {
        let (fire, posted) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (mut senders, stream) = (JoinSet::new(), Arc::new(RwLock::new(())));
        for target in targets {
            senders.spawn(send_over_http(target.clone(), fire.clone(), posted.clone()));
            if let Some(bus) = bus {
                senders.spawn(send_over_nats(bus.clone(), target.clone(), fire.clone(), stream.clone()));
            }
        }
        Load { fire, stream, held: Mutex::default(), posted, senders }
    }

    /// Holds back, or lets go, what is published.
    pub async fn holds_the_stream(&self, held: bool) {
        let guard = if held { Some(self.stream.clone().write_owned().await) } else { None };
        *self.held.lock().await = guard;
    }

    /// Waits until as many more batches have been answered with a receipt: the daemon works.
    pub async fn progresses(&self, batches: usize) {
        let before = self.posted.load(Ordering::SeqCst);
        eventually("batches to be counted", || async {
            (self.posted.load(Ordering::SeqCst) >= before + batches).then_some(())
        })
        .await;
    }

    /// Ends every sender once what it has begun is counted.
    pub async fn stop(mut self) {
        self.fire.store(false, Ordering::SeqCst);
        while let Some(sent) = self.senders.join_next().await {
            sent.expect("a sender ends well");
        }
    }
}

/// Publishes as a gateway does: some events twice, some on the tenant's own subject, each until the stream has it.
async fn send_over_nats(bus: Bus, target: Target, fire: Arc<AtomicBool>, stream: Arc<RwLock<()>>) {
    let tenant = &target.tenant.id;
    while fire.load(Ordering::SeqCst) {
        let publishing = stream.read().await;
        let event = an_event(tenant);
        target.oracle.sends(&event);
        let subject = if chance(2) { format!("{}.{tenant}", bus.subject) } else { bus.subject.clone() };
        for _ in 0..if chance(6) { between(2, 4) } else { 1 } {
            let publish = || bus.try_publish(&subject, event.json().to_string().into_bytes());
            let sequence = persistently("an event that the stream takes", publish).await;
            target.oracle.published(sequence, &event);
        }
        drop(publishing);
        sleep(Duration::from_millis(between(5, 40))).await;
    }
}

/// Posts batches as a careful client does: until an answer says that they are counted.
async fn send_over_http(target: Target, fire: Arc<AtomicBool>, posted: Arc<AtomicUsize>) {
    while fire.load(Ordering::SeqCst) {
        let mut batch: Vec<Envelope> = (0..between(1, 20)).map(|_| an_event(&target.tenant.id)).collect();
        batch.iter().for_each(|event| target.oracle.sends(event));
        if chance(4) {
            batch.push(batch[0].clone());
        }
        post_until_counted(&target.tenant.api, &batch).await;
        target.oracle.acknowledged(&batch);
        if chance(10) {
            // The same id with another body, after the first was counted.
            let mut other = batch[0].clone();
            other.prompt_tokens += 1;
            target.oracle.conflicts(&other.event_id);
            post_until_counted(&target.tenant.api, &[other]).await;
        }
        posted.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(between(10, 60))).await;
    }
}

async fn persistently<T, Asked>(awaited: &str, mut ask: impl FnMut() -> Asked) -> T
where
    Asked: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < PERSISTENCE, "tried {PERSISTENCE:?} in vain: {awaited}");
        sleep(Duration::from_millis(50)).await;
    }
}
