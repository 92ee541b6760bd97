-- The people of the tenant. Uniqueness is judged in memory before anything is written; what is unique here guards that.

CREATE TABLE organization_user (
    id TEXT PRIMARY KEY,
    user_name TEXT NOT NULL,
    -- The name as it is compared: in whatever case.
    name_key TEXT NOT NULL UNIQUE,
    display_name TEXT NOT NULL,
    given_name TEXT,
    family_name TEXT,
    external_id TEXT UNIQUE,
    -- Lists and objects are JSON.
    emails TEXT NOT NULL,
    attributes TEXT NOT NULL,
    -- 1 or 0.
    active BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Whom tokens speak of when they mean a user, in the user's order.
CREATE TABLE organization_subject (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    user_id TEXT NOT NULL REFERENCES organization_user (id),
    ordinal BIGINT NOT NULL,
    PRIMARY KEY (issuer, subject)
);

CREATE INDEX organization_subject_by_user ON organization_subject (user_id, ordinal);

CREATE TABLE organization_group (
    id TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    external_id TEXT UNIQUE,
    description TEXT,
    attributes TEXT NOT NULL,
    active BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE organization_member (
    group_id TEXT NOT NULL REFERENCES organization_group (id),
    -- user or group.
    member_kind TEXT NOT NULL,
    member_id TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (group_id, member_kind, member_id)
) /* WITHOUT ROWID */;

CREATE INDEX organization_member_by_member ON organization_member (member_kind, member_id);

CREATE TABLE role_assignment (
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    -- user, group or apiKey.
    holder_kind TEXT NOT NULL,
    holder_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (holder_kind, holder_id, role)
);

-- The roles that tenants before this one were not made with.
INSERT INTO role (name, description, created_at)
    SELECT 'developer', 'reads usage, quotas and alerts, asks for decisions', created_at FROM books WHERE id = 1;
INSERT INTO role (name, description, created_at)
    SELECT 'analyst', 'reads usage, quotas, alerts and reconciliation', created_at FROM books WHERE id = 1;
