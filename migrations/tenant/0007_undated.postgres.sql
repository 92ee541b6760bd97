-- The flag of an event whose sender gave no time, for people and reporting tools.
CREATE OR REPLACE VIEW usage_event_view AS
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
    details,
    flags & 8 <> 0 AS undated
FROM usage_ledger;
