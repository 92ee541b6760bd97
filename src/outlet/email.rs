//! E-mail over SMTP (RFC 5321), by way of a relay that the operator names. Its address is judged as a webhook's is, each time
//! it is connected to, and its certificate by the system's authorities or those of `ca_file`.
//!
//! `Message-ID` is the delivery's id, so a mailbox that gets a repetition can tell; that an alert is over is a reply to the
//! message that told of it. Without TLS nothing is sent unless the configuration says so, and credentials never are.

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters, TlsParametersBuilder};
use lettre::transport::smtp::{self, AsyncSmtpTransport};
use lettre::{AsyncTransport, Message, Tokio1Executor};
use secrecy::{ExposeSecret, SecretString};

use super::egress::{self, Failure};
use super::parcel::{Parcel, facts, summary};
use crate::config::EmailTls;
use crate::domain::notice::{Delivery, Event};

/// How long one step of the conversation may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the whole conversation may take. A relay may check the sender before it answers.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const PEM_END: &str = "-----END CERTIFICATE-----";
/// Most recipients of one channel; more is a mailing list's work.
const RECIPIENTS_MAX: usize = 20;
/// Replies that speak of our credentials or of TLS, which a person may mend: the message itself may still be taken.
const ACCESS_REPLIES: [&str; 4] = ["530", "534", "535", "538"];

/// Recipients behind one relay.
pub(super) struct Email {
    host: String,
    port: u16,
    tls: Tls,
    credentials: Option<Credentials>,
    allow_private: bool,
    from: Mailbox,
    to: Vec<Mailbox>,
    public_url: Option<String>,
}

/// How the relay is reached.
#[derive(Clone, Copy)]
pub(super) struct Relay<'a> {
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
    pub(super) tls: EmailTls,
    pub(super) ca_file: Option<&'a Path>,
    pub(super) allow_private: bool,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a SecretString>,
}

/// What is wrong with a configured channel, as `<key>: <problem>`.
pub(super) fn problem(relay: &Relay<'_>, from: &str, to: &[String]) -> Option<String> {
    if relay.host.is_empty() {
        return Some("host: must not be empty".into());
    }
    if let Some(problem) = egress::host_problem(&named(relay.host), relay.allow_private) {
        return Some(format!("host: {problem}"));
    }
    if let Err(problem) = authorities(relay.ca_file) {
        return Some(format!("ca_file: {problem}"));
    }
    if relay.user.is_some() != relay.password.is_some() {
        return Some("password: must be given together with user".into());
    }
    if relay.user.is_some() && relay.tls == EmailTls::None {
        return Some("tls: must not be none when there is a password to protect".into());
    }
    if from.parse::<Mailbox>().is_err() {
        return Some("from: not an address, such as platform@example.com".into());
    }
    if to.is_empty() || to.len() > RECIPIENTS_MAX {
        return Some(format!("to: must be 1 to {RECIPIENTS_MAX} addresses"));
    }
    to.iter()
        .any(|one| one.parse::<Mailbox>().is_err())
        .then(|| "to: not an address, such as on-call@example.com".into())
}

/// The host as a URL's parser has it, which knows every spelling of an address.
fn named(host: &str) -> String {
    let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
    let parsed = reqwest::Url::parse(&format!("https://{host}/")).ok();
    parsed.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// The certificates of a file.
fn authorities(file: Option<&Path>) -> Result<Vec<Certificate>, String> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let pem = std::fs::read(file).map_err(|error| format!("cannot be read: {}", error.kind()))?;
    // The parser takes one certificate at a time.
    let text = String::from_utf8(pem).map_err(|_| "not a PEM file")?;
    let one = |part: &str| Certificate::from_pem(format!("{part}{PEM_END}\n").as_bytes());
    let parts = text.split(PEM_END).filter(|part| part.contains("-----BEGIN CERTIFICATE-----"));
    let found: Vec<Certificate> = parts.map(one).collect::<Result<_, _>>().map_err(|_| "not a PEM file")?;
    if found.is_empty() { Err("holds no certificate".into()) } else { Ok(found) }
}

