ALTER TABLE audit_events DROP COLUMN kid;
ALTER TABLE signing_keys DROP COLUMN verify_until;
DROP TABLE nodes;
