//! Where state and the ledger live: SQLite and memory behind one conformance suite.
