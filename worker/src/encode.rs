//! Pixels to files.

use image::{
    ExtendedColorType, ImageEncoder as _, ImageError,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
        webp::WebPEncoder,
    },
};
use imagegen_core::{request::ImageFormat, spec::RgbImage};

/// Quality of JPEG files, 1 to 100.
const JPEG_QUALITY: u8 = 90;

/// The bytes of a file in this format.
pub(crate) fn encode(image: &RgbImage, format: ImageFormat) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let RgbImage { size, data } = image;
    let (width, height, color) = (size.width, size.height, ExtendedColorType::Rgb8);
    match format {
        ImageFormat::Png => PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
            .write_image(data, width, height, color)?,
        ImageFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(data, width, height, color)?;
        }
        ImageFormat::Webp => WebPEncoder::new_lossless(&mut bytes).write_image(data, width, height, color)?,
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use imagegen_core::spec::Size;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(ImageFormat::Png, image::ImageFormat::Png, 0)]
    #[case(ImageFormat::Webp, image::ImageFormat::WebP, 0)]
    #[case(ImageFormat::Jpeg, image::ImageFormat::Jpeg, 8)]
    fn what_is_written_reads_back(
        #[case] format: ImageFormat,
        #[case] expected: image::ImageFormat,
        #[case] max_difference: u8,
    ) {
        let size = Size { width: 20, height: 12 };
        let data: Vec<u8> = (0..20 * 12 * 3).map(|byte| (byte / 4) as u8).collect();
        let bytes = encode(&RgbImage { size, data: data.clone() }, format).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), expected);
        let back = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!((back.width(), back.height()), (20, 12));
        let difference = back.as_raw().iter().zip(&data).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(difference.unwrap() <= max_difference, "{difference:?}");
    }
}
