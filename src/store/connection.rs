//! One connection to one database, whichever engine it is: transactions, statements, rows, and the bulk statement, the
//! only one whose text differs.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Connection as _, Row as _};

use super::StoreError;
use super::place::Place;
use super::{copy, failure};
use crate::domain::time::Timestamp;

/// Rows of one bulk statement on SQLite, largest first: few different texts, so that each stays prepared. With the
/// ledger's 25 columns the largest binds 5,000 values, of the 32,766 that SQLite takes.
const CHUNK_ROWS: [usize; 4] = [200, 20, 4, 1];

/// What a statement is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Real(f64),
    NullInt,
    NullText,
    NullBytes,
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<Timestamp> for Value {
    fn from(instant: Timestamp) -> Value {
        Value::Int(instant.0)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::Bytes(bytes.to_vec())
    }
}

/// One row of an answer.
pub struct Row(Answer);

enum Answer {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    /// # Errors
    /// [`StoreError::Untrusted`] when the column holds no integer.
    pub fn int(&self, index: usize) -> Result<i64, StoreError> {
        match &self.0 {
            Answer::Postgres(row) => row.try_get(index),
            Answer::Sqlite(row) => row.try_get(index),
        }
        .map_err(|error| failure::unreadable(&error.to_string()))
    }

    /// # Errors
    /// [`StoreError::Untrusted`] when the column holds no text.
    pub fn text(&self, index: usize) -> Result<String, StoreError> {
        self.optional_text(index)?.ok_or_else(|| failure::unreadable("a text is absent"))
    }

    /// # Errors
    /// [`StoreError::Untrusted`] when the column holds no text and is not NULL.
    pub fn optional_text(&self, index: usize) -> Result<Option<String>, StoreError> {
        match &self.0 {
            Answer::Postgres(row) => row.try_get(index),
            Answer::Sqlite(row) => row.try_get(index),
        }
        .map_err(|error| failure::unreadable(&error.to_string()))
    }

    /// # Errors
    /// [`StoreError::Untrusted`] when the column holds no bytes.
    pub fn bytes(&self, index: usize) -> Result<Vec<u8>, StoreError> {
        self.optional_bytes(index)?.ok_or_else(|| failure::unreadable("bytes are absent"))
    }

    /// # Errors
    /// [`StoreError::Untrusted`] when the column holds no bytes and is not NULL.
    pub fn optional_bytes(&self, index: usize) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.0 {
            Answer::Postgres(row) => row.try_get(index),
            Answer::Sqlite(row) => row.try_get(index),
        }
        .map_err(|error| failure::unreadable(&error.to_string()))
    }

    /// # Errors
    /// [`StoreError::Untrusted`] when the column does not hold exactly `N` bytes.
    pub fn array<const N: usize>(&self, index: usize) -> Result<[u8; N], StoreError> {
        self.bytes(index)?.try_into().map_err(|_| failure::unreadable("a digest has the wrong length"))
    }

    /// Parses a text column.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`] when the text is not one that `parse` knows.
    pub(super) fn parsed<T>(&self, index: usize, parse: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
        let text = self.text(index)?;
        parse(&text).ok_or_else(|| failure::unreadable(&text))
    }
}

/// A statement over many rows: arrays on Postgres, chunks of positional rows on SQLite.
pub(super) struct Bulk {
    head: &'static str,
    types: &'static [&'static str],
    tail: &'static str,
    postgres: String,
    /// A text for each of [`CHUNK_ROWS`].
    sqlite: [String; CHUNK_ROWS.len()],
}

