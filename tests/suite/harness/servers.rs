//! Servers of a test's own, on private ports in temporary folders: to be killed, frozen, emptied and starved.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{eventually, process, services};

/// Where NATS keeps its streams, below the server's folder, and a copy of them.
const STORE: &str = "store";
const COPY: &str = "copy";

/// A server program, and what it takes to start it again as it was.
#[derive(Debug)]
pub struct Server {
    pub port: u16,
    command: Vec<String>,
    child: Option<Child>,
    pub folder: TempDir,
}

impl Server {
    pub async fn redis() -> Server {
        Server::redis_with(&[]).await
    }

    /// One that is started with more words.
    pub async fn redis_with(more: &[&str]) -> Server {
        let (port, folder) = (services::free_port(), folder());
        let binary = services::binary("TEST_REDIS_SERVER_BIN", "redis-server");
        let port_word = port.to_string();
        let at = folder.path().to_str().expect("a plain path").to_owned();
        let command = [&binary, "--bind", "127.0.0.1", "--port", &port_word, "--dir", &at, "--save", ""];
        Server::started(port, &[&command[..], more].concat(), folder).await
    }

    pub async fn nats() -> Server {
        Server::nats_with(&[]).await
    }

    /// One that is started with more words.
    pub async fn nats_with(more: &[&str]) -> Server {
        let (port, folder) = (services::free_port(), folder());
        let binary = services::binary("TEST_NATS_SERVER_BIN", "nats-server");
        let port_word = port.to_string();
        let store = folder.path().join(STORE);
        let store = store.to_str().expect("a plain path");
        let command = [&binary, "--addr", "127.0.0.1", "--port", &port_word, "--jetstream", "--store_dir", store];
        Server::started(port, &[&command[..], more].concat(), folder).await
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    async fn started(port: u16, command: &[&str], folder: TempDir) -> Server {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let mut server = Server { port, command, child: None, folder };
        server.start().await;
        server
    }

    /// Starts it, and waits until it listens.
    pub async fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.spawn();
        eventually("the server to listen", || async {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok().map(drop)
        })
        .await;
    }

    fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.expect("a folder of ours");
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).current_dir(self.folder.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.command[0])));
    }

    fn process(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("the server runs")
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.take().expect("the server runs").kill().await.expect("a process of ours");
    }

    /// Copies what a server of NATS keeps, while it does not run.
    pub fn back_up(&self) {
        let folder = self.folder.path();
        let _ = std::fs::remove_dir_all(folder.join(COPY));
        let copied = std::process::Command::new("cp").args(["-a", STORE, COPY]).current_dir(folder).status();
        assert!(copied.expect("cp is there").success());
    }

    /// Puts the copy in the place of what was kept since.
    pub fn restore(&self) {
        let folder = self.folder.path();
        std::fs::remove_dir_all(folder.join(STORE)).expect("a folder of ours");
        std::fs::rename(folder.join(COPY), folder.join(STORE)).expect("a copy was made");
    }

    /// SIGSTOP: connections stay, and nothing answers.
    pub async fn freeze(&self) {
        process::signal(self.process(), "STOP").await;
    }

    pub async fn thaw(&self) {
        process::signal(self.process(), "CONT").await;
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("platform-api-suite").tempdir().expect("a temporary folder")
}

/// A Postgres cluster, with checksums. Processes are killed here, machines are not: nothing needs to reach the disk.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    pub data: PathBuf,
}

impl Postgres {
    pub async fn start() -> Postgres {
        let (port, folder) = (services::free_port(), folder());
        let data = folder.path().join("data");
        let binaries = binaries();
        let data_word = data.to_str().expect("a plain path");
        let owner = owner(folder.path()).await;
        let initdb = format!("{binaries}/initdb");
        let init = [&initdb, "--pgdata", data_word, "--username=postgres", "--auth=trust", "--locale=C"];
        let init = words(&owner, &init, &["--encoding=UTF8", "--data-checksums", "--no-sync"]);
        let made = Command::new(&init[0]).args(&init[1..]).current_dir(folder.path()).output().await.expect("initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (postgres, port_word) = (format!("{binaries}/postgres"), port.to_string());
        let serve = [&postgres, "-D", data_word, "-p", &port_word, "-c", "listen_addresses=127.0.0.1"];
        let settings = ["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=60"];
        let server = Server { port, command: words(&owner, &serve, &settings), child: None, folder };
        let mut postgres = Postgres { server, data };
        postgres.restart().await;
        postgres
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    pub fn url(&self) -> String {
        Postgres::url_at(self.server.port)
    }

    /// The administrator's URL when the server, or a proxy before it, is at this port.
    pub fn url_at(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    /// Lets the server write into a folder.
    pub async fn give_to_server(&self, folder: &Path) {
        owner(folder).await;
    }

    /// SIGKILL to the postmaster; its children notice by themselves.
    pub async fn kill(&mut self) {
        self.server.kill().await;
    }

    /// A fast, clean end: what is in memory is on disk.
    pub async fn stop(&mut self) {
        process::signal(self.server.process(), "INT").await;
        self.server.child.take().expect("the server runs").wait().await.expect("a child of ours");
    }

    /// Starts it, again and again if children of the killed one still hold its memory, until it answers.
    pub async fn restart(&mut self) {
        eventually("Postgres to answer", || {
            let ended = self.server.child.as_mut().is_none_or(|child| child.try_wait().expect("ours").is_some());
            if ended {
                self.server.spawn();
            }
            let url = self.url();
            async move { PgConnection::connect(&url).await.ok().map(drop) }
        })
        .await;
    }
}

impl Drop for Postgres {
    /// An immediate shutdown, so that no child is left; the folder goes afterwards.
    fn drop(&mut self) {
        if let Some(mut child) = self.server.child.take() {
            let id = child.id().map(|id| id.to_string()).unwrap_or_default();
            let _ = std::process::Command::new("kill").args(["-QUIT", &id]).status();
            for _ in 0..100 {
                if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

fn binaries() -> String {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("Postgres is installed: tests/run installs it")
        .map(|entry| entry.expect("a readable folder").path().join("bin"))
        .collect();
    versions.sort();
    versions.pop().and_then(|path| path.to_str().map(str::to_owned)).expect("a version of Postgres")
}

/// Postgres refuses to run as root: the words that start a program as somebody else, who is given the folder.
async fn owner(folder: &Path) -> Vec<String> {
    let id = Command::new("id").arg("-u").output().await.expect("id is there").stdout;
    if id != b"0\n" {
        return Vec::new();
    }
    let known = Command::new("getent").args(["passwd", "postgres"]).output().await;
    let user = if known.is_ok_and(|known| known.status.success()) { "postgres" } else { "nobody" };
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("a folder of ours");
    let given = Command::new("chown").args([user, folder.to_str().expect("a plain path")]).status().await;
    assert!(given.expect("chown is there").success());
    let group = Command::new("id").args(["-g", user]).output().await.expect("id is there").stdout;
    let group = String::from_utf8_lossy(&group).trim().to_owned();
    ["setpriv".into(), format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()].into()
}

fn words(owner: &[String], command: &[&str], more: &[&str]) -> Vec<String> {
    owner
        .iter()
        .map(String::as_str)
        .chain(command.iter().copied())
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect()
}
