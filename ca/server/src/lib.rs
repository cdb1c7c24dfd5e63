//! The shell around the core: one issue(), one authn, one error-to-status file, and the APIs.
