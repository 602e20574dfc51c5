-- UUIDs are BLOBs of 16 bytes, times are microseconds since 1970, JSON is TEXT.

CREATE TABLE users (
    id BLOB PRIMARY KEY NOT NULL,
    email TEXT UNIQUE,
    email_verified INTEGER NOT NULL CHECK (email_verified IN (0, 1)),
    username TEXT UNIQUE,
    display_name TEXT NOT NULL,
    password TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'disabled', 'deleted')),
    metadata TEXT NOT NULL CHECK (json_valid(metadata)),
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    min_session_epoch INTEGER NOT NULL CHECK (min_session_epoch BETWEEN 0 AND epoch),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- A tombstone keeps nothing of the person; everyone else has an address.
    CHECK ((status = 'deleted') = (email IS NULL)),
    CHECK (status <> 'deleted' OR (username IS NULL AND password IS NULL AND display_name = ''))
) STRICT;
CREATE INDEX users_by_creation ON users (created_at, id);

CREATE TABLE roles (
    id BLOB PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    built_in INTEGER NOT NULL CHECK (built_in IN (0, 1)),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE role_permissions (
    role_id BLOB NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    permission TEXT NOT NULL,
    PRIMARY KEY (role_id, permission)
) STRICT;

CREATE TABLE user_roles (
    user_id BLOB NOT NULL REFERENCES users (id),
    role_id BLOB NOT NULL REFERENCES roles (id),
    PRIMARY KEY (user_id, role_id)
) STRICT;
CREATE INDEX user_roles_by_role ON user_roles (role_id);

-- Its permissions are those that the program knows.
INSERT INTO roles (id, name, description, built_in, created_at, updated_at) VALUES (
    x'00000000000070008000000000000001', 'admin', 'May do everything.', 1,
    0, 0
);

CREATE TABLE sessions (
    id BLOB PRIMARY KEY NOT NULL,
    user_id BLOB NOT NULL REFERENCES users (id),
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    generation INTEGER NOT NULL CHECK (generation >= 0),
    key_id INTEGER NOT NULL,
    binding BLOB NOT NULL CHECK (length(binding) = 16),
    device_name TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    address TEXT,
    client_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    rotated_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    absolute_expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX sessions_by_user ON sessions (user_id, created_at, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
CREATE INDEX sessions_by_revocation ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY NOT NULL,
    algorithm TEXT NOT NULL CHECK (algorithm IN ('EdDSA', 'ES256')),
    state TEXT NOT NULL CHECK (state IN ('next', 'active', 'retired')),
    public_key BLOB NOT NULL,
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (state) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_one_next ON signing_keys (state) WHERE state = 'next';

CREATE TABLE secret_keys (
    id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL CHECK (purpose IN ('refresh', 'request')),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- One row. Whoever appends to trust_log updates it first, and so waits for
-- whoever did before: numbers commit in order.
CREATE TABLE trust_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    nonce BLOB NOT NULL
) STRICT;
INSERT INTO trust_head (id, seq, nonce) VALUES (1, 0, x'00000000000000000000000000000000');

CREATE TABLE trust_log (
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
CREATE INDEX trust_log_by_creation ON trust_log (created_at);

CREATE TABLE audit_events (
    id BLOB PRIMARY KEY NOT NULL,
    at INTEGER NOT NULL,
    action TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('success', 'failure')),
    actor BLOB,
    subject BLOB,
    session_id BLOB,
    role_id BLOB,
    correlation_id TEXT NOT NULL
) STRICT;
CREATE INDEX audit_events_by_time ON audit_events (at, id);

-- Apart from the events, so that a person can be erased and the events stay.
CREATE TABLE audit_origins (
    event_id BLOB PRIMARY KEY NOT NULL REFERENCES audit_events (id) ON DELETE CASCADE,
    user_id BLOB,
    address TEXT,
    user_agent TEXT NOT NULL
) STRICT;
CREATE INDEX audit_origins_by_user ON audit_origins (user_id);

-- The nil UUID stands for anonymous callers.
CREATE TABLE idempotency (
    method TEXT NOT NULL,
    caller BLOB NOT NULL,
    request_id BLOB NOT NULL,
    body_mac BLOB NOT NULL,
    reply BLOB NOT NULL,
    -- The account that the reply names, if it names one. With the person its text
    -- is erased and the row stays, so that a late repetition has no effect.
    subject BLOB,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (method, caller, request_id)
) STRICT;
CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);
CREATE INDEX idempotency_by_subject ON idempotency (subject);
