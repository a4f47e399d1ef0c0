//! The built program against a worker that answers from a script.
// Clippy takes only functions marked #[test] for tests.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod cluster;
mod generate;
mod kubectl;
mod program;
mod secure;
mod status;
mod worker;
