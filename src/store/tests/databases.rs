//! Databases that are made, missing, swapped, foreign or held by another.

use std::os::unix::fs::PermissionsExt;

use secrecy::SecretString;

use super::harness::{House, NOW, commit, event};
use crate::config;
use crate::store::StoreError;
use crate::store::database::Store;

super::conformance!(
    a_tenant_is_made_once_however_often,
    a_missing_database_is_missing_and_stays_so,
    swapped_and_foreign_databases_are_not_trusted,
    readers_read_and_nothing_else,
    readers_are_bounded_and_given_back,
    errors_do_not_tell_secrets,
);

async fn a_tenant_is_made_once_however_often(house: &House) {
    let (store, mut connection, books) = house.owner().await;
    commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    store.create_tenant(books.tenant, "Asia/Tokyo", NOW).await.unwrap();
    let kept = connection.fetch("SELECT time_zone, events FROM books", &[]).await.unwrap();
    assert_eq!((kept[0].text(0).unwrap(), kept[0].int(1).unwrap()), ("Europe/Berlin".into(), 1));
    let again = store.control().await.unwrap();
    drop(again);
    let applied = connection.fetch("SELECT version FROM schema_version", &[]).await.unwrap();
    assert_eq!(applied.len(), if house.is_sqlite() { 10 } else { 12 });
}

async fn a_missing_database_is_missing_and_stays_so(house: &House) {
    let store = house.store().await;
    let nobody = house.tenant_id();
    for _ in 0..2 {
        let missing = store.open_tenant(nobody).await;
        assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
        let missing = store.reader(nobody).await;
        assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
    }
}

async fn swapped_and_foreign_databases_are_not_trusted(house: &House) {
    let store = house.store().await;
    let tenant = house.tenant(&store).await;
    house.tamper(tenant, "UPDATE books SET tenant = '00000000-0000-7000-8000-000000000000'").await;
    for refused in [store.open_tenant(tenant).await.err(), store.reader(tenant).await.err()] {
        assert!(matches!(refused, Some(StoreError::Untrusted(_))), "{refused:?}");
    }
    let repaired = store.create_tenant(tenant, "UTC", NOW).await;
    assert!(matches!(repaired, Err(StoreError::Untrusted(_))), "{repaired:?}");

    let newer = house.tenant(&store).await;
    house.tamper(newer, "INSERT INTO schema_version VALUES (9999, 'from_the_future', '', 0)").await;
    let other = house.tenant(&store).await;
    house.tamper(other, "UPDATE schema_version SET checksum = 'x' WHERE version = 1").await;
    let emptied = house.tenant(&store).await;
    house.tamper(emptied, "DELETE FROM books").await;
    let foreign = house.tenant(&store).await;
    house.tamper(foreign, "DROP TABLE schema_version").await;
    for tenant in [newer, other, emptied, foreign] {
        let refused = store.open_tenant(tenant).await;
        assert!(matches!(refused, Err(StoreError::Untrusted(_))), "{refused:?}");
    }

    // A schema that is behind is brought up to date; a reader does not do that.
    let behind = house.tenant(&store).await;
    house.unlock(behind).await;
    if !house.is_sqlite() {
        house.tamper(behind, "DROP FUNCTION refuse_change").await;
    }
    house.tamper(behind, "DELETE FROM schema_version WHERE version = 2").await;
    assert!(matches!(store.reader(behind).await, Err(StoreError::Untrusted(_))));
    let mut connection = store.open_tenant(behind).await.unwrap();
    assert!(store.reader(behind).await.is_ok());
    let versions = connection.fetch("SELECT version FROM schema_version WHERE version = 2", &[]).await.unwrap();
    assert_eq!(versions.len(), 1);
}

async fn readers_read_and_nothing_else(house: &House) {
    let (store, mut connection, books) = house.owner().await;
    commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    let mut reader = store.reader(books.tenant).await.unwrap();
    let rows = reader.fetch("SELECT events FROM books", &[]).await.unwrap();
    assert_eq!(rows[0].int(0).unwrap(), 1);
    let refused = reader.execute("UPDATE books SET events = 2", &[]).await;
    assert!(refused.is_err());
    drop(reader);
    let mut control = store.control_reader().await.unwrap();
    assert!(control.execute("DELETE FROM tenant", &[]).await.is_err());
    drop(control);

    // Without a writer, and through a store that holds no lock.
    connection.close().await;
    let looking = Store::inspect(&house.settings).await.unwrap();
    let mut reader = looking.reader(books.tenant).await.unwrap();
    let report = crate::store::audit::verify(&mut reader, &books.tenant.to_string()).await.unwrap();
    assert_eq!((report.head.seq, report.broken), (2, None));
}

