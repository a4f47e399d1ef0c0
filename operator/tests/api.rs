//! The operator against a real kube-apiserver: what it writes, what it leaves alone, and who of several writes.
//!
//! One API server serves all cases, each in its own namespace with its own operator, so this target has its own `main`
//! that stops the server at the end. `cargo test -p imagegen-operator --test api -- WORD` runs the cases whose names
//! contain WORD.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test; clippy knows only the built-in harness")]

mod cases;
mod support;

use std::{future::Future, pin::Pin, process::ExitCode, sync::Arc, time::Instant};

use futures::StreamExt as _;
use tokio::task::{self, LocalSet};

use support::apiserver::ApiServer;

/// A case: its name is what it shows.
pub(crate) struct Case {
    name: &'static str,
    run: fn(Arc<ApiServer>) -> Run,
    /// It changes what all namespaces share, so nothing else may run.
    alone: bool,
}

type Run = Pin<Box<dyn Future<Output = ()>>>;

/// Cases at a time: on a machine with two cores more of them wait for each other.
const AT_ONCE: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    LocalSet::new().run_until(run()).await
}

async fn run() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |case: &Case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()));
    let cases: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    if std::env::args().any(|arg| arg == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let server = Arc::new(ApiServer::start().await);
    let (alone, together): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.alone);
    let mut failed = Vec::new();
    for (group, at_once) in [(together, AT_ONCE), (alone, 1)] {
        let runs = group.into_iter().map(|case| {
            let server = server.clone();
            async move {
                let started = Instant::now();
                // A task of its own turns a panic into an error.
                let outcome = task::spawn_local((case.run)(server)).await;
                (case.name, outcome, started.elapsed())
            }
        });
        let mut runs = futures::stream::iter(runs).buffer_unordered(at_once);
        while let Some((name, outcome, took)) = runs.next().await {
            let word = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("test {name} ... {word} ({:.1} s)", took.as_secs_f64());
            if outcome.is_err() {
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailed: {}", failed.join(", "));
    ExitCode::FAILURE
}
