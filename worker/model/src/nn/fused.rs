//! What lies between the products: norms, rotations, gates, residual sums.
//!
//! Each function is one pass of a kernel of [`crate::kernels`] where there is one for its input, else the same numbers by
//! libtorch's operators; this is the only place that chooses. Both compute in float32 and round once, at the end.

use tch::{Kind, Tensor};

use super::float8;
use super::norm::{inverse_rms, rms_norm};
use crate::kernels::{self, Float8Rows, Kernels, Pairs};

/// What a product takes as its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Plain,
    /// 8 bits with a scale for each row.
    Float8,
}

/// Input of a product, `[rows, width]`.
pub(crate) enum Operand {
    Plain(Tensor),
    Float8(Float8Rows),
}

/// The kernels that can work on rows of `width` numbers of `x`.
fn row_kernels(x: &Tensor, width: i64) -> Option<&'static Kernels> {
    kernels::of(x.device()).filter(|_| x.kind() == Kind::BFloat16 && Kernels::takes_rows(width))
}

/// In `form`, from float32 or what `x` is in; rounded to `kind` where it stays plain.
fn operand(x: &Tensor, kind: Kind, form: Form) -> Operand {
    match form {
        Form::Plain => Operand::Plain(x.to_kind(kind)),
        Form::Float8 => Operand::Float8(float8::quantize(x)),
    }
}

/// `x` in the form that a product wants.
pub(crate) fn in_form(x: Tensor, form: Form) -> Operand {
    match (form, row_kernels(&x, width(&x))) {
        (Form::Plain, _) => Operand::Plain(x),
        (Form::Float8, Some(kernels)) => Operand::Float8(kernels.quantize(&x)),
        (Form::Float8, None) => operand(&x, x.kind(), form),
    }
}

/// `x / rms(x) * factor`
///
/// # Shapes
/// `x` `[rows, width]`, `factor` `[width]`.
pub(crate) fn norm(x: &Tensor, factor: &Tensor, eps: f64, form: Form) -> Operand {
    match (form, row_kernels(x, width(x))) {
        (Form::Plain, Some(kernels)) => Operand::Plain(kernels.norm(x, factor, eps)),
        (Form::Float8, Some(kernels)) => Operand::Float8(kernels.norm_float8(x, factor, eps)),
        (Form::Plain, None) => Operand::Plain(rms_norm(x, factor, eps)),
        (Form::Float8, None) => operand(&(x * inverse_rms(x, eps) * factor), x.kind(), form),
    }
}

/// `x += update`, or with a factor `x += update / rms(update) * factor`.
///
/// # Shapes
/// `x` and `update` `[rows, width]`, `factor` `[width]`.
pub(crate) fn add(x: &mut Tensor, update: &Tensor, factor: Option<&Tensor>, eps: f64) {
    match (row_kernels(x, width(x)), factor) {
        (Some(kernels), _) => kernels.add(x, update, factor, eps),
        (None, None) => *x += update,
        (None, Some(factor)) => {
            let mut normed = update * inverse_rms(update, eps);
            normed *= factor;
            *x += normed;
        }
    }
}

/// [`add`], then [`norm`] of the sum by `next`.
pub(crate) fn add_norm(
    x: &mut Tensor,
    update: &Tensor,
    factor: Option<&Tensor>,
    next: &Tensor,
    eps: f64,
    form: Form,
) -> Operand {
    match (form, row_kernels(x, width(x))) {
        (Form::Plain, Some(kernels)) => Operand::Plain(kernels.add_norm(x, update, factor, next, eps)),
        (Form::Float8, Some(kernels)) => Operand::Float8(kernels.add_norm_float8(x, update, factor, next, eps)),
        (_, None) => {
            add(x, update, factor, eps);
            norm(x, next, eps, form)
        }
    }
}

