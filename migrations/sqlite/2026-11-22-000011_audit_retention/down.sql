-- What went is not brought back by this, and an older version would find it missing. Only a trigger can refuse here.
CREATE TRIGGER audit_retention_stays BEFORE DELETE ON audit_retention BEGIN
    SELECT RAISE(ABORT, 'records of the audit log went by age, and only this table tells that from a deletion by somebody else: keep this version, or restore a backup from before');
END;
DELETE FROM audit_retention;
DROP TABLE audit_retention;
