//! `doctor`: what this machine and its settings mean for serving, with what to change and the command for it. It changes
//! nothing itself.
//!
//! ```text
//! gather(NVML, environment, files) → Facts ─findings(pure)→ Findings ─page(pure)→ text, or JSON
//! ```

mod alloc_conf;
mod facts;
mod findings;
mod gpu;
mod page;

use serde::Serialize;

pub(crate) use self::facts::Facts;
use crate::cli::DoctorArgs;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// It serves, and slower or less steadily than it could.
    Warning,
    /// Wrong enough to stop serving.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) about: &'static str,
    pub(crate) found: String,
    /// What to change, where something should change.
    pub(crate) change: Option<String>,
    /// The command that does it, or that shows more.
    pub(crate) command: Option<String>,
}

impl Finding {
    fn new(level: Level, about: &'static str, found: impl Into<String>) -> Self {
        Self { level, about, found: found.into(), change: None, command: None }
    }

    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Ok, about, found)
    }

    fn note(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Note, about, found)
    }

    fn warning(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, found)
    }

    fn error(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Error, about, found)
    }

    fn change(self, change: impl Into<String>) -> Self {
        Self { change: Some(change.into()), ..self }
    }

    fn command(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// What `doctor` says.
#[derive(Debug)]
pub struct Report {
    /// For people, or JSON where that was asked for.
    pub text: String,
    /// False when something is wrong enough to stop serving.
    pub healthy: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    healthy: bool,
    findings: &'a [Finding],
    facts: &'a Facts,
}

/// Looks at this machine.
///
/// # Errors
/// When the report cannot be written as JSON.
pub fn doctor(args: DoctorArgs) -> Result<Report, serde_json::Error> {
    let json = args.json;
    let facts = Facts::gather(args);
    let findings = findings::findings(&facts);
    let healthy = findings.iter().all(|finding| finding.level < Level::Error);
    let text = if json {
        serde_json::to_string_pretty(&Json { healthy, findings: &findings, facts: &facts })? + "\n"
    } else {
        page::page(&facts, &findings)
    };
    Ok(Report { text, healthy })
}
