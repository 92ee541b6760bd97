//! The control database.

use uuid::Uuid;

use super::harness::{House, NOW, entry};
use crate::domain::api_key::{ApiKey, Previous, Terms};
use crate::domain::chain::{self, Hash, Head};
use crate::domain::ids::{NodeId, TenantId};
use crate::domain::rate_limit::{Class, Policy};
use crate::domain::report::{ChainQuery, Quarantined};
use crate::domain::tenant::{ExternalId, Lifecycle, Role, Tenant};
use crate::domain::time::Timestamp;
use crate::domain::usage::Refusal;
use crate::store::catalogue::{self, Note};
use crate::store::migration::{self, CONTROL};
use crate::store::news::{self, Kind, News};
use crate::store::quarantine::Kept;
use crate::store::{StoreError, api_key, audit, quarantine, request};

super::conformance!(
    the_catalogue_comes_back_as_it_was_written,
    what_has_changed_is_told_once_and_in_its_order,
    slugs_and_external_ids_have_one_owner,
    a_key_comes_back_with_its_terms_and_its_uses,
    uses_of_many_keys_are_written_at_once_by_several_nodes,
    the_quarantine_keeps_each_poison_once,
    the_quarantine_knows_what_each_has_there_and_forgets_what_is_old,
    what_was_counted_in_the_end_gives_its_place_back,
    what_somebody_has_in_quarantine_is_read_from_an_index_alone,
    the_quarantine_forgets_by_what_was_heard_last,
    the_quarantine_of_an_older_program_is_measured,
    an_answer_is_kept_for_its_key,
    the_platform_has_a_chain_of_its_own,
);

pub(super) fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: TenantId(crate::clock::new_id()),
        name: "Grüße GmbH".into(),
        slug: slug.into(),
        tier: "standard".into(),
        time_zone: "Europe/Berlin".into(),
        lifecycle: Lifecycle::Pending,
        external_ids: ["a", "b"]
            .map(|id| ExternalId { source: "litellm".into(), kind: "team".into(), id: format!("{slug}-{id}") })
            .to_vec(),
        settings: "{}".into(),
        created_at: NOW,
        updated_at: NOW,
    }
}

async fn what_has_changed_is_told_once_and_in_its_order(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    assert_eq!(news::version(&mut connection).await.unwrap(), 0);
    assert_eq!(news::since(&mut connection, 0).await.unwrap(), []);
    let acme = tenant("acme");
    connection.begin().await.unwrap();
    catalogue::insert_tenant(&mut connection, &acme).await.unwrap();
    news::note(&mut connection, Kind::Flag, "a").await.unwrap();
    catalogue::update_tenant(&mut connection, &acme).await.unwrap();
    connection.commit().await.unwrap();
    connection.begin().await.unwrap();
    news::note(&mut connection, Kind::Flag, "undone").await.unwrap();
    connection.rollback().await.unwrap();
    let flag = News { kind: Kind::Flag, id: "a".into(), version: 2 };
    let changed = News { kind: Kind::Tenant, id: acme.id.to_string(), version: 3 };
    assert_eq!(news::since(&mut connection, 0).await.unwrap(), [flag, changed.clone()]);
    assert_eq!(news::since(&mut connection, 2).await.unwrap(), [changed]);
    assert_eq!(news::since(&mut connection, 3).await.unwrap(), []);
    assert_eq!(news::version(&mut connection).await.unwrap(), 3);
    for (version, is_last) in [(2, false), (3, true), (4, false)] {
        connection.begin().await.unwrap();
        assert_eq!(news::claim(&mut connection, version).await.unwrap(), is_last, "{version}");
        connection.rollback().await.unwrap();
    }
    let stored = catalogue::one(&mut connection, &acme.id.to_string()).await.unwrap().unwrap();
    assert_eq!((stored.tenant, stored.head), (acme, Head::EMPTY));
    assert_eq!(catalogue::one(&mut connection, "nobody").await.unwrap(), None);
}

