//! Structured logs on standard error: text for people, JSON for collectors.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    /// One line a person reads.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging settings, to be flattened into a command line.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace), or directives such as `info,imagegen_worker=debug`
    #[arg(long, env = "IMAGEGEN_LOG", default_value = "info", global = true, help_heading = "Logging")]
    pub log: String,
    /// Text for people, JSON for collectors
    #[arg(long, env = "IMAGEGEN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true, help_heading = "Logging")]
    pub log_format: LogFormat,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("--log \"{directives}\" is not a level or a list of directives: {source}")]
pub struct LoggingError {
    directives: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Installs the global subscriber. Call once, first thing in `main`.
///
/// # Errors
/// When the directives do not parse.
pub fn init(args: &LogArgs) -> Result<(), LoggingError> {
    let filter =
        EnvFilter::try_new(&args.log).map_err(|source| LoggingError { directives: args.log.clone(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
