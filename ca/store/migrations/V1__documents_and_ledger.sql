-- Append-only: a released migration is never edited; its checksum is compared at every start.
-- STRICT: a damaged or hand-made value of the wrong type is an error, not a surprise.

-- What administrators and the authority itself change. `version` counts writes over the whole store;
-- `checksum` is SHA-256 over all other columns, because SQLite pages carry none.
CREATE TABLE documents (
    kind     TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    body     TEXT    NOT NULL,
    checksum BLOB    NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

-- The hash chain. Keyed by position, so that an append touches only the last page.
CREATE TABLE ledger (
    position INTEGER PRIMARY KEY,
    previous BLOB    NOT NULL,
    hash     BLOB    NOT NULL,
    counter  INTEGER,
    body     TEXT    NOT NULL
) STRICT;

-- Finds a certificate by its serial, and refuses a serial that was used before. Counters nearly ascend, so this
-- index is appended to as well.
CREATE UNIQUE INDEX ledger_by_counter ON ledger (counter) WHERE counter IS NOT NULL;

-- The end of the chain and the last version, written in the transaction that moved them: a cut-off tail is seen.
CREATE TABLE head (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER NOT NULL,
    hash     BLOB    NOT NULL,
    version  INTEGER NOT NULL
) STRICT;

INSERT INTO head (one, position, hash, version) VALUES (1, 0, zeroblob(32), 0);

-- The first serial counter that nobody was given yet.
CREATE TABLE counters (
    name TEXT    PRIMARY KEY,
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, next) VALUES ('serial', 0);