async fn the_catalogue_comes_back_as_it_was_written(house: &House) {
    let store = house.store().await;
    let mut connection = store.control().await.unwrap();
    let (mut one, two) = (tenant("one"), tenant("two"));
    for tenant in [&one, &two] {
        connection.begin().await.unwrap();
        catalogue::insert_tenant(&mut connection, tenant).await.unwrap();
        connection.commit().await.unwrap();
    }
    let key = ApiKey {
        id: "pk_1".into(),
        tenant: one.id,
        name: "first".into(),
        role: Role::Admin,
        hash: [5; 32],
        terms: Terms::default(),
        previous: None,
        version: 1,
        created_at: NOW,
        revoked_at: None,
    };
    api_key::insert(&mut connection, &key).await.unwrap();
    one.lifecycle = Lifecycle::Active;
    one.name = "Another".into();
    one.external_ids.remove(0);
    one.updated_at = NOW.plus_micros(1);
    connection.begin().await.unwrap();
    catalogue::update_tenant(&mut connection, &one).await.unwrap();
    connection.commit().await.unwrap();
    let head = Head { seq: 7, hash: Hash([7; 32]) };
    let [here, there] = [1, 2].map(|number| NodeId(Uuid::from_u128(number)));
    let note = Note { head, awake: true, opened: true };
    catalogue::remember_head(&mut connection, one.id, note, here).await.unwrap();
    // A report that comes late does not take the memory back.
    let older = Head { seq: 3, hash: Hash([3; 32]) };
    catalogue::remember_head(&mut connection, one.id, Note { head: older, awake: false, opened: true }, here)
        .await
        .unwrap();
    // Nor does another node's that has written nothing.
    catalogue::remember_head(&mut connection, one.id, Note { awake: false, ..note }, there).await.unwrap();
    let revoked_at = NOW.plus_micros(2);
    api_key::revoke(&mut connection, "pk_1", revoked_at).await.unwrap();
    api_key::revoke(&mut connection, "pk_1", NOW.plus_micros(9)).await.unwrap();

    let mut reader = store.control_reader().await.unwrap();
    let (rows, keys) = catalogue::load(&mut reader).await.unwrap();
    assert_eq!(
        rows,
        [
            catalogue::Row { tenant: one.clone(), head, awake: true },
            catalogue::Row { tenant: two, head: Head::EMPTY, awake: false },
        ]
    );
    assert_eq!(keys, [ApiKey { revoked_at: Some(revoked_at), ..key }]);
    one.id = TenantId(crate::clock::new_id());
    let unknown = catalogue::update_tenant(&mut connection, &one).await;
    assert!(matches!(unknown, Err(StoreError::Wrong(_))), "{unknown:?}");
}

async fn a_key_comes_back_with_its_terms_and_its_uses(house: &House) {
    let store = house.store().await;
    let mut connection = store.control().await.unwrap();
    let owner = tenant("one");
    catalogue::insert_tenant(&mut connection, &owner).await.unwrap();
    let terms = Terms {
        scopes: ["usage:report", "quotas:*"].map(|text| text.parse().unwrap()).to_vec(),
        expires_at: Some(NOW.plus_micros(5)),
        limits: vec![(Class::Read, Policy::new(60, 60, 10).unwrap())],
    };
    let mut key = ApiKey {
        id: "pk_1".into(),
        tenant: owner.id,
        name: "first".into(),
        role: Role::Reporter,
        hash: [5; 32],
        terms,
        previous: None,
        version: 1,
        created_at: NOW,
        revoked_at: None,
    };
    api_key::insert(&mut connection, &key).await.unwrap();
    assert_eq!(catalogue::load(&mut connection).await.unwrap().1, [key.clone()]);
    assert_eq!(api_key::uses(&mut connection).await.unwrap(), [], "it was never used");
    for at in [7, 9, 8] {
        api_key::note_uses(&mut connection, &[("pk_1".into(), NOW.plus_micros(at))]).await.unwrap();
    }
    key.name = "second".into();
    key.previous = Some(Previous { hash: [5; 32], until: NOW.plus_micros(3) });
    (key.hash, key.version, key.terms) = ([6; 32], 2, Terms::default());
    api_key::update(&mut connection, &key).await.unwrap();
    assert_eq!(catalogue::load(&mut connection).await.unwrap().1, [key.clone()]);
    assert_eq!(api_key::uses(&mut connection).await.unwrap(), [("pk_1".to_owned(), NOW.plus_micros(9))]);
    key.id = "pk_2".into();
    let unknown = api_key::update(&mut connection, &key).await;
    assert!(matches!(unknown, Err(StoreError::Wrong(_))), "{unknown:?}");
}

