//! The ImageGen worker's command line.

use std::{io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _};
use imagegen_telemetry::logging;
use imagegen_worker::{
    cli::{Cli, Command},
    convert, doctor, generate, profiles, run,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing::{error, info};

fn main() -> ExitCode {
    let mut command = Cli::command();
    // Gives subcommands the flags that all of them share.
    command.build();
    let matches = command.clone().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Err(error) = logging::init(&cli.log) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    match cli.command {
        Command::Generate(args) => match generate::generate(*args) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("imagegen-worker generate: {error}");
                ExitCode::from(error.exit_code())
            }
        },
        Command::Convert(args) => match convert::convert(args) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("imagegen-worker convert: {error}");
                ExitCode::from(error.exit_code())
            }
        },
        Command::Doctor(args) => match doctor::doctor(*args) {
            Ok(report) => print(&report.text, if report.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            Err(error) => {
                eprintln!("imagegen-worker doctor: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Profiles(args) => match profiles::list(args.json) {
            Ok(text) => print(&text, ExitCode::SUCCESS),
            Err(error) => {
                eprintln!("imagegen-worker profiles: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Serve(args) => {
            let settings = match (command.find_subcommand("serve"), matches.subcommand()) {
                (Some(command), Some((_, matches))) => run::Settings::new(command, matches),
                _ => run::Settings::default(),
            };
            let served = Runtime::new().map_err(anyhow::Error::from).map(|runtime| {
                let result = runtime.block_on(serve(*args, settings));
                // The engine thread may be in a step that nobody waits for any more.
                runtime.shutdown_background();
                result
            });
            match served.and_then(|result| result) {
                Ok(()) => {
                    info!("Done.");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    error!("{error:#}.");
                    let code = error.downcast_ref::<run::ServeError>().map_or(1, run::ServeError::exit_code);
                    ExitCode::from(code)
                }
            }
        }
    }
}

/// Whoever reads may stop early; that is no fault.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    code
}

async fn serve(args: imagegen_worker::cli::ServeArgs, settings: run::Settings) -> anyhow::Result<()> {
    let (order, terminations) = mpsc::channel(2);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (started, _addresses) = oneshot::channel();
    let host = run::Host { terminations, started, reload_every: None };
    let signals = async {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "Asked to stop.");
            // More than two signals say nothing new.
            let _ = order.try_send(());
        }
    };
    tokio::select! {
        result = run::serve(args, settings, host) => Ok(result?),
        () = signals => Ok(()),
    }
}
