-- The nodes that serve, each with a row of its own that it keeps fresh.
CREATE TABLE nodes (
    id uuid PRIMARY KEY,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    applied_seq bigint NOT NULL,
    validators integer NOT NULL CHECK (validators >= 0),
    acked_seq bigint,
    clock_skew_us bigint NOT NULL
);

-- Until when tokens of a retired key may be presented; then the key goes.
ALTER TABLE signing_keys ADD COLUMN verify_until timestamptz;
UPDATE signing_keys SET verify_until = changed_at + interval '2 hours' WHERE state = 'retired';
ALTER TABLE signing_keys
ADD CONSTRAINT signing_keys_verify_until CHECK ((state = 'retired') = (verify_until IS NOT NULL));

ALTER TABLE audit_events ADD COLUMN kid text;
