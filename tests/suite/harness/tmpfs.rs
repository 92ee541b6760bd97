//! A file system of a few megabytes that can be filled up. Needs root.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// `None`, and a loud word, where nothing may be mounted.
    pub fn mount(mebibytes: usize) -> Option<Tmpfs> {
        let folder = tempfile::Builder::new().prefix("platform-api-suite-tmpfs").tempdir().expect("a temporary folder");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if !mounted.as_ref().is_ok_and(|mounted| mounted.status.success()) {
            println!("SKIPPED: SKIPPED: SKIPPED: no disk was filled: mounting a tmpfs needs root: {mounted:?}");
            return None;
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        Some(Tmpfs { folder })
    }

    /// A folder inside.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).expect("a file system of ours");
        path
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }

    /// Takes the last byte.
    pub fn fill(&self) {
        let mut ballast =
            File::options().create(true).append(true).open(self.ballast()).expect("a file system of ours");
        for size in [1 << 20, 1 << 12, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
        if !unmounted.is_ok_and(|unmounted| unmounted.success()) {
            eprintln!("{} stays mounted", self.folder.path().display());
        }
    }
}