impl Email {
    pub(super) fn open(
        relay: &Relay<'_>,
        from: &str,
        to: &[String],
        public_url: Option<String>,
    ) -> Result<Email, String> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|_| "not an address".to_owned());
        let trusted = authorities(relay.ca_file)?;
        let verified = || {
            let builder = TlsParameters::builder(relay.host.to_owned());
            let builder = trusted.iter().cloned().fold(builder, TlsParametersBuilder::add_root_certificate);
            builder.build().map_err(|_| "not a name for a certificate".to_owned())
        };
        let (tls, default_port) = match relay.tls {
            EmailTls::Starttls => (Tls::Required(verified()?), smtp::SUBMISSION_PORT),
            EmailTls::Implicit => (Tls::Wrapper(verified()?), smtp::SUBMISSIONS_PORT),
            EmailTls::None => (Tls::None, smtp::SMTP_PORT),
        };
        let credentials = relay.user.zip(relay.password);
        Ok(Email {
            host: relay.host.to_owned(),
            port: relay.port.unwrap_or(default_port),
            tls,
            credentials: credentials
                .map(|(user, password)| Credentials::new(user.to_owned(), password.expose_secret().to_owned())),
            allow_private: relay.allow_private,
            from: mailbox(from)?,
            to: to.iter().map(|one| mailbox(one)).collect::<Result<_, _>>()?,
            public_url,
        })
    }

    pub(super) async fn send(&self, parcel: &Parcel) -> Result<(), Failure> {
        let message = self.message(parcel).ok_or_else(|| Failure::passing("the message has no form as a mail"))?;
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.hand_over(message)).await;
        sent.unwrap_or_else(|_| Err(Failure::passing("timed out")))
    }

    /// To the first address that answers: the address that was judged is the one that is connected to.
    async fn hand_over(&self, message: Message) -> Result<(), Failure> {
        let addresses = egress::addresses(&self.host, self.port, self.allow_private).await;
        let addresses = addresses.map_err(|_| Failure::passing("the relay's name cannot be resolved"))?;
        let mut last = Failure::passing("the address is not a public one");
        for address in addresses {
            let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.ip().to_string())
                .port(self.port)
                .timeout(Some(STEP_TIMEOUT))
                .tls(self.tls.clone());
            if let Some(credentials) = &self.credentials {
                builder = builder.credentials(credentials.clone());
            }
            match builder.build().send(message.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.status().is_some() => return Err(failure(&error)),
                Err(error) => last = failure(&error),
            }
        }
        Err(last)
    }

    fn message(&self, parcel: &Parcel) -> Option<Message> {
        let alert = &parcel.delivery.alert;
        let headline = summary(parcel.tenant, alert);
        let (subject, lead) = match parcel.delivery.event {
            Event::Fired => (format!("[{}] {headline}", alert.severity().name()), headline),
            Event::Acknowledged => (format!("[acknowledged] {headline}"), format!("Acknowledged: {headline}")),
            Event::Resolved => (format!("[resolved] {headline}"), format!("Resolved: {headline}")),
        };
        let mut text = format!("{lead}\r\n\r\n");
        for (name, fact) in facts(alert) {
            text.push_str(&format!("{name}: {fact}\r\n"));
        }
        if let Some(base) = &self.public_url {
            let base = base.trim_end_matches('/');
            text.push_str(&format!("\r\nAlerts of this tenant: {base}/v1/quotas/{}/alerts\r\n", parcel.tenant));
        }
        let micros = u64::try_from(parcel.occurred_at().micros()).ok()?;
        let mut message = Message::builder()
            .from(self.from.clone())
            .message_id(Some(self.message_id(&parcel.delivery)))
            .date(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
            .subject(subject)
            .header(ContentType::TEXT_PLAIN);
        if parcel.delivery.event != Event::Fired {
            let fired = Delivery { event: Event::Fired, ..parcel.delivery.clone() };
            message = message.in_reply_to(self.message_id(&fired));
        }
        let message = self.to.iter().fold(message, |message, to| message.to(to.clone()));
        message.body(text).ok()
    }

    fn message_id(&self, delivery: &Delivery) -> String {
        format!("<{}@{}>", delivery.id(), self.from.email.domain())
    }
}

