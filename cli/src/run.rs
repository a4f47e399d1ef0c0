//! From the words of the command line to an exit code.

use std::{ffi::OsString, path::Path};

use clap::Parser;
use tokio_util::task::TaskTracker;

use crate::{
    args::{self, Cli, Command, PluginCli, PluginCommand},
    error::Error,
    exit::Class,
    generate::generate,
    kubectl,
    session::{Session, bounded},
    status,
};

/// Name under which kubectl finds the plugin.
const PLUGIN: &str = "kubectl-imagegen";

/// Runs the command that `words` name, the program's own name first, and returns the exit code.
pub async fn run(words: Vec<OsString>) -> u8 {
    let called_as_plugin = words.first().is_some_and(|word| is_plugin(Path::new(word)));
    let (wants_json, outcome) = if called_as_plugin {
        match PluginCli::try_parse_from(words) {
            Ok(cli) => (plugin_wants_json(&cli), kubectl::run(cli).await),
            Err(error) => return usage(&error),
        }
    } else {
        match Cli::try_parse_from(words) {
            Ok(cli) => (wants_json(&cli), run_cli(cli).await),
            Err(error) => return usage(&error),
        }
    };
    outcome.unwrap_or_else(|error| {
        if wants_json {
            status::print(&error.to_json().to_string());
        } else {
            eprintln!("{}", error.to_text());
        }
        error.class().code()
    })
}

async fn run_cli(cli: Cli) -> Result<u8, Error> {
    match cli.command {
        Command::Generate(args) => {
            let args::Generate { prompt, job, worker } = *args;
            let open = async |_: &mut _, tasks: &TaskTracker| Session::open(&worker, tasks).await;
            generate(&prompt, &job, open).await.map(|()| 0)
        }
        Command::Status(args) => {
            let work = async |tasks: &TaskTracker| {
                let session = Session::open(&args.worker, tasks).await?;
                let status = status::ask(&session).await?;
                if args.json {
                    status::print(&status::to_json(&session.peer, &status).to_string());
                } else {
                    status::print(&status::to_text(&session.peer, &status));
                }
                Ok(if status.is_serving() { 0 } else { Class::Unavailable.code() })
            };
            bounded(args.timeout, work).await
        }
    }
}

fn is_plugin(program: &Path) -> bool {
    program.file_stem().is_some_and(|name| name == PLUGIN)
}

/// Help and version go to standard output with code 0, everything else to standard error with code 2.
fn usage(error: &clap::Error) -> u8 {
    // A reader that has gone away is no failure.
    let _ = error.print();
    if error.exit_code() == 0 { 0 } else { Class::Usage.code() }
}

const fn wants_json(cli: &Cli) -> bool {
    match &cli.command {
        Command::Generate(args) => args.job.json,
        Command::Status(args) => args.json,
    }
}

const fn plugin_wants_json(cli: &PluginCli) -> bool {
    match &cli.command {
        PluginCommand::Generate(args) => args.job.json,
        PluginCommand::Status(args) => args.json,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plugin("/usr/local/bin/kubectl-imagegen", true)]
    #[case::windows("kubectl-imagegen.exe", true)]
    #[case::client("./imagegen", false)]
    fn the_name_of_the_program_decides(#[case] program: &str, #[case] plugin: bool) {
        assert_eq!(is_plugin(Path::new(program)), plugin);
    }
}
