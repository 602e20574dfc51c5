-- Passwords that were wrong in a row, by a MAC of the name that they were tried under, whether or
-- not anybody has that name.
CREATE TABLE login_throttle (
    key bytea PRIMARY KEY CHECK (octet_length(key) = 32),
    failures integer NOT NULL CHECK (failures > 0),
    not_before timestamptz NOT NULL,
    -- Whether a refusal within this wait is in the audit log.
    recorded boolean NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX login_throttle_by_expiry ON login_throttle (expires_at);