/// Each node has seen some of the uses last, and none of them goes back. Nodes that write the same keys in another order
/// wait for each other, and never in a circle.
async fn uses_of_many_keys_are_written_at_once_by_several_nodes(house: &House) {
    let store = house.store().await;
    let mut connection = store.control().await.unwrap();
    let owner = tenant("one");
    catalogue::insert_tenant(&mut connection, &owner).await.unwrap();
    let ids = house.keys(&mut connection, &owner, 1_237).await;
    for round in 1..=8_i64 {
        let seen_by = |node: i64| {
            let at = |number: usize| NOW.plus_micros(10 * round + (number as i64 + node) % 2);
            ids.iter().enumerate().map(|(number, id)| (id.clone(), at(number))).collect::<Vec<_>>()
        };
        let (one, mut other) = (seen_by(0), seen_by(1));
        other.reverse();
        let write = async |uses: Vec<(String, Timestamp)>| {
            let mut connection = store.control_again().await.unwrap();
            connection.begin().await?;
            api_key::note_uses(&mut connection, &uses).await?;
            connection.commit().await
        };
        let (one, other) = tokio::join!(write(one), write(other));
        assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
        let uses = api_key::uses(&mut connection).await.unwrap();
        assert_eq!(uses.len(), ids.len(), "and nobody else's");
        let latest = NOW.plus_micros(10 * round + 1);
        assert!(uses.iter().all(|(_, at)| *at == latest), "round {round}");
    }
    api_key::note_uses(&mut connection, &[]).await.unwrap();
    api_key::note_uses(&mut connection, &[("nobody".into(), NOW)]).await.unwrap();
}

async fn slugs_and_external_ids_have_one_owner(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let first = tenant("one");
    catalogue::insert_tenant(&mut connection, &first).await.unwrap();
    let same_slug = Tenant { external_ids: vec![], ..tenant("one") };
    let same_external = Tenant { slug: "two".into(), ..tenant("one") };
    for taken in [same_slug, same_external] {
        connection.begin().await.unwrap();
        let refused = catalogue::insert_tenant(&mut connection, &taken).await;
        assert!(matches!(refused, Err(StoreError::Unwritable(_))), "{refused:?}");
        connection.rollback().await.unwrap();
    }
    assert_eq!(catalogue::load(&mut connection).await.unwrap().0.len(), 1);
}

