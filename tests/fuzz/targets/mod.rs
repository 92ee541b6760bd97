//! What is tried, and what has to hold whatever comes: each target is one function of bytes that panics when it does not.

mod api_key;
mod batch;
mod chain;
mod cloudevent;
mod configuration;
mod envelope;
mod event;
mod exposition;
mod framing;
mod headers;
mod kong_log;
mod limiter_key;
mod litellm;
mod money;
mod openmeter;
mod query;
mod quotas;
mod scim;
mod time;
mod token;
mod window;

/// One parser under test.
pub(crate) struct Target {
    /// Names its test and its folder of the corpus.
    pub(crate) name: &'static str,
    pub(crate) check: fn(&[u8]),
    /// Folders whose files are tried too.
    pub(crate) seeds: &'static [&'static str],
    /// What inputs are made of, besides what the corpus has.
    pub(crate) words: &'static [&'static str],
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// Every target.
        pub(crate) const ALL: &[Target] = &[$($name::TARGET),*];
        $(
            #[test]
            fn $name() {
                crate::driver::run(&$name::TARGET);
            }
        )*
    };
}

targets! {
    api_key
    batch
    chain
    cloudevent
    configuration
    envelope
    exposition
    framing
    headers
    kong_log
    limiter_key
    litellm
    money
    openmeter
    query
    quotas
    scim
    time
    token
    window
}
