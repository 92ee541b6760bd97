//! Kong's `/metrics` in Prometheus' text format, as far as it says who had how many requests passed on.
//!
//! Of `kong_http_requests_total` only what the service behind Kong answered with a 2xx is summed: denials and hits of Kong's
//! own cache have `source="kong"`, and the ledger knows nothing of them. A consumer is its username; without
//! authentication, or without `per_consumer`, it is empty, and the count is nobody's.

use std::borrow::Cow;
use std::collections::BTreeMap;

const REQUESTS: &str = "kong_http_requests_total";
const NODE: &str = "kong_node_info";
const ERRORS: &str = "kong_nginx_metric_errors_total";
/// Series of one exposition that are looked at; Kong's own memory for them ends far below.
pub const SERIES_MAX: usize = 200_000;
/// A count above this is no count: a float is exact below it.
const COUNT_MAX: f64 = 9e15;

/// What one exposition says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposition {
    /// Drawn anew at each start of Kong, with all counters at zero.
    pub node_id: Option<String>,
    pub version: Option<String>,
    /// Requests are counted at all (`status_code_metrics`).
    pub counts_requests: bool,
    /// Some request had a consumer (`per_consumer`, and a plugin that authenticates).
    pub names_consumers: bool,
    /// Kong lost some of its metrics.
    pub errors: i64,
    /// What was passed on and came back as 2xx: consumer → route → count.
    pub proxied: BTreeMap<String, BTreeMap<String, i64>>,
}

/// One line: a name, labels and a value.
#[derive(Debug, Clone, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    value: f64,
}

/// Reads an exposition. Lines that are none of ours, or not as they should be, are passed over.
#[must_use]
pub fn read(text: &str) -> Exposition {
    read_of(text, &[])
}

/// Reads an exposition; of what was passed on only what went to one of these `services` is summed, if any is named.
#[must_use]
pub fn read_of(text: &str, services: &[String]) -> Exposition {
    let is_one = |service: &str| services.is_empty() || services.iter().any(|one| one == service);
    let mut found = Exposition::default();
    let ours = |line: &&str| [REQUESTS, NODE, ERRORS].iter().any(|name| line.starts_with(name));
    for sample in text.lines().filter(ours).take(SERIES_MAX).filter_map(Sample::parse) {
        match sample.name {
            NODE => {
                found.node_id = sample.label("node_id").map(str::to_owned);
                found.version = sample.label("version").map(str::to_owned);
            }
            ERRORS => found.errors = sample.count().unwrap_or(0),
            REQUESTS => found.add(&sample, is_one(sample.label("service").unwrap_or_default())),
            _ => {}
        }
    }
    found
}

impl Exposition {
    fn add(&mut self, sample: &Sample<'_>, is_due: bool) {
        self.counts_requests = true;
        let consumer = sample.label("consumer").unwrap_or_default();
        self.names_consumers |= !consumer.is_empty();
        let passed_on = sample.label("source") == Some("service");
        let succeeded = sample.label("code").is_some_and(|code| code.len() == 3 && code.starts_with('2'));
        if consumer.is_empty() || !is_due || !passed_on || !succeeded {
            return;
        }
        let Some(count) = sample.count() else { return };
        let route = sample.label("route").unwrap_or_default();
        let sum = self.proxied.entry(consumer.to_owned()).or_default().entry(route.to_owned()).or_insert(0);
        *sum = sum.saturating_add(count);
    }
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Sample<'a>> {
        let end = line.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'))?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = rest.trim_start_matches([' ', ',']);
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, after) = rest.split_once('=')?;
                let (value, after) = quoted(after.trim_start().strip_prefix('"')?)?;
                labels.push((label.trim(), value));
                rest = after;
            }
        }
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { name, labels, value })
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }

    /// The value, if it is a count.
    fn count(&self) -> Option<i64> {
        ((0.0..COUNT_MAX).contains(&self.value)).then_some(self.value as i64)
    }
}

/// What stands before the closing quote, without its escapes, and what stands after it.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let end = text.find(['"', '\\'])?;
    if text[end..].starts_with('"') {
        return Some((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((Cow::Owned(value), &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = include_str!("../../../tests/fixtures/kong/metrics-3.9.1.prom");
    const AFTER: &str = include_str!("../../../tests/fixtures/kong/metrics-3.9.1-after-restart.prom");

    fn total(exposition: &Exposition) -> i64 {
        exposition.proxied.values().flat_map(BTreeMap::values).sum()
    }

    #[test]
    fn each_node_says_who_it_is_and_what_it_passed_on() {
        let (before, after) = (read(BEFORE), read(AFTER));
        assert_eq!(before.node_id.as_deref(), Some("c2dd420e-004d-432a-9204-34e2a68ef0b5"));
        assert_eq!(before.version.as_deref(), Some("3.9.1"));
        assert!(before.counts_requests && before.names_consumers && before.errors == 0);
        assert!(after.node_id.is_some() && after.node_id != before.node_id);
        assert!(total(&after) < total(&before), "{after:?}");
    }

    /// Summed by hand, line by line.
    #[test]
    fn denials_and_hits_of_the_cache_are_not_summed() {
        let ours = |line: &&str| {
            line.starts_with(REQUESTS)
                && line.contains("source=\"service\"")
                && line.contains("code=\"2")
                && !line.contains("consumer=\"\"")
        };
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap();
        let by_hand: i64 = BEFORE.lines().filter(ours).map(value).sum();
        let all: i64 = BEFORE.lines().filter(|line| line.starts_with(REQUESTS)).map(value).sum();
        assert_eq!(total(&read(BEFORE)), by_hand);
        assert!(0 < by_hand && by_hand < all, "{by_hand} of {all}");
    }

    #[test]
    fn labels_have_escapes_and_any_order() {
        let text = r#"
# HELP kong_http_requests_total HTTP status codes
kong_http_requests_total{consumer="a\"b\\c\nd,}",code="204" , source="service",route="é"} 3 1700000000000
kong_http_requests_total{source="service",route="é",code="200",consumer="a\"b\\c\nd,}",} 4e0
kong_http_requests_total{source="service",code="200",consumer="torn
kong_http_requests_total{source="service",code="200",consumer="x"} NaN
kong_http_requests_total{source="service",code="200",consumer="x"} -1
kong_http_requests_total{source="kong",code="200",consumer="x"} 7
kong_http_requests_total{source="service",code="404",consumer="x"} 7
kong_http_requests_total
kong_nginx_metric_errors_total 2"#;
        let found = read(text);
        let routes = BTreeMap::from([("é".to_owned(), 7)]);
        assert_eq!(found.proxied, BTreeMap::from([("a\"b\\c\nd,}".to_owned(), routes)]));
        assert_eq!((found.errors, found.node_id), (2, None));
    }
}
