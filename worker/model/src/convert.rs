//! A copy of a checkpoint with its weights in another precision, so that a start reads half of the bytes.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::LoadError;
use crate::checkpoint::Checkpoint;
use crate::load::{LoadOptions, LoadProgress, Precision};
use crate::weights::Shards;

/// Weights of one file of the copy. Also what is held in memory at a time.
const MAX_SHARD_BYTES: u64 = 2 << 30;

/// Folder of each part with weights, and how its weight files are called.
const PARTS: [(&str, &str); 3] =
    [("text_encoder", "model"), ("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")];

/// The list of checksums, for `sha256sum --check`.
const CHECKSUMS: &str = "SHA256SUMS";

/// Why there is no copy. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The checkpoint could not be loaded either.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// 8-bit weights are made at load.
    #[error("there are no copies in float8: convert to bfloat16, which loads with --precision float8")]
    EightBits,
    /// Something is there already.
    #[error("{} is there already: remove it, or name another folder", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read, or cannot be written.
    #[error("cannot copy to {}: {source}", path.display())]
    Copy {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A weight file cannot be written.
    #[error("cannot write {}: {detail}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What the library said.
        detail: String,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Converted {
    /// Weight files.
    pub weight_files: usize,
    /// Their bytes.
    pub weight_bytes: u64,
}

/// Writes the checkpoint in `model_dir` to the new folder `output` with all weights in `precision`, as loading it in that
/// precision would convert them. The folder appears under its name only when it is complete and on disk.
///
/// # Errors
/// When the checkpoint could not be loaded, `output` is there, or a file cannot be written.
pub fn convert(
    model_dir: &Path,
    output: &Path,
    precision: Precision,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Converted, ConvertError> {
    convert_in_shards(model_dir, output, precision, MAX_SHARD_BYTES, progress)
}

fn convert_in_shards(
    model_dir: &Path,
    output: &Path,
    precision: Precision,
    max_shard_bytes: u64,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Converted, ConvertError> {
    if precision == Precision::Float8 {
        return Err(ConvertError::EightBits);
    }
    Checkpoint::check(&LoadOptions { precision, ..LoadOptions::new(model_dir) })?;
    if fs::symlink_metadata(output).is_ok() {
        return Err(ConvertError::Exists(output.to_owned()));
    }
    let temporary = Temporary::new(output)?;
    let mut copy =
        Copy { precision, max_shard_bytes, sums: Vec::new(), done: Converted { weight_files: 0, weight_bytes: 0 } };
    copy.settings(model_dir, &temporary.0, Path::new(""))?;
    let parts = PARTS.map(|(part, stem)| Ok((part, stem, Shards::open(&model_dir.join(part), stem)?)));
    let parts = parts.into_iter().collect::<Result<Vec<_>, LoadError>>()?;
    let total_bytes = parts.iter().map(|(_, _, shards)| shards.bytes()).sum();
    let mut loaded_bytes = 0;
    for (part, stem, shards) in &parts {
        copy.weights(shards, &temporary.0, part, stem, &mut |bytes| {
            loaded_bytes += bytes;
            progress(LoadProgress { loaded_bytes, total_bytes });
        })?;
    }
    copy.checksums(&temporary.0)?;
    temporary.rename(output)?;
    Ok(copy.done)
}

/// A folder beside the one that is asked for, removed unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(output: &Path) -> Result<Self, ConvertError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(output.file_name().unwrap_or_default());
        name.push(format!(".{}.part", std::process::id()));
        let path = output.with_file_name(name);
        fs::create_dir(&path).map_err(failed(&path))?;
        Ok(Self(path))
    }

    fn rename(self, output: &Path) -> Result<(), ConvertError> {
        let parent = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let renamed = sync(&self.0).and_then(|()| fs::rename(&self.0, output)).and_then(|()| sync(parent));
        renamed.map_err(failed(output))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Not there any more once it was renamed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ConvertError {
    let path = path.to_owned();
    move |source| ConvertError::Copy { path: path.clone(), source }
}

struct Copy {
    precision: Precision,
    max_shard_bytes: u64,
    /// Checksum and name of each file.
    sums: Vec<(String, String)>,
    done: Converted,
}

impl Copy {
    /// Copies everything but weights, folder by folder.
    fn settings(&mut self, from: &Path, to: &Path, below: &Path) -> Result<(), ConvertError> {
        let folder = from.join(below);
        let mut entries =
            fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed(&folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let (source, below) = (entry.path(), below.join(&name));
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == CHECKSUMS || is_weights(&name) {
                continue;
            }
            let target = to.join(&below);
            if source.is_dir() {
                fs::create_dir(&target).map_err(failed(&target))?;
                self.settings(from, to, &below)?;
                continue;
            }
            let bytes = fs::read(&source).map_err(failed(&source))?;
            let bytes = if name == "config.json" { self.with_precision(bytes) } else { bytes };
            File::create(&target).and_then(|mut file| file.write_all(&bytes)).map_err(failed(&target))?;
            self.sum(to, &below)?;
        }
        Ok(())
    }

    /// A config.json that says its weights' type says the new one.
    fn with_precision(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else { return bytes };
        let mut is_changed = false;
        for key in ["dtype", "torch_dtype"] {
            if let Some(value @ Value::String(_)) = fields.get_mut(key) {
                *value = Value::from(self.precision.to_string());
                is_changed = true;
            }
        }
        if is_changed { pretty(&Value::Object(fields)) } else { bytes }
    }

    /// Copies the weights of one part, in files of at most [`Self::max_shard_bytes`] and their list.
    fn weights(
        &mut self,
        shards: &Shards,
        to: &Path,
        part: &str,
        stem: &str,
        on_read: &mut dyn FnMut(u64),
    ) -> Result<(), ConvertError> {
        let groups = shards.grouped(self.precision.kind(), self.max_shard_bytes);
        let (mut map, mut total) = (Map::new(), 0);
        for (index, names) in groups.iter().enumerate() {
            let file = match groups.len() {
                1 => format!("{stem}.safetensors"),
                count => format!("{stem}-{:05}-of-{count:05}.safetensors", index + 1),
            };
            let below = Path::new(part).join(&file);
            let path = to.join(&below);
            let bytes = shards.write(names, self.precision.kind(), &path, on_read)?;
            // The library makes files that only their owner can read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed(&path))?;
            self.done.weight_files += 1;
            self.done.weight_bytes += bytes;
            total += bytes;
            map.extend(names.iter().map(|name| (name.clone(), Value::from(file.as_str()))));
            self.sum(to, &below)?;
        }
        if groups.len() > 1 {
            let below = Path::new(part).join(format!("{stem}.safetensors.index.json"));
            let path = to.join(&below);
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            fs::write(&path, pretty(&index)).map_err(failed(&path))?;
            self.sum(to, &below)?;
        }
        Ok(())
    }

    /// Notes the checksum of a file that is complete, and brings it to the disk.
    fn sum(&mut self, to: &Path, below: &Path) -> Result<(), ConvertError> {
        let path = to.join(below);
        let sum = || {
            let mut file = File::open(&path)?;
            file.sync_all()?;
            let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(hasher.finalize()),
                    read => hasher.update(&buffer[..read]),
                }
            }
        };
        let sum = sum().map_err(failed(&path))?;
        self.sums.push((format!("{sum:x}"), below.to_string_lossy().into_owned()));
        Ok(())
    }

    fn checksums(&self, to: &Path) -> Result<(), ConvertError> {
        let lines: String = self.sums.iter().map(|(sum, name)| format!("{sum}  {name}\n")).collect();
        let path = to.join(CHECKSUMS);
        fs::write(&path, lines).and_then(|()| sync(&path)).map_err(failed(&path))
    }
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".safetensors.index.json", ".bin", ".pt", ".ckpt", ".onnx", ".gguf"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
