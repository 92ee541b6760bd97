-- What has changed in the catalogue, for nodes that share it: each thing with the version of its last change. The one row of
-- catalogue_version is locked by whoever changes something, so versions appear in their order.
CREATE TABLE catalogue_version (
    id BIGINT PRIMARY KEY,
    version BIGINT NOT NULL
);
INSERT INTO catalogue_version (id, version) VALUES (1, 0);
CREATE TABLE catalogue_news (
    -- tenant, apiKey, platformAdmin or flag.
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX catalogue_news_version ON catalogue_news (version);
