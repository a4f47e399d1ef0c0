//! Milliseconds an image on a GPU at full size, on random weights: one JSON line for each case, then the table.
//!
//! The cases, prompts of 120 tokens and 8 steps are those of the peer's script, so that both can run in one call on one card.

mod floor;

use std::time::Instant;

use imagegen_core::engine::Engine;
use imagegen_core::spec::{Guidance, ImageSpec, SchedulerKind, Size};
use imagegen_model::shim::cuda::Cuda;
use imagegen_model::{Device, LoadOptions, Precision, TorchEngine};
use serde_json::json;

const STEPS: u32 = 8;
const PROMPT_TOKENS: usize = 120;
const GIB: f64 = (1u64 << 30) as f64;

type Failure = Box<dyn std::error::Error>;

/// One line of the table.
struct Case {
    side: u32,
    batch: usize,
}

const CASES: [Case; 4] = [
    Case { side: 512, batch: 1 },
    Case { side: 1024, batch: 1 },
    Case { side: 1024, batch: 4 },
    Case { side: 2048, batch: 1 },
];

/// Milliseconds of one generation.
#[derive(Clone, Copy)]
struct Times {
    text: f64,
    denoise: f64,
    vae: f64,
    total: f64,
}

fn main() -> Result<(), Failure> {
    let usage =
        "usage: bench_gpu [--precision bfloat16|float8] [--repeats N] [--sides 512,1024] [--check] [--no-floor]";
    let mut arguments = std::env::args().skip(1);
    let (mut precision, mut repeats, mut check, mut with_floor) = (Precision::BFloat16, 5, false, true);
    let mut sides = vec![512, 1024, 2048];
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(usage);
        match argument.as_str() {
            "--precision" => precision = value()?.parse()?,
            "--repeats" => repeats = value()?.parse()?,
            "--sides" => sides = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--check" => check = true,
            "--no-floor" => with_floor = false,
            _ => return Err(usage.into()),
        }
    }

    let device = Device::Cuda(0);
    let options = LoadOptions { precision, device, random_weights: true, ..LoadOptions::new("") };
    let started = Instant::now();
    let mut engine = TorchEngine::load(&options, &mut |_| {})?;
    let cuda = Cuda::open(0)?;
    cuda.synchronize()?;
    println!(
        "{}",
        json!({
            "engine": "imagegen", "libtorch": imagegen_model::libtorch::version(), "device": cuda.device()?.name,
            "precision": precision.to_string(), "load_s": started.elapsed().as_secs_f64(),
            "parameters": engine.model().parameters, "weights_gib": engine.model().weight_bytes as f64 / GIB,
            "missing_kernels": engine.missing_kernels(),
        })
    );
    if let Some(missing) = engine.missing_kernels() {
        return Err(format!("without this project's kernels there is nothing to measure: {missing}").into());
    }
    if check {
        check_kernels(device)?;
    }
    let mut table = Vec::new();
    for case in CASES.iter().filter(|case| sides.contains(&case.side)) {
        let row = measure(&mut engine, cuda, case, repeats)?;
        table.push((case, row));
    }
    let choices: Vec<String> =
        imagegen_model::attention_choices().iter().map(|(shape, backend)| format!("{shape}: {backend}")).collect();
    println!("{}", json!({"attention": choices, "card": floor::card()}));
    drop(engine);

    if with_floor {
        floor::heat(cuda)?;
    }
    println!(
        "| case | text ms | denoise ms | VAE ms | total ms (min to max) | first image ms | peak GiB | floor ms | denoise / floor |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (case, row) in table {
        let floor = if with_floor { floor::of(cuda, case.side.into(), case.batch, precision)? } else { f64::NAN };
        let Row { median, min, max, first, peak_gib } = row;
        println!(
            "| {}² x{} | {:.1} | {:.1} | {:.1} | {:.1} ({:.1} to {:.1}) | {:.0} | {:.2} | {:.1} | {:.3} |",
            case.side,
            case.batch,
            median.text,
            median.denoise,
            median.vae,
            median.total,
            min,
            max,
            first,
            peak_gib,
            floor,
            median.denoise / floor
        );
    }
    println!("{}", json!({"card": floor::card()}));
    Ok(())
}

