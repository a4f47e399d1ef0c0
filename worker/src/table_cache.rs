//! Measured costs on disk, so that a container that restarts on the same device does not measure again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use imagegen_core::table::{StoredTable, Table, TableKey};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::{device::EngineSettings, gpu::GpuSample, output};

/// Where the operator mounts a volume for it.
pub(crate) const DEFAULT_FOLDER: &str = "/var/cache/imagegen";

fn file(folder: &Path) -> PathBuf {
    folder.join("costs.json")
}

/// What costs depend on besides what the engine tells of itself: card and driver, the files of the checkpoint, and the
/// settings of allocator and engine.
pub(crate) fn key(model: Option<&Path>, engine: &EngineSettings, gpu: &GpuSample) -> TableKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let EngineSettings { precision, vae_tiling, device, threads, allocator, random_weights } = *engine;
    TableKey::of([
        ("allocator", allocator.map(|allocator| allocator.to_string()).unwrap_or_default()),
        ("random_weights", random_weights.to_string()),
        ("checkpoint", model.map(checkpoint_fingerprint).unwrap_or_default()),
        ("asked_precision", precision.map(|precision| precision.to_string()).unwrap_or_default()),
        ("vae_tiling", vae_tiling.to_string()),
        ("asked_device", device.to_string()),
        ("threads", threads.map(|threads| threads.to_string()).unwrap_or_default()),
        ("gpu", text(&gpu.name)),
        ("mig_profile", gpu.mig.as_ref().map(|mig| text(&mig.profile)).unwrap_or_default()),
        ("driver", text(&gpu.driver_version)),
    ])
}

/// Tells checkpoints apart by the names, sizes and times of their files: weights of many gigabytes are not read for it.
fn checkpoint_fingerprint(folder: &Path) -> String {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match fs::metadata(entry.path()) {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => files.push(format!("{:?} {} {:?}", entry.file_name(), meta.len(), meta.modified().ok())),
                Err(_) => {}
            }
        }
    }
    files.sort();
    let digest: [u8; 32] = Sha256::digest(files.join("\n")).into();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The stored table, when it was measured on exactly this.
pub(crate) fn load(folder: &Path, key: &TableKey) -> Option<Table> {
    let file = file(folder);
    let text = fs::read_to_string(&file).ok()?;
    let stored: StoredTable = match serde_json::from_str(&text) {
        Ok(stored) => stored,
        Err(error) => {
            warn!(file = %file.display(), %error, "Stored costs cannot be read, and are measured again.");
            return None;
        }
    };
    let changed = stored.key.differences(key);
    if !changed.is_empty() {
        info!(changed = changed.join(", "), "Stored costs are of another setup, and are measured again.");
        return None;
    }
    Some(stored.costs.into_iter().collect())
}

/// Keeps the table. A failure costs the next start its time, nothing else.
pub(crate) fn store(folder: &Path, key: TableKey, table: &Table) {
    let stored = StoredTable { key, costs: table.iter().map(|(shape, cost)| (*shape, *cost)).collect() };
    let written = serde_json::to_vec(&stored)
        .map_err(|error| error.to_string())
        .and_then(|bytes| output::write(&file(folder), &bytes).map_err(|error| error.to_string()));
    if let Err(error) = written {
        warn!(%error, "Measured costs cannot be kept; the next start measures again.");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use imagegen_core::{
        spec::Size,
        table::{Cost, Shape},
    };

    use super::*;

    fn key(driver: &str) -> TableKey {
        TableKey(BTreeMap::from([("driver".into(), driver.into())]))
    }

    #[test]
    fn a_table_is_good_only_where_it_was_measured() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size { width: 512, height: 256 };
        let shape = Shape { size, batch: 2, caption_tokens: 128, is_guided: true };
        let cost = Cost { peak_reserved_bytes: 7, step_seconds: 0.25, ..Cost::default() };
        let table: Table = [(shape, cost)].into_iter().collect();
        assert_eq!(load(folder.path(), &key("550")), None);
        store(folder.path(), key("550"), &table);
        assert_eq!(load(folder.path(), &key("550")), Some(table));
        assert_eq!(load(folder.path(), &key("560")), None);
    }

    #[test]
    fn half_a_file_is_measured_again_and_no_folder_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(file(folder.path()), "{\"key\"").unwrap();
        assert_eq!(load(folder.path(), &key("550")), None);
        store(Path::new("/no/such/folder"), key("550"), &Table::default());
    }
}
