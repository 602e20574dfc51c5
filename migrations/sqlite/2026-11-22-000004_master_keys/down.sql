ALTER TABLE nodes DROP COLUMN master_keys;
