//! CSR in, certificate out: the only crate that names rcgen and x509-parser.
