CREATE TABLE old_secret_keys (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('refresh', 'request', 'throttle')),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO old_secret_keys (id, purpose, sealed, created_at)
SELECT id, purpose, sealed, created_at FROM secret_keys WHERE purpose <> 'audit';
DROP TABLE secret_keys;
ALTER TABLE old_secret_keys RENAME TO secret_keys;

DROP TABLE audit_checkpoints;
ALTER TABLE audit_origins DROP COLUMN salt;
CREATE INDEX audit_events_by_time ON audit_events (at, id);
DROP INDEX audit_events_unsealed;
DROP INDEX audit_events_unchained;
DROP INDEX audit_events_by_position;
ALTER TABLE audit_events DROP COLUMN link;
ALTER TABLE audit_events DROP COLUMN position;
ALTER TABLE audit_events DROP COLUMN mac;
ALTER TABLE audit_events DROP COLUMN key_id;
ALTER TABLE audit_events DROP COLUMN origin_digest;
