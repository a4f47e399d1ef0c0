//! The command line. Its doc comments are what `--help` prints.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use imagegen_core::{
    bucket::Buckets,
    duration::{parse_duration, parse_positive_duration},
    rules::{Limits, SizePolicy},
    spec::{SchedulerKind, Size},
};
use imagegen_telemetry::logging::LogArgs;

pub use crate::{
    allocator::AllocatorArgs,
    convert::StoredPrecision,
    device::{Device, Precision, VaeTiling},
};

/// Makes pictures from text with Z-Image models: as a gRPC server (serve), or one request without a server (generate).
///
/// Every flag can also be given as an environment variable, shown in brackets; a flag wins over its variable. Sizes are written
/// WIDTHxHEIGHT in pixels, durations in whole ms, s, m or h (90s, 1m30s).
#[derive(Debug, Parser)]
#[command(name = "imagegen-worker", version, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Logging
    #[command(flatten)]
    pub log: LogArgs,
}

/// Shown below the help.
const EXIT_CODES: &str = "Exit codes:
  0  done; for serve: drained and stopped when asked to
  1  something else failed, a file that cannot be written among it; the last line says what. doctor: something is wrong
     enough to stop serving
  2  the command line, a setting or a request is wrong
  3  the model could not be loaded
  4  the engine failed; for serve: the device needs a new process
  5  serve: the drain timeout passed, and requests were cut off";

/// What the worker can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the model over gRPC until SIGTERM
    ///
    /// On SIGTERM or SIGINT the worker stops admitting requests, finishes what runs and waits (at most --drain-timeout),
    /// and exits with 0. A second signal ends it at once.
    Serve(Box<ServeArgs>),
    /// Make the pictures of one request without a server
    ///
    /// Progress is written to standard error. Each picture appears under its name only when it is complete.
    Generate(Box<GenerateArgs>),
    /// Copy a checkpoint with its weights in another precision
    ///
    /// A copy of a float32 checkpoint in bfloat16 has half the bytes to read at each start, and gives the same pictures as loading
    /// the original with --precision bfloat16. The folder gets the layout of the original and a file SHA256SUMS; it appears under
    /// its name only when it is complete.
    Convert(ConvertArgs),
    /// Say what this machine and its settings mean for serving, with what to change
    ///
    /// Looks at the GPU, its driver and who else uses it, clocks, heat and power, the allocator's settings and the profile that fits.
    /// Changes nothing. The exit code is 1 when something is wrong enough to stop serving.
    Doctor(Box<DoctorArgs>),
    /// List the GPU profiles
    Profiles(ProfilesArgs),
}

/// Which GPU profile fills in what nobody set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// The one of the card.
    Auto,
    /// None: the built-in values hold.
    None,
    /// The one of this name.
    Named(String),
}

impl FromStr for ProfileChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// What the doctor looks at.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Folder of the checkpoint, to see whether it fits
    #[arg(long, env = "IMAGEGEN_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Numbers the weights would be kept in [default: bfloat16 on a GPU, float32 on a CPU]
    #[arg(long, env = "IMAGEGEN_PRECISION", value_enum)]
    pub precision: Option<Precision>,
    /// Where the model would run: cpu, cuda (the first GPU), or cuda:N [default: a GPU where there is one]
    #[arg(long, env = "IMAGEGEN_DEVICE")]
    pub device: Option<Device>,
    /// GPU profile: auto, none, or a name
    #[arg(long, env = "IMAGEGEN_PROFILE", default_value = "auto", value_name = "NAME")]
    pub profile: ProfileChoice,
    /// UUID of the GPU or MIG instance that it has to be
    #[arg(long, env = "IMAGEGEN_GPU_UUID", value_name = "UUID")]
    pub gpu_uuid: Option<String>,
    /// NVML library to open instead of the system's libnvidia-ml.so.1
    #[arg(long, env = "IMAGEGEN_NVML_LIBRARY", value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long, env = "IMAGEGEN_JSON")]
    pub json: bool,
}

/// How profiles are listed.
#[derive(Debug, Clone, Args)]
pub struct ProfilesArgs {
    /// Print JSON for programs
    #[arg(long, env = "IMAGEGEN_JSON")]
    pub json: bool,
}

