-- The tenant's own roles and policies. The definition is the thing as JSON.
CREATE TABLE policy_role (
    name TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE policy (
    id TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- One row: how often any of them was changed, which is the version of them all.
CREATE TABLE policy_version (
    id BIGINT PRIMARY KEY,
    version BIGINT NOT NULL
);

INSERT INTO policy_version (id, version) VALUES (1, 0);
