//! scheduler/scheduler_config.json.

use std::path::Path;

use serde_json::json;

use super::ConfigFile;
use crate::LoadError;

/// Fields of FlowMatchEulerDiscreteScheduler that shape a schedule with static shift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SchedulerConfig {
    /// Timestep = sigma times this.
    pub(crate) num_train_timesteps: f32,
    /// Static shift of the sigmas.
    pub(crate) shift: f32,
}

impl SchedulerConfig {
    /// # Errors
    /// When a field is missing, or asks for a schedule other than the one with static shift.
    #[allow(clippy::cast_possible_truncation, reason = "the reference computes in float32")]
    pub(crate) fn read(model_dir: &Path) -> Result<Self, LoadError> {
        let file = ConfigFile::read(model_dir.join("scheduler/scheduler_config.json"), "the scheduler's settings")?;
        file.class("FlowMatchEulerDiscreteScheduler")?;
        for option in [
            "use_dynamic_shifting",
            "invert_sigmas",
            "stochastic_sampling",
            "use_beta_sigmas",
            "use_exponential_sigmas",
            "use_karras_sigmas",
        ] {
            file.only(option, &json!(false))?;
        }
        if file.get("shift_terminal").is_some() {
            return Err(file.invalid("shift_terminal", "null, the only one implemented"));
        }
        Ok(Self {
            num_train_timesteps: file.positive("num_train_timesteps")? as f32,
            shift: file.positive("shift")? as f32,
        })
    }
}