/// Which engine makes the pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineChoice {
    /// The model, in libtorch.
    Torch,
    /// Timings and faults from a file; no model.
    Scripted(PathBuf),
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "torch" => Ok(Self::Torch),
            Some(("scripted", file)) if !file.is_empty() => Ok(Self::Scripted(file.into())),
            _ => Err(format!("an engine is torch or scripted:FILE, found \"{text}\"")),
        }
    }
}

/// Settings of the server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Folder of the checkpoint, in the layout of diffusers (model_index.json beside the parts)
    #[arg(long, env = "IMAGEGEN_MODEL", value_name = "DIR", help_heading = "Model")]
    pub model: Option<PathBuf>,
    /// Numbers the weights are kept in [default: bfloat16 on a GPU, float32 on a CPU]
    #[arg(long, env = "IMAGEGEN_PRECISION", value_enum, help_heading = "Model")]
    pub precision: Option<Precision>,
    /// Which pictures the VAE decodes in tiles, of the size in its config.json. Tiles bound the memory and change the picture a little
    #[arg(long, env = "IMAGEGEN_VAE_TILING", value_enum, default_value_t, help_heading = "Model")]
    pub vae_tiling: VaeTiling,
    /// Where the model runs: cpu, cuda (the first GPU), or cuda:N
    #[arg(long, env = "IMAGEGEN_DEVICE", default_value = "cpu", help_heading = "Model")]
    pub device: Device,
    /// GPU profile that fills in precision, tiling and buckets where nobody set them: auto (that of the card), none, or a name from
    /// imagegen-worker profiles
    #[arg(long, env = "IMAGEGEN_PROFILE", default_value = "auto", value_name = "NAME", help_heading = "Model")]
    pub profile: ProfileChoice,
    /// UUID of the GPU or MIG instance that the worker must run on; it refuses to start on another
    #[arg(long, env = "IMAGEGEN_GPU_UUID", value_name = "UUID", help_heading = "Model")]
    pub gpu_uuid: Option<String>,
    /// NVML library to open instead of the system's libnvidia-ml.so.1
    #[arg(long, env = "IMAGEGEN_NVML_LIBRARY", value_name = "FILE", help_heading = "Model")]
    pub nvml_library: Option<PathBuf>,
    /// CPU threads of libtorch [default: the CPU limit of the container, or all cores]
    #[arg(long, env = "IMAGEGEN_THREADS", value_name = "N", value_parser = positive_usize, help_heading = "Model")]
    pub threads: Option<usize>,
    /// The allocator of the GPU
    #[command(flatten)]
    pub allocator: AllocatorArgs,

    /// Address of the public gRPC service
    #[arg(
        long,
        env = "IMAGEGEN_LISTEN",
        default_value = "0.0.0.0:8500",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    pub listen: SocketAddr,
    /// Address of the operator's gRPC service; served only with --admin-tls-dir
    #[arg(
        long,
        env = "IMAGEGEN_ADMIN_LISTEN",
        default_value = "0.0.0.0:8501",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    pub admin_listen: SocketAddr,
    /// Address of /metrics, /livez and /readyz, over plain HTTP
    #[arg(
        long,
        env = "IMAGEGEN_HTTP_LISTEN",
        default_value = "0.0.0.0:9102",
        value_name = "ADDR",
        help_heading = "Network"
    )]
    pub http_listen: SocketAddr,
    /// Folder with tls.crt, tls.key and ca.crt for the operator's service, which speaks mutual TLS only. Reloaded when they change
    #[arg(long, env = "IMAGEGEN_ADMIN_TLS_DIR", value_name = "DIR", help_heading = "Network")]
    pub admin_tls_dir: Option<PathBuf>,
    /// Folder with tls.crt and tls.key for the public service; without it, it speaks plain text. Reloaded when they change
    #[arg(long, env = "IMAGEGEN_TLS_DIR", value_name = "DIR", help_heading = "Network")]
    pub tls_dir: Option<PathBuf>,
    /// File with the bearer tokens that callers of the public service must show, one a line. Reloaded when it changes
    #[arg(long, env = "IMAGEGEN_TOKEN_FILE", value_name = "FILE", help_heading = "Network")]
    pub token_file: Option<PathBuf>,
    /// Accept --token-file without --tls-dir, where anyone on the network path can read the token
    #[arg(long, env = "IMAGEGEN_ALLOW_INSECURE_TOKEN", help_heading = "Network")]
    pub allow_insecure_token: bool,
    /// Age at which a connection is told to go away (GOAWAY), plus or minus 10 % drawn for each, so that clients spread over new pods.
    /// Running requests are finished. 0s: never
    #[arg(long, env = "IMAGEGEN_MAX_CONNECTION_AGE", default_value = "60s", value_name = "DURATION", value_parser = parse_duration, help_heading = "Network")]
    pub max_connection_age: Duration,
    /// How long an aged connection may still finish its requests before it is cut
    #[arg(long, env = "IMAGEGEN_MAX_CONNECTION_AGE_GRACE", default_value = "1h", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Network")]
    pub max_connection_age_grace: Duration,

    /// Size of pictures when a request does not say [default: 1024x1024, or the largest bucket where that is smaller]
    #[arg(long, env = "IMAGEGEN_DEFAULT_SIZE", value_name = "WxH", help_heading = "Requests")]
    pub default_size: Option<Size>,
    /// Denoising steps when a request does not say
    #[arg(long, env = "IMAGEGEN_DEFAULT_STEPS", default_value_t = imagegen_core::rules::DEFAULT_STEPS, value_name = "N", help_heading = "Requests")]
    pub default_steps: u32,
    /// Guidance scale when a request does not say; 0 is off, above 0 runs the transformer twice a step
    #[arg(long, env = "IMAGEGEN_DEFAULT_GUIDANCE_SCALE", default_value_t = imagegen_core::rules::DEFAULT_GUIDANCE_SCALE, value_name = "F", help_heading = "Requests")]
    pub default_guidance_scale: f64,
    /// Size classes and how many images of one request are made together in each, for example 1024x1024@2,512x512@4. A request is
    /// charged as the smallest class that covers it, and refused when none does
    /// [default: 512x512, 768x768, 1024x576, 576x1024, 1024x1024, 1536x1536, 2048x2048 and the model's largest, within the limits, one image each]
    #[arg(long, env = "IMAGEGEN_BUCKETS", value_name = "LIST", help_heading = "Requests")]
    pub buckets: Option<Buckets>,
    /// Size the latents are made for. exact: the asked one, as in diffusers. bucket: that of the class, then cropped; fewer distinct
    /// shapes, but a seed gives another picture
    #[arg(long, env = "IMAGEGEN_SIZE_POLICY", default_value_t = SizePolicy::Exact, value_name = "exact|bucket", help_heading = "Requests")]
    pub size_policy: SizePolicy,
    /// Requests that may wait; more are refused with RESOURCE_EXHAUSTED and a retry hint
    #[arg(long, env = "IMAGEGEN_QUEUE_CAPACITY", default_value_t = 64, value_name = "N", value_parser = positive_usize, help_heading = "Requests")]
    pub queue_capacity: usize,
    /// How long a request may wait before it is refused
    #[arg(long, env = "IMAGEGEN_QUEUE_MAX_WAIT", default_value = "120s", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Requests")]
    pub queue_max_wait: Duration,
    /// How long a big image may hold up a request that takes at most half as long: then it is suspended between two steps, and goes on
    /// after it [default: 5s, or half of --queue-max-wait where that is shorter]
    #[arg(long, env = "IMAGEGEN_QUEUE_MAX_HOLDUP", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Requests")]
    pub queue_max_holdup: Option<Duration>,
    /// Most pixels (width times height) of a picture
    #[arg(long, env = "IMAGEGEN_MAX_PIXELS", default_value_t = Limits::BUILT_IN.max_pixels, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Requests")]
    pub max_pixels: u64,
    /// Most denoising steps of a request
    #[arg(long, env = "IMAGEGEN_MAX_STEPS", default_value_t = Limits::BUILT_IN.max_steps, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Requests")]
    pub max_steps: u32,
    /// Most images of a request
    #[arg(long, env = "IMAGEGEN_MAX_IMAGES_PER_REQUEST", default_value_t = Limits::BUILT_IN.max_images_per_request, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "Requests")]
    pub max_images_per_request: u32,

    /// Share of the device's memory that may be used, above 0 and at most 1; what other processes hold is taken off
    #[arg(long, env = "IMAGEGEN_MEMORY_LIMIT_RATIO", default_value = "0.92", value_name = "RATIO", value_parser = positive_ratio, help_heading = "Memory")]
    pub memory_limit_ratio: f64,
    /// Time between two looks at the allocator's pool, which is trimmed only while nothing runs or waits
    #[arg(long, env = "IMAGEGEN_TRIM_INTERVAL", default_value = "300s", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Memory")]
    pub trim_interval: Duration,
    /// Pool overhead above which cached blocks are given back: (peak reserved - peak allocated) / peak reserved
    #[arg(long, env = "IMAGEGEN_TRIM_ABOVE", default_value = "0.30", value_name = "RATIO", value_parser = positive_ratio, help_heading = "Memory")]
    pub trim_above: f64,
    /// Folder that keeps the measured costs of batches, so that a restart on the same device does not measure again
    /// [default: /var/cache/imagegen where it can be written]
    #[arg(long, env = "IMAGEGEN_TABLE_CACHE", value_name = "DIR", help_heading = "Memory")]
    pub table_cache: Option<PathBuf>,
    /// Memory pressure that the scaling signal is measured against, above 0 and at most 1
    #[arg(long, env = "IMAGEGEN_TARGET_MEMORY_PRESSURE", default_value = "0.75", value_name = "RATIO", value_parser = positive_ratio, help_heading = "Memory")]
    pub target_memory_pressure: f64,
    /// Wait that the scaling signal is measured against
    #[arg(long, env = "IMAGEGEN_TARGET_QUEUE_WAIT", default_value = "20s", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Memory")]
    pub target_queue_wait: Duration,

    /// How long requests may still run after SIGTERM or a drain by the operator
    #[arg(long, env = "IMAGEGEN_DRAIN_TIMEOUT", default_value = "120s", value_name = "DURATION", value_parser = parse_duration, help_heading = "Life cycle")]
    pub drain_timeout: Duration,
    /// /livez fails when the engine has not finished a step, or a part of loading, for this long
    #[arg(long, env = "IMAGEGEN_STALL_TIMEOUT", default_value = "15m", value_name = "DURATION", value_parser = parse_positive_duration, help_heading = "Life cycle")]
    pub stall_timeout: Duration,

    /// torch, or scripted:FILE for tests: timings and faults from a file, pictures that are colour gradients. Needs --development
    #[arg(long, env = "IMAGEGEN_ENGINE", default_value = "torch", value_name = "ENGINE", help_heading = "Development")]
    pub engine: EngineChoice,
    /// Random weights instead of a checkpoint's, to measure time and memory; pictures are noise. The architecture is that of --model,
    /// which then needs no weight files, or else of Z-Image-Turbo, with a token for each word. Needs --development
    #[arg(long, env = "IMAGEGEN_RANDOM_WEIGHTS", help_heading = "Development")]
    pub random_weights: bool,
    /// Allow what must not happen in production: --engine scripted:FILE and --random-weights
    #[arg(long, env = "IMAGEGEN_DEVELOPMENT", help_heading = "Development")]
    pub development: bool,
}

