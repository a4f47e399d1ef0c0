//! All weight files of one part of the checkpoint, one file or several with a list.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;
use tch::Kind;

use super::mapped::Mapped;
use crate::LoadError;
use crate::config::ConfigFile;

/// All weight files of one part of the checkpoint.
#[derive(Debug)]
pub(crate) struct Shards {
    source: PathBuf,
    files: Vec<Mapped>,
    file_of: HashMap<String, usize>,
    /// There are no files, and every tensor is made.
    random: bool,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy)]
pub(crate) enum Found<'a> {
    Stored {
        bytes: &'a [u8],
        kind: Kind,
    },
    /// In no file: it is to be made of random numbers.
    Random,
}

impl Shards {
    /// Opens `folder/stem.safetensors.index.json` with the files it names or, without it, `folder/stem.safetensors`.
    ///
    /// # Errors
    /// When a file is missing, cut short or damaged.
    pub(crate) fn open(folder: &Path, stem: &str) -> Result<Self, LoadError> {
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        let single = folder.join(format!("{stem}.safetensors"));
        if !index.exists() {
            let file = Mapped::open(single.clone())?;
            let file_of = file.names().into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { source: single, files: vec![file], file_of, random: false });
        }
        let mut shards = Self { source: index.clone(), files: Vec::new(), file_of: HashMap::new(), random: false };
        for (name, key) in shard_names(&ConfigFile::read(index.clone(), "the list of weight files")?)? {
            let path = folder.join(&name);
            if !path.exists() {
                return Err(LoadError::MissingShard { path, index, key });
            }
            let file = Mapped::open(path)?;
            shards.file_of.extend(file.names().into_iter().map(|name| (name, shards.files.len())));
            shards.files.push(file);
        }
        Ok(shards)
    }

    /// Stands for files that hold random numbers under every name.
    pub(crate) fn random() -> Self {
        Self { source: PathBuf::new(), files: Vec::new(), file_of: HashMap::new(), random: true }
    }

    pub(super) fn files(&self) -> &[Mapped] {
        &self.files
    }

    /// Whether a tensor of this name is there.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.file_of.contains_key(key)
    }

    /// All names, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// The tensor `key`, which must have `shape` and a type that can be converted.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn find(&self, key: &str, shape: &[i64]) -> Result<Found<'_>, LoadError> {
        if self.random {
            return Ok(Found::Random);
        }
        let file = self.file_of.get(key).map(|&file| &self.files[file]);
        let Some((file, info)) = file.and_then(|file| Some((file, file.info(key)?))) else {
            let (path, key) = (self.source.clone(), key.to_owned());
            return Err(LoadError::MissingTensor { path, key, expected: shape.to_vec() });
        };
        let (path, key) = (file.path(), key.to_owned());
        let Some(kind) = kind_of(info.dtype) else {
            return Err(LoadError::Dtype { path: path.to_owned(), key, found: format!("{:?}", info.dtype) });
        };
        let found = dims(&info.shape);
        if found != shape {
            return Err(LoadError::Shape { path: path.to_owned(), key, expected: shape.to_vec(), found });
        }
        Ok(Found::Stored { bytes: file.bytes(info), kind })
    }

    /// The complaint about a tensor that `model` does not know.
    pub(crate) fn extra(&self, key: &str, model: &'static str) -> LoadError {
        let file = &self.files[self.file_of[key]];
        let found = file.info(key).map(|info| dims(&info.shape)).unwrap_or_default();
        LoadError::ExtraTensor { path: file.path().to_owned(), key: key.to_owned(), found, model }
    }
}

/// Floating-point types that can be converted.
pub(super) const fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        _ => None,
    }
}

/// File names in the list, in order, each with the first tensor that it holds.
fn shard_names(index: &ConfigFile) -> Result<BTreeMap<String, String>, LoadError> {
    let invalid = || index.invalid("weight_map", "an object from tensor name to file name");
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(invalid)?;
    let mut shards = BTreeMap::new();
    for (key, file) in map {
        let file = file
            .as_str()
            .filter(|file| !file.is_empty() && !file.contains(['/', '\\']))
            .ok_or_else(|| index.invalid(&format!("weight_map.{key}"), "the name of a file in the same folder"))?;
        shards.entry(file.to_owned()).or_insert_with(|| key.clone());
    }
    if shards.is_empty() { Err(invalid()) } else { Ok(shards) }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect()
}
