//! When recycling starts: five cron fields on the clocks of one place.

use std::{fmt, str::FromStr as _, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Time zone of a schedule that names none.
pub const DEFAULT_TIME_ZONE: &str = "Etc/UTC";

/// Starts at the instants at which the clocks of a time zone show what the cron expression says. A time that the clocks
/// jump over starts at the instant after the jump; one that they show twice starts at the first of the two.
#[derive(Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// Why there is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not a cron expression, or one of a date that never comes.
    #[error(
        "{found:?} is not a cron expression of five fields (minute, hour, day of month, month, day of week) that ever comes: {why}; write for example 0 3 * * *"
    )]
    Cron {
        /// The expression.
        found: String,
        /// What the parser said.
        why: String,
    },
    /// Not in the database of time zones.
    #[error("there is no time zone {found:?}: use an IANA name, for example Europe/Berlin or Etc/UTC")]
    TimeZone {
        /// The name.
        found: String,
    },
}

impl Schedule {
    /// A schedule from a cron expression of five fields and an IANA name. The database of time zones is built in.
    ///
    /// # Errors
    /// When one of them says nothing.
    pub fn new(expression: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        let zone =
            jiff::tz::db().get(time_zone).map_err(|_| ScheduleError::TimeZone { found: time_zone.to_owned() })?;
        let invalid = |why: String| ScheduleError::Cron { found: expression.to_owned(), why };
        let parser = CronParser::builder().seconds(Seconds::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| invalid(error.to_string()))?;
        let schedule = Self { cron, zone };
        // A leap day comes within eight years.
        let from = DateTime::from_str("2024-03-01T00:00:00").map_err(|error| invalid(error.to_string()))?;
        schedule.cron.find_next_occurrence(&from, true).map_err(|error| invalid(error.to_string()))?;
        Ok(schedule)
    }

