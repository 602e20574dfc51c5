//! The tables, as `migrations/` makes them on both databases.

macro_rules! tables {
    ($($name:ident ($($key:ident),+) {$($columns:tt)+})+) => {$(
        diesel::table! {
            use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
            use $crate::store::types::{Instant, Json, Uuid};

            $name ($($key),+) {$($columns)+}
        }
    )+};
}

tables! {
    users (id) {
        id -> Uuid,
        email -> Nullable<Text>,
        email_verified -> Bool,
        username -> Nullable<Text>,
        display_name -> Text,
        password -> Nullable<Text>,
        status -> Text,
        metadata -> Json,
        epoch -> BigInt,
        min_session_epoch -> BigInt,
        created_at -> Instant,
        updated_at -> Instant,
    }

    roles (id) {
        id -> Uuid,
        name -> Text,
        description -> Text,
        built_in -> Bool,
        created_at -> Instant,
        updated_at -> Instant,
    }

    role_permissions (role_id, permission) {
        role_id -> Uuid,
        permission -> Text,
    }

    user_roles (user_id, role_id) {
        user_id -> Uuid,
        role_id -> Uuid,
    }

    sessions (id) {
        id -> Uuid,
        user_id -> Uuid,
        epoch -> BigInt,
        generation -> BigInt,
        key_id -> Integer,
        binding -> Binary,
        device_name -> Text,
        user_agent -> Text,
        address -> Nullable<Text>,
        client_id -> Text,
        created_at -> Instant,
        rotated_at -> Instant,
        expires_at -> Instant,
        absolute_expires_at -> Instant,
        revoked_at -> Nullable<Instant>,
    }

    signing_keys (kid) {
        kid -> Text,
        algorithm -> Text,
        state -> Text,
        public_key -> Binary,
        sealed -> Binary,
        created_at -> Instant,
        changed_at -> Instant,
        verify_until -> Nullable<Instant>,
    }

    secret_keys (id) {
        id -> Integer,
        purpose -> Text,
        sealed -> Binary,
        created_at -> Instant,
    }

    trust_head (id) {
        id -> Integer,
        seq -> BigInt,
        nonce -> Uuid,
    }

    trust_log (seq) {
        seq -> BigInt,
        nonce -> Uuid,
        kind -> Text,
        session_id -> Nullable<Uuid>,
        user_id -> Nullable<Uuid>,
        min_epoch -> Nullable<BigInt>,
        api_key_id -> Nullable<Uuid>,
        created_at -> Instant,
    }

    api_keys (id) {
        id -> Uuid,
        owner -> Uuid,
        name -> Text,
        created_at -> Instant,
        expires_at -> Nullable<Instant>,
        rotated_at -> Nullable<Instant>,
        revoked_at -> Nullable<Instant>,
    }

    api_key_secrets (sha256) {
        sha256 -> Binary,
        api_key_id -> Uuid,
        created_at -> Instant,
        ends_at -> Nullable<Instant>,
    }

    api_key_scopes (api_key_id, scope) {
        api_key_id -> Uuid,
        scope -> Text,
    }

    api_key_audiences (api_key_id, audience) {
        api_key_id -> Uuid,
        audience -> Text,
    }

    audit_events (id) {
        id -> Uuid,
        at -> Instant,
        action -> Text,
        outcome -> Text,
        actor -> Nullable<Uuid>,
        subject -> Nullable<Uuid>,
        session_id -> Nullable<Uuid>,
        role_id -> Nullable<Uuid>,
        correlation_id -> Text,
        api_key_id -> Nullable<Uuid>,
        workload -> Nullable<Text>,
        kid -> Nullable<Text>,
        origin_digest -> Nullable<Binary>,
        key_id -> Nullable<Integer>,
        mac -> Nullable<Binary>,
        position -> Nullable<BigInt>,
        link -> Nullable<Binary>,
        represents -> BigInt,
    }

    audit_checkpoints (batch) {
        batch -> BigInt,
        position -> BigInt,
        root -> Binary,
        created_at -> Instant,
        key_id -> Integer,
        signature -> Binary,
    }

    audit_retention (id) {
        id -> Integer,
        mark -> Text,
    }

    nodes (id) {
        id -> Uuid,
        started_at -> Instant,
        seen_at -> Instant,
        applied_seq -> BigInt,
        validators -> Integer,
        acked_seq -> Nullable<BigInt>,
        clock_skew_us -> BigInt,
        master_keys -> Text,
    }

    audit_origins (event_id) {
        event_id -> Uuid,
        user_id -> Nullable<Uuid>,
        address -> Nullable<Text>,
        user_agent -> Text,
        salt -> Nullable<Binary>,
    }

    login_throttle (key) {
        key -> Binary,
        failures -> Integer,
        not_before -> Instant,
        recorded -> Bool,
        expires_at -> Instant,
    }

    idempotency (method, caller, request_id) {
        method -> Text,
        caller -> Uuid,
        request_id -> Uuid,
        body_mac -> Binary,
        reply -> Binary,
        subject -> Nullable<Uuid>,
        expires_at -> Instant,
    }
}

diesel::joinable!(role_permissions -> roles (role_id));
diesel::joinable!(user_roles -> roles (role_id));
diesel::joinable!(user_roles -> users (user_id));
diesel::joinable!(sessions -> users (user_id));
diesel::joinable!(api_keys -> users (owner));
diesel::allow_tables_to_appear_in_same_query!(
    users,
    roles,
    role_permissions,
    user_roles,
    sessions,
    api_keys,
    trust_head,
    login_throttle,
);
diesel::allow_tables_to_appear_in_same_query!(audit_events, audit_origins);
