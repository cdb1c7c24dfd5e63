//! What the tests of several modules share: a root, an intermediate, and keys that sign.
