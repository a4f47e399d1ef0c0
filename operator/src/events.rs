//! Kubernetes Events: what a person should see in `kubectl describe`, once for each change.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Resource as _,
    runtime::events::{Event, EventType, Recorder},
};
use tracing::debug;

use crate::crd::{ConditionType, ImageGen, ImageGenStatus, ScalingEvent};

/// The longest note that the API server takes.
const MAX_NOTE_BYTES: usize = 1024;

/// One change that is worth an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether something is wrong.
    pub warning: bool,
    /// The condition's reason.
    pub reason: String,
    /// The condition's message.
    pub note: String,
}

/// What changed between two statuses: each condition whose status or reason is another, most important first. The same
/// trouble in two conditions is told once. Then the newest change of the number of workers.
#[must_use]
pub fn notices(old: Option<&ImageGenStatus>, new: &ImageGenStatus) -> Vec<Notice> {
    let find = |status: &ImageGenStatus, kind: &str| -> Option<Condition> {
        status.conditions.iter().find(|condition| condition.type_ == kind).cloned()
    };
    let mut notices: Vec<Notice> = Vec::new();
    for condition in
        [ConditionType::Degraded, ConditionType::ScalingActive, ConditionType::Ready, ConditionType::Available]
    {
        let kind = condition.to_string();
        let Some(now) = find(new, &kind) else { continue };
        let before = old.and_then(|old| find(old, &kind));
        let same = |before: &Condition| before.status == now.status && before.reason == now.reason;
        // What a new object is not yet, or never was, is no news.
        let quiet_start = before.is_none() && now.status == "False";
        if before.as_ref().is_some_and(same) || quiet_start {
            continue;
        }
        let warning = condition == ConditionType::Degraded && now.status == "True";
        let notice = Notice { warning, reason: now.reason, note: shortened(now.message) };
        let told = |other: &Notice| other.reason == notice.reason || other.note == notice.note;
        if !notices.iter().any(told) {
            notices.push(notice);
        }
    }
    let newest = |status: &ImageGenStatus| status.scaling_history.first().cloned();
    let before = old.and_then(newest);
    if let Some(ScalingEvent { from, to, reason, .. }) = newest(new).filter(|event| before.as_ref() != Some(event)) {
        let note = shortened(format!("from {from} to {to} workers: {reason}"));
        let reason = if to > from { "ScaledUp" } else { "ScaledDown" };
        notices.push(Notice { warning: false, reason: reason.to_owned(), note });
    }
    notices
}

fn shortened(mut note: String) -> String {
    if note.len() > MAX_NOTE_BYTES {
        let cut = (0..=MAX_NOTE_BYTES - '…'.len_utf8()).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
        note.truncate(cut);
        note.push('…');
    }
    note
}

/// Publishes notices about an ImageGen. An Event that cannot be written is not worth an error.
pub async fn publish(recorder: &Recorder, ig: &ImageGen, notices: Vec<Notice>) {
    let about = ig.object_ref(&());
    for Notice { warning, reason, note } in notices {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason,
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &about).await {
            debug!(%error, reason = event.reason, "An Event could not be written.");
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use rstest::rstest;

    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> ImageGenStatus {
        let condition = |&(kind, status, reason): &(&str, &str, &str)| Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: format!("about {reason}"),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        ImageGenStatus { conditions: conditions.iter().map(condition).collect(), ..ImageGenStatus::default() }
    }

    const STARTING: &[(&str, &str, &str)] = &[("Ready", "False", "Starting"), ("Degraded", "False", "AsExpected")];
    const READY: &[(&str, &str, &str)] = &[("Ready", "True", "AllWorkersReady"), ("Degraded", "False", "AsExpected")];
    const BROKEN: &[(&str, &str, &str)] = &[("Ready", "False", "NameConflict"), ("Degraded", "True", "NameConflict")];

    #[rstest]
    #[case::a_new_object_that_starts(None, STARTING, &[])]
    #[case::a_new_object_with_trouble(None, BROKEN, &[(true, "NameConflict")])]
    #[case::nothing_new(Some(READY), READY, &[])]
    #[case::it_became_ready(Some(STARTING), READY, &[(false, "AllWorkersReady")])]
    #[case::trouble_in_two_conditions_is_told_once(Some(READY), BROKEN, &[(true, "NameConflict")])]
    #[case::it_recovered(Some(BROKEN), READY, &[(false, "AsExpected"), (false, "AllWorkersReady")])]
    fn only_changes_are_told(
        #[case] old: Option<&[(&str, &str, &str)]>,
        #[case] new: &[(&str, &str, &str)],
        #[case] told: &[(bool, &str)],
    ) {
        let notices = notices(old.map(status).as_ref(), &status(new));
        let found: Vec<_> = notices.iter().map(|notice| (notice.warning, notice.reason.as_str())).collect();
        assert_eq!(found, told);
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = shortened("红".repeat(1000));
        assert!(note.len() <= MAX_NOTE_BYTES && note.ends_with('…'), "{}", note.len());
    }
}
