DELETE FROM secret_keys WHERE purpose = 'audit';
ALTER TABLE secret_keys
DROP CONSTRAINT secret_keys_purpose_check,
ADD CONSTRAINT secret_keys_purpose_check CHECK (purpose IN ('refresh', 'request', 'throttle'));

DROP TABLE audit_checkpoints;
ALTER TABLE audit_origins DROP COLUMN salt;
ALTER TABLE audit_events
DROP COLUMN link,
DROP COLUMN position,
DROP COLUMN mac,
DROP COLUMN key_id,
DROP COLUMN origin_digest;
CREATE INDEX audit_events_by_time ON audit_events (at, id);
