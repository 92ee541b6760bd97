//! What several nodes, or a node and its next life, do to one control database, on both engines.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt;

use super::handle::{Absent, Handle};
use super::key_use::PIECE_USES_MAX;
use super::task::{Change, Halt, untold};
use super::tests::{begun_and_gone, onboard};
use super::{Settings, open};
use crate::clock::{self, Clock};
use crate::config;
use crate::domain::chain::{Entry, Hash, Head};
use crate::domain::ids::{NodeId, TenantId};
use crate::domain::job::State;
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::{Lifecycle, Tenant};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::jobs::kinds::Tools;
use crate::jobs::runner::Runner;
use crate::store::catalogue::{self, Note};
use crate::store::database::{Connection, Store};
use crate::store::tests::harness::{House, NOW};
use crate::store::{api_key, news};
use crate::telemetry::logs::JsonLines;

crate::store::tests::conformance!(
    uses_of_keys_are_written_in_pieces_that_others_come_between,
    uses_of_keys_wait_for_no_change_that_another_node_makes,
    what_a_dead_process_left_is_taken_up_at_once_only_where_it_was_the_one_owner,
    a_tenant_that_another_node_has_taken_is_given_up_though_nothing_is_committed,
    a_chain_that_another_node_has_seen_longer_is_not_gone_on_with,
    what_a_node_had_that_is_gone_another_takes_up_and_what_a_living_one_has_nobody,
);

const PATIENCE: Duration = Duration::from_secs(60);

async fn node(store: Store) -> Handle {
    let settings = Settings {
        tenants: config::Tenants::default(),
        retention_micros: MICROS_PER_DAY,
        routing: std::sync::Arc::default(),
        reconcile: crate::domain::reconcile::Terms::default(),
        lease_micros: jobs().lease_micros(),
    };
    open(store, settings, Clock::system(), mpsc::channel(1).0).await.unwrap()
}

/// With a lease that no test waits for.
fn jobs() -> config::Jobs {
    config::Jobs { lease_ms: 3_600_000, ..config::Jobs::default() }
}

fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: TenantId(clock::new_id()),
        slug: slug.into(),
        name: "Acme".into(),
        tier: "standard".into(),
        time_zone: "UTC".into(),
        lifecycle: Lifecycle::Active,
        external_ids: Vec::new(),
        settings: "{}".into(),
        created_at: NOW,
        updated_at: NOW,
    }
}

/// So many keys of a tenant's, in the control database.
async fn keys(house: &House, store: &Store, count: usize) -> Vec<String> {
    let tenant = tenant("acme");
    let mut connection = store.control_again().await.unwrap();
    catalogue::insert_tenant(&mut connection, &tenant).await.unwrap();
    house.keys(&mut connection, &tenant, i64::try_from(count).unwrap()).await
}

/// How many keys are known to have been used: asked in the place of a change.
#[derive(Debug)]
struct CountUses;

impl Change for CountUses {
    type Done = usize;
    type Refused = std::convert::Infallible;

    async fn apply(
        &self,
        connection: &mut Connection,
        _: &mut Vec<Entry>,
        _: &Request,
        _: Timestamp,
    ) -> Result<usize, Halt<Self::Refused>> {
        Ok(api_key::uses(connection).await?.len())
    }
}

async fn uses_of_keys_are_written_in_pieces_that_others_come_between(house: &House) {
    let store = house.store().await;
    let ids = keys(house, &store, 2 * PIECE_USES_MAX + 500).await;
    let node = node(store).await;
    ids.iter().for_each(|id| node.note_key_use(id));
    let counted = async || node.change(CountUses, Request::system(), untold).await;
    let ((), between) = tokio::join!(biased; node.write_key_uses(), counted());
    assert_eq!(between, Ok(Answer::Fresh(PIECE_USES_MAX)), "whoever asks meanwhile waits for one piece");
    assert_eq!(counted().await, Ok(Answer::Fresh(ids.len())));
    let used = node.key_last_used(&ids[0]);
    let mut reader = node.control_reader().await.unwrap();
    assert!(api_key::uses(&mut reader).await.unwrap().into_iter().all(|(_, at)| Some(at) == used));
}

/// On SQLite no other node has the file open, so there it is only written.
async fn uses_of_keys_wait_for_no_change_that_another_node_makes(house: &House) {
    let store = house.store().await;
    let ids = keys(house, &store, 3).await;
    let node = node(store.clone()).await;
    let mut other = store.control_again().await.unwrap();
    if !house.is_sqlite() {
        other.begin().await.unwrap();
        let version = news::version(&mut other).await.unwrap();
        assert!(news::claim(&mut other, version).await.unwrap(), "the other one has the catalogue");
    }
    ids.iter().for_each(|id| node.note_key_use(id));
    // Less than a lock is waited for.
    tokio::time::timeout(Duration::from_secs(1), node.write_key_uses()).await.expect("it waits for nobody");
    let mut reader = node.control_reader().await.unwrap();
    assert_eq!(api_key::uses(&mut reader).await.unwrap().len(), ids.len());
}

