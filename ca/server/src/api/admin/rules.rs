//! Rules: who may be whom.
