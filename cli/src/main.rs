//! The `imagegen` binary. Called `kubectl-imagegen`, it is a kubectl plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(imagegen::run::run(std::env::args_os().collect()));
    // A lookup of a name that never ends must not keep the program.
    runtime.shutdown_background();
    ExitCode::from(code)
}