/// A change whose process is gone the moment after it was made. On Postgres, for all that the next one knows, it may be
/// alive.
async fn what_a_dead_process_left_is_taken_up_at_once_only_where_it_was_the_one_owner(house: &House) {
    let node = node(house.store().await).await;
    let (tenant, held) = begun_and_gone(&node, "acme").await;
    node.drain(PATIENCE).await;
    assert_eq!(
        node.job(held.id).await.unwrap().unwrap(),
        held,
        "nobody in this process holds it, so it stays as it is"
    );
    drop(node);

    let node = self::node(house.store().await).await;
    let stop = CancellationToken::new();
    let runner = Runner::new(node.clone(), Clock::system(), jobs(), &Tools::default());
    let running = tokio::spawn(runner.run(stop.clone()));
    if house.is_sqlite() {
        let finished = async {
            while node.lifecycle(tenant) != Some(Lifecycle::Active) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, finished).await.expect("it is finished long before the lease is over");
        let job = node.job(held.id).await.unwrap().unwrap();
        assert_eq!((job.state, job.attempts, job.error.as_str()), (State::Succeeded, 2, ""));
    } else {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.job(held.id).await.unwrap().unwrap(), held);
    }
    stop.cancel();
    running.await.unwrap();
    node.drain(PATIENCE).await;
}

/// Its next commit may be long to come. On SQLite there is no other node.
async fn a_tenant_that_another_node_has_taken_is_given_up_though_nothing_is_committed(house: &House) {
    if house.is_sqlite() {
        return;
    }
    let (one, other) = (node(house.store().await).await, node(house.store().await).await);
    let acme = onboard(&one, "acme").await;
    one.find(acme).await.unwrap();
    // As long as it is the only one, it keeps it.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(one.open_tenants().len(), 1);
    let taken = async {
        while other.find(acme).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while !one.open_tenants().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("it is noticed without a commit");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(other.open_tenants().len(), 1, "who has it keeps it");
    assert!(one.is_elsewhere(acme) && !other.is_elsewhere(acme));
    for node in [one, other] {
        node.drain(PATIENCE).await;
    }
}

/// On SQLite there is no other node.
async fn what_a_node_had_that_is_gone_another_takes_up_and_what_a_living_one_has_nobody(house: &House) {
    if house.is_sqlite() {
        return;
    }
    let (one, other) = (node(house.store().await).await, node(house.store().await).await);
    let acme = onboard(&one, "acme").await;
    one.find(acme).await.unwrap();
    let third = node(house.store().await).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let open = |node: &Handle| node.open_tenants().len();
    assert_eq!([&one, &other, &third].map(open), [1, 0, 0], "it lives");

    one.parts().pacemaker.stop();
    let taken_up = async {
        while open(&other) + open(&third) == 0 || open(&one) > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_up).await.expect("nobody asks for it");
    assert_eq!(open(&other) + open(&third), 1, "one of them");
    for node in [one, other, third] {
        node.drain(PATIENCE).await;
    }
}

/// The database was restored from a copy after another node had written to it. On SQLite there is no other node.
async fn a_chain_that_another_node_has_seen_longer_is_not_gone_on_with(house: &House) {
    if house.is_sqlite() {
        return;
    }
    let store = house.store().await;
    let node = node(store.clone()).await;
    let acme = onboard(&node, "acme").await;
    let longer = Note { head: Head { seq: 1_000, hash: Hash([7; 32]) }, awake: true, opened: true };
    let mut other = store.control_again().await.unwrap();
    catalogue::remember_head(&mut other, acme, longer, NodeId(clock::new_id())).await.unwrap();
    // Until then it is open here, by what this node has seen.
    let closed = async {
        while !matches!(node.find(acme).await, Err(Absent::Frozen)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("it is frozen");
    node.drain(PATIENCE).await;
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    /// The levels of the lines that a room has written.
    fn levels(&self, room: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["target"] == room).map(|line| line["level"].as_str().unwrap().to_owned()).collect()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On-call read one line for each of four looks in a second.
#[tokio::test]
async fn a_node_that_cannot_read_what_others_change_says_so_once_and_asks_less_often() {
    House::on_postgres().run(cut_off).await;
}

async fn cut_off(house: &House) {
    let (paper, recorder) = (Paper::default(), PrometheusBuilder::new().build_recorder());
    let writer = paper.clone();
    let lines = JsonLines::new(move || writer.clone(), Clock::system());
    // With one subscriber alone, a line that a neighbour's thread comes to first would be taken for one that nobody reads.
    let _another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _written = tracing::subscriber::set_default(Registry::default().with(lines));
    let _counted = metrics::set_default_local_recorder(&recorder);
    let failures = || {
        let text = recorder.handle().render();
        let line = text.lines().find_map(|line| line.strip_prefix("platform_api_catalogue_poll_failures_total "));
        line.map_or(0, |count| count.parse::<i64>().unwrap())
    };
    let said = || paper.levels("platform_api::directory::follow");
    let store = house.store().await;
    let node = node(store.clone()).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!((failures(), said()), (0, Vec::new()));

    house.admit(false).await;
    // After 0, 250, 750 and 1,750 ms, or up to a quarter later; then after 3,750.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((3..=5).contains(&failures()), "{} looks failed", failures());
    assert_eq!(said(), ["WARN"]);

    house.admit(true).await;
    let acme = tenant("acme");
    let mut other = store.control_again().await.unwrap();
    catalogue::insert_tenant(&mut other, &acme).await.unwrap();
    let known = async {
        while node.tenant(acme.id).is_none() || said().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), known).await.expect("it comes back by itself");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(said(), ["WARN", "INFO"]);
}
