-- What gateways say about this tenant, and how that compares with the ledger.

-- One finished request of a gateway's access log. The key begins with the millisecond in which the request began, then a
-- digest of who it was: what is sent again is found, a window is a range of keys, and no insert touches a random page.
CREATE TABLE gateway_request (
    request_key BYTEA PRIMARY KEY,
    started_at BIGINT NOT NULL,
    duration BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    status BIGINT NOT NULL,
    -- 1 claimed by another, 2 answered by the gateway itself, 4 authenticated, 8 limited, 16 claims another tenant.
    flags BIGINT NOT NULL,
    -- What the gateway counted; -1 where it counted nothing.
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    request_id TEXT NOT NULL,
    call_id TEXT NOT NULL,
    route TEXT NOT NULL
) /* WITHOUT ROWID */;

-- Running meters as they were last seen.
CREATE TABLE gateway_series (
    source TEXT NOT NULL,
    series TEXT NOT NULL,
    epoch TEXT NOT NULL,
    value BIGINT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (source, series)
) /* WITHOUT ROWID */;

-- What the meters counted, by window, summed over a source's series.
CREATE TABLE gateway_meter (
    window_start BIGINT NOT NULL,
    source TEXT NOT NULL,
    amount BIGINT NOT NULL,
    lower_bound BIGINT NOT NULL,
    PRIMARY KEY (window_start, source)
) /* WITHOUT ROWID */;

-- Times in which a source could not be heard.
CREATE TABLE gateway_interruption (
    until_at BIGINT NOT NULL,
    from_at BIGINT NOT NULL,
    source TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (until_at, source, reason, from_at)
) /* WITHOUT ROWID */;

-- Routes on which the limiter has been seen to work.
CREATE TABLE gateway_route (
    route TEXT PRIMARY KEY
);

-- How far the comparison has come: one row, or none while no gateway has said anything. 0 stands for never.
CREATE TABLE reconciliation (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    access_log_since BIGINT NOT NULL,
    metrics_since BIGINT NOT NULL,
    limiter_since BIGINT NOT NULL,
    -- Until when the comparison of requests, of counts and of attempts has proven anything.
    requests_proven BIGINT NOT NULL,
    cumulative_proven BIGINT NOT NULL,
    attempts_proven BIGINT NOT NULL,
    heard_until BIGINT NOT NULL,
    settled_until BIGINT NOT NULL,
    again_at BIGINT NOT NULL
);

-- Windows that are compared again: something has come since, or a finding is open. How often they were compared.
CREATE TABLE reconciliation_again (
    window_start BIGINT PRIMARY KEY,
    due_at BIGINT NOT NULL,
    times BIGINT NOT NULL
);

CREATE TABLE reconciliation_window (
    window_start BIGINT NOT NULL,
    proof TEXT NOT NULL,
    window_end BIGINT NOT NULL,
    verdict TEXT NOT NULL,
    gateway BIGINT NOT NULL,
    ledger BIGINT NOT NULL,
    tolerance BIGINT NOT NULL,
    -- Why it is unproven, separated by commas.
    reasons TEXT NOT NULL,
    judged_at BIGINT NOT NULL,
    PRIMARY KEY (window_start, proof)
) /* WITHOUT ROWID */;

CREATE TABLE finding (
    id TEXT PRIMARY KEY,
    cause TEXT NOT NULL,
    proof TEXT NOT NULL,
    window_start BIGINT NOT NULL,
    window_end BIGINT NOT NULL,
    gateway BIGINT NOT NULL,
    ledger BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    evidence TEXT NOT NULL,
    status TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    adjustment BIGINT NOT NULL,
    UNIQUE (window_start, cause)
);

CREATE INDEX finding_open ON finding (window_start) WHERE status IN ('open', 'acknowledged');
