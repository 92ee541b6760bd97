//! The governance plane of a multi-tenant LLM platform.
//!
//! Five floors; traffic only goes down, and a test reads the imports:
//!
//! 1. **Doors**: [`http`] (requests, behind the lock of [`access`]), [`envoy`] (a gateway's questions over gRPC),
//!    [`intake`] (usage events, over NATS and HTTP), [`outlet`] (alerts, mirrored standings and Kong's consumers, only after
//!    a commit).
//!    Beside them, [`jobs`]: background work that survives its worker, and [`vault`]: what keeps tenants' secrets.
//! 2. [`directory`]: who is home. Finds a tenant, opens, restarts, rests and drains it; keeps the catalogue.
//! 3. [`tenant`]: one pair of actors per tenant. The keeper answers from memory and never awaits IO; the writer runs one
//!    transaction at a time.
//! 4. [`store`]: SQL, one body for Postgres and SQLite.
//! 5. [`domain`]: what is decided. Pure functions of their arguments; imports nothing of ours.
//!
//! [`rate_limit`] stands beside the doors: how often is too often, asked by [`http`] and [`envoy`].
//!
//! [`scim`] is the documents of SCIM, read and written for [`http`].
//!
//! [`daemon`] is the only room that knows everybody. [`config`], [`clock`], [`json`], [`telemetry`] and [`threads`] are the
//! walls; [`fault`] is where the tests may end us, and is not there in a release.
//!
//! One usage event: a door parses it and finds its tenant; the tenant's [`handle`](tenant::handle) takes permits; the
//! keeper adds it to the open batch; the writer inserts, learns what is new, asks [`domain::books`] what follows, writes
//! that and commits; the keeper adopts the new books; the caller is answered; outlets deliver what the outbox owes.

pub mod access;
pub mod clock;
pub mod command;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod directory;
pub mod domain;
pub mod envoy;
pub mod fault;
pub mod http;
pub mod intake;
pub mod jobs;
pub mod json;
pub mod outlet;
pub mod rate_limit;
pub mod scim;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod threads;
pub mod vault;
