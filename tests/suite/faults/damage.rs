//! Matrix 2d: a tenant's database is missing, swapped, corrupt, behind or ahead. That tenant is frozen until a person has
//! looked; its neighbours notice nothing; nothing is ever made anew in its place.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::World;
use crate::harness::database::Database;
use crate::harness::load::{Load, Target};
use crate::harness::{Daemon, Engine, Setup, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_sqlite_file_closes_its_tenant_alone_until_it_is_put_right() {
    let mut world = World::on(Engine::Sqlite, with_room_for_all).await;
    world
        .is_damaged_and_put_right(&[
            Damage::Missing,
            Damage::Emptied,
            Damage::CutShort,
            Damage::CorruptPage,
            Damage::SwappedWithNext,
            Damage::Swapped,
            Damage::Behind,
            Damage::Ahead,
            Damage::Linked,
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_postgres_database_closes_its_tenant_alone_until_it_is_put_right() {
    let mut world = World::on(Engine::Postgres, with_room_for_all).await;
    world
        .is_damaged_and_put_right(&[
            Damage::Missing,
            Damage::Emptied,
            Damage::CorruptPage,
            Damage::SwappedWithNext,
            Damage::Swapped,
            Damage::Behind,
            Damage::Ahead,
        ])
        .await;
}

/// Nobody has to rest for another.
fn with_room_for_all(setup: Setup) -> Setup {
    setup.with("TENANTS__OPEN_MAX", 16).with("STORE__CONNECTIONS_MAX", 24)
}

/// The file is taken away under a daemon that holds it open: what it still writes there is lost, so nothing of it may be
/// acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_file_that_was_taken_away_is_not_acknowledged() {
    let mut world = World::on(Engine::Sqlite, |setup| setup).await;
    world.suffers("2d: file taken away while in use", |world| Box::pin(taken_away(world))).await;
    world.suffers("2d: two files swapped while in use", |world| Box::pin(swapped_in_use(world))).await;
}

/// Without the catalogue nobody knows a tenant; with an empty one nobody ever would.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_is_gone_is_not_made_anew_beside_its_tenants() {
    let mut daemon = Setup::on(Engine::Sqlite).start().await;
    let target = Target::onboard(&daemon, "Acme").await;
    let (file, aside) = (daemon.data().join("control.db"), daemon.folder.path().join("aside.db"));
    fs::rename(&file, &aside).expect("it is there");
    for _ in 0..3 {
        let answer = daemon.platform.post("/v1/tenants", &json!({"name": "Globex"})).await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        target.is_served().await;
    }
    daemon.terminate().await;
    let config = daemon.config_file();
    let refused = daemon.run(&["serve", "--config", config.to_str().expect("a plain path")]).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("control.db"), "{told}");
    assert!(!file.exists(), "an empty catalogue");
    fs::rename(&aside, &file).expect("it is there");
    daemon.restart().await;
    target.check(&daemon, None).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Missing,
    /// A database, but an empty one.
    Emptied,
    /// The second half of the file is gone.
    CutShort,
    /// One page of the table that says what the books are.
    CorruptPage,
    /// It and the next tenant's stand in each other's place.
    SwappedWithNext,
    /// What the tenant before has swapped with.
    Swapped,
    /// An earlier copy of it.
    Behind,
    /// Migrated by a newer program.
    Ahead,
    /// A symbolic link to it.
    Linked,
}

impl World {
    /// One tenant for each kind of damage, all damaged at the same time, beside the two that are well.
    async fn is_damaged_and_put_right(&mut self, damages: &[Damage]) {
        let mut damaged = Vec::new();
        for damage in damages {
            damaged.push((*damage, Target::onboard(&self.daemon, &format!("{damage:?}")).await));
        }
        let targets: Vec<Target> = damaged.iter().map(|(_, target)| target.clone()).collect();
        let load = Load::on(&targets, None);
        load.progresses(40).await;
        load.stop().await;

        self.daemon.terminate().await;
        let early = Copies::of(&self.daemon, &targets, "early").await;
        self.daemon.restart().await;
        let load = Load::on(&targets, None);
        load.progresses(20).await;
        load.stop().await;
        self.daemon.terminate().await;
        let late = Copies::of(&self.daemon, &targets, "late").await;

        for at in 0..damaged.len() {
            self.damage(damaged[at].0, &targets[at], targets.get(at + 1), &early).await;
        }
        let lines_before = self.daemon.log().lines().count();
        self.daemon.restart().await;
        for (damage, target) in &damaged {
            self.is_frozen(*damage, target).await;
        }
        for target in &self.targets {
            target.is_opened().await;
            target.is_served().await;
        }
        self.a_person_was_called_once_for_each(&damaged, lines_before);

        self.daemon.terminate().await;
        late.put_back(&mut self.daemon).await;
        self.daemon.restart().await;
        for (damage, target) in &damaged {
            println!("{} 2d: {damage:?}: put right", self.daemon.engine);
            target.is_opened().await;
            target.is_served().await;
            target.check(&self.daemon, None).await;
        }
    }

    async fn is_frozen(&self, damage: Damage, target: &Target) {
        let tenant = &target.tenant;
        for path in [format!("/v1/quotas/{}", tenant.id), format!("/v1/tenants/{}/usage/events", tenant.id)] {
            let answer = eventually("the tenant to be frozen", || async {
                let answer = tenant.api.get(&path).await;
                (answer.code() != "TENANT_STARTING").then_some(answer)
            })
            .await;
            assert_eq!((answer.status, answer.code()), (503, "TENANT_FROZEN"), "{damage:?} {path}: {}", answer.text);
        }
        let event = json!([tenant.event().json()]);
        let answer = tenant.api.post("/v1/usage/events", &event).await;
        assert_eq!((answer.status, answer.code()), (503, "TENANT_FROZEN"), "{damage:?}: {}", answer.text);
        if damage == Damage::Missing && self.daemon.engine == Engine::Sqlite {
            assert!(!self.daemon.tenant_file(&tenant.id).exists(), "an empty file in place of the missing one");
        }
    }

    fn a_person_was_called_once_for_each(&self, damaged: &[(Damage, Target)], lines_before: usize) {
        let log = self.daemon.log();
        let calls: Vec<&str> =
            log.lines().skip(lines_before).filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
        for (damage, target) in damaged {
            let about = format!("\"tenant\":\"{}\"", target.tenant.id);
            let ours = calls.iter().filter(|line| line.contains(&about)).count();
            assert_eq!(ours, 1, "{damage:?}: lines for on-call: {calls:#?}");
        }
    }

    async fn damage(&mut self, damage: Damage, target: &Target, next: Option<&Target>, early: &Copies) {
        match self.daemon.engine {
            Engine::Sqlite => self.damage_file(damage, target, next, early).await,
            Engine::Postgres => self.damage_database(damage, target, next, early).await,
        }
    }

    async fn damage_file(&self, damage: Damage, target: &Target, next: Option<&Target>, early: &Copies) {
        let file = self.daemon.tenant_file(&target.tenant.id);
        match damage {
            Damage::Missing => fs::remove_file(file).expect("it is there"),
            Damage::Emptied => {
                fs::File::options().write(true).open(file).and_then(|file| file.set_len(0)).expect("ours")
            }
            Damage::CutShort => {
                let length = fs::metadata(&file).expect("it is there").len();
                fs::File::options().write(true).open(file).and_then(|file| file.set_len(length / 2)).expect("ours");
            }
            Damage::CorruptPage => {
                let mut database = Database::of_tenant(&self.daemon, &target.tenant.id).await;
                let page = database.number("SELECT rootpage FROM sqlite_schema WHERE name = 'books'").await;
                let size = database.number("PRAGMA page_size").await;
                database.close().await;
                flip(&file, u64::try_from((page - 1) * size).expect("a page"));
            }
            Damage::SwappedWithNext => swap(&file, &self.daemon.tenant_file(&next.expect("a partner").tenant.id)),
            Damage::Swapped => {}
            Damage::Behind => early.put_one_back(&self.daemon, &target.tenant.id).await,
            Damage::Ahead => migrate_ahead(&self.daemon, target).await,
            Damage::Linked => {
                let aside = self.daemon.folder.path().join("aside.db");
                fs::rename(&file, &aside).and_then(|()| std::os::unix::fs::symlink(&aside, &file)).expect("a link");
            }
        }
    }

    async fn damage_database(&mut self, damage: Damage, target: &Target, next: Option<&Target>, early: &Copies) {
        let name = format!("tenant_{}", target.tenant.id);
        let mut admin = Database::at(self.daemon.admin_url()).await;
        match damage {
            Damage::Missing => drop_database(&mut admin, &name).await,
            Damage::Emptied => {
                drop_database(&mut admin, &name).await;
                admin.script(format!("CREATE DATABASE \"{name}\" TEMPLATE template0")).await.expect("a free name");
            }
            Damage::CorruptPage => {
                let mut database = Database::of_tenant(&self.daemon, &target.tenant.id).await;
                let path = database.words("SELECT pg_relation_filepath('books')").await.concat().concat();
                drop((database, admin));
                let file = self.cluster().data.join(path);
                self.cluster().stop().await;
                // The last byte of each of its pages: checksums tell.
                let pages = fs::metadata(&file).expect("it is there").len() / 8_192;
                (1..=pages).for_each(|page| flip(&file, page * 8_192 - 1));
                self.cluster().restart().await;
            }
            Damage::SwappedWithNext => {
                let other = format!("tenant_{}", next.expect("a partner").tenant.id);
                for (from, to) in [(name.as_str(), "aside"), (&other, &name), ("aside", &other)] {
                    admin
                        .script(format!("ALTER DATABASE \"{from}\" RENAME TO \"{to}\""))
                        .await
                        .expect("nobody is there");
                }
            }
            Damage::Swapped => {}
            Damage::Behind => early.put_one_back(&self.daemon, &target.tenant.id).await,
            Damage::Ahead => migrate_ahead(&self.daemon, target).await,
            Damage::CutShort | Damage::Linked => unreachable!("Postgres keeps its files to itself"),
        }
    }
}

async fn migrate_ahead(daemon: &Daemon, target: &Target) {
    let mut database = Database::of_tenant(daemon, &target.tenant.id).await;
    let sql = "INSERT INTO schema_version VALUES (9999, 'from_the_future', '', 0)";
    database.execute(sql).await.expect("a table of ours");
    database.close().await;
}

async fn drop_database(admin: &mut Database, name: &str) {
    admin.script(format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await.expect("an administrator");
}

fn flip(file: &Path, at: u64) {
    let mut file = fs::File::options().read(true).write(true).open(file).expect("it is there");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("as long as that");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&[!byte[0]])).expect("ours");
}

fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    for (from, to) in [(one, aside.as_path()), (other, one), (&aside, other)] {
        fs::rename(from, to).expect("it is there");
    }
}

/// Copies of tenants' databases that nobody is using.
struct Copies {
    folder: PathBuf,
    tenants: Vec<String>,
    word: &'static str,
}

impl Copies {
    async fn of(daemon: &Daemon, targets: &[Target], word: &'static str) -> Copies {
        let folder = daemon.folder.path().join(word);
        fs::create_dir_all(&folder).expect("a folder of ours");
        let tenants: Vec<String> = targets.iter().map(|target| target.tenant.id.clone()).collect();
        let copies = Copies { folder, tenants, word };
        for tenant in &copies.tenants {
            match daemon.engine {
                Engine::Sqlite => {
                    // What is still in the log beside the file would mend, or spoil, what is done to the file.
                    let mut database = Database::of_tenant(daemon, tenant).await;
                    let busy = database.number("PRAGMA wal_checkpoint(TRUNCATE)").await;
                    assert_eq!(busy, 0, "somebody is connected");
                    database.close().await;
                    copies.move_files(&daemon.data().join("tenants"), &copies.folder, tenant);
                }
                Engine::Postgres => {
                    let sql = format!("CREATE DATABASE \"{}\" TEMPLATE \"tenant_{tenant}\"", copies.name(tenant));
                    Database::at(daemon.admin_url()).await.script(sql).await.expect("nobody is connected");
                }
            }
        }
        copies
    }

