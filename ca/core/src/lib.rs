//! Every decision of the authority, without clock, randomness or I/O.

pub mod attributes;
pub mod caller;
pub mod clock;
pub mod documents;
pub mod entropy;
pub mod ledger;
pub mod limits;
pub mod nodes;
pub mod ports;
pub mod rules;
pub mod template;
pub mod tokens;
