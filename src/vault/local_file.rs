//! The KEK in a file that only its owner can read.
//!
//! The file is made when it is needed for the first time, and read again when a key is asked for that is not known: another
//! node, or the operator, has added one. To rotate, append a line and ask for the job `vault.rewrap`; a key may be taken out
//! of the file once that job has succeeded.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::ring::Ring;
use super::{DataKey, KekError, KeyEncryption, Wrapped};
use crate::clock;

/// The most we read of a file that is said to hold keys.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Permissions that somebody other than the owner would have.
const OTHERS: u32 = 0o077;

pub(super) struct LocalFile {
    path: PathBuf,
    ring: RwLock<Option<Arc<Ring>>>,
}

impl LocalFile {
    /// A file that does not exist yet is made when there is something to wrap.
    ///
    /// # Errors
    /// When it exists and cannot be used.
    pub(super) fn open(path: PathBuf) -> Result<LocalFile, String> {
        let ring = read(&path)?.map(Arc::new);
        Ok(LocalFile { path, ring: RwLock::new(ring) })
    }

    fn held(&self) -> Option<Arc<Ring>> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file anew; makes it when it is not there and may be made. It is small, and read seldom. One that was there
    /// is never made anew: what its keys have wrapped could be read by nobody any more once this process has ended.
    fn look(&self, make_it: bool) -> Result<Arc<Ring>, KekError> {
        let found = match read(&self.path) {
            Ok(None) if make_it && self.held().is_none() => make(&self.path)
                .map_err(|error| format!("{}: making a key: {error}", self.path.display()))
                .and_then(|()| read(&self.path)),
            found => found,
        };
        let Some(ring) = found.map_err(KekError::Unavailable)?.map(Arc::new) else {
            return Err(KekError::Unavailable(format!("{} is not there", self.path.display())));
        };
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Some(ring.clone());
        Ok(ring)
    }
}

impl KeyEncryption for LocalFile {
    fn current(&self) -> BoxFuture<'_, Result<String, KekError>> {
        // What wraps now is what the file says now.
        std::future::ready(self.look(true).map(|ring| ring.newest().to_owned())).boxed()
    }

    /// A file that is not there yet is made when it is needed; one that was there is missed.
    fn check(&self) -> BoxFuture<'_, Result<(), KekError>> {
        let was_there = self.held().is_some();
        let found = read(&self.path).map_err(KekError::Unavailable).and_then(|ring| match ring {
            None if was_there => Err(KekError::Unavailable(format!("{} is not there any more", self.path.display()))),
            _ => Ok(()),
        });
        std::future::ready(found).boxed()
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a [u8]) -> BoxFuture<'a, Result<Wrapped, KekError>> {
        std::future::ready(self.look(true).and_then(|ring| ring.wrap(key, context))).boxed()
    }

    fn unwrap<'a>(&'a self, wrapped: &'a Wrapped, context: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KekError>> {
        let unwrapped = match self.held().map(|ring| ring.unwrap(wrapped, context)) {
            Some(Err(KekError::UnknownKey(_))) | None => {
                self.look(false).and_then(|ring| ring.unwrap(wrapped, context))
            }
            Some(told) => told,
        };
        std::future::ready(unwrapped).boxed()
    }
}

/// The keys in the file; `None` when there is no file.
fn read(path: &Path) -> Result<Option<Ring>, String> {
    let at = |what: &str| format!("{}: {what}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&error.to_string())),
    };
    let mode = file.metadata().map_err(|error| at(&error.to_string()))?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(at(&format!("others than its owner can read or write it (mode {mode:o}); make it 0600")));
    }
    // As long as it may be from the beginning, so that no copy of it is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| at(&error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(at("is too long to be a file of keys"));
    }
    Ring::read(&text).map(Some).map_err(|problem| at(&problem))
}

/// Puts a new key at `path`, whole or not at all: written elsewhere, synced, then linked. Another process that was faster
/// keeps its own.
fn make(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".kek.{}", clock::new_id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let key = Ring::new_key();
    let written =
        file.write_all(key.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(folder)?.sync_all(),
    }
}
