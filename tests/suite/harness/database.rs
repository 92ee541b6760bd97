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
