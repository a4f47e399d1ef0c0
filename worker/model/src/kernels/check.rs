//! Each kernel against float64 on fresh random numbers, on the GPU at hand.

use tch::{Device, Kind, Tensor};

use super::{Float8Rows, Pairs};
use crate::nn::fused::{self, Form, Operand};

/// How far one kernel is from float64.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelCheck {
    /// Kernel and shape.
    pub name: String,
    /// `‖found - expected‖ / ‖expected‖`; not a number where one was found.
    pub error: f64,
    /// The most that rounding explains.
    pub limit: f64,
}

impl KernelCheck {
    /// Whether the kernel is right.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.error <= self.limit
    }
}

/// One rounding to 8 bits of mantissa: at most 2^-8 of each number, and over many numbers less than half of that.
const BFLOAT16: f64 = 2.0e-3;
/// One rounding to 4 bits of mantissa, likewise.
const FLOAT8: f64 = 3.2e-2;
/// So many numbers that their errors are near the average.
const MANY: usize = 10_000;
const EPS: f64 = 1e-5;

/// Runs every kernel at the widths and lengths of the full-size model and at odd ones. On a device without kernels it checks what
/// stands in for them.
#[must_use]
pub fn check_kernels(device: crate::Device, float8: bool) -> Vec<KernelCheck> {
    let _no_grad = tch::no_grad_guard();
    let run = Run { device: device.tch(), checks: std::cell::RefCell::default() };
    // A processor is slow at the sizes of the model, and its code does not depend on them.
    let at_most = |size: i64| if device == crate::Device::Cpu { size.min(64) } else { size };
    let forms = if float8 { vec![Form::Plain, Form::Float8] } else { vec![Form::Plain] };
    for form in forms {
        for (rows, width) in [(4224, 3840), (120, 2560), (1, 128), (7, 9728), (3, 32768)] {
            run.rows(at_most(rows), width, form);
        }
        for (rows, width) in [(1152, 10240), (120, 9728), (5, 72)] {
            run.gate(at_most(rows), width, form);
        }
    }
    for (tokens, heads, shape, pairs) in [
        (4224, (30, 30), 128, Pairs::Neighbours),
        (33, (4, 4), 64, Pairs::Neighbours),
        (120, (32, 8), 128, Pairs::Halves),
        (5, (4, 2), 64, Pairs::Halves),
        (3, (1, 1), 16, Pairs::Halves),
    ] {
        run.heads(at_most(tokens), heads, shape, pairs);
    }
    for (batch, channels, height, width) in [(1, 512, 64, 64), (2, 256, 96, 56), (1, 128, 512, 512), (1, 64, 5, 7)] {
        for activate in [false, true] {
            run.groups([batch, channels, at_most(height), at_most(width)], activate);
        }
    }
    run.checks.into_inner()
}

struct Run {
    device: Device,
    checks: std::cell::RefCell<Vec<KernelCheck>>,
}

