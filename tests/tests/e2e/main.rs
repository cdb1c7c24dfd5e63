//! The stories that need the real binary or other people's programs, in one integration test binary.
//!
//! Laws: loopback only; what a test starts dies with it; scratch space is a temporary directory. A program that is
//! not installed is a failure when `CI=true` and a loud skip elsewhere; `tests/run e2e` installs them all.
//! Not here: rules about the source text (`tidy.rs`), tests that need one crate only (they sit in that crate).

#[cfg(test)]
mod adoption;
#[cfg(test)]
mod agent;
#[cfg(test)]
mod bad_csr;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod bad_wire;
#[cfg(test)]
mod client;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod clusters;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod envoy;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod federation;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod judges;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod kill9;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod load;
#[cfg(test)]
mod process;
#[cfg(test)]
mod proxies;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod restore;
#[cfg(test)]
mod revocation_lists;
#[cfg(test)]
mod root_change;
#[cfg(test)]
mod root_rotation;
#[cfg(test)]
mod server;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod support;
#[cfg(test)]
mod traffic;
