//! Which settings are in force, and who said so.

use clap::{ArgMatches, Command, parser::ValueSource};
use imagegen_core::{engine::ModelInfo, rules::Rules};

/// Every flag of `serve` with its value and origin.
#[derive(Debug, Clone, Default)]
pub struct Settings(Vec<Given>);

#[derive(Debug, Clone)]
struct Given {
    name: String,
    value: String,
    origin: &'static str,
}

impl Settings {
    /// The settings of a parsed (sub)command.
    #[must_use]
    pub fn new(command: &Command, matches: &ArgMatches) -> Self {
        let given = command.get_arguments().filter_map(|argument| {
            let id = argument.get_id().as_str();
            let name = argument.get_long()?.to_owned();
            if matches!(id, "help" | "version") {
                return None;
            }
            let raw = matches.try_get_raw(id).ok().flatten();
            let values: Vec<_> = raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
            let origin = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => "Flag",
                Some(ValueSource::EnvVariable) => "Environment",
                _ => "BuiltIn",
            };
            Some(Given { name, value: values.join(","), origin })
        });
        Self(given.collect())
    }

    /// Name, value and origin of every setting; where nobody gave a value, the one that follows from the model.
    pub(crate) fn in_force(&self, model: &ModelInfo, rules: &Rules) -> Vec<(String, String, &'static str)> {
        let resolved = |Given { name, value, origin }: &Given| {
            let value = match name.as_str() {
                "precision" => model.precision.clone(),
                "device" => model.device.clone(),
                "default-size" => rules.defaults.size.to_string(),
                "buckets" => rules.buckets.to_string(),
                "threads" if value.is_empty() => default_threads().to_string(),
                _ => value.clone(),
            };
            (name.clone(), value, *origin)
        };
        self.0.iter().map(resolved).collect()
    }
}

/// The CPU limit of the container, or all cores.
pub(crate) fn default_threads() -> usize {
    // The standard library reads the quotas of cgroup v1 and v2 as well as the affinity mask.
    std::thread::available_parallelism().map_or(1, usize::from)
}
