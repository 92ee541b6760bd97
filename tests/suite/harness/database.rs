//! The databases as an auditor sees them: plain SQL, past the daemon.

use std::path::Path;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::{Daemon, Engine, services};

/// A connection to one database of a daemon under test.
pub enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// A column, as the database describes it.
#[derive(Debug, Clone)]
pub struct Column {
    pub table: String,
    pub name: String,
    kind: String,
}

macro_rules! fetch {
    ($self:ident, $sql:ident, $kind:ty) => {
        match $self {
            Database::Sqlite(connection) => {
                let rows =
                    sqlx::query($sql).fetch_all(connection).await.unwrap_or_else(|error| panic!("{}: {error}", $sql));
                rows.iter().map(|row| (0..row.len()).map(|at| row.get::<$kind, _>(at)).collect()).collect()
            }
            Database::Postgres(connection) => {
                let rows =
                    sqlx::query($sql).fetch_all(connection).await.unwrap_or_else(|error| panic!("{}: {error}", $sql));
                rows.iter().map(|row| (0..row.len()).map(|at| row.get::<$kind, _>(at)).collect()).collect()
            }
        }
    };
}

impl Database {
    pub async fn of_tenant(daemon: &Daemon, tenant: &str) -> Database {
        match daemon.engine {
            Engine::Sqlite => Database::file(&daemon.tenant_file(tenant)).await,
            Engine::Postgres => Database::at(&daemon.database_url(&format!("tenant_{tenant}"))).await,
        }
    }

    pub async fn of_control(daemon: &Daemon) -> Database {
        match daemon.engine {
            Engine::Sqlite => Database::file(&daemon.data().join("control.db")).await,
            Engine::Postgres => Database::at(&daemon.database_url(daemon.control_database())).await,
        }
    }

    pub async fn of_file(path: &Path) -> Database {
        Database::file(path).await
    }

    async fn file(path: &Path) -> Database {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(false);
        Database::Sqlite(options.connect().await.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    pub async fn at(url: &str) -> Database {
        Database::Postgres(PgConnection::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}")))
    }

    /// Ends the connection, and waits until it has ended. One to a file that is merely dropped is closed later, by a thread of
    /// its own, which then takes away what SQLite keeps beside the file.
    pub async fn close(self) {
        match self {
            Database::Sqlite(connection) => connection.close().await,
            Database::Postgres(connection) => connection.close().await,
        }
        .expect("a connection of ours");
    }

    /// Runs a text of statements made up by a test.
    pub async fn script(&mut self, sql: String) -> Result<(), sqlx::Error> {
        match self {
            Database::Sqlite(connection) => sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ()),
            Database::Postgres(connection) => sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ()),
        }
    }

    /// Rows of integers.
    pub async fn numbers(&mut self, sql: &'static str) -> Vec<Vec<i64>> {
        fetch!(self, sql, i64)
    }

    /// Rows of texts.
    pub async fn words(&mut self, sql: &'static str) -> Vec<Vec<String>> {
        fetch!(self, sql, String)
    }

    /// One integer.
    pub async fn number(&mut self, sql: &'static str) -> i64 {
        self.numbers(sql).await[0][0]
    }

    /// Every column of every table.
    pub async fn columns(&mut self) -> Vec<Column> {
        let rows = match self {
            Database::Sqlite(_) => {
                self.words(
                    "SELECT m.name, c.name, c.type FROM sqlite_master m JOIN pragma_table_info(m.name) c
                        WHERE m.type = 'table' ORDER BY m.name, c.cid",
                )
                .await
            }
            Database::Postgres(_) => {
                self.words(
                    "SELECT t.table_name::text, c.column_name::text, c.data_type::text
                        FROM information_schema.columns c JOIN information_schema.tables t
                            ON t.table_schema = c.table_schema AND t.table_name = c.table_name
                        WHERE t.table_type = 'BASE TABLE' AND t.table_schema NOT IN ('pg_catalog', 'information_schema')
                        ORDER BY 1, c.ordinal_position",
                )
                .await
            }
        };
        let column = |row: Vec<String>| <[String; 3]>::try_from(row).expect("three words");
        rows.into_iter().map(column).map(|[table, name, kind]| Column { table, name, kind }).collect()
    }

    /// The values of a column as bytes: blobs as they are, everything else as the database writes it.
    pub async fn bytes_of(&mut self, Column { table, name, kind }: &Column) -> Vec<Vec<u8>> {
        let value = match self {
            Database::Sqlite(_) => format!("CAST(\"{name}\" AS BLOB)"),
            Database::Postgres(_) if kind == "bytea" => format!("\"{name}\""),
            Database::Postgres(_) => format!("convert_to(\"{name}\"::text, 'UTF8')"),
        };
        let sql = AssertSqlSafe(format!("SELECT {value} FROM \"{table}\" WHERE \"{name}\" IS NOT NULL"));
        match self {
            Database::Sqlite(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
            Database::Postgres(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
        }
        .expect("a column that was named")
    }

    /// From here on everything is read as it is now. A server may still be committing what a daemon asked for before it was
    /// killed; a file has nobody else.
    pub async fn hold_still(&mut self) {
        if let Database::Postgres(_) = self {
            self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("a transaction");
        }
    }

    /// Runs a statement that may be refused.
    pub async fn execute(&mut self, sql: &'static str) -> Result<u64, sqlx::Error> {
        match self {
            Database::Sqlite(connection) => sqlx::query(sql).execute(connection).await.map(|done| done.rows_affected()),
            Database::Postgres(connection) => {
                sqlx::query(sql).execute(connection).await.map(|done| done.rows_affected())
            }
        }
    }
}

/// Creates a database on the server that `admin` reaches.
pub async fn create(admin: &str, name: &str) {
    let mut admin = PgConnection::connect(admin).await.expect("Postgres runs");
    let sql = format!("CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.expect("a new name");
}

/// Drops a control database, and the databases of the tenants it knows and of those we remember.
pub async fn drop_all(admin: &str, control: &str, remembered: &[String]) {
    let mut tenants = remembered.to_vec();
    if let Ok(mut connection) = PgConnection::connect(&services::database_url(admin, control)).await {
        let known = sqlx::query("SELECT id FROM tenant").fetch_all(&mut connection).await.unwrap_or_default();
        tenants.extend(known.iter().map(|row| row.get::<String, _>(0)));
    }
    let Ok(mut admin) = PgConnection::connect(admin).await else { return };
    let names = tenants.iter().map(|id| format!("tenant_{id}")).chain([control.to_owned()]);
    for name in names {
        let sql = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
        let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await;
    }
}