impl Bulk {
    /// `head` and `tail` stand before and after the rows: `INSERT INTO t (a, b)` and `ON CONFLICT …`, or
    /// `SELECT … WHERE a IN (` and `)`. `types` are the columns' types, in order.
    pub(super) fn new(head: &'static str, types: &'static [&'static str], tail: &'static str) -> Bulk {
        let row = format!("({})", vec!["?"; types.len()].join(","));
        Bulk {
            head,
            types,
            tail,
            postgres: format!("{head} SELECT * FROM UNNEST({}) {tail}", arrays(types, 1)),
            sqlite: CHUNK_ROWS.map(|rows| format!("{head} VALUES {} {tail}", vec![row.as_str(); rows].join(","))),
        }
    }
}

/// Parameters of these array types, numbered from `first`.
fn arrays(types: &[&str], first: usize) -> String {
    let numbered = types.iter().zip(first..);
    numbered.map(|(kind, number)| format!("${number}::{kind}[]")).collect::<Vec<_>>().join(", ")
}

/// Bulk statements that a guard lets through: an UPDATE of one row, without which none of them writes anything. On
/// Postgres it is all one statement, and one round trip; nothing is written before the guard's row is locked.
pub(super) struct Guarded {
    guard: &'static str,
    bulks: Vec<&'static Bulk>,
    postgres: String,
}

impl Guarded {
    /// `guard` has `parameters` of its own. No two of the `bulks` may write the same row.
    pub(super) fn new(guard: &'static str, parameters: usize, bulks: Vec<&'static Bulk>) -> Guarded {
        let mut postgres = format!("WITH guard AS ({guard} RETURNING 1)");
        let mut next = parameters + 1;
        for (at, Bulk { head, types, tail, .. }) in bulks.iter().enumerate() {
            let given = arrays(types, next);
            postgres += &format!(", bulk_{at} AS ({head} SELECT given.* FROM guard, UNNEST({given}) AS given {tail})");
            next += types.len();
        }
        postgres += " SELECT FROM guard";
        Guarded { guard, bulks, postgres }
    }
}

/// One column of the rows of a [`Bulk`] statement.
pub(super) enum Column<'a> {
    Ints(Vec<i64>),
    Texts(Vec<&'a str>),
    Bytes(Vec<&'a [u8]>),
}

impl Column<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Column::Ints(values) => values.len(),
            Column::Texts(values) => values.len(),
            Column::Bytes(values) => values.len(),
        }
    }
}

/// One connection to one database.
pub struct Connection {
    engine: Engine,
    read_only: bool,
    /// An answer that takes longer than this will not be waited for.
    deadline: Duration,
    /// A transaction was begun and is not known to have ended.
    open: bool,
    /// A statement of the open transaction failed. Postgres would answer COMMIT with a rollback, and no error.
    failed: bool,
    /// Something was sent and nobody knows what becomes of it: its future was dropped, or the connection was lost.
    busy: bool,
    /// A COPY was begun and is not known to have ended. Its answers would be taken for those of the next statement, so
    /// there is no next statement.
    copying: bool,
    /// The file that is written into, on SQLite.
    place: Option<Place>,
}

pub(super) enum Engine {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Connection {
    pub(super) fn new(engine: Engine, read_only: bool, deadline: Duration) -> Connection {
        Connection { engine, read_only, deadline, open: false, failed: false, busy: false, copying: false, place: None }
    }

    /// From now on each commit makes sure that it went to the file at this place.
    pub(super) fn writes_to(self, place: Place) -> Connection {
        Connection { place: Some(place), ..self }
    }

