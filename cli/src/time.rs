//! Durations in front of a person.

/// A waiting time in words that do not promise more precision than there is: `4 s`, `1 min 30 s`, `2 h 5 min`.
/// `None` when the number says nothing (0 means "not measured yet" on the wire).
#[must_use]
pub fn format_eta(eta_seconds: f64) -> Option<String> {
    if !eta_seconds.is_finite() || eta_seconds <= 0.0 {
        return None;
    }
    Some(match eta_seconds.ceil().min(1e9) as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    })
}

/// Seconds with one decimal, or whole milliseconds below one tenth of a second.
#[must_use]
pub fn format_seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::unmeasured(0.0, None)]
    #[case::not_a_number(f64::NAN, None)]
    #[case::infinite(f64::INFINITY, None)]
    #[case::short(0.2, Some("1 s"))]
    #[case::seconds(41.2, Some("42 s"))]
    #[case::minute(60.0, Some("1 min 0 s"))]
    #[case::minutes(125.0, Some("2 min 5 s"))]
    #[case::hours(7500.0, Some("2 h 5 min"))]
    fn waiting_times_are_in_words(#[case] eta_seconds: f64, #[case] words: Option<&str>) {
        assert_eq!(format_eta(eta_seconds).as_deref(), words);
    }
}
