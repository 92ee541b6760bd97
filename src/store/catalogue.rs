//! The catalogue: tenants, external ids; [`super::api_key`] has the keys. In the control database,
//! whose one writer keeps all of it in memory as well.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::connection::{Bulk, Column};
use super::database::{Connection, Row as Answer};
use super::news::{self, Kind};
use super::{StoreError, api_key};
use crate::domain::api_key::ApiKey;
use crate::domain::chain::{Hash, Head};
use crate::domain::ids::{NodeId, TenantId};
use crate::domain::tenant::{ExternalId, Lifecycle, Tenant};
use crate::domain::time::Timestamp;

const SELECT_TENANTS: &str = "SELECT id, name, slug, tier, time_zone, lifecycle, settings, created_at, updated_at,
    head_seq, head_hash, awake FROM tenant ORDER BY id";
const SELECT_TENANT: &str = "SELECT id, name, slug, tier, time_zone, lifecycle, settings, created_at, updated_at,
    head_seq, head_hash, awake FROM tenant WHERE id = $1";
const SELECT_LIFECYCLES: &str = "SELECT id, lifecycle FROM tenant WHERE id > $1 ORDER BY id LIMIT $2";
const SELECT_EXTERNAL_IDS: &str = "SELECT tenant_id, source, kind, id FROM external_id ORDER BY source, kind, id";
const SELECT_EXTERNAL_IDS_OF: &str =
    "SELECT tenant_id, source, kind, id FROM external_id WHERE tenant_id = $1 ORDER BY source, kind, id";
const INSERT_TENANT: &str = "INSERT INTO tenant (id, name, slug, tier, time_zone, lifecycle, settings, created_at,
    updated_at, head_seq, head_hash, awake) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, 0)";
const UPDATE_TENANT: &str = "UPDATE tenant SET name = $2, slug = $3, tier = $4, time_zone = $5, lifecycle = $6,
    settings = $7, created_at = $8, updated_at = $9 WHERE id = $1";
const DELETE_EXTERNAL_IDS: &str = "DELETE FROM external_id WHERE tenant_id = $1";
static INSERT_EXTERNAL_IDS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new("INSERT INTO external_id (source, kind, id, tenant_id)", &["TEXT", "TEXT", "TEXT", "TEXT"], "")
});
/// Never backwards: a late report of an older head changes nothing. Whoever has just opened it is its holder from then on; of
/// what another holds only the head is news, and what was taken up stays so until it was opened. Nobody puts to sleep what was
/// another's.
const REMEMBER_HEAD: &str = "UPDATE tenant SET head_seq = $2, head_hash = $3,
    awake = CASE WHEN $6 = 1 AND head_seq < $2 THEN CASE WHEN holder <> $5 AND awake <> 0 THEN 1 ELSE $4 END
        WHEN holder <> $5 OR awake = 2 THEN awake ELSE $4 END,
    holder = CASE WHEN $6 = 1 AND head_seq < $2 THEN $5 ELSE holder END WHERE id = $1 AND head_seq <= $2";
const HOLD: &str = "UPDATE tenant SET awake = 1, holder = $2 WHERE id = $1
    AND ($3 = 1 OR holder = $2 OR holder NOT IN (SELECT id FROM node)) RETURNING head_seq, head_hash";

/// Tenants whose chain is remembered to be longer.
static SELECT_LONGER: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "WITH here (id, seq) AS (",
        &["TEXT", "BIGINT"],
        ") SELECT here.id, tenant.head_seq FROM here JOIN tenant ON tenant.id = here.id WHERE tenant.head_seq > here.seq",
    )
});

/// A tenant and what the catalogue remembers of its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub tenant: Tenant,
    /// The tenant's chain holds this head, or the database is not to be trusted.
    pub head: Head,
    /// Something is owed that only an open tenant can do.
    pub awake: bool,
}

/// What a node notes of a tenant that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    pub head: Head,
    /// Something is owed there, or will be.
    pub awake: bool,
    /// It has just opened the tenant, which is its own by that.
    pub opened: bool,
}

