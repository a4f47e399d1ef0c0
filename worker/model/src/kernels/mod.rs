//! This project's CUDA kernels: compiled at the start of the process, launched on libtorch's stream.
//!
//! [`prepare_for`] compiles them for a GPU and [`of`] gives them to [`crate::nn::fused`], the one place that chooses between them and
//! libtorch's operators. They take bfloat16 only.
#![allow(unsafe_code, reason = "this is the boundary to CUDA's driver and compiler; what it exports is safe")]

pub(crate) mod check;
mod compile;
mod ffi;

use std::ffi::CStr;
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use crate::load::Precision;
use crate::nn::float8_missing;
use crate::shim::cuda::Cuda;
use crate::{LoadError, LoadOptions};
use ffi::{Function, Grid, Module, Nvrtc};

/// Why there are no kernels, or why one did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct KernelError(String);

impl From<libloading::Error> for KernelError {
    fn from(error: libloading::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::shim::ShimError> for KernelError {
    fn from(error: crate::shim::ShimError) -> Self {
        Self(error.to_string())
    }
}

/// GPUs that one process can have kernels on.
const MAX_GPUS: usize = 16;

static LOADED: [OnceLock<Result<Kernels, KernelError>>; MAX_GPUS] = [const { OnceLock::new() }; MAX_GPUS];

/// Compiles the kernels for GPU `index`, or takes them from the cache. Calling it again is harmless.
///
/// # Errors
/// When there is no compiler, the GPU is older than compute capability 8.0, or the driver refuses. libtorch's operators are used
/// then.
fn prepare(index: usize) -> Result<&'static Kernels, KernelError> {
    let slot = LOADED.get(index).ok_or_else(|| KernelError(format!("kernels are for the first {MAX_GPUS} GPUs")))?;
    slot.get_or_init(|| Kernels::load(index)).as_ref().map_err(Clone::clone)
}

/// Compiles the kernels for the device of `options`. Why there are none on a GPU.
///
/// # Errors
/// When the precision cannot do without them.
pub(crate) fn prepare_for(options: &LoadOptions) -> Result<Option<String>, LoadError> {
    let crate::Device::Cuda(index) = options.device else { return Ok(None) };
    let prepared = prepare(index);
    if options.precision == Precision::Float8 {
        let missing = match &prepared {
            Err(missing) => Some(format!("precision float8 needs this program's kernels: {missing}")),
            Ok(kernels) if !kernels.has_float8() => {
                Some("precision float8 needs a GPU of compute capability 8.9 or more; use bfloat16".to_owned())
            }
            Ok(_) => float8_missing(options.device.tch())
                .map(|missing| format!("no products of 8-bit numbers here, use bfloat16: {missing}")),
        };
        if let Some(detail) = missing {
            return Err(LoadError::Device { device: options.device.to_string(), detail });
        }
    }
    Ok(prepared.err().map(|error| error.to_string()))
}

/// The kernels of a GPU that [`prepare_for`] was called for.
pub(crate) fn of(device: Device) -> Option<&'static Kernels> {
    let Device::Cuda(index) = device else { return None };
    LOADED.get(index)?.get()?.as_ref().ok()
}

/// Each kernel that has both formats.
#[derive(Clone, Copy)]
struct Both {
    bfloat16: Function,
    float8: Option<Function>,
}

/// The kernels on one GPU.
pub(crate) struct Kernels {
    cuda: Cuda,
    module: Module,
    norm: Both,
    add_norm: Both,
    silu_mul: Both,
    quantize: Option<Function>,
    norm_rotate: Function,
    group_sums: Function,
    group_moments: Function,
    group_norm: Function,
}

/// Numbers in 16 bytes.
const PACK: i64 = 8;
/// Packs of a row that one thread holds, `PACKS` of kernels.cu.
const PACKS_EACH: i64 = 4;
const MAX_THREADS: i64 = 1024;

/// How pairs of numbers lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// Numbers 0 and 1, 2 and 3, ...
    Neighbours,
    /// Each number of the first half with the one in its place of the second.
    Halves,
}

/// Rows of 8 bits, with the scale of each.
pub(crate) struct Float8Rows {
    /// `[rows, width]`, e4m3.
    pub(crate) values: Tensor,
    /// `[rows, 1]`, float32.
    pub(crate) scales: Tensor,
}

