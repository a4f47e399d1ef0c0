//! The profiles as a table for people.

use std::fmt::Write as _;

use super::{Profile, memory};

const HEAD: [&str; 7] = ["PROFILE", "CARDS", "GiB", "PRECISION", "TEXT ENCODER", "PEAK GiB", "SIZES"];

/// One line a profile, and below it what this version lacks for it.
pub(crate) fn table(profiles: &[Profile]) -> String {
    let mut rows = vec![HEAD.map(ToOwned::to_owned)];
    rows.extend(profiles.iter().map(|profile| {
        let encoder = profile.text_encoder;
        let tiling = if profile.vae_tiling == super::VaeTiling::Always { ", tiled decode" } else { "" };
        let sizes: Vec<_> = profile.buckets.as_slice().iter().rev().map(ToString::to_string).collect();
        [
            profile.name.clone(),
            profile.cards.join(", "),
            profile.memory_gib.to_string(),
            profile.precision.to_string(),
            format!("{} {}", encoder.weights, encoder.residency),
            format!("{:.1}", memory::largest_peak_gib(profile)),
            sizes.join(" ") + tiling,
        ]
    }));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
        let needs =
            number.checked_sub(1).and_then(|number| profiles.get(number)).map(Profile::needs).unwrap_or_default();
        if !needs.is_empty() {
            let needs: Vec<_> = needs.iter().map(ToString::to_string).collect();
            // Writing to a string does not fail.
            let _ = writeln!(text, "    not served yet: needs {}", needs.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table() {
        insta::assert_snapshot!(super::table(&crate::profiles::all()));
    }
}
