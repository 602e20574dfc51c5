CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    owner uuid NOT NULL REFERENCES users (id),
    name text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    rotated_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_by_owner ON api_keys (owner, created_at, id);
CREATE INDEX api_keys_by_expiry ON api_keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX api_keys_by_revocation ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;

-- The current secret has no end of its own; those from before a rotation have.
CREATE TABLE api_key_secrets (
    sha256 bytea PRIMARY KEY CHECK (length(sha256) = 32),
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    ends_at timestamptz
);
CREATE INDEX api_key_secrets_by_key ON api_key_secrets (api_key_id);
CREATE INDEX api_key_secrets_by_end ON api_key_secrets (ends_at) WHERE ends_at IS NOT NULL;

CREATE TABLE api_key_scopes (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    scope text COLLATE "C" NOT NULL,
    PRIMARY KEY (api_key_id, scope)
);

CREATE TABLE api_key_audiences (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    audience text COLLATE "C" NOT NULL,
    PRIMARY KEY (api_key_id, audience)
);

ALTER TABLE audit_events ADD COLUMN api_key_id uuid;
-- Who acted, where it was a workload and no user.
ALTER TABLE audit_events ADD COLUMN workload text;

ALTER TABLE trust_log
ADD COLUMN api_key_id uuid,
DROP CONSTRAINT trust_log_kind_check,
ADD CONSTRAINT trust_log_kind_check
CHECK (kind IN ('session_revoked', 'user_epoch', 'api_key', 'signing_keys', 'secret_keys')),
ADD CONSTRAINT trust_log_api_key_check CHECK ((kind = 'api_key') = (api_key_id IS NOT NULL));
