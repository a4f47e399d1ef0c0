//! Which images are made together: of one kind, as many as fit, and only where that is faster for each.

use crate::{
    request::Request,
    spec::{SchedulerKind, Size},
    table::{Shape, Table},
};

/// What images that are made together have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    latent_size: Size,
    steps: u32,
    scheduler: SchedulerKind,
    is_guided: bool,
}

impl Kind {
    /// The kind of a request's images; `None` when each is made alone.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        (!request.reproducible).then(|| Self {
            latent_size: request.latent_size,
            steps: request.steps,
            scheduler: request.scheduler,
            is_guided: request.is_guided(),
        })
    }
}

/// A batch that is being put together.
#[derive(Debug, Clone)]
pub struct Forming<'a> {
    table: &'a Table,
    free_bytes: u64,
    kind: Option<Kind>,
    max_batch: u32,
    shape: Shape,
}

impl<'a> Forming<'a> {
    /// A batch of one image of this request, where `free_bytes` are left for activations. `None` when that does not fit.
    #[must_use]
    pub fn start(request: &Request, table: &'a Table, free_bytes: u64) -> Option<Self> {
        let shape = Shape::of(request, 1);
        let forming = Self { table, free_bytes, kind: Kind::of(request), max_batch: request.batch_size(), shape };
        forming.fits(shape).then_some(forming)
    }

    /// Takes up to `images` more images of this request, and says how many.
    pub fn add(&mut self, request: &Request, images: u32) -> u32 {
        if self.kind.is_none() || Kind::of(request) != self.kind {
            return 0;
        }
        let mut added = 0;
        while added < images && self.shape.batch < self.max_batch {
            let larger = Shape {
                batch: self.shape.batch + 1,
                caption_tokens: self.shape.caption_tokens.max(request.caption_tokens),
                ..self.shape
            };
            if !self.fits(larger) || !(self.table.is_empty() || self.table.pays(larger)) {
                break;
            }
            self.shape = larger;
            added += 1;
        }
        added
    }

    /// What it is charged as.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Without a table nothing is known about memory, and nothing is refused for it.
    fn fits(&self, shape: Shape) -> bool {
        self.table.is_empty() || self.table.bytes(shape).is_some_and(|bytes| bytes <= self.free_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::table::Cost;

    fn request(max_batch: u32) -> Request {
        Request {
            size: Size { width: 500, height: 500 },
            latent_size: Size { width: 512, height: 512 },
            bucket: crate::bucket::Bucket { size: Size { width: 512, height: 512 }, max_batch },
            ..Request::example()
        }
    }

    /// Batches of up to 4, of 10 bytes an image; the step times per image are given.
    fn table(per_image: [f64; 4]) -> Table {
        let cost = |(index, seconds): (usize, f64)| {
            let batch = index as u32 + 1;
            let bytes = 10 * u64::from(batch);
            let cost = Cost { peak_reserved_bytes: bytes, step_seconds: seconds * f64::from(batch), ..Cost::default() };
            [128, 512].map(|caption_tokens| (Shape { batch, caption_tokens, ..Shape::of(&request(4), 1) }, cost))
        };
        per_image.into_iter().enumerate().flat_map(cost).collect()
    }

    #[rstest]
    #[case::all_that_fit(4, 40, [1.0, 0.9, 0.8, 0.7], 4)]
    #[case::no_more_than_the_bucket_allows(2, 40, [1.0, 0.9, 0.8, 0.7], 2)]
    #[case::no_more_than_the_memory_allows(4, 39, [1.0, 0.9, 0.8, 0.7], 3)]
    #[case::only_while_it_pays(4, 40, [1.0, 0.9, 0.95, 0.7], 2)]
    #[case::not_at_all(4, 40, [1.0, 1.0, 0.5, 0.5], 1)]
    fn batches(#[case] max_batch: u32, #[case] free: u64, #[case] per_image: [f64; 4], #[case] expected: u32) {
        let (table, request) = (table(per_image), request(max_batch));
        let mut forming = Forming::start(&request, &table, free).unwrap();
        forming.add(&request, 9);
        assert_eq!(forming.shape().batch, expected);
    }

    #[test]
    fn what_does_not_fit_alone_does_not_start() {
        assert!(Forming::start(&request(4), &table([1.0; 4]), 9).is_none());
        assert!(Forming::start(&request(4), &Table::default(), 0).is_some());
    }

    #[test]
    fn only_images_of_one_kind_are_made_together() {
        let (table, leader) = (table([1.0, 0.9, 0.8, 0.7]), request(4));
        let others = [
            Request { latent_size: Size { width: 512, height: 496 }, ..request(4) },
            Request { steps: leader.steps + 1, ..request(4) },
            Request { guidance: crate::spec::Guidance { scale: 5.0, ..leader.guidance }, ..request(4) },
            Request { reproducible: true, ..request(4) },
        ];
        for other in others {
            assert_eq!(Forming::start(&leader, &table, 99).unwrap().add(&other, 1), 0, "{other:?}");
        }
        let alone = Request { reproducible: true, ..request(4) };
        assert_eq!(Forming::start(&alone, &table, 99).unwrap().add(&alone, 1), 0);
        let cropped = Request { size: Size { width: 512, height: 512 }, seed: 9, prompt: "b".into(), ..request(1) };
        assert_eq!(Forming::start(&leader, &table, 99).unwrap().add(&cropped, 1), 1);
    }

    #[test]
    fn a_long_caption_makes_the_whole_batch_one_of_long_captions() {
        let mut table = table([1.0, 0.9, 0.8, 0.7]);
        table.raise(Shape { batch: 2, caption_tokens: 512, ..Shape::of(&request(4), 1) }, 50);
        let (short, long) = (request(4), Request { caption_tokens: 400, ..request(4) });
        assert_eq!(Forming::start(&short, &table, 49).unwrap().add(&long, 1), 0);
        assert_eq!(Forming::start(&short, &table, 49).unwrap().add(&short, 1), 1);
    }

    proptest! {
        #[test]
        fn never_more_than_is_free(free in 0_u64..60, images in 0_u32..9, more in 0_u32..9, max_batch in 1_u32..6) {
            let (table, request) = (table([1.0, 0.9, 0.8, 0.7]), request(max_batch));
            if let Some(mut forming) = Forming::start(&request, &table, free) {
                let added = forming.add(&request, images) + forming.add(&request, more);
                prop_assert_eq!(forming.shape().batch, 1 + added);
                prop_assert!(table.bytes(forming.shape()).unwrap() <= free);
                prop_assert!(forming.shape().batch <= max_batch);
            }
        }
    }
}
