//! Brings a database's schema up to date: numbered texts, each applied once, in order, in one transaction.
//!
//! A database that is newer than the program, or whose applied texts are not ours, is not touched.

use aws_lc_rs::digest;

use super::StoreError;
use super::connection::Connection;
use crate::clock::Clock;

/// Which engine a text is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Both,
    Postgres,
    Sqlite,
}

/// One step of a schema.
pub(super) struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
    engine: For,
}

/// Names the file and embeds it.
macro_rules! migration {
    ($engine:ident, $version:literal, $folder:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../migrations/", $folder, "/", $name, ".sql")),
            engine: For::$engine,
        }
    };
}

pub(super) static CONTROL: [Migration; 15] = [
    migration!(Both, 1, "control", "0001_catalogue"),
    migration!(Sqlite, 2, "control", "0002_append_only.sqlite"),
    migration!(Postgres, 2, "control", "0002_append_only.postgres"),
    migration!(Both, 3, "control", "0003_stream"),
    migration!(Both, 5, "control", "0005_platform_admins"),
    migration!(Both, 6, "control", "0006_flags"),
    migration!(Both, 7, "control", "0007_jobs"),
    migration!(Both, 8, "control", "0008_sessions"),
    migration!(Both, 9, "control", "0009_api_key_terms"),
    migration!(Sqlite, 10, "control", "0010_changes_are_jobs.sqlite"),
    migration!(Postgres, 10, "control", "0010_changes_are_jobs.postgres"),
    migration!(Both, 11, "control", "0011_catalogue_news"),
    migration!(Both, 13, "control", "0013_quarantine_shares"),
    migration!(Both, 14, "control", "0014_quarantine_kept"),
    migration!(Both, 15, "control", "0015_nodes"),
];

pub(super) static TENANT: [Migration; 14] = [
    migration!(Both, 1, "tenant", "0001_books"),
    migration!(Sqlite, 2, "tenant", "0002_append_only.sqlite"),
    migration!(Postgres, 2, "tenant", "0002_append_only.postgres"),
    migration!(Postgres, 3, "tenant", "0003_views.postgres"),
    migration!(Sqlite, 4, "tenant", "0004_alert_subjects.sqlite"),
    migration!(Postgres, 4, "tenant", "0004_alert_subjects.postgres"),
    migration!(Both, 5, "tenant", "0005_reconciliation"),
    migration!(Postgres, 7, "tenant", "0007_undated.postgres"),
    migration!(Both, 9, "tenant", "0009_organization"),
    migration!(Both, 10, "tenant", "0010_flags"),
    migration!(Both, 11, "tenant", "0011_request_age"),
    migration!(Both, 12, "tenant", "0012_policies"),
    migration!(Both, 13, "tenant", "0013_providers"),
    migration!(Both, 14, "tenant", "0014_keys_destroyed"),
];

const CREATE: &str = "CREATE TABLE IF NOT EXISTS schema_version (
    version BIGINT PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_at BIGINT NOT NULL)";
const APPLIED: &str = "SELECT version, name, checksum FROM schema_version ORDER BY version";
const RECORD: &str = "INSERT INTO schema_version (version, name, checksum, applied_at) VALUES ($1, $2, $3, $4)";
/// Two daemons may start at once: the second waits here, and then finds everything applied.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7305283021)";

/// Applies to a new database what it needs, which is everything.
///
/// # Errors
/// [`StoreError`]; nothing is applied by half.
pub(super) async fn create(connection: &mut Connection, steps: &'static [Migration]) -> Result<(), StoreError> {
    connection.begin().await?;
    if connection.is_postgres() {
        connection.fetch(LOCK, &[]).await?;
    }
    connection.execute_script(for_engine(connection, CREATE)).await?;
    apply_missing(connection, steps).await?;
    connection.commit().await
}

/// Applies to a known database what it lacks.
///
/// # Errors
/// [`StoreError::Untrusted`] when it is no database of ours, or a newer program's.
pub(super) async fn update(connection: &mut Connection, steps: &'static [Migration]) -> Result<(), StoreError> {
    if missing(connection, steps).await?.is_empty() {
        return Ok(());
    }
    connection.begin().await?;
    if connection.is_postgres() {
        connection.fetch(LOCK, &[]).await?;
    }
    apply_missing(connection, steps).await?;
    connection.commit().await
}

/// Fails unless the schema is exactly this program's.
pub(super) async fn check(connection: &mut Connection, steps: &'static [Migration]) -> Result<(), StoreError> {
    match missing(connection, steps).await?.first() {
        None => Ok(()),
        Some(step) => Err(StoreError::Untrusted(format!("the schema is behind: {} is not applied", step.name))),
    }
}

async fn apply_missing(connection: &mut Connection, steps: &'static [Migration]) -> Result<(), StoreError> {
    let now = Clock::system().now();
    for step in missing(connection, steps).await? {
        connection.execute_script(for_engine(connection, step.sql)).await?;
        let row = [step.version.into(), step.name.into(), checksum(step.sql).into(), now.into()];
        connection.execute(RECORD, &row).await?;
        tracing::info!(migration = step.name, "schema migrated");
    }
    Ok(())
}

/// The steps that are not applied; every applied one must be ours.
async fn missing(
    connection: &mut Connection,
    steps: &'static [Migration],
) -> Result<Vec<&'static Migration>, StoreError> {
    let engine = if connection.is_postgres() { For::Postgres } else { For::Sqlite };
    let mut missing: Vec<&Migration> =
        steps.iter().filter(|step| step.engine == For::Both || step.engine == engine).collect();
    let applied = connection.fetch(APPLIED, &[]).await.map_err(|error| match error {
        StoreError::Wrong(text) if lacks_table(&text) => StoreError::Untrusted(format!("no schema of ours: {text}")),
        other => other,
    })?;
    for row in applied {
        let (version, name, stored) = (row.int(0)?, row.text(1)?, row.text(2)?);
        let Some(at) = missing.iter().position(|step| step.version == version) else {
            return Err(StoreError::Untrusted(format!("schema {name} is newer than this program")));
        };
        if checksum(missing.remove(at).sql) != stored {
            return Err(StoreError::Untrusted(format!("schema {name} was applied with another text")));
        }
    }
    Ok(missing)
}

/// Is it that there is no such table, or not with these columns? A right that is missing is given, and nothing is wrong with
/// the database then.
fn lacks_table(problem: &str) -> bool {
    ["42P01", "42703", "no such table", "no such column"].iter().any(|sign| problem.contains(sign))
}

/// The same text for both engines, but for what SQLite calls otherwise: a BIGINT primary key would not be its row id.
fn for_engine(connection: &Connection, sql: &str) -> String {
    if connection.is_postgres() {
        return sql.to_owned();
    }
    sql.replace("BIGINT PRIMARY KEY", "INTEGER PRIMARY KEY")
        .replace("BYTEA", "BLOB")
        .replace("/* WITHOUT ROWID */", "WITHOUT ROWID")
}

fn checksum(sql: &str) -> String {
    digest::digest(&digest::SHA256, sql.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
