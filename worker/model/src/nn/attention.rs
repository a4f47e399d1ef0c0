//! Attention over sequences of different lengths that lie one after the other.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::kernels;
use crate::shim::attention::{AttentionBackend, attention};

/// Lengths of sequences that lie one after the other in the first dimension of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lengths(Vec<i64>);

impl Lengths {
    pub(crate) const fn new(lengths: Vec<i64>) -> Self {
        Self(lengths)
    }

    pub(crate) fn as_slice(&self) -> &[i64] {
        &self.0
    }

    /// The length of all of them, when it is the same.
    pub(crate) fn uniform(&self) -> Option<i64> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().all(|length| length == first).then_some(*first)
    }

    /// First row and length of each.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().scan(0, |start, &length| {
            let range = (*start, length);
            *start += length;
            Some(range)
        })
    }

    /// Batches that attention is computed in: first row, how many sequences, their length.
    fn batches(&self) -> Vec<(i64, i64, i64)> {
        match self.uniform() {
            Some(length) => vec![(0, i64::try_from(self.0.len()).unwrap_or(i64::MAX), length)],
            None => self.ranges().map(|(start, length)| (start, 1, length)).collect(),
        }
    }
}

/// Attention within each sequence; never with a mask, so that the fused kernels can be used.
///
/// # Shapes
/// `query` `[tokens, heads, head_dim]`, `key` and `value` the same or with fewer heads, each for as many neighbouring queries; to
/// `[tokens, heads * head_dim]`.
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor, lengths: &Lengths, causal: bool) -> Tensor {
    let (tokens, heads, head_dim) = query.size3().expect("query has three dimensions");
    let attend = |(start, count, length): (i64, i64, i64)| {
        let part = |x: &Tensor| x.narrow(0, start, count * length).view([count, length, -1, head_dim]).transpose(1, 2);
        let output = fused(&part(query), &part(key), &part(value), causal);
        output.transpose(1, 2).reshape([-1, heads * head_dim])
    };
    let batches = lengths.batches();
    if let [all] = batches.as_slice() {
        return attend(*all);
    }
    let output = Tensor::empty([tokens, heads * head_dim], (query.kind(), query.device()));
    for batch in batches {
        output.narrow(0, batch.0, batch.1 * batch.2).copy_(&attend(batch));
    }
    output
}

