-- What a change to the catalogue has left to do is a job like any other. Unfinished ones are taken over as they are: their
-- ids are what keeps their records from being written twice. Of a request that came with an idempotency key, the oldest has it.
INSERT INTO job (id, kind, tenant_id, unique_key, arguments, run_at, every_micros, attempts_max, actor, request_id, state,
    attempts, lease, lease_until, cancel_requested, progress_done, progress_total, note, checkpoint, result, error,
    created_at, started_at, finished_at)
SELECT id, 'tenant.finishChange', tenant_id,
    CASE WHEN request_key <> '' AND id = MIN(id) OVER (PARTITION BY request_key) THEN 'request:' || request_key ELSE '' END,
    '{"version":1,"plan":' || body || '}', created_at, 0, 0, 'system', '', 'waiting',
    0, 0, 0, 0, 0, -1, '', '', '', '',
    created_at, 0, 0
FROM (
    SELECT id, tenant_id, body, created_at, CASE WHEN body LIKE '{%' THEN COALESCE(body::json #>> '{answer,key}', '') ELSE '' END AS request_key
    FROM work
) AS unfinished;

DROP TABLE work;
