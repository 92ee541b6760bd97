//! What a large organization costs its tenant: from asking for a tenant that rests to its first answer, memory, and look-ups
//! while it is held, against the same rows read by plain SQL into structs in the same run.
//!
//! The people are written in bulk, past the daemon, as the API would have written them: each user with two addresses, two
//! subjects and three attributes, in as many groups as there are memberships for.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use tokio::time::Instant;

use crate::Surroundings;
use crate::figures::{Grid, Latencies};
use crate::link::{Link, request};
use crate::plant::{Plant, Setup, StoreKind, Tenant};
use crate::progress::Progress;

/// How long memory may settle.
const SETTLING: Duration = Duration::from_secs(2);
/// How long a tenant may take to open.
const PATIENCE: Duration = Duration::from_secs(300);
/// What users are given, by turns.
const ROLES: [&str; 4] = ["admin", "reader", "developer", "analyst"];

#[derive(Debug, Clone, Args)]
pub(crate) struct People {
    /// Users, a row for each number and store.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    users: Vec<u32>,
    /// Users for each group.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    users_each_group: u32,
    /// Memberships of each user.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=5))]
    memberships: u32,
    /// Users for each role that is given to one.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    users_each_role: u32,
    /// How often the tenant is opened, and the rows are read.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How often each look-up is made.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    lookups: u32,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [StoreKind::Sqlite, StoreKind::Postgres])]
    store: Vec<StoreKind>,
}

/// How many of each.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    users: u32,
    groups: u32,
    members: u32,
    roles: u32,
}

impl Sizes {
    fn of(people: &People, users: u32) -> Sizes {
        let groups = (users / people.users_each_group).max(1);
        // No user twice in one group.
        let memberships = people.memberships.min(groups);
        Sizes { users, groups, members: users * memberships, roles: users / people.users_each_role }
    }

    fn rows(self) -> u64 {
        // Two subjects each.
        [self.users, self.users, self.users, self.groups, self.members, self.roles].into_iter().map(u64::from).sum()
    }
}

pub(crate) async fn run(people: &People, surroundings: &Surroundings) -> anyhow::Result<()> {
    let mut grid = Grid::new(&[
        "store",
        "users",
        "groups",
        "memberships",
        "roles",
        "opens ms",
        "max",
        "plain SELECT ms",
        "max",
        "opens / SELECT",
        "RSS MB",
        "bytes/user",
        "decision p50 µs",
        "p99",
        "user by name p50",
        "p99",
        "user by id p50",
        "p99",
        "page of 100 p50",
        "p99",
    ]);
    for store in &people.store {
        for users in &people.users {
            let sizes = Sizes::of(people, *users);
            let limits = format!(
                "[organization]\nusers_max = {}\ngroups_max = {}\nmembers_max = {}\nrole_assignments_max = {}\n",
                sizes.users,
                sizes.groups,
                sizes.members.max(1),
                sizes.roles.max(1)
            );
            let mut plant = Plant::start(Setup { toml: limits, ..Setup::of(*store) }, surroundings).await?;
            let outcome = measured(&mut plant, people, sizes).await;
            grid.row(plant.finish(outcome).await?);
        }
    }
    grid.print();
    Ok(())
}

