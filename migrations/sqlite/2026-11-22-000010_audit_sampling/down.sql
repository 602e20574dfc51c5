-- The MACs of such records cover the number. Only a trigger can refuse here.
CREATE TRIGGER audit_events_represent_others BEFORE UPDATE ON audit_events BEGIN
    SELECT RAISE(ABORT, 'the audit log has records that stand for several events, which no older version can check: keep this version, or restore a backup from before');
END;
UPDATE audit_events SET represents = 1 WHERE represents <> 1;
DROP TRIGGER audit_events_represent_others;
ALTER TABLE audit_events DROP COLUMN represents;