    async fn put_back(&self, daemon: &mut Daemon) {
        for tenant in &self.tenants {
            self.put_one_back(daemon, tenant).await;
        }
    }

    async fn put_one_back(&self, daemon: &Daemon, tenant: &str) {
        match daemon.engine {
            Engine::Sqlite => self.move_files(&self.folder, &daemon.data().join("tenants"), tenant),
            Engine::Postgres => {
                let mut admin = Database::at(daemon.admin_url()).await;
                let (copy, name) = (self.name(tenant), format!("tenant_{tenant}"));
                admin
                    .script(format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"))
                    .await
                    .expect("an administrator");
                let sql = format!("CREATE DATABASE \"{name}\" TEMPLATE \"{copy}\"");
                admin.script(sql).await.expect("a copy of ours");
            }
        }
    }

    fn name(&self, tenant: &str) -> String {
        format!("{}_{tenant}", self.word)
    }

    /// A database and what SQLite keeps beside it; what is there already goes.
    fn move_files(&self, from: &Path, to: &Path, tenant: &str) {
        for suffix in ["", "-wal", "-shm"] {
            let name = format!("{tenant}.db{suffix}");
            let _ = fs::remove_file(to.join(&name));
            if from.join(&name).exists() {
                fs::copy(from.join(&name), to.join(&name)).expect("a file of ours");
            }
        }
    }
}

/// The first tenant's file is renamed under the daemon, which has to notice with the next commit.
pub async fn taken_away(world: &mut World) {
    let file = world.daemon.tenant_file(&world.targets[0].tenant.id);
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).expect("it is there");
    world.freezes_while_in_use(&[0]).await;
    assert!(!file.exists(), "an empty file in place of the missing one");
    world.daemon.terminate().await;
    fs::rename(&aside, &file).expect("it is there");
    world.daemon.restart().await;
}

/// The files of both tenants change places under the daemon.
pub async fn swapped_in_use(world: &mut World) {
    let [one, other] = [0, 1].map(|at| world.daemon.tenant_file(&world.targets[at].tenant.id));
    swap(&one, &other);
    world.freezes_while_in_use(&[0, 1]).await;
    world.daemon.terminate().await;
    swap(&one, &other);
    world.daemon.restart().await;
}

impl World {
    async fn freezes_while_in_use(&self, which: &[usize]) {
        for at in which {
            let target = &self.targets[*at];
            eventually("the tenant to be frozen", || async {
                let answer = target.tenant.api.get(&format!("/v1/quotas/{}", target.tenant.id)).await;
                (answer.code() == "TENANT_FROZEN").then_some(())
            })
            .await;
        }
    }
}
