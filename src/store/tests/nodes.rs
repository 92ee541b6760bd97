//! Nodes, and whom each holds.

use uuid::Uuid;

use super::catalogue::tenant;
use super::harness::House;
use crate::domain::chain::{Hash, Head};
use crate::domain::ids::{NodeId, TenantId};
use crate::domain::tenant::Lifecycle;
use crate::store::catalogue::{self, Note};
use crate::store::database::Connection;
use crate::store::node::{self, Beat, Held};

super::conformance!(
    a_node_is_heard_until_it_leaves_or_is_struck_off,
    what_a_node_held_that_is_gone_is_one_other_node_s,
    who_is_about_to_open_a_tenant_holds_it,
);

const HEAD: Head = Head { seq: 7, hash: Hash([7; 32]) };

fn node(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

async fn owing(connection: &mut Connection, slug: &str, lifecycle: Lifecycle, awake: bool, holder: NodeId) -> TenantId {
    let tenant = crate::domain::tenant::Tenant { lifecycle, external_ids: Vec::new(), ..tenant(slug) };
    catalogue::insert_tenant(connection, &tenant).await.unwrap();
    catalogue::remember_head(connection, tenant.id, Note { head: HEAD, awake, opened: true }, holder).await.unwrap();
    tenant.id
}

async fn a_node_is_heard_until_it_leaves_or_is_struck_off(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    for other in [1, 2, 2, 3] {
        node::beat(&mut connection, node(other)).await.unwrap();
    }
    let beat = |number, beats| Beat { node: node(number), beats };
    assert_eq!(node::others(&mut connection, node(1)).await.unwrap(), [beat(2, 2), beat(3, 1)]);
    assert!(!node::strike_off(&mut connection, beat(2, 1)).await.unwrap(), "it has beaten since");
    assert!(node::strike_off(&mut connection, beat(2, 2)).await.unwrap());
    assert!(!node::strike_off(&mut connection, beat(2, 2)).await.unwrap(), "somebody else has");
    node::leave(&mut connection, node(3)).await.unwrap();
    assert_eq!(node::others(&mut connection, node(1)).await.unwrap(), []);
    node::beat(&mut connection, node(2)).await.unwrap();
    assert_eq!(node::others(&mut connection, node(1)).await.unwrap(), [beat(2, 1)], "it lives after all");
}

async fn what_a_node_held_that_is_gone_is_one_other_node_s(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let [gone, living, first, second] = [1, 2, 3, 4].map(node);
    for other in [living, first, second] {
        node::beat(&mut connection, other).await.unwrap();
    }
    let mut left = Vec::new();
    for (slug, lifecycle) in [("active", Lifecycle::Active), ("suspended", Lifecycle::Suspended)] {
        left.push(owing(&mut connection, slug, lifecycle, true, gone).await);
    }
    left.sort_unstable();
    owing(&mut connection, "archived", Lifecycle::Archived, true, gone).await;
    owing(&mut connection, "asleep", Lifecycle::Active, false, gone).await;
    let kept = owing(&mut connection, "kept", Lifecycle::Active, true, living).await;
    let orphan = |tenant: &TenantId| Held { tenant: *tenant, head_seq: 7, is_orphan: true };
    let orphans: Vec<Held> = left.iter().map(orphan).collect();
    let mut taken = node::take_up(&mut connection, first).await.unwrap();
    taken.sort_unstable_by_key(|held| held.tenant);
    assert_eq!(taken, orphans);
    assert_eq!(node::take_up(&mut connection, second).await.unwrap(), []);
    assert_eq!(node::held(&mut connection, first).await.unwrap(), orphans);
    assert_eq!(node::held(&mut connection, second).await.unwrap(), []);
    assert_eq!(node::held(&mut connection, living).await.unwrap(), [Held { is_orphan: false, ..orphan(&kept) }]);
    // Until it was opened it stays so, whatever who takes it up still believes of it.
    for seq in [7, 8] {
        let stale = Note { head: Head { seq, ..HEAD }, awake: false, opened: false };
        catalogue::remember_head(&mut connection, left[0], stale, first).await.unwrap();
        let still = Held { head_seq: seq, ..orphans[0] };
        assert_eq!(node::held(&mut connection, first).await.unwrap(), [still, orphans[1]]);
    }
    let opened = Note { head: Head { seq: 9, ..HEAD }, awake: true, opened: true };
    catalogue::remember_head(&mut connection, left[0], opened, first).await.unwrap();
    let open = Held { tenant: left[0], head_seq: 9, is_orphan: false };
    assert_eq!(node::held(&mut connection, first).await.unwrap(), [open, orphans[1]]);
}

async fn who_is_about_to_open_a_tenant_holds_it(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let [before, after] = [1, 2].map(node);
    let acme = owing(&mut connection, "acme", Lifecycle::Active, false, before).await;
    let is_held = async |connection: &mut Connection, by| {
        let held = node::held(connection, by).await.unwrap();
        held.iter().any(|held| held.tenant == acme && !held.is_orphan)
    };
    node::come_back(&mut connection, before).await.unwrap();
    // It lives, so nobody takes it from there without being asked.
    assert_eq!(catalogue::hold(&mut connection, acme, after, false).await.unwrap(), None);
    assert!(!is_held(&mut connection, after).await);
    assert_eq!(catalogue::hold(&mut connection, acme, after, true).await.unwrap(), Some(HEAD));
    assert!(is_held(&mut connection, after).await);
    // Who had it before says late how it was left, and that is news of the chain alone.
    for seq in [7, 8] {
        let left = Note { head: Head { seq, ..HEAD }, awake: false, opened: false };
        catalogue::remember_head(&mut connection, acme, left, before).await.unwrap();
        assert!(is_held(&mut connection, after).await, "{seq}");
    }
    let longer = Head { seq: 8, ..HEAD };
    assert_eq!(catalogue::hold(&mut connection, acme, after, false).await.unwrap(), Some(longer), "it is its own");
    let opened = Note { head: Head { seq: 9, ..HEAD }, awake: true, opened: true };
    catalogue::remember_head(&mut connection, acme, opened, after).await.unwrap();
    assert!(is_held(&mut connection, after).await);
    catalogue::remember_head(&mut connection, acme, Note { awake: false, opened: false, ..opened }, after)
        .await
        .unwrap();
    assert!(!is_held(&mut connection, after).await);
    // Who has opened it and left it meanwhile puts nothing to sleep that another is about to open.
    assert_eq!(catalogue::hold(&mut connection, acme, before, true).await.unwrap(), Some(opened.head));
    let merged = Note { head: Head { seq: 10, ..HEAD }, awake: false, opened: true };
    catalogue::remember_head(&mut connection, acme, merged, after).await.unwrap();
    assert!(is_held(&mut connection, after).await);
    catalogue::remember_head(&mut connection, acme, Note { opened: false, ..merged }, after).await.unwrap();
    assert!(!is_held(&mut connection, after).await);
    // Who is gone holds nothing.
    assert_eq!(catalogue::hold(&mut connection, acme, before, false).await.unwrap(), Some(merged.head));
    let nobody = TenantId(crate::clock::new_id());
    assert_eq!(catalogue::hold(&mut connection, nobody, after, true).await.unwrap(), None);
}
