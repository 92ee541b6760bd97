-- The tenant's LLM providers. No column holds a secret: ciphertexts are under a data key of the tenant's, data keys under a
-- key of the platform's, which no database has.
CREATE TABLE provider (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- openai, anthropic, google, groq, azureOpenai, bedrock or openaiCompatible.
    kind TEXT NOT NULL,
    base_url TEXT,
    region TEXT,
    api_version TEXT,
    -- 1 or 0.
    active BIGINT NOT NULL,
    version BIGINT NOT NULL,
    -- How many values its secret has had; none comes back.
    secret_versions BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- The keys that secrets are encrypted under, wrapped.
CREATE TABLE data_key (
    version BIGINT PRIMARY KEY,
    -- What it is wrapped with, by name.
    kek TEXT NOT NULL,
    wrapped BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE provider_secret (
    provider_id TEXT PRIMARY KEY REFERENCES provider (id),
    id TEXT NOT NULL UNIQUE,
    version BIGINT NOT NULL,
    data_key_version BIGINT NOT NULL REFERENCES data_key (version),
    nonce BYTEA NOT NULL,
    -- AES-256-GCM, with its tag; bound to tenant, provider, id, version and data key.
    ciphertext BYTEA NOT NULL,
    last_four TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    set_at BIGINT NOT NULL
);

-- Who was lent which value, for what and for how long. What was lent stands here when the provider is gone.
CREATE TABLE provider_lease (
    id TEXT PRIMARY KEY,
    provider_id TEXT NOT NULL,
    secret_version BIGINT NOT NULL,
    actor TEXT NOT NULL,
    purpose TEXT NOT NULL,
    model TEXT,
    granted_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX provider_lease_by_expiry ON provider_lease (expires_at);

-- One row at most; lists are JSON.
CREATE TABLE provider_policy (
    id BIGINT PRIMARY KEY,
    egress_hosts TEXT NOT NULL,
    models TEXT NOT NULL,
    failover TEXT NOT NULL,
    version BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
