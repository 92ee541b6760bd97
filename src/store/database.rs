//! Where the databases are: one control database and one per tenant, on Postgres or as SQLite files in one directory.
//!
//! A tenant's database is made once, by [`Store::create_tenant`], and never again: one that is missing, swapped or
//! corrupt is an error for that tenant alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{gauge, histogram};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub use super::connection::{Connection, Row, Value};

use super::StoreError;
use super::connection::Engine;
use super::place::Place;
use super::{failure, migration};
use crate::config;
use crate::domain::chain::Hash;
use crate::domain::ids::TenantId;
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;
use crate::fault;

/// The first SQLite without the WAL-reset corruption.
const SQLITE_VERSION_MIN: [u32; 3] = [3, 51, 3];
/// How long SQLite waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long CREATE DATABASE may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than the server's own timeout an answer is waited for.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How long a start waits for a process that has the folder and is about to end, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_EVERY: Duration = Duration::from_millis(50);
/// How long a slow read waits for its turn.
const READER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a reader that nobody uses stays connected.
const READER_IDLE: Duration = Duration::from_secs(30);
const READER_SWEEP: Duration = Duration::from_secs(10);
/// Of the write-ahead log, when a checkpoint has emptied it.
const WAL_BYTES_MAX: &str = "67108864";
/// Pages of the write-ahead log that bring a checkpoint about: 32 MiB. A page of the key index that many commits touch is
/// then written to the database once for all of them (with random keys, measured against SQLite's 1,000: 4,000 pages save a
/// seventh of the time, 16,000 two fifths).
const CHECKPOINT_PAGES: &str = "8000";

const INSERT_BOOKS: &str = "INSERT INTO books (id, tenant, epoch, version, time_zone, next_position, latest_event_at,
    head_seq, head_hash, events, failures, requests, prompt_tokens, cache_read_tokens, cache_write_tokens,
    completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, created_at)
    VALUES (1, $1, 0, 0, $2, 1, 0, 0, $3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, $4) ON CONFLICT (id) DO NOTHING";
const INSERT_ROLE: &str =
    "INSERT INTO role (name, description, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING";
const SELECT_TENANT: &str = "SELECT tenant FROM books WHERE id = 1";

/// The databases of this node. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    backend: Backend,
    statement_timeout: Duration,
    catalogue_poll: Duration,
    readers_max: usize,
    reader_permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

enum Backend {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Directory),
}

struct Directory {
    path: PathBuf,
    /// Held as long as the store: a second daemon is refused. `None` when only looking.
    lock: Option<File>,
}

/// A reader that waits for the next one who asks for the same database.
struct Idle {
    tenant: Option<TenantId>,
    connection: Connection,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Write,
    Read,
}

impl Store {
    /// Checks that the backend can be used; SQLite's directory is made when absent, and locked.
    ///
    /// # Errors
    /// [`StoreError::Retryable`] when another daemon holds the directory; [`StoreError::Wrong`] when the URL or the
    /// SQLite version is unusable.
    pub async fn open(settings: &config::Store) -> Result<Store, StoreError> {
        let backend = Backend::from_url(settings.url.expose_secret(), true).await?;
        Store::with_backend(settings, backend).await
    }

    /// Opens databases that another daemon may be serving, for [`reader`](Store::reader) and
    /// [`control_reader`](Store::control_reader) alone: nothing is locked, created or migrated.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such directory.
    pub async fn inspect(settings: &config::Store) -> Result<Store, StoreError> {
        let backend = Backend::from_url(settings.url.expose_secret(), false).await?;
        Store::with_backend(settings, backend).await
    }

