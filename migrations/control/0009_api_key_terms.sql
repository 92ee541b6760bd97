-- What narrows a key, how long it holds, and the exchange of its secret. The defaults are for keys that are there already.

-- A JSON array of permissions; empty: all that the role allows.
ALTER TABLE api_key ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]';
-- 0: until it is revoked.
ALTER TABLE api_key ADD COLUMN expires_at BIGINT NOT NULL DEFAULT 0;
-- A JSON array of limits by class; empty: those of the tenant's tier alone.
ALTER TABLE api_key ADD COLUMN rate_limits TEXT NOT NULL DEFAULT '[]';
-- Of the secret before this one; absent: there was none.
ALTER TABLE api_key ADD COLUMN previous_hash BYTEA;
ALTER TABLE api_key ADD COLUMN previous_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE api_key ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
-- The hour in which it was last used, as far as that was written down; 0: never.
ALTER TABLE api_key ADD COLUMN last_used_at BIGINT NOT NULL DEFAULT 0;
