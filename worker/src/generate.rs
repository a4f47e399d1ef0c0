//! `generate`: the pictures of one request, without a server.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    time::Instant,
};

use imagegen_core::{
    engine::{Engine, EngineError, ModelInfo},
    request::{self, RawRequest, Request, RequestError},
    rules::{ModelLimits, RuleSettings, Rules, RulesError},
    text,
};

use crate::{
    cli::{AllocatorArgs, EngineChoice, GenerateArgs},
    device::EngineSettings,
    encode::encode,
    engine_thread::LoadProgress,
    output::{self, Output, OutputError},
    run::check_engine,
    scripted::{Script, ScriptedDevice, ScriptedEngine},
};

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// The request.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The model.
    #[error("the model could not be loaded: {0}")]
    Load(String),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The file.
    #[error("{0}")]
    Write(String),
}

impl GenerateError {
    /// The exit code of the process, as `--help` tells it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Write(_) => 1,
            Self::Usage(_) | Self::Request(_) => 2,
            Self::Load(_) => 3,
            Self::Engine(_) => 4,
        }
    }
}

impl From<RulesError> for GenerateError {
    fn from(error: RulesError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Makes the pictures and returns their files.
///
/// # Errors
/// See [`GenerateError`]; nothing is written then, except whole pictures that came before a failure.
pub fn generate(args: GenerateArgs) -> Result<Vec<PathBuf>, GenerateError> {
    let GenerateArgs {
        model,
        prompt,
        output,
        negative_prompt,
        width,
        height,
        steps,
        guidance_scale,
        seed,
        count,
        scheduler,
        precision,
        vae_tiling,
        device,
        threads,
        engine,
        random_weights,
        development,
    } = args;
    let output = Output::new(&output).map_err(|error| GenerateError::Usage(error.to_string()))?;
    let raw = RawRequest {
        prompt: decode("--prompt", &prompt)?,
        negative_prompt: decode("--negative-prompt", &negative_prompt.unwrap_or_default())?,
        width,
        height: height.or(width),
        steps: Some(steps),
        guidance_scale: Some(guidance_scale),
        seed,
        count: Some(count),
        format: Ok(Some(output.format)),
        scheduler: Ok(Some(scheduler)),
        ..RawRequest::default()
    };
    // What is wrong with the words needs no model, which may take minutes to load.
    text::check_prompt(&raw.prompt).map_err(|error| GenerateError::Usage(format!("--prompt {error}")))?;
    let negative = text::check_characters(&raw.negative_prompt);
    negative.map_err(|error| GenerateError::Usage(format!("--negative-prompt {error}")))?;
    let engine = engine.unwrap_or(EngineChoice::Torch);
    check_engine(&engine, random_weights, development).map_err(GenerateError::Usage)?;
    let variable = std::env::var(imagegen_core::allocator::VARIABLE).ok();
    let allocator = AllocatorArgs::default().asked(device, variable.as_deref()).map_err(GenerateError::Usage)?;
    let settings = EngineSettings { precision, vae_tiling, device, threads, allocator, random_weights };
    let mut console = Console::new();
    match engine {
        EngineChoice::Scripted(file) => {
            let script = Script::read(&file).map_err(|error| GenerateError::Usage(error.to_string()))?;
            let device = ScriptedDevice::new(script.memory.clone());
            let loaded = ScriptedEngine::load(script, device, &mut |progress| console.loading(progress));
            let mut engine = loaded.map_err(|error| GenerateError::Load(error.to_string()))?;
            engine.warm();
            make(&mut engine, raw, &output, &mut console)
        }
        #[cfg(feature = "torch")]
        EngineChoice::Torch => {
            let options = crate::torch::options(model, settings).map_err(GenerateError::Usage)?;
            let loaded = crate::torch::load(&options, &mut |progress| console.loading(progress));
            let mut engine = loaded.map_err(|error| GenerateError::Load(error.to_string()))?;
            make(&mut engine, raw, &output, &mut console)
        }
        #[cfg(not(feature = "torch"))]
        EngineChoice::Torch => {
            let EngineSettings { precision, vae_tiling, device, threads, allocator, random_weights } = settings;
            let unused = (model, precision, vae_tiling, device, threads, allocator, random_weights);
            Err(GenerateError::Usage(format!("this binary was built without libtorch and cannot use {unused:?}")))
        }
    }
}

fn decode(flag: &str, text: &OsStr) -> Result<String, GenerateError> {
    let decoded = text::decode(text.as_bytes()).map(str::to_owned);
    decoded.map_err(|error| GenerateError::Usage(format!("{flag} {error}")))
}

fn make<E: Engine>(
    engine: &mut E,
    raw: RawRequest,
    output: &Output,
    console: &mut Console,
) -> Result<Vec<PathBuf>, GenerateError> {
    let rules = Rules::new(RuleSettings::default(), ModelLimits::from(engine.model()))?;
    let request = request::parse(raw, &rules, rand::random(), &*engine.count_tokens())?;
    console.loaded(engine.model(), &request);
    let mut files = Vec::new();
    for (index, spec) in request.specs().into_iter().enumerate() {
        let mut batch = engine.begin(std::slice::from_ref(&spec))?;
        for step in 1..=request.steps {
            engine.step(&mut batch)?;
            console.step(index, &request, step);
        }
        let image = engine.decode(&mut batch, 0)?;
        drop(batch);
        let path = output.path(index, request.count as usize);
        let bytes = encode(&image, output.format).map_err(|error| GenerateError::Write(error.to_string()))?;
        output::write(&path, &bytes).map_err(|error: OutputError| GenerateError::Write(error.to_string()))?;
        console.line(&format!("{}: {}, seed {}", path.display(), spec.size, spec.seed));
        files.push(path);
    }
    Ok(files)
}

/// Progress on standard error: one line that changes on a terminal, only the milestones elsewhere.
pub(crate) struct Console {
    is_terminal: bool,
    start: Instant,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), start: Instant::now() }
    }

    /// Bytes that a copy has read so far.
    #[cfg(feature = "torch")]
    pub(crate) fn copying(&mut self, read_bytes: u64, total_bytes: u64) {
        self.status(&format!("Copying: {} of {} MiB", read_bytes >> 20, total_bytes >> 20));
    }

    fn loading(&mut self, LoadProgress { loaded_bytes, total_bytes }: LoadProgress) {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        self.status(&format!("Loading: {:.0} of {:.0} MiB", mebibytes(loaded_bytes), mebibytes(total_bytes)));
    }

    fn loaded(&mut self, model: &ModelInfo, request: &Request) {
        let ModelInfo { name, precision, device, .. } = model;
        let seconds = self.start.elapsed().as_secs_f64();
        self.line(&format!("Loaded {name} ({precision}, {device}) in {seconds:.1} s"));
        for warning in &request.warnings {
            self.line(&format!("Note: {warning}"));
        }
    }

    fn step(&mut self, index: usize, request: &Request, step: u32) {
        let image =
            if request.count == 1 { String::new() } else { format!("Image {} of {}: ", index + 1, request.count) };
        self.status(&format!("{image}step {step} of {}", request.steps));
    }

    /// Replaces the line that changes; nothing where there is none.
    fn status(&mut self, text: &str) {
        if self.is_terminal {
            write(&format!("\r\x1b[K{text}"));
        }
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        write(&format!("{clear}{text}\n"));
    }
}

fn write(text: &str) {
    // Progress that nobody can read is no reason to stop.
    let _ = io::stderr().write_all(text.as_bytes());
}
