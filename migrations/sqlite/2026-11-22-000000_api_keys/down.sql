CREATE TABLE old_trust_log (
    seq INTEGER PRIMARY KEY,
    nonce BLOB NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('session_revoked', 'user_epoch', 'signing_keys', 'secret_keys')),
    session_id BLOB,
    user_id BLOB,
    min_epoch INTEGER,
    created_at INTEGER NOT NULL,
    CHECK ((kind = 'session_revoked') = (session_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (user_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (min_epoch IS NOT NULL))
) STRICT;
INSERT INTO old_trust_log (seq, nonce, kind, session_id, user_id, min_epoch, created_at)
SELECT seq, nonce, kind, session_id, user_id, min_epoch, created_at FROM trust_log
WHERE kind <> 'api_key';
DROP TABLE trust_log;
ALTER TABLE old_trust_log RENAME TO trust_log;
CREATE INDEX trust_log_by_creation ON trust_log (created_at);

ALTER TABLE audit_events DROP COLUMN workload;
ALTER TABLE audit_events DROP COLUMN api_key_id;

DROP TABLE api_key_audiences;
DROP TABLE api_key_scopes;
DROP TABLE api_key_secrets;
DROP TABLE api_keys;
