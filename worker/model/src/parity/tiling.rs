//! The decode in tiles against `AutoencoderKL.tiled_decode` at the same tile size.

use super::{Fixture, relative_difference, tensors};

/// Largest difference as a part of the largest expected number.
const TOLERANCE: f64 = 1e-4;

#[test]
fn tiles_of_the_size_in_the_config() {
    let expected = tensors("tiled.safetensors");
    for name in ["tiny-a", "tiny-b"] {
        let vae = Fixture::read(name).checkpoint().vae;
        for case in ["both", "wide", "tall", "small"] {
            let get = |leaf: &str| &expected[&format!("{name}.{case}.{leaf}")];
            let decoded = vae.decode_in_plain_tiles(get("latents"));
            assert_eq!(decoded.size(), get("decoded").size());
            let difference = relative_difference(&decoded, get("decoded"));
            assert!(difference <= TOLERANCE, "{name} {case}: {difference:.2e}");
            let whole = relative_difference(&vae.decode(get("latents")), get("decoded"));
            assert_eq!(whole > TOLERANCE, case != "small", "{name} {case}: tiles make a difference, {whole:.2e}");
        }
    }
}
