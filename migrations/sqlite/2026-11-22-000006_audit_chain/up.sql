-- A record's MAC, and its place in the chain: a position that follows the one before it, and a link that binds it
-- to all of them. What was recorded before has neither, and stays out of the chain.
ALTER TABLE audit_events ADD COLUMN origin_digest BLOB;
ALTER TABLE audit_events ADD COLUMN key_id INTEGER;
ALTER TABLE audit_events ADD COLUMN mac BLOB;
ALTER TABLE audit_events ADD COLUMN position INTEGER;
ALTER TABLE audit_events ADD COLUMN link BLOB;
CREATE UNIQUE INDEX audit_events_by_position ON audit_events (position) WHERE position IS NOT NULL;
CREATE INDEX audit_events_unchained ON audit_events (id) WHERE position IS NULL AND mac IS NOT NULL;
CREATE INDEX audit_events_unsealed ON audit_events (id) WHERE mac IS NULL;
-- Ids are ordered by time.
DROP INDEX audit_events_by_time;

-- The digest of an origin is of it and this; with the row goes what the digest could be guessed from.
ALTER TABLE audit_origins ADD COLUMN salt BLOB;

-- Signed: up to which position the chain was made by then, and the link there.
CREATE TABLE audit_checkpoints (
    batch INTEGER PRIMARY KEY CHECK (batch > 0),
    position INTEGER NOT NULL UNIQUE,
    root BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    signature BLOB NOT NULL
) STRICT;

-- SQLite changes no CHECK: the table is made anew.
CREATE TABLE new_secret_keys (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('refresh', 'request', 'throttle', 'audit')),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO new_secret_keys (id, purpose, sealed, created_at)
SELECT id, purpose, sealed, created_at FROM secret_keys;
DROP TABLE secret_keys;
ALTER TABLE new_secret_keys RENAME TO secret_keys;