async fn the_quarantine_keeps_each_poison_once(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let owner = TenantId(crate::clock::new_id());
    let mut rows: Vec<Quarantined> = (0..7_u8)
        .map(|number| Quarantined {
            id: crate::clock::new_id(),
            tenant: (number % 2 == 0).then_some(owner),
            reason: if number < 3 { Refusal::Malformed } else { Refusal::TooOld },
            detail: "not JSON".into(),
            origin: "nats:quota.updated".into(),
            format: "envelope".into(),
            digest: [number; 32],
            body: vec![0, 255, number],
            received_at: NOW,
            replayed_at: None,
            arrivals: 1,
            left_out_bytes: 0,
        })
        .collect();
    quarantine::insert(&mut connection, &rows).await.unwrap();
    let again = [Quarantined { id: crate::clock::new_id(), ..rows[0].clone() }, rows[0].clone()];
    quarantine::insert(&mut connection, &again).await.unwrap();
    quarantine::insert::<Quarantined>(&mut connection, &[]).await.unwrap();
    rows[0].arrivals = 3;

    let newest_first: Vec<Quarantined> = rows.iter().rev().cloned().collect();
    let page = quarantine::page(&mut connection, None, None, None, 4).await.unwrap();
    assert_eq!(page.items, newest_first[..4]);
    let page = quarantine::page(&mut connection, None, None, page.next, 4).await.unwrap();
    assert_eq!((page.items.as_slice(), page.next), (&newest_first[4..], None));
    let page = quarantine::page(&mut connection, Some(owner), Some(Refusal::Malformed), None, 10).await.unwrap();
    assert_eq!(page.items, [rows[2].clone(), rows[0].clone()]);

    quarantine::mark_replayed(&mut connection, rows[1].id, NOW.plus_micros(5)).await.unwrap();
    quarantine::mark_replayed(&mut connection, rows[1].id, NOW.plus_micros(6)).await.unwrap();
    let replayed = quarantine::one(&mut connection, rows[1].id).await.unwrap().unwrap();
    let given_up = Quarantined { replayed_at: Some(NOW.plus_micros(5)), body: Vec::new(), ..rows[1].clone() };
    assert_eq!(replayed, given_up);
    assert_eq!(quarantine::one(&mut connection, crate::clock::new_id()).await.unwrap(), None);
}

/// A row that came so many microseconds after [`NOW`], with ten bytes unless they were left out.
fn quarantined(number: u8, tenant: Option<TenantId>, reason: Refusal, left_out_bytes: i64) -> Quarantined {
    Quarantined {
        id: crate::clock::new_id(),
        tenant,
        reason,
        detail: String::new(),
        origin: "nats:quota.updated".into(),
        format: "events".into(),
        digest: [number; 32],
        body: if left_out_bytes > 0 { Vec::new() } else { vec![0; 10] },
        received_at: NOW.plus_micros(number.into()),
        replayed_at: None,
        arrivals: 1,
        left_out_bytes,
    }
}

async fn the_quarantine_knows_what_each_has_there_and_forgets_what_is_old(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let owner = TenantId(crate::clock::new_id());
    let rows = [
        quarantined(0, Some(owner), Refusal::TenantFrozen, 0),
        quarantined(1, Some(owner), Refusal::TooOld, 0),
        quarantined(2, Some(owner), Refusal::Malformed, 0),
        quarantined(3, None, Refusal::UnknownTenant, 0),
        quarantined(4, Some(owner), Refusal::TooOld, 7),
        quarantined(4, Some(owner), Refusal::TooOld, 8),
    ];
    quarantine::insert(&mut connection, &rows).await.unwrap();
    quarantine::insert(&mut connection, &rows[4..5]).await.unwrap();
    let counted = quarantine::one(&mut connection, rows[4].id).await.unwrap().unwrap();
    assert_eq!((counted.arrivals, counted.left_out_bytes), (3, 22));
    let kept = |events, bytes| Kept { events, bytes };
    assert_eq!(quarantine::kept(&mut connection, Some(owner)).await.unwrap(), kept(2, 20));
    assert_eq!(quarantine::kept(&mut connection, None).await.unwrap(), kept(1, 10));
    assert_eq!(quarantine::kept(&mut connection, Some(TenantId(crate::clock::new_id()))).await.unwrap(), kept(0, 0));
    // Counted in the end, it waits no more.
    quarantine::mark_replayed(&mut connection, rows[0].id, NOW).await.unwrap();

    let waiting = quarantined(5, Some(owner), Refusal::TenantUnavailable, 0);
    quarantine::insert(&mut connection, std::slice::from_ref(&waiting)).await.unwrap();
    assert_eq!(quarantine::forget(&mut connection, NOW.plus_micros(2), 1).await.unwrap(), 1);
    assert_eq!(quarantine::forget(&mut connection, NOW.plus_micros(2), 10).await.unwrap(), 1);
    assert_eq!(quarantine::forget(&mut connection, NOW.plus_micros(2), 10).await.unwrap(), 0);
    assert_eq!(quarantine::forget(&mut connection, NOW.plus_micros(60), 10).await.unwrap(), 3);
    let left = quarantine::page(&mut connection, None, None, None, 10).await.unwrap().items;
    assert_eq!(left, [waiting]);
}

