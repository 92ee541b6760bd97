-- The platform's feature flags. The definition is the flag as JSON.
CREATE TABLE flag (
    flag_key TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- What another service last said the flags are: served until it can be asked again.
CREATE TABLE flag_document (
    source TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    fetched_at BIGINT NOT NULL
);
