//! The log: one line per event to standard error, as JSON or as text.
//!
//! Laws: the level can be changed while the server runs. Not here: what is logged.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level of the log that [`start`] started.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<LevelFilter, Registry>);

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

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
