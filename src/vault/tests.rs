//! One suite over every keeper of the KEK, and what the vault makes of it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;
use uuid::Uuid;

use super::transit_peer::{TOKEN, TransitPeer};
use super::*;
use crate::domain::ids::{ProviderId, SecretId};

const NOW: Timestamp = Timestamp(1_795_189_032_000_000);
const CANARY: &str = "sk-canary-0123456789abcdef";

/// A keeper under test: how it is opened again, and how its key is rotated.
enum Keeper {
    File(TempDir),
    Environment(std::sync::Mutex<String>),
    Transit(TransitPeer),
}

impl Keeper {
    async fn all() -> Vec<Keeper> {
        let key = ring::Ring::new_key().trim().to_owned();
        vec![
            Keeper::File(TempDir::new().unwrap()),
            Keeper::Environment(std::sync::Mutex::new(key)),
            Keeper::Transit(TransitPeer::start().await),
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Keeper::File(_) => "file",
            Keeper::Environment(_) => "environment",
            Keeper::Transit(_) => "transit",
        }
    }

    fn settings(&self) -> config::Vault {
        let defaults = config::Vault::default();
        match self {
            Keeper::File(folder) => config::Vault { kek_file: Some(folder.path().join("kek")), ..defaults },
            Keeper::Environment(keys) => {
                let keys = Some(SecretString::from(keys.lock().unwrap().clone()));
                config::Vault { kek: KekKind::Environment, keys, ..defaults }
            }
            Keeper::Transit(peer) => config::Vault {
                kek: KekKind::Transit,
                transit_url: Some(peer.url.clone()),
                transit_token: Some(SecretString::from(TOKEN)),
                ..defaults
            },
        }
    }

    /// As another process would open it.
    fn open(&self) -> Box<dyn KeyEncryption> {
        let settings = self.settings();
        match settings.kek {
            KekKind::File => Box::new(local_file::LocalFile::open(settings.kek_file.unwrap()).unwrap()),
            KekKind::Environment => Box::new(environment::Environment::open(&settings).unwrap()),
            KekKind::Transit => Box::new(transit::Transit::open(&settings).unwrap()),
            KekKind::Off => unreachable!("nobody keeps nothing"),
        }
    }

    fn vault(&self) -> Vault {
        Vault::open(&self.settings(), &config::Store::default(), [7; 32]).unwrap().unwrap()
    }

    fn rotate(&self) {
        match self {
            Keeper::File(folder) => append(&folder.path().join("kek"), &ring::Ring::new_key()),
            Keeper::Environment(keys) => keys.lock().unwrap().push_str(&format!(",{}", ring::Ring::new_key().trim())),
            Keeper::Transit(peer) => peer.rotate(),
        }
    }
}

fn append(path: &Path, line: &str) {
    let mut text = fs::read_to_string(path).unwrap();
    text.push_str(line);
    fs::write(path, text).unwrap();
}

fn binding(number: u128) -> Binding {
    let id = Uuid::from_u128(number);
    Binding { tenant: TenantId(id), provider: ProviderId(id), secret: SecretId(id), version: 1 }
}

fn canary() -> SecretString {
    SecretString::from(CANARY)
}

