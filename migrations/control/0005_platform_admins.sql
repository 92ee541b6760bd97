-- People who administer the platform, by what their issuer's tokens call them.
CREATE TABLE platform_admin (
    id TEXT PRIMARY KEY,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- For people who read the list.
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (issuer, subject)
);
