DELETE FROM secret_keys WHERE purpose = 'throttle';
CREATE TABLE new_secret_keys (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('refresh', 'request')),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO new_secret_keys SELECT id, purpose, sealed, created_at FROM secret_keys;
DROP TABLE secret_keys;
ALTER TABLE new_secret_keys RENAME TO secret_keys;
