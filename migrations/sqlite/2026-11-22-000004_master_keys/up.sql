-- The ids of the master keys that a node has, with a space between each two.
ALTER TABLE nodes ADD COLUMN master_keys TEXT NOT NULL DEFAULT '';
