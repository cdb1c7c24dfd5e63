//! Every decision of the authority, without clock, randomness or I/O.

pub mod documents;
pub mod ledger;
pub mod ports;
