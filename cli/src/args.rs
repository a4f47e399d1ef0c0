//! The command lines of `imagegen` and of `kubectl imagegen`. Doc comments are the help texts.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use imagegen_core::duration::parse_duration;
use imagegen_core::spec::{SchedulerKind, Size};

use crate::{endpoint::Endpoint, output::Format};

/// What both `--help` texts end with.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 the worker failed, 2 usage, 3 request refused, 4 unavailable now, 5 deadline passed,
6 not authorised or not trusted, 7 file, 8 no such ImageGen, 130 interrupted, 143 terminated.";

/// Pictures from ImageGen workers.
#[derive(Debug, Parser)]
#[command(name = "imagegen", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of `imagegen`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes pictures of a prompt and saves them.
    ///
    /// The names of the saved files are printed on standard output, one a line; progress goes to standard error.
    /// Ctrl-C cancels the request on the worker.
    Generate(Box<Generate>),
    /// Shows what a worker has loaded, its limits and settings, and whether it serves.
    Status(Status),
}

/// Arguments of `imagegen generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// What to draw, in any language.
    pub prompt: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: Job,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub worker: Worker,
}

/// Arguments of `imagegen status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub worker: Worker,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Give up after this long.
    #[arg(long, env = "IMAGEGEN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Pictures from the ImageGens of a Kubernetes cluster.
///
/// Finds the workers of an ImageGen by its name and talks to one of them through the API server; nothing has to be
/// exposed or forwarded by hand.
#[derive(Debug, Parser)]
#[command(name = "kubectl-imagegen", bin_name = "kubectl imagegen", display_name = "kubectl imagegen", version)]
#[command(after_help = EXIT_CODES)]
pub struct PluginCli {
    /// Namespace of the ImageGen. Default: the one of the kubeconfig's context.
    #[arg(short, long, global = true, value_parser = parse_name)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The kubeconfig file. Default: what KUBECONFIG names, then ~/.kube/config, then the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: PluginCommand,
}

/// Commands of `kubectl imagegen`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Makes pictures of a prompt on the workers of an ImageGen and saves them.
    ///
    /// The names of the saved files are printed on standard output, one a line; progress goes to standard error.
    /// Ctrl-C cancels the request on the worker.
    Generate(Box<PluginGenerate>),
    /// Shows the conditions of an ImageGen and what its workers have loaded; without a name, lists the ImageGens.
    Status(PluginStatus),
}

/// Arguments of `kubectl imagegen generate`.
#[derive(Debug, Args)]
pub struct PluginGenerate {
    /// Name of the ImageGen.
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// What to draw, in any language.
    pub prompt: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: Job,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub security: PluginSecurity,
}

/// Arguments of `kubectl imagegen status`.
#[derive(Debug, Args)]
pub struct PluginStatus {
    /// Name of the ImageGen. Absent: all of the namespace.
    #[arg(value_parser = parse_name)]
    pub name: Option<String>,
    /// With no name: list the ImageGens of every namespace.
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    pub all_namespaces: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub security: PluginSecurity,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Give up after this long.
    #[arg(long, env = "IMAGEGEN_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// What to make, where to put it, how long to try.
#[derive(Debug, Args)]
pub struct Job {
    /// File to write; several pictures of apple.png become apple-1.png, apple-2.png and so on. An existing folder: a
    /// file in it, named after the prompt. Absent: a file named after the prompt in the current folder.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// PNG file that shows how far the picture is, replaced after every step but the last. Small, and a guess.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub preview: Option<PathBuf>,
    /// Encoding. Absent: what the file's extension says, else PNG.
    #[arg(long, value_enum, help_heading = "Output")]
    pub format: Option<Format>,
    /// Print one JSON object on standard output, also for a failure, and no progress.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Show no progress.
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,

    /// Width and height in pixels, as 1024x576. Absent: the model's default.
    #[arg(long, value_name = "WxH", help_heading = "Picture")]
    pub size: Option<Size>,
    /// Same seed, same picture. Absent: drawn at random and shown. Picture i uses the seed plus i.
    #[arg(long, help_heading = "Picture")]
    pub seed: Option<u32>,
    /// Pictures to make.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Picture")]
    pub count: u32,
    /// Denoising steps. Absent: the model's default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Picture")]
    pub steps: Option<u32>,
    /// What to avoid; needs a guidance scale above 0.
    #[arg(long, value_name = "PROMPT", help_heading = "Picture")]
    pub negative_prompt: Option<String>,
    /// How strongly the prompt guides; 0 switches guidance off. Absent: the model's default.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Picture")]
    pub guidance_scale: Option<f32>,
    /// Cap of the guided prediction's norm as a multiple of the positive one's; 0 for none.
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true, help_heading = "Picture")]
    pub cfg_normalization: Option<f32>,
    /// Guidance ends where 1 - sigma exceeds this, 0 to 1.
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true, help_heading = "Picture")]
    pub cfg_truncation: Option<f32>,
    /// Scheduler: flow-match-euler, unipc, deis, dpm-solver++, or heun (advised against: twice the work of a step).
    /// Absent: the model's own, flow-match-euler.
    #[arg(long, value_name = "NAME", help_heading = "Picture")]
    pub scheduler: Option<SchedulerKind>,
    /// Run alone on the device, so that the picture is bitwise the same every time.
    #[arg(long, help_heading = "Picture")]
    pub reproducible: bool,

    /// Higher starts first, -100 to 100.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-100..=100), help_heading = "Request")]
    pub priority: i32,
    /// Name of the request; a repeat attaches to the running one. Absent: made here.
    #[arg(long, value_name = "ID", help_heading = "Request")]
    pub request_id: Option<String>,
    /// Give up after this long, retries and waiting in the queue included.
    #[arg(long, env = "IMAGEGEN_TIMEOUT", value_name = "DURATION", default_value = "10m",
          value_parser = parse_duration, help_heading = "Request")]
    pub timeout: Duration,
    /// Times to try again when the worker is unavailable or asks for a retry; always with the same id and seed.
    #[arg(long, env = "IMAGEGEN_RETRIES", default_value_t = 3, help_heading = "Request")]
    pub retries: u32,
}

