-- Names that are compared or ordered are COLLATE "C": by bytes, as SQLite does.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text COLLATE "C" UNIQUE,
    email_verified boolean NOT NULL,
    username text COLLATE "C" UNIQUE,
    display_name text NOT NULL,
    password text,
    status text NOT NULL CHECK (status IN ('active', 'disabled', 'deleted')),
    metadata jsonb NOT NULL,
    epoch bigint NOT NULL CHECK (epoch >= 0),
    min_session_epoch bigint NOT NULL CHECK (min_session_epoch BETWEEN 0 AND epoch),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- A tombstone keeps nothing of the person; everyone else has an address.
    CHECK ((status = 'deleted') = (email IS NULL)),
    CHECK (status <> 'deleted' OR (username IS NULL AND password IS NULL AND display_name = ''))
);
CREATE INDEX users_by_creation ON users (created_at, id);

CREATE TABLE roles (
    id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    description text NOT NULL,
    built_in boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE role_permissions (
    role_id uuid NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    permission text COLLATE "C" NOT NULL,
    PRIMARY KEY (role_id, permission)
);

CREATE TABLE user_roles (
    user_id uuid NOT NULL REFERENCES users (id),
    role_id uuid NOT NULL REFERENCES roles (id),
    PRIMARY KEY (user_id, role_id)
);
CREATE INDEX user_roles_by_role ON user_roles (role_id);

-- Its permissions are those that the program knows.
INSERT INTO roles (id, name, description, built_in, created_at, updated_at) VALUES (
    '00000000-0000-7000-8000-000000000001', 'admin', 'May do everything.', true,
    'epoch', 'epoch'
);

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    epoch bigint NOT NULL CHECK (epoch >= 0),
    generation bigint NOT NULL CHECK (generation >= 0),
    key_id integer NOT NULL,
    binding bytea NOT NULL CHECK (length(binding) = 16),
    device_name text NOT NULL,
    user_agent text NOT NULL,
    address text,
    client_id text NOT NULL,
    created_at timestamptz NOT NULL,
    rotated_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    absolute_expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
CREATE INDEX sessions_by_revocation ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE signing_keys (
    kid text COLLATE "C" PRIMARY KEY,
    algorithm text NOT NULL CHECK (algorithm IN ('EdDSA', 'ES256')),
    state text NOT NULL CHECK (state IN ('next', 'active', 'retired')),
    public_key bytea NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (state) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_one_next ON signing_keys (state) WHERE state = 'next';

CREATE TABLE secret_keys (
    id integer PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('refresh', 'request')),
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL
);

-- One row. Whoever appends to trust_log updates it first, and so waits for
-- whoever did before: numbers commit in order.
CREATE TABLE trust_head (
    id integer PRIMARY KEY CHECK (id = 1),
    seq bigint NOT NULL,
    nonce uuid NOT NULL
);
INSERT INTO trust_head (id, seq, nonce) VALUES (1, 0, '00000000-0000-0000-0000-000000000000');

CREATE TABLE trust_log (
    seq bigint PRIMARY KEY,
    nonce uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('session_revoked', 'user_epoch', 'signing_keys', 'secret_keys')),
    session_id uuid,
    user_id uuid,
    min_epoch bigint,
    created_at timestamptz NOT NULL,
    CHECK ((kind = 'session_revoked') = (session_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (user_id IS NOT NULL)),
    CHECK ((kind = 'user_epoch') = (min_epoch IS NOT NULL))
);
CREATE INDEX trust_log_by_creation ON trust_log (created_at);

CREATE TABLE audit_events (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    action text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('success', 'failure')),
    actor uuid,
    subject uuid,
    session_id uuid,
    role_id uuid,
    correlation_id text NOT NULL
);
CREATE INDEX audit_events_by_time ON audit_events (at, id);

-- Apart from the events, so that a person can be erased and the events stay.
CREATE TABLE audit_origins (
    event_id uuid PRIMARY KEY REFERENCES audit_events (id) ON DELETE CASCADE,
    user_id uuid,
    address text,
    user_agent text NOT NULL
);
CREATE INDEX audit_origins_by_user ON audit_origins (user_id);

-- The nil UUID stands for anonymous callers.
CREATE TABLE idempotency (
    method text COLLATE "C" NOT NULL,
    caller uuid NOT NULL,
    request_id uuid NOT NULL,
    body_mac bytea NOT NULL,
    reply bytea NOT NULL,
    -- The account that the reply names, if it names one. With the person its text
    -- is erased and the row stays, so that a late repetition has no effect.
    subject uuid,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (method, caller, request_id)
);
CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);
CREATE INDEX idempotency_by_subject ON idempotency (subject);
