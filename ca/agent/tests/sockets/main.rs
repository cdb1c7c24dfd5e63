//! The sockets over a real Unix socket, before identities that the test decides.
//!
//! Laws: nothing here sleeps to be in time; a test waits for what it needs to see, and fails when it does not come.
//! This program is also its own helper process: see [`processes`].

#[cfg(test)]
mod jwt;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod sds;
#[cfg(test)]
mod support;
#[cfg(test)]
mod workload_api;

/// The part that this program plays when a test starts it again; does nothing otherwise.
#[test]
fn helper() {
    processes::play();
}
