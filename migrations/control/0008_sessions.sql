-- Sessions of browsers, when no Redis keeps them. Of a secret only its SHA-256 is here.
CREATE TABLE session (
    id TEXT PRIMARY KEY,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- The issuer's own session; empty when it did not say.
    provider_session TEXT NOT NULL,
    secret BYTEA NOT NULL,
    previous BYTEA NOT NULL,
    rotated_at BIGINT NOT NULL,
    rotations BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    idle_until BIGINT NOT NULL,
    ends_at BIGINT NOT NULL,
    -- Who the person is, and the issuer's refresh token, sealed.
    document TEXT NOT NULL
);
CREATE INDEX session_of_subject ON session (issuer, subject);
CREATE INDEX session_of_provider ON session (issuer, provider_session);
CREATE INDEX session_ends ON session (ends_at);

-- Every secret a session has had: an old one that comes back is a copy.
CREATE TABLE session_secret (
    secret BYTEA PRIMARY KEY,
    session_id TEXT NOT NULL
);
CREATE INDEX session_secret_of ON session_secret (session_id);

-- What may be used once: a login's state, a logout token's id.
CREATE TABLE used_once (
    name TEXT PRIMARY KEY,
    until_at BIGINT NOT NULL
);
CREATE INDEX used_once_until ON used_once (until_at);

-- Passwords of people who log in here rather than at an issuer: argon2id.
CREATE TABLE local_password (
    user_id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);
