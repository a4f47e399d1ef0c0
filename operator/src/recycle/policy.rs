//! From `spec.recycle` to a policy with everything decided. Pure.

use std::time::Duration;

use super::{
    OutOfMemoryLimit, Policy,
    schedule::{DEFAULT_TIME_ZONE, Schedule, ScheduleError},
};
use crate::crd::{self, RecycleSpec};

/// A field of `spec.recycle` that cannot work, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field, from `spec`.
    pub field: &'static str,
    /// What was found, what to do.
    pub message: String,
}

impl Policy {
    /// What `spec` says, and the built-in values for the rest.
    ///
    /// # Errors
    /// Everything that cannot work, or that has no effect.
    pub fn of(spec: &RecycleSpec) -> Result<Self, Vec<Invalid>> {
        let mut invalid = Vec::new();
        let mut refuse = |field, message: String| invalid.push(Invalid { field, message });
        let zone = spec.time_zone.as_deref().unwrap_or(DEFAULT_TIME_ZONE);
        let schedule = match spec.schedule.as_deref().map(|text| Schedule::new(text, zone)) {
            None => None,
            Some(Ok(schedule)) => Some(schedule),
            Some(Err(error)) => {
                let field = match error {
                    ScheduleError::Cron { .. } => "recycle.schedule",
                    ScheduleError::TimeZone { .. } => "recycle.timeZone",
                };
                refuse(field, error.to_string());
                None
            }
        };
        let only_with_schedule =
            [("recycle.window", spec.window.is_some()), ("recycle.timeZone", spec.time_zone.is_some())];
        for (field, _) in only_with_schedule.into_iter().filter(|(_, found)| *found && spec.schedule.is_none()) {
            refuse(field, "has no effect without recycle.schedule: set one, or leave the field out".to_owned());
        }
        if spec.schedule.is_none() && spec.pool_overhead_above.is_none() && spec.after_out_of_memory.is_none() {
            let message = "recycles nobody: set schedule, poolOverheadAbove or afterOutOfMemory, or leave recycle out";
            refuse("recycle", message.to_owned());
        }
        let mut parsed = |field, text: Option<&crd::Duration>, built_in: Duration| match text.map(crd::Duration::parse)
        {
            None => built_in,
            Some(Ok(duration)) => duration,
            Some(Err(error)) => {
                refuse(field, error.to_string());
                built_in
            }
        };
        let window = parsed("recycle.window", spec.window.as_ref(), Self::WINDOW);
        let cooldown = parsed("recycle.cooldown", spec.cooldown.as_ref(), Self::COOLDOWN);
        let after_out_of_memory = spec.after_out_of_memory.as_ref().map(|limit| OutOfMemoryLimit {
            count: u64::from(limit.count),
            within: parsed("recycle.afterOutOfMemory.within", Some(&limit.within), Duration::ZERO),
        });
        if !invalid.is_empty() {
            return Err(invalid);
        }
        Ok(Self {
            schedule,
            window,
            pool_overhead_above: spec.pool_overhead_above,
            after_out_of_memory,
            max_unavailable: spec.max_unavailable.unwrap_or(1),
            cooldown,
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn policy(spec: Value) -> Result<Policy, Vec<Invalid>> {
        Policy::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_is_left_out_is_built_in() {
        let policy = policy(json!({"schedule": "0 3 * * *"})).unwrap();
        assert_eq!((policy.window, policy.cooldown), (Policy::WINDOW, Policy::COOLDOWN));
        assert_eq!((policy.max_unavailable, policy.pool_overhead_above, policy.after_out_of_memory), (1, None, None));
        assert_eq!(policy.schedule, Some(Schedule::new("0 3 * * *", "Etc/UTC").unwrap()));
    }

    #[test]
    fn what_is_said_counts() {
        let spec = json!({
            "schedule": "30 2 * * 1-5", "window": "90m", "timeZone": "Europe/Berlin", "poolOverheadAbove": 0.4,
            "afterOutOfMemory": {"count": 3, "within": "1h"}, "maxUnavailable": 2, "cooldown": "30m",
        });
        let expected = Policy {
            schedule: Some(Schedule::new("30 2 * * 1-5", "Europe/Berlin").unwrap()),
            window: Duration::from_secs(5400),
            pool_overhead_above: Some(0.4),
            after_out_of_memory: Some(OutOfMemoryLimit { count: 3, within: Duration::from_secs(3600) }),
            max_unavailable: 2,
            cooldown: Duration::from_secs(1800),
        };
        assert_eq!(policy(spec), Ok(expected));
    }

    #[rstest]
    #[case::an_unknown_zone(json!({"schedule": "0 3 * * *", "timeZone": "Europe/Atlantis"}), "recycle.timeZone")]
    #[case::no_such_hour(json!({"schedule": "0 25 * * *"}), "recycle.schedule")]
    #[case::a_window_of_nothing(json!({"poolOverheadAbove": 0.4, "window": "1h"}), "recycle.window")]
    #[case::a_zone_of_nothing(json!({"poolOverheadAbove": 0.4, "timeZone": "Etc/UTC"}), "recycle.timeZone")]
    #[case::no_cause(json!({"cooldown": "1h"}), "recycle")]
    fn what_cannot_work_is_refused_by_its_field(#[case] spec: Value, #[case] field: &str) {
        let invalid = policy(spec).unwrap_err();
        assert_eq!(invalid.iter().map(|invalid| invalid.field).collect::<Vec<_>>(), [field], "{invalid:?}");
    }
}
