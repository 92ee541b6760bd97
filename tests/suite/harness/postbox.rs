//! A mail relay on this machine that takes everything and remembers it. Just enough SMTP, in the clear.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Cheap to clone; the listener lives as long as the test's runtime.
#[derive(Debug, Clone)]
pub struct Postbox {
    port: u16,
    mails: Arc<Mutex<Vec<String>>>,
}

impl Postbox {
    pub async fn start() -> Postbox {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of this machine");
        let port = listener.local_addr().expect("it listens").port();
        let mails = Arc::<Mutex<Vec<String>>>::default();
        let kept = mails.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, kept.clone()));
            }
        });
        Postbox { port, mails }
    }

    /// Every mail, with its headers.
    pub fn mails(&self) -> Vec<String> {
        self.mails.lock().unwrap().clone()
    }

    /// A channel of this relay, for the configuration.
    pub fn channel(&self, name: &str) -> String {
        format!(
            "[[notify.channels]]\ntype = \"email\"\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n\
             from = \"platform@example.org\"\nto = [\"on-call@example.com\"]\nallow_private_addresses = true\n",
            self.port
        )
    }
}

async fn serve(stream: TcpStream, kept: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 postbox\r\n").await.ok()?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let answer = match line.get(..4) {
            Some("DATA") => {
                stream.write_all(b"354 go on\r\n").await.ok()?;
                let mut mail = String::new();
                while !mail.ends_with("\r\n.\r\n") {
                    if stream.read_line(&mut mail).await.ok()? == 0 {
                        return None;
                    }
                }
                kept.lock().unwrap().push(mail);
                "250 taken\r\n"
            }
            Some("QUIT") => "221 bye\r\n",
            _ => "250 yes\r\n",
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}