impl Kernels {
    fn load(index: usize) -> Result<Self, KernelError> {
        // This library of libtorch links NVRTC and the driver.
        let libtorch = crate::libtorch::cpu_library().map_err(|error| KernelError(error.to_string()))?;
        let library = libtorch.with_file_name("libcaffe2_nvrtc.so");
        let cuda = Cuda::open(index)?;
        let capability = cuda.device()?.compute_capability;
        if capability < (8, 0) {
            let (major, minor) = capability;
            return Err(KernelError(format!("compute capability {major}.{minor} is older than 8.0")));
        }
        let cubin = compile::cubin(&Nvrtc::open(&library)?, capability, compile::cache_folder().as_deref())?;
        let module = Module::load(&library, index, &cubin)?;
        let float8 = |name: &CStr| if capability >= (8, 9) { module.function(name).map(Some) } else { Ok(None) };
        let both =
            |bfloat16, name| Ok::<_, KernelError>(Both { bfloat16: module.function(bfloat16)?, float8: float8(name)? });
        Ok(Self {
            norm: both(c"norm_bf16", c"norm_e4m3")?,
            add_norm: both(c"add_norm_bf16", c"add_norm_e4m3")?,
            silu_mul: both(c"silu_mul_bf16", c"silu_mul_e4m3")?,
            quantize: float8(c"quantize_e4m3")?,
            norm_rotate: module.function(c"norm_rotate_bf16")?,
            group_sums: module.function(c"group_sums_bf16")?,
            group_moments: module.function(c"group_moments")?,
            group_norm: module.function(c"group_norm_bf16")?,
            cuda,
            module,
        })
    }

    /// The GPU that they are on.
    pub(crate) const fn cuda(&self) -> Cuda {
        self.cuda
    }

    /// Whether this GPU has 8-bit numbers.
    pub(crate) const fn has_float8(&self) -> bool {
        self.quantize.is_some()
    }

    /// Whether the kernels over rows take rows of `width` numbers.
    pub(crate) const fn takes_rows(width: i64) -> bool {
        width > 0 && width % PACK == 0 && width / PACK <= PACKS_EACH * MAX_THREADS
    }

    /// Whether [`Self::norm_rotate`] takes heads of this many numbers.
    pub(crate) const fn takes_heads(head_dim: i64) -> bool {
        head_dim % (2 * PACK) == 0 && head_dim <= 32 * PACK && (head_dim / PACK).count_ones() == 1
    }

    /// Whether [`Self::group_norm`] takes this many channels in this many groups.
    pub(crate) const fn takes_groups(channels: i64, groups: i64) -> bool {
        channels > 0 && channels % PACK == 0 && channels / PACK <= GROUP_THREADS && groups > 0 && channels % groups == 0
    }

    /// `x / rms(x) * factor` over rows. `[rows, width]`, `factor` `[width]`.
    pub(crate) fn norm(&self, x: &Tensor, factor: &Tensor, eps: f64) -> Tensor {
        let out = x.empty_like();
        self.norm_into(self.norm.bfloat16, x, factor, eps, &out, None);
        out
    }

    /// The same in 8 bits.
    pub(crate) fn norm_float8(&self, x: &Tensor, factor: &Tensor, eps: f64) -> Float8Rows {
        let out = float8_rows(x.size()[0], x.size()[1], x.device());
        self.norm_into(needed(self.norm.float8), x, factor, eps, &out.values, Some(&out.scales));
        out
    }

    fn norm_into(
        &self,
        kernel: Function,
        x: &Tensor,
        factor: &Tensor,
        eps: f64,
        out: &Tensor,
        scales: Option<&Tensor>,
    ) {
        let rows = Rows::of(x);
        let arguments =
            [pointer(x), rows.vector(factor), output(out), scales.map_or(0, output), rows.packs(), float(eps)];
        self.launch(kernel, rows.grid(), arguments);
    }

    /// `x += update`, or with a factor `x += update / rms(update) * factor`.
    pub(crate) fn add(&self, x: &mut Tensor, update: &Tensor, factor: Option<&Tensor>, eps: f64) {
        self.add_norm_into(self.add_norm.bfloat16, x, update, factor, None, eps, None);
    }

    /// [`Self::add`], then [`Self::norm`] of the sum by `next`.
    pub(crate) fn add_norm(
        &self,
        x: &mut Tensor,
        update: &Tensor,
        factor: Option<&Tensor>,
        next: &Tensor,
        eps: f64,
    ) -> Tensor {
        let out = x.empty_like();
        self.add_norm_into(self.add_norm.bfloat16, x, update, factor, Some(next), eps, Some((&out, None)));
        out
    }

    /// The same with the norm in 8 bits.
    pub(crate) fn add_norm_float8(
        &self,
        x: &mut Tensor,
        update: &Tensor,
        factor: Option<&Tensor>,
        next: &Tensor,
        eps: f64,
    ) -> Float8Rows {
        let out = float8_rows(x.size()[0], x.size()[1], x.device());
        let into = Some((&out.values, Some(&out.scales)));
        self.add_norm_into(needed(self.add_norm.float8), x, update, factor, Some(next), eps, into);
        out
    }