/// Every tenant by id, and every API key.
///
/// # Errors
/// [`StoreError`].
pub async fn load(connection: &mut Connection) -> Result<(Vec<Row>, Vec<ApiKey>), StoreError> {
    let mut external_ids = external_ids_at(&connection.fetch(SELECT_EXTERNAL_IDS, &[]).await?)?;
    let rows = connection.fetch(SELECT_TENANTS, &[]).await?;
    let tenants = rows.iter().map(|row| tenant_at(row, &mut external_ids)).collect::<Result<_, _>>()?;
    Ok((tenants, api_key::all(connection).await?))
}

/// One tenant.
///
/// # Errors
/// [`StoreError`].
pub async fn one(connection: &mut Connection, tenant: &str) -> Result<Option<Row>, StoreError> {
    let mut external_ids = external_ids_at(&connection.fetch(SELECT_EXTERNAL_IDS_OF, &[tenant.into()]).await?)?;
    let row = connection.fetch_one_optional(SELECT_TENANT, &[tenant.into()]).await?;
    row.map(|row| tenant_at(&row, &mut external_ids)).transpose()
}

/// Tenants after `after` in the order of their ids, and where they are in their lives.
///
/// # Errors
/// [`StoreError`].
pub async fn lifecycles(
    connection: &mut Connection,
    after: Option<TenantId>,
    limit: usize,
) -> Result<Vec<(TenantId, Lifecycle)>, StoreError> {
    let after = after.map(|tenant| tenant.to_string()).unwrap_or_default();
    let values = [after.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()];
    let rows = connection.fetch(SELECT_LIFECYCLES, &values).await?;
    rows.iter()
        .map(|row| Ok((row.parsed(0, |text| text.parse().ok())?, row.parsed(1, Lifecycle::from_name)?)))
        .collect()
}

/// Inserts a tenant and its external ids; belongs in a transaction.
///
/// # Errors
/// [`StoreError::Wrong`] when a slug or an external id is taken: the caller, the only writer, has checked in memory.
pub async fn insert_tenant(connection: &mut Connection, tenant: &Tenant) -> Result<(), StoreError> {
    let mut values = tenant_values(tenant).to_vec();
    values.push(Hash::NONE.0.as_slice().into());
    connection.execute(INSERT_TENANT, &values).await?;
    insert_external_ids(connection, tenant).await?;
    news::note(connection, Kind::Tenant, &tenant.id.to_string()).await
}

/// Writes all fields of a tenant, and replaces its external ids; belongs in a transaction.
///
/// # Errors
/// As [`insert_tenant`], and [`StoreError::Wrong`] when there is no such tenant.
pub async fn update_tenant(connection: &mut Connection, tenant: &Tenant) -> Result<(), StoreError> {
    let updated = connection.execute(UPDATE_TENANT, &tenant_values(tenant)).await?;
    one_row(updated, "tenant")?;
    connection.execute(DELETE_EXTERNAL_IDS, &[tenant.id.to_string().into()]).await?;
    insert_external_ids(connection, tenant).await?;
    news::note(connection, Kind::Tenant, &tenant.id.to_string()).await
}

/// Remembers how long a tenant's chain is, so that a database that is restored from a copy or swapped is noticed; and whether
/// something is owed there, which is the node's to do.
///
/// # Errors
/// [`StoreError`].
pub async fn remember_head(
    connection: &mut Connection,
    tenant: TenantId,
    note: Note,
    node: NodeId,
) -> Result<(), StoreError> {
    let hash = note.head.hash.0.as_slice().into();
    let [awake, opened] = [note.awake, note.opened].map(|flag| i64::from(flag).into());
    let values = [tenant.to_string().into(), note.head.seq.into(), hash, awake, node.to_string().into(), opened];
    connection.execute(REMEMBER_HEAD, &values).await?;
    Ok(())
}

