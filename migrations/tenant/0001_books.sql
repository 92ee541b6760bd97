-- One tenant's books. Times are UTC epoch microseconds, money is nano-US-dollars, ids are lower-case UUIDs. The only
-- writer computes every value. On SQLite BIGINT PRIMARY KEY is read as INTEGER PRIMARY KEY, BYTEA as BLOB, and the
-- commented table options apply.

-- The one row of the tenant's state; each commit updates it where the epoch is the writer's own.
CREATE TABLE books (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    tenant TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    version BIGINT NOT NULL,
    time_zone TEXT NOT NULL,
    next_position BIGINT NOT NULL,
    latest_event_at BIGINT NOT NULL,
    head_seq BIGINT NOT NULL,
    head_hash BYTEA NOT NULL,
    events BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    unclassified_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE role (
    name TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Clustered by arrival. The unique key is the only secondary index there will be: analytics live on rollups. Numbers
-- come first: Postgres then pads nothing, and finds each at a fixed place.
CREATE TABLE usage_ledger (
    position BIGINT PRIMARY KEY,
    occurred_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    unclassified_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    event_key BYTEA NOT NULL UNIQUE,
    body_hash BYTEA NOT NULL,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    user_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    api_key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    call_type TEXT NOT NULL,
    details TEXT NOT NULL
);

-- A known event that came again with another body: the first counts, the others are kept here, whole.
CREATE TABLE usage_conflict (
    event_key BYTEA NOT NULL,
    body_hash BYTEA NOT NULL,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (event_key, body_hash)
) /* WITHOUT ROWID */;

-- Sums by quarter of an hour and subject.
CREATE TABLE usage_rollup (
    start_at BIGINT NOT NULL,
    user_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    api_key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    events BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    unclassified_tokens BIGINT NOT NULL,
    cost_nano_usd BIGINT NOT NULL,
    PRIMARY KEY (start_at, user_id, group_id, api_key_id, model, provider)
) /* WITHOUT ROWID */;

CREATE TABLE quota (
    id TEXT PRIMARY KEY,
    ordinal BIGINT NOT NULL,
    scope_kind TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    metric TEXT NOT NULL,
    period TEXT NOT NULL,
    limit_amount BIGINT NOT NULL,
    -- Percent, ascending, separated by commas.
    thresholds TEXT NOT NULL,
    enforcement TEXT NOT NULL
);

CREATE TABLE counter (
    quota_id TEXT NOT NULL,
    period_start BIGINT NOT NULL,
    period_end BIGINT NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (quota_id, period_start)
) /* WITHOUT ROWID */;

CREATE INDEX counter_by_end ON counter (period_end);

-- The quota columns are the quota as it was when the threshold was reached.
CREATE TABLE alert (
    id TEXT PRIMARY KEY,
    quota_id TEXT NOT NULL,
    scope_kind TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    metric TEXT NOT NULL,
    period TEXT NOT NULL,
    limit_amount BIGINT NOT NULL,
    thresholds TEXT NOT NULL,
    enforcement TEXT NOT NULL,
    period_start BIGINT NOT NULL,
    period_end BIGINT NOT NULL,
    threshold BIGINT NOT NULL,
    used BIGINT NOT NULL,
    fired_at BIGINT NOT NULL,
    -- 0 while it fires.
    resolved_at BIGINT NOT NULL,
    UNIQUE (quota_id, period_start, threshold)
);

CREATE INDEX alert_by_age ON alert (fired_at, id);
CREATE INDEX alert_firing ON alert (fired_at) WHERE resolved_at = 0;

CREATE TABLE outbox (
    alert_id TEXT NOT NULL,
    event TEXT NOT NULL,
    channel TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at BIGINT NOT NULL,
    -- 0 while it is owed.
    settled_at BIGINT NOT NULL,
    -- owed, delivered or gaveUp.
    outcome TEXT NOT NULL,
    -- Why the last attempt failed, in our words.
    reason TEXT NOT NULL,
    PRIMARY KEY (alert_id, event, channel)
);

CREATE INDEX outbox_owed ON outbox (next_attempt_at) WHERE settled_at = 0;

-- The bytes that were hashed, as they were. Payload and salt may be erased together.
CREATE TABLE audit_record (
    seq BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    action TEXT NOT NULL,
    bytes BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    payload TEXT,
    salt BYTEA
);

CREATE TABLE stream_cursor (
    stream TEXT PRIMARY KEY,
    sequence BIGINT NOT NULL
);

-- Answers to requests that carried an idempotency key.
CREATE TABLE request (
    idempotency_key TEXT PRIMARY KEY,
    body_hash BYTEA NOT NULL,
    answer TEXT NOT NULL,
    at BIGINT NOT NULL
);
