//! Every metric, on one page. Counters end in `_total`, times are seconds, labels are bounded: never a user, a key or
//! a path.

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// Name, kind, unit, help. Labels are named in the help.
pub const METRICS: &[(&str, Kind, Unit, &str)] = &[
    // Ingestion.
    (
        "platform_api_usage_events_total",
        Counter,
        Unit::Count,
        "Usage events answered, by outcome (accepted, duplicate, conflict, refused, unavailable) and door.",
    ),
    ("platform_api_usage_parse_seconds", Histogram, Unit::Seconds, "Time to read one body of usage events."),
    ("platform_api_quarantined_total", Counter, Unit::Count, "Events put into quarantine, by reason."),
    (
        "platform_api_litellm_surplus_copies_total",
        Counter,
        Unit::Count,
        "Copies of events that were counted already, as LiteLLM sends them.",
    ),
    (
        "platform_api_stream_pending_messages",
        Gauge,
        Unit::Count,
        "Messages in the usage stream that were not delivered to us yet.",
    ),
    (
        "platform_api_stream_ack_pending_messages",
        Gauge,
        Unit::Count,
        "Messages of the usage stream delivered to us and not acknowledged yet.",
    ),
    ("platform_api_stream_pull_messages", Histogram, Unit::Count, "Messages of one pull from the usage stream."),
    ("platform_api_stream_connected", Gauge, Unit::Count, "1 while this node reads the usage stream, 0 otherwise."),
    (
        "platform_api_stream_standing_by",
        Gauge,
        Unit::Count,
        "1 while another node reads the usage stream, and this one would take over.",
    ),
    (
        "platform_api_stream_put_off_total",
        Counter,
        Unit::Count,
        "Times a tenant could not take what the stream brought for it and was left for later, by cause.",
    ),
    ("platform_api_stream_in_flight_events", Gauge, Unit::Count, "Usage events read from the stream, not counted yet."),
    ("platform_api_stream_in_flight_bytes", Gauge, Unit::Bytes, "Bytes of those events."),
    (
        "platform_api_parked_events",
        Gauge,
        Unit::Count,
        "Events in quarantine that are counted by themselves once their tenant can take them.",
    ),
    (
        "platform_api_unfinished_changes",
        Gauge,
        Unit::Count,
        "Changes to tenants that were made and could not be finished yet; they are tried until they are.",
    ),
    ("platform_api_jobs", Gauge, Unit::Count, "Background jobs that are not finished, by state (waiting, running)."),
    (
        "platform_api_job_tries_total",
        Counter,
        Unit::Count,
        "Tries of background jobs that have ended, by outcome (succeeded, failed, canceled, released).",
    ),
    (
        "platform_api_provider_leases_total",
        Counter,
        Unit::Count,
        "Secrets of tenants' providers that were lent to services.",
    ),
    (
        "platform_api_quarantine_left_out_total",
        Counter,
        Unit::Count,
        "Events that were not kept in quarantine, because a share of it is full, by reason.",
    ),
    (
        "platform_api_quarantine_waiting_bytes",
        Gauge,
        Unit::Bytes,
        "Bytes of events that are on their way to the quarantine, also of those that nobody waits for any more.",
    ),
    ("platform_api_parked_events_max", Gauge, Unit::Count, "How many of those there may be: intake.parked_events_max."),
    (
        "platform_api_stream_anomalies_total",
        Counter,
        Unit::Count,
        "Times the stream was found not to be the one that was read, by kind; it was then read again.",
    ),
    (
        "platform_api_stream_lost_messages_total",
        Counter,
        Unit::Count,
        "Messages that were gone from the stream before anybody read them.",
    ),
    // What the gateway says.
    (
        "platform_api_kong_log_records_total",
        Counter,
        Unit::Count,
        "Records of Kong's access log, by outcome (accepted, duplicate, unattributed, rejected), and bodies that were put off (unavailable).",
    ),
    (
        "platform_api_kong_looks_total",
        Counter,
        Unit::Count,
        "Looks at Kong's meters, by source (metrics, limiter) and result: ok, failed.",
    ),
    // Tenants and commits.
    ("platform_api_commit_seconds", Histogram, Unit::Seconds, "Time one tenant transaction takes."),
    ("platform_api_commit_events", Histogram, Unit::Count, "Usage events of one commit."),
    (
        "platform_api_commits_total",
        Counter,
        Unit::Count,
        "Tenant transactions, by outcome: committed, known_events, tried_again, rolled_back, refused, unknown.",
    ),
    ("platform_api_tenant_restarts_total", Counter, Unit::Count, "Tenants opened again after a failure."),
    (
        "platform_api_tenants_turned_out_total",
        Counter,
        Unit::Count,
        "Busy tenants that had to leave because others waited for a place.",
    ),
    (
        "platform_api_tenants_taken_up_total",
        Counter,
        Unit::Count,
        "Tenants that owed something when their node was gone, and that this node came back to.",
    ),
    ("platform_api_nodes", Gauge, Unit::Count, "Nodes on the same databases that are alive, with this one."),
    ("platform_api_tenants", Gauge, Unit::Count, "Tenants, by state."),
    ("platform_api_waiting_events", Gauge, Unit::Count, "Usage events admitted and not committed yet."),
    ("platform_api_oldest_waiting_seconds", Gauge, Unit::Seconds, "Age of the oldest usage event not committed yet."),
    ("platform_api_permits_free_events", Gauge, Unit::Count, "Events that may still be admitted."),
    ("platform_api_audit_records_total", Counter, Unit::Count, "Records appended to audit chains."),
    (
        "platform_api_catalogue_news_total",
        Counter,
        Unit::Count,
        "Things in the catalogue that other nodes have changed and this one has read, by kind.",
    ),
    (
        "platform_api_catalogue_poll_failures_total",
        Counter,
        Unit::Count,
        "Times that what other nodes have changed could not be read.",
    ),
    (
        "platform_api_catalogue_read_at_seconds",
        Gauge,
        Unit::Seconds,
        "When what other nodes have changed was last read, in seconds since 1970; 0 where there is no other node.",
    ),
    // The store.
    ("platform_api_store_failures_total", Counter, Unit::Count, "Failures of the database, by class."),
    ("platform_api_store_reader_wait_seconds", Histogram, Unit::Seconds, "Time a slow read waits for a connection."),
    ("platform_api_store_readers_busy", Gauge, Unit::Count, "Connections in use by slow reads."),
    // The HTTP door and its lock.
    (
        "platform_api_policy_decisions_total",
        Counter,
        Unit::Count,
        "Decisions by a tenant's own roles and policies, by door (own, authzen) and decision (allow, deny).",
    ),
    (
        "platform_api_policy_engine_questions_total",
        Counter,
        Unit::Count,
        "Questions that had not been asked before at this version of a tenant's policies, and were put to Casbin.",
    ),
    (
        "platform_api_openfga_checks_total",
        Counter,
        Unit::Count,
        "Relations asked of OpenFGA, by outcome (allowed, denied, timed_out, failed, unaskable); the last three are denials.",
    ),
    ("platform_api_http_requests_total", Counter, Unit::Count, "Requests answered, by operation and status."),
    ("platform_api_http_request_seconds", Histogram, Unit::Seconds, "Time to answer a request, by operation."),
    ("platform_api_http_connections_open", Gauge, Unit::Count, "Open connections."),
    (
        "platform_api_http_connection_timeouts_total",
        Counter,
        Unit::Count,
        "Connections closed because their client was too slow, by phase.",
    ),
    (
        "platform_api_http_accept_errors_total",
        Counter,
        Unit::Count,
        "Connections that could not be accepted, as when file descriptors run out.",
    ),
    ("platform_api_http_panics_total", Counter, Unit::Count, "Requests that panicked; there should be none."),
    ("platform_api_http_denials_total", Counter, Unit::Count, "Requests denied to a known caller, by code."),
    (
        "platform_api_authentication_failures_total",
        Counter,
        Unit::Count,
        "Callers that could not be authenticated, by kind.",
    ),
    (
        "platform_api_refused_after_revocation_total",
        Counter,
        Unit::Count,
        "Requests and decisions refused because a user, group, API key or tenant is no longer admitted, by kind.",
    ),
    (
        "platform_api_logins_total",
        Counter,
        Unit::Count,
        "Logins of browsers, by provider (`none` when it was not finished) and outcome.",
    ),
    (
        "platform_api_passwords_rehashed_total",
        Counter,
        Unit::Count,
        "Passwords that were hashed anew at a login because `[auth.local]` asks for another cost.",
    ),
    (
        "platform_api_session_renewals_total",
        Counter,
        Unit::Count,
        "Refreshes of sessions for which their issuer was asked, by outcome (ok, away, refused).",
    ),
    (
        "platform_api_sessions_copied_total",
        Counter,
        Unit::Count,
        "Sessions that ended because an old secret of theirs came back.",
    ),
    (
        "platform_api_back_channel_logouts_total",
        Counter,
        Unit::Count,
        "Logout tokens that issuers have posted, by outcome.",
    ),
    (
        "platform_api_token_introspections_total",
        Counter,
        Unit::Count,
        "Questions to issuers about opaque tokens, by issuer and outcome (active, inactive, unreadable).",
    ),
    (
        "platform_api_users_provisioned_total",
        Counter,
        Unit::Count,
        "People added to their tenant or brought up to date as their issuer describes them, by outcome (ok, refused).",
    ),
    (
        "platform_api_issuer_key_fetches_total",
        Counter,
        Unit::Count,
        "Fetches of an issuer's signing keys, by issuer and outcome.",
    ),
    // How often is too often.
    ("platform_api_rate_limited_total", Counter, Unit::Count, "Requests over a rate limit, by class."),
    ("platform_api_rate_limit_buckets", Gauge, Unit::Count, "Buckets that are not full and are kept."),
    (
        "platform_api_rate_limit_overflows_total",
        Counter,
        Unit::Count,
        "Requests judged together with others of their tenant, because there was no place for a bucket.",
    ),
    (
        "platform_api_rate_limit_settlements_total",
        Counter,
        Unit::Count,
        "Rounds in which this node told Redis what it has admitted, by result: ok, failed.",
    ),
    (
        "platform_api_rate_limit_fallback",
        Gauge,
        Unit::Count,
        "1 while each node limits rates for itself because Redis does not answer.",
    ),
    // The gRPC door.
    (
        "platform_api_envoy_requests_total",
        Counter,
        Unit::Count,
        "Questions of Envoy answered, by result: allow, warn, deny, unknown, or the status that was sent instead.",
    ),
    ("platform_api_envoy_request_seconds", Histogram, Unit::Seconds, "Time to answer a question of Envoy."),
    ("platform_api_envoy_connections_open", Gauge, Unit::Count, "Open connections of Envoy."),
    // The outlets.
    (
        "platform_api_deliveries_total",
        Counter,
        Unit::Count,
        "Attempts to deliver an alert, by channel and result: delivered, retry, gave_up.",
    ),
    ("platform_api_delivery_seconds", Histogram, Unit::Seconds, "Time of one send, by channel."),
    ("platform_api_channel_open", Gauge, Unit::Count, "1 while a channel's circuit is open and it is left alone."),
    ("platform_api_mirror_writes_total", Counter, Unit::Count, "Standings written to Redis, by result: ok, failed."),
    // The reconciliation.
    (
        "platform_api_audit_verifications_total",
        Counter,
        Unit::Count,
        "Chains verified in the background, by result: whole, broken, unread.",
    ),
    (
        "platform_api_reconcile_windows_total",
        Counter,
        Unit::Count,
        "Windows compared with a gateway's books, by proof and verdict: matched, drift, unproven.",
    ),
    (
        "platform_api_reconcile_findings_total",
        Counter,
        Unit::Count,
        "Findings that changed, by cause and what they are now: open, acknowledged, resolved, explained, settled.",
    ),
    (
        "platform_api_reconcile_proof_age_seconds",
        Gauge,
        Unit::Seconds,
        "How long nothing has been proven, by proof, in the open tenant where that is longest.",
    ),
    ("platform_api_reconcile_pass_seconds", Histogram, Unit::Seconds, "Time to compare what was due of one tenant."),
    (
        "platform_api_kong_sync_runs_total",
        Counter,
        Unit::Count,
        "Comparisons of Kong's consumers with the tenants, and loads of nodes without a database, by result: ok, failed.",
    ),
    ("platform_api_kong_sync_seconds", Histogram, Unit::Seconds, "Time one comparison, or load of a node, takes."),
    (
        "platform_api_kong_sync_lag_seconds",
        Histogram,
        Unit::Seconds,
        "Time from a change of a tenant until Kong had it.",
    ),
    ("platform_api_kong_sync_objects", Gauge, Unit::Count, "Objects of ours in Kong, by kind: consumers, suspended."),
    (
        "platform_api_kong_sync_node_up",
        Gauge,
        Unit::Count,
        "Whether a node of a Kong without a database has taken its last load, by node.",
    ),
    ("platform_api_kong_sync_writes_total", Counter, Unit::Count, "Requests that changed Kong, by kind."),
    // Feature flags.
    (
        "platform_api_flag_evaluations_total",
        Counter,
        Unit::Count,
        "Feature flags evaluated, by door (features, ofrep) and reason, or the error that was answered instead.",
    ),
    (
        "platform_api_flag_exposures_dropped_total",
        Counter,
        Unit::Count,
        "Times a variant was served that no tenant has counted: too many wait, or its tenant did not take them.",
    ),
    (
        "platform_api_flag_source_fetches_total",
        Counter,
        Unit::Count,
        "Fetches of Flagsmith's environment document, by result: ok, failed, unreadable.",
    ),
    (
        "platform_api_flag_source_age_seconds",
        Gauge,
        Unit::Seconds,
        "Age of the document that feature flags are served from.",
    ),
    // Ourselves.
    ("platform_api_build_info", Gauge, Unit::Count, "1, with the version as a label."),
];

