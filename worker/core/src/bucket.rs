//! Size classes for accounting and queueing.

use std::{fmt, str::FromStr};

use crate::spec::{ParseSizeError, Size};

/// A size class: what a request costs is what the largest image of its class costs. Written `1024x1024@2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Largest size of the class.
    pub size: Size,
    /// Most images that are made together, at least 1.
    pub max_batch: u32,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.size, self.max_batch)
    }
}

/// Why a text is not a list of buckets.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseBucketsError {
    /// The part before the `@`.
    #[error(transparent)]
    Size(#[from] ParseSizeError),
    /// The part after the `@`.
    #[error("a bucket is written WIDTHxHEIGHT@BATCH with a batch of 1 or more, for example 1024x1024@2, found \"{0}\"")]
    Batch(String),
    /// One size stands there twice.
    #[error("bucket {0} stands in the list twice")]
    Repeated(Size),
    /// No bucket at all.
    #[error("the list of buckets is empty; leave the setting out for the built-in list")]
    Empty,
}

impl FromStr for Bucket {
    type Err = ParseBucketsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, batch) = text.split_once('@').unwrap_or((text, "1"));
        let max_batch =
            batch.parse().ok().filter(|&images| images > 0).ok_or_else(|| ParseBucketsError::Batch(text.to_owned()))?;
        Ok(Self { size: size.parse()?, max_batch })
    }
}

/// The size classes of a worker, smallest first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets(Vec<Bucket>);

/// Sizes of the built-in list: those that users of Z-Image ask for, and two above for large cards.
const BUILT_IN: [(u32, u32); 7] =
    [(512, 512), (1024, 576), (576, 1024), (768, 768), (1024, 1024), (1536, 1536), (2048, 2048)];

/// Smallest first; of equal pixels the squarest first.
fn order(size: Size) -> (u64, u32, Size) {
    (size.pixels(), size.width.max(size.height), size)
}

impl Buckets {
    /// The given buckets, smallest first.
    ///
    /// # Errors
    /// [`ParseBucketsError::Empty`] and [`ParseBucketsError::Repeated`].
    pub fn new(mut buckets: Vec<Bucket>) -> Result<Self, ParseBucketsError> {
        buckets.sort_by_key(|bucket| order(bucket.size));
        if let Some(pair) = buckets.windows(2).find(|pair| pair[0].size == pair[1].size) {
            return Err(ParseBucketsError::Repeated(pair[0].size));
        }
        if buckets.is_empty() { Err(ParseBucketsError::Empty) } else { Ok(Self(buckets)) }
    }

    /// The built-in classes that a model of this largest size can make within `max_pixels`, each for one image at a
    /// time, and the model's largest size itself where `max_pixels` allows it.
    #[must_use]
    pub fn built_in(max_size: Size, max_pixels: u64) -> Self {
        let fits =
            |size: &Size| size.width <= max_size.width && size.height <= max_size.height && size.pixels() <= max_pixels;
        let mut sizes: Vec<Size> =
            BUILT_IN.into_iter().map(|(width, height)| Size { width, height }).filter(fits).collect();
        if fits(&max_size) && !sizes.contains(&max_size) {
            sizes.push(max_size);
        }
        if sizes.is_empty() {
            // Neither a built-in class nor the model's largest size is within max_pixels: one square that is.
            let side = u32::try_from(max_pixels.isqrt()).unwrap_or(u32::MAX);
            let side = side.min(max_size.width).min(max_size.height) / 16 * 16;
            sizes.push(Size { width: side.max(16), height: side.max(16) });
        }
        sizes.sort_by_key(|size| order(*size));
        Self(sizes.into_iter().map(|size| Bucket { size, max_batch: 1 }).collect())
    }

    /// Those of the buckets that a model of this largest size can make within `max_pixels`; `None` when none is left.
    #[must_use]
    pub fn within(&self, max_size: Size, max_pixels: u64) -> Option<Self> {
        let fits =
            |size: Size| size.width <= max_size.width && size.height <= max_size.height && size.pixels() <= max_pixels;
        let left: Vec<_> = self.0.iter().copied().filter(|bucket| fits(bucket.size)).collect();
        (!left.is_empty()).then_some(Self(left))
    }