    #[allow(clippy::too_many_arguments, reason = "those of the kernel")]
    fn add_norm_into(
        &self,
        kernel: Function,
        x: &Tensor,
        update: &Tensor,
        factor: Option<&Tensor>,
        next: Option<&Tensor>,
        eps: f64,
        out: Option<(&Tensor, Option<&Tensor>)>,
    ) {
        let rows = Rows::of(x);
        assert_eq!(x.size(), update.size(), "an update is of the shape of what it is added to");
        let arguments = [
            pointer(x),
            pointer(update),
            factor.map_or(0, |factor| rows.vector(factor)),
            next.map_or(0, |next| rows.vector(next)),
            out.map_or(0, |(out, _)| output(out)),
            out.and_then(|(_, scales)| scales).map_or(0, output),
            rows.packs(),
            float(eps),
        ];
        self.launch(kernel, rows.grid(), arguments);
    }

    /// `silu(gate) * up` of `[rows, gate and up]`.
    pub(crate) fn silu_mul(&self, gate_up: &Tensor) -> Tensor {
        let (rows, width) = halved(gate_up);
        let out = Tensor::empty([rows, width], (gate_up.kind(), gate_up.device()));
        self.silu_mul_into(self.silu_mul.bfloat16, gate_up, &out, None);
        out
    }

    /// The same in 8 bits.
    pub(crate) fn silu_mul_float8(&self, gate_up: &Tensor) -> Float8Rows {
        let (rows, width) = halved(gate_up);
        let out = float8_rows(rows, width, gate_up.device());
        self.silu_mul_into(needed(self.silu_mul.float8), gate_up, &out.values, Some(&out.scales));
        out
    }

    fn silu_mul_into(&self, kernel: Function, gate_up: &Tensor, out: &Tensor, scales: Option<&Tensor>) {
        let (rows, width) = halved(gate_up);
        let rows = Rows { rows, width };
        self.launch(kernel, rows.grid(), [pointer(gate_up), output(out), scales.map_or(0, output), rows.packs()]);
    }

    /// Rows in 8 bits.
    pub(crate) fn quantize(&self, x: &Tensor) -> Float8Rows {
        let rows = Rows::of(x);
        let out = float8_rows(rows.rows, rows.width, x.device());
        let arguments = [pointer(x), output(&out.values), output(&out.scales), rows.packs()];
        self.launch(needed(self.quantize), rows.grid(), arguments);
        out
    }

    /// In place: `rotate(head / rms(head) * weight)` for the first `queries + keys` heads of each token.
    ///
    /// # Shapes
    /// `qkv` `[tokens, heads, head_dim]`; `weights` `[2, head_dim]`, of queries and of keys; `rope` complex
    /// `[tokens, ..., head_dim / 2]`.
    pub(crate) fn norm_rotate(
        &self,
        qkv: &mut Tensor,
        weights: &Tensor,
        rope: &Tensor,
        (queries, keys): (i64, i64),
        pairs: Pairs,
        eps: f64,
    ) {
        let (tokens, heads, head_dim) = qkv.size3().expect("tokens, heads, numbers");
        assert!(
            Self::takes_heads(head_dim) && queries + keys <= heads,
            "{queries} and {keys} of {heads} heads of {head_dim}"
        );
        assert_eq!(
            weights.numel(),
            usize::try_from(2 * head_dim).unwrap_or(0),
            "a weight for queries and one for keys"
        );
        let turns = usize::try_from(tokens * head_dim / 2).unwrap_or(0);
        assert!(
            rope.numel() == turns && rope.kind() == Kind::ComplexFloat && rope.is_contiguous(),
            "a turn for each pair"
        );
        let lanes = head_dim / PACK;
        let arguments = [
            pointer(qkv),
            pointer(weights),
            rope.data_ptr() as u64,
            int(queries),
            int(keys),
            int(heads * lanes),
            int(lanes),
            int(i64::from(pairs == Pairs::Halves)),
            float(eps),
        ];
        self.launch(self.norm_rotate, Grid { blocks: (unsigned(tokens), 1), threads: 256, shared_bytes: 0 }, arguments);
    }

