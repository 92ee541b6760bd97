-- The platform's chain is only ever added to.
CREATE TRIGGER audit_record_keeps_rows BEFORE UPDATE OF seq, at, action, bytes, hash ON audit_record
BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END;

CREATE TRIGGER audit_record_keeps_all BEFORE DELETE ON audit_record
BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END;
