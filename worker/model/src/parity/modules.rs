//! Module by module, float32 on the CPU.

use imagegen_core::spec::SchedulerKind;
use tch::{Kind, Tensor};

use super::{Fixture, MODULE_TOLERANCE};
use crate::nn::Lengths;
use crate::scheduler::Schedule;
use crate::tokenizer::Tokenizer;
use crate::transformer::{Factors, Grid, through};

fn numbers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor).unwrap()
}

#[test]
fn tokens_with_the_chat_template() {
    for fixture in Fixture::both() {
        let tokenizer = Tokenizer::read(&fixture.folder).unwrap();
        for case in fixture.cases["tokens"].as_array().unwrap() {
            let ids: Vec<u64> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let found: Vec<u64> =
                tokenizer.encode(case["prompt"].as_str().unwrap()).unwrap().into_iter().map(u64::from).collect();
            assert_eq!(found, ids, "{} in {}", case["prompt"], fixture.folder.display());
        }
    }
}

#[test]
fn schedules() {
    for fixture in Fixture::both() {
        let config = fixture.checkpoint().scheduler;
        for steps in fixture.names("schedule", "sigmas") {
            let schedule = Schedule::new(config, SchedulerKind::FlowMatchEuler, steps.parse().unwrap());
            fixture.assert_close(&format!("schedule.{steps}.sigmas"), &Tensor::from_slice(&schedule.sigmas), 1e-6);
            fixture.assert_close(&format!("schedule.{steps}.times"), &Tensor::from_slice(&schedule.model_times), 1e-6);
        }
    }
}

#[test]
fn text_encoder_alone_and_in_a_batch_of_mixed_lengths() {
    for fixture in Fixture::both() {
        let encoder = fixture.checkpoint().text_encoder;
        let names = fixture.names("text_encoder", "ids");
        assert_eq!(names.len(), 5);
        let prompts: Vec<Vec<i64>> =
            names.iter().map(|name| numbers(fixture.get(&format!("text_encoder.{name}.ids")))).collect();
        let together = encoder.forward(&prompts);
        for ((name, prompt), together) in names.iter().zip(prompts).zip(&together) {
            let key = format!("text_encoder.{name}.states");
            fixture.assert_close(&key, &encoder.forward(&[prompt])[0], MODULE_TOLERANCE);
            fixture.assert_close(&key, together, MODULE_TOLERANCE);
        }
    }
}

#[test]
fn rope_time_and_blocks() {
    for fixture in Fixture::both() {
        let transformer = fixture.checkpoint().transformer;
        let ids = numbers(&fixture.get("rope.ids").contiguous().view([-1]));
        let positions: Vec<[i64; 3]> = ids.chunks(3).map(|ids| [ids[0], ids[1], ids[2]]).collect();
        let rope = transformer.rope.lookup(&positions);
        let rope_values = rope.view_as_real().squeeze_dim(1);
        fixture.assert_close("rope.values", &rope_values, MODULE_TOLERANCE);

        let times = Vec::<f32>::try_from(fixture.get("t_embedder.times")).unwrap();
        let embedded = transformer.t_embedder.forward(&times, transformer.config.t_scale, tch::Device::Cpu);
        fixture.assert_close("t_embedder.values", &embedded, MODULE_TOLERANCE);

        let x = fixture.get("block.x");
        let size = x.size();
        let tokens = || x.copy().view([-1, size[2]]);
        let rope = rope.narrow(0, 0, size[1]);
        let (rope, lengths) = (Tensor::cat(&[&rope, &rope], 0), Lengths::new(vec![size[1]; 2]));
        let factors = transformer.layers_adaln.modulate(&transformer.layers, &embedded).at(3);
        let output = through(&transformer.layers[..1], &factors[..1], tokens(), &lengths, &rope);
        fixture.assert_close("block.layers", &output.view(size.as_slice()), MODULE_TOLERANCE);
        if let Some(refiner) = transformer.context_refiner.first() {
            let (refiner, factors) = (std::slice::from_ref(refiner), [Factors::of(refiner.norms())]);
            let output = through(refiner, &factors, tokens(), &lengths, &rope);
            fixture.assert_close("block.context_refiner", &output.view(size.as_slice()), MODULE_TOLERANCE);
        }
    }
}

#[test]
fn transformer_at_all_lengths_sizes_and_batches() {
    for fixture in Fixture::both() {
        let transformer = fixture.checkpoint().transformer;
        let modulations = transformer.modulate(&[0.0, 0.357_143, 1.0]);
        let names = fixture.names("transformer", "latents");
        assert_eq!(names.len(), 8);
        for name in names {
            let get = |leaf: &str| fixture.get(&format!("transformer.{name}.{leaf}"));
            let latents = get("latents");
            let captions = get("captions").split_with_sizes(numbers(get("lengths")), 0);
            let grid = Grid { rows: latents.size()[2] / 2, columns: latents.size()[3] / 2 };
            let conditioning = transformer.condition(&captions, grid);
            let output = transformer.forward(latents, &conditioning, &modulations, 1);
            fixture.assert_close(&format!("transformer.{name}.output"), &output, MODULE_TOLERANCE);

            let first = transformer.forward(&latents.narrow(0, 0, 1), &conditioning.first(1), &modulations, 1);
            let difference = super::relative_difference(&first, &get("output").narrow(0, 0, 1));
            assert!(difference <= MODULE_TOLERANCE, "first of {name}: {difference:.2e}");
        }
    }
}

#[test]
fn vae_decoder() {
    for fixture in Fixture::both() {
        let vae = fixture.checkpoint().vae;
        for name in fixture.names("vae", "latents") {
            let decoded = vae.decode(fixture.get(&format!("vae.{name}.latents")));
            fixture.assert_close(&format!("vae.{name}.decoded"), &decoded, MODULE_TOLERANCE);
            assert_eq!(decoded.kind(), Kind::Float);
        }
    }
}
