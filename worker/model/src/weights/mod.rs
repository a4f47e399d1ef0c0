//! Tensors by name, out of memory-mapped safetensors files.

mod mapped;
mod rewrite;
mod shards;

use std::collections::HashSet;

use tch::{Kind, Tensor};

use shards::Found;
pub(crate) use shards::Shards;

use crate::LoadError;
use crate::load::Precision;
use crate::nn::{Conv, GroupNorm, Linear};
use crate::random;

/// Called with the number of file bytes that were read since the last call.
pub(crate) type OnRead<'a> = &'a mut dyn FnMut(u64);

/// What a walk over the names of a network does. A network's constructor is walked twice: once to compare names, shapes
/// and types with the files, which reads nothing, and once to read.
enum Pass<'a> {
    Check,
    Read { device: tch::Device, on_read: OnRead<'a> },
}

/// The tensors of one part of the checkpoint.
pub(crate) struct Weights<'a> {
    shards: &'a Shards,
    component: &'static str,
    prefix: &'static str,
    precision: Precision,
    pass: Pass<'a>,
    used: HashSet<String>,
    tally: Tally,
}

/// What a walk touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Bytes in the files.
    pub(crate) file_bytes: u64,
    /// Numbers.
    pub(crate) parameters: u64,
    /// Bytes of the tensors as they are kept.
    pub(crate) resident_bytes: u64,
}

impl<'a> Weights<'a> {
    /// A walk that compares and gives undefined tensors. `prefix` is put before each name.
    pub(crate) fn check(
        shards: &'a Shards,
        component: &'static str,
        prefix: &'static str,
        precision: Precision,
    ) -> Self {
        Self { shards, component, prefix, precision, pass: Pass::Check, used: HashSet::new(), tally: Tally::default() }
    }

    /// A walk that reads to `device`.
    pub(crate) fn read(
        shards: &'a Shards,
        component: &'static str,
        prefix: &'static str,
        precision: Precision,
        device: tch::Device,
        on_read: OnRead<'a>,
    ) -> Self {
        let pass = Pass::Read { device, on_read };
        Self { shards, component, prefix, precision, pass, used: HashSet::new(), tally: Tally::default() }
    }

    /// Whether this walk only compares; its tensors are undefined and must not be computed with.
    pub(crate) const fn checks_only(&self) -> bool {
        matches!(self.pass, Pass::Check)
    }

    /// Type that the tensors have, but for weights in 8 bits.
    pub(crate) const fn kind(&self) -> Kind {
        self.precision.kind()
    }

    /// Ends a walk. Refuses tensors that the walk did not ask for, unless `unused` knows them.
    ///
    /// # Errors
    /// [`LoadError::ExtraTensor`].
    pub(crate) fn finish(self, model: &'static str, unused: impl Fn(&str) -> bool) -> Result<Tally, LoadError> {
        let extra = |key: &&str| !self.used.contains(*key) && !unused(key.strip_prefix(self.prefix).unwrap_or(key));
        match self.shards.names().filter(extra).min() {
            Some(key) => Err(self.shards.extra(key, model)),
            None => Ok(self.tally),
        }
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// When it is missing or has another shape or type, or libtorch has no memory for it.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let key = format!("{}{name}", self.prefix);
        let found = self.shards.find(&key, shape)?;
        let parameters = shape.iter().product::<i64>().unsigned_abs();
        let file_bytes = match found {
            Found::Stored { bytes, .. } => bytes.len() as u64,
            Found::Random => parameters * Kind::BFloat16.elt_size_in_bytes() as u64,
        };
        self.tally.file_bytes += file_bytes;
        self.tally.parameters += parameters;
        let kind = self.kind();
        self.tally.resident_bytes += parameters * kind.elt_size_in_bytes() as u64;
        self.used.insert(key);
        let Pass::Read { device, on_read } = &mut self.pass else { return Ok(Tensor::new()) };
        let tensor = match found {
            Found::Stored { bytes, kind: stored } => Tensor::f_from_data_size(bytes, shape, stored)
                .and_then(|tensor| tensor.f_to_device_(*device, kind, false, false)),
            Found::Random => random::tensor(name, shape, *device, kind),
        };
        let tensor =
            tensor.map_err(|error| LoadError::Library { component: self.component, detail: error.to_string() })?;
        on_read(file_bytes);
        Ok(tensor)
    }

