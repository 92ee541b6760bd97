-- Bytes of the body, so that what somebody has there is summed without reading bodies.
ALTER TABLE quarantine ADD COLUMN body_bytes BIGINT NOT NULL DEFAULT 0;

-- What was counted in the end is in the ledger, and gives up its body.
UPDATE quarantine SET body = SUBSTR(body, 1, 0) WHERE replayed_at <> 0 AND left_out_bytes = 0;
UPDATE quarantine SET body_bytes = LENGTH(body) WHERE replayed_at = 0 AND left_out_bytes = 0;

-- What counts against somebody's share, with all that is asked of it.
CREATE INDEX quarantine_kept ON quarantine (tenant_id, reason, replayed_at, left_out_bytes, body_bytes)
    WHERE replayed_at = 0 AND left_out_bytes = 0 AND reason NOT IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE');

-- What has not come again for long enough is forgotten.
DROP INDEX quarantine_by_age;
CREATE INDEX quarantine_by_age ON quarantine (last_received_at);
