//! The product, tested from outside: the real binary, real databases, real neighbours. One binary, one harness, one
//! file per theme. Services are found through the environment (`tests/run` starts them); see `harness/services`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]
#![allow(unreachable_pub, reason = "one binary: pub means for the other stories")]

mod harness;

mod access_matrix;
mod alerts;
mod api_keys;
mod audit;
mod authorization;
mod authzen;
mod bad_input;
mod burn;
mod canaries;
mod crash;
mod crash_tenants;
mod dependencies;
mod envoy;
mod faults;
mod flags;
mod house_rules;
mod ingest_http;
mod ingest_nats;
mod ingest_openmeter;
mod jobs;
mod kong;
mod kong_sources;
mod kong_sync;
mod login;
mod operations;
mod organization;
mod planted;
mod power_cut;
mod providers;
mod quotas;
mod rate_limits;
mod reconciliation;
mod recorded_run;
mod redis_mirror;
mod takeover;
mod tenants;
mod two_books;
mod two_nodes;
