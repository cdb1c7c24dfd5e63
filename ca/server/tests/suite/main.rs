//! The server as its callers see it: real connections, real certificates, a store in memory.
