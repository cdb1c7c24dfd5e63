//! Rules about the house itself, read from `cargo metadata` and from every tracked file.
//!
//! Laws: each rule is a pure function from what was read to a list of complaints; beside it stands a planted example
//! it must complain about, so a rule that cannot fail does not pass. An exception is a line in a table here, in a diff
//! that somebody reviews.
//! Not here: what rustc and clippy check (`[workspace.lints]`, `.clippy.toml`).

#[cfg(test)]
#[path = "tidy/deps.rs"]
mod deps;
#[cfg(test)]
#[path = "tidy/edges.rs"]
mod edges;
#[cfg(test)]
#[path = "tidy/text.rs"]
mod text;