    async fn with_backend(settings: &config::Store, backend: Backend) -> Result<Store, StoreError> {
        if let Backend::Sqlite(_) = backend {
            check_sqlite_version().await?;
        }
        let shared = Arc::new(Shared {
            backend,
            statement_timeout: config::millis(settings.statement_timeout_ms),
            catalogue_poll: config::millis(settings.catalogue_poll_ms),
            readers_max: settings.readers_max,
            reader_permits: Arc::new(Semaphore::new(settings.readers_max)),
            idle: Mutex::new(Vec::new()),
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(READER_SWEEP).await;
                let Some(shared) = weak.upgrade() else { return };
                let now = Instant::now();
                drop(shared.take_idle(|idle| now.duration_since(idle.since) >= READER_IDLE));
            }
        });
        Ok(Store { shared })
    }

    /// A writing connection to the control database, which is made when absent and migrated.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Missing`] when it is absent and there are tenants all the same.
    pub async fn control(&self) -> Result<Connection, StoreError> {
        if let Backend::Sqlite(directory) = &self.shared.backend {
            directory.create_control()?;
        }
        let mut connection = match self.shared.connect(None, Mode::Write).await {
            Err(StoreError::Missing(_)) => {
                self.shared.create_control_database().await?;
                self.shared.connect(None, Mode::Write).await?
            }
            other => other?,
        };
        migration::create(&mut connection, &migration::CONTROL).await?;
        Ok(connection)
    }

    /// Another writing connection to a control database that was there: one that is gone meanwhile is not made anew.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn control_again(&self) -> Result<Connection, StoreError> {
        let mut connection = self.shared.connect(None, Mode::Write).await?;
        migration::check(&mut connection, &migration::CONTROL).await?;
        Ok(connection)
    }

    /// Makes a tenant's database: schema, books, default roles. May be repeated after a crash at any of its steps.
    ///
    /// # Errors
    /// [`StoreError::Untrusted`] when the database belongs to another tenant.
    pub async fn create_tenant(&self, tenant: TenantId, time_zone: &str, now: Timestamp) -> Result<(), StoreError> {
        self.shared.create_tenant_database(tenant).await?;
        fault::point("database.created");
        let mut connection = self.shared.connect(Some(tenant), Mode::Write).await?;
        migration::create(&mut connection, &migration::TENANT).await?;
        fault::point("database.migrated");
        connection.begin().await?;
        let books = [tenant.to_string().into(), time_zone.into(), Hash::NONE.0.as_slice().into(), now.into()];
        connection.execute(INSERT_BOOKS, &books).await?;
        for (role, description) in Role::OF_A_TENANT {
            connection.execute(INSERT_ROLE, &[role.name().into(), description.into(), now.into()]).await?;
        }
        connection.commit().await?;
        let checked = check_tenant(&mut connection, tenant).await;
        connection.close().await;
        checked
    }

    /// A writing connection to a tenant's database. One that is behind is migrated.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Untrusted`] when it is another tenant's, corrupt or
    /// from a newer program.
    pub async fn open_tenant(&self, tenant: TenantId) -> Result<Connection, StoreError> {
        let mut connection = self.shared.connect(Some(tenant), Mode::Write).await?;
        migration::update(&mut connection, &migration::TENANT).await?;
        check_tenant(&mut connection, tenant).await?;
        Ok(connection)
    }

    /// Lends a connection for a slow read of a tenant's database; waits for one up to five seconds.
    ///
    /// # Errors
    /// [`StoreError::Retryable`] when all stay lent out; otherwise as [`open_tenant`](Store::open_tenant).
    pub async fn reader(&self, tenant: TenantId) -> Result<Reader, StoreError> {
        self.lend(Some(tenant)).await
    }

    /// Lends a connection for a slow read of the control database.
    ///
    /// # Errors
    /// As [`reader`](Store::reader).
    pub async fn control_reader(&self) -> Result<Reader, StoreError> {
        self.lend(None).await
    }

    /// Drops the cached readers of a tenant.
    pub fn forget(&self, tenant: TenantId) {
        drop(self.shared.take_idle(|idle| idle.tenant == Some(tenant)));
    }

    /// How often to ask what other nodes have written to the control database; `None` where there is no other: files have
    /// one owner.
    #[must_use]
    pub fn followed_every(&self) -> Option<Duration> {
        match self.shared.backend {
            Backend::Postgres(_) => Some(self.shared.catalogue_poll),
            Backend::Sqlite(_) => None,
        }
    }

    /// Does nobody else have these databases as long as we do? Then whoever had them before is gone, however it ended.
    #[must_use]
    pub fn has_one_owner(&self) -> bool {
        matches!(&self.shared.backend, Backend::Sqlite(Directory { lock: Some(_), .. }))
    }

    #[must_use]
    pub fn backend_name(&self) -> &'static str {
        match self.shared.backend {
            Backend::Postgres(_) => "postgres",
            Backend::Sqlite(_) => "sqlite",
        }
    }

    async fn lend(&self, tenant: Option<TenantId>) -> Result<Reader, StoreError> {
        let asked = Instant::now();
        let permit = tokio::time::timeout(READER_PATIENCE, self.shared.reader_permits.clone().acquire_owned()).await;
        histogram!("platform_api_store_reader_wait_seconds").record(asked.elapsed().as_secs_f64());
        let Ok(Ok(permit)) = permit else {
            return Err(StoreError::Retryable("all connections for slow reads are in use".into()));
        };
        let connection = match self.shared.take_one_idle(tenant) {
            Some(connection) => connection,
            None => self.shared.open_reader(tenant).await?,
        };
        gauge!("platform_api_store_readers_busy").increment(1.0);
        Ok(Reader { connection: Some(connection), tenant, shared: self.shared.clone(), _permit: permit })
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("backend", &self.backend_name()).finish_non_exhaustive()
    }
}