/// The reason is ours: the code of a reply, never its text.
fn failure(error: &smtp::Error) -> Failure {
    let Some(code) = error.status().map(|code| code.to_string()) else {
        let words = match () {
            () if error.is_timeout() => "timed out",
            () if error.is_tls() => "no TLS that can be trusted",
            () if error.is_client() => "the relay cannot do what is needed (TLS, or the way to sign in)",
            () => "could not connect, or the connection broke",
        };
        return Failure::passing(words);
    };
    if error.is_permanent() && !ACCESS_REPLIES.contains(&code.as_str()) {
        Failure::Final { reason: format!("answered {code}: it will never take this") }
    } else {
        Failure::passing(format!("answered {code}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quota::Metric;
    use crate::domain::time::Timestamp;
    use crate::outlet::parcel::samples;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    /// A real listener that speaks just enough SMTP, without TLS, and keeps what it was sent. What it answers to the end of
    /// a message comes from a list; the last one again and again.
    struct Postbox {
        port: u16,
        mails: Arc<Mutex<Vec<String>>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Postbox {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Postbox {
        async fn start(answers: &[&'static str]) -> Postbox {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let mails = Arc::new(Mutex::new(Vec::new()));
            let (kept, answers) = (Arc::clone(&mails), answers.to_vec());
            let task = tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, answers.clone(), Arc::clone(&kept)));
                }
            });
            Postbox { port, mails, task }
        }

        fn mails(&self) -> Vec<String> {
            self.mails.lock().unwrap().clone()
        }

        fn relay(&self, tls: EmailTls) -> Relay<'static> {
            Relay {
                host: "127.0.0.1",
                port: Some(self.port),
                tls,
                ca_file: None,
                allow_private: true,
                user: None,
                password: None,
            }
        }
    }

    async fn serve(stream: TcpStream, answers: Vec<&'static str>, kept: Arc<Mutex<Vec<String>>>) -> Option<()> {
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
                        stream.read_line(&mut mail).await.ok()?;
                    }
                    let mut kept = kept.lock().unwrap();
                    kept.push(mail);
                    answers.get(kept.len() - 1).or(answers.last()).copied().unwrap_or("250 taken")
                }
                Some("QUIT") => "221 bye",
                _ => "250 yes",
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
        }
    }

    fn email(relay: &Relay<'_>) -> Email {
        let to = ["On-Call <on-call@example.com>".to_owned(), "finops@example.com".to_owned()];
        Email::open(relay, "platform@example.org", &to, Some("https://platform.example.com/".into())).unwrap()
    }

    fn header<'a>(mail: &'a str, name: &str) -> &'a str {
        let prefix = format!("{name}: ");
        mail.lines().find_map(|line| line.strip_prefix(prefix.as_str())).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_mail_tells_usage_limit_reset_and_link_under_a_stable_id() {
        let postbox = Postbox::start(&["451 later", "250 taken"]).await;
        let email = email(&postbox.relay(EmailTls::None));
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let fired = samples::parcel("mail", Event::Fired, Metric::Cost, at);
        assert_eq!(email.send(&fired).await, Err(Failure::passing("answered 451")));
        assert_eq!(email.send(&fired).await, Ok(()));
        let mut resolved = fired.clone();
        resolved.delivery.event = Event::Resolved;
        assert_eq!(email.send(&resolved).await, Ok(()));

        let mails = postbox.mails();
        let id = format!("<{}@example.org>", fired.delivery.id());
        assert_eq!((header(&mails[0], "Message-ID"), header(&mails[1], "Message-ID")), (id.as_str(), id.as_str()));
        assert_eq!(mails[0], mails[1], "a repetition is the same mail");
        assert_ne!(header(&mails[2], "Message-ID"), id);
        assert_eq!(header(&mails[2], "In-Reply-To"), id);
        assert!(header(&mails[2], "Subject").starts_with("[resolved] "), "{}", mails[2]);
        assert!(header(&mails[0], "Subject").starts_with("[warning] Tenant "), "{}", mails[0]);
        for fact in [
            "Used: 0.000812 USD".to_owned(),
            "Limit: 0.001 USD".to_owned(),
            "Resets: 2026-11-21T10:00:00.000Z".to_owned(),
            format!("https://platform.example.com/v1/quotas/{}/alerts", fired.tenant),
        ] {
            // A long line may be folded as quoted-printable has it.
            let unfolded = mails[0].replace("=\r\n", "");
            assert!(unfolded.contains(&fact), "{fact} in {unfolded}");
        }
    }

    #[tokio::test]
    async fn what_a_relay_calls_wrong_is_final_unless_it_is_about_access() {
        let parcel = samples::parcel("mail", Event::Fired, Metric::Tokens, Timestamp(0));
        let postbox = Postbox::start(&["550 secret words", "535 who are you"]).await;
        let email = email(&postbox.relay(EmailTls::None));
        let refused = Failure::Final { reason: "answered 550: it will never take this".into() };
        assert_eq!(email.send(&parcel).await, Err(refused));
        assert_eq!(email.send(&parcel).await, Err(Failure::passing("answered 535")));
    }

    #[tokio::test]
    async fn nothing_is_sent_in_the_clear_unless_it_is_allowed() {
        let parcel = samples::parcel("mail", Event::Fired, Metric::Tokens, Timestamp(0));
        let postbox = Postbox::start(&[]).await;
        for tls in [EmailTls::Starttls, EmailTls::Implicit] {
            assert!(matches!(email(&postbox.relay(tls)).send(&parcel).await, Err(Failure::Passing { .. })), "{tls:?}");
        }
        assert!(postbox.mails().is_empty());
        let closed = Relay { port: Some(1), ..postbox.relay(EmailTls::None) };
        assert!(matches!(email(&closed).send(&parcel).await, Err(Failure::Passing { .. })));
    }

    #[tokio::test]
    async fn a_private_address_is_not_connected_to_unless_it_is_allowed() {
        let parcel = samples::parcel("mail", Event::Fired, Metric::Tokens, Timestamp(0));
        let postbox = Postbox::start(&["250 taken"]).await;
        let guarded = Relay { host: "localhost", allow_private: false, ..postbox.relay(EmailTls::None) };
        assert_eq!(email(&guarded).send(&parcel).await, Err(Failure::passing("the address is not a public one")));
        assert!(postbox.mails().is_empty());
        assert_eq!(email(&Relay { allow_private: true, ..guarded }).send(&parcel).await, Ok(()));
    }

    #[test]
    fn a_channel_that_cannot_work_is_refused_by_key_and_shows_no_secret() {
        let secret = SecretString::from("correct horse");
        let to = ["on-call@example.com".to_owned()];
        let relay = Relay {
            host: "mail.example.com",
            port: None,
            tls: EmailTls::Starttls,
            ca_file: None,
            allow_private: false,
            user: None,
            password: None,
        };
        for host in ["localhost", "127.0.0.1", "2130706433", "::1", "mail", "10.0.0.1"] {
            let told = super::problem(&Relay { host, ..relay }, "a@example.com", &to).unwrap_or_default();
            assert!(told.starts_with("host:"), "{host}: {told}");
            assert_eq!(
                super::problem(&Relay { host, allow_private: true, ..relay }, "a@example.com", &to),
                None,
                "{host}"
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let trusting = Relay { ca_file: Some(&file), ..relay };
        let told = || super::problem(&trusting, "a@example.com", &to).unwrap_or_default();
        assert!(told().starts_with("ca_file: cannot be read"), "{}", told());
        std::fs::write(&file, "no certificate").unwrap();
        assert_eq!(told(), "ca_file: holds no certificate");
        let problem = |relay: &Relay<'_>, from: &str, to: &[String]| problem(relay, from, to).unwrap_or_default();
        assert_eq!(problem(&relay, "a@example.com", &to), "");
        assert!(problem(&relay, "nobody", &to).starts_with("from:"));
        assert!(problem(&relay, "a@example.com", &[]).starts_with("to:"));
        assert!(problem(&relay, "a@example.com", &["a\r\nBcc: b@example.com".into()]).starts_with("to:"));
        let half = Relay { user: Some("me"), ..relay };
        assert!(problem(&half, "a@example.com", &to).starts_with("password:"));
        let clear = Relay { password: Some(&secret), tls: EmailTls::None, ..half };
        let told = problem(&clear, "a@example.com", &to);
        assert!(told.starts_with("tls:") && !told.contains("horse"), "{told}");
    }
}