    /// Begins a transaction. What a dropped future left half-way is rolled back first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        let sql = match (&self.engine, self.read_only) {
            // A deferred transaction that reads and then writes would fail at once, without waiting for the lock.
            (Engine::Sqlite(_), false) => "BEGIN IMMEDIATE",
            _ => "BEGIN",
        };
        self.begin_with(sql).await
    }

    /// Begins a transaction in which every statement reads what one moment has, and which writes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        let sql = match &self.engine {
            Engine::Sqlite(_) => "BEGIN",
            Engine::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        self.begin_with(sql).await
    }

    async fn begin_with(&mut self, sql: &'static str) -> Result<(), StoreError> {
        if self.open {
            self.rollback().await?;
        }
        self.open = true;
        self.failed = false;
        let begun = self.run_text(sql.to_owned()).await;
        self.open = begun.is_ok() || self.busy;
        begun.map_err(|error| error.map_or_else(failure::of_silence, |error| failure::of_statement(&error)))
    }

    /// # Errors
    /// [`StoreError::Retryable`] when it was rolled back for sure, [`StoreError::Unknown`] when nobody knows,
    /// [`StoreError::Missing`] or [`StoreError::Untrusted`] when it went to a file that was taken away.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        if self.failed || !self.open {
            self.rollback().await?;
            return Err(StoreError::Wrong("nothing to commit: a statement of the transaction failed".into()));
        }
        self.run_text("COMMIT".into())
            .await
            .map_err(|error| error.map_or_else(failure::of_silence, |error| failure::of_commit(&error)))?;
        self.open = false;
        self.place.as_ref().map_or(Ok(()), Place::check)
    }

    /// # Errors
    /// [`StoreError::Unknown`] when the connection is lost; the server has then rolled back.
    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        if !self.open {
            return Ok(());
        }
        match self.run_text("ROLLBACK".into()).await {
            Ok(()) => {}
            // SQLite ends a transaction by itself on some errors, and then there is none to roll back.
            Err(Some(sqlx::Error::Database(_))) if matches!(self.engine, Engine::Sqlite(_)) => {}
            Err(error) => {
                return Err(error.map_or_else(failure::of_silence, |error| failure::of_statement(&error)));
            }
        }
        self.open = false;
        self.failed = false;
        Ok(())
    }

    /// Runs a statement; answers how many rows it changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn execute(&mut self, sql: &'static str, values: &[Value]) -> Result<u64, StoreError> {
        let deadline = self.enter()?;
        let executed = match &mut self.engine {
            Engine::Postgres(connection) => {
                let query = sqlx::query_with(sql, postgres_arguments(values)?);
                in_time(deadline, query.execute(connection)).await.map(|done| done.rows_affected())
            }
            Engine::Sqlite(connection) => {
                let query = sqlx::query_with(sql, sqlite_arguments(values)?);
                in_time(deadline, query.execute(connection)).await.map(|done| done.rows_affected())
            }
        };
        self.settle(executed)
    }

    /// # Errors
    /// [`StoreError`].
    pub async fn fetch(&mut self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let deadline = self.enter()?;
        let fetched = match &mut self.engine {
            Engine::Postgres(connection) => {
                let rows = sqlx::query_with(sql, postgres_arguments(values)?).fetch(connection);
                in_time(deadline, rows.map_ok(|row| Row(Answer::Postgres(row))).try_collect()).await
            }
            Engine::Sqlite(connection) => {
                let rows = sqlx::query_with(sql, sqlite_arguments(values)?).fetch(connection);
                in_time(deadline, rows.map_ok(|row| Row(Answer::Sqlite(row))).try_collect()).await
            }
        };
        self.settle(fetched)
    }

    /// The first row, if any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fetch_one_optional(&mut self, sql: &'static str, values: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch(sql, values).await?.into_iter().next())
    }

    /// Runs `bulk` over the rows of `columns`; answers how many rows it changed. No rows, no statement.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn execute_bulk(
        &mut self,
        bulk: &'static Bulk,
        columns: &[Column<'_>],
    ) -> Result<u64, StoreError> {
        let rows = columns.first().map_or(0, Column::len);
        if rows == 0 {
            return Ok(0);
        }
        let deadline = self.enter()?;
        let executed = match &mut self.engine {
            Engine::Postgres(connection) => {
                let query = sqlx::query_with(bulk.postgres.as_str(), postgres_arrays(columns)?);
                in_time(deadline, query.execute(connection)).await.map(|done| done.rows_affected())
            }
            Engine::Sqlite(connection) => {
                let mut changed = Ok(0);
                for (text, from, to) in chunks(bulk, rows) {
                    let query = sqlx::query_with(text, sqlite_rows(columns, from, to)?);
                    let done = in_time(deadline, query.execute(&mut *connection)).await;
                    changed = changed.and_then(|before| Ok(before + done?.rows_affected()));
                    if changed.is_err() {
                        break;
                    }
                }
                changed
            }
        };
        self.settle(executed)
    }

    /// Runs `bulk`, a SELECT, over the values of `columns`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn fetch_bulk(
        &mut self,
        bulk: &'static Bulk,
        columns: &[Column<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let rows = columns.first().map_or(0, Column::len);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let deadline = self.enter()?;
        let fetched = match &mut self.engine {
            Engine::Postgres(connection) => {
                let found = sqlx::query_with(bulk.postgres.as_str(), postgres_arrays(columns)?).fetch(connection);
                in_time(deadline, found.map_ok(|row| Row(Answer::Postgres(row))).try_collect()).await
            }
            Engine::Sqlite(connection) => {
                let mut all = Ok(Vec::new());
                for (text, from, to) in chunks(bulk, rows) {
                    let found = sqlx::query_with(text, sqlite_rows(columns, from, to)?).fetch_all(&mut *connection);
                    let found = in_time(deadline, found).await;
                    all = all.and_then(|mut before: Vec<Row>| {
                        before.extend(found?.into_iter().map(|row| Row(Answer::Sqlite(row))));
                        Ok(before)
                    });
                    if all.is_err() {
                        break;
                    }
                }
                all
            }
        };
        self.settle(fetched)
    }

    /// Runs the guard with `values`, and each of its bulk statements over the rows of its `columns`. Answers whether the
    /// guard's row was there; if it was not, nothing was written.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn execute_guarded(
        &mut self,
        guarded: &'static Guarded,
        values: &[Value],
        columns: &[Vec<Column<'_>>],
    ) -> Result<bool, StoreError> {
        let deadline = self.enter()?;
        let Engine::Postgres(connection) = &mut self.engine else {
            return self.execute_one_by_one(guarded, values, columns).await;
        };
        let mut arguments = postgres_arguments(values)?;
        add_arrays(&mut arguments, columns.iter().flatten())?;
        let query = sqlx::query_with(guarded.postgres.as_str(), arguments);
        let executed = in_time(deadline, query.execute(connection)).await.map(|done| done.rows_affected() == 1);
        self.settle(executed)
    }

    async fn execute_one_by_one(
        &mut self,
        guarded: &'static Guarded,
        values: &[Value],
        columns: &[Vec<Column<'_>>],
    ) -> Result<bool, StoreError> {
        if self.execute(guarded.guard, values).await? != 1 {
            return Ok(false);
        }
        for (bulk, columns) in guarded.bulks.iter().zip(columns) {
            self.execute_bulk(bulk, columns).await?;
        }
        Ok(true)
    }

    /// Loads the rows of `columns` by `sql`, a COPY … FROM STDIN (FORMAT binary). Only on Postgres.
    ///
    /// # Errors
    /// [`StoreError::Known`] when a row's key is in the table already; otherwise as for any statement.
    pub(super) async fn copy(&mut self, sql: &str, columns: &[Column<'_>]) -> Result<(), StoreError> {
        let deadline = self.enter()?;
        let Engine::Postgres(connection) = &mut self.engine else {
            return self.settle(Err(Some(sqlx::Error::InvalidArgument("only Postgres has COPY".into()))));
        };
        self.copying = true;
        let copied = in_time(deadline, copy::load(connection, sql, columns)).await;
        self.copying = matches!(copied, Err(None));
        match copied {
            Err(Some(error)) if failure::is_unique_violation(&error) => {
                (self.busy, self.failed) = (false, true);
                Err(StoreError::Known)
            }
            other => self.settle(other),
        }
    }

    /// Runs a text of several statements without values: schema, and nothing else.
    pub(super) async fn execute_script(&mut self, sql: String) -> Result<(), StoreError> {
        let ran = self.run_text(sql).await;
        if ran.is_err() {
            self.failed = true;
        }
        ran.map_err(|error| error.map_or_else(failure::of_silence, |error| failure::of_statement(&error)))
    }

    /// Closes the connection and waits until it is closed.
    pub async fn close(self) {
        // A connection that is not closed politely is closed all the same.
        let _ = match self.engine {
            Engine::Postgres(connection) => connection.close().await,
            Engine::Sqlite(connection) => connection.close().await,
        };
    }

    /// Is nothing under way, so that another may use this connection?
    pub(super) fn is_at_rest(&self) -> bool {
        !self.open && !self.busy
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.engine, Engine::Postgres(_))
    }

    /// Begins a statement; answers how long it is waited for.
    fn enter(&mut self) -> Result<Duration, StoreError> {
        if self.copying {
            return Err(failure::of_broken_copy());
        }
        self.busy = true;
        Ok(self.deadline)
    }

    /// Runs a text without values; `Err(None)` when no answer came in time, or none could be told from another's.
    async fn run_text(&mut self, sql: String) -> Result<(), Option<sqlx::Error>> {
        let deadline = self.enter().map_err(|_| None)?;
        let ran = match &mut self.engine {
            Engine::Postgres(connection) => {
                in_time(deadline, sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection)).await.map(|_| ())
            }
            Engine::Sqlite(connection) => {
                in_time(deadline, sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection)).await.map(|_| ())
            }
        };
        self.busy = matches!(&ran, Err(error) if error.as_ref().is_none_or(failure::leaves_doubt));
        ran
    }

    fn settle<T>(&mut self, result: Result<T, Option<sqlx::Error>>) -> Result<T, StoreError> {
        self.busy = matches!(&result, Err(error) if error.as_ref().is_none_or(failure::leaves_doubt));
        self.failed |= result.is_err();
        result.map_err(|error| error.map_or_else(failure::of_silence, |error| failure::of_statement(&error)))
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("open", &self.open).finish_non_exhaustive()
    }
}