/// Which worker, and how it is trusted.
#[derive(Debug, Args)]
pub struct Worker {
    /// Address of the workers: http://HOST:PORT, or https://HOST:PORT where they have a certificate. A name with
    /// several addresses (a headless Service) is balanced over.
    #[arg(
        long,
        env = "IMAGEGEN_ENDPOINT",
        value_name = "URL",
        default_value = "http://localhost:8500",
        help_heading = "Worker"
    )]
    pub endpoint: Endpoint,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub security: Security,
    /// Send the token over an unencrypted connection to another machine.
    #[arg(long, env = "IMAGEGEN_ALLOW_INSECURE_TOKEN", help_heading = "Worker")]
    pub allow_insecure_token: bool,
}

/// Trust in both directions.
#[derive(Debug, Args, Default)]
pub struct Security {
    /// File whose first line is the bearer token. Or set IMAGEGEN_TOKEN to the token itself.
    #[arg(long, env = "IMAGEGEN_TOKEN_FILE", value_name = "FILE", help_heading = "Worker")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust instead of the system's.
    #[arg(long, env = "IMAGEGEN_CA_FILE", value_name = "FILE", help_heading = "Worker")]
    pub ca_file: Option<PathBuf>,
    /// Name the worker's certificate must carry. Absent: the host of the endpoint.
    #[arg(long, env = "IMAGEGEN_TLS_SERVER_NAME", value_name = "NAME", help_heading = "Worker")]
    pub tls_server_name: Option<String>,
}

/// Trust in both directions, where the cluster knows most of it.
#[derive(Debug, Args, Default)]
pub struct PluginSecurity {
    /// File whose first line is the bearer token. Or set IMAGEGEN_TOKEN. Absent: the Secret that the ImageGen names,
    /// if you may read it.
    #[arg(long, env = "IMAGEGEN_TOKEN_FILE", value_name = "FILE", help_heading = "Worker")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust. Absent: ca.crt of the Secret that the ImageGen names, if you may read it.
    #[arg(long, env = "IMAGEGEN_CA_FILE", value_name = "FILE", help_heading = "Worker")]
    pub ca_file: Option<PathBuf>,
    /// Name the worker's certificate must carry. Absent: NAME.NAMESPACE.svc.
    #[arg(long, env = "IMAGEGEN_TLS_SERVER_NAME", value_name = "NAME", help_heading = "Worker")]
    pub tls_server_name: Option<String>,
}

/// Names of namespaces and ImageGens are DNS labels; anything else would ask the API server for another path.
fn parse_name(text: &str) -> Result<String, String> {
    let is_label = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label {
        Ok(text.to_owned())
    } else {
        Err("a name has lower-case letters, digits and inner hyphens, at most 63".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use rstest::rstest;

    use super::*;

    #[test]
    fn both_command_lines_are_consistent() {
        Cli::command().debug_assert();
        PluginCli::command().debug_assert();
    }

    #[rstest]
    #[case::size("--size", "256")]
    #[case::zero_steps("--steps", "0")]
    #[case::zero_images("--count", "0")]
    #[case::priority("--priority", "101")]
    #[case::seed("--seed", "4294967296")]
    #[case::timeout("--timeout", "10")]
    #[case::scheduler("--scheduler", "ddim")]
    #[case::endpoint("--endpoint", "localhost:8500")]
    fn what_cannot_be_understood_is_a_usage_error(#[case] flag: &str, #[case] value: &str) {
        let error = Cli::try_parse_from(["imagegen", "generate", "p", flag, value]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(flag), "{error}");
    }

    #[rstest]
    #[case::path("a/b")]
    #[case::upper_case("Turbo")]
    #[case::nothing("")]
    fn what_is_no_name_is_a_usage_error(#[case] name: &str) {
        assert!(PluginCli::try_parse_from(["kubectl-imagegen", "generate", name, "p"]).is_err());
        assert!(PluginCli::try_parse_from(["kubectl-imagegen", "status", "-n", name]).is_err());
    }

    #[test]
    fn cluster_flags_stand_anywhere() {
        let cli =
            PluginCli::try_parse_from(["kubectl-imagegen", "generate", "turbo", "p", "-n", "art", "--context", "c"]);
        let cli = cli.unwrap();
        assert_eq!((cli.namespace.as_deref(), cli.context.as_deref()), (Some("art"), Some("c")));
    }
}
