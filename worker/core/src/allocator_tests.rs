use proptest::prelude::{Just, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;
use rstest::rstest;

use super::*;

const SPLIT: Allocator = Allocator::MaxSplitSize(MaxSplitSize::BUILT_IN);

fn any_allocator() -> impl Generator<Value = Allocator> {
    let split = (21_u32..65536, proptest::option::of(0_u32..=6), 1_u32..100).prop_map(|(size, shift, percent)| {
        Allocator::MaxSplitSize(MaxSplitSize {
            max_split_size_mib: size,
            roundup_power2_divisions: shift.map(|shift| 1 << shift),
            garbage_collection_threshold: f64::from(percent) / 100.0,
        })
    });
    prop_oneof![Just(Allocator::ExpandableSegments), Just(Allocator::CudaMallocAsync), split]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(allocator in any_allocator()) {
        prop_assert_eq!(Allocator::parse(&allocator.to_string()), Ok(Some(allocator)));
        prop_assert_eq!(check_environment(Some(allocator), Some(&allocator.to_string())), Ok(Some(allocator)));
    }
}

#[rstest]
#[case::expandable(Allocator::ExpandableSegments, "expandable_segments:True")]
#[case::split(SPLIT, "max_split_size_mb:256,garbage_collection_threshold:0.8")]
#[case::the_drivers(Allocator::CudaMallocAsync, "backend:cudaMallocAsync")]
fn texts_are_libtorchs(#[case] allocator: Allocator, #[case] text: &str) {
    assert_eq!(allocator.to_string(), text);
}

#[rstest]
#[case::nothing("", None)]
#[case::the_default_written_out(" backend:native , expandable_segments:False", None)]
#[case::options_of_no_strategy("pinned_use_cuda_host_register:True", None)]
#[case::blanks("expandable_segments: True", Some(Allocator::ExpandableSegments))]
fn other_texts_are_read(#[case] text: &str, #[case] expected: Option<Allocator>) {
    assert_eq!(Allocator::parse(text), Ok(expected));
}

#[rstest]
#[case::async_and_split("backend:cudaMallocAsync,max_split_size_mb:128", "ignored with backend:cudaMallocAsync")]
#[case::async_and_expandable("backend:cudaMallocAsync,expandable_segments:True", "no effect")]
#[case::expandable_and_split("expandable_segments:True,max_split_size_mb:128", "grow without need")]
#[case::expandable_and_collection("expandable_segments:True,garbage_collection_threshold:0.8", "grow without need")]
#[case::collection_alone("garbage_collection_threshold:0.8", "max_split_size_mb is missing")]
#[case::a_list_of_divisions("max_split_size_mb:64,roundup_power2_divisions:[256:1,512:2]", "is a number")]
#[case::no_value("expandable_segments", "option:value")]
#[case::another_backend("backend:mine", "native or cudaMallocAsync")]
fn mixed_or_broken_texts_are_explained(#[case] text: &str, #[case] expected: &str) {
    let error = check_environment(None, Some(text)).unwrap_err();
    assert!(error.starts_with(&format!("{VARIABLE}={text}: ")) && error.contains(expected), "{error}");
}

#[test]
fn a_variable_that_contradicts_is_refused_with_the_one_that_does_not() {
    for variable in [None, Some(""), Some("expandable_segments:True")] {
        let error = check_environment(Some(SPLIT), variable).unwrap_err();
        assert!(
            error.ends_with("PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:256,garbage_collection_threshold:0.8"),
            "{error}"
        );
    }
    assert_eq!(check_environment(None, None), Ok(None), "nothing configured, nothing asked for");
}

#[test]
fn what_libtorch_took_must_be_what_was_asked_for() {
    fn taken<'a>(backend: &'a str, settings: &'a str) -> Taken<'a> {
        Taken { backend, settings }
    }
    assert_eq!(check_taken(Some(SPLIT), taken("native", &SPLIT.to_string())), Ok(()));
    assert_eq!(check_taken(None, taken("native", "")), Ok(()));
    let cases = [
        (Some(Allocator::CudaMallocAsync), taken("native", "backend:cudaMallocAsync"), "backend native"),
        (None, taken("cudaMallocAsync", ""), "asks for native"),
        (Some(SPLIT), taken("native", ""), "took the settings \"\""),
        (None, taken("native", "expandable_segments:True"), "asks for nothing"),
    ];
    for (asked, taken, expected) in cases {
        let error = check_taken(asked, taken).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn settings_of_another_strategy_or_out_of_range_are_refused() {
    let of = AllocatorChoice::of;
    let split = of(Strategy::MaxSplitSize);
    let cases = [
        (AllocatorChoice { max_split_size_mib: Some(64), ..of(Strategy::ExpandableSegments) }, "max-split-size"),
        (AllocatorChoice { garbage_collection_threshold: Some(0.5), ..of(Strategy::CudaMallocAsync) }, "do nothing"),
        (AllocatorChoice { max_split_size_mib: Some(20), ..split }, "above 20 MiB"),
        (AllocatorChoice { roundup_power2_divisions: Some(3), ..split }, "power of two"),
        (AllocatorChoice { roundup_power2_divisions: Some(128), ..split }, "power of two"),
        (AllocatorChoice { garbage_collection_threshold: Some(1.0), ..split }, "between 0 and 1"),
        (AllocatorChoice { garbage_collection_threshold: Some(f64::NAN), ..split }, "between 0 and 1"),
    ];
    for (choice, expected) in cases {
        let error = choice.resolve().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(split.resolve(), Ok(SPLIT));
}

#[rstest]
#[case::a_whole_card("nvidia.com/gpu", Allocator::ExpandableSegments)]
#[case::a_mig_instance("nvidia.com/mig-3g.20gb", SPLIT)]
fn the_built_in_strategy_goes_by_the_resource(#[case] resource: &str, #[case] expected: Allocator) {
    assert_eq!(Allocator::built_in(resource), expected);
}