/// `Err(None)` when no answer came in time: a server that was frozen or cut off sends no error.
async fn in_time<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Option<sqlx::Error>> {
    match tokio::time::timeout(deadline, work).await {
        Ok(answer) => answer.map_err(Some),
        Err(_) => Err(None),
    }
}

/// The texts that together cover `rows` rows, each with its range.
fn chunks(bulk: &'static Bulk, rows: usize) -> impl Iterator<Item = (&'static str, usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let fits = CHUNK_ROWS.iter().position(|size| *size <= rows - from)?;
        let chunk = (bulk.sqlite[fits].as_str(), from, from + CHUNK_ROWS[fits]);
        from = chunk.2;
        Some(chunk)
    })
}

fn postgres_arguments(values: &[Value]) -> Result<PgArguments, StoreError> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Int(number) => arguments.add(number),
            Value::Text(text) => arguments.add(text),
            Value::Bytes(bytes) => arguments.add(bytes),
            Value::Real(number) => arguments.add(number),
            Value::NullInt => arguments.add(None::<i64>),
            Value::NullText => arguments.add(None::<String>),
            Value::NullBytes => arguments.add(None::<Vec<u8>>),
        }
        .map_err(unbindable)?;
    }
    Ok(arguments)
}

fn sqlite_arguments(values: &[Value]) -> Result<SqliteArguments, StoreError> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Int(number) => Arguments::add(&mut arguments, *number),
            Value::Text(text) => Arguments::add(&mut arguments, text.as_str()),
            Value::Bytes(bytes) => Arguments::add(&mut arguments, bytes.as_slice()),
            Value::Real(number) => Arguments::add(&mut arguments, *number),
            Value::NullInt => Arguments::add(&mut arguments, None::<i64>),
            Value::NullText => Arguments::add(&mut arguments, None::<String>),
            Value::NullBytes => Arguments::add(&mut arguments, None::<Vec<u8>>),
        }
        .map_err(unbindable)?;
    }
    Ok(arguments)
}

