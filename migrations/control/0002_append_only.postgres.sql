-- The platform's chain is only ever added to.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% rows are never changed or deleted', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER audit_record_keeps_rows BEFORE UPDATE OF seq, at, action, bytes, hash ON audit_record
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER audit_record_keeps_all BEFORE DELETE OR TRUNCATE ON audit_record
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
