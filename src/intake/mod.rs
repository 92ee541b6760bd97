//! What arrives: usage events, over HTTP and over NATS.
//!
//! Bytes become items in [`arrival`], which splits a body so that one bad item never spoils its neighbours and hands
//! each to its reader: [`envelope`], [`cloudevents`] or [`litellm`]. Readers are pure: bytes in, an event or a reason
//! out; no clock, no IO, no panic. [`attribution`] then says whose event it is, and [`record`] is the one path from
//! there for HTTP, NATS and a replay: group by tenant, hand over, quarantine the rest.
//!
//! **Acknowledge after commit.** Nobody is told that an event was taken before it is durable. An event is durable when
//! its tenant has committed it, as counted, as known already or as a conflict, or when it stands in quarantine with
//! its bytes and a reason. HTTP then answers 2xx, [`usage_stream`] then acknowledges. A tenant that is starting,
//! saturated or frozen is neither: over HTTP the sender is asked to come back; what a stream brings waits a while, and is
//! then parked in quarantine, as far as [`parking`] has room, from where [`replayer`] brings it back. The tenant's ledger makes all of that safe, because
//! (tenant, source, event id) is counted once however often it arrives.
//!
//! [`flagsmith`] is another matter: what it fetches are feature flags.
//!
//! No SQL and no answer's wording enters here; nothing here decides what an event costs or whether it is too old.

pub mod arrival;
pub mod attribution;
pub mod body;
pub mod cloudevents;
pub mod envelope;
pub mod flagsmith;
pub mod kong;
pub mod litellm;
mod openmeter;
pub mod parking;
pub mod quarantine;
pub mod record;
pub mod replayer;
mod tally;
mod text;
pub mod usage_stream;

#[cfg(test)]
mod away_test;
#[cfg(test)]
mod captured_test;
#[cfg(test)]
mod node_test;
#[cfg(test)]
mod resume_test;
#[cfg(test)]
mod shapes_test;
#[cfg(test)]
mod stream_test;
