//! How far a picture of the demo checkpoint that was decoded in tiles is from the one decoded at once.

use imagegen_core::engine::Engine;
use imagegen_core::spec::{RgbImage, SchedulerKind};
use imagegen_model::{LoadOptions, TorchEngine, VaeTiling};

/// Pixels on a side of the picture. A tile of this checkpoint has 128, of which 32 are blended.
const SIDE: usize = 256;
const BETWEEN_TILES: usize = 96;
const BLENDED: usize = 32;

/// A tile is wrong at its border, where it lacks neighbours, and the blend begins with one part in [`BLENDED`] of that.
/// The tiles of Z-Image's VAE are eight times as large, and so is their blend.
const MAX_JUMP: f64 = 2.5;

fn make(tiling: VaeTiling, prompt: &str) -> RgbImage {
    let options = LoadOptions { vae_tiling: tiling, ..super::options() };
    let mut engine = TorchEngine::load(&options, &mut |_| {}).unwrap();
    let spec = super::spec(prompt, 7, SIDE as u32, SchedulerKind::FlowMatchEuler);
    let mut batch = engine.begin(&[spec]).unwrap();
    for _ in 0..8 {
        engine.step(&mut batch).unwrap();
    }
    engine.decode(&mut batch, 0).unwrap()
}

/// Peak signal-to-noise ratio in dB.
fn psnr(one: &RgbImage, other: &RgbImage) -> f64 {
    let squares = one.data.iter().zip(&other.data).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    20.0 * 255f64.log10() - 10.0 * (squares.sum::<f64>() / one.data.len() as f64).log10()
}

/// How much the error of the tiled picture jumps, of 255, from one column or row to the next: at those of `positions`.
fn jumps(whole: &RgbImage, tiled: &RgbImage, positions: &[usize]) -> f64 {
    let error = |row: usize, column: usize, channel: usize| {
        let index = (row * SIDE + column) * 3 + channel;
        f64::from(tiled.data[index]) - f64::from(whole.data[index])
    };
    let (mut sum, mut count) = (0.0, 0.0);
    for &position in positions {
        for (along, channel) in (0..SIDE).flat_map(|along| (0..3).map(move |channel| (along, channel))) {
            sum += (error(along, position, channel) - error(along, position - 1, channel)).abs();
            sum += (error(position, along, channel) - error(position - 1, along, channel)).abs();
            count += 2.0;
        }
    }
    sum / count
}

#[test]
fn a_picture_in_tiles_is_nearly_the_whole_one_and_shows_no_seam() {
    // Where a tile begins, and where it is alone again.
    let seams: Vec<usize> = (1..=2)
        .flat_map(|tile| [tile * BETWEEN_TILES, tile * BETWEEN_TILES + BLENDED])
        .filter(|&at| at < SIDE)
        .collect();
    let all: Vec<usize> = (1..SIDE).collect();
    for prompt in ["a red apple", "a cat face", "a banana"] {
        let (whole, tiled) = (make(VaeTiling::Never, prompt), make(VaeTiling::Always, prompt));
        assert_ne!(whole, tiled, "{prompt}: tiles make a difference, however small");
        let psnr = psnr(&whole, &tiled);
        let (at_seams, anywhere) = (jumps(&whole, &tiled, &seams), jumps(&whole, &tiled, &all));
        println!("{prompt}: {psnr:.1} dB; the error jumps by {at_seams:.2} of 255 at seams, {anywhere:.2} anywhere");
        assert!(psnr >= 38.0, "{prompt}: {psnr:.1} dB");
        assert!(
            at_seams <= MAX_JUMP,
            "{prompt}: the error jumps by {at_seams:.2} of 255 at seams, {anywhere:.2} anywhere"
        );
    }
}
