//! What several nodes, or a node and its next life, do to one control database, on both engines.

use std::time::Duration;

use tokio::sync::mpsc;

use super::handle::Handle;
use super::key_use::PIECE_USES_MAX;
use super::task::{Change, Halt, untold};
use super::{Settings, open};
use crate::clock::Clock;
use crate::domain::chain::Entry;
use crate::domain::ids::TenantId;
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::{Lifecycle, Tenant};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::store::database::{Connection, Store};
use crate::store::tests::harness::{House, NOW};
use crate::store::{api_key, catalogue, news};

crate::store::tests::conformance!(
    uses_of_keys_are_written_in_pieces_that_others_come_between,
    uses_of_keys_wait_for_no_change_that_another_node_makes,
);

async fn node(store: Store) -> Handle {
    let settings = Settings {
        tenants: crate::config::Tenants::default(),
        retention_micros: MICROS_PER_DAY,
        routing: std::sync::Arc::default(),
        reconcile: crate::domain::reconcile::Terms::default(),
        lease_micros: crate::config::Jobs::default().lease_micros(),
    };
    open(store, settings, Clock::system(), mpsc::channel(1).0).await.unwrap()
}

/// So many keys of a tenant's, in the control database.
async fn keys(house: &House, store: &Store, count: usize) -> Vec<String> {
    let tenant = Tenant {
        id: TenantId(crate::clock::new_id()),
        slug: "acme".into(),
        name: "Acme".into(),
        tier: "standard".into(),
        time_zone: "UTC".into(),
        lifecycle: Lifecycle::Active,
        external_ids: Vec::new(),
        settings: "{}".into(),
        created_at: NOW,
        updated_at: NOW,
    };
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
