//! Rings that need other people's programs.

#[cfg(test)]
mod pkcs11;