    /// `name.weight` and, with `bias`, `name.bias` of a linear map.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn linear(&mut self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Result<Linear, LoadError> {
        self.linears(&[(name, outputs)], inputs, bias)
    }

    /// Linear maps of one input as a single product, their outputs one after the other.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn linears(&mut self, parts: &[(&str, i64)], inputs: i64, bias: bool) -> Result<Linear, LoadError> {
        let (weight, bias) = self.joined(parts, inputs, bias)?;
        Ok(if self.checks_only() { Linear::undefined(weight) } else { Linear::new(weight, bias) })
    }

    /// [`Self::linears`] for those where nearly all weights and arithmetic are; in 8 bits where the precision says so.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn products(&mut self, parts: &[(&str, i64)], inputs: i64, bias: bool) -> Result<Linear, LoadError> {
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum::<i64>();
        if self.precision != Precision::Float8 || !Linear::takes_float8(outputs, inputs) {
            return self.linears(parts, inputs, bias);
        }
        let (weight, bias) = self.joined(parts, inputs, bias)?;
        // One byte instead of the kind's each, and a scale in float32 for each output.
        let saved = (self.kind().elt_size_in_bytes() as u64 - 1) * (outputs * inputs).unsigned_abs();
        self.tally.resident_bytes = self.tally.resident_bytes + 4 * outputs.unsigned_abs() - saved;
        Ok(if self.checks_only() { Linear::undefined(weight) } else { Linear::float8(&weight, bias) })
    }

    fn joined(
        &mut self,
        parts: &[(&str, i64)],
        inputs: i64,
        bias: bool,
    ) -> Result<(Tensor, Option<Tensor>), LoadError> {
        let mut weights = Vec::with_capacity(parts.len());
        let mut biases = Vec::new();
        for &(name, outputs) in parts {
            weights.push(self.tensor(&format!("{name}.weight"), &[outputs, inputs])?);
            if bias {
                biases.push(self.tensor(&format!("{name}.bias"), &[outputs])?);
            }
        }
        let weight = self.join(weights)?;
        Ok((weight, if bias { Some(self.join(biases)?) } else { None }))
    }

    /// `name.weight` and `name.bias` of a convolution with a square kernel of `kernel` pixels.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn conv(&mut self, name: &str, inputs: i64, outputs: i64, kernel: i64) -> Result<Conv, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])?;
        let bias = self.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(if self.checks_only() { Conv::undefined(weight, bias) } else { Conv::new(&weight, bias, kernel) })
    }

    /// `name.weight` and `name.bias` of a group norm.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn group_norm(&mut self, name: &str, groups: i64, channels: i64) -> Result<GroupNorm, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[channels])?;
        Ok(GroupNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[channels])?, groups })
    }

    /// `name.weight` of a norm over the last dimension.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn norm(&mut self, name: &str, dim: i64) -> Result<Tensor, LoadError> {
        self.tensor(&format!("{name}.weight"), &[dim])
    }

    /// [`Self::norm`] of several, `[names, dim]`.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub(crate) fn norms(&mut self, names: &[String], dim: i64) -> Result<Tensor, LoadError> {
        let parts = names.iter().map(|name| self.norm(name, dim)).collect::<Result<Vec<_>, _>>()?;
        let joined = self.join(parts)?;
        Ok(if self.checks_only() { joined } else { joined.view([-1, dim]) })
    }

    fn join(&self, mut parts: Vec<Tensor>) -> Result<Tensor, LoadError> {
        match parts.pop() {
            Some(last) if parts.is_empty() || self.checks_only() => Ok(last),
            last => {
                parts.extend(last);
                Tensor::f_cat(&parts, 0)
                    .map_err(|error| LoadError::Library { component: self.component, detail: error.to_string() })
            }
        }
    }
}
