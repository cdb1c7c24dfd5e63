//! Join tokens: made, listed, revoked.
