-- Nodes that share these databases. Each counts up its beats; one that does not is gone, and is struck off by who notices.
CREATE TABLE node (
    id TEXT PRIMARY KEY,
    beats BIGINT NOT NULL
);

-- Which node is to do what an awake tenant owes. Empty, or gone: whoever takes it up. What was taken up is awake = 2 until it is
-- open.
ALTER TABLE tenant ADD COLUMN holder TEXT NOT NULL DEFAULT '';
CREATE INDEX tenant_awake ON tenant (holder) WHERE awake <> 0;
