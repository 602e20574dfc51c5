ALTER TABLE secret_keys
DROP CONSTRAINT secret_keys_purpose_check,
ADD CONSTRAINT secret_keys_purpose_check
CHECK (purpose IN ('refresh', 'request', 'throttle', 'audit', 'password'));
