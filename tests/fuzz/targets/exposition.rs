//! Kong's metrics: a line spoils no other, nothing is counted that is not stated, and the order of lines decides nothing.

use platform_api::intake::kong::exposition::{Exposition, read};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "exposition",
    check,
    seeds: &["tests/fixtures/kong"],
    words: &[
        "kong_http_requests_total",
        "kong_node_info",
        "kong_nginx_metric_errors_total",
        "{service=\"ai\",route=\"r\",code=\"200\",source=\"service\",workspace=\"default\",consumer=\"tenant-acme\"} 3\n",
        "source=\"kong\"",
        "code=\"429\"",
        "node_id=\"",
        "version=\"3.9.1\"",
        "\\\"",
        "\\n",
        "} 1\n",
        "} 1e300\n",
        "} NaN\n",
        "} -1\n",
        "# HELP",
    ],
};

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let found = read(text);
    assert!(found.errors >= 0);
    for (consumer, routes) in &found.proxied {
        assert!(!consumer.is_empty() && found.names_consumers && found.counts_requests);
        assert!(!routes.is_empty() && routes.values().all(|count| *count >= 0));
    }
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(sums(&found), added(lines.iter().map(|line| read(line))));
    let reversed: Vec<&str> = lines.iter().rev().copied().collect();
    assert_eq!(sums(&read(&reversed.join("\n"))), sums(&found), "the order of lines matters");
    let between = lines.join("\nkong_http_requests_total{consumer=\"torn\n");
    assert_eq!(sums(&read(&between)), sums(&found), "a torn line spoils its neighbours");
    what_is_not_ours_counts_nothing(text, &found);
}

type Sums = (bool, bool, Vec<(String, String, i64)>);

fn sums(found: &Exposition) -> Sums {
    let counts = found.proxied.iter().flat_map(|(consumer, routes)| {
        routes.iter().map(move |(route, count)| (consumer.clone(), route.clone(), *count))
    });
    (found.counts_requests, found.names_consumers, counts.collect())
}

/// What the lines say one by one, added up.
fn added(lines: impl Iterator<Item = Exposition>) -> Sums {
    let mut all = Exposition::default();
    for line in lines {
        all.counts_requests |= line.counts_requests;
        all.names_consumers |= line.names_consumers;
        for (consumer, routes) in line.proxied {
            for (route, count) in routes {
                let sum = all.proxied.entry(consumer.clone()).or_default().entry(route).or_insert(0);
                *sum = sum.saturating_add(count);
            }
        }
    }
    sums(&all)
}

fn what_is_not_ours_counts_nothing(text: &str, found: &Exposition) {
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("kong_http_requests_total")).collect();
    let others = read(&others.join("\n"));
    assert!(others.proxied.is_empty() && !others.counts_requests);
    assert_eq!((&others.node_id, &others.version, others.errors), (&found.node_id, &found.version, found.errors));
}
