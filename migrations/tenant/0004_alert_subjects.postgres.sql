-- What an alert is about. The table's key goes on to mean one alert for each subject: of a budget's burn the threshold
-- is 0; a drift has its cause, its first window, the windows in a row and the difference in the columns of the quota's
-- id, the period's start, the limit and the usage.
ALTER TABLE alert ADD COLUMN kind TEXT NOT NULL DEFAULT 'quotaThreshold';
-- What only one kind has: of budgetBurn the instant at which nothing would be left, of reconciliationDrift its summary.
ALTER TABLE alert ADD COLUMN details TEXT NOT NULL DEFAULT '';
-- Who is looking at it, and since when; 0 while nobody is.
ALTER TABLE alert ADD COLUMN acknowledged_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE alert ADD COLUMN acknowledged_by TEXT NOT NULL DEFAULT '';

-- The end of the quiet hours that a message waits for; 0 when it waits for none.
ALTER TABLE outbox ADD COLUMN held_until BIGINT NOT NULL DEFAULT 0;

CREATE INDEX outbox_by_age ON outbox (created_at, alert_id, event, channel);

CREATE OR REPLACE VIEW alert_view AS
SELECT
    id, quota_id, scope_kind, scope_id, metric, period, limit_amount, enforcement, threshold, used,
    TIMESTAMPTZ 'epoch' + period_start * INTERVAL '1 microsecond' AS period_start,
    CASE WHEN period = 'total' OR kind = 'reconciliationDrift' THEN NULL
         ELSE TIMESTAMPTZ 'epoch' + period_end * INTERVAL '1 microsecond' END AS period_end,
    TIMESTAMPTZ 'epoch' + fired_at * INTERVAL '1 microsecond' AS fired_at,
    CASE WHEN resolved_at = 0 THEN NULL
         ELSE TIMESTAMPTZ 'epoch' + resolved_at * INTERVAL '1 microsecond' END AS resolved_at,
    kind, details,
    CASE WHEN acknowledged_at = 0 THEN NULL
         ELSE TIMESTAMPTZ 'epoch' + acknowledged_at * INTERVAL '1 microsecond' END AS acknowledged_at,
    acknowledged_by
FROM alert;
