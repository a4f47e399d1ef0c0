//! Every way the program can fail, as exit class, text and JSON.

use std::{error::Error as _, time::Duration};

use serde::Serialize;

use crate::{
    channel, credentials,
    exit::Class,
    explain::{Explanation, Violation, flag_of},
    files, kubectl, output,
};

/// Why the program did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker refused, failed, or did not answer.
    #[error("{}", .0.message)]
    Call(Box<Explanation>),
    /// The worker ended the stream in good order, but with pictures missing.
    #[error("the worker finished after {found} of {expected} pictures")]
    PicturesMissing {
        /// Pictures asked for.
        expected: u32,
        /// Pictures received.
        found: u32,
    },
    /// The worker sent a picture that was not asked for.
    #[error("the worker sent picture number {index} of a request for {count}")]
    UnknownPicture {
        /// Its number, from 0.
        index: u32,
        /// Pictures asked for.
        count: u32,
    },
    /// `--timeout` passed.
    #[error("not finished within {} s; the request was cancelled", .0.as_secs_f64())]
    Deadline(Duration),
    /// Ctrl-C.
    #[error("interrupted; the request was cancelled")]
    Interrupted,
    /// SIGTERM.
    #[error("terminated; the request was cancelled")]
    Terminated,
    /// The output's name decides no format.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// A picture cannot be written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// No usable token or certificate.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// No way to the workers.
    #[error(transparent)]
    Channel(#[from] channel::Error),
    /// The cluster does not lead to a worker.
    #[error(transparent)]
    Kubectl(#[from] Box<kubectl::Error>),
}

impl From<kubectl::Error> for Error {
    fn from(error: kubectl::Error) -> Self {
        Self::Kubectl(Box::new(error))
    }
}

/// A failure in `--json` output.
#[derive(Debug, Serialize)]
struct Report<'a> {
    class: &'static str,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    message: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    violations: &'a [Violation],
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
}

impl Error {
    /// Decides the exit code.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Call(explanation) => explanation.class,
            Self::PicturesMissing { .. } | Self::UnknownPicture { .. } => Class::Internal,
            Self::Deadline(_) => Class::Deadline,
            Self::Interrupted => Class::Interrupted,
            Self::Terminated => Class::Terminated,
            Self::Output(_) => Class::Usage,
            Self::File(_) | Self::Credentials(credentials::Error::Read { .. }) => Class::File,
            Self::Credentials(_) => Class::Unauthorized,
            Self::Channel(channel::Error::Tls(_)) => Class::Unauthorized,
            Self::Channel(_) => Class::Unavailable,
            Self::Kubectl(error) => error.class(),
        }
    }

    fn violations(&self) -> &[Violation] {
        match self {
            Self::Call(explanation) => &explanation.violations,
            _ => &[],
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Call(explanation) => explanation.hint.clone(),
            Self::Deadline(_) => "Allow more time with --timeout.".to_owned(),
            Self::Kubectl(error) => error.hint(),
            _ => String::new(),
        }
    }

    /// The message with its causes, each once.
    fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        message
    }

    /// For a person: message, wrong fields as flags, what to do.
    #[must_use]
    pub fn to_text(&self) -> String {
        let message = self.message();
        // The worker's message usually repeats what the lines below say under the names of the flags.
        let is_repeated = |violation: &Violation| message.contains(&violation.description);
        let headline = match message.split_once(": ") {
            Some((headline, _)) if !self.violations().is_empty() && self.violations().iter().all(is_repeated) => {
                headline
            }
            _ => &message,
        };
        let mut text = format!("error: {headline}");
        for violation in self.violations() {
            text.push_str(&format!("\n  {}: {}", flag_of(&violation.field), violation.description));
        }
        let hint = self.hint();
        if !hint.is_empty() {
            text.push('\n');
            text.push_str(&hint);
        }
        text
    }

    /// For a program: `{"error": {"class", "exit_code", "status", "message", "violations", "hint"}}`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let status = match self {
            Self::Call(explanation) => explanation.status,
            _ => None,
        };
        let class = self.class();
        serde_json::json!({ "error": Report {
            class: class.name(),
            exit_code: class.code(),
            status,
            message: self.message(),
            violations: self.violations(),
            hint: self.hint(),
        }})
    }
}
