-- The ledger and the chain are only ever added to. A guard against accidents; the chain itself tells of intent.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% rows are never changed or deleted', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER usage_ledger_keeps_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON usage_ledger
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER audit_record_keeps_rows BEFORE UPDATE OF seq, at, action, bytes, hash ON audit_record
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER audit_record_keeps_all BEFORE DELETE OR TRUNCATE ON audit_record
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
