//! The same tensors in other files and another type.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorInfo, TensorView, serialize_to_file};
use tch::{Kind, Tensor};

use super::Shards;
use super::mapped::Mapped;
use super::shards::kind_of;
use crate::convert::ConvertError;

impl Shards {
    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.in_order().map(|(_, _, info)| bytes(info)).sum()
    }

    /// The names in the order of the files, in groups of at most `max_bytes` once they are of `kind`; a larger tensor is a
    /// group of its own.
    pub(crate) fn grouped(&self, kind: Kind, max_bytes: u64) -> Vec<Vec<String>> {
        let mut groups: Vec<Vec<String>> = Vec::new();
        let mut room = 0;
        for (name, _, info) in self.in_order() {
            let bytes = match kind_of(info.dtype) {
                Some(old) => bytes(info) / old.elt_size_in_bytes() as u64 * kind.elt_size_in_bytes() as u64,
                None => bytes(info),
            };
            match groups.last_mut() {
                Some(group) if bytes <= room => group.push(name),
                _ => {
                    groups.push(vec![name]);
                    room = max_bytes;
                }
            }
            room = room.saturating_sub(bytes);
        }
        groups
    }

    /// Writes these tensors to one file, floating-point ones as `kind`, and returns the bytes of the tensors in it.
    ///
    /// # Errors
    /// [`ConvertError::Weights`].
    pub(crate) fn write(
        &self,
        names: &[String],
        kind: Kind,
        path: &Path,
        on_read: &mut dyn FnMut(u64),
    ) -> Result<u64, ConvertError> {
        let failed = |detail: String| ConvertError::Weights { path: path.to_owned(), detail };
        let mut converted = Vec::with_capacity(names.len());
        for (name, file, info) in self.in_order().filter(|(name, ..)| names.contains(name)) {
            let (dtype, data) = match kind_of(info.dtype) {
                Some(old) => {
                    let data = as_kind(file.bytes(info), old, kind).map_err(|error| failed(error.to_string()))?;
                    (if kind == Kind::Float { Dtype::F32 } else { Dtype::BF16 }, data)
                }
                None => (info.dtype, file.bytes(info).to_vec()),
            };
            on_read(bytes(info));
            converted.push((name, dtype, info.shape.clone(), data));
        }
        let written = converted.iter().map(|(_, _, _, data)| data.len() as u64).sum();
        let views = converted
            .iter()
            .map(|(name, dtype, shape, data)| TensorView::new(*dtype, shape.clone(), data).map(|view| (name, view)));
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
        // transformers refuses files that do not say so.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(views, Some(metadata), path).map_err(|error| failed(error.to_string()))?;
        Ok(written)
    }

    fn in_order(&self) -> impl Iterator<Item = (String, &Mapped, &TensorInfo)> {
        self.files().iter().flat_map(|file| {
            file.names().into_iter().filter_map(move |name| {
                let info = file.info(&name)?;
                Some((name, file, info))
            })
        })
    }
}

const fn bytes(info: &TensorInfo) -> u64 {
    (info.data_offsets.1 - info.data_offsets.0) as u64
}

fn as_kind(bytes: &[u8], old: Kind, new: Kind) -> Result<Vec<u8>, tch::TchError> {
    let numbers = i64::try_from(bytes.len() / old.elt_size_in_bytes()).unwrap_or(i64::MAX);
    if old == new || numbers == 0 {
        return Ok(bytes.to_vec());
    }
    let tensor = Tensor::f_from_data_size(bytes, &[numbers], old)?.f_to_kind(new)?.f_view_dtype(Kind::Uint8)?;
    let mut data = vec![0; tensor.numel()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    Ok(data)
}