#[tokio::test]
async fn a_keeper_unwraps_what_it_has_wrapped_for_the_same_place_alone() {
    for keeper in Keeper::all().await {
        let (name, kek) = (keeper.name(), keeper.open());
        let key = DataKey::random();
        let wrapped = kek.wrap(&key, b"here").await.unwrap();
        assert_eq!(wrapped.kek, kek.current().await.unwrap(), "{name}");
        assert!(!wrapped.bytes.windows(KEY_BYTES).any(|part| part == key.bytes()), "{name}");
        assert_ne!(wrapped, kek.wrap(&key, b"here").await.unwrap(), "{name}: a new nonce each time");
        // Another process finds the same key.
        for kek in [&kek, &keeper.open()] {
            assert_eq!(kek.unwrap(&wrapped, b"here").await.unwrap().bytes(), key.bytes(), "{name}");
            assert_eq!(kek.unwrap(&wrapped, b"there").await.unwrap_err(), KekError::Refused, "{name}");
            let mut changed = wrapped.clone();
            let last = changed.bytes.len() - 3;
            changed.bytes[last] ^= 1;
            assert_eq!(kek.unwrap(&changed, b"here").await.unwrap_err(), KekError::Refused, "{name}");
            let cut = Wrapped { bytes: wrapped.bytes[..9].to_vec(), ..wrapped.clone() };
            assert_eq!(kek.unwrap(&cut, b"here").await.unwrap_err(), KekError::Refused, "{name}");
            let stranger = Wrapped { kek: "local:0000000000000000".into(), ..wrapped.clone() };
            let refused = kek.unwrap(&stranger, b"here").await.unwrap_err();
            assert_eq!(refused, KekError::UnknownKey("local:0000000000000000".into()), "{name}");
        }
        assert_eq!(format!("{key:?}"), "DataKey");
    }
}

#[tokio::test]
async fn after_a_rotation_the_new_key_wraps_and_the_old_one_still_unwraps() {
    for keeper in Keeper::all().await {
        let name = keeper.name();
        let before = keeper.open();
        let key = DataKey::random();
        let wrapped = before.wrap(&key, b"here").await.unwrap();
        keeper.rotate();
        let after = keeper.open();
        let current = after.current().await.unwrap();
        assert_ne!(current, wrapped.kek, "{name}");
        assert_eq!(after.wrap(&key, b"here").await.unwrap().kek, current, "{name}");
        assert_eq!(after.unwrap(&wrapped, b"here").await.unwrap().bytes(), key.bytes(), "{name}");
        // What one key has wrapped is not another key's.
        let moved = Wrapped { kek: current, ..wrapped.clone() };
        assert_eq!(after.unwrap(&moved, b"here").await.unwrap_err(), KekError::Refused, "{name}");
    }
}

#[tokio::test]
async fn a_running_process_learns_of_a_key_that_was_added_to_the_file() {
    let keeper = Keeper::File(TempDir::new().unwrap());
    let (here, there) = (keeper.open(), keeper.open());
    here.wrap(&DataKey::random(), b"x").await.unwrap();
    there.current().await.unwrap();
    keeper.rotate();
    let wrapped = here.wrap(&DataKey::random(), b"x").await.unwrap();
    assert!(there.unwrap(&wrapped, b"x").await.is_ok());
}

#[tokio::test]
async fn a_file_is_made_once_for_its_owner_alone_and_only_when_it_is_needed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("deep/kek");
    let file = local_file::LocalFile::open(path.clone()).unwrap();
    assert!(!path.exists());
    // What was wrapped by a key that is lost does not make another one.
    let lost = Wrapped { kek: "local:0".into(), bytes: vec![1] };
    assert!(matches!(file.unwrap(&lost, b"").await, Err(KekError::Unavailable(_))));
    assert!(!path.exists());
    assert_eq!(file.check().await, Ok(()));
    assert!(!path.exists(), "looking changes nothing");
    let name = file.current().await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft stays behind");
    assert_eq!(local_file::LocalFile::open(path.clone()).unwrap().current().await.unwrap(), name);
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(local_file::LocalFile::open(path.clone()).err().unwrap().contains("0600"));
        assert!(matches!(file.check().await, Err(KekError::Unavailable(_))));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(local_file::LocalFile::open(path.clone()).is_ok());
    assert_eq!(file.check().await, Ok(()));
    fs::remove_file(path).unwrap();
    assert!(matches!(file.check().await, Err(KekError::Unavailable(_))), "one that was there is missed");
}

