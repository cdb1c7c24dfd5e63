//! Where private keys live: memory and sealed files behind one conformance suite.
