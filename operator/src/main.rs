//! `imagegen-operator`: `run` and `crd`.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use imagegen_operator::{
    cli::{Cli, Command},
    crd, run,
};
use imagegen_telemetry::logging;
use tracing::error;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(cause) = logging::init(&cli.log) {
        // There is no log yet.
        return writeln!(std::io::stderr(), "error: {cause}").map_or(ExitCode::FAILURE, |()| ExitCode::from(2));
    }
    match execute(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!(error = format!("{cause:#}"), "The operator ends.");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Crd => Ok(std::io::stdout().write_all(crd::crd_yaml().as_bytes())?),
        Command::Run(args) => run::run(*args).await,
    }
}
