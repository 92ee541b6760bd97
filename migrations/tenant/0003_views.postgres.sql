-- For people and reporting tools: times as timestamptz, money as numeric dollars. The program never reads these.
CREATE VIEW usage_event_view AS
SELECT
    position,
    source,
    event_id,
    TIMESTAMPTZ 'epoch' + occurred_at * INTERVAL '1 microsecond' AS occurred_at,
    TIMESTAMPTZ 'epoch' + recorded_at * INTERVAL '1 microsecond' AS recorded_at,
    kind, status, user_id, group_id, api_key_id, model, provider, call_type, requests,
    prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens,
    prompt_tokens + completion_tokens + unclassified_tokens AS total_tokens,
    cost_nano_usd::NUMERIC / 1000000000 AS cost_usd,
    flags & 1 <> 0 AS unpriced,
    flags & 2 <> 0 AS cache_hit,
    flags & 4 <> 0 AS total_differs,
    details
FROM usage_ledger;

CREATE VIEW usage_rollup_view AS
SELECT
    TIMESTAMPTZ 'epoch' + start_at * INTERVAL '1 microsecond' AS start_at,
    user_id, group_id, api_key_id, model, provider, events, failures, requests,
    prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens,
    prompt_tokens + completion_tokens + unclassified_tokens AS total_tokens,
    cost_nano_usd::NUMERIC / 1000000000 AS cost_usd
FROM usage_rollup;

CREATE VIEW alert_view AS
SELECT
    id, quota_id, scope_kind, scope_id, metric, period, limit_amount, enforcement, threshold, used,
    TIMESTAMPTZ 'epoch' + period_start * INTERVAL '1 microsecond' AS period_start,
    CASE WHEN period = 'total' THEN NULL
         ELSE TIMESTAMPTZ 'epoch' + period_end * INTERVAL '1 microsecond' END AS period_end,
    TIMESTAMPTZ 'epoch' + fired_at * INTERVAL '1 microsecond' AS fired_at,
    CASE WHEN resolved_at = 0 THEN NULL
         ELSE TIMESTAMPTZ 'epoch' + resolved_at * INTERVAL '1 microsecond' END AS resolved_at
FROM alert;

CREATE VIEW audit_view AS
SELECT
    seq,
    TIMESTAMPTZ 'epoch' + at * INTERVAL '1 microsecond' AS at,
    action,
    convert_from(bytes, 'UTF8')::JSONB AS record,
    encode(hash, 'hex') AS hash,
    payload
FROM audit_record;

-- Rows that are updated in place by almost every commit keep room for their next version on their own page.
ALTER TABLE books SET (fillfactor = 10);
ALTER TABLE counter SET (fillfactor = 70);
ALTER TABLE usage_rollup SET (fillfactor = 80);