/// A connection for slow reads, which writes nothing; given back when dropped.
pub struct Reader {
    /// `None` only while dropping.
    connection: Option<Connection>,
    tenant: Option<TenantId>,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Reader {
    type Target = Connection;

    #[allow(clippy::expect_used)]
    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken only by drop")
    }
}

impl DerefMut for Reader {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("taken only by drop")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        gauge!("platform_api_store_readers_busy").decrement(1.0);
        let Some(connection) = self.connection.take() else { return };
        if connection.is_at_rest() {
            let idle = Idle { tenant: self.tenant, connection, since: Instant::now() };
            self.shared.lock_idle().push(idle);
        } else {
            // It is busy for long, or lost, and what was opened before it likely with it: the next reader gets a new one.
            drop(self.shared.take_idle(|idle| idle.tenant == self.tenant));
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the idle readers that `which` names; the caller drops them outside the lock.
    fn take_idle(&self, which: impl Fn(&Idle) -> bool) -> Vec<Idle> {
        let mut idle = self.lock_idle();
        let (taken, kept) = std::mem::take(&mut *idle).into_iter().partition(which);
        *idle = kept;
        taken
    }

    fn take_one_idle(&self, tenant: Option<TenantId>) -> Option<Connection> {
        let mut idle = self.lock_idle();
        let at = idle.iter().rposition(|idle| idle.tenant == tenant)?;
        Some(idle.remove(at).connection)
    }

    async fn open_reader(&self, tenant: Option<TenantId>) -> Result<Connection, StoreError> {
        self.make_room();
        let mut connection = self.connect(tenant, Mode::Read).await?;
        match tenant {
            Some(tenant) => {
                migration::check(&mut connection, &migration::TENANT).await?;
                check_tenant(&mut connection, tenant).await?;
            }
            None => migration::check(&mut connection, &migration::CONTROL).await?,
        }
        Ok(connection)
    }

    /// Closes the oldest idle readers, so that with those lent out there are never more than `readers_max`.
    fn make_room(&self) {
        let lent = self.readers_max.saturating_sub(self.reader_permits.available_permits());
        let mut idle = self.lock_idle();
        let surplus = (idle.len() + lent).saturating_sub(self.readers_max).min(idle.len());
        let closed: Vec<Idle> = idle.drain(..surplus).collect();
        drop(idle);
        drop(closed);
    }

    async fn connect(&self, tenant: Option<TenantId>, mode: Mode) -> Result<Connection, StoreError> {
        let mut place = None;
        let engine = match &self.backend {
            Backend::Postgres(options) => {
                let mut options = options.as_ref().clone().options(self.session(mode));
                if let Some(tenant) = tenant {
                    options = options.database(&database_name(tenant));
                }
                Engine::Postgres(in_time(PgConnection::connect_with(&options)).await?)
            }
            Backend::Sqlite(directory) => {
                let path = tenant.map_or_else(|| directory.control(), |tenant| directory.tenant(tenant));
                place = Some(Place::of(&path)?);
                Engine::Sqlite(in_time(SqliteConnection::connect_with(&sqlite_options(&path, mode))).await?)
            }
        };
        let connection = Connection::new(engine, mode == Mode::Read, self.statement_timeout + ANSWER_GRACE);
        Ok(match place {
            Some(place) if mode == Mode::Write => connection.writes_to(place),
            _ => connection,
        })
    }

    fn session(&self, mode: Mode) -> Vec<(&'static str, String)> {
        let mut session = vec![
            ("statement_timeout", self.statement_timeout.as_millis().to_string()),
            ("lock_timeout", "2000".into()),
            ("idle_in_transaction_session_timeout", "5000".into()),
        ];
        if mode == Mode::Read {
            session.push(("default_transaction_read_only", "on".into()));
            // Pages are read in the order of a key. A plan for any filters expects them to leave next to nothing, and would
            // rather sort what they leave of the whole ledger: 165 ms instead of 0.1 for a page of 300,000 rows, measured.
            session.push(("enable_sort", "off".into()));
        }
        session
    }

    /// Makes the database that the URL names, if the server lets us.
    async fn create_control_database(&self) -> Result<(), StoreError> {
        let Backend::Postgres(options) = &self.backend else { return Ok(()) };
        let name = options.get_database().unwrap_or(options.get_username()).to_owned();
        create_database(&options.as_ref().clone().database("postgres"), &name).await
    }

    async fn create_tenant_database(&self, tenant: TenantId) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Postgres(options) => create_database(options, &database_name(tenant)).await,
            Backend::Sqlite(directory) => create_file(&directory.tenant(tenant)),
        }
    }
}

