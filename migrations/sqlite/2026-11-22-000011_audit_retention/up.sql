-- One row: up to where the audit log went by age, signed as that. A deletion that it does not cover was none of ours.
CREATE TABLE audit_retention (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    mark TEXT NOT NULL
) STRICT;
