-- At most one row: the tenant has left. Its data keys and ciphertexts are gone, and none is made again.
CREATE TABLE keys_destroyed (
    id BIGINT PRIMARY KEY,
    at BIGINT NOT NULL
);
