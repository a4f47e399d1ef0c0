//! Why the server ended, and the exit code that follows.

use std::{io, net::SocketAddr};

use imagegen_telemetry::supervise::TaskError;

use crate::{engine_thread::EngineEnd, reload::ReloadError, scripted::ScriptError};

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Settings that do not go together, or name files that are not usable.
    #[error("{0}")]
    Settings(String),
    /// A port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The model.
    #[error("{0}")]
    Load(String),
    /// The engine.
    #[error("{0}")]
    Engine(String),
    /// A task.
    #[error(transparent)]
    Task(TaskError),
    /// The drain.
    #[error("{cut} requests were cut off: {why}")]
    Cut {
        /// How many.
        cut: usize,
        /// By what.
        why: &'static str,
    },
}

impl ServeError {
    /// The exit code of the process, as `--help` tells it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. } | Self::Task(_) => 1,
            Self::Settings(_) => 2,
            Self::Load(_) => 3,
            Self::Engine(_) => 4,
            Self::Cut { .. } => 5,
        }
    }
}

impl From<ReloadError> for ServeError {
    fn from(error: ReloadError) -> Self {
        Self::Settings(error.to_string())
    }
}

impl From<ScriptError> for ServeError {
    fn from(error: ScriptError) -> Self {
        Self::Settings(error.to_string())
    }
}

/// The engine's own reason, where it was the engine's task that ended.
pub(super) fn of_task(error: TaskError) -> ServeError {
    if let TaskError::Failed { source, .. } = &error
        && let Some(end) = source.downcast_ref::<EngineEnd>()
    {
        let sentence = end.to_string();
        return if matches!(end, EngineEnd::Load(_)) {
            ServeError::Load(sentence)
        } else {
            ServeError::Engine(sentence)
        };
    }
    ServeError::Task(error)
}