#[tokio::test]
async fn a_file_that_was_there_is_not_made_anew_and_its_keys_are_kept_in_mind() {
    let folder = TempDir::new().unwrap();
    let (path, elsewhere) = (folder.path().join("kek"), folder.path().join("elsewhere"));
    let file = local_file::LocalFile::open(path.clone()).unwrap();
    let key = DataKey::random();
    let wrapped = file.wrap(&key, b"x").await.unwrap();
    fs::rename(&path, &elsewhere).unwrap();
    assert!(matches!(file.wrap(&key, b"x").await, Err(KekError::Unavailable(_))));
    assert!(matches!(file.current().await, Err(KekError::Unavailable(_))));
    let strange = Wrapped { kek: "local:0".into(), bytes: vec![1] };
    assert!(matches!(file.unwrap(&strange, b"x").await, Err(KekError::Unavailable(_))));
    assert!(!path.exists());
    assert_eq!(file.unwrap(&wrapped, b"x").await.unwrap().bytes(), key.bytes(), "what is held goes on unwrapping");
    fs::rename(&elsewhere, &path).unwrap();
    assert_eq!(file.current().await.unwrap(), wrapped.kek);
}

#[test]
fn what_is_no_key_is_named_by_its_number_and_not_shown() {
    let good = ring::Ring::new_key();
    for text in ["", "# only a remark\n", "canary", &format!("{}canary", *good), "Y2FuYXJ5"] {
        let problem = ring::Ring::read(text).err().unwrap();
        assert!(!problem.contains("canary"), "{problem}");
    }
    let two = format!("# first\n{}# second\n{}", *good, *ring::Ring::new_key());
    assert!(ring::Ring::read(&two).is_ok());
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_told_apart_from_one_that_refuses() {
    let peer = TransitPeer::start().await;
    let keeper = Keeper::Transit(peer.clone());
    let kek = keeper.open();
    let wrapped = kek.wrap(&DataKey::random(), b"here").await.unwrap();
    let away = |error: KekError| {
        assert!(matches!(&error, KekError::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("canary"), "{error}");
    };
    peer.seal(true);
    away(kek.unwrap(&wrapped, b"here").await.unwrap_err());
    away(kek.check().await.unwrap_err());
    peer.seal(false);
    assert_eq!(kek.check().await, Ok(()));
    let wrong = config::Vault { transit_token: Some(SecretString::from("s.canary")), ..keeper.settings() };
    away(transit::Transit::open(&wrong).unwrap().unwrap(&wrapped, b"here").await.unwrap_err());
    let nowhere = config::Vault { transit_url: Some("http://127.0.0.1:1".into()), ..keeper.settings() };
    away(transit::Transit::open(&nowhere).unwrap().current().await.unwrap_err());
    let missing = config::Vault { transit_key: "other".into(), ..keeper.settings() };
    away(transit::Transit::open(&missing).unwrap().current().await.unwrap_err());
    peer.rotate();
    peer.give_up_below(2);
    assert!(matches!(kek.unwrap(&wrapped, b"here").await, Err(KekError::UnknownKey(_))));

    // A token file is read each time.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("token");
    let from_file = config::Vault { transit_token: None, transit_token_file: Some(file.clone()), ..keeper.settings() };
    let kek = transit::Transit::open(&from_file).unwrap();
    away(kek.current().await.unwrap_err());
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    assert!(kek.current().await.is_ok());
}

/// Of each part of a binding, another one.
fn elsewhere(place: &Binding) -> Vec<Binding> {
    let other = Uuid::from_u128(99);
    vec![
        Binding { tenant: TenantId(other), ..*place },
        Binding { provider: ProviderId(other), ..*place },
        Binding { secret: SecretId(other), ..*place },
        Binding { version: place.version + 1, ..*place },
    ]
}

#[tokio::test]
async fn a_ciphertext_is_read_where_it_belongs_and_nowhere_else() {
    for keeper in Keeper::all().await {
        let (name, vault, place) = (keeper.name(), keeper.vault(), binding(1));
        let first = vault.new_data_key(place.tenant, 1, NOW).await.unwrap();
        let second = vault.new_data_key(place.tenant, 2, NOW).await.unwrap();
        let keys = [first.clone(), second];
        let sealed = vault.seal(&first, &place, &canary()).await.unwrap();
        assert!(!format!("{sealed:?}").contains("canary") && sealed.ciphertext.len() == CANARY.len() + 16, "{name}");
        // Also by a vault that has unwrapped nothing yet.
        for vault in [&vault, &keeper.vault()] {
            assert_eq!(vault.unseal(&keys, &place, &sealed).await.unwrap().expose_secret(), CANARY, "{name}");
            for moved in elsewhere(&place).iter().skip(1) {
                let refused = vault.unseal(&keys, moved, &sealed).await.unwrap_err();
                assert_eq!(refused, VaultError::Refused, "{name}: {moved:?}");
            }
            // Another tenant's data key does not even unwrap there.
            let stranger = &elsewhere(&place)[0];
            let refused = vault.unseal(&keys, stranger, &sealed).await.unwrap_err();
            assert_eq!(refused, VaultError::Kek(KekError::Refused), "{name}");
            let theirs = [vault.new_data_key(stranger.tenant, 1, NOW).await.unwrap()];
            assert_eq!(vault.unseal(&theirs, stranger, &sealed).await.unwrap_err(), VaultError::Refused, "{name}");
            let swapped = Sealed { data_key: 2, ..sealed.clone() };
            assert_eq!(vault.unseal(&keys, &place, &swapped).await.unwrap_err(), VaultError::Refused, "{name}");
            assert_eq!(vault.unseal(&keys[1..], &place, &sealed).await.unwrap_err(), VaultError::NoDataKey, "{name}");
        }
        // A data key that is said to be of another version does not unwrap.
        let renamed = [WrappedKey { version: 2, ..first }];
        let moved = Sealed { data_key: 2, ..sealed.clone() };
        let refused = vault.unseal(&renamed, &place, &moved).await.unwrap_err();
        assert_eq!(refused, VaultError::Kek(KekError::Refused), "{name}");
    }
}

#[tokio::test]
async fn a_data_key_is_wrapped_anew_without_its_secrets_noticing() {
    for keeper in Keeper::all().await {
        let (name, vault, place) = (keeper.name(), keeper.vault(), binding(1));
        let key = vault.new_data_key(place.tenant, 1, NOW).await.unwrap();
        let sealed = vault.seal(&key, &place, &canary()).await.unwrap();
        assert_eq!(vault.rewrap(place.tenant, &key).await.unwrap(), None, "{name}: it is the key of now");
        keeper.rotate();
        let vault = keeper.vault();
        let rewrapped = vault.rewrap(place.tenant, &key).await.unwrap().unwrap();
        assert_ne!((&rewrapped.kek, &rewrapped.wrapped), (&key.kek, &key.wrapped), "{name}");
        assert_eq!((rewrapped.version, rewrapped.created_at), (key.version, key.created_at), "{name}");
        for keys in [[key], [rewrapped.clone()]] {
            assert_eq!(vault.unseal(&keys, &place, &sealed).await.unwrap().expose_secret(), CANARY, "{name}");
        }
        assert_eq!(vault.rewrap(place.tenant, &rewrapped).await.unwrap(), None, "{name}");
        assert_eq!(format!("{vault:?}"), "Vault");
    }
}

#[test]
fn without_a_place_for_a_key_there_is_no_vault() {
    let url = SecretString::from("postgres://localhost/x");
    let postgres = config::Store { url, ..config::Store::default() };
    assert!(Vault::open(&config::Vault::default(), &postgres, [0; 32]).unwrap().is_none());
    let off = config::Vault { kek: KekKind::Off, ..config::Vault::default() };
    assert!(Vault::open(&off, &config::Store::default(), [0; 32]).unwrap().is_none());
    let environment = config::Vault { kek: KekKind::Environment, ..config::Vault::default() };
    assert!(Vault::open(&environment, &postgres, [0; 32]).is_err());
}
