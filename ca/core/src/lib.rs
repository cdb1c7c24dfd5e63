//! Every decision of the authority, without clock, randomness or I/O.

pub mod attributes;
pub mod authority;
pub mod caller;
pub mod clock;
pub mod documents;
pub mod entropy;
pub mod explain;
pub mod issuance;
pub mod ledger;
pub mod limits;
pub mod nodes;
pub mod policy;
pub mod ports;
pub mod renewal;
pub mod rules;
pub mod state;
pub mod template;
pub mod tokens;