impl Backend {
    async fn from_url(url: &str, lock: bool) -> Result<Backend, StoreError> {
        let Some(directory) = url.strip_prefix("sqlite:") else {
            // The parser's own words may quote the URL, and with it the password.
            let options = PgConnectOptions::from_str(url)
                .map_err(|_| StoreError::Wrong("store.url is not a URL that Postgres understands".into()))?;
            let options = without_idle_encryption(options).application_name("platform-api");
            return Ok(Backend::Postgres(Box::new(options.disable_statement_logging())));
        };
        let path = PathBuf::from(directory.strip_prefix("//").unwrap_or(directory));
        if !lock {
            let exists = path.is_dir();
            return exists
                .then_some(Backend::Sqlite(Directory { path: path.clone(), lock: None }))
                .ok_or_else(|| StoreError::Missing(format!("no directory {}", path.display())));
        }
        create_directory(&path.join("tenants"))?;
        let lock = lock_directory(&path).await?;
        Ok(Backend::Sqlite(Directory { path, lock: Some(lock) }))
    }
}

impl Directory {
    /// An empty control database beside tenants would be the end of them: nobody would know them any more.
    fn create_control(&self) -> Result<(), StoreError> {
        let (path, tenants) = (self.control(), self.path.join("tenants"));
        let mut files = std::fs::read_dir(&tenants).map_err(|error| unusable(&tenants, &error))?;
        if files.next().is_some() && matches!(Place::of(&path), Err(StoreError::Missing(_))) {
            return Err(StoreError::Missing(format!("no file {}, though there are tenants beside it", path.display())));
        }
        create_file(&path)
    }

    fn control(&self) -> PathBuf {
        self.path.join("control.db")
    }

    fn tenant(&self, tenant: TenantId) -> PathBuf {
        self.path.join("tenants").join(format!("{tenant}.db"))
    }
}

/// To this very machine, encryption that is merely preferred (the driver's default) is left out. The driver sets no
/// TCP_NODELAY, and a statement of more than one TLS record (16 KiB) then waits 40 ms for the kernel's delayed
/// acknowledgement: measured, 20,000 instead of 65,000 rows/s. `sslmode=require` is obeyed anywhere.
fn without_idle_encryption(options: PgConnectOptions) -> PgConnectOptions {
    let here = ["localhost", "127.0.0.1", "::1", "[::1]"].contains(&options.get_host());
    let merely_preferred = matches!(options.get_ssl_mode(), PgSslMode::Prefer);
    if here && merely_preferred { options.ssl_mode(PgSslMode::Disable) } else { options }
}

