-- Where each usage stream has been read to, and what stood there.
CREATE TABLE stream_checkpoint (
    stream TEXT PRIMARY KEY,
    created_nanos BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    at_nanos BIGINT NOT NULL,
    -- Empty when no message that was read stands there.
    hash BYTEA NOT NULL
);

-- What waits for its tenant, oldest first.
CREATE INDEX quarantine_waiting ON quarantine (tenant_id, id)
    WHERE replayed_at = 0 AND reason IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE');
