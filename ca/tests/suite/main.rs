//! The binary as it is used: its configuration, its command line, its deployment files, and the server it runs.

mod cli;
mod config;
mod deploy;
mod dev;
mod process;
mod restore;
mod server;
