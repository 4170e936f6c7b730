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

PRAGMA application_id = 0x4C424354;
PRAGMA user_version = 1;

INSERT INTO setting VALUES ('service', '1 {"enabled":true}');
INSERT INTO vm VALUES (x'000102030405060708090a0b0c0d0e0f', 'db-1', 'qemu',
    '1 {"memory":1024}', '1 [{"disk":"root"}]', 'running', 1700000000000000, 1700000001000000);
INSERT INTO relationship VALUES (x'101112131415161718191a1b1c1d1e1f',
    x'000102030405060708090a0b0c0d0e0f', 0, 'primary', '3 {"phase":"replicating"}', 41,
    '1 {"frequency":300}', 'b.example', 'b.example:8443', '/var/lib/lifeboat', 'default');
INSERT INTO relationship VALUES (x'202122232425262728292a2b2c2d2e2f',
    x'f00102030405060708090a0b0c0d0e0f', 1, 'replica', '3 {"phase":"suspended"}', 1,
    '1 {}', 'c.example', 'c.example:8443', '/srv', '');
INSERT INTO job VALUES (7, x'303132333435363738393a3b3c3d3e3f', 97,
    x'000102030405060708090a0b0c0d0e0f', x'101112131415161718191a1b1c1d1e1f', 'Failover',
    10, 55, 32768, 'it failed', '1 ["first"]', 1700000000000000, 1700000000000001,
    1700000000000002, 3000000, 1700000000000003, 1, 'root', '1 {"point":5}', '1 {"lost":0}',
    1700000003000002);
INSERT INTO job VALUES (8, x'404142434445464748494a4b4c4d4e4f', 94, NULL, NULL, 'Copy',
    4, 0, 0, '', NULL, 1700000000000000, NULL, NULL, 0, 1700000000000000, 0, 'root', '1 {}',
    NULL, NULL);
INSERT INTO event VALUES (12, 1700000000000000, 2, x'000102030405060708090a0b0c0d0e0f',
    x'101112131415161718191a1b1c1d1e1f', 'replication.failed', 'Replication failed.', '1 {"n":1}');
INSERT INTO event VALUES (13, 1700000000000000, 0, NULL, NULL, 'service.started', 'Started.', NULL);
INSERT INTO audit VALUES (3, 1700000000000000, 'uid 0', 'administrator', 'failover', 'db-1',
    '1 {"point":5}', 'job started');
INSERT INTO statistics VALUES (5, x'101112131415161718191a1b1c1d1e1f', 1700000000000000,
    1700000300000000, '1 {"cycles":10}');
INSERT INTO statistics VALUES (6, x'101112131415161718191a1b1c1d1e1f', 1700000300000000, NULL,
    '1 {"cycles":2}');
INSERT INTO authorization_entry VALUES ('*.example', '1 {"group":"default"}');
INSERT INTO reference VALUES (x'505152535455565758595a5b5c5d5e5f',
    x'000102030405060708090a0b0c0d0e0f', 9, 'test failover', '1 {}');
INSERT INTO peer VALUES ('b.example', 'b.example:8443', 1700000000000000, '1 {"version":"0.1"}');
INSERT INTO peer VALUES ('d.example', 'd.example:8443', NULL, '1 {}');
