//! What batches cost: bytes and seconds, as measured on the device.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{bucket::Buckets, request::Request, spec::Size};

/// Captions of at most this many tokens are a class of their own: most prompts are short.
const SHORT_CAPTION_TOKENS: u32 = 128;

/// What the cost of a batch depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// Size of the class.
    pub size: Size,
    /// Images.
    pub batch: u32,
    /// Tokens of the longest caption.
    pub caption_tokens: u32,
    /// Two transformer calls a step.
    pub is_guided: bool,
}

impl Shape {
    /// What `batch` images of this request are charged as.
    #[must_use]
    pub fn of(request: &Request, batch: u32) -> Self {
        Self {
            size: request.bucket.size,
            batch,
            caption_tokens: request.caption_tokens,
            is_guided: request.is_guided(),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        self.size.width >= other.size.width && self.size.height >= other.size.height && self.costs_at_least(other)
    }

    /// Whether nothing of it is less, sizes by their pixels.
    fn costs_at_least(&self, other: &Self) -> bool {
        self.size.pixels() >= other.size.pixels()
            && self.batch >= other.batch
            && self.caption_tokens >= other.caption_tokens
            && self.is_guided >= other.is_guided
    }

    fn order(&self) -> (u64, u32, bool, u32, Size) {
        (self.size.pixels(), self.batch, self.is_guided, self.caption_tokens, self.size)
    }
}

/// What a batch of one shape took. Bytes are those of activations: above what the idle worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Most bytes of live tensors.
    pub peak_allocated_bytes: u64,
    /// Most bytes that the allocator held; this is what admission counts.
    pub peak_reserved_bytes: u64,
    /// Encoding the captions of the batch.
    pub text_seconds: f64,
    /// One step of the batch.
    pub step_seconds: f64,
    /// Decoding one image.
    pub decode_seconds: f64,
}

impl Cost {
    /// Seconds of a whole batch.
    #[must_use]
    pub fn batch_seconds(&self, batch: u32, steps: u32) -> f64 {
        self.text_seconds + self.step_seconds * f64::from(steps) + self.decode_seconds * f64::from(batch)
    }
}

/// Costs by shape. Empty before the first measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    costs: BTreeMap<Shape, Cost>,
    stale: BTreeSet<Shape>,
}

impl Table {
    /// Whether nothing was measured, so that nothing can be told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.costs.is_empty()
    }

    /// Notes a measurement.
    pub fn insert(&mut self, shape: Shape, cost: Cost) {
        self.stale.remove(&shape);
        self.costs.insert(shape, cost);
    }

    /// The smallest measured shape that covers this one.
    #[must_use]
    pub fn covering(&self, shape: Shape) -> Option<(Shape, &Cost)> {
        let covering = self.costs.iter().filter(|(measured, _)| measured.covers(&shape));
        covering.min_by_key(|(measured, _)| measured.order()).map(|(measured, cost)| (*measured, cost))
    }

    /// Bytes to admit a batch of this shape with; `None` when no measured shape covers it. Never less for more pixels,
    /// images, tokens or guidance: a measurement that came out below that of a lesser shape counts as that one.
    #[must_use]
    pub fn bytes(&self, shape: Shape) -> Option<u64> {
        let (covering, _) = self.covering(shape)?;
        let lesser = self.costs.iter().filter(|(measured, _)| covering.costs_at_least(measured));
        lesser.map(|(_, cost)| cost.peak_reserved_bytes).max()
    }

    /// Bytes of the smallest shape.
    #[must_use]
    pub fn smallest_bytes(&self) -> Option<u64> {
        self.costs.values().map(|cost| cost.peak_reserved_bytes).min()
    }

    /// Whether each image is made faster in a batch of this shape than in one with an image less.
    #[must_use]
    pub fn pays(&self, shape: Shape) -> bool {
        let per_image = |batch: u32| {
            let (measured, cost) = self.covering(Shape { batch, ..shape })?;
            (measured.batch == batch).then(|| cost.step_seconds / f64::from(batch))
        };
        let (Some(more), Some(less)) = (per_image(shape.batch), per_image(shape.batch.saturating_sub(1))) else {
            return false;
        };
        more < less
    }

    /// Whether a batch of this shape has run, so that running another one allocates and tunes nothing new.
    #[must_use]
    pub fn is_warm(&self, shape: Shape) -> bool {
        self.covering(shape).is_some_and(|(measured, _)| measured.batch == shape.batch)
    }

    /// A batch of this shape needed more than the table says: the entry rises, and waits to be measured again.
    pub fn raise(&mut self, shape: Shape, bytes: u64) {
        if let Some((covering, _)) = self.covering(shape)
            && let Some(cost) = self.costs.get_mut(&covering)
        {
            cost.peak_reserved_bytes = cost.peak_reserved_bytes.max(bytes);
            self.stale.insert(covering);
        }
    }

    /// A raised entry stays as it is: it could not be measured again.
    pub fn keep_raised(&mut self, shape: Shape) {
        self.stale.remove(&shape);
    }

    /// An entry that was raised and not measured since.
    #[must_use]
    pub fn stale(&self) -> Option<Shape> {
        self.stale.first().copied()
    }

    /// All measurements.
    pub fn iter(&self) -> impl Iterator<Item = (&Shape, &Cost)> {
        self.costs.iter()
    }
}

impl FromIterator<(Shape, Cost)> for Table {
    fn from_iter<I: IntoIterator<Item = (Shape, Cost)>>(costs: I) -> Self {
        Self { costs: costs.into_iter().collect(), stale: BTreeSet::new() }
    }
}

/// Everything that a measurement depends on, by name: a table is good only where all of it is the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableKey(pub BTreeMap<String, String>);

impl TableKey {
    /// The key of these names and values.
    #[must_use]
    pub fn of<const N: usize>(facts: [(&str, String); N]) -> Self {
        Self(facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Names of what differs.
    #[must_use]
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let names: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        names.into_iter().filter(|name| self.0.get(*name) != other.0.get(*name)).map(String::as_str).collect()
    }
}

/// A table as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredTable {
    /// What it was measured on.
    pub key: TableKey,
    /// The measurements.
    pub costs: Vec<(Shape, Cost)>,
}

/// Classes of caption lengths in tokens, shortest first: every prompt of at most `max_prompt_tokens` is in one.
#[must_use]
pub fn caption_classes(max_prompt_tokens: u32) -> Vec<u32> {
    let long = max_prompt_tokens.max(1);
    if long > SHORT_CAPTION_TOKENS { vec![SHORT_CAPTION_TOKENS, long] } else { vec![long] }
}

/// The shapes that warm-up measures, largest first: later ones then find their memory in the pool.
#[must_use]
pub fn shapes(buckets: &Buckets, max_prompt_tokens: u32) -> Vec<Shape> {
    let classes = caption_classes(max_prompt_tokens);
    let mut shapes = Vec::new();
    for bucket in buckets.as_slice() {
        for batch in 1..=bucket.max_batch {
            for &caption_tokens in &classes {
                for is_guided in [false, true] {
                    shapes.push(Shape { size: bucket.size, batch, caption_tokens, is_guided });
                }
            }
        }
    }
    shapes.sort_by_key(|shape| {
        let images = u64::from(shape.batch) * if shape.is_guided { 2 } else { 1 };
        std::cmp::Reverse((shape.size.pixels() * images, shape.order()))
    });
    shapes
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