fn postgres_arrays(columns: &[Column<'_>]) -> Result<PgArguments, StoreError> {
    let mut arguments = PgArguments::default();
    add_arrays(&mut arguments, columns)?;
    Ok(arguments)
}

fn add_arrays<'a>(
    arguments: &mut PgArguments,
    columns: impl IntoIterator<Item = &'a Column<'a>>,
) -> Result<(), StoreError> {
    for column in columns {
        match column {
            Column::Ints(values) => arguments.add(values),
            Column::Texts(values) => arguments.add(values),
            Column::Bytes(values) => arguments.add(values),
        }
        .map_err(unbindable)?;
    }
    Ok(())
}

fn sqlite_rows(columns: &[Column<'_>], from: usize, to: usize) -> Result<SqliteArguments, StoreError> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve((to - from) * columns.len(), 0);
    for row in from..to {
        for column in columns {
            match column {
                Column::Ints(values) => Arguments::add(&mut arguments, values[row]),
                Column::Texts(values) => Arguments::add(&mut arguments, values[row]),
                Column::Bytes(values) => Arguments::add(&mut arguments, values[row]),
            }
            .map_err(unbindable)?;
        }
    }
    Ok(arguments)
}

fn unbindable(error: sqlx::error::BoxDynError) -> StoreError {
    StoreError::Unwritable(format!("a value cannot be bound: {error}"))
}