async fn what_was_counted_in_the_end_gives_its_place_back(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let owner = TenantId(crate::clock::new_id());
    let rows = [
        quarantined(0, Some(owner), Refusal::TenantFrozen, 0),
        quarantined(1, Some(owner), Refusal::TooOld, 0),
        quarantined(2, Some(owner), Refusal::TenantFrozen, 0),
        quarantined(3, Some(owner), Refusal::TooOld, 0),
    ];
    quarantine::insert(&mut connection, &rows).await.unwrap();
    assert_eq!(quarantine::kept(&mut connection, Some(owner)).await.unwrap(), Kept { events: 2, bytes: 20 });
    for row in &rows[..2] {
        quarantine::mark_replayed(&mut connection, row.id, NOW).await.unwrap();
        assert!(quarantine::one(&mut connection, row.id).await.unwrap().unwrap().body.is_empty());
    }
    assert_eq!(quarantine::kept(&mut connection, Some(owner)).await.unwrap(), Kept { events: 1, bytes: 10 });
    // What waited and is refused for another reason counts, with the bytes that it has had all along.
    quarantine::refuse_again(&mut connection, rows[2].id, Refusal::TooOld, "", NOW).await.unwrap();
    assert_eq!(quarantine::kept(&mut connection, Some(owner)).await.unwrap(), Kept { events: 2, bytes: 20 });
    // The same event again says nothing new.
    quarantine::insert(&mut connection, &rows).await.unwrap();
    assert!(quarantine::one(&mut connection, rows[0].id).await.unwrap().unwrap().body.is_empty());
}

async fn what_somebody_has_in_quarantine_is_read_from_an_index_alone(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let asked = quarantine::KEPT.replace("$1", "'x'");
    let (explain, column, expected) = if house.is_sqlite() {
        (format!("EXPLAIN QUERY PLAN {asked}"), 3, "USING COVERING INDEX quarantine_kept (tenant_id=?")
    } else {
        // An empty table is read whole otherwise.
        for way in ["seqscan", "bitmapscan"] {
            connection.execute(format!("SET enable_{way} = off").leak(), &[]).await.unwrap();
        }
        (format!("EXPLAIN {asked}"), 0, "Index Only Scan using quarantine_kept")
    };
    let plan = connection.fetch(explain.leak(), &[]).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|step| step.text(column).unwrap()).collect();
    assert!(plan.iter().any(|step| step.contains(expected)), "{plan:?}");
}

async fn the_quarantine_forgets_by_what_was_heard_last(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let rows = [
        quarantined(0, None, Refusal::TooOld, 0),
        quarantined(1, None, Refusal::TenantFrozen, 0),
        quarantined(2, None, Refusal::TooOld, 0),
    ];
    quarantine::insert(&mut connection, &rows).await.unwrap();
    let later = NOW.plus_micros(1_000);
    let again = Quarantined { received_at: later, ..rows[0].clone() };
    quarantine::insert(&mut connection, &[again]).await.unwrap();
    quarantine::refuse_again(&mut connection, rows[1].id, Refusal::TooOld, "", later).await.unwrap();
    assert_eq!(quarantine::forget(&mut connection, later, 10).await.unwrap(), 1);
    let left = quarantine::page(&mut connection, None, None, None, 10).await.unwrap().items;
    assert_eq!(left.iter().map(|row| row.id).collect::<Vec<_>>(), [rows[1].id, rows[0].id]);
    assert_eq!(quarantine::forget(&mut connection, later.plus_micros(1), 10).await.unwrap(), 2);
}