/// Medians of one case.
struct Row {
    median: Times,
    min: f64,
    max: f64,
    first: f64,
    peak_gib: f64,
}

fn measure(engine: &mut TorchEngine, cuda: Cuda, case: &Case, repeats: usize) -> Result<Row, Failure> {
    cuda.reset_peaks()?;
    let prompts: Vec<String> = (0..case.batch).map(|index| prompt(engine, index)).collect::<Result<_, _>>()?;
    let first = generate(engine, cuda, case, &prompts, 0)?;
    let _second = generate(engine, cuda, case, &prompts, 1)?;
    let times: Vec<Times> =
        (0..repeats).map(|repeat| generate(engine, cuda, case, &prompts, 2 + repeat)).collect::<Result<_, _>>()?;
    let sorted = |of: fn(&Times) -> f64| {
        let mut all: Vec<f64> = times.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let median = |of| sorted(of)[repeats / 2];
    let median = Times {
        text: median(|times| times.text),
        denoise: median(|times| times.denoise),
        vae: median(|times| times.vae),
        total: median(|times| times.total),
    };
    let totals = sorted(|times| times.total);
    let row = Row {
        median,
        min: totals[0],
        max: totals[repeats - 1],
        first: first.total,
        peak_gib: cuda.stats()?.peak_allocated_bytes as f64 / GIB,
    };
    println!(
        "{}",
        json!({
            "engine": "imagegen", "size": case.side, "batch": case.batch, "steps": STEPS, "prompt_tokens": PROMPT_TOKENS,
            "text_ms": median.text, "denoise_ms": median.denoise, "vae_ms": median.vae, "total_ms": median.total,
            "total_min_ms": row.min, "total_max_ms": row.max, "first_ms": row.first, "peak_gib": row.peak_gib,
        })
    );
    Ok(row)
}

/// One generation, waiting for the device between its stages.
fn generate(
    engine: &mut TorchEngine,
    cuda: Cuda,
    case: &Case,
    prompts: &[String],
    seed: usize,
) -> Result<Times, Failure> {
    let size = Size { width: case.side, height: case.side };
    let spec = |prompt: &String| ImageSpec {
        prompt: prompt.clone(),
        negative_prompt: String::new(),
        latent_size: size,
        size,
        steps: STEPS,
        guidance: Guidance::OFF,
        seed: seed as u32,
        scheduler: SchedulerKind::FlowMatchEuler,
    };
    let specs: Vec<ImageSpec> = prompts.iter().map(spec).collect();
    cuda.synchronize()?;
    let started = Instant::now();
    engine.encode_only(prompts)?;
    cuda.synchronize()?;
    let text = milliseconds(started);

    let started = Instant::now();
    let mut batch = engine.begin(&specs)?;
    for _ in 0..STEPS {
        engine.step(&mut batch)?;
    }
    cuda.synchronize()?;
    let denoised = milliseconds(started);
    for index in 0..specs.len() {
        let picture = engine.decode(&mut batch, index)?;
        assert!(picture.data.iter().any(|&byte| byte != picture.data[0]), "a picture of one colour");
    }
    let total = milliseconds(started);
    Ok(Times { text, denoise: denoised - text, vae: total - denoised, total })
}

/// A prompt of exactly [`PROMPT_TOKENS`] tokens, the chat template included.
fn prompt(engine: &TorchEngine, index: usize) -> Result<String, Failure> {
    let count = engine.count_tokens();
    let mut prompt = format!("{index}");
    loop {
        let tokens = count(&prompt)?;
        match tokens.cmp(&PROMPT_TOKENS) {
            std::cmp::Ordering::Less => prompt.push_str(" a"),
            std::cmp::Ordering::Equal => return Ok(prompt),
            std::cmp::Ordering::Greater => return Err(format!("{tokens} tokens: {prompt}").into()),
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn check_kernels(device: Device) -> Result<(), Failure> {
    let checks = imagegen_model::check_kernels(device, true);
    let worst = checks.iter().map(|check| check.error / check.limit).fold(0.0, f64::max);
    println!("{}", json!({"kernel_checks": checks.len(), "worst_part_of_limit": worst}));
    let failed: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
    for check in &failed {
        println!("{}", json!({"kernel": check.name, "error": check.error, "limit": check.limit}));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{} kernels are wrong", failed.len()).into()) }
}