/// `[batch, heads, tokens, head_dim]`
fn fused(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Tensor {
    let shared = query.size()[1] / key.size()[1];
    let repeated =
        |x: &Tensor| if shared == 1 { x.shallow_clone() } else { x.repeat_interleave_self_int(shared, 1, None) };
    match backend(query, causal) {
        // On a CPU there is no other choice to make.
        None => {
            let (key, value) = (repeated(key), repeated(value));
            Tensor::scaled_dot_product_attention(query, &key, &value, None::<&Tensor>, 0.0, causal, None, false)
        }
        Some(AttentionBackend::Flash) => call(AttentionBackend::Flash, query, key, value, causal),
        Some(other) => call(other, query, &repeated(key), &repeated(value), causal),
    }
}

/// As operators of libtorch fail; the engine catches both.
#[allow(clippy::panic, reason = "see above")]
fn call(backend: AttentionBackend, query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Tensor {
    attention(backend, query, key, value, causal, None).unwrap_or_else(|error| panic!("{error}"))
}

/// Largest head that FlashAttention takes.
const FLASH_HEAD_DIM: i64 = 256;

/// What computes attention on a GPU; `None` on a CPU.
fn backend(query: &Tensor, causal: bool) -> Option<AttentionBackend> {
    let Device::Cuda(_) = query.device() else { return None };
    let short = matches!(query.kind(), Kind::BFloat16 | Kind::Half);
    Some(match Shape::of(query) {
        shape if !short || shape.head_dim > FLASH_HEAD_DIM => AttentionBackend::Efficient,
        shape if !causal && checked().get(&shape).copied().unwrap_or(false) => AttentionBackend::Cudnn,
        _ => AttentionBackend::Flash,
    })
}

/// What cuDNN plans for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    device: usize,
    batch: i64,
    heads: i64,
    length: i64,
    head_dim: i64,
}

impl Shape {
    fn of(query: &Tensor) -> Self {
        let (batch, heads, length, head_dim) = query.size4().expect("batch, heads, tokens, numbers");
        let device = if let Device::Cuda(index) = query.device() { index } else { 0 };
        Self { device, batch, heads, length, head_dim }
    }
}

/// Whether cuDNN's attention may be used, by shape. Kept for the life of the process, as cuDNN's plans are.
static CHECKED: LazyLock<Mutex<HashMap<Shape, bool>>> = LazyLock::new(Mutex::default);

fn checked() -> MutexGuard<'static, HashMap<Shape, bool>> {
    CHECKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Largest `‖cuDNN - flash‖ / ‖flash‖`: both round the output to 8 bits of mantissa.
const CUDNN_TOLERANCE: f64 = 1e-2;

/// Decides, once for each shape and before any step of a batch, whether cuDNN's attention is used for it: on Hopper, where it is
/// about twice as fast, if it gives what FlashAttention gives on random numbers. Versions before 9.15.1 are wrong for some lengths
/// (pytorch#169849).
pub(crate) fn prepare(device: Device, kind: Kind, lengths: &Lengths, heads: i64, head_dim: i64) {
    let Some(kernels) = kernels::of(device).filter(|_| kind == Kind::BFloat16 && head_dim <= FLASH_HEAD_DIM) else {
        return;
    };
    for (_, batch, length) in lengths.batches() {
        let qkv = || Tensor::randn([batch, length, 3, heads, head_dim], (kind, device));
        let index = if let Device::Cuda(index) = device { index } else { 0 };
        let shape = Shape { device: index, batch, heads, length, head_dim };
        if checked().contains_key(&shape) {
            continue;
        }
        let hopper = kernels.cuda().device().is_ok_and(|found| found.compute_capability == (9, 0));
        let right = hopper && {
            let qkv = qkv();
            let part = |index| qkv.select(2, index).transpose(1, 2);
            let by = |backend| attention(backend, &part(0), &part(1), &part(2), false, None).ok();
            match (by(AttentionBackend::Cudnn), by(AttentionBackend::Flash)) {
                (Some(cudnn), Some(flash)) => relative_difference(&cudnn, &flash) <= CUDNN_TOLERANCE,
                _ => false,
            }
        };
        checked().insert(shape, right);
    }
}

/// Each shape that `prepare` decided on, with what computes it.
#[must_use]
pub fn attention_choices() -> Vec<(String, AttentionBackend)> {
    let name = |shape: &Shape| {
        format!("{} x {} heads x {} tokens x {}", shape.batch, shape.heads, shape.length, shape.head_dim)
    };
    let backend = |cudnn| if cudnn { AttentionBackend::Cudnn } else { AttentionBackend::Flash };
    let mut choices: Vec<_> = checked().iter().map(|(shape, &cudnn)| (name(shape), backend(cudnn))).collect();
    choices.sort_by(|a, b| a.0.cmp(&b.0));
    choices
}

/// Not a number where either is.
fn relative_difference(found: &Tensor, expected: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    let (found, expected) = (found.to_kind(Kind::Float), expected.to_kind(Kind::Float));
    norm(&(&found - &expected)) / norm(&expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other() {
        let lengths = Lengths::new(vec![3, 1, 4]);
        assert_eq!(lengths.ranges().collect::<Vec<_>>(), [(0, 3), (3, 1), (4, 4)]);
        assert_eq!(lengths.uniform(), None);
        assert_eq!(lengths.batches(), [(0, 1, 3), (3, 1, 1), (4, 1, 4)]);
        assert_eq!(Lengths::new(vec![2, 2]).uniform(), Some(2));
        assert_eq!(Lengths::new(vec![2, 2]).batches(), [(0, 2, 2)]);
    }

    #[test]
    fn keys_are_shared_by_neighbouring_queries() {
        let options = (Kind::Float, Device::Cpu);
        let _generator = crate::noise::generator(1);
        let random = |heads| Tensor::randn([7, heads, 8], options);
        let (query, key, value) = (random(4), random(2), random(2));
        let lengths = Lengths::new(vec![3, 4]);
        let shared = attend(&query, &key, &value, &lengths, true);
        for head in 0..4 {
            let one = |x: &Tensor, head: i64| x.narrow(1, head, 1);
            let alone = attend(&one(&query, head), &one(&key, head / 2), &one(&value, head / 2), &lengths, true);
            assert!(relative_difference(&shared.narrow(1, head * 8, 8), &alone) < 1e-6, "head {head}");
        }
    }

    #[test]
    fn nothing_is_chosen_or_checked_on_a_cpu() {
        let x = Tensor::zeros([1, 2, 4, 8], (Kind::BFloat16, Device::Cpu));
        assert_eq!(backend(&x, false), None);
        prepare(Device::Cpu, Kind::BFloat16, &Lengths::new(vec![4]), 2, 8);
        assert!(!checked().contains_key(&Shape::of(&x)));
    }
}
