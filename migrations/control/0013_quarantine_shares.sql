-- Bytes of bodies that were not kept: above zero in a row that only counts what its owner's share had no room for.
ALTER TABLE quarantine ADD COLUMN left_out_bytes BIGINT NOT NULL DEFAULT 0;

-- What is old enough is forgotten.
CREATE INDEX quarantine_by_age ON quarantine (received_at);
