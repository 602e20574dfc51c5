-- A record's MAC, and its place in the chain: a position that follows the one before it, and a link that binds it
-- to all of them. What was recorded before has neither, and stays out of the chain.
ALTER TABLE audit_events
ADD COLUMN origin_digest bytea,
ADD COLUMN key_id integer,
ADD COLUMN mac bytea,
ADD COLUMN position bigint,
ADD COLUMN link bytea;
CREATE UNIQUE INDEX audit_events_by_position ON audit_events (position) WHERE position IS NOT NULL;
CREATE INDEX audit_events_unchained ON audit_events (id) WHERE position IS NULL AND mac IS NOT NULL;
CREATE INDEX audit_events_unsealed ON audit_events (id) WHERE mac IS NULL;
-- Ids are ordered by time.
DROP INDEX audit_events_by_time;

-- The digest of an origin is of it and this; with the row goes what the digest could be guessed from.
ALTER TABLE audit_origins ADD COLUMN salt bytea;

-- Signed: up to which position the chain was made by then, and the link there.
CREATE TABLE audit_checkpoints (
    batch bigint PRIMARY KEY CHECK (batch > 0),
    position bigint NOT NULL UNIQUE,
    root bytea NOT NULL,
    created_at timestamptz NOT NULL,
    key_id integer NOT NULL,
    signature bytea NOT NULL
);

ALTER TABLE secret_keys
DROP CONSTRAINT secret_keys_purpose_check,
ADD CONSTRAINT secret_keys_purpose_check CHECK (purpose IN ('refresh', 'request', 'throttle', 'audit'));
