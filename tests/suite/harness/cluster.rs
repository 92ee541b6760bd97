//! A Postgres server of a test's own, that writes through to its disk as one in production does, or pretends to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::{eventually, services};

pub struct Cluster {
    data: PathBuf,
    port: u16,
    fsync: bool,
    child: Option<Child>,
}

impl Cluster {
    /// Makes a cluster in a folder, which is there, and starts its server.
    pub async fn make(folder: &Path, fsync: bool) -> Cluster {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        for above in folder.ancestors().skip(1).take(1) {
            std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        }
        let data = folder.join("postgres");
        std::fs::create_dir(&data).expect("a folder of ours");
        let mut cluster = Cluster { data, port: services::free_port(), fsync, child: None };
        if let [_, user, ..] = &cluster.user()[..] {
            let user = user.trim_start_matches("--reuid=");
            let given = Command::new("chown").arg(user).arg(&cluster.data).status().expect("chown is there");
            assert!(given.success(), "chown");
        }
        let made = cluster
            .program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(cluster.folder())
            .output()
            .expect("initdb is there");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        cluster.start().await;
        cluster
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub async fn start(&mut self) {
        let fsync = format!("fsync={}", if self.fsync { "on" } else { "off" });
        let port = self.port.to_string();
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.folder()).args(["-p", &port, "-c", &fsync, "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "max_connections=60"]);
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually("Postgres to answer", || async { PgConnection::connect(&self.url()).await.ok().map(drop) }).await;
    }

    /// Writes everything down.
    pub async fn checkpoint(&self) {
        let mut connection = PgConnection::connect(&self.url()).await.expect("it runs");
        sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.expect("we are its administrator");
    }

    /// An immediate shutdown, as a crash is: nothing is written down, and no process is left.
    pub fn crash(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
        let _ = child.wait();
    }

    fn folder(&self) -> PathBuf {
        self.data.join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .expect("Postgres is installed")
            .map(|entry| entry.expect("a readable folder").path())
            .collect();
        versions.sort();
        let path = versions.pop().expect("a version of Postgres").join("bin").join(name);
        let mut words = self.user().into_iter().map(PathBuf::from).chain([path]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&self.data);
        command
    }

    /// Postgres refuses to run as root, and mounting needs it: the words that make a program somebody else's.
    fn user(&self) -> Vec<String> {
        let known = Command::new("getent").args(["passwd", "postgres"]).output();
        let user = if known.is_ok_and(|known| known.status.success()) { "postgres" } else { "nobody" };
        let group = Command::new("id").args(["-g", user]).output().expect("id is there").stdout;
        let group = format!("--regid={}", String::from_utf8_lossy(&group).trim());
        ["setpriv".into(), format!("--reuid={user}"), group, "--clear-groups".into()].into()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.crash();
    }
}
