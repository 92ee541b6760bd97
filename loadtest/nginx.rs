//! The yardstick of the decision endpoint: nginx, with a file of the same size.

use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::sleep;

use crate::link::Link;

/// nginx on a port and in a folder of its own.
pub(crate) struct Nginx {
    pub(crate) address: String,
    child: Child,
}

impl Nginx {
    /// `None` where nginx is not installed.
    pub(crate) async fn start(folder: &Path, body: &[u8]) -> anyhow::Result<Option<Nginx>> {
        let folder = folder.join("nginx");
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("decision.json"), body)?;
        // The workers run as another user, who must be able to look inside.
        for path in [folder.as_path(), folder.parent().unwrap_or(&folder)] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("nginx.conf");
        std::fs::write(&config, configuration(&folder, port))?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(&folder).arg("-c").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("starting nginx"),
        };
        let nginx = Nginx { address: format!("127.0.0.1:{port}"), child };
        for _ in 0..250 {
            if Link::to(&nginx.address).await.is_ok() {
                return Ok(Some(nginx));
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("nginx does not answer: {}", std::fs::read_to_string(folder.join("error.log")).unwrap_or_default())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, so that the master takes its workers along.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// Two workers, as our runtime has on two cores; nothing is logged, the file stays open.
fn configuration(folder: &Path, port: u16) -> String {
    let (folder, mut text) = (folder.display(), String::new());
    let _ = writeln!(text, "daemon off;\nworker_processes 2;\npid {folder}/pid;");
    let _ = writeln!(text, "events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\nsendfile on;");
    let _ = writeln!(text, "keepalive_requests 1000000000;\nopen_file_cache max=10;\ndefault_type application/json;");
    for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "{name}_temp_path {folder}/{name};");
    }
    let _ = writeln!(
        text,
        "server {{ listen 127.0.0.1:{port}; root {folder};\nlocation / {{ try_files /decision.json =404; }} }}\n}}"
    );
    text
}
