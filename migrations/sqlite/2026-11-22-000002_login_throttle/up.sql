-- Passwords that were wrong in a row, by a MAC of the name that they were tried under, whether or
-- not anybody has that name.
CREATE TABLE login_throttle (
    key BLOB PRIMARY KEY NOT NULL CHECK (length(key) = 32),
    failures INTEGER NOT NULL CHECK (failures > 0),
    not_before INTEGER NOT NULL,
    -- Whether a refusal within this wait is in the audit log.
    recorded INTEGER NOT NULL CHECK (recorded IN (0, 1)),
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX login_throttle_by_expiry ON login_throttle (expires_at);
