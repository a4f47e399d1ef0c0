//! The size of a checkpoint, from the headers of its files alone.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use serde::Deserialize;

/// Largest header that safetensors allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<u64>,
}

/// Parameters in the safetensors files of transformer, text encoder and VAE. What generation does not use (the VAE's encoder,
/// the last layer of the text encoder) counts too: 2 % in Z-Image-Turbo.
///
/// # Errors
/// When a folder or file cannot be read, or is no safetensors file.
pub(crate) fn parameters(model: &Path) -> io::Result<u64> {
    let mut total = 0_u64;
    for part in ["transformer", "text_encoder", "vae"] {
        for entry in fs::read_dir(model.join(part))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                total = total.saturating_add(of_file(&path)?);
            }
        }
    }
    Ok(total)
}

fn of_file(path: &Path) -> io::Result<u64> {
    let invalid = |reason: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a safetensors file: {reason}", path.display()))
    };
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(invalid(format!("its header would have {length} bytes")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let entries: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| invalid(error.to_string()))?;
    let mut total = 0_u64;
    for (_, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor = serde_json::from_value(entry).map_err(|error| invalid(error.to_string()))?;
        let elements = tensor.shape.into_iter().fold(1_u64, u64::saturating_mul);
        total = total.saturating_add(elements);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, part: &str, header: &str) {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        fs::create_dir_all(folder.join(part)).unwrap();
        fs::write(folder.join(part).join("model.safetensors"), bytes).unwrap();
    }

    #[test]
    fn shapes_are_added_up() {
        let folder = tempfile::tempdir().unwrap();
        let tensor =
            r#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}"#;
        write(folder.path(), "transformer", tensor);
        write(folder.path(), "text_encoder", r#"{"scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}"#);
        write(folder.path(), "vae", "{}");
        fs::write(folder.path().join("vae/config.json"), "{}").unwrap();
        assert_eq!(parameters(folder.path()).unwrap(), 7);
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "transformer", "no JSON");
        let error = parameters(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors is not a safetensors file"), "{error}");
        let long = u64::MAX.to_le_bytes();
        fs::write(folder.path().join("transformer/model.safetensors"), long).unwrap();
        assert!(parameters(folder.path()).unwrap_err().to_string().contains("its header would have"));
    }

    #[test]
    fn the_demo_model() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/emoji-zimage");
        let found = parameters(&model).unwrap();
        assert!((5_000_000..100_000_000).contains(&found), "{found}");
    }
}
