//! The request that the command line describes.

use imagegen_core::spec::SchedulerKind;
use imagegen_proto::v1::{GenerateRequest, Scheduler};

use crate::{args::Job, output::Format};

/// The request for `prompt`. `seed` and `request_id` are used where the command line names none: drawn by the client, so
/// that a retry asks for the same picture under the same name.
#[must_use]
pub fn build(prompt: &str, job: &Job, format: Format, seed: u32, request_id: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_owned(),
        negative_prompt: job.negative_prompt.clone().unwrap_or_default(),
        width: job.size.map(|size| size.width),
        height: job.size.map(|size| size.height),
        steps: job.steps,
        guidance_scale: job.guidance_scale,
        cfg_normalization: job.cfg_normalization,
        cfg_truncation: job.cfg_truncation,
        seed: Some(job.seed.unwrap_or(seed)),
        count: Some(job.count),
        format: format.to_wire().into(),
        scheduler: match job.scheduler {
            None => Scheduler::Unspecified,
            Some(SchedulerKind::FlowMatchEuler) => Scheduler::FlowMatchEuler,
            Some(SchedulerKind::UniPc) => Scheduler::Unipc,
            Some(SchedulerKind::Deis) => Scheduler::Deis,
            Some(SchedulerKind::DpmSolverPlusPlus) => Scheduler::DpmSolverPlusPlus,
            Some(SchedulerKind::Heun) => Scheduler::Heun,
        }
        .into(),
        priority: job.priority,
        preview_every: job.preview.is_some().into(),
        reproducible: job.reproducible,
        request_id: job.request_id.clone().unwrap_or_else(|| request_id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(flags: &str) -> GenerateRequest {
        let words = ["imagegen", "generate", "a red apple"].into_iter().chain(flags.split_whitespace());
        let Command::Generate(args) = Cli::try_parse_from(words).unwrap().command else { panic!("generate was given") };
        build(&args.prompt, &args.job, Format::Webp, 42, "drawn")
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let flags = "--size 1024x576 --seed 7 --count 2 --steps 9 --negative-prompt blurry --guidance-scale 1.5 \
                     --cfg-normalization 0.5 --cfg-truncation 0.75 --scheduler flow-match-euler --reproducible \
                     --priority -3 --request-id mine --preview preview.png";
        let wanted = GenerateRequest {
            prompt: "a red apple".to_owned(),
            negative_prompt: "blurry".to_owned(),
            width: Some(1024),
            height: Some(576),
            steps: Some(9),
            guidance_scale: Some(1.5),
            cfg_normalization: Some(0.5),
            cfg_truncation: Some(0.75),
            seed: Some(7),
            count: Some(2),
            format: 3,
            scheduler: 1,
            priority: -3,
            preview_every: 1,
            reproducible: true,
            request_id: "mine".to_owned(),
        };
        assert_eq!(parsed(flags), wanted);
    }

    #[test]
    fn every_scheduler_has_its_number() {
        for (number, name) in ["flow-match-euler", "unipc", "deis", "dpm-solver++", "heun"].into_iter().enumerate() {
            assert_eq!(parsed(&format!("--scheduler {name}")).scheduler, number as i32 + 1, "{name}");
        }
    }

    #[test]
    fn what_is_absent_stays_the_models_choice_but_seed_and_name_are_drawn_here() {
        let wanted = GenerateRequest {
            prompt: "a red apple".to_owned(),
            seed: Some(42),
            count: Some(1),
            format: 3,
            request_id: "drawn".to_owned(),
            ..GenerateRequest::default()
        };
        assert_eq!(parsed(""), wanted);
    }
}
