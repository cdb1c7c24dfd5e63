//! Every decision of the authority, without clock, randomness or I/O.
