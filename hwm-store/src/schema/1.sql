-- Values that belong to the file itself.
CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;

-- Names that other tables refer to by number. Rows are added, never changed.
CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE scopes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

-- How many records each scope has in each bucket, and how many operations (bucket -1).
CREATE TABLE counts (
    scope INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (scope, bucket)
) STRICT, WITHOUT ROWID;

-- A bucket is node, type, status and whether it is deleted, in one number. A record is in every scope
-- whose column is not null.
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    phase INTEGER NOT NULL,
    backend TEXT NOT NULL,
    in_org INTEGER,
    in_group INTEGER,
    of_user INTEGER,
    of_agent INTEGER,
    of_both INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_at INTEGER,
    name TEXT NOT NULL,
    description TEXT,
    sealed BLOB,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX records_phase ON records (backend, phase, id);
CREATE INDEX records_deleted ON records (deleted_at) WHERE deleted_at IS NOT NULL;

-- One index for each scope and sort, so that a page of any filter is the merge of a few ordered runs.
CREATE INDEX records_all_created ON records (bucket, created_at, id);
CREATE INDEX records_all_updated ON records (bucket, updated_at, id);
CREATE INDEX records_all_name ON records (bucket, name, id);
CREATE INDEX records_all_status ON records (bucket, id);
CREATE INDEX records_org_created ON records (in_org, bucket, created_at, id) WHERE in_org IS NOT NULL;
CREATE INDEX records_org_updated ON records (in_org, bucket, updated_at, id) WHERE in_org IS NOT NULL;
CREATE INDEX records_org_name ON records (in_org, bucket, name, id) WHERE in_org IS NOT NULL;
CREATE INDEX records_org_status ON records (in_org, bucket, id) WHERE in_org IS NOT NULL;
CREATE INDEX records_group_created ON records (in_group, bucket, created_at, id) WHERE in_group IS NOT NULL;
CREATE INDEX records_group_updated ON records (in_group, bucket, updated_at, id) WHERE in_group IS NOT NULL;
CREATE INDEX records_group_name ON records (in_group, bucket, name, id) WHERE in_group IS NOT NULL;
CREATE INDEX records_group_status ON records (in_group, bucket, id) WHERE in_group IS NOT NULL;
CREATE INDEX records_user_created ON records (of_user, bucket, created_at, id) WHERE of_user IS NOT NULL;
CREATE INDEX records_user_updated ON records (of_user, bucket, updated_at, id) WHERE of_user IS NOT NULL;
CREATE INDEX records_user_name ON records (of_user, bucket, name, id) WHERE of_user IS NOT NULL;
CREATE INDEX records_user_status ON records (of_user, bucket, id) WHERE of_user IS NOT NULL;
CREATE INDEX records_agent_created ON records (of_agent, bucket, created_at, id) WHERE of_agent IS NOT NULL;
CREATE INDEX records_agent_updated ON records (of_agent, bucket, updated_at, id) WHERE of_agent IS NOT NULL;
CREATE INDEX records_agent_name ON records (of_agent, bucket, name, id) WHERE of_agent IS NOT NULL;
CREATE INDEX records_agent_status ON records (of_agent, bucket, id) WHERE of_agent IS NOT NULL;

-- The trigrams of names and descriptions, folded, by seq. It tells where a text may be, not that it is.
CREATE VIRTUAL TABLE search USING fts5 (
    name,
    description,
    content = '',
    contentless_delete = 1,
    detail = none,
    tokenize = 'trigram case_sensitive 1'
);

-- A share is the holder for a pool, which many hold, and empty for a key that has one holder.
CREATE TABLE claims (
    node TEXT NOT NULL,
    key TEXT NOT NULL,
    share BLOB NOT NULL,
    holder BLOB NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (node, key, share)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_holder ON claims (holder);

CREATE TABLE pools (
    node TEXT NOT NULL,
    key TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (node, key)
) STRICT, WITHOUT ROWID;

-- finished_at is null while an operation is not final.
CREATE TABLE operations (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    resource BLOB NOT NULL,
    finished_at INTEGER,
    in_org INTEGER,
    in_group INTEGER,
    of_user INTEGER,
    of_agent INTEGER,
    of_both INTEGER,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX operations_resource ON operations (resource);
CREATE INDEX operations_unfinished ON operations (resource) WHERE finished_at IS NULL;
CREATE INDEX operations_finished ON operations (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX operations_org ON operations (in_org) WHERE in_org IS NOT NULL;
CREATE INDEX operations_group ON operations (in_group) WHERE in_group IS NOT NULL;
CREATE INDEX operations_user ON operations (of_user) WHERE of_user IS NOT NULL;
CREATE INDEX operations_agent ON operations (of_agent) WHERE of_agent IS NOT NULL;

CREATE TABLE events (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX events_time ON events (time);

CREATE TABLE snapshots (
    id BLOB PRIMARY KEY,
    resource BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_resource ON snapshots (resource, created_at, id);

CREATE TABLE remembered (key TEXT PRIMARY KEY, time INTEGER NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX remembered_time ON remembered (time);

CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