/// One request without a server.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Folder of the checkpoint, in the layout of diffusers (model_index.json beside the parts)
    #[arg(long, env = "IMAGEGEN_MODEL", value_name = "DIR", required_unless_present_any = ["engine", "random_weights"])]
    pub model: Option<PathBuf>,
    /// What to draw, in any language
    #[arg(long, env = "IMAGEGEN_PROMPT", value_name = "TEXT")]
    pub prompt: OsString,
    /// File to write; its extension decides the format: .png, .jpg (quality 90) or .webp (lossless). Several images get -1, -2 before it
    #[arg(long, short, env = "IMAGEGEN_OUTPUT", value_name = "FILE")]
    pub output: PathBuf,
    /// What to avoid; only with --guidance-scale above 0
    #[arg(long, env = "IMAGEGEN_NEGATIVE_PROMPT", value_name = "TEXT")]
    pub negative_prompt: Option<OsString>,
    /// Pixels from left to right [default: 1024, or the model's largest where that is smaller]
    #[arg(long, env = "IMAGEGEN_WIDTH", value_name = "PIXELS")]
    pub width: Option<u32>,
    /// Pixels from top to bottom [default: as --width]
    #[arg(long, env = "IMAGEGEN_HEIGHT", value_name = "PIXELS")]
    pub height: Option<u32>,
    /// Denoising steps
    #[arg(long, env = "IMAGEGEN_STEPS", default_value_t = imagegen_core::rules::DEFAULT_STEPS, value_name = "N")]
    pub steps: u32,
    /// 0 switches guidance off; above 0 every step runs the transformer twice
    #[arg(long, env = "IMAGEGEN_GUIDANCE_SCALE", default_value_t = imagegen_core::rules::DEFAULT_GUIDANCE_SCALE, value_name = "F")]
    pub guidance_scale: f64,
    /// One seed, one picture; image i uses seed + i [default: random, and printed]
    #[arg(long, env = "IMAGEGEN_SEED", value_name = "N")]
    pub seed: Option<u32>,
    /// Images to make
    #[arg(long, env = "IMAGEGEN_COUNT", default_value_t = 1, value_name = "N")]
    pub count: u32,
    /// How noise becomes a picture: flow-match-euler (the model's own), unipc, deis, dpm-solver++, or heun (advised against: twice the
    /// work of a step)
    #[arg(long, env = "IMAGEGEN_SCHEDULER", default_value_t = SchedulerKind::FlowMatchEuler, value_name = "NAME")]
    pub scheduler: SchedulerKind,
    /// Numbers the weights are kept in [default: bfloat16 on a GPU, float32 on a CPU]
    #[arg(long, env = "IMAGEGEN_PRECISION", value_enum)]
    pub precision: Option<Precision>,
    /// Which pictures the VAE decodes in tiles, of the size in its config.json. Tiles bound the memory and change the picture a little
    #[arg(long, env = "IMAGEGEN_VAE_TILING", value_enum, default_value_t)]
    pub vae_tiling: VaeTiling,
    /// Where the model runs: cpu, cuda (the first GPU), or cuda:N
    #[arg(long, env = "IMAGEGEN_DEVICE", default_value = "cpu")]
    pub device: Device,
    /// CPU threads of libtorch [default: the CPU limit of the container, or all cores]
    #[arg(long, env = "IMAGEGEN_THREADS", value_name = "N", value_parser = positive_usize)]
    pub threads: Option<usize>,
    /// torch, or scripted:FILE for tests; needs --development
    #[arg(long, env = "IMAGEGEN_ENGINE", value_name = "ENGINE")]
    pub engine: Option<EngineChoice>,
    /// Random weights instead of a checkpoint's, to measure time and memory; needs --development
    #[arg(long, env = "IMAGEGEN_RANDOM_WEIGHTS")]
    pub random_weights: bool,
    /// Allow what must not happen in production: --engine scripted:FILE and --random-weights
    #[arg(long, env = "IMAGEGEN_DEVELOPMENT")]
    pub development: bool,
}

