//! The file that SQLite writes into: still the one at its path, or taken away under us.
//!
//! A file that is renamed, replaced or deleted while it is open takes every write, and loses it for whoever opens the
//! path afterwards. SQLite does not look while it keeps a write-ahead log, so we do, after each commit.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// A file, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// # Errors
    /// [`StoreError::Missing`] when there is no file, [`StoreError::Untrusted`] when it is somewhere else and this is only
    /// a link to it, [`StoreError::Retryable`] when the system does not say.
    pub(super) fn of(path: &Path) -> Result<Place, StoreError> {
        let found = look(path)?;
        if found.is_symlink() {
            return Err(StoreError::Untrusted(format!("{} is a symbolic link", path.display())));
        }
        Ok(Place { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Fails when the path does not lead to the opened file any more: what was written is not where it belongs.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Untrusted`].
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let found = look(&self.path)?;
        if (found.dev(), found.ino()) == (self.device, self.inode) {
            return Ok(());
        }
        Err(StoreError::Untrusted(format!("{} was replaced while it was in use", self.path.display())))
    }
}

fn look(path: &Path) -> Result<Metadata, StoreError> {
    fs::symlink_metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => StoreError::Missing(format!("no file {}", path.display())),
        _ => StoreError::Retryable(format!("cannot use {}: {error}", path.display())),
    })
}
