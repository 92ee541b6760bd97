//! What the same work costs without us: the same rows by plain SQL, the same messages through a bare consumer.

use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream::{self, consumer};
use futures_util::{StreamExt, TryStreamExt};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Row, TypeInfo, ValueRef};
use tokio::time::Instant;

use crate::plant::{Plant, StoreKind, Tenant};

const SCHEMA: &str = include_str!("../migrations/tenant/0001_books.sql");
const ROWS: &str = "SELECT CAST(COUNT(*) AS BIGINT),
    CAST(COALESCE(SUM(prompt_tokens + completion_tokens), 0) AS BIGINT) FROM usage_ledger";
const ROLLUPS: &str = "SELECT CAST(COALESCE(SUM(events), 0) AS BIGINT),
    CAST(COALESCE(SUM(prompt_tokens + completion_tokens), 0) AS BIGINT) FROM usage_rollup";
/// Rows of one INSERT: with 25 columns well below SQLite's limit of 32,766 values.
const INSERT_ROWS: usize = 200;
/// Rows of one transaction, as in a full commit of ours.
const COMMIT_ROWS: usize = 5_000;
/// Messages asked for and acknowledged at once.
const PULL: usize = 1_000;

/// A tenant's database, past the daemon.
pub(crate) enum Ledger {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Ledger {
    pub(crate) async fn open(plant: &Plant, tenant: &Tenant) -> anyhow::Result<Ledger> {
        let place = plant.ledger_database(tenant);
        Ok(match plant.store {
            StoreKind::Postgres => Ledger::Postgres(PgConnection::connect(&place).await?),
            StoreKind::Sqlite => Ledger::Sqlite(SqliteConnectOptions::new().filename(place).connect().await?),
        })
    }

    /// Rows, and their tokens.
    pub(crate) async fn rows(&mut self) -> anyhow::Result<(i64, i64)> {
        self.pair(ROWS).await
    }

    /// Events and tokens of the hourly sums.
    pub(crate) async fn rollups(&mut self) -> anyhow::Result<(i64, i64)> {
        self.pair(ROLLUPS).await
    }

    async fn pair(&mut self, sql: &'static str) -> anyhow::Result<(i64, i64)> {
        Ok(match self {
            Ledger::Postgres(ledger) => sqlx::query_as(sql).fetch_one(ledger).await?,
            Ledger::Sqlite(ledger) => sqlx::query_as(sql).fetch_one(ledger).await?,
        })
    }
}

/// The statement that makes the ledger, from the migration itself.
fn ledger_schema() -> anyhow::Result<&'static str> {
    let from = SCHEMA.find("CREATE TABLE usage_ledger (").context("the ledger's schema")?;
    let length = SCHEMA[from..].find(");").context("the schema's end")?;
    Ok(&SCHEMA[from..from + length + 2])
}

/// Copies each tenant's ledger into a table like it by binary COPY, all tenants at once, one statement each.
pub(crate) async fn copy(plant: &Plant) -> anyhow::Result<Duration> {
    let mut rows = Vec::new();
    for tenant in &plant.tenants {
        let mut ledger = PgConnection::connect(&plant.ledger_database(tenant)).await?;
        let out = ledger.copy_out_raw("COPY usage_ledger TO STDOUT (FORMAT binary)").await?;
        rows.push(out.map_ok(|bytes| bytes.to_vec()).try_concat().await?);
    }
    let name = format!("{}_yard", plant.word);
    plant.administer(&format!("CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")).await?;
    let mut yards = Vec::new();
    for at in 0..rows.len() {
        let mut yard = PgConnection::connect(&plant.database_url(&name)).await?;
        let sql = ledger_schema()?.replace("usage_ledger", &format!("ledger_{at}"));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut yard).await?;
        yards.push(yard);
    }
    plant.administer("CHECKPOINT").await?;
    let began = Instant::now();
    let mut copying = tokio::task::JoinSet::new();
    for (at, (mut yard, rows)) in yards.into_iter().zip(rows).enumerate() {
        copying.spawn(async move {
            let mut copy = yard.copy_in_raw(&format!("COPY ledger_{at} FROM STDIN (FORMAT binary)")).await?;
            for chunk in rows.chunks(256 * 1024) {
                copy.send(chunk).await?;
            }
            copy.finish().await?;
            anyhow::Ok(())
        });
    }
    while let Some(copied) = copying.join_next().await {
        copied??;
    }
    Ok(began.elapsed())
}

