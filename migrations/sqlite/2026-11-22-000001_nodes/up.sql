-- The nodes that serve, each with a row of its own that it keeps fresh.
CREATE TABLE nodes (
    id BLOB PRIMARY KEY NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    applied_seq INTEGER NOT NULL,
    validators INTEGER NOT NULL CHECK (validators >= 0),
    acked_seq INTEGER,
    clock_skew_us INTEGER NOT NULL
) STRICT;

-- Until when tokens of a retired key may be presented; then the key goes.
ALTER TABLE signing_keys ADD COLUMN verify_until INTEGER;
UPDATE signing_keys SET verify_until = changed_at + 7200000000 WHERE state = 'retired';

ALTER TABLE audit_events ADD COLUMN kid TEXT;
