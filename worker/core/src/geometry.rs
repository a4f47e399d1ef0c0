//! From the asked size to the size of the latents and the class that is charged.

use crate::{
    bucket::Bucket,
    rules::{Rules, SizePolicy},
    spec::Size,
};

/// How an image of some size is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Size of the picture.
    pub size: Size,
    /// Size the latents are made for; the picture is its top left part.
    pub latent_size: Size,
    /// What it is charged as.
    pub bucket: Bucket,
    /// What was changed, as a sentence.
    pub warning: Option<String>,
}

/// No bucket covers the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{asked} fits no size class of this worker; the largest is {}", largest.size)]
pub struct TooLarge {
    /// What was asked.
    pub asked: Size,
    /// The largest class.
    pub largest: Bucket,
}

/// How an image of this size is made.
///
/// # Errors
/// When no bucket covers it.
pub fn plan(size: Size, rules: &Rules) -> Result<Plan, TooLarge> {
    let bucket = rules.buckets.covering(size).ok_or(TooLarge { asked: size, largest: rules.buckets.largest() })?;
    let latent_size = match rules.size_policy {
        SizePolicy::Exact => size.rounded_up(rules.model.size_multiple),
        SizePolicy::Bucket => bucket.size,
    };
    let warning = (latent_size != size).then(|| match rules.size_policy {
        SizePolicy::Exact => format!(
            "{size} is not a multiple of {} pixels: made at {latent_size} and cropped.",
            rules.model.size_multiple
        ),
        SizePolicy::Bucket => format!(
            "This worker makes images at the size of their class: made at {latent_size} and cropped to {size}; \
             the picture of a seed differs from that of the exact size."
        ),
    });
    Ok(Plan { size, latent_size, bucket, warning })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rules::{ModelLimits, RuleSettings};

    fn rules(size_policy: SizePolicy) -> Rules {
        let model =
            ModelLimits { size_multiple: 16, max_prompt_tokens: 512, max_size: Size { width: 8192, height: 8192 } };
        Rules::new(RuleSettings { size_policy, ..RuleSettings::default() }, model).unwrap()
    }

    #[test]
    fn an_aligned_size_is_made_as_it_is() {
        let size = Size { width: 1024, height: 576 };
        let plan = plan(size, &rules(SizePolicy::Exact)).unwrap();
        assert_eq!((plan.latent_size, plan.bucket.size, plan.warning), (size, size, None));
    }

    #[test]
    fn a_size_in_between_is_made_larger_and_says_so() {
        let plan = plan(Size { width: 1000, height: 500 }, &rules(SizePolicy::Exact)).unwrap();
        assert_eq!(plan.latent_size, Size { width: 1008, height: 512 });
        assert_eq!(plan.warning.unwrap(), "1000x500 is not a multiple of 16 pixels: made at 1008x512 and cropped.");
    }

    #[test]
    fn bucket_policy_makes_the_bucket() {
        let plan = plan(Size { width: 512, height: 400 }, &rules(SizePolicy::Bucket)).unwrap();
        assert_eq!(plan.latent_size, Size { width: 512, height: 512 });
        assert!(plan.warning.unwrap().contains("made at 512x512 and cropped to 512x400"));
    }

    #[test]
    fn what_no_bucket_covers_names_the_largest() {
        let error = plan(Size { width: 4096, height: 512 }, &rules(SizePolicy::Exact)).unwrap_err();
        assert_eq!(error.to_string(), "4096x512 fits no size class of this worker; the largest is 2048x2048");
    }

    proptest! {
        #[test]
        fn latents_cover_the_picture_and_stay_in_the_bucket(width in 1_u32..3000, height in 1_u32..3000) {
            let size = Size { width, height };
            if let Ok(plan) = plan(size, &rules(SizePolicy::Exact)) {
                prop_assert!(plan.latent_size.width >= width && plan.latent_size.width < width + 16);
                prop_assert!(plan.latent_size.height >= height && plan.latent_size.height < height + 16);
                prop_assert!(plan.latent_size.width <= plan.bucket.size.width);
                prop_assert!(plan.latent_size.height <= plan.bucket.size.height);
                prop_assert_eq!(plan.warning.is_some(), width % 16 != 0 || height % 16 != 0);
            } else {
                prop_assert!(width > 2048 || height > 2048);
            }
        }
    }
}
