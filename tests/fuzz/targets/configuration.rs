//! Configuration files: read or refused, and no secret is told either way.

use platform_api::config::Config;
use toml::{Table, Value};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "configuration",
    check,
    seeds: &["config"],
    words: &[
        "[http]\n",
        "[store]\n",
        "[auth]\n",
        "[nats]\n",
        "[redis]\n",
        "[[auth.issuers]]\n",
        "[[notify.channels]]\n",
        "listen = ",
        "url = ",
        "bootstrap_key = ",
        "key_pepper = ",
        "\"hush-hush-hush-hush-hush-hush-hush-hush\"\n",
        "\"sqlite:./data\"\n",
        "= ",
        "\n",
        "\"",
        "'''",
        "[",
        "]",
        "0",
        "-1",
        "18446744073709551615",
        "nan",
        "true",
        "type = \"webhook\"\n",
        "name = \"ops\"\n",
        "roles = { a = \"admin\" }\n",
        "issuer = \"https://id\"\n",
    ],
};

/// What stands where secrets stand in the corpus.
const SECRET: &str = "hush-hush-hush";
const SECRET_PLACES: [(&str, &str); 5] =
    [("store", "url"), ("nats", "url"), ("redis", "url"), ("auth", "bootstrap_key"), ("auth", "key_pepper")];

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = Config::read(text, None);
    let told = match &read {
        Ok(config) => format!("{config:?}"),
        Err(invalid) => {
            assert!(!invalid.problems.is_empty());
            invalid.to_string()
        }
    };
    if secrets_stand_where_they_should(text) {
        assert!(!told.contains(SECRET), "a secret is told: {told}");
    }
    if let Ok(config) = read {
        assert!(text.parse::<Table>().is_ok(), "this is no TOML: {text}");
        assert!(config.clone().validated().is_ok(), "what is valid stays valid");
        assert!(config.http.connections_max > 0 && config.store.readers_max > 0 && config.tenants.open_max > 0);
        assert!(config.http.listen.parse::<std::net::SocketAddr>().is_ok());
    }
}

/// A secret that was written into another field is not known to be one. Without a syntax to say what is a field, every
/// line may be.
fn secrets_stand_where_they_should(text: &str) -> bool {
    let Ok(table) = text.parse::<Table>() else { return !text.lines().any(|line| line.contains('|')) };
    let at = |(section, key): &(&str, &str)| table.get(*section)?.get(*key).and_then(Value::as_str);
    let known = SECRET_PLACES.iter().filter_map(at).filter(|value| value.contains(SECRET)).count();
    known > 0 && known == text.matches(SECRET).count()
}