fn database_name(tenant: TenantId) -> String {
    format!("tenant_{tenant}")
}

async fn check_tenant(connection: &mut Connection, tenant: TenantId) -> Result<(), StoreError> {
    let row = connection.fetch_one_optional(SELECT_TENANT, &[]).await?;
    let found = row.map(|row| row.text(0)).transpose()?;
    match found {
        Some(found) if found == tenant.to_string() => Ok(()),
        Some(found) => Err(StoreError::Untrusted(format!("these are the books of {found}, not of {tenant}"))),
        None => Err(StoreError::Untrusted(format!("there are no books of {tenant}"))),
    }
}

async fn create_database(options: &PgConnectOptions, name: &str) -> Result<(), StoreError> {
    let mut connection = in_time(PgConnection::connect_with(options)).await?;
    // Names are ours (`tenant_<uuid>`) or the operator's; a quote in one is doubled, as the standard says.
    let quoted = name.replace('"', "\"\"");
    // Text sorts by its bytes, as on SQLite.
    let create = format!("CREATE DATABASE \"{quoted}\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'");
    let created = tokio::time::timeout(CREATE_TIMEOUT, connection.execute(AssertSqlSafe(create))).await;
    match created {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if failure::is_duplicate_database(&error) => {}
        Ok(Err(error)) => return Err(failure::of_opening(&error)),
        Err(_) => return Err(StoreError::Retryable("CREATE DATABASE did not answer in time".into())),
    }
    let private = format!("REVOKE ALL ON DATABASE \"{quoted}\" FROM PUBLIC");
    connection.execute(AssertSqlSafe(private)).await.map_err(|error| failure::of_opening(&error))?;
    // A connection that is not closed politely is closed all the same.
    let _ = connection.close().await;
    Ok(())
}

async fn in_time<T>(connecting: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Err(error)) if failure::is_missing_database(&error) => Err(failure::of_opening(&error)),
        Ok(connected) => connected.map_err(|error| failure::of_opening(&error)),
        Err(_) => Err(StoreError::Retryable("connecting took too long".into())),
    }
}

fn sqlite_options(path: &Path, mode: Mode) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging();
    match mode {
        Mode::Read => options.read_only(true),
        Mode::Write => options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(durability())
            .pragma("journal_size_limit", WAL_BYTES_MAX)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES),
    }
}

/// Every commit reaches the disk before it is answered.
fn durability() -> SqliteSynchronous {
    if fault::is_planted("sqlite-not-synced") { SqliteSynchronous::Off } else { SqliteSynchronous::Full }
}

async fn check_sqlite_version() -> Result<(), StoreError> {
    let opening = |error: sqlx::Error| failure::of_opening(&error);
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.map_err(opening)?;
    let row = sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await.map_err(opening)?;
    let version: String = row.try_get(0).map_err(opening)?;
    let parts: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    if parts.as_slice() < SQLITE_VERSION_MIN.as_slice() {
        return Err(StoreError::Wrong(format!("SQLite {version} is older than 3.51.3, which is the first safe one")));
    }
    Ok(())
}

fn create_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unusable(path, &error))
}

/// Makes an empty file that only we may read, and makes its name durable. An existing one is left as it is.
fn create_file(path: &Path) -> Result<(), StoreError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Ok(_) => {
            let parent = path.parent().unwrap_or(path);
            File::open(parent).and_then(|directory| directory.sync_all()).map_err(|error| unusable(parent, &error))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// The system lets go of the lock when the process ends, however it ends; one that was just ended may not be quite gone.
async fn lock_directory(path: &Path) -> Result<File, StoreError> {
    let name = path.join("daemon.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| unusable(&name, &error))?;
    let asked = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if asked.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(LOCK_EVERY).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let problem = format!("another daemon is using {}; stop it first", path.display());
                return Err(StoreError::Retryable(problem));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(unusable(&name, &error)),
        }
    }
}

fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Retryable(format!("cannot use {}: {error}", path.display()))
}
