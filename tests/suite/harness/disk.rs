//! A disk whose power can be cut: ext4 on a loop file. What a copy of the file has is what has reached the disk, and
//! nothing else: what the system holds back in its memory is lost with the power. Needs root.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Unmounted when dropped.
pub struct Disk {
    folder: TempDir,
    cuts: usize,
}

impl Disk {
    /// `None`, and a loud word, where nothing may be mounted.
    pub fn insert(mebibytes: u64) -> Option<Disk> {
        let folder = tempfile::Builder::new().prefix("platform-api-suite-disk").tempdir().expect("a temporary folder");
        let disk = Disk { folder, cuts: 0 };
        std::fs::create_dir(disk.path()).expect("a folder of ours");
        let image = std::fs::File::create(disk.image()).expect("a folder of ours");
        image.set_len(mebibytes << 20).expect("room for a sparse file");
        let made = run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &disk.image()]).and_then(|()| disk.mount());
        if let Err(reason) = made {
            // Past the capture of the tests' output: a test that did not happen must be seen.
            let _ = writeln!(std::io::stderr(), "SKIPPED: SKIPPED: SKIPPED: no power was cut: {reason}");
            return None;
        }
        Some(disk)
    }

    /// Where it is mounted; the same before and after a cut.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join(format!("image-{}", self.cuts))
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o".as_ref(), "loop".as_ref(), &self.image(), &self.path()])
    }

    /// Writes everything down: whoever cuts the power after this loses only what comes after this.
    pub fn flush(&self) {
        run("sync", &["-f".as_ref(), &self.path()]).expect("sync is there");
    }

    /// The power goes: what has not reached the disk never will. Call while whoever writes is frozen, then end the
    /// writers and [`Disk::power_on`].
    pub fn power_off(&mut self) {
        let before = self.image();
        self.cuts += 1;
        run("cp", &["--sparse=always".as_ref(), &before, &self.image()]).expect("room for a copy");
    }

    /// Mounts what the disk had when the power went.
    pub fn power_on(&self) {
        // The last file of a dead process may be closed a moment after it was buried.
        let gone = (0..100).any(|_| {
            let unmounted = run("umount", &[&self.path()]).is_ok();
            if !unmounted {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            unmounted
        });
        assert!(gone, "somebody still uses the disk");
        let _ = std::fs::remove_file(self.folder.path().join(format!("image-{}", self.cuts - 1)));
        self.mount().expect("a file system that comes up again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(reason) = run("umount", &["-l".as_ref(), &self.path()]) {
            eprintln!("{} stays mounted: {reason}", self.path().display());
        }
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", said.trim())) }
}
