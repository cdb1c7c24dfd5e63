-- Append-only: a released migration is never edited; its checksum is compared at every start.
-- Servers of the release before and of this one run on one database while it is upgraded, so a migration only adds;
-- what an older release could not live with raises `head.floor` (see ca/docs/CONTRIBUTING.md, a migration).

-- What administrators and the authority itself change. `version` counts writes over the whole store. A body of NULL is
-- a tombstone: other servers learn of a deletion from it. `id` is bytes, because ids are compared by byte; read it with
-- convert_from(id, 'UTF8'). `checksum` is SHA-256 over all other columns.
CREATE TABLE documents (
    kind     TEXT   NOT NULL COLLATE "C",
    id       BYTEA  NOT NULL,
    version  BIGINT NOT NULL,
    body     TEXT,
    checksum BYTEA  NOT NULL,
    PRIMARY KEY (kind, id)
);

-- What changed since a version that a server knows.
CREATE INDEX documents_by_version ON documents (version);

-- The hash chain. Keyed by position, so that an append touches only the last page.
CREATE TABLE ledger (
    position BIGINT PRIMARY KEY,
    previous BYTEA  NOT NULL,
    hash     BYTEA  NOT NULL,
    counter  BIGINT,
    body     TEXT   NOT NULL
);

-- Finds a certificate by its serial, and refuses a serial that was used before. Counters nearly ascend, so this
-- index is appended to as well.
CREATE UNIQUE INDEX ledger_by_counter ON ledger (counter) WHERE counter IS NOT NULL;

-- The end of the chain, the last version, and the serial counters: the one row that every writing transaction locks
-- first, so that many servers write one chain. Room on the page keeps its updates there.
CREATE TABLE head (
    one         SMALLINT PRIMARY KEY CHECK (one = 1),
    position    BIGINT  NOT NULL,
    hash        BYTEA   NOT NULL,
    version     BIGINT  NOT NULL,
    next_serial BIGINT  NOT NULL,
    highest     BIGINT,
    -- Tombstones up to this version are gone: whoever knows no newer version reads everything anew.
    forgotten   BIGINT  NOT NULL,
    -- The oldest schema whose releases may still use this database.
    floor       INTEGER NOT NULL
) WITH (fillfactor = 10);

INSERT INTO head (one, position, hash, version, next_serial, highest, forgotten, floor)
VALUES (1, 0, decode(repeat('00', 32), 'hex'), 0, 0, NULL, 0, 1);
