-- The ledger and the chain are only ever added to. A guard against accidents; the chain itself tells of intent.
CREATE TRIGGER usage_ledger_keeps_rows BEFORE UPDATE ON usage_ledger
BEGIN SELECT RAISE(ABORT, 'ledger rows are never changed'); END;

CREATE TRIGGER usage_ledger_keeps_all BEFORE DELETE ON usage_ledger
BEGIN SELECT RAISE(ABORT, 'ledger rows are never deleted'); END;

CREATE TRIGGER audit_record_keeps_rows BEFORE UPDATE OF seq, at, action, bytes, hash ON audit_record
BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END;

CREATE TRIGGER audit_record_keeps_all BEFORE DELETE ON audit_record
BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END;
