//! TLS as both ends of Rhizome speak it: peers verified by SPIFFE ID against the current bundle.
