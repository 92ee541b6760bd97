//! What was not counted: kept with its bytes, its reason, and how to read it again.

use std::sync::Arc;

use aws_lc_rs::digest;
use bytes::Bytes;

use super::arrival::{Format, Reporter};
use super::record::Rejection;
use crate::clock;
use crate::domain::report::Quarantined;
use crate::domain::time::Timestamp;

const EVENTS: &str = "events";
const LITELLM: &str = "litellm";
const OPENMETER: &str = "openmeter";
/// Rows of one write, and bytes of their bodies, but one row at least.
const WRITE_ROWS_MAX: usize = 1_000;
const WRITE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Begins the tenant that a reporter may speak for.
const ONLY: &str = ";only=";

/// How quarantined bytes are to be read again: `events`, `litellm` or `openmeter`, and `;only=<tenantId>` when they came from a
/// reporter that may speak for one tenant only. Another try must not trust them more than the first one did.
#[must_use]
pub fn tag(format: Format, reporter: Reporter) -> String {
    let name = match format {
        Format::Events => EVENTS,
        Format::Litellm => LITELLM,
        Format::OpenMeter => OPENMETER,
    };
    match reporter {
        Reporter::Platform => name.to_owned(),
        Reporter::Tenant(tenant) => format!("{name}{ONLY}{tenant}"),
    }
}

/// The reverse of [`tag`]; `None` for what it never made.
#[must_use]
pub fn read_tag(tag: &str) -> Option<(Format, Reporter)> {
    let (name, reporter) = match tag.split_once(ONLY) {
        Some((name, tenant)) => (name, Reporter::Tenant(tenant.parse().ok()?)),
        None => (tag, Reporter::Platform),
    };
    match name {
        EVENTS => Some((Format::Events, reporter)),
        LITELLM => Some((Format::Litellm, reporter)),
        OPENMETER => Some((Format::OpenMeter, reporter)),
        _ => None,
    }
}

/// A row for `raw`. Its digest is over origin, tag and bytes, so the same poison arriving again is the same row.
pub(super) fn row(
    origin: &str,
    format: Format,
    reporter: Reporter,
    raw: &Bytes,
    rejection: &Rejection,
    received_at: Timestamp,
) -> Quarantined {
    let format = tag(format, reporter);
    Quarantined {
        id: clock::new_id(),
        tenant: rejection.tenant,
        reason: rejection.problem.reason,
        detail: rejection.problem.detail.clone(),
        origin: origin.to_owned(),
        digest: digest_of(origin, &format, raw),
        format,
        body: raw.to_vec(),
        received_at,
        replayed_at: None,
        arrivals: 1,
        left_out_bytes: 0,
    }
}

/// Rows, divided into writes of bounded size. A write that is tried again copies nothing.
pub(super) fn writes(rows: Vec<Quarantined>) -> Vec<Arc<[Quarantined]>> {
    let mut writes = Vec::new();
    let (mut write, mut bytes) = (Vec::new(), 0);
    for row in rows {
        if write.len() == WRITE_ROWS_MAX || (bytes + row.body.len() > WRITE_BYTES_MAX && !write.is_empty()) {
            writes.push(Arc::from(std::mem::take(&mut write)));
            bytes = 0;
        }
        bytes += row.body.len();
        write.push(row);
    }
    if !write.is_empty() {
        writes.push(Arc::from(write));
    }
    writes
}

fn digest_of(origin: &str, format: &str, body: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [origin.as_bytes(), format.as_bytes(), body] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::TenantId;
    use uuid::Uuid;

    #[test]
    fn a_tag_is_read_as_it_was_written() {
        let only = Reporter::Tenant(TenantId(Uuid::from_u128(7)));
        for format in Format::ALL {
            for reporter in [Reporter::Platform, only] {
                assert_eq!(read_tag(&tag(format, reporter)), Some((format, reporter)));
            }
        }
        for foreign in ["", "event", "events;only=", "litellm;only=acme", "events;only"] {
            assert_eq!(read_tag(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_write_is_bounded_in_rows_and_bytes_and_keeps_the_order() {
        let sizes = |lengths: &[usize]| -> Vec<Vec<usize>> {
            let rejection = Rejection::of(crate::domain::usage::Refusal::Malformed, TenantId(Uuid::from_u128(7)));
            let row = |length: &usize| {
                let raw = Bytes::from(vec![b'x'; *length]);
                row("a", Format::Events, Reporter::Platform, &raw, &rejection, Timestamp(0))
            };
            let writes = writes(lengths.iter().map(row).collect());
            writes.iter().map(|write| write.iter().map(|row| row.body.len()).collect()).collect()
        };
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&[WRITE_BYTES_MAX + 1, 2, 3]), [vec![WRITE_BYTES_MAX + 1], vec![2, 3]]);
        assert_eq!(sizes(&[1, WRITE_BYTES_MAX - 1, 1]), [vec![1, WRITE_BYTES_MAX - 1], vec![1]]);
        let many: Vec<usize> = sizes(&[1; 2 * WRITE_ROWS_MAX + 1]).iter().map(Vec::len).collect();
        assert_eq!(many, [WRITE_ROWS_MAX, WRITE_ROWS_MAX, 1]);
    }

    #[test]
    fn the_same_bytes_from_elsewhere_are_another_row() {
        assert_eq!(digest_of("a", "events", b"x"), digest_of("a", "events", b"x"));
        assert_ne!(digest_of("a", "events", b"x"), digest_of("b", "events", b"x"));
        assert_ne!(digest_of("ab", "c", b""), digest_of("a", "bc", b""));
    }
}