fn double(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

fn normed(x: &Tensor) -> Tensor {
    x / (x.square().mean_dim([-1].as_slice(), true, Kind::Double) + EPS).sqrt()
}

impl Run {
    fn random(&self, shape: &[i64]) -> Tensor {
        let scale = Tensor::rand([1], (Kind::Float, self.device)) * 3.0 + 0.5;
        (Tensor::randn(shape, (Kind::Float, self.device)) * scale).to_kind(Kind::BFloat16)
    }

    fn compare(&self, name: String, found: &Tensor, expected: &Tensor, limit: f64) {
        let norm = |x: &Tensor| x.norm().double_value(&[]);
        let error = norm(&(double(found) - expected)) / norm(expected);
        let limit = if found.numel() < MANY { 2.0 * limit } else { limit };
        self.checks.borrow_mut().push(KernelCheck { name, error, limit });
    }

    fn operand(&self, name: String, found: &Operand, expected: &Tensor) {
        match found {
            Operand::Plain(found) => self.compare(name, found, expected, BFLOAT16),
            Operand::Float8(Float8Rows { values, scales }) => {
                let found = double(&values.to_kind(Kind::Float)) * double(scales);
                self.compare(name, &found, expected, FLOAT8);
            }
        }
    }

    fn rows(&self, rows: i64, width: i64, form: Form) {
        let name = |kernel: &str| format!("{kernel} {rows} x {width} {form:?}");
        let (x, update) = (self.random(&[rows, width]), self.random(&[rows, width]));
        let (factor, next) = (self.random(&[width]), self.random(&[width]));
        let expected = normed(&double(&x)) * double(&factor);
        self.operand(name("norm"), &fused::norm(&x, &factor, EPS, form), &expected);
        self.operand(name("quantize"), &fused::in_form(x.copy(), form), &double(&x));

        for factor in [Some(&factor), None] {
            let added = match factor {
                Some(factor) => double(&x) + normed(&double(&update)) * double(factor),
                None => double(&x) + double(&update),
            };
            let mut sum = x.copy();
            let found = fused::add_norm(&mut sum, &update, factor, &next, EPS, form);
            self.compare(name("add of add_norm"), &sum, &added, BFLOAT16);
            // The norm is that of the sum as it was stored.
            self.operand(name("add_norm"), &found, &(normed(&double(&sum)) * double(&next)));
            let mut sum = x.copy();
            fused::add(&mut sum, &update, factor, EPS);
            self.compare(name("add"), &sum, &added, BFLOAT16);
        }
    }

    fn gate(&self, rows: i64, width: i64, form: Form) {
        let gate_up = self.random(&[rows, 2 * width]);
        let halves = double(&gate_up).chunk(2, -1);
        let expected = halves[0].silu() * &halves[1];
        self.operand(format!("silu_mul {rows} x {width} {form:?}"), &fused::silu_mul(&gate_up, form), &expected);
    }

    fn heads(&self, tokens: i64, (queries, keys): (i64, i64), head_dim: i64, pairs: Pairs) {
        let qkv = self.random(&[tokens, queries + 2 * keys, head_dim]);
        let weights = self.random(&[2, head_dim]);
        let angles = Tensor::rand([tokens, 1, head_dim / 2], (Kind::Float, self.device)) * 6.3;
        let rope = Tensor::complex(&angles.cos(), &angles.sin());
        let (cosine, sine) = (double(&rope.view_as_real().select(-1, 0)), double(&rope.view_as_real().select(-1, 1)));
        let expected = |first, count, weight: i64| {
            let x = normed(&double(&qkv.narrow(1, first, count))) * double(&weights.select(0, weight));
            let pair = match pairs {
                Pairs::Neighbours => x.reshape([tokens, count, head_dim / 2, 2]),
                Pairs::Halves => x.reshape([tokens, count, 2, head_dim / 2]).transpose(2, 3),
            };
            let (a, b) = (pair.select(3, 0), pair.select(3, 1));
            let turned = Tensor::stack(&[&a * &cosine - &b * &sine, &b * &cosine + &a * &sine], 3);
            let turned = if pairs == Pairs::Halves { turned.transpose(2, 3) } else { turned };
            turned.reshape([tokens, count, head_dim])
        };
        let values = double(&qkv.narrow(1, queries + keys, keys));
        let expected = [expected(0, queries, 0), expected(queries, keys, 1), values];
        let found = fused::norm_rotate(qkv.copy(), &weights, &rope, (queries, keys), pairs, EPS);
        for (part, (found, expected)) in ["query", "key", "value"].iter().zip(found.iter().zip(&expected)) {
            let name = format!("norm_rotate {part} {tokens} x ({queries}, {keys}) x {head_dim} {pairs:?}");
            self.compare(name, found, expected, BFLOAT16);
        }
    }

    fn groups(&self, shape: [i64; 4], activate: bool) {
        let groups = 32;
        let [batch, channels, height, width] = shape;
        // A mean far from 0, which sums of squares must survive.
        let x = (self.random(&[batch, height, width, channels]) + 3.0).permute([0, 3, 1, 2]);
        let (weight, bias) = (self.random(&[channels]), self.random(&[channels]));
        let found = fused::group_norm(&x, &weight, &bias, groups, EPS, activate);
        let expected = double(&x).group_norm(groups, Some(double(&weight)), Some(double(&bias)), EPS, true);
        let expected = if activate { expected.silu() } else { expected };
        self.compare(format!("group_norm {shape:?} silu {activate}"), &found, &expected, BFLOAT16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_for_the_kernels_is_near_float64_too() {
        let checks = check_kernels(crate::Device::Cpu, true);
        assert!(checks.len() > 60, "{}", checks.len());
        for check in checks {
            assert!(check.passes(), "{check:?}");
        }
    }

    #[test]
    fn a_nan_does_not_pass() {
        assert!(!KernelCheck { name: String::new(), error: f64::NAN, limit: 1.0 }.passes());
    }
}