/// Remembers that a node is about to open a tenant, whatever it will owe; answers the head that is remembered of its chain.
/// `None`, unless somebody `asked` that very node for it, when another holds it.
///
/// # Errors
/// [`StoreError`].
pub async fn hold(
    connection: &mut Connection,
    tenant: TenantId,
    node: NodeId,
    asked: bool,
) -> Result<Option<Head>, StoreError> {
    let values = [tenant.to_string().into(), node.to_string().into(), i64::from(asked).into()];
    let row = connection.fetch_one_optional(HOLD, &values).await?;
    row.map(|row| head_at(&row, 0)).transpose()
}

/// Those of the tenants, each with the sequence number of its chain's head, of which a longer chain is remembered, with
/// that.
///
/// # Errors
/// [`StoreError`].
pub async fn longer(
    connection: &mut Connection,
    heads: &[(TenantId, i64)],
) -> Result<Vec<(TenantId, i64)>, StoreError> {
    let ids: Vec<String> = heads.iter().map(|(tenant, _)| tenant.to_string()).collect();
    let columns = [
        Column::Texts(ids.iter().map(String::as_str).collect()),
        Column::Ints(heads.iter().map(|(_, seq)| *seq).collect()),
    ];
    let rows = connection.fetch_bulk(&SELECT_LONGER, &columns).await?;
    rows.iter().map(|row| Ok((row.parsed(0, |text| text.parse().ok())?, row.int(1)?))).collect()
}

async fn insert_external_ids(connection: &mut Connection, tenant: &Tenant) -> Result<(), StoreError> {
    let ids = &tenant.external_ids;
    let owner = tenant.id.to_string();
    let columns = [
        Column::Texts(ids.iter().map(|external| external.source.as_str()).collect()),
        Column::Texts(ids.iter().map(|external| external.kind.as_str()).collect()),
        Column::Texts(ids.iter().map(|external| external.id.as_str()).collect()),
        Column::Texts(vec![owner.as_str(); ids.len()]),
    ];
    connection.execute_bulk(&INSERT_EXTERNAL_IDS, &columns).await?;
    Ok(())
}

fn external_ids_at(rows: &[Answer]) -> Result<HashMap<String, Vec<ExternalId>>, StoreError> {
    let mut external_ids: HashMap<String, Vec<ExternalId>> = HashMap::new();
    for row in rows {
        let external = ExternalId { source: row.text(1)?, kind: row.text(2)?, id: row.text(3)? };
        external_ids.entry(row.text(0)?).or_default().push(external);
    }
    Ok(external_ids)
}

fn tenant_values(tenant: &Tenant) -> [super::database::Value; 9] {
    [
        tenant.id.to_string().into(),
        tenant.name.as_str().into(),
        tenant.slug.as_str().into(),
        tenant.tier.as_str().into(),
        tenant.time_zone.as_str().into(),
        tenant.lifecycle.name().into(),
        tenant.settings.as_str().into(),
        tenant.created_at.into(),
        tenant.updated_at.into(),
    ]
}

fn tenant_at(row: &Answer, external_ids: &mut HashMap<String, Vec<ExternalId>>) -> Result<Row, StoreError> {
    let tenant = Tenant {
        id: row.parsed(0, |text| text.parse().ok())?,
        name: row.text(1)?,
        slug: row.text(2)?,
        tier: row.text(3)?,
        time_zone: row.text(4)?,
        lifecycle: row.parsed(5, Lifecycle::from_name)?,
        external_ids: external_ids.remove(&row.text(0)?).unwrap_or_default(),
        settings: row.text(6)?,
        created_at: Timestamp(row.int(7)?),
        updated_at: Timestamp(row.int(8)?),
    };
    Ok(Row { tenant, head: head_at(row, 9)?, awake: row.int(11)? != 0 })
}

fn head_at(row: &Answer, index: usize) -> Result<Head, StoreError> {
    Ok(Head { seq: row.int(index)?, hash: Hash(row.array(index + 1)?) })
}

pub(super) fn one_row(changed: u64, what: &str) -> Result<(), StoreError> {
    if changed == 1 { Ok(()) } else { Err(StoreError::Wrong(format!("there is no such {what}"))) }
}
