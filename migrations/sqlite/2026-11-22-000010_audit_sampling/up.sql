-- How many events a record stands for, where strangers cause too many to record one by one. No row is rewritten.
ALTER TABLE audit_events ADD COLUMN represents INTEGER NOT NULL DEFAULT 1;