async fn readers_are_bounded_and_given_back(house: &House) {
    let settings = config::Store { readers_max: 2, ..house.settings.clone() };
    let store = Store::open(&settings).await.unwrap();
    store.control().await.unwrap().close().await;
    let tenants = [house.tenant(&store).await, house.tenant(&store).await, house.tenant(&store).await];
    let first = store.reader(tenants[0]).await.unwrap();
    let second = store.reader(tenants[1]).await.unwrap();
    let third = store.reader(tenants[2]).await;
    assert!(matches!(third, Err(StoreError::Retryable(_))), "{third:?}");
    drop(first);
    let mut third = store.reader(tenants[2]).await.unwrap();
    assert!(third.fetch("SELECT 1", &[]).await.is_ok());
    drop((second, third));
    for tenant in tenants.iter().chain(&tenants) {
        let mut reader = store.reader(*tenant).await.unwrap();
        let rows = reader.fetch("SELECT tenant FROM books", &[]).await.unwrap();
        assert_eq!(rows[0].text(0).unwrap(), tenant.to_string());
    }
    store.forget(tenants[0]);
    assert!(store.reader(tenants[0]).await.is_ok());
}

async fn errors_do_not_tell_secrets(house: &House) {
    if house.is_sqlite() {
        return;
    }
    for url in [
        "postgres://someone:hunter2@127.0.0.1:1/x",
        "postgres://someone:hunter2@127.0.0.1:99999/x",
        "postgres://someone:hunter2@127.0.0.1:5432/x?sslmode=hunter2",
    ] {
        let settings = config::Store { url: SecretString::from(url), ..house.settings.clone() };
        let error = match Store::open(&settings).await {
            Ok(store) => {
                assert!(!format!("{store:?}").contains("hunter2"));
                store.control().await.unwrap_err()
            }
            Err(error) => error,
        };
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let house = House::on_sqlite();
    let first = house.store().await;
    let second = Store::open(&house.settings).await;
    assert!(matches!(&second, Err(StoreError::Retryable(text)) if text.contains("another daemon")), "{second:?}");
    drop(first);
    // The first one's sweeper may hold it for a moment.
    let mut opened = Store::open(&house.settings).await;
    for _ in 0..100 {
        if opened.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        opened = Store::open(&house.settings).await;
    }
    opened.unwrap();
}

#[tokio::test]
async fn files_are_for_us_alone() {
    let house = House::on_sqlite();
    let (_store, mut connection, books) = house.owner().await;
    commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
    let data = house.directory.as_ref().unwrap().path().join("data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("tenants"))), (0o700, 0o700));
    let mut files = 0;
    for folder in [data.clone(), data.join("tenants")] {
        for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
            files += 1;
        }
    }
    assert!(files >= 5, "{files}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_not_trusted() {
    let house = House::on_sqlite();
    let (store, connection, books) = house.owner().await;
    connection.close().await;
    let path = house.directory.as_ref().unwrap().path().join(format!("data/tenants/{}.db", books.tenant));
    std::fs::write(&path, vec![b'x'; 8_192]).unwrap();
    let refused = store.open_tenant(books.tenant).await;
    assert!(matches!(refused, Err(StoreError::Untrusted(_))), "{refused:?}");
    std::fs::write(&path, []).unwrap();
    let refused = store.open_tenant(books.tenant).await;
    assert!(matches!(refused, Err(StoreError::Untrusted(_))), "{refused:?}");
}

/// What a restarted server, a cut connection and a lock held by somebody else look like.
#[tokio::test]
async fn faults_of_a_server_are_told_apart() {
    House::on_postgres()
        .run(async |house: &'static House| {
            let (store, mut connection, books) = house.owner().await;
            let mut other = store.open_tenant(books.tenant).await.unwrap();
            other.begin().await.unwrap();
            other.execute("UPDATE books SET version = version", &[]).await.unwrap();
            let waited = commit(&mut connection, &books, &[event("a", "ada", NOW, 10)], NOW).await;
            assert!(matches!(waited, Err(StoreError::Retryable(_))), "{waited:?}");
            other.rollback().await.unwrap();

            connection.begin().await.unwrap();
            let own = connection.fetch("SELECT pg_backend_pid()::BIGINT", &[]).await.unwrap()[0].int(0).unwrap();
            other.fetch("SELECT pg_terminate_backend($1::INT)", &[own.into()]).await.unwrap();
            let cut = connection.commit().await;
            assert!(matches!(cut, Err(StoreError::Unknown(_))), "{cut:?}");
            let mut reopened = store.open_tenant(books.tenant).await.unwrap();
            commit(&mut reopened, &books, &[event("a", "ada", NOW, 10)], NOW).await.unwrap();
        })
        .await;
}
