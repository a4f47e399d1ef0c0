//! The command line. Every flag is an environment variable too.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Parser, Subcommand};
use imagegen_core::duration::parse_duration;
use imagegen_telemetry::logging::LogArgs;

/// Runs text-to-image models on Kubernetes: turns ImageGen resources into worker pods
#[derive(Debug, Parser)]
#[command(name = "imagegen-operator", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines are written.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinition of ImageGen as YAML
    Crd,
    /// Run the operator until SIGTERM
    Run(Box<RunArgs>),
}

/// Settings of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Image of worker pods whose ImageGen names none
    #[arg(long, env = "IMAGEGEN_WORKER_IMAGE")]
    pub worker_image: String,

    /// Namespace of the operator itself: its Lease, its certificate authority and its client certificate live there
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,

    /// Name of this pod, unique among the operator's pods: who holds the Lease
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,

    /// Namespaces whose ImageGens are served, separated by commas. None given: all of them, which needs ClusterRoles;
    /// with a list, Roles in these namespaces are enough
    #[arg(long, env = "IMAGEGEN_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,

    /// What an ImageGen may ask for beyond a `restricted` pod.
    #[command(flatten)]
    pub allow: AllowArgs,

    /// Where /metrics, /livez and /readyz are served
    #[arg(long, env = "IMAGEGEN_HTTP_LISTEN", default_value = "0.0.0.0:9102")]
    pub http_listen: SocketAddr,

    /// How many ImageGens are reconciled at once
    #[arg(long, env = "IMAGEGEN_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// What is served to autoscalers.
    #[command(flatten)]
    pub serve: ServeArgs,

    /// Leader election.
    #[command(flatten)]
    pub lease: LeaseArgs,
}

/// What is served to autoscalers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "For autoscalers")]
pub struct ServeArgs {
    /// Name of the operator's Service in its namespace, for the certificate that its servers show. Without it there is
    /// neither a KEDA scaler nor a metrics API
    #[arg(long, env = "IMAGEGEN_SERVICE_NAME")]
    pub service_name: Option<String>,

    /// Where KEDA finds its external scaler
    #[arg(long, env = "IMAGEGEN_KEDA_LISTEN", default_value = "0.0.0.0:9090")]
    pub keda_listen: SocketAddr,

    /// The ClusterRole that gives the operator its rights on APIServices, and owns the one it makes. Without it there is no
    /// metrics API, and mode HorizontalPodAutoscaler is refused
    #[arg(long, env = "IMAGEGEN_METRICS_API_CLUSTER_ROLE", requires = "service_name")]
    pub metrics_api_cluster_role: Option<String>,

    /// Where the API server finds the metrics API
    #[arg(long, env = "IMAGEGEN_METRICS_API_LISTEN", default_value = "0.0.0.0:9443")]
    pub metrics_api_listen: SocketAddr,
}

/// What an ImageGen may ask for beyond what a pod in a `restricted` namespace may.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "What users may ask for")]
pub struct AllowArgs {
    /// Allow models on hostPath volumes. Whoever may create an ImageGen can then read that path of every node
    #[arg(long, env = "IMAGEGEN_ALLOW_HOST_PATH")]
    pub allow_host_path: bool,

    /// Allow podTemplates with privileges beyond Pod Security "restricted": root, added capabilities, host namespaces,
    /// privileged containers. Whoever may create an ImageGen can then take over nodes
    #[arg(long, env = "IMAGEGEN_ALLOW_PRIVILEGED_PODS")]
    pub allow_privileged_pods: bool,
}

/// Leader election.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaseArgs {
    /// Name of the Lease; operators of one cluster that serve different namespaces from one namespace need different ones
    #[arg(long, env = "IMAGEGEN_LEASE_NAME", default_value = "imagegen-operator")]
    pub lease_name: String,

    /// How long a dead leader's Lease stands before another pod takes over
    #[arg(long, env = "IMAGEGEN_LEASE_DURATION", default_value = "15s", value_parser = parse_duration)]
    pub lease_duration: Duration,

    /// How long the leader tries to renew before it gives up and restarts. Shorter than --lease-duration
    #[arg(long, env = "IMAGEGEN_LEASE_RENEW_DEADLINE", default_value = "10s", value_parser = parse_duration)]
    pub lease_renew_deadline: Duration,

    /// How often the leader renews and the others look. Shorter than half of --lease-renew-deadline
    #[arg(long, env = "IMAGEGEN_LEASE_RETRY", default_value = "2s", value_parser = parse_duration)]
    pub lease_retry: Duration,
}

/// Why the arguments contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// Election durations out of order.
    #[error(
        "leader election durations must satisfy 2 * --lease-retry < --lease-renew-deadline < --lease-duration, \
         found retry {retry:?}, renew deadline {renew_deadline:?}, duration {duration:?}"
    )]
    LeaseTiming {
        /// As given.
        retry: Duration,
        /// As given.
        renew_deadline: Duration,
        /// As given.
        duration: Duration,
    },
}

impl LeaseArgs {
    /// The durations, in an order that works.
    ///
    /// # Errors
    /// [`ArgsError::LeaseTiming`] when a leader could not renew before it has to give up, or gives up after it lost.
    pub fn timing(&self) -> Result<crate::lease::Timing, ArgsError> {
        let (retry, renew_deadline, duration) = (self.lease_retry, self.lease_renew_deadline, self.lease_duration);
        if retry * 2 < renew_deadline && renew_deadline < duration && !retry.is_zero() {
            Ok(crate::lease::Timing { duration, renew_deadline, retry })
        } else {
            Err(ArgsError::LeaseTiming { retry, renew_deadline, duration })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_an_environment_variable() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for argument in run.get_arguments().filter(|argument| argument.get_long().is_some()) {
            let name = argument.get_id().as_str();
            if !["help", "version"].contains(&name) {
                assert!(argument.get_env().is_some(), "--{name} has no environment variable");
            }
        }
    }

    #[rstest]
    #[case::defaults("2s", "10s", "15s", true)]
    #[case::no_time_to_renew("5s", "10s", "15s", false)]
    #[case::gives_up_after_it_lost("2s", "15s", "15s", false)]
    #[case::busy_loop("0s", "10s", "15s", false)]
    fn lease_timing(#[case] retry: &str, #[case] renew: &str, #[case] lease: &str, #[case] accepted: bool) {
        let args = LeaseArgs {
            lease_name: "x".into(),
            lease_duration: parse_duration(lease).unwrap(),
            lease_renew_deadline: parse_duration(renew).unwrap(),
            lease_retry: parse_duration(retry).unwrap(),
        };
        assert_eq!(args.timing().is_ok(), accepted);
    }
}
