-- Kept answers are forgotten by their age.
CREATE INDEX request_by_age ON request (at);
