DELETE FROM trust_log WHERE kind = 'api_key';
ALTER TABLE trust_log
DROP COLUMN api_key_id,
DROP CONSTRAINT trust_log_kind_check,
ADD CONSTRAINT trust_log_kind_check
CHECK (kind IN ('session_revoked', 'user_epoch', 'signing_keys', 'secret_keys'));

ALTER TABLE audit_events DROP COLUMN workload;
ALTER TABLE audit_events DROP COLUMN api_key_id;

DROP TABLE api_key_audiences;
DROP TABLE api_key_scopes;
DROP TABLE api_key_secrets;
DROP TABLE api_keys;
