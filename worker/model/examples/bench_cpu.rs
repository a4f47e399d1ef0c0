//! Seconds an image on the CPU, as one line of JSON on standard output. tests/reference/bench_cpu.py prints the same for
//! diffusers, and tests/reference/compare_cpu.py runs both in turns.

use std::num::NonZeroUsize;
use std::time::Instant;

use imagegen_core::engine::Engine;
use imagegen_core::spec::{Guidance, ImageSpec, SchedulerKind, Size};
use imagegen_model::{LoadOptions, TorchEngine};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: bench_cpu MODEL_DIR WIDTHxHEIGHT STEPS THREADS IMAGES [PPM_FILE [PROMPT]]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_dir, size, steps, threads, images, rest @ ..] = arguments.as_slice() else { return Err(usage.into()) };
    let (size, steps, images): (Size, u32, u32) = (size.parse()?, steps.parse()?, images.parse()?);
    let options = LoadOptions { threads: Some(threads.parse::<NonZeroUsize>()?), ..LoadOptions::new(model_dir) };

    let started = Instant::now();
    let mut engine = TorchEngine::load(&options, &mut |_| {})?;
    let load_seconds = started.elapsed().as_secs_f64();
    let mut seconds = Vec::new();
    let mut picture = None;
    for seed in 0..=images {
        let spec = ImageSpec {
            prompt: rest.get(1).map_or("a red apple", String::as_str).to_owned(),
            negative_prompt: String::new(),
            latent_size: size.rounded_up(engine.model().size_multiple),
            size,
            steps,
            guidance: Guidance::OFF,
            seed,
            scheduler: SchedulerKind::FlowMatchEuler,
        };
        let started = Instant::now();
        let mut batch = engine.begin(&[spec])?;
        let begun = started.elapsed().as_secs_f64();
        for _ in 0..steps {
            engine.step(&mut batch)?;
        }
        let denoised = started.elapsed().as_secs_f64();
        picture = Some(engine.decode(&mut batch, 0)?);
        // The first image warms up.
        if seed > 0 {
            let all = started.elapsed().as_secs_f64();
            seconds.push([all, begun, denoised - begun, all - denoised]);
        }
    }
    let column = |part: usize| seconds.iter().map(|row| format!("{:.4}", row[part])).collect::<Vec<_>>().join(",");
    println!(
        "{{\"engine\":\"imagegen\",\"libtorch\":\"{}\",\"threads\":{threads},\"size\":\"{size}\",\"steps\":{steps},\
         \"load_seconds\":{load_seconds:.3},\"seconds\":[{}],\"begin_seconds\":[{}],\"steps_seconds\":[{}],\"decode_seconds\":[{}]}}",
        imagegen_model::libtorch::version(),
        column(0),
        column(1),
        column(2),
        column(3)
    );
    if let (Some(path), Some(picture)) = (rest.first(), picture) {
        let mut file = format!("P6 {} {} 255\n", picture.size.width, picture.size.height).into_bytes();
        file.extend(picture.data);
        std::fs::write(path, file)?;
    }
    Ok(())
}