/// A copy in another precision.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// Folder of the checkpoint, in the layout of diffusers (model_index.json beside the parts)
    #[arg(long, env = "IMAGEGEN_MODEL", value_name = "DIR")]
    pub model: PathBuf,
    /// Folder of the copy; must not be there yet
    #[arg(long, short, env = "IMAGEGEN_OUTPUT", value_name = "DIR")]
    pub output: PathBuf,
    /// Numbers the copy's weights are kept in: bfloat16 or float32
    #[arg(long, env = "IMAGEGEN_PRECISION", value_name = "PRECISION")]
    pub precision: StoredPrecision,
}

fn positive_ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&ratio: &f64| ratio > 0.0 && ratio <= 1.0)
        .ok_or_else(|| format!("expected a number above 0 and at most 1, found \"{text}\""))
}

fn positive_usize(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("expected a number of 1 or more, found \"{text}\""))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_an_environment_variable_of_its_name() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
                let expected = format!("IMAGEGEN_{}", argument.get_id().as_str().to_uppercase());
                let found = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                assert_eq!(found, Some(expected), "{}", command.get_name());
            }
        }
    }

    #[test]
    fn engines() {
        assert_eq!("torch".parse(), Ok(EngineChoice::Torch));
        assert_eq!("scripted:a:b".parse(), Ok(EngineChoice::Scripted("a:b".into())));
        for bad in ["", "scripted", "scripted:", "tensorrt"] {
            assert!(bad.parse::<EngineChoice>().unwrap_err().contains("torch or scripted:FILE"), "{bad}");
        }
    }
}
