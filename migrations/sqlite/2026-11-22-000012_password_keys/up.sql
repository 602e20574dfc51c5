CREATE TABLE new_secret_keys (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('refresh', 'request', 'throttle', 'audit', 'password')),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO new_secret_keys (id, purpose, sealed, created_at)
SELECT id, purpose, sealed, created_at FROM secret_keys;
DROP TABLE secret_keys;
ALTER TABLE new_secret_keys RENAME TO secret_keys;
