-- The tenant's own feature flags. The definition is the flag as JSON.
CREATE TABLE flag (
    flag_key TEXT PRIMARY KEY,
    version BIGINT NOT NULL,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- How often each variant was served to this tenant, of its own flags and of the platform's.
CREATE TABLE flag_exposure (
    flag_key TEXT NOT NULL,
    variant TEXT NOT NULL,
    served BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (flag_key, variant)
);
