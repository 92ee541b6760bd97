//! AWS credentials: what Bedrock takes instead of an API key of its own.
//!
//! They are kept as one text, so that they are sealed, replaced, lent and taken away as any other secret is.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::organization::Flaw;

/// Characters of an access key's id and of its secret.
const KEY_CHARACTERS_MIN: usize = 16;
const KEY_CHARACTERS_MAX: usize = 128;
/// Characters of a session token: AWS names no limit, and headers have one.
const TOKEN_CHARACTERS_MAX: usize = 4_096;
/// Ids of keys that hold for a session begin so.
const TEMPORARY: &str = "ASIA";

/// An access key, and the token of its session if it is a temporary one.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsCredentials {
    /// Names the key and opens nothing.
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    #[serde(default)]
    pub session_token: Option<SecretString>,
}

/// As they are kept.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_token: Option<&'a str>,
}

impl AwsCredentials {
    /// What is wrong with them, if anything; never any of it.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        let key_fits = |text: &str| (KEY_CHARACTERS_MIN..=KEY_CHARACTERS_MAX).contains(&text.len());
        let id_letter = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        if !key_fits(&self.access_key_id) || !self.access_key_id.bytes().all(id_letter) {
            let message = "must be 16 to 128 upper-case letters and digits";
            flaws.push(Flaw::new("/awsCredentials/accessKeyId", message));
        }
        let secret = self.secret_access_key.expose_secret();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        if !key_fits(secret) || !secret.bytes().all(letter) {
            let message = "must be 16 to 128 letters, digits, or + / =";
            flaws.push(Flaw::new("/awsCredentials/secretAccessKey", message));
        }
        let pointer = "/awsCredentials/sessionToken";
        match self.session_token.as_ref().map(ExposeSecret::expose_secret) {
            None if self.access_key_id.starts_with(TEMPORARY) => {
                flaws.push(Flaw::new(pointer, "is required for a temporary key, whose id begins with ASIA"));
            }
            None => {}
            Some(token) => {
                let fits = (KEY_CHARACTERS_MIN..=TOKEN_CHARACTERS_MAX).contains(&token.len());
                // It goes into a header.
                if !fits || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    flaws.push(Flaw::new(pointer, "must be 16 to 4096 visible ASCII characters without spaces"));
                }
            }
        }
        flaws
    }

    /// The one text that they are kept as.
    #[must_use]
    pub fn to_secret(&self) -> SecretString {
        let kept = Kept {
            access_key_id: &self.access_key_id,
            secret_access_key: self.secret_access_key.expose_secret(),
            session_token: self.session_token.as_ref().map(ExposeSecret::expose_secret),
        };
        // Texts always serialize.
        SecretString::from(serde_json::to_string(&kept).unwrap_or_default())
    }

    /// What was kept as this text; `None` when it is a secret of another kind.
    #[must_use]
    pub fn read(secret: &str) -> Option<AwsCredentials> {
        // An array of the parts would be read as well.
        if secret.starts_with('{') { serde_json::from_str(secret).ok() } else { None }
    }
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AwsCredentials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(id: &str, secret: &str, token: Option<&str>) -> AwsCredentials {
        AwsCredentials {
            access_key_id: id.into(),
            secret_access_key: SecretString::from(secret),
            session_token: token.map(SecretString::from),
        }
    }

    #[test]
    fn what_is_kept_is_read_again_and_shown_by_nothing() {
        for token in [None, Some("IQoJb3JpZ2luX2VjECanary//=="), Some("a\"token\\canary-0123")] {
            let given = credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+canary", token);
            assert!(given.flaws().is_empty(), "{token:?}");
            assert!(!format!("{given:?}").contains("canary"));
            let read = AwsCredentials::read(given.to_secret().expose_secret()).unwrap();
            assert_eq!(read.access_key_id, given.access_key_id);
            assert_eq!(read.secret_access_key.expose_secret(), given.secret_access_key.expose_secret());
            assert_eq!(read.session_token.as_ref().map(ExposeSecret::expose_secret), token);
        }
        for secret in ["sk-0123456789abcdef", "{", "{}", r#"["AKIAIOSFODNN7EXAMPLE","x"]"#, r#"{"accessKeyId":"A"}"#] {
            assert!(AwsCredentials::read(secret).is_none(), "{secret}");
        }
    }

    #[test]
    fn each_part_is_judged_and_none_of_it_told() {
        let (id, secret) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let long = "x".repeat(TOKEN_CHARACTERS_MAX + 1);
        for (given, pointer) in [
            (credentials("akiaiosfodnn7example", secret, None), "accessKeyId"),
            (credentials("AKIA", secret, None), "accessKeyId"),
            (credentials(&"A".repeat(129), secret, None), "accessKeyId"),
            (credentials(id, "canary canary canary", None), "secretAccessKey"),
            (credentials(id, "", None), "secretAccessKey"),
            (credentials("ASIAIOSFODNN7EXAMPLE", secret, None), "sessionToken"),
            (credentials(id, secret, Some("")), "sessionToken"),
            (credentials(id, secret, Some("canary\r\nx-evil: yes")), "sessionToken"),
            (credentials(id, secret, Some(&long)), "sessionToken"),
        ] {
            let flaws = given.flaws();
            assert_eq!(flaws.len(), 1, "{flaws:?}");
            assert_eq!(flaws[0].pointer, format!("/awsCredentials/{pointer}"));
            assert!(!format!("{flaws:?}").contains("canary"), "{flaws:?}");
        }
    }
}
