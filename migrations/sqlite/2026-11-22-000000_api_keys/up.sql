CREATE TABLE api_keys (
    id BLOB PRIMARY KEY NOT NULL,
    owner BLOB NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    rotated_at INTEGER,
    revoked_at INTEGER
) STRICT;
CREATE INDEX api_keys_by_owner ON api_keys (owner, created_at, id);
CREATE INDEX api_keys_by_expiry ON api_keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX api_keys_by_revocation ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;

-- The current secret has no end of its own; those from before a rotation have.
CREATE TABLE api_key_secrets (
    sha256 BLOB PRIMARY KEY NOT NULL CHECK (length(sha256) = 32),
    api_key_id BLOB NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    ends_at INTEGER
) STRICT;
CREATE INDEX api_key_secrets_by_key ON api_key_secrets (api_key_id);
CREATE INDEX api_key_secrets_by_end ON api_key_secrets (ends_at) WHERE ends_at IS NOT NULL;

CREATE TABLE api_key_scopes (
    api_key_id BLOB NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    scope TEXT NOT NULL,
    PRIMARY KEY (api_key_id, scope)
) STRICT;

CREATE TABLE api_key_audiences (
    api_key_id BLOB NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    audience TEXT NOT NULL,
    PRIMARY KEY (api_key_id, audience)
) STRICT;

ALTER TABLE audit_events ADD COLUMN api_key_id BLOB;
-- Who acted, where it was a workload and no user.
ALTER TABLE audit_events ADD COLUMN workload TEXT;

-- SQLite changes no CHECK: the table is made anew.
CREATE TABLE new_trust_log (
    seq INTEGER PRIMARY KEY,
    nonce BLOB NOT NULL,
    kind TEXT NOT NULL
    CHECK (kind IN ('session_revoked', 'user_epoch', 'api_key', 'signing_keys', 'secret_keys')),
    session_id BLOB,
    user_id BLOB,
    min_epoch INTEGER,
    api_key_id BLOB,
    created_at INTEGER NOT NULL,
    CHECK ((kind = 'session_revoked') = (session_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (user_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (min_epoch IS NOT NULL)),
    CHECK ((kind = 'api_key') = (api_key_id IS NOT NULL))
) STRICT;
INSERT INTO new_trust_log (seq, nonce, kind, session_id, user_id, min_epoch, created_at)
SELECT seq, nonce, kind, session_id, user_id, min_epoch, created_at FROM trust_log;
DROP TABLE trust_log;
ALTER TABLE new_trust_log RENAME TO trust_log;
CREATE INDEX trust_log_by_creation ON trust_log (created_at);
