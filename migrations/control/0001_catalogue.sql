-- The platform's own books: who the tenants are, their keys, what is still to be finished, what was not counted.
-- The same portable SQL as the tenants' databases.

CREATE TABLE tenant (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    tier TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    lifecycle TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    -- The head of the tenant's chain when it was last seen: its database may be ahead of it, never behind.
    head_seq BIGINT NOT NULL,
    head_hash BYTEA NOT NULL,
    -- 1 while something is owed that only an open tenant can do.
    awake BIGINT NOT NULL
);

CREATE TABLE external_id (
    source TEXT NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    PRIMARY KEY (source, kind, id)
);

CREATE INDEX external_id_by_tenant ON external_id (tenant_id);

-- Never the key itself: a keyed hash of it.
CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    hash BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    -- 0 while it is good.
    revoked_at BIGINT NOT NULL
);

-- Steps that have to be finished, whatever happens.
CREATE TABLE work (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE quarantine (
    id TEXT PRIMARY KEY,
    -- Empty when it is not known beyond doubt.
    tenant_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    origin TEXT NOT NULL,
    format TEXT NOT NULL,
    digest BYTEA NOT NULL UNIQUE,
    body BYTEA NOT NULL,
    received_at BIGINT NOT NULL,
    last_received_at BIGINT NOT NULL,
    arrivals BIGINT NOT NULL,
    -- 0 until another try counted it.
    replayed_at BIGINT NOT NULL
);

CREATE INDEX quarantine_by_tenant ON quarantine (tenant_id, id);

-- The platform's chain and its head.
CREATE TABLE audit_record (
    seq BIGINT PRIMARY KEY,
    at BIGINT NOT NULL,
    action TEXT NOT NULL,
    bytes BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    payload TEXT,
    salt BYTEA
);

CREATE TABLE platform (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    head_seq BIGINT NOT NULL,
    head_hash BYTEA NOT NULL
);

-- Answers to requests that carried an idempotency key.
CREATE TABLE request (
    idempotency_key TEXT PRIMARY KEY,
    body_hash BYTEA NOT NULL,
    answer TEXT NOT NULL,
    at BIGINT NOT NULL
);