async fn measured(plant: &mut Plant, people: &People, sizes: Sizes) -> anyhow::Result<Vec<String>> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.first().context("a tenant")?.clone();
    plant.halt().await?;
    let written = write(plant, &tenant, people, sizes).await?;
    ensure!(written == sizes.rows(), "{written} rows were written, and not {}", sizes.rows());

    let mut progress = Progress::of("opening, and reading", u64::from(people.rounds));
    let (mut opening, mut reading, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..people.rounds {
        plant.launch().await?;
        tokio::time::sleep(SETTLING).await;
        let before = plant.resident()?;
        opening.push(millis(open(plant, &tenant, sizes).await?));
        tokio::time::sleep(SETTLING).await;
        held.push((before, plant.resident()?));
        if round + 1 < people.rounds {
            plant.halt().await?;
        }
        // By turns, so that both meet the same machine.
        reading.push(millis(read(plant, &tenant, sizes).await?));
        progress.at(u64::from(round) + 1);
    }
    drop(progress);
    let lookups = lookups(plant, &tenant, people, sizes).await?;
    let (opens, selects) = (Spread::of(opening), Spread::of(reading));
    let (before, after) = held.iter().copied().reduce(|one, two| (one.0 + two.0, one.1 + two.1)).context("a round")?;
    let rounds = f64::from(people.rounds);
    let mut cells = vec![
        format!("{:?}", plant.store).to_lowercase(),
        sizes.users.to_string(),
        sizes.groups.to_string(),
        sizes.members.to_string(),
        sizes.roles.to_string(),
        format!("{:.1}", opens.median),
        format!("{:.1}", opens.most),
        format!("{:.1}", selects.median),
        format!("{:.1}", selects.most),
        format!("{:.2}", opens.median / selects.median.max(1e-9)),
        format!("{:.1}", after / rounds / 1e6),
        format!("{:.0}", (after - before) / rounds / f64::from(sizes.users)),
    ];
    for latencies in lookups {
        cells.extend([0.5, 0.99].map(|share| latencies.at(share).to_string()));
    }
    Ok(cells)
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

struct Spread {
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Spread {
        figures.sort_by(f64::total_cmp);
        let at = |at: usize| figures.get(at).copied().unwrap_or_default();
        Spread { median: at(figures.len() / 2), most: at(figures.len().saturating_sub(1)) }
    }
}

fn name(number: u32) -> String {
    format!("user-{number}@example.com")
}

/// From asking for a tenant that rests until it answers, and answers rightly.
async fn open(plant: &Plant, tenant: &Tenant, sizes: Sizes) -> anyhow::Result<Duration> {
    let mut link = Link::to(&plant.address).await?;
    let last = name(sizes.users);
    let question = request("GET", &format!("/v1/users?userName={}", last.replace('@', "%40")), &tenant.key, None);
    let began = Instant::now();
    loop {
        let answer = link.send(&question).await?;
        if answer.status != 503 {
            let took = began.elapsed();
            let found = answer.json()?;
            let found = found["items"][0]["userName"].as_str();
            ensure!(found == Some(last.as_str()), "the last user is {found:?}, and not {last}");
            return Ok(took);
        }
        ensure!(began.elapsed() < PATIENCE, "the tenant does not open:\n{}", plant.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One connection asks: for decisions about users, for users by their names and ids, and for pages of them.
async fn lookups(plant: &Plant, tenant: &Tenant, people: &People, sizes: Sizes) -> anyhow::Result<[Latencies; 4]> {
    let mut link = Link::to(&plant.address).await?;
    let mut micros: [Vec<u32>; 4] = Default::default();
    let mut progress = Progress::of("look-ups", u64::from(people.lookups));
    for turn in 0..people.lookups {
        // All over the place, and in every run the same.
        let number = 1 + (u64::from(turn) * 7_919 % u64::from(sizes.users)) as u32;
        let user = name(number).replace('@', "%40");
        let paths = [
            format!("/v1/quotas/{}/decision?userId={user}&groupId=group-1&model=gpt-4o", tenant.id),
            format!("/v1/users?userName={user}"),
            format!("/v1/users/00000000-0000-7000-8000-{number:012x}"),
            "/v1/users?limit=100".to_owned(),
        ];
        for (path, micros) in paths.iter().zip(&mut micros) {
            let question = request("GET", path, &tenant.key, None);
            let began = Instant::now();
            let answer = link.send(&question).await?;
            micros.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            ensure!(answer.status == 200, "{path}: {}", answer.status);
        }
        progress.at(u64::from(turn) + 1);
    }
    Ok(micros.map(Latencies::of))
}

// ---- plain SQL ----

/// A tenant's database, past the daemon.
enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Database {
    async fn of(plant: &Plant, tenant: &Tenant) -> anyhow::Result<Database> {
        let place = plant.ledger_database(tenant);
        Ok(match plant.store {
            StoreKind::Sqlite => Database::Sqlite(SqliteConnectOptions::new().filename(place).connect().await?),
            StoreKind::Postgres => Database::Postgres(PgConnection::connect(&place).await?),
        })
    }

    async fn execute(&mut self, sql: String) -> anyhow::Result<u64> {
        let shown = sql.chars().take(60).collect::<String>();
        let sql = AssertSqlSafe(sql);
        let done = match self {
            Database::Sqlite(connection) => sqlx::query(sql).execute(connection).await.map(|done| done.rows_affected()),
            Database::Postgres(connection) => {
                sqlx::query(sql).execute(connection).await.map(|done| done.rows_affected())
            }
        };
        done.with_context(|| shown)
    }

    async fn close(self) -> anyhow::Result<()> {
        match self {
            Database::Sqlite(connection) => connection.close().await?,
            Database::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }
}

/// Writes everybody; how many rows there are.
async fn write(plant: &Plant, tenant: &Tenant, people: &People, sizes: Sizes) -> anyhow::Result<u64> {
    let mut database = Database::of(plant, tenant).await?;
    let series = |count: u32| match plant.store {
        StoreKind::Postgres => format!("WITH series AS (SELECT i FROM generate_series(1, {count}) AS i)"),
        StoreKind::Sqlite => {
            format!("WITH RECURSIVE series(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < {count})")
        }
    };
    // The third group of an id says what it is of.
    let id = |kind: &str, number: &str| {
        let digits = match plant.store {
            StoreKind::Postgres => format!("lpad(to_hex({number}), 12, '0')"),
            StoreKind::Sqlite => format!("printf('%012x', {number})"),
        };
        format!("'00000000-0000-700{kind}-8000-' || {digits}")
    };
    let name = "'user-' || i || '@example.com'";
    let mut statements = vec![
        format!(
            "INSERT INTO organization_user (id, user_name, name_key, display_name, given_name, family_name, external_id,
                emails, attributes, active, version, created_at, updated_at) {} SELECT {}, {name}, {name},
                'Ada Lovelace the ' || i, 'Ada', 'Lovelace ' || i, 'external-' || i,
                '[{{\"value\":\"user-' || i || '@example.com\",\"primary\":true}},{{\"value\":\"ada-' || i ||
                '@home.example.org\",\"primary\":false}}]',
                '{{\"department\":\"finance\",\"level\":' || (i % 7) || ',\"region\":\"eu-' || (i % 9) || '\"}}',
                1, 1, 1700000000000000, 1700000000000000 FROM series",
            series(sizes.users),
            id("0", "i"),
        ),
        format!(
            "INSERT INTO organization_group (id, display_name, name_key, external_id, description, attributes, active,
                version, created_at, updated_at) {} SELECT {}, 'group-' || i, 'group-' || i, 'external-' || i,
                'One of many', '{{}}', 1, 1, 1700000000000000, 1700000000000000 FROM series",
            series(sizes.groups),
            id("1", "i"),
        ),
        format!(
            "INSERT INTO role_assignment (id, role, holder_kind, holder_id, created_at) {} SELECT {}, {}, 'user', {},
                1700000000000000 FROM series",
            series(sizes.roles),
            id("2", "i"),
            roles(),
            id("0", &format!("(i * {})", people.users_each_role)),
        ),
    ];
    for ordinal in 0..2 {
        statements.push(format!(
            "INSERT INTO organization_subject (issuer, subject, user_id, ordinal) {} SELECT
                'https://id-{ordinal}.example.com', 'subject-' || i, {}, {ordinal} FROM series",
            series(sizes.users),
            id("0", "i"),
        ));
    }
    for turn in 0..sizes.members / sizes.users {
        statements.push(format!(
            "INSERT INTO organization_member (group_id, member_kind, member_id, added_at) {} SELECT {}, 'user', {},
                1700000000000000 FROM series",
            series(sizes.users),
            id("1", &format!("(1 + (i + {turn}) % {})", sizes.groups)),
            id("0", "i"),
        ));
    }
    let mut progress = Progress::of("writing people", sizes.rows());
    let mut rows = 0;
    for statement in statements {
        rows += database.execute(statement).await?;
        progress.at(rows);
    }
    if plant.store == StoreKind::Postgres {
        database.execute("ANALYZE".to_owned()).await?;
    }
    database.close().await?;
    Ok(rows)
}

/// The name of a role, by number.
fn roles() -> String {
    let mut sql = String::from("CASE i % 4");
    for (at, role) in ROLES.iter().enumerate() {
        let _ = write!(sql, " WHEN {at} THEN '{role}'");
    }
    sql + " END"
}

struct UserRow {
    texts: [String; 5],
    optional: [Option<String>; 3],
    numbers: [i64; 4],
}

struct GroupRow {
    texts: [String; 3],
    optional: [Option<String>; 2],
    numbers: [i64; 4],
}

/// A subject, a membership or a role: three texts and, of a role, a fourth and when it was given.
struct LinkRow {
    texts: [String; 3],
    more: Option<(String, i64)>,
}

#[derive(Default)]
struct Everybody {
    users: Vec<UserRow>,
    groups: Vec<GroupRow>,
    links: Vec<LinkRow>,
}

macro_rules! everybody {
    ($connection:expr) => {{
        let mut all = Everybody::default();
        let users =
            "SELECT id, user_name, display_name, emails, attributes, given_name, family_name, external_id, active,
            version, created_at, updated_at FROM organization_user ORDER BY id";
        for row in sqlx::query(users).fetch_all(&mut *$connection).await? {
            all.users.push(UserRow {
                texts: [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?],
                optional: [row.try_get(5)?, row.try_get(6)?, row.try_get(7)?],
                numbers: [row.try_get(8)?, row.try_get(9)?, row.try_get(10)?, row.try_get(11)?],
            });
        }
        let groups = "SELECT id, display_name, attributes, external_id, description, active, version, created_at,
            updated_at FROM organization_group ORDER BY id";
        for row in sqlx::query(groups).fetch_all(&mut *$connection).await? {
            all.groups.push(GroupRow {
                texts: [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?],
                optional: [row.try_get(3)?, row.try_get(4)?],
                numbers: [row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?],
            });
        }
        for links in [
            "SELECT user_id, issuer, subject FROM organization_subject ORDER BY user_id, ordinal",
            "SELECT group_id, member_kind, member_id FROM organization_member",
        ] {
            for row in sqlx::query(links).fetch_all(&mut *$connection).await? {
                all.links.push(LinkRow { texts: [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?], more: None });
            }
        }
        let roles = "SELECT id, role, holder_kind, holder_id, created_at FROM role_assignment ORDER BY id";
        for row in sqlx::query(roles).fetch_all(&mut *$connection).await? {
            let texts = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
            all.links.push(LinkRow { texts, more: Some((row.try_get(3)?, row.try_get(4)?)) });
        }
        all
    }};
}

/// The same rows, by plain statements into structs: what reading them costs whoever keeps them like this.
async fn read(plant: &Plant, tenant: &Tenant, sizes: Sizes) -> anyhow::Result<Duration> {
    // Connecting is part of opening a tenant as well.
    let began = Instant::now();
    let mut database = Database::of(plant, tenant).await?;
    let all: Everybody = match &mut database {
        Database::Sqlite(connection) => everybody!(connection),
        Database::Postgres(connection) => everybody!(connection),
    };
    let took = began.elapsed();
    let rows = all.users.len() + all.groups.len() + all.links.len();
    ensure!(rows as u64 == sizes.rows(), "{rows} rows were read, and not {}", sizes.rows());
    // So that nothing of it was read for nothing.
    let of_users = all.users.iter().map(|row| {
        row.texts.iter().chain(row.optional.iter().flatten()).map(String::len).sum::<usize>() + row.numbers.len()
    });
    let of_groups = all.groups.iter().map(|row| {
        row.texts.iter().chain(row.optional.iter().flatten()).map(String::len).sum::<usize>() + row.numbers.len()
    });
    let of_links = all.links.iter().map(|row| {
        row.texts.iter().map(String::len).sum::<usize>() + row.more.as_ref().map_or(0, |(text, _)| text.len())
    });
    ensure!(of_users.chain(of_groups).chain(of_links).sum::<usize>() > rows, "empty rows");
    database.close().await?;
    Ok(took)
}
