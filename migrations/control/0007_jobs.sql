-- Background work that survives its worker. Each change is made only by whoever still holds the lease it read.
CREATE TABLE job (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    -- Empty for the platform's own.
    tenant_id TEXT NOT NULL,
    -- Empty for none: of unfinished jobs, one at most has a key.
    unique_key TEXT NOT NULL,
    arguments TEXT NOT NULL,
    run_at BIGINT NOT NULL,
    -- 0 for once.
    every_micros BIGINT NOT NULL,
    attempts_max BIGINT NOT NULL,
    actor TEXT NOT NULL,
    request_id TEXT NOT NULL,
    -- waiting, running, succeeded, failed or canceled.
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    lease BIGINT NOT NULL,
    lease_until BIGINT NOT NULL,
    cancel_requested BIGINT NOT NULL,
    progress_done BIGINT NOT NULL,
    -- -1 when nobody knows.
    progress_total BIGINT NOT NULL,
    note TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    result TEXT NOT NULL,
    error TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX job_by_key ON job (unique_key) WHERE unique_key <> '' AND finished_at = 0;
CREATE INDEX job_waiting ON job (run_at) WHERE state = 'waiting';
CREATE INDEX job_leased ON job (lease_until) WHERE state = 'running';
CREATE INDEX job_by_tenant ON job (tenant_id, id);
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at > 0;

-- Kept answers are forgotten by their age.
CREATE INDEX request_by_age ON request (at);
