-- Times are microseconds since 1970-01-01T00:00:00Z. A document is its format number,
-- a space, and JSON.

CREATE TABLE setting (
    key TEXT PRIMARY KEY,
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE vm (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    definition TEXT NOT NULL,
    disks TEXT NOT NULL,
    desired_power TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

-- A replica's VM has no row in vm before a failover, so vm is no foreign key.
CREATE TABLE relationship (
    id BLOB PRIMARY KEY,
    vm BLOB NOT NULL,
    place INTEGER NOT NULL,
    side TEXT NOT NULL,
    record TEXT NOT NULL,
    record_version INTEGER NOT NULL,
    settings TEXT NOT NULL,
    peer_host TEXT NOT NULL,
    peer_address TEXT NOT NULL,
    storage_folder TEXT NOT NULL,
    trust_group TEXT NOT NULL,
    UNIQUE (vm, place)
) STRICT;

CREATE TABLE job (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    job_type INTEGER NOT NULL,
    vm BLOB,
    relationship BLOB,
    name TEXT NOT NULL,
    job_state INTEGER NOT NULL,
    percent_complete INTEGER NOT NULL,
    error_code INTEGER NOT NULL,
    error_description TEXT NOT NULL,
    errors TEXT,
    time_submitted INTEGER NOT NULL,
    scheduled_start INTEGER,
    start_time INTEGER,
    elapsed INTEGER NOT NULL,
    time_of_last_state_change INTEGER NOT NULL,
    cancellable INTEGER NOT NULL,
    owner TEXT NOT NULL,
    request TEXT NOT NULL,
    result TEXT,
    final_at INTEGER
) STRICT;
CREATE INDEX job_by_vm ON job (vm, number);
CREATE INDEX job_by_relationship ON job (relationship, number);
CREATE INDEX job_unfinished ON job (number) WHERE final_at IS NULL;

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    vm BLOB,
    relationship BLOB,
    kind TEXT NOT NULL,
    message TEXT NOT NULL,
    document TEXT
) STRICT;
CREATE INDEX event_by_vm ON event (vm, id);
CREATE INDEX event_by_relationship ON event (relationship, id);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    caller TEXT NOT NULL,
    role TEXT NOT NULL,
    operation TEXT NOT NULL,
    target TEXT NOT NULL,
    arguments TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'an audit row is never changed'); END;
CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'an audit row is never removed'); END;

CREATE TABLE statistics (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    relationship BLOB NOT NULL REFERENCES relationship (id) ON DELETE CASCADE,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    document TEXT NOT NULL
) STRICT;
CREATE INDEX statistics_by_relationship ON statistics (relationship, id);
CREATE UNIQUE INDEX statistics_running ON statistics (relationship) WHERE ended_at IS NULL;

CREATE TABLE authorization_entry (
    allowed_primary TEXT PRIMARY KEY COLLATE NOCASE,
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE reference (
    id BLOB PRIMARY KEY,
    vm BLOB NOT NULL,
    boundary INTEGER NOT NULL,
    owner TEXT NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE INDEX reference_by_vm ON reference (vm);

CREATE TABLE peer (
    host TEXT PRIMARY KEY COLLATE NOCASE,
    address TEXT NOT NULL,
    last_seen INTEGER,
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;