    /// The smallest bucket, by pixels, that covers both sides of `size`.
    #[must_use]
    pub fn covering(&self, size: Size) -> Option<Bucket> {
        self.0.iter().copied().find(|bucket| size.width <= bucket.size.width && size.height <= bucket.size.height)
    }

    /// The bucket of the most pixels.
    #[must_use]
    pub fn largest(&self) -> Bucket {
        *self.0.last().expect("a list of buckets is never empty")
    }

    /// All buckets, smallest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Bucket] {
        &self.0
    }
}

impl FromStr for Buckets {
    type Err = ParseBucketsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self::new(parts.map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bucket) in self.0.iter().enumerate() {
            write!(f, "{}{bucket}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    #[rstest]
    #[case::exact("512x512", "512x512@1")]
    #[case::one_pixel_more_takes_the_next("513x512", "768x768@1")]
    #[case::near_equal_landscape_ratios_share_a_class("1000x560", "1024x576@1")]
    #[case::another_near_equal_landscape_ratio("1024x540", "1024x576@1")]
    #[case::portrait("540x960", "576x1024@1")]
    #[case::square_between("700x700", "768x768@1")]
    #[case::a_thin_strip_needs_its_length("1024x16", "1024x576@1")]
    fn the_smallest_bucket_that_covers(#[case] asked: Size, #[case] expected: Bucket) {
        let buckets = Buckets::built_in(size(8192, 8192), 2048 * 2048);
        assert_eq!(buckets.covering(asked), Some(expected));
    }

    #[test]
    fn built_in_buckets_stay_within_the_model_and_the_limit() {
        assert_eq!(Buckets::built_in(size(256, 256), 1 << 22).to_string(), "256x256@1");
        assert_eq!(Buckets::built_in(size(800, 800), 1 << 22).to_string(), "512x512@1,768x768@1,800x800@1");
        assert_eq!(
            Buckets::built_in(size(8192, 8192), 1 << 20).to_string(),
            "512x512@1,768x768@1,576x1024@1,1024x576@1,1024x1024@1"
        );
        assert_eq!(Buckets::built_in(size(512, 512), 200 * 200).to_string(), "192x192@1");
    }

    #[rstest]
    #[case::batch_zero("512x512@0", "WIDTHxHEIGHT@BATCH")]
    #[case::no_number("512x512@two", "WIDTHxHEIGHT@BATCH")]
    #[case::no_size("512@2", "WIDTHxHEIGHT")]
    #[case::twice("512x512@2,512x512@4", "512x512 stands in the list twice")]
    #[case::empty(" , ", "empty")]
    fn bad_lists_say_what_is_wrong(#[case] text: &str, #[case] sentence: &str) {
        let error = text.parse::<Buckets>().unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }

    #[test]
    fn a_list_reads_back_sorted() {
        let buckets: Buckets = "1024x1024@2, 512x512@4,768x768".parse().unwrap();
        assert_eq!(buckets.to_string(), "512x512@4,768x768@1,1024x1024@2");
        assert_eq!(buckets.largest(), Bucket { size: size(1024, 1024), max_batch: 2 });
    }

    proptest! {
        #[test]
        fn what_covers_is_the_cheapest_that_does(
            sides in proptest::collection::btree_set((1_u32..200, 1_u32..200), 1..12),
            (width, height) in (1_u32..200, 1_u32..200),
        ) {
            let list: Vec<_> =
                sides.into_iter().map(|(width, height)| Bucket { size: size(width, height), max_batch: 1 }).collect();
            let buckets = Buckets::new(list.clone()).unwrap();
            let covering: Vec<_> =
                list.iter().filter(|bucket| bucket.size.width >= width && bucket.size.height >= height).collect();
            match buckets.covering(size(width, height)) {
                None => prop_assert!(covering.is_empty()),
                Some(bucket) => {
                    prop_assert!(bucket.size.width >= width && bucket.size.height >= height);
                    prop_assert!(covering.iter().all(|other| other.size.pixels() >= bucket.size.pixels()));
                }
            }
        }
    }
}
