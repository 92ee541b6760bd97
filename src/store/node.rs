//! Nodes that share the databases, and the tenants that each is to come back to. In the control database.

use super::StoreError;
use super::database::{Connection, Row};
use crate::domain::ids::{NodeId, TenantId};

const BEAT: &str = "INSERT INTO node (id, beats) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET beats = node.beats + 1";
const SELECT_OTHERS: &str = "SELECT id, beats FROM node WHERE id <> $1 ORDER BY id";
/// Not if it has beaten after all.
const STRIKE_OFF: &str = "DELETE FROM node WHERE id = $1 AND beats = $2";
const LEAVE: &str = "DELETE FROM node WHERE id = $1";
/// Tenants that owe something and have actors.
macro_rules! owing {
    ($rest:literal) => {
        concat!("WHERE awake <> 0 AND lifecycle IN ('active', 'suspended') AND ", $rest)
    };
}
/// Of two who do this at once, the second finds a row that the first has taken, and that one lives.
const TAKE_UP: &str = concat!(
    "UPDATE tenant SET holder = $1, awake = 2 ",
    owing!("holder NOT IN (SELECT id FROM node) RETURNING id, head_seq, awake")
);
const SELECT_HELD: &str = concat!("SELECT id, head_seq, awake FROM tenant ", owing!("holder = $1 ORDER BY id"));
/// Whoever was struck off and lives.
const RETURN: &str = "INSERT INTO node (id, beats) VALUES ($1, 1) ON CONFLICT (id) DO NOTHING";

/// `tenant.awake` of what was taken up.
const ORPHAN: i64 = 2;

/// How often a node has said that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub node: NodeId,
    pub beats: i64,
}

/// A tenant that a node is to come back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub tenant: TenantId,
    /// How long its chain is, as far as anybody has noted.
    pub head_seq: i64,
    /// It was another node's that is gone, and has not been open since.
    pub is_orphan: bool,
}

/// A node lives.
///
/// # Errors
/// [`StoreError`].
pub async fn beat(connection: &mut Connection, node: NodeId) -> Result<(), StoreError> {
    connection.execute(BEAT, &[node.to_string().into()]).await.map(|_| ())
}

/// A node is there, if it has not beaten yet, or was struck off.
///
/// # Errors
/// [`StoreError`].
pub async fn come_back(connection: &mut Connection, node: NodeId) -> Result<(), StoreError> {
    connection.execute(RETURN, &[node.to_string().into()]).await.map(|_| ())
}

/// What the others have said.
///
/// # Errors
/// [`StoreError`].
pub async fn others(connection: &mut Connection, node: NodeId) -> Result<Vec<Beat>, StoreError> {
    let rows = connection.fetch(SELECT_OTHERS, &[node.to_string().into()]).await?;
    let beat = |row: &Row| Ok(Beat { node: row.parsed(0, |text| text.parse().ok())?, beats: row.int(1)? });
    rows.iter().map(beat).collect()
}

/// A node is gone, for all that its last beat says; false when it has beaten since, or somebody else has struck it off.
///
/// # Errors
/// [`StoreError`].
pub async fn strike_off(connection: &mut Connection, last: Beat) -> Result<bool, StoreError> {
    let struck = connection.execute(STRIKE_OFF, &[last.node.to_string().into(), last.beats.into()]).await?;
    Ok(struck > 0)
}

/// A node has done what it had to do, and is gone.
///
/// # Errors
/// [`StoreError`].
pub async fn leave(connection: &mut Connection, node: NodeId) -> Result<(), StoreError> {
    connection.execute(LEAVE, &[node.to_string().into()]).await.map(|_| ())
}

/// Makes the node the holder of every awake tenant whose holder is gone; answers which.
///
/// # Errors
/// [`StoreError`].
pub async fn take_up(connection: &mut Connection, node: NodeId) -> Result<Vec<Held>, StoreError> {
    held_at(&connection.fetch(TAKE_UP, &[node.to_string().into()]).await?)
}

/// The awake tenants that a node holds.
///
/// # Errors
/// [`StoreError`].
pub async fn held(connection: &mut Connection, node: NodeId) -> Result<Vec<Held>, StoreError> {
    held_at(&connection.fetch(SELECT_HELD, &[node.to_string().into()]).await?)
}

fn held_at(rows: &[Row]) -> Result<Vec<Held>, StoreError> {
    let held = |row: &Row| {
        let tenant = row.parsed(0, |text| text.parse().ok())?;
        Ok(Held { tenant, head_seq: row.int(1)?, is_orphan: row.int(2)? == ORPHAN })
    };
    rows.iter().map(held).collect()
}
