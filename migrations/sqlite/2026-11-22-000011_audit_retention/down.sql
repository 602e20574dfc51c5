DROP TABLE audit_retention;
