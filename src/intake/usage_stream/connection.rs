//! A connection to NATS, and the delay before the next one.

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use secrecy::ExposeSecret;
use tokio::sync::watch;

use super::Ended;
use crate::{clock, config};

/// How long a connection attempt and each question to JetStream may take.
const NATS_TIMEOUT: Duration = Duration::from_secs(5);
/// First delay before the stream is tried again; doubles up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(250);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Connects; the receiver changes when the connection is lost.
pub(super) async fn connect(nats: &config::Nats) -> Result<(Context, watch::Receiver<()>), Ended> {
    // Fails when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (sender, lost) = watch::channel(());
    let options = match nats.url.as_ref().and_then(config::nats_login) {
        Some((user, Some(password))) => async_nats::ConnectOptions::with_user_and_password(user, password),
        Some((token, None)) => async_nats::ConnectOptions::with_token(token),
        None => async_nats::ConnectOptions::new(),
    };
    let client = options
        .name("platform-api")
        .connection_timeout(NATS_TIMEOUT)
        .event_callback(move |event| {
            if matches!(event, async_nats::Event::Disconnected | async_nats::Event::Closed) {
                sender.send_replace(());
            }
            std::future::ready(())
        })
        .connect(servers(nats)?)
        .await
        // The kind and not the error: the latter may quote the address, and an address may hold a password.
        .map_err(|error| Ended::Unreachable(error.kind().to_string()))?;
    let context = jetstream::ContextBuilder::new().timeout(NATS_TIMEOUT).build(client);
    Ok((context, lost))
}

/// One server, or several separated by commas.
fn servers(nats: &config::Nats) -> Result<Vec<async_nats::ServerAddr>, Ended> {
    let url = nats.url.as_ref().ok_or_else(|| Ended::Refused("nats.url is not set".to_owned()))?;
    let servers = url.expose_secret().split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>();
    servers.map_err(|_| Ended::Refused("nats.url: not the URL of a NATS server".to_owned()))
}

/// Between half of `delay` and all of it, so that many nodes do not come back at once.
pub(super) fn jittered(delay: Duration) -> Duration {
    let [random] = clock::random_bytes::<1>();
    delay / 2 + (delay / 2) * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_keeps_its_bounds() {
        for _ in 0..100 {
            assert!((BACKOFF_MIN / 2..=BACKOFF_MIN).contains(&jittered(BACKOFF_MIN)));
        }
    }
}