    /// The first start after `now`; `None` past the end of the calendar.
    #[must_use]
    pub fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let mut clock = now.to_zoned(self.zone.clone()).datetime();
        loop {
            clock = self.cron.find_next_occurrence(&clock, false).ok()?;
            let start = self.instant(clock)?;
            // While the clocks show an hour again, they show times that came already.
            if start > now {
                return Some(start);
            }
        }
    }

    /// The last start at or before `now`, if it is less than `window` ago.
    #[must_use]
    pub fn open_since(&self, now: Timestamp, window: Duration) -> Option<Timestamp> {
        let mut last = None;
        let mut at = now.checked_sub(window).ok()?;
        while let Some(start) = self.next_after(at).filter(|start| *start <= now) {
            last = Some(start);
            at = start;
        }
        last
    }

    /// The instant at which the clocks show `clock`.
    fn instant(&self, clock: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(clock);
        if let jiff::tz::AmbiguousOffset::Gap { .. } = ambiguous.offset() {
            // Read with the offset of after the jump, a skipped time lies before it.
            let before = ambiguous.earlier().ok()?;
            return self.zone.following(before).next().map(|transition| transition.timestamp());
        }
        ambiguous.earlier().ok()
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iana_name().unwrap_or_default();
        f.debug_struct("Schedule").field("cron", &self.cron.as_str()).field("zone", &zone).finish()
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.cron.as_str() == other.cron.as_str() && self.zone == other.zone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    // Berlin: on 2026-03-29 at 01:00Z the clocks jump from 02:00 to 03:00; on 2026-10-25 at 01:00Z from 03:00 back to 02:00.
    #[rstest]
    #[case::daily_in_utc("0 3 * * *", "Etc/UTC", "2026-05-01T02:59:00Z", "2026-05-01T03:00:00Z")]
    #[case::a_start_is_not_after_itself("0 3 * * *", "Etc/UTC", "2026-05-01T03:00:00Z", "2026-05-02T03:00:00Z")]
    #[case::winter_time("0 3 * * *", "Europe/Berlin", "2026-01-10T00:00:00Z", "2026-01-10T02:00:00Z")]
    #[case::summer_time("0 3 * * *", "Europe/Berlin", "2026-07-10T00:00:00Z", "2026-07-10T01:00:00Z")]
    #[case::a_skipped_time_starts_after_the_jump(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-03-29T00:00:00Z",
        "2026-03-29T01:00:00Z"
    )]
    #[case::several_skipped_times_start_once(
        "*/10 2 * * *",
        "Europe/Berlin",
        "2026-03-29T01:00:00Z",
        "2026-03-30T00:00:00Z"
    )]
    #[case::the_day_after_a_jump("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z")]
    #[case::a_repeated_time_starts_the_first_time(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T00:00:00Z",
        "2026-10-25T00:30:00Z"
    )]
    #[case::and_not_the_second_time("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z")]
    #[case::in_the_middle_of_the_repeated_hour(
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-25T01:10:00Z",
        "2026-10-26T01:30:00Z"
    )]
    #[case::every_half_hour_counts_a_repeated_hour_once(
        "*/30 * * * *",
        "Europe/Berlin",
        "2026-10-25T00:30:00Z",
        "2026-10-25T02:00:00Z"
    )]
    #[case::a_jump_at_midnight("0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z", "2026-09-06T04:00:00Z")]
    #[case::a_zone_of_half_an_hour("0 3 * * *", "Asia/Kolkata", "2026-05-01T00:00:00Z", "2026-05-01T21:30:00Z")]
    #[case::on_weekdays("0 3 * * 1-5", "Etc/UTC", "2026-05-01T04:00:00Z", "2026-05-04T03:00:00Z")]
    #[case::on_a_leap_day("0 3 29 2 *", "Etc/UTC", "2026-05-01T04:00:00Z", "2028-02-29T03:00:00Z")]
    fn the_next_start(#[case] cron: &str, #[case] zone: &str, #[case] now: &str, #[case] expected: &str) {
        assert_eq!(Schedule::new(cron, zone).unwrap().next_after(at(now)), Some(at(expected)));
    }

    #[rstest]
    #[case::at_the_start("2026-05-01T03:00:00Z", Some("2026-05-01T03:00:00Z"))]
    #[case::inside("2026-05-01T04:59:59Z", Some("2026-05-01T03:00:00Z"))]
    #[case::a_start_that_was_missed_is_not_made_up_for("2026-05-01T05:00:00Z", None)]
    #[case::before("2026-05-01T02:59:59Z", None)]
    fn a_window_is_open_for_its_time(#[case] now: &str, #[case] expected: Option<&str>) {
        let schedule = Schedule::new("0 3 * * *", "Etc/UTC").unwrap();
        assert_eq!(schedule.open_since(at(now), Duration::from_secs(7200)), expected.map(at));
    }

    #[rstest]
    #[case::six_fields("0 0 3 * * *", "Etc/UTC")]
    #[case::out_of_range("0 25 * * *", "Etc/UTC")]
    #[case::a_date_that_never_comes("0 3 30 2 *", "Etc/UTC")]
    #[case::words("at three in the morning", "Etc/UTC")]
    fn an_expression_that_says_nothing_is_refused(#[case] cron: &str, #[case] zone: &str) {
        let error = Schedule::new(cron, zone).unwrap_err();
        assert!(matches!(&error, ScheduleError::Cron { found, .. } if found == cron), "{error}");
    }

    #[rstest]
    #[case::unknown("Europe/Atlantis")]
    #[case::a_path("../../etc/localtime")]
    #[case::an_offset("+01:00")]
    fn a_zone_that_is_not_in_the_database_is_refused(#[case] zone: &str) {
        let error = Schedule::new("0 3 * * *", zone).unwrap_err();
        assert_eq!(error, ScheduleError::TimeZone { found: zone.to_owned() });
    }

    const ZONES: [&str; 6] =
        ["Etc/UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"];

    proptest! {
        #[test]
        fn a_daily_start_comes_once_a_day_whatever_the_clocks_do(
            minute in 0u8..60, hour in 0u8..24, zone in 0..ZONES.len(), from in 1_760_000_000i64..1_830_000_000,
        ) {
            let schedule = Schedule::new(&format!("{minute} {hour} * * *"), ZONES[zone]).unwrap();
            let mut now = Timestamp::from_second(from).unwrap();
            let mut last_day = None;
            for _ in 0..200 {
                let next = schedule.next_after(now).unwrap();
                prop_assert!(next > now);
                let day = next.to_zoned(schedule.zone.clone()).date();
                prop_assert!(last_day.is_none_or(|last: jiff::civil::Date| last.tomorrow().unwrap() == day), "{day}");
                last_day = Some(day);
                now = next;
            }
        }

        #[test]
        fn a_window_is_open_exactly_when_a_start_lies_in_it(
            zone in 0..ZONES.len(), now in 1_760_000_000i64..1_830_000_000, window_minutes in 1u64..1440,
        ) {
            let schedule = Schedule::new("30 2,14 * * *", ZONES[zone]).unwrap();
            let now = Timestamp::from_second(now).unwrap();
            let window = Duration::from_secs(window_minutes * 60);
            match schedule.open_since(now, window) {
                Some(start) => {
                    prop_assert!(start <= now && now < start + window);
                    prop_assert!(schedule.next_after(start).unwrap() > now, "a later start is the last one");
                }
                None => prop_assert!(schedule.next_after(now - window).unwrap() > now),
            }
        }
    }
}
