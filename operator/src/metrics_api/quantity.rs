//! Numbers as Kubernetes writes them.

/// The largest number that a quantity holds exactly in thousandths.
const MAX: f64 = 9.0e15;

/// A number as a quantity: whole, or in thousandths (`750m`). What lies between two thousandths is rounded up, as
/// Kubernetes does, so that a small signal never reads as none.
#[must_use]
pub fn quantity(value: f64) -> String {
    let value = if value.is_nan() { 0.0 } else { value.clamp(0.0, MAX) };
    // A sum of decimal fractions may lie a hair above the one that is meant.
    let thousandths = (value * 1000.0 - 1e-6).ceil() as u64;
    if thousandths.is_multiple_of(1000) { (thousandths / 1000).to_string() } else { format!("{thousandths}m") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(0.0, "0")]
    #[case::whole(3.0, "3")]
    #[case::a_fraction(0.75, "750m")]
    #[case::above_one(1.5, "1500m")]
    #[case::a_sum_of_tenths(0.1 + 0.2, "300m")]
    #[case::between_two_thousandths(0.0301, "31m")]
    #[case::too_small_for_a_thousandth(0.000_1, "1m")]
    #[case::bytes(17_179_869_184.0, "17179869184")]
    #[case::not_a_number(f64::NAN, "0")]
    #[case::below_zero(-1.0, "0")]
    #[case::without_end(f64::INFINITY, "9000000000000000")]
    fn a_number_becomes_a_quantity(#[case] value: f64, #[case] text: &str) {
        assert_eq!(quantity(value), text);
    }

    proptest! {
        #[test]
        fn a_quantity_is_at_most_a_thousandth_above(value in 0.0..1.0e9f64) {
            let text = quantity(value);
            let read = match text.strip_suffix('m') {
                Some(thousandths) => thousandths.parse::<f64>().unwrap() / 1000.0,
                None => text.parse().unwrap(),
            };
            prop_assert!(read - value < 0.001 + 1e-6 && value - read < 1e-6, "{value} became {text}");
        }
    }
}
