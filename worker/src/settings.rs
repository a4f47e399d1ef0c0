//! Which settings are in force, and who said so.

use clap::{ArgMatches, Command, parser::ValueSource};
use imagegen_core::{bucket::Buckets, duration::parse_duration, engine::ModelInfo, rules::Rules};

use crate::profiles::Profile;

/// Every flag of `serve` with its value and origin, and what a GPU profile fills in.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    given: Vec<Given>,
    profile_buckets: Option<Buckets>,
}

/// Nobody gave a value.
const BUILT_IN: &str = "BuiltIn";
/// The GPU profile did.
const PROFILE: &str = "Profile";

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
                _ => BUILT_IN,
            };
            Some(Given { name, value: values.join(","), origin })
        });
        Self { given: given.collect(), profile_buckets: None }
    }

    /// Notes what the profile in force fills in: what neither flag nor environment gave.
    pub(crate) fn fill_in(&mut self, profile: Option<&Profile>) {
        for given in &mut self.given {
            match given.name.as_str() {
                "profile" => given.value = profile.map_or_else(|| "none".into(), |profile| profile.name.clone()),
                "precision" if given.origin == BUILT_IN && profile.is_some() => given.origin = PROFILE,
                "buckets" if given.origin == BUILT_IN => {
                    self.profile_buckets = profile.map(|profile| profile.buckets.clone());
                }
                _ => {}
            }
        }
    }

    fn default_holdup_text(&self) -> String {
        let max_wait = self.given.iter().find(|given| given.name == "queue-max-wait");
        let max_wait = max_wait.and_then(|given| parse_duration(&given.value).ok());
        max_wait.map_or_else(String::new, |max_wait| format!("{}ms", default_holdup(max_wait).as_millis()))
    }

    /// Name, value and origin of every setting; where nobody gave a value, the one that follows from the model.
    pub(crate) fn in_force(&self, model: &ModelInfo, rules: &Rules) -> Vec<(String, String, &'static str)> {
        let resolved = |Given { name, value, origin }: &Given| {
            let value = match name.as_str() {
                "precision" => model.precision.clone(),
                "device" => model.device.clone(),
                "default-size" => rules.defaults.size.to_string(),
                "buckets" => rules.buckets.to_string(),
                "queue-max-holdup" if value.is_empty() => self.default_holdup_text(),
                "threads" if value.is_empty() => default_threads().to_string(),
                _ => value.clone(),
            };
            // A model may be too small for every size of the profile; then the built-in list holds.
            let of_profile = |all: &Buckets| rules.buckets.as_slice().iter().all(|one| all.as_slice().contains(one));
            let from_profile = name == "buckets" && self.profile_buckets.as_ref().is_some_and(of_profile);
            (name.clone(), value, if from_profile { PROFILE } else { *origin })
        };
        self.given.iter().map(resolved).collect()
    }
}

/// The CPU limit of the container, or all cores.
pub(crate) fn default_threads() -> usize {
    // The standard library reads the quotas of cgroup v1 and v2 as well as the affinity mask.
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How long a big image may hold up small ones where nobody says.
pub(crate) fn default_holdup(max_wait: std::time::Duration) -> std::time::Duration {
    std::time::Duration::from_secs(5).min(max_wait / 2)
}
