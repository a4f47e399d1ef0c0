//! The least that a denoising can take: its products and its attention alone, each at the rate that it has on this card under
//! load.

use std::time::{Duration, Instant};

use imagegen_model::Precision;
use imagegen_model::shim::attention::{AttentionBackend, attention};
use imagegen_model::shim::cuda::Cuda;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{Failure, PROMPT_TOKENS, STEPS};

const DIM: i64 = 3840;
const INNER: i64 = 10240;
const HEADS: i64 = 30;
const LAYERS: f64 = 30.0;
const REFINERS: f64 = 2.0;
const GPU: Device = Device::Cuda(0);

/// Ten seconds of large products, after which clock and power are what long work leaves.
pub(crate) fn heat(cuda: Cuda) -> Result<(), Failure> {
    let x = Tensor::randn([8192, 8192], (Kind::BFloat16, GPU));
    let (started, mut products) = (Instant::now(), 0u32);
    while started.elapsed() < Duration::from_secs(10) {
        for _ in 0..50 {
            let _product = x.matmul(&x);
        }
        products += 50;
        cuda.synchronize()?;
    }
    let tflops = 2.0 * 8192f64.powi(3) * f64::from(products) / started.elapsed().as_secs_f64() / 1e12;
    println!("{}", json!({"bf16_tflops_under_load": tflops, "card": card()}));
    Ok(())
}

/// Clock, power and temperature as nvidia-smi has them.
pub(crate) fn card() -> String {
    let query = ["--query-gpu=name,clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"];
    let output = std::process::Command::new("nvidia-smi").args(query).output();
    output.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Milliseconds of all products and attentions of one denoising.
pub(crate) fn of(cuda: Cuda, side: i64, batch: usize, precision: Precision) -> Result<f64, Failure> {
    let batch = i64::try_from(batch)?;
    let image = (side / 16) * (side / 16);
    let unified = image + (i64::try_from(PROMPT_TOKENS)? + 31) / 32 * 32;
    let (mut total, mut parts) = (0.0, Vec::new());
    for (tokens, blocks) in [(unified, LAYERS), (image, REFINERS)] {
        for (outputs, inputs) in [(3 * DIM, DIM), (DIM, DIM), (2 * INNER, DIM), (DIM, INNER)] {
            let each = product(cuda, batch * tokens, outputs, inputs, precision)?;
            let tflops = 2e-9 * (batch * tokens) as f64 * outputs as f64 * inputs as f64 / each;
            parts.push(json!({"product": [batch * tokens, outputs, inputs], "ms": each, "tflops": tflops}));
            total += each * blocks * f64::from(STEPS);
        }
        let each = fastest_attention(cuda, batch, tokens)?;
        let tflops = 4e-9 * (batch * tokens * tokens * DIM) as f64 / each;
        parts.push(json!({"attention": [batch, tokens], "ms": each, "tflops": tflops}));
        total += each * blocks * f64::from(STEPS);
    }
    println!("{}", json!({"floor_ms": total, "side": side, "batch": batch, "parts": parts}));
    Ok(total)
}

fn product(cuda: Cuda, rows: i64, outputs: i64, inputs: i64, precision: Precision) -> Result<f64, Failure> {
    let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::BFloat16, GPU));
    let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
    if precision != Precision::Float8 {
        return milliseconds(cuda, || x.linear(&weight, None::<&Tensor>));
    }
    let (x, weight) = (x.to_kind(Kind::Float8e4m3fn), weight.to_kind(Kind::Float8e4m3fn).transpose(0, 1));
    let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, GPU));
    let (of_rows, of_outputs) = (ones([rows, 1]), ones([1, outputs]));
    let none = None::<&Tensor>;
    milliseconds(cuda, || x.internal_scaled_mm(&weight, &of_rows, &of_outputs, none, none, Kind::BFloat16, true))
}

fn fastest_attention(cuda: Cuda, batch: i64, tokens: i64) -> Result<f64, Failure> {
    let qkv = Tensor::randn([batch, tokens, 3, HEADS, DIM / HEADS], (Kind::BFloat16, GPU));
    let part = |index| qkv.select(2, index).transpose(1, 2);
    let (query, key, value) = (part(0), part(1), part(2));
    let mut fastest = f64::INFINITY;
    for backend in [AttentionBackend::Flash, AttentionBackend::Cudnn] {
        if attention(backend, &query, &key, &value, false, None).is_ok() {
            let run = || attention(backend, &query, &key, &value, false, None).unwrap_or_else(|_| Tensor::new());
            let each = milliseconds(cuda, run)?;
            println!("{}", json!({"attention": backend.to_string(), "batch": batch, "tokens": tokens, "ms": each}));
            fastest = fastest.min(each);
        }
    }
    Ok(fastest)
}

/// Mean over a quarter of a second of the same work, by events around it.
fn milliseconds(cuda: Cuda, run: impl Fn() -> Tensor) -> Result<f64, Failure> {
    let timed = |count: u32| -> Result<f64, Failure> {
        let (start, end) = (cuda.event()?, cuda.event()?);
        start.record()?;
        for _ in 0..count {
            let _output = run();
        }
        end.record()?;
        end.synchronize()?;
        Ok(start.seconds_until(&end)? * 1e3 / f64::from(count))
    };
    timed(3)?;
    let once = timed(5)?;
    timed(((250.0 / once) as u32).clamp(5, 2000))
}
