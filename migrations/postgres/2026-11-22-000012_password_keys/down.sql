-- Fails while a password hash is sealed: without its key nobody could log in again.
-- `countersign user reseal` without `passwords.seal_hashes` opens them all.
DELETE FROM secret_keys
WHERE purpose = 'password' AND NOT EXISTS (SELECT 1 FROM users WHERE password LIKE '$sealed$%');
ALTER TABLE secret_keys
DROP CONSTRAINT secret_keys_purpose_check,
ADD CONSTRAINT secret_keys_purpose_check CHECK (purpose IN ('refresh', 'request', 'throttle', 'audit'));
