//! Warm-up: runs every shape that may be asked for, twice, largest first. The first pass tunes and lets the pool grow to
//! its final size; the second measures what each shape takes. Measured costs are kept on disk and used again where
//! everything that they depend on is the same.

use imagegen_core::{
    bucket::Buckets,
    engine::{CountTokens, Engine, EngineError, Stage},
    memory::{DeviceMemory, own_overhead_bytes},
    spec::{Guidance, ImageSpec, SchedulerKind},
    table::{Cost, Shape, Table, TableKey, shapes},
};
use tracing::{info, warn};

use super::{EngineEnd, LOAD_SHARE, WarmUp, timed, world::World};
use crate::table_cache;

/// Steps of a measurement: an engine may return from a step before the device is done, so the second one is timed too.
const STEPS: u32 = 2;

impl<E: Engine> World<'_, E> {
    /// Fills the table, and takes what only a warm worker can tell: its weights and its overhead.
    pub(super) fn warm_up(
        &mut self,
        warm_up: &WarmUp,
        buckets: &Buckets,
        before: DeviceMemory,
    ) -> Result<(), EngineEnd> {
        self.measure();
        let shapes = shapes(buckets, self.engine.model().max_prompt_tokens);
        let key = self.key(&warm_up.key, buckets);
        match warm_up.cache.as_deref().and_then(|folder| table_cache::load(folder, &key)) {
            Some(table) => {
                info!(shapes = shapes.len(), "The costs of batches are known from an earlier start.");
                self.table = table;
                // The pool grows to its final size before anyone waits for it.
                if let Some(largest) = shapes.first() {
                    self.cost_or_none(*largest)?;
                }
            }
            None => {
                self.table = self.measure_all(&shapes)?;
                if let Some(folder) = &warm_up.cache {
                    table_cache::store(folder, key, &self.table);
                }
            }
        }
        self.engine.trim();
        let (stats, device) = (self.engine.allocator(), (self.device)());
        if stats.allocated_bytes > 0 {
            self.memory.weight_bytes = stats.allocated_bytes;
        }
        if device.is_known() {
            self.memory.own_overhead_bytes =
                own_overhead_bytes(device.used_bytes, before.used_bytes, stats.reserved_bytes);
        }
        Ok(())
    }

    fn measure_all(&mut self, shapes: &[Shape]) -> Result<Table, EngineEnd> {
        let mut table = Table::default();
        let all = (2 * shapes.len()).max(1) as f64;
        for (number, &shape) in shapes.iter().enumerate() {
            self.cost_or_none(shape)?;
            self.dispatcher.loading_ratio(LOAD_SHARE + (1.0 - LOAD_SHARE) * number as f64 / all);
        }
        for (number, &shape) in shapes.iter().enumerate() {
            if let Some(cost) = self.cost_or_none(shape)? {
                table.insert(shape, cost);
            } else {
                warn!(size = %shape.size, batch = shape.batch, guided = shape.is_guided, "Does not fit this device.");
            }
            let done = (shapes.len() + number) as f64 / all;
            self.dispatcher.loading_ratio(LOAD_SHARE + (1.0 - LOAD_SHARE) * done);
        }
        if table.is_empty() {
            let sentence = "not one size class fits the memory that this worker may use: free the device, raise \
                            --memory-limit-ratio, or add a smaller class to --buckets";
            return Err(EngineEnd::Load(sentence.into()));
        }
        info!(shapes = table.iter().count(), "The costs of batches are measured.");
        Ok(table)
    }

    fn cost_or_none(&mut self, shape: Shape) -> Result<Option<Cost>, EngineEnd> {
        match self.cost(shape) {
            Ok(cost) => Ok(Some(cost)),
            Err(EngineError::OutOfMemory { .. }) => Ok(None),
            Err(error @ EngineError::Fatal { .. }) => Err(EngineEnd::Fatal(error)),
            Err(error @ EngineError::Failed { .. }) => Err(EngineEnd::Load(error.to_string())),
        }
    }

    /// What a batch of this shape takes, from an emptied pool.
    pub(super) fn cost(&mut self, shape: Shape) -> Result<Cost, EngineError> {
        self.engine.trim();
        let idle = self.engine.allocator();
        self.engine.reset_peaks();
        let specs = specs(shape, &self.engine.count_tokens(), self.engine.model().max_prompt_tokens);
        let mut cost = Cost::default();
        let (batch, seconds) = timed(Stage::TextEncoder, || self.engine.begin(&specs));
        let mut batch = batch?;
        cost.text_seconds = seconds;
        for _ in 0..STEPS {
            let (stepped, seconds) = timed(Stage::Transformer, || self.engine.step(&mut batch));
            stepped?;
            cost.step_seconds = cost.step_seconds.max(seconds);
            self.dispatcher.beat();
        }
        let (decoded, seconds) = timed(Stage::Vae, || self.engine.decode(&mut batch, 0));
        decoded?;
        cost.decode_seconds = seconds;
        self.dispatcher.beat();
        let peak = self.engine.allocator();
        cost.peak_allocated_bytes = peak.peak_allocated_bytes.saturating_sub(idle.allocated_bytes);
        cost.peak_reserved_bytes = peak.peak_reserved_bytes.saturating_sub(idle.reserved_bytes);
        Ok(cost)
    }

    fn key(&self, given: &TableKey, buckets: &Buckets) -> TableKey {
        let model = self.engine.model();
        let mut key = given.clone();
        for (name, value) in [
            ("model", model.name.clone()),
            ("parameters", model.parameters.to_string()),
            ("weight_bytes", model.weight_bytes.to_string()),
            ("precision", model.precision.clone()),
            ("device", model.device.clone()),
            ("libtorch", model.libtorch_version.clone()),
            ("max_prompt_tokens", model.max_prompt_tokens.to_string()),
            ("buckets", buckets.to_string()),
            ("budget_bytes", (self.memory.budget_bytes() >> 28).to_string()),
            ("build", env!("CARGO_PKG_VERSION").into()),
        ] {
            key.0.insert(name.into(), value);
        }
        key
    }
}

fn specs(shape: Shape, count_tokens: &CountTokens, max_prompt_tokens: u32) -> Vec<ImageSpec> {
    let prompt = prompt_of(shape.caption_tokens, count_tokens, max_prompt_tokens);
    let guidance = if shape.is_guided { Guidance { scale: 5.0, ..Guidance::OFF } } else { Guidance::OFF };
    let spec = |image: u32| ImageSpec {
        prompt: prompt.clone(),
        negative_prompt: if shape.is_guided { prompt.clone() } else { String::new() },
        latent_size: shape.size,
        size: shape.size,
        steps: STEPS,
        guidance,
        seed: image,
        scheduler: SchedulerKind::default(),
    };
    (0..shape.batch).map(spec).collect()
}

/// A prompt of so many tokens with the chat template around it, or one fewer.
fn prompt_of(tokens: u32, count_tokens: &CountTokens, max_prompt_tokens: u32) -> String {
    let count = |words: usize| count_tokens("apple ".repeat(words).trim_end()).unwrap_or(words);
    let template = count(1).saturating_sub(1);
    let mut words = (tokens.min(max_prompt_tokens) as usize).saturating_sub(template).max(1);
    while words > 1 && count(words) > tokens as usize {
        words -= words.div_ceil(8).min(words - 1);
    }
    "apple ".repeat(words).trim_end().to_owned()
}
