use proptest::prelude::*;

use super::*;

fn shape(side: u32, batch: u32, caption_tokens: u32, is_guided: bool) -> Shape {
    Shape { size: Size { width: side, height: side }, batch, caption_tokens, is_guided }
}

fn cost(bytes: u64, step_seconds: f64) -> Cost {
    Cost { peak_allocated_bytes: bytes, peak_reserved_bytes: bytes, step_seconds, ..Cost::default() }
}

fn table() -> Table {
    Table::from_iter([
        (shape(512, 1, 128, false), cost(10, 1.0)),
        (shape(512, 2, 128, false), cost(18, 1.8)),
        (shape(512, 3, 128, false), cost(26, 2.9)),
        (shape(512, 1, 512, false), cost(12, 1.1)),
        (shape(1024, 1, 512, false), cost(40, 5.0)),
        (shape(1024, 1, 512, true), cost(80, 10.0)),
    ])
}

#[test]
fn the_smallest_covering_entry_is_charged() {
    let bytes = |shape| table().bytes(shape);
    assert_eq!(bytes(shape(300, 1, 20, false)), Some(10));
    assert_eq!(bytes(shape(512, 1, 129, false)), Some(12));
    assert_eq!(bytes(shape(513, 1, 20, false)), Some(40));
    assert_eq!(bytes(shape(64, 1, 20, true)), Some(80));
    assert_eq!(bytes(shape(1024, 2, 20, false)), None);
    assert_eq!(table().smallest_bytes(), Some(10));
    assert_eq!(Table::default().bytes(shape(64, 1, 1, false)), None);
}

#[test]
fn a_batch_pays_while_each_image_gets_faster() {
    assert!(table().pays(shape(512, 2, 128, false)));
    assert!(!table().pays(shape(512, 3, 128, false)));
    assert!(!table().pays(shape(1024, 2, 128, false)));
    assert!(!table().pays(shape(512, 1, 128, false)));
}

#[test]
fn only_measured_batches_are_warm() {
    assert!(table().is_warm(shape(500, 3, 100, false)));
    assert!(!table().is_warm(shape(512, 4, 100, false)));
    let mut gap = table();
    gap.insert(shape(512, 5, 128, false), cost(50, 5.0));
    assert!(!gap.is_warm(shape(512, 4, 100, false)));
}

#[test]
fn an_entry_rises_and_is_measured_again() {
    let mut table = table();
    table.raise(shape(300, 1, 20, false), 30);
    assert_eq!(table.bytes(shape(512, 1, 128, false)), Some(30));
    // A larger shape never costs less.
    assert_eq!(table.bytes(shape(512, 2, 128, false)), Some(30));
    assert_eq!(table.stale(), Some(shape(512, 1, 128, false)));
    table.raise(shape(300, 1, 20, false), 5);
    assert_eq!(table.bytes(shape(512, 1, 128, false)), Some(30));
    table.insert(shape(512, 1, 128, false), cost(11, 1.0));
    assert_eq!((table.bytes(shape(512, 1, 128, false)), table.stale()), (Some(11), None));
}

#[test]
fn warm_up_covers_every_class_largest_first() {
    let shapes = shapes(&"512x512@2,1024x1024@1".parse().unwrap(), 512);
    assert_eq!(shapes.len(), (2 + 1) * 2 * 2);
    assert_eq!(shapes[0], shape(1024, 1, 512, true));
    assert_eq!(*shapes.last().unwrap(), shape(512, 1, 128, false));
    assert_eq!((caption_classes(512), caption_classes(60)), (vec![128, 512], vec![60]));
}

#[test]
fn a_stored_table_names_what_has_changed() {
    let key =
        |driver: &str| TableKey(BTreeMap::from([("gpu".into(), "H100".into()), ("driver".into(), driver.to_owned())]));
    assert_eq!(key("550").differences(&key("550")), Vec::<&str>::new());
    assert_eq!(key("550").differences(&key("560")), ["driver"]);
    assert_eq!(key("550").differences(&TableKey::default()), ["driver", "gpu"]);
}

fn measured() -> impl Strategy<Value = Table> {
    // Measurements are noisy: they need not grow with the shape.
    proptest::collection::vec((1_u64..1000, 0.01_f64..10.0), 3 * 3 * 2 * 2).prop_map(|numbers| {
        let mut numbers = numbers.into_iter();
        let mut table = Table::default();
        for side in [256, 512, 1024] {
            for batch in 1..=3 {
                for caption_tokens in [128, 512] {
                    for is_guided in [false, true] {
                        let (bytes, seconds) = numbers.next().unwrap();
                        table.insert(shape(side, batch, caption_tokens, is_guided), cost(bytes, seconds));
                    }
                }
            }
        }
        table
    })
}

proptest! {
    #[test]
    fn bytes_grow_with_pixels_images_tokens_and_guidance(
        table in measured(), width in 1_u32..=1024, height in 1_u32..=1024, batch in 1_u32..=3, tokens in 1_u32..=512,
        is_guided in any::<bool>(), more in (0_u32..500, 0_u32..500, 0_u32..=2, 0_u32..300),
    ) {
        let less = Shape { size: Size { width, height }, batch, caption_tokens: tokens, is_guided };
        let more = Shape {
            size: Size { width: (width + more.0).min(1024), height: (height + more.1).min(1024) },
            batch: (batch + more.2).min(3),
            caption_tokens: (tokens + more.3).min(512),
            is_guided: true,
        };
        prop_assert!(table.bytes(less).unwrap() <= table.bytes(more).unwrap());
    }

    #[test]
    fn never_below_what_was_measured(table in measured()) {
        for (shape, cost) in table.iter() {
            prop_assert!(table.bytes(*shape).unwrap() >= cost.peak_reserved_bytes);
        }
    }
}