/// `silu(gate) * up`
///
/// # Shapes
/// `gate_up` `[rows, 2 * width]`: gate, then up.
pub(crate) fn silu_mul(gate_up: &Tensor, form: Form) -> Operand {
    match (form, row_kernels(gate_up, width(gate_up) / 2)) {
        (Form::Plain, Some(kernels)) => Operand::Plain(kernels.silu_mul(gate_up)),
        (Form::Float8, Some(kernels)) => Operand::Float8(kernels.silu_mul_float8(gate_up)),
        (_, None) => {
            let gated = gate_up.chunk(2, -1);
            let mut inner = gated[0].to_kind(Kind::Float).silu();
            inner *= &gated[1];
            operand(&inner, gate_up.kind(), form)
        }
    }
}

/// Queries, keys and values of `qkv`, the first two normed and rotated: `rotate(head / rms(head) * weight)`. The memory of
/// `qkv` may be written to.
///
/// # Shapes
/// `qkv` `[tokens, heads, head_dim]`: `queries` heads, `keys` heads, and as many values; `weights` `[2, head_dim]`, of queries
/// and of keys; `rope` complex `[tokens, 1, head_dim / 2]`.
pub(crate) fn norm_rotate(
    mut qkv: Tensor,
    weights: &Tensor,
    rope: &Tensor,
    (queries, keys): (i64, i64),
    pairs: Pairs,
    eps: f64,
) -> [Tensor; 3] {
    let value = qkv.narrow(1, queries + keys, keys);
    let head_dim = width(&qkv);
    let suits = qkv.kind() == Kind::BFloat16 && Kernels::takes_heads(head_dim);
    if let Some(kernels) = kernels::of(qkv.device()).filter(|_| suits) {
        kernels.norm_rotate(&mut qkv, weights, rope, (queries, keys), pairs, eps);
        return [qkv.narrow(1, 0, queries), qkv.narrow(1, queries, keys), value];
    }
    let heads = |first, count, weight: i64| {
        let heads = qkv.narrow(1, first, count);
        let mut normed = &heads * inverse_rms(&heads, eps);
        normed *= weights.select(0, weight);
        rotate(&normed, rope, pairs).to_kind(qkv.kind())
    };
    [heads(0, queries, 0), heads(queries, keys, 1), value]
}

/// Turns pairs of the last dimension of `x`, in float32, by the complex numbers of `rope`.
fn rotate(x: &Tensor, rope: &Tensor, pairs: Pairs) -> Tensor {
    let shape = x.size();
    let mut split = shape[..shape.len() - 1].to_vec();
    match pairs {
        Pairs::Neighbours => {
            split.extend([width(x) / 2, 2]);
            let mut turned = x.reshape(split).view_as_complex();
            turned *= rope;
            turned.view_as_real().view(shape.as_slice())
        }
        Pairs::Halves => {
            let (halves, turn) = (x.chunk(2, -1), rope.view_as_real());
            let (cosine, sine) = (turn.select(-1, 0), turn.select(-1, 1));
            let first = &halves[0] * &cosine - &halves[1] * &sine;
            let second = &halves[1] * &cosine + &halves[0] * &sine;
            Tensor::cat(&[first, second], -1)
        }
    }
}

/// Group norm, through silu where `activate`.
///
/// # Shapes
/// `[B, C, H, W]` with the channels of a pixel side by side in memory, to the same.
pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: i64, eps: f64, activate: bool) -> Tensor {
    let channels_last = x.permute([0, 2, 3, 1]).is_contiguous();
    let suits = x.kind() == Kind::BFloat16 && channels_last && Kernels::takes_groups(x.size()[1], groups);
    if let Some(kernels) = kernels::of(x.device()).filter(|_| suits) {
        return kernels.group_norm(x, (weight, bias), groups, eps, activate);
    }
    let float = |x: &Tensor| x.to_kind(Kind::Float);
    let mut normed = float(x).group_norm(groups, Some(float(weight)), Some(float(bias)), eps, true);
    if activate {
        normed = normed.silu_();
    }
    normed.to_kind(x.kind())
}

fn width(x: &Tensor) -> i64 {
    x.size().last().copied().unwrap_or(0)
}
