//! When certificates are made anew. Pure: times are arguments.

use jiff::{SignedDuration, Timestamp};

#[cfg(test)]
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Life of an authority: five years.
pub const CA_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365 * 5);
/// Life of a certificate that the authority signs. Two thirds in, it is replaced.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);
/// How long before its end an authority gets a successor. Longer than [`LEAF_LIFE`], so that nothing it signed outlives it.
pub const CA_OVERLAP: SignedDuration = SignedDuration::from_hours(24 * 180);
/// How long a new authority is only trusted before it signs: the kubelet brings a changed Secret to pods within about
/// two minutes, so by then every worker and every operator trusts it.
pub const TRUST_FIRST: SignedDuration = SignedDuration::from_hours(1);
/// How far back certificates are dated, for clocks that are behind.
pub const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// The validity of a certificate that is made `now`.
    #[must_use]
    pub fn starting(now: Timestamp, life: SignedDuration) -> Self {
        Self { not_before: saturating(now, -BACKDATE), not_after: saturating(now, life) }
    }

    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn saturating(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

/// What to do with the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaStep {
    /// Nothing to do.
    Keep,
    /// There is none that can sign: make one. What it signs is trusted only where its certificate has arrived.
    Create,
    /// It ends soon: make a successor, which is trusted at once and signs later.
    AddNext,
    /// The successor is trusted everywhere: it signs from now on, its predecessor stays trusted until it ends.
    Promote,
}

/// Decides on the authority from the validities of the signing one and its successor.
#[must_use]
pub fn plan_ca(current: Option<Validity>, next: Option<Validity>, now: Timestamp) -> CaStep {
    let Some(current) = current.filter(|current| current.holds(now)) else {
        // A successor that is there is trusted at least in part: better than one that nobody has seen.
        return if next.is_some_and(|next| next.holds(now)) { CaStep::Promote } else { CaStep::Create };
    };
    match next.filter(|next| next.not_after > now) {
        Some(next) if now >= saturating(next.not_before, BACKDATE + TRUST_FIRST) => CaStep::Promote,
        Some(_) => CaStep::Keep,
        None if now >= saturating(current.not_after, -CA_OVERLAP) => CaStep::AddNext,
        None => CaStep::Keep,
    }
}

/// Whether a leaf is replaced: two thirds of its life are over, or it does not hold at `now`.
#[must_use]
pub fn leaf_is_due(leaf: Validity, now: Timestamp) -> bool {
    let life = leaf.not_after.duration_since(leaf.not_before);
    !leaf.holds(now) || now >= saturating(leaf.not_before, life * 2 / 3)
}

#[cfg(test)]
pub(crate) fn days(n: i32) -> SignedDuration {
    DAY * n
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn at(day: i32) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + days(day)
    }

    fn ca(made_on_day: i32) -> Option<Validity> {
        Some(Validity::starting(at(made_on_day), CA_LIFE))
    }

    #[rstest]
    #[case::first_start(None, None, 0, CaStep::Create)]
    #[case::young(ca(0), None, 1, CaStep::Keep)]
    #[case::long_before_its_end(ca(0), None, 5 * 365 - 181, CaStep::Keep)]
    #[case::near_its_end(ca(0), None, 5 * 365 - 180, CaStep::AddNext)]
    #[case::successor_too_young_to_sign(ca(0), ca(1645), 1645, CaStep::Keep)]
    #[case::successor_known_everywhere(ca(0), ca(1645), 1646, CaStep::Promote)]
    #[case::ended_without_a_successor(ca(0), None, 5 * 365, CaStep::Create)]
    #[case::ended_with_a_young_successor(ca(0), ca(5 * 365), 5 * 365, CaStep::Promote)]
    #[case::dated_in_the_future(ca(10), None, 0, CaStep::Create)]
    fn the_authority_is_followed_in_time(
        #[case] current: Option<Validity>,
        #[case] next: Option<Validity>,
        #[case] day: i32,
        #[case] step: CaStep,
    ) {
        assert_eq!(plan_ca(current, next, at(day)), step);
    }

    #[test]
    fn a_successor_is_trusted_for_an_hour_before_it_signs() {
        let made = at(1645);
        let next = Some(Validity::starting(made, CA_LIFE));
        let minutes = SignedDuration::from_mins;
        assert_eq!(plan_ca(ca(0), next, made + minutes(59)), CaStep::Keep);
        assert_eq!(plan_ca(ca(0), next, made + minutes(60)), CaStep::Promote);
    }

    #[rstest]
    #[case(0, false)]
    #[case(59, false)]
    #[case(60, true)]
    #[case(200, true)]
    #[case::made_by_a_clock_that_is_ahead(-1, true)]
    fn a_leaf_is_replaced_after_two_thirds(#[case] day: i32, #[case] due: bool) {
        assert_eq!(leaf_is_due(Validity::starting(at(0), LEAF_LIFE), at(day)), due);
    }

    proptest! {
        /// Walking through twenty years, hour steps drawn at random, some authority that holds always signs.
        #[test]
        fn some_authority_can_always_sign(steps in prop::collection::vec(1i64..24 * 40, 200)) {
            let mut now = at(0);
            let (mut current, mut next) = (None, None);
            for hours in steps {
                match plan_ca(current, next, now) {
                    CaStep::Create => (current, next) = (Some(Validity::starting(now, CA_LIFE)), None),
                    CaStep::AddNext => next = Some(Validity::starting(now, CA_LIFE)),
                    CaStep::Promote => current = next.take(),
                    CaStep::Keep => {}
                }
                let signing = current.unwrap();
                prop_assert!(signing.holds(now));
                // What is signed today is valid for its whole life.
                prop_assert!(signing.not_after >= now + LEAF_LIFE);
                now += SignedDuration::from_hours(hours);
            }
        }
    }
}