async fn the_quarantine_of_an_older_program_is_measured(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let rows = [
        quarantined(0, None, Refusal::TooOld, 0),
        quarantined(1, None, Refusal::TooOld, 0),
        quarantined(2, None, Refusal::TenantFrozen, 0),
        quarantined(3, None, Refusal::TooOld, 7),
    ];
    quarantine::insert(&mut connection, &rows).await.unwrap();
    for sql in [
        "DELETE FROM schema_version WHERE version = 14",
        "DROP INDEX quarantine_kept",
        "ALTER TABLE quarantine DROP COLUMN body_bytes",
    ] {
        connection.execute(sql, &[]).await.unwrap();
    }
    let values = [rows[0].id.to_string().into(), NOW.into()];
    connection.execute("UPDATE quarantine SET replayed_at = $2 WHERE id = $1", &values).await.unwrap();
    migration::create(&mut connection, &CONTROL).await.unwrap();
    assert_eq!(quarantine::kept(&mut connection, None).await.unwrap(), Kept { events: 1, bytes: 10 });
    assert!(quarantine::one(&mut connection, rows[0].id).await.unwrap().unwrap().body.is_empty());
    quarantine::refuse_again(&mut connection, rows[2].id, Refusal::TooOld, "", NOW).await.unwrap();
    assert_eq!(quarantine::kept(&mut connection, None).await.unwrap(), Kept { events: 2, bytes: 20 });
}

async fn an_answer_is_kept_for_its_key(house: &House) {
    let store = house.store().await;
    let tenant = house.tenant(&store).await;
    for mut connection in [store.control().await.unwrap(), store.open_tenant(tenant).await.unwrap()] {
        assert_eq!(request::find(&mut connection, "k").await.unwrap(), None);
        request::keep(&mut connection, "k", &[4; 32], "{\"id\":1}", NOW).await.unwrap();
        let found = request::find(&mut connection, "k").await.unwrap();
        assert_eq!(found, Some(([4; 32], "{\"id\":1}".into())));
        let twice = request::keep(&mut connection, "k", &[4; 32], "{}", NOW).await;
        assert!(matches!(twice, Err(StoreError::Unwritable(_))), "{twice:?}");
    }
}

async fn the_platform_has_a_chain_of_its_own(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    assert_eq!(audit::verify(&mut connection, audit::PLATFORM_CHAIN).await.unwrap().broken, None);
    let mut head = audit::head(&mut connection).await.unwrap();
    assert_eq!(head, Head::EMPTY);
    for number in 0..3 {
        let record = chain::link(head, audit::PLATFORM_CHAIN, entry("tenant.created"), NOW, [number; 32]);
        connection.begin().await.unwrap();
        audit::append(&mut connection, head, &record).await.unwrap();
        connection.commit().await.unwrap();
        // The same place again: somebody else was faster.
        connection.begin().await.unwrap();
        let late = audit::append(&mut connection, head, &record).await;
        assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
        connection.rollback().await.unwrap();
        head = Head { seq: record.seq, hash: record.hash };
        assert_eq!(audit::head(&mut connection).await.unwrap(), head);
    }
    let report = audit::verify(&mut connection, audit::PLATFORM_CHAIN).await.unwrap();
    assert_eq!((report.head, report.broken), (head, None));

    // Whoever has seen more, or something else, does not go on from there.
    let first = audit::page(&mut connection, ChainQuery { after: 0, limit: 1 }).await.unwrap().items.remove(0).link;
    let first = Head { seq: 1, hash: Hash(first.hash) };
    for known in [Head::EMPTY, first, head] {
        assert_eq!(audit::head_after(&mut connection, known).await.unwrap(), head);
    }
    let other = Head { hash: Hash([1; 32]), ..first };
    let cut = "UPDATE platform SET head_seq = 1, head_hash = (SELECT hash FROM audit_record WHERE seq = 1)";
    for known in [other, Head { seq: 4, ..head }] {
        let refused = audit::head_after(&mut connection, known).await;
        assert!(matches!(&refused, Err(StoreError::Untrusted(problem)) if problem.contains("chain")), "{refused:?}");
    }
    connection.execute(cut, &[]).await.unwrap();
    assert_eq!(audit::head_after(&mut connection, first).await.unwrap(), first);
    assert!(matches!(audit::head_after(&mut connection, head).await, Err(StoreError::Untrusted(_))));
}
