//! Administrators and their certificates.
