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