    /// Group norm, through silu where `activate`. `[B, C, H, W]` with the channels of a pixel side by side, to the same.
    pub(crate) fn group_norm(
        &self,
        x: &Tensor,
        (weight, bias): (&Tensor, &Tensor),
        groups: i64,
        eps: f64,
        activate: bool,
    ) -> Tensor {
        let (images, channels, height, width) = x.size4().expect("images");
        assert!(Self::takes_groups(channels, groups), "{channels} channels in {groups} groups");
        let x = x.permute([0, 2, 3, 1]);
        let (pixels, packs) = (height * width, channels / PACK);
        let rows = Rows { rows: 1, width: channels };
        let threads = GROUP_THREADS / packs * packs;
        let each = (pixels / GROUP_BLOCKS).clamp(threads / packs * 4, 4096);
        let parts = (pixels + each - 1) / each;
        let options = (Kind::Float, x.device());
        let sums = Tensor::empty([images, parts, groups, 2], options);
        let moments = Tensor::empty([images, groups, 2], options);
        let out = x.empty_like();
        let (pixels_arg, each_arg, packs_arg, groups_arg) = (int(pixels), int(each), int(packs), int(groups));
        let grid = Grid { blocks: (unsigned(parts), unsigned(images)), threads: unsigned(threads), shared_bytes: 0 };
        let shared_bytes = unsigned(threads * PACK * 8);
        let arguments = [pointer(&x), sums.data_ptr() as u64, pixels_arg, each_arg, packs_arg, groups_arg];
        self.launch(self.group_sums, Grid { shared_bytes, ..grid }, arguments);
        let count = (pixels * channels / groups) as f64;
        let moments_grid = Grid { blocks: (unsigned(groups), unsigned(images)), threads: 32, shared_bytes: 0 };
        let sums = sums.data_ptr() as u64;
        let arguments = [sums, moments.data_ptr() as u64, int(parts), groups_arg, count.to_bits(), float(eps)];
        self.launch(self.group_moments, moments_grid, arguments);
        let arguments = [
            pointer(&x),
            moments.data_ptr() as u64,
            rows.vector(weight),
            rows.vector(bias),
            output(&out),
            pixels_arg,
            each_arg,
            packs_arg,
            groups_arg,
            int(i64::from(activate)),
        ];
        self.launch(self.group_norm, grid, arguments);
        out.permute([0, 3, 1, 2])
    }

    fn launch<const N: usize>(&self, kernel: Function, grid: Grid, mut arguments: [u64; N]) {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return;
        }
        let launched = self.cuda.current_stream().map_err(KernelError::from).and_then(|stream| {
            // SAFETY: each caller gives its kernel's arguments in order; tensors were found to be of the kernel's type and shape,
            // and libtorch gives their memory to later work of the same stream only.
            unsafe { self.module.launch(kernel, grid, stream.0, &mut arguments) }
        });
        // As operators of libtorch fail; the engine catches both.
        #[allow(clippy::panic, reason = "see above")]
        if let Err(error) = launched {
            panic!("{error}");
        }
    }
}

/// Threads of a block over pixels.
const GROUP_THREADS: i64 = 512;
/// Blocks that keep a large GPU busy.
const GROUP_BLOCKS: i64 = 1024;

/// Rows that a block each works on.
struct Rows {
    rows: i64,
    width: i64,
}

impl Rows {
    fn of(x: &Tensor) -> Self {
        let (rows, width) = x.size2().expect("rows of numbers");
        Self { rows, width }
    }

    /// A thread for every 4 packs, in whole warps.
    fn grid(&self) -> Grid {
        assert!(Kernels::takes_rows(self.width), "rows of {} numbers", self.width);
        let threads = (self.width / PACK + PACKS_EACH - 1) / PACKS_EACH;
        Grid { blocks: (unsigned(self.rows), 1), threads: unsigned((threads + 31) / 32 * 32), shared_bytes: 0 }
    }

    fn packs(&self) -> u64 {
        int(self.width / PACK)
    }

    /// Of a tensor with one number for each of a row.
    fn vector(&self, x: &Tensor) -> u64 {
        assert_eq!(x.size(), [self.width], "a number for each of a row");
        pointer(x)
    }
}

fn halved(gate_up: &Tensor) -> (i64, i64) {
    let (rows, width) = gate_up.size2().expect("rows of numbers");
    assert!(width % 2 == 0, "two halves");
    (rows, width / 2)
}

fn float8_rows(rows: i64, width: i64, device: Device) -> Float8Rows {
    Float8Rows {
        values: Tensor::empty([rows, width], (Kind::Float8e4m3fn, device)),
        scales: Tensor::empty([rows, 1], (Kind::Float, device)),
    }
}

fn needed(function: Option<Function>) -> Function {
    function.expect("8-bit precision was refused on a GPU without it")
}

/// Of bfloat16 that lies densely, from an address that 16 bytes can be read at.
fn pointer(x: &Tensor) -> u64 {
    assert!(x.kind() == Kind::BFloat16 && x.is_contiguous(), "{:?} {:?} {:?}", x.kind(), x.size(), x.stride());
    output(x)
}

fn output(x: &Tensor) -> u64 {
    x.data_ptr() as u64
}

fn int(number: i64) -> u64 {
    u64::from(i32::try_from(number).expect("sizes fit in 32 bits").cast_unsigned())
}

#[allow(clippy::cast_possible_truncation, reason = "the kernels compute in float32")]
fn float(number: f64) -> u64 {
    u64::from((number as f32).to_bits())
}

fn unsigned(number: i64) -> u32 {
    u32::try_from(number).expect("sizes fit in 32 bits")
}
