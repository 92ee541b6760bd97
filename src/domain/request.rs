//! Who asks for a change, and how often the same change may be asked for.

/// A request that changes something: what the chain says about who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `platform`, `apiKey:<id>`, `user:<subject>` or `system`; see [`super::chain::Entry::actor`].
    pub actor: String,
    /// `X-Request-Id`.
    pub request_id: String,
    pub idempotency: Option<Idempotency>,
}

impl Request {
    /// A change the daemon makes by itself.
    #[must_use]
    pub fn system() -> Request {
        Request { actor: "system".into(), request_id: String::new(), idempotency: None }
    }
}

/// An `Idempotency-Key` in its scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key within its principal and route: `<actor> <method> <path> <key>`.
    pub key: String,
    /// SHA-256 of the request's body: the same key with another body is refused.
    pub body_hash: [u8; 32],
}

/// The answer to a change that may have been asked for before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// Done now.
    Fresh(T),
    /// Done before under the same key: the stored JSON answer.
    Replayed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_asks_in_its_own_name_and_without_a_key() {
        let expected = Request { actor: "system".into(), request_id: String::new(), idempotency: None };
        assert_eq!(Request::system(), expected);
    }
}
