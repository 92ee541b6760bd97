//! The platform's pepper: the key without which no stored hash says anything about an API key.
//!
//! It is configured, or made once and kept in a file that only its owner can read. Whoever loses it loses every API
//! key; whoever copies the catalogue without it has none.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::{constant_time, hkdf, hmac};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::clock;
use crate::config;

/// Bytes of a pepper we make, and the fewest we accept.
const PEPPER_BYTES: usize = 32;
/// The most we read of a file that is said to hold one.
const FILE_BYTES_MAX: u64 = 4_096;
/// Beside the tenants' databases.
const FILE_NAME: &str = "key_pepper";
/// Permissions that somebody other than the owner would have.
const OTHERS: u32 = 0o077;

/// Why there is no pepper. None of these texts holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum PepperError {
    #[error("neither auth.key_pepper nor auth.key_pepper_file is set, and the store has no directory to keep one in")]
    Nowhere,
    #[error("{path}: {attempt}: {source}")]
    File { path: PathBuf, attempt: &'static str, source: std::io::Error },
    #[error("{path}: others than its owner can read or write it (mode {mode:o}); make it 0600")]
    Open { path: PathBuf, mode: u32 },
    #[error("{path}: holds {bytes} bytes, which is not a pepper of {PEPPER_BYTES} to {FILE_BYTES_MAX}")]
    Length { path: PathBuf, bytes: usize },
}

/// The pepper. Not printable: its Debug shows nothing of it.
pub struct Pepper {
    hashing: hmac::Key,
    deriving: hkdf::Prk,
}

impl std::fmt::Debug for Pepper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Pepper")
    }
}

impl Pepper {
    /// The configured pepper, or the one in its file, which is made when it does not exist. Blocks on the disk.
    ///
    /// # Errors
    /// [`PepperError`]; a file that others can read is refused.
    pub fn open(auth: &config::Auth, store: &config::Store) -> Result<Pepper, PepperError> {
        if let Some(configured) = &auth.key_pepper {
            return Ok(Pepper::from_bytes(configured.expose_secret().as_bytes()));
        }
        let beside_data =
            || store.url.expose_secret().strip_prefix("sqlite:").map(|path| Path::new(path).join(FILE_NAME));
        let path = auth.key_pepper_file.clone().or_else(beside_data).ok_or(PepperError::Nowhere)?;
        read_or_make(&path)
    }

    /// A pepper of these bytes, all of them as they are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Pepper {
        Pepper {
            hashing: hmac::Key::new(hmac::HMAC_SHA256, bytes),
            deriving: hkdf::Salt::new(hkdf::HKDF_SHA256, b"platform-api/pepper/v1").extract(bytes),
        }
    }

    /// HMAC-SHA-256 of `text`, the form in which an API key is stored.
    #[must_use]
    pub fn hash(&self, text: &str) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(hmac::sign(&self.hashing, text.as_bytes()).as_ref());
        hash
    }

    /// 32 bytes of key for another purpose, as `cursor`. They say nothing about the pepper or other purposes' keys.
    #[must_use]
    #[allow(clippy::expect_used, reason = "32 bytes are below HKDF's limit of 255 hashes")]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let purpose = [purpose.as_bytes()];
        let mut key = [0; 32];
        let derived = self.deriving.expand(&purpose, hkdf::HKDF_SHA256).and_then(|derived| derived.fill(&mut key));
        derived.expect("32 bytes can be derived");
        key
    }
}

/// Are two hashes the same? Takes as long whether and wherever they differ.
pub(super) fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

fn read_or_make(path: &Path) -> Result<Pepper, PepperError> {
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make(path).map_err(|source| PepperError::File { path: path.into(), attempt: "making a pepper", source })?;
            let made = File::open(path);
            read(path, made.map_err(|source| PepperError::File { path: path.into(), attempt: "opening", source })?)
        }
        Err(source) => Err(PepperError::File { path: path.into(), attempt: "opening", source }),
    }
}

fn read(path: &Path, file: File) -> Result<Pepper, PepperError> {
    let failed = |attempt| move |source| PepperError::File { path: path.into(), attempt, source };
    let mode = file.metadata().map_err(failed("looking at its permissions"))?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(PepperError::Open { path: path.into(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed("reading"))?;
    if bytes.len() < PEPPER_BYTES || bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(PepperError::Length { path: path.into(), bytes: bytes.len() });
    }
    Ok(Pepper::from_bytes(&bytes))
}

/// Puts a new pepper at `path`, whole or not at all: written elsewhere, synced, then linked. Another process that was
/// faster keeps its own.
fn make(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let draft = directory.join(format!(".{FILE_NAME}.{}", clock::new_id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let bytes = Zeroizing::new(clock::random_bytes::<PEPPER_BYTES>());
    let written = file.write_all(&*bytes).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(directory)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    fn embedded(directory: &Path) -> config::Store {
        let url = SecretString::from(format!("sqlite:{}", directory.display()));
        config::Store { url, ..config::Store::default() }
    }

    #[test]
    fn a_pepper_is_made_once_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let first = Pepper::open(&config::Auth::default(), &embedded(&data)).unwrap();
        let again = Pepper::open(&config::Auth::default(), &embedded(&data)).unwrap();
        assert_eq!(first.hash("key"), again.hash("key"));
        let other = Pepper::open(&config::Auth::default(), &embedded(&directory.path().join("other"))).unwrap();
        assert_ne!(first.hash("key"), other.hash("key"));

        let path = data.join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "no draft stays behind");
    }

    #[test]
    fn a_pepper_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pepper");
        fs::write(&path, [7; PEPPER_BYTES]).unwrap();
        let auth = config::Auth { key_pepper_file: Some(path.clone()), ..config::Auth::default() };
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = Pepper::open(&auth, &config::Store::default()).unwrap_err();
            assert!(matches!(refused, PepperError::Open { mode: found, .. } if found == mode), "{refused}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(
            Pepper::open(&auth, &config::Store::default()).unwrap().hash("k"),
            Pepper::from_bytes(&[7; 32]).hash("k")
        );
    }

    #[test]
    fn a_pepper_that_is_too_short_or_has_no_place_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pepper");
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        let auth = config::Auth { key_pepper_file: Some(path), ..config::Auth::default() };
        assert!(matches!(Pepper::open(&auth, &config::Store::default()), Err(PepperError::Length { bytes: 0, .. })));

        let postgres = config::Store { url: SecretString::from("postgres://localhost/x"), ..config::Store::default() };
        assert!(matches!(Pepper::open(&config::Auth::default(), &postgres), Err(PepperError::Nowhere)));
    }

    #[test]
    fn a_hash_is_hmac_sha_256_and_purposes_have_keys_of_their_own() {
        // RFC 4231, test case 2.
        let hash = Pepper::from_bytes(b"Jefe").hash("what do ya want for nothing?");
        assert_eq!(hash[..4], [0x5b, 0xdc, 0xc1, 0x46]);
        let pepper = Pepper::from_bytes(&[1; 32]);
        assert_eq!(pepper.derive("cursor"), pepper.derive("cursor"));
        assert_ne!(pepper.derive("cursor"), pepper.derive("other"));
        assert_ne!(pepper.derive("cursor"), pepper.hash("cursor"));
        assert_ne!(pepper.derive("cursor"), Pepper::from_bytes(&[2; 32]).derive("cursor"));
        assert_eq!(format!("{pepper:?}"), "Pepper");
    }
}