/// Buckets of every histogram of seconds: from a decision's memory look-up to a request's deadline.
const SECONDS: [f64; 16] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Buckets of every histogram of counts.
const COUNTS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0];

/// A recorder with buckets for each histogram in the table.
pub(super) fn recorder() -> PrometheusRecorder {
    let histograms = METRICS.iter().filter(|(_, kind, ..)| *kind == Histogram);
    let builder = histograms.fold(PrometheusBuilder::new(), |builder, (name, _, unit, _)| {
        let buckets: &[f64] = if *unit == Unit::Seconds { &SECONDS } else { &COUNTS };
        // The only error is an empty list of buckets.
        #[allow(clippy::expect_used, reason = "both lists above have buckets")]
        builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets).expect("buckets are given")
    });
    builder.build_recorder()
}

/// Registers the table with the installed recorder.
pub(super) fn describe() {
    for (name, kind, unit, help) in METRICS {
        match kind {
            Counter => metrics::describe_counter!(*name, *unit, *help),
            Gauge => metrics::describe_gauge!(*name, *unit, *help),
            Histogram => metrics::describe_histogram!(*name, *unit, *help),
        }
    }
    metrics::gauge!("platform_api_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// The text of a process that has used every metric of the table.
    fn rendered() -> String {
        let recorder = recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            for (name, kind, ..) in METRICS {
                match kind {
                    Counter => metrics::counter!(*name, "result" => "ok").increment(1),
                    Gauge => metrics::gauge!(*name, "state" => "open").set(1.0),
                    Histogram => metrics::histogram!(*name, "operation" => "test").record(0.02),
                }
            }
        });
        recorder.handle().render()
    }

    #[test]
    fn every_metric_has_its_kind_help_and_buckets() {
        let text = rendered();
        for (name, kind, unit, help) in METRICS {
            let word = format!("{kind:?}").to_lowercase();
            assert!(text.contains(&format!("# TYPE {name} {word}\n")), "{name}");
            assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
            assert!(*kind != Histogram || text.contains(&format!("{name}_bucket{{")), "{name}");
        }
        let mut names: Vec<&str> = METRICS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn every_metric_that_is_used_is_in_the_table() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut used = std::collections::BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("telemetry/metric.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let literals = text.split('"').filter(|part| part.starts_with("platform_api_"));
                    used.extend(literals.filter(|name| !name.contains(['=', ' '])).map(str::to_owned));
                }
            }
        }
        let unknown: Vec<&String> =
            used.iter().filter(|name| METRICS.iter().all(|(known, ..)| known != name)).collect();
        assert!(used.len() > 5 && unknown.is_empty(), "not in the table: {unknown:?}");
    }

    #[test]
    fn promtool_is_content() {
        let spawned = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = spawned else {
            eprintln!("promtool is not installed (apt-get install prometheus): not checked");
            return;
        };
        promtool.stdin.take().unwrap().write_all(rendered().as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
}
