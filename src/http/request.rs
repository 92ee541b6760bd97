//! What a request says about itself in its headers: which one it is, for whom, and how often it may count.

use poem::Request;
use poem::http::HeaderMap;

use super::problem::{Code, Problem};
use crate::clock;
use crate::domain::ids::TenantId;

/// Longest `X-Request-Id` that is echoed; a longer one is replaced.
pub(super) const REQUEST_ID_BYTES_MAX: usize = 128;
/// Longest `Idempotency-Key`.
pub(super) const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Longest `X-User-Id` and `X-Platform-Id`.
pub(super) const LABEL_BYTES_MAX: usize = 256;

/// Which request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub request_id: String,
    pub trace: Option<Trace>,
}

/// The caller's trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trace {
    pub trace_id: u128,
    /// The caller's span; zero when only `X-Trace-Id` was given.
    pub span_id: u64,
    pub sampled: bool,
}

/// What the other headers say, well-formed and not yet believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub tenant: Option<TenantId>,
    pub platform: Option<String>,
    pub user: Option<String>,
    pub idempotency_key: Option<String>,
}

impl Identity {
    /// The request's id if it brought a usable one, a new one otherwise; a bad id never fails a request.
    #[must_use]
    pub(super) fn of(request: &Request) -> Identity {
        let given = single(request.headers(), "x-request-id").ok().flatten();
        let request_id = match given {
            // An arbitrary string, for those who tell their requests apart by it: blanks do no harm.
            Some(id) if is_visible(&id.replace(' ', "-"), REQUEST_ID_BYTES_MAX) => id.to_owned(),
            _ => clock::new_id().to_string(),
        };
        Identity { request_id, trace: trace(request.headers()) }
    }
}

impl Said {
    /// # Errors
    /// [`Code::InvalidHeader`], naming the header.
    pub(super) fn read(headers: &HeaderMap) -> Result<Said, Problem> {
        let text = |name: &'static str, bytes_max: usize| match single(headers, name) {
            Ok(None) => Ok(None),
            Ok(Some(value)) if is_visible(value, bytes_max) => Ok(Some(value.to_owned())),
            _ => {
                let message = format!("{name}: must be given once, 1 to {bytes_max} visible ASCII characters");
                Err(Problem::new(Code::InvalidHeader).saying(message))
            }
        };
        let tenant = text("x-tenant-id", 36)?
            .map(|id| id.parse::<TenantId>())
            .transpose()
            .map_err(|_| Problem::new(Code::InvalidHeader).saying("x-tenant-id: not a UUID in its hyphenated form"))?;
        Ok(Said {
            tenant,
            platform: text("x-platform-id", LABEL_BYTES_MAX)?,
            user: text("x-user-id", LABEL_BYTES_MAX)?,
            idempotency_key: text("idempotency-key", IDEMPOTENCY_KEY_BYTES_MAX)?,
        })
    }
}

/// Does the caller take JSON? A missing `Accept` takes everything.
#[must_use]
pub(super) fn accepts(headers: &HeaderMap, answer: &str) -> bool {
    let mut ranges = headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).peekable();
    if ranges.peek().is_none() {
        return true;
    }
    ranges.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|part| {
            let quality = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            quality.is_some_and(|value| value.parse::<f32>().is_ok_and(|quality| quality <= 0.0))
        });
        !refused && (matches!(media.as_str(), "*/*" | "application/*") || media == answer)
    })
}

/// The header's value, when it is given once and is text.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        _ => Err(()),
    }
}

fn is_visible(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// W3C `traceparent`, or the id alone from `X-Trace-Id`. Malformed ones are ignored, as the specification asks.
pub(super) fn trace(headers: &HeaderMap) -> Option<Trace> {
    let parent = single(headers, "traceparent").ok().flatten().and_then(traceparent);
    parent.or_else(|| {
        let id = single(headers, "x-trace-id").ok().flatten()?;
        let trace_id = hex(id, 32).filter(|id| *id != 0)?;
        Some(Trace { trace_id, span_id: 0, sampled: true })
    })
}

fn traceparent(text: &str) -> Option<Trace> {
    let mut parts = text.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace_id = hex(parts.next()?, 32).filter(|id| *id != 0)?;
    let span_id = hex(parts.next()?, 16).and_then(|id| u64::try_from(id).ok()).filter(|id| *id != 0)?;
    let flags = hex(parts.next()?, 2)?;
    // Version 00 has exactly four fields; later ones may have more; ff is forbidden.
    let known = version != 0xff && (version != 0 || parts.next().is_none());
    known.then_some(Trace { trace_id, span_id, sampled: flags & 1 == 1 })
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    lower.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, &str)]) -> Request {
        headers.iter().fold(Request::builder(), |builder, (name, value)| builder.header(*name, *value)).finish()
    }

    #[test]
    fn a_usable_request_id_is_kept_and_any_other_replaced() {
        for usable in ["abc-1", "a b", "{\"try\": 2}"] {
            assert_eq!(Identity::of(&with(&[("x-request-id", usable)])).request_id, usable);
        }
        let long = "x".repeat(129);
        for bad in [vec![], vec![("x-request-id", "")], vec![("x-request-id", "a\tb")], vec![("x-request-id", &long)]] {
            let made = Identity::of(&with(&bad)).request_id;
            assert_eq!(made.len(), 36, "{bad:?} {made}");
        }
        let twice = Identity::of(&with(&[("x-request-id", "a"), ("x-request-id", "b")])).request_id;
        assert_eq!(twice.len(), 36);
    }

    #[test]
    fn traceparent_is_read_by_the_letter() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let read = |text: &str| Identity::of(&with(&[("traceparent", text)])).trace;
        let found = read(&format!("00-{id}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(format!("{:032x} {:016x}", found.trace_id, found.span_id), format!("{id} 00f067aa0ba902b7"));
        assert!(found.sampled);
        for bad in [
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{id}-00f067aa0ba902b7-01-x"),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{id}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
        ] {
            assert_eq!(read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn headers_that_cannot_be_read_are_named() {
        let tenant = "0199a8b2-5c00-7abc-8def-0123456789ab";
        let said = Said::read(with(&[("x-tenant-id", tenant), ("idempotency-key", "k")]).headers()).unwrap();
        assert_eq!(said.tenant.unwrap().to_string(), tenant);
        assert_eq!(said.idempotency_key.as_deref(), Some("k"));
        let long = "k".repeat(256);
        for bad in [
            vec![("x-tenant-id", "7")],
            vec![("x-tenant-id", tenant), ("x-tenant-id", tenant)],
            vec![("idempotency-key", &long)],
            vec![("idempotency-key", "")],
            vec![("x-user-id", "a b")],
        ] {
            let problem = Said::read(with(&bad).headers()).unwrap_err();
            assert_eq!(problem.code, Code::InvalidHeader, "{bad:?}");
            assert!(problem.message.starts_with(bad[0].0), "{}", problem.message);
        }
    }

    #[test]
    fn only_an_accept_that_excludes_json_is_refused() {
        for (accept, taken) in [
            ("*/*", true),
            ("text/html, application/json;q=0.5", true),
            ("application/*", true),
            ("text/html", false),
            ("application/json;q=0", false),
            ("", false),
        ] {
            assert_eq!(accepts(with(&[("accept", accept)]).headers(), "application/json"), taken, "{accept}");
        }
        assert!(accepts(with(&[]).headers(), "application/json"));
    }
}
