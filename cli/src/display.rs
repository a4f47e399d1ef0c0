//! What a person sees while waiting: a bar on a terminal, plain lines elsewhere. All of it on standard error.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use imagegen_proto::v1::{Accepted, Progress, Starting};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::time::format_eta;

/// Plain lines come at most this often, so that a log stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// How progress is shown.
#[derive(Debug)]
pub struct Display {
    kind: Kind,
    count: u32,
}

#[derive(Debug)]
enum Kind {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Silent,
}

impl Display {
    /// A display for a request of `count` images; `silent` shows warnings and retries only.
    #[must_use]
    pub fn new(count: u32, silent: bool) -> Self {
        let kind = if silent {
            Kind::Silent
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            Kind::Bar(bar)
        } else {
            Kind::Lines { last: None }
        };
        Self { kind, count }
    }

    /// The client does something that may take a moment.
    pub fn phase(&mut self, text: &str) {
        match &self.kind {
            Kind::Bar(bar) => {
                bar.set_style(spinner());
                bar.set_message(text.to_owned());
            }
            Kind::Lines { .. } => eprintln!("{text}"),
            Kind::Silent => {}
        }
    }

    /// No worker is ready; one is being started.
    pub fn starting(&mut self, event: &Starting) {
        let eta = format_eta(event.eta_seconds).map(|eta| format!(", about {eta}")).unwrap_or_default();
        self.phase(&format!("Starting a worker: {}{eta}", event.phase));
    }

    /// The worker took the request.
    pub fn accepted(&mut self, event: &Accepted) {
        self.phase(&accepted_line(event));
    }

    /// A step is done.
    pub fn progress(&mut self, event: &Progress) {
        let line = progress_line(event, self.count);
        match &mut self.kind {
            Kind::Bar(bar) => {
                bar.set_message(line);
                bar.set_length(u64::from(self.count) * u64::from(event.steps));
                bar.set_position(u64::from(event.index) * u64::from(event.steps) + u64::from(event.step));
                bar.set_style(steps());
            }
            Kind::Lines { last } => {
                let now = Instant::now();
                if is_due(*last, now, event.step == event.steps) {
                    eprintln!("{line}");
                    *last = Some(now);
                }
            }
            Kind::Silent => {}
        }
    }

    /// Something the user should know whatever else is shown.
    pub fn note(&self, text: &str) {
        match &self.kind {
            Kind::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Kind::Lines { .. } | Kind::Silent => eprintln!("{text}"),
        }
    }

    /// Takes the bar away, and says `text` unless silent.
    pub fn finish(&mut self, text: &str) {
        self.clear();
        if !matches!(self.kind, Kind::Silent) && !text.is_empty() {
            eprintln!("{text}");
        }
    }

    fn clear(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    /// An error message must not follow half a bar.
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {msg} [{elapsed}]")
}

fn steps() -> ProgressStyle {
    style("{spinner} [{bar:30}] {msg} [{elapsed}]").progress_chars("=> ")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well-formed")
}

fn is_due(last: Option<Instant>, now: Instant, is_last_step: bool) -> bool {
    is_last_step || last.is_none_or(|last| now.duration_since(last) >= LINE_INTERVAL)
}

fn accepted_line(event: &Accepted) -> String {
    let place = match event.queue_position {
        0 => "next in line".to_owned(),
        1 => "1 request before it".to_owned(),
        n => format!("{n} requests before it"),
    };
    let eta = format_eta(event.eta_seconds).map(|eta| format!(", about {eta}")).unwrap_or_default();
    format!("Accepted, {place}{eta}, seed {}", event.seed)
}

fn progress_line(event: &Progress, count: u32) -> String {
    let image = if count > 1 { format!("Image {} of {count}, step ", event.index + 1) } else { "Step ".to_owned() };
    let eta = format_eta(event.eta_seconds).map(|eta| format!(", about {eta} left")).unwrap_or_default();
    format!("{image}{} of {}{eta}", event.step, event.steps)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn templates_are_well_formed() {
        let (_, _) = (spinner(), steps());
    }

    #[rstest]
    #[case::one(1, 0, 4.0, "Step 3 of 8, about 4 s left")]
    #[case::unmeasured(1, 0, 0.0, "Step 3 of 8")]
    #[case::several(3, 1, 61.0, "Image 2 of 3, step 3 of 8, about 1 min 1 s left")]
    fn progress_is_a_line(#[case] count: u32, #[case] index: u32, #[case] eta_seconds: f64, #[case] line: &str) {
        let event = Progress { index, step: 3, steps: 8, eta_seconds, preview: Vec::new() };
        assert_eq!(progress_line(&event, count), line);
    }

    #[test]
    fn acceptance_names_place_and_seed() {
        let event = Accepted { queue_position: 2, eta_seconds: 30.0, seed: 7, ..Accepted::default() };
        assert_eq!(accepted_line(&event), "Accepted, 2 requests before it, about 30 s, seed 7");
    }

    #[test]
    fn plain_lines_are_rare_but_the_last_one_comes() {
        let start = Instant::now();
        assert!(is_due(None, start, false));
        assert!(!is_due(Some(start), start + Duration::from_secs(1), false));
        assert!(is_due(Some(start), start + LINE_INTERVAL, false));
        assert!(is_due(Some(start), start, true));
    }
}
