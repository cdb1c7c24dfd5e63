//! The log: one line per event to standard error, as JSON or as text.
//!
//! Laws: the level can be changed while the server runs; it is that of our own events, and libraries are held one or
//! two levels below it, because their everyday life is not ours. Not here: what is logged.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level of the log that [`start`] started.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

/// Starts the process's log. Only the first call has an effect.
pub fn start(log: Log) -> LevelHandle {
    let (level, handle) = reload::Layer::new(filter(log.level));
    let lines = match log.format {
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(io::stderr).boxed()
        }
        LogFormat::Text => fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed(),
    };
    if tracing_subscriber::registry().with(level).with(lines).try_init().is_err() {
        tracing::debug!("the log was started before");
    }
    LevelHandle(handle)
}

impl LevelHandle {
    /// Logs from `level` on.
    pub fn set(&self, level: LogLevel) {
        if let Err(cause) = self.0.reload(filter(level)) {
            tracing::warn!(%cause, "the log's level could not be changed");
        }
    }
}

fn filter(level: LogLevel) -> Targets {
    let (ours, others) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    // A prefix: `rhizome_server::rotate` and `rhizome::serve` alike.
    Targets::new().with_default(others).with_target("rhizome", ours)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn our_events_are_logged_from_the_level_on_and_those_of_libraries_later() {
        let info = filter(LogLevel::Info);
        for ours in ["rhizome::serve", "rhizome_server::rotate", "rhizome_store"] {
            assert!(
                info.would_enable(ours, &Level::INFO) && !info.would_enable(ours, &Level::DEBUG),
                "{ours}"
            );
        }
        assert!(!info.would_enable("refinery_core::traits", &Level::INFO));
        assert!(info.would_enable("h2::proto", &Level::WARN));
    }
}