/// One value of a row.
#[derive(Clone)]
enum Cell {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Inserts each tenant's ledger into a file like it, all tenants at once, with prepared statements of many rows.
pub(crate) async fn insert(plant: &Plant) -> anyhow::Result<Duration> {
    let mut work = Vec::new();
    for tenant in &plant.tenants {
        let Ledger::Sqlite(mut ledger) = Ledger::open(plant, tenant).await? else { continue };
        let rows = sqlx::query("SELECT * FROM usage_ledger ORDER BY position").fetch_all(&mut ledger).await?;
        let rows: Vec<Vec<Cell>> = rows.iter().map(cells).collect::<anyhow::Result<_>>()?;
        let file = plant.folder().join(format!("yard-{}.db", tenant.id));
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
        // As the daemon's own connections are.
        let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let mut yard = options.connect().await?;
        sqlx::raw_sql(ledger_schema()?).execute(&mut yard).await?;
        work.push((yard, rows));
    }
    let began = Instant::now();
    let mut inserting = tokio::task::JoinSet::new();
    for (mut yard, rows) in work {
        inserting.spawn(async move {
            for commit in rows.chunks(COMMIT_ROWS) {
                let mut transaction = yard.begin_with("BEGIN IMMEDIATE").await?;
                for rows in commit.chunks(INSERT_ROWS) {
                    insert_rows(&mut transaction, rows).await?;
                }
                transaction.commit().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(inserted) = inserting.join_next().await {
        inserted??;
    }
    Ok(began.elapsed())
}

async fn insert_rows(yard: &mut SqliteConnection, rows: &[Vec<Cell>]) -> anyhow::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let row = format!("({})", vec!["?"; columns].join(","));
    let sql = format!("INSERT INTO usage_ledger VALUES {}", vec![row.as_str(); rows.len()].join(","));
    let mut values = SqliteArguments::default();
    for cell in rows.iter().flatten() {
        let added = match cell {
            Cell::Int(number) => values.add(*number),
            Cell::Text(text) => values.add(text.as_str()),
            Cell::Bytes(bytes) => values.add(bytes.as_slice()),
        };
        added.map_err(|error| anyhow::anyhow!("binding: {error}"))?;
    }
    sqlx::query_with(AssertSqlSafe(sql), values).execute(yard).await?;
    Ok(())
}

fn cells(row: &sqlx::sqlite::SqliteRow) -> anyhow::Result<Vec<Cell>> {
    let cell = |at: usize| {
        let kind = row.try_get_raw(at)?.type_info().name().to_owned();
        anyhow::Ok(match kind.as_str() {
            "INTEGER" => Cell::Int(row.try_get_unchecked(at)?),
            "TEXT" => Cell::Text(row.try_get_unchecked(at)?),
            _ => Cell::Bytes(row.try_get_unchecked(at)?),
        })
    };
    (0..row.len()).map(cell).collect()
}

/// Reads the whole stream with a consumer that does nothing; acknowledges each message, or the last of each pull.
pub(crate) async fn drain(plant: &Plant, events: u64, in_groups: bool) -> anyhow::Result<Duration> {
    let client = async_nats::connect(&plant.surroundings.nats).await?;
    let stream = jetstream::new(client).get_stream(plant.stream()).await?;
    let ack_policy = if in_groups { consumer::AckPolicy::All } else { consumer::AckPolicy::Explicit };
    let config = consumer::pull::Config {
        durable_name: Some(format!("yard-{in_groups}")),
        ack_policy,
        max_ack_pending: 16_000,
        ..consumer::pull::Config::default()
    };
    let reader = stream.create_consumer(config).await?;
    let began = Instant::now();
    let mut messages = reader.stream().max_messages_per_batch(PULL).messages().await?;
    for at in 1..=events {
        let message = tokio::time::timeout(Duration::from_secs(30), messages.next()).await?;
        let message = message.context("the stream ended")??;
        ensure!(!message.payload.is_empty(), "an empty message");
        if !in_groups || at.is_multiple_of(PULL as u64) || at == events {
            message.ack().await.map_err(|error| anyhow::anyhow!("acknowledging: {error}"))?;
        }
    }
    Ok(began.elapsed())
}
